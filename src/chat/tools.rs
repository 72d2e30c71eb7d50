//! Tool calls written as JSON after a tag, for models that bring a template.
//!
//! The rules are Ollama's: content before the tag is given out as it comes; after it text is collected until the name of a
//! known tool and an object with its arguments are complete. Objects of the form `{"name", "arguments" | "parameters"}` are
//! unwrapped; a name before a bare object of arguments is accepted. Without a tag (`{` stands for that) calls count only as
//! the first thing of an answer. What is no call is content.

use std::borrow::Cow;
use std::ops::Range;

use super::message::{Arguments, Tool, ToolCall};
use super::thinking::begun;
use super::{Piece, RawJson};

/// What calls begin with in published templates; the first one found is taken.
const TAGS: &[&str] = &[
    "<tool_call>",
    "[TOOL_CALLS]",
    "<|tool_call|>",
    "<|python_tag|>",
    "<｜tool▁calls▁begin｜>",
    "<tool_calls>",
    "<|tool_call_start|>",
    "<function_call>",
];

/// The tag of a template's tool calls; `None` when it does not know tools.
pub fn tag_of_template(source: &str) -> Option<&'static str> {
    let tag = TAGS.iter().find(|tag| source.contains(**tag)).copied();
    tag.or_else(|| (source.contains("tools") || source.contains("tool_call")).then_some("{"))
}

/// Finds calls in an answer as it comes.
#[derive(Debug)]
pub struct Finder {
    tag: Cow<'static, str>,
    /// `</x>` of a tag `<x>`.
    close: Option<String>,
    tools: Vec<String>,
    state: State,
    /// Text not yet given out. In a block: from its tag, or from the end of its last call.
    held: String,
    scan: Scan,
    /// End of an object that is no call; those inside it count only if they name a tool themselves.
    outer_end: usize,
    calls: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Looking for the tag.
    Outside,
    /// Collecting a call.
    Inside,
    /// Right after a call: its block may end here.
    Called,
    /// After a block: white space is dropped.
    Closed,
    /// No calls any more.
    Content,
}

impl Finder {
    /// `tag` is not empty.
    pub fn new(tag: Cow<'static, str>, tools: &[Tool]) -> Finder {
        let word = tag.strip_prefix('<').filter(|word| word.starts_with(char::is_alphabetic));
        Finder {
            close: word.map(|word| format!("</{word}")),
            tag,
            tools: tools.iter().map(|tool| tool.name.clone()).collect(),
            state: State::Outside,
            held: String::new(),
            scan: Scan::default(),
            outer_end: 0,
            calls: 0,
        }
    }

    /// Appends what became certain.
    pub fn push(&mut self, text: &str, out: &mut Vec<Piece>) {
        self.held.push_str(text);
        while self.step(out) {}
    }

    /// One change of state; `false` when more text is needed.
    fn step(&mut self, out: &mut Vec<Piece>) -> bool {
        match self.state {
            State::Outside if self.tag == "{" => match self.held.trim_start().chars().next() {
                None => return false,
                Some('{' | '[') => self.enter(0),
                Some(_) => self.state = State::Content,
            },
            State::Outside => match self.held.find(&*self.tag) {
                Some(at) => {
                    // White space before the tag goes with the block.
                    let text = self.held[..at].trim_end().len();
                    give(&self.held[..text], out);
                    self.held.drain(..text);
                    self.enter(at - text + self.tag.len());
                }
                None => {
                    let undecided = self.held.len() - begun(&self.held, &self.tag);
                    let certain = self.held[..undecided].trim_end().len();
                    give(&self.held[..certain], out);
                    self.held.drain(..certain);
                    return false;
                }
            },
            State::Inside => {
                let Some(object) = self.scan.next_object(&self.held) else {
                    return false;
                };
                let before = (object.start >= self.outer_end).then_some(&self.held[..object.start]);
                let json = RawJson::parse(&self.held[object.clone()]).ok();
                match json.and_then(|json| self.call(before, json)) {
                    Some(call) => {
                        out.push(Piece::ToolCall(call));
                        self.calls += 1;
                        self.held.drain(..object.end);
                        self.scan = Scan::default();
                        self.outer_end = 0;
                        self.state = State::Called;
                    }
                    // No call, but there may be one inside.
                    None => {
                        self.outer_end = self.outer_end.max(object.end);
                        self.scan = Scan::from(object.start + 1);
                    }
                }
            }
            State::Called => {
                let rest = self.held.trim_start();
                match &self.close {
                    Some(close) if rest.starts_with(close.as_str()) => {
                        self.held.drain(..self.held.len() - rest.len() + close.len());
                        self.state = State::Closed;
                    }
                    Some(close) if close.starts_with(rest) => return false,
                    _ => self.state = State::Inside,
                }
            }
            State::Closed => {
                let blank = self.held.len() - self.held.trim_start().len();
                self.held.drain(..blank);
                if self.held.is_empty() {
                    return false;
                }
                self.state = State::Outside;
            }
            State::Content => {
                give(&self.held, out);
                self.held.clear();
                return false;
            }
        }
        true
    }

