//! Models as things: tags, ps, show, copy, delete.

use serde_json::{Value, json};

use crate::support::http::{self, Reply};
use crate::support::model::{self, Parts};
use crate::support::{Server, answers};

fn ask(server: &Server, method: &str, path: &str, headers: &[(&str, &str)], body: &Value) -> Reply {
    http::open(server.address, method, path, headers, body.to_string().as_bytes()).finish()
}

fn delete(server: &Server, body: &Value) -> Reply {
    ask(server, "DELETE", "/api/delete", &[], body)
}

fn names(server: &Server) -> Vec<String> {
    let tags = server.get("/api/tags").json();
    let models = tags["models"].as_array().expect("a list");
    models.iter().map(|m| m["name"].as_str().expect("a name").to_owned()).collect()
}

fn error(reply: &Reply) -> (u16, String) {
    (reply.status, reply.json()["error"].as_str().expect("an error").to_owned())
}

/// A moment with an offset: `2026-08-21T10:11:12.123456789+02:00`.
fn is_local_time(value: &Value) -> bool {
    let text = value.as_str().unwrap_or_default();
    text.parse::<jiff::Timestamp>().is_ok() && text.as_bytes()[text.len() - 6..][0] != b'Z'
}

#[test]
fn tags_list_what_is_installed() {
    let server = Server::start(answers(&[]));
    let mut tags = server.get("/api/tags").json();
    let model = &mut tags["models"][0];
    assert!(is_local_time(&model["modified_at"]), "{model}");
    assert_eq!(model["digest"].as_str().map(str::len), Some(64));
    assert!(model["size"].as_u64().is_some_and(|size| size > 1000));
    for field in ["modified_at", "digest", "size"] {
        model[field] = Value::Null;
    }
    assert_eq!(
        tags,
        json!({"models": [{
            "name": "tiny:latest", "model": "tiny:latest", "modified_at": null, "size": null, "digest": null,
            "details": {
                "parent_model": "", "format": "gguf", "family": "deepseek4", "families": ["deepseek4"],
                "parameter_size": "", "quantization_level": "", "context_length": 4096, "embedding_length": 8,
            },
            "capabilities": ["completion", "tools", "insert", "thinking"],
        }]})
    );
    assert_eq!(delete(&server, &json!({"model": "tiny"})).status, 200);
    assert_eq!(server.get("/api/tags").json(), json!({"models": []}));
}

#[test]
fn ps_lists_what_is_loaded() {
    let server = Server::start(answers(&["x"]));
    assert_eq!(server.get("/api/ps").json(), json!({"models": []}));
    let load = |keep_alive: Value| {
        let reply = server.post("/api/generate", &json!({"model": "TINY", "keep_alive": keep_alive}));
        assert_eq!(reply.status, 200, "{}", reply.text());
    };
    load(json!("10m"));
    let ps = server.get("/api/ps").json();
    let model = &ps["models"][0];
    assert_eq!((&model["name"], &model["model"]), (&json!("tiny:latest"), &json!("tiny:latest")));
    assert_eq!(model["digest"], server.get("/api/tags").json()["models"][0]["digest"]);
    assert_eq!(model["details"]["family"], "deepseek4");
    assert!(model["size"].is_u64() && model["size_vram"].is_u64());
    assert!(model["context_length"].as_u64().is_some_and(|n| n > 0));
    let expires = |ps: &Value| ps["models"][0]["expires_at"].as_str().expect("a time").parse::<jiff::Timestamp>();
    let minutes = (expires(&ps).expect("RFC 3339") - jiff::Timestamp::now()).as_mins();
    assert!((8..=10).contains(&minutes), "{minutes} minutes");
    load(json!(-1));
    let ps = server.get("/api/ps").json();
    assert!(ps["models"][0]["expires_at"].as_str().is_some_and(|t| t > "2300"), "never is centuries ahead: {ps}");
}

