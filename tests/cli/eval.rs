//! `fathom eval` on an engine whose numbers are known.

use serde_json::{Value, json};

use super::Home;

/// An engine whose logits are random and depend on every token before them.
fn hash(home: &Home) -> String {
    written(home, &json!({"schema": 1, "play": "hash", "n_ctx": 4096}))
}

fn written(home: &Home, script: &Value) -> String {
    let path = home.path().join("script.json");
    std::fs::write(&path, script.to_string()).unwrap();
    path.to_str().unwrap().to_owned()
}

/// Runs `fathom eval tiny.gguf` with the script and reads its JSON.
fn report(home: &Home, script: &str, more: &[&str]) -> Value {
    let args = [&["eval", "tiny.gguf", "--engine", "scripted", "--script", script, "--json"], more].concat();
    serde_json::from_str(&home.run(&args).ok()).unwrap()
}

#[test]
fn the_report_says_what_was_measured_and_what_is_noise() {
    let home = Home::new();
    home.model();
    let script = hash(&home);
    let found = report(&home, &script, &["--needle-lengths", "250,300", "--needle-depths", "0,100", "--batch", "64"]);
    assert_eq!(found["schema"], 1);
    assert_eq!((&found["engine"], &found["architecture"]), (&json!("scripted"), &json!("deepseek4")));
    assert_eq!((&found["step_tokens"], &found["step_tokens_second_split"]), (&json!(64), &json!(101)));
    let text = &found["text"];
    // One token per byte of the text, and one more at the start of each window of 512. The rest is no more than context.
    let (windows, rest) = (fathom::eval::BUILT_IN_TEXT.len() / 511, fathom::eval::BUILT_IN_TEXT.len() % 511);
    assert!(rest < 256, "{rest}");
    assert_eq!((&text["windows"], &text["tokens"]), (&json!(windows), &json!(windows * 512)));
    assert_eq!(text["scored_tokens"], windows * 256);
    // Every logit is random: no token is likelier than another, by much.
    let perplexity = text["perplexity"]["value"].as_f64().unwrap();
    assert!(perplexity > 200.0, "{perplexity}");
    // And none depends on where a step ends.
    assert_eq!(text["perplexity"], text["perplexity_second_split"]);
    let noise = &text["noise"];
    assert_eq!((&noise["mean_kl"], &noise["p99_kl"], &noise["same_top"]), (&json!(0.0), &json!(0.0), &json!(1.0)));
    assert_eq!(noise["tokens"], text["scored_tokens"]);
    assert!(text.get("against").is_none());

    let needles = &found["needles"];
    assert_eq!((&needles["all"], &needles["inexact_lengths"]), (&json!({"right": 0, "of": 4}), &json!(0)));
    assert_eq!(needles["answers_that_differ"], 0);
    assert_eq!(needles["wrong"][0]["tokens"], 250);
}

#[test]
fn the_report_is_readable() {
    let home = Home::new();
    home.model();
    let script = hash(&home);
    let args = ["eval", "tiny.gguf", "--engine", "scripted", "--script", &script, "--only", "text", "--tokens", "2000"];
    let twice = home.run(&[&args[..], &["--against", "tiny.gguf"]].concat());
    let stderr = twice.stderr.clone();
    insta::assert_snapshot!("eval_text", twice.ok());
    assert!(stderr.starts_with("logits of the reference: "), "{stderr}");
    let script = written(&home, &answers(&["I do not know.".to_owned(), "It is open.".to_owned()]));
    let args = ["eval", "tiny.gguf", "--engine", "scripted", "--script", &script, "--only", "needles"];
    insta::assert_snapshot!(
        "eval_needles",
        home.run(&[&args[..], &["--needle-lengths", "200,300", "--needle-depths", "0,50", "--samples", "2"]].concat())
            .ok()
    );
}

/// Bytes are the tokens of the model of these tests.
fn answers(texts: &[String]) -> Value {
    let answers: Vec<Value> = texts.iter().map(|text| json!({"tokens": text.as_bytes()})).collect();
    json!({"schema": 1, "play": {"answers": answers}, "n_ctx": 4096})
}

#[test]
fn needles_that_are_named_are_found() {
    let home = Home::new();
    home.model();
    let flags = ["--only", "needles", "--needle-lengths", "250,300", "--needle-depths", "50", "--heatmap", "h.svg"];
    let silent = written(&home, &answers(&["I do not know.".to_owned()]));
    let found = report(&home, &silent, &flags);
    let codes: Vec<&str> =
        found["needles"]["wrong"].as_array().unwrap().iter().map(|w| w["expected"].as_str().unwrap()).collect();
    assert_eq!(codes.len(), 2, "{found}");
    assert_eq!(found["needles"]["wrong"][0]["answer"], "I do not know.");

    // Each prompt is asked in two splits: the first needle is found in both, the second in the second only.
    let right = |code: &str| format!("The code is {code}.");
    let texts = [right(codes[0]), right(codes[0]), right("999999"), right(codes[1])];
    let found = report(&home, &written(&home, &answers(&texts)), &flags);
    let needles = &found["needles"];
    assert_eq!(needles["cells"], json!([[{"right": 1, "of": 1}], [{"right": 0, "of": 1}]]));
    assert_eq!((&needles["all"]["right"], &needles["all_second_split"]["right"]), (&json!(1), &json!(2)));
    assert_eq!((&needles["answers_that_differ"], &needles["stopped"]["right"]), (&json!(1), &json!(2)));
    let picture = std::fs::read_to_string(home.path().join("h.svg")).unwrap();
    assert!(picture.contains("250 tokens, depth 50 %: 1 of 1") && picture.contains("300 tokens, depth 50 %: 0 of 1"));
}

