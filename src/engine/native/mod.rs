//! Our own engine for DeepSeek-V4 on ggml's CPU backend: a graph of ggml's ops and of our own (`csrc/ops`), which are Q8_0 products and what defines
//! the model.
//!
//! - `hparams` and `weights` check the file; nothing after them doubts it. Weights stay where they are mapped.
//! - `graph` builds the forward pass for a number of tokens; an [`Executor`] keeps graphs and reuses them.
//! - `routing` finds routing policies for this model; every sequence follows one, or none.
//! - `kv` keeps what each sequence has seen. Rows are append-only, so sequences share them; a [`Checkpoint`] is a share.
//!
//! A step that is aborted leaves its sequences half computed: they are refused until they are released or rewound.

mod graph;
mod hparams;
mod kv;
mod plan;
mod probe;
mod routing;
mod weights;

use std::io::{Read, Write};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use fathom_gguf::File;
use sha2::{Digest, Sha256};

use super::routing::Counts;
use super::rules::{self, Place, Rules, runs};
use super::{
    Batch, BatchToken, Checkpoint, Engine, EngineInfo, Error, Inspect, Memory, Output, Outputs, Progress, Routing,
    RoutingId, Settings, StepStats, Support,
};
use crate::ggml::ops::Rope;
use crate::ggml::step::Run;
use crate::ggml::{self, Executor, GraphId, LayerCache, Step};
use crate::ids::{Pos, SeqId};
use graph::{Model, Ports, Shape, Show};
use hparams::{Hparams, LayerKind};
use kv::{Cache, Layout, Snapshot};
use routing::{Followed, Policies};
use weights::Expand;

pub(super) use plan::plan;

const NAME: &str = "native";

/// Graphs that are kept. Decode needs one per number of sequences that are computed together; a prefill chunk of a new length costs
/// about a millisecond to build.
const MOST_GRAPHS: usize = 12;

/// A loaded model.
pub struct Native {
    info: EngineInfo,
    model: Model,
    executor: Executor<Shape, Ports>,
    step: Step,
    sequences: Vec<Sequence>,
    rules: Rules,
    policies: Policies,
    abort: Arc<AtomicBool>,
    /// What a saved state or a checkpoint must have been made with.
    fingerprint: [u8; 32],
    /// Of the present step.
    tokens: Vec<i32>,
    rows: Vec<i32>,
    /// Caches of the sequences of the running step, in the order of its runs; empty otherwise.
    running: Vec<Vec<LayerCache>>,
    /// Sequence of each run, and whether the run is one token.
    runs: Vec<(usize, bool)>,
}

struct Sequence {
    /// Position of the next token.
    next: u32,
    cache: Cache,
    /// Rows of the tokens before this position are in an earlier checkpoint, which counts their memory.
    counted: u32,
    /// A step failed while it computed this sequence.
    broken: bool,
    /// What all of its tokens were computed under; `None` = all experts.
    routing: Option<Arc<Followed>>,
    counts: Option<Counts>,
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
    fn empty(layout: &Layout, routing: Option<Arc<Followed>>) -> Sequence {
        Sequence { next: 0, cache: Cache::new(layout), counted: 0, broken: false, routing, counts: None }
    }

    fn routing_id(&self) -> RoutingId {
        self.routing.as_ref().map_or(RoutingId::OFF, |policy| policy.id)
    }
}

/// Inside of a [`Checkpoint`].
struct Saved {
    /// `None`: nothing was computed yet.
    snapshot: Option<Snapshot>,
    routing: Option<Arc<Followed>>,
    fingerprint: [u8; 32],
}

/// The model without an executor: what planning and loading share. With `keep`, which is `file` again, weights have their data.
fn model(file: &File, keep: Option<Rc<File>>, settings: &Settings) -> Result<Model, Error> {
    let hparams = Hparams::read(file)?;
    let layout = Layout::new(&hparams, settings.kv_type)?;
    let expand = if settings.exact { Expand::F32 } else { Expand::No };
    let (weights, slots) = weights::bind(file, keep, &hparams, expand)?;
    let ropes = [LayerKind::Sliding, LayerKind::Csa].map(|kind| Rope { freq: hparams.frequencies(kind).into() });
    let weights = Rc::new(weights);
    let n_threads = settings.n_threads.max(1);
    Ok(Model { hparams, weights, slots, layout, ropes, n_threads, exact: settings.exact })
}

