//! `fathom convert`: a released checkpoint to GGUF.

use std::io::Write;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use clap::builder::{PossibleValuesParser, TypedValueParser};
use fathom_converters::{
    Completeness, Dense, Error, ErrorSums, Experts, Family, Options, Phase, Progress, Release, Report, Summary,
};
use indicatif::ProgressBar;

use super::table::Table;
use super::{hint, human, progress};
use crate::config::{Config, parse_bytes};

#[derive(clap::Args)]
pub struct Args {
    /// Directory of the checkpoint as published (config.json, tokenizer.json, *.safetensors)
    checkpoint: PathBuf,
    /// File to write, NAME.gguf; draft blocks go beside it, to NAME.draft.gguf
    #[arg(short, long, value_name = "OUT.gguf")]
    output: PathBuf,
    /// FP8 matrices outside the experts: bf16 is lossless [default: bf16]
    #[arg(long, value_name = "TYPE", value_parser = dense())]
    dense: Option<Dense>,
    /// Routed experts: without this option lossless (FP4 as mxfp4, FP8 as bf16); q4_k and q2_k use ggml's quantiser
    #[arg(long, value_name = "TYPE", value_parser = experts())]
    experts: Option<Experts>,
    /// Which release the checkpoint is, when it is not detected rightly; decides the form of prompts
    #[arg(long, value_parser = release())]
    release: Option<Release>,
    /// Name to record in the file [default: the directory's name]
    #[arg(long)]
    name: Option<String>,
    /// Cut the output into files of at most this much tensor data; a larger tensor gets one of its own
    #[arg(long, value_name = "SIZE", value_parser = parse_split)]
    split_max_size: Option<u64>,
    /// Memory to stay within
    #[arg(long, value_name = "SIZE", default_value = "1GiB", value_parser = parse_bytes)]
    memory: u64,
    /// Threads [default: two for each core]
    #[arg(long, default_value_t = 0, hide_default_value = true)]
    threads: usize,
    /// Bring finished data to the disk after this much; a kill costs no more than that
    #[arg(long, value_name = "SIZE", default_value = "256MiB", value_parser = parse_bytes)]
    sync_every: u64,
    /// Print the plan and write nothing; shards may still be incomplete
    #[arg(long)]
    dry_run: bool,
    /// Print the plan as JSON
    #[arg(long, requires = "dry_run")]
    json: bool,
    /// Overwrite existing output, and give up an unfinished conversion with other settings
    #[arg(long)]
    force: bool,
}

/// A size below this makes thousands of files of a real model; it is a slip.
const LEAST_SPLIT_BYTES: u64 = 1 << 20;

fn parse_split(text: &str) -> Result<u64, String> {
    match parse_bytes(text).map_err(|error| error.to_string())? {
        bytes if bytes < LEAST_SPLIT_BYTES => Err("the least is 1MiB".to_owned()),
        bytes => Ok(bytes),
    }
}

fn dense() -> impl TypedValueParser<Value = Dense> {
    choice(Dense::NAMES)
}

fn experts() -> impl TypedValueParser<Value = Experts> {
    choice(Experts::NAMES)
}

fn release() -> impl TypedValueParser<Value = Release> {
    choice(Release::ALL.map(|release| (release.key(), release)))
}

