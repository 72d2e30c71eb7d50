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

/// A conversion's folder.
#[derive(Debug)]
pub struct Conversion {
    path: PathBuf,
}

impl Conversion {
    /// The folder.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Removes the folder; what is wanted of it was moved away.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn finish(self) -> Result<(), Error> {
        fs::remove_dir_all(&self.path).map_err(Error::io("remove", &self.path))
    }
}

/// Names of what is under construction in the root; a dot keeps it out of listings.
pub(super) const SCRATCH_PREFIX: &str = ".making-";
const CONVERSION_PREFIX: &str = ".converting-";
/// No merge or copy takes longer.
const SCRATCH_PATIENCE: Duration = Duration::from_secs(24 * 3600);
/// Time for somebody to come back to a conversion that was interrupted, measured from its folder's last change.
const CONVERSION_PATIENCE: Duration = Duration::from_secs(14 * 24 * 3600);

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
        let mut go_on = |bytes| {
            on_bytes(bytes);
            true
        };
        let hashed = hash(&mut file, &mut go_on).map_err(Error::io("read", path))?;
        let (digest, bytes) = hashed.expect("it was never told to stop");
        file.sync_all().map_err(Error::io("write", path))?;
        share(&file, path)?;
        let to = self.blob_path(&digest);
        fs::rename(path, &to).map_err(Error::io("move into the store", path))?;
        Ok((digest, bytes))
    }

    /// Makes a file of this machine a blob. Where the file system can, the blob is the same file under a second name (then
    /// it takes no space, and must not be changed in place), otherwise a copy. `on_bytes` hears how many bytes were hashed so
    /// far; when it says `false`, `None` comes back.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn link(&self, path: &Path, on_bytes: &mut dyn FnMut(u64) -> bool) -> Result<Option<(Digest, u64)>, Error> {
        // A second name for a symbolic link would be a second symbolic link.
        let path = &fs::canonicalize(path).map_err(Error::io("read", path))?;
        let mut file = File::open(path).map_err(Error::io("read", path))?;
        let Some((digest, bytes)) = hash(&mut file, on_bytes).map_err(Error::io("read", path))? else {
            return Ok(None);
        };
        let to = self.blob_path(&digest);
        if self.blob_size(&digest).is_some() {
            touch(&to);
            return Ok(Some((digest, bytes)));
        }
        if fs::hard_link(path, &to).is_err() {
            let folder = self.scratch()?;
            let copy = folder.path().join("blob");
            fs::copy(path, &copy).map_err(Error::io("copy", path))?;
            let (copied, _) = self.adopt(&copy, &mut |_| {})?;
            if copied != digest {
                return Err(Error::DigestMismatch { expected: digest, found: copied });
            }
        }
        Ok(Some((digest, bytes)))
    }

    /// A folder inside the store for files that become blobs: a rename is enough to [`Store::adopt`] them.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn scratch(&self) -> Result<tempfile::TempDir, Error> {
        tempfile::Builder::new()
            .prefix(SCRATCH_PREFIX)
            .tempdir_in(&self.root)
            .map_err(Error::io("create a folder in", &self.root))
    }

    /// The folder in which a checkpoint is converted. `key` says which checkpoint it is: the same one always uses the same
    /// folder, so an interrupted conversion goes on where it stopped. It stays until [`Conversion::finish`].
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn conversion(&self, key: &[u8]) -> Result<Conversion, Error> {
        let path = self.root.join(format!("{CONVERSION_PREFIX}{}", &Digest::of(key).hex()[..16]));
        fs::create_dir_all(&path).map_err(Error::io("create", &path))?;
        Ok(Conversion { path })
    }

    /// Removes what processes that died left in the root.
    pub(super) fn sweep(&self, _lock: &Lock) -> Result<(), Error> {
        for name in entries(&self.root).map_err(Error::io("read", &self.root))? {
            let patience = match name.as_str() {
                n if n.starts_with(SCRATCH_PREFIX) => SCRATCH_PATIENCE,
                n if n.starts_with(CONVERSION_PREFIX) => CONVERSION_PATIENCE,
                _ => continue,
            };
            let path = self.root.join(&name);
            if age(&path).is_some_and(|age| age > patience) {
                let removed = if path.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
                removed.map_err(Error::io("remove", &path))?;
            }
        }
        Ok(())
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
            if unused && metadata.is_file() && age(&path).is_some_and(|age| age > grace) {
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

/// Digest and number of bytes; `None` when `on_bytes` said to stop.
fn hash(from: &mut impl Read, on_bytes: &mut dyn FnMut(u64) -> bool) -> io::Result<Option<(Digest, u64)>> {
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    let mut total = 0;
    loop {
        let n = match from.read(&mut buffer) {
            Ok(0) => return Ok(Some((Digest(hash.finalize().into()), total))),
            Ok(n) => n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
            Err(e) => return Err(e),
        };
        hash.update(&buffer[..n]);
        total += n as u64;
        if !on_bytes(total) {
            return Ok(None);
        }
    }
}

/// Time since the last change.
fn age(path: &Path) -> Option<Duration> {
    let modified = fs::metadata(path).ok()?.modified().ok()?;
    SystemTime::now().duration_since(modified).ok()
}
