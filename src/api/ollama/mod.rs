//! The Ollama interface. Each file holds the handlers of a few endpoints; `types` what goes over the wire.

pub mod answer;
pub mod blobs;
pub mod chat;
pub mod create;
pub mod duration;
pub mod generate;
mod inference;
pub mod models;
pub mod options;
pub mod show;
pub mod types;
