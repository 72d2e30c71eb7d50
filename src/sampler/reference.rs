//! The specification of the sampler, and the tests against it: everything sorted, everything in `f64`, nothing reused.

use std::collections::BTreeMap;

use super::*;

/// Probabilities `(id, p)` of the tokens that may be drawn, in no particular order.
fn distribution(params: &Params, history: &[TokenId], logits: &[f32], mask: Option<&Mask>) -> Vec<(u32, f64)> {
    let mut l: Vec<f64> = logits.iter().map(|&x| f64::from(x)).collect();
    for &(token, bias) in &params.logit_bias {
        l[token.0 as usize] += f64::from(bias);
    }
    let window = params.repeat_last_n.map_or(history, |n| &history[history.len().saturating_sub(n)..]);
    let mut counts = BTreeMap::new();
    for token in window {
        *counts.entry(token.0).or_insert(0) += 1;
    }
    for (&token, &count) in &counts {
        let x = &mut l[token as usize];
        let repeat = f64::from(params.repeat_penalty);
        *x = if *x > 0.0 { *x / repeat } else { *x * repeat };
        *x -= f64::from(count) * f64::from(params.frequency_penalty) + f64::from(params.presence_penalty);
    }
    let mut kept: Vec<(u32, f64)> = (0u32..)
        .zip(l)
        .filter(|&(id, x)| x > f64::NEG_INFINITY && mask.is_none_or(|m| m.allows(TokenId(id))))
        .collect();
    kept.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
    if params.temperature <= 0.0 {
        kept.truncate(1);
        return kept.iter().map(|&(id, _)| (id, 1.0)).collect();
    }
    if params.top_k > 0 {
        kept.truncate(params.top_k);
    }
    if params.typical_p < 1.0 {
        let p = normalised(&kept, 1.0);
        let entropy: f64 = p.iter().filter(|x| **x > 0.0).map(|x| -x * x.ln()).sum();
        let mut order: Vec<usize> = (0..kept.len()).collect();
        let distance = |&i: &usize| (-p[i].ln() - entropy).abs();
        order.sort_by(|a, b| distance(a).total_cmp(&distance(b)));
        let n = reached(order.iter().map(|&i| p[i]), f64::from(params.typical_p));
        let mut chosen: Vec<(u32, f64)> = order[..n].iter().map(|&i| kept[i]).collect();
        chosen.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
        kept = chosen;
    }
    if params.top_p < 1.0 {
        let n = reached(normalised(&kept, 1.0).into_iter(), f64::from(params.top_p));
        kept.truncate(n);
    }
    if params.min_p > 0.0 {
        let p = normalised(&kept, 1.0);
        let n = p.iter().filter(|x| **x >= p[0] * f64::from(params.min_p)).count();
        kept.truncate(n);
    }
    let p = normalised(&kept, 1.0 / f64::from(params.temperature));
    kept.iter().zip(p).map(|(&(id, _), p)| (id, p)).collect()
}

fn normalised(kept: &[(u32, f64)], scale: f64) -> Vec<f64> {
    let max = kept.iter().map(|k| k.1).fold(f64::NEG_INFINITY, f64::max);
    let e: Vec<f64> = kept.iter().map(|k| ((k.1 - max) * scale).exp()).collect();
    let sum: f64 = e.iter().sum();
    e.iter().map(|x| x / sum).collect()
}

/// How many of `p` it takes to reach `wanted`.
fn reached(p: impl Iterator<Item = f64>, wanted: f64) -> usize {
    let mut sum = 0.0;
    let mut n = 0;
    for x in p {
        n += 1;
        sum += x;
        if sum >= wanted {
            break;
        }
    }
    n
}

fn logits(rng: &mut Rng, n: usize, spread: f64) -> Vec<f32> {
    (0..n).map(|_| ((rng.unit() - 0.5) * spread) as f32).collect()
}

fn pick<T: Copy>(rng: &mut Rng, of: &[T]) -> T {
    of[(rng.unit() * of.len() as f64) as usize]
}

/// The distribution the sampler really draws from: its candidates and their weights after one call.
fn drawn_from(sampler: &Sampler, scale: f32) -> BTreeMap<u32, f64> {
    let mut candidates = sampler.candidates.clone();
    let sum = filters::softmax(&mut candidates, scale);
    candidates.iter().map(|c| (c.id, f64::from(c.weight) / sum)).collect()
}

