//! What a model's metadata says about its tokens, checked, before anything is built from it.

use std::collections::HashMap;

use fathom_gguf::Strings;
use serde::Deserialize;
use tokenizers::{NormalizerWrapper, PreTokenizerWrapper};

use super::Error;

/// Kinds of `tokenizer.ggml.token_type`.
pub(super) mod kind {
    pub const NORMAL: i32 = 1;
    pub const UNKNOWN: i32 = 2;
    pub const CONTROL: i32 = 3;
    pub const USER_DEFINED: i32 = 4;
    pub const UNUSED: i32 = 5;
    pub const BYTE: i32 = 6;
}

/// The tokenizer part of a model's metadata. Text and numbers as the file has them; [`super::Tokenizer::new`] checks them.
#[derive(Clone, Debug, Default)]
pub struct Vocabulary {
    /// `tokenizer.ggml.model`
    pub model: String,
    /// `tokenizer.ggml.pre`
    pub pre: Option<String>,
    /// `tokenizer.ggml.tokens`; the index is the id.
    pub tokens: Strings,
    /// `tokenizer.ggml.token_type`; empty = all normal.
    pub kinds: Vec<i32>,
    /// `tokenizer.ggml.scores`, only for model `llama`.
    pub scores: Vec<f32>,
    /// `tokenizer.ggml.merges`: two tokens with a space in between.
    pub merges: Strings,
    /// `tokenizer.huggingface.json`
    pub huggingface: Option<String>,
    pub bos: Option<u32>,
    pub eos: Option<u32>,
    /// `tokenizer.ggml.eot_token_id`, `.eom_token_id`: ends besides `eos`.
    pub ends: Vec<u32>,
    /// `tokenizer.ggml.add_bos_token`; `None` = as usual for the model.
    pub add_bos: Option<bool>,
    pub add_eos: Option<bool>,
    /// `tokenizer.ggml.add_space_prefix`, only for model `llama`.
    pub add_space_prefix: Option<bool>,
}

impl Vocabulary {
    /// Reads the keys of a GGUF file; [`super::Tokenizer::new`] checks what they say.
    ///
    /// # Errors
    /// [`Error::Missing`] without a tokenizer, [`Error::Gguf`] when a key has the wrong type, [`Error::Key`] when a number
    /// does not fit.
    pub fn from_gguf(metadata: &fathom_gguf::Metadata) -> Result<Vocabulary, Error> {
        let key = |name: &str| format!("tokenizer.ggml.{name}");
        let strings = |name: &str| -> Result<Strings, Error> {
            Ok(metadata.opt_strings(&key(name))?.cloned().unwrap_or_default())
        };
        let kinds = metadata.opt_integers(&key("token_type"))?.unwrap_or_default();
        let kinds =
            kinds.into_iter().map(|kind| i32::try_from(kind).map_err(|_| bad("token_type", format!("has {kind}"))));
        let id = |name: &str| metadata.opt_u32(&key(name));
        let mut ends = Vec::new();
        for name in ["eot_token_id", "eom_token_id"] {
            ends.extend(id(name)?);
        }
        Ok(Vocabulary {
            model: metadata.opt_str(&key("model"))?.ok_or(Error::Missing)?.to_owned(),
            pre: metadata.opt_str(&key("pre"))?.map(str::to_owned),
            tokens: strings("tokens")?,
            kinds: kinds.collect::<Result<_, _>>()?,
            scores: metadata.opt_f32s(&key("scores"))?.unwrap_or_default().to_vec(),
            merges: strings("merges")?,
            huggingface: metadata.opt_str("tokenizer.huggingface.json")?.map(str::to_owned),
            bos: id("bos_token_id")?,
            eos: id("eos_token_id")?,
            ends,
            add_bos: metadata.opt_bool(&key("add_bos_token"))?,
            add_eos: metadata.opt_bool(&key("add_eos_token"))?,
            add_space_prefix: metadata.opt_bool(&key("add_space_prefix"))?,
        })
    }

    /// Every text with its id.
    ///
    /// # Errors
    /// When there are no tokens, two are the same, an array is of another length, or an id is out of range.
    pub(super) fn ids(&self) -> Result<HashMap<&str, u32>, Error> {
        if self.tokens.is_empty() {
            return Err(bad("tokens", "is empty"));
        }
        if u32::try_from(self.tokens.len()).is_err() {
            return Err(bad("tokens", "has more entries than ids exist"));
        }
        for (key, len) in [("token_type", self.kinds.len()), ("scores", self.scores.len())] {
            if len != 0 && len != self.tokens.len() {
                return Err(bad(key, format!("has {len} entries for {} tokens", self.tokens.len())));
            }
        }
        let named = [("bos_token_id", self.bos), ("eos_token_id", self.eos)];
        let ends = self.ends.iter().map(|id| ("eot_token_id", Some(*id)));
        for (key, id) in named.into_iter().chain(ends) {
            if let Some(id) = id
                && id as usize >= self.tokens.len()
            {
                return Err(bad(key, format!("is {id}, but there are {} tokens", self.tokens.len())));
            }
        }
        let mut ids = HashMap::with_capacity(self.tokens.len());
        for (id, text) in self.tokens.iter().enumerate() {
            if let Some(first) = ids.insert(text, id as u32) {
                return Err(bad("tokens", format!("has `{text}` twice, as {first} and {id}")));
            }
        }
        Ok(ids)
    }

