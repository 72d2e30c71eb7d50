//! Any GGUF that llama.cpp can run, behind [`Engine`].
//!
//! llama.cpp ends the process when a caller breaks a rule of its caches, so this module keeps its own count of every
//! sequence and refuses with a value whatever would break one. What its `deepseek4` cache allows, found by reading and by running it:
//! - `kv_unified = false`: one stream of `n_ctx` tokens per sequence. A unified cache serves one sequence only.
//! - Nothing is cut or shifted: windows overwrite, compressors close. To go back one restores a saved state, so a
//!   [`Checkpoint`] holds the whole state of its sequence (`save_state`). Plain caches (no window, no recurrence) cut
//!   instead, and their checkpoints are a position.
//! - Copies between sequences are copies of whole states; [`Engine::fork`] is save and load.
//! - Sequences of one step whose numbers are consecutive are computed together, so low numbers first is the fast way to give them out.
//! - Any chunk size gives the same rows (tests: 1, 7, 64, 128 tokens and whole).
//!
//! A step that fails in the middle leaves its sequences half computed: they are refused until they are released or rewound.

mod check;
mod plan;
mod quantizer;
mod state;
mod sys;
mod widen;

use std::io::{Read, Write};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use fathom_gguf::{DType, File};

use super::rules::{self, Place, Rules, runs};
use super::{
    Batch, BatchToken, Checkpoint, Engine, EngineInfo, Error, FlashAttention, KvType, Memory, Output, Outputs,
    Progress, Settings, StepStats, Support,
};
use crate::ids::{Pos, SeqId};

pub(super) use plan::plan;
pub use quantizer::Quantizer;
pub use sys::{RowsError, expand_rows, quantize_rows};
pub use widen::F32Copy;

const NAME: &str = "llama";

/// Version and commit of the ggml that is linked.
pub fn ggml_version() -> String {
    sys::ggml_version()
}

/// A loaded model.
pub struct Llama {
    info: EngineInfo,
    context: sys::Context,
    batch: sys::Batch,
    /// Indices of the caller's tokens in the order of `batch`, which is by sequence; and where each of them stands there.
    by_sequence: Vec<usize>,
    place: Vec<usize>,
    sequences: Vec<Sequence>,
    going_back: GoingBack,
    rules: Rules,
    abort: Arc<AtomicBool>,
    /// What a saved state must have been made with.
    fingerprint: [u8; 32],
}

/// What we know of one sequence.
#[derive(Clone, Debug, Default)]
struct Sequence {
    /// Position of the next token.
    next: u32,
    /// How often it was released: marks of an earlier life are void.
    life: u64,
    /// How often it was cut in this life, and which cuts can still make a mark void: those not undercut by a later one.
    n_cuts: u64,
    cuts: Vec<Cut>,
    /// A step failed while it computed this sequence.
    broken: bool,
}

/// Everything from position `to` on was taken away.
#[derive(Clone, Copy, Debug)]
struct Cut {
    number: u64,
    to: u32,
}

impl Place for Sequence {
    fn next(&self) -> u32 {
        self.next
    }

    fn is_broken(&self) -> bool {
        self.broken
    }
}

impl Sequence {
    fn cut(&mut self, to: u32) {
        self.cuts.retain(|cut| cut.to < to);
        self.cuts.push(Cut { number: self.n_cuts, to });
        self.n_cuts += 1;
        self.next = to;
    }

    /// Whether what stood before `pos` when `mark` was made stands there still.
    fn holds(&self, mark: &Mark, pos: u32) -> bool {
        let undercut = |cut: &Cut| cut.number >= mark.n_cuts && cut.to < pos;
        mark.life == self.life && pos <= self.next && !self.cuts.iter().any(undercut)
    }
}

/// A place in a sequence, for caches that can be cut.
#[derive(Clone, Copy, Debug)]
struct Mark {
    seq: SeqId,
    life: u64,
    n_cuts: u64,
}

/// How a sequence returns to an earlier position.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum GoingBack {
    /// The cache keeps every position: cut.
    Cut,
    /// Restore a saved state.
    State,
}

/// Inside of a [`Checkpoint`].
enum Saved {
    /// Nothing was computed yet.
    Empty,
    /// With [`GoingBack::Cut`].
    Mark(Mark),
    State {
        bytes: Vec<u8>,
        fingerprint: [u8; 32],
    },
}