#[test]
fn every_combination_of_parameters_gives_the_reference_distribution() {
    let mut rng = Rng::new(1);
    for case in 0..2000 {
        let n_vocab = pick(&mut rng, &[1, 2, 3, 50, 300, 2000]);
        let token = |rng: &mut Rng| TokenId((rng.unit() * n_vocab as f64) as u32);
        let params = Params {
            temperature: pick(&mut rng, &[0.1, 0.8, 1.0, 1.5]),
            top_k: pick(&mut rng, &[0, 1, 5, 40, 500]),
            top_p: pick(&mut rng, &[0.0, 0.1, 0.5, 0.93, 1.0]),
            min_p: pick(&mut rng, &[0.0, 0.05, 0.3]),
            typical_p: pick(&mut rng, &[0.2, 0.9, 1.0, 1.0]),
            repeat_last_n: pick(&mut rng, &[None, Some(0), Some(3), Some(64)]),
            repeat_penalty: pick(&mut rng, &[1.0, 1.3]),
            presence_penalty: pick(&mut rng, &[0.0, 0.7]),
            frequency_penalty: pick(&mut rng, &[0.0, -0.2, 0.4]),
            logit_bias: (0..pick(&mut rng, &[0usize, 0, 3])).map(|i| (token(&mut rng), i as f32 - 1.0)).collect(),
            seed: Some(case),
            ..Params::default()
        };
        let history: Vec<TokenId> = (0..pick(&mut rng, &[0, 5, 100])).map(|_| token(&mut rng)).collect();
        let spread = pick(&mut rng, &[0.1, 5.0, 40.0]);
        let logits = logits(&mut rng, n_vocab, spread);
        let mut mask = Mask::none(n_vocab);
        (0..n_vocab as u32).filter(|id| *id == 0 || rng.unit() < 0.5).for_each(|id| mask.allow(TokenId(id)));
        let mask = pick(&mut rng, &[None, Some(&mask)]);

        let expected: BTreeMap<u32, f64> = distribution(&params, &history, &logits, mask).into_iter().collect();
        let mut sampler = Sampler::new(&params, n_vocab).expect("good parameters");
        sampler.accept(&history);
        let token = sampler.sample(&mut logits.clone(), mask).expect("a token").token;
        let found = drawn_from(&sampler, 1.0 / params.temperature);

        assert!(expected.contains_key(&token.0), "case {case}: drew {token:?}; {params:?}");
        // The sampler computes weights in f32: relative error of exp and of the temperature's product, some 1e-6 each.
        for id in expected.keys().chain(found.keys()) {
            let (e, f) = (expected.get(id), found.get(id));
            if let (Some(e), Some(f)) = (e, f) {
                assert!((e - f).abs() <= 2e-5 * (e + f) + 1e-9, "case {case}, token {id}: {e} and {f}; {params:?}");
            } else {
                panic!("case {case}, token {id}: expected {e:?}, found {f:?}; {params:?}");
            }
        }
    }
}

/// Pearson's statistic stays below the 99.9 % quantile of its distribution; with a fixed seed the test is exact.
#[test]
fn draws_are_distributed_as_the_probabilities_say() {
    let params = Params { temperature: 1.0, top_k: 0, top_p: 1.0, seed: Some(3), ..Params::default() };
    let logits = [0.0f32, 0.5, 1.0, 1.5, 2.0, -1.0, 0.2, 0.9, 1.7, -0.3];
    let expected = distribution(&params, &[], &logits, None);
    let mut sampler = Sampler::new(&params, logits.len()).expect("good parameters");
    let draws = 50_000;
    let mut counts = [0u32; 10];
    for _ in 0..draws {
        let token = sampler.sample(&mut logits.clone(), None).expect("a token").token;
        counts[token.0 as usize] += 1;
    }
    let chi2: f64 = expected
        .iter()
        .map(|&(id, p)| {
            let e = p * f64::from(draws);
            (f64::from(counts[id as usize]) - e).powi(2) / e
        })
        .sum();
    // 9 degrees of freedom.
    assert!(chi2 < 27.88, "{chi2}: {counts:?}");
}

