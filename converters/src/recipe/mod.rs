//! How one architecture's checkpoint becomes GGUF tensors: pure data in, pure data out.
//!
//! A recipe looks at config.json and at the names, dtypes and shapes of the released tensors (the [`Catalog`]) and returns a
//! [`Plan`]: every output tensor with its sources, its encoding and its type. It reads no tensor data; the one decision that
//! depends on data (is BF16 wide enough for this tensor's scales?) is asked of the caller through a [`Picker`]. `convert` answers
//! from the checkpoint and the user's choices; `export` and `verify` run the same recipe over the names recorded in a GGUF and
//! answer with the types they find there, which is what makes export the mirror of conversion.

pub mod deepseek_v4;

use std::collections::HashMap;

use fathom_gguf::{DType, Metadata};
pub use safetensors::Dtype;

use crate::Error;
use crate::transcode::Encoding;

/// One row of the table of architectures.
pub struct Recipe {
    /// `model_type` of config.json.
    pub model_type: &'static str,
    /// For messages.
    pub describes: &'static str,
    /// Makes the plan.
    pub plan: fn(&serde_json::Value, &Catalog, Option<Release>, Picker<'_>) -> Result<Plan, Error>,
}

/// Every architecture that can be converted.
pub const RECIPES: [Recipe; 1] = [Recipe {
    model_type: "deepseek_v4",
    describes: "DeepSeek-V4 (Flash, Pro, their Base forms, 0731 and 0813)",
    plan: deepseek_v4::plan,
}];

/// Finds the recipe of a checkpoint.
///
/// # Errors
/// [`Error::V41`], [`Error::Architecture`], or a config without `model_type`.
pub fn for_config(config: &serde_json::Value) -> Result<&'static Recipe, Error> {
    let model_type = config.get("model_type").and_then(|value| value.as_str());
    let model_type = model_type.ok_or_else(|| Error::config("model_type", "is missing or no string"))?;
    if let Some(recipe) = RECIPES.iter().find(|recipe| recipe.model_type == model_type) {
        return Ok(recipe);
    }
    if model_type.starts_with("deepseek_v41") {
        return Err(Error::V41 { model_type: model_type.into() });
    }
    let supported: Vec<String> =
        RECIPES.iter().map(|recipe| format!("`{}`: {}", recipe.model_type, recipe.describes)).collect();
    Err(Error::Architecture { model_type: model_type.into(), supported: supported.join(", ") })
}

/// A released tensor without its data.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Released {
    /// safetensors element type.
    pub dtype: Dtype,
    /// Outermost axis first. `None` when only the name was recorded (export): the recipe then knows it.
    pub shape: Option<Vec<u64>>,
}

/// All released tensors, in the order of the checkpoint's shards.
#[derive(Debug, Default)]
pub struct Catalog {
    names: Vec<String>,
    index: HashMap<String, Released>,
}

impl Catalog {
    /// Adds a tensor; the last one of a name wins, which a checkpoint's index has already excluded.
    pub fn insert(&mut self, name: impl Into<String>, released: Released) {
        let name = name.into();
        if self.index.insert(name.clone(), released).is_none() {
            self.names.push(name);
        }
    }

    /// The tensor of this name.
    pub fn get(&self, name: &str) -> Option<&Released> {
        self.index.get(name)
    }

    /// The same, with the catalog's own copy of the name.
    pub(crate) fn entry(&self, name: &str) -> Option<(&str, &Released)> {
        self.index.get_key_value(name).map(|(name, released)| (name.as_str(), released))
    }

    /// Names in order.
    pub fn names(&self) -> &[String] {
        &self.names
    }
}

/// Which release of a family a checkpoint is; it decides the generation of the prompt.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Release {
    /// V4-Flash and V4-Pro of April 2026.
    April,
    /// V4-Flash-0731.
    July,
    /// V4-Pro-0813.
    August,
    /// The Base checkpoints (FP8 experts, not instruction-tuned).
    Base,
}

