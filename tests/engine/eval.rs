//! `fathom::eval` on a model that computes: against golden logits, against itself, against a coarser file.

use std::process::Command;

use fathom::chat::family::{Facts, for_model};
use fathom::engine::{Kind, KvType, Routing};
use fathom::eval::text::{Shape, Windows};
use fathom::eval::{self, Job, Model, Report, Silent, Split, Text};
use fathom::tokens::Specials;
use fathom_converters::{Dense, Options, convert};

use super::golden::golden;
use super::{exact, fixture, scratch, tiny_a};

fn model(path: &std::path::Path, exact: bool) -> Model {
    Model {
        name: path.display().to_string(),
        weights: vec![path.to_owned()],
        kind: Kind::Llama,
        exact,
        kv_type: KvType::F16,
        routing: Routing::Off,
        profiles: None,
    }
}

/// A text of the built-in one's first tokens, on one thread.
fn measure(model: Model, reference: Option<Model>, split: Split) -> Report {
    let family = for_model(&Facts { architecture: "deepseek4", ..Facts::default() }).unwrap();
    let job = Job {
        model,
        reference,
        text: Some(Text {
            source: "built-in",
            text: eval::BUILT_IN_TEXT,
            specials: Specials::AsText,
            shape: Shape { length: 256, context: 128 },
            max_tokens: Some(700),
        }),
        needles: None,
        family: &family,
        split,
        settings: fathom::engine::Settings { n_ctx: 0, ..exact() },
        scratch: scratch(""),
    };
    eval::run(&job, &mut Silent).unwrap()
}

#[test]
fn in_exact_arithmetic_the_noise_is_below_a_millionth() {
    let report = measure(model(tiny_a(), true), None, Split { first: 256, second: 37 });
    let noise = report.text.unwrap().noise;
    println!("{noise:?}");
    assert!(noise.mean_kl < 1e-6 && noise.same_top > 0.99, "{noise:?}");
}

#[test]
fn a_coarser_file_differs_by_more_than_the_noise_and_less_than_another_model() {
    let coarse = scratch("tiny-v4-a-q8_0.gguf");
    let options = Options { force: true, dense: Some(Dense::Q8_0), ..Options::new(fixture("tiny-v4-a"), &coarse) };
    convert(&options, &mut fathom_converters::Silent).unwrap();
    let report = measure(model(&coarse, true), Some(model(tiny_a(), true)), Split { first: 256, second: 64 });
    let text = report.text.unwrap();
    let difference = text.against.unwrap().divergence;
    println!("{difference:?}");
    assert!(difference.mean_kl > 10.0 * text.noise.mean_kl, "{difference:?} and noise {:?}", text.noise);
    assert!(difference.mean_kl < 0.5 && difference.same_top > 0.5, "{difference:?}");
    assert!(difference.mean_kl_error.unwrap() < difference.mean_kl, "{difference:?}");
}

/// The loss of the golden prompt from the golden logits, which are not ours, and from the command.
#[test]
fn perplexity_is_that_of_the_golden_logits() {
    let golden = golden("tiny-v4-a", 300);
    assert_eq!(golden.rows, (0..300).collect::<Vec<_>>(), "a row per token");
    let (from, to) = (150, 300);
    let losses = (from..to).map(|at| {
        let row: Vec<f64> = golden.logits[at - 1].iter().map(|&x| f64::from(x)).collect();
        let max = row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        max + row.iter().map(|x| (x - max).exp()).sum::<f64>().ln() - row[golden.tokens[at].0 as usize]
    });
    let expected = losses.sum::<f64>() / (to - from) as f64;

    let file = fathom_gguf::File::open(tiny_a()).unwrap();
    let mut engine = fathom::engine::load_f32(&file, &scratch(""), Kind::Llama, &exact(), &mut |_| true).unwrap();
    let windows = Windows::cut(&golden.tokens, None, Shape { length: 300, context: from }).unwrap();
    for step in [300, 41] {
        let perplexity = eval::text::perplexity(&mut *engine, &windows, step).unwrap();
        println!("loss {} in steps of {step}, {expected} by the golden logits", perplexity.loss);
        // Logits are within 1e-3 of the golden ones, and so is each loss.
        assert!((perplexity.loss - expected).abs() < 1e-4, "{} and {expected}", perplexity.loss);
    }
}

#[test]
fn the_command_compares_default_arithmetic_with_exact() {
    let output = Command::new(env!("CARGO_BIN_EXE_fathom"))
        .args([
            "eval",
            "--engine",
            "llama",
            "--threads",
            "1",
            "--against-f32",
            "--tokens",
            "600",
            "--json",
            "--scratch",
        ])
        .arg(scratch(""))
        .args(["--needle-lengths", "300", "--needle-depths", "0,50", "--window", "256"])
        .arg(tiny_a())
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let against = &report["text"]["against"];
    assert_eq!((&against["exact"], &against["engine"]), (&true.into(), &"llama".into()));
    let kl = against["divergence"]["mean_kl"].as_f64().unwrap();
    // `default_arithmetic_stays_close_to_the_golden_distribution` has the bound for single prompts.
    assert!(kl > 0.0 && kl < 0.2, "{kl}");
    assert_eq!(report["needles"]["all"]["of"], 2, "{report}");
    assert_eq!(report["needles"]["inexact_lengths"], 0);
    let left: Vec<_> = std::fs::read_dir(scratch("")).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert!(!left.iter().any(|name| name.to_string_lossy().starts_with(".tmp")), "left behind: {left:?}");
}

/// Both engines in exact arithmetic say the same about the same text, up to the order of additions.
#[test]
#[cfg(feature = "native")]
fn two_engines_differ_by_no_more_than_rounding() {
    let native = Model { kind: Kind::Native, ..model(tiny_a(), true) };
    let report = measure(native, Some(model(tiny_a(), true)), Split { first: 256, second: 37 });
    let text = report.text.unwrap();
    let against = text.against.unwrap();
    println!("{:?}, noise of native {:?}", against.divergence, text.noise);
    assert_eq!((report.engine.as_str(), against.engine.as_str()), ("native", "llama"));
    assert!(against.divergence.mean_kl < 1e-6 && against.divergence.same_top > 0.99, "{:?}", against.divergence);
    assert!((text.perplexity.loss - against.perplexity.loss).abs() < 1e-4);
}

/// What fewer experts cost: nothing when all are kept, something when one is.
#[test]
#[cfg(feature = "native")]
fn a_routing_policy_is_measured_against_off() {
    let with = |routing| Model { kind: Kind::Native, routing, ..model(tiny_a(), true) };
    let divergence = |k| {
        let report = measure(with(Routing::TopK(k)), Some(with(Routing::Off)), Split { first: 256, second: 256 });
        let against = report.text.unwrap().against.unwrap();
        assert_eq!((report.routing, against.routing), (format!("topk:{k}"), "off".to_owned()));
        against.divergence
    };
    assert_eq!(divergence(3).max_kl, 0.0);
    let one = divergence(1);
    assert!(one.mean_kl > 1e-3 && one.same_top < 1.0, "{one:?}");
}