#[test]
fn temperature_zero_takes_the_lowest_of_the_most_likely() {
    let mut sampler = Sampler::new(&Params::greedy(), 5).expect("good parameters");
    let choice = sampler.sample(&mut [0.0, 3.0, f32::NEG_INFINITY, 3.0, 1.0], None);
    assert_eq!(choice.map(|c| c.token), Ok(TokenId(1)));
}

#[test]
fn a_mask_holds_for_greedy_and_for_draws() {
    let mut mask = Mask::none(100);
    mask.allow(TokenId(33));
    mask.allow(TokenId(70));
    mask.allow(TokenId(5000));
    for params in [Params::greedy(), Params { seed: Some(1), ..Params::default() }] {
        let mut sampler = Sampler::new(&params, 100).expect("good parameters");
        for _ in 0..50 {
            let token = sampler.sample(&mut logits(&mut Rng::new(9), 100, 5.0), Some(&mask)).expect("a token").token;
            assert!(mask.allows(token), "{token:?}");
        }
        let none = sampler.sample(&mut [0.0; 100], Some(&Mask::none(100)));
        assert_eq!(none, Err(Error::NoCandidate));
    }
}

#[test]
fn logprobs_are_those_of_the_model_whatever_the_request_does_to_them() {
    let logits = logits(&mut Rng::new(4), 500, 8.0);
    let params = Params {
        logprobs: Some(3),
        repeat_penalty: 5.0,
        presence_penalty: 1.0,
        logit_bias: vec![(TokenId(17), 100.0), (TokenId(17), 1.0)],
        temperature: 0.3,
        seed: Some(1),
        ..Params::default()
    };
    let mut sampler = Sampler::new(&params, 500).expect("good parameters");
    sampler.accept(&[TokenId(17), TokenId(18)]);
    let choice = sampler.sample(&mut logits.clone(), None).expect("a token");

    let all: Vec<(u32, f64)> = (0u32..).zip(logits.iter().map(|&l| f64::from(l))).collect();
    let p = normalised(&all, 1.0);
    let close = |logprob: f32, id: u32| (f64::from(logprob) - p[id as usize].ln()).abs() < 1e-4;
    assert_eq!(choice.token, TokenId(17), "the bias decides");
    assert!(close(choice.logprob.expect("asked for"), 17));
    let mut best: Vec<u32> = (0..500).collect();
    best.sort_by(|a, b| p[*b as usize].total_cmp(&p[*a as usize]));
    assert_eq!(choice.top.iter().map(|s| s.token.0).collect::<Vec<_>>(), best[..3]);
    assert!(choice.top.iter().all(|s| close(s.logprob, s.token.0)));
}

#[test]
fn the_same_seed_gives_the_same_tokens_and_another_seed_others() {
    let run = |seed| -> Vec<u32> {
        let params = Params { seed: Some(seed), temperature: 1.0, top_k: 0, top_p: 1.0, ..Params::default() };
        let mut sampler = Sampler::new(&params, 1000).expect("good parameters");
        let mut rng = Rng::new(2);
        (0..20).map(|_| sampler.sample(&mut logits(&mut rng, 1000, 4.0), None).expect("a token").token.0).collect()
    };
    assert_eq!(run(5), run(5));
    assert_ne!(run(5), run(6));
}

#[test]
fn broken_logits_are_errors() {
    for params in [Params::greedy(), Params::default()] {
        let mut sampler = Sampler::new(&params, 300).expect("good parameters");
        for bad in [f32::NAN, f32::INFINITY] {
            let mut logits = [0.0; 300];
            logits[290] = bad;
            match sampler.sample(&mut logits, None) {
                Err(Error::NotANumber { token: 290, value }) => assert_eq!(value.to_bits(), bad.to_bits()),
                other => panic!("{other:?}"),
            }
        }
        assert_eq!(sampler.sample(&mut [f32::NEG_INFINITY; 300], None), Err(Error::NoCandidate));
        assert_eq!(sampler.sample(&mut [0.0; 299], None), Err(Error::Vocabulary { found: 299, n_vocab: 300 }));
    }
}

