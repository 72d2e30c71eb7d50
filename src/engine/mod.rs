//! Batch in, logits out.
//!
//! An [`Engine`] computes; it knows neither text nor users nor JSON. It lives and dies on one thread (it is not
//! `Send`), so it is made *on* that thread by `load`. Implementations: [`scripted`] plays tokens back, `llama` (feature
//! `llama`) runs any GGUF through llama.cpp, `native` (feature `native`) runs DeepSeek-V4 on a graph and kernels of our own. The
//! scheduler does not change when an engine is added.
//!
//! Caches of DeepSeek-V4 are compressed and cannot be cut at an arbitrary position, so there is no "truncate":
//! one remembers a [`Checkpoint`] and comes back to it. What an engine cannot do it says in [`EngineInfo::support`] and
//! answers with [`Error::Unsupported`]; it never aborts the process.

use std::any::Any;
use std::fmt;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;

use crate::ids::{Pos, SeqId, TokenId};

mod inspect;
#[cfg(feature = "llama")]
pub mod llama;
pub mod machine;
#[cfg(feature = "native")]
pub mod native;
pub mod plan;
pub mod routing;
mod rules;
pub mod scripted;

pub use inspect::{ExpertTrace, Inspect, Probe, Probed, Value};
pub use machine::{BuildInfo, build_info, check_cpu};
pub use plan::{Plan, plan, scripted_model};
pub use routing::{Routing, RoutingId};

/// Loads `path` with the engine that `kind` names, on the thread that will step it.
///
/// Zeros in `settings` are decided by [`plan()`], as are those that do not fit; `on_progress` gets the loaded fraction in `0.0..=1.0` and ends the
/// load by answering `false`.
///
/// # Errors
/// [`Error::NotBuilt`], [`Error::Load`] when the file is not one that the engine can run, [`Error::Memory`] when it does
/// not fit, [`Error::Aborted`] when `on_progress` said so.
pub fn load(path: &Path, kind: Kind, settings: &Settings, on_progress: Progress) -> Result<Box<dyn Engine>, Error> {
    load_file(&fathom_gguf::File::open(path)?, kind, settings, on_progress)
}

/// As [`load`], for a file that is open already: its shards may have any names.
///
/// # Errors
/// Those of [`load`].
pub fn load_file(
    file: &fathom_gguf::File,
    kind: Kind,
    settings: &Settings,
    on_progress: Progress,
) -> Result<Box<dyn Engine>, Error> {
    let plan = plan(file, kind, settings, machine::available_bytes())?;
    tracing::info!("{plan}");
    let settings = plan.apply(settings);
    match plan.kind {
        #[cfg(feature = "llama")]
        Kind::Llama => Ok(Box::new(llama::Llama::load(file, &settings, on_progress)?)),
        // Opened again, because this engine keeps its file: the mapped pages are the same.
        #[cfg(feature = "native")]
        Kind::Native => {
            let own = fathom_gguf::File::open_shards(&file.shards().collect::<Vec<_>>())?;
            Ok(Box::new(native::Native::load(own, &settings, on_progress)?))
        }
        _ => Ok(Box::new(scripted::Scripted::load(
            plan::script(&settings)?,
            &plan::scripted_model(file)?,
            &settings,
            on_progress,
        )?)),
    }
}

/// As [`load_file`], but nothing is rounded below F32: every weight that is multiplied is expanded (by `native` in memory, for `llama` in
/// a temporary copy of the file in `dir`), the cache is F32, and neither flash attention nor repacked weights are used.
///
/// # Errors
/// Those of [`load`], and [`Error::Disk`] or [`Error::Memory`] with the size of the copy.
#[cfg_attr(not(feature = "llama"), expect(unused_variables, reason = "no engine of this build has weights"))]
pub fn load_f32(
    file: &fathom_gguf::File,
    dir: &Path,
    kind: Kind,
    settings: &Settings,
    on_progress: Progress,
) -> Result<Box<dyn Engine>, Error> {
    let exact = Settings {
        kv_type: KvType::F32,
        flash_attention: FlashAttention::Off,
        repack: false,
        use_mmap: true,
        ..settings.clone()
    };
    match plan::resolve(kind, &exact) {
        #[cfg(feature = "native")]
        Kind::Native => load_file(file, kind, &Settings { exact: true, ..exact }, on_progress),
        #[cfg(feature = "llama")]
        Kind::Llama => {
            let copy = llama::F32Copy::make(file, dir, &mut |part| on_progress(part * 0.5))?;
            // The engine maps the copy, which lives as long as the mapping, with or without a name.
            load(copy.path(), kind, &exact, &mut |part| on_progress(0.5 + part * 0.5))
        }
        Kind::Scripted => {
            Err(Error::Unsupported { engine: "scripted", what: "expand weights: it has none".to_owned() })
        }
        kind => Err(Error::NotBuilt { engine: kind.to_string() }),
    }
}

