//! Uploads: files named by their digest, before a model is made from them.

use std::io::Write;

use axum::body::Body;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use bytes::Bytes;
use http_body_util::BodyExt;
use tokio::sync::mpsc;

use super::models::blocking;
use crate::api::{AppState, Error};
use crate::store::{self, Digest};

/// Chunks between the connection and the disk; enough that neither waits for the other all the time.
const CHUNKS_IN_FLIGHT: usize = 16;

/// HEAD `/api/blobs/:digest`.
pub async fn exists(State(app): State<AppState>, Path(digest): Path<String>) -> Result<StatusCode, Error> {
    let digest = parse(&digest)?;
    let size = blocking(move || app.store.blob_size(&digest)).await?;
    Ok(if size.is_some() { StatusCode::OK } else { StatusCode::NOT_FOUND })
}

/// POST `/api/blobs/:digest`: raw bytes of any number, straight to the disk.
pub async fn upload(
    State(app): State<AppState>,
    Path(digest): Path<String>,
    mut body: Body,
) -> Result<StatusCode, Error> {
    let digest = match parse(&digest) {
        Ok(digest) => digest,
        Err(error) => {
            discard(body);
            return Err(error);
        }
    };
    let store = app.store.clone();
    if blocking(move || store.blob_size(&digest)).await?.is_some() {
        discard(body);
        return Ok(StatusCode::OK);
    }
    let store = app.store;
    let (chunks, mut incoming) = mpsc::channel::<Result<Bytes, String>>(CHUNKS_IN_FLIGHT);
    let writing = tokio::task::spawn_blocking(move || -> Result<(), Error> {
        let mut writer = store.blob_writer()?;
        while let Some(chunk) = incoming.blocking_recv() {
            let chunk = chunk.map_err(Error::Body)?;
            writer.write_all(&chunk).map_err(|source| {
                Error::Store(store::Error::Io { what: "write", path: store.blob_path(&digest), source })
            })?;
        }
        writer.finish(Some(digest))?;
        Ok(())
    });
    while let Some(frame) = body.frame().await {
        let chunk = match frame {
            Ok(frame) => frame.into_data().map_or_else(|_| Ok(Bytes::new()), Ok),
            Err(error) => Err(error.to_string()),
        };
        // The writer hung up: its result says why.
        if chunks.send(chunk).await.is_err() {
            break;
        }
    }
    drop(chunks);
    writing.await.map_err(|e| Error::Internal(format!("the upload stopped: {e}")))??;
    Ok(StatusCode::CREATED)
}

/// Reads the rest of a body that nobody wants, while the answer is already on its way. A connection that is closed with
/// bytes unread is reset, and a client that is still sending would see that instead of the answer.
fn discard(mut body: Body) {
    tokio::spawn(async move { while let Some(Ok(_)) = body.frame().await {} });
}

fn parse(digest: &str) -> Result<Digest, Error> {
    digest.parse().map_err(|_| Error::InvalidDigest)
}
