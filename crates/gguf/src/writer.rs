//! Writes a model at the positions of its [`Layout`].

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use crate::{Error, Layout, Metadata, TensorInfo};

/// The files of a model that is being written. Tensor data may come in any order, in pieces, and from several threads at
/// once; what was not written is zero, padding included.
///
/// ```no_run
/// # use fathom_gguf::*;
/// let tensors = vec![TensorInfo::new("token_embd.weight", DType::F32, [2, 3])?];
/// let layout = Layout::new(Metadata::new(), tensors, None)?;
/// let writer = Writer::create(&layout, &layout.paths("model.gguf".as_ref()))?;
/// writer.write_at(&layout.tensors()[0], 0, &[0u8; 24])?;
/// writer.sync()?;
/// # Ok::<(), Error>(())
/// ```
#[derive(Debug)]
pub struct Writer {
    shards: Vec<Shard>,
}

#[derive(Debug)]
struct Shard {
    path: PathBuf,
    file: fs::File,
    data_offset: u64,
}

impl Writer {
    /// Creates (or empties) one file for each shard at `paths`, gives it its final size and writes its header. Paths are
    /// usually [`Layout::paths`]; a converter gives other names first and renames when all is written.
    ///
    /// # Errors
    /// [`Error::Io`].
    ///
    /// # Panics
    /// When the number of paths is not that of the shards.
    pub fn create(layout: &Layout, paths: &[PathBuf]) -> Result<Writer, Error> {
        let mut options = fs::File::options();
        options.write(true).create(true).truncate(true);
        let writer = Writer::open(layout, paths, &options, "create")?;
        for (number, shard) in writer.shards.iter().enumerate() {
            shard.file.set_len(layout.file_bytes(number)).map_err(shard.error("resize"))?;
        }
        writer.write_header(layout)?;
        Ok(writer)
    }

    /// Opens the files of an earlier [`create`](Writer::create) of the same layout, to write what is missing.
    ///
    /// # Errors
    /// [`Error::Io`], and [`Error::ResumeBytes`] when a file does not have its size.
    ///
    /// # Panics
    /// When the number of paths is not that of the shards.
    pub fn resume(layout: &Layout, paths: &[PathBuf]) -> Result<Writer, Error> {
        let writer = Writer::open(layout, paths, fs::File::options().write(true), "open")?;
        for (number, shard) in writer.shards.iter().enumerate() {
            let found = shard.file.metadata().map_err(shard.error("inspect"))?.len();
            let expected = layout.file_bytes(number);
            if found != expected {
                return Err(Error::ResumeBytes { path: shard.path.clone(), found, expected });
            }
        }
        Ok(writer)
    }

    /// Writes the headers (again), after values were [filled in](Layout::fill).
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn write_header(&self, layout: &Layout) -> Result<(), Error> {
        for (number, shard) in self.shards.iter().enumerate() {
            write_all_at(&shard.file, &layout.header(number), 0).map_err(shard.error("write"))?;
        }
        Ok(())
    }

    /// Writes a piece of a tensor's data, `at` bytes after its beginning. Pieces of one tensor may be written at the same
    /// time as long as they do not overlap.
    ///
    /// # Errors
    /// [`Error::TensorBytes`] when the piece is not inside the tensor, [`Error::Io`].
    pub fn write_at(&self, tensor: &TensorInfo, at: u64, data: &[u8]) -> Result<(), Error> {
        let given = data.len() as u64;
        if at.checked_add(given).is_none_or(|end| end > tensor.bytes) {
            return Err(Error::TensorBytes { tensor: tensor.name.clone(), bytes: tensor.bytes, at, given });
        }
        let shard = &self.shards[tensor.shard];
        write_all_at(&shard.file, data, shard.data_offset + tensor.offset + at).map_err(shard.error("write"))
    }

