//! What templates compute with: the values of Go that reach one, how Go prints them, and how it writes them as JSON.

use std::fmt::Write;
use std::rc::Rc;

use serde_json::Value as Json;

/// A value. Clones are cheap.
#[derive(Clone, Debug)]
pub(super) enum Value {
    Nil,
    Bool(bool),
    Int(i64),
    Float(f64),
    Text(Rc<str>),
    List(Rc<List>),
    Map(Rc<Map>),
    Record(Rc<Record>),
}

/// A slice.
#[derive(Debug, Default)]
pub(super) struct List {
    pub(super) items: Vec<Value>,
    /// Printed as JSON: the type has a `String` method that does so.
    pub(super) as_json: bool,
}

/// A map; JSON has its entries in this order, `range` goes by key.
#[derive(Debug, Default)]
pub(super) struct Map {
    pub(super) entries: Vec<(Rc<str>, Value)>,
    pub(super) as_json: bool,
}

/// A struct.
#[derive(Debug)]
pub(super) struct Record {
    pub(super) fields: Vec<Field>,
    pub(super) as_json: bool,
}

#[derive(Debug)]
pub(super) struct Field {
    pub(super) name: &'static str,
    /// Empty: not in JSON.
    pub(super) json: &'static str,
    /// Not in JSON when empty.
    pub(super) optional: bool,
    pub(super) value: Value,
}

impl From<&str> for Value {
    fn from(text: &str) -> Value {
        Value::Text(text.into())
    }
}

impl Value {
    pub(super) fn list(items: Vec<Value>) -> Value {
        Value::List(Rc::new(List { items, as_json: false }))
    }

    /// A JSON value as Go's decoder gives it out: objects become maps, whose keys JSON has in order.
    pub(super) fn of_json(json: &Json) -> Value {
        match json {
            Json::Null => Value::Nil,
            Json::Bool(is) => Value::Bool(*is),
            // Go has float64 for every number; an integer that is kept whole prints the same and loses nothing.
            Json::Number(number) => {
                number.as_i64().map_or_else(|| Value::Float(number.as_f64().unwrap_or(f64::NAN)), Value::Int)
            }
            Json::String(text) => text.as_str().into(),
            Json::Array(items) => Value::list(items.iter().map(Value::of_json).collect()),
            Json::Object(entries) => {
                let mut entries: Vec<_> = entries.iter().map(|(k, v)| (k.as_str().into(), Value::of_json(v))).collect();
                entries.sort_by(|(a, _): &(Rc<str>, _), (b, _)| a.cmp(b));
                Value::Map(Rc::new(Map { entries, as_json: false }))
            }
        }
    }

    /// Go's `IsTrue`.
    pub(super) fn truth(&self) -> bool {
        match self {
            Value::Nil => false,
            Value::Bool(is) => *is,
            Value::Int(int) => *int != 0,
            Value::Float(float) => *float != 0.0,
            Value::Text(text) => !text.is_empty(),
            Value::List(list) => !list.items.is_empty(),
            Value::Map(map) => !map.entries.is_empty(),
            Value::Record(_) => true,
        }
    }

