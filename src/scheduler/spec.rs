//! What shall be loaded, and how long it shall stay.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use crate::engine::{self, Engine, Plan, Progress, Settings};

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
