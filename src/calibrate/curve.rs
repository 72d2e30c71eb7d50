//! What a layer keeps and loses under each setting of the rule `margin`, from its trace.

use super::trace::{LayerNorms, LayerTrace};
use crate::engine::routing::{LayerRule, Policy};

/// Exponents of the renormalisation that are tried.
const RHOS: [f64; 3] = [0.0, 0.5, 1.0];

/// Thresholds that are tried for each weight of the margin.
const THRESHOLDS: usize = 64;

/// Weights of the margin that are tried, in parts of what makes it as wide as the logarithm of shares.
const BETAS: [f64; 6] = [0.0, 0.25, 0.5, 1.0, 2.0, 4.0];

/// Beyond any value of a rule: what is larger cannot be written as a threshold.
const WIDEST: f64 = 1e3;

/// How kept weights are scaled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Renorm {
    /// To the sum of all: rho 1, alpha 1.
    Restored,
    /// By the exponent and the factor that lose least.
    Fitted,
}

/// One setting of a layer's rule.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Point {
    pub theta: f64,
    pub beta: f64,
    pub rho: f64,
    pub alpha: f64,
    /// Experts of a token.
    pub mean_k: f64,
    /// Mean of |y - y_kept|^2 / |y|^2, y the sum of the routed experts.
    pub error: f64,
}

impl Point {
    pub fn rule(&self, k_min: usize, n_used: usize) -> LayerRule {
        LayerRule {
            k_min: k_min as u32,
            k_max: n_used as u32,
            theta: self.theta as f32,
            beta: self.beta as f32,
            rho: self.rho as f32,
            alpha: self.alpha as f32,
        }
    }
}

/// The experts of one token in the order in which rules look at them: by share, the largest first.
pub(super) fn order(trace: &LayerTrace, token: usize, norms: Option<&LayerNorms>, out: &mut Vec<(usize, f64)>) {
    let slots = token * trace.n_used..(token + 1) * trace.n_used;
    let experts = trace.ids[slots.clone()].iter().zip(&trace.weights[slots]).enumerate();
    out.clear();
    out.extend(experts.map(|(slot, (&id, &weight))| {
        let norm = norms.and_then(|norms| norms.mean.get(usize::try_from(id).ok()?)).copied().unwrap_or(1.0);
        (slot, f64::from(weight) * f64::from(norm))
    }));
    // Stable: equal ones stay in the order of selection.
    out.sort_by(|a, b| b.1.total_cmp(&a.1));
}

/// The threshold up to which each expert of a token is kept, in the order of [`order`].
fn values(policy: Policy, beta: f64, margins: &[f32], order: &[(usize, f64)], out: &mut Vec<f64>) {
    let first = order[0].1;
    let mut lowest = f64::INFINITY;
    out.clear();
    out.extend(order.iter().map(|&(slot, share)| {
        let value = match policy {
            Policy::Margin => (share / first).ln() + if beta == 0.0 { 0.0 } else { beta * f64::from(margins[slot]) },
            _ => share / first,
        };
        // Kept are prefixes: an expert behind a dropped one is dropped. Shares may be 0 of 0.
        lowest = lowest.min(if value.is_nan() { -WIDEST } else { value.clamp(-WIDEST, WIDEST) });
        lowest
    }));
}

/// How many experts a threshold keeps, without looking at their outputs.
pub struct Kept {
    n_tokens: usize,
    k_min: usize,
    /// `[n_tokens, n_used - k_min]`
    values: Vec<f32>,
}

impl Kept {
    /// Under `policy` with this weight of the margin; without `norms` all experts are alike and none is protected.
    pub fn new(trace: &LayerTrace, norms: Option<&LayerNorms>, policy: Policy, beta: f64, k_min: usize) -> Kept {
        let (mut ordered, mut value) = (Vec::new(), Vec::new());
        let mut kept = Kept { n_tokens: trace.n_tokens(), k_min, values: Vec::new() };
        for token in 0..trace.n_tokens() {
            let slots = token * trace.n_used..(token + 1) * trace.n_used;
            order(trace, token, norms, &mut ordered);
            values(policy, beta, &trace.margins[slots.clone()], &ordered, &mut value);
            kept.values.extend(ordered.iter().zip(&value).skip(k_min).map(|((slot, _), value)| {
                match is_protected(norms, trace.ids[slots.start + slot]) {
                    true => f32::INFINITY,
                    false => *value as f32,
                }
            }));
        }
        kept
    }

