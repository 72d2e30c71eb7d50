//! An answer as it is generated, split into reasoning, content and tool calls.
//!
//! A state machine over one small buffer. Outside a tool block only what can still become a tag is held back: a tail that
//! begins `</think>` or the opening of a block, and the two line ends that precede a block. Inside a block each call is
//! given out when it is complete. A block that breaks the format, or is cut off, is given back as text to where it
//! interrupted: the content, or the reasoning if that was not closed.
//!
//! Every decision depends on the text alone, not on how it was cut: it falls at the first character that rules the
//! alternatives out.
//!
//! Accepted beyond the format, because models write it: block names `toolcalls`, `tool` and V3.2's `function_calls`, V4.1's
//! tags (with a space) in V4 and the reverse, a block inside unclosed reasoning, a missing `string=` (JSON if it is JSON),
//! a missing parameter end tag, all arguments as one object in a parameter `arguments` or `input` that the tool does not
//! have.

use std::ops::ControlFlow;

use super::{END_THINK, Prompt, Request};
use crate::chat::json::{RawJson, write_string};
use crate::chat::message::{Arguments, Tool, ToolCall};
use crate::chat::{Parser as Parse, Piece};

const OPEN_BLOCK: &[&str] = &[
    "<｜DSML｜tool_calls>",
    "<｜DSML｜ calls>",
    "<｜DSML｜ tool_calls>",
    "<｜DSML｜calls>",
    "<｜DSML｜toolcalls>",
    "<｜DSML｜ toolcalls>",
    "<｜DSML｜tool>",
    "<｜DSML｜ tool>",
    "<｜DSML｜function_calls>",
    "<｜DSML｜ function_calls>",
];
const CLOSE_BLOCK: &[&str] = &[
    "</｜DSML｜tool_calls>",
    "</｜DSML｜ calls>",
    "</｜DSML｜ tool_calls>",
    "</｜DSML｜calls>",
    "</｜DSML｜toolcalls>",
    "</｜DSML｜ toolcalls>",
    "</｜DSML｜tool>",
    "</｜DSML｜ tool>",
    "</｜DSML｜function_calls>",
    "</｜DSML｜ function_calls>",
];
const OPEN_CALL: &[&str] = &["<｜DSML｜invoke ", "<｜DSML｜ invoke "];
const CLOSE_CALL: &[&str] = &["</｜DSML｜invoke>", "</｜DSML｜ invoke>"];
const OPEN_PARAMETER: &[&str] = &["<｜DSML｜parameter ", "<｜DSML｜ parameter "];
const CLOSE_PARAMETER: &[&str] = &["</｜DSML｜parameter>", "</｜DSML｜ parameter>"];

/// Attributes longer than this are no attributes; bounds what a stray `<｜DSML｜invoke ` can hold back.
const MAX_ATTRIBUTES_BYTES: usize = 1024;

/// Reads answers of DeepSeek-V4 and V4.1.
pub struct Parser {
    /// Empty: tool blocks are ordinary text, since the client could do nothing with a call.
    tools: Vec<Tool>,
    in_thinking: bool,
    buf: String,
    /// `buf[start..]` has not been given out.
    start: usize,
    block: Option<Block>,
    /// White space is dropped until the next other character: a block has just ended.
    after_block: bool,
}

/// Where the parser is inside a tool block.
struct Block {
    /// `buf[..at]` is understood.
    at: usize,
    expect: Expect,
    calls: usize,
    name: String,
    parameters: Vec<(String, Value)>,
}

enum Expect {
    /// An opening call tag or the end of the block.
    Call,
    /// The rest of an opening call tag.
    CallTag,
    /// An opening parameter tag or the end of the call.
    Parameter,
    /// The rest of an opening parameter tag.
    ParameterTag,
    /// The text of a parameter; no end tag begins in `buf[at..scanned]`.
    Value { name: String, string: Option<bool>, scanned: usize },
}

enum Value {
    Text(String),
    Json(RawJson),
}

