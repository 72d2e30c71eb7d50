//! Text to instructions. Errors point at the line and column, with the line and a caret below it.

use std::borrow::Cow;
use std::fmt;

use serde_json::{Number, Value};

use super::{DROPPED_PARAMETERS, Instruction, Modelfile, PARAMETERS, ParameterType, Role};

/// What was read, and what was left out.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Parsed {
    pub modelfile: Modelfile,
    /// For the user: parameters that no longer mean anything.
    pub warnings: Vec<String>,
}

/// Where and why a Modelfile is wrong.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub struct Error {
    pub fault: Fault,
    /// From 1; 0 = the file as a whole.
    pub line: usize,
    /// In characters, from 1.
    pub column: usize,
    /// The line, for showing.
    pub excerpt: String,
}

/// Why a Modelfile is wrong; the texts are Ollama's where it has one.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    #[error("no FROM line")]
    NoFrom,
    #[error(
        "command must be one of \"from\", \"license\", \"template\", \"system\", \"adapter\", \"draft\", \"renderer\", \
         \"parser\", \"parameter\", \"message\", or \"requires\""
    )]
    UnknownInstruction,
    #[error("{0} needs a value")]
    NoValue(&'static str),
    #[error("unexpected EOF")]
    UnexpectedEnd,
    #[error("unknown parameter '{0}'")]
    UnknownParameter(String),
    #[error("invalid int value [{0}]")]
    Integer(String),
    #[error("invalid float value [{0}]")]
    Float(String),
    #[error("invalid bool value [{0}]")]
    Boolean(String),
    #[error("invalid value [{given}], expected {}", words.join(", "))]
    Word { given: String, words: &'static [&'static str] },
    #[error("message role must be one of \"system\", \"user\", or \"assistant\"")]
    Role,
    #[error("requires must be a valid semver (e.g. 0.14.0)")]
    Requires,
    #[error("the draft model must differ from the model in FROM")]
    DraftIsFrom,
    #[error("the file is neither UTF-8 nor UTF-16 text")]
    Encoding,
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.line == 0 {
            return write!(f, "{}", self.fault);
        }
        let number = self.line.to_string();
        let margin = " ".repeat(number.len());
        // A tab before the caret keeps it below its character, however wide the tab is shown.
        let indent: String =
            self.excerpt.chars().take(self.column - 1).map(|c| if c == '\t' { '\t' } else { ' ' }).collect();
        write!(
            f,
            "(line {}, column {}): {}\n {number} | {}\n {margin} | {indent}^",
            self.line, self.column, self.fault, self.excerpt
        )
    }
}

/// Reads the bytes of a Modelfile: UTF-8 with or without a byte order mark, or UTF-16 with one.
///
/// # Errors
/// [`Fault::Encoding`], and as [`parse`].
pub fn parse_bytes(bytes: &[u8]) -> Result<Parsed, Error> {
    let utf16 = |bytes: &[u8], unit: fn([u8; 2]) -> u16| {
        let (pairs, rest) = bytes.as_chunks::<2>();
        let units: Vec<u16> = pairs.iter().map(|pair| unit(*pair)).collect();
        if rest.is_empty() { String::from_utf16(&units).ok() } else { None }
    };
    let text = match bytes {
        [0xff, 0xfe, rest @ ..] => utf16(rest, u16::from_le_bytes).map(Cow::Owned),
        [0xfe, 0xff, rest @ ..] => utf16(rest, u16::from_be_bytes).map(Cow::Owned),
        [0xef, 0xbb, 0xbf, rest @ ..] => std::str::from_utf8(rest).ok().map(Cow::Borrowed),
        _ => std::str::from_utf8(bytes).ok().map(Cow::Borrowed),
    };
    match text {
        Some(text) => parse(&text),
        None => Err(Error { fault: Fault::Encoding, line: 0, column: 0, excerpt: String::new() }),
    }
}

/// Reads a Modelfile.
///
/// ```
/// use fathom::modelfile::{self, Instruction};
/// let parsed = modelfile::parse("FROM deepseek-v4-flash\nSYSTEM \"\"\"\nBe brief.\"\"\"\n").unwrap();
/// assert_eq!(parsed.modelfile.instructions[1], Instruction::System("\nBe brief.".into()));
/// ```
///
/// # Errors
/// The first thing that is wrong, with its place.
pub fn parse(text: &str) -> Result<Parsed, Error> {
    let mut reader = Reader { text, at: 0, draft: None };
    let mut parsed = Parsed::default();
    while let Some(start) = reader.next_instruction() {
        if let Some(instruction) = reader.instruction(start, &mut parsed.warnings)? {
            parsed.modelfile.instructions.push(instruction);
        }
    }
    let instructions = &parsed.modelfile.instructions;
    if !instructions.iter().any(|i| matches!(i, Instruction::From(_))) {
        return Err(Error { fault: Fault::NoFrom, line: 0, column: 0, excerpt: String::new() });
    }
    if let Some((at, draft)) = &reader.draft
        && instructions.iter().any(|i| matches!(i, Instruction::From(from) if from == draft))
    {
        return Err(reader.error(*at, Fault::DraftIsFrom));
    }
    Ok(parsed)
}

