//! From what a user calls a model to a file of weights, for the verbs that load one in this process.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use anyhow::Context;

use super::{connect, hint, progress};
use crate::config::Config;
use crate::modelfile::{CreateError, bundled};
use crate::store::{self, Model, Name, Store};

/// The stored model called `text`. The one that comes inside the program is made first if it was never used.
///
/// # Errors
/// There is none.
pub(super) fn stored(text: &str, config: &Config) -> anyhow::Result<Model> {
    let store = Store::open(&config.models)?;
    let name = store.resolve(&Name::parse(text)?);
    if bundled::is_name(&name) {
        let bar = progress::spinner(format!("looking for `{name}`"));
        let made = bundled::ensure(&store, &name, &mut |_| ControlFlow::Continue(()));
        bar.finish_and_clear();
        made.map_err(explained)?;
    }
    store.model(&name).map_err(|error| match error {
        store::Error::NotFound(_) => hint(error, "`fathom list` shows what is installed; a `.gguf` file works too"),
        error => error.into(),
    })
}

fn explained(error: CreateError) -> anyhow::Error {
    match error {
        CreateError::NotBundled(_) => connect::no_bundle(error),
        error => error.into(),
    }
}

/// `text` is a file when it looks or turns out like one, and the name of a stored model otherwise.
///
/// # Errors
/// There is no such model, or it has no weights of its own.
pub(super) fn locate(text: &str, config: &Config) -> anyhow::Result<PathBuf> {
    let path = Path::new(text);
    if path.extension().is_some_and(|extension| extension == "gguf") || path.is_file() {
        return Ok(path.to_owned());
    }
    let model = stored(text, config)?;
    model.weights.into_iter().next().with_context(|| format!("model `{text}` has no weights"))
}
