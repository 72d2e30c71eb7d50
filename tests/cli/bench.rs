//! `fathom bench` without weights: its report on the scripted engine, and what it refuses. `tests/engine/bench.rs` has the rest.

use serde_json::Value;

use super::Home;

#[test]
fn a_model_without_tokenizer_or_weights_is_measured_on_the_scripted_engine() {
    let home = Home::new();
    home.model();
    let args =
        ["bench", "--model", "tiny.gguf", "--engine", "scripted", "--context", "8,16", "--prompt", "4", "--gen", "2"];
    let json = home.run(&[&args[..], &["--rounds", "1", "--threads", "1", "--json"]].concat()).ok();
    let report: Value = serde_json::from_str(&json).unwrap();
    assert_eq!((&report["schema"], &report["kv"]), (&Value::from(1), &Value::from("f16")));
    let rows = report["rows"].as_array().unwrap();
    assert_eq!(rows.iter().map(|row| row["context"].as_u64().unwrap()).collect::<Vec<_>>(), [8, 16]);
    assert!(rows.iter().all(|row| row["decode_tok_s"].as_f64().is_some_and(|rate| rate > 0.0)), "{json}");

    let table = home.run(&[&args[..], &["--rounds", "1", "--threads", "1", "--kv", "fp8"]].concat()).ok();
    assert!(table.contains("DEPTH") && table.contains("scripted") && table.contains("fp8 rows"), "{table}");
}

#[test]
fn what_cannot_be_measured_is_named() {
    let home = Home::new();
    home.model();
    std::fs::write(home.path().join("text.gguf"), "not a model").unwrap();
    for (args, expected) in [
        (&["--model", "missing.gguf", "--engine", "scripted"][..], "missing.gguf"),
        (&["--model", "text.gguf", "--engine", "scripted"], "text.gguf"),
        (&["--model", "tiny.gguf", "--engine", "warp"], "`warp`"),
        (&["--model", "tiny.gguf", "--engine", "native"], "`native`"),
        (&["--model", "tiny.gguf", "--engine", "scripted", "--kv", "q5"], "`q5`"),
        (&["--model", "tiny.gguf", "--engine", "scripted", "--fill", "jump"], "engine `scripted` cannot jump"),
    ] {
        let error = home.run(&[&["bench"], args].concat()).error();
        assert!(error.starts_with("error: ") && error.contains(expected), "{args:?}: {error}");
    }
    for flags in [["--prompt", "0"], ["--rounds", "x"], ["--context", "a"]] {
        let ran = home.run(&[&["bench", "--model", "tiny.gguf"], &flags[..]].concat());
        assert_eq!(ran.code, Some(2), "{flags:?}: {}", ran.stderr);
        assert!(ran.stderr.contains(flags[0]), "{flags:?}: {}", ran.stderr);
    }
}
