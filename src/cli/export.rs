//! `fathom export`: a converted file back to the released checkpoint.

use std::path::PathBuf;

use fathom_converters::ExportOptions;

use super::convert::{Bar, explained};
use super::{human, weights};
use crate::config::{Config, parse_bytes};

#[derive(clap::Args)]
pub struct Args {
    /// The converted model: its `.gguf` file with its draft beside it, or its name in the store
    model: PathBuf,
    /// Directory to write
    #[arg(short, long, value_name = "DIR")]
    output: PathBuf,
    /// Size of the safetensors files, about
    #[arg(long, value_name = "SIZE", default_value = "5GB", value_parser = parse_bytes)]
    shard_size: u64,
    /// Threads [default: two for each core]
    #[arg(long, default_value_t = 0, hide_default_value = true)]
    threads: usize,
    /// Write into a directory that already holds a checkpoint
    #[arg(long)]
    force: bool,
}

pub fn run(args: Args, config: &Config) -> anyhow::Result<()> {
    let options = ExportOptions {
        force: args.force,
        shard_bytes: args.shard_size,
        threads: args.threads,
        ..ExportOptions::new(weights::location(&args.model, config)?, args.output)
    };
    let mut bar = Bar::default();
    let report = fathom_converters::export(&options, &mut bar).map_err(explained)?;
    bar.clear();
    println!("{}", options.directory.display());
    eprintln!(
        "wrote {} tensors, {}, in {} files; every checksum matches",
        report.tensors,
        human::bytes(report.bytes),
        report.shards
    );
    Ok(())
}
