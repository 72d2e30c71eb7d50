//! `/api/chat`.

use serde_json::{Value, json};

use crate::support::http;
use crate::support::model::{self, Parts};
use crate::support::{Server, answers, transcript};
use fathom::engine::scripted::Script;

const CALL: &str = "Let me look.</think>\n\n<｜DSML｜tool_calls>\n<｜DSML｜invoke name=\"weather\">\n\
    <｜DSML｜parameter name=\"city\" string=\"true\">Zürich</｜DSML｜parameter>\n\
    <｜DSML｜parameter name=\"days\" string=\"false\">3</｜DSML｜parameter>\n</｜DSML｜invoke>\n\
    <｜DSML｜invoke name=\"time\">\n</｜DSML｜invoke>\n</｜DSML｜tool_calls>";

fn tools() -> Value {
    let parameters = json!({"type": "object", "properties": {"city": {"type": "string"}, "days": {"type": "integer"}}});
    json!([
        {"type": "function", "function": {"name": "weather", "description": "Forecast", "parameters": parameters}},
        {"type": "function", "function": {"name": "time", "parameters": {"type": "object", "properties": {}}}},
    ])
}

fn user(text: &str) -> Value {
    json!({"role": "user", "content": text})
}

/// What `_debug_render_only` shows of the conversation.
fn rendered(server: &Server, request: &Value) -> String {
    let mut request = request.clone();
    request["_debug_render_only"] = json!(true);
    let reply = server.post("/api/chat", &request);
    assert_eq!(reply.status, 200, "{}", reply.text());
    reply.json()["_debug_info"]["rendered_template"].as_str().unwrap().to_owned()
}

#[test]
fn thinking_and_content_are_streamed_apart() {
    let server = Server::start(answers(&["Hm</think>Yo"]));
    let reply = server.post("/api/chat", &json!({"model": "tiny", "messages": [user("A")]}));
    assert_eq!(
        transcript::of(&reply),
        r#"200 application/x-ndjson
{"model":"tiny","created_at":"<time>","message":{"role":"assistant","content":"","thinking":"H"},"done":false}
{"model":"tiny","created_at":"<time>","message":{"role":"assistant","content":"","thinking":"m"},"done":false}
{"model":"tiny","created_at":"<time>","message":{"role":"assistant","content":"Y"},"done":false}
{"model":"tiny","created_at":"<time>","message":{"role":"assistant","content":"o"},"done":false}
{"model":"tiny","created_at":"<time>","message":{"role":"assistant","content":""},"done":true,"done_reason":"stop","total_duration":"<ns>","load_duration":"<ns>","prompt_eval_count":5,"prompt_eval_duration":"<ns>","eval_count":6,"eval_duration":"<ns>"}
"#
    );
}

#[test]
fn without_streaming_the_message_is_one_object() {
    let server = Server::start(answers(&["Hm</think>Yo", "Yo"]));
    let mut request = json!({"model": "tiny", "messages": [user("A")], "stream": false});
    assert_eq!(
        transcript::of(&server.post("/api/chat", &request)),
        r#"200 application/json; charset=utf-8
{"model":"tiny","created_at":"<time>","message":{"role":"assistant","content":"Yo","thinking":"Hm"},"done":true,"done_reason":"stop","total_duration":"<ns>","load_duration":"<ns>","prompt_eval_count":5,"prompt_eval_duration":"<ns>","eval_count":6,"eval_duration":"<ns>"}
"#
    );
    request["think"] = json!(false);
    let reply = server.post("/api/chat", &request).json();
    assert_eq!(reply["message"], json!({"role": "assistant", "content": "Yo"}));
}

#[test]
fn tool_calls_come_whole_with_arguments_in_the_models_order() {
    let server = Server::start(answers(&[CALL]));
    let mut request = json!({"model": "tiny", "messages": [user("Weather?")], "tools": tools(), "stream": false});
    let message = r#"{"role":"assistant","content":"","thinking":"Let me look.","tool_calls":[{"id":"<id>","function":{"index":0,"name":"weather","arguments":{"city":"Zürich","days":3}}},{"id":"<id>","function":{"index":1,"name":"time","arguments":{}}}]}"#;
    let reply = server.post("/api/chat", &request);
    let mut whole = reply.json();
    assert_eq!(whole["done_reason"], "stop");
    let id = whole["message"]["tool_calls"][0]["id"].as_str().unwrap().to_owned();
    assert_eq!(id.len(), "call_".len() + 8, "{id}");
    transcript::normalise(&mut whole);
    assert_eq!(whole["message"].to_string(), message);

    request["stream"] = json!(true);
    let lines = server.post("/api/chat", &request).lines();
    let calls: Vec<&Value> = lines.iter().filter(|line| line["message"].get("tool_calls").is_some()).collect();
    assert_eq!(calls.len(), 2, "each call as soon as it is complete");
    for (index, line) in calls.iter().enumerate() {
        assert_eq!((&line["message"]["content"], &line["done"]), (&json!(""), &json!(false)));
        assert_eq!(line["message"]["tool_calls"][0]["function"]["index"], index);
    }
    assert!(lines.iter().all(|line| !line["message"]["content"].as_str().unwrap().contains("DSML")));
}

