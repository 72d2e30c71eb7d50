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

pub use bytes::{ParseBytesError, parse_bytes};
pub use docs::markdown;
pub use duration::{ParseDurationError, parse_duration};
pub use host::{DEFAULT_PORT, Host, ListenOn, ParseHostError, Scheme};

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
    /// The server ends when no model was loaded for this long; zero = it does not, `None` = nobody said.
    pub idle_exit: Option<Duration>,
    /// Whether the server removes blobs that no model uses when it starts.
    pub prune: bool,
    /// Name of the engine, as [`crate::engine::Kind`] spells it.
    pub engine: String,
    /// Context of one sequence in tokens; `None` = what the model was trained for, as far as memory allows.
    pub context_length: Option<usize>,
    /// Computing threads; `None` = physical cores within the CPU quota.
    pub threads: Option<usize>,
    /// Tokens of one engine step; `None` = the engine's measured default.
    pub batch: Option<usize>,
    /// Layers on the GPU; `None` = as many as fit.
    pub gpu_layers: Option<u32>,
    /// `None` = the engine decides.
    pub flash_attention: Option<bool>,
    /// Element type of cached keys and values, as [`crate::engine::KvType`] spells it.
    pub kv_cache_type: String,
    /// Whether ggml copies weights into a layout its matrix kernels prefer.
    pub repack: bool,
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

    /// The row called `name`.
    pub fn by_name(name: &str) -> Option<&'static Variable> {
        VARIABLES.iter().find(|v| v.name == name)
    }
}

