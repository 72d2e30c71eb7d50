//! One safetensors file: its header, and reading and writing at positions. The checkpoint reads them, export writes them.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::path::Path;

use safetensors::tensor::{Dtype, Metadata as Header, TensorInfo};

use crate::Error;

/// safetensors refuses headers above 100 MB; so do we, before reading one.
const MAX_HEADER_BYTES: u64 = 100_000_000;

/// Reads a header; also returns where the data begins. The safetensors crate checks offsets, shapes and overlaps.
///
/// # Errors
/// [`Error::BadShard`], [`Error::TruncatedShard`] when the file ends within its header.
pub(crate) fn read_header(file: &fs::File, bytes: u64, path: &Path) -> Result<(Header, u64), Error> {
    let bad = |reason: String| Error::BadShard { path: path.into(), reason };
    if bytes < 8 {
        return Err(Error::TruncatedShard { path: path.into(), expected: 8, found: bytes });
    }
    let mut length = [0; 8];
    read_at(file, 0, &mut length).map_err(Error::io("read", path))?;
    let length = u64::from_le_bytes(length);
    if length > MAX_HEADER_BYTES {
        return Err(bad(format!("its header would be {length} bytes long")));
    }
    if bytes < 8 + length {
        return Err(Error::TruncatedShard { path: path.into(), expected: 8 + length, found: bytes });
    }
    let mut text = vec![0; length as usize];
    read_at(file, 8, &mut text).map_err(Error::io("read", path))?;
    let header: Header = serde_json::from_slice(&text).map_err(|error| bad(error.to_string()))?;
    Ok((header, 8 + length))
}

/// The header of a file that holds these tensors one after the other, padded to 8 bytes as the format's own writer does it; also
/// returns the bytes of the data.
///
/// # Panics
/// If the tensors are larger than the address space, or have a shape of part of a byte.
pub(crate) fn encode_header(tensors: impl IntoIterator<Item = (String, Dtype, Vec<u64>)>) -> (Vec<u8>, u64) {
    let mut end = 0usize;
    let infos = tensors.into_iter().map(|(name, dtype, shape)| {
        let start = end;
        end += tensor_bytes(dtype, &shape) as usize;
        let shape = shape.iter().map(|axis| *axis as usize).collect();
        (name, TensorInfo { dtype, shape, data_offsets: (start, end) })
    });
    let format = HashMap::from([("format".to_owned(), "pt".to_owned())]);
    let header = Header::new(Some(format), infos.collect()).expect("offsets follow from shapes and dtypes");
    let mut json = serde_json::to_vec(&header).expect("plain data into memory");
    json.resize(json.len().next_multiple_of(8), b' ');
    let mut out = (json.len() as u64).to_le_bytes().to_vec();
    out.extend(json);
    (out, end as u64)
}

/// Bytes of a tensor.
pub(crate) fn tensor_bytes(dtype: Dtype, shape: &[u64]) -> u64 {
    shape.iter().product::<u64>() * dtype.bitsize() as u64 / 8
}

#[cfg(unix)]
pub(crate) fn read_at(file: &fs::File, at: u64, out: &mut [u8]) -> io::Result<()> {
    std::os::unix::fs::FileExt::read_exact_at(file, out, at)
}

#[cfg(unix)]
pub(crate) fn write_at(file: &fs::File, at: u64, bytes: &[u8]) -> io::Result<()> {
    std::os::unix::fs::FileExt::write_all_at(file, bytes, at)
}

#[cfg(windows)]
pub(crate) fn read_at(file: &fs::File, mut at: u64, mut out: &mut [u8]) -> io::Result<()> {
    while !out.is_empty() {
        match std::os::windows::fs::FileExt::seek_read(file, out, at) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(read) => (at, out) = (at + read as u64, &mut out[read..]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

#[cfg(windows)]
pub(crate) fn write_at(file: &fs::File, mut at: u64, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        match std::os::windows::fs::FileExt::seek_write(file, bytes, at) {
            Ok(written) => (at, bytes) = (at + written as u64, &bytes[written..]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}
