//! `GET /metrics`: the program's counters for Prometheus.

use axum::extract::State;
use axum::http::{HeaderValue, header};
use axum::response::{IntoResponse, Response};

use super::{AppState, Error};

/// What the text is, as Prometheus asks for it.
const CONTENT_TYPE: HeaderValue =
    HeaderValue::from_static("application/openmetrics-text; version=1.0.0; charset=utf-8");

/// All numbers at this moment. They are atomics: reading them waits for nobody and stops nobody.
///
/// # Errors
/// When formatting fails, which needs a bug.
pub async fn metrics(State(app): State<AppState>) -> Result<Response, Error> {
    let text = app.metrics.encode().map_err(|error| Error::Internal(error.to_string()))?;
    Ok(([(header::CONTENT_TYPE, CONTENT_TYPE)], text).into_response())
}
