//! What a request brings and what it hears back.

use std::sync::Arc;
use std::time::Duration;

use super::Error;
use crate::engine::{KvType, Routing, routing};
use crate::ids::TokenId;
use crate::sampler::{self, Constraint, Scored};

/// Work for one sequence.
#[derive(Clone, Debug, Default)]
pub struct Generate {
    pub tokens: Vec<TokenId>,
    pub params: sampler::Params,
    pub limits: Limits,
    /// Prompt positions that a later request will probably share: the end of the system prompt and tools, the end of the last
    /// user message. The scheduler remembers the sequence's state there; the end of the prompt is remembered anyway.
    pub checkpoint_at: Vec<usize>,
    /// Which of the chosen experts are computed; `None` = what the model is loaded with.
    pub routing: Option<Routing>,
    /// What the answer must look like; from [`super::Lease::constrain`] of the same model.
    pub constraint: Option<Constraint>,
}

/// When an answer ends.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// `None` = until the model stops or the context is full.
    pub max_tokens: Option<usize>,
    pub stop: Vec<String>,
    /// The model's end tokens are never chosen.
    pub ignore_end_token: bool,
}

/// What a running request tells its client. The last event is [`Event::Done`] or [`Event::Failed`].
#[derive(Clone, Debug)]
pub enum Event {
    /// New text, in whole characters, that no stop string can take back any more.
    Text {
        text: String,
        /// The tokens decided with this text, in order. Text held back joins a later event.
        tokens: Vec<TokenId>,
        /// One entry per token of `tokens` when logprobs were asked for, empty otherwise.
        logprobs: Vec<Logprob>,
    },
    Done {
        reason: DoneReason,
        stats: Stats,
    },
    Failed(Error),
}

/// How likely a chosen token was, and the most likely ones at its place.
#[derive(Clone, Debug, PartialEq)]
pub struct Logprob {
    pub token: Scored,
    /// Most likely first.
    pub top: Vec<Scored>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DoneReason {
    /// The model's end token or a stop string.
    Stop,
    /// The token budget or the context ended.
    Length,
}

/// Numbers of one finished request.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Stats {
    pub prompt_tokens: usize,
    /// The part of the prompt that came from the prefix cache.
    pub cached_tokens: usize,
    /// Tokens sampled, the end token included.
    pub generated_tokens: usize,
    /// Until the model was ready, including queueing for its load.
    pub load: Duration,
    /// Waiting for a sequence of the loaded model.
    pub queued: Duration,
    /// From the sequence's start to its first token.
    pub prefill: Duration,
    /// From the first token to the last.
    pub decode: Duration,
    /// Element type of the cached rows that the answer was computed with.
    pub kv_type: KvType,
    /// `None` = every chosen expert was computed.
    pub routing: Option<Arc<Routed>>,
}

/// What a routing policy did for a request, prompt tokens that were not cached included.
#[derive(Clone, Debug, PartialEq)]
pub struct Routed {
    pub routing: Routing,
    pub counts: routing::Counts,
}
