//! Who may talk to the server, and the span every request runs in.
//!
//! A web page must not reach a model server on its visitor's machine. Two rules keep it out: the origin of a cross-origin
//! request must be an allowed one (the CORS rules of gin, which Ollama uses: refused requests are not even run), and on a
//! loopback address the Host header must name this machine (a page whose own name was rebound to 127.0.0.1 has its own
//! name there). Neither protects from other programs on the machine or, on another address, in the network.

use std::net::{IpAddr, TcpListener};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use tracing::Instrument;

use super::{AppState, Settings};

/// Hosts whose pages may always ask, over http and https, with or without a port.
const OWN_HOSTS: &[&str] = &["localhost", "127.0.0.1", "0.0.0.0"];
/// The shells of desktop applications, which may always ask too.
const SHELLS: &[&str] = &["app://*", "file://*", "tauri://*", "vscode-webview://*", "vscode-file://*"];

const ALLOW_METHODS: &str = "GET,POST,PUT,PATCH,DELETE,HEAD,OPTIONS";
/// Headers that pages may send; the `x-stainless` family comes from OpenAI's client library.
const ALLOW_HEADERS: &str = "Authorization,Content-Type,User-Agent,Accept,X-Requested-With,OpenAI-Beta,\
x-stainless-arch,x-stainless-async,x-stainless-custom-poll-interval,x-stainless-helper-method,x-stainless-lang,\
x-stainless-os,x-stainless-package-version,x-stainless-poll-helper,x-stainless-retry-count,x-stainless-runtime,\
x-stainless-runtime-version,x-stainless-timeout";
/// Seconds a browser may remember a preflight's answer.
const MAX_AGE: &str = "43200";

/// Around every request: origin rules first, then host rules, then the request itself in a span of its own.
pub async fn guard(State(app): State<AppState>, request: Request, next: Next) -> Response {
    static NEXT_ID: AtomicU64 = AtomicU64::new(1);
    let id = NEXT_ID.fetch_add(1, Ordering::Relaxed);
    let (method, path) = (request.method().clone(), request.uri().path().to_owned());
    let span = tracing::info_span!("request", id, %method, path);
    async move {
        let start = Instant::now();
        let response = admit(&app.settings, request, next).await;
        tracing::debug!(status = response.status().as_u16(), seconds = start.elapsed().as_secs_f64(), "answered");
        response
    }
    .instrument(span)
    .await
}

async fn admit(settings: &Settings, request: Request, next: Next) -> Response {
    match check(settings, &request) {
        Err(answer) => answer,
        Ok(cors) => {
            let mut response = next.run(request).await;
            response.headers_mut().extend(cors);
            response
        }
    }
}

/// The headers that the answer needs for its origin, or the answer itself.
#[expect(clippy::result_large_err, reason = "an answer is no error, and it is given out once")]
fn check(settings: &Settings, request: &Request) -> Result<HeaderMap, Response> {
    let text = |name: HeaderName| request.headers().get(name).and_then(|v| v.to_str().ok());
    // A target in absolute form names the host itself.
    let host = match request.uri().authority() {
        Some(authority) => authority.as_str(),
        None => text(header::HOST).unwrap_or(""),
    };
    let cors = match origin_rule(settings, text(header::ORIGIN).unwrap_or(""), host) {
        Origin::Same => HeaderMap::new(),
        Origin::Refused => return Err(StatusCode::FORBIDDEN.into_response()),
        Origin::Allowed(origin) if request.method() == Method::OPTIONS => return Err(preflight(&origin)),
        Origin::Allowed(origin) => cors_headers(&origin),
    };
    match host_rule(settings, request.method(), host) {
        Host::Forbidden => Err((StatusCode::FORBIDDEN, cors).into_response()),
        Host::NoContent => Err((StatusCode::NO_CONTENT, cors).into_response()),
        Host::Pass => Ok(cors),
    }
}

/// What the Origin header means for a request.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Origin {
    /// No cross-origin request: no headers needed.
    Same,
    /// The value of `Access-Control-Allow-Origin`.
    Allowed(String),
    Refused,
}

