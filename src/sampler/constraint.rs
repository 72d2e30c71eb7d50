//! What an answer must look like, as masks of the tokens that may come next. Grammars are compiled and walked by llguidance.
//!
//! A [`Compiler`] is made once for each vocabulary, a [`Constraint`] for each answer. One that starts after a text (the end of the
//! reasoning) allows everything but an end until the answer has said it, and begins with the next byte.

use std::sync::Arc;

use llguidance::api::TopLevelGrammar;
use llguidance::toktrie::{ApproximateTokEnv, InferenceCapabilities, TokEnv, TokRxInfo, TokTrie};
use llguidance::{JsonCompileOptions, Matcher, ParserFactory};
use serde_json::Value;

use super::{Error, Mask};
use crate::ids::TokenId;

/// White space between the parts of a JSON document: one blank, or a line end with its indentation. Without a bound a model can
/// write white space until its budget ends.
const WHITESPACE: &str = r" |\r?\n[ \t]{0,40}";

/// The form of an answer.
#[derive(Clone, Debug, PartialEq)]
pub enum Form {
    /// Any JSON object.
    Json,
    /// A JSON document that follows this JSON schema.
    Schema(Value),
}

/// A vocabulary that constraints can be compiled for.
pub struct Compiler {
    factory: ParserFactory,
    tokens: Arc<[Box<[u8]>]>,
    /// All but the end tokens.
    goes_on: Arc<Mask>,
}

/// How one token of a vocabulary is seen by grammars.
#[derive(Clone, Copy, Debug)]
pub enum Spelled<'a> {
    /// It stands for these bytes; none means that no grammar reaches it.
    Bytes(&'a [u8]),
    /// A control token, which is no text.
    Control(&'a [u8]),
}

impl Compiler {
    /// `tokens` in the order of their ids; `ends` are those that end an answer, each below the number of tokens.
    ///
    /// # Errors
    /// [`Error::Constraint`] when the vocabulary is empty or has no end.
    pub fn new<'a>(tokens: impl Iterator<Item = Spelled<'a>>, ends: &[TokenId]) -> Result<Compiler, Error> {
        let mut spelled: Vec<Vec<u8>> = Vec::new();
        let mut bytes: Vec<Box<[u8]>> = Vec::new();
        for token in tokens {
            let (word, text) = match token {
                Spelled::Bytes(text) => (text.to_vec(), text),
                Spelled::Control(text) => ([&[TokTrie::SPECIAL_TOKEN_MARKER], text].concat(), text),
            };
            spelled.push(word);
            bytes.push(text.into());
        }
        let ends: Vec<u32> = ends.iter().map(|end| end.0).filter(|end| (*end as usize) < spelled.len()).collect();
        let Some(&end) = ends.first() else {
            return Err(Error::Constraint("the vocabulary has no token that ends an answer".into()));
        };
        let info = TokRxInfo::new(spelled.len() as u32, end);
        let trie = TokTrie::from(&info, &spelled).with_eos_tokens(&ends);
        let environment: TokEnv = Arc::new(ApproximateTokEnv::new(trie));
        let slices = llguidance::earley::SlicedBiasComputer::json_slices();
        let mut factory =
            ParserFactory::new(&environment, InferenceCapabilities::default(), &slices).map_err(failed)?;
        factory.quiet();
        factory.limits_mut().verbose_errors = false;
        let ends: Vec<TokenId> = ends.into_iter().map(TokenId).collect();
        Ok(Compiler { factory, goes_on: Arc::new(Mask::all_but(bytes.len(), &ends)), tokens: bytes.into() })
    }

    /// Compiles a form. It takes milliseconds, for a large schema more: not for an async thread.
    ///
    /// # Errors
    /// [`Error::Constraint`] for a schema that makes no sense, uses what is not supported, or is too large.
    pub fn compile(&self, form: &Form) -> Result<Constraint, Error> {
        let mut schema = match form {
            Form::Json => serde_json::json!({"type": "object"}),
            Form::Schema(schema) => schema.clone(),
        };
        if !schema.is_object() {
            return Err(Error::Constraint("a JSON schema must be an object".into()));
        }
        let options = JsonCompileOptions {
            whitespace_pattern: Some(WHITESPACE.into()),
            json_allow_general_unicode_escapes: true,
            ..JsonCompileOptions::default()
        };
        options.apply_to(&mut schema);
        let parser = self.factory.create_parser(TopLevelGrammar::from_json_schema(schema)).map_err(failed)?;
        Ok(Constraint {
            matcher: Matcher::new(Ok(parser)),
            tokens: Arc::clone(&self.tokens),
            goes_on: Arc::clone(&self.goes_on),
            waits_for: Vec::new(),
            said: Vec::new(),
            mask: Mask::none(self.tokens.len()),
        })
    }
}

