//! Each defect of a checkpoint is an error that names what is wrong, and leaves nothing that looks finished.

use std::fs;

use fathom_converters::synthetic::{Draft, Spec};
use fathom_converters::{Error, Options, Silent, convert};
use safetensors::tensor::{Dtype, View};
use serde_json::json;

use crate::round_trip::set_byte;
use crate::support::{Place, mtp};

/// Converts, expects an error, checks that no finished output is there, and returns the message.
fn refused(place: &Place) -> (Error, String) {
    let error = place.convert().expect_err("the checkpoint has a defect");
    let finished: Vec<String> = place.listing().into_iter().filter(|name| name.ends_with(".gguf")).collect();
    assert!(finished.is_empty(), "{finished:?} look finished after: {error}");
    let message = error.to_string();
    (error, message)
}

/// A tensor that owns its bytes, to rewrite shards with.
#[derive(Clone)]
struct Tensor(Dtype, Vec<usize>, Vec<u8>);

impl View for Tensor {
    fn dtype(&self) -> Dtype {
        self.0
    }
    fn shape(&self) -> &[usize] {
        &self.1
    }
    fn data(&self) -> std::borrow::Cow<'_, [u8]> {
        (&self.2).into()
    }
    fn data_len(&self) -> usize {
        self.2.len()
    }
}

/// Rewrites the one shard of a checkpoint and its index.
fn rewrite(place: &Place, change: impl FnOnce(&mut Vec<(String, Tensor)>)) {
    let path = place.checkpoint().join("model-00001-of-00001.safetensors");
    let bytes = fs::read(&path).unwrap();
    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let tensors = file.tensors().into_iter();
    let mut tensors =
        tensors.map(|(name, view)| (name, Tensor(view.dtype(), view.shape().to_vec(), view.data().to_vec()))).collect();
    change(&mut tensors);
    place.edit("model.safetensors.index.json", |index| {
        let map = tensors.iter().map(|(name, _)| (name.clone(), json!("model-00001-of-00001.safetensors"))).collect();
        index["weight_map"] = serde_json::Value::Object(map);
    });
    safetensors::serialize_to_file(tensors, None, &path).unwrap();
}

fn single() -> Place {
    Place::new(&Spec { shards: 1, ..mtp() })
}

fn find<'a>(tensors: &'a mut [(String, Tensor)], name: &str) -> &'a mut (String, Tensor) {
    tensors.iter_mut().find(|(other, _)| other == name).unwrap()
}

#[test]
fn missing_shard() {
    let place = Place::new(&mtp());
    fs::remove_file(place.checkpoint().join("model-00002-of-00004.safetensors")).unwrap();
    let (error, message) = refused(&place);
    assert!(
        matches!(error, Error::MissingShard { .. })
            && message.contains("`model-00002-of-00004.safetensors` is missing"),
        "{message}"
    );
    assert!(place.listing().is_empty(), "refused before anything was written");
}

#[test]
fn truncated_shard() {
    let place = Place::new(&mtp());
    let path = place.checkpoint().join("model-00003-of-00004.safetensors");
    let bytes = fs::metadata(&path).unwrap().len();
    fs::File::options().write(true).open(&path).unwrap().set_len(bytes - 1).unwrap();
    let (_, message) = refused(&place);
    assert!(
        message.contains("is cut off") && message.contains(&format!("{bytes} bytes, the file has {}", bytes - 1)),
        "{message}"
    );
    fs::File::options().write(true).open(&path).unwrap().set_len(5).unwrap();
    assert!(refused(&place).1.contains("is cut off"));
}

#[test]
fn damaged_header() {
    let place = single();
    let path = place.checkpoint().join("model-00001-of-00001.safetensors");
    let mut bytes = fs::read(&path).unwrap();
    bytes[8] = b'[';
    fs::write(&path, &bytes).unwrap();
    assert!(matches!(refused(&place).0, Error::BadShard { .. }));
    bytes[..8].copy_from_slice(&u64::MAX.to_le_bytes());
    fs::write(&path, &bytes).unwrap();
    assert!(matches!(refused(&place).0, Error::BadShard { .. }));
}

#[test]
fn index_and_shards_disagree() {
    let place = Place::new(&mtp());
    place.edit("model.safetensors.index.json", |index| {
        index["weight_map"]["embed.weight"] = json!("model-00004-of-00004.safetensors");
    });
    let (_, message) = refused(&place);
    assert!(message.contains("`embed.weight`") && message.contains("does not place there"), "{message}");
    place.edit("model.safetensors.index.json", |index| {
        index["weight_map"]["embed.weight"] = json!("../embed.safetensors")
    });
    assert!(matches!(refused(&place).0, Error::ShardPath { .. }));
}

