//! Our own ops (`csrc/ops`) as graph nodes: one builder each, which checks what the op's contract asks for before it adds nodes.
//!
//! An op's argument struct is made here and completed twice: with the addresses of tensors when the graph gets its memory, and with the
//! caches of the step's sequences before each run. The nodes of an op (one per phase) share it.

mod attention;
mod dense;
mod hyper_step;
mod moe;
mod norm_rope;

pub use attention::{Attention, Compress, Indexer, Side};
pub use dense::Operand;
pub use hyper_step::{HyperOpen, Opened};
pub use moe::{Choice, Expert, Experts, Route, Routed};
pub use norm_rope::NormRope;

use std::ffi::{c_int, c_void};
use std::ptr::NonNull;
use std::rc::Rc;

use fathom_gguf::DType;
use llama_cpp_sys_2 as c;

use super::step::Bound;
use super::{Builder, Error, Tensor};
use crate::kernels::sys;

/// The pinned-down part of one of our ops.
pub(super) trait Op {
    /// The graph has memory now: take the addresses of tensors.
    fn allocated(&mut self);

    /// Takes the caches of a step.
    ///
    /// # Errors
    /// They do not fit what the graph was built for.
    fn bind(&mut self, bound: &Bound) -> Result<(), Error>;
}

/// `void fathom_node_<phase>(ggml_tensor *, int, int, void *)` of `csrc/ggml/custom_op.cpp`.
type NodeFn = unsafe extern "C" fn(*mut c::ggml_tensor, c_int, c_int, *mut c_void);

/// An argument struct at an address that does not change, shared with the nodes that read it during a run.
struct Args<T>(NonNull<T>);

impl<T> Args<T> {
    fn new(value: T) -> Args<T> {
        Args(NonNull::from(Box::leak(Box::new(value))))
    }

    fn get(&mut self) -> &mut T {
        // SAFETY: kernels read it during `Executor::run` only, which borrows the op mutably and calls nothing of Rust meanwhile.
        unsafe { self.0.as_mut() }
    }

    fn userdata(&self) -> *mut c_void {
        self.0.as_ptr().cast()
    }
}

impl<T> Drop for Args<T> {
    fn drop(&mut self) {
        // SAFETY: leaked in `new`, taken back once; the graph whose nodes point to it is not run any more.
        drop(unsafe { Box::from_raw(self.0.as_ptr()) });
    }
}

/// A tensor whose address is asked for when the graph has memory.
#[derive(Clone, Copy)]
struct Source(NonNull<c::ggml_tensor>);

impl Source {
    fn of(tensor: Tensor) -> Source {
        Source(tensor.ptr)
    }

    /// Whether the tensor is part of the graph, or a weight: what no output needs gets no memory.
    fn has_memory(self) -> bool {
        // SAFETY: as in `address`.
        !unsafe { self.0.as_ref() }.data.is_null()
    }

    fn address<T>(self) -> *mut T {
        // SAFETY: the header lives in the arena of the graph that owns the op, or in the weights that the graph holds.
        let data = unsafe { self.0.as_ref() }.data;
        assert!(!data.is_null(), "every source of a node has memory");
        data.cast()
    }
}

/// Rotary embedding of the last `2 * freq.len()` channels.
#[derive(Clone, Debug)]
pub struct Rope {
    /// Radians per position of each pair of channels: f32 `[n_rot / 2]`.
    pub freq: Rc<[f32]>,
}

impl Rope {
    fn raw(&self) -> sys::fathom_rope {
        sys::fathom_rope { n_rot: 2 * self.freq.len() as i32, freq: self.freq.as_ptr() }
    }

    fn fits(&self, d: usize) -> bool {
        2 * self.freq.len() <= d
    }
}

fn require(op: &'static str, holds: bool, tensors: &[Tensor]) -> Result<(), Error> {
    if holds { Ok(()) } else { Err(Error::Node { op, what: format!("does not take {tensors:?}") }) }
}

/// `f32` of this shape without gaps; missing axes are 1.
fn is_f32<const N: usize>(tensor: Tensor, ne: [usize; N]) -> bool {
    let mut shape = [1; 4];
    shape[..N].copy_from_slice(&ne);
    tensor.dtype() == DType::F32 && tensor.ne() == shape && tensor.is_contiguous()
}

fn narrow(op: &'static str, n: usize) -> Result<i32, Error> {
    i32::try_from(n).map_err(|_| Error::Node { op, what: format!("{n} is above 2^31") })
}

/// The step's tokens are those that the graph was built for.
fn check_tokens(op: &'static str, bound: &Bound, n_tokens: usize) -> Result<(), Error> {
    if bound.n_tokens() == n_tokens {
        return Ok(());
    }
    Err(Error::Node { op, what: format!("{} tokens for a graph of {n_tokens}", bound.n_tokens()) })
}

impl<'b> Builder<'b> {
    /// A node with a new tensor of `ne` elements. All threads run it.
    fn custom(
        &self,
        name: &'static str,
        dtype: DType,
        ne: [usize; 4],
        sources: &[Tensor<'b>],
        run: NodeFn,
        userdata: *mut c_void,
    ) -> Result<Tensor<'b>, Error> {
        let mut raw: Vec<_> = sources.iter().map(|tensor| tensor.ptr.as_ptr()).collect();
        if raw.len() > 10 || dtype.tensor_bytes(&ne.map(|n| n as u64)).is_none() {
            return Err(Error::Node { op: name, what: format!("{} sources, shape {ne:?}", raw.len()) });
        }
        let [n0, n1, n2, n3] = ne.map(|n| n as i64);
        let (sources, n) = (raw.as_mut_ptr(), raw.len() as c_int);
        // SAFETY: at most 10 sources of this arena or the weights; the function runs only while the op that owns `userdata` lives.
        let tensor = self.made(name, |arena| unsafe {
            c::ggml_custom_4d(arena, dtype.id(), n0, n1, n2, n3, sources, n, Some(run), ALL_THREADS, userdata)
        })?;
        Ok(self.named(tensor, name))
    }

    /// A node that goes on with `a`, in place: a later phase on the same memory.
    fn custom_inplace(
        &self,
        name: &'static str,
        a: Tensor<'b>,
        sources: &[Tensor<'b>],
        run: NodeFn,
        userdata: *mut c_void,
    ) -> Result<Tensor<'b>, Error> {
        let mut raw: Vec<_> = sources.iter().map(|tensor| tensor.ptr.as_ptr()).collect();
        if raw.len() > 8 {
            return Err(Error::Node { op: name, what: format!("{} sources", raw.len()) });
        }
        let (sources, n) = (raw.as_mut_ptr(), raw.len() as c_int);
        // SAFETY: as for `custom`.
        let tensor = self.made(name, |arena| unsafe {
            c::ggml_custom_inplace(arena, a.ptr.as_ptr(), sources, n, Some(run), ALL_THREADS, userdata)
        })?;
        Ok(self.named(tensor, name))
    }
}

/// `GGML_N_TASKS_MAX`
const ALL_THREADS: c_int = -1;

/// The first multiple of 64 at or after an address; scratch is given 64 bytes more than it asks for.
fn aligned<T>(address: *mut u8) -> *mut T {
    address.wrapping_add(address.align_offset(64)).cast()
}

/// A step that is filled when caches are bound.
fn empty_step() -> Args<sys::fathom_step> {
    Args::new(sys::fathom_step { n_tokens: 0, n_runs: 0, runs: std::ptr::null(), run_of_token: std::ptr::null() })
}