/// The text and how much of it is read.
struct Reader<'a> {
    text: &'a str,
    at: usize,
    /// The last DRAFT and its place: only the whole file tells whether FROM names the same.
    draft: Option<(usize, String)>,
}

fn is_newline(c: char) -> bool {
    c == '\n' || c == '\r'
}

fn is_blank(c: char) -> bool {
    c == ' ' || c == '\t'
}

impl<'a> Reader<'a> {
    fn rest(&self) -> &'a str {
        &self.text[self.at..]
    }

    /// Skips what stands between instructions: white space, comments, control characters. Gives the next one's start.
    fn next_instruction(&mut self) -> Option<usize> {
        loop {
            let rest = self.rest().trim_start_matches(|c: char| c.is_whitespace() || c.is_control() || c == '\u{feff}');
            self.at = self.text.len() - rest.len();
            if rest.is_empty() {
                return None;
            }
            if !rest.starts_with('#') {
                return Some(self.at);
            }
            self.at += rest.find(is_newline).unwrap_or(rest.len());
        }
    }

    fn instruction(&mut self, start: usize, warnings: &mut Vec<String>) -> Result<Option<Instruction>, Error> {
        let word = self.word(|c| c.is_ascii_alphabetic());
        let instruction = match word.to_ascii_lowercase().as_str() {
            "from" => Instruction::From(self.value("FROM")?),
            "template" => Instruction::Template(self.value("TEMPLATE")?),
            "system" => Instruction::System(self.value("SYSTEM")?),
            "license" => Instruction::License(self.value("LICENSE")?),
            "adapter" => Instruction::Adapter(self.value("ADAPTER")?),
            "draft" => {
                let (at, value) = self.placed_value("DRAFT")?;
                self.draft = Some((at, value.clone()));
                Instruction::Draft(value)
            }
            "renderer" => Instruction::Renderer(self.value("RENDERER")?),
            "parser" => Instruction::Parser(self.value("PARSER")?),
            "requires" => {
                let (at, value) = self.placed_value("REQUIRES")?;
                if !is_version(&value) {
                    return Err(self.error(at, Fault::Requires));
                }
                Instruction::Requires(value)
            }
            "parameter" => return self.parameter(warnings),
            "message" => self.message()?,
            _ => return Err(self.error(start, Fault::UnknownInstruction)),
        };
        Ok(Some(instruction))
    }

    fn parameter(&mut self, warnings: &mut Vec<String>) -> Result<Option<Instruction>, Error> {
        self.blanks("PARAMETER")?;
        let start = self.at;
        let name = self.word(|c| !c.is_whitespace()).to_ascii_lowercase();
        if name.is_empty() {
            return Err(self.error(start, Fault::NoValue("PARAMETER")));
        }
        let (at, text) = self.placed_value("PARAMETER")?;
        if DROPPED_PARAMETERS.contains(&name.as_str()) {
            warnings.push(format!("parameter `{name}` no longer means anything and is left out"));
            return Ok(None);
        }
        let Some((_, kind)) = PARAMETERS.iter().find(|(known, _)| *known == name) else {
            return Err(self.error(start, Fault::UnknownParameter(name)));
        };
        let value = parameter_value(*kind, &text).map_err(|fault| self.error(at, fault))?;
        Ok(Some(Instruction::Parameter { name, value }))
    }

    fn message(&mut self) -> Result<Instruction, Error> {
        self.blanks("MESSAGE")?;
        let start = self.at;
        let word = self.word(|c| !c.is_whitespace());
        let role = Role::from_word(word).ok_or_else(|| self.error(start, Fault::Role))?;
        Ok(Instruction::Message { role, content: self.value("MESSAGE")? })
    }

    fn word(&mut self, belongs: impl Fn(char) -> bool) -> &'a str {
        let rest = self.rest();
        let end = rest.find(|c| !belongs(c)).unwrap_or(rest.len());
        self.at += end;
        &rest[..end]
    }

    /// Passes the blanks after a word; without any, the word was not what it looked like.
    fn blanks(&mut self, instruction: &'static str) -> Result<(), Error> {
        let rest = self.rest();
        let trimmed = rest.trim_start_matches(is_blank);
        if trimmed.is_empty() || trimmed.starts_with(is_newline) {
            return Err(self.error(self.at, Fault::NoValue(instruction)));
        }
        if trimmed.len() == rest.len() {
            return Err(self.error(self.at, Fault::UnknownInstruction));
        }
        self.at += rest.len() - trimmed.len();
        Ok(())
    }

    fn value(&mut self, instruction: &'static str) -> Result<String, Error> {
        self.placed_value(instruction).map(|(_, value)| value)
    }

    /// The value after an instruction, and where it starts. Bare, it ends with the line. In quotes (one or three), it ends
    /// with the first line that ends with the quotes; there are no escapes, so quotes inside of a line are kept.
    fn placed_value(&mut self, instruction: &'static str) -> Result<(usize, String), Error> {
        self.blanks(instruction)?;
        let start = self.at;
        let rest = self.rest();
        let quotes = if rest.starts_with("\"\"\"") {
            "\"\"\""
        } else if rest.starts_with('"') {
            "\""
        } else {
            let end = rest.find(is_newline).unwrap_or(rest.len());
            self.at += end;
            return Ok((start, rest[..end].trim_matches(is_blank).to_string()));
        };
        let mut from = quotes.len();
        loop {
            let line = &rest[from..];
            let end = from + line.find(is_newline).unwrap_or(line.len());
            // The closing quotes are not the opening ones.
            let closed = rest[quotes.len()..end].trim_end_matches(char::is_whitespace).strip_suffix(quotes);
            if let Some(value) = closed {
                self.at += end;
                return Ok((start, value.to_string()));
            }
            if end == rest.len() {
                return Err(self.error(start, Fault::UnexpectedEnd));
            }
            from = end + 1;
        }
    }

    fn error(&self, at: usize, fault: Fault) -> Error {
        let before = &self.text[..at];
        // `\r\n` is one end of a line.
        let line = before.replace("\r\n", "\n").matches(is_newline).count() + 1;
        let line_start = before.rfind(is_newline).map_or(0, |i| i + 1);
        let line_end = self.text[at..].find(is_newline).map_or(self.text.len(), |i| at + i);
        Error {
            fault,
            line,
            column: self.text[line_start..at].chars().count() + 1,
            excerpt: self.text[line_start..line_end].to_string(),
        }
    }
}

