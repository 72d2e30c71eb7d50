//! What the header of a GGUF file says that lists, capabilities and chat need to know.

use std::path::PathBuf;
use std::sync::Arc;

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
    /// The number of parameters for people; empty when there are none.
    pub fn parameter_size(&self) -> String {
        if self.parameter_count == 0 { String::new() } else { parameter_size(self.parameter_count) }
    }
}

impl Store {
    /// The header of a weights blob, read when it is first asked for.
    pub(super) fn header(&self, digest: &Digest) -> Result<Arc<Header>, Error> {
        let mut known = self.headers.lock().unwrap_or_else(|broken| broken.into_inner());
        Ok(known.entry(*digest).or_default().clone())
    }
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
