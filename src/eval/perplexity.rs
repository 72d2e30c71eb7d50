//! Perplexity: `exp` of the mean negative log-likelihood of the tokens that came.

use serde::Serialize;

use super::bootstrap::{self, Block};

/// `log(sum(exp(row)))` in F64; not finite when a number of the row is NaN or positive infinity, or when all are negative
/// infinity.
pub fn log_sum_exp(row: &[f32]) -> f64 {
    let max = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    if !max.is_finite() {
        return f64::NAN;
    }
    let max = f64::from(max);
    // `f32::max` passes over NaN, the sum does not.
    max + row.iter().map(|&logit| (f64::from(logit) - max).exp()).sum::<f64>().ln()
}

/// Negative log-likelihoods, window by window.
#[derive(Clone, Debug, Default)]
pub struct Losses {
    blocks: Vec<Block>,
}

impl Losses {
    pub fn begin_window(&mut self) {
        self.blocks.push(Block::default());
    }

    /// One token's negative log-likelihood, in nats.
    pub fn add(&mut self, loss: f64) {
        if self.blocks.is_empty() {
            self.begin_window();
        }
        if let Some(block) = self.blocks.last_mut() {
            block.sum += loss;
            block.tokens += 1;
        }
    }

    /// `None` of no tokens.
    pub fn summary(&self) -> Option<Perplexity> {
        let loss = bootstrap::mean(&self.blocks)?;
        let loss_error = bootstrap::standard_error(&self.blocks);
        let value = loss.exp();
        // To first order, d exp(x) = exp(x) dx.
        Some(Perplexity { value, standard_error: loss_error.map(|error| value * error), loss, loss_error })
    }
}

/// A perplexity with its standard error, `null` for a text of one window.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Perplexity {
    pub value: f64,
    pub standard_error: Option<f64>,
    /// Mean negative log-likelihood of a token, in nats.
    pub loss: f64,
    pub loss_error: Option<f64>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_logarithm_of_the_sum_survives_large_numbers() {
        assert!((log_sum_exp(&[0.0, 0.0]) - 2_f64.ln()).abs() < 1e-15);
        assert!((log_sum_exp(&[1000.0, 1000.0, f32::NEG_INFINITY]) - (1000.0 + 2_f64.ln())).abs() < 1e-12);
        for bad in [&[f32::NAN, 1.0][..], &[f32::INFINITY, 1.0], &[f32::NEG_INFINITY], &[]] {
            assert!(!log_sum_exp(bad).is_finite(), "{bad:?}");
        }
    }

    #[test]
    fn equal_odds_of_n_are_a_perplexity_of_n() {
        let mut losses = Losses::default();
        for _ in 0..3 {
            losses.begin_window();
            (0..5).for_each(|_| losses.add(log_sum_exp(&[0.25; 8]) - 0.25));
        }
        let perplexity = losses.summary().unwrap();
        assert!((perplexity.value - 8.0).abs() < 1e-12, "{perplexity:?}");
        assert!(perplexity.standard_error.unwrap() < 1e-9);
        assert!(Losses::default().summary().is_none());
    }
}
