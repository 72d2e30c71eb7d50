//! How many experts each layer gets.

use super::curve::Point;

/// Halvings of an interval; more change no digit.
const HALVINGS: usize = 80;

/// The setting of each layer that together keep `budget` experts on average, or as near as there are settings, and lose least: the sum over layers of
/// `weights` times error is minimal for what they keep. Every layer has settings.
///
/// One price of an expert holds in all layers (Lagrange); it is found by halving.
pub fn allocate(layers: &[Vec<Point>], weights: &[f64], budget: f64) -> Vec<Point> {
    let at = |price: f64| -> Vec<Point> {
        let best = |(points, weight): (&Vec<Point>, &f64)| {
            let cost = |point: &Point| weight * point.error + price * point.mean_k;
            // The fewest experts of equal ones, so that what is kept never grows with the price.
            let better = |a: &&Point, b: &&Point| cost(a).total_cmp(&cost(b)).then(a.mean_k.total_cmp(&b.mean_k));
            points.iter().min_by(better).copied()
        };
        layers.iter().zip(weights).filter_map(best).collect()
    };
    let mut low = 0.0;
    let mut high = f64::MIN_POSITIVE.max(weights.iter().copied().fold(0.0, f64::max) * 1e-9);
    while mean(&at(high)) > budget && high < 1e30 {
        low = high;
        high *= 4.0;
    }
    for _ in 0..HALVINGS {
        let middle = low + (high - low) / 2.0;
        if mean(&at(middle)) > budget { low = middle } else { high = middle }
    }
    let (more, fewer) = (at(low), at(high));
    if (mean(&more) - budget).abs() < (mean(&fewer) - budget).abs() { more } else { fewer }
}

/// Experts of a token, over all layers.
pub fn mean(points: &[Point]) -> f64 {
    points.iter().map(|point| point.mean_k).sum::<f64>() / points.len().max(1) as f64
}

/// Where a function that does not grow is `goal`, between `low` and `high`.
pub fn solve(low: f64, high: f64, goal: f64, falling: impl Fn(f64) -> f64) -> f64 {
    let (mut low, mut high) = (low, high);
    for _ in 0..HALVINGS {
        let middle = low + (high - low) / 2.0;
        if falling(middle) > goal { low = middle } else { high = middle }
    }
    low + (high - low) / 2.0
}

/// Each weight with a half of its neighbours', over their weights: one layer alone is measured with noise.
pub fn smoothed(weights: &[f64]) -> Vec<f64> {
    (0..weights.len())
        .map(|i| {
            let left = if i == 0 { None } else { weights.get(i - 1) };
            let (sum, parts) = [left, weights.get(i + 1)]
                .into_iter()
                .flatten()
                .fold((weights[i], 1.0), |(sum, parts), weight| (sum + weight / 2.0, parts + 0.5));
            sum / parts
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `error = scale * (6 - k)^2`, for k of 2 to 6.
    fn layer(scale: f64) -> Vec<Point> {
        let point = |step: i32| {
            let mean_k = 2.0 + f64::from(step) / 100.0;
            let error = scale * (6.0 - mean_k).powi(2);
            Point { theta: -mean_k, beta: 0.0, rho: 1.0, alpha: 1.0, mean_k, error }
        };
        (0..=400).map(point).collect()
    }

    /// Minimising sum s_l d_l^2 with a given sum of d_l (d = 6 - k) is solved by d_l proportional to 1 / s_l.
    #[test]
    fn the_known_optimum_is_found() {
        let scales = [1.0, 2.0, 4.0];
        let layers: Vec<_> = scales.iter().map(|scale| layer(*scale)).collect();
        let found = allocate(&layers, &[1.0; 3], 5.0);
        let inverse: f64 = scales.iter().map(|scale| 1.0 / scale).sum();
        for (point, scale) in found.iter().zip(scales) {
            let expected = 6.0 - 3.0 / scale / inverse;
            assert!((point.mean_k - expected).abs() < 0.011, "{scale}: {} and {expected}", point.mean_k);
        }
        assert!((mean(&found) - 5.0).abs() < 0.01, "{}", mean(&found));
        // A weight is as good as a scale.
        let weighted = allocate(&[layer(1.0), layer(1.0), layer(1.0)], &scales, 5.0);
        assert_eq!(
            weighted.iter().map(|p| p.mean_k).collect::<Vec<_>>(),
            found.iter().map(|p| p.mean_k).collect::<Vec<_>>()
        );
    }

    #[test]
    fn budgets_beyond_what_there_is_give_the_end() {
        let layers = [layer(1.0), layer(3.0)];
        assert_eq!(mean(&allocate(&layers, &[1.0; 2], 6.0)), 6.0);
        assert_eq!(mean(&allocate(&layers, &[1.0; 2], 9.0)), 6.0);
        assert_eq!(mean(&allocate(&layers, &[1.0; 2], 1.0)), 2.0);
        // No layer loses anything: the nearest end that is no loss, as few as possible.
        assert_eq!(mean(&allocate(&[layer(0.0)], &[1.0], 2.0)), 2.0);
    }

    #[test]
    fn falling_functions_are_solved() {
        assert!((solve(0.0, 10.0, 4.0, |x| 10.0 - x) - 6.0).abs() < 1e-9);
        assert!(solve(0.0, 10.0, -4.0, |x| 10.0 - x) > 9.99);
    }

    #[test]
    fn neighbours_count_half() {
        assert_eq!(smoothed(&[1.0, 3.0, 5.0]), [2.5 / 1.5, 3.0, 6.5 / 1.5]);
        assert_eq!(smoothed(&[2.0]), [2.0]);
    }
}
