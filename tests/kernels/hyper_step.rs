//! `hyper_step` against its reference.

use fathom::kernels::{HyperStep, Version, hyper_step};

use super::{Bound, Random, assert_close};

/// Sums of squares of 4 * 300 numbers, exponentials and twenty rounds of divisions in f32.
const F32: Bound = Bound { element: 8e-6, rms: 1e-6 };

struct Numbers {
    n_embd: usize,
    n_mixes: usize,
    streams: Vec<f32>,
    dots: Vec<f32>,
    scale: Vec<f32>,
    base: Vec<f32>,
    norm: Vec<f32>,
    y: Vec<f32>,
}

impl Numbers {
    fn new(random: &mut Random, n_embd: usize, n_tokens: usize, n_mixes: usize) -> Self {
        Numbers {
            n_embd,
            n_mixes,
            streams: random.normals(4 * n_embd * n_tokens),
            // Dots of normals with rows of length 1, as a trained `fn` has them, and some that saturate.
            dots: random.normals(n_mixes * n_tokens).iter().map(|x| x.powi(3)).collect(),
            scale: random.normals(n_mixes.div_ceil(8)),
            base: random.normals(n_mixes),
            norm: random.normals(n_embd),
            y: random.normals(n_embd * n_tokens),
        }
    }

    /// Tokens `range` of these.
    fn input(&self, range: std::ops::Range<usize>) -> HyperStep<'_> {
        let of = |all: &'_ [f32], per_token: usize| range.start * per_token..(range.end * per_token).min(all.len());
        HyperStep {
            n_embd: self.n_embd,
            n_iterations: 20,
            norm_eps: 1e-6,
            eps: 1e-6,
            streams: &self.streams[of(&self.streams, 4 * self.n_embd)],
            dots: &self.dots[of(&self.dots, self.n_mixes)],
            scale: &self.scale,
            base: &self.base,
            norm: &self.norm,
            y: (self.n_mixes > 4).then(|| &self.y[of(&self.y, self.n_embd)]),
        }
    }
}

#[test]
fn kernels_equal_the_reference() {
    let random = &mut Random::new(1);
    for (n_embd, n_tokens) in [(64, 1), (256, 9), (300, 5), (7, 3)] {
        for n_mixes in [4, 24] {
            let numbers = Numbers::new(random, n_embd, n_tokens, n_mixes);
            let input = numbers.input(0..n_tokens);
            let expected = hyper_step(Version::Reference, &input, 1);
            assert_eq!(expected.streams.is_empty(), n_mixes == 4);
            for version in Version::kernels() {
                let found = hyper_step(version, &input, 3);
                assert_close(&format!("{version:?}, x of {n_embd}"), &found.x, &expected.x, F32);
                assert_close(&format!("{version:?}, {n_embd}"), &found.streams, &expected.streams, F32);
            }
        }
    }
}

/// By hand: sources are rows of M, destinations columns. One strong entry stays where it is.
#[test]
fn a_source_goes_to_its_destination() {
    let n_embd = 16;
    let streams: Vec<f32> = (0..4 * n_embd).map(|i| (i / n_embd + 1) as f32).collect();
    let mut base = [0.0; 24];
    base[4..8].fill(-100.0); // nothing of y
    // A permutation: stream a goes to a + 1.
    (0..4).for_each(|a| base[8 + 4 * a + (a + 1) % 4] = 60.0);
    let (norm, y) = (vec![1.0; n_embd], vec![1e3; n_embd]);
    let input = HyperStep {
        n_embd,
        n_iterations: 20,
        norm_eps: 0.0,
        eps: 0.0,
        streams: &streams,
        dots: &[0.0; 24],
        scale: &[1.0; 3],
        base: &base,
        norm: &norm,
        y: Some(&y),
    };
    for version in Version::kernels().chain([Version::Reference]) {
        let found = hyper_step(version, &input, 1);
        let expected: Vec<f32> = [4.0, 1.0, 2.0, 3.0].iter().flat_map(|&x| vec![x; n_embd]).collect();
        assert_close(&format!("{version:?}"), &found.streams, &expected, F32);
        // All channels are equal, so the norm makes ones of them.
        assert_close(&format!("{version:?}"), &found.x, &norm, F32);
    }
}

#[test]
fn a_token_does_not_depend_on_its_neighbours() {
    let random = &mut Random::new(2);
    for n_mixes in [4, 24] {
        let numbers = Numbers::new(random, 96, 7, n_mixes);
        for version in Version::kernels() {
            let together = hyper_step(version, &numbers.input(0..7), 1);
            assert_eq!(together, hyper_step(version, &numbers.input(0..7), 3), "{version:?}: threads");
            let alone: Vec<_> = (0..7).map(|t| hyper_step(version, &numbers.input(t..t + 1), 2)).collect();
            let all =
                |of: fn(&fathom::kernels::Stepped) -> &[f32]| alone.iter().flat_map(of).copied().collect::<Vec<_>>();
            assert_eq!(together.x, all(|one| &one.x), "{version:?}: one token at a time");
            assert_eq!(together.streams, all(|one| &one.streams), "{version:?}: one token at a time");
        }
    }
}
