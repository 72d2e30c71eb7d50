//! `hyper_step` (`csrc/ops/hyper_step/args.h`).

use super::{Version, count, run_phases, sys};

const N_STREAMS: usize = sys::FATHOM_N_STREAMS as usize;

/// Inputs of [`hyper_step`].
#[derive(Debug, Clone, Copy)]
pub struct HyperStep<'a> {
    /// Channels of a stream.
    pub n_embd: usize,
    /// Rounds of Sinkhorn's normalisation.
    pub n_iterations: u16,
    /// Added to mean squares.
    pub norm_eps: f32,
    /// Added to coefficients and to sums of them.
    pub eps: f32,
    /// f32 `[n_embd, 4, n_tokens]`.
    pub streams: &'a [f32],
    /// f32 `[24, n_tokens]`, or `[4, n_tokens]` before the output.
    pub dots: &'a [f32],
    /// f32 `[3]`, or `[1]`.
    pub scale: &'a [f32],
    /// f32 `[24]`, or `[4]`.
    pub base: &'a [f32],
    /// f32 `[n_embd]`.
    pub norm: &'a [f32],
    /// f32 `[n_embd, n_tokens]`: the output of the block that reads `x`; `None` before the output.
    pub y: Option<&'a [f32]>,
}

/// What [`hyper_step`] gives.
#[derive(Debug, Clone, PartialEq)]
pub struct Stepped {
    /// f32 `[n_embd, n_tokens]`: the block's input.
    pub x: Vec<f32>,
    /// f32 `[n_embd, 4, n_tokens]`: the streams after the block; empty without `y`.
    pub streams: Vec<f32>,
}

/// What a block reads, and the streams after it.
///
/// # Panics
/// If a length does not fit the rest.
pub fn hyper_step(version: Version, input: &HyperStep, nth: usize) -> Stepped {
    let HyperStep { n_embd, streams, dots, scale, base, norm, y, .. } = *input;
    let wide = n_embd * N_STREAMS;
    let n_mixes = if y.is_some() { sys::FATHOM_N_MIXES as usize } else { N_STREAMS };
    assert!(n_embd > 0 && streams.len().is_multiple_of(wide) && input.n_iterations > 0);
    let n_tokens = streams.len() / wide;
    assert_eq!((dots.len(), base.len(), norm.len()), (n_mixes * n_tokens, n_mixes, n_embd));
    assert!(scale.len() == n_mixes.div_ceil(8) && y.is_none_or(|y| y.len() == n_embd * n_tokens));
    let mut x = vec![f32::NAN; n_embd * n_tokens];
    let mut mix = vec![f32::NAN; (N_STREAMS + N_STREAMS * N_STREAMS) * n_tokens];
    let mut out = vec![f32::NAN; if y.is_some() { streams.len() } else { 0 }];
    let args = sys::fathom_hyper_step_args {
        n_tokens: count(n_tokens),
        n_embd: count(n_embd),
        n_mixes: count(n_mixes),
        n_iterations: input.n_iterations.into(),
        norm_eps: input.norm_eps,
        eps: input.eps,
        streams: streams.as_ptr(),
        dots: dots.as_ptr(),
        scale: scale.as_ptr(),
        base: base.as_ptr(),
        norm: norm.as_ptr(),
        x: x.as_mut_ptr(),
        mix: mix.as_mut_ptr(),
        y: super::or_null(y),
        out: out.as_mut_ptr(),
    };
    // SAFETY: every length was compared above; `close` runs only when there are y, 24 mixes and an output.
    #[expect(unsafe_code, reason = "calls into csrc")]
    unsafe {
        match version {
            Version::Reference => sys::fathom_hyper_step_reference(&raw const args),
            Version::Kernel(isa) => {
                let table = isa.table().expect("an available set");
                let phases = [table.hyper_open, table.hyper_close];
                run_phases(&phases[..if y.is_some() { 2 } else { 1 }], &args, nth);
            }
        }
    }
    Stepped { x, streams: out }
}