    /// What error texts call its type.
    pub(super) fn kind(&self) -> &'static str {
        match self {
            Value::Nil => "nil",
            Value::Bool(_) => "bool",
            Value::Int(_) => "int",
            Value::Float(_) => "float64",
            Value::Text(_) => "string",
            Value::List(_) => "slice",
            Value::Map(_) => "map",
            Value::Record(_) => "struct",
        }
    }

    /// As `{{ . }}` prints it.
    pub(super) fn print(&self, out: &mut String) {
        match self {
            Value::Nil => out.push_str("<no value>"),
            value => value.write(out),
        }
    }

    /// As `%v` prints it.
    pub(super) fn write(&self, out: &mut String) {
        let nested = |value: &Value, out: &mut String| match value {
            Value::Nil => out.push_str("<nil>"),
            value => value.write(out),
        };
        let sequence = |values: &mut dyn Iterator<Item = &Value>, out: &mut String| {
            for (i, value) in values.enumerate() {
                if i > 0 {
                    out.push(' ');
                }
                nested(value, out);
            }
        };
        match self {
            Value::Nil => out.push_str("<nil>"),
            Value::Bool(is) => _ = write!(out, "{is}"),
            Value::Int(int) => _ = write!(out, "{int}"),
            Value::Float(float) => out.push_str(&float_text(*float, 21)),
            Value::Text(text) => out.push_str(text),
            Value::List(list) if list.as_json => self.write_json(out),
            Value::Map(map) if map.as_json => self.write_json(out),
            Value::Record(record) if record.as_json => self.write_json(out),
            Value::List(list) => {
                out.push('[');
                sequence(&mut list.items.iter(), out);
                out.push(']');
            }
            Value::Map(map) => {
                out.push_str("map[");
                for (i, (key, value)) in map.sorted().into_iter().enumerate() {
                    if i > 0 {
                        out.push(' ');
                    }
                    out.push_str(&key);
                    out.push(':');
                    nested(&value, out);
                }
                out.push(']');
            }
            Value::Record(record) => {
                out.push('{');
                sequence(&mut record.fields.iter().map(|field| &field.value), out);
                out.push('}');
            }
        }
    }

    /// As `json.Marshal` writes it: compact, with `<`, `>` and `&` escaped.
    pub(super) fn write_json(&self, out: &mut String) {
        match self {
            Value::Nil => out.push_str("null"),
            Value::Bool(is) => _ = write!(out, "{is}"),
            Value::Int(int) => _ = write!(out, "{int}"),
            Value::Float(float) if float.is_finite() => out.push_str(&float_text(*float, 21)),
            Value::Float(_) => out.push_str("null"),
            Value::Text(text) => json_text(text, out),
            Value::List(list) => {
                out.push('[');
                for (i, item) in list.items.iter().enumerate() {
                    if i > 0 {
                        out.push(',');
                    }
                    item.write_json(out);
                }
                out.push(']');
            }
            Value::Map(map) => json_object(map.entries.iter().map(|(key, value)| (&**key, value)), out),
            Value::Record(record) => {
                let kept = record.fields.iter().filter(|field| {
                    let left_out = field.optional && !matches!(field.value, Value::Record(_)) && !field.value.truth();
                    !field.json.is_empty() && !left_out
                });
                json_object(kept.map(|field| (field.json, &field.value)), out);
            }
        }
    }
}

impl Map {
    pub(super) fn get(&self, key: &str) -> Option<&Value> {
        self.entries.iter().find(|(known, _)| &**known == key).map(|(_, value)| value)
    }

    pub(super) fn sorted(&self) -> Vec<(Rc<str>, Value)> {
        let mut entries = self.entries.clone();
        entries.sort_by(|(a, _), (b, _)| a.cmp(b));
        entries
    }
}

fn json_object<'a>(entries: impl Iterator<Item = (&'a str, &'a Value)>, out: &mut String) {
    out.push('{');
    for (i, (key, value)) in entries.enumerate() {
        if i > 0 {
            out.push(',');
        }
        json_text(key, out);
        out.push(':');
        value.write_json(out);
    }
    out.push('}');
}

fn json_text(text: &str, out: &mut String) {
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
            '\0'..='\u{1f}' | '<' | '>' | '&' | '\u{2028}' | '\u{2029}' => _ = write!(out, "\\u{:04x}", u32::from(c)),
            c => out.push(c),
        }
    }
    out.push('"');
}

/// The shortest decimal that reads back as this number, with an exponent below 1e-4 (in JSON 1e-6, which no template shows) and from
/// `10^digits` on.
pub(super) fn float_text(float: f64, digits: i32) -> String {
    if float.is_nan() {
        return "NaN".into();
    }
    if float.is_infinite() {
        return if float > 0.0 { "+Inf" } else { "-Inf" }.into();
    }
    let scientific = format!("{float:e}");
    let (mantissa, exponent) = scientific.split_once('e').expect("every finite number is written with an exponent");
    let exponent: i32 = exponent.parse().expect("it is a number");
    if float != 0.0 && (exponent < -4 || exponent >= digits) {
        let sign = if exponent < 0 { '-' } else { '+' };
        return format!("{mantissa}e{sign}{:02}", exponent.abs());
    }
    format!("{float}")
}
