//! config.json of DeepSeek-V4 -> [`Config`]: every dimension named once, checked and bounded.

use crate::Error;
use crate::recipe::Fields;

/// What the recipe and the GGUF keys need of config.json (deepseek-v4.md section 1).
#[derive(Debug, Clone, PartialEq)]
#[expect(missing_docs, reason = "the fields carry config.json's names")]
pub struct Config {
    pub hidden_size: u64,
    pub num_hidden_layers: u32,
    pub num_attention_heads: u64,
    pub head_dim: u64,
    pub qk_rope_head_dim: u32,
    pub q_lora_rank: u64,
    pub o_groups: u64,
    pub o_lora_rank: u64,
    pub n_routed_experts: u32,
    pub n_shared_experts: u64,
    pub num_experts_per_tok: u64,
    pub moe_intermediate_size: u64,
    pub num_hash_layers: u32,
    pub routed_scaling_factor: f32,
    pub norm_topk_prob: bool,
    pub swiglu_limit: f32,
    pub index_n_heads: u64,
    pub index_head_dim: u64,
    pub index_topk: u32,
    pub sliding_window: u32,
    pub hc_mult: u64,
    pub hc_sinkhorn_iters: u32,
    pub hc_eps: f32,
    pub rms_norm_eps: f32,
    pub rope_theta: f32,
    pub compress_rope_theta: f32,
    pub rope_factor: f32,
    pub rope_beta_fast: f32,
    pub rope_beta_slow: f32,
    pub rope_original_context: u32,
    /// At least `num_hidden_layers` long; what follows belongs to draft blocks and is not used.
    pub compress_ratios: Vec<u32>,
    pub max_position_embeddings: u32,
    pub vocab_size: u64,
    /// Only in the releases with DSpark.
    pub dspark: Option<Dspark>,
}

/// The draft fields of 0731 and 0813.
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(missing_docs, reason = "the fields carry config.json's names")]
pub struct Dspark {
    pub block_size: u32,
    pub noise_token_id: u32,
    pub target_layer_ids: Vec<u32>,
    pub markov_rank: u64,
}

/// llama.cpp's `LLAMA_MAX_LAYERS`: a file with more layers cannot be loaded.
const MAX_LAYERS: u32 = 512;
/// Far above any real dimension; keeps every product of two dimensions and four bytes within 64 bits.
const MAX_DIMENSION: u32 = 1 << 24;

