//! `dense` against its reference.

use fathom::kernels::{Dense, Version, Workspace, dense};
use fathom_gguf::{DType, block};

use super::{Bound, Random, assert_close, assert_same};

/// Both sides round x alike but for ties; sums of blocks are exact here and in f64 there, and up to 40 blocks are added in f32.
const F32: Bound = Bound { element: 3e-6, rms: 1e-6 };

/// Groups of a matrix of `n_rows` by `n_cols`.
struct Matrix {
    n_cols: usize,
    n_rows: usize,
    n_groups: usize,
    weights: Vec<u8>,
}

impl Matrix {
    fn random(random: &mut Random, n_cols: usize, n_rows: usize, n_groups: usize) -> Self {
        let values: Vec<f32> = (0..n_cols * n_rows * n_groups).map(|_| random.uniform() - 0.5).collect();
        let mut weights = vec![0; DType::Q8_0.row_bytes(values.len() as u64).unwrap() as usize];
        block::encode(DType::Q8_0, &values, &mut weights).unwrap();
        Matrix { n_cols, n_rows, n_groups, weights }
    }

    fn run(&self, version: Version, x: &[f32], nth: usize) -> Vec<f32> {
        let Matrix { n_cols, n_rows, n_groups, ref weights } = *self;
        let mut y = vec![f32::NAN; x.len() / n_cols * n_rows];
        dense(version, &Dense { n_cols, n_rows, n_groups, weights, x }, nth, &mut Workspace::default(), &mut y);
        y
    }
}

/// Numbers whose rounding is the same in f32 and f64: nearly whole steps of their blocks.
fn steps(random: &mut Random, n: usize) -> Vec<f32> {
    let mut x: Vec<f32> =
        (0..n).map(|_| 0.01 * (random.below(253) as f32 - 126.0 + 0.9 * (random.uniform() - 0.5))).collect();
    x.chunks_exact_mut(32).for_each(|block| block[random.below(32)] = -1.27);
    x
}

#[test]
fn kernels_equal_the_reference() {
    let random = &mut Random::new(1);
    // Columns, rows, groups: rows that are no whole number of panels, and one block.
    for (n_cols, n_rows, n_groups) in [(32, 32, 1), (64, 33, 1), (320, 70, 1), (96, 47, 3), (1280, 64, 2)] {
        let matrix = Matrix::random(random, n_cols, n_rows, n_groups);
        for n_tokens in [1, 2, 3, 4, 5, 7, 8, 9, 17, 131] {
            let x = steps(random, n_cols * n_groups * n_tokens);
            let expected = matrix.run(Version::Reference, &x, 1);
            for version in Version::kernels() {
                let found = matrix.run(version, &x, 3);
                let what = format!("{version:?}, {n_cols} x {n_rows} x {n_groups}, {n_tokens} tokens");
                assert_close(&what, &found, &expected, F32);
            }
        }
    }
}

/// Bytes of weights that a converter never writes, -128 among them, with the largest activations of both signs: sums of whole numbers
/// must hold them.
#[test]
fn every_byte_may_be_a_weight() {
    let random = &mut Random::new(2);
    let mut matrix = Matrix::random(random, 64, 48, 1);
    for (index, block) in matrix.weights.chunks_exact_mut(34).enumerate() {
        let byte = |random: &mut Random| match index % 4 {
            0 => 0x80,
            1 => 0x7f,
            2 => 0x80 + (random.below(2) * 0x7f) as u8,
            _ => random.bits() as u8,
        };
        block[2..].iter_mut().for_each(|weight| *weight = byte(random));
    }
    for n_tokens in [1, 4, 9] {
        for sign in [1.0, -1.0] {
            let x: Vec<f32> = (0..64 * n_tokens).map(|i| if i % 64 < 60 { sign } else { -0.5 * sign }).collect();
            let expected = matrix.run(Version::Reference, &x, 1);
            for version in Version::kernels() {
                let found = matrix.run(version, &x, 2);
                assert_close(&format!("{version:?}, {n_tokens} tokens"), &found, &expected, F32);
            }
        }
    }
}

#[test]
fn a_token_does_not_depend_on_its_neighbours_or_on_threads() {
    let random = &mut Random::new(3);
    let (n_cols, n_rows, n_groups, n_tokens) = (160, 90, 2, 150);
    let matrix = Matrix::random(random, n_cols, n_rows, n_groups);
    let x = random.normals(n_cols * n_groups * n_tokens);
    for version in Version::kernels() {
        let together = matrix.run(version, &x, 1);
        assert_same(&format!("{version:?}, threads"), &matrix.run(version, &x, 5), &together);
        for part in [1, 2, 3, 6, 40] {
            let what = format!("{version:?}, {part} tokens at a time");
            let parts: Vec<f32> = x.chunks(n_cols * n_groups * part).flat_map(|x| matrix.run(version, x, 2)).collect();
            assert_same(&what, &parts, &together);
        }
    }
}

/// Zeros, numbers too small for a step, and numbers that are none.
#[test]
fn blocks_without_a_step_give_zero_or_nan() {
    let random = &mut Random::new(4);
    let matrix = Matrix::random(random, 64, 32, 1);
    for odd in [0.0, 1e-39, f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let mut x = [if odd.is_finite() { 0.0 } else { 1.0 }; 64];
        x[37] = odd;
        for version in Version::kernels().chain([Version::Reference]) {
            for n_tokens in [1, 9] {
                let y = matrix.run(version, &x.repeat(n_tokens), 1);
                let sound = |y: &f32| if odd.is_finite() { y.abs() < 1e-37 } else { y.is_nan() };
                assert!(y.iter().all(sound), "{version:?}, {odd}: {y:?}");
            }
        }
    }
}
