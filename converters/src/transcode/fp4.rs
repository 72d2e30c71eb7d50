//! Released FP4 to MXFP4: the same codes and the same scale byte in another order (deepseek-v4.md section 5).
//!
//! Released: 16 bytes hold values 0..31 of a group, value 2j in the low and 2j+1 in the high nibble of byte j; the E8M0 scale of the
//! group is in another tensor. MXFP4 block: the scale byte, then 16 bytes, value j in the low and j+16 in the high nibble of byte j.
//! The map is a permutation of nibbles, so every released byte comes back, the two zeros (codes 0 and 8) included.

use super::{Fault, Rows};

/// Values that share one scale byte, and values of an MXFP4 block.
pub const GROUP: u64 = 32;
const RELEASED: usize = 16;
const BLOCK: usize = 17;

/// Repacks whole rows. `rows.scale` are the scales of these rows.
///
/// # Errors
/// A scale byte of 255.
pub fn to_mxfp4(rows: Rows<'_>, out: &mut [u8]) -> Result<(), Fault> {
    let groups = rows.scale.len();
    assert_eq!(rows.weight.len(), groups * RELEASED, "one scale byte for 16 released bytes");
    assert_eq!(out.len(), groups * BLOCK, "17 bytes a block");
    check_scales(rows.scale, rows.first, rows.columns / GROUP)?;
    let (blocks, _) = out.as_chunks_mut::<BLOCK>();
    let (released, _) = rows.weight.as_chunks::<RELEASED>();
    for ((block, source), scale) in blocks.iter_mut().zip(released).zip(rows.scale) {
        block[0] = *scale;
        let (low, high) = halves(source);
        let even = ((low & NIBBLES) | ((high & NIBBLES) << 4)).to_le_bytes();
        let odd = (((low >> 4) & NIBBLES) | (high & !NIBBLES)).to_le_bytes();
        for j in 0..8 {
            block[1 + 2 * j] = even[j];
            block[2 + 2 * j] = odd[j];
        }
    }
    Ok(())
}

/// The inverse of [`to_mxfp4`].
pub fn from_mxfp4(stored: &[u8], weight: &mut [u8], scale: &mut [u8]) {
    let groups = scale.len();
    assert_eq!(stored.len(), groups * BLOCK, "17 bytes a block");
    assert_eq!(weight.len(), groups * RELEASED, "16 released bytes a block");
    let (blocks, _) = stored.as_chunks::<BLOCK>();
    let (released, _) = weight.as_chunks_mut::<RELEASED>();
    for ((block, source), scale) in blocks.iter().zip(released).zip(scale) {
        *scale = block[0];
        let (mut even, mut odd) = ([0; 8], [0; 8]);
        for j in 0..8 {
            even[j] = block[1 + 2 * j];
            odd[j] = block[2 + 2 * j];
        }
        let (even, odd) = (u64::from_le_bytes(even), u64::from_le_bytes(odd));
        let low = (even & NIBBLES) | ((odd & NIBBLES) << 4);
        let high = ((even >> 4) & NIBBLES) | (odd & !NIBBLES);
        source[..8].copy_from_slice(&low.to_le_bytes());
        source[8..].copy_from_slice(&high.to_le_bytes());
    }
}

/// The values of whole rows, for the lossy targets.
///
/// # Errors
/// A scale byte of 255.
pub fn to_values(rows: Rows<'_>, out: &mut [f32]) -> Result<(), Fault> {
    const CODES: [f32; 16] = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0];
    assert_eq!(out.len(), rows.scale.len() * GROUP as usize, "32 values for a scale byte");
    check_scales(rows.scale, rows.first, rows.columns / GROUP)?;
    let (released, _) = rows.weight.as_chunks::<RELEASED>();
    let (values, _) = out.as_chunks_mut::<{ GROUP as usize }>();
    for ((values, source), scale) in values.iter_mut().zip(released).zip(rows.scale) {
        let factor = super::fp8::scale_value(*scale);
        for (pair, byte) in values.as_chunks_mut::<2>().0.iter_mut().zip(source) {
            *pair = [CODES[usize::from(byte & 15)] * factor, CODES[usize::from(byte >> 4)] * factor];
        }
    }
    Ok(())
}

