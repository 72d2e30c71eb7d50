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
    /// Tokens of the step that these are, when every slot counts as a token.
    n_step: usize,
}

impl<'b> Routed<'b> {
    /// Every chosen expert as a token of its own, in the order token, slot: `n_used * n_tokens` tokens with one expert each.
    pub fn one_by_one(self) -> Routed<'b> {
        Routed { n_used: 1, n_tokens: self.n_used * self.n_tokens, ..self }
    }

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
    n_step: usize,
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
        at_most("expert_ffn", bound, self.n_step)
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
        Ok(Routed { tensor, n_used: of.n_used, n_tokens, n_step: n_tokens })
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
            n_step: of.routed.n_step,
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

#[cfg(test)]
mod tests {
    use super::*;

    const N: usize = 512;
    const N_FF: usize = 256;
    const N_EXPERT: usize = 3;
    const N_USED: usize = 2;
    const CLAMP: f32 = 10.0;

    /// splitmix64
    struct Random(u64);

    impl Random {
        fn bits(&mut self) -> u64 {
            self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mut z = self.0;
            z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            z ^ (z >> 31)
        }

        /// Of deviation 1.
        fn value(&mut self) -> f32 {
            ((self.bits() >> 40) as f32 / (1u64 << 24) as f32 - 0.5) * 12_f32.sqrt()
        }
    }

    /// Random blocks of a type of 256 elements; `at` is where its two half floats are, `values` what they are.
    fn matrices(random: &mut Random, dtype: DType, n: usize, n_rows: usize) -> Vec<Vec<u8>> {
        let (at, values) = match dtype {
            DType::Q4_K => (0, [0.001_f32, 0.008]),
            DType::Q2_K => (80, [0.02, 0.03]),
            other => panic!("no blocks of {}", other.name()),
        };
        let halves = values.map(|value| half::f16::from_f32(value).to_le_bytes()).concat();
        let block_bytes = dtype.row_bytes(256).unwrap() as usize;
        let mut matrix = || {
            let mut bytes: Vec<u8> = (0..n / 256 * block_bytes * n_rows).map(|_| random.bits() as u8).collect();
            bytes.chunks_exact_mut(block_bytes).for_each(|block| block[at..at + 4].copy_from_slice(&halves));
            bytes
        };
        (0..N_EXPERT).map(|_| matrix()).collect()
    }

    /// One stack as the kernels get it, and what keeps it alive.
    struct Stack {
        dtype: DType,
        row_bytes: usize,
        matrices: Vec<Vec<u8>>,
        table: Vec<*const c_void>,
    }

    impl Stack {
        fn new(random: &mut Random, dtype: DType, n: usize, n_rows: usize) -> Stack {
            let matrices = matrices(random, dtype, n, n_rows);
            let table = matrices.iter().map(|matrix| matrix.as_ptr().cast()).collect();
            Stack { dtype, row_bytes: dtype.row_bytes(n as u64).unwrap() as usize, matrices, table }
        }

        fn weights(&self, n: usize) -> sys::fathom_expert_weights {
            let functions = types::functions(self.dtype);
            sys::fathom_expert_weights {
                type_: self.dtype.id() as i32,
                row_bytes: self.row_bytes as i64,
                experts: self.table.as_ptr(),
                scales: std::ptr::null(),
                vec_dot: functions.vec_dot,
                to_float: functions.to_float,
                partner_from_float: functions.partner_from_float,
                partner_bytes: functions.partner.row_bytes(n as u64).unwrap() as i64,
            }
        }

        /// Products of all rows of a matrix with `x`, by ggml's own functions, called here.
        fn products(&self, expert: usize, x: &[f32]) -> Vec<f32> {
            let functions = types::functions(self.dtype);
            let mut partner = vec![0_u64; functions.partner.row_bytes(x.len() as u64).unwrap().div_ceil(8) as usize];
            let (round, vec_dot) = (functions.partner_from_float.unwrap(), functions.vec_dot.unwrap());
            // SAFETY: `partner` is a row of the partner type of `x.len()` values.
            unsafe { round(x.as_ptr(), partner.as_mut_ptr().cast(), x.len() as i64) };
            let rows = self.matrices[expert].chunks_exact(self.row_bytes);
            rows.map(|row| {
                let mut sum = 0.0;
                // SAFETY: both rows have `x.len()` values; one product.
                unsafe {
                    let (row, partner) = (row.as_ptr().cast(), partner.as_ptr().cast());
                    vec_dot(x.len() as c_int, &raw mut sum, 0, row, 0, partner, 0, 1);
                }
                sum
            })
            .collect()
        }
    }

