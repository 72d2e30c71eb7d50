//! The table of all environment variables and defaults, read once into an immutable [`Config`].
//!
//! One row of [`VARIABLES`] is one setting: its environment variable, the flag of `fathom serve` (if it has one), its
//! default, its line in `docs/configuration.md` and the function that puts a value into [`Config`]. Nothing else in
//! the program reads the environment (a test greps for it).
//!
//! `FATHOM_X` counts first. Where Ollama has a variable of the same meaning, `OLLAMA_X` is honoured when ours is not set,
//! with Ollama's leniency: a value that makes no sense is reported as a warning and the default stays, because a machine set
//! up for Ollama must go on working. The same nonsense under our own name, or on the command line, is an error.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

mod bytes;
mod docs;
mod duration;
mod host;
mod variables;

pub use bytes::{ParseBytesError, parse_bytes};
pub use docs::markdown;
pub use duration::{ParseDurationError, parse_duration};
pub use host::{DEFAULT_PORT, Host, ListenOn, ParseHostError, Scheme};
pub use variables::VARIABLES;

/// Every setting of the program, as one piece; modules are given the part they need.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// Where the server listens and where clients look for it.
    pub host: Host,
    /// Web origins that may call the server besides the local ones.
    pub origins: Vec<String>,
    /// Root of the store: `manifests/` and `blobs/`.
    pub models: PathBuf,
    /// Our own folder (`~/.fathom`): REPL history, logs of servers that `run` started.
    pub home: PathBuf,
    /// How long an unused model stays loaded; `None` = until the server ends.
    pub keep_alive: Option<Duration>,
    /// Sequences per loaded model; `None` = as the memory plan says.
    pub num_parallel: Option<usize>,
    /// Models loaded at once.
    pub max_loaded_models: usize,
    /// Requests that may wait; more are answered with 503.
    pub max_queue: usize,
    /// Bytes for all loaded models together; `None` = what the machine has free.
    pub memory: Option<u64>,
    /// Bytes per loaded model for states of prompts that may come again.
    pub prefix_cache: u64,
    /// How long a client may read nothing of its answer before its request ends; `None` = for ever.
    pub stall_limit: Option<Duration>,
    /// The server ends when no model was loaded for this long; zero = it does not, `None` = nobody said.
    pub idle_exit: Option<Duration>,
    /// Whether the server removes blobs that no model uses when it starts.
    pub prune: bool,
    /// Name of the engine, as [`crate::engine::Kind`] spells it.
    pub engine: String,
    /// Context of one sequence in tokens; `None` = what the model was trained for, as far as memory allows.
    pub context_length: Option<usize>,
    /// Computing threads; `None` = physical cores within the CPU quota that other programs leave free.
    pub threads: Option<usize>,
    /// Tokens of one engine step; `None` = the engine's measured default.
    pub batch: Option<usize>,
    /// Layers on the GPU; `None` = as many as fit.
    pub gpu_layers: Option<u32>,
    /// `None` = the engine decides.
    pub flash_attention: Option<bool>,
    /// Element type of cached rows: one of [`KV_TYPES`].
    pub kv_cache_type: String,
    /// Whether ggml copies weights into a layout its matrix kernels prefer.
    pub repack: bool,
    /// Which of the chosen experts are computed, as [`crate::engine::Routing`] spells it.
    pub routing: String,
    /// What the `scripted` engine plays back.
    pub script: Option<PathBuf>,
    pub log: Log,
    /// Whether the REPL keeps its history on disk.
    pub history: bool,
}

/// What is logged, and how.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Log {
    /// 0 = each command's default, 1 = debug, 2 = trace.
    pub verbosity: u8,
    /// A `tracing` filter; replaces `verbosity` when given.
    pub filter: Option<String>,
    pub format: LogFormat,
}

/// Shape of a log line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    Text,
    Json,
}

/// Element types of cached rows, as a setting, an option of a request and a PARAMETER spell them; `engine::KvType` says what they are.
pub const KV_TYPES: &[&str] = &["f32", "f16", "q8_0", "q4_0", "fp8"];

/// Other spellings of flags: that of the variable, for who knows it from Ollama.
pub const FLAG_ALIASES: &[(&str, &str)] = &[("kv", "kv-cache-type")];

/// One row of the table.
#[derive(Debug)]
pub struct Variable {
    /// Without prefix: `HOST` is `FATHOM_HOST`.
    pub name: &'static str,
    /// Long flag, without dashes, of the commands that [`Group`] names.
    pub flag: Option<&'static str>,
    /// Whether `OLLAMA_<name>` is honoured too.
    pub ollama: bool,
    pub group: Group,
    /// What a value looks like, for help texts.
    pub value: &'static str,
    /// The default as a person would say it.
    pub default: &'static str,
    pub help: &'static str,
    set: fn(&mut Config, &str, Source) -> Result<(), Expected>,
}

/// What a setting is about; decides which commands have a flag for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Group {
    /// Flag of `serve`.
    Server,
    /// How a model is computed; flag of `serve` and of the verbs that load a model themselves.
    Engine,
    /// Logging and the terminal: environment only.
    Program,
}

