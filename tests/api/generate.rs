//! `/api/generate`.

use serde_json::{Value, json};

use crate::support::http::Reply;
use crate::support::model::{self, Parts};
use crate::support::{Server, answers, transcript};
use fathom::engine::scripted::Script;

/// The `response` fields of all lines, joined.
fn response(reply: &Reply) -> String {
    reply.lines().iter().map(|line| line["response"].as_str().unwrap()).collect()
}

fn tokens_of_first_request(server: &Server, count: usize) -> Vec<u32> {
    let mut tokens = Vec::new();
    while tokens.len() < count {
        tokens.extend(server.batches.try_recv().unwrap().tokens.iter().map(|t| t.token.0));
    }
    tokens
}

#[test]
fn an_answer_is_streamed_line_by_line() {
    let server = Server::start(answers(&["Hi"]));
    let reply = server.post("/api/generate", &json!({"model": "tiny", "prompt": "A", "think": false}));
    assert_eq!(
        transcript::of(&reply),
        r#"200 application/x-ndjson
{"model":"tiny","created_at":"<time>","response":"H","done":false}
{"model":"tiny","created_at":"<time>","response":"i","done":false}
{"model":"tiny","created_at":"<time>","response":"","done":true,"done_reason":"stop","context":[256,258,65,259,261,72,105],"total_duration":"<ns>","load_duration":"<ns>","prompt_eval_count":5,"prompt_eval_duration":"<ns>","eval_count":3,"eval_duration":"<ns>"}
"#
    );
    assert_eq!(reply.chunks.len(), 3, "each line is sent by itself");
    assert!(reply.lines()[0]["created_at"].as_str().unwrap().ends_with('Z'));
}

#[test]
fn without_streaming_the_answer_is_one_object() {
    let server = Server::start(answers(&["I see.</think>Hi"]));
    let reply = server.post("/api/generate", &json!({"model": "TINY", "prompt": "A", "stream": false}));
    assert_eq!(
        transcript::of(&reply),
        r#"200 application/json; charset=utf-8
{"model":"TINY","created_at":"<time>","response":"Hi","thinking":"I see.","done":true,"done_reason":"stop","context":[256,258,65,259,260,73,32,115,101,101,46,261,72,105],"total_duration":"<ns>","load_duration":"<ns>","prompt_eval_count":5,"prompt_eval_duration":"<ns>","eval_count":10,"eval_duration":"<ns>"}
"#
    );
}

#[test]
fn load_and_unload_are_single_objects() {
    let server = Server::start(answers(&["x"]));
    let load = server.post("/api/generate", &json!({"model": "tiny"}));
    assert_eq!(
        transcript::of(&load),
        "200 application/json; charset=utf-8\n\
         {\"model\":\"tiny\",\"created_at\":\"<time>\",\"response\":\"\",\"done\":true,\"done_reason\":\"load\"}\n"
    );
    assert_eq!(server.metric("fathom_models_loaded"), 1.0);
    let unload = server.post("/api/generate", &json!({"model": "tiny", "keep_alive": 0}));
    assert_eq!(
        transcript::of(&unload),
        "200 application/json; charset=utf-8\n\
         {\"model\":\"tiny\",\"created_at\":\"<time>\",\"response\":\"\",\"done\":true,\"done_reason\":\"unload\"}\n"
    );
    server.wait_for_metric("fathom_models_loaded", 0.0);
    // Also when nothing is loaded.
    let again = server.post("/api/generate", &json!({"model": "tiny", "keep_alive": "0s"}));
    assert_eq!(again.json()["done_reason"], "unload");
}

#[test]
fn keep_alive_zero_unloads_after_the_answer() {
    let server = Server::start(answers(&["Hi"]));
    let request = json!({"model": "tiny", "prompt": "A", "think": false, "keep_alive": 0});
    assert_eq!(response(&server.post("/api/generate", &request)), "Hi");
    server.wait_for_metric("fathom_models_loaded", 0.0);
}

