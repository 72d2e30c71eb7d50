//! `index_topk` against its reference.

use fathom::kernels::{
    IndexTopk, RowBuffer, RowFormat, RowType, Segments, Selected, Step, Version, Workspace, index_topk,
};

use super::Random;

const KEY_TYPES: [RowType; 3] = [RowType::F32, RowType::F16, RowType::Fp4];
const RATIO: usize = 4;
const SEGMENT: usize = 64;

/// Shapes of an indexer.
#[derive(Clone, Copy)]
struct Shape {
    n_head: usize,
    n_embd: usize,
    top_k: usize,
}

/// Queries and weights of one step.
struct Queries {
    step: Step,
    q: Vec<f32>,
    weights: Vec<f32>,
}

fn keys(key_type: RowType, n_embd: usize, n_rows: usize, mut key: impl FnMut(usize) -> Vec<f32>) -> Vec<RowBuffer> {
    let format = RowFormat { row_type: key_type, d: n_embd, n_rot: 0 };
    // Rows beyond n_rows keep their poison: nobody may look at them.
    let mut segments = vec![RowBuffer::new(format, SEGMENT); n_rows.div_ceil(SEGMENT)];
    (0..n_rows).for_each(|row| segments[row / SEGMENT].store(row % SEGMENT, &key(row)));
    segments
}

fn select(version: Version, shape: Shape, queries: &Queries, keys: &[&[RowBuffer]], nth: usize) -> Selected {
    let key_type = keys.iter().find_map(|k| k.first()).map_or(RowType::F16, |k| k.format().row_type);
    let pointers: Vec<Vec<&RowBuffer>> = keys.iter().map(|k| k.iter().collect()).collect();
    let segments: Vec<_> = pointers.iter().map(|segments| Segments { segments }).collect();
    let Shape { n_head, n_embd, top_k } = shape;
    let Queries { step, q, weights } = queries;
    let input =
        IndexTopk { step, n_head, n_embd, ratio: RATIO, top_k, scale: 0.125, q, weights, key_type, keys: &segments };
    index_topk(version, &input, nth, &mut Workspace::default())
}

/// Whole numbers: products and sums are exact in float32, and many scores are equal.
fn whole(random: &mut Random, n: usize, largest: i32) -> Vec<f32> {
    (0..n).map(|_| (random.below(2 * largest as usize + 1) as i32 - largest) as f32).collect()
}

impl Queries {
    fn new(
        random: &mut Random,
        shape: Shape,
        runs: &[(u64, usize)],
        numbers: fn(&mut Random, usize) -> Vec<f32>,
    ) -> Self {
        let step = Step::new(runs);
        let n = step.n_tokens() * shape.n_head;
        Queries { q: numbers(random, n * shape.n_embd), weights: numbers(random, n), step }
    }
}

const SHAPES: [Shape; 3] = [
    Shape { n_head: 64, n_embd: 128, top_k: 32 },
    Shape { n_head: 4, n_embd: 64, top_k: 16 },
    Shape { n_head: 24, n_embd: 128, top_k: 7 },
];

/// Rows around the number to keep, and enough for bounds (four times the number to keep) and for several rounds of a full buffer.
fn row_counts(top_k: usize) -> [usize; 9] {
    [0, 1, top_k - 1, top_k, top_k + 1, 3 * top_k + 1, 4 * top_k, 11 * top_k + 3, 40 * top_k + 5]
}

#[test]
fn kernels_choose_what_the_reference_chooses() {
    let random = &mut Random::new(1);
    for shape in SHAPES {
        for key_type in KEY_TYPES {
            for n_rows in row_counts(shape.top_k) {
                let keys = keys(key_type, shape.n_embd, n_rows, |_| whole(random, shape.n_embd, 3));
                let runs = [((n_rows * RATIO + RATIO - 2).saturating_sub(2) as u64, 3)];
                // Weights of 1/4 and less keep FP4's sums exact, too: the rotation makes fractions of q.
                let queries = Queries::new(random, shape, &runs, |random, n| whole(random, n, 2));
                let keys: &[&[RowBuffer]] = &[&keys];
                let expected = select(Version::Reference, shape, &queries, keys, 1);
                for version in Version::kernels() {
                    for nth in [1, 2, 5] {
                        let found = select(version, shape, &queries, keys, nth);
                        assert_eq!(found, expected, "{version:?}, {key_type:?}, {n_rows} rows, {nth} threads");
                    }
                }
            }
        }
    }
}

/// The score in double precision.
fn score(shape: Shape, queries: &Queries, keys: &[RowBuffer], token: usize, row: i32) -> f64 {
    let key = keys[row as usize / SEGMENT].load(row as usize % SEGMENT);
    let heads = queries.q[token * shape.n_head * shape.n_embd..].chunks(shape.n_embd);
    let weights = &queries.weights[token * shape.n_head..][..shape.n_head];
    let dot = |q: &[f32]| q.iter().zip(&key).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum::<f64>();
    heads.zip(weights).map(|(q, &w)| f64::from(w) * 0.125 * dot(q).max(0.0)).sum()
}

