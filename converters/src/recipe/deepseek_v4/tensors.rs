//! The tables of released tensors (deepseek-v4.md sections 2 and 3): names on both sides, form and shape.

use super::config::Config;
use crate::recipe::Family;

/// The form in which a tensor is released, and with it the form in which it is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// BF16 vector, stored as F32: llama.cpp multiplies norms in F32.
    Norm,
    /// BF16 matrix, stored as it is.
    Matrix,
    /// BF16 matrix, stored as F32 so that products with it do not round the activations: a rounded router flips choices of experts.
    Router,
    /// F32, stored as it is.
    Plain,
    /// I64 expert ids, stored as I32.
    ExpertIds,
    /// `NAME.weight` F8_E4M3 and `NAME.scale`, stored as BF16.
    Fp8,
}

/// Which layers have a tensor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum When {
    /// All.
    Always,
    /// Compression ratio 4 or 128.
    Compressed,
    /// Compression ratio 4.
    Indexed,
    /// The first `num_hash_layers`.
    Hashed,
    /// The others.
    Scored,
}

/// What a layer is.
#[derive(Debug, Clone, Copy)]
pub struct Layer {
    /// 0, 4 or 128.
    pub ratio: u64,
    /// Whether experts are looked up by token id.
    pub hashed: bool,
}

impl Layer {
    /// Whether this layer has tensors of that kind.
    pub fn has(self, when: When) -> bool {
        match when {
            When::Always => true,
            When::Compressed => self.ratio != 0,
            When::Indexed => self.ratio == 4,
            When::Hashed => self.hashed,
            When::Scored => !self.hashed,
        }
    }

    /// CSA compressors (ratio 4) are twice as wide as the head.
    fn fold(self) -> u64 {
        if self.ratio == 4 { 2 } else { 1 }
    }
}

/// One released tensor of a layer or of the root.
pub struct Rule {
    /// Released name after `layers.N.`; for [`Form::Fp8`] without `.weight`.
    pub released: &'static str,
    /// GGUF name after `blk.N.`.
    pub gguf: &'static str,
    /// Its form.
    pub form: Form,
    /// What it is for.
    pub family: Family,
    /// Which layers have it.
    pub when: When,
    /// Released shape.
    pub shape: fn(&Config, Layer) -> Vec<u64>,
}

use Family::{Attention, Compressor, Embedding, HyperConnections, Indexer, Norms, Router, SharedExperts};
use Form::{ExpertIds, Fp8, Matrix, Norm, Plain};
use When::{Always, Compressed, Hashed, Indexed, Scored};

const fn rule(
    released: &'static str,
    gguf: &'static str,
    form: Form,
    family: Family,
    when: When,
    shape: fn(&Config, Layer) -> Vec<u64>,
) -> Rule {
    Rule { released, gguf, form, family, when, shape }
}

/// Rows of the hyper-connection matrix: pre, post and the mixing matrix.
fn hc_mix(c: &Config) -> u64 {
    (2 + c.hc_mult) * c.hc_mult
}

/// Tensors outside the layers, with [`HC_HEAD`].
pub const ROOT: &[Rule] = &[
    rule("embed.weight", "token_embd.weight", Matrix, Embedding, Always, |c, _| vec![c.vocab_size, c.hidden_size]),
    rule("norm.weight", "output_norm.weight", Norm, Norms, Always, |c, _| vec![c.hidden_size]),
    rule("head.weight", "output.weight", Matrix, Embedding, Always, |c, _| vec![c.vocab_size, c.hidden_size]),
];

/// The head's hyper-connection; MTP and DSpark have one of their own.
pub const HC_HEAD: &[Rule] = &[
    rule("hc_head_fn", "output_hc_fn.weight", Plain, HyperConnections, Always, |c, _| {
        vec![c.hc_mult, c.hc_mult * c.hidden_size]
    }),
    rule("hc_head_base", "output_hc_base.weight", Plain, HyperConnections, Always, |c, _| vec![c.hc_mult]),
    rule("hc_head_scale", "output_hc_scale.weight", Plain, HyperConnections, Always, |_, _| vec![1]),
];