impl Parser {
    pub fn new(request: &Request, prompt: &Prompt) -> Parser {
        let of_messages = request.messages.iter().flat_map(|m| &m.tools);
        Parser {
            tools: request.tools.iter().chain(of_messages).cloned().collect(),
            in_thinking: prompt.starts_in_thinking,
            buf: String::new(),
            start: 0,
            block: None,
            after_block: false,
        }
    }

    /// Text outside of blocks, up to the next thing that is undecided or starts a block.
    fn outside(&mut self, out: &mut Vec<Piece>) -> ControlFlow<()> {
        if self.after_block {
            let rest = &self.buf[self.start..];
            self.start = self.buf.len() - rest.trim_start().len();
            if self.start == self.buf.len() {
                return ControlFlow::Break(());
            }
            self.after_block = false;
        }
        let mut from = self.start;
        while let Some(found) = self.buf[from..].find('<') {
            let at = from + found;
            let rest = &self.buf[at..];
            let closes = if self.in_thinking { find_tag(rest, &[END_THINK]) } else { Found::No };
            let opens = if self.tools.is_empty() { Found::No } else { find_tag(rest, OPEN_BLOCK) };
            match (closes, opens) {
                (Found::Whole(bytes), _) => {
                    self.give(at, out);
                    self.start = at + bytes;
                    self.in_thinking = false;
                    return ControlFlow::Continue(());
                }
                (_, Found::Whole(bytes)) => {
                    self.give(at - self.separator(at), out);
                    self.block = Some(Block::new(at + bytes));
                    return ControlFlow::Continue(());
                }
                (Found::Part, _) | (_, Found::Part) => {
                    self.give(at - self.separator(at), out);
                    return ControlFlow::Break(());
                }
                (Found::No, Found::No) => from = at + 1,
            }
        }
        self.give(self.buf.len() - self.separator(self.buf.len()), out);
        ControlFlow::Break(())
    }

    /// Line ends right before `at` that belong to a tool block if one starts there: at most two.
    fn separator(&self, at: usize) -> usize {
        if self.tools.is_empty() {
            return 0;
        }
        self.buf.as_bytes()[self.start..at].iter().rev().take(2).take_while(|b| **b == b'\n').count()
    }

    /// Gives `buf[start..end]` out.
    fn give(&mut self, end: usize, out: &mut Vec<Piece>) {
        let text = &self.buf[self.start..end];
        self.start = end;
        match (self.in_thinking, out.last_mut()) {
            _ if text.is_empty() => {}
            (true, Some(Piece::Thinking(last))) | (false, Some(Piece::Content(last))) => last.push_str(text),
            (true, _) => out.push(Piece::Thinking(text.to_owned())),
            (false, _) => out.push(Piece::Content(text.to_owned())),
        }
    }

    /// One step inside a block: a tag, or a value up to its end.
    fn inside(&mut self, mut block: Block, out: &mut Vec<Piece>) -> ControlFlow<()> {
        match block.step(&self.buf) {
            Step::Wait => {
                self.block = Some(block);
                return ControlFlow::Break(());
            }
            Step::Next => self.block = Some(block),
            Step::Call => {
                self.start = block.at;
                let name = std::mem::take(&mut block.name);
                let arguments = self.arguments(&name, std::mem::take(&mut block.parameters));
                out.push(Piece::ToolCall(ToolCall { id: None, name, arguments }));
                block.calls += 1;
                self.block = Some(block);
            }
            Step::End => {
                self.start = block.at;
                self.after_block = true;
            }
            Step::Broken => self.give(block.at, out),
        }
        ControlFlow::Continue(())
    }

    fn arguments(&self, tool: &str, mut parameters: Vec<(String, Value)>) -> Arguments {
        let has = |name: &str| self.tools.iter().any(|t| t.name == tool && t.has_parameter(name));
        if let [(name, value)] = parameters.as_mut_slice()
            && (name == "arguments" || name == "input")
            && !has(name)
        {
            match value {
                Value::Json(json) if json.is_object() => return Arguments::Object(json.clone()),
                Value::Json(_) => {}
                Value::Text(text) => match Arguments::parse(text) {
                    Arguments::Text(text) if name == "input" => *value = Value::Text(text),
                    whole => return whole,
                },
            }
        }
        let mut text = String::from("{");
        for (i, (name, value)) in parameters.iter().enumerate() {
            if i > 0 {
                text.push(',');
            }
            write_string(&mut text, name);
            text.push(':');
            match value {
                Value::Text(value) => write_string(&mut text, value),
                Value::Json(value) => text.push_str(value.text()),
            }
        }
        text.push('}');
        RawJson::parse(&text).map_or(Arguments::Text(text), Arguments::Object)
    }
}

