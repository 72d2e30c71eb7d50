//! convert -> export gives every released byte back; verify proves it and sees damage.

use std::fs;
use std::path::Path;

use fathom_converters::synthetic::{Draft, Spec};
use fathom_converters::{Error, ExportOptions, Options, Silent, VerifyOptions, convert, export, verify};
use fathom_gguf::{DType, File};

use crate::support::{JSON_FILES, Place, fixture, mtp, sum, tensors};

fn round_trip(checkpoint: &Path, options: &Options, back: &Path, shard_bytes: u64) {
    convert(options, &mut Silent).unwrap();
    let verified = verify(&verification(&options.output, Some(checkpoint)), &mut Silent).unwrap();
    assert_eq!((verified.lossy, verified.missing_draft), (0, None));
    assert_eq!(verified.compared, Some(verified.verified));

    let report =
        export(&ExportOptions { shard_bytes, ..ExportOptions::new(&options.output, back) }, &mut Silent).unwrap();
    let (released, exported) = (tensors(checkpoint), tensors(back));
    assert_eq!(released.len(), report.tensors);
    for (name, tensor) in &released {
        assert_eq!(exported.get(name), Some(tensor), "{name}");
    }
    assert_eq!(exported.len(), released.len());
    for file in JSON_FILES {
        assert_eq!(fs::read(checkpoint.join(file)).unwrap(), fs::read(back.join(file)).unwrap(), "{file}");
    }
}

fn verification(model: &Path, against: Option<&Path>) -> VerifyOptions {
    VerifyOptions { model: model.into(), against: against.map(Into::into), threads: 2 }
}

#[test]
fn the_fixtures_come_back() {
    for name in ["tiny-v4-a", "tiny-v4-b"] {
        let dir = tempfile::tempdir().unwrap();
        let options = Options::new(fixture(name), dir.path().join("model.gguf"));
        round_trip(&fixture(name), &options, &dir.path().join("back"), 1 << 20);
    }
}

#[test]
fn every_tensor_kind_with_three_dspark_stages_and_partial_blocks_comes_back() {
    let place = Place::new(&Spec::tiny());
    round_trip(&place.checkpoint(), &place.options(), &place.dir.path().join("back"), 200_000);
}

#[test]
fn fp8_experts_come_back_through_stacked_bf16() {
    let place = Place::new(&Spec { fp8_experts: true, ..mtp() });
    round_trip(&place.checkpoint(), &place.options(), &place.dir.path().join("back"), u64::MAX);
    let file = File::open(place.output()).unwrap();
    let experts = file.tensor("blk.1.ffn_up_exps.weight").unwrap();
    assert_eq!((experts.dtype, experts.ne.as_slice()), (DType::BF16, &[160, 96, 4][..]));
    assert_eq!(file.metadata().str("fathom.source.release").unwrap(), "v4_base");
}

#[test]
fn a_split_output_in_small_chunks_comes_back() {
    let place = Place::new(&mtp());
    let options = Options { split_max_bytes: Some(150_000), threads: 3, ..place.options() };
    let first = place.dir.path().join("model-00001-of-00006.gguf");
    convert(&options, &mut Silent).unwrap();
    let parts: Vec<String> = place.listing().into_iter().filter(|name| name.starts_with("model-")).collect();
    assert!(parts.len() > 2, "{parts:?}");
    let first = if first.exists() { first } else { place.dir.path().join(&parts[0]) };
    let back = place.dir.path().join("back");
    export(&ExportOptions::new(&first, &back), &mut Silent).unwrap();
    assert_eq!(tensors(&place.checkpoint()), tensors(&back));
}

#[test]
fn scales_outside_the_range_of_bf16_are_stored_as_f32_and_come_back() {
    let place = Place::new(&mtp());
    set_byte(&place.checkpoint(), "layers.0.attn.wq_a.scale", 0, 2);
    set_byte(&place.checkpoint(), "layers.1.attn.wq_a.scale", 0, 246);
    round_trip(&place.checkpoint(), &place.options(), &place.dir.path().join("back"), u64::MAX);
    let file = File::open(place.output()).unwrap();
    assert_eq!(file.tensor("blk.0.attn_q_a.weight").unwrap().dtype, DType::F32);
    assert_eq!(file.tensor("blk.1.attn_q_a.weight").unwrap().dtype, DType::BF16);
}

#[test]
fn the_result_does_not_depend_on_threads_memory_or_batches() {
    let place = Place::new(&Spec::tiny());
    let mut sums = Vec::new();
    for (threads, sync_bytes) in [(1, u64::MAX), (4, 20_000), (2, 500_000)] {
        let options = Options { threads, sync_bytes, force: true, memory_bytes: 64 << 20, ..place.options() };
        convert(&options, &mut Silent).unwrap();
        sums.push((sum(&place.output()), sum(&place.dir.path().join("model.draft.gguf"))));
    }
    assert!(sums.iter().all(|sums_of_one| *sums_of_one == sums[0]), "{sums:?}");
    assert_eq!(place.listing(), ["model.draft.gguf", "model.gguf"], "nothing is left over");
}

