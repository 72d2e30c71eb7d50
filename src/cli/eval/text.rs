//! A report for people.

use std::io::{self, Write};

use crate::cli::table::Table;
use crate::engine::machine;
use crate::eval::divergence::Divergence;
use crate::eval::perplexity::Perplexity;
use crate::eval::report::{Needles, Report, Score, Text, Wrong};

/// Wrong answers that are shown.
const EXAMPLES: usize = 3;

pub(super) fn write(report: &Report, out: &mut dyn Write) -> io::Result<()> {
    let bytes = report.file_bytes.map_or(String::new(), |bytes| format!(", {}", machine::human(bytes)));
    let exact = if report.exact { ", all F32" } else { "" };
    writeln!(out, "{} ({}{bytes}) on {}{exact}", report.model, report.architecture, report.engine)?;
    writeln!(
        out,
        "computed in steps of {} tokens, and again in steps of {} for the noise floor",
        report.step_tokens, report.step_tokens_second_split
    )?;
    if let Some(text) = &report.text {
        writeln!(out)?;
        write_text(text, report, out)?;
    }
    if let Some(needles) = &report.needles {
        writeln!(out)?;
        write_needles(needles, out)?;
    }
    Ok(())
}

fn write_text(text: &Text, report: &Report, out: &mut dyn Write) -> io::Result<()> {
    let plural = if text.windows == 1 { "" } else { "s" };
    writeln!(
        out,
        "text {} (sha256 {}): {} tokens in {} window{plural}, {} scored\n",
        text.source,
        &text.sha256[..12],
        text.tokens,
        text.windows,
        text.scored_tokens
    )?;
    let mut table = Table::with_header(&["PERPLEXITY", "VALUE", "STANDARD ERROR", "NATS PER TOKEN"]);
    let mut row = |name: String, perplexity: &Perplexity| {
        table.row([
            name,
            format!("{:.4}", perplexity.value),
            error(perplexity.standard_error, |error| format!("{error:.4}")),
            format!("{:.5}", perplexity.loss),
        ]);
    };
    row("this model".to_owned(), &text.perplexity);
    row(format!("in steps of {}", report.step_tokens_second_split), &text.perplexity_second_split);
    if let Some(against) = &text.against {
        row(reference(report, text).unwrap_or_default(), &against.perplexity);
    }
    table.write(0, out)?;
    writeln!(out)?;

    let mut table =
        Table::with_header(&["DIVERGENCE FROM", "MEAN KL", "STANDARD ERROR", "P99", "MAX", "SAME TOP TOKEN"]);
    let mut row = |name: String, divergence: &Divergence| {
        table.row([
            name,
            scientific(divergence.mean_kl),
            error(divergence.mean_kl_error, |error| format!("{error:.1e}")),
            scientific(divergence.p99_kl),
            scientific(divergence.max_kl),
            format!(
                "{:.2} %{}",
                divergence.same_top * 100.0,
                divergence.same_top_error.map_or(String::new(), |error| format!(" +- {:.2}", error * 100.0))
            ),
        ]);
    };
    row(format!("itself in steps of {} (noise)", report.step_tokens_second_split), &text.noise);
    if let (Some(name), Some(against)) = (reference(report, text), &text.against) {
        row(name, &against.divergence);
    }
    table.write(0, out)
}

/// What is different about the reference.
fn reference(report: &Report, text: &Text) -> Option<String> {
    let against = text.against.as_ref()?;
    let mut name = against.model.clone();
    if against.engine != report.engine || against.model == report.model {
        name.push_str(&format!(" on {}", against.engine));
    }
    if against.exact {
        name.push_str(", all F32");
    }
    Some(name)
}

fn scientific(value: f64) -> String {
    if value == 0.0 { "0".to_owned() } else { format!("{value:.3e}") }
}

fn error(error: Option<f64>, shown: impl Fn(f64) -> String) -> String {
    error.map_or("one window".to_owned(), shown)
}

fn write_needles(needles: &Needles, out: &mut dyn Write) -> io::Result<()> {
    writeln!(
        out,
        "needles found: {} (in the other steps {}, {} answers differ); ended by themselves: {}",
        whole(needles.all),
        whole(needles.all_second_split),
        needles.answers_that_differ,
        whole(needles.stopped)
    )?;
    if needles.inexact_lengths > 0 {
        writeln!(out, "{} prompts could not be made as long as asked", needles.inexact_lengths)?;
    }
    writeln!(out)?;
    let mut table = Table::default();
    let depths = needles.depths.iter().map(|depth| format!("{depth} %"));
    table.row(std::iter::once("TOKENS, DEPTH".to_owned()).chain(depths));
    for (length, scores) in needles.lengths.iter().zip(&needles.cells) {
        let cells = scores.iter().map(|score| percent(*score));
        let length =
            if needles.modulo_128.is_some() { format!("{length}-{}", length + 127) } else { length.to_string() };
        table.row(std::iter::once(length).chain(cells));
    }
    table.write(0, out)?;
    if let Some(scores) = &needles.modulo_4 {
        let all: Vec<String> = scores.iter().map(|score| percent(*score)).collect();
        writeln!(out, "\nlength modulo 4 (0 to 3): {}", all.join(", "))?;
    }
    if let Some(scores) = &needles.modulo_128 {
        let missed: Vec<String> = (0..)
            .zip(scores)
            .filter(|(_, score)| score.right < score.of)
            .map(|(remainder, score)| format!("{remainder} ({})", percent(*score)))
            .collect();
        match missed.is_empty() {
            true => writeln!(out, "length modulo 128: every remainder 100 %")?,
            false => writeln!(out, "length modulo 128, remainders below 100 %: {}", missed.join(", "))?,
        }
    }
    for Wrong { tokens, depth, expected, answer } in needles.wrong.iter().take(EXAMPLES) {
        writeln!(out, "wrong: {tokens} tokens, depth {depth} %: expected {expected}, got {answer:?}")?;
    }
    Ok(())
}

fn percent(score: Score) -> String {
    score.share().map_or("-".to_owned(), |share| format!("{:.0} %", share * 100.0))
}

fn whole(score: Score) -> String {
    format!("{} of {}", score.right, score.of)
}
