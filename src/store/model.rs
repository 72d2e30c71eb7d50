//! A model: a manifest with everything its layers say, or a bare GGUF file.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use sha2::{Digest as _, Sha256};

use super::{Digest, Error, Found, Header, Kind, Layer, Manifest, Name, Store, absent};

/// Layers that are read into memory are templates, texts and parameters. What is larger than this is none of them.
const MAX_TEXT_BYTES: u64 = 64 << 20;

/// Everything known about one model without loading it.
#[derive(Clone, Debug)]
pub struct Model {
    pub source: Source,
    /// SHA-256 of the manifest's bytes; for a bare file see [`Model::from_gguf`].
    pub digest: Digest,
    /// Of the manifest, or of the bare file.
    pub modified: SystemTime,
    /// Bytes of all layers and the config, or of the bare file and its shards.
    pub size: u64,
    /// GGUF files with the weights, the first shard first. Empty for packages of another engine.
    pub weights: Vec<PathBuf>,
    pub adapters: Vec<PathBuf>,
    pub projectors: Vec<PathBuf>,
    /// Draft model for speculative decoding.
    pub draft: Option<PathBuf>,
    /// File of routing profiles. `None` for a bare file, beside which engines look for one by its name.
    pub routing: Option<PathBuf>,
    /// The TEMPLATE, in Go's template language.
    pub template: Option<String>,
    pub system: Option<String>,
    /// The model whose weights these are, if this one was made from it.
    pub parent: Option<String>,
    /// PARAMETERs: options under their own names.
    pub params: Map<String, Value>,
    /// MESSAGEs that every conversation starts with.
    pub messages: Vec<Message>,
    pub license: Vec<String>,
    pub config: Config,
    /// What the header of the weights says.
    pub header: Arc<Header>,
    /// By what the files say. A chat family that is built in may add its own.
    pub capabilities: Vec<Capability>,
}

/// Where a model comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    Installed(Name),
    File(PathBuf),
}

impl Source {
    /// The name with all of its parts, or the path as given.
    pub fn full(&self) -> String {
        match self {
            Source::Installed(name) => name.full().to_owned(),
            Source::File(path) => path.display().to_string(),
        }
    }
}

/// The short name, or the path as given.
impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Source::Installed(name) => write!(f, "{name}"),
            Source::File(path) => write!(f, "{}", path.display()),
        }
    }
}

/// A stored message, as its layer holds it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Message {
    pub role: String,
    #[serde(default)]
    pub content: String,
}

/// What can be asked of a model; the words are the interface's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Capability {
    Completion,
    Tools,
    Insert,
    Vision,
    Embedding,
    Thinking,
    Image,
    Audio,
}

impl Capability {
    const ALL: [Capability; 8] = [
        Capability::Completion,
        Capability::Tools,
        Capability::Insert,
        Capability::Vision,
        Capability::Embedding,
        Capability::Thinking,
        Capability::Image,
        Capability::Audio,
    ];

    /// The word on the wire.
    pub fn word(self) -> &'static str {
        match self {
            Capability::Completion => "completion",
            Capability::Tools => "tools",
            Capability::Insert => "insert",
            Capability::Vision => "vision",
            Capability::Embedding => "embedding",
            Capability::Thinking => "thinking",
            Capability::Image => "image",
            Capability::Audio => "audio",
        }
    }

    fn from_word(word: &str) -> Option<Capability> {
        Capability::ALL.into_iter().find(|c| c.word() == word)
    }
}

/// The config blob. Fields that we do not use (`architecture`, `os`, `rootfs`) are written for others and ignored here.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Config {
    pub model_format: String,
    pub model_family: String,
    #[serde(deserialize_with = "null_is_default")]
    pub model_families: Vec<String>,
    /// Number of parameters for people: `8.0B`.
    pub model_type: String,
    /// Name of the quantisation: `Q4_K_M`.
    pub file_type: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub renderer: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub parser: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub requires: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub remote_host: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub remote_model: String,
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "null_is_default")]
    pub capabilities: Vec<String>,
    #[serde(skip_serializing_if = "is_zero")]
    pub context_length: u64,
    #[serde(skip_serializing_if = "is_zero")]
    pub embedding_length: u64,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub base_name: String,
    pub architecture: String,
    pub os: String,
}

fn is_zero(n: &u64) -> bool {
    *n == 0
}

fn null_is_default<'de, D: serde::Deserializer<'de>>(d: D) -> Result<Vec<String>, D::Error> {
    Ok(Option::deserialize(d)?.unwrap_or_default())
}

/// What lists show about a model; empty where nothing is known.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Details {
    /// The model this one was made from, as its name was given.
    pub parent: String,
    /// `gguf`.
    pub format: String,
    pub family: String,
    pub families: Vec<String>,
    /// For people: `284.3B`.
    pub parameter_size: String,
    pub quantization: String,
    pub context_length: Option<u64>,
    pub embedding_length: Option<u64>,
}

/// What becomes of a model whose weights are no GGUF file that this program can read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Unreadable {
    Refused,
    /// Its header is empty.
    Tolerated,
}