impl std::fmt::Debug for Compiler {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Compiler").field("n_vocab", &self.tokens.len()).finish_non_exhaustive()
    }
}

/// The first sentence of what llguidance says; the rest is its inner state.
fn failed(error: impl std::fmt::Display) -> Error {
    let text = error.to_string();
    Error::Constraint(text.lines().next().unwrap_or_default().trim().to_owned())
}

/// How far one answer has come in its form.
#[derive(Clone)]
pub struct Constraint {
    matcher: Matcher,
    tokens: Arc<[Box<[u8]>]>,
    goes_on: Arc<Mask>,
    /// Everything but an end is allowed until the answer has said this; empty = nothing is waited for.
    waits_for: Vec<u8>,
    /// The last bytes of the answer while it waits.
    said: Vec<u8>,
    /// Kept for its memory.
    mask: Mask,
}

impl std::fmt::Debug for Constraint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Constraint").field("waits", &!self.waits_for.is_empty()).finish_non_exhaustive()
    }
}

impl Constraint {
    /// The same, from the byte on that follows the first `text` of the answer.
    pub fn after(mut self, text: &str) -> Constraint {
        self.waits_for = text.as_bytes().to_vec();
        self
    }

    /// Which tokens may come next. End tokens are allowed where the form may end, and nothing else where it must.
    ///
    /// # Errors
    /// [`Error::Constraint`] when the form needs too much work at this place.
    pub fn allowed(&mut self) -> Result<&Mask, Error> {
        if !self.waits_for.is_empty() {
            return Ok(&self.goes_on);
        }
        let allowed = self.matcher.compute_mask_or_eos().map_err(failed)?;
        self.mask.copy_from(allowed.as_slice());
        Ok(&self.mask)
    }

    /// The token was chosen. It must be one that was allowed.
    ///
    /// # Errors
    /// [`Error::Constraint`] when it was not.
    pub fn accept(&mut self, token: TokenId) -> Result<(), Error> {
        if self.waits_for.is_empty() {
            if self.matcher.is_stopped() {
                return Ok(());
            }
            return self.matcher.consume_token(token.0).map_err(failed);
        }
        self.said.extend_from_slice(self.tokens.get(token.0 as usize).map_or(&[][..], |bytes| bytes));
        let text = &self.waits_for;
        if let Some(at) = self.said.windows(text.len()).position(|window| window == text) {
            // White space behind the end of the reasoning belongs to neither.
            let rest = self.said[at + text.len()..].trim_ascii_start().to_vec();
            self.waits_for.clear();
            self.said = Vec::new();
            return self.begin_with(&rest);
        }
        let kept = self.said.len().min(text.len() - 1);
        self.said.drain(..self.said.len() - kept);
        Ok(())
    }

    /// The token that ended the reasoning holds the first bytes of the answer too.
    fn begin_with(&mut self, bytes: &[u8]) -> Result<(), Error> {
        let mut rest = bytes;
        while !rest.is_empty() {
            let environment = self.matcher.tok_env().map_err(failed)?;
            let (token, taken) = environment.tok_trie().prefix_token_id(rest);
            if taken == 0 {
                return Err(Error::Constraint("the answer begins with bytes that no token has".into()));
            }
            self.matcher.consume_token(token).map_err(failed)?;
            rest = &rest[taken..];
        }
        Ok(())
    }

