//! Everything about a load is decided, and can be printed, before anything is loaded: engine, context, sequences, threads,
//! memory. The prediction is part of the product: whoever reads it can check it.

use std::fmt;

use super::{Error, Kind, KvType, Memory, Settings, machine, scripted};
use crate::ids::TokenId;

/// What will be loaded and what it will take: every number that [`Settings`] left open is decided here.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// Which engine; never [`Kind::Auto`].
    pub kind: Kind,
    /// The file's `general.architecture`.
    pub architecture: String,
    /// Tokens that one sequence may hold.
    pub n_ctx: usize,
    pub n_seq_max: usize,
    pub n_batch: usize,
    pub n_ubatch: usize,
    pub n_outputs: usize,
    pub n_threads: usize,
    pub kv_type: KvType,
    pub use_mmap: bool,
    pub repack: bool,
    /// Predicted use.
    pub memory: Memory,
    /// What was free when the plan was made.
    pub available_bytes: u64,
    /// What was decided differently from what was asked for, and why; one sentence each.
    pub notes: Vec<String>,
}

impl Plan {
    /// `settings` with this plan's decisions filled in: what is loaded.
    pub fn apply(&self, settings: &Settings) -> Settings {
        Settings {
            n_ctx: self.n_ctx,
            n_seq_max: self.n_seq_max,
            n_batch: self.n_batch,
            n_ubatch: self.n_ubatch,
            n_outputs: self.n_outputs,
            n_threads: self.n_threads,
            use_mmap: self.use_mmap,
            repack: self.repack,
            ..settings.clone()
        }
    }
}

/// Decides how `file` will be loaded when `available_bytes` of memory are free. Reads metadata only.
///
/// # Errors
/// [`Error::NotBuilt`] for an engine that is not in this program, [`Error::Load`] for a file that it cannot run,
/// [`Error::Unsupported`] for settings that contradict each other, [`Error::Memory`] when even the least does not fit.
pub fn plan(file: &fathom_gguf::File, kind: Kind, settings: &Settings, available_bytes: u64) -> Result<Plan, Error> {
    match resolve(kind, settings) {
        #[cfg(feature = "llama")]
        Kind::Llama => super::llama::plan(file, settings, available_bytes),
        #[cfg(feature = "native")]
        Kind::Native => super::native::plan(file, settings, available_bytes),
        Kind::Scripted => scripted::plan(&script(settings)?, &scripted_model(file)?, settings, available_bytes),
        kind => Err(Error::NotBuilt { engine: kind.to_string() }),
    }
}

/// `Auto` is `llama`, the one engine that computes; a script asks for the engine that plays it.
pub fn resolve(kind: Kind, settings: &Settings) -> Kind {
    match kind {
        Kind::Auto if settings.script.is_some() => Kind::Scripted,
        Kind::Auto => Kind::Llama,
        named => named,
    }
}

/// Threads to compute with: what was asked for, as far as the machine runs them at the same time, or its free physical cores.
#[cfg(any(feature = "llama", feature = "native"))]
pub(super) fn threads(settings: &Settings, notes: &mut Vec<String>) -> usize {
    match settings.n_threads {
        0 => {
            let free = machine::compute_threads();
            if free.count() < free.cores {
                let (count, cores, others) = (free.count(), free.cores, free.others);
                notes.push(format!(
                    "{count} of {cores} cores compute, because {others} threads of other programs want theirs now; `--threads` decides otherwise"
                ));
            }
            free.count()
        }
        asked => {
            let n_threads = asked.min(machine::logical_cores());
            if n_threads < asked {
                notes.push(format!("{asked} threads were asked for; this machine runs {n_threads} at a time"));
            }
            n_threads
        }
    }
}

/// The script of the settings; without one, an echo.
pub(super) fn script(settings: &Settings) -> Result<scripted::Script, Error> {
    settings.script.as_deref().map_or_else(|| Ok(scripted::Script::default()), scripted::Script::read)
}

/// What the scripted engine stands for when it plays the part of `file`.
pub fn scripted_model(file: &fathom_gguf::File) -> Result<scripted::Model, Error> {
    /// `LLAMA_TOKEN_TYPE_CONTROL`, as `tokenizer.ggml.token_type` writes it.
    const CONTROL: i64 = 3;
    let metadata = file.metadata();
    let architecture = metadata.opt_str("general.architecture")?.unwrap_or("none").to_owned();
    let number = |key: &str| metadata.opt_u32(&format!("{architecture}.{key}"));
    let n_vocab = match file.opt_tensor("token_embd.weight").and_then(|tensor| tensor.ne.get(1)) {
        Some(&rows) => usize::try_from(rows).unwrap_or(usize::MAX),
        None => metadata.opt_strings("tokenizer.ggml.tokens")?.map_or(0, |tokens| tokens.len()),
    };
    let types = metadata.opt_integers("tokenizer.ggml.token_type")?.unwrap_or_default();
    Ok(scripted::Model {
        n_vocab,
        n_embd: number("embedding_length")?.unwrap_or(0) as usize,
        n_ctx_train: number("context_length")?.unwrap_or(0) as usize,
        end: TokenId(metadata.opt_u32("tokenizer.ggml.eos_token_id")?.unwrap_or(0)),
        control: (0..).zip(types).filter(|(_, kind)| *kind == CONTROL).map(|(id, _)| TokenId(id)).collect(),
        architecture,
    })
}

impl fmt::Display for Plan {
    /// Two lines for a log or a terminal, then one per note.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let plural = |n: usize| if n == 1 { "" } else { "s" };
        writeln!(
            f,
            "plan: {} on {}, {} sequence{} of {} tokens, {} tokens a step, {} thread{}, {} cache",
            self.architecture,
            self.kind,
            self.n_seq_max,
            plural(self.n_seq_max),
            self.n_ctx,
            self.n_batch,
            self.n_threads,
            plural(self.n_threads),
            self.kv_type,
        )?;
        write!(
            f,
            "memory: {} = weights {}{} + cache {} + compute {}; {} free",
            machine::human(self.memory.total()),
            machine::human(self.memory.weights),
            if self.repack { "" } else { " (mapped)" },
            machine::human(self.memory.kv),
            machine::human(self.memory.compute),
            machine::human(self.available_bytes),
        )?;
        for note in &self.notes {
            write!(f, "\nnote: {note}")?;
        }
        Ok(())
    }
}
