//! What goes over the wire, in both directions: handlers read requests and write answers, `client` the other way round.
//! Field names are Ollama's. Structs are named as in its Go source, because error texts show the names.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// A model in `/api/tags`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ListModelResponse {
    pub name: String,
    pub model: String,
    /// RFC 3339 with the local offset.
    pub modified_at: String,
    pub size: u64,
    /// 64 hex digits, without `sha256:`.
    pub digest: String,
    pub details: ModelDetails,
    pub capabilities: Vec<String>,
}

/// The answer of `/api/tags`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ListResponse {
    pub models: Vec<ListModelResponse>,
}

/// What is known about a model's weights.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ModelDetails {
    pub parent_model: String,
    pub format: String,
    pub family: String,
    pub families: Option<Vec<String>>,
    pub parameter_size: String,
    pub quantization_level: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub context_length: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub embedding_length: Option<u64>,
}

/// A model in `/api/ps`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ProcessModelResponse {
    pub name: String,
    pub model: String,
    /// Bytes of memory, all kinds together.
    pub size: u64,
    pub digest: String,
    pub details: ModelDetails,
    pub expires_at: String,
    /// The part of `size` in GPU memory.
    pub size_vram: u64,
    pub context_length: usize,
}

/// The answer of `/api/ps`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ProcessResponse {
    pub models: Vec<ProcessModelResponse>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ShowRequest {
    pub model: String,
    /// Deprecated spelling of `model`; the `ollama` command still sends it.
    pub name: String,
    pub system: String,
    /// Nothing to do with the answer; some clients send it.
    pub template: String,
    pub verbose: bool,
    pub options: Map<String, Value>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ShowResponse {
    #[serde(skip_serializing_if = "String::is_empty")]
    pub license: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub modelfile: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub parameters: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub template: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub system: String,
    pub details: ModelDetails,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub messages: Vec<StoredMessage>,
    pub model_info: Map<String, Value>,
    #[serde(skip_serializing_if = "Map::is_empty")]
    pub projector_info: Map<String, Value>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub tensors: Vec<Tensor>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub capabilities: Vec<String>,
    pub modified_at: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub requires: String,
}

/// A MESSAGE of a model.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct StoredMessage {
    pub role: String,
    pub content: String,
}

/// A tensor in `/api/show`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Tensor {
    pub name: String,
    #[serde(rename = "type")]
    pub kind: String,
    pub shape: Vec<u64>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct CopyRequest {
    pub source: String,
    pub destination: String,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct DeleteRequest {
    pub model: String,
    pub name: String,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct CreateRequest {
    pub model: String,
    pub name: String,
    /// An installed model, or with `path` nothing.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub from: String,
    /// fathom: a GGUF file or a checkpoint directory on the server. Accepted from this machine only, with the header
    /// `Sec-Fathom-Local: 1`.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub path: String,
    /// Name of each uploaded file, and its digest.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub files: BTreeMap<String, String>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub adapters: BTreeMap<String, String>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub draft_files: BTreeMap<String, String>,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub template: String,
    /// A text or a list of texts.
    #[serde(skip_serializing_if = "Value::is_null")]
    pub license: Value,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub system: String,
    #[serde(skip_serializing_if = "Map::is_empty")]
    pub parameters: Map<String, Value>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub messages: Vec<StoredMessage>,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub quantize: String,
    /// Deprecated spelling of `quantize`.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub quantization: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub draft_quantize: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub renderer: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub parser: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub requires: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub remote_host: String,
    #[serde(skip_serializing_if = "Map::is_empty")]
    pub info: Map<String, Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stream: Option<bool>,
}

/// A line of the answer of `/api/create`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ProgressResponse {
    pub status: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub digest: String,
    #[serde(skip_serializing_if = "is_zero")]
    pub total: u64,
    #[serde(skip_serializing_if = "is_zero")]
    pub completed: u64,
}

fn is_zero(n: &u64) -> bool {
    *n == 0
}

/// The answer of `/api/version`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct VersionResponse {
    pub version: String,
}
