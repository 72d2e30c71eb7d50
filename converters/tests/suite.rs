//! Whole conversions of small checkpoints, on disk.

mod bad_input;
mod document;
mod files;
mod hostile;
mod lossy;
mod resume;
mod round_trip;
mod sizes;
mod support;
