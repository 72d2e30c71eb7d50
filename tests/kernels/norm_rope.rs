//! `norm_rope` against its reference.

use fathom::kernels::{NormRope, Rope, RowType, Step, Version, norm_rope};

use super::{Bound, Random, assert_close, frequencies, rows_f32};

/// A sum of 512 squares, a root and a rotation in f32.
const F32: Bound = Bound { element: 4e-6, rms: 5e-7 };

#[test]
fn kernels_equal_the_reference_at_every_position() {
    let random = &mut Random::new(1);
    let step = Step::new(&[(0, 1), (127, 3), (1_048_575, 1), (65_536, 4)]);
    for (d, n_rot, n_head) in [(512, 64, 64), (128, 32, 4), (128, 64, 64), (64, 64, 3), (96, 32, 1), (64, 2, 5)] {
        let freq = frequencies(n_rot);
        let x = random.normals(d * n_head * step.n_tokens());
        let weight = random.normals(d);
        for (eps, weight) in [(Some(1e-6), None), (Some(1e-6), Some(&weight[..])), (None, None)] {
            let input = NormRope {
                step: &step,
                n_head,
                eps,
                rope: Rope { freq: &freq },
                x: &x,
                weight,
                row_type: RowType::F32,
            };
            let expected = rows_f32(&norm_rope(Version::Reference, &input, 1));
            for version in Version::kernels() {
                let found = rows_f32(&norm_rope(version, &input, 3));
                assert_close(&format!("{version:?}, {n_head} heads of {d}, {eps:?}"), &found, &expected, F32);
            }
        }
    }
}

#[test]
fn a_token_s_heads_do_not_depend_on_its_neighbours() {
    let random = &mut Random::new(2);
    let (d, n_head, freq) = (128, 4, frequencies(32));
    let step = Step::new(&[(5, 2), (300, 3)]);
    let x = random.normals(d * n_head * step.n_tokens());
    let run = |version, step: &Step, x: &[f32], nth| {
        let rope = Rope { freq: &freq };
        let input = NormRope { step, n_head, eps: Some(1e-6), rope, x, weight: None, row_type: RowType::F16 };
        norm_rope(version, &input, nth).bytes().to_vec()
    };
    for version in Version::kernels() {
        let together = run(version, &step, &x, 1);
        assert_eq!(together, run(version, &step, &x, 3), "{version:?}: threads");
        let alone =
            x.chunks(d * n_head).enumerate().map(|(t, x)| run(version, &Step::new(&[(step.position(t), 1)]), x, 1));
        assert_eq!(together, alone.flatten().collect::<Vec<_>>(), "{version:?}: one token at a time");
    }
}
