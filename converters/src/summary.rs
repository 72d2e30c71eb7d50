//! The plan in numbers, for `--dry-run`: for people through the CLI, for programs as JSON.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::prepare::{Prepared, Role};

/// What a conversion would write.
#[derive(Debug, Serialize)]
pub struct Summary {
    /// Version of this structure.
    pub schema: u32,
    /// `fathom.source.release`.
    pub release: &'static str,
    /// What the user should know before starting.
    pub warnings: Vec<String>,
    /// Tensors of the checkpoint.
    pub released_tensors: usize,
    /// Bytes of their data.
    pub released_bytes: u64,
    /// Bytes of all output files.
    pub bytes: u64,
    /// The model, then the draft.
    pub files: Vec<FileSummary>,
}

/// One output.
#[derive(Debug, Serialize)]
pub struct FileSummary {
    /// "model" or "draft".
    pub role: &'static str,
    /// The files, shards in order.
    pub paths: Vec<String>,
    /// `general.architecture`.
    pub architecture: &'static str,
    /// Bytes on disk, headers included.
    pub bytes: u64,
    /// Bytes by type.
    pub by_type: BTreeMap<&'static str, u64>,
    /// Bytes by family.
    pub by_family: BTreeMap<&'static str, u64>,
    /// Every tensor in file order.
    pub tensors: Vec<TensorSummary>,
}

/// One output tensor.
#[derive(Debug, Serialize)]
pub struct TensorSummary {
    /// GGUF name.
    pub name: String,
    /// GGUF type.
    #[serde(rename = "type")]
    pub dtype: &'static str,
    /// Shape, contiguous axis first.
    pub ne: Vec<u64>,
    /// Bytes.
    pub bytes: u64,
    /// Whether the released bytes can be rebuilt.
    pub lossless: bool,
    /// Number of released tensors in it.
    pub released: usize,
    /// One of them.
    pub first_released: String,
}

impl Summary {
    /// Adds up a prepared conversion.
    pub fn new(prepared: &Prepared) -> Summary {
        let catalog = prepared.checkpoint.catalog();
        let mut files: Vec<FileSummary> = prepared.files.iter().map(file).collect();
        files.reverse(); // the model before its draft
        Summary {
            schema: 1,
            release: prepared.release.key(),
            warnings: prepared.warnings.clone(),
            released_tensors: catalog.names().len(),
            released_bytes: catalog.names().iter().map(|name| prepared.checkpoint.bytes(name)).sum(),
            bytes: files.iter().map(|file| file.bytes).sum(),
            files,
        }
    }
}

fn file(output: &crate::prepare::Output) -> FileSummary {
    let (mut by_type, mut by_family) = (BTreeMap::new(), BTreeMap::new());
    let mut tensors = Vec::new();
    for tensor in &output.tensors {
        *by_type.entry(tensor.dtype.name()).or_default() += tensor.bytes();
        *by_family.entry(tensor.family.label()).or_default() += tensor.bytes();
        tensors.push(TensorSummary {
            name: tensor.name.clone(),
            dtype: tensor.dtype.name(),
            ne: tensor.ne.clone(),
            bytes: tensor.bytes(),
            lossless: tensor.lossless(),
            released: tensor.released().count(),
            first_released: tensor.parts[0].weight.clone(),
        });
    }
    FileSummary {
        role: if output.role == Role::Trunk { "model" } else { "draft" },
        paths: output.paths.iter().map(|path| path.display().to_string()).collect(),
        architecture: output.architecture,
        bytes: output.layout.total_bytes(),
        by_type,
        by_family,
        tensors,
    }
}
