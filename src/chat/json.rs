//! JSON as the text its author wrote, and as Python would print it.
//!
//! Tool schemas and tool arguments reach the prompt, where key order, number text and spacing are tokens. Going through
//! `serde_json::Value` would lose integers beyond 64 bits; turning on its `arbitrary_precision` would change every
//! number in the program. So these values stay text from the client to the prompt and from the answer to the client.

use std::collections::HashMap;
use std::fmt::Write as _;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::Value;
use serde_json::value::RawValue;

/// One valid JSON value, kept as text. Equal when the texts are.
#[derive(Clone, Debug)]
pub struct RawJson(Box<RawValue>);

impl RawJson {
    /// # Errors
    /// When `text` is not exactly one JSON value.
    pub fn parse(text: &str) -> Result<RawJson, serde_json::Error> {
        serde_json::from_str(text).map(RawJson)
    }

    /// The text as it was given.
    pub fn text(&self) -> &str {
        self.0.get()
    }

    /// As a tree; integers beyond 64 bits become floats here.
    pub fn value(&self) -> Value {
        // The one thing RawValue admits and Value does not is a lone surrogate escape.
        serde_json::from_str(self.text()).unwrap_or_else(|_| {
            let mut python = String::new();
            self.write_python(&mut python);
            serde_json::from_str(&python).unwrap_or(Value::Null)
        })
    }

    pub fn is_object(&self) -> bool {
        self.text().trim_start().starts_with('{')
    }

    /// The characters, if this is a string.
    pub fn as_string(&self) -> Option<String> {
        let body = self.text().trim().strip_prefix('"')?.strip_suffix('"')?;
        Some(unescape(body))
    }

    /// Keys and values in the order of the text, if this is an object. Of duplicate keys the last value counts, at the
    /// first one's place (as in Python).
    pub fn entries(&self) -> Option<Vec<(String, RawJson)>> {
        serde_json::from_str::<Entries>(self.text()).ok().map(|entries| entries.0)
    }

    /// Appends what Python's `json.dumps(json.loads(text), ensure_ascii=False)` prints: `", "` and `": "`, non-ASCII kept,
    /// integers of any length kept, floats as `repr`. (Of duplicate keys Python keeps the last; here both stay.)
    pub fn write_python(&self, out: &mut String) {
        let text = self.text();
        let bytes = text.as_bytes();
        let mut at = 0;
        while at < bytes.len() {
            match bytes[at] {
                b'"' => {
                    let end = string_end(bytes, at);
                    write_string(out, &unescape(&text[at + 1..end - 1]));
                    at = end;
                }
                b'-' | b'0'..=b'9' => {
                    let end = at + bytes[at..].iter().take_while(|b| b"+-.eE0123456789".contains(b)).count();
                    write_number(out, &text[at..end]);
                    at = end;
                }
                b' ' | b'\t' | b'\n' | b'\r' => at += 1,
                b',' => {
                    out.push_str(", ");
                    at += 1;
                }
                b':' => {
                    out.push_str(": ");
                    at += 1;
                }
                // brackets, and the letters of true, false and null
                other => {
                    out.push(char::from(other));
                    at += 1;
                }
            }
        }
    }

    /// See [`RawJson::write_python`].
    pub fn python(&self) -> String {
        let mut out = String::with_capacity(self.text().len() + self.text().len() / 8);
        self.write_python(&mut out);
        out
    }
}

/// An object as a list: `serde_json::Map` would parse every value.
struct Entries(Vec<(String, RawJson)>);

impl<'de> Deserialize<'de> for Entries {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct InOrder;
        impl<'de> serde::de::Visitor<'de> for InOrder {
            type Value = Entries;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: serde::de::MapAccess<'de>>(self, mut map: A) -> Result<Entries, A::Error> {
                let mut entries: Vec<(String, RawJson)> = Vec::new();
                let mut places = HashMap::new();
                while let Some((key, value)) = map.next_entry::<String, RawJson>()? {
                    let place = *places.entry(key.clone()).or_insert(entries.len());
                    match entries.get_mut(place) {
                        Some(entry) => entry.1 = value,
                        None => entries.push((key, value)),
                    }
                }
                Ok(Entries(entries))
            }
        }
        deserializer.deserialize_map(InOrder)
    }
}

