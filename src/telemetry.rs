//! What the program says about itself: log lines and metrics. Settings come in as arguments.

mod metrics;

pub use metrics::{EndLabel, Metrics};
