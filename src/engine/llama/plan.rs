//! Memory that llama.cpp will take, and the choices that follow from it.
//!
//! llama.cpp itself is asked: it reads the header, pretends to allocate and tells the sizes of caches and compute buffers.
//! So the prediction holds for every architecture and setting. (For `deepseek4` a test compares the cache with the formula.)

use std::cell::OnceCell;
use std::rc::Rc;

use fathom_gguf::{DType, File};

use super::super::{Error, FlashAttention, Kind, KvType, Memory, Plan, Settings, machine, routing};
use super::{check, context_params, sys, unsupported};

/// Sequences of a model that leaves room for them: enough that the users of one machine do not queue.
const DEFAULT_SEQUENCES: usize = 16;

/// Tokens of one step.
const DEFAULT_BATCH: usize = 512;

/// Most tokens of one step. llama.cpp reserves 40 graph nodes per token and ends the process when it gets no memory for
/// them; nothing is gained that far out.
const MAX_BATCH: usize = 8192;

/// llama.cpp rounds a sequence's context up to this.
const ROUND: usize = 256;

/// Context of one sequence as llama.cpp allocates it.
pub(super) fn padded(n_ctx: usize) -> usize {
    n_ctx.saturating_add(ROUND - 1) / ROUND * ROUND
}

/// See [`mod@super::super::plan`].
///
/// What is left open is filled in this order: one sequence of the trained context, as far as memory goes; then as many
/// sequences of it, up to [`DEFAULT_SEQUENCES`].
pub(in super::super) fn plan(file: &File, settings: &Settings, available_bytes: u64) -> Result<Plan, Error> {
    let checked = check::check(file)?;
    contradictions(settings)?;
    let mut notes = Vec::new();
    let trained = usize::try_from(checked.n_ctx_train).unwrap_or(usize::MAX);
    let asked_ctx = settings.n_ctx.min(trained);
    if settings.n_ctx > trained {
        notes.push(format!("{} tokens of context were asked for; the model was trained for {trained}", settings.n_ctx));
    }
    if settings.kv_type == KvType::F32 && settings.flash_attention != FlashAttention::Off {
        notes.push("flash attention reads the f32 cache as f16: turn it off to gain from it".to_owned());
    }
    // Steps smaller than 512 waste bandwidth on weights that are read once per step, larger ones gain little on a CPU and
    // make others wait: docs/performance.md has the figures.
    let asked_batch = or(settings.n_batch, DEFAULT_BATCH);
    // Pooling needs a whole text in one step, and those architectures have graphs of a fixed size.
    let n_batch = if settings.embedding { asked_batch } else { asked_batch.min(MAX_BATCH) };
    if n_batch < asked_batch {
        notes.push(format!("{asked_batch} tokens a step were asked for; the most is {MAX_BATCH}"));
    }
    // ggml's threads spin while they wait for each other: more than can run at once make a step take seconds.
    let n_threads = super::super::plan::threads(settings, &mut notes);
    let base =
        Settings { n_threads, n_batch, n_ubatch: or(settings.n_ubatch, n_batch).min(n_batch), ..settings.clone() };
    let probe = Probe { file, checked: &checked, base: &base, model: OnceCell::new() };

    let weights = file.tensor_bytes();
    let repacked = if settings.repack { repacked_bytes(file) } else { 0 };
    let budget = available_bytes.saturating_sub(reserve(available_bytes));
    let asked_seq = or(settings.n_seq_max, 1);
    let least = probe.memory(if asked_ctx == 0 { trained.min(ROUND) } else { asked_ctx }, asked_seq)?;
    // Copies in the layout that kernels like best, when they and a usable cache fit; else the weights stay mapped as they are.
    let repack = repacked > 0 && repacked + least.kv + least.compute <= budget;
    if repacked > 0 && !repack {
        notes.push(format!(
            "weights are not repacked: {} of copies do not fit beside the cache",
            machine::human(repacked)
        ));
    }
    let pinned = if settings.use_mmap { if repack { repacked } else { 0 } } else { weights };
    // Mapped weights can be dropped and read again, so they are no reason to refuse; but a cache that pushes them out of
    // memory is worse than a short one.
    let left = if weights <= budget {
        budget - weights
    } else {
        notes.push(format!(
            "the weights ({}) are larger than the memory that is free: they are read from disk again and again",
            machine::human(weights)
        ));
        budget.saturating_sub(pinned) / 2
    };
    let n_ctx = match asked_ctx {
        0 => largest_context(trained, |n_ctx| probe.fits(n_ctx, asked_seq, left))?,
        asked => asked,
    };
    let n_seq_max = match settings.n_seq_max {
        // Room for others to be served at the same time is worth half of what is left, not all of it.
        0 => most_sequences(|n_seq| probe.fits(n_ctx, n_seq, left / 2))?,
        asked => asked,
    };
    if settings.n_ctx == 0 && n_ctx < trained {
        notes.push(format!(
            "the context is shorter than the {trained} tokens the model was trained for: memory is short"
        ));
    }
    let settled = probe.settle(n_ctx, n_seq_max);
    let memory = Memory { weights, ..probe.memory(n_ctx, n_seq_max)? };
    let needed = pinned.saturating_add(memory.kv).saturating_add(memory.compute);
    if needed > available_bytes {
        return Err(Error::Memory { needed, available: available_bytes });
    }
    Ok(Plan {
        kind: Kind::Llama,
        architecture: checked.architecture.clone(),
        n_ctx,
        n_seq_max,
        n_batch: settled.n_batch,
        n_ubatch: settled.n_ubatch,
        n_outputs: settled.n_outputs,
        n_threads: settled.n_threads,
        kv_type: settings.kv_type,
        use_mmap: settings.use_mmap,
        repack,
        memory,
        available_bytes,
        notes,
    })
}