impl Llama {
    /// Loads `file` with settings that a [`super::Plan`] completed.
    ///
    /// # Errors
    /// As [`super::load`].
    pub(super) fn load(file: &File, settings: &Settings, on_progress: Progress) -> Result<Llama, Error> {
        let checked = check::check(file)?;
        let failed = |reason: String| Error::Load { path: file.path().to_owned(), reason };
        if settings.jump && checked.architecture != "deepseek4" {
            return Err(unsupported("start this model's sequences anywhere: its cache has no shape without its rows"));
        }
        let mut given_up = false;
        let model = sys::Model::load(
            file.shards(),
            &sys::ModelParams {
                n_gpu_layers: settings.n_gpu_layers,
                main_gpu: settings.main_gpu,
                use_mmap: settings.use_mmap,
                repack: settings.repack,
                architecture: checked.architecture.clone(),
                n_vocab: checked.n_vocab,
                measure_only: false,
            },
            &mut |fraction| {
                let go_on = on_progress(fraction);
                given_up |= !go_on;
                go_on
            },
        )
        .map_err(|reason| if given_up { Error::Aborted } else { failed(reason) })?;
        if model.has_encoder() && model.has_decoder() {
            return Err(unsupported("run an encoder and a decoder together"));
        }
        let n_vocab = checked.n_vocab as usize;
        let context = sys::Context::new(Rc::new(model), &context_params(settings)?, n_vocab).map_err(failed)?;

        if settings.embedding && !context.is_pooled() {
            return Err(unsupported("give embeddings: this model does not say how to pool them"));
        }
        if !settings.embedding && !context.has_cache() {
            return Err(unsupported("give logits: this model only makes embeddings"));
        }
        let going_back = going_back(&context, &checked.architecture);
        let remembers = !settings.embedding;
        let info = EngineInfo {
            engine: NAME,
            n_vocab,
            n_embd: context.model().n_embd(),
            n_ctx: settings.n_ctx,
            n_ctx_train: usize::try_from(checked.n_ctx_train).unwrap_or(usize::MAX),
            n_seq_max: settings.n_seq_max,
            n_batch: settings.n_batch,
            n_outputs: settings.n_outputs,
            kv_type: settings.kv_type,
            memory: Memory { weights: file.tensor_bytes(), ..context.memory() },
            support: Support {
                logits: !settings.embedding,
                embedding: settings.embedding,
                hidden: false,
                checkpoint: remembers,
                fork: remembers,
                save: remembers,
            },
            architecture: checked.architecture,
        };
        Ok(Llama {
            context,
            batch: sys::Batch::default(),
            by_sequence: Vec::new(),
            place: Vec::new(),
            sequences: vec![Sequence::default(); settings.n_seq_max],
            going_back,
            rules: Rules::new(settings.jump),
            abort: Arc::clone(&settings.abort),
            fingerprint: state::fingerprint(file, settings),
            info,
        })
    }

    /// A sequence whose state may be used.
    fn sound(&self, seq: SeqId) -> Result<&Sequence, Error> {
        rules::sound(&self.sequences, seq)
    }

    fn needs(&self, supported: bool, what: &str) -> Result<(), Error> {
        if supported { Ok(()) } else { Err(unsupported(what)) }
    }

    /// Every rule of [`Batch`], before anything is computed.
    fn validate(&mut self, batch: &Batch) -> Result<(), Error> {
        let support = self.info.support;
        self.rules.check(batch, &self.info, &self.sequences, |output| match output {
            Output::Logits if support.logits => Ok(()),
            Output::Logits => Err(unsupported("give logits when loaded for embeddings")),
            Output::Embedding if support.embedding => Ok(()),
            Output::Embedding => Err(unsupported("give embeddings unless loaded for them")),
            Output::Hidden => Err(unsupported("give hidden streams")),
        })
    }

    /// Computes what is in `self.batch`; marks its sequences broken when that fails.
    fn decode(&mut self, tokens: &[BatchToken]) -> Result<(), Error> {
        let decoded = self.context.decode(&mut self.batch);
        let done = decoded == sys::Decoded::Done;
        for run in runs(tokens) {
            let sequence = &mut self.sequences[run[0].seq.0 as usize];
            if done {
                sequence.next = run[run.len() - 1].pos.0 + 1;
            } else {
                sequence.broken = true;
            }
        }
        match decoded {
            sys::Decoded::Done => Ok(()),
            sys::Decoded::Aborted => {
                self.abort.store(false, Ordering::Relaxed);
                Err(Error::Aborted)
            }
            sys::Decoded::NoRoom => Err(Error::Step("no room in the cache".to_owned())),
            sys::Decoded::Failed(reason) => Err(Error::Step(reason)),
        }
    }