#[test]
fn wrong_dtype() {
    let place = single();
    rewrite(&place, |tensors| {
        let tensor = &mut find(tensors, "layers.1.attn_norm.weight").1;
        tensor.0 = Dtype::F16;
    });
    assert_eq!(refused(&place).1, "tensor `layers.1.attn_norm.weight` has dtype F16, expected BF16");
}

#[test]
fn wrong_shape() {
    let place = single();
    rewrite(&place, |tensors| find(tensors, "layers.0.attn.wkv.weight").1.1.reverse());
    assert_eq!(refused(&place).1, "tensor `layers.0.attn.wkv.weight` has shape [160, 96], expected [96, 160]");
}

#[test]
fn unknown_tensor() {
    let place = single();
    rewrite(&place, |tensors| tensors.push(("layers.0.attn.extra".into(), Tensor(Dtype::F32, vec![1], vec![0; 4]))));
    assert_eq!(refused(&place).1, "unknown tensor `layers.0.attn.extra`");
}

#[test]
fn missing_tensor() {
    let place = single();
    rewrite(&place, |tensors| {
        tensors.retain(|(name, _)| !name.contains("layers.2.ffn.experts.3.w2") && name != "norm.weight")
    });
    let (_, message) = refused(&place);
    assert_eq!(message, "tensor `norm.weight` is missing (and 1 more)");
}

#[test]
fn missing_scale() {
    let place = single();
    rewrite(&place, |tensors| tensors.retain(|(name, _)| name != "layers.1.ffn.shared_experts.w3.scale"));
    let (_, message) = refused(&place);
    assert!(message.contains("`layers.1.ffn.shared_experts.w3.weight` has no scale"), "{message}");
}

#[test]
fn scale_byte_255() {
    for tensor in ["layers.0.attn.wo_b.scale", "layers.2.ffn.experts.1.w3.scale"] {
        let place = Place::new(&mtp());
        set_byte(&place.checkpoint(), tensor, 1, 255);
        let (error, message) = refused(&place);
        assert!(matches!(error, Error::NanScale { .. }) && message.contains(tensor), "{message}");
    }
}

#[test]
fn scale_beyond_every_float() {
    let place = Place::new(&mtp());
    set_byte(&place.checkpoint(), "layers.0.attn.wo_b.scale", 0, 247);
    assert_eq!(
        refused(&place).1,
        "tensor `layers.0.attn.wo_b.scale`: scale byte 247 puts values beyond the range of F32"
    );
}

#[test]
fn nan_codes() {
    for byte in [0x7F, 0xFF] {
        let place = Place::new(&mtp());
        set_byte(&place.checkpoint(), "mtp.0.h_proj.weight", 160 * 2 + 5, byte);
        assert_eq!(
            refused(&place).1,
            format!("tensor `mtp.0.h_proj.weight`: NaN code 0x{byte:02X} at row 2, column 5")
        );
    }
}

#[test]
fn expert_id_that_is_no_expert() {
    let place = Place::new(&mtp());
    set_byte(&place.checkpoint(), "layers.0.ffn.gate.tid2eid", 8 * 5, 4);
    assert_eq!(refused(&place).1, "tensor `layers.0.ffn.gate.tid2eid`: entry 5 is 4, but the model has 4 experts");
}

#[test]
fn config_without_a_needed_field() {
    for field in
        ["hidden_size", "compress_ratios", "rope_scaling", "hc_eps", "num_experts_per_tok", "model_type", "vocab_size"]
    {
        let place = Place::new(&mtp());
        place.edit("config.json", |config| drop(config.as_object_mut().unwrap().shift_remove(field)));
        let (error, message) = refused(&place);
        assert!(
            matches!(error, Error::Config { .. }) && message.contains(field) && message.contains("is missing"),
            "{message}"
        );
    }
}

#[test]
fn missing_json_files() {
    for file in ["config.json", "tokenizer.json"] {
        let place = Place::new(&mtp());
        fs::remove_file(place.checkpoint().join(file)).unwrap();
        assert!(refused(&place).1.contains(&format!("has no `{file}`")));
    }
    let empty = tempfile::tempdir().unwrap();
    assert!(matches!(convert(&Options::new(empty.path(), "x.gguf"), &mut Silent), Err(Error::MissingFile { .. })));
}

