//! `dense`: products with matrices of Q8_0 (`csrc/ops/dense/args.h`).

use super::{ElementType, Version, Workspace, count, run_phases, sys};

/// Inputs of [`dense`].
#[derive(Debug, Clone, Copy)]
pub struct Dense<'a> {
    /// Columns of a group's matrix: a multiple of 32.
    pub n_cols: usize,
    /// Rows of a group's matrix: at least 32.
    pub n_rows: usize,
    /// Matrices, each with inputs of its own.
    pub n_groups: usize,
    /// Q8_0 `[n_cols, n_rows, n_groups]`.
    pub weights: &'a [u8],
    /// f32 `[n_cols, n_groups, n_tokens]`.
    pub x: &'a [f32],
}

/// Writes the products: f32 `[n_rows, n_groups, n_tokens]`.
///
/// # Panics
/// If a length does not fit the rest.
pub fn dense(version: Version, input: &Dense, nth: usize, workspace: &mut Workspace, y: &mut [f32]) {
    let Dense { n_cols, n_rows, n_groups, weights, x } = *input;
    assert!(n_cols > 0 && n_groups > 0 && n_rows >= sys::FATHOM_DENSE_MIN_ROWS as usize);
    let row_bytes = ElementType::Q8_0.row_bytes(n_cols);
    assert_eq!((weights.len(), x.len() % (n_cols * n_groups)), (row_bytes * n_rows * n_groups, 0));
    let n_tokens = x.len() / (n_cols * n_groups);
    assert_eq!(y.len(), n_rows * n_groups * n_tokens);
    let mut args = sys::fathom_dense_args {
        n_tokens: count(n_tokens),
        n_groups: count(n_groups),
        n_rows: count(n_rows),
        n_cols: count(n_cols),
        row_bytes: row_bytes as i64,
        weights: weights.as_ptr().cast(),
        x: x.as_ptr(),
        scratch: std::ptr::null_mut(),
        y: y.as_mut_ptr(),
    };
    // SAFETY: every length was compared with the sizes; scratch lives to the end.
    #[expect(unsafe_code, reason = "calls into csrc")]
    unsafe {
        let Version::Kernel(isa) = version else {
            sys::fathom_dense_reference(&raw const args);
            return;
        };
        let table = isa.table().expect("an available set");
        let scratch_bytes = table.dense_scratch_bytes.expect("every table is complete");
        args.scratch = workspace.at_least(scratch_bytes(&raw const args, count(nth)));
        run_phases(&[table.dense_round, table.dense_product], &args, nth);
    }
}
