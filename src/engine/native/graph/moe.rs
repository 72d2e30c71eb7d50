//! The mixture of experts: a router, the chosen experts, and one that always computes.

use super::{At, Builder, Error, Tensor};
use crate::engine::native::hparams::Layer;
use crate::engine::native::weights::Routing;
use crate::ggml::ops::{Choice, Experts, Route, Routed};

pub(super) struct Fed<'b> {
    /// f32 `[n_embd, n_tokens]`
    pub(super) out: Tensor<'b>,
    pub(super) routed: Routed<'b>,
    /// Of the router: f32 `[n_expert, n_tokens]`
    pub(super) logits: Tensor<'b>,
}

/// `x: f32 [n_embd, n_tokens]`, normed; `tokens: i32 [n_tokens]` for layers that choose by token.
pub(super) fn moe<'b>(
    b: &Builder<'b>,
    at: &At,
    layer: &Layer,
    x: Tensor<'b>,
    tokens: Tensor<'b>,
) -> Result<Fed<'b>, Error> {
    let (h, slots) = (&at.model.hparams, at.slots);
    let choice = match slots.routing {
        Routing::Bias(bias) => Choice::Scores { bias: b.weight(bias) },
        Routing::Table(table) => Choice::Table { table: b.weight(table), tokens },
    };
    let operand = b.operand(x);
    let logits = b.product(b.weight(slots.router), &operand)?;
    let routed = b.moe_route(Route { layer: at.index, logits, choice, n_used: h.n_used, scale: h.expert_scale })?;
    let experts = experts(b, at, layer, x, routed)?;
    let gate = b.product(b.weight(slots.shared_gate), &operand)?;
    let up = b.product(b.weight(slots.shared_up), &operand)?;
    let inner = b.operand(b.swiglu_clamp(gate, up, layer.shared_clamp)?);
    let shared = b.product(b.weight(slots.shared_down), &inner)?;
    Ok(Fed { out: b.add(experts, shared)?, routed, logits })
}

/// The weighted sum of chosen experts: f32 `[n_embd, n_tokens]`.
fn experts<'b>(
    b: &Builder<'b>,
    at: &At,
    layer: &Layer,
    x: Tensor<'b>,
    routed: Routed<'b>,
) -> Result<Tensor<'b>, Error> {
    let (model, slots) = (at.model, at.slots);
    b.expert_ffn(Experts {
        x,
        routed,
        gate: slots.gate,
        up: slots.up,
        down: slots.down,
        clamp: layer.clamp,
        exact: model.exact,
        n_threads: model.n_threads,
    })
}

/// Products of the weighted outputs of a token's experts with each other: f32 `[n_used, n_used, n_tokens]`. Each expert is computed alone, so this
/// costs what the layer's experts cost once more.
pub(super) fn gram<'b>(
    b: &Builder<'b>,
    at: &At,
    layer: &Layer,
    x: Tensor<'b>,
    routed: Routed<'b>,
) -> Result<Tensor<'b>, Error> {
    let [n_embd, n_tokens, ..] = x.ne();
    let n_used = at.model.hparams.n_used;
    let repeated = b.repeat(b.reshape(x, [n_embd, 1, n_tokens, 1])?, [n_embd, n_used, n_tokens, 1])?;
    let repeated = b.reshape(repeated, [n_embd, n_used * n_tokens, 1, 1])?;
    let each = experts(b, at, layer, repeated, routed.one_by_one())?;
    let each = b.reshape(each, [n_embd, n_used, n_tokens, 1])?;
    b.mul_mat(each, each)
}
