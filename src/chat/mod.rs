//! Messages to text and text to messages. Pure: strings and values in, strings and values out.
//!
//! A family knows how one kind of model writes a conversation: it renders a [`Request`] into a prompt and makes a
//! parser that turns the model's answer, piece by piece, back into [`Piece`]s. Rendering and parsing are inverse.

pub mod message;

pub use message::{Arguments, Message, Request, Role, Think, Tool, ToolCall};

/// A prompt ready to be tokenised (special tokens in it are meant), and how to read the answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Prompt {
    pub text: String,
    /// The answer starts inside the reasoning (the prompt already holds the opening tag).
    pub starts_in_thinking: bool,
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