/// Where a value came from; decides how strictly it is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// `FATHOM_*`: nonsense is an error.
    Ours,
    /// `OLLAMA_*`: nonsense is a warning and the default stays.
    Ollama,
    /// A flag: nonsense is an error.
    Flag,
}

/// What a value should have looked like.
type Expected = String;

/// Why there is no [`Config`].
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("`{name}` has the value `{value}`, expected {expected}")]
    Value { name: String, value: String, expected: String },
    #[error("`{name}` is not valid UTF-8")]
    Encoding { name: String },
    #[error("no home directory: neither `HOME` nor the user database names one")]
    NoHome,
}

impl Variable {
    /// `FATHOM_HOST`
    pub fn env(&self) -> String {
        format!("FATHOM_{}", self.name)
    }

    /// `OLLAMA_HOST`, where it has a meaning here.
    pub fn ollama_env(&self) -> Option<String> {
        self.ollama.then(|| format!("OLLAMA_{}", self.name))
    }

    /// The other spelling of its flag.
    pub fn flag_alias(&self) -> Option<&'static str> {
        FLAG_ALIASES.iter().find(|(flag, _)| self.flag == Some(flag)).map(|(_, alias)| *alias)
    }

    /// The row called `name`.
    pub fn by_name(name: &str) -> Option<&'static Variable> {
        VARIABLES.iter().find(|v| v.name == name)
    }
}

impl Config {
    /// The defaults, for a user whose home directory is `home`.
    pub fn defaults(home: &std::path::Path) -> Config {
        let home = home.join(".fathom");
        Config {
            host: Host::default(),
            origins: Vec::new(),
            models: home.join("models"),
            home,
            keep_alive: Some(Duration::from_secs(5 * 60)),
            num_parallel: None,
            max_loaded_models: 3,
            max_queue: 512,
            memory: None,
            prefix_cache: 1 << 30,
            stall_limit: Some(Duration::from_secs(5 * 60)),
            idle_exit: None,
            prune: true,
            engine: "auto".into(),
            context_length: None,
            threads: None,
            batch: None,
            gpu_layers: None,
            flash_attention: None,
            kv_cache_type: "f16".into(),
            repack: true,
            routing: "off".into(),
            script: None,
            log: Log { verbosity: 0, filter: None, format: LogFormat::Text },
            history: true,
        }
    }

    /// Reads the environment of this process. The second part is what was ignored, one sentence each.
    ///
    /// # Errors
    /// [`Error::Value`] when a `FATHOM_*` variable makes no sense.
    pub fn from_env() -> Result<(Config, Vec<String>), Error> {
        let home = std::env::home_dir().filter(|h| !h.as_os_str().is_empty()).ok_or(Error::NoHome)?;
        Config::from_lookup(&home, |name| std::env::var_os(name))
    }

    /// As [`Config::from_env`], with the environment as an argument.
    pub fn from_lookup(
        home: &std::path::Path,
        lookup: impl Fn(&str) -> Option<OsString>,
    ) -> Result<(Config, Vec<String>), Error> {
        let mut config = Config::defaults(home);
        let mut warnings = Vec::new();
        for variable in VARIABLES {
            let ours = variable.env();
            let theirs = variable.ollama_env();
            let (name, value, source) = if let Some(value) = given(&ours, &lookup)? {
                (ours, value, Source::Ours)
            } else if let Some(name) = theirs
                && let Some(value) = given(&name, &lookup)?
            {
                (name, value, Source::Ollama)
            } else {
                continue;
            };
            match (variable.set)(&mut config, &value, source) {
                Ok(()) => {}
                Err(expected) if source == Source::Ollama => {
                    warnings.push(format!("`{name}` is ignored: it has the value `{value}`, expected {expected}"));
                }
                Err(expected) => return Err(Error::Value { name, value, expected }),
            }
        }
        Ok((config, warnings))
    }

    /// Applies a flag: the command line goes before the environment.
    ///
    /// # Errors
    /// [`Error::Value`] when the value makes no sense.
    pub fn apply_flag(&mut self, variable: &Variable, value: &str) -> Result<(), Error> {
        (variable.set)(self, clean(value), Source::Flag).map_err(|expected| Error::Value {
            name: variable.flag.map_or_else(|| variable.env(), |flag| format!("--{flag}")),
            value: value.to_string(),
            expected,
        })
    }
}

/// The value of a variable, without blanks and quotes around it; an empty one counts as not set.
fn given(name: &str, lookup: impl Fn(&str) -> Option<OsString>) -> Result<Option<String>, Error> {
    match lookup(name).map(OsString::into_string) {
        None => Ok(None),
        Some(Err(_)) => Err(Error::Encoding { name: name.to_string() }),
        Some(Ok(value)) => Ok(Some(clean(&value)).filter(|v| !v.is_empty()).map(String::from)),
    }
}

fn clean(value: &str) -> &str {
    value.trim().trim_matches(['"', '\''])
}

