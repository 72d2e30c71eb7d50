//! Looking inside a step: values of each layer, to find the first that goes wrong, and the time of each node, to find what is slow.

use std::time::Duration;

/// What [`super::Engine::inspect`] is asked for.
pub enum Inspect<'a> {
    /// Values inside each layer, in place of what was there.
    Values(&'a mut Probe),
    /// What every layer that chooses by score chose, and what its experts gave, in place of what was there.
    Experts(&'a mut Vec<ExpertTrace>),
    /// Kind and time of every node of the graph, in order. Nodes run one by one, so that their sum is a little more than a step takes.
    Times(&'a mut dyn FnMut(&str, Duration)),
}

/// The router and the chosen experts of one layer, for every token of a step. What calibration of a routing policy is made from.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ExpertTrace {
    pub layer: usize,
    /// i32 `[n_tokens, n_used]`, in the order of selection; -1 where a policy dropped one.
    pub ids: Vec<i32>,
    /// p: f32 `[n_tokens, n_used]`
    pub weights: Vec<f32>,
    /// How far the score (with its bias) is above that of the best expert that is not in `ids`: f32 `[n_tokens, n_used]`, infinite when all are, 0 at
    /// a dropped one.
    pub margins: Vec<f32>,
    /// Products of the weighted outputs `p_i E_i(x)` with each other: f32 `[n_tokens, n_used, n_used]`
    pub gram: Vec<f32>,
}

/// Values of one tensor.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    F32(Vec<f32>),
    I32(Vec<i32>),
}

/// A named tensor; the slowest axis of `shape` comes first.
#[derive(Clone, Debug, PartialEq)]
pub struct Probed {
    pub name: String,
    pub shape: Vec<usize>,
    pub value: Value,
}

/// Values inside a step, in the order in which they were computed. Names and shapes are those of the golden files
/// (`make_tiny_v4.py`): `layer_L.attn_out` and `.ffn_out` `[n_tokens, n_embd]`, `.streams` `[n_tokens, n_hc, n_embd]`, `.experts` and
/// `.expert_weights` `[n_tokens, n_used]`, `.index_selected` `[n_tokens, top_k]` with -1 beyond what was chosen, `.compressed`
/// `[rows, n_embd_head]`: every row of the batch's first sequence.
#[derive(Clone, Debug, Default)]
pub struct Probe {
    pub values: Vec<Probed>,
}
