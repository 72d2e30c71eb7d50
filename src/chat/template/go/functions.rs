//! The functions that templates may call: Go's own and Ollama's.

use std::cmp::Ordering;
use std::fmt::Write;
use std::rc::Rc;

use super::value::{List, Value, float_text};

type Function = fn(&[Value]) -> Result<Value, String>;

/// `and` and `or` are not here: they do not evaluate all their arguments.
const FUNCTIONS: [(&str, Function); 20] = [
    ("not", |arguments| Ok(Value::Bool(!one(arguments)?.truth()))),
    ("eq", |arguments| Ok(Value::Bool(eq(arguments)?))),
    ("ne", |arguments| two(arguments).and_then(|(a, b)| Ok(Value::Bool(!same(a, b)?)))),
    ("lt", |arguments| ordered(arguments, Ordering::is_lt)),
    ("le", |arguments| ordered(arguments, Ordering::is_le)),
    ("gt", |arguments| ordered(arguments, Ordering::is_gt)),
    ("ge", |arguments| ordered(arguments, Ordering::is_ge)),
    ("len", len),
    ("index", index),
    ("slice", slice),
    ("print", |arguments| Ok(text(&print(arguments)))),
    ("println", |arguments| Ok(text(&println(arguments)))),
    ("printf", printf),
    ("html", |arguments| Ok(text(&html(&print(arguments))))),
    ("js", |arguments| Ok(text(&js(&print(arguments))))),
    ("urlquery", |arguments| Ok(text(&url_query(&print(arguments))))),
    ("json", json),
    ("currentDate", |_| Ok(date(0))),
    ("yesterdayDate", |_| Ok(date(-1))),
    ("toTypeScriptType", type_script_type),
];

pub(super) fn exists(name: &str) -> bool {
    matches!(name, "and" | "or") || find(name).is_some()
}

pub(super) fn find(name: &str) -> Option<Function> {
    FUNCTIONS.iter().find(|(known, _)| *known == name).map(|(_, function)| *function)
}

fn text(text: &str) -> Value {
    text.into()
}

fn one(arguments: &[Value]) -> Result<&Value, String> {
    match arguments {
        [one] => Ok(one),
        _ => Err(format!("wants 1 argument, got {}", arguments.len())),
    }
}

fn two(arguments: &[Value]) -> Result<(&Value, &Value), String> {
    match arguments {
        [a, b] => Ok((a, b)),
        _ => Err(format!("wants 2 arguments, got {}", arguments.len())),
    }
}

/// Whether the first equals any of the others.
fn eq(arguments: &[Value]) -> Result<bool, String> {
    let (first, others) = arguments.split_first().ok_or("wants at least 2 arguments")?;
    if others.is_empty() {
        return Err("missing argument for comparison".into());
    }
    for other in others {
        if same(first, other)? {
            return Ok(true);
        }
    }
    Ok(false)
}

fn same(a: &Value, b: &Value) -> Result<bool, String> {
    Ok(match (a, b) {
        (Value::Nil, Value::Nil) => true,
        (Value::Nil, _) | (_, Value::Nil) => false,
        (Value::Bool(a), Value::Bool(b)) => a == b,
        (Value::Text(a), Value::Text(b)) => a == b,
        (Value::Int(_) | Value::Float(_), Value::Int(_) | Value::Float(_)) => compare(a, b) == Some(Ordering::Equal),
        _ => return Err(incompatible(a, b)),
    })
}

fn ordered(arguments: &[Value], is: fn(Ordering) -> bool) -> Result<Value, String> {
    let (a, b) = two(arguments)?;
    match (a, b) {
        (Value::Text(a), Value::Text(b)) => Ok(Value::Bool(is(a.cmp(b)))),
        (Value::Int(_) | Value::Float(_), Value::Int(_) | Value::Float(_)) => {
            Ok(Value::Bool(compare(a, b).is_some_and(is)))
        }
        _ => Err(incompatible(a, b)),
    }
}

/// Numbers; Go refuses an integer beside a float, which helps nobody.
fn compare(a: &Value, b: &Value) -> Option<Ordering> {
    match (a, b) {
        (Value::Int(a), Value::Int(b)) => Some(a.cmp(b)),
        (a, b) => as_float(a)?.partial_cmp(&as_float(b)?),
    }
}

fn as_float(value: &Value) -> Option<f64> {
    match value {
        Value::Int(int) => Some(*int as f64),
        Value::Float(float) => Some(*float),
        _ => None,
    }
}

