//! Converted files as llama.cpp itself sees them: its loader takes every tensor, and its tokenizer, made from our keys, gives the
//! released ids. (The engine skips llama.cpp's tokenizer, so nothing else tests those keys.)

use std::mem::ManuallyDrop;
use std::path::{Path, PathBuf};

use fathom_converters::{Options, Silent, convert};
use fathom_gguf::DType;
use llama_cpp_2::llama_backend::LlamaBackend;
use llama_cpp_2::model::LlamaModel;
use llama_cpp_2::model::params::LlamaModelParams;

fn load(path: &Path) -> LlamaModel {
    // The backend is started once in a process, and the engine does it. This is only the proof that it runs: dropping it would
    // stop the engine's.
    fathom::engine::llama::quantize_rows(DType::Q8_0, &[0.0; 32], 32).unwrap();
    let backend = ManuallyDrop::new(LlamaBackend {});
    LlamaModel::load_from_file(&backend, path, &LlamaModelParams::default().with_n_gpu_layers(0)).unwrap()
}

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data").join(name)
}

#[test]
fn model_and_mtp_draft_load_and_the_tokenizer_gives_the_released_ids() {
    for name in ["tiny-v4-a", "tiny-v4-b"] {
        let dir = tempfile::tempdir().unwrap();
        let output = dir.path().join("model.gguf");
        convert(&Options::new(fixture(name), &output), &mut Silent).unwrap();
        let config = std::fs::read_to_string(fixture(name).join("config.json")).unwrap();
        let config: serde_json::Value = serde_json::from_str(&config).unwrap();
        let layers = config["num_hidden_layers"].as_u64().unwrap();

        let model = load(&output);
        assert_eq!(u64::from(model.n_layer()), layers, "{name}");
        assert_eq!(model.n_vocab() as u64, config["vocab_size"].as_u64().unwrap());
        let vocab = model.vocab();
        assert_eq!((vocab.bos().0, vocab.eos().0), (0, 1));
        let cases = std::fs::read_to_string(fixture(name).join("tokenizer_cases.json")).unwrap();
        let cases: Vec<serde_json::Value> = serde_json::from_str(&cases).unwrap();
        for case in &cases {
            let text = case["text"].as_str().unwrap();
            let ids: Vec<i64> =
                vocab.tokenize(text.as_bytes(), false, true).iter().map(|token| token.0.into()).collect();
            assert_eq!(serde_json::json!(ids), case["ids"], "{name}: {text:?}");
        }
        drop(model);
        load(&dir.path().join("model.draft.gguf"));
    }
}