/// One of a table of names.
fn choice<T: Copy + Send + Sync + 'static, const N: usize>(
    table: [(&'static str, T); N],
) -> impl TypedValueParser<Value = T> {
    PossibleValuesParser::new(table.map(|(name, _)| name)).map(move |text| {
        let (_, value) = table.iter().find(|(name, _)| *name == text).expect("clap let through a name of the table");
        *value
    })
}

pub fn run(args: Args, _config: &Config) -> anyhow::Result<()> {
    let options = Options {
        name: args.name,
        dense: args.dense,
        experts: args.experts,
        release: args.release,
        split_max_bytes: args.split_max_size,
        memory_bytes: args.memory,
        threads: args.threads,
        force: args.force,
        sync_bytes: args.sync_every,
        quantizer: quantizer(),
        ..Options::new(args.checkpoint, args.output)
    };
    if args.dry_run {
        let prepared = fathom_converters::prepare(&options, Completeness::Headers).map_err(explained)?;
        let plan = Summary::new(&prepared);
        let mut out = std::io::stdout().lock();
        if args.json {
            serde_json::to_writer_pretty(&mut out, &plan)?;
            writeln!(out)?;
        } else {
            for warning in &plan.warnings {
                eprintln!("warning: {warning}");
            }
            print_plan(&plan, &mut out)?;
        }
        return Ok(());
    }
    let begun = Instant::now();
    let mut bar = Bar::default();
    let report = fathom_converters::convert(&options, &mut bar).map_err(explained)?;
    bar.clear();
    print_report(&report, begun, &mut std::io::stdout().lock())
}

/// An error of the converters with what to do about it.
pub(super) fn explained(error: Error) -> anyhow::Error {
    match error.hint() {
        Some(text) => hint(error, text),
        None => error.into(),
    }
}

fn print_plan(plan: &Summary, out: &mut dyn Write) -> anyhow::Result<()> {
    for file in &plan.files {
        let mut table = Table::with_header(&["TENSOR", "TYPE", "SHAPE", "SIZE", "FROM"]);
        for tensor in &file.tensors {
            let shape: Vec<String> = tensor.ne.iter().map(u64::to_string).collect();
            let more = match tensor.released - 1 {
                0 => String::new(),
                n => format!(" + {n}"),
            };
            let loss = if tensor.lossless { "" } else { " (lossy)" };
            table.row([
                tensor.name.clone(),
                format!("{}{loss}", tensor.dtype),
                shape.join(" x "),
                human::bytes(tensor.bytes),
                format!("{}{more}", tensor.first_released),
            ]);
        }
        table.write(0, out)?;
        writeln!(out)?;
        let mut sizes = Table::default();
        for (family, bytes) in &file.by_family {
            sizes.row([(*family).to_owned(), human::bytes(*bytes)]);
        }
        for (dtype, bytes) in &file.by_type {
            sizes.row([format!("as {dtype}"), human::bytes(*bytes)]);
        }
        sizes.write(2, out)?;
        let (first, parts) = (&file.paths[0], file.paths.len());
        let parts = if parts > 1 { format!(", {parts} files") } else { String::new() };
        writeln!(
            out,
            "{} {first}{parts}: {} tensors of {}, {}\n",
            file.role,
            file.tensors.len(),
            file.architecture,
            exact(file.bytes)
        )?;
    }
    let released = exact(plan.released_bytes);
    writeln!(out, "release {}: {} tensors, {released} -> {}", plan.release, plan.released_tensors, exact(plan.bytes))?;
    Ok(())
}

/// Gigabytes with two decimals: what plans are compared by.
fn exact(bytes: u64) -> String {
    if bytes < 1_000_000_000 { human::bytes(bytes) } else { format!("{:.2} GB", bytes as f64 / 1e9) }
}

fn print_report(report: &Report, begun: Instant, out: &mut dyn Write) -> anyhow::Result<()> {
    if !report.errors.is_empty() {
        error_table(report.errors.iter()).write(0, out)?;
    }
    for path in &report.files {
        writeln!(out, "{}", path.display())?;
    }
    let elapsed = begun.elapsed();
    let written = report.bytes - report.resumed_bytes;
    let resumed = match report.resumed_bytes {
        0 => String::new(),
        bytes => format!(" ({} were there already)", exact(bytes)),
    };
    let rate = human::bytes((written as f64 / elapsed.as_secs_f64()) as u64);
    eprintln!("wrote {} in {}, {rate}/s{resumed}", exact(written), human::elapsed(elapsed));
    Ok(())
}

/// What the lossy choices cost, by family.
fn error_table<'a>(errors: impl Iterator<Item = (&'a Family, &'a ErrorSums)>) -> Table {
    let mut table = Table::with_header(&["FAMILY", "RMS ERROR", "OF RMS", "MAX ERROR", "OF MAX"]);
    for (family, sums) in errors {
        table.row([
            family.label().to_owned(),
            format!("{:.3e}", sums.rms()),
            format!("{:.3} %", sums.relative_rms() * 100.0),
            format!("{:.3e}", sums.max_error),
            format!("{:.3} %", if sums.max_value == 0.0 { 0.0 } else { sums.max_error / sums.max_value * 100.0 }),
        ]);
    }
    table
}

/// A bar for each phase; warnings above it.
#[derive(Default)]
pub(super) struct Bar(Option<ProgressBar>);

impl Bar {
    /// Takes the bar away, for what is printed next.
    pub(super) fn clear(&mut self) {
        if let Some(bar) = self.0.take() {
            bar.finish_and_clear();
        }
    }
}

impl Progress for Bar {
    fn begin(&mut self, phase: Phase, bytes: u64) {
        self.clear();
        let message = match phase {
            Phase::Resuming => "checking what is there",
            Phase::Converting => "converting",
            Phase::Exporting => "exporting",
            Phase::Verifying => "verifying",
        };
        self.0 = Some(progress::bytes(bytes, message));
    }

    fn advance(&mut self, bytes: u64) {
        if let Some(bar) = &self.0 {
            bar.inc(bytes);
        }
    }

    fn resumed(&mut self, bytes: u64) {
        if let Some(bar) = &self.0 {
            bar.set_position(bytes);
            bar.reset_eta();
        }
    }

    fn warn(&mut self, message: &str) {
        match &self.0 {
            Some(bar) => bar.suspend(|| eprintln!("warning: {message}")),
            None => eprintln!("warning: {message}"),
        }
    }
}

/// ggml's quantisers, for the types that fathom has no codec for.
#[cfg(feature = "llama")]
fn quantizer() -> Option<Arc<dyn fathom_converters::Quantizer + Send + Sync>> {
    Some(Arc::new(crate::engine::llama::Quantizer))
}

/// Without ggml those types are refused.
#[cfg(not(feature = "llama"))]
fn quantizer() -> Option<Arc<dyn fathom_converters::Quantizer + Send + Sync>> {
    None
}