/// One parameter's value, for those who set it without a Modelfile. `stop` gives one string.
///
/// # Errors
/// [`Fault::UnknownParameter`], or that the text is no value of its type.
pub fn parameter(name: &str, text: &str) -> Result<Value, Fault> {
    let Some((_, kind)) = PARAMETERS.iter().find(|(known, _)| *known == name) else {
        return Err(Fault::UnknownParameter(name.to_string()));
    };
    parameter_value(*kind, text)
}

fn parameter_value(kind: ParameterType, text: &str) -> Result<Value, Fault> {
    match kind {
        ParameterType::Integer => text.parse::<i64>().map(Value::from).map_err(|_| Fault::Integer(text.to_string())),
        ParameterType::Float => {
            let number = text.parse::<f64>().ok().and_then(Number::from_f64);
            number.map(Value::Number).ok_or_else(|| Fault::Float(text.to_string()))
        }
        // What Go's ParseBool takes.
        ParameterType::Boolean => match text {
            "1" | "t" | "T" | "TRUE" | "true" | "True" => Ok(Value::Bool(true)),
            "0" | "f" | "F" | "FALSE" | "false" | "False" => Ok(Value::Bool(false)),
            _ => Err(Fault::Boolean(text.to_string())),
        },
        ParameterType::Strings | ParameterType::Text => Ok(Value::from(text)),
        ParameterType::OneOf(words) if words.contains(&text) => Ok(Value::from(text)),
        ParameterType::OneOf(words) => Err(Fault::Word { given: text.to_string(), words }),
    }
}

/// `1.2.3`, with or without `v`, pre-release and build: what semver.org calls valid, as far as it matters here.
pub fn is_version(text: &str) -> bool {
    let text = text.strip_prefix('v').unwrap_or(text);
    let (text, build) = text.split_once('+').map_or((text, None), |(t, b)| (t, Some(b)));
    let (core, pre) = text.split_once('-').map_or((text, None), |(t, p)| (t, Some(p)));
    let identifiers = |text: Option<&str>| {
        text.is_none_or(|text| {
            text.split('.').all(|id| !id.is_empty() && id.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-'))
        })
    };
    let number = |n: &str| !n.is_empty() && n.bytes().all(|b| b.is_ascii_digit()) && (n == "0" || !n.starts_with('0'));
    core.split('.').count() == 3 && core.split('.').all(number) && identifiers(pre) && identifiers(build)
}
