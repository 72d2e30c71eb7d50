//! One measurement: load, reach the depth, time a prefill, time a decode.

use std::path::PathBuf;
use std::time::Instant;

use anyhow::ensure;
use serde::{Deserialize, Serialize};

use super::Fill;
use crate::cli::settings;
use crate::config::Config;
use crate::engine::{self, Batch, BatchToken, Engine, Inspect, Output, Outputs, Settings};
use crate::ids::{Pos, SeqId, TokenId};

/// Tokens that a jump computes before the depth: more than any window, so that windows are full.
const JUMP_TOKENS: usize = 512;

/// What to measure.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Job {
    /// One file, or all shards.
    pub(super) weights: Vec<PathBuf>,
    /// Routing profiles that do not lie beside it.
    pub(super) profiles: Option<PathBuf>,
    pub(super) engine: String,
    /// As [`engine::Routing`] is written.
    pub(super) routing: String,
    pub(super) context: usize,
    pub(super) prompt: usize,
    pub(super) generate: usize,
    pub(super) threads: usize,
    pub(super) parallel: usize,
    pub(super) fill: Fill,
    /// Element type of cached rows.
    pub(super) kv: String,
    pub(super) repack: bool,
    /// Time every node of one more prefill chunk and one more decode step.
    pub(super) nodes: bool,
    /// Decides the tokens.
    pub(super) seed: u64,
}

/// What came out.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Measured {
    pub(super) load_s: f64,
    /// Seconds of the timed prefill, for `tokens` of all sequences.
    pub(super) prefill_s: f64,
    pub(super) prefill_tokens: usize,
    /// Milliseconds of every decode step, each a token of every sequence.
    pub(super) decode_ms: Vec<f64>,
    pub(super) peak_rss_bytes: Option<u64>,
    pub(super) repack: bool,
    pub(super) threads: usize,
    /// Experts of a token, over all layers and everything that was computed; `None` = all.
    pub(super) mean_experts: Option<f64>,
    /// Empty unless they were asked for.
    pub(super) nodes: Vec<NodeTime>,
}

/// Time of all nodes of a kind in one step.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct NodeTime {
    pub(super) kind: String,
    pub(super) prefill_ms: f64,
    pub(super) decode_ms: f64,
}

pub(super) fn run(job: &Job, config: &Config) -> anyhow::Result<Measured> {
    let base = settings::engine(config)?.1;
    let beyond = if job.nodes { job.prompt + 1 } else { 0 };
    let n_ctx = job.context + job.prompt + job.generate + beyond;
    let settings = Settings {
        n_ctx,
        n_seq_max: job.parallel,
        n_outputs: job.parallel,
        n_threads: job.threads,
        kv_type: job.kv.parse()?,
        repack: job.repack,
        jump: job.fill == Fill::Jump,
        routing: job.routing.parse()?,
        profiles: job.profiles.clone(),
        ..base
    };
    let kind = job.engine.parse()?;
    let file = fathom_gguf::File::open_shards(&job.weights)?;
    let plan = engine::plan(&file, kind, &settings, engine::machine::available_bytes())?;
    let start = Instant::now();
    let mut engine = engine::load_file(&file, kind, &plan.apply(&settings), &mut |_| true)?;
    let load_s = start.elapsed().as_secs_f64();
    let trained = engine.info().n_ctx_train;
    ensure!(n_ctx <= engine.info().n_ctx, "depth, prefill and decode are {n_ctx} tokens, the model has {trained}");

    let mut bench =
        Bench { random: Random(job.seed), step: Batch::default(), out: Outputs::default(), engine: &mut *engine };
    bench.fill(job)?;
    let start = Instant::now();
    for seq in 0..job.parallel {
        bench.prefill(seq, job.context, job.prompt)?;
    }
    let prefill_s = start.elapsed().as_secs_f64();
    let mut decode_ms = Vec::with_capacity(job.generate);
    for index in 0..job.generate {
        let start = Instant::now();
        bench.decode(job.parallel, job.context + job.prompt + index)?;
        decode_ms.push(start.elapsed().as_secs_f64() * 1e3);
    }
    let end = job.context + job.prompt + job.generate;
    let nodes = if job.nodes { bench.nodes(end, job.prompt)? } else { Vec::new() };
    let mean_experts = engine.routing_counts(SeqId(0)).and_then(|counts| counts.mean());
    Ok(Measured {
        nodes,
        mean_experts,
        load_s,
        prefill_s,
        prefill_tokens: job.prompt * job.parallel,
        decode_ms,
        peak_rss_bytes: engine::machine::peak_resident_bytes(),
        repack: plan.repack,
        threads: plan.n_threads,
    })
}

