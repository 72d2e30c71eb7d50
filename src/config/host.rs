//! The address of a server, as Ollama users write it.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// Where a server listens when nothing else is said.
pub const DEFAULT_PORT: u16 = 11434;

/// How a client speaks to the server. The server itself has no TLS; `https` is for one behind a proxy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scheme {
    Http,
    Https,
}

/// A parsed server address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Host {
    pub scheme: Scheme,
    /// Name or address without brackets; empty = every interface.
    pub name: String,
    pub port: u16,
    /// Path prefix of a server behind a proxy, without slashes around it.
    pub path: String,
}

/// Why a text is no address.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum ParseHostError {
    #[error("a port between 0 and 65535 after the `:`")]
    Port,
    #[error("`http://` or `https://` before the address")]
    Scheme,
    #[error("an address such as `127.0.0.1:11434`")]
    Name,
}

impl Default for Host {
    fn default() -> Self {
        Host { scheme: Scheme::Http, name: "127.0.0.1".into(), port: DEFAULT_PORT, path: String::new() }
    }
}

impl Host {
    /// Reads `host`, `host:port`, `:port`, `[v6]:port`, `v6` or `scheme://host:port/path`.
    ///
    /// Without a scheme the port defaults to 11434, with one to the scheme's own. `lenient`: a bad port means the
    /// default port, as in Ollama.
    ///
    /// # Errors
    /// Says what was expected.
    pub fn parse(text: &str, lenient: bool) -> Result<Host, ParseHostError> {
        let text = text.trim();
        let (scheme, rest, default_port) = match text.split_once("://") {
            None => (Scheme::Http, text, DEFAULT_PORT),
            Some(("http", rest)) => (Scheme::Http, rest, 80),
            Some(("https", rest)) => (Scheme::Https, rest, 443),
            Some(_) => return Err(ParseHostError::Scheme),
        };
        let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
        let (name, port) = split_port(authority);
        let port = match port.map(str::parse::<u16>) {
            None => default_port,
            Some(Ok(port)) => port,
            Some(Err(_)) if lenient => default_port,
            Some(Err(_)) => return Err(ParseHostError::Port),
        };
        let name = match name {
            None => "127.0.0.1",
            Some(name) if name.contains(['[', ']', '@', ' ', '?', '#']) => return Err(ParseHostError::Name),
            // A zone (`fe80::1%eth0`) is the resolver's business.
            Some(name)
                if name.contains(':') && name.split('%').next().is_none_or(|a| a.parse::<Ipv6Addr>().is_err()) =>
            {
                return Err(ParseHostError::Name);
            }
            Some(name) => name,
        };
        Ok(Host { scheme, name: name.to_string(), port, path: path.trim_matches('/').to_string() })
    }

    /// Base URL for clients. A server that listens on every interface is reached through loopback.
    pub fn url(&self) -> String {
        let scheme = match self.scheme {
            Scheme::Http => "http",
            Scheme::Https => "https",
        };
        let name = match self.name.as_str() {
            "" | "0.0.0.0" => "127.0.0.1",
            "::" => "::1",
            name => name,
        };
        let slash = if self.path.is_empty() { "" } else { "/" };
        format!("{scheme}://{}:{}{slash}{}", bracketed(name), self.port, self.path)
    }

    /// What to listen on: `host:port` for the resolver, and for `:port` the unspecified addresses in order of preference.
    pub fn listen_on(&self) -> ListenOn {
        if self.name.is_empty() {
            return ListenOn::Addresses([
                SocketAddr::new(IpAddr::V6(Ipv6Addr::UNSPECIFIED), self.port),
                SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), self.port),
            ]);
        }
        ListenOn::Name(format!("{}:{}", bracketed(&self.name), self.port))
    }

    /// Whether the address names this machine and nothing else, so that paths mean the same to client and server.
    pub fn is_loopback(&self) -> bool {
        match self.name.parse::<IpAddr>() {
            Ok(address) => address.is_loopback() || address.is_unspecified(),
            Err(_) => self.name.is_empty() || self.name.eq_ignore_ascii_case("localhost"),
        }
    }
}

