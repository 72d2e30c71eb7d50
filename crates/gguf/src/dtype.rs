//! Element types of tensors: one row per type of ggml 0.26, and the arithmetic of block sizes.
//!
//! Numbers and names are ggml's (`include/ggml.h`, `src/ggml-common.h`); a test with feature `llama` in the root package
//! compares every row with the linked ggml.

/// How the elements of a tensor are stored. A type stores [`block_elements`](DType::block_elements) consecutive
/// elements of a row in [`block_bytes`](DType::block_bytes) bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u32)]
#[expect(non_camel_case_types, reason = "ggml's spelling, so that a search finds both")]
pub enum DType {
    F32 = 0,
    F16 = 1,
    Q4_0 = 2,
    Q4_1 = 3,
    Q5_0 = 6,
    Q5_1 = 7,
    Q8_0 = 8,
    Q8_1 = 9,
    Q2_K = 10,
    Q3_K = 11,
    Q4_K = 12,
    Q5_K = 13,
    Q6_K = 14,
    Q8_K = 15,
    IQ2_XXS = 16,
    IQ2_XS = 17,
    IQ3_XXS = 18,
    IQ1_S = 19,
    IQ4_NL = 20,
    IQ3_S = 21,
    IQ2_S = 22,
    IQ4_XS = 23,
    I8 = 24,
    I16 = 25,
    I32 = 26,
    I64 = 27,
    F64 = 28,
    IQ1_M = 29,
    BF16 = 30,
    TQ1_0 = 34,
    TQ2_0 = 35,
    MXFP4 = 39,
    NVFP4 = 40,
    Q1_0 = 41,
    Q2_0 = 42,
}

struct Row {
    dtype: DType,
    name: &'static str,
    block_elements: u32,
    block_bytes: u32,
}

const fn row(dtype: DType, name: &'static str, block_elements: u32, block_bytes: u32) -> Row {
    Row { dtype, name, block_elements, block_bytes }
}

/// In the order of the ids. Block sizes are sums of a block's parts, in ggml's order: scales first, then quants.
const TABLE: [Row; 35] = [
    row(DType::F32, "f32", 1, 4),
    row(DType::F16, "f16", 1, 2),
    row(DType::Q4_0, "q4_0", 32, 2 + 16),
    row(DType::Q4_1, "q4_1", 32, 2 * 2 + 16),
    row(DType::Q5_0, "q5_0", 32, 2 + 4 + 16),
    row(DType::Q5_1, "q5_1", 32, 2 * 2 + 4 + 16),
    row(DType::Q8_0, "q8_0", 32, 2 + 32),
    row(DType::Q8_1, "q8_1", 32, 2 * 2 + 32),
    row(DType::Q2_K, "q2_K", 256, 16 + 64 + 2 * 2),
    row(DType::Q3_K, "q3_K", 256, 32 + 64 + 12 + 2),
    row(DType::Q4_K, "q4_K", 256, 2 * 2 + 12 + 128),
    row(DType::Q5_K, "q5_K", 256, 2 * 2 + 12 + 32 + 128),
    row(DType::Q6_K, "q6_K", 256, 128 + 64 + 16 + 2),
    row(DType::Q8_K, "q8_K", 256, 4 + 256 + 16 * 2),
    row(DType::IQ2_XXS, "iq2_xxs", 256, 2 + 64),
    row(DType::IQ2_XS, "iq2_xs", 256, 2 + 64 + 8),
    row(DType::IQ3_XXS, "iq3_xxs", 256, 2 + 96),
    row(DType::IQ1_S, "iq1_s", 256, 2 + 32 + 16),
    row(DType::IQ4_NL, "iq4_nl", 32, 2 + 16),
    row(DType::IQ3_S, "iq3_s", 256, 2 + 64 + 8 + 32 + 4),
    row(DType::IQ2_S, "iq2_s", 256, 2 + 64 + 8 + 8),
    row(DType::IQ4_XS, "iq4_xs", 256, 2 + 2 + 4 + 128),
    row(DType::I8, "i8", 1, 1),
    row(DType::I16, "i16", 1, 2),
    row(DType::I32, "i32", 1, 4),
    row(DType::I64, "i64", 1, 8),
    row(DType::F64, "f64", 1, 8),
    row(DType::IQ1_M, "iq1_m", 256, 32 + 16 + 8),
    row(DType::BF16, "bf16", 1, 2),
    row(DType::TQ1_0, "tq1_0", 256, 48 + 4 + 2),
    row(DType::TQ2_0, "tq2_0", 256, 64 + 2),
    row(DType::MXFP4, "mxfp4", 32, 1 + 16),
    row(DType::NVFP4, "nvfp4", 64, 4 + 32),
    row(DType::Q1_0, "q1_0", 128, 2 + 16),
    row(DType::Q2_0, "q2_0", 64, 2 + 16),
];

/// Ids that ggml once used and no longer reads. Named, so that an old file gets an explanation instead of "unknown type".
const REMOVED: [(u32, &str); 8] = [
    (4, "q4_2"),
    (5, "q4_3"),
    (31, "q4_0_4_4"),
    (32, "q4_0_4_8"),
    (33, "q4_0_8_8"),
    (36, "iq4_nl_4_4"),
    (37, "iq4_nl_4_8"),
    (38, "iq4_nl_8_8"),
];

