//! A temporary copy of a model with every weight expanded to F32, for runs that must not round anything.
//!
//! ggml has no switch for that: its kernels round activations to what the weights' type asks for. With F32 weights they do not.

use std::path::{Path, PathBuf};

use fathom_gguf::{DType, File, Layout, Metadata, TensorInfo, Writer, block};

use super::expand_rows;
use crate::engine::{Error, machine};

/// Values that are expanded at a time: 4 MiB of F32.
const PIECE_VALUES: usize = 1 << 20;

/// The copy; it is gone when this is dropped, and on Linux also when the process is killed, since it never has a name.
#[derive(Debug)]
pub struct F32Copy {
    path: PathBuf,
    #[cfg(target_os = "linux")]
    _file: std::fs::File,
    #[cfg(not(target_os = "linux"))]
    _file: tempfile::NamedTempFile,
}

impl F32Copy {
    /// Writes the copy of `source` into folder `dir`; `on_progress` gets the fraction done and gives it up by answering `false`.
    ///
    /// # Errors
    /// [`Error::Disk`] and [`Error::Memory`] with the needed size before anything is written, [`Error::Aborted`], and those of
    /// reading and writing.
    pub fn make(source: &File, dir: &Path, on_progress: &mut dyn FnMut(f32) -> bool) -> Result<F32Copy, Error> {
        let failed = |reason: String| Error::Load { path: source.path().to_owned(), reason };
        let tensors = source.tensors().iter().map(widened).collect::<Result<Vec<_>, _>>()?;
        let layout = Layout::new(metadata(source.metadata()), tensors, None)?;
        let needed = layout.total_bytes();
        let available = machine::available_bytes();
        if needed > available {
            return Err(Error::Memory { needed, available });
        }
        let available = machine::free_disk_bytes(dir);
        if needed > available {
            return Err(Error::Disk { dir: dir.to_owned(), needed, available });
        }

        let copy = F32Copy::create(dir)?;
        let writer = Writer::create(&layout, std::slice::from_ref(&copy.path))?;
        let mut values = vec![0_f32; PIECE_VALUES];
        let mut bytes = Vec::with_capacity(PIECE_VALUES * 4);
        let mut done = 0_u64;
        for (tensor, wide) in source.tensors().iter().zip(layout.tensors()) {
            let data = source.data(tensor);
            if tensor.dtype == wide.dtype {
                writer.write_at(wide, 0, data)?;
                done += wide.bytes;
                continue;
            }
            let (block, block_bytes) = (tensor.dtype.block_elements() as usize, tensor.dtype.block_bytes() as usize);
            let mut at = 0;
            for piece in data.chunks(PIECE_VALUES / block * block_bytes) {
                if !on_progress(done as f32 / needed as f32) {
                    return Err(Error::Aborted);
                }
                let values = &mut values[..piece.len() / block_bytes * block];
                let expanded = if block::supported(tensor.dtype) {
                    block::decode(tensor.dtype, piece, values).map_err(|error| error.to_string())
                } else {
                    expand_rows(tensor.dtype, piece, values).map_err(|error| error.to_string())
                };
                expanded.map_err(|error| failed(format!("tensor `{}`: {error}", tensor.name)))?;
                bytes.clear();
                bytes.extend(values.iter().flat_map(|value| value.to_le_bytes()));
                writer.write_at(wide, at, &bytes)?;
                at += bytes.len() as u64;
                done += bytes.len() as u64;
            }
        }
        Ok(copy)
    }

    /// Where it can be opened, as long as this lives.
    pub fn path(&self) -> &Path {
        &self.path
    }

    #[cfg(target_os = "linux")]
    fn create(dir: &Path) -> Result<F32Copy, Error> {
        use std::os::fd::AsRawFd;
        let file = tempfile::tempfile_in(dir)?;
        Ok(F32Copy { path: format!("/proc/self/fd/{}", file.as_raw_fd()).into(), _file: file })
    }

    #[cfg(not(target_os = "linux"))]
    fn create(dir: &Path) -> Result<F32Copy, Error> {
        let file = tempfile::Builder::new().prefix(".fathom-f32-").suffix(".gguf").tempfile_in(dir)?;
        Ok(F32Copy { path: file.path().to_owned(), _file: file })
    }
}

/// Integers are tables, not weights.
fn widened(tensor: &TensorInfo) -> Result<TensorInfo, fathom_gguf::Error> {
    let dtype = match tensor.dtype {
        kept @ (DType::I8 | DType::I16 | DType::I32 | DType::I64 | DType::F64) => kept,
        _ => DType::F32,
    };
    TensorInfo::new(tensor.name.clone(), dtype, tensor.ne.clone())
}

/// What the engine reads: hyperparameters, but neither the tokenizer nor what our converter keeps for `export`.
fn metadata(source: &Metadata) -> Metadata {
    let mut kept = Metadata::new();
    for (key, value) in source.iter() {
        if !["fathom.", "tokenizer.", "split."].iter().any(|prefix| key.starts_with(prefix)) {
            kept.insert(key, value.clone());
        }
    }
    kept.insert("general.file_type", 0_u32); // LLAMA_FTYPE_ALL_F32
    kept
}