    /// Mean number of experts of a token.
    pub fn mean(&self, theta: f64) -> f64 {
        let beyond = self.values.iter().filter(|value| f64::from(**value) >= theta).count();
        self.k_min as f64 + beyond as f64 / self.n_tokens.max(1) as f64
    }
}

fn is_protected(norms: Option<&LayerNorms>, id: i32) -> bool {
    usize::try_from(id).is_ok_and(|id| norms.is_some_and(|norms| norms.protected.get(id).is_some_and(|p| *p)))
}

/// What one token keeps and loses when its first experts are kept.
#[derive(Clone, Copy, Debug, Default)]
struct Cost {
    kept: u32,
    dropped: bool,
    /// `<y, c y_kept> / |y|^2` and `|c y_kept|^2 / |y|^2` for each exponent of the factor c.
    cross: [f64; RHOS.len()],
    square: [f64; RHOS.len()],
}

impl Cost {
    /// Of the first `n` of `order` and of protected experts behind them.
    fn of(trace: &LayerTrace, norms: Option<&LayerNorms>, token: usize, order: &[(usize, f64)], n: usize) -> Cost {
        let slots = token * trace.n_used;
        let is_kept = |(rank, slot): (usize, usize)| rank < n || is_protected(norms, trace.ids[slots + slot]);
        let kept: Vec<usize> =
            order.iter().enumerate().filter_map(|(rank, &(slot, _))| is_kept((rank, slot)).then_some(slot)).collect();
        if kept.len() == trace.n_used {
            return Cost { kept: kept.len() as u32, ..Cost::default() };
        }
        let weight = |slot: usize| f64::from(trace.weights[slots + slot]);
        let part = kept.iter().map(|&slot| weight(slot)).sum::<f64>() / (0..trace.n_used).map(weight).sum::<f64>();
        let sum = |left: &[usize], right: &[usize]| -> f64 {
            left.iter().flat_map(|&i| right.iter().map(move |&j| trace.product(token, i, j))).sum()
        };
        let all: Vec<usize> = (0..trace.n_used).collect();
        let (whole, cross, square) = (sum(&all, &all), sum(&kept, &all), sum(&kept, &kept));
        // Experts that give nothing lose nothing.
        let scale = if whole > 0.0 { 1.0 / whole } else { 0.0 };
        let factors = RHOS.map(|rho| if part > 0.0 { part.powf(-rho) } else { 1.0 });
        Cost {
            kept: kept.len() as u32,
            dropped: whole > 0.0,
            cross: factors.map(|c| c * cross * scale),
            square: factors.map(|c| c * c * square * scale),
        }
    }
}

/// Sums over tokens, of which each is at some number of experts.
#[derive(Default)]
struct Sums {
    kept: f64,
    dropped: f64,
    cross: [f64; RHOS.len()],
    square: [f64; RHOS.len()],
}

impl Sums {
    fn add(&mut self, cost: &Cost, sign: f64) {
        self.kept += sign * f64::from(cost.kept);
        self.dropped += if cost.dropped { sign } else { 0.0 };
        for i in 0..RHOS.len() {
            self.cross[i] += sign * cost.cross[i];
            self.square[i] += sign * cost.square[i];
        }
    }

    /// The exponent and factor of `renorm`, and the sum of errors with them.
    fn best(&self, renorm: Renorm) -> (f64, f64, f64) {
        let error = |i: usize, alpha: f64| self.dropped - 2.0 * alpha * self.cross[i] + alpha * alpha * self.square[i];
        let restored = RHOS.len() - 1;
        // What is left of sums that went up and down again is no error.
        if self.dropped == 0.0 {
            return (RHOS[restored], 1.0, 0.0);
        }
        let mut best = (RHOS[restored], 1.0, error(restored, 1.0));
        for (i, &rho) in RHOS.iter().enumerate() {
            // Where the derivative by alpha is 0.
            let alpha = self.cross[i] / self.square[i];
            if renorm == Renorm::Fitted && alpha.is_finite() && alpha > 0.0 && error(i, alpha) < best.2 {
                best = (rho, alpha, error(i, alpha));
            }
        }
        (best.0, best.1, best.2.max(0.0))
    }
}

