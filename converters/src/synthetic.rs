//! Random checkpoints in the released on-disk form, from tiny to real layer shapes: for tests, benches and trying things out.
//!
//! The list of tensors is written from deepseek-v4.md section 2 on its own, not from the recipe's tables, so that the two can
//! disagree. Numbers are random but legal: no NaN codes, expert ids within range, a few zeros of either sign.

use std::fs;
use std::io;
use std::path::Path;

use safetensors::tensor::Dtype;
use serde_json::{Value, json};

use crate::shard::{encode_header, tensor_bytes, write_at};

/// Draft blocks of a synthetic checkpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Draft {
    /// None.
    None,
    /// One MTP block.
    Mtp,
    /// Three DSpark stages.
    Dspark,
}

/// Shape of a synthetic checkpoint. Field names are config.json's.
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(missing_docs, reason = "the fields carry config.json's names")]
pub struct Spec {
    pub hidden_size: u64,
    pub num_attention_heads: u64,
    pub head_dim: u64,
    pub qk_rope_head_dim: u64,
    pub q_lora_rank: u64,
    pub o_groups: u64,
    pub o_lora_rank: u64,
    pub n_routed_experts: u64,
    pub num_experts_per_tok: u64,
    pub moe_intermediate_size: u64,
    pub num_hash_layers: u64,
    pub index_n_heads: u64,
    pub index_head_dim: u64,
    /// One for each layer.
    pub compress_ratios: Vec<u64>,
    pub vocab_size: u64,
    pub dspark_markov_rank: u64,
    pub draft: Draft,
    pub fp8_experts: bool,
    pub shards: usize,
    pub seed: u64,
}

impl Spec {
    /// Every tensor kind, three DSpark stages, partial FP8 blocks at both edges, four shards; about 1 MB.
    pub fn tiny() -> Spec {
        Spec {
            hidden_size: 160,
            num_attention_heads: 4,
            head_dim: 96,
            qk_rope_head_dim: 16,
            q_lora_rank: 72,
            o_groups: 2,
            o_lora_rank: 40,
            n_routed_experts: 4,
            num_experts_per_tok: 2,
            moe_intermediate_size: 96,
            num_hash_layers: 1,
            index_n_heads: 4,
            index_head_dim: 64,
            compress_ratios: vec![0, 4, 128],
            vocab_size: 320,
            dspark_markov_rank: 24,
            draft: Draft::Dspark,
            fp8_experts: false,
            shards: 4,
            seed: 1,
        }
    }

    /// The first `layers` layers of V4-Flash.
    pub fn flash(layers: usize) -> Spec {
        let ratios = [0, 0].into_iter().chain([4, 128].into_iter().cycle());
        Spec {
            hidden_size: 4096,
            num_attention_heads: 64,
            head_dim: 512,
            qk_rope_head_dim: 64,
            q_lora_rank: 1024,
            o_groups: 8,
            o_lora_rank: 1024,
            n_routed_experts: 256,
            num_experts_per_tok: 6,
            moe_intermediate_size: 2048,
            num_hash_layers: 3,
            index_n_heads: 64,
            index_head_dim: 128,
            compress_ratios: ratios.take(layers).collect(),
            vocab_size: 129_280,
            dspark_markov_rank: 256,
            draft: Draft::Mtp,
            fp8_experts: false,
            shards: 46,
            seed: 1,
        }
    }

    /// The first `layers` layers of V4-Pro.
    pub fn pro(layers: usize) -> Spec {
        let ratios = [128, 128].into_iter().chain([4, 128].into_iter().cycle());
        Spec {
            hidden_size: 7168,
            num_attention_heads: 128,
            q_lora_rank: 1536,
            o_groups: 16,
            n_routed_experts: 384,
            moe_intermediate_size: 3072,
            compress_ratios: ratios.take(layers).collect(),
            dspark_markov_rank: 512,
            shards: 64,
            ..Spec::flash(0)
        }
    }