impl Native {
    /// Loads `file` with settings that a [`super::Plan`] completed.
    ///
    /// # Errors
    /// As [`super::load`].
    pub fn load(file: File, settings: &Settings, on_progress: Progress) -> Result<Native, Error> {
        let file = Rc::new(file);
        if !on_progress(0.0) {
            return Err(Error::Aborted);
        }
        let model = model(&file, Some(Rc::clone(&file)), settings)?;
        let policies = Policies::new(&file, &model.hparams, settings)?;
        let failed = |error: ggml::Error| Error::Load { path: file.path().to_owned(), reason: error.to_string() };
        let mut executor =
            Executor::new(settings.n_threads, MOST_GRAPHS, Arc::clone(&settings.abort)).map_err(failed)?;
        // The largest graph first: later ones fit into its memory.
        let largest = plan::largest(settings);
        executor.graph(largest, || model.build(largest)).map_err(failed)?;
        if !on_progress(1.0) {
            return Err(Error::Aborted);
        }
        let h = &model.hparams;
        let info = EngineInfo {
            engine: NAME,
            architecture: hparams::ARCHITECTURE.to_owned(),
            n_vocab: h.n_vocab,
            n_embd: h.n_embd,
            n_ctx: settings.n_ctx,
            n_ctx_train: h.n_ctx_train,
            n_seq_max: settings.n_seq_max,
            n_batch: settings.n_batch,
            n_outputs: settings.n_outputs,
            kv_type: settings.kv_type,
            memory: Memory {
                weights: file.tensor_bytes() + model.weights.owned_bytes() as u64,
                kv: model.layout.bytes(settings.n_ctx).saturating_mul(settings.n_seq_max as u64),
                compute: executor.bytes() as u64,
                device: 0,
            },
            support: Support { logits: true, embedding: false, hidden: true, checkpoint: true, fork: true, save: true },
        };
        Ok(Native {
            sequences: (0..settings.n_seq_max).map(|_| Sequence::empty(&model.layout, policies.default())).collect(),
            policies,
            executor,
            step: Step::default(),
            rules: Rules::new(settings.jump),
            abort: Arc::clone(&settings.abort),
            fingerprint: fingerprint(&file, &model),
            tokens: Vec::new(),
            rows: Vec::new(),
            running: Vec::new(),
            runs: Vec::new(),
            info,
            model,
        })
    }

    /// Bytes that the caches of all sequences take now, rows that two of them share counted twice. What is planned is their size when
    /// every sequence is full.
    pub fn cache_bytes(&self) -> u64 {
        self.sequences.iter().map(|sequence| sequence.cache.bytes() as u64).sum()
    }

    /// A sequence whose state may be used.
    fn sound(&self, seq: SeqId) -> Result<&Sequence, Error> {
        rules::sound(&self.sequences, seq)
    }

    /// Every rule of [`Batch`], before anything is computed.
    fn validate(&mut self, batch: &Batch) -> Result<(), Error> {
        self.rules.check(batch, &self.info, &self.sequences, |output| match output {
            Output::Embedding => Err(unsupported("give embeddings")),
            Output::Logits | Output::Hidden => Ok(()),
        })
    }

    /// Computes a validated batch. The values of the graph are those of this step until the next one.
    fn compute(&mut self, batch: &Batch, inspect: Option<&mut Inspect>) -> Result<GraphId, Error> {
        let tokens = &batch.tokens;
        self.tokens.clear();
        self.tokens.extend(tokens.iter().map(|token| token.token.0 as i32));
        self.rows.clear();
        let with_output = tokens.iter().zip(0..).filter(|(token, _)| token.output.is_some());
        self.rows.extend(with_output.map(|(_, index)| index));
        let shape = Shape {
            n_tokens: tokens.len(),
            n_outputs: self.rows.len(),
            logits: tokens.iter().any(|token| token.output == Some(Output::Logits)),
            show: match inspect {
                Some(Inspect::Values(_)) => Show::Values,
                Some(Inspect::Experts(_)) => Show::Experts,
                Some(Inspect::Times(_)) | None => Show::Nothing,
            },
        };
        let id = self.executor.graph(shape, || self.model.build(shape)).map_err(step_error)?;
        let ports = self.executor.slots(id);
        let (token_slot, row_slot) = (ports.tokens, ports.output_rows);
        self.executor.write_i32(id, token_slot, &self.tokens);
        if let Some(slot) = row_slot {
            self.executor.write_i32(id, slot, &self.rows);
        }

        for run in runs(tokens) {
            let sequence = &mut self.sequences[run[0].seq.0 as usize];
            let start = u64::from(run[0].pos.0);
            if sequence.next == 0 && start > 0 {
                sequence.cache.jump(start);
            }
            sequence.cache.reserve(start + run.len() as u64);
            // Until the step is done.
            sequence.broken = true;
            self.running.push(std::mem::take(&mut sequence.cache.layers));
        }
        let n_layer = self.model.hparams.layers.len();
        let bound = self.step.bind(
            n_layer,
            &self.rows,
            runs(tokens).zip(&mut self.running).map(|(run, layers)| Run {
                n_tokens: run.len(),
                pos: u64::from(run[0].pos.0),
                layers,
                routing: self.sequences[run[0].seq.0 as usize].routing.as_ref().map(|policy| &policy.layers[..]),
            }),
        );
        let ran = match inspect {
            Some(Inspect::Times(timed)) => self.executor.run_timed(id, &bound, *timed),
            _ => self.executor.run(id, &bound),
        };
        for (run, layers) in runs(tokens).zip(self.running.drain(..)) {
            self.sequences[run[0].seq.0 as usize].cache.layers = layers;
        }
        ran.map_err(step_error)?;
        for run in runs(tokens) {
            let sequence = &mut self.sequences[run[0].seq.0 as usize];
            sequence.next = run[run.len() - 1].pos.0 + 1;
            sequence.cache.advance(u64::from(sequence.next));
            sequence.broken = false;
        }
        self.count(tokens);
        Ok(id)
    }

