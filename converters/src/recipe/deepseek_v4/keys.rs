//! The architecture's GGUF keys (deepseek-v4.md section 4; read by llama.cpp's `src/models/deepseek4.cpp`).

use fathom_gguf::Metadata;

use super::config::Config;
use super::{ARCHITECTURE, DSPARK_ARCHITECTURE};

/// ggml's number of the gating function sqrt(softplus(x)).
const GATING_SQRT_SOFTPLUS: u32 = 4;

/// Keys of the trunk, or of a draft file with `nextn` MTP blocks after the (absent) trunk layers.
pub(super) fn deepseek4(c: &Config, nextn: Option<u32>) -> Metadata {
    let blocks = c.num_hidden_layers + nextn.unwrap_or(0);
    let mut ratios: Vec<i32> =
        c.compress_ratios[..c.num_hidden_layers as usize].iter().map(|ratio| *ratio as i32).collect();
    // Draft blocks have no compressor, whatever config.json holds after the trunk's ratios.
    ratios.resize(blocks as usize, 0);
    let mut keys = common(c, ARCHITECTURE, blocks);
    keys.insert(format!("{ARCHITECTURE}.attention.compress_ratios"), ratios);
    if let Some(nextn) = nextn {
        keys.insert(format!("{ARCHITECTURE}.nextn_predict_layers"), nextn);
    }
    keys
}

/// Keys of a DSpark draft: the same under our architecture name, and the four fields of its own.
pub(super) fn dspark(c: &Config, stages: u32) -> Metadata {
    let mut keys = common(c, DSPARK_ARCHITECTURE, stages);
    let a = DSPARK_ARCHITECTURE;
    keys.insert(format!("{a}.attention.compress_ratios"), vec![0i32; stages as usize]);
    if let Some(dspark) = &c.dspark {
        keys.insert(format!("{a}.block_size"), dspark.block_size);
        keys.insert(format!("{a}.noise_token_id"), dspark.noise_token_id);
        keys.insert(
            format!("{a}.target_layers"),
            dspark.target_layer_ids.iter().map(|id| *id as i32).collect::<Vec<i32>>(),
        );
        keys.insert(format!("{a}.markov_rank"), dspark.markov_rank as u32);
    }
    keys
}

fn common(c: &Config, a: &str, blocks: u32) -> Metadata {
    let mut keys = Metadata::new();
    // Every dimension was bounded by 2^24 when config.json was read.
    let u32s: [(&str, u64); 25] = [
        ("context_length", c.max_position_embeddings.into()),
        ("embedding_length", c.hidden_size),
        ("embedding_length_out", c.hidden_size * c.hc_mult),
        ("block_count", blocks.into()),
        ("vocab_size", c.vocab_size),
        ("feed_forward_length", c.moe_intermediate_size),
        ("attention.head_count", c.num_attention_heads),
        ("attention.head_count_kv", 1),
        ("attention.key_length", c.head_dim),
        ("attention.value_length", c.head_dim),
        ("attention.q_lora_rank", c.q_lora_rank),
        ("attention.sliding_window", c.sliding_window.into()),
        ("attention.output_group_count", c.o_groups),
        ("attention.output_lora_rank", c.o_lora_rank),
        ("attention.indexer.head_count", c.index_n_heads),
        ("attention.indexer.key_length", c.index_head_dim),
        ("attention.indexer.top_k", c.index_topk.into()),
        ("rope.dimension_count", c.qk_rope_head_dim.into()),
        ("expert_count", c.n_routed_experts.into()),
        ("expert_used_count", c.num_experts_per_tok),
        ("expert_shared_count", c.n_shared_experts),
        ("expert_feed_forward_length", c.moe_intermediate_size),
        ("expert_gating_func", GATING_SQRT_SOFTPLUS.into()),
        ("hyper_connection.count", c.hc_mult),
        ("hyper_connection.sinkhorn_iterations", c.hc_sinkhorn_iters.into()),
    ];
    for (key, value) in u32s {
        keys.insert(format!("{a}.{key}"), value as u32);
    }
    keys.insert(format!("{a}.hash_layer_count"), c.num_hash_layers);
    keys.insert(format!("{a}.rope.scaling.original_context_length"), c.rope_original_context);
    let f32s = [
        ("attention.layer_norm_rms_epsilon", c.rms_norm_eps),
        ("attention.compress_rope_freq_base", c.compress_rope_theta),
        ("rope.freq_base", c.rope_theta),
        ("rope.scaling.factor", c.rope_factor),
        ("rope.scaling.yarn_beta_fast", c.rope_beta_fast),
        ("rope.scaling.yarn_beta_slow", c.rope_beta_slow),
        ("expert_weights_scale", c.routed_scaling_factor),
        ("hyper_connection.epsilon", c.hc_eps),
    ];
    for (key, value) in f32s {
        keys.insert(format!("{a}.{key}"), value);
    }
    keys.insert(format!("{a}.rope.scaling.type"), "yarn");
    keys.insert(format!("{a}.expert_weights_norm"), c.norm_topk_prob);
    keys.insert(format!("{a}.swiglu_clamp_exp"), vec![c.swiglu_limit; blocks as usize]);
    keys.insert(format!("{a}.swiglu_clamp_shexp"), vec![c.swiglu_limit; blocks as usize]);
    keys
}