fn origin_rule(settings: &Settings, origin: &str, host: &str) -> Origin {
    let same = ["http://", "https://"].iter().any(|scheme| origin.strip_prefix(scheme) == Some(host));
    if origin.is_empty() || same {
        return Origin::Same;
    }
    if settings.origins.iter().any(|allowed| allowed == "*") {
        return Origin::Allowed("*".into());
    }
    let mut patterns = SHELLS.iter().copied().chain(settings.origins.iter().map(String::as_str));
    if is_own_page(origin) || patterns.any(|pattern| matches_origin(pattern, origin)) {
        Origin::Allowed(origin.into())
    } else {
        Origin::Refused
    }
}

fn is_own_page(origin: &str) -> bool {
    let origin = origin.to_ascii_lowercase();
    let Some(host) = origin.strip_prefix("http://").or_else(|| origin.strip_prefix("https://")) else {
        return false;
    };
    let (name, port) = host.split_once(':').unwrap_or((host, "0"));
    OWN_HOSTS.contains(&name) && port.parse::<u16>().is_ok()
}

/// Exact, or with one `*` in the pattern as a wildcard.
fn matches_origin(pattern: &str, origin: &str) -> bool {
    let (pattern, origin) = (pattern.to_ascii_lowercase(), origin.to_ascii_lowercase());
    match pattern.split_once('*') {
        None => pattern == origin,
        Some((start, end)) => {
            origin.len() >= start.len() + end.len() && origin.starts_with(start) && origin.ends_with(end)
        }
    }
}

/// Headers of an answer that `origin` may read; `*` = every origin.
fn cors_headers(origin: &str) -> HeaderMap {
    let mut headers = HeaderMap::new();
    if let Ok(value) = HeaderValue::from_str(origin) {
        headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, value);
    }
    if origin != "*" {
        headers.insert(header::VARY, HeaderValue::from_static("Origin"));
    }
    headers
}

fn preflight(origin: &str) -> Response {
    let mut headers = cors_headers(origin);
    headers.insert(header::ACCESS_CONTROL_ALLOW_METHODS, HeaderValue::from_static(ALLOW_METHODS));
    headers.insert(header::ACCESS_CONTROL_ALLOW_HEADERS, HeaderValue::from_static(ALLOW_HEADERS));
    headers.insert(header::ACCESS_CONTROL_MAX_AGE, HeaderValue::from_static(MAX_AGE));
    (StatusCode::NO_CONTENT, headers).into_response()
}

/// What the Host header means for a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Host {
    Pass,
    /// An OPTIONS request to a good name ends here.
    NoContent,
    Forbidden,
}

fn host_rule(settings: &Settings, method: &Method, host: &str) -> Host {
    if !settings.listen.ip().to_canonical().is_loopback() {
        return Host::Pass;
    }
    let name = without_port(host);
    if let Ok(ip) = name.parse::<IpAddr>() {
        return if is_own_address(ip.to_canonical()) { Host::Pass } else { Host::Forbidden };
    }
    match (is_own_name(name), method == Method::OPTIONS) {
        (false, _) => Host::Forbidden,
        (true, true) => Host::NoContent,
        (true, false) => Host::Pass,
    }
}

/// `name`, `name:port`, `[v6]`, `[v6]:port` or a bare `v6`.
fn without_port(host: &str) -> &str {
    if let Some(rest) = host.strip_prefix('[') {
        return rest.split(']').next().unwrap_or(rest);
    }
    match host.split_once(':') {
        Some((name, port)) if !port.contains(':') => name,
        _ => host,
    }
}

fn is_own_name(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    name.is_empty()
        || name == "localhost"
        || machine_name() == Some(&name)
        || [".localhost", ".local", ".internal"].iter().any(|domain| name.ends_with(domain))
}

fn is_own_address(ip: IpAddr) -> bool {
    let private = match ip {
        IpAddr::V4(ip) => ip.is_private(),
        IpAddr::V6(ip) => ip.is_unique_local(),
    };
    ip.is_loopback() || ip.is_unspecified() || private || is_assigned(ip)
}

/// Whether an interface of this machine has the address: only then can it be bound.
fn is_assigned(ip: IpAddr) -> bool {
    let special = match ip {
        IpAddr::V4(ip) => ip.is_multicast() || ip.is_broadcast(),
        IpAddr::V6(ip) => ip.is_multicast(),
    };
    !special && TcpListener::bind((ip, 0)).is_ok()
}