impl DType {
    /// Every type that a file may contain, in the order of the ids.
    pub fn all() -> impl ExactSizeIterator<Item = DType> {
        TABLE.iter().map(|row| row.dtype)
    }

    /// The type with this number in the file; `None` for unknown and for [removed](DType::removed) ones.
    pub fn from_id(id: u32) -> Option<DType> {
        let at = TABLE.binary_search_by_key(&id, |row| row.dtype.id()).ok()?;
        Some(TABLE[at].dtype)
    }

    /// The type with this name; upper and lower case are the same (`Q4_K`, `q4_K`, `q4_k`).
    pub fn from_name(name: &str) -> Option<DType> {
        TABLE.iter().find(|row| row.name.eq_ignore_ascii_case(name)).map(|row| row.dtype)
    }

    /// The name of a type that was removed from the format, given its number.
    pub fn removed(id: u32) -> Option<&'static str> {
        REMOVED.iter().find(|(removed, _)| *removed == id).map(|(_, name)| *name)
    }

    /// The number that stands for this type in a file.
    pub fn id(self) -> u32 {
        self as u32
    }

    /// ggml's name: `f32`, `q4_K`, `mxfp4`.
    pub fn name(self) -> &'static str {
        self.row().name
    }

    /// Elements in one block; 1 for plain numbers. A row is a whole number of blocks.
    pub fn block_elements(self) -> u64 {
        u64::from(self.row().block_elements)
    }

    /// Bytes of one block.
    pub fn block_bytes(self) -> u64 {
        u64::from(self.row().block_bytes)
    }

    /// Bytes of a row of `ne0` elements; `None` when that is not a whole number of blocks or does not fit 64 bits.
    pub fn row_bytes(self, ne0: u64) -> Option<u64> {
        let row = self.row();
        if !ne0.is_multiple_of(u64::from(row.block_elements)) {
            return None;
        }
        (ne0 / u64::from(row.block_elements)).checked_mul(u64::from(row.block_bytes))
    }

    /// Bytes of a tensor of shape `ne` (`ne[0]` is the contiguous axis); `None` when a row is not a whole number of
    /// blocks, or elements or bytes do not fit 63 bits (ggml's limit).
    pub fn tensor_bytes(self, ne: &[u64]) -> Option<u64> {
        let elements = ne.iter().try_fold(1u64, |n, &axis| n.checked_mul(axis))?;
        let rows = ne.iter().skip(1).try_fold(1u64, |n, &axis| n.checked_mul(axis))?;
        let bytes = self.row_bytes(*ne.first().unwrap_or(&1))?.checked_mul(rows)?;
        (elements <= i64::MAX as u64 && bytes <= i64::MAX as u64).then_some(bytes)
    }

    /// Bits for one element, averaged over a block: 4.25 for MXFP4.
    pub fn bits_per_element(self) -> f64 {
        let row = self.row();
        f64::from(row.block_bytes) * 8.0 / f64::from(row.block_elements)
    }

    fn row(self) -> &'static Row {
        let at = TABLE.binary_search_by_key(&self.id(), |row| row.dtype.id());
        &TABLE[at.expect("every variant has a row: checked by a test")]
    }
}

impl std::fmt::Display for DType {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_id_is_a_type_removed_or_unknown() {
        let names: Vec<_> = (0..=43).map(|id| DType::from_id(id).map(DType::name)).collect();
        let removed = [4, 5, 31, 32, 33, 36, 37, 38];
        for id in 0..=42u32 {
            assert_eq!(names[id as usize].is_none(), removed.contains(&id), "id {id}");
            assert_eq!(DType::removed(id).is_some(), removed.contains(&id), "id {id}");
        }
        assert_eq!((DType::from_id(43), DType::removed(43)), (None, None));
        assert_eq!(DType::from_id(u32::MAX), None);
    }

    #[test]
    fn table_is_sorted_and_complete() {
        assert!(TABLE.is_sorted_by_key(|row| row.dtype.id()));
        for dtype in DType::all() {
            assert_eq!(DType::from_id(dtype.id()), Some(dtype));
            assert_eq!(DType::from_name(&dtype.name().to_uppercase()), Some(dtype));
        }
        assert_eq!(DType::all().len() + REMOVED.len(), 43, "ids 0 to 42 without holes");
    }

    #[test]
    fn row_and_tensor_bytes_are_checked() {
        assert_eq!(DType::MXFP4.row_bytes(4096), Some(4096 / 32 * 17));
        assert_eq!(DType::MXFP4.row_bytes(4095), None);
        assert_eq!(DType::F32.row_bytes(u64::MAX), None);
        assert_eq!(DType::NVFP4.tensor_bytes(&[64, 3, 2]), Some(36 * 6));
        assert_eq!(DType::F32.tensor_bytes(&[1 << 32, 1 << 32]), None);
        assert_eq!(DType::F32.tensor_bytes(&[0, 5]), Some(0));
        assert_eq!(DType::I8.tensor_bytes(&[1 << 63]), None, "ggml counts in i64");
        assert_eq!(DType::Q1_0.tensor_bytes(&[128, 1 << 58]), None, "2^65 elements in fewer bytes");
    }
}