#[test]
fn tools_and_their_results_reach_the_prompt_as_the_client_wrote_them() {
    let server = Server::start(answers(&["x"]));
    let request = json!({"model": "tiny", "tools": tools(), "messages": [
        user("Weather?"),
        {"role": "assistant", "content": "", "thinking": "Look.", "tool_calls": [
            {"id": "call_1", "function": {"name": "weather", "arguments": {"days": 3, "city": "Zürich"}}}]},
        {"role": "tool", "tool_name": "weather", "tool_call_id": "call_1", "content": "{\"sun\": 1.0}"},
    ]});
    let prompt = rendered(&server, &request);
    for part in [
        r#"{"name": "weather", "description": "Forecast", "parameters": {"type": "object", "properties": {"city": {"type": "string"}, "days": {"type": "integer"}}}}"#,
        "<｜DSML｜parameter name=\"days\" string=\"false\">3</｜DSML｜parameter>\n<｜DSML｜parameter name=\"city\" string=\"true\">Zürich<",
        "<｜User｜><tool_result>{\"sun\": 1.0}</tool_result><｜Assistant｜><think>",
    ] {
        assert!(prompt.contains(part), "`{part}` is not in `{prompt}`");
    }
}

#[test]
fn the_models_own_texts_come_first() {
    let parts = Parts {
        system: Some("Be brief."),
        messages: Some(json!([{"role": "user", "content": "1?"}, {"role": "assistant", "content": "one"}])),
        ..Parts::default()
    };
    let server = Server::with_model(answers(&["x"]), model::metadata("deepseek4"), &parts);
    let ask = |messages: Value| rendered(&server, &json!({"model": "tiny", "think": false, "messages": messages}));
    assert_eq!(
        ask(json!([user("2?")])),
        "<｜begin▁of▁sentence｜>Be brief.<｜User｜>1?<｜Assistant｜></think>one<｜end▁of▁sentence｜><｜User｜>2?<｜Assistant｜></think>"
    );
    let own = ask(json!([{"role": "SYSTEM", "content": "Rhyme."}, user("2?")]));
    assert!(!own.contains("Be brief."), "the client's system text replaces the model's: {own}");
    assert!(own.contains("Rhyme."), "{own}");
}

#[test]
fn a_model_with_a_jinja_template_is_asked_in_its_words() {
    let mut metadata = model::metadata("llama");
    let template = "{{ bos_token }}{% for m in messages %}[{{ m.role }}] {{ m.content }}\n{% endfor %}[assistant] ";
    metadata.insert("tokenizer.chat_template", template);
    let server = Server::with_model(answers(&["Yo"]), metadata, &Parts::default());
    let request = json!({"model": "tiny", "messages": [user("A")], "stream": false});
    assert_eq!(rendered(&server, &request), "<｜begin▁of▁sentence｜>[user] A\n[assistant] ");
    let reply = server.post("/api/chat", &request).json();
    assert_eq!(reply["message"]["content"], "Yo");
    assert_eq!(reply["prompt_eval_count"], 1 + "[user] A\n[assistant] ".len(), "one beginning of text");
}

