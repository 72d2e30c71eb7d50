//! The interfaces with a model that computes, on every engine: what the transcripts of `tests/api` and `tests/cli` show with a script
//! holds with real arithmetic.

use std::process::Stdio;

use serde_json::{Value, json};

use super::golden::model;
use super::{engines, serve};
use crate::support::http::{self, Reply};
use crate::support::program::{self, Program};

const QUESTION: &str = "What is the capital of Italy?";
/// The model knows it, and is sure of it: no other order of additions changes the answer.
const ANSWER: &str = "Rome";

fn post(server: &Program, path: &str, mut body: Value) -> Reply {
    body["model"] = json!("fathom-tiny");
    if body.get("options").is_none() {
        body["options"] = json!({"temperature": 0, "num_predict": 48});
    }
    http::open(server.address, "POST", path, &[], body.to_string().as_bytes()).finish()
}

fn user(text: &str) -> Value {
    json!({"role": "user", "content": text})
}

fn metric(server: &Program, name: &str) -> f64 {
    let text = server.get("/metrics").text();
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    line.unwrap_or_else(|| panic!("no metric `{name}` in:\n{text}")).parse().unwrap()
}

fn on_every_engine(test: impl Fn(&str, &Program)) {
    for engine in engines() {
        let home = tempfile::tempdir().unwrap();
        let server = serve(home.path(), engine);
        println!("on {engine}");
        test(engine, &server);
    }
}

#[test]
fn answers_stream_continue_and_stop() {
    on_every_engine(|_, server| {
        let whole = post(server, "/api/generate", json!({"prompt": QUESTION, "think": false, "stream": false})).json();
        let text = whole["response"].as_str().unwrap();
        assert!(text.contains(ANSWER) && whole["done_reason"] == "stop", "{whole}");

        let lines = post(server, "/api/generate", json!({"prompt": QUESTION, "think": false})).lines();
        let streamed: String = lines.iter().map(|line| line["response"].as_str().unwrap()).collect();
        assert!(lines.len() > 3 && streamed == text, "{streamed:?} and {text:?}");
        let last = lines.last().unwrap();
        for key in ["prompt_eval_count", "eval_count", "eval_duration", "total_duration", "context"] {
            assert_eq!(last[key].is_null(), whole[key].is_null(), "{key}: {last}");
        }
        assert_eq!((&last["context"], &last["prompt_eval_count"]), (&whole["context"], &whole["prompt_eval_count"]));

        // The same conversation goes on, from what the server remembers of it.
        let cached = metric(server, "fathom_cached_tokens_total");
        let onward = json!({"prompt": QUESTION, "think": false, "stream": false, "context": whole["context"]});
        let onward = post(server, "/api/generate", onward).json();
        let (before, after) = (whole["context"].as_array().unwrap(), onward["context"].as_array().unwrap());
        assert_eq!(&after[..before.len()], &before[..], "the conversation goes on");
        assert!(metric(server, "fathom_cached_tokens_total") > cached, "nothing was reused");

        let stop = json!({"temperature": 0, "num_predict": 48, "stop": [ANSWER]});
        let stopped =
            post(server, "/api/generate", json!({"prompt": QUESTION, "think": false, "options": stop})).lines();
        let said: String = stopped.iter().map(|line| line["response"].as_str().unwrap()).collect();
        assert!(!said.contains(ANSWER) && text.starts_with(&said), "{said:?}");
        let short = json!({"temperature": 0, "num_predict": 2});
        let short =
            post(server, "/api/generate", json!({"prompt": QUESTION, "stream": false, "options": short})).json();
        assert_eq!((&short["eval_count"], &short["done_reason"]), (&json!(2), &json!("length")));
    });
}

#[test]
fn logprobs_raw_prompts_and_seeds() {
    on_every_engine(|_, server| {
        let raw = json!({
            "prompt": "The grass is", "raw": true, "stream": false, "logprobs": true, "top_logprobs": 3,
            "options": {"temperature": 1, "seed": 7, "num_predict": 12},
        });
        let answer = post(server, "/api/generate", raw.clone()).json();
        let logprobs = answer["logprobs"].as_array().unwrap();
        // The end token is counted and has no text.
        let ended = u64::from(answer["done_reason"] == "stop");
        assert_eq!(logprobs.len() as u64 + ended, answer["eval_count"].as_u64().unwrap());
        for token in logprobs {
            let top: Vec<f64> =
                token["top_logprobs"].as_array().unwrap().iter().map(|t| t["logprob"].as_f64().unwrap()).collect();
            assert!(top.len() == 3 && top.is_sorted_by(|a, b| a >= b) && top[0] <= 0.0, "{token}");
            assert!(token["logprob"].as_f64().unwrap() <= top[0], "{token}");
        }
        assert!(answer.get("context").is_none());
        // Alone, the same seed gives the same answer.
        post(server, "/api/generate", json!({"keep_alive": 0}));
        let again = post(server, "/api/generate", raw).json();
        assert_eq!((&again["response"], &again["logprobs"]), (&answer["response"], &answer["logprobs"]));
    });
}

