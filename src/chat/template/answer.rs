//! How the answers of a template's model are read: which tags stand around its reasoning and before its tool calls.

use std::borrow::Cow;

use crate::chat::message::{Request, Role, Think};
use crate::chat::{Parser, Piece, Prompt, thinking, tools};

/// The tags of a model.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tags {
    /// Around reasoning, if the template knows any.
    pub thinking: Option<thinking::Tags>,
    /// What calls begin with, if the template knows tools.
    pub tool: Option<Cow<'static, str>>,
}

impl Tags {
    /// Published tags that the text of a template contains.
    pub fn of_template(source: &str) -> Tags {
        Tags { thinking: thinking::Tags::of_template(source), tool: tools::tag_of_template(source).map(Cow::Borrowed) }
    }

    /// Whether the prompt has opened the reasoning already.
    pub fn open_at_end(&self, prompt: &str) -> bool {
        self.thinking.as_ref().is_some_and(|tags| prompt.trim_end().ends_with(&*tags.open))
    }

    /// Makes the reader of the answer to `prompt`.
    pub fn parser(&self, request: &Request, prompt: &Prompt) -> Box<dyn Parser> {
        // A template may open reasoning even if it was asked not to; then it has to be told apart all the same.
        let splits = request.think != Think::Off || prompt.starts_in_thinking;
        let is_prefilled = request.messages.last().is_some_and(|m| m.role == Role::Assistant && !m.content.is_empty());
        let thinking = self.thinking.as_ref().filter(|_| splits && (!is_prefilled || prompt.starts_in_thinking));
        let tag = self.tool.clone().filter(|_| !request.tools.is_empty());
        Box::new(Reader {
            thinking: thinking.map(|tags| thinking::Splitter::new(tags, prompt.starts_in_thinking)),
            tools: tag.map(|tag| tools::Finder::new(tag, &request.tools)),
            split: Vec::new(),
        })
    }
}

/// Reasoning first, then calls in what is left.
struct Reader {
    thinking: Option<thinking::Splitter>,
    tools: Option<tools::Finder>,
    /// Reused from push to push.
    split: Vec<Piece>,
}

impl Reader {
    fn find_calls(&mut self, out: &mut Vec<Piece>) {
        for piece in self.split.drain(..) {
            match (piece, &mut self.tools) {
                (Piece::Content(text), Some(tools)) => tools.push(&text, out),
                (piece, _) => append(out, piece),
            }
        }
    }
}

impl Parser for Reader {
    fn push(&mut self, text: &str, out: &mut Vec<Piece>) {
        match &mut self.thinking {
            Some(thinking) => thinking.push(text, &mut self.split),
            None => self.split.push(Piece::Content(text.to_owned())),
        }
        self.find_calls(out);
    }

    fn finish(&mut self, out: &mut Vec<Piece>) {
        if let Some(thinking) = &mut self.thinking {
            thinking.finish(&mut self.split);
        }
        self.find_calls(out);
        if let Some(tools) = &mut self.tools {
            tools.finish(out);
        }
    }
}

/// Adds a piece, to the last one if it is of the same kind.
fn append(out: &mut Vec<Piece>, piece: Piece) {
    match (out.last_mut(), piece) {
        (Some(Piece::Content(last)), Piece::Content(text)) => last.push_str(&text),
        (Some(Piece::Thinking(last)), Piece::Thinking(text)) => last.push_str(&text),
        (_, Piece::Content(text) | Piece::Thinking(text)) if text.is_empty() => {}
        (_, piece) => out.push(piece),
    }
}
