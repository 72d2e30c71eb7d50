//! Models in several files: as `.gguf` paths, and as blobs of a store, whose names say nothing.

use std::path::{Path, PathBuf};

use fathom::store::{Kind, Layer, Manifest, Name, Store};
use fathom_gguf::{DType, Layout, TensorInfo, Writer};

use super::Home;
use crate::support::model;

/// A model of three shards, as [`model::metadata`] describes it; the first shard holds all keys and no tensor that matters.
fn three_shards(folder: &Path) -> Vec<PathBuf> {
    let tensor = |number: usize| TensorInfo::new(format!("blk.{number}.weight"), DType::F32, [64]).unwrap();
    let layout = Layout::new(model::metadata("deepseek4"), (0..3).map(tensor).collect(), Some(256)).unwrap();
    let paths = layout.paths(&folder.join("m.gguf"));
    assert_eq!(paths.len(), 3);
    Writer::create(&layout, &paths).unwrap();
    paths
}

/// A manifest that lists these files in this order, as an existing folder may have it.
fn install(home: &Home, name: &str, shards: impl Iterator<Item = PathBuf>) {
    let store = Store::open(home.path().join("models")).unwrap();
    let layer = |path: PathBuf| {
        let bytes = std::fs::read(path).unwrap();
        Layer::new(Kind::Model, store.put(&bytes).unwrap().0, bytes.len() as u64)
    };
    let manifest = Manifest::new(Layer::default(), shards.map(layer).collect());
    store.write_manifest(&Name::parse(name).unwrap(), &manifest).unwrap();
}

#[test]
fn shards_are_served_by_path_and_from_blobs_in_any_order() {
    let home = Home::new();
    let server = home.serve(&home.script(&["Hello.", "Hello.", "Hello.", "Hello."], 0));
    let shards = three_shards(home.path());
    for (name, order) in [("straight", [0, 1, 2]), ("mixed", [2, 0, 1])] {
        install(&home, name, order.into_iter().map(|shard| shards[shard].clone()));
        assert_eq!(home.ask(&server, &["run", name, "hi", "--think=false"]).ok(), "Hello.\n\n", "{name}");
        let shown = home.ask(&server, &["show", name, "--verbose"]).ok();
        assert!((0..3).all(|tensor| shown.contains(&format!("blk.{tensor}.weight"))), "{shown}");
        // The Modelfile makes it again: every blob is named, and their order does not matter.
        let modelfile = home.ask(&server, &["show", name, "--modelfile"]).ok();
        assert_eq!(modelfile.lines().filter(|line| line.starts_with("FROM ")).count(), 3, "{modelfile}");
        std::fs::write(home.path().join("Modelfile"), modelfile).unwrap();
        assert_eq!(home.ask(&server, &["create", "again"]).code, Some(0));
        assert!(home.ask(&server, &["show", "again", "--verbose"]).ok().contains("blk.2.weight"));
    }
    for shard in [&shards[0], &shards[2]] {
        let path = shard.to_str().unwrap();
        assert_eq!(home.ask(&server, &["run", path, "hi", "--think=false"]).ok(), "Hello.\n\n", "{path}");
    }
    // Two of three: the message says what is wrong before anything is loaded.
    // The verbs that work in this process open them too.
    std::fs::write(home.path().join("hash.json"), r#"{"schema": 1, "play": "hash"}"#).unwrap();
    let eval = ["--engine", "scripted", "--script", "hash.json", "--only", "text", "--tokens", "600", "--json"];
    let report: serde_json::Value =
        serde_json::from_str(&home.run(&[&["eval", "mixed"], &eval[..]].concat()).ok()).unwrap();
    assert_eq!(report["files"].as_array().unwrap().len(), 3, "{report}");

    install(&home, "half", shards[..2].iter().cloned());
    let text = home.ask(&server, &["run", "half", "hi"]).error();
    assert!(text.contains("`split.count` = 3, expected 2"), "{text}");
    std::fs::remove_file(&shards[1]).unwrap();
    let text = home.ask(&server, &["run", shards[0].to_str().unwrap(), "hi"]).error();
    assert!(text.contains("shard 2 of 3 is missing"), "{text}");
}

/// With real arithmetic.
#[cfg(feature = "llama")]
mod llama {
    use fathom_converters::{Options, Silent, convert};

    use super::*;
    use crate::support::http;
    use crate::support::program::Program;

    /// What a model answers when it does not choose.
    fn answer(server: &Program, model: &str) -> String {
        let request = serde_json::json!({
            "model": model, "prompt": "Hello there, how are you?", "raw": true, "stream": false,
            "options": {"temperature": 0, "num_predict": 12},
        });
        let headers = [("Sec-Fathom-Local", "1")];
        let reply =
            http::open(server.address, "POST", "/api/generate", &headers, request.to_string().as_bytes()).finish();
        let reply = reply.json();
        reply["response"].as_str().unwrap_or_else(|| panic!("{model}: {reply}")).to_owned()
    }

    /// The fixture whole, split beside it, and split into blobs of a store: one answer, and the same logits.
    #[test]
    fn a_split_model_computes_what_the_whole_one_does() {
        let home = Home::new();
        let checkpoint = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/tiny-v4-a");
        let named =
            |name: &str| Options { name: Some("tiny".into()), ..Options::new(&checkpoint, home.path().join(name)) };
        let whole = convert(&named("whole.gguf"), &mut Silent).unwrap().files.remove(0);
        let split = Options { split_max_bytes: Some(1 << 20), ..named("split.gguf") };
        let shards = convert(&split, &mut Silent).unwrap().files;
        let shards: Vec<_> = shards.into_iter().filter(|path| !path.to_str().unwrap().contains(".draft")).collect();
        assert!(shards.len() > 2, "{shards:?}");
        install(&home, "blobs", shards.iter().rev().cloned());
        let settings = [("FATHOM_ENGINE", "llama"), ("FATHOM_THREADS", "1"), ("FATHOM_CONTEXT_LENGTH", "256")];
        let server = Program::serve(home.path(), &settings);
        let expected = answer(&server, whole.to_str().unwrap());
        assert!(!expected.is_empty());
        let last = shards.last().unwrap().to_str().unwrap();
        for model in [shards[0].to_str().unwrap(), last, "blobs"] {
            assert_eq!(answer(&server, model), expected, "{model}");
        }
        drop(server);
        let logits = |model: &str| {
            let args =
                ["logits", "--model", model, "--tokens", "1,2,3,4,5", "--out", "l.safetensors", "--threads", "1"];
            home.run(&args).ok();
            std::fs::read(home.path().join("l.safetensors")).unwrap()
        };
        let expected = logits(whole.to_str().unwrap());
        assert_eq!(logits(last), expected);
        assert_eq!(logits("blobs"), expected);
    }
}
