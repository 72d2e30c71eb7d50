//! All integration tests in one binary: one link instead of many.
//!
//! Tier T0 needs Rust and a C compiler; tests behind feature `llama` are T1 and run both the engine and the tiny checkpoints.

mod api;
mod chat;
mod cli;
mod convert;
mod kernels;
mod layers;
mod render;
mod support;
mod texts;
mod tokens;
mod tool_calls;

#[cfg(feature = "llama")]
mod engine;
#[cfg(feature = "llama")]
mod gguf_vs_ggml;
#[cfg(feature = "llama")]
mod stock_llama;
// Only release builds carry the model.
#[cfg(all(feature = "llama", not(debug_assertions)))]
mod tiny;
