//! Blobs and `/api/create`.

use std::path::Path;

use fathom::store::Digest;
use fathom_gguf::{DType, Layout, Metadata, TensorInfo, Value as Gguf, Writer};
use serde_json::{Value, json};

use crate::support::http::{self, Reply};
use crate::support::model;
use crate::support::{Server, answers};

const LOCAL: &[(&str, &str)] = &[("Sec-Fathom-Local", "1")];

fn ask(server: &Server, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Reply {
    http::open(server.address, method, path, headers, body).finish()
}

fn upload(server: &Server, bytes: &[u8]) -> String {
    let digest = Digest::of(bytes).to_string();
    let reply = ask(server, "POST", &format!("/api/blobs/{digest}"), &[], bytes);
    assert!([200, 201].contains(&reply.status), "{}", reply.text());
    digest
}

/// The statuses of a creation, with digests cut to something readable.
fn statuses(reply: &Reply) -> Vec<String> {
    let cut = |status: &str| match status.split_once("sha256:") {
        Some((before, digest)) => {
            assert_eq!(digest.len(), 64, "{status}");
            format!("{before}sha256:...")
        }
        None => status.to_owned(),
    };
    reply.lines().iter().map(|l| cut(l["status"].as_str().unwrap_or_else(|| panic!("{l}")))).collect()
}

fn error(reply: &Reply) -> (u16, String) {
    (reply.status, reply.json()["error"].as_str().expect("an error").to_owned())
}

fn tiny_gguf(keys: &[(&str, Gguf)]) -> Vec<u8> {
    let mut metadata = model::metadata("deepseek4");
    for (key, value) in keys {
        metadata.insert(*key, value.clone());
    }
    let mut bytes = Vec::new();
    fathom_gguf::write_to::<_, Vec<u8>>(&mut bytes, metadata, &[]).expect("a valid file").expect("memory");
    bytes
}

#[test]
fn blobs_are_stored_once_and_checked() {
    let server = Server::start(answers(&[]));
    let bytes: Vec<u8> = (0..3_000_000u32).map(|n| (n % 251) as u8).collect();
    let digest = Digest::of(&bytes);
    let path = format!("/api/blobs/{digest}");
    assert_eq!(ask(&server, "HEAD", &path, &[], b"").status, 404);
    let stored = ask(&server, "POST", &path, &[], &bytes);
    assert_eq!((stored.status, stored.text().as_str()), (201, ""));
    let dashed = format!("/api/blobs/sha256-{}", digest.hex().to_uppercase());
    assert_eq!(ask(&server, "HEAD", &dashed, &[], b"").status, 200);
    let again = ask(&server, "POST", &path, &[], b"not even looked at");
    assert_eq!((again.status, again.text().as_str()), (200, ""));

    let other = Digest::of(b"other");
    let wrong = ask(&server, "POST", &format!("/api/blobs/{other}"), &[], b"something else");
    let found = Digest::of(b"something else");
    assert_eq!(error(&wrong), (400, format!("digest mismatch, expected \"{other}\", got \"{found}\"")));
    assert_eq!(ask(&server, "HEAD", &format!("/api/blobs/{other}"), &[], b"").status, 404);

    for bad in ["sha256:00", "..%2F..%2Fetc%2Fpasswd", "sha512:00", "x"] {
        let reply = ask(&server, "POST", &format!("/api/blobs/{bad}"), &[], b"x");
        assert_eq!(error(&reply), (400, "invalid digest format".into()), "{bad}");
        assert_eq!(ask(&server, "HEAD", &format!("/api/blobs/{bad}"), &[], b"").status, 400, "{bad}");
    }
    assert_eq!(ask(&server, "POST", "/api/blobs/../../etc/passwd", &[], b"x").status, 404);
}

#[test]
fn a_model_is_made_from_an_upload() {
    let server = Server::start(answers(&["Hi"]));
    let digest = upload(&server, &tiny_gguf(&[("general.file_type", 7u32.into())]));
    let request = json!({
        "model": "mine", "files": {"model.gguf": digest}, "system": "Be brief.", "license": ["MIT", "and more"],
        "parameters": {"temperature": 0.5, "stop": ["x"]}, "messages": [{"role": "user", "content": "hi"}],
        "quantization": null,
    });
    let reply = server.post("/api/create", &request);
    assert_eq!(reply.header("content-type"), Some("application/x-ndjson"));
    assert_eq!(
        statuses(&reply),
        [
            "parsing GGUF",
            "using existing layer sha256:...",
            "creating new layer sha256:...",
            "creating new layer sha256:...",
            "creating new layer sha256:...",
            "creating new layer sha256:...",
            "creating new layer sha256:...",
            "writing manifest",
            "success",
        ]
    );
    let show = server.post("/api/show", &json!({"model": "mine"})).json();
    assert_eq!((&show["system"], &show["license"]), (&json!("Be brief."), &json!("MIT\nand more")));
    assert_eq!(show["details"]["quantization_level"], "Q8_0");
    assert_eq!(show["messages"], json!([{"role": "user", "content": "hi"}]));
    let chat = json!({"model": "mine", "prompt": "A", "think": false, "stream": false});
    assert_eq!(server.post("/api/generate", &chat).json()["response"], "Hi");
}

#[test]
fn a_model_is_made_from_another_one() {
    let server = Server::start(answers(&[]));
    let create = |body: Value| {
        let reply = server.post("/api/create", &body);
        assert_eq!(reply.lines().last(), Some(&json!({"status": "success"})), "{}", reply.text());
        reply
    };
    create(json!({
        "model": "base", "from": "tiny", "system": "One.", "license": "MIT", "parameters": {"top_k": 1, "seed": 7},
        "messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}],
    }));
    let reply = create(json!({
        "model": "child", "from": "BASE", "license": ["More"], "parameters": {"top_k": 2},
        "messages": [{"role": "user", "content": "c"}], "system": "", "files": {}, "adapters": null,
    }));
    assert!(!statuses(&reply).contains(&"parsing GGUF".to_owned()));
    let show = server.post("/api/show", &json!({"model": "child"})).json();
    assert_eq!((&show["system"], &show["license"]), (&json!("One."), &json!("MIT\nMore")));
    assert_eq!(show["messages"], json!([{"role": "user", "content": "c"}]), "replaced as a whole");
    assert!(show["parameters"].as_str().is_some_and(|p| p.contains("top_k") && p.contains(" 2") && p.contains("seed")));
    assert_eq!(show["details"]["parent_model"], "base:latest");

    // `stream: false` answers with the last event.
    let once = server.post("/api/create", &json!({"model": "child", "from": "tiny", "stream": false}));
    assert_eq!((once.status, once.json()), (200, json!({"status": "success"})));
    assert_eq!(server.post("/api/show", &json!({"model": "child"})).json().get("system"), None);
}

#[test]
fn a_local_file_becomes_a_model_without_an_upload() {
    let server = Server::start(answers(&["Hi"]));
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("weights.gguf");
    std::fs::write(&path, tiny_gguf(&[])).expect("a file");
    let request = json!({"model": "linked", "path": path});
    let body = request.to_string();
    let reply = ask(&server, "POST", "/api/create", LOCAL, body.as_bytes());
    assert_eq!(reply.lines().last(), Some(&json!({"status": "success"})), "{}", reply.text());
    assert_eq!(statuses(&reply)[0], "parsing GGUF");
    assert_eq!(server.post("/api/show", &json!({"model": "linked"})).status, 200);

    let remote = server.post("/api/create", &request);
    assert_eq!(remote.status, 403, "a page cannot send the header");
    let relative = json!({"model": "x", "path": "weights.gguf"}).to_string();
    assert_eq!(ask(&server, "POST", "/api/create", LOCAL, relative.as_bytes()).status, 400);
    let nothing = json!({"model": "x", "path": "/nowhere"}).to_string();
    let nothing = ask(&server, "POST", "/api/create", LOCAL, nothing.as_bytes());
    assert_eq!(error(&nothing), (400, "`/nowhere` is neither a GGUF file nor a directory with a checkpoint".into()));
}

/// Two shards on disk; their paths.
fn shards(folder: &Path) -> Vec<std::path::PathBuf> {
    let tensors: Vec<TensorInfo> =
        (0..2).map(|n| TensorInfo::new(format!("t{n}"), DType::F32, vec![64]).expect("a plain tensor")).collect();
    let layout = Layout::new(model::metadata("deepseek4"), tensors, Some(256)).expect("a layout");
    let paths = layout.paths(&folder.join("big.gguf"));
    assert_eq!(paths.len(), 2);
    let writer = Writer::create(&layout, &paths).expect("files");
    for (n, tensor) in layout.tensors().iter().enumerate() {
        writer.write_at(tensor, 0, &[n as u8 + 1; 256]).expect("a disk");
    }
    paths
}

#[test]
fn shards_are_merged() {
    let server = Server::start(answers(&[]));
    let folder = tempfile::tempdir().expect("a folder");
    let paths = shards(folder.path());
    let files: serde_json::Map<String, Value> = paths
        .iter()
        .map(|path| {
            let name = path.file_name().expect("a name").to_string_lossy().into_owned();
            (name, upload(&server, &std::fs::read(path).expect("a shard")).into())
        })
        .collect();
    let reply = server.post("/api/create", &json!({"model": "merged", "files": files}));
    assert_eq!(reply.lines().last(), Some(&json!({"status": "success"})), "{}", reply.text());
    let uploaded = server.post("/api/show", &json!({"model": "merged"})).json();
    assert_eq!(uploaded["model_info"]["general.parameter_count"], 128);

    let body = json!({"model": "local", "path": paths[1]}).to_string();
    let reply = ask(&server, "POST", "/api/create", LOCAL, body.as_bytes());
    assert_eq!(reply.lines().last(), Some(&json!({"status": "success"})), "{}", reply.text());
    let local = server.post("/api/show", &json!({"model": "local"})).json();
    let from = |show: &Value| show["modelfile"].as_str().and_then(|m| m.split("FROM ").last().map(str::to_owned));
    assert_eq!(from(&local), from(&uploaded), "the same bytes");
    let blob = from(&local).expect("a path");
    let file = fathom_gguf::File::open(blob.lines().next().expect("a line")).expect("one complete file");
    assert_eq!(file.data(file.tensor("t1").expect("the second tensor")), &[2; 256]);

    let alone: serde_json::Map<String, Value> = files.into_iter().take(1).collect();
    let reply = server.post("/api/create", &json!({"model": "half", "files": alone, "stream": false}));
    assert_eq!(reply.status, 400, "{}", reply.text());
}

/// The small checkpoint of the repository.
fn checkpoint() -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/tiny-v4-a")
}

