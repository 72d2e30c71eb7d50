//! `expert_ffn` against its reference.

use fathom::kernels::{ElementType, ExpertFfn, Experts, Version, Workspace, expert_ffn};
use fathom_gguf::{DType, block};

use super::{Bound, Random, assert_close, assert_same};

/// An FFN with random weights.
struct Ffn {
    n_embd: usize,
    n_ff: usize,
    n_used: usize,
    /// Of gate, up and down.
    element_types: [ElementType; 3],
    matrices: [Vec<Vec<u8>>; 3],
    clamp: f32,
}

fn encode(element_type: ElementType, values: &[f32]) -> Vec<u8> {
    let dtype = DType::from_id(element_type as u32).expect("ggml's numbers");
    let mut bytes = vec![0; dtype.row_bytes(values.len() as u64).expect("whole blocks") as usize];
    block::encode(dtype, values, &mut bytes).expect("lengths match");
    bytes
}

impl Ffn {
    fn random(
        random: &mut Random,
        element_type: ElementType,
        shape: (usize, usize),
        n_expert: usize,
        n_used: usize,
    ) -> Self {
        Self::mixed(random, [element_type; 3], shape, n_expert, n_used)
    }

    fn mixed(
        random: &mut Random,
        element_types: [ElementType; 3],
        (n_embd, n_ff): (usize, usize),
        n_expert: usize,
        n_used: usize,
    ) -> Self {
        let mut matrices = |element_type, n: usize| -> Vec<Vec<u8>> {
            let deviation = (n as f32).sqrt().recip();
            // Even numbers of deviation 1: an eighth of the time that normal ones take, and weights need not be normal.
            let mut even = || (random.uniform() - 0.5) * 12f32.sqrt() * deviation;
            let mut values = || (0..n_embd * n_ff).map(|_| even()).collect::<Vec<_>>();
            (0..n_expert).map(|_| encode(element_type, &values())).collect()
        };
        let [gate, up, down] = element_types;
        let matrices = [matrices(gate, n_embd), matrices(up, n_embd), matrices(down, n_ff)];
        Ffn { n_embd, n_ff, n_used, element_types, matrices, clamp: 10.0 }
    }

    fn run(&self, version: Version, exact: bool, x: &[f32], ids: &[i32], weights: &[f32], nth: usize) -> Vec<f32> {
        self.run_scaled(version, exact, x, ids, weights, nth, None)
    }

    #[expect(clippy::too_many_arguments, reason = "one call, seven things that tests vary")]
    fn run_scaled(
        &self,
        version: Version,
        exact: bool,
        x: &[f32],
        ids: &[i32],
        weights: &[f32],
        nth: usize,
        scales: Option<&[f32]>,
    ) -> Vec<f32> {
        let tables = self.matrices.each_ref().map(|m| m.iter().map(Vec::as_slice).collect::<Vec<_>>());
        let experts = |at: usize| Experts { element_type: self.element_types[at], matrices: &tables[at], scales };
        let (gate, up, down) = (experts(0), experts(1), experts(2));
        let Ffn { n_embd, n_ff, n_used, .. } = *self;
        let input = ExpertFfn { n_embd, n_ff, n_used, exact, clamp: self.clamp, gate, up, down, x, ids, weights };
        expert_ffn(version, &input, nth, &mut Workspace::default())
    }
}

/// `n_used` different experts for every token; about one of five is a hole.
fn routes(random: &mut Random, n_expert: usize, n_used: usize, n_tokens: usize) -> (Vec<i32>, Vec<f32>) {
    let mut ids = Vec::new();
    for _ in 0..n_tokens {
        let mut all: Vec<i32> = (0..n_expert as i32).collect();
        for _ in 0..n_used {
            let id = all.swap_remove(random.below(all.len()));
            ids.push(if random.below(5) == 0 { -1 } else { id });
        }
    }
    // A hole's weight is poison.
    let weights = ids.iter().map(|&id| if id < 0 { f32::NAN } else { random.uniform() }).collect();
    (ids, weights)
}

/// Sums of at most a few thousand products in f32, against sums in f64 of the same numbers.
const EXACT: Bound = Bound { element: 1e-5, rms: 2e-6 };

const SILU_OF_ONE: f32 = 0.731_058_6;

/// Width of the model and of an expert. Not all are whole numbers of tiles, and one is smaller than a tile.
const SHAPES: [(usize, usize); 4] = [(128, 64), (320, 192), (64, 128), (512, 64)];

fn check(ffn: &Ffn, random: &mut Random, exact: bool, n_tokens: usize) {
    let n_expert = ffn.matrices[0].len();
    let x = random.normals(ffn.n_embd * n_tokens);
    let (ids, weights) = routes(random, n_expert, ffn.n_used, n_tokens);
    let expected = ffn.run(Version::Reference, exact, &x, &ids, &weights, 1);
    for version in Version::kernels() {
        let found = ffn.run(version, exact, &x, &ids, &weights, 2);
        let what = format!(
            "{:?}, {version:?}, exact: {exact}, {}x{}, {n_tokens} tokens",
            ffn.element_types, ffn.n_embd, ffn.n_ff
        );
        if exact || ffn.element_types[2].block().0 == 1 {
            assert_close(&what, &found, &expected, EXACT);
        } else {
            assert_close_but_for_ties(&what, &found, &expected, ffn.n_embd);
        }
    }
}