/// Random numbers: two sets may differ in rows whose scores float32 cannot tell apart.
#[test]
fn random_keys_are_chosen_up_to_rounding() {
    let random = &mut Random::new(2);
    let shape = SHAPES[0];
    for key_type in [RowType::F32, RowType::F16] {
        let keys = keys(key_type, shape.n_embd, 1500, |_| random.normals(shape.n_embd));
        let queries = Queries::new(random, shape, &[(5995, 2)], Random::normals);
        let expected = select(Version::Reference, shape, &queries, &[&keys], 1);
        for version in Version::kernels() {
            let found = select(version, shape, &queries, &[&keys], 1);
            assert_eq!(found.n_top, expected.n_top);
            for (token, (found, expected)) in
                found.top.chunks(shape.top_k).zip(expected.top.chunks(shape.top_k)).enumerate()
            {
                assert!(found.is_sorted_by(|a, b| a < b));
                let least =
                    expected.iter().map(|&row| score(shape, &queries, &keys, token, row)).fold(f64::MAX, f64::min);
                for &row in found.iter().filter(|row| !expected.contains(row)) {
                    let off = (score(shape, &queries, &keys, token, row) - least).abs();
                    // 64 heads of dot products of 128 terms whose size is about 11.
                    assert!(
                        off < 64.0 * 11.0 * 128.0 * 2f64.powi(-24),
                        "{version:?}, {key_type:?}: row {row} is off by {off}"
                    );
                }
            }
        }
    }
}

/// With one thread there are rows enough for bounds, with sixteen there are not: the bound must not show. Nor must other tokens, nor
/// the way in which a prompt was cut.
#[test]
fn a_token_s_rows_do_not_depend_on_its_neighbours() {
    let random = &mut Random::new(3);
    for key_type in KEY_TYPES {
        let shape = Shape { n_head: 64, n_embd: 128, top_k: 48 };
        let shared = keys(key_type, shape.n_embd, 1024, |_| random.normals(shape.n_embd));
        let other = keys(key_type, shape.n_embd, 300, |_| random.normals(shape.n_embd));
        let mut fork: Vec<RowBuffer> = shared[..8].to_vec();
        fork.extend(keys(key_type, shape.n_embd, 128, |_| random.normals(shape.n_embd)));
        let keys: &[&[RowBuffer]] = &[&shared, &other, &fork];
        let runs = [(4060, 21), (1199, 1), (2555, 3)];
        let queries = Queries::new(random, shape, &runs, Random::normals);
        for version in Version::kernels() {
            let expected = select(version, shape, &queries, keys, 1);
            for nth in [2, 3, 16] {
                assert_eq!(
                    select(version, shape, &queries, keys, nth),
                    expected,
                    "{version:?}, {key_type:?}, {nth} threads"
                );
            }
            for (r, (first, pos, n_tokens)) in queries.step.runs().enumerate() {
                for t in 0..n_tokens {
                    let per_token = shape.n_head * shape.n_embd;
                    let alone = Queries {
                        step: Step::new(&[(pos + t as u64, 1)]),
                        q: queries.q[(first + t) * per_token..][..per_token].to_vec(),
                        weights: queries.weights[(first + t) * shape.n_head..][..shape.n_head].to_vec(),
                    };
                    let found = select(version, shape, &alone, &keys[r..=r], 2);
                    assert_eq!(
                        found.top,
                        expected.top[(first + t) * shape.top_k..][..shape.top_k],
                        "{version:?}, {key_type:?}"
                    );
                }
            }
        }
    }
}