#[test]
fn every_remainder_of_the_length_is_tried_once() {
    let home = Home::new();
    home.model();
    let script = hash(&home);
    let flags = ["--only", "needles", "--residues", "--needle-lengths", "250", "--needle-depths", "0,50,100"];
    let needles = &report(&home, &script, &flags)["needles"];
    assert_eq!(needles["modulo_128"], json!(vec![json!({"right": 0, "of": 1}); 128]));
    assert_eq!(needles["modulo_4"], json!(vec![json!({"right": 0, "of": 32}); 4]));
    assert_eq!(needles["cells"][0][0]["of"], 43);
}

#[test]
fn a_reference_is_asked_the_same_needles() {
    let home = Home::new();
    std::fs::copy(home.model(), home.path().join("copy.gguf")).unwrap();
    let flags = ["--only", "needles", "--needle-lengths", "250,300", "--needle-depths", "50"];
    let silent = written(&home, &answers(&["I do not know.".to_owned()]));
    let found = report(&home, &silent, &flags);
    let code = found["needles"]["wrong"][1]["expected"].as_str().unwrap();
    // Each model plays the script from its start: the second prompt, in both splits, is answered rightly.
    let texts = ["No.", "No.", code, code].map(str::to_owned);
    let against = [&flags[..], &["--against", "copy.gguf", "--against-kv", "f32"]].concat();
    let found = report(&home, &written(&home, &answers(&texts)), &against);
    let theirs = &found["needles"]["against"];
    assert_eq!((&theirs["model"], &theirs["kv"], &found["kv"]), (&json!("copy.gguf"), &json!("f32"), &json!("f16")));
    assert_eq!(theirs["needles"]["all"], json!({"right": 1, "of": 2}));
    assert_eq!((&theirs["only_model"], &theirs["only_reference"]), (&json!(0), &json!(0)));
    assert_eq!(theirs["needles"]["cells"], found["needles"]["cells"]);
}

#[test]
fn a_model_does_not_differ_from_its_copy_and_cannot_be_compared_with_another_vocabulary() {
    let home = Home::new();
    std::fs::copy(home.model(), home.path().join("copy.gguf")).unwrap();
    let script = hash(&home);
    let flags = ["--only", "text", "--tokens", "1500"];
    let found = report(&home, &script, &[&flags[..], &["--against", "copy.gguf"]].concat());
    let against = &found["text"]["against"];
    assert_eq!(against["perplexity"], found["text"]["perplexity"]);
    assert_eq!((&against["divergence"]["mean_kl"], &against["divergence"]["same_top"]), (&json!(0.0), &json!(1.0)));

    // One merge more, and the same text has other tokens.
    let mut metadata = crate::support::model::metadata("deepseek4");
    metadata.insert("tokenizer.ggml.merges", fathom_gguf::Strings::from(vec!["t h".to_owned()]));
    let tokens = metadata.opt_strings("tokenizer.ggml.tokens").unwrap().unwrap();
    let mut tokens: Vec<String> = (0..tokens.len()).map(|i| tokens.get(i).unwrap().to_owned()).collect();
    tokens.push("th".to_owned());
    metadata.insert("tokenizer.ggml.token_type", [vec![1i32; 256], vec![3; tokens.len() - 257], vec![1]].concat());
    metadata.insert("tokenizer.ggml.tokens", fathom_gguf::Strings::from(tokens));
    fathom_gguf::write_file::<Vec<u8>>(&home.path().join("other.gguf"), metadata, &[]).unwrap();
    let args = ["eval", "tiny.gguf", "--engine", "scripted", "--script", &script, "--against", "other.gguf"];
    assert_eq!(
        home.run(&args).error(),
        "error: `tiny.gguf` and `other.gguf` do not share a vocabulary: the text has other tokens\n"
    );
}

#[test]
fn what_cannot_be_measured_is_said_before_anything_is_computed() {
    let home = Home::new();
    home.model();
    let script = hash(&home);
    std::fs::write(home.path().join("short.txt"), "Hello.").unwrap();
    std::fs::write(home.path().join("latin1.txt"), b"na\xefve").unwrap();
    let error = |more: &[&str]| {
        home.run(&[&["eval", "tiny.gguf", "--engine", "scripted", "--script", &script], more].concat()).error()
    };
    for (flags, text) in [
        (
            &["--text", "short.txt"][..],
            "the text has 6 tokens, and the first 256 of a window are not scored\nhint: `--window 512`",
        ),
        (&["--text", "none.txt"], "cannot read `none.txt`"),
        (&["--text", "latin1.txt"], "`latin1.txt` is not UTF-8"),
        (&["--needle-lengths", "40"], "a prompt of 40 tokens has no room for a needle and its question, which take"),
        (&["--window", "5000"], "5000 tokens do not fit into the context of 4096\nhint: `--window`"),
        (&["--against-kv", "q5"], "`q5` is not a cache type"),
        (&["--only", "text", "--heatmap", "h.svg"], "the heat map shows needles"),
        (&["--heatmap", "none/h.svg"], "cannot write into `none`"),
        (&["--against", "nobody"], "model `nobody:latest` is not installed"),
        (&["--against-engine", "quick"], "`quick` is not an engine"),
        (&["--only", "text", "--against", "tiny.gguf", "--scratch", "none"], "creating a file in `none` failed"),
        (&["--f32"], "scripted cannot expand weights"),
    ] {
        let found = error(flags);
        assert!(found.starts_with(&format!("error: {text}")), "{flags:?}: {found}");
    }
}
