//! From a base and changes to an installed model: layers are collected, then a config blob and a manifest are written.
//!
//! The base is an installed model, uploaded files, or a path on this machine ([`base`] turns the last two into
//! layers). Nothing is visible until the manifest is written; what was made before a failure is a blob without a
//! manifest, which the store's maintenance takes away.

use std::ops::ControlFlow;
use std::path::PathBuf;

use serde_json::{Map, Value};

use super::{base, bundled};
use crate::store::{self, CONFIG_TYPE, Config, Digest, Kind, Layer, Manifest, Message, Model, Name, Store};

/// What to make.
#[derive(Clone, Debug)]
pub struct Spec {
    pub name: Name,
    pub base: Base,
    /// Uploaded adapters: file name and digest.
    pub adapters: Vec<(String, Digest)>,
    /// Uploaded draft models.
    pub drafts: Vec<(String, Digest)>,
    pub changes: Changes,
}

impl Spec {
    fn adds_nothing(&self) -> bool {
        self.adapters.is_empty() && self.drafts.is_empty() && self.changes == Changes::default()
    }
}

/// Where the weights come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Base {
    Model(Name),
    /// Uploaded files: name and digest. GGUF files, or the files of a checkpoint.
    Files(Vec<(String, Digest)>),
    /// A GGUF file or a directory (checkpoint, or one GGUF file in it) on this machine.
    Path(PathBuf),
}

/// What differs from the base. Empty fields keep what the base has.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Changes {
    pub template: String,
    pub system: String,
    /// Added to the base's.
    pub licenses: Vec<String>,
    /// Merged over the base's, key by key.
    pub parameters: Map<String, Value>,
    /// Replace the base's as a whole.
    pub messages: Vec<Message>,
    pub renderer: String,
    pub parser: String,
    pub requires: String,
    /// Fields of the config that the caller knows better than the files.
    pub info: Map<String, Value>,
}

/// What creating a model tells while it goes on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    ParsingGguf,
    /// A checkpoint becomes GGUF; bytes of output.
    Converting {
        completed: u64,
        total: u64,
    },
    /// A file is read for its digest, or copied.
    Reading {
        completed: u64,
        total: u64,
    },
    ExistingLayer(Digest),
    NewLayer(Digest),
    /// For the user: something is kept that this program does not use, or was left out.
    Warning(String),
    WritingManifest,
}

/// Receives events; [`ControlFlow::Break`] = nobody wants the result any more.
pub type Events<'a> = dyn FnMut(Event) -> ControlFlow<()> + 'a;

