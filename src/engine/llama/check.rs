//! What a file must satisfy before llama.cpp may see it.
//!
//! llama.cpp throws on most faults of a file, and we pass its words on; but some are assertions, and some are not noticed at
//! all until a kernel reads out of bounds. Those are checked here: sizes that llama.cpp asserts for every architecture, and
//! the traps of `deepseek4` (two of them found by running: equal key lengths divide by zero, an indexer whose key length is not a
//! multiple of 64 is silently left out).

use std::path::Path;

use fathom_gguf::{DType, File, Metadata};

use super::super::Error;

/// `LLAMA_MAX_LAYERS`
const MAX_LAYERS: u64 = 512;
/// `LLAMA_MAX_EXPERTS`
const MAX_EXPERTS: i64 = 1024;
/// Architectures that llama.cpp knows but that are no language models of their own.
const NOT_RUNNABLE: [&str; 2] = ["clip", "wavtokenizer-dec"];

/// The file as far as the rest of this folder needs it.
#[derive(Clone, Debug)]
pub(super) struct Checked {
    pub(super) architecture: String,
    pub(super) n_vocab: u32,
    pub(super) n_ctx_train: u64,
}

/// # Errors
/// [`Error::Load`] saying which key or tensor is wrong, or [`Error::Gguf`] for a missing key or one of a wrong type.
pub(super) fn check(file: &File) -> Result<Checked, Error> {
    let keys = Keys {
        metadata: file.metadata(),
        path: file.path(),
        architecture: file.metadata().str("general.architecture")?,
    };
    let architecture = keys.architecture.to_owned();
    if NOT_RUNNABLE.contains(&keys.architecture) {
        return Err(keys.error(format!("`{architecture}` is a part of a model, not one that can run alone")));
    }
    let n_layer = keys.at_least("block_count", 1)?;
    keys.require(n_layer <= MAX_LAYERS, "block_count", n_layer, format!("at most {MAX_LAYERS}"))?;
    keys.at_least("embedding_length", 1)?;
    let n_ctx_train = keys.at_least("context_length", 1)?;
    experts(&keys)?;
    if let Some(nextn) = keys.opt("nextn_predict_layers")? {
        keys.require(nextn < n_layer, "nextn_predict_layers", nextn, format!("below block_count ({n_layer})"))?;
    }
    let scaling_key = format!("{architecture}.rope.scaling.type");
    if let Some(scaling) = keys.metadata.opt_str(&scaling_key)?
        && !["none", "linear", "yarn", "longrope"].contains(&scaling)
    {
        return Err(keys.error(format!("key `{scaling_key}` is `{scaling}`, expected none, linear, yarn or longrope")));
    }
    let n_vocab = vocabulary(file, &keys)?;
    if architecture == "deepseek4" {
        deepseek4(file, &keys, n_layer)?;
    }
    Ok(Checked { architecture, n_vocab, n_ctx_train })
}

struct Keys<'a> {
    metadata: &'a Metadata,
    path: &'a Path,
    architecture: &'a str,
}

impl Keys<'_> {
    fn error(&self, reason: String) -> Error {
        Error::Load { path: self.path.to_owned(), reason }
    }

    /// An integer under the architecture's prefix.
    fn number(&self, key: &str) -> Result<u64, Error> {
        Ok(self.metadata.u32(&format!("{}.{key}", self.architecture))?.into())
    }

    fn opt(&self, key: &str) -> Result<Option<u64>, Error> {
        Ok(self.metadata.opt_u32(&format!("{}.{key}", self.architecture))?.map(u64::from))
    }

    fn at_least(&self, key: &str, least: u64) -> Result<u64, Error> {
        let value = self.number(key)?;
        self.require(value >= least, key, value, format!("at least {least}"))?;
        Ok(value)
    }

    fn require(&self, holds: bool, key: &str, value: u64, expected: String) -> Result<(), Error> {
        if holds {
            return Ok(());
        }
        Err(self.error(format!("key `{}.{key}` is {value}, expected {expected}", self.architecture)))
    }

    /// An integer, or one per layer.
    fn numbers(&self, key: &str) -> Result<Vec<i64>, Error> {
        let key = format!("{}.{key}", self.architecture);
        match self.metadata.get(&key) {
            None => Ok(Vec::new()),
            Some(fathom_gguf::Value::Array(_)) => Ok(self.metadata.integers(&key)?),
            Some(_) => Ok(vec![self.metadata.u32(&key)?.into()]),
        }
    }
}

/// The relations of expert counts that llama.cpp asserts for every architecture.
fn experts(keys: &Keys) -> Result<(), Error> {
    let total = keys.opt("expert_count")?.unwrap_or(0) as i64;
    let used = keys.numbers("expert_used_count")?.into_iter().max().unwrap_or(0);
    let groups = keys.opt("expert_group_count")?.unwrap_or(0) as i64;
    let groups_used = keys.opt("expert_group_used_count")?.unwrap_or(0) as i64;
    let fits = if total == 0 {
        used == 0 && groups == 0
    } else {
        total <= MAX_EXPERTS
            && (1..=total).contains(&used)
            && groups < total
            && (groups <= 1 || (total % groups == 0 && (1..groups).contains(&groups_used)))
    };
    if fits {
        return Ok(());
    }
    let arch = keys.architecture;
    Err(keys.error(format!(
        "its expert counts contradict each other: `{arch}.expert_count` is {total}, `{arch}.expert_used_count` {used}, \
         `{arch}.expert_group_count` {groups}, `{arch}.expert_group_used_count` {groups_used}"
    )))
}

