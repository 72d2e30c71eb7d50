//! The CPU backend with its threads, and the memory that graphs compute in.

use std::ffi::c_void;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use fathom_gguf::DType;
use llama_cpp_sys_2 as c;

use super::step::Bound;
use super::{Error, Graph, Slot};

/// How eagerly waiting threads look for work, in percent. Without polling each graph pays a wake-up of 5 µs and more; on a
/// loaded machine 0 was 40 times slower.
const POLL: u32 = 50;

/// Most threads of a pool (`GGML_MAX_N_THREADS`).
pub const MAX_THREADS: usize = 512;

/// A graph of an [`Executor`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GraphId(usize);

/// Runs graphs on the CPU. All graphs share one buffer: values of a run are gone when another graph runs. `K` says what a graph
/// was built for, `S` holds its slots.
pub struct Executor<K, S> {
    // Dropped in this order: graphs point into the buffer of `allocator`; the backend uses threads and flag.
    graphs: Vec<Entry<K, S>>,
    allocator: Allocator,
    backend: NonNull<c::ggml_backend>,
    _pool: Pool,
    _abort: Arc<AtomicBool>,
    n_threads: usize,
    clock: u64,
    most_graphs: usize,
}

struct Entry<K, S> {
    key: K,
    slots: S,
    graph: Graph,
    used: u64,
}

struct Allocator(NonNull<c::ggml_gallocr>);

impl Drop for Allocator {
    fn drop(&mut self) {
        // SAFETY: made by `ggml_gallocr_new`, freed once.
        unsafe { c::ggml_gallocr_free(self.0.as_ptr()) };
    }
}

struct Pool(NonNull<c::ggml_threadpool>);

impl Drop for Pool {
    fn drop(&mut self) {
        // SAFETY: made by `ggml_threadpool_new`, freed once, after the backend that used it.
        unsafe { c::ggml_threadpool_free(self.0.as_ptr()) };
    }
}

unsafe extern "C" fn on_abort(data: *mut c_void) -> bool {
    // SAFETY: `data` is the flag that the executor keeps alive; an atomic may be read from any thread.
    unsafe { &*data.cast::<AtomicBool>() }.load(Ordering::Relaxed)
}

/// Bytes that a graph's values take, without allocating them; and bytes of work memory for `n_threads`.
///
/// # Errors
/// [`Error::Memory`]
pub fn measure(graph: &Graph, n_threads: usize) -> Result<usize, Error> {
    let allocator = Allocator::new()?;
    let mut bytes = 0;
    // SAFETY: one buffer, so one size is written and no ids are needed.
    unsafe {
        c::ggml_gallocr_reserve_n_size(
            allocator.0.as_ptr(),
            graph.graph.as_ptr(),
            std::ptr::null(),
            std::ptr::null(),
            &mut bytes,
        );
    }
    Ok(bytes + work_bytes(graph, n_threads))
}

fn work_bytes(graph: &Graph, n_threads: usize) -> usize {
    // SAFETY: computes a size from shapes only; no pool is needed for that.
    unsafe { c::ggml_graph_plan(graph.graph.as_ptr(), n_threads as i32, std::ptr::null_mut()) }.work_size
}

impl Allocator {
    fn new() -> Result<Allocator, Error> {
        // SAFETY: the buffer type is a constant.
        let ptr = unsafe { c::ggml_gallocr_new(c::ggml_backend_cpu_buffer_type()) };
        NonNull::new(ptr).map(Allocator).ok_or(Error::Memory { what: "the allocator", bytes: 0 })
    }

    /// The largest buffer so far.
    fn bytes(&self) -> usize {
        // SAFETY: there is one buffer, number 0.
        unsafe { c::ggml_gallocr_get_buffer_size(self.0.as_ptr(), 0) }
    }
}

