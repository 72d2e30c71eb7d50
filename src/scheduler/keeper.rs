//! The thread that keeps the models: does what [`Residency`] decides, and tells it what happened.
//!
//! Everything reaches it as a [`Message`] through one inbox, so that nothing about residency needs a lock. It never computes and
//! never waits for anything but messages and time.

use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender};
use std::sync::{Arc, OnceLock};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant, SystemTime};

use tokio::sync::{mpsc, oneshot};

use super::control::{Control, End};
use super::residency::{self, Action, Effective, ModelId, Refusal, RequestId, Residency, Shortage, Want};
use super::spec::Identity;
use super::worker::{Setup, Worker};
use super::{Error, LoadOptions, Loaded, ModelSpec, Settings};
use crate::engine::{self, Engine, EngineInfo, machine};
use crate::sampler::{self, Compiler};
use crate::telemetry::Metrics;
use crate::tokens::Tokenizer;

/// Requests that a worker has not looked at yet; it looks between steps. More wait on the client's side of the channel.
const JOBS: usize = 64;

/// Remembered states get at most half of the memory that a model leaves, but always this much: a few conversations of a small
/// model, or one short one of a large model.
const LEAST_PREFIX_BYTES: usize = 64 << 20;

/// Answer to a request for a model.
pub(super) type Reply = oneshot::Sender<Result<(Arc<Ready>, Hold), Error>>;

pub(super) enum Message {
    Request {
        id: RequestId,
        want: Want<Identity, Arc<ModelSpec>>,
        reply: Reply,
    },
    /// The client of this request does not wait any more.
    Cancel(RequestId),
    Loaded(ModelId, Box<Ready>),
    LoadFailed(ModelId, Error, Option<Shortage>),
    /// A worker's thread has ended, after it was ready.
    Gone(ModelId),
    /// A granted request has ended.
    Released(ModelId),
    Unload(PathBuf),
    List(oneshot::Sender<Vec<Loaded>>),
    /// Running requests may go on for so long. `done` hears when nothing is left.
    ShutDown {
        grace: Duration,
        done: Option<oneshot::Sender<()>>,
    },
}

/// A model that serves.
pub(super) struct Ready {
    pub(super) spec: Arc<ModelSpec>,
    pub(super) info: Arc<EngineInfo>,
    pub(super) tokenizer: Arc<Tokenizer>,
    /// Made when the first request asks for a form.
    pub(super) compiler: OnceLock<Result<Compiler, sampler::Error>>,
    pub(super) jobs: mpsc::Sender<super::sequence::Job>,
    pub(super) control: Arc<Control>,
    /// Weights that stand in the page cache, which the system counts as free.
    pub(super) mapped_bytes: u64,
}

/// Keeps a model loaded; dropping it says that one request has ended.
pub(super) struct Hold {
    model: ModelId,
    inbox: Sender<Message>,
}

impl Drop for Hold {
    fn drop(&mut self) {
        // Without a keeper there is nothing to tell.
        let _ = self.inbox.send(Message::Released(self.model));
    }
}

struct Model {
    control: Arc<Control>,
    thread: JoinHandle<()>,
    ready: Option<Arc<Ready>>,
}

pub(super) struct Keeper {
    settings: Settings,
    metrics: Metrics,
    inbox: Receiver<Message>,
    /// For threads and leases to report to.
    outbox: Sender<Message>,
    residency: Residency<Identity, Arc<ModelSpec>, Error>,
    models: HashMap<ModelId, Model>,
    waiting: HashMap<RequestId, Reply>,
    /// When shutting down: when to cut what still runs, and who wants to know.
    cut_at: Option<Instant>,
    done: Vec<oneshot::Sender<()>>,
}

impl Keeper {
    pub(super) fn new(settings: Settings, metrics: Metrics, inbox: Receiver<Message>, outbox: Sender<Message>) -> Self {
        let limits = residency::Limits {
            max_loaded: settings.max_loaded,
            max_queue: settings.max_queue,
            keep_alive: settings.keep_alive,
        };
        Keeper {
            settings,
            metrics,
            inbox,
            outbox,
            residency: Residency::new(limits),
            models: HashMap::new(),
            waiting: HashMap::new(),
            cut_at: None,
            done: Vec::new(),
        }
    }