/// The error when every token keeps `k` experts, the largest, and their weights are restored.
pub fn fixed_error(trace: &LayerTrace, k: usize) -> f64 {
    let mut sums = Sums::default();
    let mut ordered = Vec::new();
    for token in 0..trace.n_tokens() {
        order(trace, token, None, &mut ordered);
        sums.add(&Cost::of(trace, None, token, &ordered, k), 1.0);
    }
    sums.best(Renorm::Restored).2 / trace.n_tokens().max(1) as f64
}

/// The settings of a layer that are worth looking at, from `k_min` experts for every token to all.
pub fn points(trace: &LayerTrace, norms: &LayerNorms, k_min: usize, renorm: Renorm) -> Vec<Point> {
    let (n_tokens, n_used) = (trace.n_tokens(), trace.n_used);
    let n_counts = n_used - k_min + 1;
    let mut orders = Vec::with_capacity(n_tokens);
    let mut costs = Vec::with_capacity(n_tokens * n_counts);
    for token in 0..n_tokens {
        let mut ordered = Vec::new();
        order(trace, token, Some(norms), &mut ordered);
        costs.extend((k_min..=n_used).map(|n| Cost::of(trace, Some(norms), token, &ordered, n)));
        orders.push(ordered);
    }
    let margins = |token: usize| &trace.margins[token * n_used..(token + 1) * n_used];
    let unit = widths(trace, &orders, k_min);
    let betas: &[f64] = if unit > 0.0 { &BETAS } else { &BETAS[..1] };

    let mut points = Vec::new();
    for beta in betas.iter().map(|beta| beta * unit) {
        // One event for each expert beyond `k_min`: at which threshold it is kept. Those of a token are in their order.
        let mut events: Vec<(f64, u32)> = Vec::with_capacity(n_tokens * (n_counts - 1));
        let mut value = Vec::new();
        for (token, ordered) in orders.iter().enumerate() {
            values(Policy::Margin, beta, margins(token), ordered, &mut value);
            events.extend(value[k_min..].iter().map(|&value| (value, token as u32)));
        }
        events.sort_by(|a, b| b.0.total_cmp(&a.0));
        let mut at = vec![0_usize; n_tokens];
        let mut sums = Sums::default();
        (0..n_tokens).for_each(|token| sums.add(&costs[token * n_counts], 1.0));
        let mut point = |theta: f64, sums: &Sums| {
            let (rho, alpha, error) = sums.best(renorm);
            let n = n_tokens.max(1) as f64;
            points.push(Point { theta, beta, rho, alpha, mean_k: sums.kept / n, error: error / n });
        };
        point(events.first().map_or(0.0, |event| event.0 + 1.0), &sums);
        let stride = events.len().div_ceil(THRESHOLDS).max(1);
        let mut next = stride;
        for (index, &(value, token)) in events.iter().enumerate() {
            let token = token as usize;
            sums.add(&costs[token * n_counts + at[token]], -1.0);
            at[token] += 1;
            sums.add(&costs[token * n_counts + at[token]], 1.0);
            let following = events.get(index + 1).map_or(value - 1.0, |event| event.0);
            // Between two events, so that rounding does not decide; experts with the same value are kept together.
            if following < value && (index + 1 >= next || index + 1 == events.len()) {
                point((value + following) / 2.0, &sums);
                next = index + 1 + stride;
            }
        }
    }
    points
}

/// How much wider the logarithm of shares is spread than margins, of the experts that may be dropped; 0 when there are no margins.
fn widths(trace: &LayerTrace, orders: &[Vec<(usize, f64)>], k_min: usize) -> f64 {
    let mut shares = Spread::default();
    let mut margins = Spread::default();
    for (token, ordered) in orders.iter().enumerate() {
        for &(slot, share) in &ordered[k_min..] {
            let margin = f64::from(trace.margins[token * trace.n_used + slot]);
            let log = (share / ordered[0].1).ln();
            if log.is_finite() && margin.is_finite() {
                shares.add(log);
                margins.add(margin);
            }
        }
    }
    let unit = shares.deviation() / margins.deviation();
    if unit.is_finite() && unit < WIDEST { unit } else { 0.0 }
}

/// Welford's update of a deviation.
#[derive(Default)]
struct Spread {
    n: f64,
    mean: f64,
    squares: f64,
}