/// The weights' blob, as `show` names it.
fn weights(server: &Server, model: &str) -> std::path::PathBuf {
    let show = server.post("/api/show", &json!({"model": model})).json();
    let modelfile = show["modelfile"].as_str().unwrap_or_else(|| panic!("{show}"));
    modelfile.lines().find_map(|l| l.strip_prefix("FROM ")).expect("a FROM line").into()
}

#[test]
fn a_checkpoint_on_this_machine_is_converted_into_the_store() {
    let server = Server::start(answers(&[]));
    let body = json!({"model": "flash", "path": checkpoint(), "system": "Be brief."}).to_string();
    let reply = ask(&server, "POST", "/api/create", LOCAL, body.as_bytes());
    let said = statuses(&reply);
    assert_eq!(said.first().map(String::as_str), Some("converting model"));
    assert_eq!(said.last().map(String::as_str), Some("success"), "{said:?}");
    let done = reply.lines().into_iter().rfind(|l| l["status"] == "converting model").expect("progress");
    assert_eq!(done["completed"], done["total"]);

    let show = server.post("/api/show", &json!({"model": "flash"})).json();
    assert_eq!(show["details"]["family"], "deepseek4");
    assert_eq!(show["capabilities"], json!(["completion", "tools", "insert", "thinking"]));
    let folder = tempfile::tempdir().expect("a folder");
    let direct = folder.path().join("model.gguf");
    let options = fathom_converters::Options::new(checkpoint(), &direct);
    fathom_converters::convert(&options, &mut fathom_converters::Silent).expect("the same conversion");
    assert!(std::fs::read(&direct).expect("a file") == std::fs::read(weights(&server, "flash")).expect("a blob"));
}

