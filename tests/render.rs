//! `fathom render`, the program.

use std::io::Write;
use std::path::Path;
use std::process::{Output, Stdio};

use serde_json::{Value, json};

use crate::support::{model, program};

fn render(home: &Path, args: &[&str], request: &str) -> Output {
    let mut command = program::fathom(home);
    command.arg("render").args(args).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    child.stdin.take().unwrap().write_all(request.as_bytes()).unwrap();
    child.wait_with_output().unwrap()
}

fn stdout(output: Output) -> String {
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success(), "{stderr}");
    assert_eq!(stderr, "");
    String::from_utf8(output.stdout).unwrap()
}

fn stderr(output: Output) -> String {
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(output.stdout, b"");
    String::from_utf8(output.stderr).unwrap()
}

/// A file of this release, without weights.
fn file(home: &Path, release: &str) -> String {
    let mut metadata = model::metadata("deepseek4");
    metadata.insert("fathom.source.release", release);
    let path = home.join(format!("{release}.gguf"));
    let mut gguf = Vec::new();
    fathom_gguf::write_to::<_, Vec<u8>>(&mut gguf, metadata, &[]).unwrap().unwrap();
    std::fs::write(&path, gguf).unwrap();
    path.into_os_string().into_string().unwrap()
}

const HI: &str = r#"{"messages": [{"role": "user", "content": "Hi"}], "think": false, "stream": true}"#;

#[test]
fn without_a_model_the_prompt_is_printed_alone() {
    let home = tempfile::tempdir().unwrap();
    let text = stdout(render(home.path(), &[], HI));
    assert_eq!(text, "<｜begin▁of▁sentence｜><｜User｜>Hi<｜Assistant｜></think>\n");
    let insert = stdout(render(home.path(), &[], r#"{"prompt": "a", "suffix": "b"}"#));
    assert_eq!(insert, "<｜begin▁of▁sentence｜><｜fim▁begin｜>a<｜fim▁hole｜>b<｜fim▁end｜>\n");
    let plain = stdout(render(home.path(), &["--generation", "plain"], r#"{"prompt": "a"}"#));
    assert_eq!(plain, "a\n");
}

#[test]
fn a_file_gives_the_format_and_the_ids() {
    let home = tempfile::tempdir().unwrap();
    let file = file(home.path(), "v4_0731");
    let text = stdout(render(home.path(), &["--model", &file], HI));
    assert_eq!(
        text,
        "<｜begin▁of▁sentence｜><｜User｜>Hi<｜Assistant｜></think>\n\n6 tokens: 256,258,72,105,259,261\n"
    );
    let json: Value = serde_json::from_str(&stdout(render(home.path(), &["--model", &file, "--json"], HI))).unwrap();
    let prompt = "<｜begin▁of▁sentence｜><｜User｜>Hi<｜Assistant｜></think>";
    assert_eq!(
        json,
        json!({
            "schema": 1,
            "format": "deepseek_v4/v4_0731",
            "prompt": prompt,
            "starts_in_thinking": false,
            "stable_bytes": prompt.len() - "</think>".len(),
            "tokens": [256, 258, 72, 105, 259, 261],
        })
    );
    // the request may name the model, too
    let request = json!({"model": file, "messages": [{"role": "user", "content": "Hi"}], "think": false});
    assert_eq!(stdout(render(home.path(), &[], &request.to_string())), text);
}

#[test]
fn the_release_decides_and_can_be_overridden() {
    let home = tempfile::tempdir().unwrap();
    let high = r#"{"messages": [{"role": "user", "content": "Hi"}], "think": "high"}"#;
    let format = |file: &str, args: &[&str]| {
        let args: Vec<&str> = ["--json", "--model", file].into_iter().chain(args.iter().copied()).collect();
        let json: Value = serde_json::from_str(&stdout(render(home.path(), &args, high))).unwrap();
        (json["format"].as_str().unwrap().to_owned(), json["prompt"].as_str().unwrap().contains("Reasoning Effort"))
    };
    let (april, later) = (file(home.path(), "v4_april"), file(home.path(), "v4_0813"));
    assert_eq!(format(&april, &[]), ("deepseek_v4/v4_april".into(), false));
    assert_eq!(format(&later, &[]), ("deepseek_v4/v4_0731".into(), true));
    assert_eq!(format(&april, &["--generation", "v41"]), ("deepseek_v4/v41".into(), true));
}

#[test]
fn an_installed_model_brings_its_system_text() {
    let home = tempfile::tempdir().unwrap();
    let store = fathom::store::Store::open(home.path().join("models")).unwrap();
    let parts = model::Parts { system: Some("Be brief."), ..Default::default() };
    model::install(&store, "terse", model::metadata("deepseek4"), &parts);
    let text = stdout(render(home.path(), &["--model", "terse"], HI));
    assert!(text.starts_with("<｜begin▁of▁sentence｜>Be brief.<｜User｜>Hi"), "{text}");
    let own = r#"{"messages": [{"role": "system", "content": "Sing."}, {"role": "user", "content": "Hi"}]}"#;
    let text = stdout(render(home.path(), &["--model", "terse"], own));
    assert!(text.starts_with("<｜begin▁of▁sentence｜>Sing.<｜User｜>Hi"), "{text}");
}

#[test]
fn errors_name_what_is_wrong_and_where() {
    let home = tempfile::tempdir().unwrap();
    for (args, request, message) in [
        (&[][..], "{\"messages\": [],\n \"think\": \"hard\"}", "line 2 column 16"),
        (&[], "{\"messages\":\n[{\"role\": 3}]}", "line 2 column 11"),
        (&[], "{\"messages\": [{\"role\": \"user\", \"content\": \"", "EOF while parsing a string at line 1"),
        (&[], "{\"think\": 101}", "invalid value: integer `101`"),
        (&[], "{\"tools\": [{\"function\": {\"x\": 1}}]}", "no `name` at line 1"),
        (&[], "{}", "there are no messages"),
        (&[], "{\"messages\": [{\"role\": \"user\", \"images\": [\"aGk=\"]}]}", "images"),
        (&["--model", "missing"], "{}", "`missing:latest` is not installed"),
        (&["--model", "missing.gguf"], "{}", "cannot open `missing.gguf`"),
        (&["--generation", "plain"], "{\"prompt\": \"a\", \"suffix\": \"b\"}", "filling in the middle"),
        (&["--generation", "template"], "{\"prompt\": \"a\"}", "no chat template"),
    ] {
        let error = stderr(render(home.path(), args, request));
        assert!(error.starts_with("error: ") && error.contains(message), "{request}: {error}");
    }
}
