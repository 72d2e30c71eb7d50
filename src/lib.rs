//! fathom: DeepSeek-V4 as a first-class local model.
//!
//! # How a request flows
//! `api::ollama` validates a request and builds a [`chat::Request`]. `completion` renders it (`chat::deepseek_v4::render`),
//! drops turns that do not fit, and tokenises. [`scheduler`] admits the ids as a sequence, reuses the longest cached prefix
//! and puts its tokens into batches. [`engine::Engine::step`] gives logits. [`sampler`] picks a token. `tokens::stream`
//! gives whole characters and watches for stop strings. Back in `completion`, `chat::deepseek_v4::parse` splits thinking,
//! content and tool calls into events, and `api::stream` writes them as NDJSON.
//!
//! # How a checkpoint flows
//! `fathom_converters::checkpoint` reads the config and the shard index; a recipe plans every output tensor; `transcode` turns
//! FP8/FP4 blocks into GGUF block types, one tensor at a time with bounded memory; `fathom_gguf::Writer` writes the file,
//! `fathom_gguf::File` maps it, and an engine binds names to weights.
//!
//! # Layers
//! A module uses modules of lower layers only (`tests/layers.rs` keeps this true):
//! 7 `cli`, `client` · 6 `api` · 5 `completion`, `calibrate` · 4 `scheduler`, `eval` · 3 `engine`, `tokens`, `sampler`, `chat`, `registry`, `modelfile` ·
//! 2 `store` · 0 `config`, `telemetry`, `ids`, `kernels`.

pub mod api;
pub mod calibrate;
pub mod chat;
pub mod cli;
pub mod client;
pub mod completion;
pub mod config;
pub mod engine;
pub mod eval;
#[cfg(feature = "native")]
pub mod ggml;
pub mod ids;
pub mod kernels;
pub mod modelfile;
pub mod sampler;
pub mod scheduler;
pub mod store;
pub mod telemetry;
pub mod tokens;
