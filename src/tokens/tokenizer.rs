//! A vocabulary that encodes and decodes.
//!
//! Two models of `tokenizer.ggml.model` are known. `gpt2`: byte-level BPE with explicit merges, cut by one of [`super::pre`]'s
//! expressions, or as the file's `tokenizer.huggingface.json` says if that describes the same tokens. `llama`: SentencePiece
//! BPE, where the best-scored pair merges first and unknown characters fall back to byte tokens; it is brought into the
//! form of explicit merges.

use std::borrow::Cow;
use std::collections::HashMap;

use tokenizers::models::bpe::{BPE, Vocab};
use tokenizers::normalizers::{Prepend, Replace, Sequence};
use tokenizers::{
    AddedToken, Model as _, Normalizer as _, NormalizerWrapper, OffsetType, PreTokenizedString, PreTokenizer as _,
};

use crate::ids::TokenId;

use super::pieces::{Pieces, Spelling};
use super::vocabulary::{HuggingFace, Vocabulary, kind};
use super::{Error, Specials, pre, words};

/// Texts that end an answer in some model; they count if they are special tokens of this one. Not `<|EOT|>`, which
/// DeepSeek-V4 has and does not stop at.
const END_TEXTS: &[&str] = &[
    "<｜end▁of▁sentence｜>",
    "<|eot_id|>",
    "<|eom_id|>",
    "<|im_end|>",
    "<|end|>",
    "<end_of_turn>",
    "<|endoftext|>",
    "<|end_of_text|>",
    "<EOT>",
    "</s>",
];

/// Text to ids and back, for one model. Immutable; share it.
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    pieces: Pieces,
    ends: Vec<TokenId>,
    bos: Option<TokenId>,
    eos: Option<TokenId>,
    add_bos: bool,
    add_eos: bool,
    source: Source,
}

/// What a [`Tokenizer`] was built from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// The released `tokenizer.json` inside the file.
    HuggingFace,
    /// The keys `tokenizer.ggml.*`.
    Keys,
}

impl Tokenizer {
    /// Reads and builds the tokenizer of a GGUF file.
    ///
    /// # Errors
    /// As [`Tokenizer::new`], and when a key has another type than it should.
    pub fn from_gguf(metadata: &fathom_gguf::Metadata) -> Result<Tokenizer, Error> {
        Tokenizer::new(&Vocabulary::from_gguf(metadata)?)
    }

    /// Builds the tokenizer that the metadata describes.
    ///
    /// # Errors
    /// When the model or pre-tokenizer is not supported, or the metadata contradicts itself: duplicate tokens, merges of
    /// tokens that do not exist, ids out of range, arrays of different lengths.
    pub fn new(vocabulary: &Vocabulary) -> Result<Tokenizer, Error> {
        let spelling = match vocabulary.model.as_str() {
            "gpt2" => Spelling::ByteLevel,
            "llama" => Spelling::SentencePiece,
            "" | "none" | "no_vocab" => return Err(Error::Missing),
            other => return Err(Error::Model { model: other.to_owned() }),
        };
        let ids = vocabulary.ids()?;
        let huggingface = vocabulary.huggingface.as_deref().and_then(|json| {
            let built = HuggingFace::read(json, &ids).and_then(|read| huggingface(read, &ids));
            built.inspect_err(|reason| tracing::warn!("`tokenizer.huggingface.json` is not used: {reason}")).ok()
        });
        let source = if huggingface.is_some() { Source::HuggingFace } else { Source::Keys };
        let pre = vocabulary.pre.as_deref().unwrap_or("default");
        let (inner, adds_bos) = match (huggingface, spelling) {
            (Some(inner), Spelling::ByteLevel) => (inner, pre::find(pre).is_ok_and(|pre| pre.add_bos)),
            (Some(inner), Spelling::SentencePiece) => (inner, true),
            (None, Spelling::ByteLevel) => {
                let pre = pre::find(pre)?;
                (byte_level(vocabulary, &ids, pre)?, pre.add_bos)
            }
            (None, Spelling::SentencePiece) => (sentence_piece(vocabulary, &ids)?, true),
        };
        let added = inner.get_added_tokens_decoder();
        let pieces = Pieces::new(vocabulary, spelling, |id| added.contains_key(&id));
        let by_text = END_TEXTS.iter().filter_map(|text| ids.get(text)).filter(|id| added.contains_key(id));
        let mut ends: Vec<TokenId> =
            vocabulary.eos.iter().chain(&vocabulary.ends).chain(by_text).copied().map(TokenId).collect();
        ends.sort_unstable();
        ends.dedup();
        Ok(Tokenizer {
            inner,
            pieces,
            ends,
            bos: vocabulary.bos.map(TokenId),
            eos: vocabulary.eos.map(TokenId),
            add_bos: vocabulary.add_bos.unwrap_or(adds_bos),
            add_eos: vocabulary.add_eos.unwrap_or(false),
            source,
        })
    }