#[test]
fn show_tells_everything_about_a_model() {
    let parts = Parts {
        system: Some("Be brief."),
        template: Some("{{ .System }}\n{{ .Prompt }}"),
        params: Some(json!({"stop": ["<a>", "\"b\""], "temperature": 0.5, "num_ctx": 2048.0, "use_mmap": true})),
        messages: Some(json!([{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho\nho"}])),
    };
    let mut metadata = model::metadata("deepseek4");
    metadata.insert("general.name", "Tiny");
    metadata.insert("deepseek4.rope.freq_base", 0.1f32);
    metadata.insert("fathom.source.release", "v4_0731");
    metadata.insert("fathom.source.config_json", "{\"a\": 1}");
    metadata.insert("fathom.fp8_scale.x", vec![1u8, 2]);
    let server = Server::with_model(answers(&[]), metadata, &parts);
    let reply = server.post("/api/show", &json!({"name": "Tiny"}));
    assert_eq!(reply.status, 200, "{}", reply.text());
    let show = reply.json();
    assert_eq!(
        show["parameters"],
        "stop                           \"<a>\"\nstop                           \"\\\"b\\\"\"\n\
         temperature                    0.5\nnum_ctx                        2048\nuse_mmap                       true"
    );
    assert_eq!(show["system"], "Be brief.");
    assert_eq!(show["template"], "{{ .System }}\n{{ .Prompt }}");
    assert_eq!(
        show["messages"],
        json!([{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho\nho"}])
    );
    assert_eq!(show["details"]["context_length"], 4096);
    assert_eq!(show["capabilities"], json!(["completion"]), "those of its TEMPLATE");
    assert!(is_local_time(&show["modified_at"]));
    for absent in ["license", "projector_info", "requires", "error"] {
        assert!(show.get(absent).is_none(), "{absent}");
    }
    let modelfile = show["modelfile"].as_str().expect("a text");
    let blob = modelfile.lines().find_map(|l| l.strip_prefix("FROM ")).expect("a FROM line");
    assert!(blob.starts_with('/') && blob.contains("/blobs/sha256-"), "{blob}");
    assert_eq!(
        modelfile.replace(blob, "BLOB"),
        "# Modelfile generated by \"ollama show\"\n# To build a new Modelfile based on this, replace FROM with:\n\
         # FROM tiny:latest\n\nFROM BLOB\nTEMPLATE \"{{ .System }}\n{{ .Prompt }}\"\nSYSTEM Be brief.\n\
         PARAMETER stop <a>\nPARAMETER stop \"\"\"\"b\"\"\"\"\nPARAMETER temperature 0.5\nPARAMETER num_ctx 2048\n\
         PARAMETER use_mmap true\nMESSAGE user hi\nMESSAGE assistant \"ho\nho\"\n"
    );
    let info = &show["model_info"];
    assert_eq!(info["general.architecture"], "deepseek4");
    assert_eq!(info["general.parameter_count"], 0);
    assert_eq!(info["deepseek4.context_length"], 4096);
    assert_eq!(info["deepseek4.rope.freq_base"].to_string(), "0.1");
    assert_eq!(info["tokenizer.ggml.tokens"], Value::Null);
    assert_eq!(info["fathom.source.release"], "v4_0731");
    for absent in ["general.name", "tokenizer.chat_template", "fathom.source.config_json", "fathom.fp8_scale.x"] {
        assert!(info.get(absent).is_none(), "{absent}");
    }

    let verbose = server.post("/api/show", &json!({"model": "tiny", "verbose": true})).json();
    assert_eq!(verbose["model_info"]["tokenizer.ggml.tokens"].as_array().map(Vec::len), Some(266));
    assert_eq!(verbose["model_info"]["fathom.fp8_scale.x"], json!([1, 2]));
    assert_eq!(verbose["model_info"]["fathom.source.config_json"], "{\"a\": 1}");

    let changed = json!({"model": "tiny", "system": "Louder.", "options": {"top_k": 3}});
    let changed = server.post("/api/show", &changed).json();
    assert_eq!(changed["system"], "Louder.");
    assert!(
        changed["modelfile"].as_str().is_some_and(|m| m.contains("SYSTEM Louder.") && m.contains("PARAMETER top_k 3"))
    );

    let copilot = [("User-Agent", "GitHubCopilotChat/0.26")];
    let copilot = ask(&server, "POST", "/api/show", &copilot, &json!({"model": "TINY"})).json();
    assert_eq!(copilot["model_info"]["general.basename"], "TINY");
}

#[test]
fn show_describes_a_file_for_programs_of_this_machine() {
    let server = Server::start(answers(&[]));
    let show = server.post("/api/show", &json!({"model": "tiny"})).json();
    let modelfile = show["modelfile"].as_str().expect("a text");
    let path = modelfile.lines().find_map(|l| l.strip_prefix("FROM ")).expect("a FROM line");
    let local = [("Sec-Fathom-Local", "1")];
    let reply = ask(&server, "POST", "/api/show", &local, &json!({"model": path}));
    assert_eq!(reply.status, 200, "{}", reply.text());
    assert_eq!(reply.json()["details"]["family"], "deepseek4");
    assert_eq!(server.post("/api/show", &json!({"model": path})).status, 403);
    let missing = ask(&server, "POST", "/api/show", &local, &json!({"model": "/nowhere/x.gguf"}));
    assert_eq!(missing.status, 404, "{}", missing.text());
    let other = ask(&server, "POST", "/api/show", &local, &json!({"model": "/etc/hostname"}));
    assert_eq!(other.status, 400, "{}", other.text());
}

#[test]
fn copy_answers_with_an_empty_body() {
    let server = Server::start(answers(&[]));
    let copy = |source: &str, destination: &str| {
        server.post("/api/copy", &json!({"source": source, "destination": destination}))
    };
    let reply = copy("TINY", "me/other:v1");
    assert_eq!((reply.status, reply.text().as_str()), (200, ""));
    assert_eq!(copy("tiny", "tiny").status, 200);
    let mut found = names(&server);
    found.sort();
    assert_eq!(found, ["me/other:v1", "tiny:latest"]);
    assert_eq!(error(&copy("", "x")), (400, "source \"\" is invalid".into()));
    assert_eq!(error(&copy("tiny", "../x")), (400, "destination \"../x\" is invalid".into()));
    assert_eq!(error(&copy("a b", "../x")), (400, "source \"a b\" is invalid".into()));
    assert_eq!(error(&copy("nothing", "x")), (404, "model \"nothing\" not found".into()));
}

#[test]
fn delete_takes_both_spellings_of_its_field() {
    let server = Server::start(answers(&[]));
    server.post("/api/copy", &json!({"source": "tiny", "destination": "other"}));
    let reply = delete(&server, &json!({"name": "Other", "model": ""}));
    assert_eq!((reply.status, reply.text().as_str()), (200, ""));
    assert_eq!(names(&server), ["tiny:latest"]);
    assert_eq!(error(&delete(&server, &json!({"model": "other"}))), (404, "model 'other' not found".into()));
    assert_eq!(error(&delete(&server, &json!({}))), (400, "model is required".into()));
    assert_eq!(error(&delete(&server, &json!({"model": "/x"}))), (400, "name \"/x\" is invalid".into()));
}

#[test]
fn show_has_its_own_words_for_what_is_wrong() {
    let server = Server::start(answers(&[]));
    let show = |model: &str| error(&server.post("/api/show", &json!({"model": model})));
    assert_eq!(show(""), (400, "model is required".into()));
    assert_eq!(show("a:"), (400, "invalid model name".into()));
    assert_eq!(show("nothing"), (404, "model 'nothing:latest' not found".into()));
    assert_eq!(show("me/Nothing:v1"), (404, "model 'me/Nothing:v1' not found".into()));
    assert_eq!(show("x:cloud"), (403, "ollama cloud is disabled: remote model details are unavailable".into()));
    assert_eq!(show("x:cloud:local"), (400, "use either :local or :cloud, not both: \"x:cloud:local\"".into()));
    assert_eq!(server.post("/api/show", &json!({"model": "tiny:latest:local"})).status, 200);
    for path in ["/api/generate", "/api/chat"] {
        let remote = server.post(path, &json!({"model": "x:671b-cloud"}));
        assert_eq!(error(&remote), (403, "ollama cloud is disabled: remote model is unavailable".into()), "{path}");
    }
}

/// As in Ollama, where what is loaded belongs to the weights: whoever unloads one of their names unloads them.
#[test]
fn names_of_the_same_weights_share_what_is_loaded_and_its_end() {
    let server = Server::start(answers(&["x", "x", "x"]));
    server.post("/api/copy", &json!({"source": "tiny", "destination": "copy"}));
    let created = server
        .post("/api/create", &json!({"model": "derived", "from": "tiny", "system": "Be brief.", "stream": false}));
    assert_eq!(created.status, 200, "{}", created.text());
    let ask = |model: &str| server.post("/api/generate", &json!({"model": model, "prompt": "A", "stream": false}));
    for (asked, stopped) in [("tiny", "copy"), ("derived", "tiny"), ("copy", "derived")] {
        assert_eq!(ask(asked).json()["model"], asked);
        for other in ["tiny", "copy", "derived"] {
            assert_eq!(ask(other).status, 200);
        }
        let loaded = server.get("/api/ps").json()["models"].clone();
        assert_eq!(loaded.as_array().map(Vec::len), Some(1), "{loaded}");
        assert_eq!(loaded[0]["name"], format!("{asked}:latest"), "the name that loaded it");
        let reply = server.post("/api/generate", &json!({"model": stopped, "keep_alive": 0})).json();
        assert_eq!((&reply["model"], &reply["done_reason"]), (&json!(stopped), &json!("unload")));
        server.wait_for_metric("fathom_models_loaded", 0.0);
        assert_eq!(server.get("/api/ps").json()["models"], json!([]));
    }
}