#[test]
fn many_clients_at_once_and_some_that_leave() {
    on_every_engine(|engine, server| {
        let questions: Vec<String> =
            (0..6).map(|n| format!("{}{QUESTION}", "The sky is blue. ".repeat(n * 9))).collect();
        std::thread::scope(|scope| {
            let asked: Vec<_> = questions
                .iter()
                .map(|question| {
                    scope.spawn(move || {
                        let request = json!({"messages": [user(question)], "think": false, "stream": false});
                        post(server, "/api/chat", request).json()
                    })
                })
                .collect();
            for _ in 0..4 {
                scope.spawn(move || {
                    let body =
                        json!({"model": "fathom-tiny", "messages": [user(QUESTION)], "options": {"num_predict": 400}});
                    let mut exchange =
                        http::open(server.address, "POST", "/api/chat", &[], body.to_string().as_bytes());
                    exchange.line();
                });
            }
            for answer in asked {
                let answer = answer.join().unwrap();
                let said = answer["message"]["content"].as_str().unwrap();
                assert!(answer["done"] == true && !said.is_empty(), "{engine}: {answer}");
            }
        });
        for _ in 0..2000 {
            if metric(server, "fathom_running") == 0.0 {
                return;
            }
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
        panic!("{engine}: somebody who left is still computed for");
    });
}

#[test]
fn contexts_end_and_options_reload() {
    on_every_engine(|engine, server| {
        let options = |num_ctx: usize| json!({"temperature": 0, "num_predict": 400, "num_ctx": num_ctx});
        // Reasoning about nothing goes on until the context is full, or the model ends it.
        let long =
            json!({"prompt": "The sky is blue. ".repeat(30), "raw": true, "stream": false, "options": options(256)});
        let full = post(server, "/api/generate", long).json();
        let tokens = full["prompt_eval_count"].as_u64().unwrap() + full["eval_count"].as_u64().unwrap();
        assert!(tokens <= 257, "{full}");
        assert!(full["done_reason"] == "stop" || tokens >= 256, "{full}");
        let ps = server.get("/api/ps").json();
        assert_eq!(ps["models"][0]["context_length"], 256, "{ps}");

        let refused =
            json!({"messages": [user(&"The sky is blue. ".repeat(90))], "truncate": false, "options": options(256)});
        let refused = post(server, "/api/chat", refused);
        assert_eq!(refused.status, 400, "{engine}: {}", refused.text());
        assert!(refused.text().contains("(256 tokens)"), "{}", refused.text());

        let roomy = json!({"messages": [user(QUESTION)], "think": false, "stream": false, "options": options(1024)});
        assert!(post(server, "/api/chat", roomy).json()["message"]["content"].as_str().unwrap().contains(ANSWER));
        assert_eq!(server.get("/api/ps").json()["models"][0]["context_length"], 1024);
        let gone = post(server, "/api/generate", json!({"keep_alive": 0})).json();
        assert_eq!(gone["done_reason"], "unload");
    });
}

/// Each engine has row types of its own, and refuses those of the other one in words.
#[test]
fn row_types_are_chosen_by_the_request() {
    on_every_engine(|engine, server| {
        let ask = |kv: &str| {
            let options = json!({"temperature": 0, "num_predict": 48, "kv": kv});
            let request = json!({"messages": [user(QUESTION)], "think": false, "stream": false, "options": options});
            post(server, "/api/chat", request)
        };
        let (theirs, foreign) = if engine == "native" { ("fp8", "q8_0") } else { ("q8_0", "fp8") };
        let answer = ask(theirs).json();
        assert_eq!(answer["kv"], theirs, "{answer}");
        assert!(
            answer["message"]["content"].as_str().unwrap().contains(ANSWER),
            "{engine} with {theirs} rows: {answer}"
        );
        let refused = ask(foreign);
        assert!(refused.status >= 400, "{}", refused.text());
        let expected = format!("{engine} cannot keep");
        assert!(refused.text().contains(&expected) && refused.text().contains(foreign), "{}", refused.text());
        let usual = ask("f16").json();
        assert!(usual.get("kv").is_none() && usual["done"] == true, "{usual}");
        let name = format!("fathom_computed_requests_total{{engine=\"{engine}\",kv=\"{theirs}\"}}");
        assert_eq!(metric(server, &name), 1.0);
    });
}

#[test]
fn the_command_line_computes_on_every_engine() {
    for engine in engines() {
        let home = tempfile::tempdir().unwrap();
        let server = serve(home.path(), engine);
        let run = |args: &[&str]| {
            let mut command = program::fathom(home.path());
            command
                .env("FATHOM_HOST", server.address.to_string())
                .env("FATHOM_THREADS", "1")
                .env("FATHOM_ENGINE", engine);
            let output = command.args(args).stdin(Stdio::null()).output().unwrap();
            let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
            let (out, err) = (text(output.stdout), text(output.stderr));
            assert!(output.status.success(), "{engine} {args:?}: {out}{err}");
            (out, err)
        };
        let (answer, _) = run(&["run", "fathom-tiny", "--think=false", QUESTION]);
        assert!(answer.contains(ANSWER), "{engine}: {answer}");
        let (_, numbers) = run(&["run", "fathom-tiny", "--think=false", "--verbose", QUESTION]);
        assert!(numbers.contains("eval rate:"), "{numbers}");
        assert!(run(&["ps"]).0.contains("fathom-tiny:latest"));

        let path = model().to_str().unwrap();
        let bench = ["bench", "--model", path, "--engine", engine, "--context", "64", "--prompt", "40", "--gen", "2"];
        let report: Value = serde_json::from_str(&run(&[&bench[..], &["--rounds", "1", "--json"]].concat()).0).unwrap();
        assert_eq!(report["rows"][0]["engine"], engine, "{report}");
        let eval = ["eval", path, "--engine", engine, "--only", "text", "--tokens", "300", "--window", "128", "--json"];
        let report: Value = serde_json::from_str(&run(&eval).0).unwrap();
        assert_eq!((&report["engine"], &report["kv"]), (&json!(engine), &json!("f16")), "{report}");
        assert!(report["text"]["perplexity"]["value"].as_f64().unwrap() > 1.0, "{report}");
    }
}
