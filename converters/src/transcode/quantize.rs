//! The lossy choices: exact values to a smaller block type, with the error that this makes.

use fathom_gguf::{DType, block};

/// Quantises rows to the types that this crate has no codec for. The server's package supplies one over ggml.
pub trait Quantizer: Sync {
    /// Quantises rows of `columns` values. `out` is exactly their bytes in `dtype`.
    ///
    /// # Errors
    /// A sentence for the user, when the type is not available.
    fn quantize(&self, dtype: DType, values: &[f32], columns: usize, out: &mut [u8]) -> Result<(), String>;
    /// The inverse, up to the rounding.
    ///
    /// # Errors
    /// As [`Quantizer::quantize`].
    fn dequantize(&self, dtype: DType, stored: &[u8], out: &mut [f32]) -> Result<(), String>;
}

/// Whether the codecs of `fathom_gguf` cover this type; the others need a [`Quantizer`].
pub fn built_in(dtype: DType) -> bool {
    matches!(dtype, DType::F16 | DType::BF16 | DType::Q8_0 | DType::MXFP4)
}

/// How far stored values are from the released ones. Sums over any set of rows can be merged.
#[derive(Debug, Clone, Copy, Default, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct ErrorSums {
    /// Number of values.
    pub values: u64,
    /// Sum of squared differences.
    pub error_squares: f64,
    /// Sum of squared released values.
    pub value_squares: f64,
    /// Largest difference.
    pub max_error: f64,
    /// Largest released value.
    pub max_value: f64,
}

impl ErrorSums {
    /// Adds `released` against `stored`.
    pub fn add(&mut self, released: &[f32], stored: &[f32]) {
        self.values += released.len() as u64;
        for (released, stored) in released.iter().zip(stored) {
            let (released, stored) = (f64::from(*released), f64::from(*stored));
            let error = (released - stored).abs();
            self.error_squares += error * error;
            self.value_squares += released * released;
            self.max_error = self.max_error.max(error);
            self.max_value = self.max_value.max(released.abs());
        }
    }

    /// Joins two sets of rows.
    pub fn merge(&mut self, other: &ErrorSums) {
        self.values += other.values;
        self.error_squares += other.error_squares;
        self.value_squares += other.value_squares;
        self.max_error = self.max_error.max(other.max_error);
        self.max_value = self.max_value.max(other.max_value);
    }

    /// Root mean square of the differences.
    pub fn rms(&self) -> f64 {
        (self.error_squares / self.values.max(1) as f64).sqrt()
    }

    /// The same, relative to the root mean square of the released values.
    pub fn relative_rms(&self) -> f64 {
        if self.value_squares == 0.0 { 0.0 } else { (self.error_squares / self.value_squares).sqrt() }
    }
}

/// Quantises rows and adds their error to `sums`. `scratch` is reused from call to call.
///
/// # Errors
/// What the [`Quantizer`] says, or that there is none.
pub fn quantize(
    quantizer: Option<&dyn Quantizer>,
    dtype: DType,
    values: &[f32],
    columns: usize,
    out: &mut [u8],
    scratch: &mut Vec<f32>,
) -> Result<ErrorSums, String> {
    scratch.clear();
    scratch.resize(values.len(), 0.0);
    if built_in(dtype) {
        block::encode(dtype, values, out).map_err(|error| error.to_string())?;
        block::decode(dtype, out, scratch).map_err(|error| error.to_string())?;
    } else {
        let quantizer = quantizer.ok_or_else(|| missing_quantizer(dtype))?;
        quantizer.quantize(dtype, values, columns, out)?;
        quantizer.dequantize(dtype, out, scratch)?;
    }
    let mut sums = ErrorSums::default();
    sums.add(values, scratch);
    Ok(sums)
}

/// What to say when a type needs ggml and this build has none.
pub fn missing_quantizer(dtype: DType) -> String {
    format!("`{}` is quantised by ggml, which this build does not include (feature `llama`)", dtype.name())
}
