//! What calibration is made from, on the whole engine; the searching is tested with its modules, a whole calibration in `tests/tiny`.

use std::path::Path;
use std::sync::Arc;

use fathom::engine::native::Native;
use fathom::engine::routing::{LayerRule, Policy, Profile, Shape};
use fathom::engine::{Batch, Engine, ExpertTrace, Inspect, Outputs, Probe, Routing, Value};
use fathom::ids::{SeqId, TokenId};
use fathom_gguf::File;

use super::super::{text, tiny_a, tiny_b, tokens};
use super::{exact, native_exact};

fn follow(engine: &mut Native, routing: &Routing) {
    engine.release(SeqId(0));
    let id = engine.find_routing(routing).unwrap();
    engine.set_routing(SeqId(0), id).unwrap();
}

fn traces(engine: &mut Native, routing: &Routing, text: &[TokenId]) -> (Vec<ExpertTrace>, Vec<Vec<f32>>) {
    follow(engine, routing);
    let (mut traces, mut out) = (Vec::new(), Outputs::default());
    engine.inspect(&Batch { tokens: tokens(0, 0, text) }, &mut out, Inspect::Experts(&mut traces)).unwrap();
    (traces, (0..out.rows()).map(|row| out.row(row).to_vec()).collect())
}

fn values(engine: &mut Native, routing: &Routing, text: &[TokenId]) -> Probe {
    follow(engine, routing);
    let mut probe = Probe::default();
    let batch = Batch { tokens: tokens(0, 0, text) };
    engine.inspect(&batch, &mut Outputs::default(), Inspect::Values(&mut probe)).unwrap();
    probe
}

fn probed<'a>(probe: &'a Probe, layer: usize, what: &str) -> &'a Value {
    let name = format!("layer_{layer}.{what}");
    &probe.values.iter().find(|probed| probed.name == name).unwrap_or_else(|| panic!("no {name}")).value
}

fn floats(value: &Value) -> &[f32] {
    match value {
        Value::F32(values) => values,
        Value::I32(_) => panic!("not floats"),
    }
}

fn shape(path: &Path) -> (Shape, usize) {
    let file = File::open(path).unwrap();
    let number = |key: &str| file.metadata().u32(&format!("deepseek4.{key}")).unwrap() as usize;
    let shape =
        Shape { n_layer: number("block_count"), n_expert: number("expert_count"), n_used: number("expert_used_count") };
    (shape, number("hash_layer_count"))
}

#[test]
fn a_trace_has_the_experts_of_every_layer_that_chooses_by_score() {
    for path in [tiny_a(), tiny_b()] {
        let (shape, n_hash) = shape(path);
        let mut engine = native_exact(path, &exact());
        let text = text(70, engine.info().n_vocab);
        let (traces, rows) = traces(&mut engine, &Routing::Off, &text);
        let probe = values(&mut engine, &Routing::Off, &text);
        assert_eq!(
            traces.iter().map(|trace| trace.layer).collect::<Vec<_>>(),
            (n_hash..shape.n_layer).collect::<Vec<_>>()
        );
        for trace in &traces {
            assert_eq!(Value::I32(trace.ids.clone()), *probed(&probe, trace.layer, "experts"));
            assert_eq!(Value::F32(trace.weights.clone()), *probed(&probe, trace.layer, "expert_weights"));
            assert_eq!(trace.gram.len(), text.len() * shape.n_used * shape.n_used);
            // Chosen in the order of their scores: none is below the best of the others, nor below the next.
            for margins in trace.margins.chunks(shape.n_used) {
                assert!(margins.is_sorted_by(|a, b| a >= b) && margins[shape.n_used - 1] >= 0.0, "{margins:?}");
            }
        }
        // Looking changes nothing.
        follow(&mut engine, &Routing::Off);
        let mut out = Outputs::default();
        engine.step(&Batch { tokens: tokens(0, 0, &text) }, &mut out).unwrap();
        for (index, row) in rows.iter().enumerate() {
            let off = row.iter().zip(out.row(index)).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            assert!(off < 1e-4, "row {index}: {off}");
        }
    }
}

/// Leaving experts out of one layer changes its output by theirs, whose products were traced.
#[test]
fn products_are_those_of_what_is_lost_when_experts_are_left_out() {
    let (shape, n_hash) = shape(tiny_a());
    let mut engine = native_exact(tiny_a(), &exact());
    let text = text(50, engine.info().n_vocab);
    let n_used = shape.n_used;
    let whole = values(&mut engine, &Routing::Off, &text);
    let (traces, _) = traces(&mut engine, &Routing::Off, &text);
    for trace in &traces {
        let full = floats(probed(&whole, trace.layer, "ffn_out"));
        let n_embd = full.len() / text.len();
        for k in 1..n_used {
            let all =
                LayerRule { k_min: n_used as u32, k_max: n_used as u32, theta: 0.0, beta: 0.0, rho: 0.0, alpha: 1.0 };
            let mut layers = vec![all; shape.n_layer];
            (layers[trace.layer].k_min, layers[trace.layer].k_max) = (k as u32, k as u32);
            let profile = Profile { policy: Policy::TopK, layers, ..Profile::top_k(1, shape) };
            let cut = values(&mut engine, &Routing::Given(Arc::new(profile)), &text);
            let part = floats(probed(&cut, trace.layer, "ffn_out"));
            let Value::I32(ids) = probed(&cut, trace.layer, "experts") else { panic!("ids are integers") };
            for token in 0..text.len() {
                let row = token * n_embd..(token + 1) * n_embd;
                let lost: f64 =
                    full[row.clone()].iter().zip(&part[row.clone()]).map(|(a, b)| f64::from(a - b).powi(2)).sum();
                let dropped: Vec<usize> = (0..n_used).filter(|slot| ids[token * n_used + slot] < 0).collect();
                assert_eq!(dropped.len(), n_used - k);
                let gram = &trace.gram[token * n_used * n_used..][..n_used * n_used];
                let expected: f64 =
                    dropped.iter().flat_map(|i| dropped.iter().map(move |j| f64::from(gram[i * n_used + j]))).sum();
                // The difference of two sums of f32, against products of f32.
                let scale: f64 = full[row].iter().map(|x| f64::from(*x).powi(2)).sum();
                assert!(
                    (lost - expected).abs() < 1e-4 * expected + 1e-8 * scale,
                    "layer {}: {lost} {expected}",
                    trace.layer
                );
            }
        }
    }
    assert!(n_hash < shape.n_layer);
}

#[test]
fn under_a_policy_a_trace_has_holes() {
    let (shape, _) = shape(tiny_a());
    let mut engine = native_exact(tiny_a(), &exact());
    let text = text(20, engine.info().n_vocab);
    let (traces, _) = traces(&mut engine, &Routing::TopK(1), &text);
    for trace in &traces {
        for (token, ids) in trace.ids.chunks(shape.n_used).enumerate() {
            assert_eq!(ids.iter().filter(|id| **id >= 0).count(), 1);
            let gram = &trace.gram[token * shape.n_used * shape.n_used..][..shape.n_used * shape.n_used];
            assert_eq!(gram.iter().filter(|product| **product != 0.0).count(), 1, "{gram:?}");
        }
    }
}
