//! A file that is held locked while something unfinished lies beside it, so that two processes exclude each other.

use std::fs;
use std::path::Path;

use crate::Error;

/// Opens the file at `path`, or makes it, and locks it until the handle is dropped.
///
/// # Errors
/// [`Error::Locked`] when another process has it, [`Error::Io`].
pub(crate) fn open(path: &Path) -> Result<fs::File, Error> {
    loop {
        let file = fs::File::options().read(true).write(true).create(true).truncate(false).open(path);
        let file = file.map_err(Error::io("create", path))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(fs::TryLockError::WouldBlock) => return Err(Error::Locked { path: path.into() }),
            Err(fs::TryLockError::Error(source)) => return Err(Error::io("lock", path)(source)),
        }
        // Its last holder may have removed it after we opened it: then nobody else would see our lock.
        if is_at(&file, path) {
            return Ok(file);
        }
    }
}

/// Whether `path` still leads to this very file.
#[cfg(unix)]
fn is_at(file: &fs::File, path: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    match (file.metadata(), fs::metadata(path)) {
        (Ok(ours), Ok(found)) => (ours.dev(), ours.ino()) == (found.dev(), found.ino()),
        _ => false,
    }
}

/// Elsewhere a file that is open is not removed.
#[cfg(not(unix))]
fn is_at(_: &fs::File, _: &Path) -> bool {
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lock_excludes_others_until_it_is_dropped() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock");
        let held = open(&path).unwrap();
        assert!(matches!(open(&path), Err(Error::Locked { .. })));
        drop(held);
        open(&path).unwrap();
    }

    #[cfg(unix)]
    #[test]
    fn a_file_that_was_replaced_is_not_the_one_at_the_path() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock");
        let held = open(&path).unwrap();
        assert!(is_at(&held, &path));
        fs::remove_file(&path).unwrap();
        assert!(!is_at(&held, &path));
        fs::write(&path, b"").unwrap();
        assert!(!is_at(&held, &path), "another file of that name");
    }
}
