//! Which candidates stay: top-k, typical, top-p, min-p.
//!
//! Every filter sees the distribution over what the one before it left (llama.cpp's way) and keeps at least one candidate.
//! Among equal logits the lower token id comes first, everywhere. With 129 280 tokens a full sort costs milliseconds, so what
//! needs an order selects its front part first and sorts only that.

use std::cmp::Ordering;

use super::vector;

/// A token that may still be chosen.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Candidate {
    pub(super) id: u32,
    pub(super) logit: f32,
    /// Unnormalised probability, or the sort key of a filter. Meaningful only between two lines of one function.
    pub(super) weight: f32,
}

impl Candidate {
    fn new(id: usize, logit: f32) -> Self {
        Candidate { id: id as u32, logit, weight: 0.0 }
    }
}

/// Most likely first, then the lower id.
pub(super) fn by_logit(a: &Candidate, b: &Candidate) -> Ordering {
    b.logit.total_cmp(&a.logit).then(a.id.cmp(&b.id))
}

fn by_weight_ascending(a: &Candidate, b: &Candidate) -> Ordering {
    a.weight.total_cmp(&b.weight).then(a.id.cmp(&b.id))
}

/// Every possible token, in the order of the vocabulary.
pub(super) fn all(logits: &[f32], into: &mut Vec<Candidate>) {
    into.clear();
    let possible = |(id, &logit): (usize, &f32)| (logit > f32::NEG_INFINITY).then(|| Candidate::new(id, logit));
    into.extend(logits.iter().enumerate().filter_map(possible));
}

/// The `k` most likely tokens, most likely first.
///
/// One pass: candidates above a threshold are collected, and when twice the wanted number is there the better half stays and
/// its worst logit is the new threshold. Stretches of the vocabulary without anything above the threshold cost one
/// vectorised maximum.
pub(super) fn top_k(logits: &[f32], k: usize, into: &mut Vec<Candidate>) {
    const STRETCH: usize = 64;
    into.clear();
    let room = k.saturating_mul(2).max(STRETCH * 2);
    let mut threshold = f32::NEG_INFINITY;
    for (i, stretch) in logits.chunks(STRETCH).enumerate() {
        // Among equals the lower id, seen first, stays.
        if vector::highest(stretch) <= threshold {
            continue;
        }
        let start = i * STRETCH;
        let above = |(j, &l): (usize, &f32)| (l > threshold).then(|| Candidate::new(start + j, l));
        into.extend(stretch.iter().enumerate().filter_map(above));
        if into.len() >= room {
            into.select_nth_unstable_by(k - 1, by_logit);
            into.truncate(k);
            threshold = into[k - 1].logit;
        }
    }
    front_by(into, k, by_logit);
    into.truncate(k);
}

/// Puts the first `n` in `order` to the front, sorted.
pub(super) fn front_by(candidates: &mut [Candidate], n: usize, order: fn(&Candidate, &Candidate) -> Ordering) {
    let n = n.min(candidates.len());
    if n < candidates.len() && n > 0 {
        candidates.select_nth_unstable_by(n - 1, order);
    }
    candidates[..n].sort_unstable_by(order);
}

/// Fills in `weight = exp((logit - max) * scale)`; gives their sum.
pub(super) fn softmax(candidates: &mut [Candidate], scale: f32) -> f64 {
    let max = candidates.iter().fold(f32::NEG_INFINITY, |m, c| m.max(c.logit));
    let mut sum = 0.0;
    for c in candidates {
        c.weight = vector::exp((c.logit - max) * scale);
        sum += f64::from(c.weight);
    }
    sum
}

/// Keeps the shortest front part in `order` whose `mass` reaches `wanted`; the front part ends up sorted.
fn keep_mass(
    candidates: &mut Vec<Candidate>,
    wanted: f64,
    order: fn(&Candidate, &Candidate) -> Ordering,
    mass: impl Fn(&Candidate) -> f64,
) {
    // Sorted so far, and its mass. Parts grow eightfold: usually the first one is enough.
    let (mut done, mut sum, mut part) = (0, 0.0, 128);
    while done < candidates.len() {
        let rest = &mut candidates[done..];
        let n = part.min(rest.len());
        front_by(rest, n, order);
        for (i, candidate) in rest[..n].iter().enumerate() {
            sum += mass(candidate);
            if sum >= wanted {
                candidates.truncate(done + i + 1);
                return;
            }
        }
        done += n;
        part *= 8;
    }
}

/// Locally typical sampling (Meister et al., 2022, arXiv:2202.00666): keeps the mass `p` of the tokens whose surprise is
/// nearest to the entropy. Leaves them in that order.
pub(super) fn typical(candidates: &mut Vec<Candidate>, p: f32) {
    if p >= 1.0 || candidates.is_empty() {
        return;
    }
    let sum = softmax(candidates, 1.0);
    let max = candidates.iter().fold(f32::NEG_INFINITY, |m, c| m.max(c.logit));
    let log_sum = sum.ln();
    let surprise = |logit: f32| log_sum - f64::from(logit - max);
    let entropy: f64 = candidates.iter().map(|c| f64::from(c.weight) / sum * surprise(c.logit)).sum();
    for c in candidates.iter_mut() {
        c.weight = (surprise(c.logit) - entropy).abs() as f32;
    }
    keep_mass(candidates, f64::from(p), by_weight_ascending, |c| (-surprise(c.logit)).exp());
}

/// Keeps the most likely tokens whose mass reaches `p`, most likely first.
pub(super) fn top_p(candidates: &mut Vec<Candidate>, p: f32) {
    if p >= 1.0 || candidates.is_empty() {
        return;
    }
    let sum = softmax(candidates, 1.0);
    keep_mass(candidates, f64::from(p) * sum, by_logit, |c| f64::from(c.weight));
}

/// Keeps tokens at least `p` times as likely as the most likely one.
pub(super) fn min_p(candidates: &mut Vec<Candidate>, p: f32) {
    if p <= 0.0 {
        return;
    }
    let max = candidates.iter().fold(f32::NEG_INFINITY, |m, c| m.max(c.logit));
    let least = max + p.min(1.0).ln();
    candidates.retain(|c| c.logit >= least);
}