    /// config.json.
    pub fn config(&self) -> Value {
        let layers = self.compress_ratios.len() as u64;
        // As released: one draft block more for MTP, three for DSpark, whatever num_nextn_predict_layers says.
        let stages = [0, 1, 3][self.draft as usize];
        let mut ratios = self.compress_ratios.clone();
        ratios.resize(ratios.len() + stages, 0);
        let mut config = json!({
            "architectures": ["DeepseekV4ForCausalLM"], "model_type": "deepseek_v4", "bos_token_id": 0, "eos_token_id": 1,
            "num_key_value_heads": 1, "n_shared_experts": 1, "routed_scaling_factor": 1.5, "scoring_func": "sqrtsoftplus",
            "topk_method": "noaux_tc", "norm_topk_prob": true, "swiglu_limit": 10.0, "hidden_act": "silu", "index_topk": 512,
            "sliding_window": 128, "hc_mult": 4, "hc_sinkhorn_iters": 20, "hc_eps": 1e-6, "rms_norm_eps": 1e-6,
            "rope_theta": 10000, "compress_rope_theta": 160_000, "max_position_embeddings": 1_048_576,
            "torch_dtype": "bfloat16",
            "rope_scaling": {
                "type": "yarn", "factor": 16, "beta_fast": 32, "beta_slow": 1, "original_max_position_embeddings": 65536
            },
            "quantization_config": {
                "activation_scheme": "dynamic", "fmt": "e4m3", "quant_method": "fp8", "scale_fmt": "ue8m0",
                "weight_block_size": [128, 128]
            }
        });
        let own = [
            ("hidden_size", self.hidden_size),
            ("num_hidden_layers", layers),
            ("num_attention_heads", self.num_attention_heads),
            ("head_dim", self.head_dim),
            ("qk_rope_head_dim", self.qk_rope_head_dim),
            ("q_lora_rank", self.q_lora_rank),
            ("o_groups", self.o_groups),
            ("o_lora_rank", self.o_lora_rank),
            ("n_routed_experts", self.n_routed_experts),
            ("num_experts_per_tok", self.num_experts_per_tok),
            ("moe_intermediate_size", self.moe_intermediate_size),
            ("num_hash_layers", self.num_hash_layers),
            ("index_n_heads", self.index_n_heads),
            ("index_head_dim", self.index_head_dim),
            ("num_nextn_predict_layers", u64::from(self.draft != Draft::None)),
            ("vocab_size", self.vocab_size),
        ];
        for (field, value) in own {
            config[field] = json!(value);
        }
        config["compress_ratios"] = json!(ratios);
        if !self.fp8_experts {
            config["expert_dtype"] = json!("fp4");
        }
        if self.draft == Draft::Dspark {
            config["dspark_block_size"] = json!(5);
            config["dspark_noise_token_id"] = json!(2);
            let targets: Vec<u64> = (0..3).map(|back| layers.saturating_sub(3 - back)).collect();
            config["dspark_target_layer_ids"] = json!(targets);
            config["dspark_markov_rank"] = json!(self.dspark_markov_rank);
        }
        config
    }

    /// Every released tensor: name, dtype, shape.
    pub fn tensors(&self) -> Vec<(String, Dtype, Vec<u64>)> {
        let (d, v) = (self.hidden_size, self.vocab_size);
        let mut list = List::default();
        list.bf16("embed.weight", &[v, d]);
        for (layer, ratio) in self.compress_ratios.iter().enumerate() {
            self.block(&mut list, &format!("layers.{layer}."), *ratio, (layer as u64) < self.num_hash_layers);
        }
        list.bf16("norm.weight", &[d]);
        list.bf16("head.weight", &[v, d]);
        self.hc_head(&mut list, "");
        match self.draft {
            Draft::None => {}
            Draft::Mtp => {
                self.block(&mut list, "mtp.0.", 0, false);
                list.fp8("mtp.0.e_proj", d, d);
                list.fp8("mtp.0.h_proj", d, d);
                for norm in ["enorm", "hnorm", "norm"] {
                    list.bf16(&format!("mtp.0.{norm}.weight"), &[d]);
                }
                self.hc_head(&mut list, "mtp.0.");
            }
            Draft::Dspark => {
                for stage in 0..3 {
                    self.block(&mut list, &format!("mtp.{stage}."), 0, false);
                }
                list.fp8("mtp.0.main_proj", d, 3 * d);
                list.bf16("mtp.0.main_norm.weight", &[d]);
                list.bf16("mtp.2.norm.weight", &[d]);
                list.bf16("mtp.2.markov_head.markov_w1.weight", &[v, self.dspark_markov_rank]);
                list.bf16("mtp.2.markov_head.markov_w2.weight", &[v, self.dspark_markov_rank]);
                list.bf16("mtp.2.confidence_head.proj.weight", &[1, d + self.dspark_markov_rank]);
                self.hc_head(&mut list, "mtp.2.");
            }
        }
        list.0
    }

