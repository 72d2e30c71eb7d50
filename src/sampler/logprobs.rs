//! Log-probabilities of the model's own distribution.

use super::filters::{self, Candidate};
use super::{Scored, vector};
use crate::ids::TokenId;

/// What is reported beside a chosen token. Taken from the logits as the model gave them, before bias, penalties, mask and
/// temperature: they say what the model thought, not what the request made of it.
#[derive(Clone, Debug)]
pub(super) struct Logprobs {
    n_top: usize,
    log_sum: f32,
    top: Vec<Scored>,
}

impl Logprobs {
    pub(super) fn new(n_top: usize) -> Self {
        Logprobs { n_top, log_sum: 0.0, top: Vec::with_capacity(n_top) }
    }

    /// Looks at untouched logits. `scratch` is only room to work in.
    pub(super) fn look(&mut self, logits: &[f32], scratch: &mut Vec<Candidate>) {
        let max = vector::highest(logits);
        self.log_sum = (f64::from(max) + vector::sum_exp(logits, max).ln()) as f32;
        self.top.clear();
        let n_top = self.n_top.min(logits.len());
        if n_top > 0 {
            filters::top_k(logits, n_top, scratch);
            let scored = |c: &Candidate| Scored { token: TokenId(c.id), logprob: c.logit - self.log_sum };
            self.top.extend(scratch.iter().map(scored));
        }
    }

    pub(super) fn of(&self, logit: f32) -> f32 {
        logit - self.log_sum
    }

    pub(super) fn top(&self) -> &[Scored] {
        &self.top
    }
}
