//! Released FP8 (e4m3 codes with one E8M0 scale byte for each 128x128 block) to BF16 or F32, exactly, and back.
//!
//! A code is n * 2^q with n of at most 4 bits; BF16 holds 8 significant bits, so only the exponent range can fail: BF16 is exact for
//! scale bytes 3..=246, F32 for 0..=246 (448 * 2^(byte-127) must stay below 2^128). Within one scale byte the 254 finite codes
//! have 254 different values (the zeros differ in sign), so value and scale byte give the code back: see
//! `every_code_under_every_scale_comes_back`.
//!
//! Both directions are arithmetic, not tables: the seven bits below the sign, placed at the top of an F32's mantissa and
//! exponent, are the value times 2^-120, for normal and subnormal codes alike; multiplying by powers of two is exact.

use super::{Fault, Rows, Stored};

/// Rows and columns that share one scale byte.
pub const BLOCK: u64 = 128;
/// Scale bytes for which BF16 is exact.
pub const BF16_EXACT: std::ops::RangeInclusive<u8> = 3..=246;
/// The largest scale byte for which F32 is exact; there is no smallest.
pub const F32_EXACT_MAX: u8 = 246;

/// 2^(byte-127); 255 is NaN and refused before.
pub(crate) fn scale_value(byte: u8) -> f32 {
    match byte {
        0 => f32::from_bits(0x0040_0000), // 2^-127, a subnormal
        _ => f32::from_bits(u32::from(byte) << 23),
    }
}

/// e4m3 value = `f32::from_bits(bits below the sign << 20) * 2^120`.
const TO_E4M3: f32 = f32::from_bits((120 + 127) << 23);
const FROM_E4M3: f32 = f32::from_bits((127 - 120) << 23);

#[inline]
fn value(code: u8, scale: f32) -> f32 {
    let magnitude = f32::from_bits(u32::from(code & 0x7F) << 20) * TO_E4M3 * scale;
    f32::from_bits(magnitude.to_bits() | (u32::from(code & 0x80) << 24))
}

/// Codes to BF16. `rows.scale` is the scale of the whole tensor, checked to lie in [`BF16_EXACT`].
///
/// # Errors
/// A NaN code.
pub fn to_bf16(rows: Rows<'_>, out: &mut [u8]) -> Result<(), Fault> {
    blocks(rows, out, |codes, scale, out: &mut [u8]| {
        for (out, code) in out.as_chunks_mut::<2>().0.iter_mut().zip(codes) {
            *out = ((value(*code, scale).to_bits() >> 16) as u16).to_le_bytes();
        }
    })
}

/// Codes to F32. `rows.scale` as above, at most [`F32_EXACT_MAX`].
///
/// # Errors
/// A NaN code.
pub fn to_f32(rows: Rows<'_>, out: &mut [u8]) -> Result<(), Fault> {
    blocks(rows, out, |codes, scale, out: &mut [u8]| {
        for (out, code) in out.as_chunks_mut::<4>().0.iter_mut().zip(codes) {
            *out = value(*code, scale).to_le_bytes();
        }
    })
}

/// The values of whole rows, for the lossy targets.
///
/// # Errors
/// A NaN code.
pub fn to_values(rows: Rows<'_>, out: &mut [f32]) -> Result<(), Fault> {
    blocks(rows, out, |codes, scale, out: &mut [f32]| {
        for (out, code) in out.iter_mut().zip(codes) {
            *out = value(*code, scale);
        }
    })
}

/// Calls `convert(codes, scale, out)` for the part of each row that shares one scale byte.
fn blocks<T>(rows: Rows<'_>, out: &mut [T], convert: impl Fn(&[u8], f32, &mut [T])) -> Result<(), Fault> {
    let columns = rows.columns as usize;
    let unit = out.len() / rows.weight.len().max(1);
    let scale_columns = columns.div_ceil(BLOCK as usize);
    for (index, (codes, out)) in rows.weight.chunks_exact(columns).zip(out.chunks_exact_mut(columns * unit)).enumerate()
    {
        let row = rows.first + index as u64;
        if codes.iter().any(|code| code & 0x7F == 0x7F) {
            let column = codes.iter().position(|code| code & 0x7F == 0x7F).expect("just seen");
            return Err(Fault::NanCode { byte: codes[column], row, column: column as u64 });
        }
        let scales = &rows.scale[(row / BLOCK) as usize * scale_columns..][..scale_columns];
        let parts = codes.chunks(BLOCK as usize).zip(out.chunks_mut(BLOCK as usize * unit));
        for ((codes, out), scale) in parts.zip(scales) {
            convert(codes, scale_value(*scale), out);
        }
    }
    Ok(())
}