/// Tensors of a layer, but for the routed experts.
pub const LAYER: &[Rule] = &[
    rule("attn_norm.weight", "attn_norm.weight", Norm, Norms, Always, |c, _| vec![c.hidden_size]),
    rule("hc_attn_fn", "hc_attn_fn.weight", Plain, HyperConnections, Always, |c, _| {
        vec![hc_mix(c), c.hc_mult * c.hidden_size]
    }),
    rule("hc_attn_base", "hc_attn_base.weight", Plain, HyperConnections, Always, |c, _| vec![hc_mix(c)]),
    rule("hc_attn_scale", "hc_attn_scale.weight", Plain, HyperConnections, Always, |_, _| vec![3]),
    rule("attn.attn_sink", "attn_sinks.weight", Plain, Norms, Always, |c, _| vec![c.num_attention_heads]),
    rule("attn.wq_a", "attn_q_a.weight", Fp8, Attention, Always, |c, _| vec![c.q_lora_rank, c.hidden_size]),
    rule("attn.q_norm.weight", "attn_q_a_norm.weight", Norm, Norms, Always, |c, _| vec![c.q_lora_rank]),
    rule("attn.wq_b", "attn_q_b.weight", Fp8, Attention, Always, |c, _| {
        vec![c.num_attention_heads * c.head_dim, c.q_lora_rank]
    }),
    rule("attn.wkv", "attn_kv.weight", Fp8, Attention, Always, |c, _| vec![c.head_dim, c.hidden_size]),
    rule("attn.kv_norm.weight", "attn_kv_a_norm.weight", Norm, Norms, Always, |c, _| vec![c.head_dim]),
    rule("attn.wo_a", "attn_output_a.weight", Fp8, Attention, Always, |c, _| {
        vec![c.o_groups * c.o_lora_rank, c.num_attention_heads * c.head_dim / c.o_groups]
    }),
    rule("attn.wo_b", "attn_output_b.weight", Fp8, Attention, Always, |c, _| {
        vec![c.hidden_size, c.o_groups * c.o_lora_rank]
    }),
    rule("attn.compressor.wkv.weight", "attn_compressor_kv.weight", Matrix, Compressor, Compressed, |c, l| {
        vec![l.fold() * c.head_dim, c.hidden_size]
    }),
    rule("attn.compressor.wgate.weight", "attn_compressor_gate.weight", Matrix, Compressor, Compressed, |c, l| {
        vec![l.fold() * c.head_dim, c.hidden_size]
    }),
    rule("attn.compressor.ape", "attn_compressor_ape.weight", Plain, Compressor, Compressed, |c, l| {
        vec![l.ratio, l.fold() * c.head_dim]
    }),
    rule("attn.compressor.norm.weight", "attn_compressor_norm.weight", Norm, Norms, Compressed, |c, _| {
        vec![c.head_dim]
    }),
    rule("attn.indexer.wq_b", "indexer.attn_q_b.weight", Fp8, Indexer, Indexed, |c, _| {
        vec![c.index_n_heads * c.index_head_dim, c.q_lora_rank]
    }),
    rule("attn.indexer.weights_proj.weight", "indexer.proj.weight", Matrix, Indexer, Indexed, |c, _| {
        vec![c.index_n_heads, c.hidden_size]
    }),
    rule("attn.indexer.compressor.wkv.weight", "indexer_compressor_kv.weight", Matrix, Indexer, Indexed, |c, _| {
        vec![2 * c.index_head_dim, c.hidden_size]
    }),
    rule("attn.indexer.compressor.wgate.weight", "indexer_compressor_gate.weight", Matrix, Indexer, Indexed, |c, _| {
        vec![2 * c.index_head_dim, c.hidden_size]
    }),
    rule("attn.indexer.compressor.ape", "indexer_compressor_ape.weight", Plain, Indexer, Indexed, |c, l| {
        vec![l.ratio, 2 * c.index_head_dim]
    }),
    rule("attn.indexer.compressor.norm.weight", "indexer_compressor_norm.weight", Norm, Norms, Indexed, |c, _| {
        vec![c.index_head_dim]
    }),
    rule("ffn_norm.weight", "ffn_norm.weight", Norm, Norms, Always, |c, _| vec![c.hidden_size]),
    rule("hc_ffn_fn", "hc_ffn_fn.weight", Plain, HyperConnections, Always, |c, _| {
        vec![hc_mix(c), c.hc_mult * c.hidden_size]
    }),
    rule("hc_ffn_base", "hc_ffn_base.weight", Plain, HyperConnections, Always, |c, _| vec![hc_mix(c)]),
    rule("hc_ffn_scale", "hc_ffn_scale.weight", Plain, HyperConnections, Always, |_, _| vec![3]),
    rule("ffn.gate.weight", "ffn_gate_inp.weight", Form::Router, Router, Always, |c, _| {
        vec![u64::from(c.n_routed_experts), c.hidden_size]
    }),
    rule("ffn.gate.bias", "exp_probs_b.bias", Plain, Router, Scored, |c, _| vec![u64::from(c.n_routed_experts)]),
    rule("ffn.gate.tid2eid", "ffn_gate_tid2eid.weight", ExpertIds, Router, Hashed, |c, _| {
        vec![c.vocab_size, c.num_experts_per_tok]
    }),
    rule("ffn.shared_experts.w1", "ffn_gate_shexp.weight", Fp8, SharedExperts, Always, |c, _| {
        vec![shared(c), c.hidden_size]
    }),
    rule("ffn.shared_experts.w3", "ffn_up_shexp.weight", Fp8, SharedExperts, Always, |c, _| {
        vec![shared(c), c.hidden_size]
    }),
    rule("ffn.shared_experts.w2", "ffn_down_shexp.weight", Fp8, SharedExperts, Always, |c, _| {
        vec![c.hidden_size, shared(c)]
    }),
];

