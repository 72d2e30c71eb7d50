//! Q8_0: 32 signed bytes and an F16 step. Value = byte * step.

use super::{Nan, blocks, blocks_mut, f16, largest};

/// Elements of a block.
pub const ELEMENTS: usize = 32;
/// Bytes of a block: the step, then the quants.
pub const BYTES: usize = 2 + ELEMENTS;

/// Step = largest magnitude / 127; quants are rounded half away from zero with the step *before* it is rounded to F16, as
/// ggml's `quantize_row_q8_0_ref` does.
///
/// # Panics
/// Unless `values` and `out` are the same whole number of blocks.
pub fn encode(values: &[f32], out: &mut [u8]) {
    for (values, block) in blocks::<ELEMENTS, BYTES>(values, out) {
        let step = largest(values, Nan::Restarts) / 127.0;
        let inverse = if step != 0.0 { 1.0 / step } else { 0.0 };
        let (head, quants) = block.split_at_mut(2);
        head.copy_from_slice(&f16::from_f32(step).to_le_bytes());
        for (quant, value) in quants.iter_mut().zip(values) {
            *quant = round(value * inverse) as u8;
        }
    }
}

/// # Panics
/// Unless `bytes` and `out` are the same whole number of blocks.
pub fn decode(bytes: &[u8], out: &mut [f32]) {
    for (block, values) in blocks_mut::<ELEMENTS, BYTES>(bytes, out) {
        let step = f16::to_f32(u16::from_le_bytes([block[0], block[1]]));
        for (value, &quant) in values.iter_mut().zip(&block[2..]) {
            *value = f32::from(quant as i8) * step;
        }
    }
}

/// `f32::round` for magnitudes up to 2^22, as vector arithmetic: a cast from `f32` checks for overflow and does not
/// vectorise, `f32::round` is a library call without SSE4.1. Adding 2^23 leaves no bits for a fraction, so the sum is rounded (ties
/// to even) and the low bits of its mantissa are the integer; ties that went down are then raised.
#[inline]
fn round(value: f32) -> i32 {
    const NO_FRACTION: f32 = 8_388_608.0; // 2^23
    let magnitude = value.abs();
    let shifted = magnitude + NO_FRACTION;
    let went_down = magnitude - (shifted - NO_FRACTION) == 0.5;
    let rounded = (shifted.to_bits() & 0x007F_FFFF) as i32 + i32::from(went_down);
    let sign = value.to_bits() as i32 >> 31; // 0 or -1
    (rounded ^ sign) - sign
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn round_is_round_half_away_from_zero() {
        // Every float from 0.25 to 128 in steps of a few ulps, and exactly all of them around each tie.
        let around_ties = (0..=127).flat_map(|n| {
            let tie = (n as f32 + 0.5).to_bits();
            tie - 1000..tie + 1000
        });
        let stepped = (0.25f32.to_bits()..128f32.to_bits()).step_by(97);
        for bits in around_ties.chain(stepped).step_by(super::super::every(2003)) {
            let value = f32::from_bits(bits);
            assert_eq!(round(value), value.round() as i32, "{value:?}");
            assert_eq!(round(-value), -round(value), "{value:?}");
        }
    }

    #[test]
    fn a_known_block() {
        let values: [f32; 32] = std::array::from_fn(|at| at as f32 - 16.0);
        let mut block = [0u8; BYTES];
        encode(&values, &mut block);
        assert_eq!(block[..2], f16::from_f32(16.0 / 127.0).to_le_bytes());
        assert_eq!(block[2] as i8, -127);
        assert_eq!(block[2 + 17] as i8, 8, "1 / (16 / 127) = 7.94");
    }
}