impl Model {
    pub(super) fn from_manifest(store: &Store, found: Found, unreadable: Unreadable) -> Result<Model, Error> {
        let Found { name, manifest, digest, modified } = found;
        let reader = LayerReader { store, name: &name };
        let paths = |kind| -> Result<Vec<PathBuf>, Error> {
            manifest.layers_of(kind).map(|l| reader.path(l, part(kind))).collect()
        };
        let text = |kind| -> Result<Option<String>, Error> {
            // Later layers win, as in Ollama.
            let last = manifest.layers_of(kind).last();
            last.map(|l| reader.text(l, part(kind))).transpose()
        };
        let weights = paths(Kind::Model)?;
        let shards: Vec<Digest> = manifest.layers_of(Kind::Model).filter_map(|l| l.digest).collect();
        let header = match store.header(&shards, &weights) {
            Err(error) if unreadable == Unreadable::Tolerated => {
                tracing::debug!(%name, %error, "weights cannot be read");
                Arc::default()
            }
            header => header?,
        };
        // A manifest lists blobs in any order; the files themselves say which shard they are.
        let weights = if weights.len() > 1 && !header.files.is_empty() { header.files.clone() } else { weights };
        let config = match manifest.config.digest {
            Some(_) => reader.json(&manifest.config, "config")?,
            None => Config::default(),
        };
        let mut params: Map<String, Value> = Map::new();
        for layer in manifest.layers_of(Kind::Params) {
            params.extend(reader.json::<Map<String, Value>>(layer, "parameters")?);
        }
        let messages = match manifest.layers_of(Kind::Messages).last() {
            Some(layer) => reader.json(layer, "messages")?,
            None => Vec::new(),
        };
        let license = manifest.layers_of(Kind::License).map(|l| reader.text(l, "license")).collect::<Result<_, _>>()?;
        let projectors = paths(Kind::Projector)?;
        let template = text(Kind::Template)?;
        let capabilities = capabilities(&header, &config, template.as_deref(), !projectors.is_empty());
        Ok(Model {
            adapters: paths(Kind::Adapter)?,
            draft: paths(Kind::Draft)?.pop(),
            routing: paths(Kind::Routing)?.pop(),
            template,
            system: text(Kind::System)?,
            source: Source::Installed(name.clone()),
            parent: manifest.parent().map(str::to_owned),
            digest,
            modified,
            size: manifest.size(),
            weights,
            projectors,
            params,
            messages,
            license,
            config,
            header,
            capabilities,
        })
    }

    /// A GGUF file in place of a name: no system prompt, no parameters, the template of its header.
    ///
    /// Its `digest` is not the SHA-256 of the content, which would mean reading a file of 160 GB before it is used. It is the
    /// SHA-256 of the absolute path, the size and the time of the last change: it tells files apart and notices that one was
    /// replaced, and looks like any other digest to those who shorten and compare it.
    ///
    /// # Errors
    /// [`Error::NoFile`], [`Error::BadFile`], [`Error::Io`].
    pub fn from_gguf(path: &Path) -> Result<Model, Error> {
        let absolute = match fs::canonicalize(path) {
            Err(e) if absent(&e) => return Err(Error::NoFile(path.to_path_buf())),
            found => found.map_err(Error::io("read", path))?,
        };
        let file =
            fathom_gguf::File::open(&absolute).map_err(|source| Error::BadFile { path: path.to_path_buf(), source })?;
        let header = Arc::new(Header::read(&file));
        let metadata = fs::metadata(&absolute).map_err(Error::io("read", path))?;
        let modified = metadata.modified().map_err(Error::io("read", path))?;
        let since_epoch = modified.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let mut hash = Sha256::new();
        hash.update(b"fathom file\0");
        hash.update(absolute.as_os_str().as_encoded_bytes());
        hash.update(metadata.len().to_le_bytes());
        hash.update(since_epoch.as_nanos().to_le_bytes());
        let config = Config::default();
        Ok(Model {
            source: Source::File(path.to_path_buf()),
            digest: Digest(hash.finalize().into()),
            modified,
            size: header.file_bytes,
            weights: header.files.clone(),
            adapters: Vec::new(),
            projectors: Vec::new(),
            draft: None,
            routing: None,
            template: None,
            system: None,
            parent: None,
            params: Map::new(),
            messages: Vec::new(),
            license: Vec::new(),
            capabilities: capabilities(&header, &config, None, false),
            config,
            header,
        })
    }

    /// The name that is shown: the short one, or the path as given.
    pub fn name(&self) -> String {
        self.source.to_string()
    }

    /// What lists show. The config blob has the first word, the header fills what it leaves open.
    pub fn details(&self) -> Details {
        let (config, header) = (&self.config, &self.header);
        let or = |said: &str, found: &str| if said.is_empty() { found } else { said }.to_string();
        let family = or(&config.model_family, &header.architecture);
        Details {
            parent: self.parent.clone().unwrap_or_default(),
            format: or(&config.model_format, if self.weights.is_empty() { "" } else { "gguf" }),
            families: match &config.model_families[..] {
                [] if family.is_empty() => Vec::new(),
                [] => vec![family.clone()],
                families => families.to_vec(),
            },
            family,
            parameter_size: or(&config.model_type, &header.parameter_size()),
            quantization: or(&config.file_type, &header.file_type),
            context_length: header.context_length.or((config.context_length > 0).then_some(config.context_length)),
            embedding_length: header
                .embedding_length
                .or((config.embedding_length > 0).then_some(config.embedding_length)),
        }
    }
}