/// x is rounded alike on both sides, but h is f32 here and f64 there: where it lies between two steps of its block it may fall on
/// either side, about once in a hundred tokens of these tests. That token is then off by one step, 1/127 of a largest h of up
/// to 12, times a weight; all others meet the bound of f32.
fn assert_close_but_for_ties(what: &str, found: &[f32], expected: &[f32], n_embd: usize) {
    assert_close(what, found, expected, Bound { element: 0.1, rms: 0.04 });
    let off = |(found, expected): (&[f32], &[f32])| {
        found.iter().zip(expected).any(|(found, expected)| (found - expected).abs() > 2e-5)
    };
    let n_off = found.chunks(n_embd).zip(expected.chunks(n_embd)).filter(|&pair| off(pair)).count();
    assert!(n_off <= 1 + found.len() / n_embd / 20, "{what}: {n_off} tokens are off by more than f32 explains");
}

#[test]
fn kernels_equal_the_reference() {
    let random = &mut Random::new(3);
    for element_type in ElementType::ALL {
        for shape in SHAPES {
            let ffn = Ffn::random(random, element_type, shape, 8, 2);
            for n_tokens in [1, 2, 3, 9, 70] {
                check(&ffn, random, true, n_tokens);
                check(&ffn, random, false, n_tokens);
            }
        }
    }
}

/// Floats have no blocks: columns and rows may be any number.
#[test]
fn odd_sizes_equal_the_reference() {
    let random = &mut Random::new(4);
    for element_type in [ElementType::F32, ElementType::F16, ElementType::Bf16] {
        for shape in [(1, 1), (3, 5), (17, 33), (35, 7), (100, 50)] {
            let ffn = Ffn::random(random, element_type, shape, 3, 3);
            check(&ffn, random, false, 5);
        }
    }
}

/// Activations that are whole steps of their blocks, nearly: rounding is then the same in f32 and f64, and a float `down` rounds
/// nothing, so that products of bytes are held to the bound of f32.
#[test]
fn products_of_bytes_are_exact() {
    let random = &mut Random::new(9);
    use ElementType::{F32, Mxfp4, Nvfp4, Q8_0};
    for types in [[Mxfp4; 2], [Nvfp4; 2], [Q8_0; 2], [Mxfp4, Q8_0], [Nvfp4, F32]] {
        let ffn = Ffn::mixed(random, [types[0], types[1], F32], (320, 64), 4, 2);
        for n_tokens in [1, 3, 40] {
            let step = 0.01;
            let mut x: Vec<f32> = (0..320 * n_tokens)
                .map(|_| step * (random.below(253) as f32 - 126.0 + 0.9 * (random.uniform() - 0.5)))
                .collect();
            x.chunks_exact_mut(32).for_each(|block| block[random.below(32)] = -127.0 * step);
            let (ids, weights) = routes(random, 4, 2, n_tokens);
            let expected = ffn.run(Version::Reference, false, &x, &ids, &weights, 1);
            for version in Version::kernels() {
                let found = ffn.run(version, false, &x, &ids, &weights, 2);
                assert_close(&format!("{types:?}, {version:?}, {n_tokens} tokens"), &found, &expected, EXACT);
            }
        }
    }
}