    /// Until it is shut down and every model is gone.
    pub(super) fn run(mut self) {
        loop {
            let next = [self.residency.next_tick(), self.cut_at].into_iter().flatten().min();
            let message = match next {
                None => self.inbox.recv().map_err(|_| RecvTimeoutError::Disconnected),
                Some(at) => self.inbox.recv_timeout(at.saturating_duration_since(Instant::now())),
            };
            let now = Instant::now();
            match message {
                Ok(message) => self.hear(now, message),
                Err(RecvTimeoutError::Timeout) => {}
                // Cannot be while `outbox` lives.
                Err(RecvTimeoutError::Disconnected) => return,
            }
            self.residency.tick(now);
            if self.cut_at.is_some_and(|at| at <= now) {
                self.cut_at = None;
                self.models.values().for_each(|model| model.control.end(End::Now));
            }
            // Doing one thing may decide another.
            loop {
                let actions = self.residency.actions();
                if actions.is_empty() {
                    break;
                }
                actions.into_iter().for_each(|action| self.act(now, action));
            }
            self.metrics.waiting_for_load.set(self.residency.waiting() as i64);
            if !self.done.is_empty() && self.residency.is_empty() {
                for done in self.done.drain(..) {
                    let _ = done.send(());
                }
                return;
            }
        }
    }

    fn hear(&mut self, now: Instant, message: Message) {
        match message {
            Message::Request { id, want, reply } => {
                self.waiting.insert(id, reply);
                self.residency.request(now, id, want);
            }
            Message::Cancel(id) => {
                if self.waiting.remove(&id).is_some() {
                    self.residency.cancel(now, id);
                }
            }
            Message::Loaded(id, ready) => {
                let effective = Effective {
                    n_ctx: ready.info.n_ctx,
                    n_batch: ready.info.n_batch,
                    bytes: ready.info.memory.total(),
                };
                if let Some(model) = self.models.get_mut(&id) {
                    model.ready = Some(Arc::from(ready));
                    self.metrics.models_loaded.inc();
                }
                self.residency.loaded(now, id, effective);
            }
            Message::LoadFailed(id, error, shortage) => {
                self.join(id);
                self.residency.load_failed(now, id, error, shortage);
            }
            Message::Gone(id) => {
                self.join(id);
                self.residency.gone(now, id);
            }
            Message::Released(id) => self.residency.released(now, id),
            Message::Unload(weights) => self.residency.unload(now, &weights),
            Message::List(reply) => {
                // Whoever asked may have left.
                let _ = reply.send(self.list(now));
            }
            Message::ShutDown { grace, done } => {
                self.residency.shut_down();
                let at = now.checked_add(grace);
                self.cut_at = [self.cut_at, at].into_iter().flatten().min();
                // Without anybody to tell, the keeper still ends when all is gone.
                self.done.push(done.unwrap_or_else(|| oneshot::channel().0));
            }
        }
    }

    fn act(&mut self, now: Instant, action: Action<Arc<ModelSpec>, Error>) {
        match action {
            Action::Load { model, spec, options } => self.load(now, model, spec, &options),
            Action::Grant { request, model } => {
                let hold = Hold { model, inbox: self.outbox.clone() };
                let ready = self.models.get(&model).and_then(|m| m.ready.clone());
                if let (Some(reply), Some(ready)) = (self.waiting.remove(&request), ready) {
                    // A client that left meanwhile drops the hold at once.
                    let _ = reply.send(Ok((ready, hold)));
                }
            }
            Action::Refuse { request, why } => {
                let error = match why {
                    Refusal::Busy { waiting } => Error::Busy { waiting },
                    Refusal::ShuttingDown => Error::ShuttingDown,
                    Refusal::Load(error) => error,
                };
                if let Some(reply) = self.waiting.remove(&request) {
                    let _ = reply.send(Err(error));
                }
            }
            Action::Unload { model } => {
                if let Some(model) = self.models.get(&model) {
                    model.control.end(End::Idle);
                }
            }
        }
    }