#[test]
fn a_mtp_draft_is_in_upstreams_layout() {
    let place = Place::new(&mtp());
    place.convert().unwrap();
    let draft = File::open(place.dir.path().join("model.draft.gguf")).unwrap();
    let keys = draft.metadata();
    assert_eq!(keys.str("general.architecture").unwrap(), "deepseek4");
    assert_eq!(keys.u32("deepseek4.block_count").unwrap(), 4);
    assert_eq!(keys.u32("deepseek4.nextn_predict_layers").unwrap(), 1);
    assert_eq!(keys.integers("deepseek4.attention.compress_ratios").unwrap(), [0, 4, 128, 0]);
    assert_eq!(draft.tensor("blk.3.nextn.eh_proj.weight").unwrap().ne, [320, 160]);
    // Required by llama.cpp's loader, with the block's own hyper-connection in the root slots.
    for name in
        ["token_embd.weight", "output.weight", "output_norm.weight", "output_hc_fn.weight", "blk.3.nextn.enorm.weight"]
    {
        assert!(draft.opt_tensor(name).is_some(), "{name}");
    }
    let trunk = File::open(place.output()).unwrap();
    assert!(trunk.tensors().iter().all(|tensor| !tensor.name.starts_with("blk.3.") && !tensor.name.contains("nextn")));
    let hc = |file: &File| file.data(file.tensor("output_hc_fn.weight").unwrap()).to_vec();
    assert_ne!(hc(&trunk), hc(&draft));
    assert_eq!(trunk.metadata().str("fathom.draft.file").unwrap(), "model.draft.gguf");
    assert_eq!(trunk.metadata().str("fathom.draft.sha256").unwrap(), sum(&place.dir.path().join("model.draft.gguf")));
}

#[test]
fn a_dspark_draft_keeps_the_released_names() {
    let place = Place::new(&Spec::tiny());
    place.convert().unwrap();
    let draft = File::open(place.dir.path().join("model.draft.gguf")).unwrap();
    assert_eq!(draft.metadata().str("general.architecture").unwrap(), "fathom-dspark");
    assert_eq!(draft.metadata().u32("fathom-dspark.block_count").unwrap(), 3);
    for name in [
        "mtp.0.main_proj.weight",
        "mtp.0.main_norm.weight",
        "mtp.1.attn.wq_a.weight",
        "mtp.1.attn.attn_sink",
        "mtp.1.hc_attn_fn",
        "mtp.2.ffn.experts.w1.weight",
        "mtp.2.markov_head.markov_w1.weight",
        "mtp.2.hc_head_scale",
    ] {
        assert!(draft.opt_tensor(name).is_some(), "{name}");
    }
    let trunk = File::open(place.output()).unwrap();
    assert_eq!(trunk.metadata().str("fathom.source.release").unwrap(), "v4_0731");
}

#[test]
fn no_draft_blocks_no_draft_file() {
    let place = Place::new(&Spec { draft: Draft::None, ..Spec::tiny() });
    place.convert().unwrap();
    assert_eq!(place.listing(), ["model.gguf"]);
    assert!(!File::open(place.output()).unwrap().metadata().contains("fathom.draft.file"));
}

#[test]
fn only_the_files_that_the_index_names_are_read() {
    let place = Place::new(&mtp());
    fs::write(place.checkpoint().join("consolidated.safetensors"), b"not a shard").unwrap();
    fs::write(place.checkpoint().join("model-99999-of-99999.safetensors"), b"").unwrap();
    place.convert().unwrap();
}

#[test]
fn one_file_without_an_index_is_enough() {
    let place = Place::new(&Spec { shards: 1, ..mtp() });
    let dir = place.checkpoint();
    fs::rename(dir.join("model-00001-of-00001.safetensors"), dir.join("model.safetensors")).unwrap();
    let index = dir.join("model.safetensors.index.json");
    let released = fs::read(&index).unwrap();
    fs::remove_file(&index).unwrap();
    place.convert().unwrap();
    let back = place.dir.path().join("back");
    export(&ExportOptions::new(place.output(), &back), &mut Silent).unwrap();
    fs::rename(dir.join("model.safetensors"), dir.join("model-00001-of-00001.safetensors")).unwrap();
    fs::write(&index, released).unwrap();
    assert_eq!(tensors(&dir), tensors(&back));
}

