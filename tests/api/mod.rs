//! The HTTP interface against a real server with the scripted engine: whole transcripts, raw.

mod chat;
mod connections;
mod create;
mod generate;
mod heldout;
mod metrics;
mod models;
mod routing;
mod soak;
mod transport;
