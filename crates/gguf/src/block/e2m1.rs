//! E2M1, the 4-bit numbers inside MXFP4 and NVFP4 blocks: 0, 0.5, 1, 1.5, 2, 3, 4, 6 and their negatives.
//!
//! As ggml does, values are kept doubled (0, 1, 2, 3, 4, 6, 8, 12) and scales halved.

/// Doubled value of a code; code 8 (minus zero) is plus zero, as in ggml.
#[cfg(test)]
pub(super) const DOUBLED: [i8; 16] = [0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12];

/// Doubled value of the code in the low four bits, by arithmetic: a table look-up would not vectorise.
#[inline]
pub(super) fn doubled(code: u8) -> i8 {
    let magnitude = (code & 7) as i8;
    let value = magnitude + i8::from(magnitude > 4) + i8::from(magnitude > 5) + 3 * i8::from(magnitude > 6);
    if code & 8 != 0 { -value } else { value }
}

/// For each value the code whose doubled value times `half_scale` is nearest to it; between two the smaller magnitude;
/// never code 8.
///
/// ggml measures the distance to all sixteen and takes the first least one. Counting the midpoints below the magnitude
/// gives the same code, because a midpoint times a scale of few bits is exact, and because a distance is a difference of two
/// numbers within a factor of two wherever rounding could turn it into a tie. That needs `half_scale` > 0 and a magnitude
/// up to 2^20 * `half_scale`; see [`nearest_of_all`] for the rest.
#[inline]
pub(super) fn nearest<const N: usize>(values: &[f32; N], half_scale: f32) -> [u8; N] {
    const MIDPOINTS: [f32; 7] = [0.5, 1.5, 2.5, 3.5, 5.0, 7.0, 10.0];
    let mut codes = [0u32; N];
    // Midpoints outside, values inside: the inner loop is one compare and one subtraction for each vector of values.
    for midpoint in MIDPOINTS.map(|midpoint| midpoint * half_scale) {
        for (code, value) in codes.iter_mut().zip(values) {
            *code += u32::from(value.abs() > midpoint);
        }
    }
    for (code, value) in codes.iter_mut().zip(values) {
        let sign = (value.to_bits() >> 28) & 8;
        *code |= if *code == 0 { 0 } else { sign };
    }
    codes.map(|code| code as u8)
}

/// Two codes in a byte: those of the first half of the group in the low nibbles, of the second half in the high ones.
#[inline]
pub(super) fn pack(codes: &[u8], out: &mut [u8]) {
    let (low, high) = codes.split_at(codes.len() / 2);
    for ((out, low), high) in out.iter_mut().zip(low).zip(high) {
        *out = low | high << 4;
    }
}

/// ggml's search, for magnitudes so far out that all distances round to the same number (then code 0 wins).
pub(super) fn nearest_of_all(value: f32, half_scale: f32) -> u8 {
    let mut best = 0;
    let mut least = value.abs();
    for code in 1..16 {
        let distance = (f32::from(doubled(code)) * half_scale - value).abs();
        if distance < least {
            (best, least) = (code, distance);
        }
    }
    best
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arithmetic_gives_the_table() {
        for code in 0..=255u8 {
            assert_eq!(doubled(code), DOUBLED[usize::from(code & 15)], "code {code}");
        }
    }

    #[test]
    fn midpoints_and_distances_choose_the_same_code() {
        let half_scales = [f32::from_bits(0x0020_0000), 2f32.powi(-20), 0.5, 0.8125, 1.0, 224.0, 2f32.powi(100)];
        for half_scale in half_scales {
            let near = (0..=32 * 16).map(|step| step as f32 / 32.0 * half_scale);
            let neighbours = near.flat_map(|value| [value.next_down(), value, value.next_up()]);
            let far = [100.0, 1e4, 1e6].map(|factor| factor * half_scale);
            for value in neighbours.chain(far).flat_map(|value| [value, -value]).step_by(super::super::every(101)) {
                let ([fast], slow) = (nearest(&[value], half_scale), nearest_of_all(value, half_scale));
                assert_eq!(fast, slow, "{value:?} at half scale {half_scale:?}");
            }
        }
    }

    #[test]
    fn nan_is_code_zero() {
        assert_eq!(nearest(&[f32::NAN, -f32::NAN], 1.0), [0, 0]);
        assert_eq!(nearest_of_all(f32::NAN, 1.0), 0);
    }
}