/// Index after the closing quote of the string that opens at `start`.
fn string_end(bytes: &[u8], start: usize) -> usize {
    let mut at = start + 1;
    while at < bytes.len() {
        match bytes[at] {
            b'\\' => at += 2,
            b'"' => return at + 1,
            _ => at += 1,
        }
    }
    bytes.len()
}

/// The characters a JSON string body stands for; a lone surrogate becomes U+FFFD.
fn unescape(body: &str) -> String {
    if !body.contains('\\') {
        return body.to_owned();
    }
    let mut out = String::with_capacity(body.len());
    let mut rest = body;
    while let Some(at) = rest.find('\\') {
        out.push_str(&rest[..at]);
        let escape = rest.as_bytes().get(at + 1).copied().unwrap_or(b'\\');
        let mut used = 2;
        match escape {
            b'b' => out.push('\u{8}'),
            b'f' => out.push('\u{c}'),
            b'n' => out.push('\n'),
            b'r' => out.push('\r'),
            b't' => out.push('\t'),
            b'u' => {
                let unit = |from: usize| rest.get(from..from + 4).and_then(|hex| u16::from_str_radix(hex, 16).ok());
                let first = unit(at + 2).unwrap_or(0xFFFD);
                used = 6;
                let second = if rest[at + 6..].starts_with("\\u") { unit(at + 8) } else { None };
                match char::decode_utf16([first].into_iter().chain(second)).next() {
                    Some(Ok(c)) => {
                        out.push(c);
                        if c.len_utf16() == 2 {
                            used = 12;
                        }
                    }
                    _ => out.push(char::REPLACEMENT_CHARACTER),
                }
            }
            other => out.push(char::from(other)),
        }
        rest = rest.get(at + used..).unwrap_or("");
    }
    out.push_str(rest);
    out
}

/// Appends `text` as a JSON string with only the escapes that JSON demands (Python's `ensure_ascii=False`).
pub(crate) fn write_string(out: &mut String, text: &str) {
    out.push('"');
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\u{8}' => out.push_str("\\b"),
            '\u{c}' => out.push_str("\\f"),
            c if c < ' ' => {
                let _ = write!(out, "\\u{:04x}", u32::from(c));
            }
            c => out.push(c),
        }
    }
    out.push('"');
}

/// Appends a JSON number as Python prints it after reading it.
fn write_number(out: &mut String, text: &str) {
    if !text.contains(['.', 'e', 'E']) {
        out.push_str(if text == "-0" { "0" } else { text });
        return;
    }
    let value: f64 = text.parse().unwrap_or(f64::NAN);
    if value.is_infinite() {
        out.push_str(if value > 0.0 { "Infinity" } else { "-Infinity" });
        return;
    }
    // Rust's `{:e}` gives the shortest digits that read back the same, as repr does: `d.ddde±x`.
    let shortest = format!("{value:e}");
    let (mantissa, exponent) = shortest.split_once('e').unwrap_or((&shortest, "0"));
    let exponent: i32 = exponent.parse().unwrap_or(0);
    let (sign, mantissa) = match mantissa.strip_prefix('-') {
        Some(rest) => ("-", rest),
        None => ("", mantissa),
    };
    let digits: String = mantissa.chars().filter(|c| *c != '.').collect();
    out.push_str(sign);
    // CPython's float_repr_style 'short': exponent form outside 1e-4 ..= 1e16.
    if (-4..16).contains(&exponent) {
        if exponent < 0 {
            out.push_str("0.");
            out.extend(std::iter::repeat_n('0', exponent.unsigned_abs() as usize - 1));
            out.push_str(&digits);
        } else {
            let point = exponent as usize + 1;
            if digits.len() > point {
                let _ = write!(out, "{}.{}", &digits[..point], &digits[point..]);
            } else {
                out.push_str(&digits);
                out.extend(std::iter::repeat_n('0', point - digits.len()));
                out.push_str(".0");
            }
        }
    } else {
        out.push_str(&digits[..1]);
        if digits.len() > 1 {
            let _ = write!(out, ".{}", &digits[1..]);
        }
        let _ = write!(out, "e{}{:02}", if exponent < 0 { '-' } else { '+' }, exponent.unsigned_abs());
    }
}

