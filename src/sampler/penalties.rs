//! Making tokens of the recent history less likely.
//!
//! Formula of llama.cpp (`llama_sampler_penalties_apply`): for a token that stands `count` times in the window,
//! `l = l > 0 ? l / repeat : l * repeat`, then `l -= count * frequency + presence`.

use std::collections::{HashMap, VecDeque};

use super::Params;
use crate::ids::TokenId;

#[derive(Clone, Debug)]
pub(super) struct Penalties {
    repeat: f32,
    frequency: f32,
    presence: f32,
    /// Most tokens of the window; `None` = all.
    last_n: Option<usize>,
    window: VecDeque<u32>,
    /// How often each token stands in the window. The order of iteration does not matter: each token has its own logit.
    counts: HashMap<u32, u32>,
}

impl Penalties {
    pub(super) fn new(params: &Params) -> Self {
        let last_n = params.repeat_last_n;
        let room = last_n.unwrap_or(0).min(4096);
        Penalties {
            repeat: params.repeat_penalty,
            frequency: params.frequency_penalty,
            presence: params.presence_penalty,
            last_n,
            window: VecDeque::with_capacity(room + 1),
            counts: HashMap::with_capacity(room + 1),
        }
    }

    fn off(&self) -> bool {
        self.last_n == Some(0) || (self.repeat == 1.0 && self.frequency == 0.0 && self.presence == 0.0)
    }

    /// Appends the last of `tokens` that fit the window.
    pub(super) fn accept(&mut self, tokens: &[TokenId]) {
        if self.off() {
            return;
        }
        let start = self.last_n.map_or(0, |n| tokens.len().saturating_sub(n));
        for token in &tokens[start..] {
            *self.counts.entry(token.0).or_insert(0) += 1;
            let Some(last_n) = self.last_n else { continue };
            self.window.push_back(token.0);
            if self.window.len() > last_n
                && let Some(gone) = self.window.pop_front()
                && let Some(count) = self.counts.get_mut(&gone)
            {
                *count -= 1;
                if *count == 0 {
                    self.counts.remove(&gone);
                }
            }
        }
    }

    /// Changes the logits of the window's tokens; `touched` gets what they were.
    pub(super) fn apply(&self, logits: &mut [f32], touched: &mut Vec<(u32, f32)>) {
        if self.off() {
            return;
        }
        for (&token, &count) in &self.counts {
            let Some(logit) = logits.get_mut(token as usize) else { continue };
            touched.push((token, *logit));
            let repeated = if *logit > 0.0 { *logit / self.repeat } else { *logit * self.repeat };
            // Extreme parameters must not make an infinity of a finite logit.
            *logit = (repeated - (count as f32 * self.frequency + self.presence)).min(f32::MAX);
        }
    }
}
