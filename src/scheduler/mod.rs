//! Who runs when: which models are loaded, and one thread per loaded model that owns its engine.
//!
//! [`Scheduler`] is the async edge. It decides residency (keep-alive, memory, eviction, load queue) and hands requests to
//! the model's worker; a worker forms batches of prefill chunks and decode tokens under a token budget, steps the engine,
//! samples, and sends [`Event`]s. Dropping an [`EventStream`] cancels its request, also inside a long prefill.

use std::time::Duration;

use crate::ids::TokenId;
use crate::sampler;

/// Work for one sequence.
#[derive(Clone, Debug)]
pub struct Generate {
    pub tokens: Vec<TokenId>,
    pub params: sampler::Params,
    pub limits: Limits,
}

/// When an answer ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// `None` = until the model stops or the context is full.
    pub max_tokens: Option<usize>,
    pub stop: Vec<String>,
    pub ignore_end_token: bool,
}

/// What a running request tells its client.
#[derive(Clone, Debug)]
pub enum Event {
    /// Whole characters; empty while a token or stop string is undecided. One entry per token of this text when logprobs were asked for.
    Text {
        text: String,
        tokens: Vec<TokenId>,
        logprobs: Vec<Logprob>,
    },
    Done {
        reason: DoneReason,
        stats: Stats,
    },
    Failed(String),
}

#[derive(Clone, Debug, PartialEq)]
pub struct Logprob {
    pub token: crate::tokens::Scored,
    pub top: Vec<crate::tokens::Scored>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DoneReason {
    /// The model's end token or a stop string.
    Stop,
    /// The token budget or the context ended.
    Length,
}

/// Numbers of one finished request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    pub prompt_tokens: usize,
    /// The part of the prompt that came from the prefix cache.
    pub cached_tokens: usize,
    pub generated_tokens: usize,
    /// Waiting for a slot.
    pub queued: Duration,
    pub prefill: Duration,
    pub decode: Duration,
    /// Until the model was ready, including queueing for its load.
    pub load: Duration,
}
