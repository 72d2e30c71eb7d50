//! Files that are wrong in ways that llama.cpp answers by ending the process, or does not notice.

use std::path::{Path, PathBuf};

use fathom::engine::{self, Batch, Engine, Error, Kind, Outputs};
use fathom_gguf::{Array, DType, File, Metadata, TensorInfo, Value};

use super::{exact, scratch, text, tiny_a, tokens};

fn open() -> File {
    File::open(tiny_a()).unwrap()
}

/// [`tiny_a`] with a changed header or changed tensors.
fn changed(name: &str, change: impl FnOnce(&mut Metadata, &mut Vec<(TensorInfo, Vec<u8>)>)) -> PathBuf {
    let file = open();
    let mut metadata = file.metadata().clone();
    let mut tensors: Vec<_> = file
        .tensors()
        .iter()
        .map(|t| (TensorInfo::new(t.name.clone(), t.dtype, t.ne.clone()).unwrap(), file.data(t).to_vec()))
        .collect();
    change(&mut metadata, &mut tensors);
    let path = scratch(name);
    fathom_gguf::write_file(&path, metadata, &tensors).unwrap();
    path
}

fn try_load(path: &Path) -> Result<Box<dyn Engine>, Error> {
    engine::load(path, Kind::Llama, &exact(), &mut |_| true)
}

#[test]
fn keys_that_would_end_the_process_are_errors() {
    let cases: &[(&str, Value, &str)] = &[
        ("deepseek4.attention.indexer.key_length", 128_u32.into(), "llama.cpp would divide by zero"),
        ("deepseek4.attention.indexer.key_length", 96_u32.into(), "a multiple of 64"),
        ("deepseek4.attention.key_length", 0_u32.into(), "expected at least 1"),
        ("deepseek4.attention.value_length", 64_u32.into(), "expected key_length"),
        ("deepseek4.attention.head_count", 0_u32.into(), "expected at least 1"),
        ("deepseek4.attention.head_count_kv", 2_u32.into(), "expected 1"),
        ("deepseek4.attention.output_group_count", 0_u32.into(), "expected at least 1"),
        ("deepseek4.attention.output_group_count", 3_u32.into(), "a divisor of 4 heads"),
        ("deepseek4.attention.sliding_window", 0_u32.into(), "expected at least 1"),
        ("deepseek4.attention.compress_ratios", Value::Array(Array::U32(vec![0_u32, 4, 128, 7, 4])), "ratio is 7"),
        ("deepseek4.attention.compress_ratios", Value::Array(Array::U32(vec![0_u32, 4])), "5 to 512 entries"),
        ("deepseek4.block_count", 0_u32.into(), "expected at least 1"),
        ("deepseek4.block_count", 513_u32.into(), "at most 512"),
        ("deepseek4.context_length", 0_u32.into(), "expected at least 1"),
        ("deepseek4.embedding_length", 0_u32.into(), "expected at least 1"),
        ("deepseek4.expert_count", 4096_u32.into(), "expert counts contradict"),
        ("deepseek4.expert_count", 0_u32.into(), "expert counts contradict"),
        ("deepseek4.expert_used_count", 9_u32.into(), "expert counts contradict"),
        ("deepseek4.expert_gating_func", 2_u32.into(), "sqrt-softplus"),
        ("deepseek4.hyper_connection.count", 2_u32.into(), "expected 4"),
        ("deepseek4.rope.dimension_count", 65_u32.into(), "even and at most 64"),
        ("deepseek4.rope.dimension_count", 128_u32.into(), "even and at most 64"),
        ("deepseek4.rope.scaling.type", "spiral".into(), "expected none, linear, yarn or longrope"),
        ("deepseek4.nextn_predict_layers", 5_u32.into(), "below block_count"),
        ("deepseek4.attention.q_lora_rank", "many".into(), "expected an integer"),
        ("general.architecture", "clip".into(), "part of a model"),
        ("general.architecture", 3_u32.into(), "expected str"),
    ];
    for (index, (key, value, expected)) in cases.iter().enumerate() {
        let path = changed(&format!("key-{index}.gguf"), |metadata, _| {
            metadata.insert(*key, value.clone());
        });
        let error = try_load(&path).err().unwrap_or_else(|| panic!("{key} = {value:?} was accepted"));
        assert!(error.to_string().contains(expected), "{key}: {error}");
        std::fs::remove_file(path).unwrap();
    }
}

#[test]
fn every_key_that_is_needed_is_missed_by_name() {
    let file = open();
    let keys: Vec<String> = file.metadata().iter().map(|(key, _)| key.to_owned()).collect();
    for key in keys.iter().filter(|key| key.starts_with("deepseek4.")) {
        let path = changed("without-key.gguf", |metadata, _| {
            metadata.remove(key);
        });
        // Some are optional; none may end the process.
        if let Err(error) = try_load(&path) {
            assert!(error.to_string().contains(key.as_str()), "without {key}: {error}");
        }
    }
}

