//! Text in and out: building a tokenizer of DeepSeek-V4's size, encoding, streaming, rendering a long conversation and
//! reading an answer as it comes.
//!
//! `cargo bench --no-default-features --bench chat`
//!
//! The vocabulary is made up of syllables, since the released one is not in the repository: as many tokens and merges, all of
//! them reachable, words of one to three tokens.

use std::fmt::Write as _;
use std::hint::black_box;
use std::sync::Arc;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use fathom::chat::deepseek_v4::{self, Generation};
use fathom::chat::{Message, Parser as _, RawJson, Request, Role, Think, Tool};
use fathom::ids::TokenId;
use fathom::tokens::{Specials, Stream, Tokenizer, Vocabulary};

/// Tokens of DeepSeek-V4.
const N_VOCAB: usize = 129_280;
const SPECIALS: &[&str] = &[
    "<｜begin▁of▁sentence｜>",
    "<｜end▁of▁sentence｜>",
    "<｜User｜>",
    "<｜Assistant｜>",
    "<think>",
    "</think>",
    "｜DSML｜",
];
/// Spelling of a space.
const SPACE: &str = "Ġ";

fn syllables() -> Vec<String> {
    let syllable = |(c, v): (char, char)| format!("{c}{v}");
    "bcdfghjklmnpqrstvwxz".chars().flat_map(|c| "aeiou".chars().map(move |v| (c, v))).map(syllable).collect()
}

fn vocabulary() -> Vocabulary {
    let mut tokens: Vec<String> = tokenizers::pre_tokenizers::byte_level::ByteLevel::alphabet()
        .into_iter()
        .collect::<std::collections::BTreeSet<char>>()
        .into_iter()
        .map(String::from)
        .collect();
    let mut merges = Vec::new();
    let room = N_VOCAB - SPECIALS.len();
    let mut add = |tokens: &mut Vec<String>, left: &str, right: &str| {
        if tokens.len() < room {
            tokens.push(format!("{left}{right}"));
            merges.push(format!("{left} {right}"));
        }
    };
    let syllables = syllables();
    for syllable in &syllables {
        add(&mut tokens, &syllable[..1], &syllable[1..]);
    }
    for syllable in &syllables {
        add(&mut tokens, SPACE, syllable);
    }
    let mut longer: Vec<String> = syllables.iter().flat_map(|s| [s.clone(), format!("{SPACE}{s}")]).collect();
    while tokens.len() < room {
        let mut next = Vec::with_capacity(longer.len() * syllables.len());
        for left in &longer {
            for right in &syllables {
                add(&mut tokens, left, right);
                next.push(format!("{left}{right}"));
            }
        }
        longer = next;
    }
    let mut kinds = vec![1; tokens.len()];
    for special in SPECIALS {
        tokens.push((*special).to_owned());
        kinds.push(3);
    }
    Vocabulary {
        model: "gpt2".into(),
        pre: Some("joyai-llm".into()),
        tokens: tokens.into(),
        kinds,
        merges: merges.into(),
        ..Vocabulary::default()
    }
}

/// The same as a `tokenizer.json`.
fn huggingface(vocabulary: &Vocabulary) -> String {
    let tokens = || vocabulary.tokens.iter().enumerate();
    let vocab: serde_json::Map<_, _> =
        tokens().filter(|(id, _)| vocabulary.kinds[*id] == 1).map(|(id, text)| (text.to_owned(), id.into())).collect();
    let added: Vec<_> = tokens()
        .filter(|(id, _)| vocabulary.kinds[*id] == 3)
        .map(|(id, text)| serde_json::json!({"id": id, "content": text, "special": true, "normalized": false}))
        .collect();
    let merges: Vec<_> = vocabulary.merges.iter().filter_map(|m| m.split_once(' ')).map(|(a, b)| [a, b]).collect();
    serde_json::json!({
        "added_tokens": added,
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true},
        "model": {"type": "BPE", "vocab": vocab, "merges": merges},
    })
    .to_string()
}

/// Words, short ones more often, with punctuation and line ends.
fn text(bytes: usize) -> String {
    let syllables = syllables();
    let mut state = 1u64;
    let mut below = |n: usize| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((state >> 33) % n as u64) as usize
    };
    let mut text = String::with_capacity(bytes + 64);
    while text.len() < bytes {
        for _ in 0..=below(2) + below(3) {
            text.push_str(&syllables[below(syllables.len())]);
        }
        text.push_str([" ", " ", " ", " ", " ", ", ", ".\n", " 世界 ", " 42 "][below(9)]);
    }
    text
}

