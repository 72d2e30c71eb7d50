//! The model's dimensions, read from the file's keys. Every value is checked here, once; the rest of the engine believes them.
//!
//! Keys and their meaning: deepseek-v4.md section 4. Limits are far above any released model: they keep products of dimensions
//! within 63 bits and memory that follows from a damaged key from being asked for.

use std::path::Path;

use fathom_gguf::{File, Metadata, Value};

use crate::engine::Error;

/// The architecture that this engine runs.
pub(super) const ARCHITECTURE: &str = "deepseek4";

/// `LLAMA_MAX_LAYERS`: no released model comes near.
const MAX_LAYERS: u64 = 512;
/// Experts of a layer; the routing kernel takes at most 64 of them for a token.
const MAX_EXPERTS: u64 = 4096;
const MAX_USED: u64 = crate::kernels::sys::FATHOM_MOE_ROUTE_MAX_USED as u64;
/// Any single width.
const MAX_WIDTH: u64 = 1 << 20;
const MAX_HEADS: u64 = 4096;
/// Positions are exact as f32 angles up to 2^24; a released model has 2^20.
const MAX_CONTEXT: u64 = 1 << 24;

/// Streams of the hyper-connections; ggml's ops know this number only.
pub(super) const N_HC: usize = 4;

/// How a layer's attention sees the past beyond the window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LayerKind {
    /// Not at all.
    Sliding,
    /// Compressed by 4 with overlap, the best rows chosen by the indexer.
    Csa,
    /// Compressed by 128, every row.
    Hca,
}

impl LayerKind {
    /// Tokens of one compressed row; 0 = none.
    pub fn ratio(self) -> usize {
        match self {
            LayerKind::Sliding => 0,
            LayerKind::Csa => 4,
            LayerKind::Hca => 128,
        }
    }
}

/// One layer's own values.
#[derive(Clone, Debug, PartialEq)]
pub struct Layer {
    pub kind: LayerKind,
    /// Experts by token id instead of by score.
    pub hashed: bool,
    /// Limit of the routed experts' activations.
    pub clamp: f32,
    /// Limit of the shared expert's activations.
    pub shared_clamp: f32,
}

/// Dimensions and constants of a model.
#[derive(Clone, Debug, PartialEq)]
pub struct Hparams {
    pub n_vocab: usize,
    pub n_embd: usize,
    pub n_ctx_train: usize,
    /// Blocks of the file; those after the layers are drafts, which this engine does not run.
    pub n_block: usize,
    pub layers: Vec<Layer>,
    pub norm_eps: f32,

    pub n_head: usize,
    /// Channels of a head, key and value alike.
    pub n_embd_head: usize,
    pub n_rot: usize,
    pub q_rank: usize,
    pub n_swa: usize,
    /// Groups of heads in the output projection, and the width of each.
    pub o_groups: usize,
    pub o_rank: usize,

    pub index_heads: usize,
    pub index_width: usize,
    pub index_top_k: usize,

    pub n_expert: usize,
    pub n_used: usize,
    pub n_ff: usize,
    /// Width of the shared expert.
    pub n_ff_shared: usize,
    pub expert_scale: f32,

    pub hc_iterations: u16,
    pub hc_eps: f32,

    pub rope: RopeKeys,
}

