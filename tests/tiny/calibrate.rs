//! A calibration from end to end: `fathom-tiny`, a text, profiles that are found, followed, and keep what they promise.

use std::path::Path;
use std::process::Output;

use serde_json::Value;

use super::folder;
use super::golden::model;
use crate::support::program;

fn fathom(home: &Path, args: &[&str]) -> Output {
    program::fathom(home).current_dir(home).args(args).output().unwrap()
}

fn stdout(output: &Output) -> String {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn error(output: &Output) -> String {
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    String::from_utf8(output.stderr.clone()).unwrap()
}

/// Numbers of one run serve all checks, which is why they are together.
#[test]
fn profiles_of_fathom_tiny_keep_what_they_promise() {
    let home = tempfile::tempdir().unwrap();
    let file = home.path().join("m.gguf");
    std::fs::hard_link(model(), &file).or_else(|_| std::fs::copy(model(), &file).map(|_| ())).unwrap();
    let heldout = folder().join("heldout.txt");
    let text = ["--text", heldout.to_str().unwrap(), "--parse-specials", "--threads", "1"];
    let calibrate = |more: &[&str]| fathom(home.path(), &[&["calibrate", "m.gguf"], &text[..], more].concat());

    let report: Value = serde_json::from_str(&stdout(&calibrate(&["--tokens", "9216", "--json"]))).unwrap();
    println!("{report:#}");
    assert_eq!((&report["schema"], &report["experts_used"]), (&1.into(), &6.into()));
    assert_eq!(report["layers"], serde_json::json!([1, 2, 3]), "layer 0 chooses by token");
    let (calibration, held) = (&report["text"]["calibration"], &report["text"]["heldout"]);
    assert_eq!(
        (&calibration["windows"], &held["windows"], &held["scored"]),
        (&12.into(), &6.into(), &(6 * 256).into())
    );
    let number = |value: &Value| value.as_f64().unwrap_or_else(|| panic!("no number: {value}"));
    let others = report["others"].as_array().unwrap();
    let kl = |of: &Value| number(&of["divergence"]["mean_kl"]);
    let fixed: Vec<f64> =
        others.iter().filter(|o| o["routing"].as_str().unwrap().starts_with("topk")).map(kl).collect();
    assert!(fixed.len() == 4 && fixed.is_sorted_by(|a, b| a > b), "more experts, less divergence: {fixed:?}");
    let profiles = report["profiles"].as_array().unwrap();
    assert_eq!(profiles.iter().map(|p| p["name"].as_str().unwrap()).collect::<Vec<_>>(), ["safe", "balanced", "fast"]);
    for (profile, aim) in profiles.iter().zip([5.0, 4.5, 3.6]) {
        let mean = number(&profile["mean_experts"]);
        assert!((mean / aim - 1.0).abs() < 0.02, "{} keeps {mean} of {aim}", profile["name"]);
        assert!((number(&profile["target"]) - aim).abs() < 1e-9);
        let topk = &profile["against_topk"];
        assert_eq!(profile["accepted"].as_bool().unwrap(), number(&topk["difference"]) < 0.0);
        assert!((kl(profile) - number(&topk["mean_kl"]) - number(&topk["difference"])).abs() < 1e-9);
        assert!((number(&topk["mean_experts"]) - mean).abs() < 1e-9);
        assert!((number(&profile["against_rel"]["mean_experts"]) / aim - 1.0).abs() < 0.05);
        let layers = profile["layers"].as_array().unwrap();
        let each = layers.iter().map(|layer| number(&layer["mean_experts"]));
        assert!((each.sum::<f64>() / 3.0 - mean).abs() < 1e-9);
    }
    let picture = std::fs::read_to_string(home.path().join("m.routing.svg")).unwrap();
    assert!(picture.starts_with("<svg") && picture.matches("<title>").count() == 10, "{picture}");

    // What was written is found beside the file, and does there what the report says: fewer experts, the same divergence.
    let accepted = |name: &str| profiles.iter().any(|p| p["name"] == name && p["accepted"] == true);
    let written: Value = serde_json::from_slice(&std::fs::read(home.path().join("m.routing.json")).unwrap()).unwrap();
    assert_eq!(written["schema"], 1);
    for name in ["safe", "balanced", "fast"] {
        assert_eq!(written["profiles"].get(name).is_some(), accepted(name), "{name}");
    }
    let fast = profiles.iter().find(|profile| profile["accepted"] == true).expect("an accepted profile");
    let name = fast["name"].as_str().unwrap();
    assert_eq!(written["profiles"][name]["calib"]["text_hash"], report["text"]["sha256"]);
    let eval = |model: &str, routing: &str| -> Value {
        let args =
            ["eval", model, "--engine", "native", "--only", "text", "--routing", routing, "--against-routing", "off"];
        let json = ["--tokens", "3000", "--json", "--scratch", home.path().to_str().unwrap()];
        serde_json::from_str(&stdout(&fathom(home.path(), &[&args[..], &text, &json].concat()))).unwrap()
    };
    let of_file = eval("m.gguf", name);
    assert_eq!(of_file["routing"], name);
    let divergence = &of_file["text"]["against"]["divergence"];
    assert!(number(&divergence["mean_kl"]) > 2.0 * number(&of_file["text"]["noise"]["mean_kl"]), "{of_file}");

    // `create` takes it along: the stored model has the same profile.
    std::fs::write(home.path().join("Modelfile"), "FROM ./m.gguf\n").unwrap();
    let server = super::serve(home.path(), "native");
    let mut create = program::fathom(home.path());
    create.env("FATHOM_HOST", server.address.to_string()).current_dir(home.path()).args(["create", "stored"]);
    stdout(&create.output().unwrap());
    let answer = crate::support::http::open(
        server.address,
        "POST",
        "/api/generate",
        &[],
        serde_json::json!({"model": "stored", "prompt": "Hi", "stream": false, "options": {"routing": name, "num_predict": 4}})
            .to_string()
            .as_bytes(),
    )
    .finish()
    .json();
    assert_eq!(answer["routing"]["policy"], name, "{answer}");
    assert!(number(&answer["routing"]["mean_experts"]) < 6.0, "{answer}");
    drop(server);
    let stored = eval("stored", name);
    assert_eq!(stored["text"]["against"]["divergence"], *divergence, "the same weights, the same profile");

    // What is there is not overwritten, and never with another model's.
    let again = error(&calibrate(&[]));
    assert!(again.contains("`m.routing.json` exists") && again.contains("--force"), "{again}");
    let mut other = written.clone();
    other["profiles"][name]["model_fingerprint"] = "ab".into();
    std::fs::write(home.path().join("m.routing.json"), other.to_string()).unwrap();
    let refused = error(&calibrate(&["--force"]));
    assert!(refused.contains("holds profiles of another model"), "{refused}");
    let followed = error(&fathom(
        home.path(),
        &[&["eval", "m.gguf", "--engine", "native", "--only", "text", "--routing", name], &text[..]].concat(),
    ));
    assert!(followed.contains("was made for another model"), "{followed}");
    let short = error(&calibrate(&["--tokens", "2000", "-o", "short.routing.json"]));
    assert!(short.contains("calibration needs at least 6 windows") && short.contains("hint: "), "{short}");
}
