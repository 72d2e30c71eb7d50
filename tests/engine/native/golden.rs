//! Numbers of an independent implementation, and the first value inside a layer that differs from them.

use fathom::engine::{Batch, Engine, Inspect, Outputs, Probe, Settings, Value};
use safetensors::SafeTensors;

use super::super::golden::{Golden, golden, models, run};
use super::super::{assert_close, fixture, scratch, tiny_a, tokens, top};
use super::{exact, load_exact, native_exact};

/// Of logits, and of values inside layers, which are of the same magnitude.
const EXACT: f32 = 1e-3;
/// Rows at or after a router or index margin below this may choose differently.
const NARROW: f64 = 2e-5;

/// The narrowest margin of any layer: where it is narrow, choices may differ for no reason but rounding.
fn narrowest(name: &str, prompt: usize) -> f64 {
    let json = std::fs::read(fixture(name).join("golden.json")).unwrap();
    let json: serde_json::Value = serde_json::from_slice(&json).unwrap();
    let margins = json["prompts"][prompt.to_string()]["margins"].as_object().unwrap();
    margins.values().filter_map(serde_json::Value::as_f64).fold(f64::INFINITY, f64::min)
}

#[test]
fn exact_arithmetic_gives_the_golden_logits_and_continuation() {
    for (name, path) in models() {
        for prompt in [48, 300] {
            let golden: Golden = golden(name, prompt);
            let mut engine = load_exact(path, &Settings { n_seq_max: 1, ..exact() });
            let (got, greedy, greedy_logits) = run(&mut *engine, &golden, 512);
            let what = format!("{name}, prompt of {prompt}");
            // None of the fixtures has a margin so narrow that rows would be excused.
            assert!(narrowest(name, prompt) >= NARROW, "{what}: rows after a narrow margin need a rule of their own");
            assert_close(&what, &got, &golden.logits, EXACT);
            for (row, (got, expected)) in got.iter().zip(&golden.logits).enumerate() {
                assert_eq!(top(got), top(expected), "{what}: top token of row {row}");
            }
            assert_eq!(greedy, golden.greedy, "{what}: greedy continuation");
            assert_close(&format!("{what}, continuation"), &greedy_logits, &golden.greedy_logits, EXACT);
        }
    }
}

/// The last `rows` rows of a value as floats.
fn last_rows(value: &Value, shape: &[usize], rows: usize) -> Vec<f32> {
    let width: usize = shape[1..].iter().product();
    let start = (shape[0] - rows) * width;
    match value {
        Value::F32(values) => values[start..].to_vec(),
        Value::I32(values) => values[start..].iter().map(|&value| value as f32).collect(),
    }
}

#[test]
fn every_value_inside_every_layer_is_the_golden_one() {
    for (name, path) in models() {
        for prompt in [48, 300] {
            let golden = golden(name, prompt);
            let bytes = std::fs::read(fixture(name).join("golden.safetensors")).unwrap();
            let file = SafeTensors::deserialize(&bytes).unwrap();
            let mut engine = native_exact(path, &Settings { n_seq_max: 1, ..exact() });
            let mut probe = Probe::default();
            let batch = Batch { tokens: tokens(0, 0, &golden.tokens) };
            engine.inspect(&batch, &mut Outputs::default(), Inspect::Values(&mut probe)).unwrap();
            let mut compared = 0;
            for fathom::engine::Probed { name: what, shape, value } in &probe.values {
                let Ok(expected) = file.tensor(&format!("prompt_{prompt}.{what}")) else {
                    panic!("{name}: the golden file has no {what}");
                };
                let rows = expected.shape()[0];
                if rows == 0 {
                    assert_eq!(shape[0], 0, "{what}: a row too early");
                    continue;
                }
                let is_float = matches!(value, Value::F32(_));
                let words = expected.data().as_chunks::<4>().0.iter();
                let expected_values: Vec<f32> = if is_float {
                    words.map(|w| f32::from_le_bytes(*w)).collect()
                } else {
                    words.map(|w| i32::from_le_bytes(*w) as f32).collect()
                };
                let (width, expected_width) = (shape[1..].iter().product(), expected_values.len() / rows);
                let got = last_rows(value, shape, rows);
                for row in 0..rows {
                    let got: &[f32] = &got[row * width..][..width];
                    let expected = &expected_values[row * expected_width..][..expected_width];
                    match what.rsplit('.').next().unwrap() {
                        // A choice is a set; the golden order of equal scores is none.
                        "experts" => assert_eq!(sorted(got), sorted(expected), "{name} {prompt} {what}: row {row}"),
                        "index_selected" => {
                            // Narrower than top_k where fewer rows than that exist.
                            let (got, rest) = got.split_at(expected_width);
                            assert!(rest.iter().all(|&row| row == -1.0), "{name} {prompt} {what}: row {row}");
                            assert_eq!(got, expected, "{name} {prompt} {what}: row {row}");
                        }
                        "expert_weights" => assert_near(&sorted(got), &sorted(expected), &[name, what], row),
                        _ => assert_near(got, expected, &[name, what], row),
                    }
                }
                compared += 1;
            }
            println!("{name}, prompt of {prompt}: {compared} values compared");
            assert!(compared >= 5 * 3, "{compared} values");
        }
    }
}

#[test]
fn the_command_compares_layer_by_layer() {
    let bytes = std::fs::read(fixture("tiny-v4-a").join("golden.safetensors")).unwrap();
    let compare = |golden: &std::path::Path| {
        let ids: Vec<u32> = super::super::golden::golden("tiny-v4-a", 48).tokens.iter().map(|id| id.0).collect();
        let tokens = scratch("tokens-48.json");
        std::fs::write(&tokens, serde_json::to_vec(&ids).unwrap()).unwrap();
        std::process::Command::new(env!("CARGO_BIN_EXE_fathom"))
            .args(["logits", "--engine", "native", "--threads", "1", "--f32", "--model"])
            .arg(tiny_a())
            .args(["--tokens", &format!("@{}", tokens.display())])
            .args(["--out", scratch("logits-48.safetensors").to_str().unwrap()])
            .args(["--compare", golden.to_str().unwrap()])
            .output()
            .unwrap()
    };
    let same = compare(&fixture("tiny-v4-a").join("golden.safetensors"));
    let table = String::from_utf8_lossy(&same.stdout);
    assert!(same.status.success(), "{table}{}", String::from_utf8_lossy(&same.stderr));
    assert!(table.contains("layer_3.index_selected"), "{table}");

    // One changed number of layer 2, and it is that layer that is named.
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let data = file.tensor("prompt_48.layer_2.ffn_out").unwrap().data();
    let at = data.as_ptr().addr() - bytes.as_ptr().addr();
    let mut changed = bytes.clone();
    changed[at..at + 4].copy_from_slice(&100.0_f32.to_le_bytes());
    let golden = scratch("changed.safetensors");
    std::fs::write(&golden, changed).unwrap();
    let differs = compare(&golden);
    let error = String::from_utf8_lossy(&differs.stderr);
    assert!(
        !differs.status.success() && error.contains("`layer_2.ffn_out` is the first value that differs"),
        "{error}"
    );
}

#[track_caller]
fn assert_near(got: &[f32], expected: &[f32], what: &[&str], row: usize) {
    for (column, (got, expected)) in got.iter().zip(expected).enumerate() {
        let difference = (got - expected).abs();
        assert!(difference <= EXACT, "{what:?}: row {row} column {column} is {got}, expected {expected}");
    }
}

fn sorted(values: &[f32]) -> Vec<f32> {
    let mut values = values.to_vec();
    values.sort_unstable_by(f32::total_cmp);
    values
}
