//! Go's reading of JSON, on top of serde: [`first_value`] parses, [`Go`] fills structs from the value.

use std::borrow::Cow;
use std::fmt;

use serde::de::{
    self, Deserialize, DeserializeSeed, Deserializer, Expected, IntoDeserializer, MapAccess, SeqAccess, Unexpected,
    Visitor,
};
use serde_json::{Map, Value};

use crate::api::Error;

/// The first JSON value in `bytes`; what follows it is not looked at. Invalid UTF-8 and halves of surrogate pairs become
/// U+FFFD instead of errors: JavaScript clients send the latter when they cut a text in the middle of an emoji.
pub(super) fn first_value(bytes: &[u8]) -> Result<Value, Error> {
    let text = String::from_utf8_lossy(bytes);
    if text.trim_ascii().is_empty() {
        return Err(Error::MissingBody);
    }
    parse(&text).or_else(|error| match mend_surrogates(&text) {
        Cow::Owned(mended) => parse(&mended).map_err(|e| Error::Json(syntax_text(&mended, &e))),
        Cow::Borrowed(_) => Err(Error::Json(syntax_text(&text, &error))),
    })
}

fn parse(text: &str) -> Result<Value, serde_json::Error> {
    Value::deserialize(&mut serde_json::Deserializer::from_str(text))
}

/// A syntax error in Go's words.
fn syntax_text(text: &str, error: &serde_json::Error) -> String {
    if error.is_eof() {
        return "unexpected EOF".into();
    }
    let message = error.to_string();
    let place = [
        ("expected value", "looking for beginning of value"),
        ("expected ident", "in literal"),
        ("key must be a string", "looking for beginning of object key string"),
        ("trailing comma", "looking for beginning of value"),
        ("expected `:`", "after object key"),
        ("expected `,` or `]`", "after array element"),
        ("expected `,` or `}`", "after object key:value pair"),
        ("invalid escape", "in string escape code"),
        ("control character", "in string literal"),
        ("invalid number", "in numeric literal"),
    ]
    .iter()
    .find_map(|(ours, go)| message.starts_with(ours).then_some(go));
    let line = text.split('\n').nth(error.line().saturating_sub(1)).unwrap_or("");
    // Columns count bytes.
    let at = line.as_bytes().get(error.column().saturating_sub(1)).map(|b| *b as char);
    match (place, at) {
        (Some(place), Some(at)) => format!("invalid character {at:?} {place}"),
        _ => message,
    }
}

/// Replaces `\uD800`-like escapes that are not half of a pair.
fn mend_surrogates(text: &str) -> Cow<'_, str> {
    let code = |at: usize| -> Option<u16> {
        let escape = text.as_bytes().get(at..at + 6)?;
        let hex = escape.strip_prefix(b"\\u")?;
        hex.iter().try_fold(0u16, |n, b| Some(n * 16 + (*b as char).to_digit(16)? as u16))
    };
    let mut mended = String::new();
    let (mut kept, mut at) = (0, 0);
    while let Some(next) = text.get(at..).and_then(|rest| rest.find('\\')) {
        at += next;
        match code(at) {
            Some(0xd800..=0xdbff) if matches!(code(at + 6), Some(0xdc00..=0xdfff)) => at += 12,
            Some(0xd800..=0xdfff) => {
                mended.push_str(&text[kept..at]);
                mended.push_str("\\ufffd");
                at += 6;
                kept = at;
            }
            Some(_) => at += 6,
            // The backslash and the character it escapes.
            None => at += 1 + text[at + 1..].chars().next().map_or(0, char::len_utf8),
        }
    }
    if kept == 0 {
        return Cow::Borrowed(text);
    }
    mended.push_str(&text[kept..]);
    Cow::Owned(mended)
}

/// A value on its way into a Rust type.
pub(super) struct Go {
    value: Value,
}

impl Go {
    pub(super) fn new(value: Value) -> Go {
        Go { value }
    }

    fn mismatch(&self, expected: &str) -> TypeError {
        let found = match &self.value {
            Value::Null => "null",
            Value::Bool(_) => "bool",
            Value::Number(_) => "number",
            Value::String(_) => "string",
            Value::Array(_) => "array",
            Value::Object(_) => "object",
        };
        TypeError::Mismatch { found: found.into(), expected: expected.into(), inside: None }
    }
}

/// What a list or a table is called until the field is known that it belongs to.
const LIST: &str = "array";
const TABLE: &str = "map";