impl<K: PartialEq, S> Executor<K, S> {
    /// A backend with its own threads, which lives as long as this. Keeps at most `most_graphs` graphs.
    ///
    /// # Errors
    /// [`Error::Memory`]
    pub fn new(n_threads: usize, most_graphs: usize, abort: Arc<AtomicBool>) -> Result<Executor<K, S>, Error> {
        let n_threads = n_threads.clamp(1, MAX_THREADS);
        // SAFETY: takes nothing.
        let backend = NonNull::new(unsafe { c::ggml_backend_cpu_init() });
        let backend = backend.ok_or(Error::Memory { what: "the backend", bytes: 0 })?;
        // SAFETY: the number of threads is within ggml's limit.
        let pool = unsafe {
            let mut params = c::ggml_threadpool_params_default(n_threads as i32);
            params.poll = POLL;
            c::ggml_threadpool_new(&mut params)
        };
        let Some(pool) = NonNull::new(pool).map(Pool) else {
            // SAFETY: made above, used nowhere.
            unsafe { c::ggml_backend_free(backend.as_ptr()) };
            return Err(Error::Memory { what: "threads", bytes: 0 });
        };
        // SAFETY: pool and flag outlive the backend: see the order of fields and `Drop`.
        unsafe {
            c::ggml_backend_cpu_set_n_threads(backend.as_ptr(), n_threads as i32);
            c::ggml_backend_cpu_set_threadpool(backend.as_ptr(), pool.0.as_ptr());
            let flag = Arc::as_ptr(&abort).cast_mut().cast();
            c::ggml_backend_cpu_set_abort_callback(backend.as_ptr(), Some(on_abort), flag);
        }
        Ok(Executor {
            graphs: Vec::new(),
            allocator: Allocator::new()?,
            backend,
            _pool: pool,
            _abort: abort,
            n_threads,
            clock: 0,
            most_graphs: most_graphs.max(1),
        })
    }

    /// Threads that compute.
    pub fn n_threads(&self) -> usize {
        self.n_threads
    }

    /// Bytes of the buffer that graphs compute in, of the backend's work memory and of the headers of as many graphs as are kept.
    pub fn bytes(&self) -> usize {
        let most = |of: &dyn Fn(&Graph) -> usize| self.graphs.iter().map(|entry| of(&entry.graph)).max().unwrap_or(0);
        let work = most(&|graph| work_bytes(graph, self.n_threads));
        self.allocator.bytes() + work + self.most_graphs * most(&Graph::header_bytes)
    }

    /// The graph for `key`, built now if it is not there.
    ///
    /// # Errors
    /// Those of `build`, [`Error::Memory`].
    pub fn graph(&mut self, key: K, build: impl FnOnce() -> Result<(Graph, S), Error>) -> Result<GraphId, Error> {
        self.clock += 1;
        if let Some(at) = self.graphs.iter().position(|entry| entry.key == key) {
            self.graphs[at].used = self.clock;
            return Ok(GraphId(at));
        }
        let (graph, slots) = build()?;
        if graph.is_skeleton() {
            return Err(Error::Node { op: "run", what: "these weights are for planning only".to_owned() });
        }
        let before = self.allocator.bytes();
        // Planned anew for each graph: by itself ggml takes the last plan over when sizes and numbers of nodes fit, which says nothing
        // about who uses whom and which values are to be kept.
        // SAFETY: the graph is whole, and its tensors have no memory yet.
        let done = unsafe {
            let (allocator, graph) = (self.allocator.0.as_ptr(), graph.graph.as_ptr());
            c::ggml_gallocr_reserve(allocator, graph) && c::ggml_gallocr_alloc_graph(allocator, graph)
        };
        if self.allocator.bytes() != before || !done {
            // The buffer has moved: other graphs point to where it was.
            self.graphs.clear();
        }
        if !done {
            return Err(Error::Memory { what: "a graph's values", bytes: before });
        }
        if self.graphs.len() >= self.most_graphs
            && let Some(oldest) = (0..self.graphs.len()).min_by_key(|&at| self.graphs[at].used)
        {
            self.graphs.swap_remove(oldest);
        }
        let mut entry = Entry { key, slots, graph, used: self.clock };
        entry.graph.ops.iter_mut().for_each(|op| op.allocated());
        self.graphs.push(entry);
        Ok(GraphId(self.graphs.len() - 1))
    }