/// Width of all shared experts together.
fn shared(c: &Config) -> u64 {
    c.n_shared_experts * c.moe_intermediate_size
}

/// One of the three matrices of every routed expert; they are stacked into one tensor.
pub struct ExpertRule {
    /// Released name after `ffn.experts.X.`, without `.weight`.
    pub released: &'static str,
    /// GGUF name after `blk.N.`.
    pub gguf: &'static str,
    /// Values of one expert: out, in.
    pub shape: fn(&Config) -> [u64; 2],
}

/// The routed experts of a layer.
pub const EXPERTS: &[ExpertRule] = &[
    ExpertRule { released: "w1", gguf: "ffn_gate_exps.weight", shape: |c| [c.moe_intermediate_size, c.hidden_size] },
    ExpertRule { released: "w3", gguf: "ffn_up_exps.weight", shape: |c| [c.moe_intermediate_size, c.hidden_size] },
    ExpertRule { released: "w2", gguf: "ffn_down_exps.weight", shape: |c| [c.hidden_size, c.moe_intermediate_size] },
];

/// What an MTP block has besides a layer, after `mtp.0.` and `blk.N.`. `e_proj` and `h_proj` are joined, see `draft.rs`; the head's
/// hyper-connection goes to the root slots of the draft file.
pub const MTP: &[Rule] = &[
    rule("enorm.weight", "nextn.enorm.weight", Norm, Norms, Always, |c, _| vec![c.hidden_size]),
    rule("hnorm.weight", "nextn.hnorm.weight", Norm, Norms, Always, |c, _| vec![c.hidden_size]),
    rule("norm.weight", "nextn.shared_head_norm.weight", Norm, Norms, Always, |c, _| vec![c.hidden_size]),
];

/// The two halves of `nextn.eh_proj`, in the order of its columns.
pub const MTP_JOINED: [&str; 2] = ["e_proj", "h_proj"];

/// What the first DSpark stage has besides a layer. Released and GGUF names are the same.
pub const DSPARK_FIRST: &[Rule] = &[
    rule("main_proj", "main_proj.weight", Fp8, Family::Draft, Always, |c, _| {
        vec![c.hidden_size, targets(c) * c.hidden_size]
    }),
    rule("main_norm.weight", "main_norm.weight", Norm, Norms, Always, |c, _| vec![c.hidden_size]),
];

/// What the last DSpark stage has besides a layer, with [`HC_HEAD`].
pub const DSPARK_LAST: &[Rule] = &[
    rule("norm.weight", "norm.weight", Norm, Norms, Always, |c, _| vec![c.hidden_size]),
    rule("markov_head.markov_w1.weight", "", Matrix, Family::Draft, Always, |c, _| vec![c.vocab_size, rank(c)]),
    rule("markov_head.markov_w2.weight", "", Matrix, Family::Draft, Always, |c, _| vec![c.vocab_size, rank(c)]),
    rule("confidence_head.proj.weight", "", Matrix, Family::Draft, Always, |c, _| vec![1, c.hidden_size + rank(c)]),
];

/// Other spellings seen for tensors of the last DSpark stage. The name found is the name kept.
pub const DSPARK_ALIASES: &[(&str, &[&str])] = &[
    ("main_norm.weight", &["main_norm"]),
    ("norm.weight", &["norm"]),
    ("markov_head.markov_w1.weight", &["markov_head.markov_w1", "markov_head.embed.weight", "markov_head.embed"]),
    ("markov_head.markov_w2.weight", &["markov_head.markov_w2", "markov_head.head.weight", "markov_head.head"]),
    ("confidence_head.proj.weight", &["confidence_head.proj"]),
];

fn targets(c: &Config) -> u64 {
    c.dspark.as_ref().map_or(0, |dspark| dspark.target_layer_ids.len() as u64)
}

fn rank(c: &Config) -> u64 {
    c.dspark.as_ref().map_or(0, |dspark| dspark.markov_rank)
}
