//! MXFP4: 32 E2M1 numbers and one power of two. The type that released DeepSeek-V4 experts fit without loss.
//!
//! A block is the E8M0 exponent byte, then 16 bytes; byte `j` holds the code of element `j` in its low and of element
//! `j + 16` in its high nibble. Value = E2M1 value * 2^(exponent - 127).

use super::{Nan, blocks, blocks_mut, e2m1, largest};

/// Elements of a block.
pub const ELEMENTS: usize = 32;
/// Bytes of a block: the exponent, then the codes.
pub const BYTES: usize = 1 + ELEMENTS / 2;

/// Chooses the exponent from the largest magnitude so that it lands between 4 and 8 (8 is stored as 6), then the nearest
/// codes: ggml's `quantize_row_mxfp4_ref`. Where that is undefined in C (largest magnitude below 2^-125, or infinite) the
/// nearest exponent that exists is taken; NaN elements become 0.
///
/// # Panics
/// Unless `values` and `out` are the same whole number of blocks.
pub fn encode(values: &[f32], out: &mut [u8]) {
    for (values, block) in blocks::<ELEMENTS, BYTES>(values, out) {
        let exponent = exponent(largest(values, Nan::Skipped));
        let half_scale = half_scale(exponent);
        block[0] = exponent;
        e2m1::pack(&e2m1::nearest(values, half_scale), &mut block[1..]);
    }
}

/// # Panics
/// Unless `bytes` and `out` are the same whole number of blocks.
pub fn decode(bytes: &[u8], out: &mut [f32]) {
    for (block, values) in blocks_mut::<ELEMENTS, BYTES>(bytes, out) {
        let half_scale = half_scale(block[0]);
        let (low, high) = values.split_at_mut(ELEMENTS / 2);
        for (value, codes) in low.iter_mut().zip(&block[1..]) {
            *value = f32::from(e2m1::doubled(*codes)) * half_scale;
        }
        for (value, codes) in high.iter_mut().zip(&block[1..]) {
            *value = f32::from(e2m1::doubled(codes >> 4)) * half_scale;
        }
    }
}

/// Half of 2^(exponent - 127). Exponent 255, which the OCP standard calls NaN, is taken as a number as ggml does.
#[inline]
pub fn half_scale(exponent: u8) -> f32 {
    f32::from_bits(match exponent {
        0 => 0x0020_0000, // 2^-128 and 2^-127 are subnormal
        1 => 0x0040_0000,
        _ => (u32::from(exponent) - 1) << 23,
    })
}

fn exponent(largest: f32) -> u8 {
    // `log2` and not the exponent bits: just below a power of two it rounds up, and so does ggml.
    if largest > 0.0 { (largest.log2().floor() - 2.0 + 127.0).clamp(0.0, 254.0) as u8 } else { 0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_at_every_exponent_comes_back() {
        for exponent in 0..=254u8 {
            let codes: [u8; 32] = std::array::from_fn(|at| (at % 16) as u8);
            let mut block = [0u8; BYTES];
            block[0] = exponent;
            for at in 0..16 {
                block[1 + at] = codes[at] | codes[at + 16] << 4;
            }
            let mut values = [0f32; ELEMENTS];
            decode(&block, &mut values);
            for (value, code) in values.iter().zip(codes) {
                let expected = f64::from(e2m1::DOUBLED[usize::from(code)]) * 2f64.powi(i32::from(exponent) - 128);
                // 6 * 2^126 and more is infinite, as in ggml.
                assert_eq!(*value, expected as f32, "code {code} exponent {exponent}");
            }
        }
    }

    #[test]
    fn representable_values_are_kept() {
        let values: [f32; 32] = std::array::from_fn(|at| f32::from(e2m1::DOUBLED[at % 16]) * 0.125);
        let mut block = [0u8; BYTES];
        encode(&values, &mut block);
        let mut back = [0f32; 32];
        decode(&block, &mut back);
        assert_eq!(values, back);
    }

    #[test]
    fn strange_inputs_give_some_block() {
        for value in [f32::INFINITY, f32::MIN_POSITIVE, f32::from_bits(1), f32::MAX, f32::NAN, -0.0] {
            let mut block = [0u8; BYTES];
            encode(&[value; ELEMENTS], &mut block);
            assert!(block[0] < 255, "{value}: 255 means NaN to other readers");
        }
    }
}