    /// Adds what the step that has just run kept to the counts of its sequences.
    fn count(&mut self, tokens: &[BatchToken]) {
        if runs(tokens).all(|run| self.sequences[run[0].seq.0 as usize].routing.is_none()) {
            return;
        }
        self.runs.clear();
        self.runs.extend(runs(tokens).map(|run| (run[0].seq.0 as usize, run.len() == 1)));
        for layer in 0..self.model.hparams.layers.len() {
            for (run, kept) in self.step.kept(layer) {
                let (seq, alone) = self.runs[run];
                let sequence = &mut self.sequences[seq];
                if sequence.routing.is_some() {
                    let counts = sequence.counts.get_or_insert_with(|| self.policies.no_counts());
                    self.policies.count(counts, layer, kept, alone);
                }
            }
        }
    }

    fn step_inner(&mut self, batch: &Batch, out: &mut Outputs, mut inspect: Option<Inspect>) -> Result<(), Error> {
        out.clear();
        self.validate(batch)?;
        if batch.tokens.is_empty() {
            return Ok(());
        }
        if self.abort.swap(false, Ordering::Relaxed) {
            return Err(Error::Aborted);
        }
        let computed = self.compute(batch, inspect.as_mut());
        if matches!(computed, Err(Error::Aborted)) {
            self.abort.store(false, Ordering::Relaxed);
        }
        let id = computed?;
        let (h, ports) = (&self.model.hparams, self.executor.slots(id));
        let hidden = ports.hidden.map_or(&[][..], |slot| self.executor.read_f32(id, slot));
        let logits = ports.logits.map_or(&[][..], |slot| self.executor.read_f32(id, slot));
        let (wide, n_vocab) = (h.n_embd * hparams::N_HC, h.n_vocab);
        for (row, output) in batch.tokens.iter().filter_map(|token| token.output).enumerate() {
            let values = match output {
                Output::Logits => &logits[row * n_vocab..][..n_vocab],
                Output::Hidden | Output::Embedding => &hidden[row * wide..][..wide],
            };
            out.push_row(values.len()).copy_from_slice(values);
        }
        match inspect {
            Some(Inspect::Values(probe)) => self.read_values(id, batch, probe),
            Some(Inspect::Experts(traces)) => self.read_experts(id, batch.tokens.len(), traces),
            Some(Inspect::Times(_)) | None => {}
        }
        Ok(())
    }

    fn saved<'a>(&self, at: &'a Checkpoint) -> Result<&'a Saved, Error> {
        match at.state.downcast_ref::<Saved>() {
            None => Err(Error::State("it was made by another engine".to_owned())),
            Some(saved) if saved.fingerprint != self.fingerprint => {
                Err(Error::State("it was made by another model".to_owned()))
            }
            Some(saved) => Ok(saved),
        }
    }
}

impl Engine for Native {
    fn info(&self) -> &EngineInfo {
        &self.info
    }

    fn step(&mut self, batch: &Batch, out: &mut Outputs) -> Result<StepStats, Error> {
        let start = Instant::now();
        self.step_inner(batch, out, None)?;
        Ok(StepStats { tokens: batch.tokens.len(), seconds: start.elapsed().as_secs_f64() })
    }

    fn inspect(&mut self, batch: &Batch, out: &mut Outputs, what: Inspect) -> Result<(), Error> {
        self.step_inner(batch, out, Some(what))
    }

    fn find_routing(&mut self, routing: &Routing) -> Result<RoutingId, Error> {
        Ok(self.policies.find(routing)?.map_or(RoutingId::OFF, |policy| policy.id))
    }

