//! `docs/configuration.md`, made from the table so that it cannot be wrong.

use std::fmt::Write;

use super::{Group, VARIABLES, Variable};

const HEAD: &str = "\
# Configuration

<!-- Made from src/config/variables.rs. After a change there: cargo test --no-default-features -- --ignored write_configuration_md -->

A setting comes from the first of these that has it: options of a request, parameters of the Modelfile, the command
line, the environment, the default.

Variables of ours begin with `FATHOM_`. Where Ollama has a variable of the same meaning it is honoured under its own
name when ours is not set. Values are taken without blanks and quotes around them, and an empty value counts as not set. A value
that makes no sense is an error under our names; under Ollama's names it is a warning and the default stays.
";

/// The whole document.
pub fn markdown() -> String {
    let mut text = HEAD.to_string();
    for (group, title, note) in [
        (Group::Server, "Server", "Flags of `fathom serve`."),
        (
            Group::Engine,
            "Engine",
            "Flags of every command that loads a model: `serve`, `run`, `logits`, `bench` as far as they apply.",
        ),
        (Group::Program, "Program", "Environment only."),
    ] {
        let _ = write!(text, "\n## {title}\n\n{note}\n");
        for row in VARIABLES.iter().filter(|v| v.group == group) {
            let _ = write!(text, "\n### `{}`\n\n{}.\n\n", row.env(), row.help);
            if let Some(theirs) = row.ollama_env() {
                let _ = writeln!(text, "- also: `{theirs}`");
            }
            if let Some(flag) = row.flag {
                let other = row.flag_alias().map(|alias| format!(" or `--{alias} {}`", row.value)).unwrap_or_default();
                let _ = writeln!(text, "- flag: `--{flag} {}`{other}", row.value);
            }
            let _ = writeln!(text, "- default: {}", row.default);
        }
    }
    text
}

impl Variable {
    /// Help of the flag: what it does, the variable behind it, the default.
    pub fn flag_help(&self) -> String {
        let theirs = self.ollama_env().map(|name| format!(" or {name}")).unwrap_or_default();
        format!("{} [env: {}{theirs}] [default: {}]", self.help, self.env(), self.default)
    }
}