fn number<T: std::str::FromStr>(value: &str) -> Result<T, Expected> {
    value.parse().map_err(|_| "a whole number of 0 or more".to_string())
}

/// Go's `strconv.ParseBool`; under Ollama's names any other text counts as true, as it does there.
fn boolean(value: &str, source: Source) -> Result<bool, Expected> {
    match value {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Ok(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Ok(false),
        _ if source == Source::Ollama => Ok(true),
        _ => Err("`1` or `0`".into()),
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn read(environment: &[(&str, &str)]) -> Result<(Config, Vec<String>), Error> {
        let value = |name: &str| environment.iter().find(|(n, _)| *n == name).map(|(_, v)| OsString::from(v));
        Config::from_lookup(Path::new("/home/u"), value)
    }

    #[test]
    fn nothing_set_gives_the_defaults() {
        let (config, warnings) = read(&[]).unwrap();
        assert_eq!(config, Config::defaults(Path::new("/home/u")));
        assert!(warnings.is_empty());
        assert_eq!(config.models, Path::new("/home/u/.fathom/models"));
    }

    #[test]
    fn every_row_changes_the_configuration() {
        // A value other than the default for each row: a row without one, or one that does nothing, fails here.
        let values = [
            ("HOST", "127.0.0.1:1"),
            ("MODELS", "/m"),
            ("ORIGINS", "https://a, https://b"),
            ("KEEP_ALIVE", "-1"),
            ("NUM_PARALLEL", "2"),
            ("MAX_LOADED_MODELS", "2"),
            ("MAX_QUEUE", "2"),
            ("MEMORY", "1GiB"),
            ("PREFIX_CACHE", "1MiB"),
            ("STALL_LIMIT", "0"),
            ("IDLE_EXIT", "1h"),
            ("ENGINE", "scripted"),
            ("CONTEXT_LENGTH", "100"),
            ("THREADS", "2"),
            ("BATCH", "2"),
            ("GPU_LAYERS", "0"),
            ("FLASH_ATTENTION", "1"),
            ("KV_CACHE_TYPE", "Q8_0"),
            ("REPACK", "0"),
            ("ROUTING", "topk:4"),
            ("SCRIPT", "/s"),
            ("NOPRUNE", "1"),
            ("DEBUG", "2"),
            ("LOG", "warn"),
            ("LOG_FORMAT", "json"),
            ("NOHISTORY", "true"),
        ];
        assert_eq!(values.map(|(name, _)| name).to_vec(), VARIABLES.iter().map(|v| v.name).collect::<Vec<_>>());
        for (name, value) in values {
            let (config, _) = read(&[(&format!("FATHOM_{name}"), value)]).unwrap();
            assert_ne!(config, Config::defaults(Path::new("/home/u")), "{name}");
        }
    }

    #[test]
    fn ours_count_before_ollamas_and_only_where_the_meaning_is_the_same() {
        let (config, _) = read(&[("FATHOM_MAX_QUEUE", "1"), ("OLLAMA_MAX_QUEUE", "2")]).unwrap();
        assert_eq!(config.max_queue, 1);
        let (config, _) = read(&[("FATHOM_MAX_QUEUE", " "), ("OLLAMA_MAX_QUEUE", "'2'")]).unwrap();
        assert_eq!(config.max_queue, 2);
        let (config, _) = read(&[("OLLAMA_THREADS", "2")]).unwrap();
        assert_eq!(config.threads, None);
    }

    #[test]
    fn booleans_are_gos_and_lenient_under_ollamas_names() {
        for (value, kept) in [("1", false), ("T", false), ("0", true), ("False", true), ("yes", false)] {
            assert_eq!(read(&[("OLLAMA_NOHISTORY", value)]).unwrap().0.history, kept, "{value}");
        }
        let error = read(&[("FATHOM_NOHISTORY", "yes")]).unwrap_err().to_string();
        assert_eq!(error, "`FATHOM_NOHISTORY` has the value `yes`, expected `1` or `0`");
    }

    #[test]
    fn nonsense_under_ollamas_name_leaves_the_default() {
        let (config, warnings) = read(&[("OLLAMA_KEEP_ALIVE", "soon"), ("OLLAMA_HOST", "h:99999")]).unwrap();
        assert_eq!(config.keep_alive, Some(Duration::from_secs(300)));
        assert_eq!(config.host.to_string(), "h:11434");
        assert_eq!(
            warnings,
            [
                "`OLLAMA_KEEP_ALIVE` is ignored: it has the value `soon`, expected a duration such as `90s`, `1h30m` or a number of seconds"
            ]
        );
    }

    #[test]
    fn flags_are_named_in_their_errors() {
        let mut config = Config::defaults(Path::new("/home/u"));
        let row = Variable::by_name("KV_CACHE_TYPE").unwrap();
        let error = config.apply_flag(row, "q5").unwrap_err().to_string();
        assert_eq!(error, "`--kv` has the value `q5`, expected `f32`, `f16`, `q8_0`, `q4_0` or `fp8`");
    }
}