#[test]
fn other_layouts_are_named() {
    let place = single();
    rewrite(&place, |tensors| tensors.iter_mut().for_each(|(name, _)| *name = format!("model.{name}")));
    assert!(refused(&place).0.hint().unwrap().contains("transformers' module names"));
    let place = single();
    rewrite(&place, |tensors| {
        tensors.iter_mut().for_each(|(name, _)| *name = name.replace("wq_a.scale", "wq_a.weight_scale_inv"));
    });
    assert!(refused(&place).0.hint().unwrap().contains("re-export"));
    let place = single();
    rewrite(&place, |tensors| tensors.push(("vision.blocks.0.w1".into(), Tensor(Dtype::BF16, vec![1], vec![0; 2]))));
    assert!(refused(&place).0.hint().unwrap().contains("vision release"));
}

#[test]
fn v41_and_others_are_refused() {
    let place = Place::new(&mtp());
    place.edit("config.json", |config| config["model_type"] = json!("deepseek_v41"));
    assert!(matches!(refused(&place).0, Error::V41 { .. }));
    place.edit("config.json", |config| config["model_type"] = json!("qwen3"));
    assert!(refused(&place).1.contains("`qwen3` is not supported: fathom converts `deepseek_v4`"));
}

#[test]
fn not_enough_disk_is_seen_before_writing() {
    // Two embeddings of 2 TiB; the shards are sparse files.
    let place = Place { dir: tempfile::tempdir().unwrap() };
    fs::create_dir(place.checkpoint()).unwrap();
    let spec = Spec { vocab_size: 1 << 18, hidden_size: 1 << 22, ..small() };
    spec.write_headers(&place.checkpoint()).unwrap();
    // A short tokenizer.json: the rest of the vocabulary is padding.
    let tokenizer = serde_json::to_string(&small().tokenizer()).unwrap();
    fs::write(place.checkpoint().join("tokenizer.json"), tokenizer).unwrap();
    grow(&place);
    let (error, message) = refused(&place);
    assert!(matches!(error, Error::Disk { .. }), "{message}");
    assert!(place.listing().is_empty(), "{:?}", place.listing());
}

/// One layer without experts to speak of.
fn small() -> Spec {
    Spec {
        draft: Draft::None,
        n_routed_experts: 1,
        num_experts_per_tok: 1,
        compress_ratios: vec![0],
        num_hash_layers: 0,
        ..Spec::tiny()
    }
}

/// Gives header-only shards their full size, without using disk. Zeros are legal numbers, and scale bytes of zero mean F32.
fn grow(place: &Place) {
    for entry in fs::read_dir(place.checkpoint()).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|extension| extension != "safetensors") {
            continue;
        }
        let text = fs::read(&path).unwrap();
        let header: safetensors::tensor::Metadata = serde_json::from_slice(&text[8..]).unwrap();
        let end = header.offset_keys().last().map(|name| header.info(name).unwrap().data_offsets.1).unwrap();
        fs::File::options().write(true).open(&path).unwrap().set_len((text.len() + end) as u64).unwrap();
    }
}

#[test]
fn existing_output_needs_force() {
    let place = Place::new(&mtp());
    for name in ["model.gguf", "model.draft.gguf"] {
        fs::write(place.dir.path().join(name), b"mine").unwrap();
        assert!(matches!(place.convert(), Err(Error::Exists { .. })), "{name}");
        assert_eq!(fs::read(place.dir.path().join(name)).unwrap(), b"mine");
        convert(&Options { force: true, ..place.options() }, &mut Silent).unwrap();
        place.listing().iter().for_each(|name| fs::remove_file(place.dir.path().join(name)).unwrap());
    }
}

#[test]
fn an_output_that_is_a_directory_is_refused_before_anything_is_converted() {
    let place = Place::new(&mtp());
    fs::create_dir(place.output()).unwrap();
    let error = convert(&Options { force: true, ..place.options() }, &mut Silent).unwrap_err();
    assert!(error.to_string().contains("cannot write to"), "{error}");
    assert_eq!(place.listing(), ["model.gguf"]);
}

#[test]
fn a_memory_budget_that_is_too_small_is_refused() {
    let place = Place::new(&mtp());
    let error = convert(&Options { memory_bytes: 1 << 20, ..place.options() }, &mut Silent).unwrap_err();
    assert!(matches!(error, Error::Memory { .. }), "{error}");
}
