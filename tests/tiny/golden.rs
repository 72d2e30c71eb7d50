//! Logits of the trained model by transformers (`modelfiles/fathom-tiny/golden`), against ours in exact arithmetic.

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use fathom::engine::{self, Batch, BatchToken, Engine, FlashAttention, Kind, KvType, Output, Outputs, Settings};
use fathom::eval::divergence::{kl, top};
use fathom::ids::{Pos, SeqId, TokenId};
use fathom_converters::{Options, Silent, convert};
use safetensors::SafeTensors;

use super::{engines, folder};

/// Largest difference of a logit. llama.cpp was seen to be within 3e-4.
const EXACT: f32 = 1e-3;
/// A decision of the router or the indexer that is closer than this can fall otherwise in another order of additions. Rows behind one may
/// differ by more; they are then compared as distributions.
const CLOSE: f32 = 2e-5;
const KL_AFTER_CLOSE: f64 = 1e-3;
/// Tokens of one step.
const STEP: usize = 512;

/// One prompt of the golden files.
struct Golden {
    tokens: Vec<TokenId>,
    rows: Vec<usize>,
    logits: Vec<Vec<f32>>,
    /// For each token its closest decision of router or indexer, over all layers.
    margins: Vec<f32>,
}

fn golden(n_tokens: usize) -> Golden {
    let bytes = std::fs::read(folder().join("golden/golden.safetensors")).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let words = |key: &str| {
        let tensor = file.tensor(&format!("{n_tokens}.{key}")).unwrap();
        (tensor.data().as_chunks::<4>().0.to_vec(), tensor.shape().to_vec())
    };
    let ids = |key: &str| words(key).0.into_iter().map(u32::from_le_bytes).collect::<Vec<_>>();
    let floats = |key: &str| words(key).0.into_iter().map(f32::from_le_bytes).collect::<Vec<_>>();
    let n_vocab = words("logits").1[1];
    let margins = floats("router_margin").iter().zip(floats("index_margin")).map(|(a, b)| a.min(b)).collect();
    Golden {
        tokens: ids("tokens").into_iter().map(TokenId).collect(),
        rows: ids("rows").into_iter().map(|row| row as usize).collect(),
        logits: floats("logits").chunks(n_vocab).map(<[f32]>::to_vec).collect(),
        margins,
    }
}

/// The checkpoint, converted by us.
pub(super) fn model() -> &'static Path {
    static PATH: OnceLock<PathBuf> = OnceLock::new();
    PATH.get_or_init(|| {
        let out = Path::new(env!("CARGO_TARGET_TMPDIR")).join("fathom-tiny.gguf");
        let options = Options { force: true, ..Options::new(folder().join("checkpoint"), &out) };
        convert(&options, &mut Silent).unwrap();
        out
    })
}

/// The rows of the golden file, computed in one sequence.
fn rows(engine: &mut dyn Engine, golden: &Golden) -> Vec<Vec<f32>> {
    let mut rows = Vec::new();
    let mut out = Outputs::default();
    for (step, part) in golden.tokens.chunks(STEP).enumerate() {
        let tokens = (step * STEP..).zip(part).map(|(pos, &token)| BatchToken {
            token,
            seq: SeqId(0),
            pos: Pos(pos as u32),
            output: golden.rows.contains(&pos).then_some(Output::Logits),
        });
        engine.step(&Batch { tokens: tokens.collect() }, &mut out).unwrap();
        rows.extend((0..out.rows()).map(|row| out.row(row).to_vec()));
    }
    engine.release(SeqId(0));
    rows
}

#[test]
fn exact_arithmetic_gives_the_golden_logits() {
    for name in engines() {
        let kind: Kind = name.parse().unwrap();
        let settings = Settings {
            n_ctx: 4096,
            n_seq_max: 1,
            n_threads: 1,
            n_batch: STEP,
            n_outputs: STEP,
            kv_type: KvType::F32,
            flash_attention: FlashAttention::Off,
            ..Settings::default()
        };
        let scratch = Path::new(env!("CARGO_TARGET_TMPDIR"));
        let mut engine =
            engine::load_f32(&fathom_gguf::File::open(model()).unwrap(), scratch, kind, &settings, &mut |_| true)
                .unwrap();
        for n_tokens in [64, 600, 3000] {
            let golden = golden(n_tokens);
            assert_eq!(golden.tokens.len(), n_tokens);
            let got = rows(&mut *engine, &golden);
            assert_eq!(got.len(), golden.rows.len());
            let (mut worst, mut otherwise, mut worst_kl) = (0.0_f32, 0, 0.0_f64);
            for ((row, got), expected) in golden.rows.iter().zip(&got).zip(&golden.logits) {
                let difference = got.iter().zip(expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
                if difference <= EXACT {
                    worst = worst.max(difference);
                    continue;
                }
                let closest = golden.margins[..=*row].iter().copied().fold(f32::INFINITY, f32::min);
                let kl = kl(expected, got);
                (otherwise, worst_kl) = (otherwise + 1, worst_kl.max(kl));
                assert!(
                    closest < CLOSE && kl <= KL_AFTER_CLOSE && top(got) == top(expected),
                    "{name}: row {row} of {n_tokens}: difference {difference:e}, KL {kl:e}, closest decision {closest:e}"
                );
            }
            println!(
                "{name}, {n_tokens} tokens: {} rows within {worst:.1e}; {otherwise} behind a close decision that fell otherwise, KL up to {worst_kl:.1e}",
                golden.rows.len() - otherwise
            );
        }
    }
}
