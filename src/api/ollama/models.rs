//! Models as things: list, show, copy, delete, and which are loaded.

use axum::extract::State;
use axum::response::{IntoResponse, Response};
use jiff::Timestamp;
use std::time::SystemTime;

use super::types::*;
use crate::api::extract::Body;
use crate::api::{AppState, Error, OLLAMA_VERSION, json};
use crate::store::{self, Name, NameError};

/// GET, HEAD `/api/version`.
pub async fn version(State(_): State<AppState>) -> Response {
    json(&VersionResponse { version: OLLAMA_VERSION.into() })
}

/// GET, HEAD `/api/tags`.
pub async fn tags(State(app): State<AppState>) -> Result<Response, Error> {
    let listed = blocking(move || app.store.list()).await??;
    let models = listed
        .into_iter()
        .map(|model| ListModelResponse {
            name: model.name.to_string(),
            model: model.name.to_string(),
            modified_at: local_time(model.modified),
            size: model.size,
            digest: model.digest.hex(),
            details: details(model.details),
            capabilities: model.capabilities.iter().map(|c| c.word().to_string()).collect(),
        })
        .collect();
    Ok(json(&ListResponse { models }))
}

/// POST `/api/copy`.
pub async fn copy(State(app): State<AppState>, Body(request): Body<CopyRequest>) -> Result<Response, Error> {
    let parse = |role, text: &str| Name::parse(text).map_err(|_| Error::InvalidRole { role, name: text.to_string() });
    let source = parse("source", &request.source)?;
    let destination = parse("destination", &request.destination)?;
    match blocking(move || app.store.copy(&source, &destination)).await? {
        Err(store::Error::NotFound(_)) => Err(Error::CopySourceNotFound(request.source)),
        Err(error) => Err(error.into()),
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
    Timestamp::try_from(time)
        .unwrap_or_default()
        .to_zoned_datetime(jiff::tz::TimeZone::system())
        .strftime("%Y-%m-%dT%H:%M:%S%.f%:z")
        .to_string()
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
