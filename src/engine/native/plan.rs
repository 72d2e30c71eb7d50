//! Memory that the engine will take, and the choices that follow from it.
//!
//! Weights are what the file says, caches follow from a formula ([`super::kv::Layout::bytes`]), and graphs are built on the weights' shapes and
//! measured. None of it depends on the context but the caches.

use fathom_gguf::File;

use super::graph::{Shape, Show};
use super::weights::{self, Expand};
use super::{MOST_GRAPHS, unsupported};
use crate::engine::{Error, Kind, Memory, Plan, Settings, machine};
use crate::ggml::backend;

/// Sequences of a model that leaves room for them, as with `llama`.
const DEFAULT_SEQUENCES: usize = 16;
/// Most sequences that can be asked for.
const MAX_SEQUENCES: usize = 4096;
/// Tokens of one step.
const DEFAULT_BATCH: usize = 512;
/// Most tokens of one step: graphs hold every token's values, and nothing is gained that far out.
const MAX_BATCH: usize = 8192;
/// A planned context is a multiple of this, unless it is the trained one.
const ROUND: usize = super::kv::SEGMENT_TOKENS;

/// The graph that needs most memory.
pub(super) fn largest(settings: &Settings) -> Shape {
    Shape {
        n_tokens: settings.n_batch,
        n_outputs: settings.n_outputs.min(settings.n_batch),
        logits: true,
        show: Show::Nothing,
    }
}

/// See [`crate::engine::plan()`]. What is left open is filled in this order: one sequence of the trained context, as far as memory goes;
/// then as many sequences of it, up to [`DEFAULT_SEQUENCES`].
pub(in crate::engine) fn plan(file: &File, settings: &Settings, available_bytes: u64) -> Result<Plan, Error> {
    contradictions(settings)?;
    let mut notes = Vec::new();
    let n_threads = crate::engine::plan::threads(settings, &mut notes);
    let model = super::model(file, None, &Settings { n_threads, ..settings.clone() })?;
    let trained = model.hparams.n_ctx_train;
    let asked_ctx = settings.n_ctx.min(trained);
    if settings.n_ctx > trained {
        notes.push(format!("{} tokens of context were asked for; the model was trained for {trained}", settings.n_ctx));
    }
    let asked_batch = or(settings.n_batch, DEFAULT_BATCH);
    if asked_batch > MAX_BATCH {
        notes.push(format!("{asked_batch} tokens a step were asked for; the most is {MAX_BATCH}"));
    }

    let expand = if settings.exact { Expand::F32 } else { Expand::No };
    let expanded = weights::expanded_bytes(file, expand);
    let mapped = file.tensor_bytes();
    let budget = available_bytes.saturating_sub((available_bytes / 20).max(256 << 20));
    // Mapped weights can be dropped and read again, so they are no reason to refuse; but a cache that pushes them out of memory is
    // worse than a short one.
    let left = if mapped + expanded <= budget {
        budget - mapped - expanded
    } else {
        notes.push(format!(
            "the weights ({}) are larger than the memory that is free: they are read from disk again and again",
            machine::human(mapped + expanded)
        ));
        budget.saturating_sub(expanded) / 2
    };
    let kv = |n_ctx: usize, n_seq: usize| model.layout.bytes(n_ctx).saturating_mul(n_seq as u64);
    let settle = |n_ctx: usize, n_seq_max: usize| {
        let n_batch = asked_batch.min(MAX_BATCH).min(n_ctx.saturating_mul(n_seq_max)).max(1);
        let n_outputs = or(settings.n_outputs, n_seq_max).min(n_batch);
        Settings { n_ctx, n_seq_max, n_batch, n_ubatch: n_batch, n_outputs, ..settings.clone() }
    };
    let compute = |n_ctx: usize, n_seq_max: usize| -> Result<u64, Error> {
        let shape = largest(&settle(n_ctx, n_seq_max));
        let failed =
            |error: crate::ggml::Error| Error::Load { path: file.path().to_owned(), reason: error.to_string() };
        let (graph, _) = model.build(shape).map_err(failed)?;
        let values = backend::measure(&graph, n_threads).map_err(failed)?;
        Ok((values + MOST_GRAPHS * graph.header_bytes()) as u64)
    };
    let asked_seq = or(settings.n_seq_max, 1);
    let least_compute = compute(if asked_ctx == 0 { trained } else { asked_ctx }, asked_seq)?;
    let room = left.saturating_sub(least_compute);
    let n_ctx = match asked_ctx {
        0 => largest_context(trained, |n_ctx| kv(n_ctx, asked_seq) <= room),
        asked => asked,
    };
    // Room for others to be served at the same time is worth half of what is left, not all of it.
    let n_seq_max = match settings.n_seq_max {
        0 => (1..=DEFAULT_SEQUENCES).rev().find(|&n| kv(n_ctx, n) <= room / 2).unwrap_or(1),
        asked => asked,
    };
    if settings.n_ctx == 0 && n_ctx < trained {
        notes.push(format!(
            "the context is shorter than the {trained} tokens the model was trained for: memory is short"
        ));
    }
    let settled = settle(n_ctx, n_seq_max);
    let memory =
        Memory { weights: mapped + expanded, kv: kv(n_ctx, n_seq_max), compute: compute(n_ctx, n_seq_max)?, device: 0 };
    let needed = expanded.saturating_add(memory.kv).saturating_add(memory.compute);
    if needed > available_bytes {
        return Err(Error::Memory { needed, available: available_bytes });
    }
    Ok(Plan {
        kind: Kind::Native,
        architecture: super::hparams::ARCHITECTURE.to_owned(),
        n_ctx,
        n_seq_max,
        n_batch: settled.n_batch,
        n_ubatch: settled.n_ubatch,
        n_outputs: settled.n_outputs,
        n_threads,
        kv_type: settings.kv_type,
        use_mmap: true,
        repack: false,
        memory,
        available_bytes,
        notes,
    })
}

fn contradictions(settings: &Settings) -> Result<(), Error> {
    if settings.embedding {
        return Err(unsupported("give embeddings"));
    }
    if settings.n_seq_max > MAX_SEQUENCES {
        return Err(unsupported(&format!("hold {} sequences, at most {MAX_SEQUENCES}", settings.n_seq_max)));
    }
    if settings.n_threads > backend::MAX_THREADS {
        let most = backend::MAX_THREADS;
        return Err(unsupported(&format!("use {} threads, at most {most}", settings.n_threads)));
    }
    if settings.n_gpu_layers.is_some_and(|n| n > 0) {
        return Err(unsupported("compute layers on a GPU"));
    }
    Ok(())
}

/// What was asked for, or the default where it was left open.
fn or(asked: usize, default: usize) -> usize {
    if asked == 0 { default } else { asked }
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
