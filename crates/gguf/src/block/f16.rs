//! F16: IEEE half precision.

use half::f16;
use half::slice::HalfFloatSliceExt;

/// Numbers converted at once: enough for the vector instructions that `half` picks at run time.
const CHUNK: usize = 64;

/// Rounds to nearest, ties to even; too large becomes infinite. Every NaN becomes ggml's one: sign and 0x7E00.
///
/// # Panics
/// Unless `out` has 2 bytes for each value.
pub fn encode(values: &[f32], out: &mut [u8]) {
    assert_eq!(out.len(), 2 * values.len(), "2 bytes for each value");
    let mut halves = [f16::ZERO; CHUNK];
    for (values, out) in values.chunks(CHUNK).zip(out.chunks_mut(2 * CHUNK)) {
        let halves = &mut halves[..values.len()];
        halves.convert_from_f32_slice(values);
        for (half, bytes) in halves.iter().zip(out.as_chunks_mut().0) {
            *bytes = canonical(half.to_bits()).to_le_bytes();
        }
    }
}

/// Exact.
///
/// # Panics
/// Unless `bytes` has 2 bytes for each element of `out`.
pub fn decode(bytes: &[u8], out: &mut [f32]) {
    assert_eq!(bytes.len(), 2 * out.len(), "2 bytes for each element");
    let mut halves = [f16::ZERO; CHUNK];
    for (bytes, out) in bytes.chunks(2 * CHUNK).zip(out.chunks_mut(CHUNK)) {
        let halves = &mut halves[..out.len()];
        for (half, bytes) in halves.iter_mut().zip(bytes.as_chunks().0) {
            *half = f16::from_le_bytes(*bytes);
        }
        halves.convert_to_f32_slice(out);
    }
}

/// The bits of the nearest F16 number.
#[inline]
pub fn from_f32(value: f32) -> u16 {
    canonical(f16::from_f32(value).to_bits())
}

/// The number with these bits.
#[inline]
pub fn to_f32(bits: u16) -> f32 {
    f16::from_bits(bits).to_f32()
}

#[inline]
fn canonical(bits: u16) -> u16 {
    if bits & 0x7FFF > 0x7C00 { bits & 0x8000 | 0x7E00 } else { bits }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_f16_number_comes_back() {
        let all: Vec<u16> = (0..=u16::MAX).step_by(super::super::every(257)).collect();
        let bytes: Vec<u8> = all.iter().flat_map(|bits| bits.to_le_bytes()).collect();
        let mut values = vec![0f32; all.len()];
        decode(&bytes, &mut values);
        let mut back = vec![0; bytes.len()];
        encode(&values, &mut back);
        for ((back, value), bits) in back.chunks(2).zip(values).zip(all) {
            assert_eq!(back, canonical(bits).to_le_bytes(), "{bits:04x}");
            assert_eq!(from_f32(value), canonical(bits), "{bits:04x}");
        }
    }

    #[test]
    fn ties_go_to_even_and_overflow_to_infinity() {
        assert_eq!(from_f32(1.0 + 1.0 / 2048.0), 0x3C00);
        assert_eq!(from_f32(1.0 + 3.0 / 2048.0), 0x3C02);
        assert_eq!(from_f32(65520.0), 0x7C00);
        assert_eq!(from_f32(f32::from_bits(0xFF80_0001)), 0xFE00, "a NaN keeps nothing but its sign");
    }
}
