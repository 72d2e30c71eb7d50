//! `expert_ffn`: the routed experts.

use super::{Version, Workspace, count, or_null, run_phases, sys};

/// Element types with kernels of our own. Discriminants are ggml's numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ElementType {
    /// 32-bit floats.
    F32 = sys::FATHOM_TYPE_F32 as isize,
    /// IEEE half.
    F16 = sys::FATHOM_TYPE_F16 as isize,
    /// bfloat16.
    Bf16 = sys::FATHOM_TYPE_BF16 as isize,
    /// 32 signed bytes and an F16 step.
    Q8_0 = sys::FATHOM_TYPE_Q8_0 as isize,
    /// 32 E2M1 numbers and an E8M0 scale.
    Mxfp4 = sys::FATHOM_TYPE_MXFP4 as isize,
    /// 64 E2M1 numbers and four UE4M3 scales.
    Nvfp4 = sys::FATHOM_TYPE_NVFP4 as isize,
}

impl ElementType {
    /// All of them.
    pub const ALL: [ElementType; 6] = [Self::F32, Self::F16, Self::Bf16, Self::Q8_0, Self::Mxfp4, Self::Nvfp4];

    /// Elements and bytes of a block.
    pub fn block(self) -> (usize, usize) {
        match self {
            Self::F32 => (1, 4),
            Self::F16 | Self::Bf16 => (1, 2),
            Self::Q8_0 => (32, 34),
            Self::Mxfp4 => (32, 17),
            Self::Nvfp4 => (64, 36),
        }
    }

    /// Bytes of a row.
    ///
    /// # Panics
    /// Unless `n` is a whole number of blocks.
    pub fn row_bytes(self, n: usize) -> usize {
        let (elements, bytes) = self.block();
        assert_eq!(n % elements, 0, "a row of {self:?} is a whole number of blocks");
        n / elements * bytes
    }
}

/// One of the three stacks of expert matrices.
#[derive(Debug, Clone, Copy)]
pub struct Experts<'a> {
    /// Of all matrices.
    pub element_type: ElementType,
    /// The matrix of every expert, row after row.
    pub matrices: &'a [&'a [u8]],
    /// A factor for every expert's matrix.
    pub scales: Option<&'a [f32]>,
}

/// Inputs of [`expert_ffn`].
#[derive(Debug, Clone, Copy)]
pub struct ExpertFfn<'a> {
    /// Width of the model.
    pub n_embd: usize,
    /// Width of an expert.
    pub n_ff: usize,
    /// Experts of a token.
    pub n_used: usize,
    /// Activations stay f32.
    pub exact: bool,
    /// Bound of gate and up.
    pub clamp: f32,
    /// `n_ff` rows of `n_embd`.
    pub gate: Experts<'a>,
    /// `n_ff` rows of `n_embd`.
    pub up: Experts<'a>,
    /// `n_embd` rows of `n_ff`.
    pub down: Experts<'a>,
    /// f32 `[n_embd, n_tokens]`.
    pub x: &'a [f32],
    /// i32 `[n_used, n_tokens]`, negative: no expert.
    pub ids: &'a [i32],
    /// f32 `[n_used, n_tokens]`.
    pub weights: &'a [f32],
}

/// The sum of the experts of every token: f32 `[n_embd, n_tokens]`.
///
/// # Panics
/// If a length or an id does not fit the rest.
pub fn expert_ffn(version: Version, input: &ExpertFfn, nth: usize, workspace: &mut Workspace) -> Vec<f32> {
    let ExpertFfn { n_embd, n_ff, n_used, .. } = *input;
    assert!(n_embd > 0 && n_ff > 0 && n_used > 0);
    assert_eq!(input.x.len() % n_embd, 0);
    let n_tokens = input.x.len() / n_embd;
    let n_expert = input.gate.matrices.len();
    assert_eq!((input.ids.len(), input.weights.len()), (n_used * n_tokens, n_used * n_tokens));
    assert!(input.ids.iter().all(|&id| usize::try_from(id).is_ok_and(|id| id < n_expert) || id < 0));

    let tables = [&input.gate, &input.up, &input.down]
        .map(|experts| experts.matrices.iter().map(|matrix| matrix.as_ptr().cast()).collect::<Vec<_>>());
    let mut y = vec![f32::NAN; input.x.len()];
    let mut args = sys::fathom_expert_ffn_args {
        n_tokens: count(n_tokens),
        n_expert: count(n_expert),
        n_used: count(n_used),
        n_embd: count(n_embd),
        n_ff: count(n_ff),
        exact: i32::from(input.exact),
        clamp: input.clamp,
        gate: weights(&input.gate, &tables[0], n_embd, n_ff, n_expert),
        up: weights(&input.up, &tables[1], n_embd, n_ff, n_expert),
        down: weights(&input.down, &tables[2], n_ff, n_embd, n_expert),
        x: input.x.as_ptr(),
        ids: input.ids.as_ptr(),
        weights: input.weights.as_ptr(),
        scratch: std::ptr::null_mut(),
        y: y.as_mut_ptr(),
    };
    // SAFETY: every length and id was compared with the sizes; tables, scratch and outputs live to the end.
    #[expect(unsafe_code, reason = "a call into csrc")]
    unsafe {
        let Version::Kernel(isa) = version else {
            sys::fathom_expert_ffn_reference(&raw const args);
            return y;
        };
        let table = isa.table().expect("an available set");
        let scratch_bytes = table.expert_ffn_scratch_bytes.expect("every table is complete");
        args.scratch = workspace.at_least(scratch_bytes(&raw const args, count(nth)));
        let phases =
            [table.expert_ffn_prepare, table.expert_ffn_gate_up, table.expert_ffn_regroup, table.expert_ffn_down];
        run_phases(&phases, &args, nth);
    }
    y
}

fn weights(
    experts: &Experts,
    table: &[*const std::ffi::c_void],
    n: usize,
    n_rows: usize,
    n_expert: usize,
) -> sys::fathom_expert_weights {
    let row_bytes = experts.element_type.row_bytes(n);
    assert_eq!(experts.matrices.len(), n_expert);
    assert!(experts.matrices.iter().all(|matrix| matrix.len() == row_bytes * n_rows));
    assert!(experts.scales.is_none_or(|scales| scales.len() == n_expert));
    sys::fathom_expert_weights {
        type_: experts.element_type as i32,
        row_bytes: row_bytes as i64,
        experts: table.as_ptr(),
        scales: or_null(experts.scales),
        vec_dot: None,
        to_float: None,
        partner_from_float: None,
        partner_bytes: 0,
    }
}
