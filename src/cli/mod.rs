//! What users type: one file per verb, each with its `Args` and `run`.
//!
//! Verbs that speak about models talk to a server through [`crate::client`]; only `serve`, `convert`, `export`, `verify`,
//! `render`, `logits`, `bench`, `eval`, `calibrate` and the `show` of a file work in this process (`weights` says what a name means there).
//! Data goes to stdout; progress, warnings and errors go to stderr.
//! Exit codes: 0 = done, 1 = failed (`error: ...` says why), 2 = the command line makes no sense.

use std::process::ExitCode;

use clap::Parser;

use crate::config::{Config, LogFormat};
use crate::telemetry::{self, Loudness};

mod answer;
mod bench;
mod calibrate;
mod connect;
mod convert;
mod cp;
mod create;
mod eval;
mod export;
mod human;
mod inside;
mod launch;
mod list;
mod logits;
mod message;
pub mod progress;
mod ps;
mod render;
mod repl;
mod rm;
mod run;
mod serve;
mod session;
pub mod settings;
mod show;
mod stop;
pub mod table;
mod unfinished;
mod verify;
mod version;
mod weights;
mod width;

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
    /// Start the server
    #[command(visible_alias = "start")]
    Serve(serve::Args),
    /// Ask a model something, once or in a conversation
    Run(run::Args),
    /// Make a model from a Modelfile
    Create(create::Args),
    /// List the models in the store
    #[command(visible_alias = "ls")]
    List(list::Args),
    /// Show what a model is
    Show(show::Args),
    /// List the models in memory
    Ps(ps::Args),
    /// Take a model out of memory
    Stop(stop::Args),
    /// Give a model a second name
    Cp(cp::Args),
    /// Remove models from the store
    Rm(rm::Args),
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
    /// Measure perplexity, divergence from a reference, and what is found in long prompts
    Eval(eval::Args),
    /// Find out which experts can be left out, and write routing profiles
    Calibrate(calibrate::Args),
    /// Write the logits of a token sequence to a file
    Logits(logits::Args),
}

impl Command {
    /// How much this command logs by itself.
    fn loudness(&self) -> Loudness {
        match self {
            Command::Serve(_) => Loudness::Server,
            _ => Loudness::Quiet,
        }
    }

    fn run(self, config: &Config) -> anyhow::Result<()> {
        match self {
            Command::Serve(args) => serve::run(args, config),
            Command::Run(args) => run::run(args, config),
            Command::Create(args) => create::run(args, config),
            Command::List(args) => list::run(args, config),
            Command::Show(args) => show::run(args, config),
            Command::Ps(args) => ps::run(args, config),
            Command::Stop(args) => stop::run(args, config),
            Command::Cp(args) => cp::run(args, config),
            Command::Rm(args) => rm::run(args, config),
            Command::Convert(args) => convert::run(args, config),
            Command::Export(args) => export::run(args, config),
            Command::Verify(args) => verify::run(args, config),
            Command::Render(args) => render::run(args, config),
            Command::Bench(args) => bench::run(args, config),
            Command::Eval(args) => eval::run(args, config),
            Command::Calibrate(args) => calibrate::run(args, config),
            Command::Logits(args) => logits::run(args, config),
        }
    }
}

/// The user pressed Ctrl-C: nothing to say about it, and the exit code is the shell's for that signal.
#[derive(Debug, thiserror::Error)]
#[error("interrupted")]
pub struct Interrupted;

/// 128 + SIGINT
const EXIT_INTERRUPTED: u8 = 130;

/// The whole program.
pub fn main() -> ExitCode {
    message::install_panic_hook();
    match run(Cli::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if message::is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) if error.is::<Interrupted>() => ExitCode::from(EXIT_INTERRUPTED),
        Err(error) => fail(&error),
    }
}

/// Says why the program failed, and with which code it ends.
pub fn fail(error: &anyhow::Error) -> ExitCode {
    message::print_error(error);
    ExitCode::FAILURE
}

fn run(cli: Cli) -> anyhow::Result<()> {
    let Some(command) = cli.command else {
        return version::print(cli.verbose);
    };
    let (config, warnings) = Config::from_env()?;
    telemetry::init(
        command.loudness(),
        config.log.verbosity,
        config.log.filter.as_deref(),
        config.log.format == LogFormat::Json,
    )?;
    for warning in warnings {
        tracing::warn!("{warning}");
    }
    command.run(&config)
}
