//! The model that comes inside the program: `fathom-tiny`, small enough to try everything with nothing downloaded.
//!
//! Release builds carry its checkpoint as released (`build.rs` puts it in); it is no model of the store until somebody asks for it.
//! Then it is converted like any other checkpoint. A build without it says so.

use std::fs;
use std::sync::{Mutex, PoisonError};

use super::base::io_error;
use super::create::{self, Base, Changes, Error, Events, Spec};
use super::{Instruction, parse};
use crate::store::{self, Message, Name, Store};

mod embedded {
    include!(concat!(env!("OUT_DIR"), "/bundled.rs"));
}

/// What it is called.
pub const NAME: &str = "fathom-tiny";

/// A checkpoint in memory, and the Modelfile beside it.
#[derive(Clone, Copy, Debug)]
struct Bundle {
    modelfile: &'static str,
    /// File name and content.
    files: &'static [(&'static str, &'static [u8])],
}

const BUNDLE: Bundle = Bundle { modelfile: embedded::MODELFILE, files: embedded::FILES };

/// One request makes the model, those that come meanwhile wait for it. Between processes there is nothing to guard: each converts in a
/// folder of its own, and the last manifest replaces an equal one.
static MAKING: Mutex<()> = Mutex::new(());

/// Whether `name` is that of the bundled model.
pub fn is_name(name: &Name) -> bool {
    Name::parse(NAME).is_ok_and(|bundled| bundled == *name)
}

/// Whether this build carries the model.
pub fn is_carried() -> bool {
    !BUNDLE.files.is_empty()
}

/// Makes the bundled model if `name` is its name and it is not installed; does nothing otherwise. Call it before
/// [`Store::model`].
///
/// # Errors
/// [`Error::NotBundled`] when this build carries no model, and those of [`create::create`].
pub fn ensure(store: &Store, name: &Name, events: &mut Events<'_>) -> Result<(), Error> {
    if is_name(name) { ensure_from(BUNDLE, store, name, events) } else { Ok(()) }
}

fn ensure_from(bundle: Bundle, store: &Store, name: &Name, events: &mut Events<'_>) -> Result<(), Error> {
    let installed = || match store.manifest(name) {
        Ok(_) => Ok(true),
        Err(store::Error::NotFound(_)) => Ok(false),
        Err(error) => Err(error),
    };
    if installed()? {
        return Ok(());
    }
    if bundle.files.is_empty() {
        return Err(Error::NotBundled(NAME));
    }
    // Nothing is guarded but time: a maker that panicked leaves nothing half done behind.
    let _making = MAKING.lock().unwrap_or_else(PoisonError::into_inner);
    if installed()? {
        return Ok(());
    }
    tracing::info!("making `{name}` of the checkpoint inside the program");
    let scratch = store.scratch()?;
    // The folder's name becomes the model's in the file.
    let folder = scratch.path().join(NAME);
    fs::create_dir(&folder).map_err(io_error("create", &folder))?;
    for (file, bytes) in bundle.files {
        let path = folder.join(file);
        fs::write(&path, bytes).map_err(io_error("write", &path))?;
    }
    let spec = Spec {
        name: name.clone(),
        base: Base::Path(folder),
        adapters: Vec::new(),
        drafts: Vec::new(),
        changes: changes(bundle.modelfile)?,
    };
    create::create(store, &spec, events)
}

/// What the Modelfile says beside FROM, which names the checkpoint.
fn changes(modelfile: &str) -> Result<Changes, Error> {
    let parsed = parse(modelfile).map_err(|error| Error::BundledModelfile(error.to_string()))?;
    let mut changes = Changes::default();
    for instruction in parsed.modelfile.instructions {
        match instruction {
            Instruction::From(_) => {}
            Instruction::Template(text) => changes.template = text,
            Instruction::System(text) => changes.system = text,
            Instruction::License(text) => changes.licenses.push(text),
            Instruction::Renderer(text) => changes.renderer = text,
            Instruction::Parser(text) => changes.parser = text,
            Instruction::Requires(text) => changes.requires = text,
            Instruction::Parameter { name, value } if name == "stop" => {
                let stops = changes.parameters.entry(name).or_insert_with(|| serde_json::json!([]));
                stops.as_array_mut().into_iter().for_each(|list| list.push(value.clone()));
            }
            Instruction::Parameter { name, value } => {
                changes.parameters.insert(name, value);
            }
            Instruction::Message { role, content } => {
                changes.messages.push(Message { role: role.word().to_owned(), content });
            }
            Instruction::Adapter(_) | Instruction::Draft(_) => {
                return Err(Error::BundledModelfile("it names files beside the checkpoint".to_owned()));
            }
        }
    }
    Ok(changes)
}

#[cfg(test)]
mod tests {
    use std::ops::ControlFlow;
    use std::path::Path;

    use super::*;
    use crate::modelfile::Event;

    /// The small checkpoint of the tests in place of the bundled one.
    fn bundle() -> Bundle {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/tiny-v4-a");
        let mut files: Vec<(&'static str, &'static [u8])> = Vec::new();
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            if !name.starts_with("golden") {
                files.push((name.leak(), fs::read(&path).unwrap().leak()));
            }
        }
        let modelfile =
            "FROM ./checkpoint\nPARAMETER temperature 0\nPARAMETER stop a\nPARAMETER stop b\nSYSTEM Be brief.\n";
        Bundle { modelfile, files: files.leak() }
    }

    fn name() -> Name {
        Name::parse(NAME).unwrap()
    }

    #[test]
    fn it_is_made_once_however_many_ask_at_once() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        let bundle = bundle();
        let made: usize = std::thread::scope(|scope| {
            let ask = || {
                let mut manifests = 0;
                let mut events = |event: Event| {
                    manifests += usize::from(event == Event::WritingManifest);
                    ControlFlow::Continue(())
                };
                ensure_from(bundle, &store, &name(), &mut events).unwrap();
                assert!(store.model(&name()).is_ok(), "it is there for everybody who asked");
                manifests
            };
            let askers: Vec<_> = (0..4).map(|_| scope.spawn(ask)).collect();
            askers.into_iter().map(|asker| asker.join().unwrap()).sum()
        });
        assert_eq!(made, 1);
        let model = store.model(&name()).unwrap();
        assert_eq!(model.header.architecture, "deepseek4");
        assert_eq!(model.system.as_deref(), Some("Be brief."));
        assert_eq!(model.params["stop"], serde_json::json!(["a", "b"]));
        let mut left: Vec<_> = fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        left.sort();
        assert_eq!(left, [".fathom.lock", "blobs", "manifests"]);
    }

    #[test]
    fn other_names_are_left_alone_and_an_empty_build_says_so() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        let mut events = |_: Event| panic!("nothing is made");
        ensure(&store, &Name::parse("fathom-tiny:q4").unwrap(), &mut events).unwrap();
        ensure(&store, &Name::parse("me/fathom-tiny").unwrap(), &mut events).unwrap();
        let nothing = Bundle { modelfile: "", files: &[] };
        let error = ensure_from(nothing, &store, &name(), &mut events).unwrap_err();
        assert_eq!(error.to_string(), "model 'fathom-tiny' not found, and this build of fathom carries no model");
    }

    #[test]
    fn a_cancelled_making_leaves_no_model() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        let mut stop = |_: Event| ControlFlow::Break(());
        assert!(matches!(ensure_from(bundle(), &store, &name(), &mut stop), Err(Error::Cancelled)));
        assert!(matches!(store.manifest(&name()), Err(store::Error::NotFound(_))));
    }
}
