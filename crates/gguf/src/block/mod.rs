//! Encoding and decoding of block types: rows of `f32` to and from the bytes of a tensor.
//!
//! Results are those of ggml's reference quantisers, bit for bit, for every finite input that a block can represent (the
//! root package compares them with the linked ggml). Plain portable loops: the compiler vectorises them.
//!
//! | type | elements | bytes | exact for |
//! |---|---|---|---|
//! | F32 | 1 | 4 | everything |
//! | F16, BF16 | 1 | 2 | what has few enough bits; round to nearest, ties to even |
//! | Q8_0 | 32 | 34 | integers up to 127 times one F16 step |
//! | MXFP4 | 32 | 17 | E2M1 numbers times one power of two |
//! | NVFP4 | 64 | 36 | E2M1 numbers times an E4M3 scale for each 16 |

pub mod bf16;
mod e2m1;
pub mod f16;
pub mod f32;
pub mod mxfp4;
pub mod nvfp4;
pub mod q8_0;

use crate::DType;

/// Why rows cannot be encoded or decoded.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    #[error("no codec for element type {dtype}")]
    Unsupported { dtype: DType },
    #[error("{elements} elements are not a whole number of {dtype} blocks")]
    PartialBlock { dtype: DType, elements: usize },
    #[error("{elements} elements of {dtype} do not take {bytes} bytes")]
    Length { dtype: DType, elements: usize, bytes: usize },
}

/// Whether [`encode`] and [`decode`] know `dtype`.
pub fn supported(dtype: DType) -> bool {
    codec(dtype).is_some()
}

/// Stores `values` as `dtype` in `out`, which must have exactly the size that [`DType::row_bytes`] says.
///
/// # Errors
/// An [`Error`] when the type has no codec here or the lengths do not match; `out` is then untouched.
pub fn encode(dtype: DType, values: &[f32], out: &mut [u8]) -> Result<(), Error> {
    let codec = check(dtype, values.len(), out.len())?;
    (codec.encode)(values, out);
    Ok(())
}

/// Reads `bytes` of type `dtype` into `out`, which must have exactly the number of elements in `bytes`.
///
/// # Errors
/// An [`Error`] when the type has no codec here or the lengths do not match; `out` is then untouched.
pub fn decode(dtype: DType, bytes: &[u8], out: &mut [f32]) -> Result<(), Error> {
    let codec = check(dtype, out.len(), bytes.len())?;
    (codec.decode)(bytes, out);
    Ok(())
}

struct Codec {
    encode: fn(&[f32], &mut [u8]),
    decode: fn(&[u8], &mut [f32]),
}

fn codec(dtype: DType) -> Option<Codec> {
    Some(match dtype {
        DType::F32 => Codec { encode: f32::encode, decode: f32::decode },
        DType::F16 => Codec { encode: f16::encode, decode: f16::decode },
        DType::BF16 => Codec { encode: bf16::encode, decode: bf16::decode },
        DType::Q8_0 => Codec { encode: q8_0::encode, decode: q8_0::decode },
        DType::MXFP4 => Codec { encode: mxfp4::encode, decode: mxfp4::decode },
        DType::NVFP4 => Codec { encode: nvfp4::encode, decode: nvfp4::decode },
        _ => return None,
    })
}

fn check(dtype: DType, elements: usize, bytes: usize) -> Result<Codec, Error> {
    let codec = codec(dtype).ok_or(Error::Unsupported { dtype })?;
    let expected = dtype.row_bytes(elements as u64).ok_or(Error::PartialBlock { dtype, elements })?;
    if expected != bytes as u64 {
        return Err(Error::Length { dtype, elements, bytes });
    }
    Ok(codec)
}

/// Blocks of `N` elements beside blocks of `B` bytes.
///
/// # Panics
/// When the lengths do not belong together: the documented contract of every codec in this module.
fn blocks<'a, const N: usize, const B: usize>(values: &'a [f32], bytes: &'a mut [u8]) -> Encoding<'a, N, B> {
    let ((values, rest), (bytes, rest_bytes)) = (values.as_chunks(), bytes.as_chunks_mut());
    assert!(
        rest.is_empty() && rest_bytes.is_empty() && values.len() == bytes.len(),
        "whole blocks of matching lengths"
    );
    values.iter().zip(bytes)
}