/// The machine's own name in lower case, asked for once.
fn machine_name() -> Option<&'static String> {
    static NAME: OnceLock<Option<String>> = OnceLock::new();
    let ask = || {
        let name = std::fs::read_to_string("/proc/sys/kernel/hostname").ok().or_else(|| {
            let output = std::process::Command::new("hostname").output().ok()?;
            String::from_utf8(output.stdout).ok()
        })?;
        let name = name.trim().to_ascii_lowercase();
        (!name.is_empty()).then_some(name)
    };
    NAME.get_or_init(ask).as_ref()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(listen: &str, origins: &[&str]) -> Settings {
        Settings {
            listen: listen.parse().expect("an address"),
            origins: origins.iter().map(|o| o.to_string()).collect(),
            ..Settings::default()
        }
    }

    #[test]
    fn origins_follow_the_table() {
        let own = settings(
            "127.0.0.1:11434",
            &["https://chat.example.com", "chrome-extension://*", "https://*.corp.example"],
        );
        let host = "127.0.0.1:11434";
        for (origin, host, allowed) in [
            ("", host, None),
            ("http://127.0.0.1:11434", host, None),
            ("https://127.0.0.1:11434", host, None),
            ("http://models.local:11434", "models.local:11434", None),
            ("http://localhost", host, Some(true)),
            ("https://localhost:3000", host, Some(true)),
            ("http://127.0.0.1:8080", host, Some(true)),
            ("http://0.0.0.0", host, Some(true)),
            ("app://obsidian.md", host, Some(true)),
            ("file://", host, Some(true)),
            ("tauri://localhost", host, Some(true)),
            ("vscode-webview://1a2b", host, Some(true)),
            ("vscode-file://vscode-app", host, Some(true)),
            ("https://chat.example.com", host, Some(true)),
            ("chrome-extension://abcdef", host, Some(true)),
            ("https://a.corp.example", host, Some(true)),
            ("moz-extension://abcdef", host, Some(false)),
            ("null", host, Some(false)),
            ("https://evil.example", host, Some(false)),
            ("http://localhost.evil.example", host, Some(false)),
            ("https://chat.example.com.evil.example", host, Some(false)),
            ("http://127.0.0.2:80", host, Some(false)),
            ("http://127.0.0.1:11434.evil.example", host, Some(false)),
            ("ftp://localhost", host, Some(false)),
        ] {
            let expected = match allowed {
                None => Origin::Same,
                Some(true) => Origin::Allowed(origin.into()),
                Some(false) => Origin::Refused,
            };
            assert_eq!(origin_rule(&own, origin, host), expected, "{origin:?} at {host}");
        }
        let all = settings("127.0.0.1:11434", &["*"]);
        assert_eq!(origin_rule(&all, "https://evil.example", host), Origin::Allowed("*".into()));
    }

    #[test]
    fn hosts_follow_the_table() {
        let loopback = settings("127.0.0.1:11434", &[]);
        let machine = machine_name().cloned().unwrap_or_else(|| "localhost".into()).to_uppercase();
        for (host, passes) in [
            ("", true),
            ("localhost", true),
            ("LocalHost:11434", true),
            ("127.0.0.1:11434", true),
            ("127.9.9.9", true),
            ("[::1]:11434", true),
            ("[::1]", true),
            ("::1", true),
            ("[::ffff:127.0.0.1]:80", true),
            ("0.0.0.0", true),
            ("10.1.2.3:80", true),
            ("172.16.0.1", true),
            ("192.168.1.20", true),
            ("[fd00::1]:80", true),
            ("models.localhost", true),
            ("nas.local:11434", true),
            ("host.docker.internal:11434", true),
            (machine.as_str(), true),
            ("evil.example", false),
            ("evil.example:11434", false),
            ("localhost.evil.example", false),
            ("notlocalhost", false),
            ("xlocal", false),
            ("203.0.113.7", false),
            ("172.32.0.1", false),
            ("224.0.0.1", false),
            ("[2001:db8::1]:80", false),
        ] {
            let expected = if passes { Host::Pass } else { Host::Forbidden };
            assert_eq!(host_rule(&loopback, &Method::GET, host), expected, "{host:?}");
        }
        for (host, expected) in
            [("localhost:11434", Host::NoContent), ("127.0.0.1:11434", Host::Pass), ("evil.example", Host::Forbidden)]
        {
            assert_eq!(host_rule(&loopback, &Method::OPTIONS, host), expected, "OPTIONS {host:?}");
        }
        let public = settings("0.0.0.0:11434", &[]);
        assert_eq!(host_rule(&public, &Method::GET, "evil.example"), Host::Pass);
    }
}