    fn hc_head(&self, list: &mut List, prefix: &str) {
        list.f32(&format!("{prefix}hc_head_fn"), &[4, 4 * self.hidden_size]);
        list.f32(&format!("{prefix}hc_head_base"), &[4]);
        list.f32(&format!("{prefix}hc_head_scale"), &[1]);
    }

    fn block(&self, list: &mut List, p: &str, ratio: u64, hashed: bool) {
        let (d, h, hd, q) = (self.hidden_size, self.num_attention_heads, self.head_dim, self.q_lora_rank);
        let (g, r, e, i) = (self.o_groups, self.o_lora_rank, self.n_routed_experts, self.moe_intermediate_size);
        let at = |name: &str| format!("{p}{name}");
        list.bf16(&at("attn_norm.weight"), &[d]);
        list.bf16(&at("ffn_norm.weight"), &[d]);
        for site in ["attn", "ffn"] {
            list.f32(&at(&format!("hc_{site}_fn")), &[24, 4 * d]);
            list.f32(&at(&format!("hc_{site}_base")), &[24]);
            list.f32(&at(&format!("hc_{site}_scale")), &[3]);
        }
        list.f32(&at("attn.attn_sink"), &[h]);
        list.fp8(&at("attn.wq_a"), q, d);
        list.bf16(&at("attn.q_norm.weight"), &[q]);
        list.fp8(&at("attn.wq_b"), h * hd, q);
        list.fp8(&at("attn.wkv"), hd, d);
        list.bf16(&at("attn.kv_norm.weight"), &[hd]);
        list.fp8(&at("attn.wo_a"), g * r, h * hd / g);
        list.fp8(&at("attn.wo_b"), d, g * r);
        if ratio != 0 {
            let wide = if ratio == 4 { 2 * hd } else { hd };
            list.f32(&at("attn.compressor.ape"), &[ratio, wide]);
            list.bf16(&at("attn.compressor.wkv.weight"), &[wide, d]);
            list.bf16(&at("attn.compressor.wgate.weight"), &[wide, d]);
            list.bf16(&at("attn.compressor.norm.weight"), &[hd]);
        }
        if ratio == 4 {
            let (heads, width) = (self.index_n_heads, self.index_head_dim);
            list.fp8(&at("attn.indexer.wq_b"), heads * width, q);
            list.bf16(&at("attn.indexer.weights_proj.weight"), &[heads, d]);
            list.f32(&at("attn.indexer.compressor.ape"), &[4, 2 * width]);
            list.bf16(&at("attn.indexer.compressor.wkv.weight"), &[2 * width, d]);
            list.bf16(&at("attn.indexer.compressor.wgate.weight"), &[2 * width, d]);
            list.bf16(&at("attn.indexer.compressor.norm.weight"), &[width]);
        }
        list.bf16(&at("ffn.gate.weight"), &[e, d]);
        match hashed {
            true => list.add(at("ffn.gate.tid2eid"), Dtype::I64, &[self.vocab_size, self.num_experts_per_tok]),
            false => list.f32(&at("ffn.gate.bias"), &[e]),
        }
        for expert in 0..e {
            for (matrix, out, inner) in [("w1", i, d), ("w2", d, i), ("w3", i, d)] {
                let name = at(&format!("ffn.experts.{expert}.{matrix}"));
                match self.fp8_experts {
                    true => list.fp8(&name, out, inner),
                    false => list.fp4(&name, out, inner),
                }
            }
        }
        for (matrix, out, inner) in [("w1", i, d), ("w2", d, i), ("w3", i, d)] {
            list.fp8(&at(&format!("ffn.shared_experts.{matrix}")), out, inner);
        }
    }