/// What rotary frequencies are made from.
#[derive(Clone, Debug, PartialEq)]
pub struct RopeKeys {
    /// Base of sliding layers.
    pub base: f32,
    /// Base of layers with compressed rows, in everything they rotate.
    pub compressed_base: f32,
    /// YaRN of layers with compressed rows.
    pub yarn: Option<Yarn>,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Yarn {
    pub factor: f32,
    pub original_context: u32,
    pub beta_fast: f32,
    pub beta_slow: f32,
}

impl Hparams {
    /// # Errors
    /// [`Error::Load`] naming the key and what was expected, [`Error::Gguf`] for a key that is missing or of a wrong type.
    pub fn read(file: &File) -> Result<Hparams, Error> {
        let keys = Keys { metadata: file.metadata(), path: file.path() };
        let architecture = keys.metadata.str("general.architecture")?;
        if architecture != ARCHITECTURE {
            return Err(keys.error(format!("the native engine runs `{ARCHITECTURE}`, this is `{architecture}`")));
        }
        if file.opt_tensor("blk.0.attn_norm.weight").is_none() && keys.opt("nextn_predict_layers")?.is_some() {
            return Err(
                keys.error("it holds draft blocks only\nhint: load the main file; it names this one".to_owned())
            );
        }
        let n_block = keys.within("block_count", 1, MAX_LAYERS)?;
        // The draft block counts as a block only when it is there, as upstream has it.
        let nextn = keys.opt("nextn_predict_layers")?.unwrap_or(0);
        keys.require(nextn < n_block, "nextn_predict_layers", nextn, &format!("below block_count ({n_block})"))?;
        let has_draft = file.opt_tensor(&format!("blk.{}.nextn.eh_proj.weight", n_block - nextn)).is_some();
        let n_layer = if has_draft { n_block - nextn } else { n_block };

        let n_embd = keys.within("embedding_length", 32, MAX_WIDTH)?;
        let n_embd_head = keys.within("attention.key_length", 2, MAX_WIDTH)?;
        let value_length = keys.number("attention.value_length")?;
        let wanted = format!("key_length ({n_embd_head})");
        keys.require(value_length == n_embd_head, "attention.value_length", value_length, &wanted)?;
        let n_head = keys.within("attention.head_count", 1, MAX_HEADS)?;
        let n_head_kv = keys.number("attention.head_count_kv")?;
        keys.require(n_head_kv == 1, "attention.head_count_kv", n_head_kv, "1")?;
        let o_groups = keys.within("attention.output_group_count", 1, MAX_HEADS)?;
        let wanted = format!("a divisor of {n_head} heads");
        keys.require(n_head % o_groups == 0, "attention.output_group_count", o_groups, &wanted)?;

        let index_width = keys.within("attention.indexer.key_length", 2, MAX_WIDTH)?;
        let n_rot = keys.within("rope.dimension_count", 2, n_embd_head.min(index_width))?;
        keys.require(n_rot.is_multiple_of(2), "rope.dimension_count", n_rot, "even")?;

        let n_hc = keys.number("hyper_connection.count")?;
        keys.require(n_hc == N_HC as u64, "hyper_connection.count", n_hc, "4")?;
        let gating = keys.number("expert_gating_func")?;
        keys.require(gating == 4, "expert_gating_func", gating, "4 (sqrt-softplus)")?;
        if !keys.metadata.bool(&keys.name("expert_weights_norm"))? {
            return Err(keys.error(format!("key `{}` is false, expected true", keys.name("expert_weights_norm"))));
        }
        let n_expert = keys.within("expert_count", 1, MAX_EXPERTS)?;
        let n_ff = keys.one("expert_feed_forward_length", n_layer)?;
        keys.require((1..=MAX_WIDTH).contains(&n_ff), "expert_feed_forward_length", n_ff, "1 to 1048576")?;
        let n_shared = keys.within("expert_shared_count", 1, 64)?;

        let embedding = file.tensor("token_embd.weight")?;
        let n_vocab = embedding.ne.get(1).copied().unwrap_or(1);
        if n_vocab == 0 || i32::try_from(n_vocab).is_err() {
            return Err(keys.error(format!("tensor `token_embd.weight` has {n_vocab} rows, expected 1 to 2^31 - 1")));
        }
        Ok(Hparams {
            n_vocab: n_vocab as usize,
            n_embd: n_embd as usize,
            n_ctx_train: keys.within("context_length", 1, MAX_CONTEXT)? as usize,
            n_block: n_block as usize,
            layers: layers(&keys, n_block, n_layer)?,
            norm_eps: keys.positive("attention.layer_norm_rms_epsilon", 0.0, 1.0)?,
            n_head: n_head as usize,
            n_embd_head: n_embd_head as usize,
            n_rot: n_rot as usize,
            q_rank: keys.within("attention.q_lora_rank", 1, MAX_WIDTH)? as usize,
            n_swa: keys.within("attention.sliding_window", 1, MAX_WIDTH)? as usize,
            o_groups: o_groups as usize,
            o_rank: keys.within("attention.output_lora_rank", 1, MAX_WIDTH)? as usize,
            index_heads: keys.within("attention.indexer.head_count", 1, MAX_HEADS)? as usize,
            index_width: index_width as usize,
            index_top_k: keys.within("attention.indexer.top_k", 1, MAX_WIDTH)? as usize,
            n_expert: n_expert as usize,
            n_used: keys.within("expert_used_count", 1, n_expert.min(MAX_USED))? as usize,
            n_ff: n_ff as usize,
            n_ff_shared: (n_ff * n_shared) as usize,
            expert_scale: keys.positive("expert_weights_scale", 1e-6, 1e6)?,
            hc_iterations: keys.within("hyper_connection.sinkhorn_iterations", 1, 10_000)? as u16,
            hc_eps: keys.positive("hyper_connection.epsilon", 0.0, 1.0)?,
            rope: rope(&keys)?,
        })
    }