/// Keys and weights that leave nothing to choose by, or that mislead a bound.
#[test]
fn ties_go_to_the_lower_row_whatever_the_keys() {
    let random = &mut Random::new(4);
    let shape = SHAPES[0];
    let n_rows = 20 * shape.top_k + 3;
    type Key = fn(usize, &mut Random) -> Vec<f32>;
    let key_sets: [(&str, Key); 5] = [
        ("equal", |_, _| vec![1.0; 128]),
        ("zero", |_, _| vec![0.0; 128]),
        ("two kinds", |row, _| vec![if row % 3 == 0 { 2.0 } else { 1.0 }; 128]),
        ("growing", |row, _| vec![(row / 7) as f32; 128]),
        ("one repeated among others", |row, random| if row % 2 == 0 { vec![1.0; 128] } else { whole(random, 128, 2) }),
    ];
    type Weight = fn(usize) -> f32;
    let weight_sets: [(&str, Weight); 4] = [
        ("positive", |_| 1.0),
        ("negative", |_| -1.0),
        ("zero", |_| 0.0),
        ("mixed", |h| if h % 2 == 0 { 1.0 } else { -0.5 }),
    ];
    for key_type in KEY_TYPES {
        for (key_name, key) in key_sets {
            let keys = keys(key_type, 128, n_rows, |row| key(row, random));
            for (weight_name, weight) in weight_sets {
                let mut queries =
                    Queries::new(random, shape, &[((n_rows * RATIO) as u64, 1)], |random, n| whole(random, n, 1));
                queries.weights = (0..shape.n_head).map(weight).collect();
                let expected = select(Version::Reference, shape, &queries, &[&keys], 1);
                for version in Version::kernels() {
                    for nth in [1, 2] {
                        let found = select(version, shape, &queries, &[&keys], nth);
                        assert_eq!(
                            found, expected,
                            "{version:?}, {key_type:?}, {key_name} keys, {weight_name} weights"
                        );
                    }
                }
            }
        }
    }
}

#[test]
fn a_single_outstanding_row_is_found_wherever_it_is() {
    let random = &mut Random::new(5);
    let shape = SHAPES[0];
    let n_rows = 1000;
    let direction = random.normals(128);
    for key_type in KEY_TYPES {
        let mut keys = keys(key_type, 128, n_rows, |_| random.normals(128));
        let queries = Queries {
            step: Step::new(&[((n_rows * RATIO - 1) as u64, 1)]),
            // The same for all heads; FP4 keys are in the rotated basis, where the sum over heads is as one-sided.
            q: direction.repeat(shape.n_head),
            weights: vec![1.0; shape.n_head],
        };
        let mut rotated = direction.clone();
        if key_type == RowType::Fp4 {
            let entry = |i: usize, j: usize| if (i & j).count_ones().is_multiple_of(2) { 1.0 } else { -1.0 };
            rotated =
                (0..128).map(|i| (0..128).map(|j| entry(i, j) * direction[j]).sum::<f32>() / 128f32.sqrt()).collect();
        }
        for row in [0, 1, 23, 24, 511, 512, 998, 999] {
            let before = keys[row / SEGMENT].load(row % SEGMENT);
            keys[row / SEGMENT].store(row % SEGMENT, &rotated);
            for version in Version::kernels().chain([Version::Reference]) {
                let found = select(version, Shape { top_k: 1, ..shape }, &queries, &[&keys], 2);
                assert_eq!(found.top, [row as i32], "{version:?}, {key_type:?}");
            }
            keys[row / SEGMENT].store(row % SEGMENT, &before);
        }
    }
}

/// FP4 rows whose groups differ by more binades than bytes can hold take another way to the same scores.
#[test]
fn fp4_exponents_far_apart_are_exact_too() {
    let random = &mut Random::new(6);
    let shape = Shape { n_head: 8, n_embd: 128, top_k: 16 };
    let keys = keys(RowType::Fp4, 128, 400, |row| {
        let mut key = whole(random, 128, 2);
        let factor = if row % 5 == 0 { 64.0 } else { 4.0 };
        key[32..64].iter_mut().for_each(|x| *x *= factor);
        key[96..].fill(0.0);
        key
    });
    let queries = Queries::new(random, shape, &[(1590, 5)], |random, n| whole(random, n, 1));
    let expected = select(Version::Reference, shape, &queries, &[&keys], 1);
    for version in Version::kernels() {
        assert_eq!(select(version, shape, &queries, &[&keys], 2), expected, "{version:?}");
    }
}

/// A model that has gone wrong gives wrong rows, not a wrong number of them.
#[test]
fn what_is_no_number_still_gives_top_k_rows() {
    let random = &mut Random::new(7);
    let shape = SHAPES[0];
    let n_rows = 20 * shape.top_k;
    for key_type in KEY_TYPES {
        let keys = keys(key_type, 128, n_rows, |row| {
            let mut key = random.normals(128);
            match row % 4 {
                0 => key[5] = f32::NAN,
                1 => key[7] = f32::INFINITY,
                2 => key.fill(1e-42),
                _ => {}
            }
            key
        });
        let mut queries = Queries::new(random, shape, &[((n_rows * RATIO) as u64, 2)], Random::normals);
        queries.q[shape.n_head * shape.n_embd + 3] = f32::NAN;
        for version in Version::kernels() {
            for nth in [1, 3] {
                let found = select(version, shape, &queries, &[&keys], nth);
                assert_eq!(found.n_top, [shape.top_k as i32; 2], "{version:?}");
                for top in found.top.chunks(shape.top_k) {
                    assert!(top.is_sorted_by(|a, b| a < b) && top[0] >= 0 && top[shape.top_k - 1] < n_rows as i32);
                }
            }
        }
    }
}
