//! `kv_compress`, `index_topk` and `gather_attention`: what reads and appends to the caches.

use std::ffi::{c_int, c_void};

use fathom_gguf::DType;
use llama_cpp_sys_2::ggml_tensor;

use super::{Args, Op, Rope, Source, aligned, check_tokens, empty_step, is_f32, narrow, require};
use crate::ggml::cache::RowType;
use crate::ggml::step::{Bound, BoundLayer};
use crate::ggml::{Builder, Error, Tensor};
use crate::kernels::sys;

unsafe extern "C" {
    fn fathom_node_kv_compress_rows(dst: *mut ggml_tensor, ith: c_int, nth: c_int, userdata: *mut c_void);
    fn fathom_node_kv_compress_commit(dst: *mut ggml_tensor, ith: c_int, nth: c_int, userdata: *mut c_void);
    fn fathom_node_index_topk_scan(dst: *mut ggml_tensor, ith: c_int, nth: c_int, userdata: *mut c_void);
    fn fathom_node_index_topk_merge(dst: *mut ggml_tensor, ith: c_int, nth: c_int, userdata: *mut c_void);
    fn fathom_node_gather_attention(dst: *mut ggml_tensor, ith: c_int, nth: c_int, userdata: *mut c_void);
    fn fathom_node_gather_attention_commit(dst: *mut ggml_tensor, ith: c_int, nth: c_int, userdata: *mut c_void);
}

pub(super) fn layer_of<'s>(op: &'static str, bound: &Bound<'s>, layer: usize) -> Result<BoundLayer<'s>, Error> {
    bound.layer(layer).ok_or_else(|| Error::Node { op, what: format!("the caches have no layer {layer}") })
}

fn misfit(op: &'static str, layer: usize, what: &str) -> Error {
    Error::Node { op, what: format!("layer {layer}: {what}") }
}

/// Whether rows bound for a run are of the kind that a graph was built for.
fn same_rows(rows: &[sys::fathom_rows], row_type: i32, row_bytes: i64, n_runs: usize) -> bool {
    rows.len() == n_runs && rows.iter().all(|rows| rows.row_type == row_type && rows.row_bytes == row_bytes)
}

/// Which of a layer's two compressed caches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// Key/value rows.
    Rows,
    /// Keys of the indexer.
    Index,
}

/// What [`Builder::kv_compress`] takes.
pub struct Compress<'a, 'b> {
    pub layer: usize,
    pub side: Side,
    /// f32 `[w, n_tokens]`, `w = d * (1 + overlap)`
    pub u: Tensor<'b>,
    pub z: Tensor<'b>,
    /// f32 `[w, ratio]`
    pub ape: Tensor<'b>,
    /// f32 `[d]`
    pub norm: Tensor<'b>,
    pub ratio: usize,
    pub overlap: bool,
    pub hadamard: bool,
    pub eps: f32,
    pub rope: &'a Rope,
    pub row_type: RowType,
}

struct CompressNode {
    args: Args<sys::fathom_kv_compress_args>,
    step: Args<sys::fathom_step>,
    layer: usize,
    side: Side,
    u: Source,
    z: Source,
    ape: Source,
    norm: Source,
    n_tokens: usize,
    row_type: i32,
    row_bytes: i64,
    pending_len: usize,
    _rope: Rope,
}

impl Op for CompressNode {
    fn allocated(&mut self) {
        let step = self.step.get() as *const _;
        let (u, z, ape, norm) = (self.u.address(), self.z.address(), self.ape.address(), self.norm.address());
        let args = self.args.get();
        args.step = step;
        (args.u, args.z, args.ape, args.norm) = (u, z, ape, norm);
    }