impl Config {
    /// Reads and checks config.json.
    ///
    /// # Errors
    /// [`Error::Config`] naming the field.
    pub fn parse(config: &serde_json::Value) -> Result<Config, Error> {
        let fields = Fields(config);
        let dimension = |field: &str| match fields.u32(field, MAX_DIMENSION)? {
            0 => Err(Error::config(field, "is 0")),
            n => Ok(u64::from(n)),
        };
        let same = |field: &str, expected: &str| match fields.str(field)? {
            found if found == expected => Ok(()),
            found => Err(Error::config(field, format!("is \"{found}\", this architecture has \"{expected}\""))),
        };
        let parsed = Config {
            hidden_size: dimension("hidden_size")?,
            num_hidden_layers: fields.u32("num_hidden_layers", MAX_LAYERS)?,
            num_attention_heads: dimension("num_attention_heads")?,
            head_dim: dimension("head_dim")?,
            qk_rope_head_dim: fields.u32("qk_rope_head_dim", MAX_DIMENSION)?,
            q_lora_rank: dimension("q_lora_rank")?,
            o_groups: dimension("o_groups")?,
            o_lora_rank: dimension("o_lora_rank")?,
            n_routed_experts: fields.u32("n_routed_experts", 1 << 16)?,
            n_shared_experts: dimension("n_shared_experts")?,
            num_experts_per_tok: dimension("num_experts_per_tok")?,
            moe_intermediate_size: dimension("moe_intermediate_size")?,
            num_hash_layers: fields.u32("num_hash_layers", MAX_LAYERS)?,
            routed_scaling_factor: fields.f32("routed_scaling_factor")?,
            norm_topk_prob: fields.bool("norm_topk_prob")?,
            swiglu_limit: fields.f32("swiglu_limit")?,
            index_n_heads: dimension("index_n_heads")?,
            index_head_dim: dimension("index_head_dim")?,
            index_topk: fields.u32("index_topk", MAX_DIMENSION)?,
            sliding_window: fields.u32("sliding_window", MAX_DIMENSION)?,
            hc_mult: dimension("hc_mult")?,
            hc_sinkhorn_iters: fields.u32("hc_sinkhorn_iters", 1 << 16)?,
            hc_eps: fields.f32("hc_eps")?,
            rms_norm_eps: fields.f32("rms_norm_eps")?,
            rope_theta: fields.f32("rope_theta")?,
            compress_rope_theta: fields.f32("compress_rope_theta")?,
            rope_factor: fields.f32("rope_scaling.factor")?,
            rope_beta_fast: fields.f32("rope_scaling.beta_fast")?,
            rope_beta_slow: fields.f32("rope_scaling.beta_slow")?,
            rope_original_context: fields.u32("rope_scaling.original_max_position_embeddings", u32::MAX)?,
            compress_ratios: fields.u32s("compress_ratios", u32::from(u16::MAX))?,
            max_position_embeddings: fields.u32("max_position_embeddings", u32::MAX)?,
            vocab_size: dimension("vocab_size")?,
            dspark: if fields.has("dspark_block_size") { Some(Dspark::parse(&fields)?) } else { None },
        };
        same("scoring_func", "sqrtsoftplus")?;
        same("topk_method", "noaux_tc")?;
        same("rope_scaling.type", "yarn")?;
        for (field, n) in
            [("num_hidden_layers", parsed.num_hidden_layers), ("n_routed_experts", parsed.n_routed_experts)]
        {
            if n == 0 {
                return Err(Error::config(field, "is 0"));
            }
        }
        if parsed.hc_mult != 4 {
            return Err(Error::config("hc_mult", format!("is {}, a `deepseek4` GGUF has 4", parsed.hc_mult)));
        }
        if fields.u32("num_key_value_heads", MAX_DIMENSION)? != 1 {
            return Err(Error::config("num_key_value_heads", "is not 1"));
        }
        if fields.has("quantization_config.weight_block_size") {
            let block = fields.u32s("quantization_config.weight_block_size", MAX_DIMENSION)?;
            if block != [128, 128] {
                return Err(Error::config(
                    "quantization_config.weight_block_size",
                    format!("is {block:?}, V4 has [128, 128]"),
                ));
            }
        }
        let layers = parsed.num_hidden_layers as usize;
        if parsed.compress_ratios.len() < layers {
            let problem = format!("has {} entries for {layers} layers", parsed.compress_ratios.len());
            return Err(Error::config("compress_ratios", problem));
        }
        if let Some(ratio) = parsed.compress_ratios[..layers].iter().find(|ratio| !matches!(ratio, 0 | 4 | 128)) {
            return Err(Error::config("compress_ratios", format!("holds {ratio}, V4 has 0, 4 and 128")));
        }
        if !(parsed.num_attention_heads * parsed.head_dim).is_multiple_of(parsed.o_groups) {
            return Err(Error::config("o_groups", "does not divide num_attention_heads x head_dim"));
        }
        for (field, value, limit_field, limit) in [
            ("qk_rope_head_dim", u64::from(parsed.qk_rope_head_dim), "head_dim", parsed.head_dim),
            ("num_experts_per_tok", parsed.num_experts_per_tok, "n_routed_experts", u64::from(parsed.n_routed_experts)),
        ] {
            if value > limit {
                return Err(Error::config(field, format!("is {value}, more than {limit_field}, which is {limit}")));
            }
        }
        Ok(parsed)
    }

    /// The layer's compression ratio: 0, 4 or 128.
    pub fn ratio(&self, layer: u32) -> u64 {
        u64::from(self.compress_ratios[layer as usize])
    }
}

impl Dspark {
    fn parse(fields: &Fields<'_>) -> Result<Dspark, Error> {
        let dspark = Dspark {
            block_size: fields.u32("dspark_block_size", 1 << 16)?,
            noise_token_id: fields.u32("dspark_noise_token_id", u32::MAX)?,
            target_layer_ids: fields.u32s("dspark_target_layer_ids", MAX_LAYERS)?,
            markov_rank: u64::from(fields.u32("dspark_markov_rank", MAX_DIMENSION)?),
        };
        if dspark.markov_rank == 0 {
            return Err(Error::config("dspark_markov_rank", "is 0"));
        }
        if dspark.target_layer_ids.is_empty() || dspark.target_layer_ids.len() > MAX_LAYERS as usize {
            return Err(Error::config("dspark_target_layer_ids", "is empty or longer than any model is deep"));
        }
        Ok(dspark)
    }
}
