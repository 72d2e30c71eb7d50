//! Logits to one token. Pure and seeded: same parameters, seed, history and logits, same token.
//!
//! The order is that of llama.cpp's default chain (`common_sampler_init`):
//! 1. logit bias, 2. penalties over the recent history, 3. the mask of a constraint,
//! 4. temperature 0: the most likely token, done. Otherwise
//! 5. top-k, typical, top-p, min-p (each over what the one before left), 6. temperature, 7. the draw;
//!    with mirostat, instead of 5: temperature, then mirostat cuts and draws.
//!
//! Unlike llama.cpp, penalties also act under mirostat. Log-probabilities are those of the model, before step 1.
//! A logit of minus infinity is an impossible token; NaN and plus infinity are errors, whatever produced them.

use crate::ids::TokenId;

mod constraint;
mod filters;
mod logprobs;
mod mask;
mod mirostat;
mod penalties;
#[cfg(test)]
mod reference;
mod rng;
mod vector;

pub use constraint::{Compiler, Constraint, Form, Spelled};
use filters::Candidate;
use logprobs::Logprobs;
pub use mask::Mask;
use penalties::Penalties;
pub use rng::Rng;

/// How the next token is chosen. Field names, meanings and defaults are those of Ollama's options.
#[derive(Clone, Debug, PartialEq)]
pub struct Params {
    /// 0 (or less) = greedy.
    pub temperature: f32,
    /// 0 = all.
    pub top_k: usize,
    /// 1 (or more) = all.
    pub top_p: f32,
    /// 0 (or less) = all.
    pub min_p: f32,
    /// 1 (or more) = all.
    pub typical_p: f32,
    /// Tokens of history that the penalties look at; 0 = none, `None` = the whole context.
    pub repeat_last_n: Option<usize>,
    /// 1 = none.
    pub repeat_penalty: f32,
    pub presence_penalty: f32,
    pub frequency_penalty: f32,
    pub mirostat: Mirostat,
    /// Added to the logits of these tokens; minus infinity forbids a token.
    pub logit_bias: Vec<(TokenId, f32)>,
    /// `None` = a new random seed for each request.
    pub seed: Option<u64>,
    /// Most likely alternatives reported beside each token; `None` = no logprobs at all.
    pub logprobs: Option<usize>,
}

/// Sampling towards a surprise of `tau` bits, corrected at rate `eta`.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub enum Mirostat {
    #[default]
    Off,
    V1 {
        tau: f32,
        eta: f32,
    },
    V2 {
        tau: f32,
        eta: f32,
    },
}

impl Default for Params {
    fn default() -> Self {
        Params {
            temperature: 0.8,
            top_k: 40,
            top_p: 0.9,
            min_p: 0.0,
            typical_p: 1.0,
            repeat_last_n: Some(64),
            repeat_penalty: 1.0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            mirostat: Mirostat::Off,
            logit_bias: Vec::new(),
            seed: None,
            logprobs: None,
        }
    }
}

impl Params {
    /// The most likely token, always.
    pub fn greedy() -> Self {
        Params { temperature: 0.0, ..Params::default() }
    }

    /// Whether the numbers make sense.
    ///
    /// # Errors
    /// [`Error::Parameter`] names the first that does not.
    pub fn check(&self) -> Result<(), Error> {
        let finite = |name, value: f32| match value.is_finite() {
            true => Ok(()),
            false => Err(Error::Parameter { name, must: "a finite number", value }),
        };
        finite("temperature", self.temperature)?;
        finite("top_p", self.top_p)?;
        finite("min_p", self.min_p)?;
        finite("typical_p", self.typical_p)?;
        finite("repeat_penalty", self.repeat_penalty)?;
        finite("presence_penalty", self.presence_penalty)?;
        finite("frequency_penalty", self.frequency_penalty)?;
        if self.repeat_penalty <= 0.0 {
            return Err(Error::Parameter { name: "repeat_penalty", must: "above 0", value: self.repeat_penalty });
        }
        if let Mirostat::V1 { tau, eta } | Mirostat::V2 { tau, eta } = self.mirostat {
            finite("mirostat_tau", tau)?;
            finite("mirostat_eta", eta)?;
        }
        match self.logit_bias.iter().find(|(_, bias)| bias.is_nan() || *bias == f32::INFINITY) {
            Some(&(_, value)) => Err(Error::Parameter { name: "logit_bias", must: "a number", value }),
            None => Ok(()),
        }
    }
}

/// A token with the natural logarithm of its probability.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Scored {
    pub token: TokenId,
    pub logprob: f32,
}

/// The chosen token, and what was asked for about its probability.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Choice<'a> {
    pub token: TokenId,
    /// When [`Params::logprobs`] asks for it.
    pub logprob: Option<f32>,
    /// Most likely first; as many as [`Params::logprobs`] says.
    pub top: &'a [Scored],
}

/// Why no token can be chosen, or a parameter that makes no sense.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum Error {
    #[error("`{name}` must be {must}, not `{value}`")]
    Parameter { name: &'static str, must: &'static str, value: f32 },
    #[error("`logit_bias` names token `{token}`, the vocabulary has {n_vocab}")]
    UnknownToken { token: u32, n_vocab: usize },
    #[error("the model gave {found} logits for a vocabulary of {n_vocab}")]
    Vocabulary { found: usize, n_vocab: usize },
    #[error("no token is allowed here")]
    NoCandidate,
    /// A form that cannot be compiled, or an answer that left its form.
    #[error("the form of the answer: {0}")]
    Constraint(String),
    #[error("the model computed `{value}` for token {token}")]
    NotANumber { token: u32, value: f32 },
}