    fn bind(&mut self, bound: &Bound) -> Result<(), Error> {
        const OP: &str = "kv_compress";
        check_tokens(OP, bound, self.n_tokens)?;
        let layer = layer_of(OP, bound, self.layer)?;
        let (side, reserved) = match self.side {
            Side::Rows => (layer.compressed(), layer.reserved()),
            Side::Index => (layer.index(), layer.index_reserved()),
        };
        let args = self.args.get();
        let pending = side.pending_len.iter().all(|&len| len == self.pending_len);
        if !pending || !same_rows(&side.rows, self.row_type, self.row_bytes, bound.n_runs()) {
            return Err(misfit(OP, self.layer, "the cache is of another kind"));
        }
        if !bound.has_room(reserved, args.ratio as usize) {
            return Err(misfit(OP, self.layer, "the cache has no room for the step's rows"));
        }
        args.pending = side.pending.as_ptr();
        args.rows = side.rows.as_ptr();
        *self.step.get() = bound.step;
        Ok(())
    }
}

/// What [`Builder::index_topk`] takes.
pub struct Indexer<'b> {
    pub layer: usize,
    /// f32 `[n_embd, n_head, n_tokens]`, roped
    pub q: Tensor<'b>,
    /// f32 `[n_head, n_tokens]`
    pub weights: Tensor<'b>,
    /// What [`Builder::kv_compress`] gave for the keys: they are there when it is done.
    pub keys: Tensor<'b>,
    pub key_type: RowType,
    pub ratio: usize,
    pub top_k: usize,
    pub scale: f32,
    pub n_rot: usize,
    pub n_threads: usize,
}

struct IndexNode {
    args: Args<sys::fathom_index_topk_args>,
    step: Args<sys::fathom_step>,
    layer: usize,
    q: Source,
    weights: Source,
    scratch: Source,
    /// i32 `[top_k * n_tokens]`, then `[n_tokens]`
    top: Source,
    n_tokens: usize,
    key_type: i32,
    key_bytes: i64,
}

impl Op for IndexNode {
    fn allocated(&mut self) {
        let step = self.step.get() as *const _;
        let (q, weights, top) = (self.q.address(), self.weights.address(), self.top.address::<i32>());
        let scratch = aligned(self.scratch.address());
        let n_tokens = self.n_tokens;
        let args = self.args.get();
        args.step = step;
        (args.q, args.weights, args.scratch) = (q, weights, scratch);
        (args.top, args.n_top) = (top, top.wrapping_add(args.top_k as usize * n_tokens));
    }

    fn bind(&mut self, bound: &Bound) -> Result<(), Error> {
        const OP: &str = "index_topk";
        check_tokens(OP, bound, self.n_tokens)?;
        let layer = layer_of(OP, bound, self.layer)?;
        let keys = &layer.index().rows;
        if !same_rows(keys, self.key_type, self.key_bytes, bound.n_runs()) {
            return Err(misfit(OP, self.layer, "the keys are of another kind"));
        }
        self.args.get().keys = keys.as_ptr();
        *self.step.get() = bound.step;
        Ok(())
    }
}

/// What [`Builder::gather_attention`] takes.
pub struct Attention<'a, 'b> {
    pub layer: usize,
    /// f32 `[d, n_head, n_tokens]`, roped
    pub q: Tensor<'b>,
    /// This step's rows, roped and in the row type.
    pub kv: Tensor<'b>,
    /// f32 `[n_head]`
    pub sinks: Tensor<'b>,
    /// What [`Builder::kv_compress`] gave for the rows; `None` in layers without.
    pub rows: Option<Tensor<'b>>,
    /// What [`Builder::index_topk`] gave, and its `top_k`; `None`: every compressed row.
    pub top: Option<(Tensor<'b>, usize)>,
    pub n_swa: usize,
    pub ratio: usize,
    pub row_type: RowType,
    pub scale: f32,
    pub rope: &'a Rope,
    pub n_threads: usize,
}

struct AttentionNode {
    args: Args<sys::fathom_gather_attention_args>,
    step: Args<sys::fathom_step>,
    layer: usize,
    q: Source,
    kv: Source,
    sinks: Source,
    top: Option<Source>,
    /// The output, then scratch.
    out: Source,
    out_bytes: usize,
    n_tokens: usize,
    _rope: Rope,
}

impl Op for AttentionNode {
    fn allocated(&mut self) {
        let step = self.step.get() as *const _;
        let (q, kv, sinks) = (self.q.address(), self.kv.address::<c_void>(), self.sinks.address());
        let top = self.top.map_or(std::ptr::null_mut(), Source::address::<i32>);
        let out = self.out.address::<u8>();
        let scratch = aligned(out.wrapping_add(self.out_bytes));
        let n_tokens = self.n_tokens;
        let args = self.args.get();
        args.step = step;
        (args.q, args.kv, args.sinks, args.top) = (q, kv, sinks, top);
        args.n_top = if top.is_null() { top } else { top.wrapping_add(args.top_k as usize * n_tokens) };
        (args.out, args.scratch) = (out.cast(), scratch);
    }

