//! Logits to one token. Pure and seeded: same parameters, seed, history and logits, same token.

use crate::ids::TokenId;

/// How the next token is chosen. Field names, meanings and defaults are those of Ollama's options.
#[derive(Clone, Debug, PartialEq)]
pub struct Params {
    /// 0 = greedy.
    pub temperature: f32,
    /// 0 = all.
    pub top_k: usize,
    pub top_p: f32,
    pub min_p: f32,
    pub typical_p: f32,
    /// Tokens of history that the penalties look at; 0 = none, `None` = the whole context.
    pub repeat_last_n: Option<usize>,
    pub repeat_penalty: f32,
    pub presence_penalty: f32,
    pub frequency_penalty: f32,
    pub mirostat: Mirostat,
    /// Added to the logits of these tokens.
    pub logit_bias: Vec<(TokenId, f32)>,
    /// `None` = a new random seed for each request.
    pub seed: Option<u64>,
    /// Most likely alternatives reported beside each token; `None` = no logprobs at all.
    pub logprobs: Option<usize>,
}

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

/// A token with the natural logarithm of its probability.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Scored {
    pub token: TokenId,
    pub logprob: f32,
}

/// Why no token can be chosen, or a parameter that makes no sense.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum Error {
    #[error("`{name}` must be {must}, not `{value}`")]
    Parameter { name: &'static str, must: &'static str, value: f32 },
    #[error("the model computed no usable number for any allowed token")]
    NoCandidate,
    #[error("the model computed `{value}` for token {token}")]
    NotANumber { token: u32, value: f32 },
}