type Encoding<'a, const N: usize, const B: usize> =
    std::iter::Zip<std::slice::Iter<'a, [f32; N]>, std::slice::IterMut<'a, [u8; B]>>;

/// As [`blocks`], in the other direction.
fn blocks_mut<'a, const N: usize, const B: usize>(bytes: &'a [u8], values: &'a mut [f32]) -> Decoding<'a, N, B> {
    let ((bytes, rest_bytes), (values, rest)) = (bytes.as_chunks(), values.as_chunks_mut());
    assert!(
        rest.is_empty() && rest_bytes.is_empty() && values.len() == bytes.len(),
        "whole blocks of matching lengths"
    );
    bytes.iter().zip(values)
}

type Decoding<'a, const N: usize, const B: usize> =
    std::iter::Zip<std::slice::Iter<'a, [u8; B]>, std::slice::IterMut<'a, [f32; N]>>;

/// The largest magnitude in a block, and what NaNs do to it.
///
/// Magnitudes are compared as integers, which orders them alike and vectorises; only when a NaN came out on top does the
/// order of ggml's comparisons matter.
#[inline]
fn largest<const N: usize>(values: &[f32; N], nan: Nan) -> f32 {
    let bits = values.iter().fold(0, |largest, value| value.abs().to_bits().max(largest));
    let largest = f32::from_bits(bits);
    if !largest.is_nan() { largest } else { nan.largest(values) }
}

/// How a NaN takes part in the search for the largest magnitude.
#[derive(Clone, Copy)]
enum Nan {
    /// Never chosen (MXFP4, NVFP4).
    Skipped,
    /// Replaces what was found before it and is replaced by what follows (Q8_0).
    Restarts,
}

impl Nan {
    #[cold]
    fn largest(self, values: &[f32]) -> f32 {
        values.iter().map(|value| value.abs()).fold(0.0, |largest, value| match self {
            Nan::Skipped if largest < value => value,
            Nan::Skipped => largest,
            Nan::Restarts if largest > value => largest,
            Nan::Restarts => value,
        })
    }
}

/// Tests walk every n-th case of what is too much for Miri, which is some thousand times slower.
#[cfg(test)]
const fn every(n_under_miri: usize) -> usize {
    if cfg!(miri) { n_under_miri } else { 1 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_are_checked_before_anything_is_written() {
        let mut out = [7u8; 34];
        assert_eq!(encode(DType::Q4_K, &[0.0; 256], &mut out), Err(Error::Unsupported { dtype: DType::Q4_K }));
        assert_eq!(
            encode(DType::Q8_0, &[0.0; 33], &mut out),
            Err(Error::PartialBlock { dtype: DType::Q8_0, elements: 33 })
        );
        let length = Error::Length { dtype: DType::Q8_0, elements: 64, bytes: 34 };
        assert_eq!(encode(DType::Q8_0, &[0.0; 64], &mut out), Err(length.clone()));
        assert_eq!(decode(DType::Q8_0, &out, &mut [0.0; 64]), Err(length));
        assert_eq!(out, [7u8; 34]);
    }

    #[test]
    fn every_codec_keeps_zeros_and_its_largest_value() {
        for dtype in DType::all().filter(|&dtype| supported(dtype)) {
            let mut values = [0f32; 64];
            values[5] = 6.0;
            values[63] = -6.0;
            let mut bytes = vec![0; dtype.row_bytes(64).unwrap() as usize];
            encode(dtype, &values, &mut bytes).unwrap();
            let mut back = [1f32; 64];
            decode(dtype, &bytes, &mut back).unwrap();
            for (at, (value, back)) in values.iter().zip(&back).enumerate() {
                assert!((value - back).abs() <= 6.0 / 2048.0, "{dtype} element {at}: {value} came back as {back}");
            }
        }
    }
}