    /// `expert_ffn` of one token, row by row.
    fn expected([gate, up, down]: [&Stack; 3], x: &[f32], ids: &[i32], weights: &[f32]) -> Vec<f32> {
        let mut y = vec![0.0; N];
        for (&id, &weight) in ids.iter().zip(weights).filter(|(id, _)| **id >= 0) {
            let (gate, up) = (gate.products(id as usize, x), up.products(id as usize, x));
            let act =
                |(gate, up): (&f32, &f32)| gate.min(CLAMP) / (1.0 + (-gate.min(CLAMP)).exp()) * up.clamp(-CLAMP, CLAMP);
            let h: Vec<f32> = gate.iter().zip(&up).map(act).collect();
            y.iter_mut().zip(down.products(id as usize, &h)).for_each(|(y, product)| *y += weight * product);
        }
        y
    }

    fn rms(values: impl Iterator<Item = f32>) -> f32 {
        let (sum, n) = values.fold((0.0, 0), |(sum, n), value| (sum + value * value, n + 1));
        (sum / n.max(1) as f32).sqrt()
    }

    /// Types without a kernel of ours go through ggml's dot product, or with `exact` through its expansion to f32.
    #[test]
    fn experts_of_other_types_are_multiplied_by_ggmls_functions() {
        // SAFETY: takes nothing and may be called any number of times.
        unsafe { llama_cpp_sys_2::ggml_cpu_init() };
        let random = &mut Random(1);
        for types in [[DType::Q4_K; 3], [DType::Q2_K, DType::Q2_K, DType::Q4_K]] {
            let stacks = [
                Stack::new(random, types[0], N, N_FF),
                Stack::new(random, types[1], N, N_FF),
                Stack::new(random, types[2], N_FF, N),
            ];
            for n_tokens in [1, 3, 20] {
                let x: Vec<f32> = (0..N * n_tokens).map(|_| random.value()).collect();
                // Two different experts for each token, or one and a hole whose weight is poison.
                let ids: Vec<i32> = (0..n_tokens)
                    .flat_map(|token| [(token % 3) as i32, if token % 5 == 4 { -1 } else { ((token + 1) % 3) as i32 }])
                    .collect();
                let weights: Vec<f32> =
                    ids.iter().map(|&id| if id < 0 { f32::NAN } else { 0.5 + 0.1 * random.value() }).collect();
                let run = |exact: bool, nth: i32, reference: bool| {
                    let mut y = vec![f32::NAN; N * n_tokens];
                    let mut args = sys::fathom_expert_ffn_args {
                        n_tokens: n_tokens as i32,
                        n_expert: N_EXPERT as i32,
                        n_used: N_USED as i32,
                        n_embd: N as i32,
                        n_ff: N_FF as i32,
                        exact: exact.into(),
                        clamp: CLAMP,
                        gate: stacks[0].weights(N),
                        up: stacks[1].weights(N),
                        down: stacks[2].weights(N_FF),
                        x: x.as_ptr(),
                        ids: ids.as_ptr(),
                        weights: weights.as_ptr(),
                        scratch: std::ptr::null_mut(),
                        y: y.as_mut_ptr(),
                    };
                    // SAFETY: sizes, tables and ids fit each other; scratch is as large as the kernels say and aligned; a phase ends
                    // before the next one begins.
                    unsafe {
                        if reference {
                            sys::fathom_expert_ffn_reference(&raw const args);
                            return y;
                        }
                        let mut scratch =
                            vec![0xff_u8; sys::fathom_expert_ffn_scratch_bytes(&raw const args, nth) + 64];
                        args.scratch = aligned(scratch.as_mut_ptr());
                        for phase in [
                            sys::fathom_expert_ffn_prepare,
                            sys::fathom_expert_ffn_gate_up,
                            sys::fathom_expert_ffn_regroup,
                            sys::fathom_expert_ffn_down,
                        ] {
                            (0..nth).for_each(|ith| phase(&raw const args, ith, nth));
                        }
                    }
                    y
                };
                let what = format!("{types:?}, {n_tokens} tokens");
                for (exact, nth) in [(true, 1), (true, 2), (false, 1), (false, 3)] {
                    let expected = if exact {
                        run(true, 1, true)
                    } else {
                        let tokens = x.chunks(N).zip(ids.chunks(N_USED).zip(weights.chunks(N_USED)));
                        tokens.flat_map(|(x, (ids, weights))| expected(stacks.each_ref(), x, ids, weights)).collect()
                    };
                    let found = run(exact, nth, false);
                    let off = rms(found.iter().zip(&expected).map(|(a, b)| a - b)) / rms(expected.iter().copied());
                    // Sums of f32 in another order; where h lies between two steps of its partner, it may fall on either side.
                    assert!(off < 1e-3, "{what}, exact: {exact}, {nth} threads: off by {off:e} of the scale");
                }
            }
        }
    }
}