/// Go's type of the lists and tables in requests, by the field's name.
fn container(field: &str) -> Option<&'static str> {
    Some(match field {
        "messages" => "[]api.Message",
        "tools" => "api.Tools",
        "tool_calls" => "[]api.ToolCall",
        "images" => "[]api.ImageData",
        "context" => "[]int",
        "options" | "parameters" | "info" => "map[string]interface {}",
        "files" | "adapters" | "draft_files" => "map[string]string",
        _ => return None,
    })
}

/// A value of the wrong type, and where.
#[derive(Debug)]
pub(super) enum TypeError {
    Mismatch {
        found: String,
        expected: String,
        /// The outermost struct, and the fields that lead to the value.
        inside: Option<(&'static str, String)>,
    },
    Other(String),
}

impl TypeError {
    fn in_field(self, name: &'static str, field: &str) -> TypeError {
        match self {
            TypeError::Mismatch { found, expected, inside: None } => {
                let expected = match container(field) {
                    Some(go) if expected == LIST || expected == TABLE => go.into(),
                    _ => expected,
                };
                TypeError::Mismatch { found, expected, inside: Some((name, field.into())) }
            }
            TypeError::Mismatch { found, expected, inside: Some((_, path)) } => {
                TypeError::Mismatch { found, expected, inside: Some((name, format!("{field}.{path}"))) }
            }
            TypeError::Other(text) => TypeError::Other(text),
        }
    }
}

impl fmt::Display for TypeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            TypeError::Mismatch { found, expected, inside: Some((name, path)) } => {
                write!(f, "json: cannot unmarshal {found} into Go struct field {name}.{path} of type {expected}")
            }
            TypeError::Mismatch { found, expected, inside: None } => {
                write!(f, "json: cannot unmarshal {found} into Go value of type {expected}")
            }
            TypeError::Other(text) => f.write_str(text),
        }
    }
}

impl std::error::Error for TypeError {}

impl de::Error for TypeError {
    fn custom<T: fmt::Display>(text: T) -> Self {
        TypeError::Other(text.to_string())
    }

    fn invalid_type(found: Unexpected<'_>, expected: &dyn Expected) -> Self {
        TypeError::Other(format!("json: cannot unmarshal {found} into {expected}"))
    }
}

impl From<serde_json::Error> for TypeError {
    fn from(error: serde_json::Error) -> Self {
        TypeError::Other(error.to_string())
    }
}

/// Numbers: null is zero, a number that does not fit is an error.
macro_rules! number {
    ($($method:ident $visit:ident $get:ident $type:ty, $go:literal;)*) => {$(
        fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, TypeError> {
            match &self.value {
                Value::Null => visitor.$visit(0 as $type),
                Value::Number(n) => match n.$get() {
                    Some(n) => visitor.$visit(n as $type),
                    None => Err(TypeError::Mismatch {
                        found: format!("number {n}"), expected: $go.into(), inside: None,
                    }),
                },
                _ => Err(self.mismatch($go)),
            }
        }
    )*};
}

/// Types that Go's rules say nothing about are left to serde_json.
macro_rules! as_is {
    ($($method:ident)*) => {$(
        fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, TypeError> {
            Ok(self.value.$method(visitor)?)
        }
    )*};
}

impl<'de> Deserializer<'de> for Go {
    type Error = TypeError;

    number! {
        deserialize_i8 visit_i64 as_i64 i64, "int8";
        deserialize_i16 visit_i64 as_i64 i64, "int16";
        deserialize_i32 visit_i64 as_i64 i64, "int32";
        deserialize_i64 visit_i64 as_i64 i64, "int";
        deserialize_u8 visit_u64 as_u64 u64, "uint8";
        deserialize_u16 visit_u64 as_u64 u64, "uint16";
        deserialize_u32 visit_u64 as_u64 u64, "uint32";
        deserialize_u64 visit_u64 as_u64 u64, "uint";
        deserialize_f32 visit_f64 as_f64 f64, "float32";
        deserialize_f64 visit_f64 as_f64 f64, "float64";
    }

    as_is! { deserialize_any deserialize_char deserialize_bytes deserialize_byte_buf deserialize_unit deserialize_identifier }

    fn deserialize_bool<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, TypeError> {
        match self.value {
            Value::Null => visitor.visit_bool(false),
            Value::Bool(b) => visitor.visit_bool(b),
            _ => Err(self.mismatch("bool")),
        }
    }

    fn deserialize_str<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, TypeError> {
        self.deserialize_string(visitor)
    }