    /// Starts the thread that loads and then serves a model.
    fn load(&mut self, now: Instant, id: ModelId, spec: Arc<ModelSpec>, options: &LoadOptions) {
        let settings = options.apply(&spec.settings);
        let control = Arc::new(Control::new(settings.abort.clone()));
        let ready = self.models.values().filter_map(|model| model.ready.as_ref());
        let available = match self.settings.memory_bytes {
            Some(all) => all.saturating_sub(ready.map(|r| r.info.memory.total()).sum()),
            None => machine::available_bytes().saturating_sub(ready.map(|r| r.mapped_bytes).sum()),
        };
        let thread = Thread {
            id,
            spec: spec.clone(),
            settings,
            available,
            control: control.clone(),
            outbox: self.outbox.clone(),
            metrics: self.metrics.clone(),
            prefix_bytes: self.settings.prefix_bytes,
            prefill_quantum: self.settings.prefill_quantum,
            stall_limit: self.settings.stall_limit,
        };
        self.metrics.loads.inc();
        // Linux shows 15 bytes of a thread's name.
        let name = format!("engine {}", spec.name);
        match thread::Builder::new().name(name).spawn(move || thread.run()) {
            Ok(thread) => drop(self.models.insert(id, Model { control, thread, ready: None })),
            Err(error) => {
                let source = Arc::new(engine::Error::Io(error));
                self.residency.load_failed(now, id, Error::Load { model: spec.name.clone(), source }, None);
            }
        }
    }

    /// Waits for a thread that has said its last word.
    fn join(&mut self, id: ModelId) {
        let Some(model) = self.models.remove(&id) else { return };
        if model.ready.is_some() {
            self.metrics.models_loaded.dec();
        }
        if model.thread.join().is_err() {
            tracing::error!("an engine's thread panicked where nothing can");
        }
    }

    fn list(&self, now: Instant) -> Vec<Loaded> {
        let mut residents = self.residency.residents(now);
        residents.sort_by_key(|r| (r.active == 0, std::cmp::Reverse(r.last_used)));
        let wall = SystemTime::now();
        let loaded = |r: residency::Resident| {
            let ready = self.models.get(&r.model)?.ready.as_ref()?;
            Some(Loaded {
                spec: ready.spec.clone(),
                info: ready.info.clone(),
                expires_at: r.expires.map(|at| wall + at.saturating_duration_since(now)),
                active: r.active,
            })
        };
        residents.into_iter().filter_map(loaded).collect()
    }
}

/// What loading made.
struct Parts {
    engine: Box<dyn Engine>,
    tokenizer: Arc<Tokenizer>,
    mapped_bytes: u64,
    prefix_bytes: usize,
}

/// Why a model is not loaded, and how much memory was missing if that was why.
struct LoadFailure {
    error: Error,
    shortage: Option<Shortage>,
}

/// What a model's thread takes along.
struct Thread {
    id: ModelId,
    spec: Arc<ModelSpec>,
    settings: engine::Settings,
    available: u64,
    control: Arc<Control>,
    outbox: Sender<Message>,
    metrics: Metrics,
    prefix_bytes: usize,
    prefill_quantum: usize,
    stall_limit: Option<Duration>,
}

impl Thread {
    /// Loads, serves, unloads. No panic leaves it: whoever depends on it gets an error, the model is gone, the rest lives on.
    fn run(self) {
        self.control.adopt();
        let begun = Instant::now();
        let message = match catch_unwind(AssertUnwindSafe(|| self.load())) {
            Ok(Ok(parts)) => {
                self.metrics.load_seconds.observe(begun.elapsed().as_secs_f64());
                self.serve(parts, begun.elapsed());
                Message::Gone(self.id)
            }
            Ok(Err(LoadFailure { error, shortage })) => {
                tracing::warn!(model = self.spec.name, %error, "not loaded");
                Message::LoadFailed(self.id, error, shortage)
            }
            Err(panic) => {
                let error = self.stopped(&*panic);
                Message::LoadFailed(self.id, error, None)
            }
        };
        let _ = self.outbox.send(message);
    }

