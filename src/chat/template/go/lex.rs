//! Text and actions to tokens: delimiters, trim markers, comments, Go's literals.

use super::Fault;

/// One piece of a template.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Piece<'a> {
    /// Copied as it is, already trimmed.
    Text(&'a str),
    /// What stands between two delimiters.
    Action(Vec<Token>),
}

/// A word of an action and the line it stands in.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Token {
    pub(super) kind: Kind,
    pub(super) line: usize,
    /// White space stands before it: `.A .B` are two operands, `.A.B` is one.
    pub(super) spaced: bool,
}

#[derive(Clone, Debug, PartialEq)]
pub(super) enum Kind {
    /// Keyword, function name, `true`, `false`, `nil`.
    Word(String),
    /// `.Name`
    Field(String),
    /// `$` or `$name`, with the dollar.
    Variable(String),
    Text(String),
    Int(i64),
    Float(f64),
    /// `.`
    Dot,
    Open,
    Close,
    Pipe,
    Comma,
    /// `:=`
    Declare,
    /// `=`
    Assign,
}

const LEFT: &str = "{{";
const RIGHT: &str = "}}";

/// Splits a template.
pub(super) fn pieces(source: &str) -> Result<Vec<Piece<'_>>, Fault> {
    let mut pieces = Vec::new();
    let mut at = 0;
    let mut trim_start = false;
    loop {
        let rest = &source[at..];
        let left = rest.find(LEFT);
        let mut text = &rest[..left.unwrap_or(rest.len())];
        if trim_start {
            text = text.trim_start_matches(is_space);
        }
        let Some(left) = left else {
            push_text(&mut pieces, text);
            return Ok(pieces);
        };
        let mut inside = at + left + LEFT.len();
        if source[inside..].starts_with('-') && source[inside + 1..].starts_with(is_space) {
            text = text.trim_end_matches(is_space);
            inside += 1;
        }
        push_text(&mut pieces, text);
        let begins = source[inside..].trim_start_matches(is_space);
        if begins.starts_with("/*") {
            (at, trim_start) = after_comment(source, source.len() - begins.len())?;
            continue;
        }
        let mut lexer = Lexer { source, at: inside, tokens: Vec::new() };
        trim_start = lexer.action()?;
        at = lexer.at;
        pieces.push(Piece::Action(lexer.tokens));
    }
}

fn push_text<'a>(pieces: &mut Vec<Piece<'a>>, text: &'a str) {
    if !text.is_empty() {
        pieces.push(Piece::Text(text));
    }
}

fn is_space(c: char) -> bool {
    matches!(c, ' ' | '\t' | '\r' | '\n')
}

/// Skips a comment that begins at `at`: the position behind its action, and whether that trims.
fn after_comment(source: &str, at: usize) -> Result<(usize, bool), Fault> {
    let fault = |text: &str| Fault::at(line_of(source, at), text);
    let end = source[at..].find("*/").ok_or_else(|| fault("a comment is not closed"))? + at + 2;
    let rest = &source[end..];
    let trims = rest.starts_with(is_space) && rest.trim_start_matches(is_space).starts_with("-}}");
    let close = if trims { source.len() - rest.trim_start_matches(is_space).len() + 1 } else { end };
    if !source[close..].starts_with(RIGHT) {
        return Err(fault("a comment must end its action: `*/}}`"));
    }
    Ok((close + RIGHT.len(), trims))
}

fn line_of(source: &str, at: usize) -> usize {
    source.as_bytes()[..at].iter().filter(|byte| **byte == b'\n').count() + 1
}

struct Lexer<'a> {
    source: &'a str,
    at: usize,
    tokens: Vec<Token>,
}

impl Lexer<'_> {
    /// Reads up to and including the right delimiter; whether it trims what follows.
    fn action(&mut self) -> Result<bool, Fault> {
        let mut line = line_of(self.source, self.at);
        loop {
            let rest = &self.source[self.at..];
            let spaces = rest.len() - rest.trim_start_matches(is_space).len();
            line += rest[..spaces].matches('\n').count();
            self.at += spaces;
            let rest = &self.source[self.at..];
            if spaces > 0 && rest.starts_with("-}}") {
                self.at += 3;
                return Ok(true);
            }
            if rest.starts_with(RIGHT) {
                self.at += RIGHT.len();
                return Ok(false);
            }
            let (kind, taken) = token(rest).map_err(|text| Fault::at(line, text))?;
            line += rest[..taken].matches('\n').count();
            self.tokens.push(Token { kind, line, spaced: spaces > 0 });
            self.at += taken;
        }
    }
}

