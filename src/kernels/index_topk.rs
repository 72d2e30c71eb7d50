//! `index_topk` (`csrc/ops/index_topk/args.h`).

use super::step::RowTables;
use super::{RowFormat, RowType, Segments, Step, Version, Workspace, count, run, sys};

/// Inputs of [`index_topk`].
#[derive(Clone, Copy)]
pub struct IndexTopk<'a> {
    /// The tokens.
    pub step: &'a Step,
    /// Heads of the indexer.
    pub n_head: usize,
    /// Channels of a head and of a key.
    pub n_embd: usize,
    /// Tokens of a row's group.
    pub ratio: usize,
    /// Rows to keep.
    pub top_k: usize,
    /// Factor of all weights.
    pub scale: f32,
    /// f32 `[n_embd, n_head, n_tokens]`.
    pub q: &'a [f32],
    /// f32 `[n_head, n_tokens]`.
    pub weights: &'a [f32],
    /// How keys are stored.
    pub key_type: RowType,
    /// Keys of every stretch's sequence.
    pub keys: &'a [Segments<'a>],
}

impl IndexTopk<'_> {
    /// How keys are stored.
    pub fn format(&self) -> RowFormat {
        RowFormat { row_type: self.key_type, d: self.n_embd, n_rot: 0 }
    }
}

/// Outputs of [`index_topk`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Selected {
    /// i32 `[top_k, n_tokens]`, ascending, the rest -1.
    pub top: Vec<i32>,
    /// Rows of every token.
    pub n_top: Vec<i32>,
}

/// Chooses the compressed rows of every token.
///
/// # Panics
/// If a length does not fit the rest, or a visible row is not there.
pub fn index_topk(version: Version, input: &IndexTopk, nth: usize, workspace: &mut Workspace) -> Selected {
    let IndexTopk { step, n_head, n_embd, ratio, top_k, scale, q, weights, key_type, keys } = *input;
    let n_tokens = step.n_tokens();
    assert!(ratio > 0 && top_k > 0 && n_head > 0);
    assert!(key_type != RowType::Fp4 || n_embd.is_power_of_two());
    assert_eq!((q.len(), weights.len(), keys.len()), (n_embd * n_head * n_tokens, n_head * n_tokens, step.n_runs()));
    let visible = step.runs().map(|(_, pos, n)| (pos + n as u64) / ratio as u64);
    let tables = RowTables::of(keys, input.format(), visible);
    let mut selected = Selected { top: vec![-2; top_k * n_tokens], n_top: vec![-2; n_tokens] };
    let tokens = step.args();
    let mut args = sys::fathom_index_topk_args {
        step: &raw const tokens,
        n_head: count(n_head),
        n_embd: count(n_embd),
        ratio: count(ratio),
        top_k: count(top_k),
        scale,
        q: q.as_ptr(),
        weights: weights.as_ptr(),
        keys: tables.as_ptr(),
        scratch: std::ptr::null_mut(),
        top: selected.top.as_mut_ptr(),
        n_top: selected.n_top.as_mut_ptr(),
    };
    // SAFETY: every length was compared with the sizes above, every visible key is there, scratch is as large as the kernels say;
    // `tokens` and `tables` live to the end.
    #[expect(unsafe_code, reason = "calls into csrc")]
    unsafe {
        match version {
            Version::Reference => sys::fathom_index_topk_reference(&raw const args),
            Version::Kernel(isa) => {
                let table = isa.table().expect("an available set");
                let bytes = table.index_topk_scratch_bytes.expect("every table is complete");
                args.scratch = workspace.at_least(bytes(&raw const args, count(nth)));
                run(table.index_topk_scan, &args, nth);
                run(table.index_topk_merge, &args, nth);
            }
        }
    }
    selected
}