    fn bind(&mut self, bound: &Bound) -> Result<(), Error> {
        const OP: &str = "gather_attention";
        check_tokens(OP, bound, self.n_tokens)?;
        let layer = layer_of(OP, bound, self.layer)?;
        let args = self.args.get();
        let fits = |window: &sys::fathom_window| {
            (window.n_slots, window.row_type, window.row_bytes) == (args.n_swa, args.row_type, args.row_bytes)
        };
        if layer.windows().len() != bound.n_runs() || !layer.windows().iter().all(fits) {
            return Err(misfit(OP, self.layer, "the window is of another kind"));
        }
        args.window = layer.windows().as_ptr();
        args.rows = std::ptr::null();
        if args.ratio > 0 {
            let rows = &layer.compressed().rows;
            if !same_rows(rows, args.row_type, args.row_bytes, bound.n_runs()) {
                return Err(misfit(OP, self.layer, "the rows are of another kind"));
            }
            args.rows = rows.as_ptr();
        }
        *self.step.get() = bound.step;
        Ok(())
    }
}

impl<'b> Builder<'b> {
    /// Makes the compressed rows of the groups that the step completes, then keeps what later groups need. The tensor holds nothing: who
    /// reads the rows takes it as a source.
    pub fn kv_compress(&self, of: Compress<'_, 'b>) -> Result<Tensor<'b>, Error> {
        const OP: &str = "kv_compress";
        let [w, n_tokens, ..] = of.u.ne();
        let halves = 1 + usize::from(of.overlap);
        let d = w / halves;
        let sound = d * halves == w
            && is_f32(of.u, [w, n_tokens])
            && is_f32(of.z, [w, n_tokens])
            && is_f32(of.ape, [w, of.ratio])
            && is_f32(of.norm, [d])
            && of.rope.fits(d)
            && of.ratio > 0
            && (!of.hadamard || d.is_power_of_two());
        require(OP, sound, &[of.u, of.z, of.ape, of.norm])?;
        let row_bytes = row_bytes(OP, of.row_type, d, of.rope)?;
        let n_pending = of.ratio * halves;
        let args = Args::new(sys::fathom_kv_compress_args {
            step: std::ptr::null(),
            d: narrow(OP, d)?,
            ratio: narrow(OP, of.ratio)?,
            overlap: of.overlap.into(),
            n_pending: narrow(OP, n_pending)?,
            hadamard: of.hadamard.into(),
            eps: of.eps,
            rope: of.rope.raw(),
            u: std::ptr::null(),
            z: std::ptr::null(),
            ape: std::ptr::null(),
            norm: std::ptr::null(),
            pending: std::ptr::null(),
            rows: std::ptr::null(),
        });
        let userdata = args.userdata();
        let sources = [of.u, of.z, of.ape, of.norm];
        let done =
            self.custom("kv_compress_rows", DType::I8, [1; 4], &sources, fathom_node_kv_compress_rows, userdata)?;
        let sources = [done, of.u, of.z, of.ape];
        let commit =
            self.custom("kv_compress_commit", DType::I8, [1; 4], &sources, fathom_node_kv_compress_commit, userdata)?;
        self.expand(commit);
        self.push_op(Box::new(CompressNode {
            args,
            step: empty_step(),
            layer: of.layer,
            side: of.side,
            u: Source::of(of.u),
            z: Source::of(of.z),
            ape: Source::of(of.ape),
            norm: Source::of(of.norm),
            n_tokens,
            row_type: of.row_type.number(),
            row_bytes: row_bytes as i64,
            pending_len: w * n_pending,
            _rope: of.rope.clone(),
        }));
        Ok(done)
    }

