//! The `options` of a request: one table of names and types, applied layer over layer.
//!
//! Precedence: request, then the model's PARAMETERs, then what the model's authors advise, then Ollama's defaults. As in Ollama, unknown names and nulls are
//! ignored, integers may be written as floats, and a value of the wrong type is an error. `mirostat` and its two constants, which Ollama
//! dropped, work here.

use serde_json::{Map, Value};

use crate::chat::family::Sampling;
use crate::config::KV_TYPES;
use crate::engine::{KvType, Routing};
use crate::sampler::{self, Mirostat};

/// Everything that a request may tune, after all layers.
#[derive(Clone, Debug, PartialEq)]
pub struct Options {
    pub sampler: sampler::Params,
    /// Most tokens of the answer; negative = until the model stops.
    pub num_predict: i64,
    pub stop: Vec<String>,
    /// Context of one sequence; `None` = the server's default.
    pub num_ctx: Option<usize>,
    pub num_batch: Option<usize>,
    pub num_thread: Option<usize>,
    /// Layers on the GPU; `None` = as many as fit.
    pub num_gpu: Option<u32>,
    pub main_gpu: Option<u32>,
    pub use_mmap: Option<bool>,
    /// Element type of cached rows; `None` = the server's.
    pub kv: Option<KvType>,
    /// Which of the chosen experts are computed; `None` = the server's default.
    pub routing: Option<Routing>,
    /// As it was written.
    routing_text: Option<String>,
    mirostat: i64,
    mirostat_tau: f32,
    mirostat_eta: f32,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            sampler: sampler::Params::default(),
            num_predict: -1,
            stop: Vec::new(),
            num_ctx: None,
            num_batch: None,
            num_thread: None,
            num_gpu: None,
            main_gpu: None,
            use_mmap: None,
            kv: None,
            routing: None,
            routing_text: None,
            mirostat: 0,
            // The defaults of the paper and of llama.cpp.
            mirostat_tau: 5.0,
            mirostat_eta: 0.1,
        }
    }
}

