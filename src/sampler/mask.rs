//! Which tokens a constraint (a grammar, a schema) allows next.

use crate::ids::TokenId;

/// A set of allowed tokens, one bit each, in words of 32 as grammar engines make them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mask {
    words: Vec<u32>,
}

impl Mask {
    /// Allows nothing.
    pub fn none(n_vocab: usize) -> Self {
        Mask { words: vec![0; n_vocab.div_ceil(32)] }
    }

    /// Allows every token but these.
    pub fn all_but(n_vocab: usize, forbidden: &[TokenId]) -> Self {
        let mut mask = Mask { words: vec![u32::MAX; n_vocab.div_ceil(32)] };
        for token in forbidden {
            if let Some(word) = mask.words.get_mut(token.0 as usize / 32) {
                *word &= !(1 << (token.0 % 32));
            }
        }
        mask
    }

    /// Allows `token`, if it is within the vocabulary.
    pub fn allow(&mut self, token: TokenId) {
        if let Some(word) = self.words.get_mut(token.0 as usize / 32) {
            *word |= 1 << (token.0 % 32);
        }
    }

    pub fn allows(&self, token: TokenId) -> bool {
        self.words.get(token.0 as usize / 32).is_some_and(|word| word >> (token.0 % 32) & 1 == 1)
    }

    /// The set that these words say; missing words allow nothing.
    pub(super) fn copy_from(&mut self, words: &[u32]) {
        for (i, word) in self.words.iter_mut().enumerate() {
            *word = words.get(i).copied().unwrap_or(0);
        }
    }

    /// Makes every token that is not allowed impossible.
    pub(super) fn apply(&self, logits: &mut [f32]) {
        for (i, chunk) in logits.chunks_mut(32).enumerate() {
            let word = self.words.get(i).copied().unwrap_or(0);
            if word == u32::MAX {
                continue;
            }
            for (bit, logit) in chunk.iter_mut().enumerate() {
                if word >> bit & 1 == 0 {
                    *logit = f32::NEG_INFINITY;
                }
            }
        }
    }
}
