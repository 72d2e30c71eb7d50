//! Bodies as clients send them, and bodies that nobody should send.

use std::collections::BTreeMap;

use proptest::prelude::*;
use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Map, Value, json};

use super::*;

#[derive(Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
struct Inner {
    content: String,
    count: i64,
}

#[derive(Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
struct SomeRequest {
    model: String,
    stream: Option<bool>,
    keep_alive: Option<Value>,
    number: i32,
    ratio: f32,
    flag: bool,
    messages: Vec<Inner>,
    options: Map<String, Value>,
    files: BTreeMap<String, String>,
    inner: Option<Inner>,
}

fn read(text: &str) -> SomeRequest {
    decode(text.as_bytes()).unwrap_or_else(|e| panic!("{text}: {e}"))
}

fn refused(text: &str) -> String {
    decode::<SomeRequest>(text.as_bytes()).expect_err(text).to_string()
}

#[test]
fn names_match_in_any_case_inside_structs_only() {
    let request = read(
        r#"{"MODEL":"m","Keep_Alive":"5m","Messages":[{"CONTENT":"a"}],"options":{"Temperature":1},"files":{"A":"b"},"unknown":[1]}"#,
    );
    assert_eq!(request.model, "m");
    assert_eq!(request.keep_alive, Some(json!("5m")));
    assert_eq!(request.messages[0].content, "a");
    assert_eq!(Value::from(request.options), json!({"Temperature": 1}));
    assert_eq!(request.files["A"], "b");
    // Of several spellings the last one counts.
    assert_eq!(read(r#"{"model":"a","Model":"b"}"#).model, "b");
    assert_eq!(read(r#"{"Model":"b","model":"a"}"#).model, "a");
}

#[test]
fn null_means_the_default_everywhere() {
    let nulls = r#"{"model":null,"stream":null,"number":null,"ratio":null,"flag":null,"messages":null,"options":null,
                    "files":null,"inner":null}"#;
    assert_eq!(read(nulls), SomeRequest::default());
    assert_eq!(read("null"), SomeRequest::default());
    assert_eq!(read("{}"), SomeRequest::default());
    assert_eq!(read(r#"{"messages":[null,{"content":null}]}"#).messages, [Inner::default(), Inner::default()]);
}

#[test]
fn only_the_first_value_counts() {
    for rest in ["", " ", "}", "{\"model\":\"b\"}", "garbage", "\u{0}"] {
        assert_eq!(read(&format!("\n {{\"model\":\"a\"}}{rest}")).model, "a", "{rest:?}");
    }
}

#[test]
fn an_empty_body_is_missing() {
    for text in ["", " ", "\r\n\t "] {
        assert_eq!(refused(text), "missing request body", "{text:?}");
    }
}

#[test]
fn bad_json_is_refused_in_gos_words() {
    for (text, expected) in [
        ("{", "unexpected EOF"),
        ("{\"model\":\"a", "unexpected EOF"),
        ("[1,", "unexpected EOF"),
        ("x", "invalid character 'x' looking for beginning of value"),
        ("{\"model\":x}", "invalid character 'x' looking for beginning of value"),
        ("{model:1}", "invalid character 'm' looking for beginning of object key string"),
        ("{\"a\" 1}", "invalid character '1' after object key"),
        ("{\"a\":1 \"b\":2}", "invalid character '\"' after object key:value pair"),
        ("[1 2]", "json: cannot unmarshal array into Go value of type api.SomeRequest"),
        ("[1]", "json: cannot unmarshal array into Go value of type api.SomeRequest"),
        ("\"text\"", "json: cannot unmarshal string into Go value of type api.SomeRequest"),
        ("{\"model\":1}", "json: cannot unmarshal number into Go struct field SomeRequest.model of type string"),
        ("{\"stream\":\"yes\"}", "json: cannot unmarshal string into Go struct field SomeRequest.stream of type bool"),
        ("{\"number\":1.5}", "json: cannot unmarshal number 1.5 into Go struct field SomeRequest.number of type int32"),
        (
            "{\"messages\":[{\"content\":[]}]}",
            "json: cannot unmarshal array into Go struct field SomeRequest.messages.content of type string",
        ),
        (
            "{\"messages\":{}}",
            "json: cannot unmarshal object into Go struct field SomeRequest.messages of type []api.Message",
        ),
        (
            "{\"options\":[]}",
            "json: cannot unmarshal array into Go struct field SomeRequest.options of type map[string]interface {}",
        ),
    ] {
        // The whole array is syntactically wrong before its type is.
        let expected = if text == "[1 2]" { "invalid character '2' after array element" } else { expected };
        assert_eq!(refused(text), expected, "{text}");
    }
    let error = decode::<SomeRequest>(b"{\"number\":3000000000}").expect_err("too large").to_string();
    assert!(!error.is_empty());
}

/// JavaScript clients cut texts in the middle of an emoji, and bytes get lost on the way.
#[test]
fn halves_of_characters_become_replacements() {
    let content = |text: &str| read(&format!("{{\"model\":\"{text}\"}}")).model;
    assert_eq!(content("a\\ud83d"), "a\u{fffd}");
    assert_eq!(content("\\ude00b"), "\u{fffd}b");
    assert_eq!(content("\\ud83d\\ude00"), "😀");
    assert_eq!(content("\\ud83d\\ud83d\\ude00\\ud83d"), "\u{fffd}😀\u{fffd}");
    assert_eq!(content("\\\\ud83d \\ud83d"), "\\ud83d \u{fffd}");
    let bytes = b"{\"model\":\"a\xffb\"}";
    assert_eq!(decode::<SomeRequest>(bytes).expect("mended").model, "a\u{fffd}b");
}

#[test]
fn raw_json_keeps_its_key_order() {
    #[derive(Default, Deserialize)]
    #[serde(default)]
    struct FormatRequest {
        format: Option<Box<RawValue>>,
        tools: Vec<Value>,
    }
    let request: FormatRequest =
        decode(br#"{"Format":{"z":1,"a":{"Y":null,"B":2}},"tools":[{"z":1,"A":2}]}"#).expect("valid");
    assert_eq!(request.format.expect("given").get(), r#"{"z":1,"a":{"Y":null,"B":2}}"#);
    assert_eq!(request.tools[0].to_string(), r#"{"z":1,"A":2}"#);
}

#[test]
fn nesting_without_end_is_an_error_and_no_crash() {
    assert!(!refused(&"[".repeat(1 << 20)).is_empty());
    assert!(!refused(&"{\"a\":".repeat(1 << 18)).is_empty());
}

proptest! {
    #[test]
    fn any_bytes_are_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
        let _ = decode::<SomeRequest>(&bytes);
    }

    #[test]
    fn anything_like_json_is_read_or_refused(text in r#"([\[\]{}:,"\\ue]|null|true|1e9|"model"|"messages"|\\ud83d|\\ude00|é){0,30}"#) {
        let _ = decode::<SomeRequest>(text.as_bytes());
    }

    /// What our own client writes is read as it was meant.
    #[test]
    fn what_serde_writes_is_read(model in ".{0,20}", number in any::<i32>(), flag in any::<bool>()) {
        let text = json!({"model": model, "number": number, "flag": flag}).to_string();
        let request = read(&text);
        prop_assert_eq!((request.model, request.number, request.flag), (model, number, flag));
    }
}
