//! Why a request could not be answered. Cheap to clone: one failed load answers everyone who waited for it.

use std::sync::Arc;
use std::time::Duration;

use crate::engine;
use crate::sampler;

#[derive(Clone, Debug, thiserror::Error)]
pub enum Error {
    /// The queue of requests that wait for a load is full.
    #[error("{waiting} requests are waiting for a model already")]
    Busy { waiting: usize },
    #[error("the server is shutting down")]
    ShuttingDown,
    #[error("cannot load `{model}`: {}", why(source))]
    Load { model: String, source: Arc<engine::Error> },
    #[error("cannot use the tokenizer of `{model}`: {reason}")]
    Tokenizer { model: String, reason: String },
    /// The engine thread panicked; the model was unloaded and the next request loads it again.
    #[error("the engine of `{model}` stopped: {reason}")]
    Stopped { model: String, reason: String },
    /// One step failed; the request's sequence is gone, the model stays loaded.
    #[error("running `{model}` failed: {source}")]
    Step { model: String, source: Arc<engine::Error> },
    /// The routing policy that the request asks for does not fit the model or its engine.
    #[error("{source}")]
    Routing { source: Arc<engine::Error> },
    /// The client kept its connection and read nothing of its answer ([`super::Settings::stall_limit`]).
    #[error("the client read nothing of its answer for {} s; the request was ended", .limit.as_secs_f64())]
    Stalled { limit: Duration },
    #[error("the prompt is empty")]
    EmptyPrompt,
    #[error("the prompt has {tokens} tokens, the context holds {n_ctx}")]
    PromptTooLong { tokens: usize, n_ctx: usize },
    #[error("token {token} of the prompt is outside of the vocabulary of {n_vocab}")]
    UnknownToken { token: u32, n_vocab: usize },
    #[error(transparent)]
    Sampler(#[from] sampler::Error),
}

/// An engine names the file it could not load; users named a model.
fn why(error: &engine::Error) -> String {
    match error {
        engine::Error::Load { reason, .. } => reason.clone(),
        other => other.to_string(),
    }
}
