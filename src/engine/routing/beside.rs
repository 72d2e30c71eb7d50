//! The file of profiles that comes with a model.

use std::cell::RefCell;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use super::{Error, Profiles};

/// A file of profiles, read again only when it has changed: requests may name what is not in it as often as they like.
pub struct Beside {
    path: PathBuf,
    read: RefCell<Option<(Stamp, Arc<Profiles>)>>,
}

/// Tells states of a file apart.
#[derive(Clone, Debug, PartialEq)]
pub struct Stamp {
    path: PathBuf,
    bytes: u64,
    modified: Option<SystemTime>,
}

impl Stamp {
    /// `None`: there is no such file.
    pub fn of(path: &Path) -> Option<Stamp> {
        let metadata = std::fs::metadata(path).ok()?;
        Some(Stamp { path: path.to_owned(), bytes: metadata.len(), modified: metadata.modified().ok() })
    }
}

impl Beside {
    /// Whether there is such a file is looked up when a profile is asked for.
    pub fn new(path: PathBuf) -> Beside {
        Beside { path, read: RefCell::new(None) }
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its present state; `None`: there is none.
    pub fn stamp(&self) -> Option<Stamp> {
        Stamp::of(&self.path)
    }

    /// What it holds; `None`: there is no such file. Its name may be any, since no request has chosen it.
    ///
    /// # Errors
    /// Those of [`Profiles::load`].
    pub fn profiles(&self) -> Result<Option<Arc<Profiles>>, Error> {
        let Some(stamp) = self.stamp() else { return Ok(None) };
        let mut read = self.read.borrow_mut();
        if let Some((of, profiles)) = &*read
            && *of == stamp
        {
            return Ok(Some(Arc::clone(profiles)));
        }
        *read = None;
        let profiles = Arc::new(Profiles::read(&self.path)?);
        *read = Some((stamp, Arc::clone(&profiles)));
        Ok(Some(profiles))
    }
}