/// A client that leaves stops the conversion; the same request goes on with it.
#[test]
fn an_interrupted_conversion_goes_on_where_it_stopped() {
    use fathom::modelfile::{Base, Changes, CreateError, Event, Spec, create};
    use std::ops::ControlFlow;

    let folder = tempfile::tempdir().expect("a folder");
    let store = fathom::store::Store::open(folder.path()).expect("a store");
    let name = fathom::store::Name::parse("flash").expect("a name");
    let spec = Spec {
        name: name.clone(),
        base: Base::Path(checkpoint()),
        adapters: Vec::new(),
        drafts: Vec::new(),
        changes: Changes::default(),
    };
    let leave = |event| match event {
        Event::Converting { completed, total } if completed < total => ControlFlow::Break(()),
        _ => ControlFlow::Continue(()),
    };
    assert!(matches!(create(&store, &spec, &mut { leave }), Err(CreateError::Cancelled)));
    assert!(store.model(&name).is_err());
    let hidden = |root: &Path| {
        let names = std::fs::read_dir(root).expect("a root").map(|e| e.expect("an entry").file_name());
        names.filter(|n| n.to_string_lossy().starts_with(".converting-")).count()
    };
    assert_eq!(hidden(folder.path()), 1, "what was done is kept");
    create(&store, &spec, &mut |_| ControlFlow::Continue(())).expect("the rest");
    assert!(store.model(&name).is_ok());
    assert_eq!(hidden(folder.path()), 0);
}

