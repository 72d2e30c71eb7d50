//! The smallest model that can be served: a GGUF file with a vocabulary of bytes and a few special tokens, and no weights. What
//! the scripted engine plays is text of this vocabulary; every byte of ordinary text is one token, so that characters
//! and stop strings are cut in every possible way.

use fathom::store::{Digest, Kind, Layer, Manifest, Name, Store};
use fathom_gguf::{Metadata, Strings, Value, write_to};
use serde_json::json;

/// Tokens 256 and on; the first two begin and end a text.
const SPECIALS: &[&str] = &[
    "<｜begin▁of▁sentence｜>",
    "<｜end▁of▁sentence｜>",
    "<｜User｜>",
    "<｜Assistant｜>",
    "<think>",
    "</think>",
    "｜DSML｜",
    "<｜fim▁begin｜>",
    "<｜fim▁hole｜>",
    "<｜fim▁end｜>",
];

/// GPT-2's spelling of a byte as a visible character.
fn spell(byte: u8) -> char {
    let visible = |b: u8| matches!(b, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff);
    if visible(byte) {
        return byte as char;
    }
    let hidden_before = (0..byte).filter(|b| !visible(*b)).count() as u32;
    char::from_u32(256 + hidden_before).expect("a letter of Latin Extended-A")
}

/// Metadata of a model of `architecture`.
pub fn metadata(architecture: &str) -> Metadata {
    let mut tokens: Vec<String> = (0..=255).map(|byte| spell(byte).to_string()).collect();
    tokens.extend(SPECIALS.iter().map(|text| text.to_string()));
    let mut kinds = vec![1i32; 256];
    kinds.resize(tokens.len(), 3);

    let mut metadata = Metadata::new();
    let mut set = |key: &str, value: Value| metadata.insert(key, value);
    set("general.architecture", architecture.into());
    set(&format!("{architecture}.context_length"), 4096u32.into());
    set(&format!("{architecture}.embedding_length"), 8u32.into());
    set("tokenizer.ggml.model", "gpt2".into());
    set("tokenizer.ggml.pre", "deepseek-v3".into());
    set("tokenizer.ggml.tokens", Strings::from(tokens).into());
    set("tokenizer.ggml.token_type", kinds.into());
    set("tokenizer.ggml.merges", Strings::from(Vec::new()).into());
    set("tokenizer.ggml.bos_token_id", 256u32.into());
    set("tokenizer.ggml.eos_token_id", 257u32.into());
    set("tokenizer.ggml.add_bos_token", true.into());
    metadata
}

/// What is stored with the weights of one model.
#[derive(Clone, Debug, Default)]
pub struct Parts {
    pub system: Option<&'static str>,
    pub template: Option<&'static str>,
    pub params: Option<serde_json::Value>,
    pub messages: Option<serde_json::Value>,
}

/// Puts a model into a store under `name`.
pub fn install(store: &Store, name: &str, metadata: Metadata, parts: &Parts) {
    let mut gguf = Vec::new();
    write_to::<_, Vec<u8>>(&mut gguf, metadata, &[]).unwrap().unwrap();
    let put = |bytes: &[u8]| -> (Digest, u64) { (store.put(bytes).unwrap().0, bytes.len() as u64) };
    let layer = |kind, bytes: &[u8]| {
        let (digest, size) = put(bytes);
        Layer::new(kind, digest, size)
    };
    let mut layers = vec![layer(Kind::Model, &gguf)];
    layers.extend(parts.template.map(|text| layer(Kind::Template, text.as_bytes())));
    layers.extend(parts.system.map(|text| layer(Kind::System, text.as_bytes())));
    layers.extend(parts.params.as_ref().map(|json| layer(Kind::Params, json.to_string().as_bytes())));
    layers.extend(parts.messages.as_ref().map(|json| layer(Kind::Messages, json.to_string().as_bytes())));
    let (digest, size) = put(json!({"model_format": "gguf"}).to_string().as_bytes());
    let config = Layer { media_type: fathom::store::CONFIG_TYPE.into(), digest: Some(digest), size, from: None };
    store.write_manifest(&Name::parse(name).unwrap(), &Manifest::new(config, layers)).unwrap();
}
