//! A store against folders as Ollama, users and crashes leave them.

use std::fs;
use std::io::Write;
use std::time::{Duration, SystemTime};

use fathom_gguf::{DType, Metadata, TensorInfo};
use serde_json::json;

use super::*;

/// A store in a folder of its own that goes away with it.
struct Sandbox {
    folder: tempfile::TempDir,
    store: Store,
}

fn sandbox() -> Sandbox {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let store = Store::open(folder.path().join("models")).expect("a new store");
    Sandbox { folder, store }
}

fn name(text: &str) -> Name {
    Name::parse(text).unwrap_or_else(|e| panic!("{text}: {e}"))
}

/// A GGUF file with one tensor of 1200 elements and these keys.
fn gguf(keys: &[(&str, fathom_gguf::Value)]) -> Vec<u8> {
    let mut metadata = Metadata::new();
    metadata.insert("general.architecture", "tiny");
    metadata.insert("tiny.context_length", 4096u32);
    metadata.insert("tiny.embedding_length", 40u32);
    for (key, value) in keys {
        metadata.insert(*key, value.clone());
    }
    let tensor = TensorInfo::new("token_embd.weight", DType::F16, vec![40, 30]).expect("a plain tensor");
    let mut bytes = Vec::new();
    let data = vec![0u8; 2400];
    fathom_gguf::write_to(&mut bytes, metadata, &[(tensor, data)]).expect("a valid file").expect("memory");
    bytes
}

impl Sandbox {
    fn layer(&self, kind: Kind, bytes: &[u8]) -> Layer {
        let (digest, _) = self.store.put(bytes).expect("a blob");
        Layer::new(kind, digest, bytes.len() as u64)
    }

    /// Installs a model with the given layers and no config.
    fn install(&self, model: &str, layers: Vec<Layer>) {
        self.store.write_manifest(&name(model), &Manifest::new(Layer::default(), layers)).expect("a manifest");
    }

    fn write_raw(&self, path: &str, bytes: impl AsRef<[u8]>) {
        let path = self.store.root().join(path);
        fs::create_dir_all(path.parent().expect("a folder")).expect("folders");
        fs::write(path, bytes).expect("a file");
    }

    fn listed(&self) -> Vec<String> {
        self.store.list().expect("a readable store").iter().map(Model::name).collect()
    }

    fn blobs(&self) -> usize {
        fs::read_dir(self.store.root().join("blobs")).expect("blobs").count()
    }

    /// Makes everything in the store look old.
    fn age(&self) {
        let old = SystemTime::now() - Duration::from_secs(30 * 24 * 3600);
        for folder in [self.store.root().to_path_buf(), self.store.root().join("blobs")] {
            for entry in fs::read_dir(folder).expect("a folder") {
                let file = fs::File::open(entry.expect("an entry").path()).expect("readable");
                file.set_modified(old).expect("our own file");
            }
        }
    }
}

