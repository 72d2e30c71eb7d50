//! What the program says about itself: log lines and metrics. Settings come in as arguments.

mod log;
mod metrics;

pub use log::{Error, Loudness, init};
pub use metrics::{EndLabel, EngineLabel, Metrics};
