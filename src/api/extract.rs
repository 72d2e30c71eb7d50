//! JSON bodies the way Go's decoder reads them, because that is what clients were written against: the content type does not
//! matter, field names match in any case, null means the default, unknown fields are ignored, and only the first JSON
//! value counts.

use axum::body::HttpBody;
use axum::extract::{FromRequest, Request};
use http_body_util::BodyExt;
use serde::de::DeserializeOwned;

use super::{AppState, Error};
use go::Go;

mod go;
#[cfg(test)]
mod tests;

/// A request's JSON body.
pub struct Body<T>(pub T);

/// Above this a body is read on a thread that may take its time: images, mostly.
const LARGE_BYTES: usize = 256 << 10;

impl<T: DeserializeOwned + Send + 'static> FromRequest<AppState> for Body<T> {
    type Rejection = Error;

    async fn from_request(request: Request, app: &AppState) -> Result<Self, Error> {
        let limit = app.settings.max_json_bytes;
        let mut body = request.into_body();
        // Whoever announces too much need not send it.
        if body.size_hint().lower() > limit as u64 {
            return Err(Error::BodyTooLarge { limit });
        }
        let mut bytes = Vec::new();
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|e| Error::Body(e.to_string()))?;
            if let Ok(data) = frame.into_data() {
                if bytes.len() + data.len() > limit {
                    return Err(Error::BodyTooLarge { limit });
                }
                bytes.extend_from_slice(&data);
            }
        }
        if bytes.len() > LARGE_BYTES {
            let reading = tokio::task::spawn_blocking(move || decode(&bytes));
            return reading.await.map_err(|e| Error::Internal(e.to_string()))?.map(Body);
        }
        decode(&bytes).map(Body)
    }
}

/// Reads the first JSON value of `bytes` into `T`. `T` and the structs in it need `#[serde(default)]`, for fields that are
/// absent or null.
///
/// # Errors
/// [`Error::MissingBody`] when there is nothing but white space; [`Error::Json`] with a text like Go's.
pub fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Error> {
    let value = go::first_value(bytes)?;
    T::deserialize(Go::new(value)).map_err(|e| Error::Json(e.to_string()))
}