    pub(super) fn kind(&self, id: usize) -> i32 {
        self.kinds.get(id).copied().unwrap_or(kind::NORMAL)
    }

    /// The pairs of [`Vocabulary::merges`], all of known tokens.
    ///
    /// # Errors
    /// When a merge is no pair or one of its three tokens does not exist. (The `tokenizers` crate would panic on some.)
    pub(super) fn pairs(&self, ids: &HashMap<&str, u32>) -> Result<Vec<(String, String)>, Error> {
        let mut joined = String::new();
        let mut pairs = Vec::with_capacity(self.merges.len());
        for (index, merge) in self.merges.iter().enumerate() {
            // A token may itself begin with a space; what separates is a later one.
            let first = merge.chars().next().map_or(0, char::len_utf8);
            let split = merge[first..].find(' ').map(|at| (&merge[..first + at], &merge[first + at + 1..]));
            let (left, right) =
                split.ok_or_else(|| bad("merges", format!("entry {index} `{merge}` is not two tokens")))?;
            check_merge(ids, left, right, &mut joined)
                .map_err(|token| bad("merges", format!("entry {index} needs token `{token}`, which does not exist")))?;
            pairs.push((left.to_owned(), right.to_owned()));
        }
        Ok(pairs)
    }
}

/// Whether `left`, `right` and both together are tokens; gives the one that is not.
fn check_merge(ids: &HashMap<&str, u32>, left: &str, right: &str, joined: &mut String) -> Result<(), String> {
    joined.clear();
    joined.push_str(left);
    joined.push_str(right);
    match [left, right, joined.as_str()].into_iter().find(|token| !ids.contains_key(token)) {
        Some(missing) => Err(missing.to_owned()),
        None => Ok(()),
    }
}

fn bad(key: &str, problem: impl Into<String>) -> Error {
    Error::Key { key: format!("tokenizer.ggml.{key}"), problem: problem.into() }
}

/// The parts of a `tokenizer.json` that shape encoding. Its vocabulary and merges are taken apart here, not by the
/// `tokenizers` crate, so that they can be checked first.
#[derive(Deserialize)]
pub(super) struct HuggingFace {
    pub normalizer: Option<NormalizerWrapper>,
    pub pre_tokenizer: Option<PreTokenizerWrapper>,
    #[serde(default)]
    pub added_tokens: Vec<Added>,
    pub model: Bpe,
}

#[derive(Deserialize)]
pub(super) struct Added {
    pub id: u32,
    pub content: String,
    #[serde(default)]
    pub single_word: bool,
    #[serde(default)]
    pub lstrip: bool,
    #[serde(default)]
    pub rstrip: bool,
    #[serde(default)]
    pub normalized: bool,
    #[serde(default)]
    pub special: bool,
}

#[derive(Deserialize)]
pub(super) struct Bpe {
    #[serde(rename = "type")]
    kind: String,
    vocab: HashMap<String, u32>,
    merges: Vec<Merge>,
    pub unk_token: Option<String>,
    #[serde(default)]
    pub fuse_unk: bool,
    #[serde(default)]
    pub byte_fallback: bool,
    #[serde(default)]
    pub ignore_merges: bool,
    #[serde(default)]
    continuing_subword_prefix: Option<String>,
    #[serde(default)]
    end_of_word_suffix: Option<String>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Merge {
    Pair(String, String),
    Line(String),
}

impl HuggingFace {
    /// Reads a `tokenizer.json` that describes the same tokens as the GGUF keys.
    ///
    /// # Errors
    /// Why it cannot be used: not JSON, not BPE, or it disagrees with `ids`.
    pub(super) fn read(json: &str, ids: &HashMap<&str, u32>) -> Result<HuggingFace, String> {
        let read: HuggingFace = serde_json::from_str(json).map_err(|e| e.to_string())?;
        if read.model.kind != "BPE" {
            return Err(format!("its model is `{}`, not BPE", read.model.kind));
        }
        if read.model.continuing_subword_prefix.as_deref().is_some_and(|s| !s.is_empty())
            || read.model.end_of_word_suffix.as_deref().is_some_and(|s| !s.is_empty())
        {
            return Err("it marks word parts with a prefix or suffix".into());
        }
        let added = read.added_tokens.iter().map(|a| (&a.content, a.id));
        for (text, id) in read.model.vocab.iter().map(|(t, id)| (t, *id)).chain(added) {
            if ids.get(text.as_str()) != Some(&id) {
                return Err(format!("its token `{text}` has id {id}, which is another token in the file"));
            }
        }
        Ok(read)
    }

    /// As [`Vocabulary::pairs`].
    pub(super) fn pairs(&mut self, ids: &HashMap<&str, u32>) -> Result<Vec<(String, String)>, String> {
        let mut joined = String::new();
        let mut pairs = Vec::with_capacity(self.model.merges.len());
        for merge in self.model.merges.drain(..) {
            let (left, right) = match merge {
                Merge::Pair(left, right) => (left, right),
                Merge::Line(line) => match line.split_once(' ') {
                    Some((left, right)) => (left.to_owned(), right.to_owned()),
                    None => return Err(format!("its merge `{line}` is not two tokens")),
                },
            };
            check_merge(ids, &left, &right, &mut joined)
                .map_err(|token| format!("its merges need token `{token}`, which does not exist"))?;
            pairs.push((left, right));
        }
        Ok(pairs)
    }
}
