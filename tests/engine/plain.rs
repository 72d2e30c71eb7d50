//! Models of other families, made here: a plain transformer whose cache can be cut, and one that only makes embeddings.

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use fathom::engine::{self, Batch, BatchToken, Error, Kind, Output, Outputs, Settings};
use fathom::ids::{Pos, SeqId, TokenId};
use fathom_gguf::{DType, Metadata, TensorInfo, Value};

use super::{TOLERANCE, assert_close, exact, load, logits, scratch, text, tokens};

const N_EMBD: u64 = 64;
const N_VOCAB: u64 = 300;
const N_CTX: u64 = 512;

/// Random weights with a scale that keeps activations near 1; norms are 1 and biases small.
struct Random(u64);

impl Random {
    fn tensor(&mut self, name: &str, ne: &[u64]) -> (TensorInfo, Vec<u8>) {
        let info = TensorInfo::new(name, DType::F32, ne).unwrap();
        let scale = 1.7 / (ne[0] as f32).sqrt();
        let mut value = || {
            self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            let unit = (self.0 >> 40) as f32 / (1 << 23) as f32 - 1.0;
            match name {
                _ if name.ends_with("norm.weight") => 1.0,
                _ if name.ends_with(".bias") => 0.1 * unit,
                _ => scale * unit,
            }
        };
        let data = (0..info.elements()).flat_map(|_| value().to_le_bytes()).collect();
        (info, data)
    }
}

fn write(name: &str, keys: &[(&str, Value)], shapes: &[(String, Vec<u64>)]) -> PathBuf {
    let mut metadata = Metadata::new();
    for (key, value) in keys {
        metadata.insert(*key, value.clone());
    }
    let mut random = Random(7);
    let tensors: Vec<_> = shapes.iter().map(|(name, ne)| random.tensor(name, ne)).collect();
    let path = scratch(name);
    fathom_gguf::write_file(&path, metadata, &tensors).unwrap();
    path
}

fn llama() -> &'static Path {
    static PATH: OnceLock<PathBuf> = OnceLock::new();
    PATH.get_or_init(|| {
        let keys = [
            ("general.architecture", Value::from("llama")),
            ("llama.context_length", (N_CTX as u32).into()),
            ("llama.embedding_length", (N_EMBD as u32).into()),
            ("llama.block_count", 2_u32.into()),
            ("llama.feed_forward_length", 128_u32.into()),
            ("llama.attention.head_count", 4_u32.into()),
            ("llama.attention.head_count_kv", 2_u32.into()),
            ("llama.attention.layer_norm_rms_epsilon", 1e-5_f32.into()),
            ("llama.rope.dimension_count", 16_u32.into()),
        ];
        let mut shapes = vec![
            ("token_embd.weight".to_owned(), vec![N_EMBD, N_VOCAB]),
            ("output_norm.weight".to_owned(), vec![N_EMBD]),
            ("output.weight".to_owned(), vec![N_EMBD, N_VOCAB]),
        ];
        for layer in 0..2 {
            for (name, ne) in [
                ("attn_norm", vec![N_EMBD]),
                ("attn_q", vec![N_EMBD, 64]),
                ("attn_k", vec![N_EMBD, 32]),
                ("attn_v", vec![N_EMBD, 32]),
                ("attn_output", vec![64, N_EMBD]),
                ("ffn_norm", vec![N_EMBD]),
                ("ffn_gate", vec![N_EMBD, 128]),
                ("ffn_up", vec![N_EMBD, 128]),
                ("ffn_down", vec![128, N_EMBD]),
            ] {
                shapes.push((format!("blk.{layer}.{name}.weight"), ne));
            }
        }
        write("llama.gguf", &keys, &shapes)
    })
}

fn bert() -> &'static Path {
    static PATH: OnceLock<PathBuf> = OnceLock::new();
    PATH.get_or_init(|| {
        let keys = [
            ("general.architecture", Value::from("bert")),
            ("bert.context_length", (N_CTX as u32).into()),
            ("bert.embedding_length", (N_EMBD as u32).into()),
            ("bert.block_count", 1_u32.into()),
            ("bert.feed_forward_length", 128_u32.into()),
            ("bert.attention.head_count", 4_u32.into()),
            ("bert.attention.layer_norm_epsilon", 1e-5_f32.into()),
            ("bert.attention.causal", false.into()),
            ("bert.pooling_type", 1_u32.into()), // mean
            ("tokenizer.ggml.token_type_count", 2_u32.into()),
        ];
        let mut shapes = vec![
            ("token_embd.weight".to_owned(), vec![N_EMBD, N_VOCAB]),
            ("token_types.weight".to_owned(), vec![N_EMBD, 2]),
            ("position_embd.weight".to_owned(), vec![N_EMBD, N_CTX]),
        ];
        let mut both = |name: &str, ne: &[u64]| {
            shapes.push((format!("{name}.weight"), ne.to_vec()));
            shapes.push((format!("{name}.bias"), vec![ne[ne.len() - 1]]));
        };
        both("token_embd_norm", &[N_EMBD]);
        for name in ["attn_q", "attn_k", "attn_v", "attn_output"] {
            both(&format!("blk.0.{name}"), &[N_EMBD, N_EMBD]);
        }
        both("blk.0.attn_output_norm", &[N_EMBD]);
        both("blk.0.ffn_up", &[N_EMBD, 128]);
        both("blk.0.ffn_down", &[128, N_EMBD]);
        both("blk.0.layer_output_norm", &[N_EMBD]);
        write("bert.gguf", &keys, &shapes)
    })
}

