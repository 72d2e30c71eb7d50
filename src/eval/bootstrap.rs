//! Standard errors of means over tokens that are not independent: tokens of one window share their context, so whole windows are
//! drawn again, with replacement (the block bootstrap).

/// How often the windows are drawn; more changes the third digit.
const DRAWS: usize = 1000;

/// One window's part of a mean.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Block {
    pub sum: f64,
    pub tokens: u64,
}

/// The mean over all tokens; `None` of none.
pub fn mean(blocks: &[Block]) -> Option<f64> {
    let tokens: u64 = blocks.iter().map(|block| block.tokens).sum();
    (tokens > 0).then(|| blocks.iter().map(|block| block.sum).sum::<f64>() / tokens as f64)
}

/// The standard error of [`mean`]: the deviation of the means of windows drawn with replacement. `None` for fewer than two
/// windows, of which nothing can be said. The same blocks give the same number.
pub fn standard_error(blocks: &[Block]) -> Option<f64> {
    if blocks.len() < 2 {
        return None;
    }
    let mut random = Random::new(0);
    let mut drawn = Vec::with_capacity(blocks.len());
    let (mut n, mut average, mut squares) = (0.0, 0.0, 0.0);
    for _ in 0..DRAWS {
        drawn.clear();
        drawn.extend((0..blocks.len()).map(|_| blocks[random.below(blocks.len())]));
        let Some(mean) = mean(&drawn) else { continue };
        // Welford's update: sums of squares of nearly equal numbers would cancel.
        n += 1.0;
        let delta = mean - average;
        average += delta / n;
        squares += delta * (mean - average);
    }
    (n > 1.0).then(|| (squares / (n - 1.0)).sqrt())
}

/// SplitMix64: any seed gives a good sequence, and every machine the same.
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Random {
        Random(seed)
    }

    pub fn next_u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `n`; 0 when `n` is 0. The remainder's bias is below 2^-40 for all our `n`.
    pub fn below(&mut self, n: usize) -> usize {
        self.next_u64().checked_rem(n as u64).unwrap_or(0) as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn blocks(means: &[f64], tokens: u64) -> Vec<Block> {
        means.iter().map(|mean| Block { sum: mean * tokens as f64, tokens }).collect()
    }

    #[test]
    fn means_weigh_tokens_not_windows() {
        assert_eq!(mean(&[Block { sum: 6.0, tokens: 3 }, Block { sum: 4.0, tokens: 1 }]), Some(2.5));
        assert_eq!(mean(&[]), None);
        assert_eq!(mean(&[Block::default()]), None);
    }

    #[test]
    fn the_error_is_that_of_independent_windows() {
        // 200 windows with means of a known deviation: the error of their mean is deviation / sqrt(200).
        let mut random = Random::new(7);
        let means: Vec<f64> = (0..200).map(|_| (random.below(1_000_000) as f64) / 1e6).collect();
        let average = means.iter().sum::<f64>() / 200.0;
        let deviation = (means.iter().map(|m| (m - average).powi(2)).sum::<f64>() / 199.0).sqrt();
        let expected = deviation / 200_f64.sqrt();
        let error = standard_error(&blocks(&means, 50)).unwrap();
        // 1000 draws know a deviation to about 2 %.
        assert!((error / expected - 1.0).abs() < 0.1, "{error} and {expected}");
        assert_eq!(standard_error(&blocks(&means, 50)), Some(error), "it is the same each time");
    }

    #[test]
    fn equal_windows_have_no_error_and_one_window_has_no_answer() {
        assert_eq!(standard_error(&blocks(&[0.5, 0.5, 0.5], 8)), Some(0.0));
        assert_eq!(standard_error(&blocks(&[0.5], 8)), None);
        assert_eq!(standard_error(&[]), None);
    }
}