    fn enter(&mut self, tag: usize) {
        self.scan = Scan::from(tag);
        self.outer_end = 0;
        self.calls = 0;
        self.state = State::Inside;
    }

    /// The call that `object` is, or the arguments of; `before` is what stands between the last call and it.
    fn call(&self, before: Option<&str>, object: RawJson) -> Option<ToolCall> {
        let entries = object.entries()?;
        let get = |key: &str| entries.iter().find(|(k, _)| k == key).map(|(_, value)| value);
        if let Some(name) = get("name").and_then(RawJson::as_string).filter(|name| self.tools.contains(name)) {
            let arguments = get("arguments").or_else(|| get("parameters")).cloned();
            let arguments = arguments.map_or_else(|| Arguments::parse(""), Arguments::from);
            return Some(ToolCall { id: get("id").and_then(RawJson::as_string), name, arguments });
        }
        let name = last_name(before?, &self.tools)?.to_owned();
        Some(ToolCall { id: None, name, arguments: Arguments::Object(object) })
    }

    /// The answer ended: what was no call is content.
    pub fn finish(&mut self, out: &mut Vec<Piece>) {
        match self.state {
            State::Called | State::Inside if self.calls > 0 => give(unmarked(&self.held), out),
            State::Closed => {}
            _ => give(&self.held, out),
        }
        self.held.clear();
        self.scan = Scan::default();
    }
}

/// The last of `names` in `text` as a word of its own; of those that end at one place the longest.
fn last_name<'n>(text: &str, names: &'n [String]) -> Option<&'n str> {
    let is_part = |c: char| c.is_alphanumeric() || c == '_' || c == '-';
    let ends = names.iter().filter_map(|name| {
        let (at, _) = text
            .rmatch_indices(name.as_str())
            .find(|(at, name)| !text[..*at].ends_with(is_part) && !text[at + name.len()..].starts_with(is_part))?;
        Some((at + name.len(), name.as_str()))
    });
    ends.max_by_key(|(end, name)| (*end, name.len())).map(|(_, name)| name)
}

/// Looks for the end of an object, remembering how far it came.
#[derive(Clone, Debug, Default)]
struct Scan {
    start: Option<usize>,
    at: usize,
    depth: usize,
    quoted: bool,
    escaped: bool,
}

impl Scan {
    fn from(at: usize) -> Scan {
        Scan { at, ..Scan::default() }
    }

    /// The next complete `{...}` of `text`, which only ever grew since the last call.
    fn next_object(&mut self, text: &str) -> Option<Range<usize>> {
        for (at, byte) in text.bytes().enumerate().skip(self.at) {
            self.at = at + 1;
            let inside = self.start.is_some();
            match byte {
                _ if self.escaped => self.escaped = false,
                b'\\' if self.quoted => self.escaped = true,
                b'"' if inside => self.quoted = !self.quoted,
                b'{' if !self.quoted => {
                    self.start.get_or_insert(at);
                    self.depth += 1;
                }
                b'}' if inside && !self.quoted => {
                    self.depth -= 1;
                    if self.depth == 0 {
                        return self.start.map(|start| start..self.at);
                    }
                }
                _ => {}
            }
        }
        None
    }
}

/// What is left behind the last call, without brackets, separators and closing tags.
fn unmarked(text: &str) -> &str {
    let mut rest = text;
    loop {
        rest = rest.trim_start_matches(|c: char| c.is_whitespace() || "}],;`".contains(c));
        let Some(tag) = rest.strip_prefix('<') else {
            return rest.trim_end();
        };
        rest = tag.split_once('>').map_or("", |(_, rest)| rest);
    }
}