impl Release {
    /// All, in the order of their dates.
    pub const ALL: [Release; 4] = [Release::Base, Release::April, Release::July, Release::August];

    /// The value of `fathom.source.release`.
    pub fn key(self) -> &'static str {
        match self {
            Release::April => "v4_april",
            Release::July => "v4_0731",
            Release::August => "v4_0813",
            Release::Base => "v4_base",
        }
    }

    /// The inverse of [`Release::key`].
    pub fn from_key(key: &str) -> Option<Release> {
        Release::ALL.into_iter().find(|release| release.key() == key)
    }
}

/// What a tensor is for: errors of lossy choices are reported, and sizes are added up, by family.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[expect(missing_docs, reason = "each is named by its label")]
pub enum Family {
    Embedding,
    Attention,
    Compressor,
    Indexer,
    Router,
    RoutedExperts,
    SharedExperts,
    HyperConnections,
    Norms,
    Draft,
}

impl Family {
    /// For tables.
    pub fn label(self) -> &'static str {
        match self {
            Family::Embedding => "embedding and output",
            Family::Attention => "attention projections",
            Family::Compressor => "compressors",
            Family::Indexer => "indexers",
            Family::Router => "routers",
            Family::RoutedExperts => "routed experts",
            Family::SharedExperts => "shared experts",
            Family::HyperConnections => "hyper-connections",
            Family::Norms => "norms and sinks",
            Family::Draft => "draft projections",
        }
    }
}

/// One released tensor (and its scale) as part of an output tensor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Part {
    /// Released name.
    pub weight: String,
    /// Released name of the scale.
    pub scale: Option<String>,
    /// Product of all axes but the innermost.
    pub rows: u64,
    /// Values of the innermost axis.
    pub columns: u64,
    /// Released shape.
    pub shape: Vec<u64>,
}

/// How parts make one tensor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Join {
    /// One after the other (experts; also a single part).
    Stack,
    /// Each row is the parts' rows side by side.
    Columns,
}

/// One output tensor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Planned {
    /// GGUF name.
    pub name: String,
    /// GGUF type.
    pub dtype: DType,
    /// Shape in GGUF order: the contiguous axis first.
    pub ne: Vec<u64>,
    /// Encoding of all parts.
    pub encoding: Encoding,
    /// What it is for.
    pub family: Family,
    /// Where it comes from.
    pub parts: Vec<Part>,
    /// How the parts are joined.
    pub join: Join,
}

impl Planned {
    /// Whether the released bytes can be rebuilt from it.
    pub fn lossless(&self) -> bool {
        self.encoding.lossless_as(self.dtype)
    }

    /// Names of the released tensors in it: weight, scale, weight, ...
    pub fn released(&self) -> impl Iterator<Item = &str> {
        self.parts.iter().flat_map(|part| std::iter::once(part.weight.as_str()).chain(part.scale.as_deref()))
    }

    /// Bytes of the tensor in the file.
    pub fn bytes(&self) -> u64 {
        self.dtype.tensor_bytes(&self.ne).expect("checked when it was planned")
    }
}

/// Decides the type of each output tensor; the tensor's own is the recipe's proposal, lossless in range.
pub type Picker<'a> = &'a mut dyn FnMut(&Planned) -> Result<DType, Error>;

/// One output file.
#[derive(Debug)]
pub struct FilePlan {
    /// `general.architecture`.
    pub architecture: &'static str,
    /// The architecture's own keys.
    pub keys: Metadata,
    /// Whether the file carries the vocabulary.
    pub tokenizer: bool,
    /// Output tensors in file order.
    pub tensors: Vec<Planned>,
}

impl FilePlan {
    /// Bytes of all tensors, without header and padding.
    pub fn tensor_bytes(&self) -> u64 {
        self.tensors.iter().map(Planned::bytes).sum()
    }
}

