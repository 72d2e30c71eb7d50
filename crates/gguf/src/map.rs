//! The bytes of a file: mapped, or in memory. The only `unsafe` of this crate.

use std::path::Path;

use crate::Error;

/// The bytes of one file.
pub(crate) enum Bytes {
    Mapped(memmap2::Mmap),
    Owned(Vec<u8>),
    /// A file of length 0 cannot be mapped everywhere.
    Empty,
}

impl Bytes {
    /// Maps the file at `path` for reading.
    pub(crate) fn map(path: &Path) -> Result<Bytes, Error> {
        let io = |action| move |error| Error::Io { action, path: path.to_owned(), error };
        let file = std::fs::File::open(path).map_err(io("open"))?;
        let metadata = file.metadata().map_err(io("inspect"))?;
        if metadata.is_dir() {
            return Err(io("open")(std::io::ErrorKind::IsADirectory.into()));
        }
        if metadata.len() == 0 {
            return Ok(Bytes::Empty);
        }
        // Miri cannot map files; everything above this line is the same for bytes in memory.
        if cfg!(miri) {
            return std::fs::read(path).map(Bytes::Owned).map_err(io("read"));
        }
        map(&file).map(Bytes::Mapped).map_err(io("map"))
    }
}

#[expect(unsafe_code, reason = "the one memory map of this crate")]
fn map(file: &std::fs::File) -> std::io::Result<memmap2::Mmap> {
    // SAFETY: the map is private, read-only and lives as long as its `Bytes`, so inside this process nothing aliases it
    // mutably. What Rust cannot rule out is another process that changes the file underneath. Three rules keep that from
    // becoming more than wrong weights: (1) only `&[u8]` is ever handed out, for which every bit pattern is valid;
    // (2) `reader` copies text and counts out of the map and validates the copies, so no checked fact can become false
    // later; (3) whoever writes models here writes under another name and renames when done (store blobs, `Writer`
    // users), and never writes in place. A file that is truncated underneath raises SIGBUS on access: the same deal as in
    // llama.cpp, safetensors or ripgrep, and the reason why engines that must survive it read with `pread` at
    // `File::data_range` instead.
    unsafe { memmap2::Mmap::map(file) }
}

impl std::ops::Deref for Bytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Bytes::Mapped(map) => map,
            Bytes::Owned(bytes) => bytes,
            Bytes::Empty => &[],
        }
    }
}
