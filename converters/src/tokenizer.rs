//! tokenizer.json -> the tokenizer keys that llama.cpp reads (`src/llama-vocab.cpp`).
//!
//! The file itself goes into the GGUF verbatim as well (`tokenizer.huggingface.json`), so nothing depends on this reading being
//! complete; it has to be right for byte-level BPE with merges, which is what the releases ship.

use std::collections::HashSet;

use fathom_gguf::{Metadata, Strings};
use serde_json::Value;

use crate::Error;

/// llama.cpp's name for the three-regex pre-tokeniser of DeepSeek-V3 and V4 in the files that upstream makes of V4.
const PRE: &str = "joyai-llm";

/// llama.cpp's token types.
const NORMAL: i32 = 1;
const CONTROL: i32 = 3;
const USER_DEFINED: i32 = 4;
const UNUSED: i32 = 5;

/// The tokenizer keys. `n_vocab` is the number of rows of the embedding, which the token list must match.
///
/// # Errors
/// [`Error::Tokenizer`] for anything that is no byte-level BPE vocabulary of at most `n_vocab` distinct tokens.
pub fn keys(
    tokenizer: &Value,
    tokenizer_config: Option<&Value>,
    config: &Value,
    n_vocab: u64,
) -> Result<Metadata, Error> {
    let n_vocab = usize::try_from(n_vocab).map_err(|_| bad("vocab_size is too large"))?;
    let model = tokenizer.get("model").ok_or_else(|| bad("has no `model`"))?;
    match model.get("type").and_then(Value::as_str) {
        Some("BPE") | None => {}
        Some(other) => return Err(bad(format!("its model is `{other}`, expected `BPE`"))),
    }
    let mut pieces: Vec<Option<(String, i32)>> = vec![None; n_vocab];
    let vocab = model.get("vocab").and_then(Value::as_object).ok_or_else(|| bad("`model.vocab` is no object"))?;
    for (piece, id) in vocab {
        place(&mut pieces, id, piece, NORMAL)?;
    }
    for token in tokenizer.get("added_tokens").and_then(Value::as_array).map_or(&[][..], Vec::as_slice) {
        let content =
            token.get("content").and_then(Value::as_str).ok_or_else(|| bad("an added token has no `content`"))?;
        let special = token.get("special").and_then(Value::as_bool).unwrap_or(false);
        place(
            &mut pieces,
            token.get("id").unwrap_or(&Value::Null),
            content,
            if special { CONTROL } else { USER_DEFINED },
        )?;
    }
    let mut tokens = Strings::with_capacity(n_vocab, n_vocab * 8);
    let mut types = Vec::with_capacity(n_vocab);
    // llama.cpp aborts when two ids have one text.
    let mut seen = HashSet::with_capacity(n_vocab);
    for (id, piece) in pieces.iter().enumerate() {
        let padding;
        let (text, kind) = match piece {
            Some((text, kind)) => (text.as_str(), *kind),
            None => {
                padding = format!("[PAD{id}]");
                (padding.as_str(), UNUSED)
            }
        };
        if !seen.insert(text.to_owned()) {
            return Err(bad(format!("token `{text}` occurs twice")));
        }
        tokens.push(text);
        types.push(kind);
    }

    let id_of = |text: &str| pieces.iter().position(|piece| piece.as_ref().is_some_and(|(piece, _)| piece == text));
    let special = |name: &str, field: &str| -> Result<Option<u32>, Error> {
        let named = tokenizer_config.and_then(|config| config.get(name)).filter(|value| !value.is_null());
        if let Some(named) = named {
            let text = named.as_str().or_else(|| named.get("content").and_then(Value::as_str));
            let text = text.ok_or_else(|| bad(format!("tokenizer_config.json: `{name}` is no token")))?;
            let id = id_of(text)
                .ok_or_else(|| bad(format!("`{name}` of tokenizer_config.json, `{text}`, is not in the vocabulary")))?;
            return Ok(Some(id as u32));
        }
        Ok(config.get(field).and_then(Value::as_u64).and_then(|id| u32::try_from(id).ok()))
    };
    let flag =
        |name: &str| tokenizer_config.and_then(|config| config.get(name)).and_then(Value::as_bool).unwrap_or(false);

    let mut keys = Metadata::new();
    keys.insert("tokenizer.ggml.model", "gpt2");
    keys.insert("tokenizer.ggml.pre", PRE);
    keys.insert("tokenizer.ggml.tokens", tokens);
    keys.insert("tokenizer.ggml.token_type", types);
    keys.insert("tokenizer.ggml.merges", merges(model)?);
    for (key, name, field) in [
        ("tokenizer.ggml.bos_token_id", "bos_token", "bos_token_id"),
        ("tokenizer.ggml.eos_token_id", "eos_token", "eos_token_id"),
        ("tokenizer.ggml.padding_token_id", "pad_token", "pad_token_id"),
    ] {
        if let Some(id) = special(name, field)? {
            keys.insert(key, id);
        }
    }
    keys.insert("tokenizer.ggml.add_bos_token", flag("add_bos_token"));
    keys.insert("tokenizer.ggml.add_eos_token", flag("add_eos_token"));
    Ok(keys)
}

