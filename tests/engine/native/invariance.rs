//! One sequence, many ways to compute it: the same numbers to the last bit where the same shapes are computed, and within rounding
//! where ggml's products have other shapes.

use fathom::engine::{Batch, Engine, Kind, KvType, Output, Outputs, Settings};
use fathom::ids::{Pos, SeqId};
use fathom_converters::{Dense, Options, Silent, convert};
use fathom_gguf::File;

use super::super::golden::{golden, kl, models};
use super::super::{TOLERANCE, assert_close, fixture, load_kind, logits, scratch, text, tiny_a, tokens, top};
use super::{exact, load_exact, native_exact};

#[track_caller]
fn assert_identical(what: &str, got: &[Vec<f32>], expected: &[Vec<f32>]) {
    assert_eq!(got.len(), expected.len(), "{what}: rows");
    for (row, (got, expected)) in got.iter().zip(expected).enumerate() {
        let differs = got.iter().zip(expected).position(|(a, b)| a.to_bits() != b.to_bits());
        assert_eq!(differs, None, "{what}: row {row} differs at a column");
    }
}

#[test]
fn long_texts_are_the_same_in_every_chunk_size() {
    let settings = Settings { n_ctx: 4096, n_batch: 4096, n_outputs: 4096, ..exact() };
    let mut engine = load_exact(tiny_a(), &settings);
    let text = text(1100, engine.info().n_vocab);
    let whole = logits(&mut *engine, 0, 0, &text, 4096);
    for chunk in [1, 7, 128, 512] {
        engine.release(SeqId(0));
        let parts = logits(&mut *engine, 0, 0, &text, chunk);
        assert_close(&format!("chunk {chunk}"), &parts, &whole, TOLERANCE);
    }
}

#[test]
fn every_residue_is_a_place_to_fork_save_and_go_back() {
    let mut engine = load_exact(tiny_a(), &exact());
    let text = text(400, engine.info().n_vocab);
    let whole = logits(&mut *engine, 0, 0, &text, 512);
    engine.release(SeqId(0));
    let (step, mut worst) = (5, 0.0_f32);
    for at in 130..130 + 128 {
        let next = &text[at..at + step];
        engine.release(SeqId(0));
        logits(&mut *engine, 0, 0, &text[..at], 37);
        let here = engine.checkpoint(SeqId(0)).unwrap();
        let mut saved = Vec::new();
        engine.save(SeqId(0), &mut saved).unwrap();
        engine.fork(SeqId(0), SeqId(1), None).unwrap();

        let fresh = logits(&mut *engine, 0, at, next, step);
        worst = worst.max(largest_difference(&fresh, &whole[at..at + step]));
        assert_identical(&format!("fork at {at}"), &logits(&mut *engine, 1, at, next, step), &fresh);
        engine.rewind(SeqId(0), &here).unwrap();
        assert_identical(&format!("rewound to {at}"), &logits(&mut *engine, 0, at, next, step), &fresh);
        engine.release(SeqId(1));
        assert_eq!(engine.restore(SeqId(1), &mut saved.as_slice()).unwrap(), Pos(at as u32));
        assert_identical(&format!("restored at {at}"), &logits(&mut *engine, 1, at, next, step), &fresh);
        engine.release(SeqId(1));
    }
    println!("continued at 128 places: largest difference {worst:.1e}");
    assert!(worst <= TOLERANCE);
}

fn largest_difference(got: &[Vec<f32>], expected: &[Vec<f32>]) -> f32 {
    let values = got.iter().flatten().zip(expected.iter().flatten());
    values.map(|(got, expected)| (got - expected).abs()).fold(0.0, f32::max)
}

#[test]
fn sequences_that_share_rows_go_their_own_ways() {
    let settings = Settings { n_ctx: 4096, n_batch: 512, n_outputs: 512, ..exact() };
    let mut engine = load_exact(tiny_a(), &settings);
    let text = text(2600, engine.info().n_vocab);
    let (prompt, a, b) = (&text[..1500], &text[1500..2300], &text[2300..2600]);
    let quietly = |engine: &mut dyn Engine, seq: u32, start: usize, text: &[_]| {
        logits(engine, seq, start, text, 512).pop().unwrap()
    };
    quietly(&mut *engine, 0, 0, prompt);
    quietly(&mut *engine, 0, 1500, a);
    let alone_a = logits(&mut *engine, 0, 2300, b, 100);
    engine.release(SeqId(0));
    quietly(&mut *engine, 0, 0, prompt);
    let alone_b = logits(&mut *engine, 0, 1500, b, 100);

    engine.release(SeqId(0));
    quietly(&mut *engine, 0, 0, prompt);
    engine.fork(SeqId(0), SeqId(1), None).unwrap();
    quietly(&mut *engine, 1, 1500, a);
    assert_identical("the first", &logits(&mut *engine, 0, 1500, b, 100), &alone_b);
    assert_identical("the fork", &logits(&mut *engine, 1, 2300, b, 100), &alone_a);
}

