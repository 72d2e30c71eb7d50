//! What one request emits.

use super::Truncated;
use crate::chat::ToolCall;
use crate::ids::TokenId;
use crate::scheduler::{DoneReason, Stats};

/// One step of an answer. The last one is [`Event::Done`].
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    Thinking {
        text: String,
        logprobs: Vec<TokenLogprob>,
    },
    /// The text is empty when there are logprobs of tokens whose text is still undecided.
    Content {
        text: String,
        logprobs: Vec<TokenLogprob>,
    },
    /// A complete call. It has an id.
    ToolCall {
        call: ToolCall,
        logprobs: Vec<TokenLogprob>,
    },
    Done(Box<Done>),
}

/// How an answer ended.
#[derive(Clone, Debug, PartialEq)]
pub struct Done {
    pub reason: DoneReason,
    pub stats: Stats,
    /// Prompt and answer, for clients that send them back as `context`; empty unless asked for.
    pub tokens: Vec<TokenId>,
    /// What had to be left out of the prompt.
    pub truncated: Option<Truncated>,
}

/// How likely a token of the answer was, and the most likely ones at its place.
#[derive(Clone, Debug, PartialEq)]
pub struct TokenLogprob {
    pub token: Likelihood,
    /// Most likely first.
    pub top: Vec<Likelihood>,
}

/// A token's bytes, which need not be whole characters, with the logarithm of its probability.
#[derive(Clone, Debug, PartialEq)]
pub struct Likelihood {
    pub bytes: Vec<u8>,
    pub logprob: f32,
}
