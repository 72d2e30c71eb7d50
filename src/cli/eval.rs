//! `fathom eval`: how well a model predicts and remembers, and how far it is from another file or engine.
//!
//! The measuring is in [`crate::eval`]; here are the words for it.

mod text;

use std::io::Write;
use std::path::PathBuf;

use anyhow::{Context, ensure};

use super::progress::Bar;
use super::settings::{self, EngineFlags};
use super::unfinished::Unfinished;
use super::{hint, weights};
use crate::chat::family::{Facts, for_model};
use crate::completion::facts;
use crate::config::Config;
use crate::engine;
use crate::eval::{self, Job, Model, Split, Text, heatmap, needle};
use crate::tokens::Specials;

/// Tokens of one step unless `--batch` says otherwise.
const DEFAULT_BATCH: usize = 512;
/// Steps of another size for the noise floor: a prime, so that they end at every remainder of a compressed cache.
const DEFAULT_OTHER_BATCH: usize = 101;

/// What can be measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Part {
    /// Perplexity, and divergence from the reference
    Text,
    /// Facts hidden in long prompts
    Needles,
}

#[derive(clap::Args)]
#[command(
    after_help = "Everything is computed twice, in steps of `--batch` and of `--other-batch` tokens: what differs between the two is noise.\n\
                  A reference is computed first; its logits wait in a temporary file, so that two models are never in memory together."
)]
pub struct Args {
    /// The name of a stored model, or a .gguf file
    model: String,
    /// Measure only this
    #[arg(long, value_enum, value_name = "PART")]
    only: Option<Part>,

    /// Text to predict [default: a story that comes with fathom]
    #[arg(long, value_name = "FILE", help_heading = "Text")]
    text: Option<PathBuf>,
    /// Read special tokens in the text (`<｜User｜>`) as such, for rendered conversations
    #[arg(long, help_heading = "Text")]
    parse_specials: bool,
    /// Use only the first tokens of the text
    #[arg(long, value_name = "N", value_parser = at_least_one, help_heading = "Text")]
    tokens: Option<usize>,
    /// Tokens of one window of text; the second half of each is scored
    #[arg(long, value_name = "N", default_value_t = 512, value_parser = at_least_two, help_heading = "Text")]
    window: usize,

    /// Compare with another file or stored model
    #[arg(long, value_name = "MODEL", help_heading = "Reference")]
    against: Option<String>,
    /// Compare with another engine
    #[arg(long, value_name = "NAME", help_heading = "Reference")]
    against_engine: Option<String>,
    /// Compare with what exact arithmetic gives (see --f32)
    #[arg(long, help_heading = "Reference")]
    against_f32: bool,
    /// Compare with another element type of cached rows
    #[arg(long, value_name = "TYPE", help_heading = "Reference", conflicts_with_all = ["against_f32", "f32"])]
    against_kv: Option<String>,
    /// Compare with another routing policy, such as `off`
    #[arg(long, value_name = "POLICY", help_heading = "Reference")]
    against_routing: Option<String>,

    /// Lengths of the prompts, in tokens
    #[arg(long, value_name = "N[,N]", value_delimiter = ',', default_value = "256,512,1024,2048", value_parser = at_least_one, help_heading = "Needles")]
    needle_lengths: Vec<usize>,
    /// Where the fact is, in percent of what is before the question
    #[arg(long, value_name = "P[,P]", value_delimiter = ',', default_value = "0,25,50,75,100", value_parser = clap::value_parser!(u8).range(0..=100), help_heading = "Needles")]
    needle_depths: Vec<u8>,
    /// Prompts for each length and depth
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = at_least_one, help_heading = "Needles")]
    samples: usize,
    /// In place of each length the 128 lengths from it on, with the depths in turn: every remainder modulo 4 and 128
    #[arg(long, help_heading = "Needles")]
    residues: bool,
    /// Decides the prompts
    #[arg(long, value_name = "N", default_value_t = 1, help_heading = "Needles")]
    seed: u64,
    /// Draw the table of needles as a heat map
    #[arg(long, value_name = "FILE.svg", help_heading = "Needles")]
    heatmap: Option<PathBuf>,

    /// Round nothing: every weight expanded to F32 (in a temporary copy), an F32 cache, no flash attention, no repacked weights
    #[arg(long)]
    f32: bool,
    /// Tokens per step when everything is computed again
    #[arg(long, value_name = "TOKENS", default_value_t = DEFAULT_OTHER_BATCH, value_parser = at_least_one)]
    other_batch: usize,
    /// Folder for temporary files [default: that of the system]
    #[arg(long, value_name = "DIR")]
    scratch: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    engine: EngineFlags,
}

fn at_least_one(text: &str) -> Result<usize, String> {
    at_least(text, 1)
}

fn at_least_two(text: &str) -> Result<usize, String> {
    at_least(text, 2)
}

fn at_least(text: &str, least: usize) -> Result<usize, String> {
    match text.parse() {
        Ok(n) if n >= least => Ok(n),
        Ok(_) => Err(format!("it must be at least {least}")),
        Err(_) => Err("it is not a number".to_owned()),
    }
}

impl Args {
    fn wants(&self, part: Part) -> bool {
        self.only.is_none_or(|only| only == part)
    }

