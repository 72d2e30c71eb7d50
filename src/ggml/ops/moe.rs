//! `moe_route` and `expert_ffn`.

use std::ffi::{c_int, c_void};

use fathom_gguf::DType;
use llama_cpp_sys_2::ggml_tensor;

use super::{Args, Op, Source, aligned, is_f32, narrow, require};
use crate::ggml::step::Bound;
use crate::ggml::{Builder, Error, Slot, Tensor, WeightId, types};
use crate::kernels::sys;

unsafe extern "C" {
    fn fathom_node_moe_route(dst: *mut ggml_tensor, ith: c_int, nth: c_int, userdata: *mut c_void);
    fn fathom_node_expert_ffn_prepare(dst: *mut ggml_tensor, ith: c_int, nth: c_int, userdata: *mut c_void);
    fn fathom_node_expert_ffn_gate_up(dst: *mut ggml_tensor, ith: c_int, nth: c_int, userdata: *mut c_void);
    fn fathom_node_expert_ffn_regroup(dst: *mut ggml_tensor, ith: c_int, nth: c_int, userdata: *mut c_void);
    fn fathom_node_expert_ffn_down(dst: *mut ggml_tensor, ith: c_int, nth: c_int, userdata: *mut c_void);
}

/// Outputs may have been chosen before: fewer tokens than the step has, never more.
fn at_most(op: &'static str, bound: &Bound, n_tokens: usize) -> Result<(), Error> {
    if n_tokens <= bound.n_tokens() {
        return Ok(());
    }
    Err(Error::Node { op, what: format!("{n_tokens} tokens in a step of {}", bound.n_tokens()) })
}

/// How a layer chooses.
pub enum Choice<'b> {
    /// By score and bias: f32 `[n_expert]`.
    Scores { bias: Tensor<'b> },
    /// By token: `table: i32 [n_used, n_vocab]` of experts that exist, `tokens: i32 [n_tokens]` of the vocabulary.
    Table { table: Tensor<'b>, tokens: Tensor<'b> },
}

/// What [`Builder::moe_route`] takes.
pub struct Route<'b> {
    /// Whose policies of the step it follows.
    pub layer: usize,
    /// f32 `[n_expert, n_tokens]`
    pub logits: Tensor<'b>,
    pub choice: Choice<'b>,
    pub n_used: usize,
    pub scale: f32,
}

/// Chosen experts: one i32 tensor of `n_used * n_tokens` ids, as many weights (f32) and `n_tokens` numbers of active experts.
#[derive(Clone, Copy)]
pub struct Routed<'b> {
    tensor: Tensor<'b>,
    n_used: usize,
    n_tokens: usize,
}

impl<'b> Routed<'b> {
    /// The whole, as an output: ids, weights, numbers.
    pub fn output(self, builder: &Builder<'b>) -> Slot {
        builder.output(self.tensor)
    }
}

struct RouteNode {
    args: Args<sys::fathom_moe_route_args>,
    logits: Source,
    bias: Option<Source>,
    table: Option<(Source, Source)>,
    out: Source,
    layer: usize,
    n_expert: usize,
    n_tokens: usize,
    n_used: usize,
}

impl RouteNode {
    /// Where the numbers of active experts go unless the step wants them.
    fn own_counts(&self) -> *mut i32 {
        self.out.address::<i32>().wrapping_add(2 * self.n_used * self.n_tokens)
    }
}

impl Op for RouteNode {
    fn allocated(&mut self) {
        let (logits, ids) = (self.logits.address(), self.out.address::<i32>());
        let bias = self.bias.map_or(std::ptr::null_mut(), Source::address);
        let (table, tokens) = match self.table {
            Some((table, tokens)) => (table.address(), tokens.address()),
            None => (std::ptr::null_mut(), std::ptr::null_mut()),
        };
        let slots = self.n_used * self.n_tokens;
        let args = self.args.get();
        (args.logits, args.bias, args.table, args.tokens) = (logits, bias, table, tokens);
        (args.ids, args.weights) = (ids, ids.wrapping_add(slots).cast());
        args.n_active = ids.wrapping_add(2 * slots);
    }

    fn bind(&mut self, bound: &Bound) -> Result<(), Error> {
        const OP: &str = "moe_route";
        at_most(OP, bound, self.n_tokens)?;
        let layer = super::attention::layer_of(OP, bound, self.layer)?;
        let misfit = |what| Error::Node { op: OP, what: format!("layer {}: {what}", self.layer) };
        let routing = layer.routing(self.n_tokens, self.n_expert).map_err(misfit)?;
        let own = self.own_counts();
        let args = self.args.get();
        (args.routing, args.n_active) =
            routing.map_or((std::ptr::null(), own), |routing| (routing.of_token, routing.kept));
        Ok(())
    }
}