    fn load(&self) -> Result<Parts, LoadFailure> {
        let failed = |source: engine::Error| {
            let shortage = match source {
                engine::Error::Memory { needed, available } => Some(Shortage { needed, available }),
                _ => None,
            };
            LoadFailure { error: Error::Load { model: self.spec.name.clone(), source: Arc::new(source) }, shortage }
        };
        let loader = &self.spec.loader;
        let plan = loader.plan(&self.settings, self.available).map_err(failed)?;
        // The engine logs what is loaded; why it is not what was asked for is known here only.
        for note in &plan.notes {
            tracing::info!(model = self.spec.name, "{note}");
        }
        let settings = plan.apply(&self.settings);
        // A repacked weight is a copy; it does not stand in the page cache.
        let mapped = settings.use_mmap && !settings.repack;
        let spare = usize::try_from(self.available.saturating_sub(plan.memory.total())).unwrap_or(usize::MAX);
        let mut on_progress = |_: f32| self.control.ending() == End::NotYet;
        thread::scope(|scope| {
            // Reading the vocabulary takes as long as mapping the weights: both at once.
            let tokenizer = scope.spawn(|| loader.tokenizer());
            let engine = loader.engine(&settings, &mut on_progress).map_err(failed)?;
            let unreadable = |reason| LoadFailure {
                error: Error::Tokenizer { model: self.spec.name.clone(), reason },
                shortage: None,
            };
            match tokenizer.join() {
                Ok(Ok(tokenizer)) => Ok(Parts {
                    mapped_bytes: if mapped { engine.info().memory.weights } else { 0 },
                    prefix_bytes: self.prefix_bytes.min((spare / 2).max(LEAST_PREFIX_BYTES)),
                    engine,
                    tokenizer,
                }),
                Ok(Err(error)) => Err(unreadable(error.to_string())),
                Err(panic) => Err(unreadable(words(&*panic).to_owned())),
            }
        })
    }

    fn serve(&self, parts: Parts, took: Duration) {
        let Parts { engine, tokenizer, mapped_bytes, prefix_bytes } = parts;
        let info = Arc::new(engine.info().clone());
        let (sender, jobs) = mpsc::channel(JOBS);
        tracing::info!(
            model = self.spec.name,
            engine = info.engine,
            n_ctx = info.n_ctx,
            sequences = info.n_seq_max,
            kv = %info.kv_type,
            memory_bytes = info.memory.total(),
            seconds = took.as_secs_f64(),
            "loaded"
        );
        let ready = Ready {
            spec: self.spec.clone(),
            info,
            tokenizer,
            compiler: OnceLock::new(),
            jobs: sender,
            control: self.control.clone(),
            mapped_bytes,
        };
        let _ = self.outbox.send(Message::Loaded(self.id, Box::new(ready)));
        let setup = Setup {
            model: self.spec.name.clone(),
            jobs,
            control: self.control.clone(),
            metrics: self.metrics.clone(),
            prefix_bytes,
            prefill_quantum: self.prefill_quantum,
            stall_limit: self.stall_limit,
        };
        let mut worker = Worker::new(engine, setup);
        if let Err(panic) = catch_unwind(AssertUnwindSafe(|| worker.run())) {
            worker.fail_all(&self.stopped(&*panic));
        }
        // Destructors of an engine that panicked may panic again.
        if let Err(panic) = catch_unwind(AssertUnwindSafe(|| drop(worker))) {
            self.stopped(&*panic);
        }
        tracing::info!(model = self.spec.name, "unloaded");
    }

    fn stopped(&self, panic: &(dyn std::any::Any + Send)) -> Error {
        let reason = words(panic).to_owned();
        tracing::error!(model = self.spec.name, reason, "the engine panicked");
        Error::Stopped { model: self.spec.name.clone(), reason }
    }
}

/// What a panic said.
fn words(panic: &(dyn std::any::Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("a panic without words")
}
