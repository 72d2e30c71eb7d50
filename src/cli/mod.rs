//! What users type: one file per verb, each with its `Args` and `run`.
//!
//! Verbs that speak about models talk to a server through [`crate::client`]; only `serve`, `convert`, `export`, `verify`,
//! `render`, `logits` and `bench` work in this process. Data goes to stdout; progress, warnings and errors go to stderr.
//! Exit codes: 0 = done, 1 = failed (`error: ...` says why), 2 = the command line makes no sense.

use std::process::ExitCode;

use clap::Parser;

use crate::config::Config;
use crate::telemetry::{self, Loudness};

mod bench;
mod convert;
mod export;
mod logits;
mod message;
mod render;
mod verify;

pub use message::hint;

/// DeepSeek-V4 as a first-class local model: lossless conversion, Ollama-compatible serving
#[derive(Parser)]
#[command(name = "fathom", disable_version_flag = true, arg_required_else_help = true, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    /// Print the version; with `--verbose` also CPU features, engines and the version of ggml
    #[arg(short = 'v', long)]
    version: bool,
    /// More details for `--version`
    #[arg(long, requires = "version")]
    verbose: bool,
}

#[derive(clap::Subcommand)]
enum Command {
    /// Convert a released checkpoint to GGUF
    Convert(convert::Args),
    /// Rebuild the released checkpoint from a converted file
    Export(export::Args),
    /// Check a converted file, alone or against its checkpoint
    Verify(verify::Args),
    /// Print the prompt and token ids of a chat request
    Render(render::Args),
    /// Measure speed and memory
    Bench(bench::Args),
    /// Write the logits of a token sequence to a file
    Logits(logits::Args),
}

impl Command {
    /// How much this command logs by itself.
    fn loudness(&self) -> Loudness {
        Loudness::Quiet
    }

    fn run(self, config: &Config) -> anyhow::Result<()> {
        match self {
            Command::Convert(args) => convert::run(args, config),
            Command::Export(args) => export::run(args, config),
            Command::Verify(args) => verify::run(args, config),
            Command::Render(args) => render::run(args, config),
            Command::Bench(args) => bench::run(args, config),
            Command::Logits(args) => logits::run(args, config),
        }
    }
}

/// The whole program.
pub fn main() -> ExitCode {
    message::install_panic_hook();
    let cli = Cli::parse();
    match run(cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if message::is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            message::print_error(&error);
            ExitCode::FAILURE
        }
    }
}

fn run(cli: Cli) -> anyhow::Result<()> {
    let Some(command) = cli.command else {
        println!("fathom {}", env!("CARGO_PKG_VERSION"));
        return Ok(());
    };
    let (config, warnings) = Config::from_env()?;
    telemetry::init(
        command.loudness(),
        config.log.verbosity,
        config.log.filter.as_deref(),
        config.log.format == crate::config::LogFormat::Json,
    )?;
    for warning in warnings {
        tracing::warn!("{warning}");
    }
    command.run(&config)
}
