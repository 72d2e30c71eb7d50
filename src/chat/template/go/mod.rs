//! Go templates as Ollama models bring them (TEMPLATE), with Ollama's data and functions.
//!
//! `lex` and `parse` make a tree of the text, `eval` walks it, `conversation` makes the data. A template is a program by a
//! stranger: its depth is bounded when it is parsed, its steps and its output when it runs, in proportion to the conversation.
//!
//! A template that reads `.Messages` is run once with the whole conversation. An older one is run for every turn with `.System`,
//! `.Prompt` and `.Response`; in the last turn it ends where the model's answer begins.

mod conversation;
mod eval;
mod functions;
mod lex;
mod parse;
mod value;

use super::answer::Tags;
use crate::chat::message::{Message, Request, Role};
use crate::chat::{Error, Parser, Prompt, thinking};
use parse::{Node, Operand, Pipe, Tree};
use value::Value;

/// Steps that every template may take; a step is a node, an operand or a byte that is written.
const BASE_STEPS: u64 = 1_000_000;
/// More for each byte of the conversation.
const STEPS_PER_BYTE: u64 = 60;

/// A parsed template.
#[derive(Debug)]
pub struct Template {
    tree: Tree,
    /// For the last turn of an older template.
    opening: Tree,
    reads_messages: bool,
    tags: Tags,
}

/// What is wrong with a template, and in which line.
#[derive(Debug)]
struct Fault {
    line: Option<usize>,
    text: String,
}

impl Fault {
    fn new(text: impl Into<String>) -> Fault {
        Fault { line: None, text: text.into() }
    }

    fn at(line: usize, text: impl Into<String>) -> Fault {
        Fault { line: Some(line), text: text.into() }
    }
}

impl From<Fault> for Error {
    fn from(fault: Fault) -> Error {
        let line = fault.line.map(|line| format!(" (line {line})")).unwrap_or_default();
        Error::Template(format!("{}{line}", fault.text))
    }
}

impl Template {
    /// Parses `source`.
    ///
    /// # Errors
    /// [`Error::Template`] with the line.
    pub fn new(source: &str) -> Result<Template, Error> {
        let mut tree = parse::parse(source)?;
        let reads_messages = tree.reads("Messages");
        if !reads_messages && !tree.reads("Response") {
            let response = vec![Operand::Field(vec!["Response".into()])];
            let pipe = Pipe { variables: Vec::new(), assigns: false, commands: vec![response], line: 0 };
            tree.root.push(Node::Action(pipe));
        }
        let opening = if reads_messages { Tree::default() } else { tree.up_to_response() };
        let tags = tags(&tree, source);
        Ok(Template { tree, opening, reads_messages, tags })
    }

    pub fn knows_tools(&self) -> bool {
        self.tree.reads("Tools")
    }

    pub fn knows_thinking(&self) -> bool {
        self.tags.thinking.is_some()
    }

    /// Filling in the middle.
    pub fn knows_suffix(&self) -> bool {
        self.tree.reads("Suffix")
    }

    /// Whether results of tools have a place in it.
    pub fn knows_tool_results(&self) -> bool {
        self.tree.says("tool") || self.tree.reads("ToolName") || self.tree.reads("ToolCallID")
    }

    /// Writes the conversation up to where the model goes on.
    ///
    /// # Errors
    /// [`Error::NoMessages`]; [`Error::Template`] for what goes wrong while it runs.
    pub fn render(&self, request: &Request) -> Result<Prompt, Error> {
        let last = request.messages.last().ok_or(Error::NoMessages)?;
        let text = self.evaluate(&request.messages, request)?;
        let mut answered = request.messages.clone();
        if last.role == Role::Assistant {
            answered.pop();
        }
        answered.push(Message::new(Role::Assistant, "\u{0}"));
        let stable_bytes = super::common_prefix(&text, &self.evaluate(&answered, request)?);
        Ok(Prompt { starts_in_thinking: self.tags.open_at_end(&text), stable_bytes, text })
    }

    /// Writes the prompt for what stands between `prefix` and `suffix`.
    ///
    /// # Errors
    /// [`Error::NoInsert`] when the template has no place for a suffix; [`Error::Template`].
    pub fn render_insert(&self, prefix: &str, suffix: &str) -> Result<Prompt, Error> {
        if !self.knows_suffix() {
            return Err(Error::NoInsert);
        }
        let data = [("Prompt", prefix.into()), ("Suffix", suffix.into()), ("Response", "".into())];
        let text = eval::run(&self.tree, conversation::root(data), steps(prefix.len() + suffix.len()))?;
        Ok(Prompt { starts_in_thinking: false, stable_bytes: text.len(), text })
    }

    /// What ends the reasoning of an answer.
    pub fn thinking_end(&self) -> Option<&str> {
        self.tags.thinking.as_ref().map(|tags| &*tags.close)
    }

    /// Makes the reader of the answer to `prompt`.
    pub fn parser(&self, request: &Request, prompt: &Prompt) -> Box<dyn Parser> {
        self.tags.parser(request, prompt)
    }

    fn evaluate(&self, messages: &[Message], request: &Request) -> Result<String, Error> {
        let of_messages: usize = messages.iter().map(conversation::bytes).sum();
        let of_tools: usize = request.tools.iter().map(|tool| tool.function.text().len()).sum();
        let budget = steps(of_messages + of_tools);
        let thinking = conversation::thinking(request.think, self.knows_thinking());
        if self.reads_messages {
            let data = conversation::whole(messages, &request.tools, thinking);
            return Ok(eval::run(&self.tree, data, budget)?);
        }
        let turns = conversation::turns(messages);
        let mut text = String::new();
        for (i, turn) in turns.iter().enumerate() {
            let tree = if i + 1 == turns.len() { &self.opening } else { &self.tree };
            let data = [
                ("System", turn.system.as_str().into()),
                ("Prompt", turn.prompt.as_str().into()),
                ("Response", turn.response.as_str().into()),
                ("Tools", Value::Nil),
            ];
            text += &eval::run(tree, conversation::root(data.into_iter().chain(thinking.clone())), budget)?;
        }
        Ok(text)
    }
}

/// Tags as the template writes earlier answers with, else published ones that it contains.
fn tags(tree: &Tree, source: &str) -> Tags {
    let mut tags = Tags::of_template(source);
    if let Some((open, close)) = tree.around_thinking() {
        tags.thinking = Some(thinking::Tags { open: open.to_owned().into(), close: close.to_owned().into() });
    }
    tags.tool = tree.reads("Tools").then(|| tree.before_tool_calls().unwrap_or("{").to_owned().into());
    tags
}

fn steps(bytes: usize) -> u64 {
    BASE_STEPS + STEPS_PER_BYTE * bytes as u64
}

#[cfg(test)]
mod tests;
