//! `moe_route` against its reference.

use fathom::kernels::{MoeRoute, Routed, Routing, Version, moe_route};

use super::{Random, assert_close};

/// Sums of at most 64 numbers and a few functions, in f32.
const F32: f64 = 2e-6;

struct Layer {
    n_expert: usize,
    n_used: usize,
    logits: Vec<f32>,
    bias: Vec<f32>,
}

impl Layer {
    /// Logits on a grid, so that many are equal; no two different ones are so near that f32 and f64 could disagree.
    fn with_ties(random: &mut Random, n_expert: usize, n_used: usize, n_tokens: usize) -> Self {
        let logits = (0..n_expert * n_tokens).map(|_| (random.below(41) as f32 - 20.0) / 4.0).collect();
        Layer { n_expert, n_used, logits, bias: vec![0.0; n_expert] }
    }

    fn random(random: &mut Random, n_expert: usize, n_used: usize, n_tokens: usize) -> Self {
        let logits = (0..n_expert * n_tokens).map(|_| 2.0 * random.normal()).collect();
        let bias = (0..n_expert).map(|_| 0.1 * random.normal()).collect();
        Layer { n_expert, n_used, logits, bias }
    }

    fn input<'a>(&'a self, routing: &'a [Option<Routing<'a>>]) -> MoeRoute<'a> {
        MoeRoute {
            n_expert: self.n_expert,
            n_used: self.n_used,
            scale: 1.5,
            logits: &self.logits,
            bias: Some(&self.bias),
            table: None,
            routing,
        }
    }
}

fn assert_agree(what: &str, found: &Routed, expected: &Routed) {
    assert_eq!(found.ids, expected.ids, "{what}");
    assert_eq!(found.n_active, expected.n_active, "{what}");
    assert_close(what, &found.weights, &expected.weights, F32);
}

#[test]
fn kernels_choose_what_the_reference_chooses() {
    let random = &mut Random::new(1);
    for (n_expert, n_used, n_tokens) in [(8, 2, 5), (8, 8, 3), (256, 6, 70), (384, 6, 1), (13, 3, 17)] {
        for layer in [Layer::with_ties, Layer::random].map(|make| make(random, n_expert, n_used, n_tokens)) {
            let expected = moe_route(Version::Reference, &layer.input(&[]), 1);
            for version in Version::kernels() {
                for nth in [1, 3] {
                    let found = moe_route(version, &layer.input(&[]), nth);
                    assert_agree(&format!("{version:?}, {n_used} of {n_expert}"), &found, &expected);
                }
            }
        }
    }
}
