//! One event stream as NDJSON: one JSON object per line, each line written and flushed by itself.
//!
//! The first event decides the status: an error before anything was written is an ordinary error answer; after that it can only be a last
//! line. Nothing here buffers: a line is made when the connection takes it, so a slow client slows its own request only, and
//! when the connection is gone the stream is dropped, which cancels whatever feeds it.

use std::convert::Infallible;
use std::pin::pin;

use axum::body::Body;
use axum::http::{HeaderValue, header};
use axum::response::{IntoResponse, Response};
use bytes::{BufMut, Bytes, BytesMut};
use futures_util::stream::{self, Stream, StreamExt};
use serde::Serialize;

use super::Error;

/// Answers with the events of `events`, in order. Waits for the first one.
pub async fn ndjson<T, S>(events: S) -> Response
where
    T: Serialize + Send + 'static,
    S: Stream<Item = Result<T, Error>> + Send + 'static,
{
    let mut events = Box::pin(events);
    let first = match events.next().await {
        Some(Err(error)) => return error.into_response(),
        Some(Ok(first)) => Some(Ok(first)),
        None => None,
    };
    let mut buffer = BytesMut::new();
    let mut failed = false;
    let lines = stream::iter(first)
        .chain(events)
        // An error ends the stream, whatever its source thinks.
        .take_while(move |event| {
            let go_on = !failed;
            failed |= event.is_err();
            std::future::ready(go_on)
        })
        .map(move |event| {
            Ok::<Bytes, Infallible>(match event {
                Ok(event) => line(&event, &mut buffer),
                Err(error) => line(&error.body(), &mut buffer),
            })
        });
    let mut response = Response::new(Body::from_stream(lines));
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/x-ndjson"));
    response
}

/// The last event of a stream that is not wanted as a stream.
///
/// # Errors
/// The first error of the stream.
pub async fn last<T>(events: impl Stream<Item = Result<T, Error>>) -> Result<Option<T>, Error> {
    let mut events = pin!(events);
    let mut last = None;
    while let Some(event) = events.next().await {
        last = Some(event?);
    }
    Ok(last)
}

/// One line; `buffer` lends its memory, which is used again once the line was written.
fn line(value: &impl Serialize, buffer: &mut BytesMut) -> Bytes {
    // Strings, numbers and maps with string keys: there is nothing in our answers that JSON cannot say.
    if let Err(error) = serde_json::to_writer(buffer.writer(), value) {
        tracing::error!(%error, "an event cannot be written");
        buffer.clear();
        buffer.put_slice(br#"{"error":"internal error: an event cannot be written"}"#);
    }
    buffer.put_u8(b'\n');
    buffer.split().freeze()
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::http::StatusCode;
    use serde_json::{Value, json};

    async fn answer(events: Vec<Result<Value, Error>>) -> (StatusCode, String, String) {
        let response = ndjson(stream::iter(events)).await;
        let (status, kind) = (response.status(), response.headers()[header::CONTENT_TYPE].to_str().unwrap().to_owned());
        let body = axum::body::to_bytes(response.into_body(), usize::MAX).await.unwrap();
        (status, kind, String::from_utf8(body.to_vec()).unwrap())
    }

    #[tokio::test]
    async fn an_error_before_the_first_line_is_an_ordinary_answer() {
        let (status, kind, body) = answer(vec![Err(Error::Busy)]).await;
        assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(kind, "application/json; charset=utf-8");
        assert!(body.starts_with(r#"{"error":"server busy"#), "{body}");
    }

    #[tokio::test]
    async fn an_error_after_the_first_line_is_the_last_line() {
        let events = vec![Ok(json!({"a": 1})), Err(Error::Internal("boom".into())), Ok(json!({"a": 2}))];
        let (status, kind, body) = answer(events).await;
        assert_eq!(status, StatusCode::OK);
        assert_eq!(kind, "application/x-ndjson");
        assert_eq!(body, "{\"a\":1}\n{\"error\":\"boom\"}\n");
    }

    #[tokio::test]
    async fn every_event_is_a_chunk_of_its_own() {
        let response = ndjson(stream::iter([Ok(json!(1)), Ok(json!(2))])).await;
        let chunks: Vec<Bytes> = response.into_body().into_data_stream().map(|chunk| chunk.unwrap()).collect().await;
        assert_eq!(chunks, ["1\n", "2\n"]);
    }
}
