//! A real server for tests, in this process or as the built program, and a raw client for it.
//!
//! The engine plays a script, so that answers are known word by word; everything else is what users run: the store in a
//! folder of its own, the scheduler and its threads, the HTTP server on a port that the system chooses.

pub mod heldout;
pub mod http;
pub mod model;
mod mutants;
pub mod program;
pub mod transcript;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::mpsc;
use std::time::Duration;

use fathom::api::{self, AppState};
use fathom::completion::Runtime;
use fathom::engine::scripted::{Answer, Play, Script};
use fathom::engine::{Batch, Kind, Settings};
use fathom::scheduler::{self, Scheduler};
use fathom::store::Store;
use fathom::telemetry::Metrics;
use fathom_gguf::Metadata;
use serde_json::Value;
use tokio::runtime;
use tokio::sync::oneshot;

use http::{Exchange, Reply};
use model::Parts;
pub use mutants::mutant;

/// A server in this process. Dropping it stops it, and fails the test when that does not work.
pub struct Server {
    pub address: SocketAddr,
    pub scheduler: Scheduler,
    /// Every batch that the engine was given.
    pub batches: mpsc::Receiver<Batch>,
    stop: Option<oneshot::Sender<()>>,
    serving: Option<tokio::task::JoinHandle<()>>,
    runtime: Option<runtime::Runtime>,
    _folder: tempfile::TempDir,
}

/// An engine that answers each request with the next of these texts.
pub fn answers(texts: &[&str]) -> Script {
    let answers = texts.iter().map(|text| Answer::Text(text.to_string())).collect();
    Script { play: Play::Answers(answers), ..Script::default() }
}

impl Server {
    /// A server with one model, `tiny`, of architecture `deepseek4`.
    pub fn start(script: Script) -> Server {
        Server::with_model(script, model::metadata("deepseek4"), &Parts::default())
    }

    /// As [`Server::start`], with another model under the name `tiny`.
    pub fn with_model(script: Script, metadata: Metadata, parts: &Parts) -> Server {
        Server::build(script, metadata, parts, api::Settings::default())
    }

    /// As [`Server::start`], with other settings of the interface.
    pub fn with_settings(script: Script, settings: api::Settings) -> Server {
        Server::build(script, model::metadata("deepseek4"), &Parts::default(), settings)
    }

    fn build(mut script: Script, metadata: Metadata, parts: &Parts, settings: api::Settings) -> Server {
        let folder = tempfile::tempdir().unwrap();
        let store = Arc::new(Store::open(folder.path()).unwrap());
        model::install(&store, "tiny", metadata, parts);
        let (trace, batches) = mpsc::channel();
        script.trace = Some(trace);

        let runtime = runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let metrics = Metrics::new();
        let scheduler = {
            let _inside = runtime.enter();
            Scheduler::new(scheduler::Settings::default(), metrics.clone())
        };
        let app = AppState {
            store,
            scheduler: scheduler.clone(),
            metrics,
            settings: Arc::new(settings),
            runtime: Arc::new(Runtime { kind: Kind::Scripted, settings: Settings::default(), script: Some(script) }),
        };
        let listener = runtime.block_on(tokio::net::TcpListener::bind("127.0.0.1:0")).unwrap();
        let address = listener.local_addr().unwrap();
        let (stop, stopped) = oneshot::channel::<()>();
        let serving = runtime.spawn(async move {
            let stopped = async {
                let _ = stopped.await;
            };
            api::serve(listener, app, stopped).await;
        });
        Server {
            address,
            scheduler,
            batches,
            stop: Some(stop),
            serving: Some(serving),
            runtime: Some(runtime),
            _folder: folder,
        }
    }

    pub fn get(&self, path: &str) -> Reply {
        http::open(self.address, "GET", path, &[], b"").finish()
    }

    pub fn post(&self, path: &str, body: &Value) -> Reply {
        self.open(path, body).finish()
    }

    /// As [`Server::post`], with the answer still to be read.
    pub fn open(&self, path: &str, body: &Value) -> Exchange {
        http::open(self.address, "POST", path, &[], body.to_string().as_bytes())
    }

    /// One number of `/metrics`.
    pub fn metric(&self, name: &str) -> f64 {
        let text = self.get("/metrics").text();
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        line.unwrap_or_else(|| panic!("no metric `{name}` in:\n{text}")).parse().unwrap()
    }

    /// Waits until a number of `/metrics` has a value; a hang is a failure.
    pub fn wait_for_metric(&self, name: &str, wanted: f64) {
        for _ in 0..2000 {
            if self.metric(name) == wanted {
                return;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        panic!("`{name}` is {}, not {wanted}", self.metric(name));
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let runtime = self.runtime.take().expect("taken here only");
        let stop = self.stop.take().expect("taken here only");
        let serving = self.serving.take().expect("taken here only");
        let scheduler = self.scheduler.clone();
        let ended = runtime.block_on(async move {
            let _ = stop.send(());
            scheduler.shutdown(Duration::ZERO).await;
            tokio::time::timeout(Duration::from_secs(30), serving).await
        });
        runtime.shutdown_timeout(Duration::from_secs(30));
        if !std::thread::panicking() {
            ended.expect("the server stops").expect("the server does not panic");
        }
    }
}