/// Rows of the token embedding.
fn vocabulary(file: &File, keys: &Keys) -> Result<u32, Error> {
    let embedding = file.tensor("token_embd.weight")?;
    match embedding.ne.get(1).copied().unwrap_or(1) {
        0 => Err(keys.error("tensor `token_embd.weight` is empty".to_owned())),
        n => u32::try_from(n)
            .ok()
            .filter(|&n| i32::try_from(n).is_ok())
            .ok_or_else(|| keys.error(format!("tensor `token_embd.weight` has {n} rows, more tokens than 2^31"))),
    }
}

fn deepseek4(file: &File, keys: &Keys, n_layer: u64) -> Result<(), Error> {
    if file.opt_tensor("blk.0.attn_norm.weight").is_none() {
        return Err(keys.error("it holds draft blocks only\nhint: load the main file; it names this one".to_owned()));
    }
    let key_length = keys.at_least("attention.key_length", 1)?;
    let value_length = keys.number("attention.value_length")?;
    keys.require(
        value_length == key_length,
        "attention.value_length",
        value_length,
        format!("key_length ({key_length})"),
    )?;
    let n_head = keys.at_least("attention.head_count", 1)?;
    let n_head_kv = keys.number("attention.head_count_kv")?;
    keys.require(n_head_kv == 1, "attention.head_count_kv", n_head_kv, "1".to_owned())?;
    let groups = keys.at_least("attention.output_group_count", 1)?;
    keys.require(n_head % groups == 0, "attention.output_group_count", groups, format!("a divisor of {n_head} heads"))?;
    keys.at_least("attention.output_lora_rank", 1)?;
    keys.at_least("attention.q_lora_rank", 1)?;
    keys.at_least("attention.sliding_window", 1)?;

    keys.at_least("attention.indexer.head_count", 1)?;
    keys.at_least("attention.indexer.top_k", 1)?;
    let index_length = keys.at_least("attention.indexer.key_length", 1)?;
    let name = "attention.indexer.key_length";
    keys.require(
        index_length % 64 == 0,
        name,
        index_length,
        "a multiple of 64: llama.cpp would leave the indexer out without a word".to_owned(),
    )?;
    keys.require(
        index_length != key_length,
        name,
        index_length,
        "other than attention.key_length: llama.cpp would divide by zero".to_owned(),
    )?;
    let rope = keys.at_least("rope.dimension_count", 2)?;
    let most = key_length.min(index_length);
    keys.require(rope % 2 == 0 && rope <= most, "rope.dimension_count", rope, format!("even and at most {most}"))?;

    let streams = keys.number("hyper_connection.count")?;
    keys.require(streams == 4, "hyper_connection.count", streams, "4".to_owned())?;
    let gating = keys.number("expert_gating_func")?;
    keys.require(gating == 4, "expert_gating_func", gating, "4 (sqrt-softplus)".to_owned())?;
    let n_expert = keys.at_least("expert_count", 1)?;
    keys.at_least("expert_shared_count", 1)?;

    let ratios = keys.numbers("attention.compress_ratios")?;
    keys.require(
        ratios.len() as u64 >= n_layer && ratios.len() as u64 <= MAX_LAYERS,
        "attention.compress_ratios",
        ratios.len() as u64,
        format!("{n_layer} to {MAX_LAYERS} entries"),
    )?;
    if let Some(ratio) = ratios.iter().find(|ratio| ![0, 4, 128].contains(*ratio)) {
        return Err(keys.error(format!("a compression ratio is {ratio}, expected 0, 4 or 128")));
    }
    types(file, keys)?;
    routing_tables(file, keys, n_expert)
}

/// Kernels assert the types that they can read: one-dimensional tensors and the position tables must be F32, matrices a
/// type with a dot product.
fn types(file: &File, keys: &Keys) -> Result<(), Error> {
    for tensor in file.tensors() {
        let must_be_f32 = tensor.ne.iter().skip(1).all(|&n| n == 1) || tensor.name.ends_with("_ape.weight");
        let expected = match tensor.dtype {
            _ if is_routing_table(&tensor.name) => "i32",
            DType::F32 => continue,
            _ if must_be_f32 => "f32",
            DType::I8 | DType::I16 | DType::I32 | DType::I64 | DType::F64 | DType::Q8_1 | DType::Q8_K => "weights",
            _ => continue,
        };
        if expected == "i32" && tensor.dtype == DType::I32 {
            continue;
        }
        return Err(keys.error(format!("tensor `{}` is {}, expected {expected}", tensor.name, tensor.dtype.name())));
    }
    Ok(())
}

fn is_routing_table(name: &str) -> bool {
    name.ends_with(".ffn_gate_tid2eid.weight")
}

/// An expert id out of range is not noticed by ggml: it reads (and, repacked, aborts) somewhere else.
fn routing_tables(file: &File, keys: &Keys, n_expert: u64) -> Result<(), Error> {
    for tensor in file.tensors().iter().filter(|tensor| is_routing_table(&tensor.name)) {
        let width = tensor.ne.first().copied().unwrap_or(1).max(1);
        for (index, id) in
            file.data(tensor).as_chunks::<4>().0.iter().map(|bytes| i32::from_le_bytes(*bytes)).enumerate()
        {
            if u64::try_from(id).is_ok_and(|id| id < n_expert) {
                continue;
            }
            let token = index as u64 / width;
            return Err(keys.error(format!(
                "tensor `{}` sends token {token} to expert {id}, of which there are {n_expert}",
                tensor.name
            )));
        }
    }
    Ok(())
}
