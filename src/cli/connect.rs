//! How verbs reach a server and name models to it.

use std::path::Path;

use anyhow::Context;

use super::hint;
use crate::client::{self, Client};
use crate::config::Config;

/// Runs a verb that talks to the server at the configured address.
pub(super) fn with_server<T>(
    config: &Config,
    verb: impl AsyncFnOnce(Client) -> anyhow::Result<T>,
) -> anyhow::Result<T> {
    let mut client = Client::new(&config.host)?;
    runtime()?.block_on(async {
        if !client.alive().await.map_err(explained)? {
            return Err(hint(
                anyhow::anyhow!("no server answers at {}", client.url()),
                "start one with `fathom serve`; `fathom run` does so by itself",
            ));
        }
        verb(client).await
    })
}

/// One thread is enough for a command that waits for one answer at a time.
pub(super) fn runtime() -> anyhow::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread().enable_all().build().context("cannot start the async runtime")
}

/// Adds what the user can do about a failed call.
pub(super) fn explained(error: client::Error) -> anyhow::Error {
    match &error {
        client::Error::Unreachable { .. } => {
            hint(error, "start a server with `fathom serve`; `fathom run` does so by itself")
        }
        client::Error::Status { text, .. } if text.ends_with("carries no model") => no_bundle(error),
        client::Error::Status { text, .. } if text.contains("not found") && text.starts_with("model") => {
            hint(error, "`fathom list` shows the models that are here; `fathom create` makes one from a file")
        }
        client::Error::Protocol { .. } => {
            hint(error, "is something else listening there? `FATHOM_HOST` says where to look")
        }
        _ => error.into(),
    }
}

/// Adds where the model that this build does not carry can be had.
pub(super) fn no_bundle(error: impl Into<anyhow::Error>) -> anyhow::Error {
    hint(
        error,
        "release builds of the repository carry `fathom-tiny`; `fathom create fathom-tiny -f modelfiles/fathom-tiny/Modelfile` makes it from there",
    )
}

/// What to call a model towards the server: its name, or for a `.gguf` file its absolute path.
///
/// # Errors
/// The file is not there, or the server is on another machine and cannot see it.
pub(super) fn model_name(text: &str, client: &Client) -> anyhow::Result<String> {
    if !is_file_name(text) {
        return Ok(text.to_string());
    }
    if !client.shares_files() {
        return Err(hint(
            anyhow::anyhow!(
                "`{text}` is a file, and the server at {} is no fathom on this machine that could open it",
                client.url()
            ),
            "make a model of it with `fathom create`, which sends the file",
        ));
    }
    let path = Path::new(text).canonicalize().with_context(|| format!("cannot open `{text}`"))?;
    path.into_os_string()
        .into_string()
        .map_err(|path| anyhow::anyhow!("the path `{}` is not valid UTF-8 and cannot be sent", path.display()))
}

/// Whether a model is named by its file. Model names cannot begin with `/` or `.`, and a tag that ends in `.gguf` has a `:`
/// and no file of that name.
pub(super) fn is_file_name(text: &str) -> bool {
    let has_extension = Path::new(text).extension().is_some_and(|e| e.eq_ignore_ascii_case("gguf"));
    has_extension && (text.starts_with(['/', '.', '~']) || !text.contains(':') || Path::new(text).is_file())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_and_names_are_told_apart() {
        for (text, file) in [
            ("model.gguf", true),
            ("./a/model.GGUF", true),
            ("/m/model.gguf", true),
            ("deepseek-v4-flash:q4", false),
            ("me/model", false),
            ("model:tag.gguf", false),
        ] {
            assert_eq!(is_file_name(text), file, "{text}");
        }
    }
}
