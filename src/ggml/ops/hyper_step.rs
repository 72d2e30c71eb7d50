//! `hyper_step`: the residual streams before and after a block.

use std::ffi::{c_int, c_void};

use fathom_gguf::DType;
use llama_cpp_sys_2::ggml_tensor;

use super::{Args, Op, Source, is_f32, narrow, require};
use crate::ggml::step::Bound;
use crate::ggml::{Builder, Error, Tensor};
use crate::kernels::sys;

unsafe extern "C" {
    fn fathom_node_hyper_open(dst: *mut ggml_tensor, ith: c_int, nth: c_int, userdata: *mut c_void);
    fn fathom_node_hyper_close(dst: *mut ggml_tensor, ith: c_int, nth: c_int, userdata: *mut c_void);
}

const N_STREAMS: usize = sys::FATHOM_N_STREAMS as usize;
const N_MIXES: usize = sys::FATHOM_N_MIXES as usize;
/// Numbers of a token that closing needs.
const N_KEPT: usize = N_STREAMS + N_STREAMS * N_STREAMS;

/// What [`Builder::hyper_open`] takes.
#[derive(Clone, Copy)]
pub struct HyperOpen<'b> {
    /// f32 `[n_embd, 4, n_tokens]`
    pub streams: Tensor<'b>,
    /// f32 `[24, n_tokens]`, or `[4, n_tokens]` before the output
    pub dots: Tensor<'b>,
    /// f32 `[3]`, or `[1]`
    pub scale: Tensor<'b>,
    /// f32 `[24]`, or `[4]`
    pub base: Tensor<'b>,
    /// f32 `[n_embd]`
    pub norm: Tensor<'b>,
    pub norm_eps: f32,
    pub eps: f32,
    pub n_iterations: u16,
}

/// What [`Builder::hyper_open`] gives.
#[derive(Clone, Copy)]
pub struct Opened<'b> {
    /// f32 `[n_embd, n_tokens]`, normed: the block's input
    pub x: Tensor<'b>,
    streams: Tensor<'b>,
    /// x, then what closing needs.
    whole: Tensor<'b>,
    closes: bool,
}

struct Open {
    args: Args<sys::fathom_hyper_step_args>,
    streams: Source,
    dots: Source,
    scale: Source,
    base: Source,
    norm: Source,
    whole: Source,
}

impl Op for Open {
    fn allocated(&mut self) {
        let (streams, dots, scale) = (self.streams.address(), self.dots.address(), self.scale.address());
        let (base, norm, x) = (self.base.address(), self.norm.address(), self.whole.address::<f32>());
        let args = self.args.get();
        (args.streams, args.dots, args.scale, args.base, args.norm) = (streams, dots, scale, base, norm);
        (args.x, args.mix) = (x, x.wrapping_add(args.n_embd as usize * args.n_tokens as usize));
    }

    fn bind(&mut self, _: &Bound) -> Result<(), Error> {
        Ok(())
    }
}

struct Close {
    args: Args<sys::fathom_hyper_step_args>,
    streams: Source,
    whole: Source,
    y: Source,
    out: Source,
}

impl Op for Close {
    fn allocated(&mut self) {
        let (streams, whole, y) = (self.streams.address(), self.whole.address::<f32>(), self.y.address());
        let out = self.out.address();
        let args = self.args.get();
        args.mix = whole.wrapping_add(args.n_embd as usize * args.n_tokens as usize);
        (args.streams, args.y, args.out) = (streams, y, out);
    }

    fn bind(&mut self, _: &Bound) -> Result<(), Error> {
        Ok(())
    }
}

fn empty_args(n_embd: usize, n_tokens: usize) -> Result<sys::fathom_hyper_step_args, Error> {
    Ok(sys::fathom_hyper_step_args {
        n_tokens: narrow("hyper_step", n_tokens)?,
        n_embd: narrow("hyper_step", n_embd)?,
        n_mixes: 0,
        n_iterations: 0,
        norm_eps: 0.0,
        eps: 0.0,
        streams: std::ptr::null(),
        dots: std::ptr::null(),
        scale: std::ptr::null(),
        base: std::ptr::null(),
        norm: std::ptr::null(),
        x: std::ptr::null_mut(),
        mix: std::ptr::null_mut(),
        y: std::ptr::null(),
        out: std::ptr::null_mut(),
    })
}

impl<'b> Builder<'b> {
    /// What a block reads of the streams.
    pub fn hyper_open(&self, of: HyperOpen<'b>) -> Result<Opened<'b>, Error> {
        const OP: &str = "hyper_open";
        let [n_embd, _, n_tokens, _] = of.streams.ne();
        let n_mixes = of.dots.ne()[0];
        let sound = (n_mixes == N_MIXES || n_mixes == N_STREAMS)
            && is_f32(of.streams, [n_embd, N_STREAMS, n_tokens])
            && is_f32(of.dots, [n_mixes, n_tokens])
            && is_f32(of.scale, [if n_mixes == N_MIXES { 3 } else { 1 }])
            && is_f32(of.base, [n_mixes])
            && is_f32(of.norm, [n_embd])
            && of.n_iterations > 0;
        require(OP, sound, &[of.streams, of.dots, of.scale, of.base, of.norm])?;
        let args = Args::new(sys::fathom_hyper_step_args {
            n_mixes: narrow(OP, n_mixes)?,
            n_iterations: of.n_iterations.into(),
            norm_eps: of.norm_eps,
            eps: of.eps,
            ..empty_args(n_embd, n_tokens)?
        });
        let ne = [(n_embd + N_KEPT) * n_tokens, 1, 1, 1];
        let sources = [of.streams, of.dots, of.scale, of.base, of.norm];
        let whole = self.custom(OP, DType::F32, ne, &sources, fathom_node_hyper_open, args.userdata())?;
        self.push_op(Box::new(Open {
            args,
            streams: Source::of(of.streams),
            dots: Source::of(of.dots),
            scale: Source::of(of.scale),
            base: Source::of(of.base),
            norm: Source::of(of.norm),
            whole: Source::of(whole),
        }));
        let x = self.columns(whole, 0, n_embd * n_tokens)?;
        Ok(Opened {
            x: self.reshape(x, [n_embd, n_tokens, 1, 1])?,
            streams: of.streams,
            whole,
            closes: n_mixes == N_MIXES,
        })
    }

    /// The streams after a block that read `opened.x` and gave `y: f32 [n_embd, n_tokens]`: f32 `[n_embd, 4, n_tokens]`.
    pub fn hyper_close(&self, opened: &Opened<'b>, y: Tensor<'b>) -> Result<Tensor<'b>, Error> {
        const OP: &str = "hyper_close";
        let [n_embd, n_tokens, ..] = opened.x.ne();
        require(OP, opened.closes && is_f32(y, [n_embd, n_tokens]), &[y])?;
        let args = Args::new(empty_args(n_embd, n_tokens)?);
        let sources = [opened.streams, opened.whole, y];
        let ne = [n_embd, N_STREAMS, n_tokens, 1];
        let out = self.custom(OP, DType::F32, ne, &sources, fathom_node_hyper_close, args.userdata())?;
        self.push_op(Box::new(Close {
            args,
            streams: Source::of(opened.streams),
            whole: Source::of(opened.whole),
            y: Source::of(y),
            out: Source::of(out),
        }));
        Ok(out)
    }
}
