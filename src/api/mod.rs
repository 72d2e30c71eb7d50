//! HTTP in, HTTP out: the endpoint table, the state that handlers share, and the server around them.
//!
//! A request passes the [`guard`] (origin and host rules, span), finds its row in the table, and reaches a handler, which
//! takes its body through [`extract`] and answers with wire types or an [`Error`]. Texts and statuses that clients compare
//! stand in [`error`] and nowhere else. Nothing here knows engines.

pub mod error;
pub mod extract;
pub mod guard;
mod listen;
pub mod local;
pub mod metrics;
pub mod ollama;
pub mod stream;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::{Request, State};
use axum::handler::Handler;
use axum::http::{HeaderValue, Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{MethodFilter, MethodRouter};

pub use error::Error;
pub use listen::serve;

use crate::completion::Runtime;
use crate::scheduler::Scheduler;
use crate::store::Store;
use crate::telemetry::Metrics;

/// The release of Ollama whose behaviour this interface matches; what `/api/version` answers. Clients compare it.
pub const OLLAMA_VERSION: &str = "0.32.1";

/// What all handlers share. Clones are handles.
#[derive(Clone)]
pub struct AppState {
    pub store: Arc<Store>,
    pub scheduler: Scheduler,
    pub metrics: Metrics,
    pub settings: Arc<Settings>,
    /// How models are run unless a request says otherwise.
    pub runtime: Arc<Runtime>,
}

/// Settings of the interface itself.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The address the server listens on; the host check applies to loopback addresses only.
    pub listen: SocketAddr,
    /// Origins allowed besides the built-in ones; one `*` in each is a wildcard, `*` alone allows all.
    pub origins: Vec<String>,
    /// Most bytes of a JSON body. Blobs have no limit.
    pub max_json_bytes: usize,
    /// How long a connection may take for the head of its next request.
    pub head_limit: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Settings {
            listen: SocketAddr::from(([127, 0, 0, 1], 11434)),
            origins: Vec::new(),
            // Room for a few dozen photographs in base64.
            max_json_bytes: 256 << 20,
            // Longer than clients keep an unused connection for their next request (Python and Go: 90 s or less).
            head_limit: Duration::from_secs(120),
        }
    }
}

/// One row of the table: a path and the methods that exist on it.
struct Endpoint {
    path: &'static str,
    methods: Vec<(Method, MethodRouter<AppState>)>,
}

/// A row under construction.
fn at(path: &'static str) -> Endpoint {
    Endpoint { path, methods: Vec::new() }
}

impl Endpoint {
    fn on<H: Handler<T, AppState>, T: 'static>(mut self, method: Method, handler: H) -> Endpoint {
        let filter = MethodFilter::try_from(method.clone()).expect("a standard method");
        self.methods.push((method, axum::routing::on(filter, handler)));
        self
    }

    fn get<H: Handler<T, AppState>, T: 'static>(self, handler: H) -> Endpoint {
        self.on(Method::GET, handler)
    }

    fn head<H: Handler<T, AppState>, T: 'static>(self, handler: H) -> Endpoint {
        self.on(Method::HEAD, handler)
    }

    fn post<H: Handler<T, AppState>, T: 'static>(self, handler: H) -> Endpoint {
        self.on(Method::POST, handler)
    }

    fn delete<H: Handler<T, AppState>, T: 'static>(self, handler: H) -> Endpoint {
        self.on(Method::DELETE, handler)
    }
}

/// Every endpoint there is. Methods that are not listed answer 405, HEAD included.
#[rustfmt::skip]
fn endpoints() -> Vec<Endpoint> {
    use ollama::{blobs, create, chat, generate, models, show};
    vec![
        at("/").head(running).get(running),
        at("/metrics").get(metrics::metrics),
        at("/api/generate").post(generate::generate),
        at("/api/chat").post(chat::chat),
        at("/api/version").head(models::version).get(models::version),
        at("/api/tags").head(models::tags).get(models::tags),
        at("/api/ps").get(models::ps),
        at("/api/show").post(show::show),
        at("/api/create").post(create::create),
        at("/api/copy").post(models::copy),
        at("/api/delete").delete(models::delete),
        at("/api/blobs/{digest}").head(blobs::exists).post(blobs::upload),
    ]
}

