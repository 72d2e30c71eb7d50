//! Models that bring a template of their own.

pub mod jinja;
