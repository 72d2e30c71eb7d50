//! What the caller asks for.

use std::path::PathBuf;
use std::sync::Arc;

use fathom_gguf::DType;

use crate::recipe::Release;
use crate::transcode::quantize::Quantizer;

/// How the FP8 matrices outside the routed experts are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dense {
    /// Lossless (F32 where a scale is beyond BF16's range). The default.
    Bf16,
    /// Lossy.
    Q8_0,
    /// Lossy outside scale bytes 112..=134.
    F16,
}

impl Dense {
    /// Names on the command line.
    pub const NAMES: [(&'static str, Dense); 3] = [("bf16", Dense::Bf16), ("q8_0", Dense::Q8_0), ("f16", Dense::F16)];

    /// The type, unless it is the lossless one, which depends on the tensor.
    pub(crate) fn lossy(self) -> Option<DType> {
        match self {
            Dense::Bf16 => None,
            Dense::Q8_0 => Some(DType::Q8_0),
            Dense::F16 => Some(DType::F16),
        }
    }

    /// The name on the command line.
    pub fn name(self) -> &'static str {
        Dense::NAMES.iter().find(|(_, choice)| *choice == self).expect("every choice has a name").0
    }
}

/// How the routed experts are stored. Without a choice: MXFP4 for FP4 experts, BF16 for FP8 experts, both lossless.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Experts {
    /// Lossless for FP4 experts, lossy for FP8 experts.
    Mxfp4,
    /// Lossy.
    Q8_0,
    /// Lossy, by ggml's quantiser.
    Q4K,
    /// Lossy, by ggml's quantiser.
    Q2K,
}

impl Experts {
    /// Names on the command line.
    pub const NAMES: [(&'static str, Experts); 4] =
        [("mxfp4", Experts::Mxfp4), ("q8_0", Experts::Q8_0), ("q4_k", Experts::Q4K), ("q2_k", Experts::Q2K)];

    /// The GGUF type.
    pub fn dtype(self) -> DType {
        match self {
            Experts::Mxfp4 => DType::MXFP4,
            Experts::Q8_0 => DType::Q8_0,
            Experts::Q4K => DType::Q4_K,
            Experts::Q2K => DType::Q2_K,
        }
    }

    /// The name on the command line.
    pub fn name(self) -> &'static str {
        Experts::NAMES.iter().find(|(_, choice)| *choice == self).expect("every choice has a name").0
    }
}

/// A conversion.
#[derive(Clone)]
pub struct Options {
    /// The checkpoint directory.
    pub checkpoint: PathBuf,
    /// The model's file; the draft's name is derived from it.
    pub output: PathBuf,
    /// `general.name`; the directory's name if absent.
    pub name: Option<String>,
    /// FP8 matrices outside the routed experts.
    pub dense: Option<Dense>,
    /// The routed experts.
    pub experts: Option<Experts>,
    /// Overrides the detected release.
    pub release: Option<Release>,
    /// Cuts the output into files of about this size.
    pub split_max_bytes: Option<u64>,
    /// Memory that the conversion may use.
    pub memory_bytes: u64,
    /// Worker threads; 0 = two for each core.
    pub threads: usize,
    /// Overwrite existing output, and give up an unfinished conversion with other settings. The same one is continued.
    pub force: bool,
    /// Finished bytes after which data is synced and journalled: what a kill can cost.
    pub sync_bytes: u64,
    /// For types without a codec of ours.
    pub quantizer: Option<Arc<dyn Quantizer + Send + Sync>>,
}

impl Options {
    /// A lossless conversion with the defaults.
    pub fn new(checkpoint: impl Into<PathBuf>, output: impl Into<PathBuf>) -> Options {
        Options {
            checkpoint: checkpoint.into(),
            output: output.into(),
            name: None,
            dense: None,
            experts: None,
            release: None,
            split_max_bytes: None,
            memory_bytes: 1 << 30,
            threads: 0,
            force: false,
            sync_bytes: 256 << 20,
            quantizer: None,
        }
    }

    pub(crate) fn thread_count(&self) -> usize {
        thread_count(self.threads)
    }
}

/// The number of workers that `asked` stands for: by default two for each core, because half of a worker's time is spent waiting
/// for reads and for room in the page cache (docs/performance.md). More than 32 do not make a disk faster.
pub(crate) fn thread_count(asked: usize) -> usize {
    match asked {
        0 => (2 * std::thread::available_parallelism().map_or(1, std::num::NonZero::get)).min(32),
        n => n,
    }
}
