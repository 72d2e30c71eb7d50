//! Vocabularies made by hand, hostile ones, and streams cut everywhere. The released tokenizers are compared in
//! `tests/tokens.rs`.

use std::sync::{Arc, LazyLock};

use proptest::prelude::*;

use super::*;
use crate::ids::TokenId;

/// A byte-level vocabulary: the 256 bytes, `more`, and special tokens.
fn byte_level(more: &[&str], merges: &[&str]) -> Vocabulary {
    let mut tokens: Vec<String> = tokenizers::pre_tokenizers::byte_level::ByteLevel::alphabet()
        .into_iter()
        .collect::<std::collections::BTreeSet<char>>()
        .into_iter()
        .map(String::from)
        .collect();
    tokens.extend(more.iter().map(|t| (*t).to_owned()));
    let mut kinds = vec![1; tokens.len()];
    for (text, kind) in [("<s>", 3), ("</s>", 3), ("<think>", 4)] {
        tokens.push(text.to_owned());
        kinds.push(kind);
    }
    let n = tokens.len() as u32;
    Vocabulary {
        model: "gpt2".into(),
        pre: Some("gpt-2".into()),
        tokens: tokens.into(),
        kinds,
        merges: merges.iter().copied().collect(),
        bos: Some(n - 3),
        eos: Some(n - 2),
        ..Vocabulary::default()
    }
}

fn build(vocabulary: &Vocabulary) -> Arc<Tokenizer> {
    Arc::new(Tokenizer::new(vocabulary).unwrap())
}

fn texts(tokenizer: &Tokenizer, ids: &[TokenId]) -> Vec<String> {
    ids.iter().map(|id| tokenizer.piece_text(*id).into_owned()).collect()
}

#[test]
fn merges_apply_in_their_order_and_special_tokens_when_asked() {
    let tokenizer = build(&byte_level(&["he", "ll", "hell", "Ġw"], &["h e", "l l", "he ll", "Ġ w"]));
    let encode = |text, specials| texts(&tokenizer, &tokenizer.encode(text, specials).unwrap());
    assert_eq!(encode("hello w", Specials::Parse), ["hell", "o", " w"]);
    assert_eq!(encode("<think>he</s>", Specials::Parse), ["<think>", "he", "</s>"]);
    assert_eq!(encode("<s>", Specials::AsText), ["<", "s", ">"]);
    assert_eq!(encode("<think>he", Specials::AsText), ["<", "t", "h", "i", "n", "k", ">", "he"]);
    assert_eq!(tokenizer.encode("", Specials::Parse).unwrap(), []);
    let ids = tokenizer.encode("héllo 😀<think>\u{0}", Specials::Parse).unwrap();
    assert_eq!(tokenizer.decode(&ids), "héllo 😀<think>\u{0}");
    assert_eq!(tokenizer.id_of("<think>"), Some(TokenId(tokenizer.n_vocab() as u32 - 1)));
    assert_eq!(tokenizer.id_of("nothing"), None);
    assert_eq!(tokenizer.source(), Source::Keys);
    assert!(tokenizer.is_end(tokenizer.eos().unwrap()) && !tokenizer.is_end(tokenizer.bos().unwrap()));
}

#[test]
fn bos_and_eos_are_added_once_where_asked() {
    let mut vocabulary = byte_level(&[], &[]);
    let texts_of = |vocabulary: &Vocabulary, text| {
        let tokenizer = build(vocabulary);
        let ids = tokenizer.encode_prompt(text).unwrap();
        texts(&tokenizer, &ids).concat()
    };
    assert_eq!(texts_of(&vocabulary, "a"), "a");
    vocabulary.add_bos = Some(true);
    vocabulary.add_eos = Some(true);
    assert_eq!(texts_of(&vocabulary, "a"), "<s>a</s>");
    assert_eq!(texts_of(&vocabulary, "<s>a</s>"), "<s>a</s>");
    assert_eq!(texts_of(&vocabulary, ""), "<s></s>");
    vocabulary.pre = Some("llama-bpe".into());
    vocabulary.add_bos = None;
    vocabulary.add_eos = None;
    assert_eq!(texts_of(&vocabulary, "a"), "<s>a");
}