/// All settings. `docs/configuration.md` and the flags of `serve` come from here.
pub static VARIABLES: &[Variable] = &[
    Variable {
        name: "HOST",
        flag: Some("host"),
        ollama: true,
        group: Group::Server,
        value: "ADDRESS",
        default: "127.0.0.1:11434",
        help: "Where the server listens and where clients look for it: `host`, `host:port`, `:port` (every interface), `[v6]:port` or a URL",
        set: |c, v, source| {
            c.host = Host::parse(v, source == Source::Ollama).map_err(|e| e.to_string())?;
            Ok(())
        },
    },
    Variable {
        name: "MODELS",
        flag: Some("models"),
        ollama: true,
        group: Group::Server,
        value: "DIR",
        default: "~/.fathom/models",
        help: "Where models are stored; an Ollama model folder can be used in place",
        set: |c, v, _| {
            c.models = PathBuf::from(v);
            Ok(())
        },
    },
    Variable {
        name: "ORIGINS",
        flag: Some("origins"),
        ollama: true,
        group: Group::Server,
        value: "LIST",
        default: "local origins only",
        help: "More web origins that may call the server, separated by commas; `*` stands for anything",
        set: |c, v, _| {
            c.origins = v.split(',').map(clean).filter(|s| !s.is_empty()).map(String::from).collect();
            Ok(())
        },
    },
    Variable {
        name: "KEEP_ALIVE",
        flag: Some("keep-alive"),
        ollama: true,
        group: Group::Server,
        value: "DURATION",
        default: "5m",
        help: "How long an unused model stays loaded: `90s`, `1h30m` or seconds; negative = until the server ends, 0 = not at all",
        set: |c, v, _| {
            c.keep_alive = parse_duration(v).map_err(|e| e.to_string())?;
            Ok(())
        },
    },
    Variable {
        name: "NUM_PARALLEL",
        flag: Some("num-parallel"),
        ollama: true,
        group: Group::Server,
        value: "N",
        default: "as memory allows",
        help: "Requests that one loaded model answers at the same time; 0 = as memory allows",
        set: |c, v, _| {
            c.num_parallel = Some(number(v)?).filter(|n| *n > 0);
            Ok(())
        },
    },
    Variable {
        name: "MAX_LOADED_MODELS",
        flag: Some("max-loaded-models"),
        ollama: true,
        group: Group::Server,
        value: "N",
        default: "3",
        help: "Most models that are loaded at the same time; 0 = the default",
        set: |c, v, _| {
            if let n @ 1.. = number(v)? {
                c.max_loaded_models = n;
            }
            Ok(())
        },
    },
    Variable {
        name: "MAX_QUEUE",
        flag: Some("max-queue"),
        ollama: true,
        group: Group::Server,
        value: "N",
        default: "512",
        help: "Requests that may wait for their turn; more are refused with status 503",
        set: |c, v, _| {
            c.max_queue = number(v)?;
            Ok(())
        },
    },
    Variable {
        name: "MEMORY",
        flag: Some("memory"),
        ollama: false,
        group: Group::Server,
        value: "BYTES",
        default: "what the machine has free",
        help: "Memory for all loaded models together: `24GiB`, `500MB` or bytes",
        set: |c, v, _| {
            c.memory = Some(parse_bytes(v).map_err(|e| e.to_string())?);
            Ok(())
        },
    },
    Variable {
        name: "PREFIX_CACHE",
        flag: Some("prefix-cache"),
        ollama: false,
        group: Group::Server,
        value: "BYTES",
        default: "1GiB",
        help: "Memory per loaded model for states of prompts that may come again",
        set: |c, v, _| {
            c.prefix_cache = parse_bytes(v).map_err(|e| e.to_string())?;
            Ok(())
        },
    },
    Variable {
        name: "NOPRUNE",
        flag: None,
        ollama: true,
        group: Group::Program,
        value: "BOOL",
        default: "0",
        help: "`1` = `fathom serve` leaves blobs that no model uses in the store",
        set: |c, v, source| {
            c.prune = !boolean(v, source)?;
            Ok(())
        },
    },
    Variable {
        name: "IDLE_EXIT",
        flag: Some("idle-exit"),
        ollama: false,
        group: Group::Server,
        value: "DURATION",
        default: "never; 30m for a server that `fathom run` started",
        help: "The server ends by itself when no model was loaded for this long; 0 or negative = never",
        set: |c, v, _| {
            c.idle_exit = Some(parse_duration(v).map_err(|e| e.to_string())?.unwrap_or_default());
            Ok(())
        },
    },
    Variable {
        name: "ENGINE",
        flag: Some("engine"),
        ollama: false,
        group: Group::Engine,
        value: "NAME",
        default: "auto",
        help: "What computes: `auto`, `llama` or `scripted` (plays back a script, for tests)",
        set: |c, v, _| {
            c.engine = v.to_string();
            Ok(())
        },
    },
    Variable {
        name: "CONTEXT_LENGTH",
        flag: Some("context-length"),
        ollama: true,
        group: Group::Engine,
        value: "TOKENS",
        default: "what the model was trained for, as memory allows",
        help: "Context of one sequence when a request does not say `num_ctx`; 0 = what the model was trained for",
        set: |c, v, _| {
            c.context_length = Some(number(v)?).filter(|n| *n > 0);
            Ok(())
        },
    },
    Variable {
        name: "THREADS",
        flag: Some("threads"),
        ollama: false,
        group: Group::Engine,
        value: "N",
        default: "physical cores within the CPU quota",
        help: "Computing threads; 0 = physical cores within the CPU quota",
        set: |c, v, _| {
            c.threads = Some(number(v)?).filter(|n| *n > 0);
            Ok(())
        },
    },
    Variable {
        name: "BATCH",
        flag: Some("batch"),
        ollama: false,
        group: Group::Engine,
        value: "TOKENS",
        default: "512",
        help: "Most tokens that one engine step computes",
        set: |c, v, _| {
            c.batch = Some(number(v)?).filter(|n| *n > 0);
            Ok(())
        },
    },
    Variable {
        name: "GPU_LAYERS",
        flag: Some("gpu-layers"),
        ollama: false,
        group: Group::Engine,
        value: "N",
        default: "as many as fit",
        help: "Layers that are computed on the GPU",
        set: |c, v, _| {
            c.gpu_layers = Some(number(v)?);
            Ok(())
        },
    },
    Variable {
        name: "FLASH_ATTENTION",
        flag: Some("flash-attention"),
        ollama: true,
        group: Group::Engine,
        value: "BOOL",
        default: "the engine decides",
        help: "Whether attention is computed without storing its score matrix: `1` or `0`",
        set: |c, v, source| {
            c.flash_attention = Some(boolean(v, source)?);
            Ok(())
        },
    },
    Variable {
        name: "KV_CACHE_TYPE",
        flag: Some("kv-cache-type"),
        ollama: true,
        group: Group::Engine,
        value: "TYPE",
        default: "f16",
        help: "Element type of cached keys and values: `f32`, `f16`, `q8_0` or `q4_0`",
        set: |c, v, _| {
            let word = v.to_ascii_lowercase();
            if !["f32", "f16", "q8_0", "q4_0"].contains(&word.as_str()) {
                return Err("`f32`, `f16`, `q8_0` or `q4_0`".into());
            }
            c.kv_cache_type = word;
            Ok(())
        },
    },
    Variable {
        name: "REPACK",
        flag: Some("repack"),
        ollama: false,
        group: Group::Engine,
        value: "BOOL",
        default: "1",
        help: "Copy weights into a layout that computes faster: `1`, or `0` to use them where they are mapped, for files larger than memory",
        set: |c, v, source| {
            c.repack = boolean(v, source)?;
            Ok(())
        },
    },
    Variable {
        name: "SCRIPT",
        flag: Some("script"),
        ollama: false,
        group: Group::Engine,
        value: "FILE",
        default: "none",
        help: "What the engine `scripted` plays back",
        set: |c, v, _| {
            c.script = Some(PathBuf::from(v));
            Ok(())
        },
    },
    Variable {
        name: "DEBUG",
        flag: None,
        ollama: true,
        group: Group::Program,
        value: "LEVEL",
        default: "0",
        help: "More logging: `1` = debug, `2` = trace",
        set: |c, v, source| {
            c.log.verbosity = match v.parse::<i64>() {
                Ok(n) => n.clamp(0, 2) as u8,
                Err(_) => u8::from(boolean(v, source).map_err(|_| "`0`, `1` or `2`".to_string())?),
            };
            Ok(())
        },
    },
    Variable {
        name: "LOG",
        flag: None,
        ollama: false,
        group: Group::Program,
        value: "FILTER",
        default: "none",
        help: "Exact choice of what is logged, such as `warn,fathom::scheduler=debug`; replaces `FATHOM_DEBUG`",
        set: |c, v, _| {
            c.log.filter = Some(v.to_string());
            Ok(())
        },
    },
    Variable {
        name: "LOG_FORMAT",
        flag: None,
        ollama: false,
        group: Group::Program,
        value: "FORMAT",
        default: "text",
        help: "Log lines for people (`text`) or for programs (`json`)",
        set: |c, v, _| {
            c.log.format = match v {
                "text" => LogFormat::Text,
                "json" => LogFormat::Json,
                _ => return Err("`text` or `json`".into()),
            };
            Ok(())
        },
    },
    Variable {
        name: "NOHISTORY",
        flag: None,
        ollama: true,
        group: Group::Program,
        value: "BOOL",
        default: "0",
        help: "`1` = `fathom run` keeps no history of what was typed",
        set: |c, v, source| {
            c.history = !boolean(v, source)?;
            Ok(())
        },
    },
];

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
            ("IDLE_EXIT", "1h"),
            ("ENGINE", "scripted"),
            ("CONTEXT_LENGTH", "100"),
            ("THREADS", "2"),
            ("BATCH", "2"),
            ("GPU_LAYERS", "0"),
            ("FLASH_ATTENTION", "1"),
            ("KV_CACHE_TYPE", "Q8_0"),
            ("REPACK", "0"),
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
        assert_eq!(error, "`--kv-cache-type` has the value `q5`, expected `f32`, `f16`, `q8_0` or `q4_0`");
    }
}
