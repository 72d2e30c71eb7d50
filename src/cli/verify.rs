//! `fathom verify`: proves that a converted file holds what was released.

use std::path::PathBuf;

use fathom_converters::VerifyOptions;

use super::convert::{Bar, explained};
use super::weights;
use crate::config::Config;

#[derive(clap::Args)]
pub struct Args {
    /// The converted model: its `.gguf` file, or its name in the store
    model: PathBuf,
    /// Checkpoint to compare with, tensor by tensor
    #[arg(long, value_name = "DIR")]
    against: Option<PathBuf>,
    /// Threads [default: two for each core]
    #[arg(long, default_value_t = 0, hide_default_value = true)]
    threads: usize,
}

pub fn run(args: Args, config: &Config) -> anyhow::Result<()> {
    let options =
        VerifyOptions { model: weights::location(&args.model, config)?, against: args.against, threads: args.threads };
    let mut bar = Bar::default();
    let report = fathom_converters::verify(&options, &mut bar).map_err(explained)?;
    bar.clear();
    if let Some(draft) = &report.missing_draft {
        eprintln!("warning: the draft file `{draft}` is not with the model and was not checked");
    }
    println!("{} released tensors come back byte for byte", report.verified);
    if report.lossy > 0 {
        println!("{} released tensors were stored with a lossy choice and cannot be checked", report.lossy);
    }
    if let Some(compared) = report.compared {
        println!("{compared} tensors of the checkpoint have the recorded checksums");
    }
    Ok(())
}
