//! Every kernel version that this processor can run against the reference of its op.

mod dense;
mod expert_ffn;
mod gather_attention;
mod hyper_step;
mod index_topk;
mod kv_compress;
mod moe_route;
mod norm_rope;
mod rows;

use fathom::kernels::RowBuffer;

/// Deterministic numbers (splitmix64): the same on every machine, so that a failure can be repeated.
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// Below `n`.
    pub fn below(&mut self, n: usize) -> usize {
        (self.bits() % n as u64) as usize
    }

    /// From [0, 1).
    pub fn uniform(&mut self) -> f32 {
        (self.bits() >> 40) as f32 / (1u64 << 24) as f32
    }

    /// About normal, mean 0, deviation 1: a sum of uniform numbers.
    pub fn normal(&mut self) -> f32 {
        ((0..12).map(|_| self.uniform()).sum::<f32>()) - 6.0
    }

    pub fn normals(&mut self, n: usize) -> Vec<f32> {
        (0..n).map(|_| self.normal()).collect()
    }
}

/// How far a kernel may be from its reference, in units of the root mean square of what is expected: sums of products err in
/// proportion to the scale of the tensor, not of the element.
#[derive(Debug, Clone, Copy)]
pub struct Bound {
    /// Of every element.
    pub element: f64,
    /// Of the root mean square of all errors.
    pub rms: f64,
}

/// Both bounds hold, and infinities and NaN are where they are expected.
#[track_caller]
pub fn assert_close(what: &str, found: &[f32], expected: &[f32], bound: Bound) {
    assert_eq!(found.len(), expected.len(), "{what}");
    let rms = |squares: f64| (squares / expected.len().max(1) as f64).sqrt();
    let scale = rms(expected.iter().filter(|e| e.is_finite()).map(|&e| f64::from(e).powi(2)).sum());
    let mut squares = 0.0;
    for (at, (&found, &expected)) in found.iter().zip(expected).enumerate() {
        if found.to_bits() == expected.to_bits() || (found.is_nan() && expected.is_nan()) {
            continue;
        }
        let off = (f64::from(found) - f64::from(expected)).abs();
        squares += off.powi(2);
        assert!(
            off <= bound.element * scale,
            "{what}: element {at} is {found}, expected {expected}: off by {:.2e} of the scale {scale:.3e}, allowed {:.1e}",
            off / scale,
            bound.element
        );
    }
    let off = rms(squares) / scale;
    assert!(
        squares == 0.0 || off <= bound.rms,
        "{what}: off by {off:.2e} of the scale {scale:.3e} in the mean, allowed {:.1e}",
        bound.rms
    );
}

/// The same bits, or the first coordinate that differs.
#[track_caller]
pub fn assert_same(what: &str, found: &[f32], expected: &[f32]) {
    assert_eq!(found.len(), expected.len(), "{what}");
    for (at, (found, expected)) in found.iter().zip(expected).enumerate() {
        assert_eq!(found.to_bits(), expected.to_bits(), "{what}: element {at} is {found}, expected {expected}");
    }
}

/// Radians per position of `n_rot` rotary channels, as in compressed layers without YaRN.
pub fn frequencies(n_rot: usize) -> Vec<f32> {
    (0..n_rot / 2).map(|i| 160_000f32.powf(-2.0 * i as f32 / n_rot as f32)).collect()
}

/// All rows, one after the other.
pub fn rows_f32(rows: &RowBuffer) -> Vec<f32> {
    (0..rows.n_rows()).flat_map(|row| rows.load(row)).collect()
}