    /// Whether the answer could end here.
    #[cfg(test)]
    fn may_end(&mut self) -> bool {
        self.waits_for.is_empty() && self.matcher.is_accepting().unwrap_or(false)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    const END: TokenId = TokenId(256);
    const THINK: TokenId = TokenId(257);

    /// Every byte a token, then the end token, `</think>` as a control token, and a few long tokens.
    fn compiler() -> Compiler {
        let bytes: Vec<Vec<u8>> = (0..=255u8).map(|byte| vec![byte]).collect();
        let words: [&[u8]; 4] = [b"{\"", b"\":", b"true", b"k>{\""];
        let tokens = bytes.iter().map(|byte| Spelled::Bytes(byte));
        let control = [Spelled::Control(b"<end>"), Spelled::Control(b"</think>")];
        let all = tokens.chain(control).chain(words.iter().map(|word| Spelled::Bytes(word)));
        Compiler::new(all, &[END]).unwrap()
    }

    /// Walks a text byte by byte; the first byte that is not allowed, or whether it may end.
    fn walk(constraint: &mut Constraint, text: &str) -> Result<bool, usize> {
        for (at, byte) in text.bytes().enumerate() {
            let token = TokenId(u32::from(byte));
            if !constraint.allowed().unwrap().allows(token) {
                return Err(at);
            }
            constraint.accept(token).unwrap();
        }
        Ok(constraint.may_end())
    }

    #[test]
    fn json_is_an_object_with_bounded_white_space() {
        let compiler = compiler();
        let json = |text: &str| walk(&mut compiler.compile(&Form::Json).unwrap(), text);
        for text in ["{}", "{\"a\": [1, 2.5e3, null, {\"b\": \"\\u00e9 é\"}]}", "{\n    \"a\": true,\n    \"b\": []\n}"]
        {
            assert_eq!(json(text), Ok(true), "{text}");
        }
        for (text, wrong) in [
            ("[1]", 0),
            ("x", 0),
            ("{\"a\" 1}", 5),
            ("{\"a\":01}", 6),
            ("{\"a\":1,}", 7),
            ("{}x", 2),
            ("{\"a\":  1}", 6),
        ] {
            assert_eq!(json(text), Err(wrong), "{text}");
        }
        assert_eq!(json("{\"a\": 1"), Ok(false));
    }

    #[test]
    fn a_finished_answer_can_only_end() {
        let mut constraint = compiler().compile(&Form::Json).unwrap();
        assert!(!constraint.allowed().unwrap().allows(END));
        walk(&mut constraint, "{}").unwrap();
        let mask = constraint.allowed().unwrap();
        assert!(mask.allows(END) && (0..256).all(|byte| !mask.allows(TokenId(byte))));
        constraint.accept(END).unwrap();
    }

    #[test]
    fn a_schema_is_followed_with_long_tokens_too() {
        let schema = json!({"type": "object", "properties": {"ok": {"type": "boolean"}, "n": {"enum": [1, 22]}}, "required": ["ok"],
                            "additionalProperties": false});
        let compiler = compiler();
        let mut constraint = compiler.compile(&Form::Schema(schema.clone())).unwrap();
        for token in [258, u32::from(b'o'), u32::from(b'k'), 259, 260, u32::from(b'}')] {
            assert!(constraint.allowed().unwrap().allows(TokenId(token)), "{token}");
            constraint.accept(TokenId(token)).unwrap();
        }
        assert!(constraint.may_end());
        let follow = |text: &str| walk(&mut compiler.compile(&Form::Schema(schema.clone())).unwrap(), text);
        assert_eq!(follow("{\"ok\": false, \"n\": 22}"), Ok(true));
        assert_eq!(follow("{\"ok\": 1}"), Err(7));
        assert_eq!(follow("{\"n\""), Err(2));
        assert_eq!(follow("{\"ok\": true, \"n\": 3"), Err(18));
    }

    #[test]
    fn it_starts_where_the_reasoning_ends() {
        let compiler = compiler();
        let mut constraint = compiler.compile(&Form::Json).unwrap().after("</think>");
        assert_eq!(walk(&mut constraint, "any [text} at all </thin"), Ok(false));
        assert!(!constraint.allowed().unwrap().allows(END), "an answer must follow");
        constraint.accept(THINK).unwrap();
        assert_eq!(walk(&mut constraint, "x"), Err(0));
        assert_eq!(walk(&mut constraint, "{}"), Ok(true));
        // Spelled in bytes, with the beginning of the answer in the last token.
        let mut constraint = compiler.compile(&Form::Json).unwrap().after("</think>");
        walk(&mut constraint, "hm</thin").unwrap();
        constraint.accept(TokenId(261)).unwrap();
        assert_eq!(walk(&mut constraint, "a\": 1}"), Ok(true));
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        let compiler = compiler();
        for schema in [
            json!([]),
            json!({"type": "nonsense"}),
            json!({"$ref": "https://example.org/x.json"}),
            json!({"type": "string", "pattern": "("}),
        ] {
            let error = compiler.compile(&Form::Schema(schema.clone())).unwrap_err();
            let text = error.to_string();
            assert!(
                matches!(error, Error::Constraint(_)) && !text.contains('\n') && text.len() < 300,
                "{schema}: {text}"
            );
        }
        assert!(Compiler::new(std::iter::empty(), &[END]).is_err());
    }
}
