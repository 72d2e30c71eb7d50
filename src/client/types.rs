//! What the command line reads of the server's answers. Fields that may be missing have defaults.

use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Map, Value};

#[derive(Debug, Deserialize)]
pub(super) struct Failure {
    pub error: String,
}

#[derive(Debug, Deserialize)]
pub(super) struct Version {
    pub version: String,
}

#[derive(Debug, Deserialize)]
#[serde(bound = "T: Deserialize<'de>")]
pub(super) struct List<T> {
    #[serde(deserialize_with = "null_is_default")]
    pub models: Vec<T>,
}

/// A model in the store.
#[derive(Clone, Debug, Deserialize)]
pub struct Model {
    pub name: String,
    #[serde(deserialize_with = "timestamp")]
    pub modified_at: Timestamp,
    pub size: u64,
    pub digest: String,
}

/// A model in memory.
#[derive(Clone, Debug, Deserialize)]
pub struct Loaded {
    pub name: String,
    pub digest: String,
    /// Bytes of memory, GPUs included.
    pub size: u64,
    /// The part of it that is GPU memory.
    #[serde(default)]
    pub size_vram: u64,
    #[serde(deserialize_with = "timestamp")]
    pub expires_at: Timestamp,
    #[serde(default)]
    pub context_length: u64,
}

/// Everything about a model.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Show {
    pub license: String,
    pub modelfile: String,
    pub parameters: String,
    pub template: String,
    pub system: String,
    pub details: Details,
    #[serde(deserialize_with = "null_is_default")]
    pub messages: Vec<ChatMessage>,
    #[serde(deserialize_with = "null_is_default")]
    pub model_info: Map<String, Value>,
    #[serde(deserialize_with = "null_is_default")]
    pub projector_info: Map<String, Value>,
    #[serde(deserialize_with = "null_is_default")]
    pub tensors: Vec<Tensor>,
    #[serde(deserialize_with = "null_is_default")]
    pub capabilities: Vec<String>,
    pub requires: String,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Details {
    pub parent_model: String,
    pub family: String,
    pub parameter_size: String,
    pub quantization_level: String,
}

#[derive(Clone, Debug, Deserialize)]
pub struct Tensor {
    pub name: String,
    #[serde(rename = "type")]
    pub dtype: String,
    pub shape: Vec<u64>,
}

/// One line of `/api/create`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Progress {
    pub status: String,
    pub digest: String,
    pub total: u64,
    pub completed: u64,
}

/// One line of `/api/generate`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct GenerateLine {
    pub response: String,
    pub thinking: String,
    pub done: bool,
    pub done_reason: String,
    #[serde(flatten)]
    pub stats: Stats,
}

/// One line of `/api/chat`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct ChatLine {
    pub message: ChatMessage,
    pub done: bool,
    pub done_reason: String,
    #[serde(flatten)]
    pub stats: Stats,
}

/// A message, as sent and as received.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(default)]
pub struct ChatMessage {
    pub role: String,
    pub content: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub thinking: String,
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "null_is_default")]
    pub tool_calls: Vec<ToolCall>,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(default)]
pub struct ToolCall {
    pub function: ToolFunction,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(default)]
pub struct ToolFunction {
    pub name: String,
    /// In the model's key order.
    pub arguments: Value,
}

/// Numbers of the last line; nanoseconds on the wire.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct Stats {
    #[serde(deserialize_with = "nanoseconds")]
    pub total_duration: Duration,
    #[serde(deserialize_with = "nanoseconds")]
    pub load_duration: Duration,
    pub prompt_eval_count: u64,
    #[serde(deserialize_with = "nanoseconds")]
    pub prompt_eval_duration: Duration,
    pub eval_count: u64,
    #[serde(deserialize_with = "nanoseconds")]
    pub eval_duration: Duration,
    /// Element type of cached rows, unless it is the usual one.
    pub kv: String,
    /// `None` = every chosen expert was computed.
    pub routing: Option<Routing>,
}

/// What a routing policy did.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct Routing {
    pub policy: String,
    pub experts_used: u64,
    pub mean_experts: Option<f64>,
    pub layers: Vec<Option<f64>>,
    pub bytes_saved: u64,
    pub flops_saved: u64,
}

/// RFC 3339 with any offset.
fn timestamp<'de, D: Deserializer<'de>>(d: D) -> Result<Timestamp, D::Error> {
    String::deserialize(d)?.parse().map_err(serde::de::Error::custom)
}

fn nanoseconds<'de, D: Deserializer<'de>>(d: D) -> Result<Duration, D::Error> {
    u64::deserialize(d).map(Duration::from_nanos)
}

/// Go writes empty lists as `null`.
fn null_is_default<'de, D: Deserializer<'de>, T: Default + Deserialize<'de>>(d: D) -> Result<T, D::Error> {
    Option::deserialize(d).map(Option::unwrap_or_default)
}
