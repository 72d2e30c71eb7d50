//! What routers chose, token by token, and what every chosen expert gave.
//!
//! From the products of a token's weighted expert outputs with each other the error that any choice among them makes is exact, so rules are searched
//! without running the model again.

use crate::engine::ExpertTrace;

/// An expert seen less often than this has the median norm of its layer.
const LEAST_SEEN: u32 = 8;

/// An expert whose largest output is so many times the layer's median norm is never dropped.
const OUTLIER: f64 = 20.0;

/// One layer over all traced tokens.
#[derive(Clone, Debug)]
pub struct LayerTrace {
    pub layer: usize,
    pub n_used: usize,
    /// `[n_tokens, n_used]`, in the order of selection, as are weights and margins.
    pub ids: Vec<i32>,
    /// p
    pub weights: Vec<f32>,
    pub margins: Vec<f32>,
    /// Lower triangles: `[n_tokens, n_used * (n_used + 1) / 2]`
    gram: Vec<f32>,
}

/// How large the outputs of a layer's experts are.
#[derive(Clone, Debug, PartialEq)]
pub struct LayerNorms {
    /// Mean norm of each expert's output, never 0.
    pub mean: Vec<f32>,
    /// Experts with outputs far beyond those of the others.
    pub protected: Vec<bool>,
}

impl LayerTrace {
    pub fn new(layer: usize, n_used: usize) -> LayerTrace {
        LayerTrace { layer, n_used, ids: Vec::new(), weights: Vec::new(), margins: Vec::new(), gram: Vec::new() }
    }

    /// Bytes of one token.
    pub fn token_bytes(n_used: usize) -> usize {
        4 * (3 * n_used + n_used * (n_used + 1) / 2)
    }

    pub fn n_tokens(&self) -> usize {
        self.ids.len() / self.n_used
    }

    /// Appends the tokens of a step that was computed without a policy.
    pub fn add(&mut self, step: &ExpertTrace) {
        self.ids.extend(&step.ids);
        self.weights.extend(&step.weights);
        self.margins.extend(&step.margins);
        for gram in step.gram.chunks(self.n_used * self.n_used) {
            for (i, row) in gram.chunks(self.n_used).enumerate() {
                self.gram.extend(&row[..=i]);
            }
        }
    }

    /// `<p_i E_i(x), p_j E_j(x)>` of a token.
    pub fn product(&self, token: usize, i: usize, j: usize) -> f64 {
        let (row, column) = (i.max(j), i.min(j));
        let triangle = self.n_used * (self.n_used + 1) / 2;
        self.gram[token * triangle + row * (row + 1) / 2 + column].into()
    }

