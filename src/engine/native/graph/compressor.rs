//! The compressor: linear maps of this step's tokens, then our op, which pools groups of them into rows of the cache.

use super::{At, Builder, Error, LayerKind, Tensor};
use crate::engine::native::weights::CompressorSlots;
use crate::ggml::ops::{Compress, Operand, Side};

/// Adds the rows that `x: f32 [n_embd, n_tokens]` completes. What it gives is a source for those who read them.
pub(super) fn compress<'b>(
    b: &Builder<'b>,
    at: &At,
    x: &Operand<'b>,
    slots: CompressorSlots,
    side: Side,
) -> Result<Tensor<'b>, Error> {
    let layout = &at.model.layout;
    let row_type = match side {
        Side::Rows => layout.row_type,
        Side::Index => layout.key_type,
    };
    b.kv_compress(Compress {
        layer: at.index,
        side,
        u: b.product(b.weight(slots.kv), x)?,
        z: b.product(b.weight(slots.gate), x)?,
        ape: b.weight(slots.ape),
        norm: b.weight(slots.norm),
        ratio: at.kind.ratio(),
        overlap: at.kind == LayerKind::Csa,
        // Without rounding the rotation changes no score.
        hadamard: row_type == crate::ggml::RowType::Fp4,
        eps: at.model.hparams.norm_eps,
        rope: at.model.rope(at.kind),
        row_type,
    })
}
