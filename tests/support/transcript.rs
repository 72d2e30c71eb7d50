//! What went over the wire, in a form that two runs agree on: moments, durations and random ids are replaced by their kind.

use std::fmt::Write as _;

use serde_json::{Value, json};

use super::http::Reply;

/// The answer as status, content type and lines.
pub fn of(reply: &Reply) -> String {
    let mut text = format!("{} {}\n", reply.status, reply.header("content-type").unwrap_or("-"));
    let body = reply.text();
    match body.lines().map(serde_json::from_str::<Value>).collect::<Result<Vec<_>, _>>() {
        Ok(values) => {
            for mut value in values {
                normalise(&mut value);
                writeln!(text, "{value}").unwrap();
            }
        }
        Err(_) => text.push_str(&body),
    }
    text
}

/// Replaces what differs from run to run, after checking that it has its form.
pub fn normalise(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            for (key, value) in fields.iter_mut() {
                match key.as_str() {
                    "created_at" | "modified_at" | "expires_at" => {
                        let moment = value.as_str().unwrap_or_default();
                        moment.parse::<jiff::Timestamp>().unwrap_or_else(|_| panic!("no moment: `{moment}`"));
                        *value = json!("<time>");
                    }
                    key if key.ends_with("_duration") => {
                        assert!(value.as_u64().is_some_and(|n| n > 0), "`{key}` is {value}");
                        *value = json!("<ns>");
                    }
                    "id" if value.as_str().is_some_and(|id| id.starts_with("call_")) => *value = json!("<id>"),
                    _ => normalise(value),
                }
            }
        }
        Value::Array(values) => values.iter_mut().for_each(normalise),
        _ => {}
    }
}
