//! Products with Q8_0 matrices on the shapes of DeepSeek-V4-Flash, beside what the processor can do at most.
//!
//! `cargo bench --no-default-features --bench dense [-- THREADS [SET]]`, for example `-- 2 Avx2`; default: all cores, the fastest set.
//! Times are the best of several runs. Every run takes another copy of the matrix, so that no cache has it. GB/s count the
//! weights once, operations the products of the formula.

mod support;

use fathom::kernels::{Dense, ElementType, Version, Workspace, dense};
use fathom_gguf::{DType, block};
use support::{Random, best, row};

/// Copies of a matrix take this much together: beyond every cache.
const BYTES: usize = 512 << 20;

fn main() {
    let (nth, words) = support::words();
    let isa = support::isa(words.get(1));
    let roof = support::roof(isa, nth);
    let random = &mut Random(1);
    // Columns, rows, groups.
    for (name, n_cols, n_rows, n_groups) in [
        ("attn_q_a", 4096, 1024, 1),
        ("attn_q_b", 1024, 32768, 1),
        ("attn_output_a", 4096, 1024, 8),
        ("attn_output_b", 8192, 4096, 1),
        ("ffn_down_shexp", 2048, 4096, 1),
    ] {
        // The values do not matter for speed: one row, repeated.
        let mut one = vec![0; ElementType::Q8_0.row_bytes(n_cols)];
        block::encode(DType::Q8_0, &random.numbers(n_cols), &mut one).expect("lengths match");
        let matrix_bytes = one.len() * n_rows * n_groups;
        let copies = BYTES.div_ceil(matrix_bytes);
        let weights = one.repeat(n_rows * n_groups * copies);
        let mut workspace = Workspace::default();
        for n_tokens in [1, 2, 4, 8, 16, 128, 512] {
            let x = random.numbers(n_cols * n_groups * n_tokens);
            let mut y = vec![0.0; n_rows * n_groups * n_tokens];
            let copy = || random.below(copies);
            let time = best(copy, |copy| {
                let weights = &weights[copy * matrix_bytes..][..matrix_bytes];
                let input = Dense { n_cols, n_rows, n_groups, weights, x: &x };
                dense(Version::Kernel(isa), &input, nth, &mut workspace, &mut y);
            });
            let ops = 2.0 * (n_cols * n_rows * n_groups * n_tokens) as f64;
            row(name, n_tokens, time, ops, matrix_bytes as f64, &roof, false);
        }
    }
}