/// Computes logits for batches of tokens. Lives and dies on one thread.
pub trait Engine {
    /// Vocabulary, context, memory, and which of the calls below are supported.
    fn info(&self) -> &EngineInfo;

    /// Runs every token of `batch`; empties `out` and writes one row into it per token that asked for one, in batch order.
    ///
    /// # Errors
    /// [`Error::Batch`] when the batch breaks a rule of [`Batch`]; [`Error::Aborted`] when [`Settings::abort`] was
    /// raised; the sequences of a failed step must be released.
    fn step(&mut self, batch: &Batch, out: &mut Outputs) -> Result<StepStats, Error>;

    /// As [`Engine::step`], looking inside. For tools; slower, and with [`Inspect::Values`] it takes memory for all of them at once.
    ///
    /// # Errors
    /// [`Error::Unsupported`] for engines that cannot be looked into, and those of a step.
    fn inspect(&mut self, batch: &Batch, out: &mut Outputs, what: Inspect) -> Result<(), Error> {
        let _ = (batch, out, what);
        Err(Error::Unsupported { engine: self.info().engine, what: "show the inside of a step".to_owned() })
    }

    /// Finds what `routing` means for this model. States that were computed under different ids do not continue each other.
    ///
    /// # Errors
    /// [`Error::Routing`] when it does not fit the model, [`Error::Unsupported`] for engines that compute all experts.
    fn find_routing(&mut self, routing: &Routing) -> Result<RoutingId, Error> {
        routing::only_off(self.info().engine, routing)?;
        Ok(RoutingId::OFF)
    }

    /// Lets `seq` follow what [`Engine::find_routing`] gave last or a little earlier, until it is released, and counts anew. A sequence that was
    /// forked or brought back from another follows what that one did.
    ///
    /// # Errors
    /// [`Error::Batch`] when it holds tokens that were computed under another policy.
    fn set_routing(&mut self, seq: SeqId, id: RoutingId) -> Result<(), Error> {
        let _ = seq;
        debug_assert_eq!(id, RoutingId::OFF, "no other id was given out");
        Ok(())
    }

    /// What was computed for `seq` since its policy was set; `None` while it follows none.
    fn routing_counts(&self, seq: SeqId) -> Option<routing::Counts> {
        let _ = seq;
        None
    }

    /// Remembers the present state of `seq`.
    fn checkpoint(&mut self, seq: SeqId) -> Result<Checkpoint, Error>;

    /// Brings `seq` back to a state it, or another sequence, had. What was computed since is dropped.
    fn rewind(&mut self, seq: SeqId, to: &Checkpoint) -> Result<(), Error>;

    /// Makes the empty sequence `to` equal to `from`, at its end or at an earlier checkpoint of it.
    fn fork(&mut self, from: SeqId, to: SeqId, at: Option<&Checkpoint>) -> Result<(), Error>;

    /// Forgets everything about `seq`. Releasing an empty sequence is fine.
    fn release(&mut self, seq: SeqId);

    /// Writes the state of `seq` in a form that [`Engine::restore`] of the same engine and file reads.
    fn save(&mut self, seq: SeqId, to: &mut dyn Write) -> Result<(), Error>;

    /// Reads a saved state into the empty sequence `seq`; gives the position of its next token.
    fn restore(&mut self, seq: SeqId, from: &mut dyn Read) -> Result<Pos, Error>;
}

/// What a token's row of output shall hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Output {
    /// `f32 [n_vocab]`
    Logits,
    /// `f32 [n_embd]`, pooled over the sequence as the model's metadata says.
    Embedding,
    /// The residual streams after the last layer, `f32 [n_embd, n_hc]`.
    Hidden,
}

/// One token of a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BatchToken {
    pub token: TokenId,
    pub seq: SeqId,
    /// The next free position of `seq` at this point of the batch: positions have no gaps and no overlaps.
    pub pos: Pos,
    pub output: Option<Output>,
}

/// What one step computes: at most `EngineInfo::n_batch` tokens, those of one sequence consecutive and in order.
#[derive(Clone, Debug, Default)]
pub struct Batch {
    pub tokens: Vec<BatchToken>,
}

/// Rows of numbers, one per token that asked for one. Reused from step to step.
#[derive(Clone, Debug, Default)]
pub struct Outputs {
    data: Vec<f32>,
    ends: Vec<usize>,
}

