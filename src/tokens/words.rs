//! Encoding of byte-level vocabularies, word by word.
//!
//! The `tokenizers` crate carries a map of every byte's origin through each step, which nobody asks for here and which costs most of
//! the time. This does the same steps on plain slices: cut by the same compiled expressions, spell in GPT-2's alphabet, give each
//! word that has not occurred yet to the same model. It serves pipelines of exactly that form; the others go through the crate.

use std::collections::HashMap;

use tokenizers::pre_tokenizers::split::Split;
use tokenizers::utils::SysRegex;
use tokenizers::{
    Model as _, ModelWrapper, OffsetReferential, OffsetType, PreTokenizerWrapper, SplitDelimiterBehavior,
};

use crate::ids::TokenId;

use super::Specials;
use super::pieces::letters;

/// The expressions of `inner`'s pre-tokenizer, if that is a row of isolating splits and then the byte alphabet, without a
/// normaliser before.
fn cuts(inner: &tokenizers::Tokenizer) -> Option<Vec<&SysRegex>> {
    let Some(PreTokenizerWrapper::Sequence(steps)) = inner.get_pre_tokenizer() else { return None };
    let (PreTokenizerWrapper::ByteLevel(bytes), splits) = steps.as_ref().split_last()? else { return None };
    if bytes.add_prefix_space || bytes.use_regex || inner.get_normalizer().is_some() {
        return None;
    }
    let isolates = |split: &&Split| split.behavior == SplitDelimiterBehavior::Isolated && !split.invert;
    splits
        .iter()
        .map(|step| match step {
            PreTokenizerWrapper::Split(split) => Some(split).filter(isolates).map(|split| &split.regex),
            _ => None,
        })
        .collect()
}

/// The ids of `text`, or `None` when the pipeline has another form.
pub(super) fn encode(
    inner: &tokenizers::Tokenizer,
    text: &str,
    specials: Specials,
) -> Option<tokenizers::Result<Vec<TokenId>>> {
    let mut words = Words {
        cuts: cuts(inner)?,
        model: inner.get_model(),
        letters: letters(),
        spelled: String::new(),
        ids: Vec::with_capacity(text.len() / 3),
    };
    Some(words.encode(inner, text, specials).map(|()| words.ids))
}

struct Words<'i> {
    cuts: Vec<&'i SysRegex>,
    model: &'i ModelWrapper,
    letters: [char; 256],
    /// The present word in the alphabet's letters.
    spelled: String,
    ids: Vec<TokenId>,
}

impl Words<'_> {
    fn encode(&mut self, inner: &tokenizers::Tokenizer, text: &str, specials: Specials) -> tokenizers::Result<()> {
        if specials == Specials::AsText {
            return self.segment(text, &mut HashMap::new());
        }
        let segments = inner.get_added_vocabulary().extract_and_normalize(inner.get_normalizer(), text);
        let mut seen = HashMap::new();
        for (segment, _, token) in segments.get_splits(OffsetReferential::Original, OffsetType::None) {
            match token {
                Some(tokens) => self.ids.extend(tokens.iter().map(|token| TokenId(token.id))),
                None => self.segment(segment, &mut seen)?,
            }
        }
        Ok(())
    }

    /// Text without special tokens. `seen` says where in the ids a word has been written already.
    fn segment<'t>(&mut self, text: &'t str, seen: &mut HashMap<&'t str, (usize, usize)>) -> tokenizers::Result<()> {
        let cuts = std::mem::take(&mut self.cuts);
        let mut result = Ok(());
        cut(&cuts, text, &mut |word| {
            if result.is_ok() {
                result = self.word(word, seen);
            }
        });
        self.cuts = cuts;
        result
    }

    fn word<'t>(&mut self, word: &'t str, seen: &mut HashMap<&'t str, (usize, usize)>) -> tokenizers::Result<()> {
        let start = self.ids.len();
        if let Some(&(from, to)) = seen.get(word) {
            self.ids.extend_from_within(from..to);
            return Ok(());
        }
        self.spelled.clear();
        self.spelled.extend(word.bytes().map(|byte| self.letters[usize::from(byte)]));
        self.ids.extend(self.model.tokenize(&self.spelled)?.iter().map(|token| TokenId(token.id)));
        seen.insert(word, (start, self.ids.len()));
        Ok(())
    }
}

/// Cuts `text` by the first expression, and both what matches and what lies between by the others.
fn cut<'t, W: FnMut(&'t str)>(cuts: &[&SysRegex], text: &'t str, word: &mut W) {
    let Some((first, others)) = cuts.split_first() else {
        if !text.is_empty() {
            word(text);
        }
        return;
    };
    let mut end = 0;
    for (from, to) in first.find_iter(text) {
        cut(others, &text[end..from], word);
        cut(others, &text[from..to], word);
        end = to;
    }
    cut(others, &text[end..], word);
}