#[test]
fn the_rendered_prompt_can_be_looked_at() {
    let parts = Parts { system: Some("Be brief."), ..Parts::default() };
    let server = Server::with_model(answers(&["x"]), model::metadata("deepseek4"), &parts);
    let render = |extra: Value| {
        let mut request = json!({"model": "tiny", "prompt": "A", "think": false, "_debug_render_only": true});
        request.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        let reply = server.post("/api/generate", &request).json();
        assert_eq!(reply["done"], false);
        reply["_debug_info"]["rendered_template"].as_str().unwrap().to_owned()
    };
    for (extra, prompt) in [
        (json!({}), "<｜begin▁of▁sentence｜>Be brief.<｜User｜>A<｜Assistant｜></think>"),
        (json!({"system": "Rhyme."}), "<｜begin▁of▁sentence｜>Rhyme.<｜User｜>A<｜Assistant｜></think>"),
        (json!({"think": true}), "<｜begin▁of▁sentence｜>Be brief.<｜User｜>A<｜Assistant｜><think>"),
        (json!({"suffix": "C"}), "<｜fim▁begin｜>A<｜fim▁hole｜>C<｜fim▁end｜>"),
        (json!({"template": "{{ .System }} -- {{ .Prompt }}: {{ .Response }}."}), "Be brief. -- A: "),
        (json!({"template": "{{ .Prompt }}<{{ .Suffix }}>", "suffix": "C"}), "A<C>"),
    ] {
        let rendered = render(extra.clone());
        assert!(rendered.ends_with(prompt), "{extra}: {rendered}");
    }
    let mut raw = json!({"model": "tiny", "prompt": "A", "raw": true, "_debug_render_only": true});
    assert_eq!(server.post("/api/generate", &raw).json()["_debug_info"]["rendered_template"], "A");
    raw["stream"] = json!(true);
    let single = server.post("/api/generate", &raw);
    assert_eq!(single.header("content-type"), Some("application/json; charset=utf-8"));
}

#[test]
fn raw_prompts_and_answers_are_untouched() {
    let server = Server::start(answers(&["a</think>b"]));
    let reply = server.post("/api/generate", &json!({"model": "tiny", "prompt": "<think>A", "raw": true}));
    assert_eq!(response(&reply), "a</think>b");
    assert!(reply.lines().iter().all(|line| line.get("context").is_none() && line.get("thinking").is_none()));
    // The tokenizer's BOS, then exactly the text.
    assert_eq!(tokens_of_first_request(&server, 3), [256, 260, 65]);
}

#[test]
fn context_continues_an_earlier_answer() {
    let server = Server::start(answers(&["Hi", "Yes"]));
    let first = server.post("/api/generate", &json!({"model": "tiny", "prompt": "A", "think": false, "stream": false}));
    let context = first.json()["context"].clone();
    let request = json!({"model": "tiny", "prompt": "B", "context": context, "think": false, "stream": false, "options": {"seed": 1}});
    let second = server.post("/api/generate", &request).json();
    assert_eq!(second["response"], "Yes");
    // Everything of before, the end of that turn, then the new turn without a second beginning of text.
    assert_eq!(
        second["context"],
        json!([256, 258, 65, 259, 261, 72, 105, 257, 258, 66, 259, 261, 89, 101, 115]),
        "{second}"
    );
}

#[test]
fn characters_of_several_tokens_arrive_whole() {
    let text = "né 日本 🙂!";
    let server = Server::start(answers(&[text]));
    let reply = server.post("/api/generate", &json!({"model": "tiny", "prompt": "A", "think": false}));
    let parts: Vec<String> = reply
        .lines()
        .iter()
        .map(|line| line["response"].as_str().unwrap().to_owned())
        .filter(|t| !t.is_empty())
        .collect();
    let characters: Vec<String> = text.chars().map(String::from).collect();
    assert_eq!(parts, characters);
    assert_eq!(reply.lines().last().unwrap()["eval_count"], text.len() + 1, "one token for each byte, and the end");
}

