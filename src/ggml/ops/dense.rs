//! Products of activations with matrices: `dense` for Q8_0, ggml's product for every other type.

use std::cell::Cell;
use std::ffi::{c_int, c_void};

use fathom_gguf::DType;
use llama_cpp_sys_2::ggml_tensor;

use super::{Args, Op, Source, aligned, is_f32, narrow, require};
use crate::ggml::step::Bound;
use crate::ggml::{Builder, Error, Tensor};
use crate::kernels::sys;

unsafe extern "C" {
    fn fathom_node_dense_round(dst: *mut ggml_tensor, ith: c_int, nth: c_int, userdata: *mut c_void);
    fn fathom_node_dense_product(dst: *mut ggml_tensor, ith: c_int, nth: c_int, userdata: *mut c_void);
}

/// Activations that matrices multiply: f32 `[n_in, n_tokens]`. They are rounded once, for all matrices that need it.
pub struct Operand<'b> {
    x: Tensor<'b>,
    rounded: Cell<Option<Tensor<'b>>>,
}

struct Round {
    args: Args<sys::fathom_dense_args>,
    x: Source,
    scratch: Source,
}

impl Op for Round {
    fn allocated(&mut self) {
        if !self.scratch.has_memory() {
            return;
        }
        let (x, scratch) = (self.x.address(), aligned(self.scratch.address()));
        let args = self.args.get();
        (args.x, args.scratch) = (x, scratch);
    }

    fn bind(&mut self, _: &Bound) -> Result<(), Error> {
        Ok(())
    }
}

struct Product {
    args: Args<sys::fathom_dense_args>,
    weights: Source,
    scratch: Source,
    y: Source,
}

impl Op for Product {
    fn allocated(&mut self) {
        if !self.y.has_memory() {
            return;
        }
        let (weights, y) = (self.weights.address::<c_void>(), self.y.address());
        let scratch = aligned(self.scratch.address());
        let args = self.args.get();
        (args.weights, args.scratch, args.y) = (weights, scratch, y);
    }

    fn bind(&mut self, _: &Bound) -> Result<(), Error> {
        Ok(())
    }
}

impl<'b> Builder<'b> {
    /// `x: f32 [n_in, n_tokens]` for [`Builder::product`].
    pub fn operand(&self, x: Tensor<'b>) -> Operand<'b> {
        Operand { x, rounded: Cell::new(None) }
    }

    /// `weight [n_in, n_out, n_groups]` (any type with a dot product) times `x: f32 [n_in * n_groups, n_tokens]`, each matrix with inputs of
    /// its own: `f32 [n_out * n_groups, n_tokens]`.
    pub fn product(&self, weight: Tensor<'b>, x: &Operand<'b>) -> Result<Tensor<'b>, Error> {
        const OP: &str = "dense_product";
        let [n_in, n_out, n_groups, _] = weight.ne();
        let [width, n_tokens, ..] = x.x.ne();
        let sound = width == n_in * n_groups && weight.ne()[3] == 1 && is_f32(x.x, [width, n_tokens]);
        require(OP, sound && weight.is_contiguous(), &[weight, x.x])?;
        if weight.dtype() != DType::Q8_0 || n_out < sys::FATHOM_DENSE_MIN_ROWS as usize {
            return self.product_by_ggml(weight, x.x);
        }
        let args = sys::fathom_dense_args {
            n_tokens: narrow(OP, n_tokens)?,
            n_groups: narrow(OP, n_groups)?,
            n_rows: narrow(OP, n_out)?,
            n_cols: narrow(OP, n_in)?,
            row_bytes: weight.nb()[1] as i64,
            weights: std::ptr::null(),
            x: std::ptr::null(),
            scratch: std::ptr::null_mut(),
            y: std::ptr::null_mut(),
        };
        let rounded = match x.rounded.get() {
            Some(rounded) => rounded,
            None => self.round(args, x.x)?,
        };
        x.rounded.set(Some(rounded));
        let args = Args::new(args);
        let ne = [n_out * n_groups, n_tokens, 1, 1];
        let userdata = args.userdata();
        let y = self.custom(OP, DType::F32, ne, &[rounded, weight], fathom_node_dense_product, userdata)?;
        let y = self.named(y, &format!("{OP} {}", weight.kind()));
        self.push_op(Box::new(Product {
            args,
            weights: Source::of(weight),
            scratch: Source::of(rounded),
            y: Source::of(y),
        }));
        Ok(y)
    }

    /// What every product with `x` reads.
    fn round(&self, args: sys::fathom_dense_args, x: Tensor<'b>) -> Result<Tensor<'b>, Error> {
        // SAFETY: reads sizes of the arguments.
        let bytes = unsafe { sys::fathom_dense_scratch_bytes(&raw const args, 1) };
        let args = Args::new(args);
        let ne = [bytes + 64, 1, 1, 1];
        let userdata = args.userdata();
        let rounded = self.custom("dense_round", DType::I8, ne, &[x], fathom_node_dense_round, userdata)?;
        self.push_op(Box::new(Round { args, x: Source::of(x), scratch: Source::of(rounded) }));
        Ok(rounded)
    }

    fn product_by_ggml(&self, weight: Tensor<'b>, x: Tensor<'b>) -> Result<Tensor<'b>, Error> {
        let ([n_in, n_out, n_groups, _], n_tokens) = (weight.ne(), x.ne()[1]);
        if n_groups == 1 {
            return self.mul_mat(weight, x);
        }
        let grouped = self.permute(self.reshape(x, [n_in, n_groups, n_tokens, 1])?, [0, 2, 1, 3])?;
        let y = self.mul_mat(weight, grouped)?; // [n_out, n_tokens, n_groups]
        let y = self.cont(self.permute(y, [0, 2, 1, 3])?)?;
        self.reshape(y, [n_out * n_groups, n_tokens, 1, 1])
    }
}