const NIBBLES: u64 = 0x0F0F_0F0F_0F0F_0F0F;

fn halves(source: &[u8; RELEASED]) -> (u64, u64) {
    let whole = u128::from_le_bytes(*source);
    (whole as u64, (whole >> 64) as u64)
}

/// Finds the first NaN scale byte of rows that start at `first` and have `columns` scale bytes each.
pub(crate) fn check_scales(scale: &[u8], first: u64, columns: u64) -> Result<(), Fault> {
    match scale.iter().position(|byte| *byte == 255) {
        None => Ok(()),
        Some(at) => Err(Fault::NanScale { row: first + at as u64 / columns, column: at as u64 % columns }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_documented_example_is_repacked_as_documented() {
        let weight = [0x10, 0x32, 0x54, 0x76, 0x98, 0xBA, 0xDC, 0xFE, 0x10, 0x32, 0x54, 0x76, 0x98, 0xBA, 0xDC, 0xFE];
        let mut out = [0; 17];
        to_mxfp4(Rows { weight: &weight, scale: &[120], first: 0, columns: 32 }, &mut out).unwrap();
        let expected: Vec<u8> = std::iter::once(120).chain((0..16).map(|j| j * 0x11)).collect();
        assert_eq!(out.as_slice(), expected);
    }

    #[test]
    fn a_nan_scale_is_refused_with_its_place() {
        let mut scale = [120; 12];
        scale[9] = 255;
        let rows = Rows { weight: &[0; 192], scale: &scale, first: 100, columns: 128 };
        assert_eq!(to_mxfp4(rows, &mut [0; 204]), Err(Fault::NanScale { row: 102, column: 1 }));
    }

    #[test]
    fn values_are_code_times_scale() {
        let weight: Vec<u8> = (0..16u8).map(|j| (2 * j % 16) | (((2 * j + 1) % 16) << 4)).collect();
        let mut values = [0.0; 32];
        to_values(Rows { weight: &weight, scale: &[128], first: 0, columns: 32 }, &mut values).unwrap();
        assert_eq!(values[..8], [0.0, 1.0, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0]);
        assert_eq!(values[15], -12.0);
        assert_eq!(values[16..], values[..16]);
    }

    /// MXFP4 as ggml reads it: the gguf crate's decoder sees the values that the released codes mean.
    #[test]
    fn the_mxfp4_decoder_sees_the_released_values() {
        let weight: Vec<u8> = (0..16u8).map(|j| j.wrapping_mul(73).wrapping_add(19)).collect();
        for scale in [3u8, 100, 127, 140, 250] {
            let rows = Rows { weight: &weight, scale: &[scale], first: 0, columns: 32 };
            let (mut stored, mut expected, mut found) = ([0; 17], [0.0; 32], [0.0; 32]);
            to_mxfp4(rows, &mut stored).unwrap();
            to_values(rows, &mut expected).unwrap();
            fathom_gguf::block::mxfp4::decode(&stored, &mut found);
            assert_eq!(found, expected, "scale {scale}");
        }
    }

    proptest! {
        #[test]
        fn repacking_is_undone_exactly(weight in prop::collection::vec(any::<u8>(), 16 * 6), scale in prop::collection::vec(0u8..255, 6)) {
            let mut stored = vec![0; 17 * 6];
            to_mxfp4(Rows { weight: &weight, scale: &scale, first: 0, columns: 64 }, &mut stored).unwrap();
            let (mut weight_back, mut scale_back) = (vec![0; weight.len()], vec![0; scale.len()]);
            from_mxfp4(&stored, &mut weight_back, &mut scale_back);
            prop_assert_eq!(weight_back, weight);
            prop_assert_eq!(scale_back, scale);
        }
    }
}
