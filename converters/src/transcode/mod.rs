//! Number formats: released blocks to GGUF element types and back, a few rows at a time.
//!
//! Everything here works on slices and knows neither files nor tensor names; a [`Fault`] says where in the rows something is
//! wrong, and the caller adds the tensor. The lossless conversions come in pairs, `encode` and its inverse `decode`, so that
//! `export` and `verify` rebuild the released bytes from nothing but the GGUF.

pub mod fp4;
pub mod fp8;
pub mod lossless;
pub mod quantize;

use fathom_gguf::DType;

/// How a released tensor is encoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Encoding {
    /// BF16.
    Bf16,
    /// F32.
    F32,
    /// I64 expert ids of a hash-routing table, each below `n_expert`.
    ExpertIds {
        /// Experts of the model.
        n_expert: u32,
    },
    /// F8_E4M3 bytes with one E8M0 scale byte for each block of 128x128.
    Fp8,
    /// Two FP4 codes a byte with one E8M0 scale byte for each 32 values of a row.
    Fp4,
}

impl Encoding {
    /// Whether the tensor comes with a separate scale tensor.
    pub fn has_scale(self) -> bool {
        matches!(self, Encoding::Fp8 | Encoding::Fp4)
    }

    /// Bytes of one released row of `columns` values (without scales).
    pub fn row_bytes(self, columns: u64) -> u64 {
        match self {
            Encoding::Bf16 => columns * 2,
            Encoding::F32 => columns * 4,
            Encoding::ExpertIds { .. } => columns * 8,
            Encoding::Fp8 => columns,
            Encoding::Fp4 => columns / 2,
        }
    }

    /// Scale bytes of one whole tensor of `rows` x `columns` values.
    pub fn scale_bytes(self, rows: u64, columns: u64) -> u64 {
        match self {
            Encoding::Fp8 => rows.div_ceil(fp8::BLOCK) * columns.div_ceil(fp8::BLOCK),
            Encoding::Fp4 => rows * (columns / fp4::GROUP),
            _ => 0,
        }
    }

    /// Whether every value, and the released bytes with it, survives storage as `target`.
    pub fn lossless_as(self, target: DType) -> bool {
        matches!(
            (self, target),
            (Encoding::Bf16, DType::BF16 | DType::F32)
                | (Encoding::F32, DType::F32)
                | (Encoding::ExpertIds { .. }, DType::I32)
                | (Encoding::Fp8, DType::BF16 | DType::F32)
                | (Encoding::Fp4, DType::MXFP4)
        )
    }
}

/// Some rows of one released tensor.
#[derive(Debug, Clone, Copy)]
pub struct Rows<'a> {
    /// Released bytes of the rows.
    pub weight: &'a [u8],
    /// FP8: the scales of the whole tensor; FP4: the scales of these rows; otherwise empty.
    pub scale: &'a [u8],
    /// Index of the first row.
    pub first: u64,
    /// Values in a row.
    pub columns: u64,
}

/// What is wrong with some rows, and where.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// An FP8 NaN code.
    NanCode {
        /// The byte.
        byte: u8,
        /// Row in the tensor.
        row: u64,
        /// Column.
        column: u64,
    },
    /// Scale byte 255.
    NanScale {
        /// Row of the scale tensor.
        row: u64,
        /// Column of the scale tensor.
        column: u64,
    },
    /// An expert id that is no expert.
    ExpertId {
        /// Flat index in the tensor.
        index: u64,
        /// The number found.
        value: i64,
    },
    /// A stored value that no released code has.
    NotRepresentable {
        /// Row in the tensor.
        row: u64,
        /// Column.
        column: u64,
    },
}

/// Encodes rows losslessly. `out` is exactly the bytes of these rows in `target`.
///
/// # Errors
/// A value that the released format forbids.
///
/// # Panics
/// If `target` is not lossless for `encoding` or a slice has the wrong length: the recipe decides both.
pub fn encode(encoding: Encoding, target: DType, rows: Rows<'_>, out: &mut [u8]) -> Result<(), Fault> {
    match (encoding, target) {
        (Encoding::Bf16, DType::BF16) | (Encoding::F32, DType::F32) => {
            out.copy_from_slice(rows.weight);
            Ok(())
        }
        (Encoding::Bf16, DType::F32) => {
            lossless::bf16_to_f32(rows.weight, out);
            Ok(())
        }
        (Encoding::ExpertIds { n_expert }, DType::I32) => lossless::i64_to_i32(rows, n_expert, out),
        (Encoding::Fp8, DType::BF16) => fp8::to_bf16(rows, out),
        (Encoding::Fp8, DType::F32) => fp8::to_f32(rows, out),
        (Encoding::Fp4, DType::MXFP4) => fp4::to_mxfp4(rows, out),
        _ => unreachable!("the recipe does not plan {encoding:?} as {} losslessly", target.name()),
    }
}

/// Some rows of one GGUF tensor, as stored.
#[derive(Debug, Clone, Copy)]
pub struct Stored<'a> {
    /// Bytes of the rows.
    pub bytes: &'a [u8],
    /// Their type.
    pub dtype: DType,
    /// FP8: the recorded scales of the whole tensor; otherwise empty.
    pub scale: &'a [u8],
    /// Index of the first row.
    pub first: u64,
    /// Values in a row.
    pub columns: u64,
}

/// The inverse of [`encode`]: stored rows to the released `weight` bytes and, for FP4, the released `scale` bytes.
///
/// # Errors
/// [`Fault::NotRepresentable`] for a value that [`encode`] cannot have written.
///
/// # Panics
/// As [`encode`].
pub fn decode(encoding: Encoding, stored: Stored<'_>, weight: &mut [u8], scale: &mut [u8]) -> Result<(), Fault> {
    match (encoding, stored.dtype) {
        (Encoding::Bf16, DType::BF16) | (Encoding::F32, DType::F32) => {
            weight.copy_from_slice(stored.bytes);
            Ok(())
        }
        (Encoding::Bf16, DType::F32) => lossless::f32_to_bf16(stored, weight),
        (Encoding::ExpertIds { .. }, DType::I32) => {
            lossless::i32_to_i64(stored.bytes, weight);
            Ok(())
        }
        (Encoding::Fp8, DType::BF16) => fp8::from_bf16(stored, weight),
        (Encoding::Fp8, DType::F32) => fp8::from_f32(stored, weight),
        (Encoding::Fp4, DType::MXFP4) => {
            fp4::from_mxfp4(stored.bytes, weight, scale);
            Ok(())
        }
        _ => unreachable!("{} is not a lossless form of {encoding:?}", stored.dtype.name()),
    }
}

/// The values of rows, exactly, for the lossy targets.
///
/// # Errors
/// As [`encode`].
///
/// # Panics
/// For expert ids, which are no weights.
pub fn to_values(encoding: Encoding, rows: Rows<'_>, out: &mut [f32]) -> Result<(), Fault> {
    match encoding {
        Encoding::Fp8 => fp8::to_values(rows, out),
        Encoding::Fp4 => fp4::to_values(rows, out),
        other => unreachable!("the recipe plans no lossy type for {other:?}"),
    }
}
