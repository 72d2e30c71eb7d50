//! F32: little-endian IEEE numbers, unchanged (NaN payloads too).

use super::{blocks, blocks_mut};

/// # Panics
/// Unless `out` has 4 bytes for each value.
pub fn encode(values: &[f32], out: &mut [u8]) {
    for ([value], bytes) in blocks::<1, 4>(values, out) {
        *bytes = value.to_le_bytes();
    }
}

/// # Panics
/// Unless `bytes` has 4 bytes for each element of `out`.
pub fn decode(bytes: &[u8], out: &mut [f32]) {
    for (bytes, [value]) in blocks_mut::<1, 4>(bytes, out) {
        *value = f32::from_le_bytes(*bytes);
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn bits_are_kept() {
        let bytes: Vec<u8> = [0x7FC0_1234u32, 0x8000_0000, 1].iter().flat_map(|bits| bits.to_le_bytes()).collect();
        let mut values = [0f32; 3];
        super::decode(&bytes, &mut values);
        let mut back = vec![0; 12];
        super::encode(&values, &mut back);
        assert_eq!(back, bytes);
    }
}