impl Spread {
    fn add(&mut self, value: f64) {
        self.n += 1.0;
        let delta = value - self.mean;
        self.mean += delta / self.n;
        self.squares += delta * (value - self.mean);
    }

    fn deviation(&self) -> f64 {
        (self.squares / self.n).sqrt()
    }
}

#[cfg(test)]
mod tests {
    use super::super::trace::tests::random;
    use super::*;
    use crate::eval::bootstrap::Random;
    use crate::kernels::{MoeRoute, Routing, Version, moe_route};

    const N_USED: usize = 5;
    const N_EXPERT: usize = 12;

    fn with_protected() -> (LayerTrace, LayerNorms, Vec<Vec<Vec<f64>>>) {
        let (trace, outputs) = random(&mut Random::new(3), 200, N_USED, N_EXPERT, 7);
        let mut norms = trace.norms(N_EXPERT);
        norms.protected[4] = true;
        (trace, norms, outputs)
    }

    /// The error of a setting, from the outputs themselves.
    fn brute(
        trace: &LayerTrace,
        norms: &LayerNorms,
        outputs: &[Vec<Vec<f64>>],
        point: &Point,
        k_min: usize,
    ) -> (f64, f64) {
        let (mut kept_sum, mut error_sum) = (0.0, 0.0);
        for (token, weighted) in outputs.iter().enumerate() {
            let slots = token * N_USED..(token + 1) * N_USED;
            let (ids, p) = (&trace.ids[slots.clone()], &trace.weights[slots.clone()]);
            let share = |slot: usize| f64::from(p[slot]) * f64::from(norms.mean[ids[slot] as usize]);
            let mut order: Vec<usize> = (0..N_USED).collect();
            order.sort_by(|&a, &b| share(b).total_cmp(&share(a)));
            let holds = |slot: usize| {
                (share(slot) / share(order[0])).ln() + point.beta * f64::from(trace.margins[slots.start + slot])
                    >= point.theta
            };
            let prefix = order.iter().take_while(|slot| holds(**slot)).count().max(k_min);
            let kept: Vec<usize> = (0..N_USED)
                .filter(|slot| order[..prefix].contains(slot) || norms.protected[ids[*slot] as usize])
                .collect();
            kept_sum += kept.len() as f64;
            if kept.len() == N_USED {
                continue;
            }
            let part =
                kept.iter().map(|&slot| f64::from(p[slot])).sum::<f64>() / p.iter().map(|&p| f64::from(p)).sum::<f64>();
            let factor = part.powf(-point.rho) * point.alpha;
            let channel = |c: usize, slots: &[usize]| slots.iter().map(|&slot| weighted[slot][c]).sum::<f64>();
            let all: Vec<usize> = (0..N_USED).collect();
            let width = weighted[0].len();
            let lost: f64 = (0..width).map(|c| (channel(c, &all) - factor * channel(c, &kept)).powi(2)).sum();
            error_sum += lost / (0..width).map(|c| channel(c, &all).powi(2)).sum::<f64>();
        }
        (kept_sum / outputs.len() as f64, error_sum / outputs.len() as f64)
    }

    #[test]
    fn errors_from_products_are_those_of_the_outputs() {
        let (trace, norms, outputs) = with_protected();
        for renorm in [Renorm::Restored, Renorm::Fitted] {
            let points = points(&trace, &norms, 2, renorm);
            assert!(points.len() > 100, "{}", points.len());
            for point in points.iter().step_by(5) {
                let (kept, error) = brute(&trace, &norms, &outputs, point, 2);
                assert!((kept - point.mean_k).abs() < 1e-9, "{point:?}: {kept}");
                assert!((error - point.error).abs() < 1e-4 * error.max(1.0), "{point:?}: {error}");
                assert!(renorm == Renorm::Fitted || (point.rho, point.alpha) == (1.0, 1.0));
            }
        }
    }

    #[test]
    fn a_fitted_factor_is_the_best_one() {
        let (trace, norms, outputs) = with_protected();
        let fitted = points(&trace, &norms, 2, Renorm::Fitted);
        for point in fitted.iter().filter(|point| point.error > 0.0).step_by(17) {
            for step in [0.98, 1.02] {
                let moved = Point { alpha: point.alpha * step, ..*point };
                assert!(brute(&trace, &norms, &outputs, &moved, 2).1 > point.error, "{point:?}");
            }
        }
        let restored = points(&trace, &norms, 2, Renorm::Restored);
        assert!(fitted.iter().zip(&restored).all(|(a, b)| a.theta == b.theta && a.error <= b.error + 1e-12));
    }