    /// The slots of a graph.
    pub fn slots(&self, id: GraphId) -> &S {
        &self.graphs[id.0].slots
    }

    /// Nodes of a graph.
    pub fn nodes(&self, id: GraphId) -> usize {
        self.graphs[id.0].graph.nodes()
    }

    /// Writes an input of i32.
    ///
    /// # Panics
    /// When the slot is of another graph, type or size.
    pub fn write_i32(&mut self, id: GraphId, slot: Slot, values: &[i32]) {
        let data = self.data(id, slot, DType::I32, values.len());
        // SAFETY: `data` checked that there is memory for exactly these values.
        unsafe { std::ptr::copy_nonoverlapping(values.as_ptr(), data.cast::<i32>(), values.len()) };
    }

    /// Values of an f32 tensor after a run.
    ///
    /// # Panics
    /// When the slot is of another graph or type.
    pub fn read_f32(&self, id: GraphId, slot: Slot) -> &[f32] {
        let len = self.elements(id, slot);
        let data = self.data(id, slot, DType::F32, len);
        // SAFETY: `data` checked that there are `len` values; the next run needs `&mut self`. Never uninitialised: the buffer is
        // written by the run.
        unsafe { std::slice::from_raw_parts(data.cast::<f32>(), len) }
    }

    /// Values of an i32 tensor after a run.
    ///
    /// # Panics
    /// When the slot is of another graph or type.
    pub fn read_i32(&self, id: GraphId, slot: Slot) -> &[i32] {
        let len = self.elements(id, slot);
        let data = self.data(id, slot, DType::I32, len);
        // SAFETY: as for `read_f32`.
        unsafe { std::slice::from_raw_parts(data.cast::<i32>(), len) }
    }

    /// Bytes of a tensor of any type after a run.
    ///
    /// # Panics
    /// When the slot is of another graph.
    pub fn read_bytes(&self, id: GraphId, slot: Slot) -> &[u8] {
        let raw = self.raw(id, slot);
        // SAFETY: an allocated tensor without gaps has `ggml_nbytes` bytes.
        unsafe { std::slice::from_raw_parts(raw.data.cast::<u8>().cast_const(), c::ggml_nbytes(raw)) }
    }

    fn raw(&self, id: GraphId, slot: Slot) -> &c::ggml_tensor {
        let graph = &self.graphs[id.0].graph;
        assert_eq!(slot.graph, graph.id, "a slot of another graph");
        // SAFETY: headers live as long as the graph that the slot names.
        let raw = unsafe { slot.ptr.as_ref() };
        assert!(!raw.data.is_null(), "the tensor is not part of the graph");
        raw
    }

    fn elements(&self, id: GraphId, slot: Slot) -> usize {
        self.raw(id, slot).ne.iter().product::<i64>() as usize
    }

    fn data(&self, id: GraphId, slot: Slot, dtype: DType, len: usize) -> *mut c_void {
        let raw = self.raw(id, slot);
        assert_eq!((raw.type_, raw.ne.iter().product::<i64>() as usize), (dtype.id(), len), "type and size of a slot");
        // SAFETY: reads the header.
        assert!(unsafe { c::ggml_is_contiguous(raw) }, "only tensors without gaps are read");
        raw.data
    }

    /// Computes a graph on bound caches.
    ///
    /// # Errors
    /// [`Error::Aborted`] when the flag was raised, in which case part of the caches is written; [`Error::Node`] for caches that do not
    /// fit the graph, before anything is computed; [`Error::Failed`].
    pub fn run(&mut self, id: GraphId, bound: &Bound) -> Result<(), Error> {
        let graph = &mut self.graphs[id.0].graph;
        for op in &mut graph.ops {
            op.bind(bound)?;
        }
        // SAFETY: every tensor has memory that lives in `allocator`, in the weights or in nothing at all; every op has just been bound to
        // caches that `bound` borrows for the time of this call.
        let status = unsafe { c::ggml_backend_graph_compute(self.backend.as_ptr(), graph.graph.as_ptr()) };
        status_of(status)
    }

