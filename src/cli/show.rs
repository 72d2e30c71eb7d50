//! `fathom show`: what a model is.

use std::io::{self, Write};
use std::path::Path;

use serde_json::{Map, Value};

use super::table::Table;
use super::{connect, human, width};
use crate::client::Show;
use crate::config::Config;

/// Lines of system prompt and licenses in the overview.
const HEAD_LINES: usize = 2;

/// Width of a metadata array in the verbose listing; the rest is counted.
const ARRAY_WIDTH: usize = 10;

#[derive(clap::Args)]
pub struct Args {
    /// The model, or a `.gguf` file
    model: String,
    #[command(flatten)]
    part: Part,
    /// Also all metadata and tensors
    #[arg(short, long)]
    verbose: bool,
}

/// At most one of these.
#[derive(clap::Args)]
#[group(multiple = false)]
struct Part {
    /// Print the license only
    #[arg(long)]
    license: bool,
    /// Print the Modelfile only
    #[arg(long)]
    modelfile: bool,
    /// Print the parameters only
    #[arg(long)]
    parameters: bool,
    /// Print the template only
    #[arg(long)]
    template: bool,
    /// Print the system prompt only
    #[arg(long)]
    system: bool,
}

impl Part {
    fn of<'a>(&self, show: &'a Show) -> Option<&'a str> {
        [
            (self.license, &show.license),
            (self.modelfile, &show.modelfile),
            (self.parameters, &show.parameters),
            (self.template, &show.template),
            (self.system, &show.system),
        ]
        .into_iter()
        .find_map(|(asked, text)| asked.then_some(text.as_str()))
    }
}

pub fn run(args: Args, config: &Config) -> anyhow::Result<()> {
    let show = match connect::is_file_name(&args.model) {
        true => of_file(Path::new(&args.model), args.verbose)?,
        false => connect::with_server(config, async |client| {
            client.show(&args.model, args.verbose).await.map_err(connect::explained)
        })?,
    };
    let mut out = io::stdout().lock();
    match args.part.of(&show) {
        Some(text) => write!(out, "{text}{}", if text.ends_with('\n') || text.is_empty() { "" } else { "\n" })?,
        None => overview(&show, args.verbose, &mut out)?,
    }
    Ok(())
}

/// A file is described without a server, in the words of one.
fn of_file(path: &Path, verbose: bool) -> anyhow::Result<Show> {
    let answer = crate::api::ollama::show::of_file(path, verbose)?;
    Ok(serde_json::from_value(serde_json::to_value(answer)?)?)
}

/// Every section that has something in it.
pub(super) fn overview(show: &Show, verbose: bool, out: &mut dyn Write) -> io::Result<()> {
    section("Model", model_rows(show), out)?;
    section("Capabilities", show.capabilities.iter().map(|c| vec![c.clone()]), out)?;
    section("Projector", projector_rows(&show.projector_info), out)?;
    section("Parameters", parameter_rows(&show.parameters), out)?;
    if verbose {
        let mut keys: Vec<_> = show.model_info.iter().collect();
        keys.sort_by(|a, b| a.0.cmp(b.0));
        section("Metadata", keys.into_iter().map(|(key, value)| vec![key.clone(), metadata_text(value)]), out)?;
        section(
            "Tensors",
            show.tensors.iter().map(|t| vec![t.name.clone(), t.dtype.clone(), shape_text(&t.shape)]),
            out,
        )?;
    }
    section("System", head(&show.system), out)?;
    section("License", head(&show.license), out)
}

fn section(title: &str, rows: impl IntoIterator<Item = Vec<String>>, out: &mut dyn Write) -> io::Result<()> {
    let mut table = Table::default();
    for row in rows {
        table.row(row);
    }
    if table.is_empty() {
        return Ok(());
    }
    writeln!(out, "  {title}")?;
    table.write(4, out)?;
    writeln!(out)
}

