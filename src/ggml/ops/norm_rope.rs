//! `norm_rope`: RMS norm and rotary embedding of heads, stored in a row type.

use fathom_gguf::DType;

use super::{Args, Op, Rope, Source, check_tokens, is_f32, narrow, require};
use crate::ggml::cache::RowType;
use crate::ggml::step::Bound;
use crate::ggml::{Builder, Error, Tensor};
use crate::kernels::sys;

unsafe extern "C" {
    fn fathom_node_norm_rope(
        dst: *mut llama_cpp_sys_2::ggml_tensor,
        ith: std::ffi::c_int,
        nth: std::ffi::c_int,
        userdata: *mut std::ffi::c_void,
    );
}

/// What [`Builder::norm_rope`] takes.
pub struct NormRope<'a, 'b> {
    /// f32 `[d * n_head, n_tokens]`
    pub x: Tensor<'b>,
    pub n_head: usize,
    /// f32 `[d]`
    pub weight: Option<Tensor<'b>>,
    /// `None`: no norm.
    pub eps: Option<f32>,
    pub rope: &'a Rope,
    pub row_type: RowType,
}

struct Node {
    args: Args<sys::fathom_norm_rope_args>,
    step: Args<sys::fathom_step>,
    x: Source,
    weight: Option<Source>,
    out: Source,
    n_tokens: usize,
    _rope: Rope,
}

impl Op for Node {
    fn allocated(&mut self) {
        let (x, out) = (self.x.address(), self.out.address());
        let weight = self.weight.map_or(std::ptr::null_mut(), Source::address);
        let step = self.step.get() as *const _;
        let args = self.args.get();
        (args.x, args.weight, args.out, args.step) = (x, weight, out, step);
    }

    fn bind(&mut self, bound: &Bound) -> Result<(), Error> {
        check_tokens("norm_rope", bound, self.n_tokens)?;
        *self.step.get() = bound.step;
        Ok(())
    }
}

impl<'b> Builder<'b> {
    /// Rows `[row_bytes, n_head * n_tokens]` of bytes, or `f32 [d, n_head, n_tokens]` in the memory of `x` when the row type is F32.
    pub fn norm_rope(&self, of: NormRope<'_, 'b>) -> Result<Tensor<'b>, Error> {
        const OP: &str = "norm_rope";
        let [width, n_tokens, ..] = of.x.ne();
        let d = width / of.n_head.max(1);
        let weighted = of.weight.is_none_or(|weight| is_f32(weight, [d]));
        let sound = of.n_head > 0 && d * of.n_head == width && is_f32(of.x, [width, n_tokens]);
        require(OP, sound && weighted && of.rope.fits(d), &[of.x])?;
        let row_bytes = of
            .row_type
            .row_bytes(d, 2 * of.rope.freq.len())
            .ok_or(Error::Node { op: OP, what: format!("{:?} cannot hold rows of {d}", of.row_type) })?;
        let args = Args::new(sys::fathom_norm_rope_args {
            step: std::ptr::null(),
            n_head: narrow(OP, of.n_head)?,
            d: narrow(OP, d)?,
            eps: of.eps.unwrap_or(-1.0),
            rope: of.rope.raw(),
            x: std::ptr::null(),
            weight: std::ptr::null(),
            row_type: of.row_type.number(),
            row_bytes: row_bytes as i64,
            out: std::ptr::null_mut(),
        });
        let userdata = args.userdata();
        let mut sources = vec![of.x];
        sources.extend(of.weight);
        let out = if of.row_type == RowType::F32 {
            let out = self.custom_inplace(OP, of.x, &sources[1..], fathom_node_norm_rope, userdata)?;
            self.reshape(out, [d, of.n_head, n_tokens, 1])?
        } else {
            let ne = [row_bytes, of.n_head * n_tokens, 1, 1];
            self.custom(OP, DType::I8, ne, &sources, fathom_node_norm_rope, userdata)?
        };
        self.push_op(Box::new(Node {
            args,
            step: super::empty_step(),
            x: Source::of(of.x),
            weight: of.weight.map(Source::of),
            out: Source::of(out),
            n_tokens,
            _rope: of.rope.clone(),
        }));
        Ok(out)
    }
}