    /// Radians per position of each pair of channels: f32 `[n_rot / 2]`.
    ///
    /// Sliding layers: `base^(-2i / n_rot)`. Layers with compressed rows: their own base, and YaRN at every length, without a factor on
    /// the result. Source: deepseek-v4.md section 6, "Rope"; computed in f64, kept in f32.
    pub fn frequencies(&self, kind: LayerKind) -> Vec<f32> {
        let n_rot = self.n_rot as f64;
        let base = f64::from(if kind == LayerKind::Sliding { self.rope.base } else { self.rope.compressed_base });
        let plain = (0..self.n_rot / 2).map(|i| (i, base.powf(-2.0 * i as f64 / n_rot)));
        let Some(yarn) = self.rope.yarn.as_ref().filter(|_| kind != LayerKind::Sliding) else {
            return plain.map(|(_, f)| f as f32).collect();
        };
        // The pair whose wavelength makes `turns` turns within the original context.
        let pair = |turns: f32| {
            let turns = f64::from(turns) * std::f64::consts::TAU;
            n_rot * (f64::from(yarn.original_context) / turns).ln() / (2.0 * base.ln())
        };
        let low = pair(yarn.beta_fast).floor().max(0.0);
        let high = pair(yarn.beta_slow).ceil().min(n_rot - 1.0);
        // Equal ends would divide by zero; the reference takes a thousandth.
        let span = if high == low { 0.001 } else { high - low };
        let ramp = |i: usize| ((i as f64 - low) / span).clamp(0.0, 1.0);
        plain.map(|(i, f)| (f * (1.0 - ramp(i)) + f / f64::from(yarn.factor) * ramp(i)) as f32).collect()
    }
}

fn layers(keys: &Keys, n_block: u64, n_layer: u64) -> Result<Vec<Layer>, Error> {
    let name = keys.name("attention.compress_ratios");
    let ratios = keys.metadata.integers(&name)?;
    if (ratios.len() as u64) < n_block || ratios.len() as u64 > MAX_LAYERS {
        let n = ratios.len();
        return Err(keys.error(format!("key `{name}` has {n} entries, expected {n_block} to {MAX_LAYERS}")));
    }
    let n_hash = keys.number("hash_layer_count")?;
    keys.require(n_hash <= MAX_LAYERS, "hash_layer_count", n_hash, &format!("at most {MAX_LAYERS}"))?;
    let clamps = keys
        .floats("swiglu_clamp_exp", n_layer)?
        .ok_or_else(|| keys.error(format!("key `{}` is missing", keys.name("swiglu_clamp_exp"))))?;
    let shared = keys.floats("swiglu_clamp_shexp", n_layer)?.unwrap_or_else(|| clamps.clone());
    let each = ratios.iter().take(n_layer as usize).zip(clamps.iter().zip(&shared)).enumerate();
    each.map(|(index, (ratio, (&clamp, &shared_clamp)))| {
        let kind = match ratio {
            0 => LayerKind::Sliding,
            4 => LayerKind::Csa,
            128 => LayerKind::Hca,
            _ => {
                let what = format!("key `{name}` has ratio {ratio} for layer {index}, expected 0, 4 or 128");
                return Err(keys.error(what));
            }
        };
        Ok(Layer { kind, hashed: (index as u64) < n_hash, clamp, shared_clamp })
    })
    .collect()
}

fn rope(keys: &Keys) -> Result<RopeKeys, Error> {
    let scaling = keys.metadata.opt_str(&keys.name("rope.scaling.type"))?;
    let yarn = match scaling {
        None | Some("none") => None,
        Some("yarn") => Some(Yarn {
            factor: keys.positive("rope.scaling.factor", 1e-3, 1e6)?,
            original_context: keys.within("rope.scaling.original_context_length", 1, MAX_CONTEXT)? as u32,
            beta_fast: keys.positive("rope.scaling.yarn_beta_fast", 1e-3, 1e6)?,
            beta_slow: keys.positive("rope.scaling.yarn_beta_slow", 1e-3, 1e6)?,
        }),
        Some(other) => {
            let name = keys.name("rope.scaling.type");
            return Err(keys.error(format!("key `{name}` is `{other}`, expected none or yarn")));
        }
    };
    Ok(RopeKeys {
        base: keys.positive("rope.freq_base", 1.001, 1e12)?,
        compressed_base: keys.positive("attention.compress_rope_freq_base", 1.001, 1e12)?,
        yarn,
    })
}

struct Keys<'a> {
    metadata: &'a Metadata,
    path: &'a Path,
}

