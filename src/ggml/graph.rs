//! A graph: built once for a shape, run many times.

use std::cell::{Cell, RefCell};
use std::marker::PhantomData;
use std::ptr::{NonNull, null_mut};
use std::rc::Rc;
use std::sync::atomic::{AtomicU64, Ordering};

use fathom_gguf::DType;
use llama_cpp_sys_2 as c;

use super::ops::Op;
use super::{Error, Tensor, WeightId, Weights};

/// Names a tensor of a finished graph, to write its inputs and read its outputs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slot {
    pub(super) graph: u64,
    pub(super) ptr: NonNull<c::ggml_tensor>,
}

/// A finished graph. Its tensors get memory from an [`super::Executor`].
pub struct Graph {
    pub(super) id: u64,
    /// Our ops, whose arguments custom nodes point to: the boxes do not move. Before `arena`, though nothing reads them after it.
    pub(super) ops: Vec<Box<dyn Op>>,
    pub(super) graph: NonNull<c::ggml_cgraph>,
    arena: Arena,
    weights: Rc<Weights>,
}

/// Owner of tensor headers.
struct Arena {
    ptr: NonNull<c::ggml_context>,
    bytes: usize,
}

impl Drop for Arena {
    fn drop(&mut self) {
        // SAFETY: made by `ggml_init`, freed once, after everything that points into it.
        unsafe { c::ggml_free(self.ptr.as_ptr()) };
    }
}

/// Where nodes are added. See [`Graph::build`].
pub struct Builder<'b> {
    pub(super) arena: NonNull<c::ggml_context>,
    graph: NonNull<c::ggml_cgraph>,
    id: u64,
    capacity: usize,
    used: Cell<usize>,
    ops: RefCell<Vec<Box<dyn Op>>>,
    weights: &'b Weights,
    _brand: PhantomData<fn(&'b ()) -> &'b ()>,
}

impl Graph {
    /// Builds a graph of at most `capacity` tensors: `build` adds the nodes and gives back the slots that it wants to use later.
    ///
    /// # Errors
    /// Those of `build`, [`Error::Memory`].
    pub fn build<R>(
        weights: &Rc<Weights>,
        capacity: usize,
        build: impl for<'b> FnOnce(&Builder<'b>) -> Result<R, Error>,
    ) -> Result<(Graph, R), Error> {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        // SAFETY: both only compute sizes.
        let bytes =
            unsafe { c::ggml_tensor_overhead() * capacity + c::ggml_graph_overhead_custom(capacity, false) } + 4096;
        // SAFETY: ggml allocates the arena itself.
        let ptr =
            unsafe { c::ggml_init(c::ggml_init_params { mem_size: bytes, mem_buffer: null_mut(), no_alloc: true }) };
        let arena = Arena { ptr: NonNull::new(ptr).ok_or(Error::Memory { what: "a graph", bytes })?, bytes };
        // SAFETY: the arena has room for a graph of this size.
        let graph = unsafe { c::ggml_new_graph_custom(arena.ptr.as_ptr(), capacity, false) };
        let graph = NonNull::new(graph).ok_or(Error::Memory { what: "a graph", bytes })?;
        let id = NEXT.fetch_add(1, Ordering::Relaxed);
        let builder = Builder {
            arena: arena.ptr,
            graph,
            id,
            capacity,
            used: Cell::new(0),
            ops: RefCell::default(),
            weights,
            _brand: PhantomData,
        };
        let slots = build(&builder)?;
        let ops = builder.ops.into_inner();
        Ok((Graph { id, ops, graph, arena, weights: Rc::clone(weights) }, slots))
    }

    /// Nodes that are computed or viewed.
    pub fn nodes(&self) -> usize {
        // SAFETY: the graph lives as long as `self`.
        usize::try_from(unsafe { c::ggml_graph_n_nodes(self.graph.as_ptr()) }).unwrap_or(0)
    }

    /// Bytes of headers.
    pub fn header_bytes(&self) -> usize {
        self.arena.bytes
    }

    pub(super) fn is_skeleton(&self) -> bool {
        self.weights.is_skeleton()
    }
}