/// Why options were refused; the texts are Ollama's.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    #[error("option {name:?} must be of type {expected}")]
    Type { name: &'static str, expected: &'static str },
    #[error("option {name:?} must be of an array of strings")]
    Strings { name: &'static str },
    #[error("option {name:?} must be one of {}, not {given:?}", words.join(", "))]
    Word { name: &'static str, given: String, words: &'static [&'static str] },
    #[error("option \"mirostat\" must be 0, 1 or 2, not {0}")]
    Mirostat(i64),
    /// Of ours, so the text is ours.
    #[error("option \"routing\": {0}")]
    Routing(String),
}

/// How a value of each type reaches its field.
enum Set {
    Integer(fn(&mut Options, i64)),
    Float(fn(&mut Options, f32)),
    Boolean(fn(&mut Options, bool)),
    Strings(fn(&mut Options, Vec<String>)),
    /// One of these words.
    OneOf(&'static [&'static str], fn(&mut Options, &str)),
    Text(fn(&mut Options, String)),
}

/// The least context that Ollama loads a model with.
const MIN_CTX: i64 = 4;

#[rustfmt::skip]
const TABLE: &[(&str, Set)] = &[
    ("num_ctx", Set::Integer(|o, v| o.num_ctx = positive(v).map(|_| v.max(MIN_CTX) as usize))),
    ("num_batch", Set::Integer(|o, v| o.num_batch = positive(v))),
    ("num_thread", Set::Integer(|o, v| o.num_thread = positive(v))),
    // Negative = automatic; 0 = the CPU alone.
    ("num_gpu", Set::Integer(|o, v| o.num_gpu = u32::try_from(v).ok())),
    ("main_gpu", Set::Integer(|o, v| o.main_gpu = u32::try_from(v).ok())),
    ("use_mmap", Set::Boolean(|o, v| o.use_mmap = Some(v))),
    ("kv", Set::OneOf(KV_TYPES, |o, v| o.kv = v.parse().ok())),
    ("routing", Set::Text(|o, v| o.routing_text = Some(v))),
    ("num_predict", Set::Integer(|o, v| o.num_predict = v)),
    ("stop", Set::Strings(|o, v| o.stop = v)),
    ("seed", Set::Integer(|o, v| o.sampler.seed = (v != -1).then_some(v as u64))),
    ("temperature", Set::Float(|o, v| o.sampler.temperature = v)),
    ("top_k", Set::Integer(|o, v| o.sampler.top_k = positive(v).unwrap_or(0))),
    ("top_p", Set::Float(|o, v| o.sampler.top_p = v)),
    ("min_p", Set::Float(|o, v| o.sampler.min_p = v)),
    ("typical_p", Set::Float(|o, v| o.sampler.typical_p = v)),
    // Negative = the whole context.
    ("repeat_last_n", Set::Integer(|o, v| o.sampler.repeat_last_n = usize::try_from(v).ok())),
    ("repeat_penalty", Set::Float(|o, v| o.sampler.repeat_penalty = v)),
    ("presence_penalty", Set::Float(|o, v| o.sampler.presence_penalty = v)),
    ("frequency_penalty", Set::Float(|o, v| o.sampler.frequency_penalty = v)),
    ("mirostat", Set::Integer(|o, v| o.mirostat = v)),
    ("mirostat_tau", Set::Float(|o, v| o.mirostat_tau = v)),
    ("mirostat_eta", Set::Float(|o, v| o.mirostat_eta = v)),
    // Ollama's types are checked, but there is nothing that they could change: these caches do not shift, and there is no draft model yet.
    ("num_keep", Set::Integer(|_, _| {})),
    ("draft_num_predict", Set::Integer(|_, _| {})),
];

fn positive(value: i64) -> Option<usize> {
    usize::try_from(value).ok().filter(|&value| value > 0)
}

impl Options {
    /// Applies `layers` over the defaults, the weakest first: the model's parameters, then the request's options.
    ///
    /// # Errors
    /// The first value of a wrong type, in the order of the layers.
    pub fn new(layers: &[&Map<String, Value>]) -> Result<Options, Error> {
        Options::advised(Sampling::default(), layers)
    }

    /// As [`Options::new`], with advice that goes before the defaults.
    ///
    /// # Errors
    /// As [`Options::new`].
    pub fn advised(advised: Sampling, layers: &[&Map<String, Value>]) -> Result<Options, Error> {
        let mut options = Options::default();
        let sampler = &mut options.sampler;
        sampler.temperature = advised.temperature.unwrap_or(sampler.temperature);
        sampler.top_p = advised.top_p.unwrap_or(sampler.top_p);
        sampler.top_k = advised.top_k.unwrap_or(sampler.top_k);
        for (key, value) in layers.iter().flat_map(|layer| layer.iter()) {
            match TABLE.iter().find(|(name, _)| name == key) {
                Some((name, set)) => set.apply(name, value, &mut options)?,
                None => tracing::debug!(option = key, "unknown option ignored"),
            }
        }
        // Only what counts in the end is read.
        let routing = options.routing_text.take().map(|text| text.parse::<Routing>()).transpose();
        options.routing = routing.map_err(|error| Error::Routing(error.to_string()))?;
        let (tau, eta) = (options.mirostat_tau, options.mirostat_eta);
        options.sampler.mirostat = match options.mirostat {
            0 => Mirostat::Off,
            1 => Mirostat::V1 { tau, eta },
            2 => Mirostat::V2 { tau, eta },
            other => return Err(Error::Mirostat(other)),
        };
        Ok(options)
    }

    /// The token budget of an answer in a context of `n_ctx` tokens; `None` = no budget of its own.
    pub fn max_tokens(&self) -> Option<usize> {
        usize::try_from(self.num_predict).ok()
    }
}

impl Set {
    fn apply(&self, name: &'static str, value: &Value, to: &mut Options) -> Result<(), Error> {
        if value.is_null() {
            return Ok(());
        }
        let wrong = |expected| Error::Type { name, expected };
        match self {
            Set::Integer(set) => set(to, integer(value).ok_or(wrong("integer"))?),
            Set::Float(set) => set(to, float(value).ok_or(wrong("float32"))?),
            Set::Boolean(set) => set(to, value.as_bool().ok_or(wrong("boolean"))?),
            Set::Strings(set) => {
                let array = value.as_array().ok_or(wrong("array"))?;
                let strings: Option<Vec<String>> = array.iter().map(|item| item.as_str().map(str::to_owned)).collect();
                set(to, strings.ok_or(Error::Strings { name })?);
            }
            Set::OneOf(words, set) => {
                let given = value.as_str().ok_or(wrong("string"))?;
                if !words.contains(&given) {
                    return Err(Error::Word { name, given: given.to_owned(), words });
                }
                set(to, given);
            }
            Set::Text(set) => set(to, value.as_str().ok_or(wrong("string"))?.to_owned()),
        }
        Ok(())
    }
}

/// Go reads every JSON number as a float and cuts it: `10.9` is 10. Out of range saturates.
fn integer(value: &Value) -> Option<i64> {
    value.as_i64().or_else(|| value.as_f64().map(|float| float as i64))
}

/// A number that is still finite as f32.
fn float(value: &Value) -> Option<f32> {
    value.as_f64().map(|float| float as f32).filter(|float| float.is_finite())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn options(layers: &[Value]) -> Result<Options, Error> {
        let layers: Vec<&Map<String, Value>> = layers.iter().map(|l| l.as_object().unwrap()).collect();
        Options::new(&layers)
    }

    #[test]
    fn nothing_said_gives_ollamas_defaults() {
        let options = options(&[]).unwrap();
        assert_eq!(options.sampler, sampler::Params::default());
        assert_eq!(options.max_tokens(), None);
        assert_eq!(options.num_ctx, None);
    }

    #[test]
    fn advice_goes_before_the_defaults_and_behind_everything_else() {
        let advised = Sampling { temperature: Some(1.0), top_p: Some(1.0), top_k: Some(0) };
        let request = json!({"top_p": 0.5});
        let options = Options::advised(advised, &[request.as_object().unwrap()]).unwrap();
        let sampler = &options.sampler;
        assert_eq!((sampler.temperature, sampler.top_p, sampler.top_k, sampler.min_p), (1.0, 0.5, 0, 0.0));
    }

    #[test]
    fn a_request_overrides_the_model_value_by_value() {
        let options = options(&[
            json!({"temperature": 0.5, "top_k": 10, "stop": ["a", "b"]}),
            json!({"temperature": 0, "stop": ["c"], "top_k": null}),
        ])
        .unwrap();
        assert_eq!(options.sampler.temperature, 0.0);
        assert_eq!(options.sampler.top_k, 10, "a null leaves the model's value");
        assert_eq!(options.stop, ["c"]);
    }

    #[test]
    fn integers_may_be_floats_and_special_values_have_their_meaning() {
        let options = options(&[json!({
            "num_ctx": 8192.9, "num_predict": 12.7, "seed": 42, "repeat_last_n": -1, "top_k": -5, "num_gpu": 0, "num_thread": 0,
            "mirostat": 2, "mirostat_tau": 3, "num_keep": 7, "unheard_of": {"x": 1},
        })])
        .unwrap();
        assert_eq!(options.num_ctx, Some(8192));
        assert_eq!(options.max_tokens(), Some(12));
        assert_eq!(options.sampler.seed, Some(42));
        assert_eq!(options.sampler.repeat_last_n, None);
        assert_eq!(options.sampler.top_k, 0);
        assert_eq!(options.num_gpu, Some(0));
        assert_eq!(options.num_thread, None);
        assert_eq!(options.sampler.mirostat, Mirostat::V2 { tau: 3.0, eta: 0.1 });
    }

    #[test]
    fn a_random_seed_a_tiny_context_and_an_automatic_one() {
        let one = options(&[json!({"seed": -1, "num_ctx": 1})]).unwrap();
        assert_eq!((one.sampler.seed, one.num_ctx), (None, Some(4)));
        assert_eq!(options(&[json!({"num_ctx": 0})]).unwrap().num_ctx, None);
    }

    #[test]
    fn wrong_types_have_ollamas_texts() {
        for (value, text) in [
            (json!({"num_ctx": "8"}), r#"option "num_ctx" must be of type integer"#),
            (json!({"num_keep": true}), r#"option "num_keep" must be of type integer"#),
            (json!({"temperature": "hot"}), r#"option "temperature" must be of type float32"#),
            (json!({"top_p": 1e300}), r#"option "top_p" must be of type float32"#),
            (json!({"use_mmap": 1}), r#"option "use_mmap" must be of type boolean"#),
            (json!({"stop": "\n"}), r#"option "stop" must be of type array"#),
            (json!({"stop": ["a", 1]}), r#"option "stop" must be of an array of strings"#),
            (json!({"kv": 8}), r#"option "kv" must be of type string"#),
            (json!({"kv": "q5"}), r#"option "kv" must be one of f32, f16, q8_0, q4_0, fp8, not "q5""#),
            (json!({"mirostat": 3}), r#"option "mirostat" must be 0, 1 or 2, not 3"#),
            (json!({"routing": 4}), r#"option "routing" must be of type string"#),
        ] {
            assert_eq!(options(&[value]).unwrap_err().to_string(), text);
        }
    }

    #[test]
    fn every_type_of_cached_rows_can_be_asked_for() {
        for word in KV_TYPES {
            let kv = options(&[json!({"kv": word})]).unwrap().kv;
            assert_eq!(kv.map(KvType::name), Some(*word));
        }
        assert_eq!(options(&[json!({"kv": null})]).unwrap().kv, None);
    }

    #[test]
    fn the_last_routing_policy_counts_and_nonsense_is_named() {
        let of = |layers: &[Value]| options(layers).map(|options| options.routing);
        assert_eq!(of(&[]).unwrap(), None);
        assert_eq!(of(&[json!({"routing": "topk:4"}), json!({"routing": null})]).unwrap(), Some(Routing::TopK(4)));
        assert_eq!(of(&[json!({"routing": "topk:4"}), json!({"routing": "off"})]).unwrap(), Some(Routing::Off));
        let error = of(&[json!({"routing": "topk:many"})]).unwrap_err().to_string();
        assert!(error.starts_with("option \"routing\": `topk:many` is not a routing policy"), "{error}");
    }

    /// What a Modelfile may set is what a request may set, with the same types.
    #[test]
    fn parameters_of_modelfiles_are_these_options() {
        use crate::modelfile::{PARAMETERS, ParameterType};
        let mut parameters: Vec<_> = PARAMETERS.to_vec();
        let mut options: Vec<_> = TABLE
            .iter()
            .map(|(name, set)| {
                let kind = match set {
                    Set::Integer(_) => ParameterType::Integer,
                    Set::Float(_) => ParameterType::Float,
                    Set::Boolean(_) => ParameterType::Boolean,
                    Set::Strings(_) => ParameterType::Strings,
                    Set::OneOf(words, _) => ParameterType::OneOf(words),
                    Set::Text(_) => ParameterType::Text,
                };
                (*name, kind)
            })
            .collect();
        parameters.sort_by_key(|(name, _)| *name);
        options.sort_by_key(|(name, _)| *name);
        assert_eq!(parameters, options);
    }
}