#[test]
fn a_stop_string_ends_the_answer_and_is_not_part_of_it() {
    let server = Server::start(answers(&["one ENvoy two END three"]));
    let stop = json!({"stop": ["END", "never"]});
    let reply = server.post("/api/generate", &json!({"model": "tiny", "prompt": "A", "think": false, "options": stop}));
    assert_eq!(response(&reply), "one ENvoy two ");
    assert_eq!(reply.lines().last().unwrap()["done_reason"], "stop");
}

#[test]
fn num_predict_bounds_the_answer() {
    let server = Server::start(answers(&["abcdef"]));
    let ask = |n: i64| {
        let options = json!({"num_predict": n});
        let request = json!({"model": "tiny", "prompt": "A", "think": false, "stream": false, "options": options});
        server.post("/api/generate", &request).json()
    };
    let three = ask(3);
    assert_eq!((&three["response"], &three["done_reason"]), (&json!("abc"), &json!("length")));
    assert_eq!(three["eval_count"], 3);
    assert_eq!(ask(-1)["response"], "abcdef");
    let none = ask(0);
    assert_eq!((&none["response"], &none["done_reason"]), (&json!(""), &json!("length")), "{none}");
}

#[test]
fn another_context_length_loads_the_model_again() {
    let server = Server::start(answers(&["x"]));
    let ask = |options: Value| {
        let request = json!({"model": "tiny", "prompt": "A".repeat(100), "think": false, "options": options});
        server.post("/api/generate", &request).status
    };
    assert_eq!((ask(json!({})), server.metric("fathom_loads_total")), (200, 1.0));
    assert_eq!((ask(json!({"num_ctx": 64})), server.metric("fathom_loads_total")), (400, 2.0));
    assert_eq!((ask(json!({"num_ctx": 128})), server.metric("fathom_loads_total")), (200, 3.0));
    // Options that are not about loading do not.
    assert_eq!((ask(json!({"num_ctx": 128, "top_k": 3})), server.metric("fathom_loads_total")), (200, 3.0));
    assert_eq!(server.metric("fathom_models_loaded"), 1.0);
}

#[test]
fn logprobs_name_every_token() {
    let server = Server::start(answers(&["aé"]));
    let request = json!({
        "model": "tiny", "prompt": "A", "think": false, "logprobs": true, "top_logprobs": 2, "options": {"temperature": 0},
    });
    let lines = server.post("/api/generate", &request).lines();
    let logprobs: Vec<&Value> = lines.iter().filter_map(|line| line["logprobs"].as_array()).flatten().collect();
    let bytes: Vec<&Value> = logprobs.iter().map(|logprob| &logprob["bytes"]).collect();
    assert_eq!(bytes[..3], [&json!([97]), &json!([0xc3]), &json!([0xa9])]);
    for logprob in &logprobs {
        let top = logprob["top_logprobs"].as_array().unwrap();
        assert_eq!(top.len(), 2);
        assert_eq!(top[0]["token"], logprob["token"], "greedy takes the most likely");
        assert!(logprob["logprob"].as_f64().unwrap() <= 0.0);
        assert!(top[0]["logprob"].as_f64() >= top[1]["logprob"].as_f64());
    }
    // Without `top_logprobs` the alternatives are left out; without `logprobs` everything is.
    let request = json!({"model": "tiny", "prompt": "A", "think": false, "logprobs": true, "stream": false});
    assert!(server.post("/api/generate", &request).json()["logprobs"][0].get("top_logprobs").is_none());
    let request = json!({"model": "tiny", "prompt": "A", "think": false, "top_logprobs": 5, "stream": false});
    assert!(server.post("/api/generate", &request).json().get("logprobs").is_none());
}

