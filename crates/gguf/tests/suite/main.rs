//! Integration tests of the format crate in one binary. Comparison with ggml's own functions needs llama.cpp and is in the
//! root package (`tests/gguf_vs_ggml.rs`).

mod allocation;
mod document;
mod hostile;
mod published_crate;
mod raw;
mod replay;
mod round_trip;
mod shards;
mod writer;