/// Why a model was not made.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("model `{0}` is not installed")]
    BaseNotFound(Name),
    #[error("blob `{0}` was not uploaded")]
    NoBlob(Digest),
    #[error("`{0}` is neither a GGUF file nor part of a safetensors checkpoint")]
    UnknownType(String),
    #[error("`{file}` is not a GGUF file: {source}")]
    NotGguf { file: String, source: fathom_gguf::Error },
    #[error("{0} adapters were given, one can be used")]
    SeveralAdapters(usize),
    #[error("no base model was found")]
    NoBaseModel,
    #[error("{count} models were given ({files}), a model has one")]
    SeveralModels { count: usize, files: String },
    #[error("the shards do not belong together: {0}")]
    Shards(fathom_gguf::Error),
    #[error("`{}` cannot be used: {source}", path.display())]
    BadPath { path: PathBuf, source: fathom_gguf::Error },
    #[error("`{}` is neither a GGUF file nor a directory with a checkpoint", .0.display())]
    UnknownPath(PathBuf),
    #[error(transparent)]
    Convert(#[from] fathom_converters::Error),
    #[error("cannot write the merged model: {0}")]
    Merge(fathom_gguf::Error),
    #[error("field `info`: {0}")]
    Info(String),
    /// The text is that of a missing model, which clients look for, and why it is missing.
    #[error("model '{0}' not found, and this build of fathom carries no model")]
    NotBundled(&'static str),
    #[error("the Modelfile inside the program cannot be used: {0}")]
    BundledModelfile(String),
    #[error("the request was cancelled")]
    Cancelled,
    #[error(transparent)]
    Store(#[from] store::Error),
}

/// The layers of a model in the making.
#[derive(Default)]
pub(super) struct Parts {
    pub(super) layers: Vec<Layer>,
    pub(super) config: Config,
}

/// Makes a model. Layers of `from` are inherited; events come in the order in which things happen.
///
/// # Errors
/// [`Error`]; the store has no new manifest then.
pub fn create(store: &Store, spec: &Spec, events: &mut Events<'_>) -> Result<(), Error> {
    if let Base::Model(base) = &spec.base {
        bundled::ensure(store, base, events)?;
        // Whoever wants the bundled model with progress shown asks for it made of itself.
        if bundled::is_name(base) && *base == spec.name && spec.adds_nothing() {
            return Ok(());
        }
    }
    let mut parts = match &spec.base {
        Base::Model(name) => inherit(store, name)?,
        Base::Files(files) => base::from_files(store, files, &spec.name, events)?,
        Base::Path(path) => base::from_path(store, path, events)?,
    };
    for (kind, files) in [(Kind::Adapter, &spec.adapters), (Kind::Draft, &spec.drafts)] {
        if !files.is_empty() {
            parts.layers.retain(|l| l.kind() != kind);
            parts.layers.extend(base::gguf_layers(store, files, kind, events)?);
        }
    }
    let count = |kind| parts.layers.iter().filter(|l| l.kind() == kind).count();
    if count(Kind::Adapter) > 1 {
        return Err(Error::SeveralAdapters(count(Kind::Adapter)));
    }
    if count(Kind::Model) == 0 {
        return Err(Error::NoBaseModel);
    }
    // Not used by any engine of this program yet, and kept for those that will.
    if count(Kind::Adapter) > 0 {
        let text = "the adapter is stored, but models with adapters cannot be run yet";
        tell(events, Event::Warning(text.into()))?;
    }
    if !spec.drafts.is_empty() {
        let text = "the draft model is stored, but answers are made without it: speculative decoding is not built yet";
        tell(events, Event::Warning(text.into()))?;
    }

    // Of what was there before: said as existing. The rest is said as it is made.
    let mut said: Vec<Event> = parts.layers.iter().filter_map(|l| l.digest).map(Event::ExistingLayer).collect();
    said.extend(change(store, &mut parts, &spec.changes)?);
    for event in said {
        tell(events, event)?;
    }
    let (config, _) = put_json(store, &parts.config)?;
    tell(events, Event::WritingManifest)?;
    let config = Layer { media_type: CONFIG_TYPE.into(), ..config };
    store.write_manifest(&spec.name, &Manifest::new(config, parts.layers))?;
    Ok(())
}

/// All layers of an installed model, remembered as coming from it, and its config.
fn inherit(store: &Store, name: &Name) -> Result<Parts, Error> {
    let found = match store.manifest(name) {
        Err(store::Error::NotFound(name)) => return Err(Error::BaseNotFound(name)),
        found => found?,
    };
    let model: Model = store.model(name)?;
    let from = found.name.to_string();
    let layers = found.manifest.layers.into_iter().map(|layer| Layer { from: Some(from.clone()), ..layer }).collect();
    Ok(Parts { layers, config: model.config })
}

/// Applies what differs from the base; gives an event for each layer that was written.
fn change(store: &Store, parts: &mut Parts, changes: &Changes) -> Result<Vec<Event>, Error> {
    let mut said = Vec::new();
    let mut add = |layers: &mut Vec<Layer>, kind: Kind, bytes: &[u8]| -> Result<(), Error> {
        let (digest, new) = store.put(bytes)?;
        layers.push(Layer::new(kind, digest, bytes.len() as u64));
        said.push(if new { Event::NewLayer(digest) } else { Event::ExistingLayer(digest) });
        Ok(())
    };
    let layers = &mut parts.layers;
    for (kind, text) in [(Kind::Template, &changes.template), (Kind::System, &changes.system)] {
        if !text.is_empty() {
            layers.retain(|l| l.kind() != kind);
            add(layers, kind, text.as_bytes())?;
        }
    }
    for license in &changes.licenses {
        add(layers, Kind::License, license.as_bytes())?;
    }
    if !changes.parameters.is_empty() {
        let mut merged: Map<String, Value> = Map::new();
        for layer in layers.iter().filter(|l| l.kind() == Kind::Params) {
            merged.extend(read_params(store, layer)?);
        }
        merged.extend(changes.parameters.clone());
        layers.retain(|l| l.kind() != Kind::Params);
        add(layers, Kind::Params, &to_json(&merged))?;
    }
    if !changes.messages.is_empty() {
        layers.retain(|l| l.kind() != Kind::Messages);
        add(layers, Kind::Messages, &to_json(&changes.messages))?;
    }
    let config = &mut parts.config;
    for (field, value) in [
        (&mut config.renderer, &changes.renderer),
        (&mut config.parser, &changes.parser),
        (&mut config.requires, &changes.requires),
    ] {
        if !value.is_empty() {
            field.clone_from(value);
        }
    }
    apply_info(config, &changes.info)?;
    // What registries expect of an image that runs anywhere.
    config.architecture = "amd64".into();
    config.os = "linux".into();
    Ok(said)
}

/// The fields that a client may set in the config, by their names on the wire.
fn apply_info(config: &mut Config, info: &Map<String, Value>) -> Result<(), Error> {
    let text = |value: &Value, key: &str| {
        value.as_str().map(str::to_owned).ok_or_else(|| Error::Info(format!("`{key}` must be a string")))
    };
    let number = |value: &Value, key: &str| {
        value.as_u64().ok_or_else(|| Error::Info(format!("`{key}` must be a number that is not negative")))
    };
    for (key, value) in info {
        match key.as_str() {
            "model_family" => config.model_family = text(value, key)?,
            "base_name" => config.base_name = text(value, key)?,
            "quantization_level" => config.file_type = text(value, key)?,
            "parameter_size" => config.model_type = text(value, key)?,
            "context_length" => config.context_length = number(value, key)?,
            "embedding_length" => config.embedding_length = number(value, key)?,
            "capabilities" => {
                let words = value.as_array().and_then(|a| a.iter().map(|w| w.as_str().map(str::to_owned)).collect());
                config.capabilities = words.ok_or_else(|| Error::Info(format!("`{key}` must be a list of strings")))?;
            }
            _ => tracing::debug!(key, "unknown field of `info` ignored"),
        }
    }
    Ok(())
}

fn read_params(store: &Store, layer: &Layer) -> Result<Map<String, Value>, Error> {
    let Some(digest) = layer.digest else { return Ok(Map::new()) };
    let path = store.blob_path(&digest);
    let io = |source| store::Error::Io { what: "read", path: path.clone(), source };
    let bytes = std::fs::read(&path).map_err(io)?;
    serde_json::from_slice(&bytes).map_err(|e| Error::Store(io(e.into())))
}

fn to_json(value: &impl serde::Serialize) -> Vec<u8> {
    let mut bytes = serde_json::to_vec(value).expect("strings, numbers and maps with string keys");
    bytes.push(b'\n');
    bytes
}

fn put_json(store: &Store, value: &impl serde::Serialize) -> Result<(Layer, bool), Error> {
    let bytes = to_json(value);
    let (digest, new) = store.put(&bytes)?;
    Ok((Layer::new(Kind::Other, digest, bytes.len() as u64), new))
}

pub(super) fn tell(events: &mut Events<'_>, event: Event) -> Result<(), Error> {
    match events(event) {
        ControlFlow::Continue(()) => Ok(()),
        ControlFlow::Break(()) => Err(Error::Cancelled),
    }
}
