//! The plans of the real models, from their shapes alone, against published totals (deepseek-v4.md sections 0 and 5).

use fathom_converters::Family;
use fathom_converters::recipe::{self, Catalog, FilePlan, Plan, Released};
use fathom_converters::synthetic::{Draft, Spec};

/// The plan of these shapes, and the payload of the checkpoint.
fn plan(spec: &Spec) -> (Plan, usize, u64) {
    let (mut catalog, mut payload) = (Catalog::default(), 0);
    for (name, dtype, shape) in spec.tensors() {
        payload += shape.iter().product::<u64>() * dtype.bitsize() as u64 / 8;
        catalog.insert(name, Released { dtype, shape: Some(shape) });
    }
    let config = spec.config();
    let recipe = recipe::for_config(&config).unwrap();
    let plan = (recipe.plan)(&config, &catalog, None, &mut |tensor| Ok(tensor.dtype)).unwrap();
    (plan, catalog.names().len(), payload)
}

/// Decimal gigabytes of the tensors that are chosen.
fn gb(file: &FilePlan, chosen: impl Fn(&recipe::Planned) -> bool) -> f64 {
    file.tensors.iter().filter(|tensor| chosen(tensor)).map(|tensor| tensor.bytes()).sum::<u64>() as f64 / 1e9
}

#[track_caller]
fn close(found: f64, documented: f64) {
    assert!((found - documented).abs() < 0.006, "{found} GB, documented {documented}");
}

#[test]
fn the_plans_of_flash_and_pro_have_the_published_totals() {
    for (spec, release, tensors, payload, documented) in [
        (Spec::flash(43), "v4_april", 69_187, 159_609_485_896, (161.86, 165.62, 147.17)),
        (Spec::pro(61), "v4_april", 145_116, 864_704_792_696, (873.44, 887.86, 822.05)),
        (Spec { draft: Draft::Dspark, ..Spec::flash(43) }, "v4_0731", 72_317, 166_878_536_440, (161.86, 0.0, 147.17)),
        (Spec { draft: Draft::Dspark, ..Spec::pro(61) }, "v4_0813", 149_782, 892_727_580_904, (873.44, 0.0, 822.05)),
    ] {
        let (plan, count, bytes) = plan(&spec);
        assert_eq!((plan.release.key(), count, bytes), (release, tensors, payload));
        let (trunk_gb, with_mtp_gb, experts_gb) = documented;
        // The document counts routers as BF16; we store them as F32, twice the bytes (recipe/deepseek_v4/tensors.rs says why).
        let router = |file: &FilePlan| gb(file, |tensor| tensor.name.ends_with("ffn_gate_inp.weight")) / 2.0;
        let trunk = gb(&plan.trunk, |_| true) - router(&plan.trunk);
        close(trunk, trunk_gb);
        close(gb(&plan.trunk, |tensor| tensor.family == Family::RoutedExperts), experts_gb);
        if spec.draft == Draft::Mtp {
            // And it counts the block alone; the file also needs embedding, output and output norm to be loadable.
            let draft = plan.draft.as_ref().unwrap();
            let copies = gb(draft, |tensor| matches!(tensor.name.as_str(), "token_embd.weight" | "output.weight"));
            close(trunk + gb(draft, |_| true) - copies - router(draft), with_mtp_gb);
        }
    }
}

#[test]
fn a_base_checkpoint_doubles_and_says_so() {
    let (plan, ..) = plan(&Spec { fp8_experts: true, ..Spec::flash(43) });
    assert_eq!(plan.release.key(), "v4_base");
    let experts = gb(&plan.trunk, |tensor| tensor.family == Family::RoutedExperts);
    assert!((experts - 554.05).abs() < 0.006, "{experts} GB of experts");
    assert!(plan.warnings.iter().any(|warning| warning.contains("twice the bytes")), "{:?}", plan.warnings);
}
