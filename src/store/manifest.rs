//! Manifests: which blobs make up a model. The JSON that registries serve and Ollama writes.

use serde::{Deserialize, Serialize};

use super::Digest;

/// Media type of a manifest.
pub const MANIFEST_TYPE: &str = "application/vnd.docker.distribution.manifest.v2+json";
/// Media type of a config blob.
pub const CONFIG_TYPE: &str = "application/vnd.docker.container.image.v1+json";
const LAYER_PREFIX: &str = "application/vnd.ollama.image.";
/// Media type of routing profiles, which are ours: programs that do not know it keep the blob and leave it alone.
const ROUTING_TYPE: &str = "application/vnd.fathom.image.routing";

/// The parts of one model: a config blob and layers in order.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    #[serde(rename = "schemaVersion")]
    pub schema_version: u32,
    #[serde(rename = "mediaType", default)]
    pub media_type: String,
    /// Old and hand-written manifests may lack it.
    #[serde(default)]
    pub config: Layer,
    #[serde(default, deserialize_with = "null_is_empty")]
    pub layers: Vec<Layer>,
}

/// A blob and what it is for.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Layer {
    #[serde(rename = "mediaType", default)]
    pub media_type: String,
    /// `None` is written as an empty string, which Ollama tolerates for a missing config.
    #[serde(default, with = "digest_or_empty")]
    pub digest: Option<Digest>,
    /// Bytes of the blob.
    #[serde(default)]
    pub size: u64,
    /// The model this layer was taken from, for registries that can mount it from there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<String>,
}

/// What a layer holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A GGUF file with the weights.
    Model,
    /// A GGUF file that turns images or sound into embeddings.
    Projector,
    /// A GGUF file with a low-rank adapter.
    Adapter,
    /// A GGUF file with a draft model for speculative decoding.
    Draft,
    /// A JSON file of routing profiles.
    Routing,
    /// A Go template; `prompt` is its old name.
    Template,
    System,
    /// A JSON object of options.
    Params,
    /// A JSON array of `{role, content}`.
    Messages,
    License,
    /// Anything else: kept and counted, not used.
    Other,
}

impl Kind {
    /// The media type that layers of this kind are written with; the bare prefix for [`Kind::Other`], which has none.
    pub fn media_type(self) -> String {
        let name = match self {
            Kind::Model => "model",
            Kind::Projector => "projector",
            Kind::Adapter => "adapter",
            Kind::Draft => "draft",
            Kind::Routing => return ROUTING_TYPE.to_owned(),
            Kind::Template => "template",
            Kind::System => "system",
            Kind::Params => "params",
            Kind::Messages => "messages",
            Kind::License => "license",
            Kind::Other => "",
        };
        format!("{LAYER_PREFIX}{name}")
    }
}

impl Layer {
    /// A layer that holds `size` bytes under `digest`.
    pub fn new(kind: Kind, digest: Digest, size: u64) -> Layer {
        Layer { media_type: kind.media_type(), digest: Some(digest), size, from: None }
    }

    /// What the media type says.
    pub fn kind(&self) -> Kind {
        match self.media_type.strip_prefix(LAYER_PREFIX) {
            Some("model") => Kind::Model,
            Some("projector") => Kind::Projector,
            Some("adapter") => Kind::Adapter,
            Some("draft") => Kind::Draft,
            Some("template" | "prompt") => Kind::Template,
            Some("system") => Kind::System,
            Some("params") => Kind::Params,
            Some("messages") => Kind::Messages,
            Some("license") => Kind::License,
            None if self.media_type == ROUTING_TYPE => Kind::Routing,
            _ => Kind::Other,
        }
    }
}

impl Manifest {
    /// A manifest of our own making.
    pub fn new(config: Layer, layers: Vec<Layer>) -> Manifest {
        Manifest { schema_version: 2, media_type: MANIFEST_TYPE.into(), config, layers }
    }

    /// Reads the bytes of a manifest file.
    ///
    /// # Errors
    /// The JSON error, or a digest that is none.
    pub fn parse(bytes: &[u8]) -> Result<Manifest, serde_json::Error> {
        serde_json::from_slice(bytes)
    }

    /// The bytes that are stored for a manifest of our own: compact JSON and a newline, as Ollama writes it.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = serde_json::to_vec(self).expect("a manifest holds only strings and numbers");
        bytes.push(b'\n');
        bytes
    }

    /// Layers of one kind, in order.
    pub fn layers_of(&self, kind: Kind) -> impl Iterator<Item = &Layer> {
        self.layers.iter().filter(move |l| l.kind() == kind)
    }

    /// Every blob the model needs, the config's included.
    pub fn digests(&self) -> impl Iterator<Item = Digest> {
        self.layers.iter().chain([&self.config]).filter_map(|l| l.digest)
    }

    /// Bytes of all layers and the config together.
    pub fn size(&self) -> u64 {
        self.layers.iter().chain([&self.config]).fold(0, |sum, l| sum.saturating_add(l.size))
    }
}

/// Ollama's `layers` is `null` when a model has none.
fn null_is_empty<'de, D: serde::Deserializer<'de>>(d: D) -> Result<Vec<Layer>, D::Error> {
    Ok(Option::deserialize(d)?.unwrap_or_default())
}

mod digest_or_empty {
    use serde::de::Error;
    use serde::{Deserialize, Deserializer, Serializer};

    use super::Digest;

    pub(super) fn serialize<S: Serializer>(digest: &Option<Digest>, s: S) -> Result<S::Ok, S::Error> {
        match digest {
            Some(digest) => s.collect_str(digest),
            None => s.serialize_str(""),
        }
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<Option<Digest>, D::Error> {
        let text = String::deserialize(d)?;
        if text.is_empty() {
            return Ok(None);
        }
        text.parse().map(Some).map_err(D::Error::custom)
    }
}
