//! The Ollama interface. Each file holds the handlers of a few endpoints; `types` what goes over the wire.

pub mod blobs;
pub mod duration;
pub mod models;
pub mod options;
pub mod show;
pub mod types;
