//! From what a user calls a model to a file of weights, for the verbs that load one in this process.

use std::path::{Path, PathBuf};

use anyhow::Context;

use crate::config::Config;
use crate::store::{Name, Store};

/// `text` is a file when it looks or turns out like one, and the name of a stored model otherwise.
///
/// # Errors
/// There is no such model, or it has no weights of its own.
pub(super) fn locate(text: &str, config: &Config) -> anyhow::Result<PathBuf> {
    let path = Path::new(text);
    if path.extension().is_some_and(|extension| extension == "gguf") || path.is_file() {
        return Ok(path.to_owned());
    }
    let store = Store::open(&config.models)?;
    let model = store.model(&store.resolve(&Name::parse(text)?))?;
    model.weights.into_iter().next().with_context(|| format!("model `{text}` has no weights"))
}