    /// What calibration text says about the size of expert outputs.
    pub fn norms(&self, n_expert: usize) -> LayerNorms {
        let mut seen = vec![(0_u32, 0.0_f64, 0.0_f64); n_expert];
        for (index, (&id, &weight)) in self.ids.iter().zip(&self.weights).enumerate() {
            let (token, slot) = (index / self.n_used, index % self.n_used);
            let Some(expert) = usize::try_from(id).ok().and_then(|id| seen.get_mut(id)) else { continue };
            if weight > 0.0 {
                let norm = self.product(token, slot, slot).max(0.0).sqrt() / f64::from(weight);
                *expert = (expert.0 + 1, expert.1 + norm, expert.2.max(norm));
            }
        }
        let known = seen.iter().filter(|(n, ..)| *n >= LEAST_SEEN).map(|(n, sum, _)| sum / f64::from(*n));
        let mut known: Vec<f64> = known.collect();
        known.sort_unstable_by(f64::total_cmp);
        let median = known.get(known.len() / 2).copied().filter(|median| *median > 0.0);
        // Experts that give nothing at all have no sizes to compare.
        let Some(median) = median else {
            return LayerNorms { mean: vec![1.0; n_expert], protected: vec![false; n_expert] };
        };
        let mean = |(n, sum, _): &(u32, f64, f64)| {
            let mean = if *n >= LEAST_SEEN { sum / f64::from(*n) } else { median };
            mean.max(median * 1e-6) as f32
        };
        LayerNorms {
            mean: seen.iter().map(mean).collect(),
            protected: seen.iter().map(|(.., largest)| *largest > OUTLIER * median).collect(),
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::eval::bootstrap::Random;

    /// A number of mean 0 and about deviation 1.
    pub(in crate::calibrate) fn number(random: &mut Random) -> f64 {
        (0..3).map(|_| random.below(2_000_001) as f64 / 1e6 - 1.0).sum()
    }

    /// Tokens with random weights, margins and outputs of `width` channels; also the weighted outputs themselves, `[n_tokens][n_used][width]`.
    pub(in crate::calibrate) fn random(
        random: &mut Random,
        n_tokens: usize,
        n_used: usize,
        n_expert: usize,
        width: usize,
    ) -> (LayerTrace, Vec<Vec<Vec<f64>>>) {
        let mut step = ExpertTrace::default();
        let mut outputs = Vec::new();
        for _ in 0..n_tokens {
            let mut chosen: Vec<i32> = Vec::new();
            while chosen.len() < n_used {
                let id = random.below(n_expert) as i32;
                if !chosen.contains(&id) {
                    chosen.push(id);
                }
            }
            let raw: Vec<f64> = (0..n_used).map(|_| 0.2 + random.below(1000) as f64 / 1000.0).collect();
            let sum: f64 = raw.iter().sum();
            let weighted: Vec<Vec<f64>> = raw
                .iter()
                .zip(&chosen)
                .map(|(p, id)| (0..width).map(|_| 1.5 * p / sum * number(random) * f64::from(1 + id % 3)).collect())
                .collect();
            step.ids.extend(chosen);
            step.weights.extend(raw.iter().map(|p| (1.5 * p / sum) as f32));
            step.margins.extend((0..n_used).map(|_| random.below(1000) as f32 / 2000.0));
            for a in &weighted {
                step.gram.extend(weighted.iter().map(|b| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>() as f32));
            }
            outputs.push(weighted);
        }
        let mut trace = LayerTrace::new(0, n_used);
        trace.add(&step);
        (trace, outputs)
    }

    #[test]
    fn products_are_kept_once() {
        let (trace, outputs) = random(&mut Random::new(1), 5, 4, 9, 3);
        assert_eq!((trace.n_tokens(), trace.gram.len()), (5, 50));
        assert_eq!(trace.gram.len() * 4 + trace.ids.len() * 12, 5 * LayerTrace::token_bytes(4));
        for (token, weighted) in outputs.iter().enumerate() {
            for i in 0..4 {
                for j in 0..4 {
                    let expected: f64 = weighted[i].iter().zip(&weighted[j]).map(|(a, b)| a * b).sum();
                    assert!((trace.product(token, i, j) - expected).abs() < 1e-6);
                }
            }
        }
    }

    #[test]
    fn norms_are_means_and_rare_or_huge_experts_are_known() {
        // One expert a token, weight 0.5; outputs of norm 2, but expert 1 is seen once and expert 2 gives 100 one time.
        let mut trace = LayerTrace::new(0, 1);
        let mut add = |id: i32, norm: f32| {
            let gram = vec![(0.5 * norm).powi(2)];
            trace.add(&ExpertTrace { layer: 0, ids: vec![id], weights: vec![0.5], margins: vec![0.0], gram });
        };
        (0..20).for_each(|_| [0, 2, 3].iter().for_each(|&id| add(id, if id == 3 { 4.0 } else { 2.0 })));
        add(1, 7.0);
        add(2, 100.0);
        let norms = trace.norms(5);
        let two = (20.0 * 2.0 + 100.0) / 21.0;
        // The median of 2, 6.67 and 4.
        for (got, expected) in norms.mean.iter().zip([2.0, 4.0, two, 4.0, 4.0]) {
            assert!((got - expected).abs() < 1e-5, "{:?}", norms.mean);
        }
        assert_eq!(norms.protected, [false, false, true, false, false]);
    }

    #[test]
    fn experts_that_give_nothing_have_no_sizes() {
        let mut trace = LayerTrace::new(0, 1);
        for _ in 0..10 {
            trace.add(&ExpertTrace { layer: 0, ids: vec![0], weights: vec![1.0], margins: vec![0.0], gram: vec![0.0] });
        }
        assert_eq!(trace.norms(2), LayerNorms { mean: vec![1.0; 2], protected: vec![false; 2] });
    }
}