    fn deserialize_string<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, TypeError> {
        match self.value {
            Value::Null => visitor.visit_string(String::new()),
            Value::String(s) => visitor.visit_string(s),
            _ => Err(self.mismatch("string")),
        }
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, TypeError> {
        match self.value {
            Value::Null => visitor.visit_none(),
            _ => visitor.visit_some(self),
        }
    }

    fn deserialize_unit_struct<V: Visitor<'de>>(self, name: &'static str, visitor: V) -> Result<V::Value, TypeError> {
        Ok(self.value.deserialize_unit_struct(name, visitor)?)
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        name: &'static str,
        visitor: V,
    ) -> Result<V::Value, TypeError> {
        // serde_json's own tricks (`RawValue`) go through newtypes with names no Rust type can have.
        if name.starts_with('$') {
            return Ok(self.value.deserialize_newtype_struct(name, visitor)?);
        }
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, TypeError> {
        match self.value {
            Value::Null => visitor.visit_seq(Elements(Vec::new().into_iter())),
            Value::Array(values) => visitor.visit_seq(Elements(values.into_iter())),
            _ => Err(self.mismatch(LIST)),
        }
    }

    fn deserialize_tuple<V: Visitor<'de>>(self, _: usize, visitor: V) -> Result<V::Value, TypeError> {
        self.deserialize_seq(visitor)
    }

    fn deserialize_tuple_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        _: usize,
        visitor: V,
    ) -> Result<V::Value, TypeError> {
        self.deserialize_seq(visitor)
    }

    fn deserialize_map<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, TypeError> {
        match self.value {
            Value::Null => visitor.visit_map(Fields::of_map(Map::new())),
            Value::Object(map) => visitor.visit_map(Fields::of_map(map)),
            _ => Err(self.mismatch(TABLE)),
        }
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        name: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, TypeError> {
        match self.value {
            Value::Null => visitor.visit_map(Fields::of_map(Map::new())),
            Value::Object(map) => visitor.visit_map(Fields::of_struct(name, fields, map)),
            _ => Err(self.mismatch(&format!("api.{name}"))),
        }
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        name: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, TypeError> {
        Ok(self.value.deserialize_enum(name, variants, visitor)?)
    }

    fn deserialize_ignored_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, TypeError> {
        visitor.visit_unit()
    }
}

struct Elements(std::vec::IntoIter<Value>);

impl<'de> SeqAccess<'de> for Elements {
    type Error = TypeError;

    fn next_element_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<Option<T::Value>, TypeError> {
        self.0.next().map(|value| seed.deserialize(Go { value })).transpose()
    }

    fn size_hint(&self) -> Option<usize> {
        Some(self.0.len())
    }
}

/// The fields of a struct or the entries of a map.
struct Fields {
    /// The struct's name, for errors; `None` = a map.
    name: Option<&'static str>,
    entries: std::vec::IntoIter<(String, Value)>,
    current: (String, Value),
}

impl Fields {
    fn of_map(map: Map<String, Value>) -> Fields {
        Fields { name: None, entries: map.into_iter().collect::<Vec<_>>().into_iter(), current: Default::default() }
    }

    /// Keeps what the struct knows, under the struct's own spelling: an exact match first, otherwise in any case; of several
    /// the last one counts. Nulls stay away, so that fields have their defaults.
    fn of_struct(name: &'static str, fields: &'static [&'static str], map: Map<String, Value>) -> Fields {
        let mut known: Vec<(String, Value)> = Vec::new();
        for (key, value) in map {
            let field =
                fields.iter().find(|f| **f == key).or_else(|| fields.iter().find(|f| f.eq_ignore_ascii_case(&key)));
            let Some(field) = field else { continue };
            if value.is_null() {
                continue;
            }
            match known.iter_mut().find(|(known, _)| known == field) {
                Some(entry) => entry.1 = value,
                None => known.push((field.to_string(), value)),
            }
        }
        Fields { name: Some(name), entries: known.into_iter(), current: Default::default() }
    }
}

impl<'de> MapAccess<'de> for Fields {
    type Error = TypeError;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, TypeError> {
        let Some(entry) = self.entries.next() else {
            return Ok(None);
        };
        self.current = entry;
        seed.deserialize(self.current.0.as_str().into_deserializer()).map(Some)
    }

    fn next_value_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<S::Value, TypeError> {
        let (key, value) = std::mem::take(&mut self.current);
        seed.deserialize(Go { value }).map_err(|error| match self.name {
            Some(name) => error.in_field(name, &key),
            None => error,
        })
    }

    fn size_hint(&self) -> Option<usize> {
        Some(self.entries.len())
    }
}
