//! Who runs when: which models are loaded, and one thread per loaded model that owns its engine.
//!
//! [`Scheduler`] is the async edge. It decides residency (keep-alive, memory, eviction, load queue) and hands out [`Lease`]s on
//! loaded models; a lease becomes one running request. The model's worker forms batches of prefill chunks and decode tokens
//! under a token budget, steps the engine, samples, and sends [`Event`]s. Dropping an [`EventStream`] cancels its request, also
//! inside a long prefill.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::Sender;
use std::time::{Duration, Instant, SystemTime};

use tokio::sync::{mpsc, oneshot};

use crate::engine::EngineInfo;
use crate::sampler::{self, Compiler, Constraint, Form, Sampler, Spelled};
use crate::telemetry::Metrics;
use crate::tokens::{self, Tokenizer};

mod batch;
mod control;
mod error;
mod keeper;
mod prefix;
mod request;
mod residency;
mod sequence;
mod spec;
mod worker;

use control::Control;
use keeper::{Hold, Keeper, Message, Ready};
use residency::{RequestId, Want};
use sequence::{Client, Job};

pub use error::Error;
pub use request::{DoneReason, Event, Generate, Limits, Logprob, Routed, Stats};
pub use spec::{KeepAlive, LoadOptions, Loader, ModelSpec};

/// Events that wait for a client to read them before its sequence pauses: a few network packets' worth.
const EVENTS: usize = 32;

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
    /// Most memory for the prefix checkpoints of one model; less when memory is short. 0 = none are kept.
    pub prefix_bytes: usize,
    /// Most prefill tokens of one step while another sequence decodes, so that a long prompt does not stall running answers.
    pub prefill_quantum: usize,
    /// How long a client may take nothing of its answer before its request ends with [`Error::Stalled`]: its sequence is idle
    /// meanwhile, and nobody else can have it. A tenth of it while others wait for a sequence. `None` = no limit.
    pub stall_limit: Option<Duration>,
}

impl Default for Settings {
    fn default() -> Self {
        Settings {
            // Ollama's defaults on a machine without GPUs.
            keep_alive: KeepAlive::For(Duration::from_secs(300)),
            max_loaded: 3,
            max_queue: 512,
            memory_bytes: None,
            // One state of DeepSeek-V4-Flash at 100k tokens is 0.7 GiB.
            prefix_bytes: 1 << 30,
            // What other servers of this family settled on: small enough for a steady stream beside a prefill of 100k tokens.
            prefill_quantum: 128,
            // As long as an unused model stays. A paused terminal has some thousand tokens in socket buffers before it counts.
            stall_limit: Some(Duration::from_secs(300)),
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

/// Loads models and runs requests on them. Clones are handles on the same scheduler; when the last one is dropped, running
/// requests are cut and everything is unloaded.
#[derive(Clone)]
pub struct Scheduler {
    shared: Arc<Shared>,
}

struct Shared {
    inbox: Sender<Message>,
    next_request: AtomicU64,
}

impl Drop for Shared {
    fn drop(&mut self) {
        // After a shutdown nobody listens.
        let _ = self.inbox.send(Message::ShutDown { grace: Duration::ZERO, done: None });
    }
}

impl Scheduler {
    /// Starts the thread that keeps the models.
    ///
    /// # Panics
    /// When the system gives no thread, like [`std::thread::spawn`].
    pub fn new(settings: Settings, metrics: Metrics) -> Scheduler {
        let (inbox, messages) = std::sync::mpsc::channel();
        let keeper = Keeper::new(settings, metrics, messages, inbox.clone());
        let thread = std::thread::Builder::new().name("scheduler".to_owned());
        thread.spawn(move || keeper.run()).expect("the system has a thread for the scheduler");
        Scheduler { shared: Arc::new(Shared { inbox, next_request: AtomicU64::new(1) }) }
    }

    /// Waits until the model is loaded with these options, loading it if need be. Dropping the future gives up the wait.
    ///
    /// # Errors
    /// [`Error::Busy`] when too many requests wait for loads, [`Error::Load`], [`Error::Tokenizer`] and [`Error::Stopped`] when
    /// loading failed, [`Error::ShuttingDown`].
    pub async fn acquire(
        &self,
        spec: &Arc<ModelSpec>,
        options: &LoadOptions,
        keep_alive: KeepAlive,
    ) -> Result<Lease, Error> {
        let begun = Instant::now();
        let id = RequestId(self.shared.next_request.fetch_add(1, Ordering::Relaxed));
        let want = Want {
            weights: spec.weights.clone(),
            identity: spec::Identity::of(spec),
            options: options.resolved(&spec.settings),
            keep_alive,
            spec: spec.clone(),
        };
        let (reply, answer) = oneshot::channel();
        let sent = self.shared.inbox.send(Message::Request { id, want, reply });
        sent.map_err(|_| Error::ShuttingDown)?;
        let waiting = Waiting { id, inbox: &self.shared.inbox };
        let answer = answer.await;
        // The keeper has answered and forgotten it.
        std::mem::forget(waiting);
        let (ready, hold) = answer.map_err(|_| Error::ShuttingDown)??;
        Ok(Lease { ready, hold, load: begun.elapsed(), id: id.0 })
    }

    /// Unloads the model of these weights once its requests in flight have ended. Nothing happens when it is not loaded.
    pub fn unload(&self, spec: &ModelSpec) {
        // After a shutdown nothing is loaded.
        let _ = self.shared.inbox.send(Message::Unload(spec.weights.clone()));
    }

    /// The loaded models, those in use first, then the most recently used.
    pub async fn ps(&self) -> Vec<Loaded> {
        let (reply, answer) = oneshot::channel();
        let _ = self.shared.inbox.send(Message::List(reply));
        answer.await.unwrap_or_default()
    }

    /// Refuses new work, lets running requests go on for `grace`, cuts the rest with [`Error::ShuttingDown`], and unloads
    /// everything. Returns when nothing is left.
    pub async fn shutdown(&self, grace: Duration) {
        let (done, answer) = oneshot::channel();
        let _ = self.shared.inbox.send(Message::ShutDown { grace, done: Some(done) });
        let _ = answer.await;
    }
}

/// A request that waits for its model; dropped when the client gives up.
struct Waiting<'a> {
    id: RequestId,
    inbox: &'a Sender<Message>,
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        let _ = self.inbox.send(Message::Cancel(self.id));
    }
}

/// The right to use a loaded model, which stays loaded as long as this lives.
pub struct Lease {
    ready: Arc<Ready>,
    hold: Hold,
    load: Duration,
    id: u64,
}

impl Lease {
    /// What is loaded.
    pub fn info(&self) -> &Arc<EngineInfo> {
        &self.ready.info
    }

