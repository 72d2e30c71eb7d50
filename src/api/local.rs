//! Requests from programs of this machine: they may name files on the server's disk where others may only name models.
//!
//! Two things together mark such a request: it comes over loopback, and it carries `Sec-Fathom-Local: 1`. A web page that
//! runs in a browser on this machine also comes over loopback, but browsers do not let pages set a header that begins with
//! `Sec-`. A proxy on this machine also connects over loopback, for clients from anywhere: requests that say they were
//! forwarded are not of this machine.

use std::convert::Infallible;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use axum::extract::{ConnectInfo, FromRequestParts};
use axum::http::HeaderMap;
use axum::http::request::Parts;

use super::{AppState, Error};

/// The header that programs of this machine send.
pub const HEADER: &str = "sec-fathom-local";

/// What proxies add to the requests they pass on.
const FORWARDED: &[&str] = &["forwarded", "x-forwarded-for", "x-forwarded-host", "x-real-ip", "via"];

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
        Ok(locality(peer.map(|peer| peer.0.ip()), &parts.headers))
    }
}

fn locality(peer: Option<IpAddr>, headers: &HeaderMap) -> Local {
    let near = peer.is_some_and(|ip| ip.to_canonical().is_loopback());
    let marked = headers.get(HEADER).is_some_and(|value| value == "1");
    let forwarded = FORWARDED.iter().any(|name| headers.contains_key(*name));
    if near && marked && !forwarded { Local::Yes } else { Local::No }
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
    fn a_request_is_local_by_peer_and_header() {
        let ip = |text: &str| Some(text.parse().expect("an address"));
        for (peer, headers, expected) in [
            (ip("127.0.0.1"), &[(HEADER, "1")][..], Local::Yes),
            (ip("::1"), &[(HEADER, "1")], Local::Yes),
            (ip("::ffff:127.0.0.1"), &[(HEADER, "1")], Local::Yes),
            (ip("127.0.0.1"), &[], Local::No),
            (ip("127.0.0.1"), &[(HEADER, "0")], Local::No),
            (ip("127.0.0.1"), &[(HEADER, "1"), ("x-forwarded-for", "203.0.113.7")], Local::No),
            (ip("127.0.0.1"), &[(HEADER, "1"), ("via", "1.1 proxy")], Local::No),
            (ip("192.168.1.2"), &[(HEADER, "1")], Local::No),
            (None, &[(HEADER, "1")], Local::No),
        ] {
            let map: HeaderMap =
                headers.iter().map(|(n, v)| (n.parse().expect("a name"), v.parse().expect("a value"))).collect();
            assert_eq!(locality(peer, &map), expected, "{peer:?} {headers:?}");
        }
    }

    #[test]
    fn only_local_programs_may_name_paths() {
        assert_eq!(Local::No.path("tiny:latest").unwrap(), None);
        assert_eq!(Local::Yes.path("hf.co/a/b.gguf").unwrap(), None);
        assert_eq!(Local::Yes.path("/a/b.gguf").unwrap(), Some("/a/b.gguf".into()));
        assert!(matches!(Local::No.path("/a/b.gguf"), Err(Error::PathNotAllowed)));
    }
}