    fn set_routing(&mut self, seq: SeqId, id: RoutingId) -> Result<(), Error> {
        let sequence = self.sound(seq)?;
        if sequence.next > 0 && sequence.routing_id() != id {
            return Err(Error::Batch(format!("sequence {} was computed under another routing policy", seq.0)));
        }
        let routing = self.policies.get(id)?;
        let sequence = &mut self.sequences[seq.0 as usize];
        (sequence.routing, sequence.counts) = (routing, None);
        Ok(())
    }

    fn routing_counts(&self, seq: SeqId) -> Option<Counts> {
        let sequence = self.sequences.get(seq.0 as usize)?;
        sequence.routing.as_ref()?;
        Some(sequence.counts.clone().unwrap_or_else(|| self.policies.no_counts()))
    }

    fn checkpoint(&mut self, seq: SeqId) -> Result<Checkpoint, Error> {
        self.sound(seq)?;
        let (sequence, layout) = (&mut self.sequences[seq.0 as usize], &self.model.layout);
        let snapshot = (sequence.next > 0).then(|| sequence.cache.snapshot());
        // Rows that an earlier checkpoint shares are not counted again.
        let new = layout.bytes(sequence.next as usize) - layout.bytes(sequence.counted as usize);
        let bytes = if snapshot.is_some() { layout.fixed_bytes() + new as usize } else { 0 };
        sequence.counted = sequence.next;
        let saved = Saved { snapshot, routing: sequence.routing.clone(), fingerprint: self.fingerprint };
        Ok(Checkpoint { pos: Pos(sequence.next), bytes, within: None, state: Arc::new(saved) })
    }

    fn rewind(&mut self, seq: SeqId, to: &Checkpoint) -> Result<(), Error> {
        rules::existing(&self.sequences, seq)?;
        let saved = self.saved(to)?;
        self.release(seq);
        if let Some(snapshot) = &saved.snapshot {
            let sequence = &mut self.sequences[seq.0 as usize];
            sequence.cache.restore(snapshot);
            (sequence.next, sequence.counted) = (to.pos.0, to.pos.0);
        }
        self.sequences[seq.0 as usize].routing.clone_from(&saved.routing);
        Ok(())
    }

    fn fork(&mut self, from: SeqId, to: SeqId, at: Option<&Checkpoint>) -> Result<(), Error> {
        let source = self.sound(from)?;
        rules::must_be_empty(&self.sequences, to)?;
        let Some(at) = at else {
            let (snapshot, next, routing) = (source.cache.snapshot(), source.next, source.routing.clone());
            let target = &mut self.sequences[to.0 as usize];
            target.cache.restore(&snapshot);
            (target.next, target.counted, target.routing, target.counts) = (next, next, routing, None);
            return Ok(());
        };
        self.rewind(to, at)
    }

    fn release(&mut self, seq: SeqId) {
        let Some(sequence) = self.sequences.get_mut(seq.0 as usize) else { return };
        let routing = self.policies.default();
        if sequence.next > 0 || sequence.broken {
            *sequence = Sequence::empty(&self.model.layout, routing);
        } else {
            (sequence.routing, sequence.counts) = (routing, None);
        }
    }

    fn save(&mut self, seq: SeqId, to: &mut dyn Write) -> Result<(), Error> {
        let sequence = self.sound(seq)?;
        kv::write(to, &self.fingerprint, sequence.routing_id(), sequence.next, &sequence.cache)
    }

    fn restore(&mut self, seq: SeqId, from: &mut dyn Read) -> Result<Pos, Error> {
        rules::must_be_empty(&self.sequences, seq)?;
        let id = self.sequences[seq.0 as usize].routing_id();
        let (next, cache) = kv::read(from, &self.fingerprint, id, self.info.n_ctx, &self.model.layout)?;
        let sequence = &mut self.sequences[seq.0 as usize];
        (sequence.next, sequence.cache, sequence.counted) = (next, cache, 0);
        Ok(Pos(next))
    }
}

fn unsupported(what: &str) -> Error {
    Error::Unsupported { engine: NAME, what: what.to_owned() }
}

fn step_error(error: ggml::Error) -> Error {
    match error {
        ggml::Error::Aborted => Error::Aborted,
        error => Error::Step(error.to_string()),
    }
}

/// The tensors of the file (names, shapes, types and the first bytes of each) and the kind of its cache. Not the context length: a
/// longer one takes a shorter one's state.
fn fingerprint(file: &File, model: &Model) -> [u8; 32] {
    let mut hash = Sha256::new();
    hash.update(format!("{} {} {}\n", model.layout.describe(), model.exact, env!("CARGO_PKG_VERSION")));
    for tensor in file.tensors() {
        hash.update(format!("{} {} {:?}\n", tensor.name, tensor.dtype.name(), tensor.ne));
        let data = file.data(tensor);
        hash.update(&data[..data.len().min(64)]);
    }
    hash.finalize().into()
}