    fn has_reference(&self) -> bool {
        self.against.is_some()
            || self.against_engine.is_some()
            || self.against_f32
            || self.against_kv.is_some()
            || self.against_routing.is_some()
    }
}

pub fn run(args: Args, config: &Config) -> anyhow::Result<()> {
    ensure!(
        args.wants(Part::Needles) || args.heatmap.is_none(),
        "the heat map shows needles, and `--only text` asks for none"
    );
    let config = args.engine.applied(config)?;
    let (kind, settings) = settings::engine(&config)?;
    let found = weights::model(&args.model, &config)?;
    ensure!(!found.weights.is_empty(), "model `{}` has no weights", args.model);
    let model = Model {
        name: args.model.clone(),
        weights: found.weights.clone(),
        kind: engine::plan::resolve(kind, &settings),
        exact: args.f32,
        kv_type: settings.kv_type,
        routing: settings.routing.clone(),
        profiles: found.routing.clone(),
    };
    let family = match for_model(&facts(&found)) {
        // A text needs no format but for the token that it begins with.
        Err(_) if args.only == Some(Part::Text) => for_model(&Facts { chosen: Some("plain"), ..Facts::default() })?,
        family => family?,
    };
    let reference = reference(&args, &model, &config, &settings)?;
    // Nothing is computed for a picture that cannot be written.
    let picture = args.heatmap.as_deref().map(Unfinished::create).transpose()?;

    let read = |path: &PathBuf| {
        let bytes = std::fs::read(path).with_context(|| format!("cannot read `{}`", path.display()))?;
        String::from_utf8(bytes).with_context(|| format!("`{}` is not UTF-8", path.display()))
    };
    let named = args.text.as_ref().map(read).transpose()?;
    let source = args.text.as_ref().map_or("built-in".to_owned(), |path| path.display().to_string());
    let text = Text {
        source: &source,
        text: named.as_deref().unwrap_or(eval::BUILT_IN_TEXT),
        specials: if args.parse_specials { Specials::Parse } else { Specials::AsText },
        shape: eval::text::Shape { length: args.window, context: args.window / 2 },
        max_tokens: args.tokens,
    };
    let grid = needle::Grid {
        lengths: distinct(&args.needle_lengths),
        depths: distinct(&args.needle_depths),
        samples: args.samples,
        residues: args.residues,
        seed: args.seed,
    };
    let job = Job {
        model,
        reference,
        text: args.wants(Part::Text).then_some(text),
        needles: args.wants(Part::Needles).then_some(&grid),
        family: &family,
        split: Split { first: config.batch.unwrap_or(DEFAULT_BATCH), second: args.other_batch },
        settings,
        scratch: args.scratch.clone().unwrap_or_else(std::env::temp_dir),
    };
    let mut bar = Bar::default();
    let report = eval::run(&job, &mut bar).map_err(|error| explained(error, &args))?;
    bar.clear();
    if let (Some(picture), Some(needles)) = (picture, &report.needles) {
        picture.write(&heatmap::svg(&format!("{} on {}", report.model, report.engine), needles))?;
    }
    let mut out = std::io::stdout().lock();
    match args.json {
        true => writeln!(out, "{}", serde_json::to_string(&report)?)?,
        false => text::write(&report, &mut out)?,
    }
    Ok(())
}

/// What the model is compared with: each of the five flags changes one thing.
fn reference(
    args: &Args,
    model: &Model,
    config: &Config,
    settings: &engine::Settings,
) -> anyhow::Result<Option<Model>> {
    if !args.has_reference() {
        return Ok(None);
    }
    let kind = match &args.against_engine {
        Some(engine) => settings::built(engine.parse()?)?,
        None => model.kind,
    };
    let kind = engine::plan::resolve(kind, settings);
    let mut reference = Model { kind, exact: args.against_f32 || args.f32, ..model.clone() };
    if let Some(kv) = &args.against_kv {
        reference.kv_type = kv.parse()?;
    }
    if let Some(policy) = &args.against_routing {
        reference.routing = settings::routing(policy)?;
    }
    if let Some(name) = &args.against {
        let found = weights::model(name, config)?;
        ensure!(!found.weights.is_empty(), "model `{name}` has no weights");
        (reference.name, reference.weights, reference.profiles) = (name.clone(), found.weights, found.routing);
    }
    Ok(Some(reference))
}

fn explained(error: eval::Error, args: &Args) -> anyhow::Error {
    match &error {
        eval::Error::Context { .. } => hint(
            error,
            "`--window` and `--needle-lengths` decide how much is needed, `--context-length` how much there is at most",
        ),
        eval::Error::ShortText { .. } => hint(error, format!("`--window {}` is more than this text has", args.window)),
        eval::Error::Engine(engine::Error::Disk { .. }) => {
            hint(error, "`--scratch DIR` names another folder, `--tokens N` computes fewer")
        }
        eval::Error::Scratch { .. } => hint(error, "`--scratch DIR` names another folder for temporary files"),
        eval::Error::ShortPrompt { .. } => hint(error, "`--needle-lengths` takes longer ones"),
        _ => error.into(),
    }
}

/// Each once, in the order given.
fn distinct<T: Copy + PartialEq>(values: &[T]) -> Vec<T> {
    let mut kept = Vec::new();
    for value in values {
        if !kept.contains(value) {
            kept.push(*value);
        }
    }
    kept
}