fn model_rows(show: &Show) -> Vec<Vec<String>> {
    let info = &show.model_info;
    let mut rows = Vec::new();
    let mut row = |name: &str, value: Option<String>| {
        if let Some(value) = value.filter(|v| !v.is_empty()) {
            rows.push(vec![name.to_string(), value]);
        }
    };
    let architecture = info.get("general.architecture").and_then(Value::as_str);
    let number = |key: &str| architecture.and_then(|a| info.get(&format!("{a}.{key}"))).and_then(Value::as_u64);
    row("architecture", Some(architecture.unwrap_or(&show.details.family).to_string()));
    let parameters = info.get("general.parameter_count").and_then(Value::as_u64).filter(|n| *n > 0);
    row("parameters", Some(parameters.map_or_else(|| show.details.parameter_size.clone(), human::count)));
    row("context length", number("context_length").map(|n| n.to_string()));
    row("embedding length", number("embedding_length").map(|n| n.to_string()));
    row("quantization", Some(show.details.quantization_level.clone()));
    row("requires", Some(show.requires.clone()));
    rows
}

fn projector_rows(info: &Map<String, Value>) -> Vec<Vec<String>> {
    let text = |key: &str| info.get(key).map(metadata_text);
    let mut rows = Vec::new();
    for (name, value) in [
        ("architecture", text("general.architecture")),
        ("parameters", info.get("general.parameter_count").and_then(Value::as_u64).map(human::count)),
        ("embedding length", text("clip.vision.embedding_length")),
        ("dimensions", text("clip.vision.projection_dim")),
    ] {
        if let Some(value) = value {
            rows.push(vec![name.to_string(), value]);
        }
    }
    rows
}

fn parameter_rows(parameters: &str) -> impl Iterator<Item = Vec<String>> {
    parameters.lines().filter_map(|line| {
        let (name, value) = line.trim().split_once(char::is_whitespace)?;
        Some(vec![name.to_string(), value.trim().to_string()])
    })
}

/// The first lines that say something, and dots when there are more.
fn head(text: &str) -> Vec<Vec<String>> {
    let mut lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
    let mut rows: Vec<_> = lines.by_ref().take(HEAD_LINES).map(|line| vec![line.to_string()]).collect();
    if lines.next().is_some() {
        rows.push(vec!["...".into()]);
    }
    rows
}

/// A value on one short line: arrays show what fits and how much follows.
fn metadata_text(value: &Value) -> String {
    match value {
        Value::String(text) => text.replace('\n', "\\n"),
        Value::Array(items) => {
            let texts: Vec<String> = items.iter().map(metadata_text).collect();
            let mut used = 1;
            let mut shown = 0;
            for text in &texts {
                let more = width::of(text) + if shown > 0 { 2 } else { 0 };
                if shown > 0 && used + more > ARRAY_WIDTH {
                    break;
                }
                used += more;
                shown += 1;
            }
            let mut line = format!("[{}", texts[..shown].join(" "));
            if shown < texts.len() {
                line.push_str(&format!(" ...+{} more", texts.len() - shown));
            }
            line + "]"
        }
        other => other.to_string(),
    }
}

fn shape_text(shape: &[u64]) -> String {
    let numbers: Vec<String> = shape.iter().map(u64::to_string).collect();
    format!("[{}]", numbers.join(" "))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn example() -> Show {
        serde_json::from_value(json!({
            "license": "MIT License\n\nCopyright\nPermission is hereby granted\n",
            "parameters": "temperature    0.6\nstop           \"<|end of sentence|>\"",
            "system": "Be brief.",
            "details": {"family": "deepseek4", "quantization_level": "MXFP4", "parameter_size": "284.3B"},
            "model_info": {
                "general.architecture": "deepseek4",
                "general.parameter_count": 284_300_000_000u64,
                "deepseek4.context_length": 1_048_576,
                "deepseek4.embedding_length": 4096,
                "tokenizer.ggml.tokens": ["<a>", "<b>", "<c>", "<d>"],
                "general.name": "two\nlines",
            },
            "tensors": [{"name": "token_embd.weight", "type": "BF16", "shape": [4096, 129_280]}],
            "capabilities": ["completion", "tools", "thinking"],
            "projector_info": null,
        }))
        .unwrap()
    }

    #[test]
    fn the_overview_looks_like_ollamas() {
        let mut out = Vec::new();
        overview(&example(), false, &mut out).unwrap();
        insta::assert_snapshot!(String::from_utf8(out).unwrap());
    }

    #[test]
    fn verbose_adds_metadata_and_tensors() {
        let mut out = Vec::new();
        overview(&example(), true, &mut out).unwrap();
        insta::assert_snapshot!(String::from_utf8(out).unwrap());
    }
}
