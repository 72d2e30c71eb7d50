//! Memory that llama.cpp will take, from the file's header, and the choices that follow from it.
//!
//! The cache formulas are llama.cpp's own (`llama-kv-cache-dsv4.cpp`), not the model's minimum: it keeps whole windows
//! plus a step per sequence, rounds every cache up to 256 rows, and keeps the compressors' open state in F32.

use fathom_gguf::{DType, File, Metadata};

use super::super::{Error, FlashAttention, Kind, KvType, Memory, Plan, Settings, machine};
use super::{check, kv_dtype, sys, unsupported};

/// Sequences of a model that leaves room for them: enough that the users of one machine do not queue.
const DEFAULT_SEQUENCES: usize = 16;

/// Tokens of one step.
const DEFAULT_BATCH: usize = 512;

/// llama.cpp rounds a sequence's context up to this.
const ROUND: usize = 256;

/// Context of one sequence as llama.cpp allocates it.
pub(super) fn padded(n_ctx: usize) -> usize {
    n_ctx.saturating_add(ROUND - 1) / ROUND * ROUND
}

/// See [`super::super::plan`].
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
    let n_threads = or(settings.n_threads, machine::compute_threads());
    // Smaller steps than 512 waste bandwidth on weights that are read once per step, larger ones gain little on a CPU and make
    // others wait; docs/performance.md has the figures.
    let n_batch = or(settings.n_batch, DEFAULT_BATCH);
    let sizes = Sizes { file, checked: &checked, settings, n_ubatch: or(settings.n_ubatch, n_batch).min(n_batch) };

    let weights = file.tensor_bytes();
    let repacked = if settings.repack { repacked_bytes(file) } else { 0 };
    let pinned_weights = if settings.use_mmap { 0 } else { weights };
    let least = sizes.memory(asked_ctx.clamp(1, ROUND), or(settings.n_seq_max, 1), weights, n_batch);
    // Weights are copied into the layout that kernels like best when the copies and a usable cache fit; else they stay mapped.
    let budget = available_bytes.saturating_sub(reserve(available_bytes));
    let repack = repacked > 0 && repacked.saturating_add(least.kv).saturating_add(least.compute) <= budget;
    if repacked > 0 && !repack {
        notes.push(format!(
            "weights are not repacked: {} of copies do not fit beside the cache",
            machine::human(repacked)
        ));
    }
    let pinned_weights = pinned_weights.max(if repack { repacked } else { 0 });
    // Mapped weights can be dropped and read again, so they are no reason to refuse; but a cache that pushes them out of
    // memory is worse than a short one.
    let left = if weights <= budget {
        budget - weights
    } else {
        notes.push(format!(
            "the weights ({}) are larger than the memory that is free: they are read from disk again and again",
            machine::human(weights)
        ));
        budget.saturating_sub(pinned_weights) / 2
    };
    let fits = |n_ctx: usize, n_seq: usize| {
        let memory = sizes.memory(n_ctx, n_seq, weights, n_batch);
        memory.kv.saturating_add(memory.compute) <= left
    };
    let n_ctx = match asked_ctx {
        0 => largest_context(trained, |n_ctx| fits(n_ctx, or(settings.n_seq_max, 1))),
        asked => asked,
    };
    let n_seq_max = match settings.n_seq_max {
        0 => (1..=DEFAULT_SEQUENCES).rev().find(|&n| fits(n_ctx, n)).unwrap_or(1),
        asked => asked,
    };
    if settings.n_ctx == 0 && n_ctx < trained {
        notes.push(format!(
            "the context is shorter than the {trained} tokens the model was trained for: memory is short"
        ));
    }
    let memory = sizes.memory(n_ctx, n_seq_max, weights, n_batch);
    let needed = pinned_weights.saturating_add(memory.kv).saturating_add(memory.compute);
    if needed > available_bytes {
        return Err(Error::Memory { needed, available: available_bytes });
    }
    let n_batch = n_batch.min(padded(n_ctx).saturating_mul(n_seq_max));
    Ok(Plan {
        kind: Kind::Llama,
        architecture: checked.architecture.clone(),
        n_ctx,
        n_seq_max,
        n_batch,
        n_ubatch: sizes.n_ubatch.min(n_batch),
        n_outputs: or(settings.n_outputs, n_seq_max).min(n_batch),
        n_threads,
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
fn largest_context(trained: usize, fits: impl Fn(usize) -> bool) -> usize {
    if fits(trained) {
        return trained;
    }
    // Invariant: `low` rounds fit (or are the least that makes sense), `high` do not.
    let (mut low, mut high) = (1, trained.div_ceil(ROUND).max(2));
    while high - low > 1 {
        let middle = low + (high - low) / 2;
        if fits(middle * ROUND) { low = middle } else { high = middle }
    }
    (low * ROUND).min(trained)
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

struct Sizes<'a> {
    file: &'a File,
    checked: &'a check::Checked,
    settings: &'a Settings,
    n_ubatch: usize,
}

impl Sizes<'_> {
    fn memory(&self, n_ctx: usize, n_seq: usize, weights: u64, n_batch: usize) -> Memory {
        let n_ctx = padded(n_ctx.max(1)) as u64;
        let kv = self.kv_bytes(n_ctx).saturating_mul(n_seq as u64);
        Memory { weights, kv, compute: self.compute_bytes(n_ctx, n_seq as u64, n_batch as u64), device: 0 }
    }

    fn key(&self, name: &str) -> u64 {
        self.metadata().opt_u64(&format!("{}.{name}", self.checked.architecture)).ok().flatten().unwrap_or(0)
    }

    fn metadata(&self) -> &Metadata {
        self.file.metadata()
    }

    /// Bytes of one cached row of `width` values.
    fn row(&self, width: u64) -> u64 {
        kv_dtype(self.settings.kv_type).row_bytes(width).unwrap_or(width.saturating_mul(4))
    }

    /// Cache of one sequence whose context is `n_ctx`, a multiple of [`ROUND`].
    fn kv_bytes(&self, n_ctx: u64) -> u64 {
        if self.checked.architecture == "deepseek4" { self.kv_deepseek4(n_ctx) } else { self.kv_plain(n_ctx) }
    }

    /// Keys only, which are values as well. Per layer: a window of raw rows, rounded up with a step on top; for a
    /// compressing layer its rows (and index keys), rounded up, and two F32 rings of open compressor state.
    fn kv_deepseek4(&self, n_ctx: u64) -> u64 {
        let width = self.key("attention.key_length");
        let index_width = self.key("attention.indexer.key_length");
        let window = self.key("attention.sliding_window").saturating_add(self.n_ubatch as u64).min(n_ctx);
        let up = |rows: u64| rows.next_multiple_of(ROUND as u64);
        let raw = up(window).saturating_mul(self.row(width));
        let rows_csa = up(n_ctx.div_ceil(4));
        let csa = rows_csa
            .saturating_mul(self.row(width).saturating_add(self.row(index_width)))
            .saturating_add(2 * 8 * 2 * (width + index_width) * 4);
        let hca = up(n_ctx.div_ceil(128)).saturating_mul(self.row(width)).saturating_add(2 * 128 * width * 4);
        let ratios = self.metadata().integers("deepseek4.attention.compress_ratios").unwrap_or_default();
        let layers = ratios.iter().take(usize::try_from(self.checked.n_layer).unwrap_or(usize::MAX));
        layers
            .map(|ratio| {
                raw.saturating_add(match ratio {
                    4 => csa,
                    128 => hca,
                    _ => 0,
                })
            })
            .fold(0, u64::saturating_add)
    }

    /// Keys and values of every head at every position: exact for plain transformers, too much for those with windows or
    /// recurrent layers. Nothing for a model that only embeds.
    fn kv_plain(&self, n_ctx: u64) -> u64 {
        let arch = &self.checked.architecture;
        if self.metadata().opt_bool(&format!("{arch}.attention.causal")).ok().flatten() == Some(false) {
            return 0;
        }
        let heads_key = format!("{arch}.attention.head_count_kv");
        let per_layer = self.metadata().integers(&heads_key).unwrap_or_default();
        let heads = match self.key("attention.head_count_kv") {
            0 if per_layer.is_empty() => self.key("attention.head_count").saturating_mul(self.checked.n_layer),
            0 => per_layer.iter().map(|&n| u64::try_from(n).unwrap_or(0)).fold(0, u64::saturating_add),
            n => n.saturating_mul(self.checked.n_layer),
        };
        let by_width = self.key("embedding_length") / self.key("attention.head_count").max(1);
        let key_width = match self.key("attention.key_length") {
            0 => by_width,
            n => n,
        };
        let value_width = match self.key("attention.value_length") {
            0 => by_width,
            n => n,
        };
        self.row(key_width).saturating_add(self.row(value_width)).saturating_mul(heads).saturating_mul(n_ctx)
    }

    fn compute_bytes(&self, n_ctx: u64, n_seq: u64, n_batch: u64) -> u64 {
        let _ = (n_ctx, n_seq, n_batch);
        0
    }
}
