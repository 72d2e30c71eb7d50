//! `moe_route` against its reference, and the properties of routing policies.

use fathom::kernels::{MoeRoute, Policy, Routed, Routing, Version, moe_route};

use super::{Bound, Random, assert_close};

const POLICIES: [Policy; 4] = [Policy::TopK, Policy::Rel, Policy::Mass, Policy::Margin];

/// Sums of at most 64 numbers and a few functions, in f32.
const F32: Bound = Bound { element: 2e-6, rms: 1e-6 };

/// A policy with renormalisation and nothing protected.
fn routing(policy: Policy, k_min: usize, k_max: usize, threshold: f32) -> Routing<'static> {
    Routing {
        policy,
        k_min,
        k_max,
        route_hash: false,
        threshold,
        beta: 0.7,
        rho: 1.0,
        alpha: 1.0,
        expert_norm: None,
        protected: None,
    }
}

/// Keeps everything by its threshold.
fn lowest(policy: Policy) -> f32 {
    match policy {
        Policy::Mass => 1.0,
        Policy::Margin => f32::NEG_INFINITY,
        _ => 0.0,
    }
}

/// Keeps nothing beyond `k_min` by its threshold.
fn highest(policy: Policy) -> f32 {
    match policy {
        Policy::Mass => 0.0,
        Policy::Margin => f32::INFINITY,
        _ => 1.0,
    }
}

/// A threshold between them.
fn random_threshold(random: &mut Random, policy: Policy) -> f32 {
    match policy {
        Policy::Margin => random.uniform() - 0.5,
        _ => random.uniform(),
    }
}

