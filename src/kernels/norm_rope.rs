//! `norm_rope` (`csrc/ops/norm_rope/args.h`).

use super::{Rope, RowBuffer, RowFormat, RowType, Step, Version, count, or_null, run, sys};

/// Inputs of [`norm_rope`].
#[derive(Debug, Clone, Copy)]
pub struct NormRope<'a> {
    /// The tokens.
    pub step: &'a Step,
    /// Heads of a token.
    pub n_head: usize,
    /// Added to the mean square; `None`: no norm.
    pub eps: Option<f32>,
    /// The rotary part of a head.
    pub rope: Rope<'a>,
    /// f32 `[d, n_head, n_tokens]`.
    pub x: &'a [f32],
    /// f32 `[d]`.
    pub weight: Option<&'a [f32]>,
    /// How heads are stored.
    pub row_type: RowType,
}

/// Norm and rotary embedding of every head: one row for each head of each token.
///
/// # Panics
/// If a length does not fit the rest.
pub fn norm_rope(version: Version, input: &NormRope, nth: usize) -> RowBuffer {
    let NormRope { step, n_head, eps, rope, x, weight, row_type } = *input;
    let n_rows = n_head * step.n_tokens();
    assert!(n_rows > 0 && x.len().is_multiple_of(n_rows));
    let d = x.len() / n_rows;
    assert!(weight.is_none_or(|weight| weight.len() == d) && eps.is_none_or(|eps| eps >= 0.0));
    let format = RowFormat { row_type, d, n_rot: rope.n_rot() };
    let mut out = RowBuffer::new(format, n_rows);
    let tokens = step.args();
    let args = sys::fathom_norm_rope_args {
        step: &raw const tokens,
        n_head: count(n_head),
        d: count(d),
        eps: eps.unwrap_or(-1.0),
        rope: rope.args(),
        x: x.as_ptr(),
        weight: or_null(weight),
        row_type: row_type as i32,
        row_bytes: format.row_bytes() as i64,
        out: out.as_mut_ptr(),
    };
    // SAFETY: every length was compared with the sizes above, `out` has a row for every head, and `tokens` lives to the end.
    #[expect(unsafe_code, reason = "a call into csrc")]
    unsafe {
        match version {
            Version::Reference => sys::fathom_norm_rope_reference(&raw const args),
            Version::Kernel(isa) => run(isa.table().expect("an available set").norm_rope, &args, nth),
        }
    }
    out
}