/// Everything that conversion will write.
#[derive(Debug)]
pub struct Plan {
    /// Which release the checkpoint is.
    pub release: Release,
    /// The model.
    pub trunk: FilePlan,
    /// The draft blocks, if the checkpoint has any.
    pub draft: Option<FilePlan>,
    /// What the user should know before starting.
    pub warnings: Vec<String>,
}

/// Typed access to config.json with errors that name the field.
pub(crate) struct Fields<'a>(pub &'a serde_json::Value);

impl<'a> Fields<'a> {
    pub(crate) fn get(&self, field: &str) -> Result<&'a serde_json::Value, Error> {
        field
            .split('.')
            .try_fold(self.0, |value, key| value.get(key))
            .filter(|value| !value.is_null())
            .ok_or_else(|| Error::config(field, "is missing"))
    }

    pub(crate) fn has(&self, field: &str) -> bool {
        self.get(field).is_ok()
    }

    /// An integer within 0..=`most`.
    pub(crate) fn u32(&self, field: &str, most: u32) -> Result<u32, Error> {
        let value = self.get(field)?;
        let number = value.as_u64().and_then(|number| u32::try_from(number).ok());
        match number {
            Some(number) if number <= most => Ok(number),
            _ => Err(Error::config(field, format!("is {value}, expected an integer up to {most}"))),
        }
    }

    pub(crate) fn f32(&self, field: &str) -> Result<f32, Error> {
        let value = self.get(field)?;
        match value.as_f64() {
            Some(number) if (number as f32).is_finite() => Ok(number as f32),
            _ => Err(Error::config(field, format!("is {value}, expected a number"))),
        }
    }

    pub(crate) fn bool(&self, field: &str) -> Result<bool, Error> {
        let value = self.get(field)?;
        value.as_bool().ok_or_else(|| Error::config(field, format!("is {value}, expected true or false")))
    }

    pub(crate) fn str(&self, field: &str) -> Result<&'a str, Error> {
        let value = self.get(field)?;
        value.as_str().ok_or_else(|| Error::config(field, format!("is {value}, expected a string")))
    }

    pub(crate) fn u32s(&self, field: &str, most: u32) -> Result<Vec<u32>, Error> {
        let value = self.get(field)?;
        let numbers = value.as_array().and_then(|items| {
            items.iter().map(|item| item.as_u64().and_then(|n| u32::try_from(n).ok()).filter(|n| *n <= most)).collect()
        });
        numbers.ok_or_else(|| Error::config(field, format!("is not a list of integers up to {most}")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn other_architectures_are_refused_with_the_list() {
        let error = for_config(&json!({"model_type": "llama"})).err().unwrap().to_string();
        assert!(error.contains("`llama`") && error.contains("deepseek_v4"), "{error}");
        assert!(matches!(for_config(&json!({"model_type": "deepseek_v3"})), Err(Error::Architecture { .. })));
        assert!(matches!(for_config(&json!({})), Err(Error::Config { .. })));
    }

    #[test]
    fn v41_is_refused_with_an_explanation() {
        let error = for_config(&json!({"model_type": "deepseek_v41"})).err().unwrap();
        assert!(error.to_string().contains("another architecture than DeepSeek-V4"), "{error}");
        assert!(error.hint().is_some());
    }

    #[test]
    fn config_errors_name_the_field() {
        let config = json!({"a": {"b": -3}, "c": [1, 9]});
        let fields = Fields(&config);
        assert_eq!(
            fields.u32("a.b", 10).unwrap_err().to_string(),
            "config.json: `a.b` is -3, expected an integer up to 10"
        );
        assert_eq!(fields.u32("a.x", 10).unwrap_err().to_string(), "config.json: `a.x` is missing");
        assert!(fields.u32s("c", 8).is_err());
        assert_eq!(fields.u32s("c", 9).unwrap(), [1, 9]);
    }
}