#[test]
fn the_indexer_changes_nothing_while_all_rows_are_chosen() {
    // The same file with an indexer that keeps everything.
    let source = File::open(tiny_a()).unwrap();
    let mut metadata = source.metadata().clone();
    let top_k = metadata.u32("deepseek4.attention.indexer.top_k").unwrap() as usize;
    metadata.insert("deepseek4.attention.indexer.top_k", 1024_u32);
    let tensors: Vec<_> = source.tensors().iter().map(|tensor| (tensor.clone(), source.data(tensor))).collect();
    let path = scratch("dense.gguf");
    fathom_gguf::write_file(&path, metadata, &tensors).unwrap();

    let mut sparse = load_exact(tiny_a(), &exact());
    let mut dense = load_exact(&path, &exact());
    let text = text(4 * (top_k + 40), sparse.info().n_vocab);
    let (sparse, dense) = (logits(&mut *sparse, 0, 0, &text, 16), logits(&mut *dense, 0, 0, &text, 16));
    // Token p sees (p + 1) / 4 rows: top_k of them for the last time at 4 * (top_k + 1) - 2.
    let last = 4 * (top_k + 1) - 2;
    assert_identical("up to top_k rows", &sparse[..=last], &dense[..=last]);
    let later = sparse[last + 1..].iter().zip(&dense[last + 1..]);
    assert!(later.into_iter().any(|(a, b)| a != b), "nothing was left out");
}

#[test]
fn hidden_streams_come_beside_logits() {
    let mut engine = load_exact(tiny_a(), &exact());
    let text = text(40, engine.info().n_vocab);
    let expected = logits(&mut *engine, 0, 0, &text, 40);
    let mut batch = Batch { tokens: tokens(1, 0, &text) };
    for (index, token) in batch.tokens.iter_mut().enumerate() {
        token.output = [None, Some(Output::Hidden), Some(Output::Logits)][index % 3];
    }
    let mut out = Outputs::default();
    engine.step(&batch, &mut out).unwrap();
    let info = engine.info();
    let outputs: Vec<usize> = (0..40).filter(|index| index % 3 != 0).collect();
    assert_eq!(out.rows(), outputs.len());
    for (row, &index) in outputs.iter().enumerate() {
        if index % 3 == 1 {
            assert_eq!(out.row(row).len(), 4 * info.n_embd);
            assert!(out.row(row).iter().all(|value| value.is_finite()));
        } else {
            assert!(largest_difference(&[out.row(row).to_vec()], &expected[index..=index]) <= TOLERANCE, "row {row}");
        }
    }
}

#[test]
fn threads_change_nothing() {
    let text = text(300, 448);
    let rows = |n_threads| {
        let mut engine = load_exact(tiny_a(), &Settings { n_threads, ..exact() });
        logits(&mut *engine, 0, 0, &text, 64)
    };
    assert_close("two threads", &rows(2), &rows(1), TOLERANCE);
}

/// What rounding costs on random weights: a flipped choice of an expert is a large part of it. Printed, and bounded far above what was
/// seen, where a wrong row format would be.
#[test]
fn default_arithmetic_and_every_row_type_stay_close_to_the_golden_distribution() {
    for (name, path) in models() {
        for kv_type in [KvType::F32, KvType::F16, KvType::Fp8] {
            let (mut sum, mut n, mut same) = (0.0, 0, 0);
            for prompt in [48, 300] {
                let golden = golden(name, prompt);
                let settings =
                    Settings { n_ctx: 512, n_seq_max: 1, n_threads: 1, n_outputs: 512, kv_type, ..Settings::default() };
                let mut engine = load_kind(path, Kind::Native, &settings);
                let got = logits(&mut *engine, 0, 0, &golden.tokens, 512);
                for (&row, expected) in golden.rows.iter().zip(&golden.logits) {
                    sum += kl(expected, &got[row]);
                    same += usize::from(top(expected) == top(&got[row]));
                    n += 1;
                }
            }
            let mean = sum / n as f64;
            println!("{name}, {kv_type} rows: mean KL {mean:.4}, top token equal in {same} of {n} rows");
            assert!(mean <= if kv_type == KvType::Fp8 { 0.2 } else { 0.05 }, "{name} {kv_type}: mean KL {mean}");
        }
    }
}

