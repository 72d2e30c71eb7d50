//! What generate and chat say, line by line.
//!
//! Field names, order and the rule that zero numbers and empty lists are left out are Ollama's. Ours, in the last line only, are
//! `truncated`: what had to be left out of the prompt, and `kv`: the type of cached rows, unless it is the usual one.

use std::sync::Arc;
use std::time::Duration;

use serde::{Serialize, Serializer};

use crate::chat::{Arguments, RawJson, ToolCall};
use crate::completion::{Likelihood, TokenLogprob, Truncated};
use crate::engine::{self, KvType};
use crate::scheduler::{DoneReason, Routed, Stats};

/// A line of `/api/generate`.
#[derive(Debug, Default, Serialize)]
pub struct Generate {
    pub model: Named,
    pub created_at: Now,
    pub response: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub thinking: String,
    pub done: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub done_reason: Option<&'static str>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub context: Vec<u32>,
    #[serde(flatten)]
    pub metrics: Metrics,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub tool_calls: Vec<Call>,
    #[serde(rename = "_debug_info", skip_serializing_if = "Option::is_none")]
    pub debug: Option<Debug>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub logprobs: Vec<Logprob>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub truncated: Option<Left>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub routing: Option<Routing>,
}

/// A line of `/api/chat`.
#[derive(Debug, Default, Serialize)]
pub struct Chat {
    pub model: Named,
    pub created_at: Now,
    pub message: Message,
    pub done: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub done_reason: Option<&'static str>,
    #[serde(rename = "_debug_info", skip_serializing_if = "Option::is_none")]
    pub debug: Option<Debug>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub logprobs: Vec<Logprob>,
    #[serde(flatten)]
    pub metrics: Metrics,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub truncated: Option<Left>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub routing: Option<Routing>,
}

#[derive(Debug, Serialize)]
pub struct Message {
    pub role: &'static str,
    pub content: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub thinking: String,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub tool_calls: Vec<Call>,
}

impl Default for Message {
    fn default() -> Self {
        Message { role: "assistant", content: String::new(), thinking: String::new(), tool_calls: Vec::new() }
    }
}

/// The model as the client named it. All lines of an answer share the text.
#[derive(Clone, Debug, Default)]
pub struct Named(Arc<str>);

impl From<String> for Named {
    fn from(name: String) -> Self {
        Named(name.into())
    }
}

impl Serialize for Named {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

/// The moment of writing, RFC 3339 in UTC with nanoseconds.
#[derive(Debug, Default)]
pub struct Now;

impl Serialize for Now {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&jiff::Timestamp::now())
    }
}

/// Durations in nanoseconds. Zeros are left out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Metrics {
    #[serde(skip_serializing_if = "is_zero")]
    pub total_duration: u64,
    #[serde(skip_serializing_if = "is_zero")]
    pub load_duration: u64,
    #[serde(skip_serializing_if = "is_zero")]
    pub prompt_eval_count: u64,
    #[serde(skip_serializing_if = "is_zero")]
    pub prompt_eval_duration: u64,
    #[serde(skip_serializing_if = "is_zero")]
    pub eval_count: u64,
    #[serde(skip_serializing_if = "is_zero")]
    pub eval_duration: u64,
    /// Element type of the cached rows; left out when it is the default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kv: Option<&'static str>,
}

fn is_zero(number: &u64) -> bool {
    *number == 0
}

impl Metrics {
    /// `total` = since the request was accepted. Cached tokens count as prompt tokens; their time was spent earlier.
    pub fn new(total: Duration, stats: &Stats) -> Metrics {
        Metrics {
            total_duration: nanoseconds(total),
            load_duration: nanoseconds(stats.load),
            prompt_eval_count: stats.prompt_tokens as u64,
            prompt_eval_duration: nanoseconds(stats.prefill),
            eval_count: stats.generated_tokens as u64,
            eval_duration: nanoseconds(stats.decode),
            kv: (stats.kv_type != KvType::default()).then_some(stats.kv_type.name()),
        }
    }
}

fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

/// The word for how an answer ended.
pub fn done_reason(reason: DoneReason) -> &'static str {
    match reason {
        DoneReason::Stop => "stop",
        DoneReason::Length => "length",
    }
}

#[derive(Debug, Serialize)]
pub struct Call {
    id: String,
    function: Function,
}

#[derive(Debug, Serialize)]
struct Function {
    index: usize,
    name: String,
    /// Always an object, in the model's key order.
    arguments: RawJson,
}

impl Call {
    /// `index` counts the calls of one answer from 0.
    pub fn new(index: usize, call: ToolCall) -> Call {
        let arguments = match call.arguments {
            Arguments::Object(object) => object,
            // Clients insist on an object, and the text must not be lost.
            Arguments::Text(text) => object_of(&text),
        };
        Call { id: call.id.unwrap_or_default(), function: Function { index, name: call.name, arguments } }
    }
}

fn object_of(text: &str) -> RawJson {
    let object = serde_json::json!({ "arguments": text });
    RawJson::parse(&object.to_string()).expect("serde_json prints valid JSON")
}

#[derive(Debug, Serialize)]
pub struct Debug {
    pub rendered_template: String,
    #[serde(skip_serializing_if = "is_none")]
    pub image_count: usize,
}

fn is_none(number: &usize) -> bool {
    *number == 0
}

#[derive(Debug, Serialize)]
pub struct Logprob {
    #[serde(flatten)]
    token: Likely,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    top_logprobs: Vec<Likely>,
}

#[derive(Debug, Serialize)]
struct Likely {
    /// Part of a character is shown as U+FFFD; `bytes` is exact.
    token: String,
    logprob: f32,
    bytes: Vec<u8>,
}

impl From<TokenLogprob> for Logprob {
    fn from(logprob: TokenLogprob) -> Self {
        Logprob { token: logprob.token.into(), top_logprobs: logprob.top.into_iter().map(Likely::from).collect() }
    }
}

impl From<Likelihood> for Likely {
    fn from(likelihood: Likelihood) -> Self {
        Likely {
            token: String::from_utf8_lossy(&likelihood.bytes).into_owned(),
            // JSON has no infinity; what is impossible is reported as very unlikely, as OpenAI does.
            logprob: likelihood.logprob.max(-9999.0),
            bytes: likelihood.bytes,
        }
    }
}

/// Our own field: what was left out so that the prompt fits.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Left {
    messages: usize,
    tokens: usize,
}

impl From<Truncated> for Left {
    fn from(truncated: Truncated) -> Self {
        Left { messages: truncated.messages, tokens: truncated.tokens }
    }
}

/// Our own field: what the request's routing policy did, over the tokens that were computed for it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Routing {
    schema: u32,
    /// As it was asked for; of a file, the profile's name only.
    policy: String,
    /// Experts that the router chooses for a token.
    experts_used: usize,
    /// Experts of a token that were computed, over all layers.
    mean_experts: Option<f64>,
    /// The same by layer.
    layers: Vec<Option<f64>>,
    experts_chosen: u64,
    experts_computed: u64,
    /// Weights that decoding did not read.
    bytes_saved: u64,
    /// Floating point operations that were not done.
    flops_saved: u64,
}

impl From<&Routed> for Routing {
    fn from(routed: &Routed) -> Self {
        let counts = &routed.counts;
        // Where a file lies on the server is nobody's business.
        let policy = match &routed.routing {
            engine::Routing::Named { file: Some(_), name } => name.clone().unwrap_or_else(|| "file".to_owned()),
            other => other.to_string(),
        };
        Routing {
            schema: 1,
            policy,
            experts_used: counts.n_used,
            mean_experts: counts.mean(),
            layers: counts.layers.iter().map(|layer| layer.mean()).collect(),
            experts_chosen: counts.chosen(),
            experts_computed: counts.computed(),
            bytes_saved: counts.bytes_saved,
            flops_saved: counts.flops_saved,
        }
    }
}