fn incompatible(a: &Value, b: &Value) -> String {
    format!("incompatible types for comparison: {} and {}", a.kind(), b.kind())
}

fn len(arguments: &[Value]) -> Result<Value, String> {
    let n = match one(arguments)? {
        Value::Text(text) => text.len(),
        Value::List(list) => list.items.len(),
        Value::Map(map) => map.entries.len(),
        other => return Err(format!("len of type {}", other.kind())),
    };
    Ok(Value::Int(n as i64))
}

fn index(arguments: &[Value]) -> Result<Value, String> {
    let (first, keys) = arguments.split_first().ok_or("wants at least 1 argument")?;
    let mut found = first.clone();
    for key in keys {
        found = match (&found, key) {
            (Value::List(list), key) => list.items[position(key, list.items.len())?].clone(),
            (Value::Text(text), key) => match position(key, text.len()) {
                Ok(at) => Value::Int(i64::from(text.as_bytes()[at])),
                Err(error) => return Err(error),
            },
            (Value::Map(map), Value::Text(key)) => map.get(key).cloned().unwrap_or(Value::Nil),
            (other, key) => return Err(format!("cannot index {} by {}", other.kind(), key.kind())),
        };
    }
    Ok(found)
}

/// An index below `n`.
fn position(key: &Value, n: usize) -> Result<usize, String> {
    let at = bound(key)?;
    if at < n { Ok(at) } else { Err(format!("index {at} is out of range: there are {n}")) }
}

fn bound(key: &Value) -> Result<usize, String> {
    match key {
        Value::Int(int) => usize::try_from(*int).map_err(|_| format!("index {int} is out of range")),
        other => Err(format!("cannot index with type {}", other.kind())),
    }
}

fn slice(arguments: &[Value]) -> Result<Value, String> {
    let (of, bounds) = arguments.split_first().ok_or("wants at least 1 argument")?;
    let n = match of {
        Value::List(list) => list.items.len(),
        Value::Text(text) => text.len(),
        other => return Err(format!("cannot slice type {}", other.kind())),
    };
    // A third index limits a capacity, which nothing here shows.
    let bounds = bounds.iter().map(bound).collect::<Result<Vec<_>, _>>()?;
    let from = bounds.first().copied().unwrap_or(0);
    let to = bounds.get(1).copied().unwrap_or(n);
    if bounds.len() > 3 || from > to || to > n {
        return Err(format!("slice {from}:{to} is out of range: there are {n}"));
    }
    Ok(match of {
        Value::Text(of) => text(&String::from_utf8_lossy(&of.as_bytes()[from..to])),
        Value::List(list) => Value::List(Rc::new(List { items: list.items[from..to].to_vec(), as_json: list.as_json })),
        _ => unreachable!("refused above"),
    })
}

/// `fmt.Sprint`: spaces between operands of which none is a string.
fn print(arguments: &[Value]) -> String {
    let mut out = String::new();
    for (i, value) in arguments.iter().enumerate() {
        let is_text = |value: &Value| matches!(value, Value::Text(_));
        if i > 0 && !is_text(value) && !is_text(&arguments[i - 1]) {
            out.push(' ');
        }
        value.write(&mut out);
    }
    out
}

fn println(arguments: &[Value]) -> String {
    let mut out = String::new();
    for (i, value) in arguments.iter().enumerate() {
        if i > 0 {
            out.push(' ');
        }
        value.write(&mut out);
    }
    out.push('\n');
    out
}

/// One verb of a format: `%-5.2f`.
#[derive(Default)]
struct Verb {
    left: bool,
    plus: bool,
    zero: bool,
    sharp: bool,
    space: bool,
    width: Option<usize>,
    precision: Option<usize>,
}

/// Widths above this are a mistake or an attack.
const MAX_WIDTH: usize = 1000;

