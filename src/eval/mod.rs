//! How well a model predicts a text, how far it is from another one, and what it finds again in a long prompt.
//!
//! [`run`] measures one model file on one engine: perplexity on a text ([`text`]), the divergence of its next-token distributions
//! from those of a reference file or engine ([`divergence`]), and whether it finds a fact that was hidden in a long prompt
//! ([`needle`]). Everything is computed twice, cut into steps of two sizes: what differs between the two is the noise floor, and a
//! difference to a reference that is no larger says nothing.
//!
//! Two models are never in memory together. The reference goes first and leaves its answers and, in a temporary file, its logits; the
//! model reads them row by row. Sums are in F64. Nothing here knows the command line or a server.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use fathom_gguf::File;

use crate::chat::{self, Family, Message, Request, Role};
use crate::engine::{self, Engine, Kind, KvType, Routing, Settings};
use crate::ids::TokenId;
use crate::tokens::{self, Specials, Tokenizer};

pub mod bootstrap;
pub mod divergence;
pub mod heatmap;
pub mod needle;
pub mod perplexity;
pub mod report;
mod rows;
pub mod text;

pub use report::Report;

/// The text that is used when none is named: prose written for this purpose, nobody else's.
pub const BUILT_IN_TEXT: &str = include_str!("text.txt");

/// A file and how it is to be computed.
#[derive(Clone, Debug)]
pub struct Model {
    /// What the user called it.
    pub name: String,
    /// The files of its weights, in order.
    pub weights: Vec<PathBuf>,
    pub kind: Kind,
    /// Round nothing, nor any cached row: [`engine::load_f32`].
    pub exact: bool,
    /// Element type of cached rows, unless `exact`.
    pub kv_type: KvType,
    /// Which of the chosen experts are computed.
    pub routing: Routing,
    /// Routing profiles that come with it, unless they lie beside its file.
    pub profiles: Option<PathBuf>,
}

/// Everything that is to be measured.
pub struct Job<'a> {
    pub model: Model,
    pub reference: Option<Model>,
    /// `None`: neither perplexity nor divergence.
    pub text: Option<Text<'a>>,
    /// `None`: no needles.
    pub needles: Option<&'a needle::Grid>,
    /// The model's prompt format: needles are asked in it, and a text begins as its prompts do.
    pub family: &'a Family,
    pub split: Split,
    /// Sizes that are 0 are chosen to fit the job; the rest is for both models.
    pub settings: Settings,
    /// Where temporary files go.
    pub scratch: PathBuf,
}

/// The text that is predicted.
#[derive(Clone, Copy, Debug)]
pub struct Text<'a> {
    /// For the report.
    pub source: &'a str,
    pub text: &'a str,
    pub specials: Specials,
    pub shape: text::Shape,
    /// Only so many tokens of it, from the start.
    pub max_tokens: Option<usize>,
}

/// Tokens of one step, and of one step when everything is computed again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Split {
    pub first: usize,
    pub second: usize,
}

/// What a measurement tells while it runs.
pub trait Watch {
    /// A part begins that computes so many tokens.
    fn begin(&mut self, what: &str, tokens: u64);
    /// So many more tokens were computed.
    fn advance(&mut self, tokens: u64);
    /// Something worth a line: sizes, what was left out.
    fn note(&mut self, text: &str);
}

/// Tells nobody.
pub struct Silent;

impl Watch for Silent {
    fn begin(&mut self, _: &str, _: u64) {}
    fn advance(&mut self, _: u64) {}
    fn note(&mut self, _: &str) {}
}

