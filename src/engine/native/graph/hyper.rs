//! Hyper-connections: four residual streams, mixed before and after every block.
//!
//! ```text
//! m      = fn . RMS(flatten S)                     24 numbers for each token
//! pre_s  = sigmoid(m_s scale_0 + base_s) + eps     post_s = 2 sigmoid(m_{4+s} scale_1 + base_{4+s})
//! comb   = softmax, then Sinkhorn
//! x      = RMS(sum_s pre_s S_s; norm);   S'_b = post_b y + sum_a comb[a][b] S_a
//! ```
//! The product with `fn` takes the streams as they are: `hyper_step` applies the norm to its result.

use super::{Builder, Error, Hparams, Tensor};
use crate::engine::native::weights::Hyper;
use crate::ggml::WeightId;
use crate::ggml::ops::{HyperOpen, Opened};

/// The input of the block whose norm is `norm`; [`Builder::hyper_close`] takes its output back. Also before the model's output, where
/// nothing closes.
pub(super) fn open<'b>(
    b: &Builder<'b>,
    h: &Hparams,
    streams: Tensor<'b>,
    hyper: Hyper,
    norm: WeightId,
) -> Result<Opened<'b>, Error> {
    let [n_embd, n_hc, n_tokens, _] = streams.ne();
    let flat = b.reshape(streams, [n_embd * n_hc, n_tokens, 1, 1])?;
    b.hyper_open(HyperOpen {
        streams,
        dots: b.mul_mat(b.weight(hyper.fn_), flat)?,
        scale: b.weight(hyper.scale),
        base: b.weight(hyper.base),
        norm: b.weight(norm),
        norm_eps: h.norm_eps,
        eps: h.hc_eps,
        n_iterations: h.hc_iterations,
    })
}
