//! Safe wrappers over ggml: what the native engine computes with.
//!
//! ggml ends the process when one of its assertions fails, so every builder here checks shapes, types and layout first and
//! answers with [`Error`]. Ownership follows ggml's own: [`Weights`] owns the headers of weight tensors and whatever keeps their
//! data alive; a [`Graph`] owns an arena of tensor headers and is built once per shape; [`Executor`] owns the backend, its
//! threads and the one buffer that all graphs share, and runs them. A [`Tensor`] borrows and cannot leave the closure that builds.
//!
//! Our own ops ([`ops`]) are nodes of kind `GGML_OP_CUSTOM`. What they read beside tensors (the cache of each sequence) is bound
//! for one run by [`step::Step`], which borrows it as long as the run lasts.

#![expect(unsafe_code, reason = "the bindings of ggml are C functions on raw pointers")]

pub mod backend;
pub mod cache;
pub mod graph;
mod nodes;
pub mod ops;
mod routing;
pub mod step;
pub mod tensor;
pub mod types;
pub mod weights;

pub use backend::{Executor, GraphId};
pub use cache::{LayerCache, RowType};
pub use graph::{Builder, Graph, Slot};
pub use routing::LayerRouting;
pub use step::Step;
pub use tensor::Tensor;
pub use weights::{WeightId, Weights};

/// What a wrapper refuses, or what ggml answered.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A node that ggml would abort on; a bug of the caller, since files are checked before.
    #[error("{op}: {what}")]
    Node { op: &'static str, what: String },
    #[error("a graph of {capacity} tensors is full")]
    ArenaFull { capacity: usize },
    #[error("no memory for {bytes} bytes of {what}")]
    Memory { what: &'static str, bytes: usize },
    #[error("aborted")]
    Aborted,
    #[error("ggml answers with status {0}")]
    Failed(i32),
}

/// Version and commit of the ggml that is linked.
pub fn version() -> String {
    // SAFETY: both give pointers to string constants.
    let [version, commit] = unsafe {
        [llama_cpp_sys_2::ggml_version(), llama_cpp_sys_2::ggml_commit()].map(|s| std::ffi::CStr::from_ptr(s))
    };
    match commit.to_bytes() {
        b"unknown" => version.to_string_lossy().into_owned(),
        _ => format!("{} ({})", version.to_string_lossy(), commit.to_string_lossy()),
    }
}
