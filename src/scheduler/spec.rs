//! What shall be loaded, and how long it shall stay.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use crate::engine::{self, Engine, KvType, Plan, Progress, Routing, Settings};
use crate::tokens::{self, Tokenizer};

/// How a model comes into memory. Called on the scheduler's own threads, never on an async one.
pub trait Loader: Send + Sync {
    /// Decides context, sequences and memory before anything is loaded.
    ///
    /// # Errors
    /// [`engine::Error::Memory`] makes the scheduler unload another model and ask again.
    fn plan(&self, settings: &Settings, available_bytes: u64) -> Result<Plan, engine::Error>;

    /// Loads, on the thread that the engine will live on.
    ///
    /// # Errors
    /// As [`Loader::plan`].
    fn engine(&self, settings: &Settings, on_progress: Progress) -> Result<Box<dyn Engine>, engine::Error>;

    /// The model's vocabulary. Read while the engine loads, on another thread.
    ///
    /// # Errors
    /// Whatever makes it unusable; the model is not loaded then.
    fn tokenizer(&self) -> Result<Arc<Tokenizer>, tokens::Error>;
}

/// One model as a request names it.
#[derive(Clone)]
pub struct ModelSpec {
    /// The name that `ps` shows: that of the request which loaded the model.
    pub name: String,
    /// `sha256:...` of the manifest; empty for a bare file.
    pub digest: String,
    /// The (first) file of weights. Names that share it share the loaded model.
    pub weights: PathBuf,
    pub kind: engine::Kind,
    /// Before a request's [`LoadOptions`] are applied.
    pub settings: Settings,
    pub loader: Arc<dyn Loader>,
}

/// Load-time options of a request; `None` = the model's [`ModelSpec::settings`]. A request whose options differ from those of the
/// loaded model reloads it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LoadOptions {
    pub n_ctx: Option<usize>,
    pub n_batch: Option<usize>,
    pub n_gpu_layers: Option<u32>,
    pub main_gpu: Option<u32>,
    pub use_mmap: Option<bool>,
    pub n_threads: Option<usize>,
    pub kv_type: Option<KvType>,
}

impl LoadOptions {
    /// With the numbers of `settings` where the request leaves them open and the settings do not (0 = automatic).
    pub(super) fn resolved(&self, settings: &Settings) -> LoadOptions {
        let set = |number: usize| (number > 0).then_some(number);
        LoadOptions {
            n_ctx: self.n_ctx.and_then(set).or(set(settings.n_ctx)),
            n_batch: self.n_batch.and_then(set).or(set(settings.n_batch)),
            n_gpu_layers: self.n_gpu_layers.or(settings.n_gpu_layers),
            main_gpu: self.main_gpu.or(settings.main_gpu),
            use_mmap: Some(self.use_mmap.unwrap_or(settings.use_mmap)),
            n_threads: self.n_threads.and_then(set).or(set(settings.n_threads)),
            kv_type: Some(self.kv_type.unwrap_or(settings.kv_type)),
        }
    }

    /// What is loaded: `settings` with these options, and an abort flag of its own.
    pub(super) fn apply(&self, settings: &Settings) -> Settings {
        Settings {
            n_ctx: self.n_ctx.unwrap_or(settings.n_ctx),
            n_batch: self.n_batch.unwrap_or(settings.n_batch),
            n_gpu_layers: self.n_gpu_layers.or(settings.n_gpu_layers),
            main_gpu: self.main_gpu.or(settings.main_gpu),
            use_mmap: self.use_mmap.unwrap_or(settings.use_mmap),
            n_threads: self.n_threads.unwrap_or(settings.n_threads),
            kv_type: self.kv_type.unwrap_or(settings.kv_type),
            abort: Arc::default(),
            // Every request brings its own, these settings' for one that says nothing: an engine that follows none still answers `off`.
            routing: Routing::Off,
            ..settings.clone()
        }
    }
}

/// What must be equal for two requests to share a loaded model, besides weights and load-time options.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Identity {
    kind: engine::Kind,
    script: Option<PathBuf>,
    profiles: Option<PathBuf>,
    embedding: bool,
}

impl Identity {
    pub(super) fn of(spec: &ModelSpec) -> Self {
        let engine::Settings { script, profiles, embedding, .. } = &spec.settings;
        Identity { kind: spec.kind, script: script.clone(), profiles: profiles.clone(), embedding: *embedding }
    }
}

/// How long a model stays loaded after its last request ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum KeepAlive {
    /// What the loaded model has; the server's default when this request loads it.
    #[default]
    Unset,
    /// Zero = unload as soon as the requests in flight have ended.
    For(Duration),
    Forever,
}
