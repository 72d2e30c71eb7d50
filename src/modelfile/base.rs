//! Weights on their way into the store: uploaded GGUF files, uploaded checkpoints, and paths on this machine.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use fathom_converters::metadata::{DRAFT_FILE, DRAFT_SHA256};
use fathom_gguf::{File, Layout, Metadata, TensorInfo, Writer};

use super::checkpoint;
use super::create::{Error, Event, Events, Parts, tell};
use crate::store::{self, Config, Digest, Header, Kind, Layer, Name, ROUTING_SUFFIX, Store, routing_beside};

/// Largest file of routing profiles that is taken along.
const MAX_PROFILES_BYTES: u64 = 64 << 20;

/// The first bytes of a GGUF file.
const MAGIC: &[u8] = b"GGUF";

/// Layers from uploaded files: GGUF files of any kind, or a checkpoint, which is called `name`; and a file of routing profiles.
pub(super) fn from_files(
    store: &Store,
    files: &[(String, Digest)],
    name: &Name,
    events: &mut Events<'_>,
) -> Result<Parts, Error> {
    for (_, digest) in files {
        if store.blob_size(digest).is_none() {
            return Err(Error::NoBlob(*digest));
        }
    }
    let mut gguf = Vec::new();
    let mut checkpoint = Vec::new();
    let (profiles, files): (Vec<_>, Vec<_>) = files.iter().partition(|(name, _)| name.ends_with(ROUTING_SUFFIX));
    for (name, digest) in files {
        if is_gguf(name, &store.blob_path(digest)) { &mut gguf } else { &mut checkpoint }.push((name.clone(), *digest));
    }
    if gguf.is_empty() {
        if !checkpoint.iter().any(|(name, _)| name.ends_with(".safetensors")) {
            return Err(Error::UnknownType(checkpoint.into_iter().next().map(|(name, _)| name).unwrap_or_default()));
        }
        let mut parts = checkpoint::from_upload(store, &checkpoint, name.model(), events)?;
        parts.layers.extend(uploaded_profiles(store, &profiles));
        return Ok(parts);
    }
    if let Some((name, _)) = checkpoint.first() {
        return Err(Error::UnknownType(name.clone()));
    }
    let mut layers = gguf_layers(store, &gguf, Kind::Model, events)?;
    let models = layers.iter().filter(|l| l.kind() == Kind::Model).count();
    if models > 1 {
        let names: Vec<&str> = gguf.iter().map(|(name, _)| name.as_str()).collect();
        return Err(Error::SeveralModels { count: models, files: names.join(", ") });
    }
    layers.extend(uploaded_profiles(store, &profiles));
    with_config(store, layers)
}

fn uploaded_profiles(store: &Store, files: &[&(String, Digest)]) -> Option<Layer> {
    let (_, digest) = files.last()?;
    Some(Layer::new(Kind::Routing, *digest, store.blob_size(digest)?))
}

/// The routing profiles that lie beside a GGUF file. Whether they were made for this model is seen when one is asked for.
fn profiles_beside(store: &Store, weights: &Path, events: &mut Events<'_>) -> Result<Option<Layer>, Error> {
    let path = routing_beside(weights);
    let bytes = match fs::metadata(&path) {
        Ok(metadata) if metadata.is_file() => metadata.len(),
        _ => return Ok(None),
    };
    if bytes > MAX_PROFILES_BYTES {
        let text = format!("`{}` is left out: routing profiles of {bytes} bytes are not read", path.display());
        tell(events, Event::Warning(text))?;
        return Ok(None);
    }
    let content = fs::read(&path).map_err(io_error("read", &path))?;
    let (digest, _) = store.put(&content)?;
    Ok(Some(Layer::new(Kind::Routing, digest, content.len() as u64)))
}

/// One layer for each GGUF file, or one for all when they are shards. What a header says about its kind counts more than
/// `expected`.
pub(super) fn gguf_layers(
    store: &Store,
    files: &[(String, Digest)],
    expected: Kind,
    events: &mut Events<'_>,
) -> Result<Vec<Layer>, Error> {
    let mut layers = Vec::new();
    let mut shards = Vec::new();
    for (name, digest) in files {
        let path = store.blob_path(digest);
        let size = store.blob_size(digest).ok_or(Error::NoBlob(*digest))?;
        tell(events, Event::ParsingGguf)?;
        match File::open_shards(&[&path]) {
            Ok(file) => layers.push(Layer::new(kind_of(&Header::read(&file), expected), *digest, size)),
            // A shard alone is no model.
            Err(fathom_gguf::Error::ShardKey { .. }) => shards.push(path),
            Err(source) => return Err(Error::NotGguf { file: name.clone(), source }),
        }
    }
    if !shards.is_empty() {
        let file = File::open_shards(&shards).map_err(Error::Shards)?;
        layers.insert(0, merged(store, &file, file.metadata().clone(), expected, events)?);
    }
    Ok(layers)
}

