//! The keys of an output file besides the architecture's own: `general.*`, the vocabulary, and `fathom.*` (design.md, "GGUF keys
//! of ours"), which is what makes the file convertible back.

use std::collections::HashMap;

use fathom_gguf::{DType, Metadata, Strings};

use crate::recipe::{Catalog, FilePlan, Release};
use crate::transcode::Encoding;

/// Value of [`FORMAT_VERSION`].
pub const FORMAT: u32 = 1;
/// Version of our keys.
pub const FORMAT_VERSION: &str = "fathom.format_version";
/// Which release the checkpoint is.
pub const RELEASE: &str = "fathom.source.release";
/// Released tensors stored in this file.
pub const NAMES: &str = "fathom.tensor.names";
/// Their safetensors dtypes.
pub const DTYPES: &str = "fathom.tensor.dtypes";
/// SHA-256 of their released bytes, in hex.
pub const SHA256: &str = "fathom.tensor.sha256";
/// File name of the draft.
pub const DRAFT_FILE: &str = "fathom.draft.file";
/// SHA-256 of the draft's file (of all its files in order, if it was split), in hex.
pub const DRAFT_SHA256: &str = "fathom.draft.sha256";
/// Prefix of the recorded FP8 scale bytes of a GGUF tensor.
pub const FP8_SCALE: &str = "fathom.fp8_scale.";

/// The JSON files that are kept verbatim: file name, key, and whether a checkpoint must have it.
pub const JSON_FILES: [(&str, &str, bool); 4] = [
    ("config.json", "fathom.source.config_json", true),
    ("generation_config.json", "fathom.source.generation_config_json", false),
    ("tokenizer.json", "tokenizer.huggingface.json", true),
    ("tokenizer_config.json", "fathom.source.tokenizer_config_json", false),
];

/// Stands for a SHA-256 until it is known: same length in hex.
pub const UNKNOWN_SHA256: &str = "0000000000000000000000000000000000000000000000000000000000000000";

/// What the metadata of one output file is made of.
pub struct Sources<'a> {
    /// `general.name`.
    pub name: &'a str,
    /// Which release.
    pub release: Release,
    /// Texts of the JSON files by file name.
    pub json: &'a HashMap<&'static str, String>,
    /// The tokenizer keys.
    pub tokenizer: &'a Metadata,
    /// The checkpoint's tensors, for order and dtypes.
    pub catalog: &'a Catalog,
    /// FP8 scale bytes by GGUF tensor name; empty when they were not read (`--dry-run` without data).
    pub scales: &'a HashMap<String, Vec<u8>>,
    /// File name of the draft, for the trunk.
    pub draft: Option<&'a str>,
}

/// All keys of one output file, with place holders for the checksums.
pub fn file(plan: &FilePlan, sources: &Sources<'_>) -> Metadata {
    let mut keys = Metadata::new();
    keys.insert("general.architecture", plan.architecture);
    keys.insert("general.type", "model");
    keys.insert("general.name", sources.name);
    keys.insert("general.file_type", file_type(plan));
    keys.insert("general.quantization_version", 2u32);
    extend(&mut keys, &plan.keys);
    if plan.tokenizer {
        extend(&mut keys, sources.tokenizer);
    }

    keys.insert(FORMAT_VERSION, FORMAT);
    keys.insert(RELEASE, sources.release.key());
    for (file, key, _) in JSON_FILES {
        // A draft without a vocabulary needs no tokenizer.json; with one, the file and the keys belong together.
        let wanted = !file.starts_with("tokenizer") || plan.tokenizer;
        if let Some(text) = sources.json.get(file).filter(|_| wanted) {
            keys.insert(key, text.as_str());
        }
    }
    let here: std::collections::HashSet<&str> = plan.tensors.iter().flat_map(|tensor| tensor.released()).collect();
    let names = || sources.catalog.names().iter().map(String::as_str).filter(|name| here.contains(name));
    let dtype = |name: &str| sources.catalog.get(name).map_or_else(String::new, |released| released.dtype.to_string());
    keys.insert(NAMES, names().collect::<Strings>());
    keys.insert(DTYPES, names().map(dtype).collect::<Strings>());
    keys.insert(SHA256, names().map(|_| UNKNOWN_SHA256).collect::<Strings>());
    if let Some(draft) = sources.draft {
        keys.insert(DRAFT_FILE, draft);
        keys.insert(DRAFT_SHA256, UNKNOWN_SHA256);
    }
    for tensor in plan.tensors.iter().filter(|tensor| tensor.encoding == Encoding::Fp8) {
        if let Some(bytes) = sources.scales.get(&tensor.name) {
            keys.insert(format!("{FP8_SCALE}{}", tensor.name), bytes.clone());
        }
    }
    keys
}

fn extend(keys: &mut Metadata, more: &Metadata) {
    for (key, value) in more.iter() {
        keys.insert(key, value.clone());
    }
}

/// llama.cpp's `general.file_type`: what most of the file is, for display.
fn file_type(plan: &FilePlan) -> u32 {
    let mut bytes: HashMap<DType, u64> = HashMap::new();
    for tensor in &plan.tensors {
        *bytes.entry(tensor.dtype).or_default() += tensor.bytes();
    }
    match bytes.into_iter().max_by_key(|(dtype, bytes)| (*bytes, *dtype)).map(|(dtype, _)| dtype) {
        Some(DType::MXFP4) => 38,
        Some(DType::BF16) => 32,
        Some(DType::Q8_0) => 7,
        Some(DType::Q4_K) => 14,
        Some(DType::Q2_K) => 10,
        Some(DType::F16) => 1,
        _ => 0,
    }
}
