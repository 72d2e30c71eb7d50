//! Formats of cached rows, and that kernels read and write them as `csrc/ops/rows.h` does.

use fathom::kernels::{
    GatherAttention, NormRope, Rope, RowBuffer, RowFormat, RowType, Step, Version, Workspace, gather_attention,
    norm_rope,
};

use super::Random;

const KV_TYPES: [RowType; 3] = [RowType::F32, RowType::F16, RowType::Fp8];

/// The nearest of `magnitudes` (ascending, the value of each code), ties to the even code.
fn nearest(magnitudes: &[f64], x: f64) -> f64 {
    let mut best = 0;
    for (code, magnitude) in magnitudes.iter().enumerate() {
        let (new, old) = ((x.abs() - magnitude).abs(), (x.abs() - magnitudes[best]).abs());
        if new < old || (new == old && code % 2 == 0) {
            best = code;
        }
    }
    magnitudes[best].copysign(x)
}

fn e4m3() -> Vec<f64> {
    let value = |code: i32| match (code >> 3, code & 7) {
        (0, fraction) => f64::from(fraction) * 2f64.powi(-9),
        (exponent, fraction) => f64::from(8 + fraction) * 2f64.powi(exponent - 10),
    };
    (0..127).map(value).collect()
}

const E2M1: [f64; 8] = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0];

fn amax(x: &[f32]) -> f64 {
    x.iter().fold(0.0, |amax, &v| amax.max(f64::from(v).abs()))
}

/// Numbers over many binades, some of them exactly between two codes.
fn spread(random: &mut Random, n: usize) -> Vec<f32> {
    (0..n).map(|_| random.normal() * 2f32.powi(random.below(12) as i32 - 6)).collect()
}

#[test]
fn fp8_rows_hold_the_release_s_rounding() {
    let random = &mut Random::new(1);
    for (d, n_rot) in [(512, 64), (128, 32), (64, 64)] {
        let format = RowFormat { row_type: RowType::Fp8, d, n_rot };
        let mut rows = RowBuffer::new(format, 1);
        for scale in [1.0, 1e-7, 3e4] {
            let x: Vec<f32> = spread(random, d).iter().map(|v| v * scale).collect();
            rows.store(0, &x);
            let found = rows.load(0);
            for (group, found) in x[..d - n_rot].chunks(64).zip(found.chunks(64)) {
                let unit = (amax(group).max(1e-4) / 448.0).log2().ceil().exp2();
                for (&x, &found) in group.iter().zip(found) {
                    assert_eq!(
                        f64::from(found),
                        nearest(&e4m3(), f64::from(x) / unit) * unit,
                        "{x} in units of {unit}"
                    );
                }
            }
            for (&x, &found) in x[d - n_rot..].iter().zip(&found[d - n_rot..]) {
                assert_eq!(found.to_bits() & 0xFFFF, 0, "bfloat16");
                assert!((x - found).abs() <= x.abs() / 256.0);
            }
        }
    }
    assert_eq!(RowFormat { row_type: RowType::Fp8, d: 512, n_rot: 64 }.row_bytes(), 584);
}

#[test]
fn fp4_rows_hold_the_release_s_rounding() {
    let random = &mut Random::new(2);
    let format = RowFormat { row_type: RowType::Fp4, d: 128, n_rot: 0 };
    assert_eq!(format.row_bytes(), 68);
    let mut rows = RowBuffer::new(format, 1);
    for _ in 0..50 {
        let mut x = spread(random, 128);
        x[32..64].fill(0.0);
        x[64..96].copy_from_slice(&[6.0, 0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0].map(|v| [v, -v, v, -v]).concat());
        rows.store(0, &x);
        for (group, found) in x.chunks(32).zip(rows.load(0).chunks(32)) {
            let unit = (amax(group) / 6.0).log2().ceil().exp2().max(2f64.powi(-126));
            for (&x, &found) in group.iter().zip(found) {
                assert_eq!(f64::from(found), nearest(&E2M1, f64::from(x) / unit) * unit, "{x} in units of {unit}");
            }
        }
    }
}

/// At position 0, with a sink of no weight, the output of attention is the row itself.
#[test]
fn kernels_read_every_row_type_exactly() {
    let random = &mut Random::new(3);
    let step = Step::new(&[(0, 1)]);
    for (d, n_rot) in [(512, 64), (128, 32), (96, 32), (64, 8)] {
        let freq = vec![0.5; n_rot / 2];
        for row_type in KV_TYPES {
            let format = RowFormat { row_type, d, n_rot };
            let mut kv = RowBuffer::new(format, 1);
            let window = RowBuffer::new(format, 4);
            for _ in 0..20 {
                kv.store(0, &spread(random, d));
                let input = GatherAttention {
                    step: &step,
                    n_head: 1,
                    n_swa: 4,
                    ratio: 0,
                    scale: 0.01,
                    rope: Rope { freq: &freq },
                    format,
                    q: &vec![0.0; d],
                    kv: &kv,
                    sinks: &[-1e30],
                    top: None,
                    windows: &[&window],
                    rows: &[],
                };
                for version in Version::kernels() {
                    let found = gather_attention(version, &input, 1, &mut Workspace::default());
                    assert_eq!(found, kv.load(0), "{version:?}, {format:?}");
                }
            }
        }
    }
}

#[test]
fn kernels_write_every_row_type_exactly() {
    let random = &mut Random::new(4);
    let step = Step::new(&[(0, 1), (1_000_000, 2)]);
    for (d, n_rot) in [(512, 64), (128, 32), (96, 32), (64, 8)] {
        let freq: Vec<f32> = (0..n_rot / 2).map(|i| 1e4f32.powf(-(i as f32) / (n_rot / 2) as f32)).collect();
        let x = spread(random, 3 * 2 * d);
        let weight = random.normals(d);
        let input = |row_type| NormRope {
            step: &step,
            n_head: 2,
            eps: Some(1e-6),
            rope: Rope { freq: &freq },
            x: &x,
            weight: Some(&weight),
            row_type,
        };
        for version in Version::kernels() {
            let exact = norm_rope(version, &input(RowType::F32), 1);
            for row_type in KV_TYPES {
                let mut expected = RowBuffer::new(RowFormat { row_type, d, n_rot }, 6);
                (0..6).for_each(|row| expected.store(row, &exact.load(row)));
                assert_eq!(
                    norm_rope(version, &input(row_type), 1).bytes(),
                    expected.bytes(),
                    "{version:?}, {row_type:?}"
                );
            }
        }
    }
}