/// A TEMPLATE of the Modelfile: its prompt, and calls and reasoning by its own tags.
#[test]
fn a_model_with_a_go_template_is_asked_in_its_words() {
    let template = "{{ range $i, $m := .Messages }}{{ if eq .Role \"assistant\" }}<a>{{ if .Thinking }}[R]{{ .Thinking }}[/R]{{ end }}\
                    {{ .Content }}{{ if .ToolCalls }}<call>{{ range .ToolCalls }}{\"name\": \"{{ .Function.Name }}\"}{{ end }}{{ end }}{{ else }}\
                    <{{ .Role }}>{{ .Content }}{{ end }}{{ end }}{{ if .Tools }}{{ len .Tools }} tools{{ end }}<a>";
    let parts = Parts { template: Some(template), ..Parts::default() };
    let answer = "[R]Hm[/R]Let me see. <call>{\"name\": \"time\", \"arguments\": {}}";
    let server = Server::with_model(answers(&[answer]), model::metadata("llama"), &parts);
    let show = server.post("/api/show", &json!({"model": "tiny"})).json();
    assert_eq!(show["capabilities"], json!(["completion", "tools", "thinking"]));
    let mut request = json!({"model": "tiny", "messages": [user("A")], "stream": false});
    assert_eq!(rendered(&server, &request), "<user>A<a>");
    request["tools"] = tools();
    assert_eq!(rendered(&server, &request), "<user>A2 tools<a>");
    let message = &server.post("/api/chat", &request).json()["message"];
    assert_eq!(message["thinking"], "Hm");
    assert_eq!(message["content"], "Let me see.");
    assert_eq!(message["tool_calls"][0]["function"]["name"], "time");
    // What the template says about a conversation that it cannot write is the answer.
    let broken = Parts { template: Some("{{ index .Messages 7 }}"), ..Parts::default() };
    let server = Server::with_model(answers(&["x"]), model::metadata("llama"), &broken);
    let reply = server.post("/api/chat", &json!({"model": "tiny", "messages": [user("A")]}));
    assert!(reply.text().contains("index 7 is out of range: there are 1 (line 1)"), "{}", reply.text());
}

#[test]
fn effort_levels_are_passed_on() {
    let server = Server::start(answers(&["x"]));
    let ask = |think: Value| rendered(&server, &json!({"model": "tiny", "think": think, "messages": [user("A")]}));
    let plain = ask(json!(true));
    assert_eq!(plain, "<｜begin▁of▁sentence｜><｜User｜>A<｜Assistant｜><think>");
    assert_eq!(ask(json!(null)), plain, "a model that can think does");
    assert!(ask(json!("max")).len() > plain.len() + 100, "the effort text stands in front");
    assert!(ask(json!(false)).ends_with("</think>"));
}

#[test]
fn empty_conversations_load_and_unload() {
    let server = Server::start(answers(&["x"]));
    for (keep_alive, reason, loaded) in
        [(json!(null), "load", 1.0), (json!(0), "unload", 0.0), (json!("1h"), "load", 1.0)]
    {
        let request = json!({"model": "tiny", "messages": [], "keep_alive": keep_alive});
        let expected = format!(
            "200 application/json; charset=utf-8\n{{\"model\":\"tiny\",\"created_at\":\"<time>\",\
             \"message\":{{\"role\":\"assistant\",\"content\":\"\"}},\"done\":true,\"done_reason\":\"{reason}\"}}\n"
        );
        assert_eq!(transcript::of(&server.post("/api/chat", &request)), expected);
        server.wait_for_metric("fathom_models_loaded", loaded);
    }
}

#[test]
fn turns_that_do_not_fit_are_dropped_and_the_answer_says_so() {
    let server = Server::start(Script { n_ctx: Some(128), ..answers(&["x"]) });
    let messages: Vec<Value> = (0..6)
        .flat_map(|i| {
            [
                user(&format!("question {i} {}", "q".repeat(20))),
                json!({"role": "assistant", "content": format!("answer {i}")}),
            ]
        })
        .chain([user("the last one")])
        .collect();
    let mut request = json!({"model": "tiny", "think": false, "messages": messages, "stream": false});
    request["messages"].as_array_mut().unwrap().insert(0, json!({"role": "system", "content": "Be brief."}));
    let reply = server.post("/api/chat", &request).json();
    let prompt = rendered(&server, &request);
    assert!(
        prompt.starts_with("<｜begin▁of▁sentence｜>Be brief.<｜User｜>question 4 "),
        "whole turns, newest last: {prompt}"
    );
    assert!(prompt.ends_with("<｜User｜>the last one<｜Assistant｜></think>"), "{prompt}");
    assert_eq!(reply["truncated"]["messages"], 8, "{reply}");
    assert_eq!(reply["truncated"]["tokens"], 4 * 43, "{reply}");
    assert!(reply["prompt_eval_count"].as_u64().unwrap() <= 128);

    request["truncate"] = json!(false);
    let refused = server.post("/api/chat", &request);
    assert_eq!(refused.status, 400);
    assert!(refused.json()["error"].as_str().unwrap().contains("exceeds the available context size (128 tokens)"));

    let short = json!({"model": "tiny", "think": false, "messages": [user("A")], "stream": false});
    assert!(server.post("/api/chat", &short).json().get("truncated").is_none());
}

