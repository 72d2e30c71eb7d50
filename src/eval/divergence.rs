//! How far one next-token distribution is from another: Kullback-Leibler divergence and agreement of the most likely token.

use serde::Serialize;

use super::bootstrap::{self, Block};
use super::perplexity::log_sum_exp;

/// Divergence of softmax(`q`) from softmax(`p`) in nats: `sum(p_i * (log p_i - log q_i))`, summed in F64. What rounding makes
/// negative is 0. Infinite where `q` excludes what `p` allows.
pub fn kl(p: &[f32], q: &[f32]) -> f64 {
    let (p_sum, q_sum) = (log_sum_exp(p), log_sum_exp(q));
    let terms = p.iter().zip(q).map(|(&p, &q)| {
        let log_p = f64::from(p) - p_sum;
        let probability = log_p.exp();
        // 0 * log 0 is 0 here.
        if probability == 0.0 { 0.0 } else { probability * (log_p - (f64::from(q) - q_sum)) }
    });
    terms.sum::<f64>().max(0.0)
}

/// Index of the largest logit, the first of equals.
pub fn top(row: &[f32]) -> usize {
    row.iter().enumerate().fold((0, f32::NEG_INFINITY), |best, (i, &v)| if v > best.1 { (i, v) } else { best }).0
}

/// Pairs of rows, window by window.
#[derive(Clone, Debug, Default)]
pub struct Divergences {
    kl: Vec<Block>,
    same_top: Vec<Block>,
    /// Every token's, for the quantiles: 8 bytes a token beside the logits of a whole vocabulary.
    all: Vec<f64>,
}

impl Divergences {
    pub fn begin_window(&mut self) {
        self.kl.push(Block::default());
        self.same_top.push(Block::default());
    }

    /// One position: `p` says the reference, `q` what is compared with it.
    pub fn add(&mut self, p: &[f32], q: &[f32]) {
        if self.kl.is_empty() {
            self.begin_window();
        }
        let kl = kl(p, q);
        self.all.push(kl);
        let same = f64::from(u8::from(top(p) == top(q)));
        for (blocks, value) in [(&mut self.kl, kl), (&mut self.same_top, same)] {
            if let Some(block) = blocks.last_mut() {
                block.sum += value;
                block.tokens += 1;
            }
        }
    }

    /// Sums of the divergence, window by window.
    pub fn by_window(&self) -> &[Block] {
        &self.kl
    }

    /// `None` of no tokens.
    pub fn summary(&self) -> Option<Divergence> {
        let mut sorted = self.all.clone();
        sorted.sort_unstable_by(f64::total_cmp);
        Some(Divergence {
            tokens: self.all.len() as u64,
            mean_kl: bootstrap::mean(&self.kl)?,
            mean_kl_error: bootstrap::standard_error(&self.kl),
            p99_kl: quantile(&sorted, 0.99)?,
            max_kl: *sorted.last()?,
            same_top: bootstrap::mean(&self.same_top)?,
            same_top_error: bootstrap::standard_error(&self.same_top),
        })
    }
}

/// The smallest value that is not below a fraction of all (nearest rank); `None` of none.
fn quantile(sorted: &[f64], fraction: f64) -> Option<f64> {
    let rank = (fraction * sorted.len() as f64).ceil() as usize;
    sorted.get(rank.max(1) - 1).copied()
}

/// What differs between two computations of the same positions. Divergences in nats; errors are standard errors, `null` for a text of
/// one window.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Divergence {
    pub tokens: u64,
    pub mean_kl: f64,
    pub mean_kl_error: Option<f64>,
    pub p99_kl: f64,
    pub max_kl: f64,
    /// Share of positions whose most likely token is the same.
    pub same_top: f64,
    pub same_top_error: Option<f64>,
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Logits of these probabilities, off by a constant, which softmax takes away.
    fn logits(probabilities: &[f64], offset: f64) -> Vec<f32> {
        probabilities.iter().map(|p| (p.ln() + offset) as f32).collect()
    }

    #[test]
    fn divergence_is_that_of_the_formula() {
        // By hand: 0.5 ln(0.5/0.25) + 0.25 ln(0.25/0.25) + 0.25 ln(0.25/0.5) = 0.25 ln 2.
        let (p, q) = (logits(&[0.5, 0.25, 0.25], 3.0), logits(&[0.25, 0.25, 0.5], -7.0));
        let expected = 0.25 * 2_f64.ln();
        assert!((kl(&p, &q) - expected).abs() < 1e-6, "{} and {expected}", kl(&p, &q));
        // It is not symmetric: ln(1/0.9) against 0.9 ln 0.9/1 with an excluded rest.
        let (p, q) = (vec![0.0, f32::NEG_INFINITY], logits(&[0.9, 0.1], 0.0));
        assert!((kl(&p, &q) - (1.0 / 0.9_f64).ln()).abs() < 1e-6);
        assert_eq!(kl(&q, &p), f64::INFINITY);
    }

    #[test]
    fn equal_rows_do_not_diverge() {
        let row: Vec<f32> = (0..1000).map(|i| ((i * 37) % 101) as f32 * 0.1).collect();
        let shifted: Vec<f32> = row.iter().map(|x| x + 2.0).collect();
        assert_eq!(kl(&row, &row), 0.0);
        assert!(kl(&row, &shifted) < 1e-10, "{}", kl(&row, &shifted));
    }

    #[test]
    fn means_quantiles_and_agreement() {
        let mut divergences = Divergences::default();
        let sure = |token: usize| (0..4).map(|i| if i == token { 2.0 } else { 0.0 }).collect::<Vec<f32>>();
        // Of 200 positions 3 differ: more than 1 %, so the 99th percentile is theirs.
        for window in 0..2 {
            divergences.begin_window();
            for position in 0..100 {
                let differs = window == 0 && position < 3;
                divergences.add(&sure(1), &sure(if differs { 2 } else { 1 }));
            }
        }
        let one = kl(&sure(1), &sure(2));
        let summary = divergences.summary().unwrap();
        assert_eq!(summary.tokens, 200);
        assert!((summary.mean_kl - 3.0 * one / 200.0).abs() < 1e-12);
        assert_eq!((summary.p99_kl, summary.max_kl), (one, one));
        assert!((summary.same_top - 0.985).abs() < 1e-12);
        assert!(summary.mean_kl_error.unwrap() > 0.0);
        assert!(Divergences::default().summary().is_none());
    }

    #[test]
    fn quantiles_are_by_nearest_rank() {
        let sorted: Vec<f64> = (1..=100).map(f64::from).collect();
        assert_eq!(quantile(&sorted, 0.99), Some(99.0));
        assert_eq!(quantile(&sorted[..1], 0.99), Some(1.0));
        assert_eq!(quantile(&[], 0.99), None);
    }

    #[test]
    fn the_first_of_equals_is_on_top() {
        assert_eq!(top(&[1.0, 3.0, 3.0]), 1);
        assert_eq!(top(&[f32::NEG_INFINITY; 3]), 0);
    }
}