/// One stack of expert matrices.
#[derive(Clone, Copy, Debug)]
pub struct Expert {
    /// `[n_in, n_out, n_expert]`
    pub weight: WeightId,
    /// f32 `[n_expert]`: a factor for each expert's matrix (NVFP4).
    pub scales: Option<WeightId>,
}

/// What [`Builder::expert_ffn`] takes.
pub struct Experts<'b> {
    /// f32 `[n_embd, n_tokens]`
    pub x: Tensor<'b>,
    pub routed: Routed<'b>,
    /// `[n_embd, n_ff, n_expert]`
    pub gate: Expert,
    pub up: Expert,
    /// `[n_ff, n_embd, n_expert]`
    pub down: Expert,
    pub clamp: f32,
    /// Keep activations in f32.
    pub exact: bool,
    pub n_threads: usize,
}

struct ExpertsNode {
    args: Args<sys::fathom_expert_ffn_args>,
    x: Source,
    routed: Source,
    scratch: Source,
    y: Source,
    n_tokens: usize,
    n_used: usize,
    /// What `args` points to.
    _tables: [Vec<*const c_void>; 3],
}

impl Op for ExpertsNode {
    fn allocated(&mut self) {
        let (x, y, ids) = (self.x.address(), self.y.address(), self.routed.address::<i32>());
        let scratch = aligned(self.scratch.address());
        let slots = self.n_used * self.n_tokens;
        let args = self.args.get();
        (args.x, args.y, args.scratch) = (x, y, scratch);
        (args.ids, args.weights) = (ids, ids.wrapping_add(slots).cast());
    }

    fn bind(&mut self, bound: &Bound) -> Result<(), Error> {
        at_most("expert_ffn", bound, self.n_tokens)
    }
}