#[test]
fn damage_is_found_by_name() {
    let place = Place::new(&mtp());
    place.convert().unwrap();
    let file = File::open(place.output()).unwrap();
    let range = file.data_range(file.tensor("blk.1.ffn_gate_inp.weight").unwrap());
    let mut bytes = fs::read(place.output()).unwrap();
    bytes[range.start as usize + 7] ^= 1; // the top byte of an F32: still a BF16 number
    fs::write(place.output(), bytes).unwrap();
    let error = verify(&verification(&place.output(), None), &mut Silent).unwrap_err();
    assert!(matches!(&error, Error::Checksum { tensor, .. } if tensor == "layers.1.ffn.gate.weight"), "{error}");
    let back = place.dir.path().join("back");
    assert!(matches!(export(&ExportOptions::new(place.output(), &back), &mut Silent), Err(Error::Checksum { .. })));
    assert!(!back.join("model.safetensors.index.json").exists(), "nothing that looks finished");
}

#[test]
fn verify_against_another_checkpoint_fails() {
    let place = Place::new(&mtp());
    place.convert().unwrap();
    let other = Place::new(&Spec { seed: 2, ..mtp() });
    let error = verify(&verification(&place.output(), Some(&other.checkpoint())), &mut Silent).unwrap_err();
    assert!(matches!(error, Error::Checksum { .. }), "{error}");
}

#[test]
fn export_needs_the_draft_and_does_not_overwrite() {
    let place = Place::new(&mtp());
    place.convert().unwrap();
    let (draft, back) = (place.dir.path().join("model.draft.gguf"), place.dir.path().join("back"));
    let away = place.dir.path().join("elsewhere");
    fs::rename(&draft, &away).unwrap();
    let error = export(&ExportOptions::new(place.output(), &back), &mut Silent).unwrap_err();
    assert!(matches!(&error, Error::MissingDraft { path, .. } if *path == draft), "{error}");
    let verified = verify(&verification(&place.output(), None), &mut Silent).unwrap();
    assert_eq!(verified.missing_draft.as_deref(), Some("model.draft.gguf"));
    fs::rename(&away, &draft).unwrap();
    export(&ExportOptions::new(place.output(), &back), &mut Silent).unwrap();
    let again = ExportOptions::new(place.output(), &back);
    assert!(matches!(export(&again, &mut Silent), Err(Error::Exists { .. })));
    export(&ExportOptions { force: true, ..again }, &mut Silent).unwrap();
}

#[test]
fn export_refuses_the_draft_of_another_model() {
    let (place, other) = (Place::new(&mtp()), Place::new(&Spec { seed: 2, ..mtp() }));
    place.convert().unwrap();
    other.convert().unwrap();
    let draft = place.dir.path().join("model.draft.gguf");
    fs::copy(other.dir.path().join("model.draft.gguf"), &draft).unwrap();
    let back = place.dir.path().join("back");
    let error = export(&ExportOptions::new(place.output(), &back), &mut Silent).unwrap_err();
    assert!(matches!(&error, Error::Checksum { tensor, .. } if tensor.ends_with("model.draft.gguf")), "{error}");
    assert!(!back.exists(), "nothing was written");
}

#[test]
fn export_spares_a_directory_with_shards_but_no_index() {
    let place = Place::new(&mtp());
    place.convert().unwrap();
    let back = place.dir.path().join("back");
    fs::create_dir(&back).unwrap();
    fs::write(back.join("model-00001-of-00001.safetensors"), b"mine").unwrap();
    let options = ExportOptions::new(place.output(), &back);
    assert!(matches!(export(&options, &mut Silent), Err(Error::Exists { .. })));
    assert_eq!(fs::read(back.join("model-00001-of-00001.safetensors")).unwrap(), b"mine");
}

#[test]
fn a_gguf_of_somebody_else_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("other.gguf");
    let none: [(fathom_gguf::TensorInfo, Vec<u8>); 0] = [];
    fathom_gguf::write_file(&path, fathom_gguf::Metadata::new(), &none).unwrap();
    let error = export(&ExportOptions::new(&path, dir.path().join("back")), &mut Silent).unwrap_err();
    assert!(error.to_string().contains("fathom did not convert it"), "{error}");
}

/// Changes one byte of a released tensor.
pub fn set_byte(dir: &Path, tensor: &str, at: usize, byte: u8) {
    let index: serde_json::Value =
        serde_json::from_str(&fs::read_to_string(dir.join("model.safetensors.index.json")).unwrap()).unwrap();
    let path = dir.join(index["weight_map"][tensor].as_str().unwrap());
    let mut bytes = fs::read(&path).unwrap();
    let start = {
        let view = safetensors::SafeTensors::deserialize(&bytes).unwrap().tensor(tensor).unwrap();
        view.data().as_ptr() as usize - bytes.as_ptr() as usize
    };
    bytes[start + at] = byte;
    fs::write(path, bytes).unwrap();
}