/// Layers from a GGUF file or a directory on this machine.
pub(super) fn from_path(store: &Store, path: &Path, events: &mut Events<'_>) -> Result<Parts, Error> {
    if path.is_dir() {
        if path.join("config.json").is_file() {
            return checkpoint::from_folder(store, path, events);
        }
        return match only_gguf(path) {
            Some(file) => from_path(store, &file, events),
            None => Err(Error::UnknownPath(path.to_path_buf())),
        };
    }
    if !is_gguf("", path) {
        return Err(Error::UnknownPath(path.to_path_buf()));
    }
    tell(events, Event::ParsingGguf)?;
    let file = File::open(path).map_err(|source| Error::BadPath { path: path.to_path_buf(), source })?;
    let mut metadata = file.metadata().clone();
    let mut draft_layer = None;
    if let Some(draft) = draft_beside(path, &file) {
        let opened = File::open(&draft).map_err(|source| Error::BadPath { path: draft.clone(), source })?;
        draft_layer = Some(if opened.shards().len() > 1 {
            let layer = merged(store, &opened, opened.metadata().clone(), Kind::Draft, events)?;
            // The model knows its draft by the checksum of its file, which is another one now.
            metadata.insert(DRAFT_SHA256, layer.digest.map_or_else(String::new, |digest| digest.hex()));
            layer
        } else {
            linked(store, &draft, Kind::Draft, events)?
        });
    }
    let mut layers = vec![if file.shards().len() > 1 || metadata != *file.metadata() {
        merged(store, &file, metadata, Kind::Model, events)?
    } else {
        linked(store, path, Kind::Model, events)?
    }];
    layers.extend(draft_layer);
    layers.extend(profiles_beside(store, path, events)?);
    with_config(store, layers)
}

/// The draft file that a converted model names, if it lies beside it.
fn draft_beside(path: &Path, file: &File) -> Option<PathBuf> {
    let name = file.metadata().opt_str(DRAFT_FILE).ok()??;
    // A name from a file: it may only be a name.
    let plain = Path::new(name).file_name().is_some_and(|only| only == name);
    let draft = path.parent()?.join(name);
    (plain && draft.is_file()).then_some(draft)
}

/// The one GGUF file of a directory, or the first shard if all are shards of one.
fn only_gguf(folder: &Path) -> Option<PathBuf> {
    let mut files: Vec<PathBuf> = fs::read_dir(folder).ok()?.filter_map(|e| Some(e.ok()?.path())).collect();
    files.retain(|path| path.extension().is_some_and(|e| e == "gguf"));
    files.sort();
    match files.as_slice() {
        [] => None,
        [only] => Some(only.clone()),
        // All files of one model: opening one of them finds the others.
        [first, ..] => {
            let shards = File::open(first).ok()?.shards().len();
            (shards == files.len()).then(|| first.clone())
        }
    }
}

/// A file of this machine as a blob: the same bytes under a second name where the file system can do that, a copy otherwise.
fn linked(store: &Store, path: &Path, kind: Kind, events: &mut Events<'_>) -> Result<Layer, Error> {
    let total = fs::metadata(path).map_err(io_error("read", path))?.len();
    let mut cancelled = false;
    let (digest, bytes) = store
        .link(path, &mut |completed| {
            cancelled |= events(Event::Reading { completed, total }).is_break();
            !cancelled
        })?
        .ok_or(Error::Cancelled)?;
    Ok(Layer::new(kind, digest, bytes))
}

/// All shards as one file, with these keys: one blob is what every program that reads such a store can open.
fn merged(store: &Store, file: &File, metadata: Metadata, kind: Kind, events: &mut Events<'_>) -> Result<Layer, Error> {
    let tensors = file
        .tensors()
        .iter()
        .map(|t| TensorInfo::new(t.name.clone(), t.dtype, t.ne.clone()))
        .collect::<Result<Vec<_>, _>>()
        .map_err(Error::Merge)?;
    // The keys of the split are dropped and the alignment is kept by the layout.
    let layout = Layout::new(metadata, tensors, None).map_err(Error::Merge)?;
    let folder = store.scratch()?;
    let path = folder.path().join("model.gguf");
    let writer = Writer::create(&layout, std::slice::from_ref(&path)).map_err(Error::Merge)?;
    let (mut completed, total) = (0, layout.total_bytes());
    for (from, to) in file.tensors().iter().zip(layout.tensors()) {
        writer.write_at(to, 0, file.data(from)).map_err(Error::Merge)?;
        completed += from.bytes;
        tell(events, Event::Reading { completed, total })?;
    }
    writer.sync().map_err(Error::Merge)?;
    let (digest, bytes) = store.adopt(&path, &mut |_| {})?;
    Ok(Layer::new(kind, digest, bytes))
}

/// The config that the weights imply.
pub(super) fn with_config(store: &Store, layers: Vec<Layer>) -> Result<Parts, Error> {
    let Some(weights) = layers.iter().find(|l| l.kind() == Kind::Model).and_then(|l| l.digest) else {
        return Ok(Parts { layers, config: Config::default() });
    };
    let path = store.blob_path(&weights);
    let file = File::open_shards(&[&path]).map_err(|source| store::Error::Gguf { path, source })?;
    let header = Header::read(&file);
    let config = Config {
        model_format: "gguf".into(),
        model_family: header.architecture.clone(),
        model_families: vec![header.architecture.clone()],
        model_type: header.parameter_size(),
        file_type: header.file_type.clone(),
        ..Config::default()
    };
    Ok(Parts { layers, config })
}

fn kind_of(header: &Header, expected: Kind) -> Kind {
    match header.kind.as_deref() {
        Some("adapter") => Kind::Adapter,
        Some("mmproj") => Kind::Projector,
        _ if header.architecture == "clip" => Kind::Projector,
        _ if header.architecture == "fathom-dspark" => Kind::Draft,
        _ => expected,
    }
}

fn is_gguf(name: &str, path: &Path) -> bool {
    let mut magic = [0; 4];
    name.ends_with(".gguf")
        || fs::File::open(path).and_then(|mut file| io::Read::read_exact(&mut file, &mut magic)).is_ok()
            && magic == MAGIC
}

pub(super) fn io_error(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Error {
    let path = path.to_path_buf();
    move |source| store::Error::Io { what, path, source }.into()
}