/// See [`Host::listen_on`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ListenOn {
    Name(String),
    Addresses([SocketAddr; 2]),
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", bracketed(&self.name), self.port)
    }
}

/// IPv6 addresses need brackets in front of a port.
fn bracketed(name: &str) -> String {
    if name.contains(':') { format!("[{name}]") } else { name.to_string() }
}

/// Go's `net.SplitHostPort` with Ollama's fallback: (name, port), each `None` when not given. `Some("")` as a name is `:port`.
fn split_port(authority: &str) -> (Option<&str>, Option<&str>) {
    if authority.is_empty() {
        return (None, None);
    }
    if let Some(rest) = authority.strip_prefix('[') {
        return match rest.split_once(']') {
            Some((name, after)) => (Some(name), after.strip_prefix(':')),
            None => (Some(authority), None),
        };
    }
    // More than one colon without brackets: an IPv6 address without a port.
    if authority.parse::<Ipv6Addr>().is_ok() {
        return (Some(authority), None);
    }
    match authority.rsplit_once(':') {
        Some((name, port)) => (Some(name), Some(port)),
        None => (Some(authority), None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_as_ollama_reads_them() {
        // From Ollama's own table of cases; the second column is what a client connects to.
        for (text, display, url) in [
            ("", "127.0.0.1:11434", "http://127.0.0.1:11434"),
            ("1.2.3.4", "1.2.3.4:11434", "http://1.2.3.4:11434"),
            (":1234", ":1234", "http://127.0.0.1:1234"),
            ("1.2.3.4:1234", "1.2.3.4:1234", "http://1.2.3.4:1234"),
            ("example.com", "example.com:11434", "http://example.com:11434"),
            ("example.com:1234", "example.com:1234", "http://example.com:1234"),
            ("0.0.0.0", "0.0.0.0:11434", "http://127.0.0.1:11434"),
            ("http://1.2.3.4", "1.2.3.4:80", "http://1.2.3.4:80"),
            ("https://example.com", "example.com:443", "https://example.com:443"),
            ("https://example.com:8080/a/b/", "example.com:8080", "https://example.com:8080/a/b"),
            ("[::1]", "[::1]:11434", "http://[::1]:11434"),
            ("[::]:1337", "[::]:1337", "http://[::1]:1337"),
            ("::1", "[::1]:11434", "http://[::1]:11434"),
            (" localhost ", "localhost:11434", "http://localhost:11434"),
        ] {
            let host = Host::parse(text, false).unwrap_or_else(|e| panic!("{text}: {e}"));
            assert_eq!((host.to_string().as_str(), host.url().as_str()), (display, url), "{text}");
        }
    }

    #[test]
    fn a_bad_port_is_an_error_or_the_default() {
        for text in ["1.2.3.4:66000", "1.2.3.4:-1", "1.2.3.4:", "[::1]:x"] {
            assert_eq!(Host::parse(text, false), Err(ParseHostError::Port), "{text}");
            assert_eq!(Host::parse(text, true).map(|h| h.port), Ok(DEFAULT_PORT), "{text}");
        }
        assert_eq!(Host::parse("https://x:99999", true).map(|h| h.port), Ok(443));
        assert_eq!(Host::parse("ftp://x", true), Err(ParseHostError::Scheme));
        for text in ["[::1", "a:b:c", "user@host", "a b"] {
            assert_eq!(Host::parse(text, true), Err(ParseHostError::Name), "{text}");
        }
    }

    #[test]
    fn loopback_means_this_machine_only_from_a_clients_view() {
        for (text, expected) in [
            ("127.0.0.1", true),
            ("localhost:1", true),
            ("[::1]:1", true),
            ("0.0.0.0", true),
            (":80", true),
            ("192.168.1.2", false),
            ("https://example.com", false),
        ] {
            assert_eq!(Host::parse(text, false).unwrap().is_loopback(), expected, "{text}");
        }
    }
}
