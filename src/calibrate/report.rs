//! What calibration found, as it is printed by `--json`.

use serde::Serialize;

use crate::eval::bootstrap::{self, Block};
use crate::eval::divergence::Divergence;
use crate::eval::perplexity::Perplexity;

use super::measure::{Compared, Measured};

#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Report {
    pub schema: u32,
    pub model: String,
    pub architecture: String,
    pub engine: String,
    /// Element type of cached rows.
    pub kv: &'static str,
    pub model_fingerprint: String,
    /// Of a layer, and of a token.
    pub experts: usize,
    pub experts_used: usize,
    /// Least experts that a profile keeps.
    pub experts_fewest: usize,
    /// Layers that follow a profile: those that choose by score.
    pub layers: Vec<usize>,
    pub text: Text,
    /// One entry for each of `layers`.
    pub sensitivity: Vec<Sensitivity>,
    /// All experts, on the held-out windows.
    pub off: Perplexity,
    /// The same in steps of another size: what is no larger says nothing.
    pub noise: Option<Divergence>,
    pub profiles: Vec<Tried>,
    /// Policies that need no calibration, on the same windows.
    pub others: Vec<Other>,
}

/// The text and its two parts.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Text {
    pub source: String,
    /// Of its bytes.
    pub sha256: String,
    /// Of the whole text, the token that every window begins with not counted.
    pub tokens: u64,
    pub window_tokens: usize,
    pub calibration: Part,
    pub heldout: Part,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Part {
    pub windows: usize,
    pub tokens: u64,
    /// Tokens whose prediction is measured.
    pub scored: u64,
}

/// What a layer loses alone.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Sensitivity {
    pub layer: usize,
    /// Divergence when it alone keeps fewer experts.
    pub kl: f64,
    /// Its own error then: mean |y - y_kept|^2 / |y|^2.
    pub error: f64,
    /// Divergence for each unit of error, smoothed over the neighbours: its weight when experts are shared out.
    pub weight: f64,
}

/// A profile and how good it was on the held-out windows.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Tried {
    pub name: String,
    /// Experts of a token that were aimed at.
    pub target: f64,
    /// Whether it lost less than a fixed number of experts. One that did not is not written.
    pub accepted: bool,
    pub mean_experts: f64,
    pub layers: Vec<Layer>,
    /// Parts of all tokens, over `layers`, that kept the fewest and all.
    pub share_fewest: f64,
    pub share_all: f64,
    pub divergence: Divergence,
    pub perplexity: Perplexity,
    pub perplexity_ratio: f64,
    /// Rank correlation of a token's experts with how badly its successor is predicted; `null` when all have as many.
    pub spearman_loss: Option<f64>,
    /// A fixed number of experts, as many on average: between two whole numbers both are mixed.
    pub against_topk: Baseline,
    /// The rule `rel` with the threshold that keeps as many.
    pub against_rel: Baseline,
}

/// One layer of a profile.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Layer {
    pub layer: usize,
    pub mean_experts: f64,
    pub theta: f32,
    pub beta: f32,
    pub rho: f32,
    pub alpha: f32,
    pub protected: usize,
}

/// What a profile is compared with.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Baseline {
    pub routing: String,
    pub mean_experts: f64,
    pub mean_kl: f64,
    /// Divergence of the profile minus its own, over the same windows: below 0 the profile is better.
    pub difference: f64,
    pub difference_error: Option<f64>,
    pub same_top: f64,
    pub perplexity: f64,
}

/// A policy without a profile.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Other {
    pub routing: String,
    pub mean_experts: f64,
    pub divergence: Divergence,
    pub perplexity: Perplexity,
    pub perplexity_ratio: f64,
}

/// Several policies whose windows are mixed, each with its part.
pub(super) struct Mix<'a> {
    pub(super) routing: String,
    pub(super) mean_experts: f64,
    /// `None`: all experts, which diverge by nothing.
    pub(super) parts: Vec<(f64, Option<&'a Measured>)>,
}