/// A layer's router outputs.
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

    fn n_tokens(&self) -> usize {
        self.logits.len() / self.n_expert
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

/// Runs one policy for all tokens of a layer.
fn run(version: Version, layer: &Layer, policy: Routing) -> Routed {
    moe_route(version, &layer.input(&vec![Some(policy); layer.n_tokens()]), 2)
}

#[test]
fn policies_keep_what_the_reference_keeps() {
    let random = &mut Random::new(2);
    let layer = Layer::random(random, 64, 6, 200);
    let norm: Vec<f32> = (0..64).map(|_| 0.5 + random.uniform()).collect();
    let protected: Vec<u8> = (0..64).map(|e| u8::from(e % 9 == 0)).collect();
    for policy in POLICIES {
        for (k_min, k_max, rho) in [(0, 6, 1.0), (2, 6, 0.0), (1, 4, 0.5), (3, 3, 1.0)] {
            let threshold = random_threshold(random, policy);
            for (expert_norm, protected) in [(None, None), (Some(&norm[..]), Some(&protected[..]))] {
                let routing =
                    Routing { rho, alpha: 1.1, expert_norm, protected, ..routing(policy, k_min, k_max, threshold) };
                let expected = run(Version::Reference, &layer, routing);
                for version in Version::kernels() {
                    assert_agree(&format!("{version:?}, {routing:?}"), &run(version, &layer, routing), &expected);
                }
            }
        }
    }
}

/// Each is the reference routing, bit for bit: off, both bounds at k, a threshold that everything meets.
#[test]
fn policies_that_drop_nothing_change_nothing() {
    let random = &mut Random::new(3);
    let layer = Layer::random(random, 64, 6, 100);
    for version in [Version::Reference].into_iter().chain(Version::kernels()) {
        let off = moe_route(version, &layer.input(&[]), 1);
        let mut all = vec![routing(Policy::Off, 2, 3, 0.5), routing(Policy::TopK, 0, 6, 0.5)];
        for policy in POLICIES {
            all.push(routing(policy, 6, 6, highest(policy)));
            all.push(routing(policy, 1, 6, lowest(policy)));
        }
        for policy in all {
            assert_eq!(run(version, &layer, Routing { alpha: 0.5, ..policy }), off, "{version:?}, {policy:?}");
        }
    }
}

#[test]
fn the_highest_threshold_is_the_smallest_static_k() {
    let random = &mut Random::new(4);
    let layer = Layer::random(random, 64, 6, 100);
    for version in [Version::Reference].into_iter().chain(Version::kernels()) {
        for k in 1..=6 {
            let fixed = run(version, &layer, routing(Policy::TopK, 0, k, 0.0));
            assert!(fixed.n_active.iter().all(|&n| n == k as i32));
            for policy in [Policy::Rel, Policy::Mass, Policy::Margin] {
                assert_eq!(run(version, &layer, routing(policy, k, 6, highest(policy))), fixed, "{policy:?}, {k}");
            }
        }
    }
}

/// Bounds hold, what is kept is a prefix of the candidates, protected experts stay, and the kept weights have the sum that the
/// renormalisation promises.
#[test]
fn every_policy_keeps_its_promises() {
    let random = &mut Random::new(5);
    for version in Version::kernels() {
        for round in 0..40 {
            let policy = POLICIES[round % 4];
            let layer = Layer::random(random, 32, 6, 20);
            let norm: Vec<f32> = (0..32).map(|_| 0.5 + random.uniform()).collect();
            let protected: Vec<u8> = (0..32).map(|_| u8::from(random.below(8) == 0)).collect();
            let (k_min, k_max) = (1 + random.below(2), 3 + random.below(4));
            let rho = [0.0, 1.0][random.below(2)];
            let routing = Routing {
                rho,
                expert_norm: Some(&norm),
                protected: Some(&protected),
                ..routing(policy, k_min, k_max, random_threshold(random, policy))
            };
            let off = moe_route(version, &layer.input(&[]), 1);
            let kept = run(version, &layer, routing);
            for t in 0..layer.n_tokens() {
                let what = format!("{version:?}, token {t}, {routing:?}");
                let slots = 6 * t..6 * (t + 1);
                let (all, p) = (&off.ids[slots.clone()], &off.weights[slots.clone()]);
                let (ids, weights) = (&kept.ids[slots.clone()], &kept.weights[slots]);
                let is_protected = |j: usize| protected[all[j] as usize] != 0;
                let stays = |j: usize| ids[j] >= 0;

                assert!((0..6).all(|j| ids[j] == all[j] || (ids[j] == -1 && weights[j] == 0.0)), "{what}");
                assert_eq!(ids.iter().filter(|&&id| id >= 0).count(), kept.n_active[t] as usize, "{what}");
                assert!((0..6).all(|j| stays(j) || !is_protected(j)), "{what}");
                let mut order: Vec<usize> = (0..6).collect();
                order.sort_by(|&a, &b| {
                    let share = |j: usize| p[j] * norm[all[j] as usize];
                    share(b).total_cmp(&share(a)).then(a.cmp(&b))
                });
                // The first that was dropped: nothing but protected experts stays after it.
                let n = order.iter().position(|&j| !stays(j)).unwrap_or(6);
                assert!(order[n..].iter().all(|&j| !stays(j) || is_protected(j)), "{what}");
                let n_unprotected = (0..6).filter(|&j| stays(j) && !is_protected(j)).count();
                assert!(n >= k_min && n_unprotected <= k_max, "{what}");

                let sum = |w: &[f32]| w.iter().sum::<f32>();
                let promised = if rho == 1.0 { sum(p) } else { (0..6).filter(|&j| stays(j)).map(|j| p[j]).sum() };
                assert!((sum(weights) - promised).abs() < 1e-5, "{what}");
            }
        }
    }
}

#[test]
fn policies_belong_to_tokens() {
    let random = &mut Random::new(6);
    let layer = Layer::random(random, 32, 4, 9);
    let two = routing(Policy::TopK, 0, 2, 0.0);
    let mixed: Vec<_> = (0..9).map(|t| (t % 3 == 0).then_some(two)).collect();
    for version in Version::kernels() {
        let found = moe_route(version, &layer.input(&mixed), 2);
        let (off, all) = (moe_route(version, &layer.input(&[]), 1), run(version, &layer, two));
        for t in 0..9 {
            let from = if t % 3 == 0 { &all } else { &off };
            assert_eq!(found.ids[4 * t..][..4], from.ids[4 * t..][..4]);
            assert_eq!(found.weights[4 * t..][..4], from.weights[4 * t..][..4]);
        }
    }
}

#[test]
fn hash_layers_take_the_table_and_are_exempt_unless_asked() {
    let random = &mut Random::new(7);
    let layer = Layer::random(random, 16, 4, 12);
    let table: Vec<i32> = (0..5 * 4).map(|at| (at % 4) * 4 + at / 4 % 4).collect();
    let tokens: Vec<i32> = (0..12).map(|t| t % 5).collect();
    let two = [Some(routing(Policy::TopK, 0, 2, 0.0)); 12];
    let routed = two.map(|policy| policy.map(|policy| Routing { route_hash: true, ..policy }));
    for version in [Version::Reference].into_iter().chain(Version::kernels()) {
        let hashed = |policies| {
            let input = MoeRoute { table: Some((&table, &tokens)), ..layer.input(policies) };
            moe_route(version, &input, 2)
        };
        let off = hashed(&[]);
        for (t, &token) in tokens.iter().enumerate() {
            assert_eq!(off.ids[4 * t..][..4], table[4 * token as usize..][..4]);
            assert!((off.weights[4 * t..][..4].iter().sum::<f32>() - 1.5).abs() < 1e-5);
        }
        assert_eq!(hashed(&two), off, "{version:?}");
        assert!(hashed(&routed).n_active.iter().all(|&n| n == 2), "{version:?}");
    }
}

/// Scores that are all zero, infinite or no numbers: the experts are still different ones, and in range.
#[test]
fn odd_logits_give_valid_experts() {
    let mut layer = Layer { n_expert: 8, n_used: 3, logits: Vec::new(), bias: vec![0.0; 8] };
    for value in [-1e30, f32::NEG_INFINITY, f32::INFINITY, f32::NAN] {
        layer.logits.extend([value; 8]);
        layer.logits.extend((0..8).map(|e| if e % 2 == 0 { value } else { 1.0 }));
    }
    for version in Version::kernels() {
        let found = moe_route(version, &layer.input(&[]), 1);
        for ids in found.ids.chunks(3) {
            assert!(
                ids.iter().all(|id| (0..8).contains(id)) && ids[0] != ids[1] && ids[1] != ids[2] && ids[0] != ids[2]
            );
        }
        assert_eq!(found.ids[..3], [0, 1, 2]);
        assert_eq!(found.weights[..3], [0.0; 3]);
    }
}
