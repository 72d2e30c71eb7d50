//! The named lossy choices: what they change, what they report, and that export refuses them.

use fathom_converters::synthetic::Spec;
use fathom_converters::{
    Dense, Error, Experts, ExportOptions, Family, Options, Silent, VerifyOptions, convert, export, verify,
};
use fathom_gguf::{DType, File};

use crate::support::{Place, mtp};

/// Rows of 256 values, so that every block type fits.
fn place() -> Place {
    Place::new(&Spec { hidden_size: 256, moe_intermediate_size: 256, ..mtp() })
}

#[test]
fn q8_0_changes_what_was_asked_and_reports_its_error() {
    let place = place();
    let options = Options { dense: Some(Dense::Q8_0), experts: Some(Experts::Q8_0), ..place.options() };
    let report = convert(&options, &mut Silent).unwrap();
    let file = File::open(place.output()).unwrap();
    for (name, dtype) in [
        ("blk.0.attn_output_b.weight", DType::BF16), // rows of 80: stays lossless, with a warning
        ("blk.0.attn_q_a.weight", DType::Q8_0),
        ("blk.0.ffn_up_shexp.weight", DType::Q8_0),
        ("blk.2.ffn_down_exps.weight", DType::Q8_0),
        ("token_embd.weight", DType::BF16),
        ("blk.1.attn_compressor_kv.weight", DType::BF16),
    ] {
        assert_eq!(file.tensor(name).unwrap().dtype, dtype, "{name}");
    }
    let families: Vec<Family> = report.errors.keys().copied().collect();
    assert_eq!(families, [Family::Attention, Family::RoutedExperts, Family::SharedExperts, Family::Draft]);
    for (family, sums) in &report.errors {
        let relative = sums.relative_rms();
        assert!(relative > 0.0 && relative < 0.01, "{family:?}: {relative}");
        assert!(sums.max_error < sums.max_value / 100.0, "{family:?}");
    }
}

#[test]
fn export_names_lossy_tensors_and_verify_counts_them() {
    let place = place();
    convert(&Options { dense: Some(Dense::F16), ..place.options() }, &mut Silent).unwrap();
    let error = export(&ExportOptions::new(place.output(), place.dir.path().join("back")), &mut Silent).unwrap_err();
    let message = error.to_string();
    assert!(matches!(error, Error::Lossy { .. }) && message.contains("`blk.0.attn_q_a.weight` (f16)"), "{message}");
    let options = VerifyOptions { model: place.output().into(), against: Some(place.checkpoint()), threads: 1 };
    let report = verify(&options, &mut Silent).unwrap();
    assert!(report.lossy > 0 && report.verified > 0, "{report:?}");
    assert_eq!(report.compared, Some(report.lossy + report.verified));
}

#[test]
fn fp8_experts_as_mxfp4_are_lossy_and_fp4_experts_are_not() {
    let fp8 = Place::new(&Spec { fp8_experts: true, ..mtp() });
    let report = convert(&Options { experts: Some(Experts::Mxfp4), ..fp8.options() }, &mut Silent).unwrap();
    assert_eq!(report.errors.keys().copied().collect::<Vec<_>>(), [Family::RoutedExperts]);
    let fp4 = Place::new(&mtp());
    let report = convert(&Options { experts: Some(Experts::Mxfp4), ..fp4.options() }, &mut Silent).unwrap();
    assert!(report.errors.is_empty());
}

#[test]
fn types_of_ggml_need_its_quantiser_and_whole_blocks() {
    let place = place();
    let error = convert(&Options { experts: Some(Experts::Q4K), ..place.options() }, &mut Silent).unwrap_err();
    assert!(error.to_string().contains("feature `llama`"), "{error}");
    assert!(place.listing().is_empty());
}

#[test]
fn a_resumed_lossy_conversion_reports_the_same_error() {
    let place = place();
    let options = Options { experts: Some(Experts::Q8_0), sync_bytes: 100_000, ..place.options() };
    let whole = convert(&Options { force: true, ..options.clone() }, &mut Silent).unwrap();
    place.listing().iter().for_each(|name| std::fs::remove_file(place.dir.path().join(name)).unwrap());
    let mut stop = crate::resume::StopAfter::bytes(2_500_000);
    assert!(matches!(convert(&options, &mut stop), Err(Error::Cancelled)));
    let resumed = convert(&options, &mut Silent).unwrap();
    assert!(resumed.resumed_bytes > 0);
    assert_eq!(resumed.errors, whole.errors);
}
