//! Checkpoints on their way into the store, through the converter.

use std::path::Path;

use super::create::{Error, Events, Parts};
use crate::store::{Digest, Store};

/// Until the converter is there.
pub(super) fn from_upload(_: &Store, _: &[(String, Digest)], _: &mut Events<'_>) -> Result<Parts, Error> {
    Err(Error::NoConverter("the upload".into()))
}

/// Until the converter is there.
pub(super) fn from_folder(_: &Store, checkpoint: &Path, _: &mut Events<'_>) -> Result<Parts, Error> {
    Err(Error::NoConverter(checkpoint.to_path_buf()))
}