/// What was asked for, or the default where it was left open.
fn or(asked: usize, default: usize) -> usize {
    if asked == 0 { default } else { asked }
}

/// Settings that llama.cpp asserts against, or that make no sense together.
fn contradictions(settings: &Settings) -> Result<(), Error> {
    routing::only_off(super::NAME, &settings.routing)?;
    if settings.n_seq_max > sys::MAX_SEQUENCES {
        return Err(unsupported(&format!("hold {} sequences, at most {}", settings.n_seq_max, sys::MAX_SEQUENCES)));
    }
    if settings.n_threads > sys::MAX_THREADS {
        return Err(unsupported(&format!("use {} threads, at most {}", settings.n_threads, sys::MAX_THREADS)));
    }
    let quantised = matches!(settings.kv_type, KvType::Q8_0 | KvType::Q4_0);
    if quantised && settings.flash_attention == FlashAttention::Off {
        return Err(unsupported(&format!("keep a {} cache without flash attention", settings.kv_type)));
    }
    Ok(())
}

/// What is left to the rest of the machine: 5 %, at least 256 MiB.
fn reserve(available_bytes: u64) -> u64 {
    (available_bytes / 20).max(256 << 20)
}

/// The longest context up to `trained` that fits; a multiple of [`ROUND`] unless it is `trained` itself.
fn largest_context(trained: usize, fits: impl Fn(usize) -> Result<bool, Error>) -> Result<usize, Error> {
    if fits(trained)? {
        return Ok(trained);
    }
    // Invariant: `low` rounds fit (or are the least that makes sense), `high` do not.
    let (mut low, mut high) = (1, trained.div_ceil(ROUND).max(2));
    while high - low > 1 {
        let middle = low + (high - low) / 2;
        if fits(middle * ROUND)? { low = middle } else { high = middle }
    }
    Ok((low * ROUND).min(trained))
}

