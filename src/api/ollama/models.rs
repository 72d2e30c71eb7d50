//! Models as things: which are installed, which are loaded, copy, delete.

use std::cmp::Reverse;
use std::ops::ControlFlow;
use std::time::{Duration, SystemTime};

use axum::extract::State;
use axum::response::{IntoResponse, Response};
use jiff::Timestamp;
use jiff::tz::TimeZone;

use super::types::*;
use crate::api::extract::Body;
use crate::api::{AppState, Error, OLLAMA_VERSION, json};
use crate::chat::family;
use crate::completion;
use crate::modelfile;
use crate::scheduler::Loaded;
use crate::store::{self, Capability, Model, Name, NameError, Store};

/// GET, HEAD `/api/version`.
pub async fn version(State(_): State<AppState>) -> Response {
    json(&VersionResponse { version: OLLAMA_VERSION.into() })
}

/// GET, HEAD `/api/tags`.
pub async fn tags(State(app): State<AppState>) -> Result<Response, Error> {
    let listed = blocking(move || app.store.list()).await??;
    let models = listed
        .iter()
        .map(|model| ListModelResponse {
            name: model.name(),
            model: model.name(),
            modified_at: local_time(model.modified),
            size: model.size,
            digest: model.digest.hex(),
            details: details(model.details()),
            capabilities: capabilities(model),
        })
        .collect();
    Ok(json(&ListResponse { models }))
}

/// GET `/api/ps`.
pub async fn ps(State(app): State<AppState>) -> Result<Response, Error> {
    let loaded = app.scheduler.ps().await;
    let now = SystemTime::now();
    let mut models = blocking(move || {
        let row = |loaded: &Loaded| (loaded.expires_at.unwrap_or(now + FOREVER), process(&app.store, loaded));
        loaded.iter().map(row).collect::<Vec<_>>()
    })
    .await?;
    models.sort_by_key(|(expires_at, _)| Reverse(*expires_at));
    let models = models
        .into_iter()
        .map(|(expires_at, model)| ProcessModelResponse { expires_at: local_time(expires_at), ..model })
        .collect();
    Ok(json(&ProcessResponse { models }))
}

/// Go's longest duration, some 292 years: how Ollama shows "never".
const FOREVER: Duration = Duration::from_nanos(i64::MAX as u64);

fn process(store: &Store, loaded: &Loaded) -> ProcessModelResponse {
    let spec = &loaded.spec;
    // The name may be gone while its model is still loaded; the file it was loaded from tells almost as much.
    let installed = Name::parse(&spec.name).ok().and_then(|name| store.model(&name).ok());
    let model = installed.or_else(|| Model::from_gguf(&spec.weights).ok());
    ProcessModelResponse {
        name: spec.name.clone(),
        model: spec.name.clone(),
        size: loaded.info.memory.total(),
        size_vram: loaded.info.memory.device,
        digest: spec.digest.trim_start_matches("sha256:").to_string(),
        details: model.map(|model| details(model.details())).unwrap_or_default(),
        expires_at: String::new(),
        context_length: loaded.info.n_ctx,
    }
}

/// POST `/api/copy`.
pub async fn copy(State(app): State<AppState>, Body(request): Body<CopyRequest>) -> Result<Response, Error> {
    let parse = |role, text: &str| Name::parse(text).map_err(|_| Error::InvalidRole { role, name: text.to_string() });
    let source = parse("source", &request.source)?;
    let destination = parse("destination", &request.destination)?;
    let copied = blocking(move || {
        modelfile::bundled::ensure(&app.store, &source, &mut |_| ControlFlow::Continue(()))?;
        Ok(app.store.copy(&source, &destination)?)
    });
    match copied.await? {
        Err(Error::Store(store::Error::NotFound(_))) => Err(Error::CopySourceNotFound(request.source)),
        Err(error) => Err(error),
        Ok(()) => Ok(().into_response()),
    }
}

/// DELETE `/api/delete`.
pub async fn delete(State(app): State<AppState>, Body(request): Body<DeleteRequest>) -> Result<Response, Error> {
    let typed = first_of(request.model, request.name);
    if typed.is_empty() {
        return Err(Error::ModelRequired);
    }
    let name = Name::parse(&typed).map_err(|_| Error::InvalidRole { role: "name", name: typed.clone() })?;
    match blocking(move || app.store.delete(&name)).await? {
        Err(store::Error::NotFound(_)) => Err(Error::NotFound(typed)),
        Err(error) => Err(error.into()),
        Ok(()) => Ok(().into_response()),
    }
}

/// The installed model of this name. The one that comes inside the program is made now if this is the first to ask for it.
///
/// # Errors
/// [`Error::Store`] with [`store::Error::NotFound`] among others, and what goes wrong while it is made.
pub(super) fn installed(store: &Store, name: &Name) -> Result<Model, Error> {
    modelfile::bundled::ensure(store, name, &mut |_| ControlFlow::Continue(()))?;
    Ok(store.model(name)?)
}

/// `model`, or its deprecated spelling `name`.
pub(super) fn first_of(model: String, name: String) -> String {
    if model.is_empty() { name } else { model }
}

/// Runs work that waits for the disk on a thread where it may.
pub(super) async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, Error> {
    tokio::task::spawn_blocking(work).await.map_err(|e| Error::Internal(format!("the request's work stopped: {e}")))
}

/// RFC 3339 with nanoseconds and the local offset.
pub(super) fn local_time(time: SystemTime) -> String {
    let zoned = Timestamp::try_from(time).unwrap_or_default().to_zoned_datetime(TimeZone::system());
    zoned.strftime("%Y-%m-%dT%H:%M:%S%.f%:z").to_string()
}

/// The words for what a model can do. What its prompt format can express is said by the chat family that will write the
/// prompts, everything else by the files.
pub(super) fn capabilities(model: &Model) -> Vec<String> {
    let mut found = model.capabilities.clone();
    if let Ok(family) = family::for_model(&completion::facts(model))
        && found.contains(&Capability::Completion)
    {
        let says = family.capabilities();
        for (capability, holds) in
            [(Capability::Tools, says.tools), (Capability::Insert, says.insert), (Capability::Thinking, says.thinking)]
        {
            found.retain(|c| *c != capability);
            if holds {
                found.push(capability);
            }
        }
    }
    found.iter().map(|c| c.word().to_string()).collect()
}

pub(super) fn details(details: store::Details) -> ModelDetails {
    ModelDetails {
        parent_model: details.parent,
        format: details.format,
        family: details.family,
        families: (!details.families.is_empty()).then_some(details.families),
        parameter_size: details.parameter_size,
        quantization_level: details.quantization,
        context_length: details.context_length,
        embedding_length: details.embedding_length,
    }
}

impl From<NameError> for Error {
    fn from(error: NameError) -> Self {
        match error {
            NameError::Invalid => Error::InvalidName,
            NameError::LocalAndCloud(name) => Error::LocalAndCloud(name),
        }
    }
}