#[test]
fn extreme_but_finite_numbers_still_give_a_token() {
    let extreme = [f32::MAX, f32::MIN, f32::MIN_POSITIVE, 0.0, 1e30];
    let mirostat = [Mirostat::Off, Mirostat::V1 { tau: 5.0, eta: 0.1 }, Mirostat::V2 { tau: 5.0, eta: 0.1 }];
    for mirostat in mirostat {
        for temperature in [1e-45, 1e-10, 1.0, f32::MAX] {
            let params = Params {
                temperature,
                mirostat,
                repeat_penalty: f32::MIN_POSITIVE,
                frequency_penalty: f32::MIN,
                logit_bias: vec![(TokenId(0), f32::MAX), (TokenId(1), f32::NEG_INFINITY)],
                typical_p: 0.5,
                min_p: 2.0,
                top_p: -1.0,
                ..Params::default()
            };
            let mut sampler = Sampler::new(&params, 5).expect("good parameters");
            sampler.accept(&[TokenId(0), TokenId(1), TokenId(4)]);
            for _ in 0..5 {
                let token = sampler.sample(&mut extreme.clone(), None).expect("a token").token;
                assert_ne!(token, TokenId(1), "forbidden by its bias");
            }
        }
    }
}

#[test]
fn senseless_parameters_are_named() {
    let of = |params: Params| params.check().expect_err("senseless").to_string();
    let f = Params::default;
    assert_eq!(of(Params { top_p: f32::NAN, ..f() }), "`top_p` must be a finite number, not `NaN`");
    assert_eq!(of(Params { repeat_penalty: 0.0, ..f() }), "`repeat_penalty` must be above 0, not `0`");
    let bias = vec![(TokenId(9), 1.0)];
    let error = Sampler::new(&Params { logit_bias: bias, ..f() }, 9).expect_err("outside");
    assert_eq!(error.to_string(), "`logit_bias` names token `9`, the vocabulary has 9");
}

/// The mean surprise of what mirostat draws comes to its target; without it, it is the entropy of the distribution.
#[test]
fn mirostat_holds_its_surprise() {
    // Zipf's law: logit = -1.1 ln(rank).
    let logits: Vec<f32> = (1..=5000).map(|rank| -1.1 * (rank as f32).ln()).collect();
    let all: Vec<(u32, f64)> = (0u32..).zip(logits.iter().map(|&l| f64::from(l))).collect();
    let p = normalised(&all, 1.0);
    for (mirostat, tolerance) in
        [(Mirostat::V1 { tau: 3.0, eta: 0.1 }, 0.3), (Mirostat::V2 { tau: 3.0, eta: 0.1 }, 0.3)]
    {
        let params = Params { mirostat, temperature: 1.0, seed: Some(11), ..Params::default() };
        let mut sampler = Sampler::new(&params, logits.len()).expect("good parameters");
        let mut surprise = 0.0;
        for i in 0..700 {
            let token = sampler.sample(&mut logits.clone(), None).expect("a token").token;
            // After settling: surprise within the cut distribution is what the algorithm controls.
            if i >= 200 {
                let kept: f64 = sampler.candidates.iter().map(|c| p[c.id as usize]).sum();
                surprise -= (p[token.0 as usize] / kept).log2() / 500.0;
            }
        }
        assert!((surprise - 3.0).abs() < tolerance, "{mirostat:?}: {surprise}");
    }
}

#[test]
fn buffers_do_not_grow_from_token_to_token() {
    let params = Params { top_k: 0, top_p: 0.99, logprobs: Some(5), repeat_penalty: 1.1, ..Params::default() };
    let mut sampler = Sampler::new(&params, 4000).expect("good parameters");
    let mut rng = Rng::new(8);
    let mut step = |sampler: &mut Sampler| {
        let token = sampler.sample(&mut logits(&mut rng, 4000, 3.0), None).expect("a token").token;
        sampler.accept(&[token]);
        (sampler.candidates.capacity(), sampler.touched.capacity())
    };
    for _ in 0..100 {
        step(&mut sampler);
    }
    let before = step(&mut sampler);
    for _ in 0..200 {
        step(&mut sampler);
    }
    assert_eq!(step(&mut sampler), before);
}