/// Every scale byte and every code, against the decoder of the file format.
#[test]
fn every_code_means_what_the_format_says() {
    for (element_type, dtype, n_scales) in
        [(ElementType::Mxfp4, DType::MXFP4, 1), (ElementType::Nvfp4, DType::NVFP4, 4)]
    {
        // `down` is under test: row r has scale byte r throughout, and all codes.
        let (n_embd, n_ff) = (256, 64);
        let (_, bytes) = element_type.block();
        let byte = |r: usize, at: usize| if at % bytes < n_scales { r as u8 } else { (at * 37 + r) as u8 };
        let down: Vec<u8> =
            (0..n_embd).flat_map(|r| (0..element_type.row_bytes(n_ff)).map(move |at| byte(r, at))).collect();
        let mut values = vec![0.0; n_embd * n_ff];
        block::decode(dtype, &down, &mut values).expect("lengths match");

        // h is the same in all columns, so that rounding it changes nothing; and of a size that keeps products finite and normal. The largest four scales of MXFP4 go beyond f32.
        for (up, rows) in [(1e20f32, 0..128), (1e-20, 128..252)] {
            let h = up * SILU_OF_ONE;
            let of = |down, element_type| Ffn {
                n_embd,
                n_ff,
                n_used: 1,
                element_types: [ElementType::F32, ElementType::F32, element_type],
                matrices: [1.0, h]
                    .map(|v| vec![encode(ElementType::F32, &vec![v / 256.0; n_embd * n_ff])])
                    .into_iter()
                    .chain([vec![down]])
                    .collect::<Vec<_>>()
                    .try_into()
                    .expect("three"),
                clamp: f32::INFINITY,
            };
            let plain = of(encode(ElementType::F32, &values), ElementType::F32);
            let ours = of(down.clone(), element_type);
            let x = vec![1.0; n_embd];
            let expected = plain.run(Version::Reference, true, &x, &[0], &[1.0], 1);
            for version in [Version::Reference].into_iter().chain(Version::kernels()) {
                for exact in [true, false] {
                    let found = ours.run(version, exact, &x, &[0], &[1.0], 1);
                    for r in rows.clone() {
                        let terms: f64 = values[r * n_ff..][..n_ff].iter().map(|&v| f64::from(v.abs() * h)).sum();
                        let off = (f64::from(found[r]) - f64::from(expected[r])).abs();
                        assert!(
                            off <= 1e-5 * terms,
                            "{element_type:?}, {version:?}, exact: {exact}, scale byte {r}: {} instead of {}",
                            found[r],
                            expected[r]
                        );
                    }
                }
            }
        }
    }
}

#[test]
fn a_token_is_the_same_alone_and_in_company() {
    let random = &mut Random::new(5);
    for element_type in ElementType::ALL {
        let (n_embd, n_expert, n_used, n_tokens) = (128, 8, 2, 70);
        let ffn = Ffn::random(random, element_type, (n_embd, 64), n_expert, n_used);
        let x = random.normals(n_embd * n_tokens);
        let (ids, weights) = routes(random, n_expert, n_used, n_tokens);
        for version in Version::kernels() {
            for exact in [false, true] {
                let together = ffn.run(version, exact, &x, &ids, &weights, 1);
                for nth in [2, 3, 7] {
                    let what = format!("{element_type:?}, {version:?}, {nth} threads");
                    assert_same(&what, &ffn.run(version, exact, &x, &ids, &weights, nth), &together);
                }
                for (begin, end) in (0..n_tokens).map(|t| (t, t + 1)).chain([(0, 7), (3, 20), (20, 70)]) {
                    let part = ffn.run(
                        version,
                        exact,
                        &x[n_embd * begin..n_embd * end],
                        &ids[n_used * begin..n_used * end],
                        &weights[n_used * begin..n_used * end],
                        2,
                    );
                    let what = format!("{element_type:?}, {version:?}, exact: {exact}, tokens {begin}..{end}");
                    assert_same(&what, &part, &together[n_embd * begin..n_embd * end]);
                }
            }
        }
    }
}

#[test]
fn tokens_without_experts_are_zero() {
    let random = &mut Random::new(6);
    let ffn = Ffn::random(random, ElementType::Mxfp4, (128, 64), 8, 2);
    let x = random.normals(128 * 3);
    for version in [Version::Reference].into_iter().chain(Version::kernels()) {
        let y = ffn.run(version, false, &x, &[-1; 6], &[f32::NAN; 6], 2);
        assert_same(&format!("{version:?}"), &y, &[0.0; 128 * 3]);
    }
}

#[test]
fn factors_of_matrices_belong_to_the_products() {
    let random = &mut Random::new(7);
    let ffn = Ffn::random(random, ElementType::Nvfp4, (128, 64), 4, 2);
    let x = random.normals(128 * 5);
    let (ids, weights) = routes(random, 4, 2, 5);
    let scales = random.normals(4);
    let expected = ffn.run_scaled(Version::Reference, false, &x, &ids, &weights, 1, Some(&scales));
    for version in Version::kernels() {
        let found = ffn.run_scaled(version, false, &x, &ids, &weights, 2, Some(&scales));
        assert_close_but_for_ties(&format!("{version:?}"), &found, &expected, ffn.n_embd);
    }
}

/// The clamp holds on both sides of both products, and NaN is not clamped away.
#[test]
fn large_products_are_clamped_and_nan_stays() {
    let random = &mut Random::new(8);
    let ffn = Ffn::random(random, ElementType::F32, (64, 64), 2, 1);
    let mut x: Vec<f32> = random.normals(64 * 4).iter().map(|x| 1000.0 * x).collect();
    x[3 * 64 + 5] = f32::NAN;
    let (ids, weights) = ([0, 1, 0, 1], [1.0; 4]);
    let expected = ffn.run(Version::Reference, true, &x, &ids, &weights, 1);
    assert!(expected[..192].iter().all(|y| y.abs() < 100.0 * 64.0) && expected[192..].iter().all(|y| y.is_nan()));
    for version in Version::kernels() {
        let found = ffn.run(version, true, &x, &ids, &weights, 1);
        assert_close(&format!("{version:?}"), &found, &expected, EXACT);
    }
}