impl Mix<'_> {
    /// `of` against the mixture. `None` of no tokens.
    pub(super) fn against(&self, of: &Measured, compared: &Compared) -> Option<Baseline> {
        let off = compared.off.summary()?;
        let (mut kl, mut same_top, mut loss) = (0.0, 0.0, 0.0);
        let mut differences: Vec<Block> = of.divergences.by_window().to_vec();
        for (part, measured) in &self.parts {
            let Some(measured) = measured else {
                same_top += part;
                loss += part * off.loss;
                continue;
            };
            let divergence = measured.divergences.summary()?;
            kl += part * divergence.mean_kl;
            same_top += part * divergence.same_top;
            loss += part * measured.losses.summary()?.loss;
            for (difference, block) in differences.iter_mut().zip(measured.divergences.by_window()) {
                difference.sum -= part * block.sum;
            }
        }
        Some(Baseline {
            routing: self.routing.clone(),
            mean_experts: self.mean_experts,
            mean_kl: kl,
            difference: bootstrap::mean(&differences)?,
            difference_error: bootstrap::standard_error(&differences),
            same_top,
            perplexity: loss.exp(),
        })
    }
}

/// Fixed numbers of experts mixed to `mean` ones: the two whole numbers around it. `fixed` has those from `fewest` on.
pub(super) fn fixed<'a>(mean: f64, n_used: usize, fewest: usize, fixed: &'a [Measured]) -> Mix<'a> {
    let mean = mean.clamp(fewest as f64, n_used as f64);
    let below = (mean.floor() as usize).clamp(fewest, n_used);
    let part = mean - below as f64;
    let of = |k: usize| fixed.get(k - fewest);
    if part == 0.0 || below == n_used {
        return Mix { routing: format!("topk:{below}"), mean_experts: mean, parts: vec![(1.0, of(below))] };
    }
    let above = if below + 1 == n_used { "off".to_owned() } else { format!("topk:{}", below + 1) };
    Mix {
        routing: format!("topk:{below}, {above}"),
        mean_experts: mean,
        parts: vec![(1.0 - part, of(below)), (part, of(below + 1))],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn measured(windows: &[f32]) -> Measured {
        let mut measured = Measured::default();
        for &logit in windows {
            measured.divergences.begin_window();
            measured.losses.begin_window();
            measured.divergences.add(&[0.0, 0.0], &[logit, 0.0]);
            measured.losses.add(f64::from(logit));
        }
        measured
    }

    #[test]
    fn numbers_between_two_whole_ones_are_mixed() {
        let fixed_numbers = [measured(&[2.0, 3.0]), measured(&[1.0, 1.5]), measured(&[0.5, 0.5])];
        let mix = fixed(3.25, 5, 2, &fixed_numbers);
        assert_eq!((mix.routing.as_str(), mix.parts[0].0, mix.parts[1].0), ("topk:3, topk:4", 0.75, 0.25));
        let kl = |measured: &Measured| measured.divergences.summary().unwrap().mean_kl;
        let of = measured(&[0.0, 0.0]);
        let compared =
            Compared { off: measured(&[0.1, 0.1]).losses, noise: None, policies: Vec::new(), off_losses: Vec::new() };
        let found = mix.against(&of, &compared).unwrap();
        let expected = 0.75 * kl(&fixed_numbers[1]) + 0.25 * kl(&fixed_numbers[2]);
        assert!((found.mean_kl - expected).abs() < 1e-12 && (found.difference + expected).abs() < 1e-12, "{found:?}");
        assert!((found.perplexity - (0.75_f64 * 1.25 + 0.25 * 0.5).exp()).abs() < 1e-12);
        assert!(found.difference_error.unwrap() > 0.0);

        // Beyond the largest number that drops anything, all experts are mixed in.
        let mix = fixed(4.5, 5, 2, &fixed_numbers);
        assert!(mix.parts[1].1.is_none() && mix.routing == "topk:4, off");
        let found = mix.against(&of, &compared).unwrap();
        assert!((found.mean_kl - kl(&fixed_numbers[2]) / 2.0).abs() < 1e-12);
        assert!((found.perplexity - (0.5_f64 * 0.5 + 0.5 * f64::from(0.1_f32)).exp()).abs() < 1e-12);
        assert_eq!(fixed(4.0, 5, 2, &fixed_numbers).routing, "topk:4");
        assert_eq!(fixed(1.0, 5, 2, &fixed_numbers).routing, "topk:2");
    }
}
