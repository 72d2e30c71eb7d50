//! The plain widenings: BF16 to F32 and I64 expert ids to I32, with their inverses.

use super::{Fault, Rows, Stored};

/// BF16 to F32, exact: BF16 is the upper half of an F32.
pub fn bf16_to_f32(bf16: &[u8], out: &mut [u8]) {
    assert_eq!(out.len(), bf16.len() * 2, "two bytes become four");
    for (out, source) in out.as_chunks_mut::<4>().0.iter_mut().zip(bf16.as_chunks::<2>().0) {
        *out = [0, 0, source[0], source[1]];
    }
}

/// F32 back to BF16.
///
/// # Errors
/// A value that is no BF16: [`bf16_to_f32`] did not write it.
pub fn f32_to_bf16(stored: Stored<'_>, out: &mut [u8]) -> Result<(), Fault> {
    assert_eq!(stored.bytes.len(), out.len() * 2, "four bytes become two");
    for (index, (out, source)) in out.as_chunks_mut::<2>().0.iter_mut().zip(stored.bytes.as_chunks::<4>().0).enumerate()
    {
        if source[0] != 0 || source[1] != 0 {
            let index = index as u64;
            return Err(Fault::NotRepresentable {
                row: stored.first + index / stored.columns,
                column: index % stored.columns,
            });
        }
        *out = [source[2], source[3]];
    }
    Ok(())
}

/// I64 expert ids to I32, refusing ids that are no expert.
pub fn i64_to_i32(rows: Rows<'_>, n_expert: u32, out: &mut [u8]) -> Result<(), Fault> {
    assert_eq!(rows.weight.len(), out.len() * 2, "eight bytes become four");
    for (index, (out, source)) in out.as_chunks_mut::<4>().0.iter_mut().zip(rows.weight.as_chunks::<8>().0).enumerate()
    {
        let value = i64::from_le_bytes(*source);
        if value < 0 || value >= i64::from(n_expert) {
            return Err(Fault::ExpertId { index: rows.first * rows.columns + index as u64, value });
        }
        *out = (value as i32).to_le_bytes();
    }
    Ok(())
}

/// I32 ids back to I64.
pub fn i32_to_i64(stored: &[u8], out: &mut [u8]) {
    assert_eq!(out.len(), stored.len() * 2, "four bytes become eight");
    for (out, source) in out.as_chunks_mut::<8>().0.iter_mut().zip(stored.as_chunks::<4>().0) {
        *out = i64::from(i32::from_le_bytes(*source)).to_le_bytes();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use fathom_gguf::DType;

    #[test]
    fn every_bf16_survives_as_f32() {
        let bf16: Vec<u8> = (0..=u16::MAX).flat_map(u16::to_le_bytes).collect();
        let mut wide = vec![0; bf16.len() * 2];
        bf16_to_f32(&bf16, &mut wide);
        let values: Vec<f32> = wide.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect();
        assert_eq!(values[0x3F80], 1.0);
        assert!(values[0x8000].is_sign_negative() && values[0x8000] == 0.0);
        let mut back = vec![0; bf16.len()];
        f32_to_bf16(Stored { bytes: &wide, dtype: DType::F32, scale: &[], first: 0, columns: 256 }, &mut back).unwrap();
        assert_eq!(back, bf16);
    }

    #[test]
    fn an_f32_that_is_no_bf16_is_refused_with_its_place() {
        let stored: Vec<u8> = [1.0f32, 1.5, 0.1, 2.0].iter().flat_map(|v| v.to_le_bytes()).collect();
        let stored = Stored { bytes: &stored, dtype: DType::F32, scale: &[], first: 10, columns: 2 };
        let fault = f32_to_bf16(stored, &mut [0; 8]).unwrap_err();
        assert_eq!(fault, Fault::NotRepresentable { row: 11, column: 0 });
    }

    #[test]
    fn expert_ids_round_trip_and_are_bounded() {
        let ids: Vec<u8> = [0i64, 7, 3, 5].iter().flat_map(|v| v.to_le_bytes()).collect();
        let mut narrow = [0; 16];
        let rows = Rows { weight: &ids, scale: &[], first: 4, columns: 2 };
        i64_to_i32(rows, 8, &mut narrow).unwrap();
        let mut back = vec![0; ids.len()];
        i32_to_i64(&narrow, &mut back);
        assert_eq!(back, ids);
        assert_eq!(i64_to_i32(rows, 7, &mut narrow), Err(Fault::ExpertId { index: 9, value: 7 }));
    }
}
