//! Hyper-connections: four residual streams, mixed before and after every block.
//!
//! ```text
//! m      = fn . RMS(flatten S)                     24 numbers for each token
//! pre_s  = sigmoid(m_s scale_0 + base_s) + eps     post_s = 2 sigmoid(m_{4+s} scale_1 + base_{4+s})
//! comb   = softmax, then Sinkhorn                  ggml's op
//! x      = sum_s pre_s S_s;   S'_b = post_b y + sum_a comb[a][b] S_a
//! ```

use super::{Builder, Error, Hparams, N_HC, Tensor};
use crate::engine::native::weights::Hyper;

/// What opening gives: the block's input, and how its output comes back.
pub(super) struct Mixed<'b> {
    /// f32 `[n_embd, n_tokens]`
    pub(super) x: Tensor<'b>,
    post: Tensor<'b>,
    comb: Tensor<'b>,
}

pub(super) fn open<'b>(b: &Builder<'b>, h: &Hparams, streams: Tensor<'b>, hyper: Hyper) -> Result<Mixed<'b>, Error> {
    let mixes = mixes(b, h, streams, hyper)?;
    let (base, scale) = (b.weight(hyper.base), b.weight(hyper.scale));
    let affine = |part: usize| -> Result<Tensor<'b>, Error> {
        let values = b.columns(mixes, part * N_HC, N_HC)?;
        let scaled = b.mul(values, b.columns(scale, part, 1)?)?;
        b.sigmoid(b.add(scaled, b.columns(base, part * N_HC, N_HC)?)?)
    };
    let pre = b.scale_bias(affine(0)?, 1.0, h.hc_eps)?;
    let post = b.scale_bias(affine(1)?, 2.0, 0.0)?;
    let comb = b.hc_comb(mixes, scale, base, h.hc_eps, h.hc_iterations)?;
    Ok(Mixed { x: b.hc_pre(streams, pre)?, post, comb })
}

pub(super) fn close<'b>(
    b: &Builder<'b>,
    streams: Tensor<'b>,
    y: Tensor<'b>,
    mixed: &Mixed<'b>,
) -> Result<Tensor<'b>, Error> {
    b.hc_post(y, streams, mixed.post, mixed.comb)
}

/// The streams joined once more, before the last norm.
pub(super) fn head<'b>(b: &Builder<'b>, h: &Hparams, streams: Tensor<'b>, hyper: Hyper) -> Result<Tensor<'b>, Error> {
    let mixes = mixes(b, h, streams, hyper)?;
    let scaled = b.mul(mixes, b.weight(hyper.scale))?;
    let pre = b.sigmoid(b.add(scaled, b.weight(hyper.base))?)?;
    b.hc_pre(streams, b.scale_bias(pre, 1.0, h.hc_eps)?)
}

/// f32 `[rows of fn, n_tokens]`
fn mixes<'b>(b: &Builder<'b>, h: &Hparams, streams: Tensor<'b>, hyper: Hyper) -> Result<Tensor<'b>, Error> {
    let [n_embd, n_hc, n_tokens, _] = streams.ne();
    let flat = b.reshape(streams, [n_embd * n_hc, n_tokens, 1, 1])?;
    b.mul_mat(b.weight(hyper.fn_), b.rms_norm(flat, h.norm_eps)?)
}
