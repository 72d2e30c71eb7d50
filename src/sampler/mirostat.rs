//! Mirostat (Basu et al., 2021, arXiv:2007.14966): chooses how far down the list to sample so that the surprise of the chosen
//! tokens stays near a target. Arithmetic as in llama.cpp (`llama_sampler_mirostat_apply`, `..._v2_apply`).

use super::filters::{self, Candidate};
use super::{Mirostat, Rng, draw};

#[derive(Clone, Debug)]
pub(super) struct State {
    kind: Mirostat,
    n_vocab: usize,
    /// Allowed surprise in bits, moved after every token.
    mu: f32,
}

/// Candidates that the exponent of version 1 is estimated from.
const ESTIMATED_FROM: usize = 100;

impl State {
    pub(super) fn new(kind: Mirostat, n_vocab: usize) -> Self {
        let mu = match kind {
            Mirostat::Off => 0.0,
            Mirostat::V1 { tau, .. } | Mirostat::V2 { tau, .. } => 2.0 * tau,
        };
        State { kind, n_vocab, mu }
    }

    /// Chooses among `candidates`, whose logits are tempered already. Not empty.
    pub(super) fn choose(&mut self, candidates: &mut Vec<Candidate>, rng: &mut Rng) -> u32 {
        let (tau, eta) = match self.kind {
            Mirostat::Off => unreachable!("the sampler asks only when mirostat is on"),
            Mirostat::V1 { tau, eta } => {
                filters::front_by(candidates, ESTIMATED_FROM, filters::by_logit);
                let k = self.estimated_k(candidates);
                filters::front_by(candidates, k, filters::by_logit);
                candidates.truncate(k);
                (tau, eta)
            }
            Mirostat::V2 { tau, eta } => {
                let sum = filters::softmax(candidates, 1.0);
                // Surprise at most mu: probability at least 2^-mu.
                let least = sum * (-f64::from(self.mu)).exp2();
                // The most likely one always stays.
                let most_likely = *candidates.iter().min_by(|a, b| filters::by_logit(a, b)).unwrap_or(&candidates[0]);
                candidates.retain(|c| f64::from(c.weight) >= least || c.id == most_likely.id);
                (tau, eta)
            }
        };
        let sum = filters::softmax(candidates, 1.0);
        let chosen = draw(candidates, sum, rng);
        let surprise = -(f64::from(chosen.weight) / sum).log2() as f32;
        self.mu -= eta * (surprise - tau);
        chosen.id
    }

    /// The `k` whose top-k sampling has the allowed surprise, if the probabilities follow Zipf's law.
    /// The first [`ESTIMATED_FROM`] candidates are sorted.
    fn estimated_k(&self, candidates: &mut [Candidate]) -> usize {
        filters::softmax(candidates, 1.0);
        let (mut tb, mut tt) = (0.0f32, 0.0f32);
        for (i, pair) in candidates.windows(2).take(ESTIMATED_FROM - 1).enumerate() {
            if pair[1].weight <= 0.0 {
                break;
            }
            let t = ((i + 2) as f32 / (i + 1) as f32).ln();
            tb += t * (pair[0].weight / pair[1].weight).ln();
            tt += t * t;
        }
        let s = tb / tt;
        let epsilon = s - 1.0;
        let k = ((epsilon * self.mu.exp2()) / (1.0 - (self.n_vocab as f32).powf(-epsilon))).powf(1.0 / s);
        // Not a number when all candidates are equally likely or only one is left: nothing to cut.
        if k.is_nan() { candidates.len() } else { (k as usize).clamp(1, candidates.len()) }
    }
}