#[test]
fn every_known_cut_compiles_and_loses_nothing() {
    let text = "Hello, world! 123456 it's  two  世界 ｜ ñ\r\n\n\t$a=b|c^~ naïve가 ";
    for pre in [
        "joyai-llm",
        "deepseek-v3",
        "deepseek-v4",
        "llama-bpe",
        "qwen2",
        "gpt-2",
        "smollm",
        "deepseek-coder",
        "default",
    ] {
        let tokenizer = build(&Vocabulary { pre: Some(pre.into()), ..byte_level(&[], &[]) });
        let ids = tokenizer.encode(text, Specials::Parse).unwrap();
        assert_eq!(tokenizer.decode(&ids), text, "{pre}");
    }
    let unknown = Tokenizer::new(&Vocabulary { pre: Some("tekken".into()), ..byte_level(&[], &[]) }).err().unwrap();
    let message = unknown.to_string();
    assert!(message.contains("`tekken`") && message.contains("joyai-llm"), "{message}");
}

/// SentencePiece: `▁` for spaces, best score first, bytes for what is unknown.
fn sentence_piece() -> Vocabulary {
    let mut tokens = vec!["<unk>".to_owned(), "<s>".into(), "</s>".into()];
    let mut kinds = vec![2, 3, 3];
    let mut scores = vec![0.0; 3];
    for byte in 0..=255u8 {
        tokens.push(format!("<0x{byte:02X}>"));
        kinds.push(6);
        scores.push(0.0);
    }
    for (i, piece) in ["▁", "a", "b", "c", "ab", "bc", "▁a", "abc", "▁ab"].iter().enumerate() {
        tokens.push((*piece).to_owned());
        kinds.push(1);
        scores.push(-(i as f32));
    }
    Vocabulary {
        model: "llama".into(),
        tokens: tokens.into(),
        kinds,
        scores,
        bos: Some(1),
        eos: Some(2),
        ..Vocabulary::default()
    }
}

/// Expected pieces worked out by hand from the rule: merge the neighbours whose union scores best, leftmost first.
#[test]
fn sentence_piece_merges_by_score_and_falls_back_to_bytes() {
    let tokenizer = build(&sentence_piece());
    let encode = |text| {
        let ids = tokenizer.encode(text, Specials::Parse).unwrap();
        ids.iter().map(|id| String::from_utf8_lossy(tokenizer.piece(*id)).into_owned()).collect::<Vec<_>>()
    };
    // ▁ a b c: `ab` scores best, then `abc` before `▁ab`
    assert_eq!(encode("abc"), [" ", "abc"]);
    assert_eq!(encode("ab"), [" ab"]);
    assert_eq!(encode("bc a"), [" ", "bc", " a"]);
    let bytes: Vec<u8> =
        tokenizer.encode("é", Specials::Parse).unwrap().iter().flat_map(|id| tokenizer.piece(*id)).copied().collect();
    assert_eq!(bytes, " é".as_bytes());
    assert_eq!(tokenizer.encode_prompt("ab").unwrap()[0], TokenId(1));
    let plain = build(&Vocabulary { add_space_prefix: Some(false), ..sentence_piece() });
    assert_eq!(plain.decode(&plain.encode("ab", Specials::AsText).unwrap()), "ab");
    assert!(matches!(Tokenizer::new(&Vocabulary { scores: vec![], ..sentence_piece() }), Err(Error::Key { .. })));
}