impl<'b> Builder<'b> {
    /// A weight as a source of nodes.
    pub fn weight(&self, id: WeightId) -> Tensor<'b> {
        // SAFETY: the graph keeps the weights alive beside its nodes; `'b` ends with the building.
        unsafe { self.weights.tensor(id) }
    }

    /// The weights, for their types and addresses.
    pub(super) fn weights(&self) -> &'b Weights {
        self.weights
    }

    /// A tensor that is written before each run.
    pub fn input(&self, dtype: DType, ne: &[usize], name: &str) -> Result<Tensor<'b>, Error> {
        let mut shape = [1_i64; 4];
        let wide: Vec<u64> = ne.iter().map(|&n| n as u64).collect();
        if ne.is_empty() || ne.len() > 4 || dtype.tensor_bytes(&wide).is_none() {
            return Err(Error::Node { op: "input", what: format!("{name} cannot be {} {ne:?}", dtype.name()) });
        }
        for (to, from) in shape.iter_mut().zip(ne) {
            *to = *from as i64;
        }
        // SAFETY: the type and the shape are those of a tensor, as checked.
        let tensor = self.made("input", |arena| unsafe { c::ggml_new_tensor(arena, dtype.id(), 4, shape.as_ptr()) })?;
        // SAFETY: the header was just made.
        unsafe { c::ggml_set_input(tensor.ptr.as_ptr()) };
        Ok(self.named(tensor, name))
    }

    /// Gives a tensor a name, for profiles and logs.
    pub fn named(&self, tensor: Tensor<'b>, name: &str) -> Tensor<'b> {
        // SAFETY: the header belongs to this arena and has room for 63 characters and a 0.
        let chars = unsafe { &mut (*tensor.ptr.as_ptr()).name };
        let len = name.len().min(chars.len() - 1);
        for (to, from) in chars.iter_mut().zip(&name.as_bytes()[..len]) {
            *to = *from as std::ffi::c_char;
        }
        chars[len] = 0;
        tensor
    }

    /// Adds a tensor, and before it whatever it needs, to what is computed.
    pub fn expand(&self, tensor: Tensor<'b>) {
        // SAFETY: the graph has room for every tensor of the arena.
        unsafe { c::ggml_build_forward_expand(self.graph.as_ptr(), tensor.ptr.as_ptr()) };
    }

    /// Keeps a tensor's values until the next run, and adds it to what is computed.
    pub fn output(&self, tensor: Tensor<'b>) -> Slot {
        // SAFETY: the header lives in this arena.
        unsafe { c::ggml_set_output(tensor.ptr.as_ptr()) };
        self.expand(tensor);
        self.slot(tensor)
    }

    /// Names a tensor for later.
    pub fn slot(&self, tensor: Tensor<'b>) -> Slot {
        Slot { graph: self.id, ptr: tensor.ptr }
    }

    pub(super) fn push_op(&self, op: Box<dyn Op>) {
        self.ops.borrow_mut().push(op);
    }

    /// Makes one header in the arena.
    pub(super) fn made(
        &self,
        op: &'static str,
        make: impl FnOnce(*mut c::ggml_context) -> *mut c::ggml_tensor,
    ) -> Result<Tensor<'b>, Error> {
        if self.used.get() >= self.capacity {
            return Err(Error::ArenaFull { capacity: self.capacity });
        }
        self.used.set(self.used.get() + 1);
        let ptr = NonNull::new(make(self.arena.as_ptr()))
            .ok_or_else(|| Error::Node { op, what: "ggml made no tensor".to_owned() })?;
        // SAFETY: it was just made in the arena of `'b`.
        Ok(unsafe { Tensor::new(ptr) })
    }
}
