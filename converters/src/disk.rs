//! What the file system says and promises: space, and names that last.

use std::fs;
use std::path::Path;

use crate::Error;

/// Fails when `needed` bytes do not fit into `dir`, where `freed` bytes more than now will be free.
///
/// # Errors
/// [`Error::Disk`].
pub(crate) fn check(dir: &Path, needed: u64, freed: u64) -> Result<(), Error> {
    match available(dir).map(|bytes| bytes.saturating_add(freed)) {
        Some(available) if available < needed => Err(Error::Disk { dir: dir.into(), needed, available }),
        _ => Ok(()),
    }
}

/// Bytes that a file takes on disk: less than its size while parts of it were never written.
#[cfg(unix)]
pub(crate) fn allocated(path: &Path) -> Option<u64> {
    use std::os::unix::fs::MetadataExt;
    Some(fs::metadata(path).ok()?.blocks() * 512)
}

#[cfg(not(unix))]
pub(crate) fn allocated(path: &Path) -> Option<u64> {
    Some(fs::metadata(path).ok()?.len())
}

/// Bytes free for us; `None` where the system does not say.
#[cfg(unix)]
fn available(dir: &Path) -> Option<u64> {
    let stat = rustix::fs::statvfs(dir).ok()?;
    stat.f_bavail.checked_mul(stat.f_frsize)
}

#[cfg(not(unix))]
fn available(_: &Path) -> Option<u64> {
    None
}

/// Makes renames in `dir` durable; only unix lets a directory be synced.
///
/// # Errors
/// [`Error::Io`].
pub(crate) fn sync_directory(dir: &Path) -> Result<(), Error> {
    if cfg!(unix) {
        let opened = fs::File::open(dir).map_err(Error::io("open", dir))?;
        opened.sync_all().map_err(Error::io("sync", dir))?;
    }
    Ok(())
}