#[test]
fn a_model_says_what_its_layers_say() {
    let s = sandbox();
    let weights = gguf(&[
        ("general.file_type", 38u32.into()),
        ("tokenizer.chat_template", "{% if tools %}<think></think>{% endif %}".into()),
        ("fathom.source.release", "v4_0731".into()),
    ]);
    let config = json!({"model_format": "gguf", "model_families": null, "capabilities": ["vision", "unheard-of"]});
    let mut manifest = Manifest::new(
        s.layer(Kind::Other, config.to_string().as_bytes()),
        vec![
            s.layer(Kind::Model, &weights),
            s.layer(Kind::Template, b"{{ .Prompt }}"),
            s.layer(Kind::System, "Être bref.".as_bytes()),
            s.layer(Kind::Params, br#"{"stop":["a","b"],"temperature":0.5}"#),
            s.layer(Kind::Messages, br#"[{"role":"user","content":"hi"}]"#),
            s.layer(Kind::License, b"one"),
            s.layer(Kind::License, b"two"),
        ],
    );
    manifest.layers[0].from = Some("base:latest".into());
    s.store.write_manifest(&name("me/m:v1"), &manifest).expect("a manifest");

    let model = s.store.model(&name("me/m:v1")).expect("a model");
    assert_eq!(model.name(), "me/m:v1");
    assert_eq!(model.source.full(), "registry.ollama.ai/me/m:v1");
    assert_eq!(model.digest, Digest::of(&manifest.to_bytes()));
    assert_eq!(model.size, manifest.size());
    assert_eq!(model.template.as_deref(), Some("{{ .Prompt }}"));
    assert_eq!(model.system.as_deref(), Some("Être bref."));
    assert_eq!(model.params["stop"], json!(["a", "b"]));
    assert_eq!(model.messages, [Message { role: "user".into(), content: "hi".into() }]);
    assert_eq!(model.license, ["one", "two"]);
    assert_eq!(model.header.release.as_deref(), Some("v4_0731"));
    assert_eq!(
        model.capabilities,
        [Capability::Completion, Capability::Tools, Capability::Thinking, Capability::Vision]
    );
    assert_eq!(
        model.details(),
        Details {
            parent: "base:latest".into(),
            format: "gguf".into(),
            family: "tiny".into(),
            families: vec!["tiny".into()],
            parameter_size: "1K".into(),
            quantization: "MXFP4".into(),
            context_length: Some(4096),
            embedding_length: Some(40),
        }
    );
}

#[test]
fn capabilities_follow_the_metadata() {
    use Capability::*;
    let template = |text: &str| ("tokenizer.chat_template", fathom_gguf::Value::from(text));
    for (keys, expected) in [
        (vec![], vec![Completion]),
        (vec![("tiny.pooling_type", 1u32.into())], vec![Embedding]),
        (vec![("tiny.vision.block_count", 3u32.into())], vec![Completion, Vision]),
        (vec![("tiny.audio.block_count", 3u32.into())], vec![Completion, Audio]),
        (vec![template("{{ messages }}")], vec![Completion]),
        (vec![template("{{ message.tool_call }}")], vec![Completion, Tools]),
        (vec![template("<think>{{ x }}</think>")], vec![Completion, Thinking]),
        (vec![template("<think>")], vec![Completion]),
        (vec![template("{{ content.split('</think>')[-1] }}")], vec![Completion, Thinking]),
        (vec![template("{{ reasoning_content }}{{ content.split('</think>')[-1] }}")], vec![Completion]),
    ] {
        let s = sandbox();
        s.install("m", vec![s.layer(Kind::Model, &gguf(&keys))]);
        let model = s.store.model(&name("m")).expect("a model");
        assert_eq!(model.capabilities, expected, "{keys:?}");
    }
}

#[test]
fn quantisation_is_named_by_the_file_type_or_the_most_elements() {
    for (keys, expected) in [
        (vec![], "F16"),
        (vec![("general.file_type", fathom_gguf::Value::from(15u32))], "Q4_K_M"),
        (vec![("general.file_type", fathom_gguf::Value::from(1024u32 + 7))], "Q8_0"),
        (vec![("general.file_type", fathom_gguf::Value::from(999u32))], "F16"),
        (vec![("general.file_type", fathom_gguf::Value::from("Q8_0"))], "F16"),
    ] {
        let file = fathom_gguf::File::from_bytes(gguf(&keys)).expect("a valid file");
        assert_eq!(Header::read(&file).file_type, expected, "{keys:?}");
    }
}

#[test]
fn parameter_sizes_are_written_as_ollama_writes_them() {
    for (count, text) in [
        (0, "0"),
        (999, "999"),
        (1_000, "1K"),
        (12_345, "12K"),
        (134_515_008, "134.52M"),
        (7_000_000, "7M"),
        (7_000_000_000, "7B"),
        (8_030_261_312, "8.0B"),
        (284_334_567_511, "284.3B"),
    ] {
        assert_eq!(parameter_size(count), text);
    }
}

/// What Ollama wrote over the years: the old `prompt` layer, a missing config digest, `null` layers, upper-case digests.
#[test]
fn manifests_of_all_ages_are_read() {
    let s = sandbox();
    let weights = s.layer(Kind::Model, &gguf(&[]));
    let prompt = s.layer(Kind::Other, b"{{ .Prompt }} old");
    let upper = |layer: &Layer| format!("sha256:{}", layer.digest.expect("a digest").hex().to_uppercase());
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": MANIFEST_TYPE,
        "config": {"mediaType": CONFIG_TYPE, "digest": "", "size": 0},
        "layers": [
            {"mediaType": "application/vnd.ollama.image.model", "digest": upper(&weights), "size": weights.size},
            {"mediaType": "application/vnd.ollama.image.prompt", "digest": upper(&prompt), "size": prompt.size},
            {"mediaType": "application/vnd.ollama.image.embed", "digest": upper(&prompt), "size": prompt.size},
        ],
        "unknown": true,
    });
    s.write_raw("manifests/registry.ollama.ai/library/Old/Latest", manifest.to_string());
    s.write_raw("manifests/registry.ollama.ai/library/empty/latest", br#"{"schemaVersion":2,"layers":null}"#);
    let old = s.store.model(&name("old")).expect("an old manifest");
    assert_eq!(old.template.as_deref(), Some("{{ .Prompt }} old"));
    assert_eq!(old.name(), "Old:Latest");
    assert_eq!(s.store.model(&name("empty")).expect("no layers").weights, Vec::<PathBuf>::new());
    assert_eq!(s.listed().len(), 2);
}

#[test]
fn broken_models_are_left_out_of_lists_and_named_when_asked_for() {
    let s = sandbox();
    s.install("good", vec![s.layer(Kind::Model, &gguf(&[]))]);
    s.write_raw("manifests/registry.ollama.ai/library/cut/latest", b"{\"schemaVersion\":");
    let hostile = r#"{"schemaVersion":2,"layers":[{"mediaType":"application/vnd.ollama.image.model","digest":"sha256:../../../../etc/passwd","size":1}]}"#;
    s.write_raw("manifests/registry.ollama.ai/library/hostile/latest", hostile);
    let missing = hostile.replace("../../../../etc/passwd", &"0".repeat(64));
    s.write_raw("manifests/registry.ollama.ai/library/missing/latest", missing);
    s.install("params", vec![s.layer(Kind::Model, &gguf(&[])), s.layer(Kind::Params, b"[not json")]);
    s.install("noise", vec![s.layer(Kind::Model, b"this is not a GGUF file")]);
    s.write_raw("manifests/registry.ollama.ai/library/.DS_Store", b"junk");
    s.write_raw("manifests/registry.ollama.ai/library/good/.latest.swp", b"junk");
    // Weights of a kind that we cannot read are a model all the same: it can be shown and deleted.
    assert_eq!(s.listed(), ["noise:latest", "good:latest"]);
    for (model, expected) in [
        ("cut", "the manifest of `cut:latest` is broken: EOF while parsing"),
        ("hostile", "the manifest of `hostile:latest` is broken: invalid digest format"),
        ("missing", "`missing:latest` is incomplete: its weights `sha256:000"),
        ("params", "the parameters of `params:latest` cannot be read"),
        ("noise", "cannot read `"),
        ("absent", "model `absent:latest` is not installed"),
    ] {
        let error = s.store.model(&name(model)).expect_err(model).to_string();
        assert!(error.starts_with(expected), "{model}: {error}");
    }
}

#[test]
fn names_are_found_in_any_case_and_keep_the_installed_spelling() {
    let s = sandbox();
    s.install("Me/Foo:Q4_K", vec![s.layer(Kind::Model, &gguf(&[]))]);
    for typed in ["me/foo:q4_k", "ME/FOO:Q4_K", "Me/Foo:Q4_K"] {
        assert_eq!(s.store.resolve(&name(typed)).to_string(), "Me/Foo:Q4_K", "{typed}");
    }
    s.install("me/FOO:q4_k", vec![s.layer(Kind::System, b"another")]);
    assert_eq!(s.listed(), ["Me/Foo:Q4_K"], "replaced, not added");
    assert_eq!(s.store.resolve(&name("me/foo:other")).to_string(), "Me/Foo:other");
    assert_eq!(s.store.resolve(&name("new")), name("new"));
}

/// Two spellings can lie side by side when a case-sensitive disk was filled by hand.
#[test]
fn the_exact_spelling_wins_and_a_dead_end_is_left_again() {
    let s = sandbox();
    s.write_raw("manifests/registry.ollama.ai/library/foo/latest", br#"{"schemaVersion":2,"layers":[]}"#);
    s.write_raw("manifests/registry.ollama.ai/library/Foo/latest", br#"{"schemaVersion":2,"layers":[]}"#);
    s.write_raw("manifests/registry.ollama.ai/library/FOO/v2", br#"{"schemaVersion":2,"layers":[]}"#);
    assert_eq!(s.store.resolve(&name("foo")).to_string(), "foo:latest");
    assert_eq!(s.store.resolve(&name("Foo")).to_string(), "Foo:latest");
    assert_eq!(s.store.resolve(&name("foo:v2")).to_string(), "FOO:v2");
}

#[test]
fn deleting_removes_what_nobody_else_uses() {
    let s = sandbox();
    let shared = s.layer(Kind::Model, &gguf(&[]));
    let own = s.layer(Kind::System, b"only here");
    s.install("a", vec![shared.clone(), own.clone()]);
    s.install("b", vec![shared.clone()]);
    s.store.delete(&name("A")).expect("deletable in any case");
    assert!(s.store.blob_size(&shared.digest.expect("a digest")).is_some());
    assert!(s.store.blob_size(&own.digest.expect("a digest")).is_none());
    assert!(matches!(s.store.delete(&name("a")), Err(Error::NotFound(_))));
    s.store.delete(&name("b")).expect("deletable");
    assert_eq!(s.blobs(), 0);
    assert_eq!(fs::read_dir(s.store.root().join("manifests")).expect("manifests").count(), 0, "no empty folders");
}

#[test]
fn a_broken_manifest_keeps_all_blobs_and_can_be_deleted() {
    let s = sandbox();
    s.install("a", vec![s.layer(Kind::System, b"text")]);
    s.write_raw("manifests/registry.ollama.ai/library/broken/latest", b"{");
    s.store.delete(&name("a")).expect("deletable");
    assert_eq!(s.blobs(), 1, "`broken` might use it");
    s.store.delete(&name("broken")).expect("deletable");
    assert_eq!(s.listed(), Vec::<String>::new());
}

#[test]
fn copies_are_byte_for_byte_and_replace() {
    let s = sandbox();
    let pulled = br#"{ "schemaVersion":2, "layers":[], "extra": [1, 2] }"#;
    s.write_raw("manifests/hf.co/org/repo/Q4", pulled);
    let own = s.layer(Kind::System, b"goes away");
    s.install("target", vec![own]);
    s.store.copy(&name("hf.co/org/repo:q4"), &name("TARGET")).expect("a copy");
    let copied = s.store.root().join("manifests/registry.ollama.ai/library/target/latest");
    assert_eq!(fs::read(copied).expect("the copy"), pulled);
    assert_eq!(s.blobs(), 0, "what the target had before is unused now");
    assert!(matches!(s.store.copy(&name("absent"), &name("x")), Err(Error::NotFound(_))));
    s.store.copy(&name("target"), &name("target")).expect("a copy onto itself");
    assert_eq!(s.listed().len(), 2);
}

#[test]
fn a_manifest_cannot_name_blobs_that_are_not_there() {
    let s = sandbox();
    let manifest = Manifest::new(Layer::default(), vec![Layer::new(Kind::Model, Digest::of(b"nowhere"), 7)]);
    assert!(matches!(s.store.write_manifest(&name("m"), &manifest), Err(Error::NoBlob(_))));
    assert_eq!(s.listed(), Vec::<String>::new());
}

#[test]
fn an_upload_is_checked_while_it_is_written() {
    let s = sandbox();
    let mut writer = s.store.blob_writer().expect("a writer");
    writer.write_all(b"some ").and_then(|()| writer.write_all(b"bytes")).expect("a disk");
    let (digest, bytes) = writer.finish(Some(Digest::of(b"some bytes"))).expect("the right digest");
    assert_eq!((s.store.blob_size(&digest), bytes), (Some(10), 10));

    let mut writer = s.store.blob_writer().expect("a writer");
    writer.write_all(b"other bytes").expect("a disk");
    let error = writer.finish(Some(digest)).expect_err("the wrong digest").to_string();
    assert_eq!(error, format!("digest mismatch, expected \"{digest}\", got \"{}\"", Digest::of(b"other bytes")));

    let mut writer = s.store.blob_writer().expect("a writer");
    writer.write_all(b"the client left").expect("a disk");
    drop(writer);
    assert_eq!(s.blobs(), 1, "nothing of the failed ones is left");
}

#[test]
fn maintenance_removes_old_unused_blobs_only() {
    let s = sandbox();
    s.install("m", vec![s.layer(Kind::System, b"used")]);
    s.layer(Kind::System, b"unused");
    let old_style = Digest::of(b"named in an old style");
    s.write_raw(&format!("blobs/{old_style}"), b"named in an old style");
    s.write_raw(&format!("blobs/sha256-{}-partial", "a".repeat(64)), b"progress of a download");
    s.write_raw(&format!("blobs/sha256-{}-partial-0", "a".repeat(64)), b"{}");
    s.write_raw("blobs/upload-x-partial", b"of a process that died");
    s.write_raw(".making-x/model.gguf", b"of a process that died");
    s.write_raw(".converting-x/journal", b"of a conversion nobody came back to");
    let hour = Duration::from_secs(3600);
    assert_eq!(s.store.maintain(hour).expect("maintenance"), Pruned::default(), "all of it is new");
    assert!(s.store.blob_size(&old_style).is_some(), "renamed");
    s.age();
    let pruned = s.store.maintain(hour).expect("maintenance");
    assert_eq!(pruned.blobs, 3, "the unused one, the renamed one, the upload");
    assert_eq!(s.blobs(), 3, "the used one and the download's two files");
    let rest: Vec<String> =
        super::entries(s.store.root()).expect("a root").into_iter().filter(|n| n != ".fathom.lock").collect();
    assert_eq!(rest, ["blobs", "manifests"]);
}

#[test]
fn maintenance_keeps_everything_while_a_manifest_is_broken() {
    let s = sandbox();
    s.layer(Kind::System, b"unused?");
    s.write_raw("manifests/registry.ollama.ai/library/broken/latest", b"{");
    s.age();
    assert_eq!(s.store.maintain(Duration::ZERO).expect("maintenance"), Pruned::default());
    assert_eq!(s.blobs(), 1);
}

#[test]
fn a_bare_file_is_a_model_with_a_digest_of_its_own() {
    let s = sandbox();
    let path = s.folder.path().join("a.gguf");
    let bytes = gguf(&[]);
    fs::write(&path, &bytes).expect("a file");
    let model = Model::from_gguf(&path).expect("a model");
    assert_eq!(model.name(), path.display().to_string());
    assert_eq!(model.size, bytes.len() as u64);
    assert_eq!(model.capabilities, [Capability::Completion]);
    assert_eq!(model.digest, Model::from_gguf(&path).expect("again").digest);

    let other = s.folder.path().join("b.gguf");
    fs::copy(&path, &other).expect("a copy");
    assert_ne!(model.digest, Model::from_gguf(&other).expect("another file").digest);
    let touched = fs::File::options().append(true).open(&path).expect("the file");
    touched.set_modified(SystemTime::now() + Duration::from_secs(5)).expect("our own file");
    assert_ne!(model.digest, Model::from_gguf(&path).expect("changed").digest);

    fs::write(&path, b"no GGUF").expect("a file");
    let error = Model::from_gguf(&path).expect_err("no model").to_string();
    assert!(error.starts_with(&format!("`{}` cannot be used as a model: ", path.display())), "{error}");
}

#[test]
fn a_linked_file_becomes_a_blob_without_a_copy() {
    let s = sandbox();
    let path = s.folder.path().join("weights.gguf");
    fs::write(&path, gguf(&[])).expect("a file");
    let mut heard = 0;
    let mut hear = |bytes| {
        heard = bytes;
        true
    };
    let (digest, bytes) = s.store.link(&path, &mut hear).expect("a blob").expect("not stopped");
    assert_eq!((digest, bytes), (Digest::of(&gguf(&[])), heard));
    #[cfg(unix)]
    {
        use std::os::unix::fs::MetadataExt;
        let inode = |path: &Path| fs::metadata(path).expect("a file").ino();
        assert_eq!(inode(&path), inode(&s.store.blob_path(&digest)));
    }
    assert!(s.store.link(&path, &mut |_| false).expect("no error").is_none(), "stopped");
    #[cfg(unix)]
    {
        let link = s.folder.path().join("link.gguf");
        fs::write(&path, b"other bytes").expect("a file");
        std::os::unix::fs::symlink("weights.gguf", &link).expect("a link");
        let (digest, _) = s.store.link(&link, &mut |_| true).expect("a blob").expect("not stopped");
        let blob = fs::symlink_metadata(s.store.blob_path(&digest)).expect("a blob");
        assert!(blob.file_type().is_file(), "the file and not the link");
    }
}

/// Two processes, here two handles: neither may take away what the other one is about to use.
#[test]
fn manifests_written_at_the_same_time_keep_their_blobs() {
    let s = sandbox();
    let shared = s.layer(Kind::Model, &gguf(&[]));
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let (root, shared) = (s.store.root(), &shared);
            scope.spawn(move || {
                let store = Store::open(root).expect("the same store");
                let keeper = name(&format!("keep-{thread}"));
                let manifest = Manifest::new(Layer::default(), vec![shared.clone()]);
                for round in 0..10 {
                    let passing = name(&format!("pass-{thread}-{round}"));
                    store.write_manifest(&keeper, &manifest).expect("the shared blob is there");
                    store.write_manifest(&passing, &manifest).expect("the shared blob is there");
                    store.delete(&passing).expect("its own model");
                }
            });
        }
    });
    assert_eq!(s.listed().len(), 4);
    assert!(s.store.model(&name("keep-0")).is_ok());
}