impl Parse for Parser {
    fn push(&mut self, text: &str, out: &mut Vec<Piece>) {
        self.buf.push_str(text);
        loop {
            let flow = match self.block.take() {
                None => self.outside(out),
                Some(block) => self.inside(block, out),
            };
            if flow.is_break() {
                break;
            }
        }
        self.buf.drain(..self.start);
        if let Some(block) = &mut self.block {
            block.shift(self.start);
        }
        self.start = 0;
    }

    fn finish(&mut self, out: &mut Vec<Piece>) {
        let end = self.buf.len();
        match self.block.take() {
            // The calls are complete, only the end of the block is missing.
            Some(block) if block.calls > 0 && block.only_end_is_missing(&self.buf) => {}
            _ if self.after_block => {}
            _ => self.give(end, out),
        }
        self.buf.clear();
        self.start = 0;
        self.after_block = false;
    }
}

enum Step {
    /// More text is needed.
    Wait,
    Next,
    /// A call is complete.
    Call,
    /// The block is complete.
    End,
    /// What follows `at` is not the format.
    Broken,
}

impl Block {
    fn new(at: usize) -> Block {
        Block { at, expect: Expect::Call, calls: 0, name: String::new(), parameters: Vec::new() }
    }

    fn step(&mut self, buf: &str) -> Step {
        if matches!(self.expect, Expect::Call | Expect::Parameter) {
            self.at = buf.len() - buf[self.at..].trim_start().len();
        }
        let rest = &buf[self.at..];
        match &mut self.expect {
            Expect::Call => match (find_tag(rest, OPEN_CALL), find_tag(rest, CLOSE_BLOCK)) {
                (Found::Whole(bytes), _) => self.go(bytes, Expect::CallTag),
                // A block without calls is something the model quotes.
                (_, Found::Whole(_)) if self.calls == 0 => Step::Broken,
                (_, Found::Whole(bytes)) => {
                    self.at += bytes;
                    Step::End
                }
                (Found::No, Found::No) => Step::Broken,
                _ => Step::Wait,
            },
            Expect::CallTag => match attributes(rest) {
                Attributes::Whole { name: Some(name), bytes, .. } => {
                    self.name = name.to_owned();
                    self.parameters.clear();
                    self.go(bytes, Expect::Parameter)
                }
                Attributes::Part => Step::Wait,
                _ => Step::Broken,
            },
            Expect::Parameter => match (find_tag(rest, OPEN_PARAMETER), find_tag(rest, CLOSE_CALL)) {
                (Found::Whole(bytes), _) => self.go(bytes, Expect::ParameterTag),
                (_, Found::Whole(bytes)) => {
                    self.go(bytes, Expect::Call);
                    Step::Call
                }
                (Found::No, Found::No) => Step::Broken,
                _ => Step::Wait,
            },
            Expect::ParameterTag => match attributes(rest) {
                Attributes::Whole { name: Some(name), string, bytes } => {
                    let scanned = self.at + bytes;
                    let name = name.to_owned();
                    self.go(bytes, Expect::Value { name, string, scanned })
                }
                Attributes::Part => Step::Wait,
                _ => Step::Broken,
            },
            Expect::Value { name, string, scanned } => {
                while let Some(found) = buf[*scanned..].find('<') {
                    *scanned += found;
                    let rest = &buf[*scanned..];
                    let value = &buf[self.at..*scanned];
                    let (value, end) = match (find_tag(rest, CLOSE_PARAMETER), find_unclosed_end(rest)) {
                        (Found::Whole(bytes), _) => (value, *scanned + bytes),
                        (_, Found::Whole(_)) => (value.strip_suffix('\n').unwrap_or(value), *scanned),
                        (Found::No, Found::No) => {
                            *scanned += 1;
                            continue;
                        }
                        _ => return Step::Wait,
                    };
                    let value = Value::read(value, *string);
                    match self.parameters.iter_mut().find(|(known, _)| known == name) {
                        Some(known) => known.1 = value,
                        None => self.parameters.push((std::mem::take(name), value)),
                    }
                    self.at = end;
                    self.expect = Expect::Parameter;
                    return Step::Next;
                }
                *scanned = buf.len();
                Step::Wait
            }
        }
    }

