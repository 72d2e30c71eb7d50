//! Writes a random checkpoint in the released on-disk form.
//!
//! `synthetic_checkpoint DIR [--shape tiny|flash|pro] [--layers N] [--draft none|mtp|dspark] [--fp8-experts] [--shards N] [--headers]`

use std::path::PathBuf;
use std::process::ExitCode;

use fathom_converters::synthetic::{Draft, Spec};

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("error: {message}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<(), String> {
    let mut args = std::env::args().skip(1);
    let mut dir = None;
    let (mut shape, mut layers, mut draft, mut fp8, mut shards, mut headers) =
        ("tiny".to_owned(), 2, None, false, None, false);
    while let Some(arg) = args.next() {
        let mut value = || args.next().ok_or(format!("{arg} needs a value"));
        let number = |text: String| text.parse::<usize>().map_err(|_| format!("`{text}` is no number"));
        match arg.as_str() {
            "--shape" => shape = value()?,
            "--layers" => layers = number(value()?)?,
            "--shards" => shards = Some(number(value()?)?.max(1)),
            "--draft" => draft = Some(value()?),
            "--fp8-experts" => fp8 = true,
            "--headers" => headers = true,
            _ if arg.starts_with('-') => return Err(format!("unknown option {arg}")),
            _ => dir = Some(PathBuf::from(arg)),
        }
    }
    let dir = dir.ok_or("give a directory")?;
    let mut spec = match shape.as_str() {
        "tiny" => Spec::tiny(),
        "flash" => Spec::flash(layers),
        "pro" => Spec::pro(layers),
        other => return Err(format!("no shape `{other}`: tiny, flash, pro")),
    };
    spec.draft = match draft.as_deref() {
        None => spec.draft,
        Some("none") => Draft::None,
        Some("mtp") => Draft::Mtp,
        Some("dspark") => Draft::Dspark,
        Some(other) => return Err(format!("no draft `{other}`: none, mtp, dspark")),
    };
    spec.fp8_experts = fp8;
    spec.shards = shards.unwrap_or(spec.shards);
    std::fs::create_dir_all(&dir).map_err(|error| format!("{}: {error}", dir.display()))?;
    let written = if headers { spec.write_headers(&dir) } else { spec.write(&dir) };
    written.map_err(|error| format!("{}: {error}", dir.display()))
}
