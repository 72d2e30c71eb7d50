//! Logging: what reaches stderr, and in which shape.

use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::LevelFilter;

/// How much a command logs when the user does not say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Loudness {
    /// Commands that answer a person: warnings and errors only.
    Quiet,
    /// The server: a handful of lines per model load, one per request.
    Server,
}

/// Starts logging to stderr. `verbosity`: 0 = as `loudness` says, 1 = debug, 2 = trace; `filter` replaces both.
///
/// # Errors
/// The text of a bad `filter`, or that logging was started before.
pub fn init(loudness: Loudness, verbosity: u8, filter: Option<&str>, json: bool) -> Result<(), Error> {
    let level = match (verbosity, loudness) {
        (0, Loudness::Quiet) => LevelFilter::WARN,
        (0, Loudness::Server) => LevelFilter::INFO,
        (1, _) => LevelFilter::DEBUG,
        (_, _) => LevelFilter::TRACE,
    };
    let filter = match filter {
        Some(text) => EnvFilter::builder()
            .parse(text)
            .map_err(|e| Error::Filter { filter: text.to_string(), reason: e.to_string() })?,
        // Dependencies are heard at their warnings only: their debug lines are not about anything a user can change.
        None => EnvFilter::builder()
            .parse_lossy(format!("warn,fathom={level},fathom_gguf={level},fathom_converters={level}")),
    };
    let subscriber = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr()))
        .with_target(verbosity > 0);
    let started = if json { subscriber.json().try_init() } else { subscriber.try_init() };
    started.map_err(|_| Error::Started)
}

/// Why logging did not start.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("`{filter}` is not a log filter: {reason}")]
    Filter { filter: String, reason: String },
    #[error("logging was started before")]
    Started,
}