    fn go(&mut self, bytes: usize, expect: Expect) -> Step {
        self.at += bytes;
        self.expect = expect;
        Step::Next
    }

    /// The buffer lost its first `bytes`.
    fn shift(&mut self, bytes: usize) {
        self.at -= bytes;
        if let Expect::Value { scanned, .. } = &mut self.expect {
            *scanned -= bytes;
        }
    }

    fn only_end_is_missing(&self, buf: &str) -> bool {
        matches!(self.expect, Expect::Call) && !matches!(find_tag(buf[self.at..].trim_start(), CLOSE_BLOCK), Found::No)
    }
}

/// What ends a value whose own end tag is missing: the next parameter or the end of the call.
fn find_unclosed_end(rest: &str) -> Found {
    match (find_tag(rest, OPEN_PARAMETER), find_tag(rest, CLOSE_CALL)) {
        (Found::Whole(bytes), _) | (_, Found::Whole(bytes)) => Found::Whole(bytes),
        (Found::No, Found::No) => Found::No,
        _ => Found::Part,
    }
}

impl Value {
    /// `string="true"`: the characters as they are. `"false"` or not said: JSON, and if it is none the characters.
    fn read(text: &str, string: Option<bool>) -> Value {
        match string {
            Some(true) => Value::Text(text.to_owned()),
            _ => RawJson::parse(text).map_or_else(|_| Value::Text(text.to_owned()), Value::Json),
        }
    }
}

#[derive(Clone, Copy)]
enum Found {
    /// The text starts with a tag of so many bytes.
    Whole(usize),
    /// The text is the beginning of a tag.
    Part,
    No,
}

fn find_tag(text: &str, tags: &[&str]) -> Found {
    if let Some(tag) = tags.iter().find(|tag| text.starts_with(**tag)) {
        return Found::Whole(tag.len());
    }
    if tags.iter().any(|tag| tag.starts_with(text)) { Found::Part } else { Found::No }
}

enum Attributes<'a> {
    /// Up to and including `>`.
    Whole {
        name: Option<&'a str>,
        string: Option<bool>,
        bytes: usize,
    },
    Part,
    No,
}

/// Reads ` key="value"` pairs up to `>` on one line.
fn attributes(text: &str) -> Attributes<'_> {
    let mut quoted = false;
    let end = text.bytes().take(MAX_ATTRIBUTES_BYTES).position(|b| {
        quoted ^= b == b'"';
        b == b'\n' || (b == b'>' && !quoted)
    });
    let Some(end) = end else {
        return if text.len() < MAX_ATTRIBUTES_BYTES { Attributes::Part } else { Attributes::No };
    };
    if text.as_bytes()[end] == b'\n' {
        return Attributes::No;
    }
    let (mut name, mut string) = (None, None);
    let mut rest = text[..end].trim_start();
    while let Some((key, after)) = rest.split_once('=') {
        let (value, after) = match after.strip_prefix('"') {
            Some(after) => after.split_once('"').unwrap_or((after, "")),
            None => after.split_once(' ').unwrap_or((after, "")),
        };
        match key.trim() {
            "name" => name = Some(value),
            "string" => string = value.parse().ok(),
            _ => {}
        }
        rest = after;
    }
    Attributes::Whole { name, string, bytes: end + 1 }
}

#[cfg(test)]
#[path = "parse_tests.rs"]
mod tests;