fn printf(arguments: &[Value]) -> Result<Value, String> {
    let (format, values) = arguments.split_first().ok_or("wants at least 1 argument")?;
    let Value::Text(format) = format else {
        return Err(format!("the format is of type {}", format.kind()));
    };
    let mut out = String::new();
    let mut values = values.iter();
    let mut chars = format.chars().peekable();
    while let Some(c) = chars.next() {
        if c != '%' {
            out.push(c);
            continue;
        }
        let mut verb = Verb::default();
        while let Some(flag) = chars.next_if(|c| "-+0# ".contains(*c)) {
            match flag {
                '-' => verb.left = true,
                '+' => verb.plus = true,
                '0' => verb.zero = true,
                '#' => verb.sharp = true,
                _ => verb.space = true,
            }
        }
        let mut number = || {
            let mut digits = String::new();
            while let Some(digit) = chars.next_if(char::is_ascii_digit) {
                digits.push(digit);
            }
            match digits.as_str() {
                "" => Ok(None),
                digits => match digits.parse() {
                    Ok(n) if n <= MAX_WIDTH => Ok(Some(n)),
                    _ => Err(format!("a width of {digits} is too large")),
                },
            }
        };
        verb.width = number()?;
        if chars.next_if_eq(&'.').is_some() {
            verb.precision = Some(number_after_dot(&mut chars)?);
        }
        match chars.next() {
            None => out.push_str("%!(NOVERB)"),
            Some('%') => out.push('%'),
            Some(letter) => match values.next() {
                Some(value) => verb.write(letter, value, &mut out),
                None => _ = write!(out, "%!{letter}(MISSING)"),
            },
        }
    }
    let rest: Vec<_> = values.collect();
    if !rest.is_empty() {
        out.push_str("%!(EXTRA ");
        for (i, value) in rest.into_iter().enumerate() {
            if i > 0 {
                out.push_str(", ");
            }
            described(value, &mut out);
        }
        out.push(')');
    }
    Ok(text(&out))
}

fn number_after_dot(chars: &mut std::iter::Peekable<std::str::Chars<'_>>) -> Result<usize, String> {
    let mut n = 0;
    while let Some(digit) = chars.next_if(char::is_ascii_digit) {
        n = n * 10 + digit.to_digit(10).unwrap_or(0) as usize;
        if n > MAX_WIDTH {
            return Err(format!("a precision above {MAX_WIDTH} is too large"));
        }
    }
    Ok(n)
}

/// `string=abc`, as complaints of `printf` name a value.
fn described(value: &Value, out: &mut String) {
    match value {
        Value::Nil => out.push_str("<nil>"),
        value => {
            out.push_str(value.kind());
            out.push('=');
            value.write(out);
        }
    }
}

impl Verb {
    fn write(&self, letter: char, value: &Value, out: &mut String) {
        let mut body = String::new();
        let understood = match (letter, value) {
            ('v' | 's', Value::Text(text)) => self.cut(text, &mut body),
            ('v', Value::Int(int)) => self.int(*int, 10, false, &mut body),
            ('v', value) => {
                value.write(&mut body);
                true
            }
            ('s', Value::List(_) | Value::Map(_) | Value::Record(_)) => {
                value.write(&mut body);
                true
            }
            ('q', Value::Text(text)) => write!(body, "{text:?}").is_ok(),
            ('t', Value::Bool(is)) => write!(body, "{is}").is_ok(),
            ('d', Value::Int(int)) => self.int(*int, 10, false, &mut body),
            ('x', Value::Int(int)) => self.int(*int, 16, false, &mut body),
            ('X', Value::Int(int)) => self.int(*int, 16, true, &mut body),
            ('o', Value::Int(int)) => self.int(*int, 8, false, &mut body),
            ('b', Value::Int(int)) => self.int(*int, 2, false, &mut body),
            ('c', Value::Int(int)) => {
                body.push(u32::try_from(*int).ok().and_then(char::from_u32).unwrap_or('\u{fffd}'));
                true
            }
            ('x' | 'X', Value::Text(text)) => text.bytes().all(|byte| {
                if letter == 'x' { write!(body, "{byte:02x}") } else { write!(body, "{byte:02X}") }.is_ok()
            }),
            ('f' | 'F' | 'e' | 'E' | 'g' | 'G', Value::Float(float)) => self.float(letter, *float, &mut body),
            ('T', value) => {
                body.push_str(value.kind());
                true
            }
            _ => false,
        };
        if !understood {
            _ = write!(out, "%!{letter}(");
            described(value, out);
            out.push(')');
            return;
        }
        let missing = self.width.unwrap_or(0).saturating_sub(body.chars().count());
        let is_number = matches!(value, Value::Int(_) | Value::Float(_));
        if self.left {
            out.push_str(&body);
            out.extend(std::iter::repeat_n(' ', missing));
        } else if self.zero && is_number {
            let signed = usize::from(body.starts_with(['+', '-', ' ']));
            out.push_str(&body[..signed]);
            out.extend(std::iter::repeat_n('0', missing));
            out.push_str(&body[signed..]);
        } else {
            out.extend(std::iter::repeat_n(' ', missing));
            out.push_str(&body);
        }
    }