impl PartialEq for RawJson {
    fn eq(&self, other: &Self) -> bool {
        self.text() == other.text()
    }
}

impl From<Value> for RawJson {
    fn from(value: Value) -> Self {
        RawJson(serde_json::value::to_raw_value(&value).expect("a Value has string keys and finite numbers only"))
    }
}

impl From<Box<RawValue>> for RawJson {
    fn from(raw: Box<RawValue>) -> Self {
        RawJson(raw)
    }
}

impl Serialize for RawJson {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.0.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for RawJson {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Box::<RawValue>::deserialize(deserializer).map(RawJson)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Right-hand sides printed by CPython 3.11: `json.dumps(json.loads(left), ensure_ascii=False)`.
    #[test]
    fn prints_as_python_does() {
        for (text, python) in [
            (r#"{"a":1,"b":[true,null,false]}"#, r#"{"a": 1, "b": [true, null, false]}"#),
            ("[ ]", "[]"),
            ("{ }", "{}"),
            ("[1.0,1.50,-0.0,-0]", "[1.0, 1.5, -0.0, 0]"),
            ("[1e5,1E+15,1e16,1.5e300]", "[100000.0, 1000000000000000.0, 1e+16, 1.5e+300]"),
            ("[0.0001,0.00001,1e-7,123456789.125]", "[0.0001, 1e-05, 1e-07, 123456789.125]"),
            ("[1e400,-1e400]", "[Infinity, -Infinity]"),
            ("123456789012345678901234567890", "123456789012345678901234567890"),
            ("[9007199254740993.0, 5e-324]", "[9007199254740992.0, 5e-324]"),
            ("[0.1,1e22,123456789012345680.0]", "[0.1, 1e+22, 1.2345678901234568e+17]"),
            ("1.7976931348623157e308", "1.7976931348623157e+308"),
            (r#""\u00e9\/\u0007\ud83d\ude00\"\\ü""#, r#""é/\u0007😀\"\\ü""#),
            (r#""\b\f\n\r\t\u007f""#, "\"\\b\\f\\n\\r\\t\u{7f}\""),
            (r#"{"a:,": "b:, c"}"#, r#"{"a:,": "b:, c"}"#),
        ] {
            assert_eq!(RawJson::parse(text).unwrap().python(), python, "{text}");
        }
    }

    #[test]
    fn lone_surrogates_become_replacement_characters() {
        let json = RawJson::parse(r#""a\ud800b\ude00\ud83d\u0041""#).unwrap();
        assert_eq!(json.python(), "\"a\u{fffd}b\u{fffd}\u{fffd}A\"");
        assert_eq!(json.value(), Value::String("a\u{fffd}b\u{fffd}\u{fffd}A".into()));
    }

    #[test]
    fn survives_serde_with_its_text() {
        let text = r#"{"big":123456789012345678901234567890,"f":1.50}"#;
        let json: RawJson = serde_json::from_str(text).unwrap();
        assert_eq!(serde_json::to_string(&json).unwrap(), text);
        assert!(json.is_object());
        assert_eq!(json, RawJson::parse(text).unwrap());
        assert_eq!(RawJson::from(serde_json::json!({"z": 1, "a": 2})).text(), r#"{"z":1,"a":2}"#);
    }
}