/// Why nothing was measured.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Engine(#[from] engine::Error),
    #[error(transparent)]
    Tokens(#[from] tokens::Error),
    #[error(transparent)]
    Chat(#[from] chat::Error),
    #[error(transparent)]
    Gguf(#[from] fathom_gguf::Error),
    #[error("{what} in `{}` failed: {source}", dir.display())]
    Scratch { what: &'static str, dir: PathBuf, source: io::Error },
    #[error("the text has {tokens} tokens, and the first {needed} of a window are not scored")]
    ShortText { tokens: usize, needed: usize },
    #[error("`{0}` gives embeddings, not logits")]
    NoLogits(String),
    #[error("{needed} tokens do not fit into the context of {n_ctx}")]
    Context { needed: usize, n_ctx: usize },
    #[error("`{model}` and `{reference}` do not share a vocabulary: {problem}")]
    Vocabulary { model: String, reference: String, problem: String },
    #[error("{what} at position {position} are not finite numbers")]
    NotFinite { what: &'static str, position: usize },
    #[error("a prompt of {length} tokens has no room for a needle and its question, which take {needed}")]
    ShortPrompt { length: usize, needed: usize },
}

/// Measures.
///
/// # Errors
/// [`Error`]; nothing of what was measured before is given out.
pub fn run(job: &Job<'_>, watch: &mut dyn Watch) -> Result<Report, Error> {
    let tokenizer = Arc::new(tokenizer(&job.model)?);
    let windows = job.text.as_ref().map(|text| windows(job, text, &tokenizer)).transpose()?;
    let prompts = job.needles.map(|grid| needle::prompts(grid, job.family, &tokenizer)).transpose()?;

    let longest = [windows.as_ref().map(text::Windows::longest), prompts.as_deref().map(needle::longest)];
    let n_ctx = longest.into_iter().flatten().max().unwrap_or(0);

    let (mut reference, mut found) = (None, None);
    if let Some(model) = &job.reference {
        let theirs = Arc::new(self::tokenizer(model)?);
        if model.weights != job.model.weights {
            same_tokens(job, model, &theirs, windows.as_ref(), prompts.as_deref())?;
        }
        let mut engine = load(job, model, n_ctx, watch)?;
        if let Some(windows) = &windows {
            reference = Some(text::reference(job, &mut *engine, windows, watch)?);
        }
        if let (Some(grid), Some(prompts)) = (job.needles, &prompts) {
            let needles = needle::measure(job, grid, prompts, &mut *engine, &theirs, watch)?;
            found = Some(report::Found::new(model, engine.info(), needles));
        }
    }

    let mut engine = load(job, &job.model, n_ctx, watch)?;
    let mut report = Report::new(job, engine.info(), &tokenizer);
    if let (Some(text), Some(windows)) = (&job.text, &windows) {
        report.text = Some(text::measure(job, text, windows, &mut *engine, reference, watch)?);
    }
    if let (Some(grid), Some(prompts)) = (job.needles, &prompts) {
        let needles = needle::measure(job, grid, prompts, &mut *engine, &tokenizer, watch)?;
        report.needles = Some(needles.beside(found));
    }
    Ok(report)
}

impl Model {
    fn open(&self) -> Result<File, Error> {
        Ok(File::open_shards(&self.weights)?)
    }
}

fn tokenizer(model: &Model) -> Result<Tokenizer, Error> {
    Ok(Tokenizer::from_gguf(model.open()?.metadata())?)
}

fn windows(job: &Job<'_>, text: &Text<'_>, tokenizer: &Tokenizer) -> Result<text::Windows, Error> {
    let mut tokens = tokenizer.encode(text.text, text.specials)?;
    tokens.truncate(text.max_tokens.unwrap_or(usize::MAX));
    text::Windows::cut(&tokens, leading(job.family, tokenizer)?, text.shape)
}

/// The token that every prompt of this model begins with. DeepSeek's tokenizers add none by themselves, but its prompts have one, and
/// the model has never seen a text without.
///
/// # Errors
/// Those of rendering and tokenising a short prompt.
pub fn leading(family: &Family, tokenizer: &Tokenizer) -> Result<Option<TokenId>, Error> {
    let messages = vec![Message::new(Role::User, "Hi")];
    let prompt = family.render(&Request { messages, ..Request::default() })?;
    let first = tokenizer.encode_prompt(&prompt.text)?.first().copied();
    Ok(tokenizer.bos().filter(|bos| first == Some(*bos)))
}

/// Two files can be compared only where they speak about the same tokens.
fn same_tokens(
    job: &Job<'_>,
    reference: &Model,
    tokenizer: &Tokenizer,
    windows: Option<&text::Windows>,
    prompts: Option<&[needle::Prompt]>,
) -> Result<(), Error> {
    if let (Some(text), Some(windows)) = (&job.text, windows)
        && self::windows(job, text, tokenizer)? != *windows
    {
        return Err(other_vocabulary(job, reference, "the text has other tokens".to_owned()));
    }
    if let Some(prompts) = prompts
        && !needle::have_the_tokens_of(prompts, tokenizer)?
    {
        return Err(other_vocabulary(job, reference, "prompts have other tokens".to_owned()));
    }
    Ok(())
}

fn other_vocabulary(job: &Job<'_>, reference: &Model, problem: String) -> Error {
    Error::Vocabulary { model: job.model.name.clone(), reference: reference.name.clone(), problem }
}

/// Loads a model with room for `n_ctx` tokens in one sequence and steps of both sizes.
fn load(job: &Job<'_>, model: &Model, n_ctx: usize, watch: &mut dyn Watch) -> Result<Box<dyn Engine>, Error> {
    let n_batch = job.split.first.max(job.split.second).min(n_ctx.max(1));
    let settings = Settings {
        n_ctx: if job.settings.n_ctx == 0 { n_ctx } else { job.settings.n_ctx },
        n_seq_max: 1,
        n_batch,
        n_ubatch: n_batch,
        n_outputs: n_batch,
        kv_type: model.kv_type,
        routing: model.routing.clone(),
        profiles: model.profiles.clone(),
        ..job.settings.clone()
    };
    let mut told = 0;
    watch.begin("loading", 100);
    let mut on_progress = |part: f32| {
        let percent = (part * 100.0) as u64;
        watch.advance(percent.saturating_sub(told));
        told = told.max(percent);
        true
    };
    let engine = match model.exact {
        true => engine::load_f32(&model.open()?, &job.scratch, model.kind, &settings, &mut on_progress)?,
        false => engine::load_file(&model.open()?, model.kind, &settings, &mut on_progress)?,
    };
    let info = engine.info();
    if !info.support.logits {
        return Err(Error::NoLogits(model.name.clone()));
    }
    if n_ctx > info.n_ctx {
        return Err(Error::Context { needed: n_ctx, n_ctx: info.n_ctx });
    }
    Ok(engine)
}