/// How the file name of routing profiles ends.
pub const ROUTING_SUFFIX: &str = ".routing.json";

/// Where the routing profiles of a GGUF file lie when they are not in the file itself: `DIR/NAME.gguf` or its first shard has
/// `DIR/NAME.routing.json`.
pub fn routing_beside(weights: &Path) -> PathBuf {
    let name = weights.file_name().unwrap_or_default().to_string_lossy();
    let stem = name.strip_suffix(".gguf").unwrap_or(&name);
    // `-00001-of-00003`
    let digits = |text: &str| text.len() == 5 && text.bytes().all(|b| b.is_ascii_digit());
    let shard = stem.rsplit_once("-of-").and_then(|(first, count)| {
        let (stem, number) = first.rsplit_once('-')?;
        (digits(count) && digits(number)).then_some(stem)
    });
    weights.with_file_name(format!("{}{ROUTING_SUFFIX}", shard.unwrap_or(stem)))
}

/// What a model can do, by metadata, its templates and what the config lists.
fn capabilities(header: &Header, config: &Config, go: Option<&str>, has_projector: bool) -> Vec<Capability> {
    let mut found = Vec::new();
    let mut add = |capability, holds: bool| {
        if holds && !found.contains(&capability) {
            found.push(capability);
        }
    };
    add(Capability::Embedding, header.pooling);
    add(Capability::Completion, !header.pooling && !header.architecture.is_empty());
    add(Capability::Vision, header.vision || has_projector);
    add(Capability::Audio, header.audio);
    if let Some(template) = &header.chat_template {
        add(Capability::Tools, template.contains("tools") || template.contains("tool_call"));
        let tags = template.contains("<think>") && template.contains("</think>");
        let splits = ["split('</think>')", "split(\"</think>\")"].iter().any(|s| template.contains(s))
            && !template.contains("reasoning_content");
        add(Capability::Thinking, tags || splits);
    }
    if let Some(template) = go {
        add(Capability::Tools, template.contains(".Tools"));
        add(Capability::Thinking, template.contains(".Thinking"));
        add(Capability::Insert, template.contains(".Suffix"));
    }
    for word in &config.capabilities {
        if let Some(capability) = Capability::from_word(word) {
            add(capability, true);
        }
    }
    found
}

fn part(kind: Kind) -> &'static str {
    match kind {
        Kind::Model => "weights",
        Kind::Projector => "projector",
        Kind::Adapter => "adapter",
        Kind::Draft => "draft model",
        Kind::Routing => "routing profiles",
        Kind::Template => "template",
        Kind::System => "system prompt",
        Kind::Params => "parameters",
        Kind::Messages => "messages",
        Kind::License => "license",
        Kind::Other => "layer",
    }
}

/// Reads the layers of one model, naming model and part in every error.
struct LayerReader<'a> {
    store: &'a Store,
    name: &'a Name,
}

impl LayerReader<'_> {
    fn path(&self, layer: &Layer, part: &'static str) -> Result<PathBuf, Error> {
        let digest = layer.digest.ok_or_else(|| Error::BrokenLayer {
            name: self.name.clone(),
            part,
            reason: "its digest is empty".into(),
        })?;
        let path = self.store.blob_path(&digest);
        if path.is_file() { Ok(path) } else { Err(Error::MissingBlob { name: self.name.clone(), part, digest }) }
    }

    fn text(&self, layer: &Layer, part: &'static str) -> Result<String, Error> {
        let path = self.path(layer, part)?;
        let broken = |reason: String| Error::BrokenLayer { name: self.name.clone(), part, reason };
        let bytes = fs::metadata(&path).map_err(|e| broken(e.to_string()))?.len();
        if bytes > MAX_TEXT_BYTES {
            return Err(broken(format!("{bytes} bytes are too many")));
        }
        let bytes = fs::read(&path).map_err(|e| broken(e.to_string()))?;
        Ok(match String::from_utf8(bytes) {
            Ok(text) => text,
            Err(e) => String::from_utf8_lossy(e.as_bytes()).into_owned(),
        })
    }

    fn json<T: serde::de::DeserializeOwned>(&self, layer: &Layer, part: &'static str) -> Result<T, Error> {
        let text = self.text(layer, part)?;
        serde_json::from_str(&text).map_err(|e| Error::BrokenLayer {
            name: self.name.clone(),
            part,
            reason: e.to_string(),
        })
    }
}

impl Manifest {
    /// The model this one was made from, if its weights say so.
    pub fn parent(&self) -> Option<&str> {
        self.layers_of(Kind::Model).find_map(|l| l.from.as_deref())
    }
}