struct Bench<'a> {
    engine: &'a mut dyn Engine,
    random: Random,
    step: Batch,
    out: Outputs,
}

impl Bench<'_> {
    /// Brings every sequence to the depth. The first is computed; the others are copies of it where the engine can copy.
    fn fill(&mut self, job: &Job) -> anyhow::Result<()> {
        let start = match job.fill {
            Fill::Real => 0,
            // Where no compressed row is open, as in the cache that this stands for.
            Fill::Jump => job.context.saturating_sub(JUMP_TOKENS) / 128 * 128,
        };
        for seq in 0..job.parallel {
            if seq > 0 && self.engine.info().support.fork && job.context > 0 {
                self.engine.fork(SeqId(0), SeqId(seq as u32), None)?;
            } else {
                self.prefill(seq, start, job.context - start)?;
            }
        }
        Ok(())
    }

    /// `len` tokens of one sequence, asking for the last one's logits as a prompt does.
    fn prefill(&mut self, seq: usize, start: usize, len: usize) -> anyhow::Result<()> {
        let (n_batch, end) = (self.engine.info().n_batch, start + len);
        let mut pos = start;
        while pos < end {
            let stop = end.min(pos + n_batch);
            self.step.tokens.clear();
            for pos in pos..stop {
                let output = (pos + 1 == end).then_some(Output::Logits);
                self.push(seq, pos, output);
            }
            self.engine.step(&self.step, &mut self.out)?;
            pos = stop;
        }
        Ok(())
    }

    /// One token of each sequence.
    fn decode(&mut self, parallel: usize, pos: usize) -> anyhow::Result<()> {
        self.step.tokens.clear();
        for seq in 0..parallel {
            self.push(seq, pos, Some(Output::Logits));
        }
        self.engine.step(&self.step, &mut self.out)?;
        Ok(())
    }

    /// Times of every kind of node in a prefill chunk and in a decode step of the first sequence, the largest first.
    fn nodes(&mut self, pos: usize, prompt: usize) -> anyhow::Result<Vec<NodeTime>> {
        let chunk = prompt.min(self.engine.info().n_batch);
        let mut times: Vec<NodeTime> = Vec::new();
        for (start, len) in [(pos, chunk), (pos + chunk, 1)] {
            self.step.tokens.clear();
            for pos in start..start + len {
                self.push(0, pos, (pos + 1 == start + len).then_some(Output::Logits));
            }
            let mut add = |kind: &str, time: std::time::Duration| {
                let at = times.iter().position(|node| node.kind == kind).unwrap_or_else(|| {
                    times.push(NodeTime { kind: kind.to_owned(), prefill_ms: 0.0, decode_ms: 0.0 });
                    times.len() - 1
                });
                let ms = time.as_secs_f64() * 1e3;
                if len > 1 { times[at].prefill_ms += ms } else { times[at].decode_ms += ms }
            };
            self.engine.inspect(&self.step, &mut self.out, Inspect::Times(&mut add))?;
        }
        times.sort_by(|a, b| b.decode_ms.total_cmp(&a.decode_ms));
        Ok(times)
    }

    fn push(&mut self, seq: usize, pos: usize, output: Option<Output>) {
        let token = TokenId((self.random.next() % self.engine.info().n_vocab as u64) as u32);
        self.step.tokens.push(BatchToken { token, seq: SeqId(seq as u32), pos: Pos(pos as u32), output });
    }
}

/// SplitMix64: any seed gives a good sequence.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}
