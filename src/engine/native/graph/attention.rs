//! Attention: low-rank queries, one key/value row for all heads, sinks, and a grouped low-rank output.

use super::{At, Builder, Error, Tensor, compressor, indexer, norm};
use crate::ggml::RowType;
use crate::ggml::ops::{Attention, NormRope, Side};

pub(super) struct Attended<'b> {
    /// f32 `[n_embd, n_tokens]`
    pub(super) out: Tensor<'b>,
    /// What the indexer chose, in CSA layers.
    pub(super) top: Option<Tensor<'b>>,
}

/// `x: f32 [n_embd, n_tokens]`, normed.
pub(super) fn attention<'b>(b: &Builder<'b>, at: &At, x: Tensor<'b>) -> Result<Attended<'b>, Error> {
    let (model, h, slots) = (at.model, &at.model.hparams, at.slots);
    let (d, n_head, n_tokens) = (h.n_embd_head, h.n_head, x.ne()[1]);
    let rope = model.rope(at.kind);

    let x = b.operand(x);
    let qr = b.operand(norm(b, b.product(b.weight(slots.q_a), &x)?, slots.q_a_norm, h.norm_eps)?);
    let q = b.norm_rope(NormRope {
        x: b.product(b.weight(slots.q_b), &qr)?,
        n_head,
        weight: None,
        eps: Some(h.norm_eps),
        rope,
        row_type: RowType::F32,
    })?;
    let kv = b.norm_rope(NormRope {
        x: b.product(b.weight(slots.kv), &x)?,
        n_head: 1,
        weight: Some(b.weight(slots.kv_norm)),
        eps: Some(h.norm_eps),
        rope,
        row_type: model.layout.row_type,
    })?;
    let rows = match slots.compressor {
        Some(compressor) => Some(compressor::compress(b, at, &x, compressor, Side::Rows)?),
        None => None,
    };
    let top = match &slots.indexer {
        Some(indexer) => Some(indexer::select(b, at, indexer, &x, &qr)?),
        None => None,
    };
    let heads = b.gather_attention(Attention {
        layer: at.index,
        q,
        kv,
        sinks: b.weight(slots.sinks),
        rows,
        top: top.map(|top| (top, h.index_top_k)),
        n_swa: h.n_swa,
        ratio: at.kind.ratio(),
        row_type: model.layout.row_type,
        scale: 1.0 / (d as f32).sqrt(),
        rope,
        n_threads: model.n_threads,
    })?;

    // z_j = wo_a[j] . (heads of group j), then wo_b . (z_0 .. z_{g-1})
    let heads = b.operand(b.reshape(heads, [n_head * d, n_tokens, 1, 1])?);
    let narrow = b.operand(b.product(b.weight(slots.output_a), &heads)?);
    Ok(Attended { out: b.product(b.weight(slots.output_b), &narrow)?, top })
}
