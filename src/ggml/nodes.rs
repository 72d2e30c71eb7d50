//! ggml's own ops: one checked builder each. The comment of a builder is its shape contract.

use fathom_gguf::DType;
use llama_cpp_sys_2 as c;

use super::{Builder, Error, Tensor, types};

fn refuse<T>(op: &'static str, what: String) -> Result<T, Error> {
    Err(Error::Node { op, what })
}

fn require(op: &'static str, holds: bool, tensors: &[Tensor]) -> Result<(), Error> {
    if holds { Ok(()) } else { refuse(op, format!("does not take {tensors:?}")) }
}

fn is_f32(tensor: Tensor) -> bool {
    tensor.dtype() == DType::F32
}

/// Whether rows are contiguous, whatever lies between them.
fn has_rows(tensor: Tensor) -> bool {
    tensor.nb()[0] == tensor.dtype().block_bytes() as usize
}

impl<'b> Builder<'b> {
    /// `a [k, n, p]` (any type with a dot product), `b: f32 [k, m, q]` with `q` a multiple of `p` -> `f32 [n, m, q]`
    pub fn mul_mat(&self, a: Tensor<'b>, b: Tensor<'b>) -> Result<Tensor<'b>, Error> {
        let (na, nb) = (a.ne(), b.ne());
        let shapes = na[0] == nb[0] && nb[2] % na[2].max(1) == 0 && nb[3] % na[3].max(1) == 0 && na[2] * na[3] > 0;
        let sound = types::can_multiply(a.dtype()) && a.is_contiguous() && is_f32(b) && has_rows(b);
        require("mul_mat", shapes && sound, &[a, b])?;
        // SAFETY: ggml's assertions: equal row lengths, broadcastable outer axes, `a` not transposed.
        self.made("mul_mat", |arena| unsafe { c::ggml_mul_mat(arena, a.ptr.as_ptr(), b.ptr.as_ptr()) })
    }

    /// Rows of `a [n, rows]` by `ids: i32 [m]` -> `f32 [n, m]`. Ids must be below `rows`: the caller checks them before a run.
    pub fn get_rows(&self, a: Tensor<'b>, ids: Tensor<'b>) -> Result<Tensor<'b>, Error> {
        let shapes = a.ne()[2..] == [1, 1] && ids.ne()[1..] == [1, 1, 1];
        let kinds = types::can_multiply(a.dtype()) && ids.dtype() == DType::I32 && has_rows(a);
        require("get_rows", shapes && kinds, &[a, ids])?;
        // SAFETY: ggml's assertions: matching outer axes and i32 ids.
        self.made("get_rows", |arena| unsafe { c::ggml_get_rows(arena, a.ptr.as_ptr(), ids.ptr.as_ptr()) })
    }

    /// `a: f32` repeated to shape `ne`, whole numbers of times along each axis.
    pub fn repeat(&self, a: Tensor<'b>, ne: [usize; 4]) -> Result<Tensor<'b>, Error> {
        let whole = a.ne().iter().zip(ne).all(|(&from, to)| from > 0 && to.is_multiple_of(from));
        require("repeat", whole && is_f32(a), &[a])?;
        let [n0, n1, n2, n3] = ne.map(|n| n as i64);
        // SAFETY: ggml's assertion: every axis is a multiple.
        self.made("repeat", |arena| unsafe { c::ggml_repeat_4d(arena, a.ptr.as_ptr(), n0, n1, n2, n3) })
    }

    /// `a / sqrt(mean(a^2) + eps)` over each row of `a: f32`.
    pub fn rms_norm(&self, a: Tensor<'b>, eps: f32) -> Result<Tensor<'b>, Error> {
        require("rms_norm", is_f32(a) && has_rows(a) && eps >= 0.0, &[a])?;
        // SAFETY: the kernel asserts f32, contiguous rows and eps >= 0.
        self.made("rms_norm", |arena| unsafe { c::ggml_rms_norm(arena, a.ptr.as_ptr(), eps) })
    }

    /// `a * b`, `b` repeated to the shape of `a`.
    pub fn mul(&self, a: Tensor<'b>, b: Tensor<'b>) -> Result<Tensor<'b>, Error> {
        self.binary("mul", a, b)?;
        // SAFETY: ggml's assertion: `b` can be repeated to `a`.
        self.made("mul", |arena| unsafe { c::ggml_mul(arena, a.ptr.as_ptr(), b.ptr.as_ptr()) })
    }

    /// `a + b`, `b` repeated to the shape of `a`.
    pub fn add(&self, a: Tensor<'b>, b: Tensor<'b>) -> Result<Tensor<'b>, Error> {
        self.binary("add", a, b)?;
        // SAFETY: as for `mul`.
        self.made("add", |arena| unsafe { c::ggml_add(arena, a.ptr.as_ptr(), b.ptr.as_ptr()) })
    }

    fn binary(&self, op: &'static str, a: Tensor<'b>, b: Tensor<'b>) -> Result<(), Error> {
        let whole = a.ne().iter().zip(b.ne()).all(|(&to, from)| from > 0 && to.is_multiple_of(from));
        require(op, whole && is_f32(a) && is_f32(b) && has_rows(a) && has_rows(b), &[a, b])
    }

    /// `silu(min(gate, limit)) * clamp(up, -limit, limit)`, both `f32` of one shape.
    pub fn swiglu_clamp(&self, gate: Tensor<'b>, up: Tensor<'b>, limit: f32) -> Result<Tensor<'b>, Error> {
        let sound = is_f32(gate) && is_f32(up) && gate.is_contiguous() && up.is_contiguous() && limit >= 0.0;
        require("swiglu_clamp", sound && gate.ne() == up.ne(), &[gate, up])?;
        // SAFETY: ggml's assertions: one type, one shape, contiguous.
        self.made("swiglu_clamp", |arena| unsafe {
            c::ggml_swiglu_clamp(arena, gate.ptr.as_ptr(), up.ptr.as_ptr(), limit)
        })
    }

    /// The same elements in another shape.
    pub fn reshape(&self, a: Tensor<'b>, ne: [usize; 4]) -> Result<Tensor<'b>, Error> {
        require("reshape", a.is_contiguous() && a.elements() == ne.iter().product::<usize>(), &[a])?;
        let [n0, n1, n2, n3] = ne.map(|n| n as i64);
        // SAFETY: ggml's assertions: contiguous, as many elements.
        self.made("reshape", |arena| unsafe { c::ggml_reshape_4d(arena, a.ptr.as_ptr(), n0, n1, n2, n3) })
    }

    /// `len` elements of each row of `a [n, m]`, from element `start` on; also of a vector.
    pub fn columns(&self, a: Tensor<'b>, start: usize, len: usize) -> Result<Tensor<'b>, Error> {
        let inside = start.checked_add(len).is_some_and(|end| end <= a.ne()[0]);
        require("columns", inside && len > 0 && a.dtype().block_elements() == 1 && a.ne()[2..] == [1, 1], &[a])?;
        let offset = start * a.nb()[0];
        // SAFETY: ggml's assertion: the view lies inside `a`.
        self.made("columns", |arena| unsafe {
            c::ggml_view_2d(arena, a.ptr.as_ptr(), len as i64, a.ne()[1] as i64, a.nb()[1], offset)
        })
    }

    /// Axis `i` of `a` becomes axis `axes[i]`.
    pub fn permute(&self, a: Tensor<'b>, axes: [u8; 4]) -> Result<Tensor<'b>, Error> {
        let mut sorted = axes;
        sorted.sort_unstable();
        require("permute", sorted == [0, 1, 2, 3], &[a])?;
        let [x, y, z, w] = axes.map(i32::from);
        // SAFETY: ggml's assertions: a permutation of the four axes.
        self.made("permute", |arena| unsafe { c::ggml_permute(arena, a.ptr.as_ptr(), x, y, z, w) })
    }

    /// A copy without gaps, `f32`.
    pub fn cont(&self, a: Tensor<'b>) -> Result<Tensor<'b>, Error> {
        require("cont", is_f32(a), &[a])?;
        // SAFETY: any layout of f32 can be copied.
        self.made("cont", |arena| unsafe { c::ggml_cont(arena, a.ptr.as_ptr()) })
    }
}