#[test]
fn a_prompt_that_does_not_fit_is_refused() {
    let server = Server::start(Script { n_ctx: Some(64), ..answers(&["x"]) });
    let request = json!({"model": "tiny", "prompt": "A".repeat(100), "think": false});
    let reply = server.post("/api/generate", &request);
    assert_eq!(
        transcript::of(&reply),
        "400 application/json; charset=utf-8\n\
         {\"error\":\"the prompt is longer than the context length currently available to the model; shorten the prompt, \
         adjust the context length in settings, or use a model with a longer context length\"}\n"
    );
    for extra in [json!({"truncate": false}), json!({"raw": true})] {
        let mut request = request.clone();
        request.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        let reply = server.post("/api/generate", &request);
        assert_eq!(reply.status, 400);
        let text = reply.json()["error"].as_str().unwrap().to_owned();
        assert!(text.contains("exceeds the available context size (64 tokens)"), "{text}");
    }
}

#[test]
fn the_first_fault_in_the_order_of_the_checks_is_answered() {
    let server = Server::start(answers(&["x"]));
    let think_text = r#"invalid think value: "loud" (must be "high", "medium", "low", "max", true, or false)"#;
    for (body, status, text) in [
        ("", 400, "missing request body"),
        ("  \n", 400, "missing request body"),
        ("{\"model\": \"tiny\"", 400, "unexpected EOF"),
        ("null", 404, "model '' not found"),
        ("{}", 404, "model '' not found"),
        (
            r#"{"model": 7}"#,
            400,
            "json: cannot unmarshal number into Go struct field GenerateRequest.model of type string",
        ),
        (r#"{"model": "", "think": "loud"}"#, 400, think_text),
        (
            r#"{"model": "tiny", "think": 1}"#,
            400,
            r#"think must be a boolean or string ("high", "medium", "low", "max", true, or false)"#,
        ),
        (r#"{"model": "", "keep_alive": "abc"}"#, 400, r#"time: invalid duration "abc""#),
        (r#"{"model": "", "keep_alive": "10"}"#, 400, r#"time: missing unit in duration "10""#),
        (r#"{"model": "", "keep_alive": true}"#, 400, "Unsupported type: 'bool'"),
        (r#"{"model": "tiny", "images": ["?"]}"#, 400, "illegal base64 data at input byte 0"),
        (r#"{"model": "", "top_logprobs": 21}"#, 400, "top_logprobs must be between 0 and 20"),
        (r#"{"model": "", "top_logprobs": -1}"#, 400, "top_logprobs must be between 0 and 20"),
        (r#"{"model": "a//b"}"#, 400, "invalid model name"),
        (r#"{"model": "Missing"}"#, 404, "model 'Missing' not found"),
        (r#"{"model": "tiny:v2", "raw": true, "system": "x"}"#, 404, "model 'tiny:v2' not found"),
        (
            r#"{"model": "/etc/passwd"}"#,
            403,
            "paths are accepted only on this machine, with the header `Sec-Fathom-Local: 1`",
        ),
        (
            r#"{"model": "tiny", "prompt": "A", "raw": true, "system": "x", "options": {"top_k": "x"}}"#,
            400,
            "raw mode does not support template, system, or context",
        ),
        (
            r#"{"model": "tiny", "prompt": "A", "raw": true, "context": [1]}"#,
            400,
            "raw mode does not support template, system, or context",
        ),
        (
            r#"{"model": "tiny", "prompt": "A", "images": ["AAAA"]}"#,
            400,
            "registry.ollama.ai/library/tiny:latest does not support vision",
        ),
        (r#"{"model": "tiny", "options": {"top_k": "x"}}"#, 500, r#"option "top_k" must be of type integer"#),
        (
            r#"{"model": "tiny", "prompt": "A", "options": {"stop": "x"}}"#,
            500,
            r#"option "stop" must be of type array"#,
        ),
        (
            r#"{"model": "tiny", "prompt": "A", "format": "xml"}"#,
            500,
            r#"invalid format: "\"xml\""; expected "json" or a valid JSON Schema object"#,
        ),
        (
            r#"{"model": "tiny", "prompt": "A", "template": "{{ .Prompt }"}"#,
            500,
            "the model's chat template failed: unexpected '}' in an action (line 1)",
        ),
        (
            r#"{"model": "tiny", "prompt": "A", "think": false, "context": [99999]}"#,
            400,
            "token 99999 of the prompt is outside of the vocabulary of 266",
        ),
    ] {
        let reply = crate::support::http::open(server.address, "POST", "/api/generate", &[], body.as_bytes()).finish();
        let expected = format!("{status} application/json; charset=utf-8\n{}\n", json!({ "error": text }));
        assert_eq!(transcript::of(&reply), expected, "request `{body}`");
    }
    // Unset in every spelling is no format.
    for format in [json!(null), json!("")] {
        let request = json!({"model": "tiny", "prompt": "A", "think": false, "format": format});
        assert_eq!(server.post("/api/generate", &request).status, 200);
    }
}

#[test]
fn what_a_model_cannot_do_is_refused() {
    let plain = Server::with_model(answers(&["x"]), model::metadata("llama"), &Parts::default());
    let mut embedding = model::metadata("bert");
    embedding.insert("bert.pooling_type", 1u32);
    let embedding = Server::with_model(answers(&["x"]), embedding, &Parts::default());
    for (server, body, text) in [
        (&plain, json!({"model": "tiny", "prompt": "A", "think": true}), r#""tiny" does not support thinking"#),
        (&plain, json!({"model": "Tiny", "prompt": "A", "think": "low"}), r#""Tiny" does not support thinking"#),
        (
            &plain,
            json!({"model": "tiny", "prompt": "A", "suffix": "B"}),
            "registry.ollama.ai/library/tiny:latest does not support insert",
        ),
        (&embedding, json!({"model": "tiny", "prompt": "A"}), r#""tiny" does not support generate"#),
    ] {
        let reply = server.post("/api/generate", &body);
        assert_eq!((reply.status, &reply.json()["error"]), (400, &json!(text)), "{body}");
    }
    let fine = plain.post("/api/generate", &json!({"model": "tiny", "prompt": "A", "think": false, "stream": false}));
    assert_eq!(fine.json()["response"], "x");
}

#[test]
fn a_client_that_leaves_is_not_computed_for() {
    let endless = Script { step_delay_us: 500, n_ctx: Some(100_000), ..answers(&[&"x".repeat(90_000)]) };
    let server = Server::start(endless);
    let mut exchange = server.open("/api/generate", &json!({"model": "tiny", "prompt": "A", "raw": true}));
    for _ in 0..3 {
        exchange.line().unwrap();
    }
    drop(exchange);
    server.wait_for_metric("fathom_running", 0.0);
    while server.batches.try_recv().is_ok() {}
    // The next batch is that of another request, alone.
    let request = json!({"model": "tiny", "prompt": "BC", "raw": true, "stream": false, "options": {"num_predict": 1}});
    assert_eq!(server.post("/api/generate", &request).status, 200);
    let batch = server.batches.try_recv().unwrap();
    assert_eq!(batch.tokens.iter().map(|t| t.token.0).collect::<Vec<_>>(), [256, 66, 67]);
    assert_eq!(server.metric("fathom_requests_total{reason=\"cancelled\"}"), 1.0);
}

#[test]
fn a_long_prefill_ends_with_the_chunk_in_which_its_client_left() {
    let slow = Script { token_delay_us: 1000, n_batch: Some(64), n_ctx: Some(20_000), ..answers(&["x"]) };
    let server = Server::start(slow);
    let body = json!({"model": "tiny", "prompt": "A".repeat(10_000), "raw": true}).to_string();
    let connection = crate::support::http::send(server.address, "POST", "/api/generate", &[], body.as_bytes());
    let mut computed = server.batches.recv().unwrap().tokens.len();
    drop(connection);
    server.wait_for_metric("fathom_running", 0.0);
    computed += server.batches.try_iter().map(|batch| batch.tokens.len()).sum::<usize>();
    // Ten seconds of prefill if nobody noticed.
    assert!(computed < 2000, "{computed} of 10001 tokens were computed");
}

#[test]
fn an_engine_that_fails_is_an_error_line_and_the_server_goes_on() {
    let server = Server::start(Script { fail_at_step: Some(3), ..answers(&["abcdef", "fine"]) });
    let request = json!({"model": "tiny", "prompt": "A", "think": false});
    let reply = server.post("/api/generate", &request);
    assert_eq!(reply.status, 200, "the first tokens were sent already");
    let lines = reply.lines();
    let error = lines.last().unwrap()["error"].as_str().unwrap();
    assert!(error.starts_with("an error was encountered while running the model: "), "{error}");
    assert_eq!(lines.iter().filter(|line| line.get("error").is_some()).count(), 1);
    assert_eq!(response(&server.post("/api/generate", &request)), "fine");
}

#[test]
fn an_engine_that_panics_is_an_error_and_is_loaded_again() {
    let server = Server::start(Script { panic_at_step: Some(1), ..answers(&["x"]) });
    let request = json!({"model": "tiny", "prompt": "A", "think": false, "stream": false});
    let reply = server.post("/api/generate", &request);
    assert_eq!(reply.status, 500);
    let error = reply.json()["error"].as_str().unwrap().to_owned();
    assert!(error.starts_with("model runner has unexpectedly stopped"), "{error}");
    assert_eq!(server.get("/").text(), "Ollama is running");
}

#[test]
fn another_row_type_loads_the_model_anew_and_is_shown() {
    let server = Server::start(answers(&["Hi"]));
    let last = |options: Value| {
        let request = json!({"model": "tiny", "prompt": "A", "raw": true, "options": options});
        server.post("/api/generate", &request).lines().pop().unwrap()
    };
    let counted =
        |kv: &str| server.metric(&format!("fathom_computed_requests_total{{engine=\"scripted\",kv=\"{kv}\"}}"));
    assert_eq!(last(json!({})).get("kv"), None, "the usual one is not mentioned");
    assert_eq!(last(json!({"kv": "fp8"}))["kv"], "fp8");
    assert_eq!(last(json!({"kv": "fp8", "num_ctx": 4096}))["kv"], "fp8");
    assert_eq!(server.metric("fathom_loads_total"), 2.0, "the second `fp8` shares the load of the first");
    assert_eq!((counted("f16"), counted("fp8")), (1.0, 2.0));
    assert_eq!(last(json!({"kv": "f16"})).get("kv"), None);
    assert_eq!(server.metric("fathom_loads_total"), 3.0);

    let refused = server.post("/api/generate", &json!({"model": "tiny", "prompt": "A", "options": {"kv": "q5"}}));
    assert_eq!(refused.status, 500, "as Ollama answers wrong options");
    assert_eq!(refused.json()["error"], r#"option "kv" must be one of f32, f16, q8_0, q4_0, fp8, not "q5""#);
}

#[test]
fn a_modelfile_decides_the_row_type_unless_the_request_does() {
    let parts = Parts { params: Some(json!({"kv": "fp8"})), ..Parts::default() };
    let server = Server::with_model(answers(&["Hi"]), model::metadata("deepseek4"), &parts);
    for (options, kv) in
        [(json!({}), json!("fp8")), (json!({"kv": "f32"}), json!("f32")), (json!({"kv": "f16"}), Value::Null)]
    {
        let request = json!({"model": "tiny", "prompt": "A", "raw": true, "stream": false, "options": options});
        assert_eq!(server.post("/api/generate", &request).json()["kv"], kv, "{options}");
    }
}