impl Outputs {
    pub fn clear(&mut self) {
        self.data.clear();
        self.ends.clear();
    }

    /// Appends a row of `len` zeros and gives it out to be filled.
    pub fn push_row(&mut self, len: usize) -> &mut [f32] {
        let start = self.data.len();
        self.data.resize(start + len, 0.0);
        self.ends.push(self.data.len());
        &mut self.data[start..]
    }

    pub fn rows(&self) -> usize {
        self.ends.len()
    }

    /// Row `i` in the order in which the batch asked for them.
    pub fn row(&self, i: usize) -> &[f32] {
        let start = if i == 0 { 0 } else { self.ends[i - 1] };
        &self.data[start..self.ends[i]]
    }

    /// As [`Outputs::row`], for samplers that work in place.
    pub fn row_mut(&mut self, i: usize) -> &mut [f32] {
        let start = if i == 0 { 0 } else { self.ends[i - 1] };
        &mut self.data[start..self.ends[i]]
    }
}

/// What a step did.
#[derive(Clone, Copy, Debug, Default)]
pub struct StepStats {
    pub tokens: usize,
    pub seconds: f64,
}

/// A remembered state of one sequence. Cheap to clone; the engine that made it knows what is inside.
#[derive(Clone)]
pub struct Checkpoint {
    /// Position of the next token.
    pub pos: Pos,
    /// Memory it keeps alive, for whoever budgets checkpoints.
    pub bytes: usize,
    /// `Some`: only a mark in this sequence, good as long as the sequence is neither released nor rewound to before it. One can
    /// [`Engine::rewind`] that sequence to it, or [`Engine::fork`] from it. `None`: it stands for itself.
    pub within: Option<SeqId>,
    pub(crate) state: Arc<dyn Any + Send + Sync>,
}

/// Which optional calls an engine answers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Support {
    pub logits: bool,
    pub embedding: bool,
    pub hidden: bool,
    pub checkpoint: bool,
    pub fork: bool,
    pub save: bool,
}

/// Where the memory of a loaded model goes, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Memory {
    pub weights: u64,
    /// KV cache of all sequences together.
    pub kv: u64,
    pub compute: u64,
    /// The part of the sum that lives in GPU memory.
    pub device: u64,
}

impl Memory {
    pub fn total(&self) -> u64 {
        self.weights + self.kv + self.compute
    }
}

/// What is loaded and what it can do.
#[derive(Clone, Debug)]
pub struct EngineInfo {
    /// `llama`, `native` or `scripted`.
    pub engine: &'static str,
    /// The GGUF's `general.architecture`.
    pub architecture: String,
    pub n_vocab: usize,
    pub n_embd: usize,
    /// Tokens that one sequence may hold.
    pub n_ctx: usize,
    pub n_ctx_train: usize,
    pub n_seq_max: usize,
    /// Most tokens of one step.
    pub n_batch: usize,
    /// Most tokens of one step that may ask for output.
    pub n_outputs: usize,
    /// Element type of cached rows, of all its sequences.
    pub kv_type: KvType,
    pub memory: Memory,
    pub support: Support,
}

/// Which engine runs a model.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Kind {
    /// The best engine of this build for the file's architecture.
    #[default]
    Auto,
    Llama,
    Native,
    Scripted,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum FlashAttention {
    #[default]
    Auto,
    On,
    Off,
}

/// Element type of cached rows; `config::KV_TYPES` are their words.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum KvType {
    F32,
    #[default]
    F16,
    Q8_0,
    Q4_0,
    /// What the released runtime keeps: e4m3 key/value rows with BF16 rotary channels, e2m1 index keys. `native` only.
    Fp8,
}

/// Everything decided before a model is loaded.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Context of one sequence, in tokens; 0 = what the model was trained for, as far as memory allows.
    pub n_ctx: usize,
    /// Sequences held at once; 0 = 16, fewer when memory is short.
    pub n_seq_max: usize,
    /// Most tokens of one step; 0 = 512. `llama` takes at most 8192, except for embeddings.
    pub n_batch: usize,
    /// Tokens that are computed together inside a step; 0 = `n_batch`.
    pub n_ubatch: usize,
    /// Most rows of output one step may ask for; 0 = one per sequence. A row is as wide as the vocabulary, so this is memory.
    pub n_outputs: usize,
    /// 0 = physical cores within the CPU quota; never more than the machine runs at a time.
    pub n_threads: usize,
    /// Layers on the GPU; `None` = as many as fit.
    pub n_gpu_layers: Option<u32>,
    pub main_gpu: Option<u32>,
    pub flash_attention: FlashAttention,
    pub kv_type: KvType,
    pub use_mmap: bool,
    /// Let ggml copy weights into a layout its matrix kernels prefer.
    pub repack: bool,
    /// What every sequence follows unless [`Engine::set_routing`] says otherwise. `native` only.
    pub routing: Routing,
    /// The routing profiles that come with the model; `None` = those beside its file ([`routing::sidecar`]), if there are any.
    pub profiles: Option<PathBuf>,
    /// `native` rounds nothing below F32: matrices are expanded in memory, experts multiplied exactly. See [`load_f32`].
    pub exact: bool,
    /// Load for embeddings instead of logits.
    pub embedding: bool,
    /// Lets an empty sequence begin at any position, as if what is before it had been computed. The numbers are wrong, the
    /// shapes and the time are right: for benchmarks at a depth that takes too long to fill.
    pub jump: bool,
    /// Script of the `scripted` engine.
    pub script: Option<PathBuf>,
    /// Raised from any thread to end the running step early.
    pub abort: Arc<std::sync::atomic::AtomicBool>,
}