impl Keys<'_> {
    fn name(&self, key: &str) -> String {
        format!("{ARCHITECTURE}.{key}")
    }

    fn error(&self, reason: String) -> Error {
        Error::Load { path: self.path.to_owned(), reason }
    }

    fn require(&self, holds: bool, key: &str, value: u64, expected: &str) -> Result<(), Error> {
        if holds {
            return Ok(());
        }
        Err(self.error(format!("key `{}` is {value}, expected {expected}", self.name(key))))
    }

    fn number(&self, key: &str) -> Result<u64, Error> {
        Ok(self.metadata.u32(&self.name(key))?.into())
    }

    fn opt(&self, key: &str) -> Result<Option<u64>, Error> {
        Ok(self.metadata.opt_u32(&self.name(key))?.map(u64::from))
    }

    fn within(&self, key: &str, least: u64, most: u64) -> Result<u64, Error> {
        let value = self.number(key)?;
        self.require((least..=most).contains(&value), key, value, &format!("{least} to {most}"))?;
        Ok(value)
    }

    /// A finite number in a range.
    fn positive(&self, key: &str, least: f32, most: f32) -> Result<f32, Error> {
        let value = self.metadata.f32(&self.name(key))?;
        if (least..=most).contains(&value) {
            return Ok(value);
        }
        Err(self.error(format!("key `{}` is {value}, expected {least} to {most}", self.name(key))))
    }

    /// One integer, or one per layer that are all the same.
    fn one(&self, key: &str, n_layer: u64) -> Result<u64, Error> {
        let name = self.name(key);
        let Some(Value::Array(_)) = self.metadata.get(&name) else { return self.number(key) };
        let values = self.metadata.integers(&name)?;
        let first = values.first().copied().unwrap_or(0);
        if (values.len() as u64) < n_layer || values.iter().take(n_layer as usize).any(|&value| value != first) {
            return Err(self.error(format!("key `{name}` does not hold one number for all {n_layer} layers")));
        }
        Ok(u64::try_from(first).unwrap_or(0))
    }

    /// One positive number per layer, or one for all; `inf` where the file says 0: no limit.
    fn floats(&self, key: &str, n_layer: u64) -> Result<Option<Vec<f32>>, Error> {
        let name = self.name(key);
        let values = match self.metadata.get(&name) {
            None => return Ok(None),
            Some(Value::Array(fathom_gguf::Array::F32(values))) => values.clone(),
            Some(_) => vec![self.metadata.f32(&name)?; n_layer as usize],
        };
        if (values.len() as u64) < n_layer || values.len() as u64 > MAX_LAYERS {
            let n = values.len();
            return Err(self.error(format!("key `{name}` has {n} entries, expected {n_layer} to {MAX_LAYERS}")));
        }
        if let Some(value) = values.iter().find(|value| !(0.0..=1e30).contains(*value)) {
            return Err(self.error(format!("key `{name}` holds {value}, expected 0 to 1e30")));
        }
        Ok(Some(values.into_iter().map(|value| if value == 0.0 { f32::INFINITY } else { value }).collect()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flash() -> Hparams {
        let yarn = Yarn { factor: 16.0, original_context: 65536, beta_fast: 32.0, beta_slow: 1.0 };
        Hparams {
            n_vocab: 1,
            n_embd: 1,
            n_ctx_train: 1,
            n_block: 0,
            layers: Vec::new(),
            norm_eps: 1e-6,
            n_head: 64,
            n_embd_head: 512,
            n_rot: 64,
            q_rank: 1,
            n_swa: 128,
            o_groups: 8,
            o_rank: 1,
            index_heads: 64,
            index_width: 128,
            index_top_k: 512,
            n_expert: 1,
            n_used: 1,
            n_ff: 1,
            n_ff_shared: 1,
            expert_scale: 1.5,
            hc_iterations: 20,
            hc_eps: 1e-6,
            rope: RopeKeys { base: 10_000.0, compressed_base: 160_000.0, yarn: Some(yarn) },
        }
    }

    #[test]
    fn yarn_bends_the_pairs_between_15_and_25_as_the_reference_says() {
        let plain = |i: usize| 160_000_f64.powf(-2.0 * i as f64 / 64.0) as f32;
        let bent = flash().frequencies(LayerKind::Csa);
        assert_eq!(bent.len(), 32);
        assert_eq!(bent[15], plain(15));
        assert!(bent[16] < plain(16) && bent[24] > plain(24) / 16.0);
        assert_eq!(bent[25], (160_000_f64.powf(-50.0 / 64.0) / 16.0) as f32);
        assert_eq!(flash().frequencies(LayerKind::Sliding)[31], 10_000_f64.powf(-62.0 / 64.0) as f32);
    }
}