    /// A byte-level BPE tokenizer of `vocab_size` tokens: the 256 bytes and place holders.
    pub fn tokenizer(&self) -> Value {
        let special =
            |id: u64, content: &str| json!({"id": id, "content": content, "special": true, "normalized": false});
        let mut added =
            vec![special(0, "<｜begin▁of▁sentence｜>"), special(1, "<｜end▁of▁sentence｜>"), special(2, "<｜▁pad▁｜>")];
        let mut vocab = serde_json::Map::new();
        for byte in 0..256u64 {
            // GPT-2's byte alphabet: printable Latin-1 stands for itself, the rest is moved up.
            let printable = matches!(byte, 33..=126 | 161..=172 | 174..=255);
            let moved = || (0..byte).filter(|b| !matches!(b, 33..=126 | 161..=172 | 174..=255)).count() as u32;
            let letter = if printable { char::from(byte as u8) } else { char::from_u32(256 + moved()).unwrap_or('?') };
            vocab.insert(letter.to_string(), json!(byte + 3));
        }
        added.extend((259..self.vocab_size).map(|id| special(id, &format!("<｜place▁holder▁no▁{id}｜>"))));
        json!({
            "version": "1.0", "truncation": null, "padding": null, "added_tokens": added, "normalizer": null,
            "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false},
            "post_processor": null, "decoder": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true},
            "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
                      "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "vocab": vocab, "merges": []}
        })
    }

    /// Writes the checkpoint into an existing directory.
    ///
    /// # Errors
    /// What the file system says.
    pub fn write(&self, dir: &Path) -> io::Result<()> {
        self.write_shards(dir, true)
    }

    /// Writes it with headers only: enough for a plan.
    ///
    /// # Errors
    /// What the file system says.
    pub fn write_headers(&self, dir: &Path) -> io::Result<()> {
        self.write_shards(dir, false)
    }

    fn write_shards(&self, dir: &Path, with_data: bool) -> io::Result<()> {
        let text = |name: &str, value: &Value| fs::write(dir.join(name), serde_json::to_string_pretty(value)? + "\n");
        text("config.json", &self.config())?;
        text(
            "generation_config.json",
            &json!({"_from_model_config": true, "bos_token_id": 0, "eos_token_id": 1, "temperature": 1.0}),
        )?;
        text("tokenizer.json", &self.tokenizer())?;
        let token = |content: &str| json!({"__type": "AddedToken", "content": content});
        let (bos, eos) = (token("<｜begin▁of▁sentence｜>"), token("<｜end▁of▁sentence｜>"));
        text(
            "tokenizer_config.json",
            &json!({"add_bos_token": false, "add_eos_token": false, "bos_token": bos, "eos_token": eos, "pad_token": eos}),
        )?;

        let tensors = self.tensors();
        let total: u64 = tensors.iter().map(|(_, dtype, shape)| tensor_bytes(*dtype, shape)).sum();
        let per_shard = total / self.shards as u64 + 1;
        let mut shards: Vec<Vec<_>> = vec![Vec::new()];
        let mut bytes = 0;
        for tensor in tensors {
            let own = tensor_bytes(tensor.1, &tensor.2);
            if bytes > 0 && bytes + own > per_shard && shards.len() < self.shards {
                shards.push(Vec::new());
                bytes = 0;
            }
            bytes += own;
            shards.last_mut().expect("begun with one").push(tensor);
        }
        let mut weight_map = serde_json::Map::new();
        let count = shards.len();
        for (number, shard) in shards.into_iter().enumerate() {
            let name = format!("model-{:05}-of-{count:05}.safetensors", number + 1);
            weight_map.extend(shard.iter().map(|(tensor, ..)| (tensor.clone(), json!(name))));
            let file = fs::File::create(dir.join(&name))?;
            let (header, _) = encode_header(shard.iter().cloned());
            write_at(&file, 0, &header)?;
            let mut at = header.len() as u64;
            for (index, (tensor, dtype, shape)) in shard.iter().enumerate().filter(|_| with_data) {
                let mut random = Random::new(self.seed ^ ((number as u64) << 40) ^ ((index as u64) << 8));
                at = self.write_tensor(&file, at, tensor, (*dtype, shape), &mut random)?;
            }
        }
        text("model.safetensors.index.json", &json!({"metadata": {"total_size": total}, "weight_map": weight_map}))
    }

    fn write_tensor(
        &self,
        file: &fs::File,
        mut at: u64,
        name: &str,
        (dtype, shape): (Dtype, &[u64]),
        random: &mut Random,
    ) -> io::Result<u64> {
        let mut left = tensor_bytes(dtype, shape) as usize;
        // Whole numbers and whole table rows.
        let row = if dtype == Dtype::I64 { 8 * shape[1] as usize } else { 8 };
        let mut buffer = vec![0; left.min((1 << 20) / row * row)];
        while left > 0 {
            let bytes = left.min(buffer.len());
            let piece = &mut buffer[..bytes];
            match dtype {
                Dtype::I64 => self.expert_ids(piece, shape[1] as usize, random),
                _ => random.fill(piece),
            }
            legal(dtype, name, piece);
            write_at(file, at, piece)?;
            at += bytes as u64;
            left -= bytes;
        }
        Ok(at)
    }

    /// Distinct experts for each token.
    fn expert_ids(&self, out: &mut [u8], used: usize, random: &mut Random) {
        for row in out.chunks_exact_mut(8 * used) {
            let first = random.next() % self.n_routed_experts;
            for (step, id) in row.as_chunks_mut::<8>().0.iter_mut().enumerate() {
                *id = ((first + step as u64) % self.n_routed_experts).to_le_bytes();
            }
        }
    }
}

