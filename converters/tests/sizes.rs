//! The plans of the real models, from their shapes alone, against published totals (deepseek-v4.md sections 0 and 5).

use std::fs;

use fathom_converters::synthetic::{Draft, Spec};
use fathom_converters::{Completeness, Options, Summary, prepare};

fn plan(spec: &Spec) -> Summary {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("c")).unwrap();
    spec.write_headers(&dir.path().join("c")).unwrap();
    let options = Options::new(dir.path().join("c"), dir.path().join("model.gguf"));
    Summary::new(&prepare(&options, Completeness::Headers).unwrap())
}

fn tensor_bytes(summary: &Summary, file: usize) -> u64 {
    summary.files[file].tensors.iter().map(|tensor| tensor.bytes).sum()
}

/// Tensors and payload as published; then ours.
#[test]
fn the_plans_of_flash_and_pro_have_the_published_totals() {
    for (spec, release, tensors, payload, documented_gb) in [
        (Spec::flash(43), "v4_april", 69_187, 159_609_485_896, 161.86),
        (Spec::pro(61), "v4_april", 145_116, 864_704_792_696, 873.44),
        (Spec { draft: Draft::Dspark, ..Spec::flash(43) }, "v4_0731", 72_317, 166_878_536_440, 161.86),
        (Spec { draft: Draft::Dspark, ..Spec::pro(61) }, "v4_0813", 149_782, 892_727_580_904, 873.44),
    ] {
        let summary = plan(&spec);
        assert_eq!((summary.release, summary.released_tensors, summary.released_bytes), (release, tensors, payload));
        // The document counts the router as BF16; we store it as F32, twice the bytes (tensors.rs says why).
        let router: u64 = summary.files[0]
            .tensors
            .iter()
            .filter(|tensor| tensor.name.ends_with("ffn_gate_inp.weight"))
            .map(|tensor| tensor.bytes)
            .sum();
        let as_documented = (tensor_bytes(&summary, 0) - router / 2) as f64 / 1e9;
        assert!((as_documented - documented_gb).abs() < 0.006, "{as_documented} GB, documented {documented_gb}");
        let experts = summary.files[0].by_family["routed experts"] as f64 / 1e9;
        let documented = if spec.n_routed_experts == 256 { 147.17 } else { 822.05 };
        assert!((experts - documented).abs() < 0.005, "{experts} GB of experts, documented {documented}");
    }
}

#[test]
fn a_base_checkpoint_doubles_and_says_so() {
    let summary = plan(&Spec { fp8_experts: true, ..Spec::flash(43) });
    assert_eq!(summary.release, "v4_base");
    let experts = summary.files[0].by_family["routed experts"] as f64 / 1e9;
    assert!((experts - 554.05).abs() < 0.005, "{experts} GB of experts");
    assert!(summary.warnings.iter().any(|warning| warning.contains("twice the bytes")), "{:?}", summary.warnings);
}
