//! Flags made from the rows of the settings table, so that a setting is written down once.

use anyhow::Context;
use clap::{Arg, ArgAction, ArgMatches, Command, FromArgMatches};

use super::hint;
use crate::config::{self, Config, Group, VARIABLES, Variable};
use crate::engine;
use crate::scheduler::{self, KeepAlive};

/// Flags that decide how a model is computed; for verbs that load one.
pub type EngineFlags = Flags<false>;

/// Flags of the server: those of [`EngineFlags`], and where it listens, what it stores and how many it serves.
pub type ServerFlags = Flags<true>;

/// The settings that stand on a command line, in the order of the table.
#[derive(Clone, Debug, Default)]
pub struct Flags<const SERVER: bool> {
    given: Vec<(&'static Variable, String)>,
}

impl<const SERVER: bool> Flags<SERVER> {
    /// The configuration with these flags on top: the command line goes before the environment.
    ///
    /// # Errors
    /// A value makes no sense.
    pub fn applied(&self, config: &Config) -> Result<Config, config::Error> {
        let mut config = config.clone();
        for (variable, value) in &self.given {
            config.apply_flag(variable, value)?;
        }
        Ok(config)
    }

    /// Takes a flag out, for a command that passes its value on in another way.
    pub(super) fn take(&mut self, name: &str) -> Option<String> {
        let at = self.given.iter().position(|(variable, _)| variable.name == name)?;
        Some(self.given.remove(at).1)
    }

    /// The same flags for the command line of another process.
    pub fn arguments(&self) -> Vec<String> {
        Self::rows()
            .flat_map(|(flag, row)| {
                let values = self.given.iter().filter(move |(variable, _)| variable.name == row.name);
                values.map(move |(_, value)| format!("--{flag}={value}"))
            })
            .collect()
    }

    fn rows() -> impl Iterator<Item = (&'static str, &'static Variable)> {
        let ours = |v: &&Variable| v.group == Group::Engine || (SERVER && v.group == Group::Server);
        VARIABLES.iter().filter(ours).filter_map(|row| Some((row.flag?, row)))
    }
}

/// Which engine, and everything decided before it loads a model.
///
/// # Errors
/// The engine is not known or not built.
pub(super) fn engine(config: &Config) -> anyhow::Result<(engine::Kind, engine::Settings)> {
    let kind = built(config.engine.parse()?)?;
    let defaults = engine::Settings::default();
    let settings = engine::Settings {
        n_ctx: config.context_length.unwrap_or(defaults.n_ctx),
        n_seq_max: config.num_parallel.unwrap_or(defaults.n_seq_max),
        n_batch: config.batch.unwrap_or(defaults.n_batch),
        n_threads: config.threads.unwrap_or(defaults.n_threads),
        n_gpu_layers: config.gpu_layers,
        flash_attention: match config.flash_attention {
            None => engine::FlashAttention::Auto,
            Some(true) => engine::FlashAttention::On,
            Some(false) => engine::FlashAttention::Off,
        },
        kv_type: config.kv_cache_type.parse()?,
        repack: config.repack,
        routing: routing(&config.routing)?,
        script: config.script.clone(),
        ..defaults
    };
    Ok((kind, settings))
}

/// A routing policy as it was typed here: a file that it names is counted from this directory.
pub(super) fn routing(text: &str) -> anyhow::Result<engine::Routing> {
    let routing: engine::Routing = text.parse()?;
    let here = || std::env::current_dir().context("cannot tell the current directory");
    Ok(if routing.file().is_some() { routing.within(&here()?) } else { routing })
}

/// Refuses an engine that this program does not have before anything is opened for it.
pub(super) fn built(kind: engine::Kind) -> anyhow::Result<engine::Kind> {
    let name = kind.to_string();
    let engines = engine::build_info().engines;
    if kind == engine::Kind::Auto || engines.contains(&name.as_str()) {
        return Ok(kind);
    }
    Err(hint(engine::Error::NotBuilt { engine: name }, format!("this program has: {}", engines.join(", "))))
}

/// Limits of the scheduler.
pub(super) fn scheduler(config: &Config) -> scheduler::Settings {
    scheduler::Settings {
        keep_alive: config.keep_alive.map_or(KeepAlive::Forever, KeepAlive::For),
        max_loaded: config.max_loaded_models,
        max_queue: config.max_queue,
        memory_bytes: config.memory,
        prefix_bytes: usize::try_from(config.prefix_cache).unwrap_or(usize::MAX),
        stall_limit: config.stall_limit,
        ..scheduler::Settings::default()
    }
}

impl<const SERVER: bool> clap::Args for Flags<SERVER> {
    fn augment_args(mut command: Command) -> Command {
        for (flag, row) in Self::rows() {
            let arg = Arg::new(flag)
                .long(flag)
                .visible_aliases(row.flag_alias())
                .value_name(row.value)
                .help(row.flag_help())
                .allow_hyphen_values(true)
                .action(ArgAction::Set);
            command = command.arg(arg);
        }
        command
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl<const SERVER: bool> FromArgMatches for Flags<SERVER> {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let given =
            Self::rows().filter_map(|(flag, row)| Some((row, matches.get_one::<String>(flag)?.clone()))).collect();
        Ok(Flags { given })
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}