/// Routing profiles that lie beside a file, or are sent with it, belong to the model, and to those that are made from it.
#[test]
fn routing_profiles_come_along() {
    use fathom::modelfile::{Base, Changes, Spec, create};
    use std::ops::ControlFlow;

    let folder = tempfile::tempdir().expect("a folder");
    let store = fathom::store::Store::open(folder.path().join("store")).expect("a store");
    let file = folder.path().join("m.gguf");
    std::fs::write(&file, tiny_gguf(&[])).expect("a file");
    let made = |name: &str, base: Base| {
        let name = fathom::store::Name::parse(name).expect("a name");
        let (adapters, drafts, changes) = (Vec::new(), Vec::new(), Changes::default());
        let spec = Spec { name: name.clone(), base, adapters, drafts, changes };
        create(&store, &spec, &mut |_| ControlFlow::Continue(())).expect("a model");
        let profiles = store.model(&name).expect("a model").routing;
        profiles.map(|path| std::fs::read_to_string(path).expect("profiles"))
    };
    assert_eq!(made("without", Base::Path(file.clone())), None);
    let profiles = r#"{"schema":1,"profiles":{}}"#;
    std::fs::write(folder.path().join("m.routing.json"), profiles).expect("a file");
    assert_eq!(made("beside", Base::Path(file.clone())).as_deref(), Some(profiles));
    let beside = fathom::store::Name::parse("beside").expect("a name");
    assert_eq!(made("child", Base::Model(beside)).as_deref(), Some(profiles));
    let blob = |bytes: &[u8]| store.put(bytes).expect("a blob").0;
    let sent =
        vec![("m.gguf".to_owned(), blob(&tiny_gguf(&[]))), ("m.routing.json".to_owned(), blob(b"{\"schema\":1}"))];
    assert_eq!(made("sent", Base::Files(sent)).as_deref(), Some("{\"schema\":1}"));
}

#[test]
fn an_uploaded_checkpoint_is_converted_too() {
    let server = Server::start(answers(&[]));
    let mut files = serde_json::Map::new();
    for entry in std::fs::read_dir(checkpoint()).expect("the checkpoint") {
        let path = entry.expect("an entry").path();
        let name = path.file_name().expect("a name").to_string_lossy().into_owned();
        if !name.starts_with("golden") && !name.ends_with("_cases.json") {
            files.insert(name, upload(&server, &std::fs::read(&path).expect("a file")).into());
        }
    }
    let request = json!({"model": "me/tiny-v4-a", "files": files});
    let said = statuses(&server.post("/api/create", &request));
    assert_eq!(said.last().map(String::as_str), Some("success"), "{said:?}");
    let local = json!({"model": "local", "path": checkpoint(), "stream": false}).to_string();
    assert_eq!(ask(&server, "POST", "/api/create", LOCAL, local.as_bytes()).status, 200);
    assert_eq!(weights(&server, "me/tiny-v4-a"), weights(&server, "local"), "the same bytes");

    files.remove("tokenizer.json");
    let reply = server.post("/api/create", &json!({"model": "broken", "files": files}));
    let (status, text) = error(&reply);
    assert!(status == 400 && text.contains("tokenizer.json"), "{status} {text}");
}