fn give(text: &str, out: &mut Vec<Piece>) {
    match out.last_mut() {
        _ if text.is_empty() => {}
        Some(Piece::Content(last)) => last.push_str(text),
        _ => out.push(Piece::Content(text.to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tools() -> Vec<Tool> {
        ["get_weather", "get_weather_week", "now"]
            .map(|name| Tool::from_function(RawJson::parse(&format!(r#"{{"name":"{name}"}}"#)).unwrap()).unwrap())
            .to_vec()
    }

    fn find(tag: &'static str, parts: &[&str]) -> Vec<Piece> {
        let mut finder = Finder::new(tag.into(), &tools());
        let mut out = Vec::new();
        for part in parts {
            finder.push(part, &mut out);
        }
        finder.finish(&mut out);
        out
    }

    fn content(text: &str) -> Piece {
        Piece::Content(text.into())
    }

    fn call(name: &str, arguments: &str) -> Piece {
        let arguments = Arguments::Object(RawJson::parse(arguments).unwrap());
        Piece::ToolCall(ToolCall { id: None, name: name.into(), arguments })
    }

    #[test]
    fn calls_are_found_however_they_are_written_and_cut() {
        let now = || call("now", "{}");
        let bern = || call("get_weather", r#"{"city": "Bern \"}"}"#);
        let hermes = r#"<tool_call>
{"name": "get_weather", "arguments": {"city": "Bern \"}"}}
</tool_call>
<tool_call>
{"name": "now"}
</tool_call>
"#;
        let deepseek = "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>get_weather\n```json\n{\"city\": \"Bern \\\"}\"}\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜>";
        for (tag, text, expected) in [
            ("<tool_call>", hermes, vec![bern(), now()]),
            (
                "<tool_call>",
                "Look. <tool_call>{\"name\":\"now\",\"parameters\":{}}</tool_call> Done",
                vec![content("Look."), now(), content("Done")],
            ),
            ("<tool_call>", "a <tool_ b", vec![content("a <tool_ b")]),
            (
                "<tool_call>",
                "a \n <tool_call>{\"name\": \"unknown\", \"arguments\": {}}</tool_call>",
                vec![content("a \n <tool_call>{\"name\": \"unknown\", \"arguments\": {}}</tool_call>")],
            ),
            ("<tool_call>", "<tool_call>{\"name\": \"now\"", vec![content("<tool_call>{\"name\": \"now\"")]),
            ("<tool_call>", "世 \n", vec![content("世 \n")]),
            (
                "[TOOL_CALLS]",
                r#"[TOOL_CALLS][{"name":"now","arguments":{}}, {"name":"get_weather","arguments":{"city": "Bern \"}"}}]"#,
                vec![now(), bern()],
            ),
            (
                "[TOOL_CALLS]",
                r#"[TOOL_CALLS]get_weather_week[ARGS]{"n":1}"#,
                vec![call("get_weather_week", r#"{"n":1}"#)],
            ),
            ("<｜tool▁calls▁begin｜>", deepseek, vec![bern()]),
            ("{", r#" {"name":"now","parameters":{}}"#, vec![now()]),
            ("{", r#"[{"name":"now","parameters":"{}"}]"#, vec![now()]),
            ("{", r#"So: {"name":"now","parameters":{}}"#, vec![content(r#"So: {"name":"now","parameters":{}}"#)]),
            ("{", r#"{"answer": {"x": 1}}"#, vec![content(r#"{"answer": {"x": 1}}"#)]),
            ("{", r#"{"function": {"name":"now","arguments":{}}}"#, vec![now()]),
        ] {
            assert_eq!(find(tag, &[text]), expected, "{text}");
            for (at, _) in text.char_indices() {
                let (left, right) = text.split_at(at);
                assert_eq!(find(tag, &[left, right]), expected, "{left} | {right}");
            }
            let characters: Vec<String> = text.chars().map(String::from).collect();
            let characters: Vec<&str> = characters.iter().map(String::as_str).collect();
            assert_eq!(find(tag, &characters), expected, "{text}");
        }
    }

    #[test]
    fn the_tag_is_inferred_from_the_template() {
        assert_eq!(tag_of_template("{{ '<tool_call>' }}"), Some("<tool_call>"));
        assert_eq!(tag_of_template("{% if tools %}"), Some("{"));
        assert_eq!(tag_of_template("{{ messages }}"), None);
    }
}
