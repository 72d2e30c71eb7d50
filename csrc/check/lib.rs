//! `fathom::kernels` without the rest of `fathom`: what the kernel tests need.

#[path = "../../src/kernels/mod.rs"]
pub mod kernels;
