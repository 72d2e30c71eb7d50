//! A typed HTTP client of our own server, for the command line and for tests.
//!
//! It reads only the fields it needs, as any other client would, and it never waits without end for a line: answers that
//! stream are read line by line with a bounded length. Dropping a [`Lines`] closes the connection, which is how a
//! running request is cancelled.

use std::path::Path;
use std::time::Duration;

use reqwest::{Method, RequestBuilder, Response, StatusCode};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::json;

use crate::config::Host;

mod lines;
mod types;

pub use lines::{Lines, MAX_LINE_BYTES};
pub use types::{
    ChatLine, ChatMessage, Details, GenerateLine, Loaded, Model, Progress, Routing, Show, Stats, Tensor, ToolCall,
    ToolFunction,
};

/// A browser cannot set a header of this kind, so its presence says that a program on this machine speaks.
const LOCAL_HEADER: &str = "Sec-Fathom-Local";

/// Until the connection stands; a server on this machine answers at once, one elsewhere within a few seconds.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// A server, reached over HTTP.
#[derive(Clone, Debug)]
pub struct Client {
    http: reqwest::Client,
    url: String,
    local: bool,
    /// Whether the server said that it is fathom; known after [`Client::alive`].
    fathom: bool,
}

/// Why a call failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("no server answers at {url}")]
    Unreachable {
        url: String,
        #[source]
        source: reqwest::Error,
    },
    /// The server's own words.
    #[error("{text}")]
    Status { status: u16, text: String },
    /// A line of a stream said that the request failed.
    #[error("{0}")]
    Stream(String),
    #[error("the answer of {url} is not what a fathom or Ollama server sends: {reason}")]
    Protocol { url: String, reason: String },
    #[error("the connection to {url} broke")]
    Broken {
        url: String,
        #[source]
        source: reqwest::Error,
    },
    #[error("cannot read `{}`", path.display())]
    File {
        path: std::path::PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("cannot write the request as JSON")]
    Encode(#[source] serde_json::Error),
    #[error("cannot start the HTTP client")]
    Setup(#[source] reqwest::Error),
}

impl Error {
    /// The HTTP status, if the server answered with an error.
    pub fn status(&self) -> Option<u16> {
        match self {
            Error::Status { status, .. } => Some(*status),
            _ => None,
        }
    }
}

impl Client {
    /// A client of the server at `host`. Nothing is sent yet.
    ///
    /// # Errors
    /// [`Error::Setup`] when the system's certificates cannot be read.
    pub fn new(host: &Host) -> Result<Client, Error> {
        // The first caller wins; that another one was first is no error.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let local = host.is_loopback();
        let mut builder = reqwest::Client::builder()
            .user_agent(concat!("fathom/", env!("CARGO_PKG_VERSION")))
            .connect_timeout(CONNECT_TIMEOUT);
        if local {
            // A proxy cannot reach this machine's loopback, whatever HTTP_PROXY says.
            builder = builder.no_proxy();
        }
        Ok(Client { http: builder.build().map_err(Error::Setup)?, url: host.url(), local, fathom: false })
    }

    /// `http://127.0.0.1:11434`
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Whether the server can open the files that this process names: it is fathom, and it runs on this machine.
    pub fn shares_files(&self) -> bool {
        self.local && self.fathom
    }

    /// Whether a server answers at all.
    ///
    /// # Errors
    /// [`Error::Protocol`] when something answers that is no server of this kind.
    pub async fn alive(&mut self) -> Result<bool, Error> {
        match self.send(self.request(Method::HEAD, "/")).await {
            Ok(response) => {
                let server = response.headers().get(reqwest::header::SERVER);
                self.fathom = server.is_some_and(|name| name.as_bytes().starts_with(b"fathom/"));
                Ok(true)
            }
            Err(Error::Unreachable { .. }) => Ok(false),
            Err(Error::Status { status, .. }) => Err(self.protocol(format!("`HEAD /` gives status {status}"))),
            Err(error) => Err(error),
        }
    }

    /// The version of Ollama that the server says it behaves like.
    ///
    /// # Errors
    /// As every call.
    pub async fn version(&self) -> Result<String, Error> {
        let version: types::Version = self.get("/api/version").await?;
        Ok(version.version)
    }

    /// The models in the store.
    ///
    /// # Errors
    /// As every call.
    pub async fn list(&self) -> Result<Vec<Model>, Error> {
        let list: types::List<Model> = self.get("/api/tags").await?;
        Ok(list.models)
    }

    /// The models in memory.
    ///
    /// # Errors
    /// As every call.
    pub async fn ps(&self) -> Result<Vec<Loaded>, Error> {
        let list: types::List<Loaded> = self.get("/api/ps").await?;
        Ok(list.models)
    }

    /// Everything about one model; `verbose` also the big metadata.
    ///
    /// # Errors
    /// [`Error::Status`] when there is no such model.
    pub async fn show(&self, model: &str, verbose: bool) -> Result<Show, Error> {
        let body = json!({"model": model, "verbose": verbose});
        self.json(self.with_body(Method::POST, "/api/show", &body)?).await
    }

    /// Gives a model a second name.
    ///
    /// # Errors
    /// [`Error::Status`] when there is no such model or the new name is none.
    pub async fn copy(&self, source: &str, destination: &str) -> Result<(), Error> {
        let body = json!({"source": source, "destination": destination});
        self.send(self.with_body(Method::POST, "/api/copy", &body)?).await.map(drop)
    }

    /// Removes a model from the store.
    ///
    /// # Errors
    /// [`Error::Status`] when there is no such model.
    pub async fn delete(&self, model: &str) -> Result<(), Error> {
        let body = json!({"model": model});
        self.send(self.with_body(Method::DELETE, "/api/delete", &body)?).await.map(drop)
    }

    /// Unloads a model when its running requests have ended.
    ///
    /// # Errors
    /// [`Error::Status`] when there is no such model.
    pub async fn unload(&self, model: &str) -> Result<(), Error> {
        let body = json!({"model": model, "keep_alive": 0, "stream": false});
        self.send(self.with_body(Method::POST, "/api/generate", &body)?).await.map(drop)
    }

    /// Whether the store has this blob.
    ///
    /// # Errors
    /// As every call.
    pub async fn has_blob(&self, digest: &str) -> Result<bool, Error> {
        match self.send(self.request(Method::HEAD, &format!("/api/blobs/{digest}"))).await {
            Ok(_) => Ok(true),
            Err(Error::Status { status: 404, .. }) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Sends a file of `bytes` bytes under its digest; `on_bytes` hears of every piece sent.
    ///
    /// # Errors
    /// [`Error::File`] when it cannot be opened, [`Error::Status`] when the server refuses it.
    pub async fn upload_blob(
        &self,
        digest: &str,
        path: &Path,
        on_bytes: impl Fn(u64) + Send + 'static,
    ) -> Result<(), Error> {
        use futures_util::StreamExt;
        let cannot_read = |source| Error::File { path: path.to_owned(), source };
        let file = tokio::fs::File::open(path).await.map_err(cannot_read)?;
        let length = file.metadata().await.map_err(cannot_read)?.len();
        // Pieces of 1 MiB: a whole number of disk pages, few enough that their cost does not show.
        let pieces = tokio_util::io::ReaderStream::with_capacity(file, 1 << 20).inspect(move |piece| {
            if let Ok(piece) = piece {
                on_bytes(piece.len() as u64);
            }
        });
        let request = self
            .request(Method::POST, &format!("/api/blobs/{digest}"))
            .header(reqwest::header::CONTENT_LENGTH, length)
            .body(reqwest::Body::wrap_stream(pieces));
        self.send(request).await.map(drop)
    }

    /// Makes a model from blobs, from another model, or from a path on the server.
    ///
    /// # Errors
    /// As every call; failures under way come as [`Error::Stream`] from [`Lines::next`].
    pub async fn create(&self, body: &impl Serialize) -> Result<Lines<Progress>, Error> {
        self.lines(self.with_body(Method::POST, "/api/create", body)?).await
    }

    /// Answers a prompt, or with an empty one loads the model.
    ///
    /// # Errors
    /// As every call; failures under way come as [`Error::Stream`] from [`Lines::next`].
    pub async fn generate(&self, body: &impl Serialize) -> Result<Lines<GenerateLine>, Error> {
        self.lines(self.with_body(Method::POST, "/api/generate", body)?).await
    }

    /// Answers a conversation.
    ///
    /// # Errors
    /// As every call; failures under way come as [`Error::Stream`] from [`Lines::next`].
    pub async fn chat(&self, body: &impl Serialize) -> Result<Lines<ChatLine>, Error> {
        self.lines(self.with_body(Method::POST, "/api/chat", body)?).await
    }

    fn request(&self, method: Method, path: &str) -> RequestBuilder {
        let request = self.http.request(method, format!("{}{path}", self.url));
        if self.local { request.header(LOCAL_HEADER, "1") } else { request }
    }

    fn with_body(&self, method: Method, path: &str, body: &impl Serialize) -> Result<RequestBuilder, Error> {
        let body = serde_json::to_vec(body).map_err(Error::Encode)?;
        Ok(self.request(method, path).header(reqwest::header::CONTENT_TYPE, "application/json").body(body))
    }

    async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, Error> {
        self.json(self.request(Method::GET, path)).await
    }

    async fn json<T: DeserializeOwned>(&self, request: RequestBuilder) -> Result<T, Error> {
        let bytes = self.send(request).await?.bytes().await.map_err(|e| self.broken(e))?;
        serde_json::from_slice(&bytes).map_err(|e| self.protocol(e.to_string()))
    }

    async fn lines<T: DeserializeOwned>(&self, request: RequestBuilder) -> Result<Lines<T>, Error> {
        Ok(Lines::new(self.send(request).await?, self.url.clone()))
    }

    /// Sends and turns an error status into [`Error::Status`] with the text of the body.
    async fn send(&self, request: RequestBuilder) -> Result<Response, Error> {
        let response = request.send().await.map_err(|source| {
            if source.is_connect() || source.is_timeout() {
                Error::Unreachable { url: self.url.clone(), source }
            } else {
                self.broken(source)
            }
        })?;
        let status = response.status();
        if status.is_success() {
            return Ok(response);
        }
        let body = response.bytes().await.unwrap_or_default();
        Err(Error::Status { status: status.as_u16(), text: error_text(status, &body) })
    }

    fn broken(&self, source: reqwest::Error) -> Error {
        Error::Broken { url: self.url.clone(), source }
    }

    fn protocol(&self, reason: String) -> Error {
        Error::Protocol { url: self.url.clone(), reason }
    }
}

/// The `error` of a JSON body, else the body, else the status in words.
fn error_text(status: StatusCode, body: &[u8]) -> String {
    if let Ok(error) = serde_json::from_slice::<types::Failure>(body) {
        return error.error;
    }
    match std::str::from_utf8(body).map(str::trim) {
        Ok(text) if !text.is_empty() && text.len() < 1000 => format!("the server answered {status}: {text}"),
        _ => format!("the server answered {status}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn error_bodies_become_readable_texts() {
        let text = |body: &str| error_text(StatusCode::NOT_FOUND, body.as_bytes());
        assert_eq!(text(r#"{"error":"model 'x' not found"}"#), "model 'x' not found");
        assert_eq!(text("404 page not found\n"), "the server answered 404 Not Found: 404 page not found");
        assert_eq!(text(""), "the server answered 404 Not Found");
    }
}
