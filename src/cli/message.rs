//! How messages to people look: `error: ...` with its chain of causes, then `hint: ...` lines, on stderr.

use std::fmt;
use std::io::{self, IsTerminal, Write};

/// Something the user can do about an error, printed on its own line. Attach it with [`hint`].
#[derive(Debug)]
struct Hinted {
    hint: String,
    error: anyhow::Error,
}

impl fmt::Display for Hinted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.error.fmt(f)
    }
}

impl std::error::Error for Hinted {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        // The error itself is our own text; what follows in the chain is its cause.
        self.error.chain().nth(1)
    }
}

/// Adds a line `hint: ...` to an error.
pub fn hint(error: impl Into<anyhow::Error>, hint: impl Into<String>) -> anyhow::Error {
    Hinted { hint: hint.into(), error: error.into() }.into()
}

/// Writes an error as a person should read it. Nothing is done about a stderr that is gone.
pub(super) fn print_error(error: &anyhow::Error) {
    let mut stderr = io::stderr().lock();
    let _ = stderr.write_all(rendered(error, io::stderr().is_terminal()).as_bytes());
    tracing::debug!("{error:?}");
}

/// The chain on one line (`what the user asked: what failed`), hints below, innermost first.
fn rendered(error: &anyhow::Error, color: bool) -> String {
    let (red, cyan, reset) = if color { ("\x1b[1;31m", "\x1b[1;36m", "\x1b[0m") } else { ("", "", "") };
    let mut parts: Vec<String> = Vec::new();
    let mut hints = Vec::new();
    collect(error, &mut parts, &mut hints);
    let mut text = format!("{red}error:{reset} {}\n", parts.join(": "));
    for hint in hints {
        text.push_str(&format!("{cyan}hint:{reset} {hint}\n"));
    }
    text
}

fn collect(error: &anyhow::Error, parts: &mut Vec<String>, hints: &mut Vec<String>) {
    for cause in error.chain() {
        if let Some(hinted) = cause.downcast_ref::<Hinted>() {
            collect(&hinted.error, parts, hints);
            hints.push(hinted.hint.clone());
            return;
        }
        let part = cause.to_string();
        // Layers with transparent or already spelled-out sources would say the same thing twice.
        if !parts.last().is_some_and(|last| last.ends_with(&part)) {
            parts.push(part);
        }
    }
}

/// Whether whoever read our output has left (`fathom list | head -1`): not a failure.
pub(super) fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error.chain().filter_map(|cause| cause.downcast_ref::<io::Error>()).any(|e| e.kind() == io::ErrorKind::BrokenPipe)
}

/// Turns a panic into one line that says it is our fault; `println!` into a closed pipe ends the program quietly.
pub(super) fn install_panic_hook() {
    let default = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        let text = info
            .payload()
            .downcast_ref::<String>()
            .map(String::as_str)
            .or_else(|| info.payload().downcast_ref::<&str>().copied())
            .unwrap_or("unknown");
        if text.starts_with("failed printing to stdout") && text.contains("Broken pipe") {
            std::process::exit(0);
        }
        default(info);
        eprintln!("error: this is a bug in fathom {}", env!("CARGO_PKG_VERSION"));
        eprintln!("hint: please report it with the lines above and the command you typed");
    }));
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::Context;

    #[test]
    fn the_chain_is_one_line_and_hints_follow() {
        let inner = hint(anyhow::anyhow!("tensor `a` is cut off"), "pull the model again");
        let error = hint(inner.context("cannot load `m.gguf`"), "see `fathom verify`");
        assert_eq!(
            rendered(&error, false),
            "error: cannot load `m.gguf`: tensor `a` is cut off\nhint: pull the model again\nhint: see `fathom verify`\n"
        );
    }

    #[test]
    fn what_a_layer_says_twice_is_printed_once() {
        let io = io::Error::new(io::ErrorKind::NotFound, "no such file");
        let error = anyhow::Error::new(io).context("cannot read `x`: no such file");
        assert_eq!(rendered(&error, false), "error: cannot read `x`: no such file\n");
    }

    #[test]
    fn a_closed_pipe_is_found_under_context() {
        let closed = || Err::<(), _>(io::Error::from(io::ErrorKind::BrokenPipe));
        assert!(is_broken_pipe(&closed().context("cannot write the table").unwrap_err()));
        assert!(!is_broken_pipe(&anyhow::anyhow!("Broken pipe")));
    }
}