fn conversation(turns: usize) -> Request {
    let function = r#"{"name":"search","description":"Search","parameters":{"type":"object","properties":{"query":{"type":"string"},"limit":{"type":"integer"}}}}"#;
    let mut messages = vec![Message::new(Role::System, "Be useful.")];
    for turn in 0..turns {
        messages.push(Message::new(Role::User, text(500 + turn)));
        let thinking = Some(text(800));
        messages.push(Message { thinking, ..Message::new(Role::Assistant, text(1500)) });
    }
    messages.push(Message::new(Role::User, "And now?"));
    Request {
        messages,
        tools: vec![Tool::from_function(RawJson::parse(function).expect("JSON")).expect("a name"); 8],
        think: Think::On,
        ..Request::default()
    }
}

fn tokens(c: &mut Criterion) {
    let keys = vocabulary();
    assert_eq!(keys.tokens.len(), N_VOCAB);
    let with_json = Vocabulary { huggingface: Some(huggingface(&keys)), ..keys.clone() };
    let mut group = c.benchmark_group("tokens");
    group.sample_size(10);
    group.bench_function("build 129280 from keys", |b| b.iter(|| Tokenizer::new(&keys).expect("valid")));
    group.bench_function("build 129280 from tokenizer.json", |b| b.iter(|| Tokenizer::new(&with_json).expect("valid")));

    let tokenizer = Arc::new(Tokenizer::new(&keys).expect("valid"));
    let text = text(1_000_000);
    group.throughput(Throughput::BytesDecimal(text.len() as u64));
    group.bench_function("encode 1 MB", |b| b.iter(|| tokenizer.encode(black_box(&text), Specials::Parse)));
    let short = &text[..text.char_indices().nth(2000).map_or(text.len(), |(at, _)| at)];
    group.throughput(Throughput::BytesDecimal(short.len() as u64));
    group.bench_function("encode 2 kB", |b| b.iter(|| tokenizer.encode(black_box(short), Specials::Parse)));

    let ids: Vec<TokenId> = tokenizer.encode(&text, Specials::Parse).expect("bytes are tokens");
    group.throughput(Throughput::Elements(ids.len() as u64));
    group.bench_function("stream, two stop strings", |b| {
        let mut out = String::new();
        b.iter(|| {
            let mut stream = Stream::new(tokenizer.clone(), vec!["\n\nUser:".into(), "<|im_end|>".into()]);
            for id in &ids {
                out.clear();
                black_box(stream.push(*id, &mut out));
            }
        });
    });
}

fn prompts(c: &mut Criterion) {
    let request = conversation(100);
    let prompt = deepseek_v4::render(Generation::V4July, &request).expect("valid");
    let mut group = c.benchmark_group("chat");
    group.throughput(Throughput::BytesDecimal(prompt.text.len() as u64));
    group.bench_function("render 100 turns, 8 tools", |b| {
        b.iter(|| deepseek_v4::render(Generation::V4July, black_box(&request)));
    });

    let mut answer = format!("{}</think>{}", text(20_000), text(20_000));
    answer.push_str("\n\n<｜DSML｜tool_calls>\n<｜DSML｜invoke name=\"search\">\n");
    let _ = writeln!(answer, "<｜DSML｜parameter name=\"query\" string=\"true\">{}</｜DSML｜parameter>", text(20_000));
    answer.push_str("</｜DSML｜invoke>\n</｜DSML｜tool_calls>");
    // pieces of the size of tokens
    let mut pieces = Vec::new();
    let mut rest = answer.as_str();
    while !rest.is_empty() {
        let at = rest.char_indices().nth(4).map_or(rest.len(), |(at, _)| at);
        pieces.push(&rest[..at]);
        rest = &rest[at..];
    }
    group.throughput(Throughput::Elements(pieces.len() as u64));
    group.bench_function("parse an answer, token by token", |b| {
        let mut out = Vec::new();
        b.iter(|| {
            let mut parser = deepseek_v4::Parser::new(&request, &prompt);
            for piece in &pieces {
                out.clear();
                parser.push(piece, &mut out);
            }
            parser.finish(&mut out);
            black_box(&out);
        });
    });
}

criterion_group!(benches, tokens, prompts);
criterion_main!(benches);
