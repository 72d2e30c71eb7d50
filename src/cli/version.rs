//! `fathom --version`, short and verbose.

use std::io::Write;

use crate::engine::BuildInfo;

/// # Errors
/// When stdout cannot be written.
pub(super) fn print(verbose: bool) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "fathom {}", env!("CARGO_PKG_VERSION"))?;
    if verbose {
        write_details(&crate::engine::build_info(), &mut out)?;
    }
    Ok(())
}

fn write_details(build: &BuildInfo, out: &mut impl Write) -> std::io::Result<()> {
    let list = |names: &[&str]| if names.is_empty() { "none".to_string() } else { names.join(" ") };
    let mut line = |name: &str, value: &str| writeln!(out, "{name:<14}{value}");
    line("engines", &list(&build.engines))?;
    line("ggml", build.ggml.as_deref().unwrap_or("not built"))?;
    line("cpu needed", &list(&build.cpu_needed))?;
    line("cpu present", &list(&build.cpu_present))?;
    line("profile", if cfg!(debug_assertions) { "debug" } else { "release" })?;
    line("interface", &format!("Ollama {}", crate::api::OLLAMA_VERSION))?;
    line("system", &format!("{} {}", std::env::consts::OS, std::env::consts::ARCH))
}