    fn cut(&self, text: &str, body: &mut String) -> bool {
        body.extend(text.chars().take(self.precision.unwrap_or(usize::MAX)));
        true
    }

    fn sign(&self, negative: bool, body: &mut String) {
        match (negative, self.plus, self.space) {
            (true, ..) => body.push('-'),
            (false, true, _) => body.push('+'),
            (false, false, true) => body.push(' '),
            _ => {}
        }
    }

    fn int(&self, int: i64, radix: u32, upper: bool, body: &mut String) -> bool {
        self.sign(int < 0, body);
        let n = int.unsigned_abs();
        let (prefix, digits) = match radix {
            2 => ("0b", format!("{n:b}")),
            8 => ("0", format!("{n:o}")),
            16 if upper => ("0X", format!("{n:X}")),
            16 => ("0x", format!("{n:x}")),
            _ => ("", n.to_string()),
        };
        if self.sharp {
            body.push_str(prefix);
        }
        body.extend(std::iter::repeat_n('0', self.precision.unwrap_or(0).saturating_sub(digits.len())));
        body.push_str(&digits);
        true
    }

    fn float(&self, letter: char, float: f64, body: &mut String) -> bool {
        self.sign(float.is_sign_negative(), body);
        let float = float.abs();
        match letter {
            'f' | 'F' => write!(body, "{float:.*}", self.precision.unwrap_or(6)).is_ok(),
            'e' | 'E' => {
                let scientific = format!("{float:.*e}", self.precision.unwrap_or(6));
                let (mantissa, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
                let exponent: i32 = exponent.parse().unwrap_or(0);
                let sign = if exponent < 0 { '-' } else { '+' };
                write!(body, "{mantissa}{letter}{sign}{:02}", exponent.abs()).is_ok()
            }
            _ => {
                body.push_str(&float_text(float, 21));
                true
            }
        }
    }
}

fn html(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '\0' => out.push('\u{fffd}'),
            '"' => out.push_str("&#34;"),
            '\'' => out.push_str("&#39;"),
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            c => out.push(c),
        }
    }
    out
}

fn js(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '\\' | '\'' | '"' => out.extend(['\\', c]),
            '<' | '>' | '&' | '=' => _ = write!(out, "\\u{:04X}", u32::from(c)),
            '\0'..='\u{1f}' => _ = write!(out, "\\u{:04X}", u32::from(c)),
            c => out.push(c),
        }
    }
    out
}

fn url_query(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => out.push(char::from(byte)),
            b' ' => out.push('+'),
            byte => _ = write!(out, "%{byte:02X}"),
        }
    }
    out
}

fn json(arguments: &[Value]) -> Result<Value, String> {
    let mut out = String::new();
    one(arguments)?.write_json(&mut out);
    Ok(text(&out))
}

/// Today, or days after it, as `2026-11-30`; arguments change nothing.
fn date(days: i32) -> Value {
    let today = jiff::ZonedDateTime::now().date();
    text(&today.saturating_add(jiff::Span::new().days(days)).to_string())
}

/// A property of a tool's parameters as a TypeScript type.
fn type_script_type(arguments: &[Value]) -> Result<Value, String> {
    fn of(value: &Value) -> String {
        let member = |name: &str| match value {
            Value::Record(record) => record.fields.iter().find(|f| f.name == name).map(|f| f.value.clone()),
            Value::Map(map) => map.get(&name.to_lowercase()).cloned(),
            _ => None,
        };
        match member("AnyOf") {
            Some(Value::List(list)) if !list.items.is_empty() => {
                return list.items.iter().map(of).collect::<Vec<_>>().join(" | ");
            }
            _ => {}
        }
        let one = |name: &str| match name {
            "string" => "string",
            "number" | "integer" => "number",
            "boolean" => "boolean",
            "array" => "any[]",
            "object" => "Record<string, any>",
            "null" => "null",
            _ => "any",
        };
        match member("Type") {
            Some(Value::Text(name)) => one(&name).to_owned(),
            Some(Value::List(list)) if !list.items.is_empty() => {
                let names = list.items.iter().map(|name| match name {
                    Value::Text(name) => one(name),
                    _ => "any",
                });
                names.collect::<Vec<_>>().join(" | ")
            }
            _ => "any".to_owned(),
        }
    }
    Ok(text(&of(one(arguments)?)))
}