/// The token at the beginning of `rest`, and its bytes.
fn token(rest: &str) -> Result<(Kind, usize), String> {
    let name = |from: usize| {
        let end = rest[from..].find(|c: char| !(c.is_alphanumeric() || c == '_')).map_or(rest.len(), |n| n + from);
        (&rest[from..end], end)
    };
    let Some(first) = rest.chars().next() else {
        return Err("an action is not closed".into());
    };
    Ok(match first {
        '(' => (Kind::Open, 1),
        ')' => (Kind::Close, 1),
        '|' => (Kind::Pipe, 1),
        ',' => (Kind::Comma, 1),
        ':' if rest.starts_with(":=") => (Kind::Declare, 2),
        '=' => (Kind::Assign, 1),
        '"' => quoted(rest)?,
        '\'' => character(rest)?,
        '`' => {
            let end = rest[1..].find('`').ok_or("a raw string is not closed")?;
            (Kind::Text(rest[1..1 + end].replace('\r', "")), end + 2)
        }
        '$' => {
            let (_, end) = name(1);
            (Kind::Variable(rest[..end].to_owned()), end)
        }
        '.' if rest[1..].starts_with(|c: char| c.is_ascii_digit()) => number(rest)?,
        '.' => match name(1) {
            ("", _) => (Kind::Dot, 1),
            (field, end) => (Kind::Field(field.to_owned()), end),
        },
        '+' | '-' | '0'..='9' => number(rest)?,
        c if c.is_alphabetic() || c == '_' => {
            let (word, end) = name(0);
            (Kind::Word(word.to_owned()), end)
        }
        c => return Err(format!("unexpected {c:?} in an action")),
    })
}

fn number(rest: &str) -> Result<(Kind, usize), String> {
    let signed = usize::from(rest.starts_with(['+', '-']));
    let mut end = signed;
    while let Some(c) = rest[end..].chars().next() {
        let in_exponent =
            matches!(c, '+' | '-') && rest[..end].ends_with(['e', 'E']) && !rest[signed..].starts_with("0x");
        if !(c.is_ascii_alphanumeric() || c == '.' || c == '_' || in_exponent) {
            break;
        }
        end += c.len_utf8();
    }
    let text = rest[..end].replace('_', "");
    let digits = text.trim_start_matches(['+', '-']).to_ascii_lowercase();
    let radix =
        [("0x", 16), ("0o", 8), ("0b", 2)].iter().find_map(|(p, radix)| Some((digits.strip_prefix(p)?, *radix)));
    let int = match radix {
        Some((digits, radix)) => i64::from_str_radix(digits, radix).ok(),
        None => digits.parse::<i64>().ok(),
    };
    let negative = text.starts_with('-');
    match int {
        Some(int) => Ok((Kind::Int(if negative { -int } else { int }), end)),
        None => match text.parse::<f64>() {
            Ok(float) if digits.starts_with(|c: char| c.is_ascii_digit() || c == '.') => Ok((Kind::Float(float), end)),
            _ => Err(format!("`{}` is not a number", &rest[..end])),
        },
    }
}

/// A string in double quotes with Go's escapes.
fn quoted(rest: &str) -> Result<(Kind, usize), String> {
    let mut text = String::new();
    let mut at = 1;
    loop {
        match rest[at..].chars().next() {
            None | Some('\n') => return Err("a string is not closed".into()),
            Some('"') => return Ok((Kind::Text(text), at + 1)),
            Some('\\') => {
                let (c, taken) = escape(&rest[at..])?;
                text.push(c);
                at += taken;
            }
            Some(c) => {
                text.push(c);
                at += c.len_utf8();
            }
        }
    }
}

/// A character constant is its number.
fn character(rest: &str) -> Result<(Kind, usize), String> {
    let (c, taken) = match rest[1..].chars().next() {
        Some('\\') => escape(&rest[1..])?,
        Some(c) if c != '\n' && c != '\'' => (c, c.len_utf8()),
        _ => return Err("a character constant is not closed".into()),
    };
    if !rest[1 + taken..].starts_with('\'') {
        return Err("a character constant is not closed".into());
    }
    Ok((Kind::Int(i64::from(u32::from(c))), taken + 2))
}

/// The character that an escape at the beginning of `rest` stands for, and its bytes.
fn escape(rest: &str) -> Result<(char, usize), String> {
    let code = |from: usize, digits: usize, radix: u32| {
        let text = rest.get(from..from + digits)?;
        Some((char::from_u32(u32::from_str_radix(text, radix).ok()?)?, from + digits))
    };
    let plain = |c: char| Some((c, 2));
    let found = match rest[1..].chars().next() {
        Some('n') => plain('\n'),
        Some('t') => plain('\t'),
        Some('r') => plain('\r'),
        Some('a') => plain('\u{7}'),
        Some('b') => plain('\u{8}'),
        Some('f') => plain('\u{c}'),
        Some('v') => plain('\u{b}'),
        Some(c @ ('\\' | '"' | '\'')) => plain(c),
        Some('x') => code(2, 2, 16),
        Some('u') => code(2, 4, 16),
        Some('U') => code(2, 8, 16),
        Some('0'..='7') => code(1, 3, 8),
        _ => None,
    };
    found.ok_or_else(|| "a string has an escape that Go does not know".to_owned())
}