    /// The ids of `text`, nothing added. Characters that a vocabulary without all 256 bytes cannot spell become its unknown
    /// token or, without one, are left out, as the models' own code does it.
    ///
    /// # Errors
    /// [`Error::Tokenizer`] when a step of the `tokenizers` crate fails.
    pub fn encode(&self, text: &str, specials: Specials) -> Result<Vec<TokenId>, Error> {
        if let Some(ids) = words::encode(&self.inner, text, specials) {
            return ids.map_err(failed);
        }
        self.encode_by_crate(text, specials)
    }

    /// [`Tokenizer::encode`] through the whole pipeline of the `tokenizers` crate.
    pub(super) fn encode_by_crate(&self, text: &str, specials: Specials) -> Result<Vec<TokenId>, Error> {
        let encoding = match specials {
            Specials::Parse => self.inner.encode_fast(text, false).map_err(failed)?,
            Specials::AsText => self.encode_as_text(text).map_err(failed)?,
        };
        Ok(encoding.get_ids().iter().copied().map(TokenId).collect())
    }

    /// The steps of the pipeline without the one that looks for added tokens.
    fn encode_as_text(&self, text: &str) -> tokenizers::Result<tokenizers::Encoding> {
        let mut words = PreTokenizedString::from(text);
        if let Some(normalizer) = self.inner.get_normalizer() {
            words.normalize(|word| normalizer.normalize(word))?;
        }
        if let Some(pre_tokenizer) = self.inner.get_pre_tokenizer() {
            pre_tokenizer.pre_tokenize(&mut words)?;
        }
        words.tokenize(|word| self.inner.get_model().tokenize(word.get()))?;
        words.into_encoding(None, 0, OffsetType::None)
    }

    /// The ids of a rendered prompt: special tokens are read, and where the model's metadata ask for BOS in front or EOS
    /// behind they are added unless the text already has them.
    ///
    /// # Errors
    /// As [`Tokenizer::encode`].
    pub fn encode_prompt(&self, text: &str) -> Result<Vec<TokenId>, Error> {
        let mut ids = self.encode(text, Specials::Parse)?;
        if let Some(bos) = self.bos.filter(|bos| self.add_bos && ids.first() != Some(bos)) {
            ids.insert(0, bos);
        }
        ids.extend(self.eos.filter(|eos| self.add_eos && ids.last() != Some(eos)));
        Ok(ids)
    }

    /// The bytes a token stands for: maybe part of a character, for special tokens their text, for unknown ids nothing.
    pub fn piece(&self, token: TokenId) -> &[u8] {
        self.pieces.get(token)
    }

    /// [`Tokenizer::piece`] for people and logprobs: parts of characters become U+FFFD.
    pub fn piece_text(&self, token: TokenId) -> Cow<'_, str> {
        String::from_utf8_lossy(self.piece(token))
    }

    /// The text of a finished list of tokens; invalid bytes become U+FFFD.
    pub fn decode(&self, tokens: &[TokenId]) -> String {
        let bytes: Vec<u8> = tokens.iter().flat_map(|token| self.piece(*token)).copied().collect();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// Whether the model ends its answer with this token.
    pub fn is_end(&self, token: TokenId) -> bool {
        self.ends.contains(&token)
    }

    /// All tokens for which [`Tokenizer::is_end`] holds, ascending.
    pub fn ends(&self) -> &[TokenId] {
        &self.ends
    }

    pub fn bos(&self) -> Option<TokenId> {
        self.bos
    }

    pub fn eos(&self) -> Option<TokenId> {
        self.eos
    }

    /// The bytes of every token in the order of the ids, and whether it is a token of its own kind that ordinary text does not contain.
    pub fn pieces(&self) -> impl Iterator<Item = (&[u8], bool)> {
        let added = self.inner.get_added_tokens_decoder();
        (0..self.n_vocab() as u32).map(move |id| (self.piece(TokenId(id)), added.contains_key(&id)))
    }

    pub fn n_vocab(&self) -> usize {
        self.pieces.len()
    }

    /// The token that is written exactly so, special or not.
    pub fn id_of(&self, text: &str) -> Option<TokenId> {
        self.inner.token_to_id(text).map(TokenId)
    }

    pub fn source(&self) -> Source {
        self.source
    }
}

fn failed(error: impl std::fmt::Display) -> Error {
    Error::Tokenizer(error.to_string())
}