#[test]
fn a_plain_cache_is_cut_and_its_checkpoints_are_marks() {
    let mut engine = load(llama(), &Settings { n_ctx: 256, ..exact() });
    let text = text(120, engine.info().n_vocab);
    let (start, middle, end) = (&text[..30], &text[30..60], &text[60..]);
    logits(&mut *engine, 0, 0, start, 30);
    let at_30 = engine.checkpoint(SeqId(0)).unwrap();
    assert_eq!((at_30.pos, at_30.bytes, at_30.within), (Pos(30), 0, Some(SeqId(0))));
    let first = logits(&mut *engine, 0, 30, middle, 30);
    let at_60 = engine.checkpoint(SeqId(0)).unwrap();
    let expected = logits(&mut *engine, 0, 60, end, 60);

    engine.rewind(SeqId(0), &at_60).unwrap();
    assert_close("rewound to 60", &logits(&mut *engine, 0, 60, end, 60), &expected, TOLERANCE);
    engine.rewind(SeqId(0), &at_30).unwrap();
    assert_close("rewound to 30", &logits(&mut *engine, 0, 30, middle, 30), &first, TOLERANCE);
    // The same tokens stand there again, but the engine cannot know that.
    assert!(matches!(engine.rewind(SeqId(0), &at_60), Err(Error::State(_))), "60 was undercut");
    assert!(matches!(engine.rewind(SeqId(1), &at_30), Err(Error::State(_))), "of another sequence");

    engine.fork(SeqId(0), SeqId(1), Some(&at_30)).unwrap();
    assert_close("forked at 30", &logits(&mut *engine, 1, 30, middle, 30), &first, TOLERANCE);
    engine.fork(SeqId(0), SeqId(2), None).unwrap();
    assert_close("forked at the end", &logits(&mut *engine, 2, 60, end, 60), &expected, TOLERANCE);
    engine.release(SeqId(0));
    assert!(matches!(engine.rewind(SeqId(0), &at_30), Err(Error::State(_))), "released since");
    assert!(matches!(engine.fork(SeqId(0), SeqId(0), Some(&at_30)), Err(Error::State(_))));
}

#[test]
fn a_jump_is_refused_where_it_would_not_show_true_shapes() {
    let jump = Settings { jump: true, ..exact() };
    let error = engine::load(llama(), Kind::Llama, &jump, &mut |_| true).err().unwrap();
    assert!(matches!(error, Error::Unsupported { .. }), "{error}");
}

fn embedding(seq: u32, text: &[TokenId]) -> Vec<BatchToken> {
    let mut tokens = tokens(seq, 0, text);
    tokens.iter_mut().for_each(|token| token.output = None);
    tokens.last_mut().unwrap().output = Some(Output::Embedding);
    tokens
}

#[test]
fn embeddings_do_not_depend_on_the_company() {
    let settings = Settings { embedding: true, n_ctx: 256, n_ubatch: 8, ..exact() };
    let mut engine = load(bert(), &settings);
    let support = engine.info().support;
    assert!(support.embedding && !support.logits && !support.checkpoint && !support.fork && !support.save);
    let text = text(200, engine.info().n_vocab);
    let (a, b, c) = (&text[..70], &text[70..75], &text[75..200]);
    let mut out = Outputs::default();
    let mut alone = Vec::new();
    for part in [a, b, c] {
        engine.step(&Batch { tokens: embedding(0, part) }, &mut out).unwrap();
        assert_eq!((out.rows(), out.row(0).len()), (1, N_EMBD as usize));
        alone.push(out.row(0).to_vec());
        engine.release(SeqId(0));
    }
    assert_ne!(alone[0], alone[1]);
    let together = [embedding(2, a), embedding(0, b), embedding(1, c)].concat();
    engine.step(&Batch { tokens: together }, &mut out).unwrap();
    let rows: Vec<_> = (0..out.rows()).map(|row| out.row(row).to_vec()).collect();
    assert_close("together", &rows, &alone, TOLERANCE);
}

#[test]
fn an_embedding_model_refuses_what_it_cannot_do() {
    let error = engine::load(bert(), Kind::Llama, &exact(), &mut |_| true).err().unwrap();
    assert!(error.to_string().contains("only makes embeddings"), "{error}");
    let error =
        engine::load(llama(), Kind::Llama, &Settings { embedding: true, ..exact() }, &mut |_| true).err().unwrap();
    assert!(error.to_string().contains("how to pool"), "{error}");

    let mut engine = load(bert(), &Settings { embedding: true, n_batch: 64, ..exact() });
    let text = text(65, engine.info().n_vocab);
    let mut out = Outputs::default();
    let mut refused = |tokens: Vec<BatchToken>, expected: &str| {
        let error = engine.step(&Batch { tokens }, &mut out).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    };
    refused(tokens(0, 0, &text[..3]), "logits");
    refused(embedding(0, &text), "more than a step takes (64)");
    engine.step(&Batch { tokens: embedding(0, &text[..3]) }, &mut out).unwrap();
    let more = vec![BatchToken { token: text[3], seq: SeqId(0), pos: Pos(3), output: Some(Output::Embedding) }];
    assert!(engine.step(&Batch { tokens: more }, &mut out).unwrap_err().to_string().contains("must be whole"));
    assert!(matches!(engine.checkpoint(SeqId(0)), Err(Error::Unsupported { .. })));
    assert!(matches!(engine.fork(SeqId(0), SeqId(1), None), Err(Error::Unsupported { .. })));
    assert!(matches!(engine.save(SeqId(0), &mut Vec::new()), Err(Error::Unsupported { .. })));
    assert!(matches!(engine.restore(SeqId(1), &mut [].as_slice()), Err(Error::Unsupported { .. })));
}