fn bad(problem: impl Into<String>) -> Error {
    Error::Tokenizer(problem.into())
}

fn place(pieces: &mut [Option<(String, i32)>], id: &Value, text: &str, kind: i32) -> Result<(), Error> {
    let n_vocab = pieces.len();
    let slot = id.as_u64().and_then(|id| pieces.get_mut(usize::try_from(id).ok()?));
    let slot = slot.ok_or_else(|| bad(format!("token `{text}` has id {id}, the model has {n_vocab} tokens")))?;
    // An added token may repeat a vocabulary entry (its flag then wins); two texts for one id cannot be.
    match slot {
        Some((other, _)) if other != text => Err(bad(format!("id {id} is both `{other}` and `{text}`"))),
        _ => {
            *slot = Some((text.to_owned(), kind));
            Ok(())
        }
    }
}

/// `["a b", ...]` or `[["a", "b"], ...]` to `"a b"`.
fn merges(model: &Value) -> Result<Strings, Error> {
    let merges = model.get("merges").and_then(Value::as_array).ok_or_else(|| bad("`model.merges` is no list"))?;
    let mut out = Strings::with_capacity(merges.len(), merges.len() * 8);
    for (index, merge) in merges.iter().enumerate() {
        let pair = match merge {
            Value::String(pair) => Some(pair.clone()),
            Value::Array(parts) => match parts.as_slice() {
                [Value::String(left), Value::String(right)] => Some(format!("{left} {right}")),
                _ => None,
            },
            _ => None,
        };
        match pair.filter(|pair| pair.matches(' ').count() == 1) {
            Some(pair) => out.push(&pair),
            None => return Err(bad(format!("merge {index} is not a pair of pieces"))),
        }
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn sample() -> Value {
        json!({
            "model": {"type": "BPE", "vocab": {"a": 2, "b": 3, "ab": 4}, "merges": [["a", "b"]]},
            "added_tokens": [
                {"id": 0, "content": "<s>", "special": true}, {"id": 1, "content": "</s>", "special": true},
                {"id": 5, "content": "<think>", "special": false}
            ]
        })
    }

    #[test]
    fn vocabulary_types_merges_and_special_ids_are_written() {
        let config =
            json!({"bos_token": {"content": "<s>"}, "eos_token": "</s>", "pad_token": null, "add_bos_token": false});
        let keys = keys(&sample(), Some(&config), &json!({"pad_token_id": 1}), 8).unwrap();
        let tokens: Vec<&str> = keys.strings("tokenizer.ggml.tokens").unwrap().iter().collect();
        assert_eq!(tokens, ["<s>", "</s>", "a", "b", "ab", "<think>", "[PAD6]", "[PAD7]"]);
        assert_eq!(keys.integers("tokenizer.ggml.token_type").unwrap(), [3, 3, 1, 1, 1, 4, 5, 5]);
        assert_eq!(keys.strings("tokenizer.ggml.merges").unwrap().get(0), Some("a b"));
        assert_eq!(keys.u32("tokenizer.ggml.bos_token_id").unwrap(), 0);
        assert_eq!(keys.u32("tokenizer.ggml.eos_token_id").unwrap(), 1);
        assert_eq!(keys.u32("tokenizer.ggml.padding_token_id").unwrap(), 1);
        assert_eq!(keys.str("tokenizer.ggml.pre").unwrap(), "joyai-llm");
    }

    #[test]
    fn old_merge_strings_are_the_same_as_pairs() {
        let mut old = sample();
        old["model"]["merges"] = json!(["a b"]);
        assert_eq!(keys(&old, None, &json!({}), 6).unwrap(), keys(&sample(), None, &json!({}), 6).unwrap());
    }

    #[test]
    fn a_vocabulary_that_does_not_fit_is_refused() {
        let refused = |tokenizer: &Value, n| keys(tokenizer, None, &json!({}), n).unwrap_err().to_string();
        assert!(refused(&sample(), 5).contains("token `<think>` has id 5, the model has 5 tokens"));
        let mut twice = sample();
        twice["added_tokens"][2] = json!({"id": 6, "content": "a"});
        assert!(refused(&twice, 8).contains("`a` occurs twice"));
        let mut both = sample();
        both["added_tokens"][2] = json!({"id": 4, "content": "x"});
        assert!(refused(&both, 8).contains("id 4 is both `ab` and `x`"));
        assert!(refused(&json!({"model": {"type": "Unigram"}}), 8).contains("Unigram"));
        assert!(refused(&json!({"model": {"vocab": {}, "merges": [["a"]]}}), 1).contains("merge 0"));
    }
}