#[test]
fn tensors_that_are_missing_or_of_a_wrong_shape_or_type_are_errors() {
    let names: Vec<String> = open().tensors().iter().map(|tensor| tensor.name.clone()).collect();
    for name in &names {
        let path = changed("without-tensor.gguf", |_, tensors| tensors.retain(|(tensor, _)| tensor.name != *name));
        let error = try_load(&path).err().unwrap_or_else(|| panic!("accepted without {name}"));
        let is_draft = name == "blk.0.attn_norm.weight" && error.to_string().contains("draft");
        assert!(is_draft || error.to_string().contains(name.as_str()), "without {name}: {error}");

        let path = changed("longer-tensor.gguf", |_, tensors| {
            let (tensor, data) = tensors.iter_mut().find(|(tensor, _)| tensor.name == *name).unwrap();
            let mut ne = tensor.ne.clone();
            *ne.last_mut().unwrap() += if ne.len() == 1 { 32 } else { 1 };
            *tensor = TensorInfo::new(name.clone(), tensor.dtype, ne).unwrap();
            data.resize(tensor.bytes as usize, 0);
        });
        assert!(try_load(&path).is_err(), "accepted a longer {name}");
    }
    for name in
        ["output_norm.weight", "blk.1.attn_sinks.weight", "blk.1.attn_compressor_ape.weight", "blk.2.exp_probs_b.bias"]
    {
        let path = changed("f16.gguf", |_, tensors| retype(tensors, name, DType::F16));
        let error = try_load(&path).err().unwrap();
        assert!(error.to_string().contains(&format!("tensor `{name}` is f16, expected f32")), "{error}");
    }
    let path = changed("i32.gguf", |_, tensors| retype(tensors, "blk.0.attn_q_a.weight", DType::I32));
    assert!(try_load(&path).err().unwrap().to_string().contains("expected weights"));
}

/// Zeros of another type in a tensor's place.
fn retype(tensors: &mut [(TensorInfo, Vec<u8>)], name: &str, dtype: DType) {
    let (tensor, data) = tensors.iter_mut().find(|(tensor, _)| tensor.name == name).unwrap();
    *tensor = TensorInfo::new(name, dtype, tensor.ne.clone()).unwrap();
    *data = vec![0; tensor.bytes as usize];
}

#[test]
fn a_routing_table_cannot_name_an_expert_that_does_not_exist() {
    for bad in [-1_i32, 8, i32::MAX] {
        let path = changed("routing.gguf", |_, tensors| {
            let (_, data) = tensors.iter_mut().find(|(t, _)| t.name == "blk.1.ffn_gate_tid2eid.weight").unwrap();
            data[4 * 3 * 17..][..4].copy_from_slice(&bad.to_le_bytes());
        });
        let error = try_load(&path).err().unwrap();
        assert!(
            error.to_string().contains(&format!("sends token 17 to expert {bad}, of which there are 8")),
            "{error}"
        );
    }
}

#[test]
fn a_draft_file_is_recognised() {
    let draft = tiny_a().with_file_name("tiny-v4-a.draft.gguf");
    let error = try_load(&draft).err().unwrap();
    assert!(error.to_string().contains("draft"), "{error}");
}

#[test]
fn damaged_headers_and_weights_never_end_the_process() {
    let bytes = std::fs::read(tiny_a()).unwrap();
    let file = open();
    let header = file.data_offset(0) as usize;
    // Most of the header is the vocabulary and what `export` needs: hit what the engine reads.
    let keys = bytes.windows(10).position(|w| w == b"deepseek4.").unwrap();
    let names = bytes.windows(17).position(|w| w == b"token_embd.weight").unwrap();
    let mut state = 99_u64;
    let mut random = |below: usize| {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (state >> 33) as usize % below
    };
    let path = scratch("damaged.gguf");
    let mut loaded = 0;
    for round in 0..120 {
        let mut damaged = bytes.clone();
        let at = match round % 3 {
            0 => keys + random(2000),
            1 => names + random(header - names),
            _ => header + random(bytes.len() - header),
        };
        damaged[at] ^= 1 << random(8);
        std::fs::write(&path, &damaged).unwrap();
        if let Ok(mut engine) = try_load(&path) {
            loaded += 1;
            let text = text(40, engine.info().n_vocab);
            let _ = engine.step(&Batch { tokens: tokens(0, 0, &text) }, &mut Outputs::default());
        }
    }
    println!("{loaded} of 120 damaged files still load");
    for cut in [0, 3, 24, keys, names, header, bytes.len() - 1] {
        std::fs::write(&path, &bytes[..cut]).unwrap();
        assert!(try_load(&path).is_err(), "cut at {cut}");
    }
}
