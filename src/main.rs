//! The `fathom` program: arguments in, exit code out. Everything else is the library.

use std::process::ExitCode;

fn main() -> ExitCode {
    // Before anything else: a processor that is too old would end the program with an illegal instruction.
    if let Err(error) = fathom::engine::check_cpu() {
        return fathom::cli::fail(&fathom::cli::hint(
            error,
            "`Building` in README.md says how to build for an older one",
        ));
    }
    fathom::cli::main()
}
