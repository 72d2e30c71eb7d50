//! The engines on tiny models: what they compute, what they refuse, and that nothing a caller or a file does ends the
//! process. In F32, where only the order of additions may differ.

mod behaviour;
mod bench;
mod eval;
mod golden;
mod hostile;
#[cfg(feature = "native")]
mod native;
mod plain;
mod planning;
mod seeds;

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use fathom::engine::{self, Batch, BatchToken, Engine, FlashAttention, Kind, KvType, Output, Outputs, Settings};
use fathom::ids::{Pos, SeqId, TokenId};
use fathom_converters::{Options, Silent, convert};

/// The order of additions in F32 dot products changes with the shape of a batch: 8e-6 was seen. A wrong row shows up at 0.1
/// and more.
const TOLERANCE: f32 = 1e-4;

/// Where files of this test run go; cargo keeps it between runs and clears it with the target directory.
fn scratch(name: &str) -> PathBuf {
    let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join("engine");
    std::fs::create_dir_all(&dir).unwrap();
    dir.join(name)
}

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data").join(name)
}

/// `tests/data/tiny-v4-a`, converted by us.
fn tiny_a() -> &'static Path {
    static PATH: OnceLock<PathBuf> = OnceLock::new();
    PATH.get_or_init(|| converted("tiny-v4-a"))
}

/// `tests/data/tiny-v4-b`, converted by us.
fn tiny_b() -> &'static Path {
    static PATH: OnceLock<PathBuf> = OnceLock::new();
    PATH.get_or_init(|| converted("tiny-v4-b"))
}

fn converted(name: &str) -> PathBuf {
    let out = scratch(&format!("{name}.gguf"));
    let options = Options { force: true, ..Options::new(fixture(name), &out) };
    convert(&options, &mut Silent).unwrap();
    out
}

/// A copy of [`tiny_a`] whose weights are all F32.
fn tiny_a_f32() -> &'static Path {
    static COPY: OnceLock<engine::llama::F32Copy> = OnceLock::new();
    let make = || {
        let source = fathom_gguf::File::open(tiny_a()).unwrap();
        engine::llama::F32Copy::make(&source, &scratch(""), &mut |_| true).unwrap()
    };
    COPY.get_or_init(make).path()
}

/// Settings under which nothing is rounded below F32. One thread: ggml's threads spin while they wait, and tests run beside
/// each other.
fn exact() -> Settings {
    Settings {
        n_ctx: 1024,
        n_seq_max: 3,
        n_threads: 1,
        n_outputs: 512,
        kv_type: KvType::F32,
        flash_attention: FlashAttention::Off,
        repack: false,
        ..Settings::default()
    }
}

fn load(path: &Path, settings: &Settings) -> Box<dyn Engine> {
    load_kind(path, Kind::Llama, settings)
}

fn load_kind(path: &Path, kind: Kind, settings: &Settings) -> Box<dyn Engine> {
    engine::load(path, kind, settings, &mut |_| true).unwrap()
}

/// Tokens without a pattern that a router could hide behind.
fn text(len: usize, n_vocab: usize) -> Vec<TokenId> {
    let mut state = 12345_u64;
    (0..len)
        .map(|_| {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            TokenId(((state >> 33) % n_vocab as u64) as u32)
        })
        .collect()
}

fn tokens(seq: u32, start: usize, text: &[TokenId]) -> Vec<BatchToken> {
    (start..)
        .zip(text)
        .map(|(pos, &token)| BatchToken { token, seq: SeqId(seq), pos: Pos(pos as u32), output: Some(Output::Logits) })
        .collect()
}

/// Logits of every token of `text`, computed from position `start` of `seq` in steps of `chunk` tokens.
fn logits(engine: &mut dyn Engine, seq: u32, start: usize, text: &[TokenId], chunk: usize) -> Vec<Vec<f32>> {
    let mut rows = Vec::new();
    let mut out = Outputs::default();
    for (index, part) in text.chunks(chunk).enumerate() {
        let batch = Batch { tokens: tokens(seq, start + index * chunk, part) };
        engine.step(&batch, &mut out).unwrap();
        assert_eq!(out.rows(), part.len());
        rows.extend((0..out.rows()).map(|row| out.row(row).to_vec()));
    }
    rows
}

#[track_caller]
fn assert_close(what: &str, got: &[Vec<f32>], expected: &[Vec<f32>], tolerance: f32) {
    assert_eq!(got.len(), expected.len(), "{what}: rows");
    let mut worst = (0.0, 0, 0);
    for (row, (got, expected)) in got.iter().zip(expected).enumerate() {
        assert_eq!(got.len(), expected.len(), "{what}: columns");
        for (column, (got, expected)) in got.iter().zip(expected).enumerate() {
            assert!(got.is_finite(), "{what}: row {row} column {column} is {got}");
            let difference = (got - expected).abs();
            if difference > worst.0 {
                worst = (difference, row, column);
            }
        }
    }
    println!("{what}: largest difference {:.1e} at row {}, column {}", worst.0, worst.1, worst.2);
    assert!(worst.0 <= tolerance, "{what}: {:.1e} at row {}, column {}", worst.0, worst.1, worst.2);
}

/// Index of the largest value, the first of equals.
fn top(row: &[f32]) -> usize {
    (0..row.len()).reduce(|best, i| if row[i] > row[best] { i } else { best }).unwrap()
}
