//! The indexer of CSA layers: scores compressed rows by short keys, keeps the best.
//!
//! `score(w) = sum_h u_h / sqrt(width * heads) * relu(iq_h . k_w)`

use super::{At, Builder, Error, Tensor, compressor};
use crate::engine::native::weights::IndexerSlots;
use crate::ggml::RowType;
use crate::ggml::ops::{Indexer, NormRope, Operand, Side};

/// From `x: f32 [n_embd, n_tokens]` and `qr: f32 [q_rank, n_tokens]` what [`Builder::index_topk`] gives.
pub(super) fn select<'b>(
    b: &Builder<'b>,
    at: &At,
    slots: &IndexerSlots,
    x: &Operand<'b>,
    qr: &Operand<'b>,
) -> Result<Tensor<'b>, Error> {
    let (model, h) = (at.model, &at.model.hparams);
    let keys = compressor::compress(b, at, x, slots.compressor, Side::Index)?;
    let q = b.norm_rope(NormRope {
        x: b.product(b.weight(slots.q_b), qr)?,
        n_head: h.index_heads,
        weight: None,
        eps: None,
        rope: model.rope(at.kind),
        row_type: RowType::F32,
    })?;
    b.index_topk(Indexer {
        layer: at.index,
        q,
        weights: b.product(b.weight(slots.weights), x)?,
        keys,
        key_type: model.layout.key_type,
        ratio: at.kind.ratio(),
        top_k: h.index_top_k,
        scale: 1.0 / ((h.index_heads * h.index_width) as f32).sqrt(),
        n_rot: h.n_rot,
        n_threads: model.n_threads,
    })
}
