//! Arithmetic over whole rows, written so that the compiler turns it into vector instructions: several independent
//! accumulators instead of one chain, no calls, no branches.

/// Independent accumulators: enough for any vector width and the latency of an addition.
const LANES: usize = 32;

/// The highest of `values`; minus infinity for none. NaN is ignored.
pub(super) fn highest(values: &[f32]) -> f32 {
    let higher = |a: f32, b: f32| if b > a { b } else { a };
    let mut lanes = [f32::NEG_INFINITY; LANES];
    let (chunks, rest) = values.as_chunks::<LANES>();
    for chunk in chunks {
        for (lane, value) in lanes.iter_mut().zip(chunk) {
            *lane = higher(*lane, *value);
        }
    }
    lanes.iter().chain(rest).fold(f32::NEG_INFINITY, |a, b| higher(a, *b))
}

/// `sum of e^(value - max)`.
pub(super) fn sum_exp(values: &[f32], max: f32) -> f64 {
    let mut sum = 0.0;
    // f32 within a stretch, f64 across stretches: as exact as the terms themselves.
    for stretch in values.chunks(8 * LANES) {
        let mut lanes = [0.0f32; LANES];
        let (chunks, rest) = stretch.as_chunks::<LANES>();
        for chunk in chunks {
            for (lane, value) in lanes.iter_mut().zip(chunk) {
                *lane += exp(*value - max);
            }
        }
        let rest = rest.iter().map(|value| exp(*value - max));
        sum += lanes.into_iter().chain(rest).map(f64::from).sum::<f64>();
    }
    sum
}

/// `e^x` for `x <= 0`: relative error below 2e-7, and 0 below the smallest normal number (`x < -87.3`).
///
/// Cephes' `expf` (<https://www.netlib.org/cephes/>): `x = n ln 2 + r`, a polynomial in `r`, `n` into the exponent. Unlike the
/// platform's function it vectorises and does not depend on the platform. (Logarithms, in typical, min-p and mirostat, still do.)
#[inline]
pub(super) fn exp(x: f32) -> f32 {
    /// Adding and taking away 1.5 * 2^23 rounds to the nearest integer.
    const ROUND: f32 = 12_582_912.0;
    /// ln 2 in two parts, so that `n * LN2_HIGH` is exact.
    const LN2_HIGH: f32 = 355.0 / 512.0;
    const LN2_LOW: f32 = -2.121_944_4e-4;
    let shifted = x.max(-87.3) * std::f32::consts::LOG2_E + ROUND;
    let n = shifted - ROUND;
    let r = x.max(-87.3) - n * LN2_HIGH - n * LN2_LOW;
    let mut y = 1.987_569_1e-4;
    for coefficient in [1.398_199_9e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 0.5] {
        y = y * r + coefficient;
    }
    let y = y * r * r + r + 1.0;
    // The integer stands in the low bits of `shifted`; the exponent's bias is 127.
    let exponent = shifted.to_bits().wrapping_sub(ROUND.to_bits()).wrapping_add(127) << 23;
    let result = y * f32::from_bits(exponent);
    if x < -87.3 { 0.0 } else { result }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_as_exact_as_it_says() {
        let mut worst = 0.0f64;
        for i in 0..=873_000 {
            let x = -(i as f32) * 1e-4;
            let exact = f64::from(x).exp();
            worst = worst.max((f64::from(exp(x)) - exact).abs() / exact);
        }
        assert!(worst < 2e-7, "{worst}");
        assert_eq!([0.0, -0.0, -88.0, f32::MIN, f32::NEG_INFINITY].map(exp), [1.0, 1.0, 0.0, 0.0, 0.0]);
    }

    #[test]
    fn sums_and_maxima_take_every_value() {
        for n in [0, 1, 31, 32, 33, 255, 256, 257, 1000] {
            let values: Vec<f32> = (0..n).map(|i| ((i * 7919) % 1000) as f32 * -0.01).collect();
            let max = values.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            assert_eq!(highest(&values), max);
            let exact: f64 = values.iter().map(|v| f64::from(v - max).exp()).sum();
            assert!((sum_exp(&values, max) - exact).abs() <= exact * 1e-6, "{n}");
        }
    }
}
