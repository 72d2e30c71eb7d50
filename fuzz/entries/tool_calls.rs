//! What the fuzzer does with one input; also run by `tests/tool_calls.rs` over the seeds and their mutants.

use fathom::chat::deepseek_v4::Parser;
use fathom::chat::{Parser as _, Piece, Prompt, RawJson, Request, Tool};

/// Reads `bytes` as an answer of DeepSeek-V4. The first byte says whether it begins inside reasoning and into how many
/// characters the second reader cuts it; both readers must find the same, and arguments must be objects.
pub fn tool_calls(bytes: &[u8]) {
    let Some((first, rest)) = bytes.split_first() else { return };
    let answer = String::from_utf8_lossy(rest);
    let starts_in_thinking = first & 1 == 1;
    let characters = 1 + usize::from(first >> 1) % 7;
    let whole = parse(starts_in_thinking, std::iter::once(&*answer));
    let cuts: Vec<usize> = answer.char_indices().map(|(at, _)| at).step_by(characters).chain([answer.len()]).collect();
    let cut = parse(starts_in_thinking, cuts.windows(2).map(|w| &answer[w[0]..w[1]]));
    assert_eq!(whole, cut, "in steps of {characters}");
    for piece in &whole {
        if let Piece::ToolCall(call) = piece
            && let fathom::chat::Arguments::Object(object) = &call.arguments
        {
            assert!(object.entries().is_some(), "{call:?}");
        }
    }
    // Without tools nothing but the end of the reasoning is taken away.
    let request = Request::default();
    let prompt = Prompt { text: String::new(), starts_in_thinking, stable_bytes: 0 };
    let text = collect(Parser::new(&request, &prompt), std::iter::once(&*answer));
    let bytes_left: usize = text
        .iter()
        .map(|piece| match piece {
            Piece::Thinking(text) | Piece::Content(text) => text.len(),
            Piece::ToolCall(call) => panic!("{call:?}"),
        })
        .sum();
    let taken = answer.len() - bytes_left;
    assert!(taken == 0 || (starts_in_thinking && taken == "</think>".len()), "{taken} bytes are gone");
}

fn parse<'a>(starts_in_thinking: bool, parts: impl Iterator<Item = &'a str>) -> Vec<Piece> {
    let function = r#"{"name":"f","parameters":{"type":"object","properties":{"input":{}}}}"#;
    let tool = Tool::from_function(RawJson::parse(function).expect("it is JSON")).expect("it has a name");
    let request = Request { tools: vec![tool], ..Request::default() };
    let prompt = Prompt { text: String::new(), starts_in_thinking, stable_bytes: 0 };
    collect(Parser::new(&request, &prompt), parts)
}

fn collect<'a>(mut parser: Parser, parts: impl Iterator<Item = &'a str>) -> Vec<Piece> {
    let mut out = Vec::new();
    for part in parts {
        parser.push(part, &mut out);
    }
    parser.finish(&mut out);
    out
}
