//! Messages to text and text to messages. Pure: strings and values in, strings and values out.
//!
//! A [`Family`] knows how one kind of model writes a conversation: it renders a [`Request`] into a [`Prompt`] and makes a
//! [`Parser`] that turns the model's answer, piece by piece, back into [`Piece`]s. Rendering and parsing are inverse.
//! Which family a model belongs to is decided in [`family`].

pub mod deepseek_v4;
pub mod family;
pub mod json;
pub mod message;
pub mod template;
mod thinking;
mod tools;

pub use family::Family;
pub use json::RawJson;
pub use message::{Arguments, Message, Request, Role, Think, Tool, ToolCall};

/// A prompt ready to be tokenised (special tokens in it are meant), and how to read the answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Prompt {
    pub text: String,
    /// The answer starts inside the reasoning (the prompt already holds the opening tag).
    pub starts_in_thinking: bool,
    /// The first so many bytes of `text` will most likely begin the prompt of the next turn too: they end where the answer
    /// is opened, before anything that is written differently once the answer is history.
    pub stable_bytes: usize,
}

/// What a parser found in the next part of an answer.
#[derive(Clone, Debug, PartialEq)]
pub enum Piece {
    Thinking(String),
    Content(String),
    /// A complete call, in the order of the answer.
    ToolCall(ToolCall),
}

/// Reads an answer as it is generated. Fed byte by byte or whole, the concatenated pieces are the same.
pub trait Parser: Send {
    /// Appends what became certain with this text.
    fn push(&mut self, text: &str, out: &mut Vec<Piece>);
    /// The answer ended: gives out what was held back. An unfinished tool call comes as content.
    fn finish(&mut self, out: &mut Vec<Piece>);
}

/// Why a request cannot be rendered, or a model's way of writing is not understood.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("there are no messages")]
    NoMessages,
    #[error("messages with role `{role}` are not known to this model's prompt format")]
    Role { role: String },
    #[error("task `{task}` is not one of action, query, authority, domain, title, read_url")]
    Task { task: String },
    #[error("thinking effort {percent} is not in 1..=100")]
    Effort { percent: u8 },
    #[error("`{given}` is no prompt generation of DeepSeek-V4 (known: v4_april, v4_0731, v41)")]
    Generation { given: String },
    #[error("this model's prompt format has no form for filling in the middle")]
    NoInsert,
    /// It does not compile, or failed while it ran.
    #[error("the model's chat template failed: {0}")]
    Template(String),
    /// The template refused the conversation, in its own words.
    #[error("the model's chat template refuses this conversation: {0}")]
    Raised(String),
    #[error("the model has no chat template")]
    NoTemplate,
}
