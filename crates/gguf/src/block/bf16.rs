//! BF16: the upper half of an F32.

use super::{blocks, blocks_mut};

/// Rounds to nearest, ties to even; subnormals are kept, NaNs become quiet.
///
/// # Panics
/// Unless `out` has 2 bytes for each value.
pub fn encode(values: &[f32], out: &mut [u8]) {
    for ([value], bytes) in blocks::<1, 2>(values, out) {
        *bytes = from_f32(*value).to_le_bytes();
    }
}

/// Exact.
///
/// # Panics
/// Unless `bytes` has 2 bytes for each element of `out`.
pub fn decode(bytes: &[u8], out: &mut [f32]) {
    for (bytes, [value]) in blocks_mut::<1, 2>(bytes, out) {
        *value = f32::from_bits(u32::from(u16::from_le_bytes(*bytes)) << 16);
    }
}

/// The bits of the nearest BF16 number.
#[inline]
pub fn from_f32(value: f32) -> u16 {
    let bits = value.to_bits();
    // Half of the part that is cut off, less one when the kept part is even: a tie then stays below the carry.
    let rounded = bits.wrapping_add(0x7FFF + ((bits >> 16) & 1)) >> 16;
    let quiet_nan = (bits >> 16) | 0x40;
    (if value.is_nan() { quiet_nan } else { rounded }) as u16
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounding_agrees_with_the_half_crate() {
        // Every upper half, with lower halves at and around the tie.
        for upper in (0..=u16::MAX).step_by(super::super::every(257)) {
            for lower in [0u16, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF] {
                let value = f32::from_bits(u32::from(upper) << 16 | u32::from(lower));
                assert_eq!(from_f32(value), half::bf16::from_f32(value).to_bits(), "{value:?} {upper:04x} {lower:04x}");
            }
        }
    }

    #[test]
    fn every_bf16_number_comes_back() {
        let all: Vec<u16> = (0..=u16::MAX).step_by(super::super::every(257)).collect();
        let bytes: Vec<u8> = all.iter().flat_map(|bits| bits.to_le_bytes()).collect();
        let mut values = vec![0f32; all.len()];
        decode(&bytes, &mut values);
        let mut back = vec![0; bytes.len()];
        encode(&values, &mut back);
        for (back, bits) in back.chunks(2).zip(all) {
            let expected = if half::bf16::from_bits(bits).is_nan() { bits | 0x40 } else { bits };
            assert_eq!(back, expected.to_le_bytes(), "{bits:04x}");
        }
    }
}
