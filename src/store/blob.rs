//! Content-addressed files: written under another name while their digest is not yet known, then renamed.

use std::collections::HashSet;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use sha2::{Digest as _, Sha256};

use super::{Digest, Error, Lock, Pruned, Store, entries};

/// A blob on its way into the store. Dropped before [`BlobWriter::finish`], it leaves nothing behind.
pub struct BlobWriter<'a> {
    store: &'a Store,
    file: tempfile::NamedTempFile,
    hash: Sha256,
    bytes: u64,
}

impl Write for BlobWriter<'_> {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        let n = self.file.write(buf)?;
        self.hash.update(&buf[..n]);
        self.bytes += n as u64;
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

impl BlobWriter<'_> {
    /// Gives the blob its name, once its bytes are on the disk. With `expected`, anything else is refused and removed.
    ///
    /// # Errors
    /// [`Error::DigestMismatch`].
    pub fn finish(self, expected: Option<Digest>) -> Result<(Digest, u64), Error> {
        let found = Digest(self.hash.finalize().into());
        if let Some(expected) = expected
            && expected != found
        {
            return Err(Error::DigestMismatch { expected, found });
        }
        let path = self.store.blob_path(&found);
        self.file.as_file().sync_all().map_err(Error::io("write", self.file.path()))?;
        share(self.file.as_file(), self.file.path())?;
        self.file.persist(&path).map_err(|e| Error::io("write", &path)(e.error))?;
        Ok((found, self.bytes))
    }
}

impl Store {
    /// Where the blob lies, or would lie.
    pub fn blob_path(&self, digest: &Digest) -> PathBuf {
        self.blobs().join(digest.file_name())
    }

    /// Bytes of the blob, if it is in the store.
    pub fn blob_size(&self, digest: &Digest) -> Option<u64> {
        let metadata = fs::metadata(self.blob_path(digest)).ok()?;
        metadata.is_file().then_some(metadata.len())
    }

    /// Starts a new blob.
    ///
    /// # Errors
    /// [`Error::Io`] when no file can be made.
    pub fn blob_writer(&self) -> Result<BlobWriter<'_>, Error> {
        let folder = self.blobs();
        let file = tempfile::Builder::new()
            .prefix("upload-")
            .suffix("-partial")
            .tempfile_in(&folder)
            .map_err(Error::io("create a file in", &folder))?;
        Ok(BlobWriter { store: self, file, hash: Sha256::new(), bytes: 0 })
    }

    /// Stores bytes that are in memory; known ones are not written again. The flag says whether they were new.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn put(&self, bytes: &[u8]) -> Result<(Digest, bool), Error> {
        let digest = Digest::of(bytes);
        if self.blob_size(&digest) == Some(bytes.len() as u64) {
            touch(&self.blob_path(&digest));
            return Ok((digest, false));
        }
        let mut writer = self.blob_writer()?;
        writer.write_all(bytes).map_err(Error::io("write", writer.file.path()))?;
        writer.finish(Some(digest))?;
        Ok((digest, true))
    }

    /// Moves a finished file of this file system into the store, without copying it. It is read once for its digest;
    /// `on_bytes` hears how many bytes were hashed so far.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn adopt(&self, path: &Path, on_bytes: &mut dyn FnMut(u64)) -> Result<(Digest, u64), Error> {
        let mut file = File::open(path).map_err(Error::io("read", path))?;
        let (digest, bytes) = hash(&mut file, on_bytes).map_err(Error::io("read", path))?;
        file.sync_all().map_err(Error::io("write", path))?;
        share(&file, path)?;
        let to = self.blob_path(&digest);
        fs::rename(path, &to).map_err(Error::io("move into the store", path))?;
        Ok((digest, bytes))
    }

    /// A folder inside the store for files that become blobs: a rename is enough to [`Store::adopt`] them.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn scratch(&self) -> Result<tempfile::TempDir, Error> {
        tempfile::Builder::new()
            .prefix(".making-")
            .tempdir_in(&self.root)
            .map_err(Error::io("create a folder in", &self.root))
    }

    pub(super) fn prune(&self, _lock: &Lock, used: &HashSet<Digest>, grace: Duration) -> Result<Pruned, Error> {
        let folder = self.blobs();
        let mut pruned = Pruned::default();
        for file in entries(&folder).map_err(Error::io("read", &folder))? {
            let unused = match file.parse::<Digest>() {
                Ok(digest) => !used.contains(&digest),
                // An upload of a process that died. Downloads in parts (`sha256-...-partial`) are kept.
                Err(_) => file.starts_with("upload-") && file.ends_with("-partial"),
            };
            let path = folder.join(&file);
            let Ok(metadata) = fs::metadata(&path) else {
                continue;
            };
            let age = metadata.modified().ok().and_then(|m| SystemTime::now().duration_since(m).ok());
            if unused && metadata.is_file() && age.is_some_and(|age| age > grace) {
                fs::remove_file(&path).map_err(Error::io("remove", &path))?;
                pruned.blobs += 1;
                pruned.bytes += metadata.len();
            }
        }
        Ok(pruned)
    }
}

/// Marks a blob as recently wanted, so that maintenance in another process does not take it away before the manifest that
/// will use it is written. A store that we may only read needs no protection from us.
fn touch(path: &Path) {
    if let Ok(file) = File::options().write(true).open(path) {
        let _ = file.set_modified(SystemTime::now());
    }
}

/// Temporary files are readable by their owner only; what is in a store may be read by everyone, as Ollama leaves it.
pub(super) fn share(file: &File, path: &Path) -> Result<(), Error> {
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        file.set_permissions(fs::Permissions::from_mode(0o644)).map_err(Error::io("set the permissions of", path))?;
    }
    let _ = (file, path);
    Ok(())
}

fn hash(from: &mut impl Read, on_bytes: &mut dyn FnMut(u64)) -> io::Result<(Digest, u64)> {
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    let mut total = 0;
    loop {
        let n = match from.read(&mut buffer) {
            Ok(0) => return Ok((Digest(hash.finalize().into()), total)),
            Ok(n) => n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
            Err(e) => return Err(e),
        };
        hash.update(&buffer[..n]);
        total += n as u64;
        on_bytes(total);
    }
}