    /// The compressed rows that each token attends to: i32 `[(top_k + 1) * n_tokens]`, rows of every token in ascending order and -1
    /// beyond their number, then those numbers.
    pub fn index_topk(&self, of: Indexer<'b>) -> Result<Tensor<'b>, Error> {
        const OP: &str = "index_topk";
        let [n_embd, n_head, n_tokens, _] = of.q.ne();
        let sound = is_f32(of.q, [n_embd, n_head, n_tokens]) && is_f32(of.weights, [n_head, n_tokens]);
        require(OP, sound && of.ratio > 0 && of.top_k > 0 && of.n_threads > 0, &[of.q, of.weights])?;
        let key_bytes = of
            .key_type
            .row_bytes(n_embd, of.n_rot)
            .ok_or(Error::Node { op: OP, what: format!("{:?} cannot hold keys of {n_embd}", of.key_type) })?;
        let step = planned_step(n_tokens)?;
        let mut args = Args::new(sys::fathom_index_topk_args {
            step: &raw const *step,
            n_head: narrow(OP, n_head)?,
            n_embd: narrow(OP, n_embd)?,
            ratio: narrow(OP, of.ratio)?,
            top_k: narrow(OP, of.top_k)?,
            scale: of.scale,
            q: std::ptr::null(),
            weights: std::ptr::null(),
            keys: std::ptr::null(),
            scratch: std::ptr::null_mut(),
            top: std::ptr::null_mut(),
            n_top: std::ptr::null_mut(),
        });
        // SAFETY: reads sizes of the arguments and of the step.
        let scratch_bytes = unsafe { sys::fathom_index_topk_scratch_bytes(args.get(), of.n_threads as i32) };
        args.get().step = std::ptr::null();
        let userdata = args.userdata();
        let ne = [scratch_bytes + 64, 1, 1, 1];
        let sources = [of.q, of.weights, of.keys];
        let scratch = self.custom("index_topk_scan", DType::I8, ne, &sources, fathom_node_index_topk_scan, userdata)?;
        let ne = [(of.top_k + 1) * n_tokens, 1, 1, 1];
        let sources = [scratch, of.q, of.weights, of.keys];
        let top = self.custom("index_topk_merge", DType::I32, ne, &sources, fathom_node_index_topk_merge, userdata)?;
        self.push_op(Box::new(IndexNode {
            args,
            step: empty_step(),
            layer: of.layer,
            q: Source::of(of.q),
            weights: Source::of(of.weights),
            scratch: Source::of(scratch),
            top: Source::of(top),
            n_tokens,
            key_type: of.key_type.number(),
            key_bytes: key_bytes as i64,
        }));
        Ok(top)
    }

    /// f32 `[d, n_head, n_tokens]`, rotated back. The step's rows enter the window afterwards.
    pub fn gather_attention(&self, of: Attention<'_, 'b>) -> Result<Tensor<'b>, Error> {
        const OP: &str = "gather_attention";
        let [d, n_head, n_tokens, _] = of.q.ne();
        let row_bytes = row_bytes(OP, of.row_type, d, of.rope)?;
        let kv_sound = match of.row_type {
            RowType::F32 => is_f32(of.kv, [d, 1, n_tokens]),
            _ => of.kv.dtype() == DType::I8 && of.kv.ne() == [row_bytes, n_tokens, 1, 1],
        };
        let top_sound = of.top.is_none_or(|(top, top_k)| {
            top.dtype() == DType::I32 && top.ne() == [(top_k + 1) * n_tokens, 1, 1, 1] && of.ratio > 0
        });
        let sound = is_f32(of.q, [d, n_head, n_tokens])
            && is_f32(of.sinks, [n_head])
            && of.rope.fits(d)
            && of.n_swa > 0
            && of.n_threads > 0
            && of.rows.is_some() == (of.ratio > 0);
        require(OP, sound && kv_sound && top_sound, &[of.q, of.kv, of.sinks])?;
        let step = planned_step(n_tokens)?;
        let mut args = Args::new(sys::fathom_gather_attention_args {
            step: &raw const *step,
            n_head: narrow(OP, n_head)?,
            d: narrow(OP, d)?,
            n_swa: narrow(OP, of.n_swa)?,
            ratio: narrow(OP, of.ratio)?,
            top_k: narrow(OP, of.top.map_or(0, |(_, top_k)| top_k))?,
            row_type: of.row_type.number(),
            row_bytes: row_bytes as i64,
            scale: of.scale,
            rope: of.rope.raw(),
            q: std::ptr::null(),
            kv: std::ptr::null(),
            sinks: std::ptr::null(),
            top: std::ptr::null(),
            n_top: std::ptr::null(),
            window: std::ptr::null(),
            rows: std::ptr::null(),
            scratch: std::ptr::null_mut(),
            out: std::ptr::null_mut(),
        });
        // SAFETY: reads sizes of the arguments and of the step.
        let scratch_bytes = unsafe { sys::fathom_gather_attention_scratch_bytes(args.get(), of.n_threads as i32) };
        args.get().step = std::ptr::null();
        let userdata = args.userdata();
        let elements = d * n_head * n_tokens;
        let mut sources = vec![of.q, of.kv, of.sinks];
        sources.extend(of.rows);
        sources.extend(of.top.map(|(top, _)| top));
        // Scratch lies behind the output: a node has one tensor of its own.
        let ne = [elements + (scratch_bytes + 64).div_ceil(4), 1, 1, 1];
        let whole = self.custom(OP, DType::F32, ne, &sources, fathom_node_gather_attention, userdata)?;
        let commit = self.custom(
            "gather_attention_commit",
            DType::I8,
            [1; 4],
            &[whole, of.kv],
            fathom_node_gather_attention_commit,
            userdata,
        )?;
        self.expand(commit);
        self.push_op(Box::new(AttentionNode {
            args,
            step: empty_step(),
            layer: of.layer,
            q: Source::of(of.q),
            kv: Source::of(of.kv),
            sinks: Source::of(of.sinks),
            top: of.top.map(|(top, _)| Source::of(top)),
            out: Source::of(whole),
            out_bytes: elements * 4,
            n_tokens,
            _rope: of.rope.clone(),
        }));
        let out = self.columns(whole, 0, elements)?;
        self.reshape(out, [d, n_head, n_tokens, 1])
    }
}

fn row_bytes(op: &'static str, row_type: RowType, d: usize, rope: &Rope) -> Result<usize, Error> {
    let what = || Error::Node { op, what: format!("{row_type:?} cannot hold rows of {d}") };
    row_type.row_bytes(d, 2 * rope.freq.len()).ok_or_else(what)
}

/// A step of as many tokens as the graph is for, to ask for the size of scratch memory.
fn planned_step(n_tokens: usize) -> Result<Box<sys::fathom_step>, Error> {
    let n_tokens = narrow("step", n_tokens)?;
    Ok(Box::new(sys::fathom_step {
        n_tokens,
        n_runs: n_tokens,
        runs: std::ptr::null(),
        run_of_token: std::ptr::null(),
    }))
}
