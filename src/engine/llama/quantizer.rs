//! ggml's quantisers for the converter: types that `fathom_gguf` has no codec for.

use fathom_gguf::DType;

use super::sys::{expand_rows, quantize_rows};

/// Quantises and expands through ggml's reference code.
pub struct Quantizer;

impl fathom_converters::Quantizer for Quantizer {
    fn quantize(&self, dtype: DType, values: &[f32], columns: usize, out: &mut [u8]) -> Result<(), String> {
        let bytes = quantize_rows(dtype, values, columns).map_err(|error| error.to_string())?;
        if bytes.len() != out.len() {
            return Err(format!("ggml made {} bytes of {}, expected {}", bytes.len(), dtype.name(), out.len()));
        }
        out.copy_from_slice(&bytes);
        Ok(())
    }

    fn dequantize(&self, dtype: DType, stored: &[u8], out: &mut [f32]) -> Result<(), String> {
        expand_rows(dtype, stored, out).map_err(|error| error.to_string())
    }
}
