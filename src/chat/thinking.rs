//! Reasoning between two tags, for models that bring a template.
//!
//! The rules are Ollama's: white space before the opening tag is tolerated, anything else there makes the whole answer
//! content; white space after either tag is dropped; only the first block counts.

use std::borrow::Cow;

use super::Piece;

/// The tags around reasoning; neither is empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tags {
    pub open: Cow<'static, str>,
    pub close: Cow<'static, str>,
}

const fn known(open: &'static str, close: &'static str) -> Tags {
    Tags { open: Cow::Borrowed(open), close: Cow::Borrowed(close) }
}

/// What published models use.
const KNOWN: &[Tags] = &[
    known("<think>", "</think>"),
    known("<seed:think>", "</seed:think>"),
    known("<thinking>", "</thinking>"),
    known("[THINK]", "[/THINK]"),
];

impl Tags {
    /// The first known pair whose closing tag a template mentions together with its opening one; a template that only
    /// splits old answers at `</think>` belongs to a model that thinks, too.
    pub fn of_template(source: &str) -> Option<Tags> {
        let pair = KNOWN.iter().find(|tags| source.contains(&*tags.open) && source.contains(&*tags.close));
        let splits = || source.contains("</think>") && !source.contains("reasoning_content");
        pair.or_else(|| splits().then_some(&KNOWN[0])).cloned()
    }
}

/// Splits an answer into reasoning and the rest as it comes.
#[derive(Debug)]
pub struct Splitter {
    tags: Tags,
    state: State,
    held: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Nothing but white space and the beginning of the opening tag so far.
    Before,
    /// After the opening tag, only white space.
    Opened,
    Thinking,
    /// After the closing tag, only white space.
    Closed,
    Content,
}

impl Splitter {
    /// `inside`: the prompt already holds the opening tag.
    pub fn new(tags: &Tags, inside: bool) -> Splitter {
        Splitter { tags: tags.clone(), state: if inside { State::Opened } else { State::Before }, held: String::new() }
    }

    /// Appends what became certain.
    pub fn push(&mut self, text: &str, out: &mut Vec<Piece>) {
        self.held.push_str(text);
        loop {
            match self.state {
                State::Before => {
                    let rest = self.held.trim_start();
                    if let Some(after) = rest.strip_prefix(&*self.tags.open) {
                        self.held = after.to_owned();
                        self.state = State::Opened;
                    } else if self.tags.open.starts_with(rest) {
                        return;
                    } else {
                        self.state = State::Content;
                    }
                }
                State::Opened | State::Closed => {
                    let blank = self.held.len() - self.held.trim_start().len();
                    self.held.drain(..blank);
                    if self.held.is_empty() {
                        return;
                    }
                    self.state = if self.state == State::Opened { State::Thinking } else { State::Content };
                }
                State::Thinking => match self.held.find(&*self.tags.close) {
                    Some(at) => {
                        let rest = self.held.split_off(at + self.tags.close.len());
                        self.held.truncate(at);
                        self.give(at, out);
                        self.held = rest;
                        self.state = State::Closed;
                    }
                    None => return self.give(self.held.len() - begun(&self.held, &self.tags.close), out),
                },
                State::Content => return self.give(self.held.len(), out),
            }
        }
    }

    /// The answer ended.
    pub fn finish(&mut self, out: &mut Vec<Piece>) {
        if matches!(self.state, State::Opened | State::Closed) {
            self.held.clear();
        }
        self.give(self.held.len(), out);
    }

    fn give(&mut self, bytes: usize, out: &mut Vec<Piece>) {
        if bytes == 0 {
            return;
        }
        let text: String = self.held.drain(..bytes).collect();
        out.push(if self.state == State::Thinking { Piece::Thinking(text) } else { Piece::Content(text) });
    }
}

/// Length of the longest tail of `text` that begins `tag` without being all of it.
pub(super) fn begun(text: &str, tag: &str) -> usize {
    (1..tag.len()).rev().find(|n| tag.is_char_boundary(*n) && text.ends_with(&tag[..*n])).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn split(inside: bool, parts: &[&str]) -> (String, String) {
        let mut splitter = Splitter::new(&KNOWN[0], inside);
        let mut out = Vec::new();
        for part in parts {
            splitter.push(part, &mut out);
        }
        splitter.finish(&mut out);
        let (mut thinking, mut content) = (String::new(), String::new());
        for piece in out {
            match piece {
                Piece::Thinking(text) => thinking.push_str(&text),
                Piece::Content(text) => content.push_str(&text),
                Piece::ToolCall(call) => panic!("{call:?}"),
            }
        }
        (thinking, content)
    }

    #[test]
    fn examples_of_the_interface_cut_everywhere() {
        for (inside, text, thinking, content) in [
            (false, "<think> a </think> b", "a ", "b"),
            (false, " \n<think>\n\na\n</think>\n\nb\n", "a\n", "b\n"),
            (false, "no think", "", "no think"),
            (false, "  no <think>a</think>", "", "  no <think>a</think>"),
            (false, "<think>a</think>b<think>c</think>", "a", "b<think>c</think>"),
            (false, "<think>a</thin", "a</thin", ""),
            (false, "<think>世 < 界</think>😀", "世 < 界", "😀"),
            (false, "<think>   ", "", ""),
            (false, "<thi", "", "<thi"),
            (false, " ", "", " "),
            (true, "a</think>b", "a", "b"),
            (true, "\n</think>\n\nb", "", "b"),
            (true, "a", "a", ""),
        ] {
            let expected = (thinking.to_owned(), content.to_owned());
            assert_eq!(split(inside, &[text]), expected, "{text:?}");
            for (at, _) in text.char_indices() {
                let (left, right) = text.split_at(at);
                assert_eq!(split(inside, &[left, right]), expected, "{left:?} | {right:?}");
            }
        }
    }

    #[test]
    fn tags_are_inferred_from_the_template() {
        assert_eq!(Tags::of_template("{{ '<think>' }} {{ '</think>' }}"), Some(KNOWN[0].clone()));
        assert_eq!(Tags::of_template("{% set c = c.split('</think>')[-1] %}"), Some(KNOWN[0].clone()));
        assert_eq!(Tags::of_template("[THINK] [/THINK]"), Some(KNOWN[3].clone()));
        assert_eq!(Tags::of_template("{{ messages }}"), None);
    }
}