    /// Waits until everything written so far to one shard is on the disk.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn sync_shard(&self, shard: usize) -> Result<(), Error> {
        let shard = &self.shards[shard];
        shard.file.sync_data().map_err(shard.error("sync"))
    }

    /// Waits until everything written so far is on the disk.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn sync(&self) -> Result<(), Error> {
        self.shards.iter().try_for_each(|shard| shard.file.sync_all().map_err(shard.error("sync")))
    }

    /// The open files in the order of the shards, for callers that reserve space, give hints or write themselves.
    pub fn files(&self) -> impl ExactSizeIterator<Item = &fs::File> {
        self.shards.iter().map(|shard| &shard.file)
    }

    fn open(
        layout: &Layout,
        paths: &[PathBuf],
        options: &fs::OpenOptions,
        action: &'static str,
    ) -> Result<Writer, Error> {
        assert_eq!(paths.len(), layout.shards(), "one path for each shard");
        let open = |(number, path): (usize, &PathBuf)| match options.open(path) {
            Ok(file) => Ok(Shard { path: path.clone(), file, data_offset: layout.data_offset(number) }),
            Err(error) => Err(Error::Io { action, path: path.clone(), error }),
        };
        let shards = paths.iter().enumerate().map(open).collect::<Result<_, _>>()?;
        Ok(Writer { shards })
    }
}

impl Shard {
    fn error(&self, action: &'static str) -> impl Fn(io::Error) -> Error {
        move |error| Error::Io { action, path: self.path.clone(), error }
    }
}

#[cfg(unix)]
fn write_all_at(file: &fs::File, data: &[u8], at: u64) -> io::Result<()> {
    std::os::unix::fs::FileExt::write_all_at(file, data, at)
}

#[cfg(windows)]
fn write_all_at(file: &fs::File, mut data: &[u8], mut at: u64) -> io::Result<()> {
    while !data.is_empty() {
        match std::os::windows::fs::FileExt::seek_write(file, data, at) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(written) => (data, at) = (&data[written..], at + written as u64),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Writes a small model as one file: tensors in the order given, each with all of its data.
///
/// # Errors
/// As [`write_to`].
pub fn write_file<D: AsRef<[u8]>>(
    path: impl AsRef<Path>,
    metadata: Metadata,
    tensors: &[(TensorInfo, D)],
) -> Result<(), Error> {
    let path = path.as_ref();
    let io = |error| Error::Io { action: "write", path: path.to_owned(), error };
    let mut out = io::BufWriter::new(fs::File::create(path).map_err(io)?);
    write_to(&mut out, metadata, tensors)?.map_err(io)?;
    out.flush().map_err(io)
}

/// Writes a small model to `out`. The outer error is about the model, the inner one about `out`.
///
/// ```
/// # use fathom_gguf::*;
/// let tensor = TensorInfo::new("one", DType::F32, [1])?;
/// let mut bytes = Vec::new();
/// write_to(&mut bytes, Metadata::new(), &[(tensor, 1f32.to_le_bytes())])?.unwrap();
/// assert_eq!(File::from_bytes(bytes)?.tensor("one")?.bytes, 4);
/// # Ok::<(), Error>(())
/// ```
///
/// # Errors
/// As [`Layout::new`], and [`Error::TensorBytes`] when data does not have the size of its tensor.
pub fn write_to<W: Write, D: AsRef<[u8]>>(
    out: &mut W,
    metadata: Metadata,
    tensors: &[(TensorInfo, D)],
) -> Result<io::Result<()>, Error> {
    let infos = tensors.iter().map(|(info, _)| info.clone()).collect();
    let layout = Layout::new(metadata, infos, None)?;
    let data = || layout.tensors().iter().zip(tensors).map(|(info, (_, data))| (info, data.as_ref()));
    if let Some((info, data)) = data().find(|(info, data)| info.bytes != data.len() as u64) {
        let (tensor, given) = (info.name.clone(), data.len() as u64);
        return Err(Error::TensorBytes { tensor, bytes: info.bytes, at: 0, given });
    }
    let mut at = 0;
    let mut put = |out: &mut W, start: u64, data: &[u8]| {
        for _ in at..start {
            out.write_all(&[0])?;
        }
        at = start + data.len() as u64;
        out.write_all(data)
    };
    let mut write = || {
        put(out, 0, &layout.header(0))?;
        for (info, data) in data() {
            put(out, layout.data_range(info).start, data)?;
        }
        put(out, layout.file_bytes(0), &[])
    };
    Ok(write())
}
