//! Checkpoints as published -> GGUF, and back, without loss.
//!
//! # What this crate promises
//! `convert` stores every released number exactly (unless a lossy type was chosen by name), keeps what GGUF has no place for
//! (FP8 scale bytes, the JSON files) as keys, and records the SHA-256 of every released tensor; [`export()`] rebuilds the
//! released bytes from the GGUF alone and [`verify()`] proves it. Conversion streams: memory is bounded by a budget, not by
//! tensor sizes; it can be killed at any moment and continued.
//!
//! # How a checkpoint flows
//! [`checkpoint`] reads config.json, the shard index and headers -> [`recipe`] plans every output tensor (pure data) -> `prepare`
//! fixes every byte position -> `pipeline` takes slabs (one released tensor and its scale) through [`transcode`] on a few threads
//! -> `fathom_gguf::Writer`. `export` and `verify` run the same recipe over the names recorded in the file, and the inverse
//! transcoding.
//!
//! The crate knows nothing of servers or engines, prints nothing (see [`Progress`]) and has no `unsafe`.

pub mod checkpoint;
mod disk;
mod error;
mod export;
mod journal;
mod lock;
pub mod metadata;
mod options;
mod pipeline;
mod prepare;
mod progress;
pub mod recipe;
mod shard;
mod slab;
mod staging;
mod stored;
mod summary;
#[doc(hidden)]
pub mod synthetic;
mod tokenizer;
pub mod transcode;
pub mod units;
mod verify;
mod workers;

pub use checkpoint::Completeness;
pub use error::Error;
pub use export::{ExportOptions, ExportReport, export};
pub use options::{Dense, Experts, Options};
pub use pipeline::{Report, convert};
pub use prepare::{Output, Prepared, Role, draft_path, prepare};
pub use progress::{Phase, Progress, Silent};
pub use recipe::{Family, Release};
pub use stored::Location;
pub use summary::{FileSummary, Summary, TensorSummary};
pub use transcode::quantize::{ErrorSums, Quantizer};
pub use verify::{VerifyOptions, VerifyReport, verify};