/// Chooses the tokens of one sequence.
#[derive(Clone, Debug)]
pub struct Sampler {
    params: Params,
    n_vocab: usize,
    penalties: Penalties,
    mirostat: mirostat::State,
    logprobs: Option<Logprobs>,
    rng: Rng,
    /// Buffers, kept from token to token.
    candidates: Vec<Candidate>,
    /// Logits as they were before bias and penalties, oldest first.
    touched: Vec<(u32, f32)>,
}

impl Sampler {
    /// # Errors
    /// [`Error::Parameter`] and [`Error::UnknownToken`].
    pub fn new(params: &Params, n_vocab: usize) -> Result<Self, Error> {
        params.check()?;
        if let Some(&(token, _)) = params.logit_bias.iter().find(|(token, _)| token.0 as usize >= n_vocab) {
            return Err(Error::UnknownToken { token: token.0, n_vocab });
        }
        Ok(Sampler {
            params: params.clone(),
            n_vocab,
            penalties: Penalties::new(params),
            mirostat: mirostat::State::new(params.mirostat, n_vocab),
            logprobs: params.logprobs.map(Logprobs::new),
            rng: Rng::new(params.seed.unwrap_or_else(rng::random_seed)),
            candidates: Vec::new(),
            touched: Vec::new(),
        })
    }

    /// Tells the penalties what stands in the sequence: the prompt, and every token once it is part of the sequence.
    pub fn accept(&mut self, tokens: &[TokenId]) {
        self.penalties.accept(tokens);
    }

    /// Chooses a token. Works in `logits` (`f32 [n_vocab]`), whose contents are undefined afterwards. Allocates only until its
    /// buffers have grown to what the parameters need. The choice is not part of the history before [`Sampler::accept`].
    ///
    /// # Errors
    /// [`Error::NotANumber`] and [`Error::Vocabulary`] when the logits are broken, [`Error::NoCandidate`] when every token is
    /// impossible.
    pub fn sample(&mut self, logits: &mut [f32], mask: Option<&Mask>) -> Result<Choice<'_>, Error> {
        if logits.len() != self.n_vocab {
            return Err(Error::Vocabulary { found: logits.len(), n_vocab: self.n_vocab });
        }
        check_numbers(logits)?;
        if let Some(logprobs) = &mut self.logprobs {
            logprobs.look(logits, &mut self.candidates);
        }
        self.touched.clear();
        for &(token, bias) in &self.params.logit_bias {
            let logit = &mut logits[token.0 as usize];
            self.touched.push((token.0, *logit));
            *logit = (*logit + bias).min(f32::MAX);
        }
        self.penalties.apply(logits, &mut self.touched);
        if let Some(mask) = mask {
            mask.apply(logits);
        }
        let id = self.choose(logits)?;
        let (logprob, top) = match &self.logprobs {
            Some(logprobs) => {
                // The mask changed only tokens that were not chosen.
                let original = self.touched.iter().find(|t| t.0 == id).map_or(logits[id as usize], |t| t.1);
                (Some(logprobs.of(original)), logprobs.top())
            }
            None => (None, &[][..]),
        };
        Ok(Choice { token: TokenId(id), logprob, top })
    }

    fn choose(&mut self, logits: &mut [f32]) -> Result<u32, Error> {
        let p = &self.params;
        let candidates = &mut self.candidates;
        if p.temperature <= 0.0 {
            return most_likely(logits).ok_or(Error::NoCandidate);
        }
        // Finite, also for temperatures so small that they mean greedy.
        let scale = (1.0 / p.temperature).min(f32::MAX);
        if p.mirostat != Mirostat::Off {
            filters::all(logits, candidates);
            if candidates.is_empty() {
                return Err(Error::NoCandidate);
            }
            for c in candidates.iter_mut() {
                c.logit = (c.logit * scale).clamp(f32::MIN, f32::MAX);
            }
            return Ok(self.mirostat.choose(candidates, &mut self.rng));
        }
        match p.top_k {
            0 => filters::all(logits, candidates),
            k => filters::top_k(logits, k, candidates),
        }
        filters::typical(candidates, p.typical_p);
        filters::top_p(candidates, p.top_p);
        filters::min_p(candidates, p.min_p);
        if candidates.is_empty() {
            return Err(Error::NoCandidate);
        }
        let sum = filters::softmax(candidates, scale);
        Ok(draw(candidates, sum, &mut self.rng).id)
    }
}

/// One of `candidates`, with probability `weight / sum`, in their order. Not empty.
fn draw(candidates: &[Candidate], sum: f64, rng: &mut Rng) -> Candidate {
    let mut left = rng.unit() * sum;
    for candidate in candidates {
        left -= f64::from(candidate.weight);
        if left < 0.0 {
            return *candidate;
        }
    }
    // Rounding: the sum was taken in another order. The last one that is possible at all.
    *candidates.iter().rfind(|c| c.weight > 0.0).unwrap_or(&candidates[0])
}

/// The lowest id of the highest logit; `None` when all are impossible.
fn most_likely(logits: &[f32]) -> Option<u32> {
    // A vectorised maximum, then a search for it, is faster than carrying the index along.
    let max = vector::highest(logits);
    if max == f32::NEG_INFINITY {
        return None;
    }
    logits.iter().position(|&l| l == max).map(|id| id as u32)
}

fn check_numbers(logits: &[f32]) -> Result<(), Error> {
    // False for NaN and plus infinity; by stretches, so that the compiler can use vector instructions.
    let fine = |l: f32| l < f32::INFINITY;
    for (i, stretch) in logits.chunks(256).enumerate() {
        if !stretch.iter().fold(true, |all, &l| all & fine(l)) {
            let bad = stretch.iter().position(|&l| !fine(l)).unwrap_or(0);
            return Err(Error::NotANumber { token: (i * 256 + bad) as u32, value: stretch[bad] });
        }
    }
    Ok(())
}