#[test]
fn a_message_that_cannot_be_shortened_is_refused() {
    let server = Server::start(Script { n_ctx: Some(64), ..answers(&["x"]) });
    let reply = server.post("/api/chat", &json!({"model": "tiny", "messages": [user("A"), user(&"B".repeat(100))]}));
    assert_eq!(reply.status, 400);
    assert!(reply.json()["error"].as_str().unwrap().starts_with("the prompt is longer than the context length"));
}

#[test]
fn the_first_fault_in_the_order_of_the_checks_is_answered() {
    let server = Server::start(answers(&["x"]));
    for (body, status, text) in [
        ("", 400, "missing request body"),
        ("{}", 400, "model is required"),
        (
            r#"{"model": "tiny", "messages": [{"content": ["x"]}]}"#,
            400,
            "json: cannot unmarshal array into Go struct field ChatRequest.messages.content of type string",
        ),
        (r#"{"model": "", "top_logprobs": 99}"#, 400, "top_logprobs must be between 0 and 20"),
        (r#"{"model": "a:"}"#, 400, "invalid model name"),
        (r#"{"model": "Missing", "options": {"top_k": "x"}}"#, 404, "model 'Missing' not found"),
        (
            r#"{"model": "tiny", "messages": [], "options": {"num_ctx": "x"}}"#,
            500,
            r#"option "num_ctx" must be of type integer"#,
        ),
        (
            r#"{"model": "tiny", "messages": [{"role": "user", "content": "A", "images": ["AAAA"]}]}"#,
            400,
            "registry.ollama.ai/library/tiny:latest does not support vision",
        ),
        (
            r#"{"model": "tiny", "messages": [{"role": "user", "content": "A"}], "tools": [{"type": "function"}]}"#,
            400,
            "tool 0 has no `function` with a `name`",
        ),
        (
            r#"{"model": "tiny", "messages": [{"role": "user", "content": "A"}], "format": {"type": "nonsense"}}"#,
            400,
            "the form of the answer: Invalid type: nonsense",
        ),
        (
            r#"{"model": "tiny", "messages": [{"role": "user", "content": "A"}], "format": 7}"#,
            500,
            r#"invalid format: "7"; expected "json" or a valid JSON Schema object"#,
        ),
    ] {
        let reply = crate::support::http::open(server.address, "POST", "/api/chat", &[], body.as_bytes()).finish();
        let expected = format!("{status} application/json; charset=utf-8\n{}\n", json!({ "error": text }));
        assert_eq!(transcript::of(&reply), expected, "request `{body}`");
    }
}

/// Whatever the model would rather say: the answer is a document of the asked form, and reasoning stays as it is.
#[test]
fn answers_have_the_form_that_was_asked_for() {
    let schema = json!({
        "type": "object", "properties": {"ok": {"type": "boolean"}, "city": {"enum": ["Rome", "Paris"]}}, "required": ["ok", "city"],
        "additionalProperties": false
    });
    for (think, answer, thinking) in [
        (false, "I do not want to.", None),
        (false, "{\"ok\": true, \"city\": \"Paris\"} and more", None),
        (true, "First [I] think.</think>Then I talk.", Some("First [I] think.")),
        (true, "So.</think>{\"ok\": false, \"city\": \"Rome\"}", Some("So.")),
    ] {
        let server = Server::start(answers(&[answer]));
        let mut request =
            json!({"model": "tiny", "messages": [user("A")], "stream": false, "think": think, "format": schema});
        request["options"] = json!({"seed": 7, "num_predict": 200});
        let reply = server.post("/api/chat", &request).json();
        assert_eq!(reply["done_reason"], "stop", "{reply}");
        let document: Value = serde_json::from_str(reply["message"]["content"].as_str().unwrap()).unwrap();
        assert!(document["ok"].is_boolean() && document["city"].is_string(), "{document}");
        assert_eq!(document.as_object().unwrap().len(), 2, "{document}");
        assert_eq!(reply["message"]["thinking"].as_str(), thinking, "{reply}");
        if answer.contains("Paris") {
            assert_eq!(document, json!({"ok": true, "city": "Paris"}), "what fits is left as it is");
        }
    }
}

/// Cut by its budget, an answer need not be whole, and says so.
#[test]
fn a_form_that_is_cut_off_ends_with_length() {
    let server = Server::start(answers(&["{\"text\": \"a long story\"}", "{\"a\": 1}"]));
    let mut request =
        json!({"model": "tiny", "messages": [user("A")], "stream": false, "think": false, "format": "json"});
    request["options"] = json!({"num_predict": 8});
    let reply = server.post("/api/chat", &request).json();
    assert_eq!(reply["done_reason"], "length");
    assert!(reply["message"]["content"].as_str().unwrap().starts_with("{\"text"), "{reply}");
    request["options"] = json!({"temperature": 0});
    assert_eq!(server.post("/api/chat", &request).json()["message"]["content"], "{\"a\": 1}");
}

#[test]
fn what_a_model_cannot_do_is_refused() {
    let plain = Server::with_model(answers(&["x"]), model::metadata("llama"), &Parts::default());
    let mut embedding = model::metadata("bert");
    embedding.insert("bert.pooling_type", 1u32);
    let embedding = Server::with_model(answers(&["x"]), embedding, &Parts::default());
    for (server, extra, text) in [
        (&plain, json!({"think": "high"}), r#""tiny" does not support thinking"#),
        (&plain, json!({"tools": tools()}), "registry.ollama.ai/library/tiny:latest does not support tools"),
        (&embedding, json!({}), r#""tiny" does not support chat"#),
    ] {
        let mut request = json!({"model": "tiny", "messages": [user("A")]});
        request.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        let reply = server.post("/api/chat", &request);
        assert_eq!((reply.status, &reply.json()["error"]), (400, &json!(text)), "{request}");
    }
}

#[test]
fn what_conversations_share_is_computed_once() {
    let server = Server::start(answers(&["x"]));
    let (mut cached, mut requests) = (0.0, 0.0);
    let mut newly_cached = |messages: Value| {
        let request = json!({"model": "tiny", "messages": messages, "tools": tools(), "stream": false});
        let reply = server.post("/api/chat", &request).json();
        requests += 1.0;
        server.wait_for_metric("fathom_requests_total{reason=\"stop\"}", requests);
        let before = std::mem::replace(&mut cached, server.metric("fathom_cached_tokens_total"));
        (reply["prompt_eval_count"].as_f64().unwrap(), cached - before)
    };
    let system = json!({"role": "system", "content": "Be brief."});
    let question = "A question that is long enough for the places before and after it to be remembered apart";
    let first = json!([system, user(question)]);
    let (whole, none) = newly_cached(first);
    assert_eq!(none, 0.0);
    // Another conversation of the same agent: all but the question and the opening of the answer.
    let (_, shared) = newly_cached(json!([system, user("Else")]));
    assert_eq!(shared, whole - question.len() as f64 - 2.0);
    // The next turn of the first one: all but how the answer was opened.
    let next = json!([system, user(question), {"role": "assistant", "content": "x", "thinking": "Hm"}, user("And?")]);
    let (_, shared) = newly_cached(next);
    assert!(shared >= whole - 2.0, "{shared} of {whole}");
}

#[test]
fn sixteen_conversations_at_once_get_their_own_answers() {
    let server = Server::start(Script { step_delay_us: 200, ..Script::default() });
    std::thread::scope(|scope| {
        for i in 0..16 {
            let address = server.address;
            scope.spawn(move || {
                // The engine echoes the prompt, so each answer proves whose it is.
                let text = format!("conversation {i} {}", "é".repeat(i));
                let request = json!({"model": "tiny", "prompt": text, "raw": true});
                let mut exchange = http::open(address, "POST", "/api/generate", &[], request.to_string().as_bytes());
                let mut answer = String::new();
                while let Some(line) = exchange.line() {
                    answer.push_str(line["response"].as_str().unwrap());
                }
                assert_eq!(answer, text);
            });
        }
    });
    server.wait_for_metric("fathom_running", 0.0);
    assert_eq!(server.metric("fathom_requests_total{reason=\"stop\"}"), 16.0);
}

/// Ollama checks no roles; what a model's format makes of them is its business.
#[test]
fn a_role_that_nobody_knows_is_heard_as_the_user() {
    let server = Server::start(answers(&["x"]));
    let rendered = |role: &str| {
        let messages = json!([{"role": "user", "content": "Hi"}, {"role": role, "content": "Too short."}]);
        let reply =
            server.post("/api/chat", &json!({"model": "tiny", "messages": messages, "_debug_render_only": true}));
        assert_eq!(reply.status, 200, "{}", reply.text());
        reply.json()["_debug_info"]["rendered_template"].as_str().unwrap().to_owned()
    };
    let as_user = rendered("user");
    assert!(as_user.contains("Too short."));
    for role in ["critic", "Function", "", "\u{1f600}"] {
        assert_eq!(rendered(role), as_user, "`{role}`");
    }
}