/// From a `tokenizer.json` that was found to describe the tokens `ids`.
fn huggingface(mut read: HuggingFace, ids: &HashMap<&str, u32>) -> Result<tokenizers::Tokenizer, String> {
    let pairs = read.pairs(ids)?;
    let mut model = BPE::builder()
        .vocab_and_merges(own(ids), pairs)
        .fuse_unk(read.model.fuse_unk)
        .byte_fallback(read.model.byte_fallback)
        .ignore_merges(read.model.ignore_merges);
    if let Some(unknown) = read.model.unk_token {
        model = model.unk_token(unknown);
    }
    let mut inner = tokenizers::Tokenizer::new(model.build().map_err(|e| e.to_string())?);
    inner.with_normalizer(read.normalizer).map_err(|e| e.to_string())?;
    inner.with_pre_tokenizer(read.pre_tokenizer);
    let added = read.added_tokens.into_iter().map(|token| AddedToken {
        content: token.content,
        single_word: token.single_word,
        lstrip: token.lstrip,
        rstrip: token.rstrip,
        normalized: token.normalized,
        special: token.special,
    });
    inner.add_tokens(added).map_err(|e| e.to_string())?;
    Ok(inner)
}

fn byte_level(
    vocabulary: &Vocabulary,
    ids: &HashMap<&str, u32>,
    pre: &pre::Pre,
) -> Result<tokenizers::Tokenizer, Error> {
    let model = BPE::builder().vocab_and_merges(own(ids), vocabulary.pairs(ids)?).ignore_merges(pre.ignore_merges);
    let mut inner = tokenizers::Tokenizer::new(model.build().map_err(failed)?);
    inner.with_pre_tokenizer(Some(pre.build()?));
    inner.add_tokens(added_tokens(vocabulary)).map_err(failed)?;
    Ok(inner)
}

/// SentencePiece merges the neighbours whose union has the best score. As explicit merges: every way to cut a token into
/// two tokens, in the order of the whole's score.
fn sentence_piece(vocabulary: &Vocabulary, ids: &HashMap<&str, u32>) -> Result<tokenizers::Tokenizer, Error> {
    if vocabulary.scores.len() != vocabulary.tokens.len() {
        return Err(Error::Key { key: "tokenizer.ggml.scores".into(), problem: "is missing".into() });
    }
    let merges_into = |id: usize| matches!(vocabulary.kind(id), kind::NORMAL | kind::USER_DEFINED | kind::UNUSED);
    let mut merges = Vec::new();
    for (id, token) in vocabulary.tokens.iter().enumerate().filter(|(id, _)| merges_into(*id)) {
        for (at, _) in token.char_indices().skip(1) {
            let (left, right) = token.split_at(at);
            if ids.contains_key(left) && ids.contains_key(right) {
                merges.push((vocabulary.scores[id], left.to_owned(), right.to_owned()));
            }
        }
    }
    merges.sort_by(|a, b| b.0.total_cmp(&a.0));
    let merges = merges.into_iter().map(|(_, left, right)| (left, right)).collect();
    let unknown = (0..vocabulary.tokens.len()).find(|id| vocabulary.kind(*id) == kind::UNKNOWN);
    let mut model = BPE::builder().vocab_and_merges(own(ids), merges).fuse_unk(true).byte_fallback(true);
    if let Some(unknown) = unknown {
        model = model.unk_token(vocabulary.tokens[unknown].to_owned());
    }
    let mut inner = tokenizers::Tokenizer::new(model.build().map_err(failed)?);
    let mut steps = Vec::new();
    if vocabulary.add_space_prefix.unwrap_or(true) {
        steps.push(NormalizerWrapper::Prepend(Prepend::new("▁".into())));
    }
    steps.push(NormalizerWrapper::Replace(Replace::new(" ", "▁").map_err(failed)?));
    inner.with_normalizer(Some(Sequence::new(steps))).map_err(failed)?;
    inner.add_tokens(added_tokens(vocabulary)).map_err(failed)?;
    Ok(inner)
}

fn own(ids: &HashMap<&str, u32>) -> Vocab {
    ids.iter().map(|(text, id)| ((*text).to_owned(), *id)).collect()
}

/// The tokens that are found in text as a whole, before anything else.
fn added_tokens(vocabulary: &Vocabulary) -> impl Iterator<Item = AddedToken> {
    vocabulary.tokens.iter().enumerate().filter_map(|(id, text)| {
        let special = match vocabulary.kind(id) {
            kind::CONTROL => true,
            kind::USER_DEFINED => false,
            _ => return None,
        };
        Some(AddedToken::from(text, special).normalized(false))
    })
}