/// BF16 back to codes.
///
/// # Errors
/// A value that is no e4m3 number times its scale.
pub fn from_bf16(stored: Stored<'_>, weight: &mut [u8]) -> Result<(), Fault> {
    assert_eq!(stored.bytes.len(), weight.len() * 2, "two bytes a value");
    codes(stored, stored.bytes.as_chunks::<2>().0, weight, |bytes| {
        f32::from_bits(u32::from(u16::from_le_bytes(*bytes)) << 16)
    })
}

/// F32 back to codes.
///
/// # Errors
/// As [`from_bf16`].
pub fn from_f32(stored: Stored<'_>, weight: &mut [u8]) -> Result<(), Fault> {
    assert_eq!(stored.bytes.len(), weight.len() * 4, "four bytes a value");
    codes(stored, stored.bytes.as_chunks::<4>().0, weight, |bytes| f32::from_le_bytes(*bytes))
}

fn codes<T>(stored: Stored<'_>, values: &[T], weight: &mut [u8], read: impl Fn(&T) -> f32) -> Result<(), Fault> {
    let columns = stored.columns as usize;
    let scale_columns = columns.div_ceil(BLOCK as usize);
    for (index, (values, weight)) in values.chunks_exact(columns).zip(weight.chunks_exact_mut(columns)).enumerate() {
        let row = stored.first + index as u64;
        let scales = &stored.scale[(row / BLOCK) as usize * scale_columns..][..scale_columns];
        let parts = values.chunks(BLOCK as usize).zip(weight.chunks_mut(BLOCK as usize));
        for (block, ((values, weight), scale)) in parts.zip(scales).enumerate() {
            // 2^(127-byte): the reciprocal of a power of two, exact and finite for every byte but 255.
            let inverse = 1.0 / scale_value(*scale);
            let mut odd = 0;
            for (weight, value) in weight.iter_mut().zip(values) {
                let (code, rest) = code(read(value), inverse);
                *weight = code;
                odd |= rest;
            }
            if odd != 0 {
                let at =
                    values.iter().position(|value| code(read(value), inverse).1 != 0).expect("one of them was odd");
                return Err(Fault::NotRepresentable { row, column: (block * BLOCK as usize + at) as u64 });
            }
        }
    }
    Ok(())
}

/// The code of a value, and bits that must be zero: mantissa bits an e4m3 number does not have, or a NaN or overflow.
#[inline]
fn code(value: f32, inverse: f32) -> (u8, u32) {
    let bits = value.to_bits();
    let magnitude = (f32::from_bits(bits & 0x7FFF_FFFF) * inverse * FROM_E4M3).to_bits();
    let code = ((magnitude >> 20) & 0x7F) as u8;
    // Rounding in the second product can only happen to values below e4m3's least; they show as a code that does not multiply back.
    let back = f32::from_bits(magnitude) * TO_E4M3;
    let exact = u32::from(back.to_bits() != (f32::from_bits(bits & 0x7FFF_FFFF) * inverse).to_bits());
    (code | ((bits >> 24) & 0x80) as u8, (magnitude & !(0x7F << 20)) | exact | u32::from(code == 0x7F))
}

#[cfg(test)]
mod tests {
    use super::*;
    use fathom_gguf::DType;

    fn stored<'a>(bytes: &'a [u8], dtype: DType, scale: &'a [u8], columns: u64) -> Stored<'a> {
        Stored { bytes, dtype, scale, first: 0, columns }
    }

    /// e4m3fn by its definition: bias 7, subnormals below exponent 1, no infinities.
    fn by_definition(code: u8) -> f64 {
        let (exponent, mantissa) = (i32::from(code >> 3 & 15), f64::from(code & 7));
        let magnitude = if exponent == 0 {
            mantissa / 8.0 * 2f64.powi(-6)
        } else {
            (1.0 + mantissa / 8.0) * 2f64.powi(exponent - 7)
        };
        if code & 0x80 == 0 { magnitude } else { -magnitude }
    }