/// At least one, at most [`DEFAULT_SEQUENCES`].
fn most_sequences(fits: impl Fn(usize) -> Result<bool, Error>) -> Result<usize, Error> {
    if fits(DEFAULT_SEQUENCES)? {
        return Ok(DEFAULT_SEQUENCES);
    }
    let (mut low, mut high) = (1, DEFAULT_SEQUENCES);
    while high - low > 1 {
        let middle = low + (high - low) / 2;
        if fits(middle)? { low = middle } else { high = middle }
    }
    Ok(low)
}

/// Tensors that ggml's CPU backend copies into its interleaved layouts on x86-64 with AVX2 (`repack.cpp`): stacks of experts and
/// matrices with a multiple of 8 rows, embeddings excepted, whose rows are looked up.
fn repacked_bytes(file: &File) -> u64 {
    let is_repacked = |tensor: &&fathom_gguf::TensorInfo| {
        matches!(tensor.dtype, DType::Q4_0 | DType::Q4_K | DType::IQ4_NL | DType::MXFP4)
            && matches!(tensor.ne.len(), 2 | 3)
            && tensor.ne.get(1).is_some_and(|rows| rows % 8 == 0)
            && tensor.name != "token_embd.weight"
    };
    file.tensors().iter().filter(is_repacked).map(|tensor| tensor.bytes).sum()
}

/// Asks llama.cpp what it would allocate.
struct Probe<'a> {
    file: &'a File,
    checked: &'a check::Checked,
    /// Complete but for context and sequences.
    base: &'a Settings,
    /// The header, read once.
    model: OnceCell<Rc<sys::Model>>,
}

impl Probe<'_> {
    /// `base` for a context and a number of sequences.
    fn settle(&self, n_ctx: usize, n_seq_max: usize) -> Settings {
        let n_batch = self.base.n_batch.min(padded(n_ctx).saturating_mul(n_seq_max));
        let settings = Settings { n_ctx, n_seq_max, n_batch, ..self.base.clone() };
        if settings.embedding {
            // Pooling sees what is computed together, and needs every token of it.
            return Settings { n_ubatch: n_batch, n_outputs: n_batch, ..settings };
        }
        Settings {
            n_ubatch: self.base.n_ubatch.min(n_batch),
            // llama.cpp asserts one for each sequence, also where a step is smaller than that.
            n_outputs: or(self.base.n_outputs, n_seq_max).min(n_batch).max(n_seq_max),
            ..settings
        }
    }

    fn model(&self) -> Result<Rc<sys::Model>, String> {
        if let Some(model) = self.model.get() {
            return Ok(Rc::clone(model));
        }
        let params = sys::ModelParams {
            n_gpu_layers: self.base.n_gpu_layers,
            main_gpu: self.base.main_gpu,
            use_mmap: false,
            // Where weights lie does not change caches and compute buffers, and we count weights ourselves.
            repack: false,
            architecture: self.checked.architecture.clone(),
            n_vocab: self.checked.n_vocab,
            measure_only: true,
        };
        let model = Rc::new(sys::Model::load(self.file.shards(), &params, &mut |_| true)?);
        Ok(Rc::clone(self.model.get_or_init(|| model)))
    }

    fn memory(&self, n_ctx: usize, n_seq_max: usize) -> Result<Memory, Error> {
        let params = sys::ContextParams { n_threads: 1, ..context_params(&self.settle(n_ctx, n_seq_max))? };
        let measured = self.model().and_then(|model| sys::Context::new(model, &params, self.checked.n_vocab as usize));
        match measured {
            Ok(context) => Ok(context.memory()),
            Err(reason) => Err(Error::Load { path: self.file.path().to_owned(), reason }),
        }
    }

    fn fits(&self, n_ctx: usize, n_seq_max: usize, bytes: u64) -> Result<bool, Error> {
        let memory = self.memory(n_ctx, n_seq_max)?;
        Ok(memory.kv.saturating_add(memory.compute) <= bytes)
    }
}