    /// The vocabulary of what is loaded.
    pub fn tokenizer(&self) -> &Arc<Tokenizer> {
        &self.ready.tokenizer
    }

    /// Compiles forms of answers for this model; the first call takes a moment for a large vocabulary. Not for an async thread.
    pub fn constrain(&self) -> impl FnOnce(&Form) -> Result<Constraint, sampler::Error> + Send + use<> {
        let ready = Arc::clone(&self.ready);
        move |form| {
            let compiler = ready.compiler.get_or_init(|| {
                let spell =
                    |(bytes, is_control)| if is_control { Spelled::Control(bytes) } else { Spelled::Bytes(bytes) };
                // A model may have logits for more tokens than its vocabulary names; a mask does not allow those.
                Compiler::new(ready.tokenizer.pieces().map(spell), ready.tokenizer.ends())
            });
            compiler.as_ref().map_err(Clone::clone)?.compile(form)
        }
    }

    /// How long this lease waited for its model.
    pub fn load(&self) -> Duration {
        self.load
    }

    /// Runs a request. Waits only while the model has more new requests than it can look at between two steps.
    ///
    /// # Errors
    /// [`Error::EmptyPrompt`], [`Error::PromptTooLong`], [`Error::UnknownToken`], [`Error::Sampler`]; [`Error::Stopped`] when the
    /// engine crashed meanwhile.
    pub async fn generate(self, request: Generate) -> Result<EventStream, Error> {
        let Lease { ready, hold, load, id } = self;
        let (info, tokens) = (&ready.info, request.tokens);
        if tokens.is_empty() {
            return Err(Error::EmptyPrompt);
        }
        if tokens.len() > info.n_ctx {
            return Err(Error::PromptTooLong { tokens: tokens.len(), n_ctx: info.n_ctx });
        }
        if let Some(unknown) = tokens.iter().find(|t| t.0 as usize >= info.n_vocab) {
            return Err(Error::UnknownToken { token: unknown.0, n_vocab: info.n_vocab });
        }
        let mut params = request.params;
        if request.limits.ignore_end_token {
            let ends = ready.tokenizer.ends().iter().filter(|t| (t.0 as usize) < info.n_vocab);
            params.logit_bias.extend(ends.map(|t| (*t, f32::NEG_INFINITY)));
        }
        let (sender, events) = mpsc::channel(EVENTS + 1);
        let job = Job {
            id,
            prompt: tokens,
            checkpoint_at: request.checkpoint_at,
            routing: request.routing.unwrap_or_else(|| ready.spec.settings.routing.clone()),
            max_tokens: request.limits.max_tokens,
            sampler: Sampler::new(&params, info.n_vocab)?,
            constraint: request.constraint,
            text: tokens::Stream::new(ready.tokenizer.clone(), request.limits.stop),
            client: Client::new(sender, Box::new(hold)),
            load,
            arrived: Instant::now(),
        };
        let control = ready.control.clone();
        // Made before the job is sent: dropping this future must count as leaving.
        let stream = EventStream { events, control, id, model: ready.spec.clone(), ended: false };
        ready.jobs.send(job).await.map_err(|_| stopped(&ready.spec))?;
        ready.control.wake();
        Ok(stream)
    }
}

/// The events of one running request. Dropping it cancels the request, also within a long prefill.
pub struct EventStream {
    events: mpsc::Receiver<Event>,
    control: Arc<Control>,
    id: u64,
    model: Arc<ModelSpec>,
    ended: bool,
}

impl EventStream {
    /// The next event; `None` after the last, which is [`Event::Done`] or [`Event::Failed`]. Safe to drop while it waits: no event
    /// is lost.
    pub async fn next(&mut self) -> Option<Event> {
        if self.ended {
            return None;
        }
        let event = self.events.recv().await;
        // The sequence may have paused for want of room.
        self.control.wake();
        // Whoever should have said a last word is gone: the engine crashed, or all was cut.
        let event = event.unwrap_or_else(|| Event::Failed(stopped(&self.model)));
        self.ended = matches!(event, Event::Done { .. } | Event::Failed(_));
        Some(event)
    }
}

fn stopped(model: &ModelSpec) -> Error {
    Error::Stopped { model: model.name.clone(), reason: "it ended before the request did".to_owned() }
}

impl Drop for EventStream {
    fn drop(&mut self) {
        // Closed first, then told: whoever wakes up must see it.
        self.events.close();
        self.control.left(self.id);
    }
}

#[cfg(test)]
mod tests;