#[test]
fn metadata_that_contradicts_itself_is_an_error() {
    let good = || byte_level(&["he"], &["h e"]);
    let with = |change: &dyn Fn(&mut Vocabulary)| {
        let mut vocabulary = good();
        change(&mut vocabulary);
        Tokenizer::new(&vocabulary).err().map(|e| e.to_string())
    };
    assert_eq!(with(&|_| {}), None);
    type Change<'a> = &'a dyn Fn(&mut Vocabulary);
    let cases: [(Change<'_>, &str); 14] = [
        (&|v| v.model = "bert".into(), "`bert`"),
        (&|v| v.model = "t5".into(), "`t5`"),
        (&|v| v.model = "none".into(), "no tokenizer"),
        (&|v| v.tokens = Default::default(), "`tokenizer.ggml.tokens`: is empty"),
        (&|v| v.tokens.push("a"), "token_type`: has 260 entries for 261 tokens"),
        (
            &|v| {
                v.tokens.push("a");
                v.kinds.push(1)
            },
            "has `a` twice",
        ),
        (&|v| v.scores = vec![0.0; 3], "scores`: has 3 entries"),
        (&|v| v.merges.push("nospace"), "entry 1 `nospace` is not two tokens"),
        (&|v| v.merges.push(""), "entry 1 `` is not two tokens"),
        (&|v| v.merges.push("q zz"), "needs token `zz`"),
        (&|v| v.merges.push("<think> <think>"), "needs token `<think><think>`"),
        (&|v| v.bos = Some(260), "bos_token_id`: is 260, but there are 260 tokens"),
        (&|v| v.eos = Some(u32::MAX), "eos_token_id`: is 4294967295"),
        (&|v| v.ends = vec![999], "eot_token_id`: is 999"),
    ];
    for (change, message) in cases {
        let error = with(change).unwrap_or_else(|| panic!("no error: {message}"));
        assert!(error.contains(message), "{error} / {message}");
    }
}

#[test]
fn keys_of_another_type_are_errors() {
    let metadata = |pairs: Vec<(&str, fathom_gguf::Value)>| {
        let mut metadata = fathom_gguf::Metadata::new();
        for (key, value) in pairs {
            metadata.insert(key, value);
        }
        metadata
    };
    assert!(matches!(Tokenizer::from_gguf(&metadata(vec![])), Err(Error::Missing)));
    let wrong = metadata(vec![("tokenizer.ggml.model", "gpt2".into()), ("tokenizer.ggml.tokens", 3u32.into())]);
    let error = Tokenizer::from_gguf(&wrong).err().unwrap().to_string();
    assert!(error.contains("tokenizer.ggml.tokens"), "{error}");
    let negative =
        metadata(vec![("tokenizer.ggml.model", "gpt2".into()), ("tokenizer.ggml.bos_token_id", (-1i32).into())]);
    let error = Tokenizer::from_gguf(&negative).err().unwrap().to_string();
    assert!(error.contains("tokenizer.ggml.bos_token_id"), "{error}");
}

#[test]
fn a_tokenizer_json_that_does_not_fit_is_not_used() {
    for json in [
        "",
        "{}",
        "{\"model\":{\"type\":\"Unigram\",\"vocab\":{},\"merges\":[]}}",
        "{\"model\":{\"type\":\"BPE\",\"vocab\":{\"zzz\":1},\"merges\":[]}}",
        "{\"model\":{\"type\":\"BPE\",\"vocab\":{\"!\":1},\"merges\":[]}}",
        "{\"model\":{\"type\":\"BPE\",\"vocab\":{},\"merges\":[[\"<think>\",\"<think>\"]]}}",
        "{\"model\":{\"type\":\"BPE\",\"vocab\":{},\"merges\":[\"ab\"]}}",
        "{\"model\":{\"type\":\"BPE\",\"vocab\":{},\"merges\":[]},\"added_tokens\":[{\"id\":4000000000,\"content\":\"x\"}]}",
    ] {
        let tokenizer = build(&Vocabulary { huggingface: Some(json.into()), ..byte_level(&[], &[]) });
        assert_eq!(tokenizer.source(), Source::Keys, "{json}");
        assert_eq!(tokenizer.encode("a", Specials::Parse).unwrap().len(), 1);
    }
}

/// Feeds `pieces`, each as a token of its own; gives the text and why it ended.
fn stream(pieces: &[Vec<u8>], stops: &[&str]) -> (String, Option<Ended>) {
    static TOKENIZER: LazyLock<Arc<Tokenizer>> = LazyLock::new(|| build(&byte_level(&[], &[])));
    let mut stream = Stream::new(TOKENIZER.clone(), stops.iter().map(|s| (*s).to_owned()).collect());
    let mut out = String::new();
    for piece in pieces {
        if let Some(ended) = stream.push_bytes(piece, &mut out) {
            return (out, Some(ended));
        }
    }
    stream.finish(&mut out);
    (out, None)
}

fn stopped(text: &str, stop: &str) -> (String, Option<Ended>) {
    (text.into(), Some(Ended::StopString(stop.into())))
}

#[test]
fn characters_come_whole_and_stop_strings_not_at_all() {
    type Case<'a> = (&'a [u8], &'a [&'a str], (String, Option<Ended>));
    let cases: &[Case<'_>] = &[
        ("héllo 😀 世界 e\u{301}".as_bytes(), &[], ("héllo 😀 世界 e\u{301}".into(), None)),
        ("a STOP b".as_bytes(), &["STOP"], stopped("a ", "STOP")),
        ("a STO".as_bytes(), &["STOP"], ("a STO".into(), None)),
        ("aaab".as_bytes(), &["aab"], stopped("a", "aab")),
        ("x世界y".as_bytes(), &["界"], stopped("x世", "界")),
        // the one that is complete first, though another started before it
        ("abcd".as_bytes(), &["abcd", "bc"], stopped("a", "bc")),
        ("abc".as_bytes(), &["c", "abc"], stopped("", "abc")),
        ("abc".as_bytes(), &[""], ("abc".into(), None)),
        // invalid bytes: each that cannot be part of a character, and an unfinished one at the end
        (b"a\xffb\xc3", &[], ("a\u{fffd}b\u{fffd}".into(), None)),
        (b"\xf0\x9f\x98b", &[], ("\u{fffd}b".into(), None)),
        (b"\xe4\xb8", &["\u{fffd}x"], ("\u{fffd}".into(), None)),
    ];
    for (bytes, stops, expected) in cases {
        assert_eq!(stream(&[bytes.to_vec()], stops), *expected, "{bytes:?}");
        for at in 1..bytes.len() {
            let (left, right) = bytes.split_at(at);
            assert_eq!(stream(&[left.to_vec(), right.to_vec()], stops), *expected, "{bytes:?} cut at {at}");
        }
        let single: Vec<Vec<u8>> = bytes.iter().map(|b| vec![*b]).collect();
        assert_eq!(stream(&single, stops), *expected, "{bytes:?} byte by byte");
    }
}