    fn step_logits(&mut self, batch: &Batch, out: &mut Outputs) -> Result<(), Error> {
        // Sequences in rising order are what llama.cpp can compute together.
        let tokens = &batch.tokens;
        self.by_sequence.clear();
        self.by_sequence.extend(0..tokens.len());
        self.by_sequence.sort_by_key(|&index| tokens[index].seq);
        self.place.clear();
        self.place.resize(tokens.len(), 0);
        self.batch.clear();
        for (place, &index) in self.by_sequence.iter().enumerate() {
            let token = tokens[index];
            self.place[index] = place;
            // Validated: all three are below 2^31.
            self.batch.push(token.token.0 as i32, token.pos.0 as i32, token.seq.0 as i32, token.output.is_some());
        }
        self.decode(tokens)?;
        for (index, _) in tokens.iter().enumerate().filter(|(_, token)| token.output.is_some()) {
            let row = self.context.logits(self.place[index]);
            let row = row.ok_or_else(|| Error::Step(format!("token {index} of the batch got no logits")))?;
            out.push_row(row.len()).copy_from_slice(row);
        }
        Ok(())
    }

    /// Each text alone, in the one sequence that llama.cpp has then: pooling sees what is computed together, and texts of
    /// different length would be split.
    fn step_embeddings(&mut self, batch: &Batch, out: &mut Outputs) -> Result<(), Error> {
        if let Some(run) = runs(&batch.tokens).find(|run| run[0].pos.0 != 0) {
            return Err(Error::Batch(format!("sequence {} must be whole to be embedded", run[0].seq.0)));
        }
        for run in runs(&batch.tokens) {
            self.context.remove(0, -1);
            self.batch.clear();
            for token in run {
                self.batch.push(token.token.0 as i32, token.pos.0 as i32, 0, true);
            }
            self.decode(run)?;
            for _ in run.iter().filter(|token| token.output.is_some()) {
                let row = self.context.pooled(0).ok_or_else(|| Error::Step("a text got no embedding".to_owned()))?;
                out.push_row(row.len()).copy_from_slice(row);
            }
        }
        Ok(())
    }

    /// Takes away everything from `to` on, which [`GoingBack::Cut`] allows.
    fn cut(&mut self, seq: SeqId, to: Pos) -> Result<(), Error> {
        let sequence = &mut self.sequences[seq.0 as usize];
        if !self.context.remove(seq.0 as i32, to.0 as i32) {
            sequence.broken = true;
            return Err(unsupported("cut this model's cache"));
        }
        sequence.cut(to.0);
        sequence.broken = false;
        Ok(())
    }

    fn save_state(&mut self, seq: SeqId) -> Result<Vec<u8>, Error> {
        self.context.save_state(seq.0 as i32).map_err(Error::State)
    }

    /// Makes `seq` hold `bytes`, whose next position is `next`.
    fn load_state(&mut self, seq: SeqId, bytes: &[u8], next: Pos) -> Result<(), Error> {
        self.release(seq);
        self.context.load_state(seq.0 as i32, bytes).map_err(Error::State)?;
        let found = self.context.last_position(seq.0 as i32);
        if i64::from(found) + 1 != i64::from(next.0) {
            self.release(seq);
            return Err(Error::State(format!("it ends at position {found}, expected {}", i64::from(next.0) - 1)));
        }
        self.sequences[seq.0 as usize].next = next.0;
        Ok(())
    }
}

impl Engine for Llama {
    fn info(&self) -> &EngineInfo {
        &self.info
    }

    fn step(&mut self, batch: &Batch, out: &mut Outputs) -> Result<StepStats, Error> {
        out.clear();
        self.validate(batch)?;
        if batch.tokens.is_empty() {
            return Ok(StepStats::default());
        }
        if self.abort.swap(false, Ordering::Relaxed) {
            return Err(Error::Aborted);
        }
        let start = Instant::now();
        if self.info.support.embedding {
            self.step_embeddings(batch, out)?;
        } else {
            self.step_logits(batch, out)?;
        }
        Ok(StepStats { tokens: batch.tokens.len(), seconds: start.elapsed().as_secs_f64() })
    }

    fn checkpoint(&mut self, seq: SeqId) -> Result<Checkpoint, Error> {
        self.needs(self.info.support.checkpoint, "remember a state of this model")?;
        let sequence = self.sound(seq)?;
        let pos = Pos(sequence.next);
        let (saved, bytes, within) = if pos.0 == 0 {
            (Saved::Empty, 0, None)
        } else if self.going_back == GoingBack::Cut {
            (Saved::Mark(Mark { seq, life: sequence.life, n_cuts: sequence.n_cuts }), 0, Some(seq))
        } else {
            let state = self.save_state(seq)?;
            let bytes = state.len();
            (Saved::State { bytes: state, fingerprint: self.fingerprint }, bytes, None)
        };
        Ok(Checkpoint { pos, bytes, within, state: Arc::new(saved) })
    }

