//! Checkpoints on their way into the store, through the converter.

use std::fs;
use std::io;
use std::path::Path;

use super::base;
use super::create::{Error, Event, Events, Parts};
use crate::store::{Conversion, Digest, Kind, Layer, Store};

/// A checkpoint that was uploaded file by file: the blobs get their names back, as the converter wants to see them.
pub(super) fn from_upload(
    store: &Store,
    files: &[(String, Digest)],
    name: &str,
    events: &mut Events<'_>,
) -> Result<Parts, Error> {
    let key: String = files.iter().map(|(name, digest)| format!("{name} {digest}\n")).collect();
    let work = store.conversion(key.as_bytes())?;
    let folder = work.path().join("checkpoint");
    for (name, digest) in files {
        let path = folder.join(name);
        let parent = path.parent().unwrap_or(&folder);
        fs::create_dir_all(parent).map_err(base::io_error("create", parent))?;
        match fs::hard_link(store.blob_path(digest), &path) {
            // Of an earlier attempt.
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
            linked => linked.map_err(base::io_error("link", &path))?,
        }
    }
    convert(store, &folder, name.to_owned(), work, events)
}

/// A checkpoint in a folder of this machine.
pub(super) fn from_folder(store: &Store, checkpoint: &Path, events: &mut Events<'_>) -> Result<Parts, Error> {
    let checkpoint = fs::canonicalize(checkpoint).map_err(base::io_error("read", checkpoint))?;
    let work = store.conversion(checkpoint.as_os_str().as_encoded_bytes())?;
    let name = checkpoint.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    convert(store, &checkpoint, name, work, events)
}

/// Converts inside the store's folder and moves the result into place: there is never a second copy.
fn convert(
    store: &Store,
    checkpoint: &Path,
    name: String,
    work: Conversion,
    events: &mut Events<'_>,
) -> Result<Parts, Error> {
    let mut options = fathom_converters::Options::new(checkpoint, work.path().join("model.gguf"));
    options.name = (!name.is_empty()).then_some(name);
    let mut progress = Converting { events: &mut *events, completed: 0, total: 0, cancelled: false };
    let report = match fathom_converters::convert(&options, &mut progress) {
        // What is left of an earlier attempt belongs to a checkpoint that has changed since.
        Err(fathom_converters::Error::OtherJournal { .. } | fathom_converters::Error::Exists { .. }) => {
            options.force = true;
            fathom_converters::convert(&options, &mut progress)
        }
        report => report,
    };
    let report = match report {
        Err(fathom_converters::Error::Cancelled) => return Err(Error::Cancelled),
        report => report?,
    };
    let mut layers = Vec::new();
    for path in &report.files {
        let total = fs::metadata(path).map_err(base::io_error("read", path))?.len();
        let (digest, bytes) = store.adopt(path, &mut |completed| {
            // The file is finished: too late to break off, and reading it takes a fraction of what making it took.
            let _ = events(Event::Reading { completed, total });
        })?;
        let kind = if layers.is_empty() { Kind::Model } else { Kind::Draft };
        layers.push(Layer::new(kind, digest, bytes));
    }
    work.finish()?;
    base::with_config(store, layers)
}

/// Passes a conversion's progress on, a few times a second.
struct Converting<'a, 'e> {
    events: &'a mut Events<'e>,
    completed: u64,
    total: u64,
    cancelled: bool,
}

impl Converting<'_, '_> {
    fn say(&mut self) {
        let event = Event::Converting { completed: self.completed, total: self.total };
        self.cancelled |= (self.events)(event).is_break();
    }
}

impl fathom_converters::Progress for Converting<'_, '_> {
    fn begin(&mut self, _: fathom_converters::Phase, bytes: u64) {
        (self.completed, self.total) = (0, bytes);
        self.say();
    }

    fn advance(&mut self, bytes: u64) {
        self.completed += bytes;
        self.say();
    }

    fn warn(&mut self, message: &str) {
        self.cancelled |= (self.events)(Event::Warning(message.to_string())).is_break();
    }

    fn cancelled(&self) -> bool {
        self.cancelled
    }
}