/// Every path with its methods, for documents and tests.
pub fn paths() -> Vec<(&'static str, Vec<Method>)> {
    let methods = |endpoint: Endpoint| endpoint.methods.into_iter().map(|(method, _)| method).collect();
    endpoints().into_iter().map(|endpoint| (endpoint.path, methods(endpoint))).collect()
}

/// The whole interface as one service.
pub fn router(app: AppState) -> Router {
    let mut router = Router::new();
    let mut known = Vec::new();
    for Endpoint { path, methods } in endpoints() {
        let listed: Vec<Method> = methods.iter().map(|(method, _)| method.clone()).collect();
        let mut route = MethodRouter::new();
        for (_, handler) in methods {
            route = route.merge(handler);
        }
        // axum lets GET answer HEAD; Ollama does not.
        if listed.contains(&Method::GET) && !listed.contains(&Method::HEAD) {
            route = route.head(method_not_allowed);
        }
        router = router.route(path, route.fallback(method_not_allowed));
        known.push((path, listed));
    }
    let known = Arc::new(known);
    router
        .fallback(move |request: Request| std::future::ready(unknown_path(&known, &request)))
        .layer(axum::middleware::from_fn_with_state(app.clone(), guard::guard))
        .layer(axum::middleware::map_response(name_server))
        .with_state(app)
}

/// Says who answers: our own client asks an Ollama server nothing that only fathom understands.
async fn name_server(mut response: Response) -> Response {
    let name = HeaderValue::from_static(concat!("fathom/", env!("CARGO_PKG_VERSION")));
    response.headers_mut().insert(header::SERVER, name);
    response
}

/// The health probe; the text is compared by clients.
async fn running(State(_): State<AppState>) -> &'static str {
    "Ollama is running"
}

async fn method_not_allowed() -> Response {
    (StatusCode::METHOD_NOT_ALLOWED, plain(), "405 method not allowed").into_response()
}

/// A JSON answer; Ollama names the character set outside of streams.
fn json(value: &impl serde::Serialize) -> Response {
    let kind = HeaderValue::from_static("application/json; charset=utf-8");
    ([(header::CONTENT_TYPE, kind)], axum::Json(value)).into_response()
}

fn plain() -> [(header::HeaderName, HeaderValue); 1] {
    [(header::CONTENT_TYPE, HeaderValue::from_static("text/plain"))]
}

/// A known path with a slash too much is sent to the right one, anything else is not found.
fn unknown_path(known: &[(&'static str, Vec<Method>)], request: &Request) -> Response {
    let path = request.uri().path();
    let trimmed = path.strip_suffix('/').unwrap_or(path);
    let exists = trimmed.len() < path.len()
        && known.iter().any(|(pattern, methods)| matches(pattern, trimmed) && methods.contains(request.method()));
    if !exists {
        return (StatusCode::NOT_FOUND, plain(), "404 page not found").into_response();
    }
    let status =
        if request.method() == Method::GET { StatusCode::MOVED_PERMANENTLY } else { StatusCode::TEMPORARY_REDIRECT };
    let target = match request.uri().query() {
        Some(query) => format!("{trimmed}?{query}"),
        None => trimmed.to_string(),
    };
    (status, [(header::LOCATION, target)]).into_response()
}

/// Whether `path` is an instance of `pattern`, whose segments in braces stand for any one segment.
fn matches(pattern: &str, path: &str) -> bool {
    let (mut pattern, mut path) = (pattern.split('/'), path.split('/'));
    loop {
        match (pattern.next(), path.next()) {
            (None, None) => return true,
            (Some(p), Some(s)) if p == s || (p.starts_with('{') && !s.is_empty()) => {}
            _ => return false,
        }
    }
}