    fn finite() -> Vec<u8> {
        (0..=255u8).filter(|code| code & 0x7F != 0x7F).collect()
    }

    #[test]
    fn every_code_under_every_scale_comes_back() {
        let weight = finite();
        let columns = weight.len() as u64;
        for byte in 0..=F32_EXACT_MAX {
            let scale = [byte; 2];
            let rows = Rows { weight: &weight, scale: &scale, first: 0, columns };
            let mut wide = vec![0; weight.len() * 4];
            to_f32(rows, &mut wide).unwrap();
            for (code, stored) in weight.iter().zip(wide.as_chunks::<4>().0) {
                let expected = by_definition(*code) * 2f64.powi(i32::from(byte) - 127);
                assert_eq!(f64::from(f32::from_le_bytes(*stored)), expected, "code {code:#x}, scale {byte}");
            }
            let mut back = vec![0; weight.len()];
            from_f32(stored(&wide, DType::F32, &scale, columns), &mut back).unwrap();
            assert_eq!(back, weight, "F32, scale {byte}");

            let mut narrow = vec![0; weight.len() * 2];
            to_bf16(rows, &mut narrow).unwrap();
            let exact =
                narrow.as_chunks::<2>().0.iter().zip(wide.as_chunks::<4>().0).all(|(n, w)| [0, 0, n[0], n[1]] == *w);
            assert_eq!(exact, BF16_EXACT.contains(&byte), "BF16 is exact exactly for 3..=246, scale {byte}");
            if exact {
                back.fill(0);
                from_bf16(stored(&narrow, DType::BF16, &scale, columns), &mut back).unwrap();
                assert_eq!(back, weight, "BF16, scale {byte}");
            }
        }
    }

    #[test]
    fn values_under_one_scale_are_all_different() {
        let mut seen = std::collections::HashSet::new();
        for code in finite() {
            assert!(seen.insert(value(code, scale_value(120)).to_bits()), "code {code:#x}");
        }
        assert_eq!(seen.len(), 254);
    }

    #[test]
    fn partial_blocks_at_both_edges_take_their_own_scale() {
        let (rows, columns) = (130u64, 200u64);
        let weight = vec![0x38; (rows * columns) as usize]; // 1.0
        let scale = [127, 128, 129, 130];
        let mut values = vec![0.0; weight.len()];
        to_values(Rows { weight: &weight, scale: &scale, first: 0, columns }, &mut values).unwrap();
        let at = |row: u64, column: u64| values[(row * columns + column) as usize];
        assert_eq!([at(127, 127), at(127, 128), at(128, 127), at(129, 199)], [1.0, 2.0, 4.0, 8.0]);

        // The same rows in two pieces, the second one starting inside the tensor.
        let mut tail = vec![0.0; (2 * columns) as usize];
        let rows = Rows { weight: &weight[..(2 * columns) as usize], scale: &scale, first: 128, columns };
        to_values(rows, &mut tail).unwrap();
        assert_eq!(tail, values[(128 * columns) as usize..]);
    }

    #[test]
    fn nan_codes_are_refused_with_their_place() {
        for byte in [0x7F, 0xFF] {
            let mut weight = [0x38; 12];
            weight[7] = byte;
            let rows = Rows { weight: &weight, scale: &[127], first: 40, columns: 4 };
            assert_eq!(to_bf16(rows, &mut [0; 24]), Err(Fault::NanCode { byte, row: 41, column: 3 }));
        }
    }

    #[test]
    fn values_that_no_code_has_are_refused() {
        for odd in [1.03125f32, 449.0, 480.0, 1e30, f32::INFINITY, f32::NAN, 0.0005, 1e-40] {
            let bytes: Vec<u8> = [1.0f32, 2.0, odd, 0.0].iter().flat_map(|v| v.to_le_bytes()).collect();
            let stored = Stored { first: 5, ..stored(&bytes, DType::F32, &[127], 2) };
            let found = from_f32(stored, &mut [0; 4]);
            assert_eq!(found, Err(Fault::NotRepresentable { row: 6, column: 0 }), "{odd}");
        }
    }
}