    fn rewind(&mut self, seq: SeqId, to: &Checkpoint) -> Result<(), Error> {
        self.needs(self.info.support.checkpoint, "rewind this model")?;
        let sequence = rules::existing(&self.sequences, seq)?;
        match to.state.downcast_ref::<Saved>() {
            None => Err(Error::State("it was made by another engine".to_owned())),
            Some(Saved::Empty) => {
                self.release(seq);
                Ok(())
            }
            Some(Saved::State { bytes, fingerprint }) => {
                if *fingerprint != self.fingerprint {
                    return Err(Error::State("it was made by another model".to_owned()));
                }
                self.load_state(seq, bytes, to.pos)
            }
            Some(Saved::Mark(mark)) => {
                if mark.seq != seq || !sequence.holds(mark, to.pos.0) {
                    return Err(Error::State(format!("sequence {} no longer holds what was marked", seq.0)));
                }
                self.cut(seq, to.pos)
            }
        }
    }

    fn fork(&mut self, from: SeqId, to: SeqId, at: Option<&Checkpoint>) -> Result<(), Error> {
        self.needs(self.info.support.fork, "fork a sequence of this model")?;
        let source = self.sound(from)?;
        let end = Pos(source.next);
        rules::must_be_empty(&self.sequences, to)?;
        let cut = match at {
            None => None,
            Some(at) => match at.state.downcast_ref::<Saved>() {
                Some(Saved::Mark(mark)) if mark.seq == from && source.holds(mark, at.pos.0) => Some(at.pos),
                Some(Saved::Mark(_)) => {
                    return Err(Error::State(format!("sequence {} no longer holds what was marked", from.0)));
                }
                // A saved state stands for itself, a foreign one is refused.
                _ => return self.rewind(to, at),
            },
        };
        if end.0 == 0 {
            return Ok(());
        }
        let state = self.save_state(from)?;
        self.load_state(to, &state, end)?;
        match cut {
            Some(pos) if pos < end => self.cut(to, pos),
            _ => Ok(()),
        }
    }

    fn release(&mut self, seq: SeqId) {
        let Some(sequence) = self.sequences.get_mut(seq.0 as usize) else { return };
        let untouched = sequence.next == 0 && !sequence.broken;
        *sequence = Sequence { life: sequence.life + 1, ..Sequence::default() };
        if !untouched && !self.info.support.embedding {
            // Taking a whole sequence away is what every cache can do.
            let removed = self.context.remove(seq.0 as i32, -1);
            debug_assert!(removed, "a whole sequence can always be removed");
        }
    }

    fn save(&mut self, seq: SeqId, to: &mut dyn Write) -> Result<(), Error> {
        self.needs(self.info.support.save, "save a state of this model")?;
        let next = Pos(self.sound(seq)?.next);
        let bytes = if next.0 == 0 { Vec::new() } else { self.save_state(seq)? };
        state::write(to, &self.fingerprint, next, &bytes)
    }

    fn restore(&mut self, seq: SeqId, from: &mut dyn Read) -> Result<Pos, Error> {
        self.needs(self.info.support.save, "restore a state of this model")?;
        rules::must_be_empty(&self.sequences, seq)?;
        let (next, bytes) = state::read(from, &self.fingerprint, self.info.n_ctx, self.info.memory.kv)?;
        if next.0 > 0 {
            self.load_state(seq, &bytes, next)?;
        }
        Ok(next)
    }
}

/// Settings that a plan completed, as llama.cpp takes them.
fn context_params(settings: &Settings) -> Result<sys::ContextParams, Error> {
    let narrow = |value: usize| u32::try_from(value).map_err(|_| unsupported(&format!("count to {value}")));
    Ok(sys::ContextParams {
        n_ctx_seq: narrow(plan::padded(settings.n_ctx))?,
        n_seq_max: if settings.embedding { 1 } else { narrow(settings.n_seq_max)? },
        n_batch: narrow(settings.n_batch)?,
        n_ubatch: narrow(settings.n_ubatch)?,
        n_outputs: narrow(settings.n_outputs)?,
        n_threads: narrow(settings.n_threads)?,
        flash_attention: match settings.flash_attention {
            FlashAttention::Auto => None,
            FlashAttention::On => Some(true),
            FlashAttention::Off => Some(false),
        },
        kv_type: match settings.kv_type {
            KvType::F32 => DType::F32,
            KvType::F16 => DType::F16,
            KvType::Q8_0 => DType::Q8_0,
            KvType::Q4_0 => DType::Q4_0,
            KvType::Fp8 => return Err(unsupported("keep an fp8 cache: it has f16, f32, q8_0 and q4_0")),
        },
        embedding: settings.embedding,
        abort: Arc::clone(&settings.abort),
    })
}

fn unsupported(what: &str) -> Error {
    Error::Unsupported { engine: NAME, what: what.to_owned() }
}

/// Only caches that keep every position are cut; the family's compressed ones never, whatever they claim.
fn going_back(context: &sys::Context, architecture: &str) -> GoingBack {
    let model = context.model();
    if model.is_recurrent() || model.n_swa() > 0 || architecture.starts_with("deepseek") {
        GoingBack::State
    } else {
        GoingBack::Cut
    }
}
