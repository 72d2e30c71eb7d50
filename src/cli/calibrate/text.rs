//! A report for people.

use std::io::{self, Write};

use crate::calibrate::report::{Baseline, Report};
use crate::cli::table::Table;
use crate::eval::divergence::Divergence;

pub(super) fn write(report: &Report, out: &mut dyn Write) -> io::Result<()> {
    let text = &report.text;
    writeln!(
        out,
        "{} ({}) on {}, {} rows: {} of {} experts in {} layers that choose by score",
        report.model,
        report.architecture,
        report.engine,
        report.kv,
        report.experts_used,
        report.experts,
        report.layers.len()
    )?;
    writeln!(
        out,
        "text {} (sha256 {}): {} tokens in windows of {}; every third is held out",
        text.source,
        &text.sha256[..12],
        text.tokens,
        text.window_tokens
    )?;
    writeln!(
        out,
        "calibrated on {} windows ({} tokens), measured on {} others ({} tokens, {} scored)\n",
        text.calibration.windows,
        text.calibration.tokens,
        text.heldout.windows,
        text.heldout.tokens,
        text.heldout.scored
    )?;
    layers(report, out)?;
    writeln!(out)?;
    policies(report, out)?;
    writeln!(out)?;
    profiles(report, out)
}

/// What each layer loses, and what each profile gives it.
fn layers(report: &Report, out: &mut dyn Write) -> io::Result<()> {
    let names = report.profiles.iter().map(|tried| tried.name.to_uppercase());
    let mut table = Table::default();
    let header = ["LAYER", "KL ALONE", "ERROR ALONE", "WEIGHT"].map(str::to_owned);
    table.row(header.into_iter().chain(names));
    for (index, alone) in report.sensitivity.iter().enumerate() {
        let numbers = [
            alone.layer.to_string(),
            format!("{:.2e}", alone.kl),
            format!("{:.4}", alone.error),
            format!("{:.2e}", alone.weight),
        ];
        let means = report.profiles.iter().map(|tried| format!("{:.2}", tried.layers[index].mean_experts));
        table.row(numbers.into_iter().chain(means));
    }
    table.write(0, out)
}

fn policies(report: &Report, out: &mut dyn Write) -> io::Result<()> {
    let mut table = Table::with_header(&[
        "POLICY",
        "EXPERTS",
        "MEAN KL",
        "STANDARD ERROR",
        "P99",
        "SAME TOP TOKEN",
        "PERPLEXITY",
        "STANDARD ERROR",
        "RATIO",
    ]);
    let error = |error: Option<f64>, shown: &dyn Fn(f64) -> String| error.map_or("-".to_owned(), shown);
    let mut row =
        |name: &str, experts: f64, divergence: Option<&Divergence>, perplexity: (f64, Option<f64>), ratio: f64| {
            let kl = divergence.map_or("-".to_owned(), |found| format!("{:.3e}", found.mean_kl));
            let kl_error = divergence.and_then(|found| found.mean_kl_error);
            let p99 = divergence.map_or("-".to_owned(), |found| format!("{:.2e}", found.p99_kl));
            let top = divergence.map_or("-".to_owned(), |found| {
                let error = found.same_top_error.map_or(String::new(), |error| format!(" +- {:.2}", error * 100.0));
                format!("{:.2} %{error}", found.same_top * 100.0)
            });
            table.row([
                name.to_owned(),
                format!("{experts:.2}"),
                kl,
                error(kl_error, &|error| format!("{error:.1e}")),
                p99,
                top,
                format!("{:.4}", perplexity.0),
                error(perplexity.1, &|error| format!("{error:.4}")),
                format!("{ratio:.4}"),
            ]);
        };
    let all = report.experts_used as f64;
    row("off (KL: noise)", all, report.noise.as_ref(), (report.off.value, report.off.standard_error), 1.0);
    for tried in &report.profiles {
        let perplexity = (tried.perplexity.value, tried.perplexity.standard_error);
        row(&tried.name, tried.mean_experts, Some(&tried.divergence), perplexity, tried.perplexity_ratio);
    }
    for other in report.others.iter().rev() {
        let perplexity = (other.perplexity.value, other.perplexity.standard_error);
        row(&other.routing, other.mean_experts, Some(&other.divergence), perplexity, other.perplexity_ratio);
    }
    table.write(0, out)
}

fn profiles(report: &Report, out: &mut dyn Write) -> io::Result<()> {
    let fewest = format!("AT {}", report.experts_fewest);
    let all = format!("AT {}", report.experts_used);
    let mut table = Table::with_header(&[
        "PROFILE",
        "AIM",
        "EXPERTS",
        &fewest,
        &all,
        "KL LESS FIXED NUMBER'S",
        "KL LESS REL'S",
        "RANK CORRELATION WITH LOSS",
        "",
    ]);
    for tried in &report.profiles {
        table.row([
            tried.name.clone(),
            format!("{:.2}", tried.target),
            format!("{:.2}", tried.mean_experts),
            format!("{:.1} %", tried.share_fewest * 100.0),
            format!("{:.1} %", tried.share_all * 100.0),
            difference(&tried.against_topk),
            difference(&tried.against_rel),
            tried.spearman_loss.map_or("-".to_owned(), |rho| format!("{rho:.2}")),
            if tried.accepted { String::new() } else { "rejected".to_owned() },
        ]);
    }
    table.write(0, out)
}

fn difference(baseline: &Baseline) -> String {
    let error = baseline.difference_error.map_or(String::new(), |error| format!(" +- {error:.1e}"));
    format!("{:+.2e}{error} ({})", baseline.difference, baseline.routing)
}