#[test]
fn wrong_requests_are_refused_in_order() {
    let server = Server::start(answers(&[]));
    let gguf = upload(&server, &tiny_gguf(&[]));
    let text = upload(&server, b"just text");
    let nowhere = Digest::of(b"nowhere").to_string();
    for (body, status, text) in [
        (json!({}), 400, "invalid model name"),
        (json!({"model": "x"}), 400, "neither 'from' or 'files' was specified"),
        (json!({"model": "", "files": {"../x": ""}}), 400, "file path must be relative"),
        (json!({"model": "", "files": {"/x": gguf}}), 400, "file path must be relative"),
        (json!({"model": "", "files": {"x": ""}}), 400, "invalid digest format"),
        (json!({"model": "", "adapters": {"x": "sha256:0"}}), 400, "invalid digest format"),
        (json!({"model": "a b", "files": {"x": gguf}}), 400, "invalid model name"),
        (json!({"model": "x", "from": "a b"}), 400, "invalid model name"),
        (json!({"model": "x", "from": "nothing"}), 500, "pull model manifest: file does not exist"),
        (json!({"model": "x", "files": {"x": text}}), 400, "unknown type"),
        (json!({"model": "x", "files": {"x.gguf": nowhere}}), 400, "was not uploaded"),
        (json!({"model": "x", "files": {"a.gguf": gguf, "b.gguf": gguf}, "stream": false}), 400, "2 models were given"),
        (
            json!({"model": "x", "files": {"x.gguf": text}, "stream": false}),
            400,
            "supplied file was not in GGUF format",
        ),
        (json!({"model": "x", "from": "tiny", "quantize": "Q9"}), 400, "unsupported quantization type 'Q9'"),
        (json!({"model": "x", "from": "tiny", "quantize": "q4_k_m"}), 501, "is not supported"),
        (
            json!({"model": "x", "from": "tiny", "parameters": {"top_k": "many"}}),
            500,
            "option \"top_k\" must be of type integer",
        ),
        (
            json!({"model": "x", "from": "tiny", "requires": "new"}),
            400,
            "requires must be a valid semver (e.g. 0.14.0)",
        ),
        (json!({"model": "x", "from": "tiny", "template": "{{ if }}"}), 400, "template error: "),
        (json!({"model": "x", "from": "tiny", "license": 3}), 400, "'license' must be"),
        (json!({"model": "x", "from": "tiny", "files": {"x.gguf": gguf}}), 400, "only one of"),
        (
            json!({"model": "x", "from": "tiny", "adapters": {"a.gguf": gguf, "b.gguf": gguf}, "stream": false}),
            400,
            "only one adapter is currently supported",
        ),
    ] {
        let reply = server.post("/api/create", &body);
        let (found, error) = error(&reply);
        assert!(found == status && error.contains(text), "{body}\n{found} {error}");
    }
    assert_eq!(server.post("/api/show", &json!({"model": "x"})).status, 404, "nothing was made");
}

#[test]
fn adapters_of_an_upload_need_a_base() {
    let server = Server::start(answers(&[]));
    let mut metadata = Metadata::new();
    metadata.insert("general.architecture", "deepseek4");
    metadata.insert("general.type", "adapter");
    let mut adapter = Vec::new();
    fathom_gguf::write_to::<_, Vec<u8>>(&mut adapter, metadata, &[]).expect("a valid file").expect("memory");
    let digest = upload(&server, &adapter);
    let alone = server.post("/api/create", &json!({"model": "x", "files": {"a.gguf": digest}, "stream": false}));
    assert_eq!(error(&alone), (400, "no base model was found".into()));
    let with = server.post("/api/create", &json!({"model": "x", "from": "tiny", "adapters": {"a.gguf": digest}}));
    let said = statuses(&with);
    assert!(said.iter().any(|s| s.starts_with("warning: the adapter is stored")), "{said:?}");
    assert_eq!(said.last().map(String::as_str), Some("success"));
    let run = server.post("/api/generate", &json!({"model": "x", "prompt": "A"}));
    let (status, text) = error(&run);
    assert!(status == 501 && text.starts_with("`x:latest` has an adapter"), "{status} {text}");
}
