//! Every answer here is fed whole, cut in two at every place, and character by character.

use proptest::prelude::*;

use super::*;
use crate::chat::deepseek_v4::{Effort, Generation, Mode, Options, encode, render};
use crate::chat::{Message, Role, Think};

fn tools() -> Vec<Tool> {
    let schema = |text: &str| Tool::from_function(RawJson::parse(text).unwrap()).unwrap();
    vec![
        schema(r#"{"name":"f","parameters":{"type":"object","properties":{"a":{"type":"string"},"n":{}}}}"#),
        schema(r#"{"name":"eval","parameters":{"type":"object","properties":{"input":{"type":"object"}}}}"#),
    ]
}

fn parse(thinking: bool, tools: &[Tool], parts: &[&str]) -> Vec<Piece> {
    let request = Request { tools: tools.to_vec(), ..Request::default() };
    let prompt = Prompt { text: String::new(), starts_in_thinking: thinking, stable_bytes: 0 };
    let mut parser = Parser::new(&request, &prompt);
    let mut out = Vec::new();
    for part in parts {
        parser.push(part, &mut out);
    }
    parser.finish(&mut out);
    out
}

/// Parses `text` whole and cut in every way that matters; all must agree.
fn parse_cut_everywhere(thinking: bool, tools: &[Tool], text: &str) -> Vec<Piece> {
    let whole = parse(thinking, tools, &[text]);
    let starts: Vec<usize> = text.char_indices().map(|(at, _)| at).collect();
    for at in &starts {
        let (left, right) = text.split_at(*at);
        assert_eq!(parse(thinking, tools, &[left, right]), whole, "cut at {at}: {left:?} | {right:?}");
    }
    let mut characters = [0; 4];
    let parts: Vec<String> = text.chars().map(|c| c.encode_utf8(&mut characters).to_owned()).collect();
    let parts: Vec<&str> = parts.iter().map(String::as_str).collect();
    assert_eq!(parse(thinking, tools, &parts), whole, "character by character: {text:?}");
    whole
}

fn thinking(text: &str) -> Piece {
    Piece::Thinking(text.into())
}

fn content(text: &str) -> Piece {
    Piece::Content(text.into())
}

fn call(name: &str, arguments: &str) -> Piece {
    let arguments = Arguments::Object(RawJson::parse(arguments).unwrap());
    Piece::ToolCall(ToolCall { id: None, name: name.into(), arguments })
}

const F: &str = "<｜DSML｜invoke name=\"f\">\n<｜DSML｜parameter name=\"a\" string=\"true\">x</｜DSML｜parameter>\n</｜DSML｜invoke>";

#[test]
fn reasoning_content_and_calls_are_told_apart() {
    let one = format!("<｜DSML｜tool_calls>\n{F}\n</｜DSML｜tool_calls>");
    let spaced = one.replace("｜DSML｜", "｜DSML｜ ").replace("tool_calls", "calls");
    let two = format!("<｜DSML｜tool_calls>\n{F}\n{F}\n</｜DSML｜tool_calls>");
    let f = || call("f", r#"{"a":"x"}"#);
    let table: Vec<(bool, String, Vec<Piece>)> = vec![
        (false, "plain 世界 😀é".into(), vec![content("plain 世界 😀é")]),
        (true, "hm</think>yes".into(), vec![thinking("hm"), content("yes")]),
        (true, "</think>yes".into(), vec![content("yes")]),
        (true, "never ends 😀".into(), vec![thinking("never ends 😀")]),
        (true, "a </thin b</think> c".into(), vec![thinking("a </thin b"), content(" c")]),
        (true, "a</think>b</think>c".into(), vec![thinking("a"), content("b</think>c")]),
        (false, "2 < 3 and 3 <".into(), vec![content("2 < 3 and 3 <")]),
        (false, "end\n\n\n".into(), vec![content("end\n\n\n")]),
        (false, format!("Look.\n\n{one}"), vec![content("Look."), f()]),
        (false, format!("Look.\n\n\n{one}"), vec![content("Look.\n"), f()]),
        (false, one.clone(), vec![f()]),
        (false, format!("\n\n{one}"), vec![f()]),
        (false, format!("\n\n{spaced}"), vec![f()]),
        (true, format!("hm</think>Look.\n\n{two}\n"), vec![thinking("hm"), content("Look."), f(), f()]),
        (true, format!("hm\n\n{one}"), vec![thinking("hm"), f()]),
        (true, format!("hm\n\n{one}\n more</think>b"), vec![thinking("hm"), f(), thinking("more"), content("b")]),
        (false, format!("{one}\n\n{one}\nafter"), vec![f(), f(), content("after")]),
    ];
    for (starts_in_thinking, text, expected) in table {
        assert_eq!(parse_cut_everywhere(starts_in_thinking, &tools(), &text), expected, "{text:?}");
    }
}

#[test]
fn what_models_write_instead_is_understood() {
    let parameter = |attributes: &str, value: &str| {
        format!(
            "<｜DSML｜tool_calls>\n<｜DSML｜invoke name=\"f\">\n<｜DSML｜parameter {attributes}>{value}</｜DSML｜parameter>\n</｜DSML｜invoke>\n</｜DSML｜tool_calls>"
        )
    };
    let typed = |string: &str, value: &str| parameter(&format!("name=\"n\" string=\"{string}\""), value);
    for (text, arguments) in [
        (typed("true", "12"), r#"{"n":"12"}"#),
        (typed("false", "12"), r#"{"n":12}"#),
        (typed("false", " [1, 1.50, 12345678901234567890123] "), r#"{"n":[1, 1.50, 12345678901234567890123]}"#),
        (typed("false", "not json"), r#"{"n":"not json"}"#),
        (typed("maybe", "12"), r#"{"n":12}"#),
        (typed("true", "a \"b\"\n</tag> 2 < 3 \\ 世😀"), r#"{"n":"a \"b\"\n</tag> 2 < 3 \\ 世😀"}"#),
        (typed("true", ""), r#"{"n":""}"#),
        (typed("false", ""), r#"{"n":""}"#),
        (typed("true", "\n x \n"), r#"{"n":"\n x \n"}"#),
        (typed("true", "<｜DSML｜ <｜DSML｜para </｜DSML｜p"), r#"{"n":"<｜DSML｜ <｜DSML｜para </｜DSML｜p"}"#),
        // no `string`: JSON if it is JSON
        (parameter("name=\"n\"", "true"), r#"{"n":true}"#),
        (parameter("name=\"n\"", "yes"), r#"{"n":"yes"}"#),
        (parameter("name=n string=false", "1"), r#"{"n":1}"#),
        (parameter("name=\"a>b\" string=\"true\"", "1"), r#"{"a>b":"1"}"#),
        // all in one parameter that the tool does not have
        (parameter("name=\"arguments\" string=\"false\"", "{\"n\": 1}"), r#"{"n": 1}"#),
        (parameter("name=\"input\" string=\"true\"", "{\"n\": 1}"), r#"{"n": 1}"#),
        (parameter("name=\"input\" string=\"true\"", "text"), r#"{"input":"text"}"#),
        // given twice: the last one
        (typed("false", "1</｜DSML｜parameter>\n<｜DSML｜parameter name=\"n\" string=\"false\">2"), r#"{"n":2}"#),
        // end tags missing
        (typed("true", "x\n<｜DSML｜parameter name=\"a\" string=\"true\">y"), r#"{"n":"x","a":"y"}"#),
        (typed("true", "x").replace("</｜DSML｜parameter>", ""), r#"{"n":"x"}"#),
    ] {
        assert_eq!(parse_cut_everywhere(false, &tools(), &text), vec![call("f", arguments)], "{text}");
    }
    for name in ["toolcalls", "tool", "function_calls", "calls", " tool_calls"] {
        let text = format!("a\n\n<｜DSML｜{name}>\n{F}\n</｜DSML｜{name}>");
        assert_eq!(
            parse_cut_everywhere(false, &tools(), &text),
            vec![content("a"), call("f", r#"{"a":"x"}"#)],
            "{name}"
        );
    }
    let empty = "<｜DSML｜tool_calls>\n<｜DSML｜invoke name=\"f\">\n\n</｜DSML｜invoke>\n</｜DSML｜tool_calls>";
    assert_eq!(parse_cut_everywhere(false, &tools(), empty), vec![call("f", "{}")]);
}

#[test]
fn a_real_parameter_called_input_or_arguments_stays() {
    let text = "<｜DSML｜tool_calls>\n<｜DSML｜invoke name=\"eval\">\n<｜DSML｜parameter name=\"input\" string=\"false\">{\"x\": 1}</｜DSML｜parameter>\n</｜DSML｜invoke>\n</｜DSML｜tool_calls>";
    assert_eq!(parse_cut_everywhere(false, &tools(), text), vec![call("eval", r#"{"input":{"x": 1}}"#)]);
}

#[test]
fn arguments_that_are_no_object_come_back_as_text() {
    let text = "<｜DSML｜tool_calls>\n<｜DSML｜invoke name=\"f\">\n<｜DSML｜parameter name=\"arguments\" string=\"true\">not json</｜DSML｜parameter>\n</｜DSML｜invoke>\n</｜DSML｜tool_calls>";
    let arguments = Arguments::Text("not json".into());
    let expected = Piece::ToolCall(ToolCall { id: None, name: "f".into(), arguments });
    assert_eq!(parse_cut_everywhere(false, &tools(), text), vec![expected]);
}

#[test]
fn broken_blocks_are_returned_as_text() {
    for text in [
        "Use <｜DSML｜tool_calls> for tools.",
        "a\n\n<｜DSML｜tool_calls>\n</｜DSML｜tool_calls> b",
        "a\n\n<｜DSML｜tool_calls>\n<｜DSML｜invoke>\n",
        "<｜DSML｜tool_calls>\n<｜DSML｜invoke name=\"f\nx\">",
        "<｜DSML｜tool_calls>\n<｜DSML｜invoke name=\"f\">\n{\"a\": 1}\n</｜DSML｜invoke>\n</｜DSML｜tool_calls>",
        "<｜DSML｜tool_calls>\n<｜DSML｜invoke name=\"f\">\n<｜DSML｜parameter string=\"true\">1</｜DSML｜parameter>",
        "<｜DSML｜ invoke name=\"f\">",
        "<｜DSML｜tool_calls><｜DSML｜tool_calls><｜DSML｜tool_calls>",
        "<｜DSML｜unknown>\n<",
    ] {
        assert_eq!(parse_cut_everywhere(false, &tools(), text), vec![content(text)], "{text:?}");
        assert_eq!(parse_cut_everywhere(true, &tools(), text), vec![thinking(text)], "{text:?}");
    }
    let long = format!("<｜DSML｜tool_calls>\n<｜DSML｜invoke name=\"{}\">", "n".repeat(MAX_ATTRIBUTES_BYTES));
    assert_eq!(parse_cut_everywhere(false, &tools(), &long), vec![content(&long)]);
}

#[test]
fn a_broken_block_does_not_hide_what_follows() {
    let block = format!("<｜DSML｜tool_calls>\n{F}\n</｜DSML｜tool_calls>");
    let f = || call("f", r#"{"a":"x"}"#);
    let text = format!("<｜DSML｜tool_calls> no\n\n{block}");
    assert_eq!(parse_cut_everywhere(false, &tools(), &text), vec![content("<｜DSML｜tool_calls> no"), f()]);
    let text = "hm <｜DSML｜tool_calls> hm</think>yes";
    assert_eq!(
        parse_cut_everywhere(true, &tools(), text),
        vec![thinking("hm <｜DSML｜tool_calls> hm"), content("yes")]
    );
    // a second call is broken: the first one counts
    let text = format!("<｜DSML｜tool_calls>\n{F}\n<｜DSML｜invoke name=\"f\">\noops");
    assert_eq!(parse_cut_everywhere(false, &tools(), &text), vec![f(), content("\n<｜DSML｜invoke name=\"f\">\noops")]);
}

#[test]
fn truncated_tool_call_is_returned_as_text() {
    let block = format!("<｜DSML｜tool_calls>\n{F}\n</｜DSML｜tool_calls>");
    let complete = block.find("</｜DSML｜invoke>").unwrap() + "</｜DSML｜invoke>".len();
    for (at, _) in block.char_indices().skip(1) {
        let text = format!("Look.\n\n{}", &block[..at]);
        let expected = match at < complete {
            true => vec![content(&text)],
            // only the end of the block is missing
            false => vec![content("Look."), call("f", r#"{"a":"x"}"#)],
        };
        assert_eq!(parse_cut_everywhere(false, &tools(), &text), expected, "{text:?}");
    }
}

#[test]
fn without_tools_a_block_is_ordinary_text() {
    let text = format!("a\n\n<｜DSML｜tool_calls>\n{F}\n</｜DSML｜tool_calls>");
    assert_eq!(parse_cut_everywhere(false, &[], &text), vec![content(&text)]);
}

#[test]
fn only_what_can_become_a_tag_is_held_back() {
    let request = Request { tools: tools(), ..Request::default() };
    let prompt = Prompt { text: String::new(), starts_in_thinking: true, stable_bytes: 0 };
    let mut parser = Parser::new(&request, &prompt);
    for (push, given) in [
        ("2 <", "2 "),
        (" 3", "< 3"),
        ("</th", ""),
        ("x", "</thx"),
        ("\n", ""),
        ("\n", ""),
        ("\n", "\n"),
        ("<｜DSML｜", ""),
        ("to", ""),
        ("m", "\n\n<｜DSML｜tom"),
        ("世", "世"),
    ] {
        let mut out = Vec::new();
        parser.push(push, &mut out);
        let text: String = out
            .iter()
            .map(|piece| match piece {
                Piece::Thinking(text) => text.as_str(),
                other => panic!("{other:?}"),
            })
            .collect();
        assert_eq!(text, given, "after {push:?}");
    }
}

#[test]
fn a_call_is_given_out_as_soon_as_it_is_complete() {
    let request = Request { tools: tools(), ..Request::default() };
    let mut parser = Parser::new(&request, &Prompt { text: String::new(), starts_in_thinking: false, stable_bytes: 0 });
    let mut out = Vec::new();
    parser.push(&format!("<｜DSML｜tool_calls>\n{F}"), &mut out);
    assert_eq!(out, vec![call("f", r#"{"a":"x"}"#)]);
}

/// Pieces of answers, so that random texts come close to the format.
fn fragment() -> impl Strategy<Value = String> {
    prop_oneof![
        Just("</think>".to_owned()),
        Just("<think>".to_owned()),
        Just("\n".to_owned()),
        Just("<｜DSML｜tool_calls>".to_owned()),
        Just("</｜DSML｜tool_calls>".to_owned()),
        Just("<｜DSML｜ calls>\n".to_owned()),
        Just("<｜DSML｜invoke name=\"f\">\n".to_owned()),
        Just("</｜DSML｜invoke>\n".to_owned()),
        Just("<｜DSML｜parameter name=\"a\" string=\"true\">".to_owned()),
        Just("<｜DSML｜parameter name=\"n\" string=\"false\">".to_owned()),
        Just("</｜DSML｜parameter>\n".to_owned()),
        Just("<｜DSML｜".to_owned()),
        Just("<".to_owned()),
        Just(">".to_owned()),
        "[a-z 世😀\"{}1]{0,4}",
    ]
}

fn argument() -> impl Strategy<Value = serde_json::Value> {
    use serde_json::{Value, json};
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(|f| json!(f)),
        "[^｜]{0,20}".prop_map(Value::from),
    ];
    leaf.prop_recursive(3, 12, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::vec(("[^｜]{0,8}", inner), 0..4)
                .prop_map(|entries| Value::Object(entries.into_iter().collect())),
        ]
    })
}

fn message() -> impl Strategy<Value = Message> {
    let arguments = prop::collection::vec(("[^｜\"\n]{1,12}", argument()), 0..4);
    let call = ("[^｜\"\n]{1,12}", arguments).prop_map(|(name, entries)| ToolCall {
        id: None,
        name,
        arguments: Arguments::Object(serde_json::Value::Object(entries.into_iter().collect()).into()),
    });
    ("[^｜]{0,30}", prop::option::of("[^｜]{1,30}"), prop::collection::vec(call, 0..3)).prop_map(
        |(content, thinking, tool_calls)| Message {
            role: Role::Assistant,
            content,
            thinking: thinking.filter(|t| !t.contains(END_THINK)),
            tool_calls,
            ..Message::default()
        },
    )
}

proptest! {
    #[test]
    fn how_an_answer_is_cut_does_not_matter(fragments in prop::collection::vec(fragment(), 0..24), thinks: bool) {
        let text = fragments.concat();
        let parts: Vec<&str> = fragments.iter().map(String::as_str).collect();
        let whole = parse(thinks, &tools(), &[&text]);
        prop_assert_eq!(parse(thinks, &tools(), &parts), whole.clone());
        let characters: Vec<String> = text.chars().map(String::from).collect();
        let characters: Vec<&str> = characters.iter().map(String::as_str).collect();
        prop_assert_eq!(parse(thinks, &tools(), &characters), whole);
    }

    #[test]
    fn parsing_is_the_inverse_of_rendering(
        message in message(),
        generation in prop::sample::select(vec![Generation::V4April, Generation::V4July, Generation::V41]),
        thinks: bool,
    ) {
        let question = Message::new(Role::User, "?");
        let think = if thinks { Think::On } else { Think::Off };
        let request = Request { messages: vec![question], tools: tools(), think, ..Request::default() };
        let mut with = request.clone();
        with.messages.push(message.clone());
        let mode = if thinks { Mode::Thinking(Effort::Unsaid) } else { Mode::Chat };
        let options = Options { generation, mode, drop_thinking: true };
        let prompt = render(generation, &request).unwrap();
        let whole = encode(&options, &with).unwrap();
        let answer = whole.strip_prefix(&prompt.text).unwrap().strip_suffix("<｜end▁of▁sentence｜>").unwrap();

        let mut parsed = Message { role: Role::Assistant, ..Message::default() };
        for piece in parse(prompt.starts_in_thinking, &tools(), &[answer]) {
            match piece {
                Piece::Thinking(text) => parsed.thinking.get_or_insert_default().push_str(&text),
                Piece::Content(text) => parsed.content.push_str(&text),
                Piece::ToolCall(call) => parsed.tool_calls.push(call),
            }
        }
        prop_assert_eq!(&parsed.thinking, &message.thinking.clone().filter(|_| thinks));
        prop_assert_eq!(&parsed.content, &message.content);
        prop_assert_eq!(parsed.tool_calls.len(), message.tool_calls.len());
        for (parsed, sent) in parsed.tool_calls.iter().zip(&message.tool_calls) {
            prop_assert_eq!(&parsed.name, &sent.name);
            let (Arguments::Object(parsed), Arguments::Object(sent)) = (&parsed.arguments, &sent.arguments) else {
                return Err(TestCaseError::fail(format!("{:?}", parsed.arguments)));
            };
            prop_assert_eq!(parsed.python(), sent.python());
        }
    }
}
