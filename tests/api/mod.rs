//! The HTTP interface against a real server with the scripted engine: whole transcripts, raw.

mod chat;
mod generate;
mod metrics;
mod soak;
