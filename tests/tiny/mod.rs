//! `fathom-tiny`, the trained model inside release builds, as users meet it: through the HTTP interface, on every engine that computes.

mod bundled;
#[cfg(feature = "native")]
mod calibrate;
mod golden;
mod interfaces;
#[cfg(feature = "native")]
mod needles;
mod skills;

use std::path::{Path, PathBuf};

use fathom::engine::build_info;
use serde_json::{Value, json};

use crate::support::http;
use crate::support::program::Program;

/// The engines that the tests run on: all of this build but the one that plays scripts.
fn engines() -> Vec<&'static str> {
    build_info().engines.iter().copied().filter(|engine| *engine != "scripted").collect()
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("modelfiles/fathom-tiny")
}

/// A server on `engine` with an empty store. One thread: ggml's threads spin while they wait, and tests run beside each other.
fn serve(home: &Path, engine: &str) -> Program {
    Program::serve(home, &[("FATHOM_ENGINE", engine), ("FATHOM_THREADS", "1"), ("FATHOM_CONTEXT_LENGTH", "4096")])
}

/// The whole answer to a chat request, greedy, with the model's name filled in.
fn chat(server: &Program, request: &Value) -> Value {
    let mut body = request.clone();
    body["model"] = json!("fathom-tiny");
    body["stream"] = json!(false);
    body["options"] = json!({"temperature": 0, "num_predict": 160});
    let reply = http::open(server.address, "POST", "/api/chat", &[], body.to_string().as_bytes()).finish();
    let answer = reply.json();
    assert_eq!(reply.status, 200, "{answer}");
    assert_eq!((&answer["done"], &answer["message"]["role"]), (&json!(true), &json!("assistant")), "{answer}");
    answer
}