impl<'b> Builder<'b> {
    /// Chooses experts for each token.
    pub fn moe_route(&self, of: Route<'b>) -> Result<Routed<'b>, Error> {
        const OP: &str = "moe_route";
        let [n_expert, n_tokens, ..] = of.logits.ne();
        let slots = of.n_used * n_tokens;
        let used = (1..=n_expert.min(sys::FATHOM_MOE_ROUTE_MAX_USED as usize)).contains(&of.n_used);
        require(OP, is_f32(of.logits, [n_expert, n_tokens]) && used, &[of.logits])?;
        let mut sources = vec![of.logits];
        let (bias, table) = match of.choice {
            Choice::Scores { bias } => {
                require(OP, is_f32(bias, [n_expert]), &[bias])?;
                sources.push(bias);
                (Some(Source::of(bias)), None)
            }
            Choice::Table { table, tokens } => {
                let sound = table.dtype() == DType::I32
                    && table.ne()[0] == of.n_used
                    && table.is_contiguous()
                    && tokens.dtype() == DType::I32
                    && tokens.ne() == [n_tokens, 1, 1, 1];
                require(OP, sound, &[table, tokens])?;
                sources.extend([table, tokens]);
                (None, Some((Source::of(table), Source::of(tokens))))
            }
        };
        let args = Args::new(sys::fathom_moe_route_args {
            n_tokens: narrow(OP, n_tokens)?,
            n_expert: narrow(OP, n_expert)?,
            n_used: narrow(OP, of.n_used)?,
            scale: of.scale,
            logits: std::ptr::null(),
            bias: std::ptr::null(),
            table: std::ptr::null(),
            tokens: std::ptr::null(),
            routing: std::ptr::null(),
            ids: std::ptr::null_mut(),
            weights: std::ptr::null_mut(),
            n_active: std::ptr::null_mut(),
        });
        let ne = [2 * slots + n_tokens, 1, 1, 1];
        let tensor = self.custom(OP, DType::I32, ne, &sources, fathom_node_moe_route, args.userdata())?;
        self.push_op(Box::new(RouteNode {
            args,
            logits: Source::of(of.logits),
            bias,
            table,
            out: Source::of(tensor),
            layer: of.layer,
            n_expert,
            n_tokens,
            n_used: of.n_used,
        }));
        Ok(Routed { tensor, n_used: of.n_used, n_tokens })
    }

    /// f32 `[n_embd, n_tokens]`: the weighted sum of the chosen experts.
    pub fn expert_ffn(&self, of: Experts<'b>) -> Result<Tensor<'b>, Error> {
        const OP: &str = "expert_ffn";
        let [n_embd, n_tokens, ..] = of.x.ne();
        let gate = self.weight(of.gate.weight);
        let [_, n_ff, n_expert, _] = gate.ne();
        let (up, down) = (self.weight(of.up.weight), self.weight(of.down.weight));
        let sound = is_f32(of.x, [n_embd, n_tokens])
            && of.routed.n_tokens == n_tokens
            && gate.ne() == [n_embd, n_ff, n_expert, 1]
            && up.ne() == gate.ne()
            && down.ne() == [n_ff, n_embd, n_expert, 1]
            && of.n_threads > 0;
        require(OP, sound, &[of.x, gate, up, down])?;
        let stacks = [of.gate, of.up, of.down].map(|expert| self.stack(expert));
        let [gate, up, down] = stacks;
        let (gate, up, down) = (gate?, up?, down?);
        let mut args = Args::new(sys::fathom_expert_ffn_args {
            n_tokens: narrow(OP, n_tokens)?,
            n_expert: narrow(OP, n_expert)?,
            n_used: narrow(OP, of.routed.n_used)?,
            n_embd: narrow(OP, n_embd)?,
            n_ff: narrow(OP, n_ff)?,
            exact: of.exact.into(),
            clamp: of.clamp,
            gate: gate.0,
            up: up.0,
            down: down.0,
            x: std::ptr::null(),
            ids: std::ptr::null(),
            weights: std::ptr::null(),
            scratch: std::ptr::null_mut(),
            y: std::ptr::null_mut(),
        });
        // SAFETY: reads sizes of the arguments.
        let scratch_bytes = unsafe { sys::fathom_expert_ffn_scratch_bytes(args.get(), of.n_threads as i32) };
        let userdata = args.userdata();
        let sources = [of.x, of.routed.tensor];
        let ne = [scratch_bytes + 64, 1, 1, 1];
        let scratch =
            self.custom("expert_ffn_prepare", DType::I8, ne, &sources, fathom_node_expert_ffn_prepare, userdata)?;
        let gated =
            self.custom_inplace("expert_ffn_gate_up", scratch, &sources, fathom_node_expert_ffn_gate_up, userdata)?;
        let regrouped =
            self.custom_inplace("expert_ffn_regroup", gated, &sources, fathom_node_expert_ffn_regroup, userdata)?;
        let y = self.custom(
            "expert_ffn_down",
            DType::F32,
            [n_embd, n_tokens, 1, 1],
            &[regrouped, of.x, of.routed.tensor],
            fathom_node_expert_ffn_down,
            userdata,
        )?;
        self.push_op(Box::new(ExpertsNode {
            args,
            x: Source::of(of.x),
            routed: Source::of(of.routed.tensor),
            scratch: Source::of(scratch),
            y: Source::of(y),
            n_tokens,
            n_used: of.routed.n_used,
            _tables: [gate.1, up.1, down.1],
        }));
        Ok(y)
    }

    /// A stack of experts with the table of their addresses.
    fn stack(&self, expert: Expert) -> Result<(sys::fathom_expert_weights, Vec<*const c_void>), Error> {
        const OP: &str = "expert_ffn";
        let tensor = self.weight(expert.weight);
        let (dtype, [n_in, n_out, n_expert, _]) = (tensor.dtype(), tensor.ne());
        let functions = types::functions(dtype);
        let usable = types::can_multiply(dtype) && tensor.is_contiguous();
        let (Some(row_bytes), Some(partner_bytes), true) =
            (dtype.row_bytes(n_in as u64), functions.partner.row_bytes(n_in as u64), usable)
        else {
            return Err(Error::Node { op: OP, what: format!("cannot multiply {tensor:?}") });
        };
        let scales = match expert.scales {
            None => std::ptr::null(),
            Some(scales) => {
                require(OP, is_f32(self.weight(scales), [n_expert]), &[self.weight(scales)])?;
                self.weights().data(scales).cast()
            }
        };
        let first = self.weights().data(expert.weight);
        let bytes = row_bytes as usize * n_out;
        let table: Vec<_> = (0..n_expert).map(|e| first.wrapping_add(e * bytes).cast::<c_void>()).collect();
        let raw = sys::fathom_expert_weights {
            type_: dtype.id() as i32,
            row_bytes: row_bytes as i64,
            experts: table.as_ptr(),
            scales,
            vec_dot: functions.vec_dot,
            to_float: functions.to_float,
            partner_from_float: functions.partner_from_float,
            partner_bytes: partner_bytes as i64,
        };
        Ok((raw, table))
    }
}
