//! Who runs when: which models are loaded, and one thread per loaded model that owns its engine.
//!
//! [`Scheduler`] is the async edge. It decides residency (keep-alive, memory, eviction, load queue) and hands out [`Lease`]s on
//! loaded models; a lease becomes one running request. The model's worker forms batches of prefill chunks and decode tokens
//! under a token budget, steps the engine, samples, and sends [`Event`]s. Dropping an [`EventStream`] cancels its request, also
//! inside a long prefill.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use crate::engine::EngineInfo;
use crate::telemetry::Metrics;

mod error;
mod request;
mod spec;

pub use error::Error;
pub use request::{DoneReason, Event, Generate, Limits, Logprob, Stats};
pub use spec::{KeepAlive, LoadOptions, Loader, ModelSpec};

/// Limits of the whole scheduler.
#[derive(Clone, Debug)]
pub struct Settings {
    /// For requests that do not say.
    pub keep_alive: KeepAlive,
    pub max_loaded: usize,
    /// Most requests that wait for a load; more are refused with [`Error::Busy`].
    pub max_queue: usize,
    /// Memory for all models together; `None` = what the machine has free.
    pub memory_bytes: Option<u64>,
    /// Memory for the prefix checkpoints of one model.
    pub prefix_bytes: usize,
    /// Most prefill tokens of one step while another sequence decodes, so that a long prompt does not stall running answers.
    pub prefill_quantum: usize,
}

impl Default for Settings {
    fn default() -> Self {
        Settings {
            keep_alive: KeepAlive::For(Duration::from_secs(300)),
            max_loaded: 3,
            max_queue: 512,
            memory_bytes: None,
            prefix_bytes: 1 << 30,
            prefill_quantum: 128,
        }
    }
}

/// A model in memory, as `ps` shows it.
#[derive(Clone)]
pub struct Loaded {
    pub spec: Arc<ModelSpec>,
    pub info: Arc<EngineInfo>,
    /// When it will be unloaded if nobody asks again; `None` = never.
    pub expires_at: Option<SystemTime>,
    /// Requests that hold it.
    pub active: usize,
}

/// Loads models and runs requests on them. Clones are handles on the same scheduler.
#[derive(Clone)]
pub struct Scheduler {}

/// The right to use a loaded model, which stays loaded as long as this lives.
pub struct Lease {}

/// The events of one running request. Dropping it cancels the request.
pub struct EventStream {}

impl Scheduler {
    pub fn new(_settings: Settings, _metrics: Metrics) -> Scheduler {
        Scheduler {}
    }

    /// Waits until the model is loaded with these options, loading it if need be.
    ///
    /// # Errors
    /// [`Error::Busy`] when too many requests wait for loads, [`Error::Load`] and [`Error::Tokenizer`] when loading failed.
    pub async fn acquire(
        &self,
        _spec: &Arc<ModelSpec>,
        _options: &LoadOptions,
        _keep_alive: KeepAlive,
    ) -> Result<Lease, Error> {
        Err(Error::ShuttingDown)
    }

    /// Unloads the model of these weights once its requests in flight have ended. Nothing happens when it is not loaded.
    pub fn unload(&self, _spec: &ModelSpec) {}

    /// The loaded models, most recently used first.
    pub async fn ps(&self) -> Vec<Loaded> {
        Vec::new()
    }

    /// Refuses new work, lets running requests go on for `grace`, cuts the rest with an error, and unloads everything.
    pub async fn shutdown(&self, _grace: Duration) {}
}

impl EventStream {
    /// The next event; `None` after the last.
    pub async fn next(&mut self) -> Option<Event> {
        None
    }
}

impl Lease {
    /// What is loaded.
    pub fn info(&self) -> &Arc<EngineInfo> {
        unreachable!("no lease is given out yet")
    }

    /// The vocabulary of what is loaded.
    pub fn tokenizer(&self) -> &Arc<crate::tokens::Tokenizer> {
        unreachable!("no lease is given out yet")
    }

    /// How long this lease waited for its model.
    pub fn load(&self) -> Duration {
        Duration::ZERO
    }

    /// Runs a request.
    ///
    /// # Errors
    /// [`Error::EmptyPrompt`], [`Error::PromptTooLong`], [`Error::UnknownToken`], [`Error::Sampler`].
    pub async fn generate(self, _request: Generate) -> Result<EventStream, Error> {
        Err(Error::ShuttingDown)
    }
}
