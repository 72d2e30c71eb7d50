//! Text to ids and ids to text. Pure.
//!
//! A [`Tokenizer`] is built from the metadata of a GGUF file, so that engines, renderers and clients agree on one
//! vocabulary. A [`Stream`] turns generated ids back into whole characters and watches for stop strings.

mod pieces;
mod pre;
mod stream;
mod tokenizer;
mod vocabulary;
mod words;

pub use stream::Stream;
pub use tokenizer::{Source, Tokenizer};
pub use vocabulary::Vocabulary;

/// How text that spells a special token is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Specials {
    /// `<think>` becomes its one token: for rendered prompts.
    Parse,
    /// `<think>` is seven ordinary characters: for text of unknown origin.
    AsText,
}

/// Why a [`Stream`] ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ended {
    EndToken,
    StopString(String),
}

/// Why a model's vocabulary cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Gguf(#[from] fathom_gguf::Error),
    #[error("this file has no tokenizer (key `tokenizer.ggml.model`)")]
    Missing,
    #[error("tokenizer model `{model}` is not supported (supported: gpt2, llama)")]
    Model { model: String },
    #[error("pre-tokenizer `{pre}` is not supported (supported: {supported})")]
    Pre { pre: String, supported: String },
    #[error("`{key}`: {problem}")]
    Key { key: String, problem: String },
    #[error("tokenizer: {0}")]
    Tokenizer(String),
}

#[cfg(test)]
mod tests;