/// Q8_0 matrices have a product of our own: against the same file in exact arithmetic, and in steps of which only the last wants logits.
#[test]
fn q8_0_products_stay_close_to_exact_ones_in_every_chunk_size() {
    let path = scratch("tiny-v4-a-q8_0.gguf");
    let options = Options { force: true, dense: Some(Dense::Q8_0), ..Options::new(fixture("tiny-v4-a"), &path) };
    convert(&options, &mut Silent).unwrap();
    let settings = Settings { kv_type: KvType::F32, ..exact() };
    let mut expected = load_exact(&path, &settings);
    let text = text(300, expected.info().n_vocab);
    let expected = logits(&mut *expected, 0, 0, &text, 512);
    let mut engine = load_kind(&path, Kind::Native, &settings);
    for chunk in [1, 7, 128, 512] {
        engine.release(SeqId(0));
        let got = logits(&mut *engine, 0, 0, &text, chunk);
        let mean = expected.iter().zip(&got).map(|(expected, got)| kl(expected, got)).sum::<f64>() / got.len() as f64;
        println!("chunk {chunk}: mean KL {mean:.4}");
        assert!(mean <= 0.05, "chunk {chunk}: mean KL {mean}");

        engine.release(SeqId(0));
        let (before, last) = text.split_at(text.len() - 5);
        let mut out = Outputs::default();
        for (index, part) in before.chunks(chunk).enumerate() {
            let mut tokens = tokens(0, index * chunk, part);
            tokens.iter_mut().for_each(|token| token.output = None);
            engine.step(&Batch { tokens }, &mut out).unwrap();
        }
        let silent = logits(&mut *engine, 0, before.len(), last, 512);
        engine.release(SeqId(0));
        logits(&mut *engine, 0, 0, before, chunk);
        assert_identical(&format!("chunk {chunk}"), &silent, &logits(&mut *engine, 0, before.len(), last, 512));
    }
}

#[test]
fn what_is_planned_is_what_is_taken() {
    for kv_type in [KvType::F16, KvType::Fp8] {
        let settings = Settings { n_ctx: 4096, n_seq_max: 2, n_threads: 1, kv_type, ..Settings::default() };
        let file = File::open(tiny_a()).unwrap();
        let plan = fathom::engine::plan(&file, Kind::Native, &settings, 8 << 30).unwrap();
        let mut engine = fathom::engine::native::Native::load(file, &plan.apply(&settings), &mut |_| true).unwrap();
        let near = |what: &str, planned: u64, real: u64| {
            println!("{kv_type}: {what} {planned} planned, {real} taken");
            assert!(planned.abs_diff(real) as f64 <= 0.03 * real as f64, "{what}: {planned} planned, {real} taken");
        };
        near("compute", plan.memory.compute, engine.info().memory.compute);
        let text = text(4096, engine.info().n_vocab);
        for seq in 0..2 {
            for (index, part) in text.chunks(512).enumerate() {
                let mut batch = Batch { tokens: tokens(seq, index * 512, part) };
                batch.tokens.iter_mut().for_each(|token| token.output = None);
                engine.step(&batch, &mut Outputs::default()).unwrap();
            }
        }
        near("cache", plan.memory.kv, engine.cache_bytes());
        near("compute afterwards", plan.memory.compute, engine.info().memory.compute);
    }
}

#[test]
fn exact_mode_needs_the_memory_it_says() {
    let engine = native_exact(tiny_a(), &exact());
    let file = File::open(tiny_a()).unwrap();
    let settings = Settings { exact: true, kv_type: KvType::F32, ..exact() };
    let plan = fathom::engine::plan(&file, Kind::Native, &settings, 8 << 30).unwrap();
    let (planned, real) = (plan.memory.weights, engine.info().memory.weights);
    assert!(planned.abs_diff(real) * 100 <= real * 3, "{planned} planned, {real} taken");
    let error = fathom::engine::plan(&file, Kind::Native, &settings, 1 << 20).unwrap_err();
    assert!(matches!(error, fathom::engine::Error::Memory { .. }), "{error}");
}
