//! The option `routing` where no engine follows it: what is refused, and who may name files. `tests/engine/native/routing.rs` has the rest.

use serde_json::{Value, json};

use crate::support::http;
use crate::support::model::{self, Parts};
use crate::support::{Server, answers};

const LOCAL: &[(&str, &str)] = &[("Sec-Fathom-Local", "1")];

fn ask(server: &Server, headers: &[(&str, &str)], routing: Value) -> (u16, String) {
    let body = json!({"model": "tiny", "prompt": "A", "options": {"routing": routing}});
    let reply = http::open(server.address, "POST", "/api/generate", headers, body.to_string().as_bytes()).finish();
    let text = reply.text();
    let first: Value = serde_json::from_str(text.lines().next().unwrap()).unwrap();
    (reply.status, first["error"].as_str().unwrap_or_default().to_owned())
}

#[test]
fn an_engine_that_computes_every_expert_says_so() {
    let server = Server::start(answers(&["x", "y", "z"]));
    for routing in [json!("off"), Value::Null] {
        assert_eq!(ask(&server, &[], routing), (200, String::new()));
    }
    let (status, error) = ask(&server, &[], json!("topk:4"));
    assert_eq!(status, 400);
    assert_eq!(error, "scripted cannot follow routing `topk:4`: it computes every chosen expert; engine `native` can");
    // The model goes on, and so does chat.
    let body =
        json!({"model": "tiny", "messages": [{"role": "user", "content": "A"}], "options": {"routing": "rel:0.5"}});
    let reply = server.post("/api/chat", &body);
    assert_eq!(reply.status, 400, "{}", reply.text());
    assert_eq!(ask(&server, &[], json!("off")).0, 200);
}

#[test]
fn nonsense_is_refused_before_a_model_is_loaded() {
    let server = Server::start(answers(&[]));
    for (value, status, expected) in [
        (json!("topk"), 400, "option \"routing\": `topk` is not a routing policy"),
        (json!("rel:2"), 400, "its number must be 0 to 1"),
        (json!(4), 500, "option \"routing\" must be of type string"),
    ] {
        let (got, error) = ask(&server, &[], value.clone());
        assert!(got == status && error.contains(expected), "{value}: {got} {error}");
    }
    assert_eq!(server.metric("fathom_loads_total"), 0.0);
}

#[test]
fn files_are_named_by_programs_of_this_machine_only() {
    let server = Server::start(answers(&["x"]));
    let file = json!("/nowhere/m.routing.json");
    let (status, error) = ask(&server, &[], file.clone());
    assert_eq!((status, error.contains("only on this machine")), (403, true), "{error}");
    // The engine here follows nothing, and says that.
    let (status, error) = ask(&server, LOCAL, file);
    assert_eq!((status, error.contains("scripted cannot follow")), (400, true), "{error}");
    let (status, error) = ask(&server, LOCAL, json!("m.routing.json"));
    assert_eq!((status, error.contains("absolute path")), (400, true), "{error}");
    for other in ["/etc/passwd", "../../etc/passwd", "/dev/zero#a"] {
        for headers in [&[][..], LOCAL] {
            let (status, error) = ask(&server, headers, json!(other));
            assert_eq!((status, error.contains("does not end in .routing.json")), (400, true), "{error}");
        }
    }
    // Nor does a model come into being that names one.
    let create = |headers: &[(&str, &str)], routing: &str| {
        let body = json!({"model": "b", "from": "tiny", "parameters": {"routing": routing}, "stream": false});
        http::open(server.address, "POST", "/api/create", headers, body.to_string().as_bytes()).finish().status
    };
    assert_eq!(create(&[], "/m.routing.json#fast"), 403);
    assert_eq!(create(LOCAL, "m.routing.json"), 400);
    assert_eq!(create(&[], "topk:none"), 400);
    assert_eq!(create(LOCAL, "/m.routing.json#fast"), 200);
    assert_eq!(create(&[], "fast"), 200);
}

#[test]
fn a_models_parameter_counts_until_the_request_says_otherwise() {
    let parts = Parts { params: Some(json!({"routing": "topk:4"})), ..Parts::default() };
    let server = Server::with_model(answers(&["x"]), model::metadata("deepseek4"), &parts);
    let reply = server.post("/api/generate", &json!({"model": "tiny", "prompt": "A"}));
    assert_eq!(reply.status, 400, "{}", reply.text());
    assert!(reply.text().contains("cannot follow routing `topk:4`"), "{}", reply.text());
    assert_eq!(ask(&server, &[], json!("off")), (200, String::new()));
    let shown = server.post("/api/show", &json!({"model": "tiny"})).json();
    assert!(shown["modelfile"].as_str().unwrap().contains("PARAMETER routing topk:4\n"), "{shown}");
}