    /// As [`Executor::run`], but node by node with the time of each: for profiles. Slower by a few µs a node.
    ///
    /// # Errors
    /// As [`Executor::run`].
    pub fn run_timed(
        &mut self,
        id: GraphId,
        bound: &Bound,
        timed: &mut dyn FnMut(&str, Duration),
    ) -> Result<(), Error> {
        let graph = &mut self.graphs[id.0].graph;
        for op in &mut graph.ops {
            op.bind(bound)?;
        }
        for index in 0..graph.nodes() {
            // SAFETY: as in `run`; a view of one node shares everything with the graph it is made from.
            let (status, name, elapsed) = unsafe {
                let node = c::ggml_graph_node(graph.graph.as_ptr(), index as i32);
                let mut one = ggml_graph_view(graph.graph.as_ptr(), index as i32, index as i32 + 1);
                let start = Instant::now();
                let status = c::ggml_backend_graph_compute(self.backend.as_ptr(), one.as_mut_ptr());
                (status, node_name(&*node), start.elapsed())
            };
            status_of(status)?;
            timed(&name, elapsed);
        }
        Ok(())
    }
}

/// Kind of op, and what tells it from others of its kind: the weight that it multiplies (without its block's number), or the phase of ours.
fn node_name(node: &c::ggml_tensor) -> String {
    // SAFETY: all three give NUL-terminated strings that live as long as the node.
    let text =
        |chars: *const std::ffi::c_char| unsafe { std::ffi::CStr::from_ptr(chars) }.to_string_lossy().into_owned();
    // SAFETY: reads the header.
    let op = text(unsafe { c::ggml_op_desc(node) });
    let of = match (node.op, NonNull::new(node.src[0])) {
        // SAFETY: a source lives as long as its node.
        (c::GGML_OP_MUL_MAT, Some(weight)) => unsafe { super::Tensor::new(weight) }.kind(),
        (c::GGML_OP_CUSTOM, _) => text(node.name.as_ptr()),
        _ => String::new(),
    };
    if of.is_empty() { op } else { format!("{op} {of}") }
}

/// `struct ggml_cgraph` by value: larger than it is, so that it can be returned into.
#[repr(C, align(16))]
struct RawGraph([u8; 256]);

impl RawGraph {
    fn as_mut_ptr(&mut self) -> *mut c::ggml_cgraph {
        std::ptr::from_mut(self).cast()
    }
}

/// # Safety
/// `graph` is whole, `begin..end` are nodes of it.
unsafe fn ggml_graph_view(graph: *mut c::ggml_cgraph, begin: i32, end: i32) -> RawGraph {
    unsafe extern "C" {
        fn fathom_graph_view(graph: *mut c::ggml_cgraph, begin: i32, end: i32, out: *mut c_void, bytes: usize) -> i32;
    }
    let mut view = RawGraph([0; 256]);
    // SAFETY: given by the caller; the callee checks that the struct fits.
    let status = unsafe { fathom_graph_view(graph, begin, end, (&raw mut view).cast(), size_of::<RawGraph>()) };
    assert_eq!(status, 0, "a ggml graph is larger than its place here");
    view
}

fn status_of(status: c::ggml_status) -> Result<(), Error> {
    match status {
        c::GGML_STATUS_SUCCESS => Ok(()),
        c::GGML_STATUS_ABORTED => Err(Error::Aborted),
        c::GGML_STATUS_ALLOC_FAILED => Err(Error::Memory { what: "work memory", bytes: 0 }),
        other => Err(Error::Failed(other)),
    }
}

impl<K, S> Drop for Executor<K, S> {
    fn drop(&mut self) {
        // SAFETY: made in `new`, freed once; the pool and the flag are fields and follow.
        unsafe { c::ggml_backend_free(self.backend.as_ptr()) };
    }
}
