//! The `fathom` program: arguments in, exit code out. Everything else is the library.

use std::process::ExitCode;

fn main() -> ExitCode {
    fathom::cli::main()
}
