//! `fathom serve`: puts the server together, runs it, ends it gracefully.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use tokio::net::TcpListener;
use tokio::signal::unix::{Signal, SignalKind, signal};

use super::settings::{self, ServerFlags};
use super::{Interrupted, hint};
use crate::api::{self, AppState};
use crate::completion::Runtime;
use crate::config::{Config, Host, ListenOn, LogFormat};
use crate::scheduler::Scheduler;
use crate::store::Store;
use crate::telemetry::Metrics;

/// How long answers may go on after the first signal. Most end by themselves in this time; whoever supervises the server
/// kills it later than this (systemd: 90 s, docker: 10 s).
const GRACE: Duration = Duration::from_secs(8);

/// After [`GRACE`], for sending what the end of an answer is.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// Blobs younger than this may belong to a model that is being created.
const PRUNE_AFTER: Duration = Duration::from_secs(60 * 60);

/// How often an idle server looks whether it still is one. A model that comes and goes in between was not needed for long.
const IDLE_LOOK: Duration = Duration::from_secs(10);

#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    flags: ServerFlags,
}

pub fn run(args: Args, config: &Config) -> anyhow::Result<()> {
    let config = args.flags.applied(config)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .thread_name("fathom-http")
        .build()
        .context("cannot start the async runtime")?;
    let ended = runtime.block_on(serve(&config));
    // What still computes in the background (a conversion, say) was written to be killed at any moment.
    runtime.shutdown_background();
    ended
}

async fn serve(config: &Config) -> anyhow::Result<()> {
    let (kind, engine) = settings::engine(config)?;
    let listener = bind(&config.host).await?;
    let listen = listener.local_addr().context("cannot tell which port was given")?;
    let store = open_store(config)?;
    let metrics = Metrics::new();
    let scheduler = Scheduler::new(settings::scheduler(config), metrics.clone());
    let app = AppState {
        store: Arc::new(store),
        scheduler: scheduler.clone(),
        metrics,
        runtime: Arc::new(Runtime { kind, settings: engine, script: None }),
        settings: Arc::new(api::Settings { listen, origins: config.origins.clone(), ..api::Settings::default() }),
    };
    let mut signals = Signals::new()?;

    announce(&reachable(listen), config);
    tracing::info!("fathom {}, models in {}, engine {kind}", env!("CARGO_PKG_VERSION"), config.models.display());
    if !listen.ip().is_loopback() {
        tracing::warn!("other machines can reach this server, and nobody is asked for a password");
    }

    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let mut server = tokio::spawn(api::serve(listener, app, async {
        // An error means that the sender is gone, which is just as much an end.
        let _ = stopped.await;
    }));
    tokio::select! {
        ended = &mut server => return ended.context("the server panicked"),
        () = signals.next() => {
            tracing::info!("stopping: running answers have {} s, another signal ends them at once", GRACE.as_secs());
        }
        () = idle(&scheduler, config.idle_exit) => tracing::info!("stopping: no model was loaded for a long time"),
    }
    let ending = async {
        let deadline = tokio::time::Instant::now() + GRACE;
        let _ = stop.send(());
        scheduler.shutdown(GRACE).await;
        // Answers that were cut still have their last words to say.
        match tokio::time::timeout_at(deadline + LAST_WORDS, server).await {
            Ok(ended) => ended.context("the server panicked"),
            Err(_) => {
                tracing::warn!("some requests did not end in time; their connections are closed");
                Ok(())
            }
        }
    };
    tokio::select! {
        ended = ending => ended,
        () = signals.next() => Err(Interrupted.into()),
    }
}

async fn bind(host: &Host) -> anyhow::Result<TcpListener> {
    let bound = match host.listen_on() {
        ListenOn::Name(name) => TcpListener::bind(name).await,
        ListenOn::Addresses(addresses) => TcpListener::bind(&addresses[..]).await,
    };
    bound.map_err(|error| {
        let advice = match error.kind() {
            std::io::ErrorKind::AddrInUse => Some(
                "something listens there already, perhaps another fathom or Ollama; `--host 127.0.0.1:PORT` takes another port",
            ),
            std::io::ErrorKind::PermissionDenied => Some("ports below 1024 need special rights"),
            std::io::ErrorKind::AddrNotAvailable => Some("this machine does not have that address"),
            _ => None,
        };
        let error = anyhow::Error::new(error).context(format!("cannot listen on {host}"));
        match advice {
            Some(advice) => hint(error, advice),
            None => error,
        }
    })
}

fn open_store(config: &Config) -> anyhow::Result<Store> {
    let store = Store::open(&config.models)
        .map_err(|error| hint(error, "`--models DIR` or `FATHOM_MODELS` keeps models elsewhere"))?;
    if config.prune {
        match store.maintain(PRUNE_AFTER) {
            Ok(pruned) if pruned.blobs > 0 => {
                tracing::info!("removed {} unused blobs, {}", pruned.blobs, super::human::bytes(pruned.bytes));
            }
            Ok(_) => {}
            // Models can be served from a folder that cannot be written.
            Err(error) => tracing::warn!("unused blobs were not removed: {error}"),
        }
    }
    Ok(store)
}

/// Says where the server is, whatever the log leaves out: with port 0 nobody else knows.
fn announce(host: &Host, config: &Config) {
    match config.log.format {
        LogFormat::Text => eprintln!("listening on {}", host.url()),
        LogFormat::Json => tracing::info!(url = host.url(), "listening"),
    }
}

/// Returns when no model was loaded for `limit`; without a limit never.
async fn idle(scheduler: &Scheduler, limit: Option<Duration>) {
    let Some(limit) = limit.filter(|limit| !limit.is_zero()) else {
        return std::future::pending().await;
    };
    let mut busy_at = tokio::time::Instant::now();
    while busy_at.elapsed() < limit {
        tokio::time::sleep(IDLE_LOOK.min(limit)).await;
        if !scheduler.ps().await.is_empty() {
            busy_at = tokio::time::Instant::now();
        }
    }
}

/// The address as a client on this machine would type it.
fn reachable(listen: SocketAddr) -> Host {
    Host { name: listen.ip().to_string(), port: listen.port(), ..Host::default() }
}

/// What asks a server to end: Ctrl-C, `kill`, a terminal that is closed.
struct Signals {
    interrupt: Signal,
    terminate: Signal,
    hangup: Signal,
}

impl Signals {
    fn new() -> anyhow::Result<Signals> {
        let listen = |kind| signal(kind).context("cannot listen for signals");
        Ok(Signals {
            interrupt: listen(SignalKind::interrupt())?,
            terminate: listen(SignalKind::terminate())?,
            hangup: listen(SignalKind::hangup())?,
        })
    }

    async fn next(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
            _ = self.hangup.recv() => {}
        }
    }
}