impl Default for Settings {
    fn default() -> Self {
        Settings {
            n_ctx: 0,
            n_seq_max: 0,
            n_batch: 0,
            n_ubatch: 0,
            n_outputs: 0,
            n_threads: 0,
            n_gpu_layers: None,
            main_gpu: None,
            flash_attention: FlashAttention::Auto,
            kv_type: KvType::F16,
            use_mmap: true,
            repack: true,
            routing: Routing::Off,
            profiles: None,
            exact: false,
            embedding: false,
            jump: false,
            script: None,
            abort: Arc::default(),
        }
    }
}

/// Hears how much of a model is loaded (0 to 1); answering `false` gives the load up with [`Error::Aborted`].
pub type Progress<'a> = &'a mut dyn FnMut(f32) -> bool;

impl FromStr for Kind {
    type Err = Error;

    /// `auto`, `llama`, `native` or `scripted`, whether or not this program has it.
    fn from_str(name: &str) -> Result<Kind, Error> {
        match name {
            "auto" => Ok(Kind::Auto),
            "llama" => Ok(Kind::Llama),
            "scripted" => Ok(Kind::Scripted),
            "native" => Ok(Kind::Native),
            _ => Err(Error::Setting { value: name.to_owned(), expected: "an engine: auto, llama, native or scripted" }),
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Kind::Auto => "auto",
            Kind::Llama => "llama",
            Kind::Native => "native",
            Kind::Scripted => "scripted",
        })
    }
}

impl FromStr for KvType {
    type Err = Error;

    fn from_str(name: &str) -> Result<KvType, Error> {
        match name {
            "f32" => Ok(KvType::F32),
            "f16" => Ok(KvType::F16),
            "q8_0" => Ok(KvType::Q8_0),
            "q4_0" => Ok(KvType::Q4_0),
            "fp8" => Ok(KvType::Fp8),
            _ => Err(Error::Setting { value: name.to_owned(), expected: "a cache type: f32, f16, q8_0, q4_0 or fp8" }),
        }
    }
}

impl KvType {
    /// The word for it.
    pub fn name(self) -> &'static str {
        match self {
            KvType::F32 => "f32",
            KvType::F16 => "f16",
            KvType::Q8_0 => "q8_0",
            KvType::Q4_0 => "q4_0",
            KvType::Fp8 => "fp8",
        }
    }
}

impl fmt::Display for KvType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("`{value}` is not {expected}")]
    Setting { value: String, expected: &'static str },
    #[error("engine `{engine}` is not built into this program")]
    NotBuilt { engine: String },
    #[error("{engine} cannot {what}")]
    Unsupported { engine: &'static str, what: String },
    #[error("cannot load `{}`: {reason}", path.display())]
    Load { path: PathBuf, reason: String },
    #[error("needs {} of memory, {} are free", machine::human(*needed), machine::human(*available))]
    Memory { needed: u64, available: u64 },
    #[error("needs {} of disk in `{}`, {} are free", machine::human(*needed), dir.display(), machine::human(*available))]
    Disk { dir: PathBuf, needed: u64, available: u64 },
    #[error("bad batch: {0}")]
    Batch(String),
    #[error("sequence {} is full: {n_ctx} tokens", seq.0)]
    ContextFull { seq: SeqId, n_ctx: usize },
    #[error("the step was aborted")]
    Aborted,
    #[error("the step failed: {0}")]
    Step(String),
    #[error("the saved state does not fit this model: {0}")]
    State(String),
    #[error(transparent)]
    Io(#[from] std::io::Error),
    #[error(transparent)]
    Gguf(#[from] fathom_gguf::Error),
    #[error(transparent)]
    Routing(#[from] routing::Error),
}
