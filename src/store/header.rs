//! What the header of a GGUF file says that lists, capabilities and chat need to know.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use fathom_gguf::{DType, File};

use super::{Digest, Error, Store};

/// A GGUF header without its vocabulary and tensors.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Header {
    /// `general.architecture`.
    pub architecture: String,
    /// `fathom.source.release`: which prompt generation a DeepSeek checkpoint belongs to.
    pub release: Option<String>,
    /// Name of the quantisation: of `general.file_type`, or of the type most weights have.
    pub file_type: String,
    /// Elements of all tensors.
    pub parameter_count: u64,
    /// Tokens of context that the model was trained for.
    pub context_length: Option<u64>,
    pub embedding_length: Option<u64>,
    /// Jinja, `tokenizer.chat_template`.
    pub chat_template: Option<String>,
    /// Texts of the tokens that begin and end a text, for templates that name them.
    pub bos: Option<String>,
    pub eos: Option<String>,
    /// An embedding model: `<arch>.pooling_type` is there.
    pub pooling: bool,
    pub vision: bool,
    pub audio: bool,
    /// `general.type`: `model`, `adapter`, `mmproj`, ...; `None` = not said.
    pub kind: Option<String>,
    /// All shards, the first one first.
    pub files: Vec<PathBuf>,
    pub file_bytes: u64,
}

impl Header {
    /// Reads what is asked for; keys of a wrong type count as absent, since showing a model must not fail where running it
    /// may still succeed (or explain better why not).
    pub fn read(file: &File) -> Header {
        let metadata = file.metadata();
        let text = |key: &str| metadata.str(key).ok().map(str::to_owned);
        let architecture = text("general.architecture").unwrap_or_default();
        let key = |name: &str| format!("{architecture}.{name}");
        let files: Vec<PathBuf> = file.shards().map(Path::to_path_buf).collect();
        Header {
            release: text("fathom.source.release"),
            file_type: file_type(file),
            parameter_count: parameter_count(file),
            context_length: metadata.u64(&key("context_length")).ok(),
            embedding_length: metadata.u64(&key("embedding_length")).ok(),
            chat_template: text("tokenizer.chat_template"),
            bos: token(metadata, "tokenizer.ggml.bos_token_id"),
            eos: token(metadata, "tokenizer.ggml.eos_token_id"),
            pooling: metadata.get(&key("pooling_type")).is_some(),
            vision: metadata.get(&key("vision.block_count")).is_some(),
            audio: metadata.get(&key("audio.block_count")).is_some(),
            kind: text("general.type"),
            file_bytes: files.iter().filter_map(|p| std::fs::metadata(p).ok()).map(|m| m.len()).sum(),
            files,
            architecture,
        }
    }

    /// The number of parameters for people; empty when there are none.
    pub fn parameter_size(&self) -> String {
        if self.parameter_count == 0 { String::new() } else { parameter_size(self.parameter_count) }
    }
}

impl Store {
    /// The header of a model's weights, read when it is first asked for. `digests` and `paths` are its
    /// shards in one order, which need not be theirs: [`Header::files`] has that.
    pub(super) fn header(&self, digests: &[Digest], paths: &[PathBuf]) -> Result<Arc<Header>, Error> {
        let Some(path) = paths.first() else {
            return Ok(Arc::default());
        };
        if let Some(header) = self.headers.lock().unwrap_or_else(|e| e.into_inner()).get(digests) {
            return Ok(header.clone());
        }
        let file = File::open_shards(paths).map_err(|source| Error::Gguf { path: path.clone(), source })?;
        let header = Arc::new(Header::read(&file));
        self.headers.lock().unwrap_or_else(|e| e.into_inner()).insert(digests.to_vec(), header.clone());
        Ok(header)
    }
}

/// The text of the token whose id is stored under `key`.
fn token(metadata: &fathom_gguf::Metadata, key: &str) -> Option<String> {
    let id = usize::try_from(metadata.u64(key).ok()?).ok()?;
    metadata.strings("tokenizer.ggml.tokens").ok()?.get(id).map(|text| text.to_string())
}

/// Elements of all tensors of a model.
pub fn parameter_count(file: &File) -> u64 {
    file.tensors().iter().map(fathom_gguf::TensorInfo::elements).fold(0, u64::saturating_add)
}

/// Names of `general.file_type`, as llama.cpp numbers them.
const FILE_TYPES: &[(u64, &str)] = &[
    (0, "F32"),
    (1, "F16"),
    (2, "Q4_0"),
    (3, "Q4_1"),
    (7, "Q8_0"),
    (8, "Q5_0"),
    (9, "Q5_1"),
    (10, "Q2_K"),
    (11, "Q3_K_S"),
    (12, "Q3_K_M"),
    (13, "Q3_K_L"),
    (14, "Q4_K_S"),
    (15, "Q4_K_M"),
    (16, "Q5_K_S"),
    (17, "Q5_K_M"),
    (18, "Q6_K"),
    (19, "IQ2_XXS"),
    (20, "IQ2_XS"),
    (21, "Q2_K_S"),
    (22, "IQ3_XS"),
    (23, "IQ3_XXS"),
    (24, "IQ1_S"),
    (25, "IQ4_NL"),
    (26, "IQ3_S"),
    (27, "IQ3_M"),
    (28, "IQ2_S"),
    (29, "IQ2_M"),
    (30, "IQ4_XS"),
    (31, "IQ1_M"),
    (32, "BF16"),
    (36, "TQ1_0"),
    (37, "TQ2_0"),
    (38, "MXFP4"),
    (39, "NVFP4"),
    (40, "Q1_0"),
    (41, "Q2_0"),
];

/// Added by writers that guessed the type; it says nothing about the type itself (`LLAMA_FTYPE_GUESSED`).
const FILE_TYPE_GUESSED: u64 = 1024;

/// The name of a file's quantisation: as it says itself, otherwise the type that holds most of its elements.
fn file_type(file: &File) -> String {
    let said = file.metadata().u64("general.file_type").ok().map(|id| id & !FILE_TYPE_GUESSED);
    if let Some((_, name)) = FILE_TYPES.iter().find(|(id, _)| Some(*id) == said) {
        return (*name).to_string();
    }
    let mut elements: HashMap<DType, u64> = HashMap::new();
    for tensor in file.tensors() {
        let sum = elements.entry(tensor.dtype).or_default();
        *sum = sum.saturating_add(tensor.elements());
    }
    let most = elements.into_iter().max_by_key(|(dtype, elements)| (*elements, dtype.id()));
    most.map_or_else(String::new, |(dtype, _)| dtype.name().to_uppercase())
}

/// A number of parameters as Ollama writes it: `8.0B` (`7B` when it is whole), `134.52M`, `12K`.
pub fn parameter_size(count: u64) -> String {
    let count_f = count as f64;
    match count {
        1_000_000_000.. if count.is_multiple_of(1_000_000_000) => format!("{}B", count / 1_000_000_000),
        1_000_000_000.. => format!("{:.1}B", count_f / 1e9),
        1_000_000.. if count.is_multiple_of(1_000_000) => format!("{}M", count / 1_000_000),
        1_000_000.. => format!("{:.2}M", count_f / 1e6),
        1_000.. => format!("{:.0}K", count_f / 1e3),
        _ => count.to_string(),
    }
}
