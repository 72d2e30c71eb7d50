//! Connections: taken from the listener, given a time for their heads, and let go at the end.

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::time::Duration;

use axum::Extension;
use axum::extract::ConnectInfo;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};

use super::{AppState, router};

/// What accepting waits after an error that is not one connection's, such as too many open files.
const ACCEPT_PAUSE: Duration = Duration::from_secs(1);

/// Serves until `shutdown` resolves, then lets open answers end. A connection that has not sent the whole head of a request
/// within [`Settings::head_limit`](super::Settings::head_limit) is closed, whether it is new or between two requests.
pub async fn serve(listener: TcpListener, app: AppState, shutdown: impl Future<Output = ()> + Send) {
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(app.settings.head_limit);
    let router = router(app);
    let open = GracefulShutdown::new();
    let mut shutdown = std::pin::pin!(shutdown);
    loop {
        let (stream, peer) = tokio::select! {
            accepted = accept(&listener) => accepted,
            () = &mut shutdown => break,
        };
        let service = TowerToHyperService::new(router.clone().layer(Extension(ConnectInfo(peer))));
        let connection = open.watch(http.serve_connection(TokioIo::new(stream), service));
        tokio::spawn(async move {
            // Clients leave when they like; what that means for an answer is the answer's business.
            if let Err(error) = connection.await {
                tracing::debug!(%peer, "connection ended: {error}");
            }
        });
    }
    drop(listener);
    open.shutdown().await;
}

/// The next connection.
async fn accept(listener: &TcpListener) -> (TcpStream, SocketAddr) {
    loop {
        match listener.accept().await {
            Ok((stream, peer)) => {
                // A token is a small packet; Nagle's algorithm would keep it until the one before is acknowledged.
                if let Err(error) = stream.set_nodelay(true) {
                    tracing::debug!(%peer, "small packets may wait: {error}");
                }
                return (stream, peer);
            }
            Err(error) => match error.kind() {
                ErrorKind::ConnectionRefused | ErrorKind::ConnectionAborted | ErrorKind::ConnectionReset => {}
                _ => {
                    tracing::error!("cannot accept a connection: {error}");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            },
        }
    }
}