/// Turns random bytes into numbers that a release could hold.
fn legal(dtype: Dtype, name: &str, bytes: &mut [u8]) {
    match dtype {
        // NaN codes become the largest number.
        Dtype::F8_E4M3 => bytes.iter_mut().filter(|byte| **byte & 0x7F == 0x7F).for_each(|byte| *byte ^= 1),
        // Around the real scales, 112 to 120, and wider.
        Dtype::F8_E8M0 => bytes.iter_mut().for_each(|byte| *byte = 100 + *byte % 24),
        // Exponents near 1; the sign and the mantissa stay random.
        Dtype::BF16 => bytes.as_chunks_mut::<2>().0.iter_mut().for_each(|b| b[1] = (b[1] & 0x80) | 0x3F),
        Dtype::F32 => bytes.as_chunks_mut::<4>().0.iter_mut().for_each(|b| b[3] = (b[3] & 0x80) | 0x3F),
        Dtype::I64 | Dtype::I8 => {}
        other => unreachable!("`{name}` has dtype {other}"),
    }
}

#[derive(Default)]
struct List(Vec<(String, Dtype, Vec<u64>)>);

impl List {
    fn add(&mut self, name: String, dtype: Dtype, shape: &[u64]) {
        self.0.push((name, dtype, shape.to_vec()));
    }

    fn bf16(&mut self, name: &str, shape: &[u64]) {
        self.add(name.into(), Dtype::BF16, shape);
    }

    fn f32(&mut self, name: &str, shape: &[u64]) {
        self.add(name.into(), Dtype::F32, shape);
    }

    fn fp8(&mut self, name: &str, out: u64, inner: u64) {
        self.add(format!("{name}.weight"), Dtype::F8_E4M3, &[out, inner]);
        self.add(format!("{name}.scale"), Dtype::F8_E8M0, &[out.div_ceil(128), inner.div_ceil(128)]);
    }

    fn fp4(&mut self, name: &str, out: u64, inner: u64) {
        self.add(format!("{name}.weight"), Dtype::I8, &[out, inner / 2]);
        self.add(format!("{name}.scale"), Dtype::F8_E8M0, &[out, inner / 32]);
    }
}

/// SplitMix64: small, fast, seeded.
struct Random(u64);

impl Random {
    fn new(seed: u64) -> Random {
        Random(seed)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    fn fill(&mut self, out: &mut [u8]) {
        let (words, rest) = out.as_chunks_mut::<8>();
        for word in words {
            *word = self.next().to_le_bytes();
        }
        let last = self.next().to_le_bytes();
        rest.copy_from_slice(&last[..rest.len()]);
    }
}