#[test]
fn an_end_token_gives_out_what_was_held_back() {
    let tokenizer = build(&byte_level(&[], &[]));
    let (eos, a) = (tokenizer.eos().unwrap(), tokenizer.id_of("a").unwrap());
    let mut stream = Stream::new(tokenizer.clone(), vec!["ab".into()]);
    let mut out = String::new();
    assert_eq!(stream.push(a, &mut out), None);
    assert_eq!(out, "");
    assert_eq!(stream.push(eos, &mut out), Some(Ended::EndToken));
    assert_eq!(out, "a");
    let mut stream = Stream::new(tokenizer.clone(), Vec::new()).ignoring_end_tokens();
    let mut out = String::new();
    assert_eq!(stream.push(eos, &mut out), None);
    assert_eq!(stream.push(a, &mut out), None);
    assert_eq!(stream.push(TokenId(u32::MAX), &mut out), None);
    assert_eq!(out, "a");
}

#[test]
fn only_the_beginning_of_a_stop_string_is_held_back() {
    let tokenizer = build(&byte_level(&[], &[]));
    let mut stream = Stream::new(tokenizer.clone(), vec!["\n\nUser:".into()]);
    for (push, given) in
        [("a", "a"), ("Ċ", ""), ("b", "\nb"), ("Ċ", ""), ("Ċ", ""), ("Ċ", "\n"), ("U", ""), ("x", "\n\nUx")]
    {
        let mut out = String::new();
        assert_eq!(stream.push(tokenizer.id_of(push).unwrap(), &mut out), None);
        assert_eq!(out, given, "after {push}");
    }
}

proptest! {
    /// Word by word the ids are those of the crate's own pipeline.
    #[test]
    fn encoding_by_words_is_that_of_the_crate(parts in prop::collection::vec(prop_oneof![
        "[ a-e\n\r\t]{0,6}",
        "[0-9]{1,5}",
        "[!-/:-@\u{3040}-\u{30ff}一-三가｜é😀\u{301}]{1,4}",
        Just("<think>".to_owned()),
        Just("</s>".to_owned()),
        Just(" it's".to_owned()),
        "\\PC{0,6}",
    ], 0..12)) {
        static TOKENIZERS: LazyLock<Vec<Arc<Tokenizer>>> = LazyLock::new(|| {
            ["joyai-llm", "llama-bpe", "smollm", "default"]
                .map(|pre| {
                    let vocabulary = byte_level(&["ab", "Ġa", "abc", "Ġab", "ĠĠ"], &["a b", "Ġ a", "ab c", "Ġa b", "Ġ Ġ"]);
                    build(&Vocabulary { pre: Some(pre.into()), ..vocabulary })
                })
                .to_vec()
        });
        let text = parts.concat();
        for tokenizer in TOKENIZERS.iter() {
            for specials in [Specials::Parse, Specials::AsText] {
                let ids = tokenizer.encode(&text, specials).unwrap();
                prop_assert_eq!(&ids, &tokenizer.encode_by_crate(&text, specials).unwrap());
                prop_assert_eq!(tokenizer.decode(&ids), text.as_str());
            }
        }
    }

    /// Whatever the bytes and wherever they are cut, the text is the same.
    #[test]
    fn how_text_is_cut_into_tokens_does_not_matter(
        pieces in prop::collection::vec(prop_oneof![
            prop::collection::vec(any::<u8>(), 1..4),
            "[ab世😀é]{1,3}".prop_map(String::into_bytes),
        ], 0..12),
        stops in prop::collection::vec("[ab世]{1,3}", 0..3),
    ) {
        let stops: Vec<&str> = stops.iter().map(String::as_str).collect();
        let all = pieces.concat();
        let single: Vec<Vec<u8>> = all.iter().map(|b| vec![*b]).collect();
        let whole = stream(&[all], &stops);
        prop_assert_eq!(stream(&pieces, &stops), whole.clone());
        prop_assert_eq!(stream(&single, &stops), whole);
    }
}
