//! `fathom bench` from end to end on llama: the real program, its children, its report. Times are not judged, only that they are times.

use std::path::Path;
use std::process::{Command, Output};

use serde_json::Value;

use super::{tiny_a, tiny_b};
use crate::support::program;

fn bench(home: &Path, model: &Path, args: &[&str]) -> Command {
    let mut command = program::fathom(home);
    command
        .args(["bench", "--json", "--threads", "1", "--prompt", "20", "--gen", "3", "--model"])
        .arg(model)
        .args(args);
    command
}

#[track_caller]
fn report(output: &Output) -> Value {
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{stderr}");
    let text = std::str::from_utf8(&output.stdout).unwrap();
    assert_eq!(text.lines().count(), 1, "{text}");
    serde_json::from_str(text).unwrap()
}

#[track_caller]
fn assert_times(report: &Value) {
    for row in report["rows"].as_array().unwrap() {
        for field in ["prefill_tok_s", "decode_tok_s", "decode_ms_p50"] {
            let value = row[field].as_f64().unwrap_or(f64::NAN);
            assert!(value.is_finite() && value > 0.0, "{field} of {row}");
        }
        assert!(row["peak_rss_bytes"].as_u64().unwrap() > 1 << 20, "{row}");
    }
}

fn columns(report: &Value, names: &[&str]) -> Vec<Vec<Value>> {
    let rows = report["rows"].as_array().unwrap();
    rows.iter().map(|row| names.iter().map(|name| row[name].clone()).collect()).collect()
}

#[test]
fn engines_alternate_at_every_depth_and_each_row_says_what_it_is() {
    let home = tempfile::tempdir().unwrap();
    let args = ["--engine", "llama,scripted", "--context", "64,300", "--parallel", "1,2", "--rounds", "2"];
    let mut command = bench(home.path(), tiny_a(), &args);
    let output = command.env("FATHOM_LOG", "warn,fathom::cli::bench=debug").output().unwrap();
    let report = report(&output);

    let keys: Vec<&String> = report.as_object().unwrap().keys().collect();
    assert_eq!(keys, ["schema", "machine", "file", "prompt", "gen", "rounds", "kv", "rows"]);
    assert_eq!((&report["schema"], &report["prompt"], &report["gen"]), (&1.into(), &20.into(), &3.into()));
    assert_eq!((&report["rounds"], &report["machine"]["threads"]), (&2.into(), &1.into()));
    assert_eq!(report["file"]["architecture"], "deepseek4");
    assert_eq!(report["file"]["bytes"], std::fs::metadata(tiny_a()).unwrap().len());
    assert_times(&report);

    let mut expected: Vec<Vec<Value>> = Vec::new();
    for parallel in [1, 2] {
        for context in [64, 300] {
            // The copies of llama's repacked experts; the scripted engine has no weights.
            for (engine, repack) in [("llama", true), ("scripted", false)] {
                expected.push(vec![engine.into(), context.into(), parallel.into(), "real".into(), repack.into()]);
            }
        }
    }
    assert_eq!(columns(&report, &["engine", "context", "parallel", "fill", "repack"]), expected);

    // Each measurement is a process of its own, or the peak of the engine without weights would be llama's.
    let peak = |row: usize| report["rows"][row]["peak_rss_bytes"].as_u64().unwrap();
    assert!(peak(1) < peak(0), "{report}");
    let log = String::from_utf8_lossy(&output.stderr);
    let order: Vec<&str> = log
        .lines()
        .filter(|line| line.contains("measures"))
        .map(|line| if line.contains("engine=llama") { "llama" } else { "scripted" })
        .collect();
    assert_eq!(order, ["llama", "scripted"].repeat(2 * 2 * 2), "{log}");
}

#[test]
fn a_jump_is_marked_and_checked_against_a_real_fill() {
    let home = tempfile::tempdir().unwrap();
    let args = ["--engine", "llama", "--fill", "jump", "--context", "900,200", "--rounds", "1", "--no-repack"];
    let report = report(&bench(home.path(), tiny_b(), &args).output().unwrap());
    assert_times(&report);
    let expected: Vec<Vec<Value>> =
        [900, 200].map(|context| vec![context.into(), 1.into(), "jump".into(), false.into()]).to_vec();
    assert_eq!(columns(&report, &["context", "parallel", "fill", "repack"]), expected);
    let check = &report["fill_check"];
    assert_eq!(check["context"], 200, "the smallest depth");
    for ratio in ["prefill_ratio", "decode_ratio"] {
        assert!(check[ratio].as_f64().is_some_and(|ratio| ratio.is_finite() && ratio > 0.0), "{check}");
    }
}

#[test]
fn what_cannot_be_measured_is_refused_with_the_reason() {
    let home = tempfile::tempdir().unwrap();
    let cut = home.path().join("cut.gguf");
    let bytes = std::fs::read(tiny_a()).unwrap();
    std::fs::write(&cut, &bytes[..bytes.len() / 2]).unwrap();
    let cases: [(&Path, &[&str], &[&str]); 3] = [
        (tiny_a(), &["--engine", "llama", "--context", "1000000"], &["depth", "the model has 4096"]),
        (&cut, &["--engine", "llama", "--context", "10"], &["cut.gguf", "the file is cut off"]),
        (tiny_a(), &["--engine", "llama,scripted", "--fill", "jump"], &["engine `scripted` cannot jump to a depth"]),
    ];
    for (model, args, expected) in cases {
        let output = bench(home.path(), model, args).output().unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!((output.status.code(), output.stdout.len()), (Some(1), 0), "{args:?}: {stderr}");
        assert!(stderr.starts_with("error: "), "{stderr}");
        for words in expected {
            assert!(stderr.contains(words), "{args:?}: {words} is not in {stderr}");
        }
    }
}
