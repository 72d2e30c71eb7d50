//! Tokenizers built from GGUF metadata against the ids that the released code gives.

use fathom::ids::TokenId;
use fathom::tokens::{Source, Specials, Tokenizer, Vocabulary};
use serde::Deserialize;

#[derive(Deserialize)]
struct Case {
    text: String,
    ids: Vec<u32>,
}

#[derive(Deserialize)]
struct Json {
    model: Model,
    added_tokens: Vec<Added>,
}

#[derive(Deserialize)]
struct Model {
    vocab: std::collections::HashMap<String, u32>,
    merges: Vec<(String, String)>,
}

#[derive(Deserialize)]
struct Added {
    id: usize,
    content: String,
    special: bool,
}

/// The keys that a converter writes for this `tokenizer.json`.
fn vocabulary(json: &str) -> Vocabulary {
    let parsed: Json = serde_json::from_str(json).unwrap();
    let n = parsed.model.vocab.len().max(1 + parsed.added_tokens.iter().map(|a| a.id).max().unwrap());
    let (mut tokens, mut kinds) = (vec![String::new(); n], vec![1; n]);
    for (text, id) in &parsed.model.vocab {
        tokens[*id as usize] = text.clone();
    }
    for added in &parsed.added_tokens {
        tokens[added.id] = added.content.clone();
        kinds[added.id] = if added.special { 3 } else { 4 };
    }
    Vocabulary {
        model: "gpt2".into(),
        pre: Some("joyai-llm".into()),
        tokens: tokens.into(),
        kinds,
        merges: parsed.model.merges.iter().map(|(a, b)| format!("{a} {b}")).collect(),
        bos: Some(0),
        eos: Some(1),
        add_bos: Some(false),
        ..Vocabulary::default()
    }
}

const FIXTURES: [(&str, &str, &str); 2] = [
    ("tiny-v4-a", include_str!("data/tiny-v4-a/tokenizer.json"), include_str!("data/tiny-v4-a/tokenizer_cases.json")),
    ("tiny-v4-b", include_str!("data/tiny-v4-b/tokenizer.json"), include_str!("data/tiny-v4-b/tokenizer_cases.json")),
];

#[test]
fn ids_are_those_of_the_released_tokenizer() {
    for (fixture, json, cases) in FIXTURES {
        let cases: Vec<Case> = serde_json::from_str(cases).unwrap();
        assert_eq!(cases.len(), 16);
        let keys = vocabulary(json);
        let with_json = Vocabulary { huggingface: Some(json.to_owned()), ..keys.clone() };
        for (vocabulary, source) in [(&keys, Source::Keys), (&with_json, Source::HuggingFace)] {
            let tokenizer = Tokenizer::new(vocabulary).unwrap();
            assert_eq!(tokenizer.source(), source);
            assert_eq!(tokenizer.ends(), [TokenId(1)], "stops on token 1 only");
            for case in &cases {
                let ids = tokenizer.encode(&case.text, Specials::Parse).unwrap();
                let expected: Vec<TokenId> = case.ids.iter().copied().map(TokenId).collect();
                assert_eq!(ids, expected, "{fixture} {source:?} {:?}", case.text);
                assert_eq!(tokenizer.decode(&ids), case.text, "{fixture} {source:?}");
                assert_eq!(tokenizer.encode_prompt(&case.text).unwrap(), expected, "nothing is added");
            }
        }
    }
}

/// Both ways of building agree also where there are no vectors, for special tokens and for text that spells them.
#[test]
fn keys_and_tokenizer_json_give_the_same_ids() {
    let (_, json, _) = FIXTURES[0];
    let keys = vocabulary(json);
    let from_keys = Tokenizer::new(&keys).unwrap();
    let from_json = Tokenizer::new(&Vocabulary { huggingface: Some(json.to_owned()), ..keys }).unwrap();
    let prompts = include_str!("data/prompts/deepseek-v4-prompts.json");
    for text in prompts.lines().chain([prompts]) {
        for specials in [Specials::Parse, Specials::AsText] {
            let ids = from_keys.encode(text, specials).unwrap();
            assert_eq!(ids, from_json.encode(text, specials).unwrap(), "{specials:?} {text}");
            assert_eq!(from_keys.decode(&ids), text);
        }
    }
    let think = from_keys.id_of("<think>").unwrap();
    assert_eq!(from_keys.encode("<think>", Specials::Parse).unwrap(), [think]);
    assert!(!from_keys.encode("<think>", Specials::AsText).unwrap().contains(&think));
    assert_eq!(from_keys.piece(think), b"<think>");
}
