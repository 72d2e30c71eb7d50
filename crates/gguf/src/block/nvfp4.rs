//! NVFP4: 64 E2M1 numbers in four groups of 16, each with an unsigned E4M3 scale.
//!
//! A block is the four scales, then 8 bytes for each group; byte `j` of a group holds the code of its element `j` in the
//! low and of element `j + 8` in the high nibble. Value = E2M1 value * scale (a factor for the whole tensor, if there is
//! one, is a tensor of its own).

use super::{Nan, blocks, blocks_mut, e2m1, largest};

/// Elements of a block.
pub const ELEMENTS: usize = 64;
/// Elements that share a scale.
pub const GROUP: usize = 16;
const GROUPS: usize = ELEMENTS / GROUP;
/// Bytes of a block: the scales, then the codes.
pub const BYTES: usize = GROUPS + ELEMENTS / 2;

/// Scale = largest magnitude / 6 rounded to E4M3, then the nearest codes: ggml's `quantize_row_nvfp4_ref`. Magnitudes
/// above 2688 (6 * 448) are beyond the format.
///
/// # Panics
/// Unless `values` and `out` are the same whole number of blocks.
pub fn encode(values: &[f32], out: &mut [u8]) {
    for (values, block) in blocks::<ELEMENTS, BYTES>(values, out) {
        let (scales, codes) = block.split_at_mut(GROUPS);
        for ((values, scale), codes) in values.as_chunks::<GROUP>().0.iter().zip(scales).zip(codes.chunks_exact_mut(8))
        {
            let amax = largest(values, Nan::Skipped);
            *scale = scale_from_f32(amax / 6.0);
            let half_scale = HALF_SCALES[usize::from(*scale)];
            // Without a scale every distance is the same, and far beyond the largest scale too: see `e2m1::nearest`.
            let ordinary = half_scale > 0.0 && amax < 1e6;
            let all = match ordinary {
                true => e2m1::nearest(values, half_scale),
                false => values.map(|value| e2m1::nearest_of_all(value, half_scale)),
            };
            e2m1::pack(&all, codes);
        }
    }
}

/// # Panics
/// Unless `bytes` and `out` are the same whole number of blocks.
pub fn decode(bytes: &[u8], out: &mut [f32]) {
    for (block, values) in blocks_mut::<ELEMENTS, BYTES>(bytes, out) {
        let (scales, codes) = block.split_at(GROUPS);
        for ((values, scale), codes) in
            values.as_chunks_mut::<GROUP>().0.iter_mut().zip(scales).zip(codes.chunks_exact(8))
        {
            let half_scale = HALF_SCALES[usize::from(*scale)];
            let (low, high) = values.split_at_mut(GROUP / 2);
            for ((low, high), codes) in low.iter_mut().zip(high).zip(codes) {
                *low = f32::from(e2m1::doubled(*codes)) * half_scale;
                *high = f32::from(e2m1::doubled(codes >> 4)) * half_scale;
            }
        }
    }
}

/// Half of the number that a scale byte stands for.
#[inline]
pub fn half_scale(byte: u8) -> f32 {
    HALF_SCALES[usize::from(byte)]
}

/// The E4M3 byte of a scale as ggml rounds it: half up on the first bit that is cut off, at most 448, 0 for what is not
/// positive.
pub fn scale_from_f32(scale: f32) -> u8 {
    const LARGEST: u8 = 0x7E; // 448; 0x7F is NaN
    const LEAST_NORMAL: f32 = 1.0 / 64.0; // not `powi`, whose last bit is nobody's promise
    if scale.is_nan() || scale <= 0.0 {
        return 0;
    }
    if scale < LEAST_NORMAL {
        // Subnormal: a multiple of 2^-9.
        return ((scale * 512.0 + 0.5) as u8).min(7);
    }
    // Rebias the exponent (127 -> 7), keep three bits of the mantissa, and let the next one carry.
    let bits = scale.to_bits();
    let rounded = (bits >> 20) + ((bits >> 19) & 1);
    let byte = rounded - ((127 - 7) << 3);
    // ggml treats the whole top binade, 256 and above, as the largest number.
    if byte >= 15 << 3 { LARGEST } else { byte as u8 }
}

static HALF_SCALES: [f32; 256] = {
    let mut table = [0f32; 256];
    let mut byte = 0;
    while byte < 256 {
        let (exponent, mantissa) = ((byte >> 3) & 15, byte & 7);
        // An integer times a power of two: 2^-10 = 2^-9 / 2 for subnormals, where the leading one is missing.
        let (integer, shift) = if exponent == 0 { (mantissa, 0) } else { (8 + mantissa, exponent - 1) };
        table[byte] = integer as f32 * (1u32 << shift) as f32 / 1024.0;
        byte += 1;
    }
    table[0x7F] = 0.0; // NaN; ggml reads it as 0. The sign bit is ignored, so 0xFF is 480.
    table
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scales_come_back_up_to_the_last_binade() {
        for byte in 0..0x78u8 {
            assert_eq!(scale_from_f32(2.0 * half_scale(byte)), byte);
        }
        assert_eq!(half_scale(0x7E) * 2.0, 448.0);
        assert_eq!(half_scale(0x08) * 2.0, 1.0 / 64.0);
        for (scale, byte) in [(256.0, 0x7E), (448.0, 0x7E), (f32::INFINITY, 0x7E), (f32::NAN, 0), (-1.0, 0), (1e-9, 0)]
        {
            assert_eq!(scale_from_f32(scale), byte, "{scale}");
        }
    }

    #[test]
    fn elements_are_where_ggml_puts_them() {
        let mut values = [0f32; ELEMENTS];
        (values[17], values[16 + 8]) = (6.0, -3.0);
        let mut block = [0u8; BYTES];
        encode(&values, &mut block);
        assert_eq!(block[..4], [0, 0x38, 0, 0], "scale 1 for the second group");
        assert_eq!(block[4 + 8 + 1], 7);
        assert_eq!(block[4 + 8], 13 << 4);
        let mut back = [0f32; ELEMENTS];
        decode(&block, &mut back);
        assert_eq!(back, values);
    }
}
