//! The description of one tensor in a file.

use crate::error::Unwritable;
use crate::{DType, Error, limits};

/// Name, type, shape and place of a tensor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorInfo {
    /// Unique in the model, over all shards.
    pub name: String,
    /// How elements are stored.
    pub dtype: DType,
    /// Elements along each axis, 1 to 4 axes; `ne[0]` is the contiguous one.
    pub ne: Vec<u64>,
    /// Start of the data, in bytes from the start of the data section of its shard.
    pub offset: u64,
    /// Bytes of the data, without padding.
    pub bytes: u64,
    /// Number of the file that holds the data, from 0.
    pub shard: usize,
}

impl TensorInfo {
    /// A tensor that is to be written; [`Layout`](crate::Layout) decides `offset` and `shard`.
    ///
    /// # Errors
    /// [`Error::UnwritableTensor`] for a name or shape that the format cannot hold.
    pub fn new(name: impl Into<String>, dtype: DType, ne: impl Into<Vec<u64>>) -> Result<TensorInfo, Error> {
        let (name, ne) = (name.into(), ne.into());
        match check(&name, dtype, &ne) {
            Ok(bytes) => Ok(TensorInfo { name, dtype, ne, offset: 0, bytes, shard: 0 }),
            Err(why) => Err(Error::UnwritableTensor { tensor: name, why }),
        }
    }

    /// Number of elements.
    pub fn elements(&self) -> u64 {
        self.ne.iter().product()
    }

    /// Bytes of one row (`ne[0]` elements).
    pub fn row_bytes(&self) -> u64 {
        self.ne.first().and_then(|&ne0| self.dtype.row_bytes(ne0)).unwrap_or(0)
    }

    /// Number of rows: the product of all axes but the first.
    pub fn rows(&self) -> u64 {
        self.ne.iter().skip(1).product()
    }
}

/// Bytes of a tensor that can be written.
pub(crate) fn check(name: &str, dtype: DType, ne: &[u64]) -> Result<u64, Unwritable> {
    if name.is_empty() {
        return Err(Unwritable::EmptyName);
    }
    let max = limits::MAX_TENSOR_NAME_BYTES;
    if name.len() as u64 > max {
        return Err(Unwritable::NameTooLong { bytes: name.len() as u64, max });
    }
    if ne.is_empty() || ne.len() > limits::MAX_DIMENSIONS as usize {
        return Err(Unwritable::Dimensions { count: ne.len() });
    }
    dtype.tensor_bytes(ne).ok_or_else(|| Unwritable::Shape { ne: ne.to_vec(), dtype })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_tensor_knows_its_bytes() {
        let info = TensorInfo::new("blk.0.ffn_up_exps.weight", DType::MXFP4, [64, 3, 2]).unwrap();
        assert_eq!((info.bytes, info.row_bytes(), info.rows(), info.elements()), (34 * 6, 34, 6, 384));
    }

    #[test]
    fn what_the_format_cannot_hold_is_refused() {
        let refused = |name: &str, dtype, ne: &[u64]| TensorInfo::new(name, dtype, ne).unwrap_err().to_string();
        assert_eq!(refused("", DType::F32, &[1]), "cannot write tensor ``: its name is empty");
        assert!(refused(&"x".repeat(64), DType::F32, &[1]).contains("64 bytes, more than 63"));
        assert!(refused("x", DType::F32, &[1; 5]).contains("5 dimensions"));
        assert!(refused("x", DType::F32, &[]).contains("0 dimensions"));
        assert!(refused("x", DType::MXFP4, &[33]).contains("whole number of mxfp4 blocks"));
        assert!(refused("x", DType::F32, &[u64::MAX, 2]).contains("too large"));
    }
}
