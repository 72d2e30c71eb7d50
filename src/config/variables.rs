//! The table: one row is one setting.

use std::path::PathBuf;

use super::{Group, Host, KV_TYPES, LogFormat, Source, Variable, boolean, clean, number, parse_bytes, parse_duration};

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
        name: "STALL_LIMIT",
        flag: Some("stall-limit"),
        ollama: false,
        group: Group::Server,
        value: "DURATION",
        default: "5m",
        help: "How long a client may read nothing of its answer before the request ends with an error; a tenth of it while other requests wait for its place; 0 or negative = no limit",
        set: |c, v, _| {
            c.stall_limit = parse_duration(v).map_err(|e| e.to_string())?.filter(|limit| !limit.is_zero());
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
        help: "What computes: `auto`, `llama`, `native` (DeepSeek-V4 only) or `scripted` (plays back a script, for tests)",
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
        default: "physical cores within the CPU quota that other programs leave free",
        help: "Computing threads; 0 = the default, decided when a model is loaded",
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
        flag: Some("kv"),
        ollama: true,
        group: Group::Engine,
        value: "TYPE",
        default: "f16",
        help: "Element type of cached rows: `f32`, `f16`, `q8_0` and `q4_0` (`llama` only), `fp8` (`native` only); a request may choose another with its option `kv`",
        set: |c, v, _| {
            let word = v.to_ascii_lowercase();
            if !KV_TYPES.contains(&word.as_str()) {
                return Err("`f32`, `f16`, `q8_0`, `q4_0` or `fp8`".into());
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
        name: "ROUTING",
        flag: Some("routing"),
        ollama: false,
        group: Group::Engine,
        value: "POLICY",
        default: "off",
        help: "Compute fewer of the chosen experts: `off`, `topk:K`, `rel:T`, `mass:P`, `margin`, the name of a profile of the model, or `FILE.routing.json#NAME` (`native` only)",
        set: |c, v, _| {
            c.routing = v.to_string();
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
