//! Requests from programs of this machine: they may name files on the server's disk where others may only name models.
//!
//! Two things together mark such a request: it comes over loopback, and it carries `Sec-Fathom-Local: 1`. A web page that
//! runs in a browser on this machine also comes over loopback, but browsers do not let pages set a header that begins with
//! `Sec-`.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::path::PathBuf;

use axum::extract::{ConnectInfo, FromRequestParts};
use axum::http::request::Parts;

use super::{AppState, Error};

/// The header that programs of this machine send.
pub const HEADER: &str = "sec-fathom-local";

/// Whether this request may name paths.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Local {
    Yes,
    No,
}

impl FromRequestParts<AppState> for Local {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &AppState) -> Result<Self, Infallible> {
        let peer = parts.extensions.get::<ConnectInfo<SocketAddr>>();
        let near = peer.is_some_and(|peer| peer.0.ip().to_canonical().is_loopback());
        let marked = parts.headers.get(HEADER).is_some_and(|value| value == "1");
        Ok(if near && marked { Local::Yes } else { Local::No })
    }
}

impl Local {
    /// The file that a request means by `named`, or `None` when it is a model name. A name never begins with a slash.
    ///
    /// # Errors
    /// [`Error::PathNotAllowed`].
    pub fn path(self, named: &str) -> Result<Option<PathBuf>, Error> {
        match (named.starts_with('/'), self) {
            (false, _) => Ok(None),
            (true, Local::Yes) => Ok(Some(PathBuf::from(named))),
            (true, Local::No) => Err(Error::PathNotAllowed),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_local_programs_may_name_paths() {
        assert_eq!(Local::No.path("tiny:latest").unwrap(), None);
        assert_eq!(Local::Yes.path("hf.co/a/b.gguf").unwrap(), None);
        assert_eq!(Local::Yes.path("/a/b.gguf").unwrap(), Some("/a/b.gguf".into()));
        assert!(matches!(Local::No.path("/a/b.gguf"), Err(Error::PathNotAllowed)));
    }
}
