//! From what a user calls a model to its files, for the verbs that open one in this process.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use anyhow::Context;
use fathom_converters::Location;
use fathom_gguf::File;

use super::{connect, hint, progress};
use crate::config::Config;
use crate::modelfile::{CreateError, bundled};
use crate::store::{self, Model, Name, Store};

/// The stored model called `text`. The one that comes inside the program is made first if it was never used.
///
/// # Errors
/// There is none.
fn stored(text: &str, config: &Config) -> anyhow::Result<Model> {
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

/// What a name turns out to mean.
enum Named {
    File(PathBuf),
    Installed(Box<Model>),
}

/// A file when it looks or turns out like one, and a model of the store otherwise.
fn resolve(text: &Path, config: &Config) -> anyhow::Result<Named> {
    let name = match text.to_str() {
        Some(name) if !connect::is_file_name(name) && !name.starts_with(['/', '.', '~']) && !text.is_file() => name,
        _ => return Ok(Named::File(text.to_path_buf())),
    };
    Ok(Named::Installed(Box::new(stored(name, config)?)))
}

/// The model with everything that is known about it.
///
/// # Errors
/// There is no such model, or it cannot be read.
pub(super) fn model(text: &str, config: &Config) -> anyhow::Result<Model> {
    match resolve(Path::new(text), config)? {
        Named::File(path) => Model::from_gguf(&path).with_context(|| format!("cannot open `{text}`")),
        Named::Installed(model) => Ok(*model),
    }
}

/// The model's weights, opened, and its routing profiles, if they do not lie beside them.
///
/// # Errors
/// As [`model`], and when it has none.
pub(super) fn open(text: &str, config: &Config) -> anyhow::Result<(File, Option<PathBuf>)> {
    match resolve(Path::new(text), config)? {
        Named::File(path) => Ok((File::open(path)?, None)),
        Named::Installed(model) => Ok((of(&model)?, model.routing)),
    }
}

/// The weights of a model, opened.
///
/// # Errors
/// It has none, or they cannot be read.
pub(super) fn of(model: &Model) -> anyhow::Result<File> {
    anyhow::ensure!(!model.weights.is_empty(), "model `{}` has no weights", model.source);
    Ok(File::open_shards(&model.weights)?)
}

/// Where the converters find the model and its draft.
///
/// # Errors
/// As [`open`].
pub(super) fn location(text: &Path, config: &Config) -> anyhow::Result<Location> {
    match resolve(text, config)? {
        Named::File(path) => Ok(Location::Path(path)),
        Named::Installed(model) => {
            anyhow::ensure!(!model.weights.is_empty(), "model `{}` has no weights", model.source);
            Ok(Location::Files { weights: model.weights, draft: model.draft })
        }
    }
}
