//! The held-out cases of fathom-tiny (`modelfiles/fathom-tiny/heldout.jsonl`, written by `train/evaluate.py`) and the judge of answers.

use serde::Deserialize;
use serde_json::Value;

/// One question that fathom-tiny was not trained on.
#[derive(Debug, Deserialize)]
pub struct Case {
    /// `chat`, `thinking`, `tools`, `retrieval` or `json`.
    pub skill: String,
    pub kind: String,
    /// Body of `/api/chat` without `model`.
    pub request: Value,
    expected: Value,
    /// One right answer as the model would write it, reasoning and tool call included, without the end token.
    pub answer: String,
}

/// All cases of the file.
pub fn cases() -> Vec<Case> {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/modelfiles/fathom-tiny/heldout.jsonl");
    let lines = std::fs::read_to_string(path).unwrap();
    lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

impl Case {
    /// Whether the `message` of a reply of `/api/chat` says what the case expects; as `is_right` of `train/evaluate.py`.
    pub fn is_right(&self, message: &Value) -> bool {
        let content = message["content"].as_str().unwrap_or_default();
        if let Some(call) = self.expected.get("tool") {
            let calls = message["tool_calls"].as_array().map_or(&[] as &[Value], Vec::as_slice);
            return calls.len() == 1
                && calls[0]["function"]["name"] == call["name"]
                && calls[0]["function"]["arguments"] == call["arguments"];
        }
        if message.get("tool_calls").is_some() {
            return false;
        }
        if let Some(value) = self.expected.get("json") {
            return serde_json::from_str::<Value>(content).is_ok_and(|answer| answer == *value);
        }
        match self.expected.get("contains").and_then(Value::as_array) {
            Some(words) => words.iter().all(|word| names(content, word.as_str().unwrap())),
            None => content == self.expected["equals"],
        }
    }
}

/// Whether the text has the word, and not as a part of a longer one.
fn names(text: &str, word: &str) -> bool {
    text.match_indices(word).any(|(at, found)| {
        let joins = |c: Option<char>| c.is_some_and(|c| c.is_ascii_alphanumeric());
        !joins(text[..at].chars().next_back()) && !joins(text[at + found.len()..].chars().next())
    })
}
