//! `fathom calibrate`: routing profiles for a model, from text.
//!
//! The finding is in [`crate::calibrate`]; here are the words for it.

mod text;

use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail, ensure};

use super::progress::Bar;
use super::settings::{self, EngineFlags};
use super::unfinished::Unfinished;
use super::{hint, weights};
use crate::calibrate::{self, BUDGETS, Job, plot};
use crate::chat::family::{Facts, for_model};
use crate::completion::facts;
use crate::config::Config;
use crate::engine::routing::{self, Profiles};
use crate::engine::{self, Kind};
use crate::eval;
use crate::store::{Model, Source};
use crate::tokens::Specials;

/// Two thirds of it are 65,536 tokens of trace; a third is held out.
const DEFAULT_TOKENS: usize = 98_304;

#[derive(clap::Args)]
#[command(
    after_help = "Every third window of the text is held out: profiles are measured on it and made from the rest. The text should be what the model will read \
                  and write, of several kinds, and longer than 98,304 tokens.\n\
                  Beside the profiles, in FILE.routing.svg, is a picture of divergence against experts."
)]
pub struct Args {
    /// The name of a stored model, or a .gguf file
    model: String,
    /// Text to make profiles from and to measure them on
    #[arg(long, value_name = "FILE")]
    text: PathBuf,
    /// Where to write the profiles [default: beside the .gguf file, where they are found]
    #[arg(short, long, value_name = "FILE.routing.json")]
    output: Option<PathBuf>,
    /// Read special tokens in the text (`<｜User｜>`) as such, for rendered conversations
    #[arg(long)]
    parse_specials: bool,
    /// Most tokens of the text; windows of a longer one are taken evenly from it
    #[arg(long, value_name = "N", default_value_t = DEFAULT_TOKENS)]
    tokens: usize,
    /// Tokens of one window; the second half of those held out is scored
    #[arg(long, value_name = "N", default_value = "512", value_parser = clap::value_parser!(u32).range(2..=65536))]
    window: u32,
    /// Replace profiles of the same model
    #[arg(long)]
    force: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    engine: EngineFlags,
}

pub fn run(mut args: Args, config: &Config) -> anyhow::Result<()> {
    if let Some(policy) = args.engine.take("ROUTING") {
        bail!("`--routing {policy}` means nothing here: profiles are compared with all experts");
    }
    if args.engine.take("BATCH").is_some() {
        return Err(hint(
            anyhow::anyhow!("`--batch` means nothing here: a window is one step"),
            "`--window` decides its size",
        ));
    }
    let config = args.engine.applied(config)?;
    let (kind, settings) = settings::engine(&config)?;
    if !matches!(kind, Kind::Auto | Kind::Native) {
        let error = anyhow::anyhow!("engine `{kind}` computes every chosen expert; profiles are for `native`");
        return Err(hint(error, "leave `--engine` and FATHOM_ENGINE out"));
    }
    settings::built(Kind::Native)?;

    let found = weights::model(&args.model, &config)?;
    ensure!(!found.weights.is_empty(), "model `{}` has no weights", args.model);
    let output = output(&args, &found)?;
    let text = read(&args.text)?;
    // A text needs no format but for the token that it begins with.
    let family = match for_model(&facts(&found)) {
        Err(_) => for_model(&Facts { chosen: Some("plain"), ..Facts::default() })?,
        family => family?,
    };
    // Nothing is computed for files that cannot be written.
    check(&output, args.force, &found)?;
    let picture = Unfinished::create(&output.with_extension("svg"))?;

    let source = args.text.display().to_string();
    let job = Job {
        model: args.model.clone(),
        weights: found.weights.clone(),
        family: &family,
        source: &source,
        text: &text,
        specials: if args.parse_specials { Specials::Parse } else { Specials::AsText },
        window: args.window as usize,
        max_tokens: args.tokens,
        settings,
    };
    let mut bar = Bar::default();
    let calibrated = calibrate::run(&job, &mut bar);
    bar.clear();
    let (report, profiles) = calibrated.map_err(|error| explained(error, &args))?;
    let mut out = std::io::stdout().lock();
    match args.json {
        true => writeln!(out, "{}", serde_json::to_string(&report)?)?,
        false => text::write(&report, &mut out)?,
    }
    drop(out);
    picture.write(&plot::svg(&report))?;
    if profiles.profiles.is_empty() {
        let error = anyhow::anyhow!("no profile loses less than a fixed number of experts; none was written");
        return Err(hint(error, "more text, and more like what the model will be asked, may find one"));
    }
    profiles.save(&output)?;
    let names: Vec<&str> = profiles.profiles.keys().map(String::as_str).collect();
    eprintln!("wrote {} to {}", names.join(", "), output.display());
    let missing: Vec<&str> = BUDGETS.iter().map(|(name, _)| *name).filter(|name| !names.contains(name)).collect();
    if !missing.is_empty() {
        eprintln!("warning: {} lost more than a fixed number of experts and was left out", missing.join(", "));
    }
    Ok(())
}

/// Where profiles go.
fn output(args: &Args, model: &Model) -> anyhow::Result<PathBuf> {
    let path = match (&args.output, &model.source) {
        (Some(path), _) => path.clone(),
        (None, Source::File(path)) => routing::sidecar(path),
        (None, Source::Installed(name)) => {
            let error =
                anyhow::anyhow!("`{name}` is a stored model, and `--output` does not say where its profiles go");
            return Err(hint(
                error,
                format!("`--output {}{}` writes into this directory", name.model(), routing::SUFFIX),
            ));
        }
    };
    if !path.as_os_str().as_encoded_bytes().ends_with(routing::SUFFIX.as_bytes()) {
        return Err(hint(
            routing::Error::FileName(path.clone()),
            format!("as in `{}{}`", path.with_extension("").display(), routing::SUFFIX),
        ));
    }
    Ok(path)
}

/// Whether the file may be written.
fn check(output: &Path, force: bool, model: &Model) -> anyhow::Result<()> {
    if !output.exists() {
        return Ok(());
    }
    if !force {
        return Err(hint(anyhow::anyhow!("`{}` exists", output.display()), "`--force` replaces it"));
    }
    // What is no file of profiles is nobody's.
    let Ok(there) = Profiles::load(output) else { return Ok(()) };
    let own = routing::fingerprint(&weights::of(model)?)?;
    if there.profiles.values().any(|profile| profile.fingerprint != own) {
        let error = anyhow::anyhow!("`{}` holds profiles of another model, which are not replaced", output.display());
        return Err(hint(error, "`--output` names another file"));
    }
    Ok(())
}

fn read(path: &Path) -> anyhow::Result<String> {
    let bytes = std::fs::read(path).with_context(|| format!("cannot read `{}`", path.display()))?;
    String::from_utf8(bytes).with_context(|| format!("`{}` is not UTF-8", path.display()))
}

fn explained(error: calibrate::Error, args: &Args) -> anyhow::Error {
    match &error {
        calibrate::Error::ShortText { .. } => {
            let window = args.window;
            hint(
                error,
                format!(
                    "`--window` takes fewer tokens than {window}, `--tokens` more of the text, `--text` another one"
                ),
            )
        }
        calibrate::Error::Eval(eval::Error::Context { .. }) => {
            hint(error, "`--window` decides how much is needed, `--context-length` how much there is at most")
        }
        calibrate::Error::Engine(engine::Error::Memory { .. }) => hint(error, "`--tokens N` traces fewer"),
        _ => error.into(),
    }
}
