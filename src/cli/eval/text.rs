//! A report for people.

use std::io::{self, Write};

use crate::cli::table::Table;
use crate::engine::machine;
use crate::eval::divergence::Divergence;
use crate::eval::perplexity::Perplexity;
use crate::eval::report::{Against, Needles, Report, Score, Text, Wrong};

/// Wrong answers that are shown.
const EXAMPLES: usize = 3;

pub(super) fn write(report: &Report, out: &mut dyn Write) -> io::Result<()> {
    let bytes = report.file_bytes.map_or(String::new(), |bytes| format!(", {}", machine::human(bytes)));
    let arithmetic = if report.exact { "all F32".to_owned() } else { format!("{} rows", report.kv) };
    let routing = routing(&report.routing);
    writeln!(out, "{} ({}{bytes}) on {}, {arithmetic}{routing}", report.model, report.architecture, report.engine)?;
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
        write_needles(needles, report, out)?;
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
        row(Reference::of(against).name(report), &against.perplexity);
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
    if let Some(against) = &text.against {
        row(Reference::of(against).name(report), &against.divergence);
    }
    table.write(0, out)
}

/// What a reference is.
struct Reference<'a> {
    model: &'a str,
    engine: &'a str,
    exact: bool,
    kv: &'a str,
    routing: &'a str,
}

impl<'a> Reference<'a> {
    fn of(against: &'a Against) -> Reference<'a> {
        let Against { model, engine, exact, kv, routing, .. } = against;
        Reference { model, engine, exact: *exact, kv, routing }
    }

    /// Its name, with what is different about it.
    fn name(&self, report: &Report) -> String {
        let mut name = self.model.to_owned();
        if self.engine != report.engine || self.model == report.model {
            name.push_str(&format!(" on {}", self.engine));
        }
        if self.exact {
            name.push_str(", all F32");
        } else if self.kv != report.kv {
            name.push_str(&format!(", {} rows", self.kv));
        }
        if self.routing != report.routing {
            name.push_str(&format!(", routing {}", self.routing));
        }
        name
    }
}

/// What is said about a routing policy: nothing where every expert is computed.
fn routing(policy: &str) -> String {
    if policy == "off" { String::new() } else { format!(", routing {policy}") }
}

fn scientific(value: f64) -> String {
    if value == 0.0 { "0".to_owned() } else { format!("{value:.3e}") }
}

fn error(error: Option<f64>, shown: impl Fn(f64) -> String) -> String {
    error.map_or("one window".to_owned(), shown)
}

fn write_needles(needles: &Needles, report: &Report, out: &mut dyn Write) -> io::Result<()> {
    writeln!(
        out,
        "needles found: {} (in the other steps {}, {} answers differ); ended by themselves: {}",
        whole(needles.all),
        whole(needles.all_second_split),
        needles.answers_that_differ,
        whole(needles.stopped)
    )?;
    if let Some(found) = &needles.against {
        let reference = Reference {
            model: &found.model,
            engine: &found.engine,
            exact: found.exact,
            kv: found.kv,
            routing: &found.routing,
        };
        writeln!(
            out,
            "{} found {} (in the other steps {}); {} were found here only and {} there only",
            reference.name(report),
            whole(found.needles.all),
            whole(found.needles.all_second_split),
            found.only_model,
            found.only_reference
        )?;
    }
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
        let all = |scores: &[Score]| scores.iter().map(|score| percent(*score)).collect::<Vec<_>>().join(", ");
        writeln!(out, "\nlength modulo 4 (0 to 3): {}", all(scores))?;
        if let Some(scores) = needles.against.as_ref().and_then(|found| found.needles.modulo_4.as_ref()) {
            writeln!(out, "the same of the reference: {}", all(scores))?;
        }
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
        if let Some(theirs) = needles.against.as_ref().and_then(|found| found.needles.modulo_128.as_ref()) {
            let better = |(ours, theirs): &(&Score, &Score)| ours.right < theirs.right;
            let worse: Vec<String> = (0..)
                .zip(scores.iter().zip(theirs))
                .filter(|(_, pair)| better(pair))
                .map(|(n, _): (usize, _)| n.to_string())
                .collect();
            match worse.is_empty() {
                true => writeln!(out, "the reference is better at no remainder")?,
                false => writeln!(out, "the reference is better at {}", worse.join(", "))?,
            }
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