    #[test]
    fn settings_reach_from_the_fewest_experts_to_all() {
        let (trace, mut norms, _) = with_protected();
        norms.protected.fill(false);
        let points = points(&trace, &norms, 2, Renorm::Restored);
        let ks = || points.iter().map(|point| point.mean_k);
        assert_eq!((ks().fold(9.0, f64::min), ks().fold(0.0, f64::max)), (2.0, 5.0));
        assert!(points.iter().filter(|point| point.mean_k == 5.0).all(|point| point.error == 0.0));
        for point in points.iter().step_by(7) {
            let kept = Kept::new(&trace, Some(&norms), Policy::Margin, point.beta, 2).mean(point.theta);
            assert!((kept - point.mean_k).abs() < 1e-9, "{point:?}: {kept}");
        }
    }

    /// What is counted here is what the kernel keeps.
    #[test]
    fn the_kernel_keeps_as_many() {
        let mut random = Random::new(9);
        let n_tokens = 300;
        let logits: Vec<f32> =
            (0..n_tokens * N_EXPERT).map(|_| super::super::trace::tests::number(&mut random) as f32).collect();
        let bias: Vec<f32> = (0..N_EXPERT).map(|_| random.below(100) as f32 / 500.0).collect();
        let norm: Vec<f32> = (0..N_EXPERT).map(|_| 0.5 + random.below(100) as f32 / 100.0).collect();
        let run = |routing: &[Option<Routing>]| {
            let input = MoeRoute {
                n_expert: N_EXPERT,
                n_used: N_USED,
                scale: 1.5,
                logits: &logits,
                bias: Some(&bias),
                table: None,
                routing,
            };
            moe_route(Version::Reference, &input, 1)
        };
        let all = run(&[]);
        let score = |token: usize, expert: usize| {
            let logit = f64::from(logits[token * N_EXPERT + expert]);
            logit.exp().ln_1p().sqrt() + f64::from(bias[expert])
        };
        let mut trace = LayerTrace::new(0, N_USED);
        for token in 0..n_tokens {
            let slots = token * N_USED..(token + 1) * N_USED;
            let ids = all.ids[slots.clone()].to_vec();
            let rest = (0..N_EXPERT).filter(|&expert| !ids.contains(&(expert as i32)));
            let best = rest.map(|expert| score(token, expert)).fold(f64::MIN, f64::max);
            let margins = ids.iter().map(|&id| (score(token, id as usize) - best) as f32).collect();
            let weights = all.weights[slots].to_vec();
            trace.add(&ExpertTrace { layer: 0, ids, weights, margins, gram: vec![1.0; N_USED * N_USED] });
        }
        let norms = LayerNorms { mean: norm.clone(), protected: (0..N_EXPERT).map(|expert| expert == 3).collect() };
        let protected: Vec<u8> = norms.protected.iter().map(|p| u8::from(*p)).collect();
        for (policy, beta) in [(Policy::Rel, 0.0), (Policy::Margin, 0.0), (Policy::Margin, 0.7)] {
            let given = if policy == Policy::Rel { None } else { Some(&norms) };
            let kept = Kept::new(&trace, given, policy, beta, 2);
            for theta in [-1.0, -0.4, -0.1, 0.0, 0.1, 0.3, 0.6, 0.8, 0.95] {
                let routing = Routing {
                    policy,
                    k_min: 2,
                    k_max: N_USED,
                    route_hash: false,
                    threshold: theta as f32,
                    beta: beta as f32,
                    rho: 1.0,
                    alpha: 1.0,
                    expert_norm: given.map(|_| &norm[..]),
                    protected: given.map(|_| &protected[..]),
                };
                let routed = run(&vec![Some(routing); n_tokens]);
                let sum: i32 = routed.n_active.iter().sum();
                let mean = kept.mean(f64::from(theta as f32));
                assert!((mean - f64::from(sum) / n_tokens as f64).abs() < 0.01, "{policy:?} {beta} {theta}: {mean}");
            }
        }
    }

    use crate::engine::ExpertTrace;
}
