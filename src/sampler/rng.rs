//! The random numbers behind sampling: xoshiro256++ (Blackman and Vigna, 2019, <https://prng.di.unimi.it/xoshiro256plusplus.c>),
//! its state filled from the seed by splitmix64, as its authors advise. Written down here so that a seed means the same
//! numbers on every platform and in every version of the program.

use std::hash::{BuildHasher, Hasher, RandomState};

#[derive(Clone, Debug)]
pub struct Rng {
    state: [u64; 4],
}

impl Rng {
    pub fn new(seed: u64) -> Self {
        let mut x = seed;
        let state = [(); 4].map(|()| {
            x = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mut z = x;
            z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            z ^ (z >> 31)
        });
        Rng { state }
    }

    pub fn next_u64(&mut self) -> u64 {
        let s = &mut self.state;
        let result = s[0].wrapping_add(s[3]).rotate_left(23).wrapping_add(s[0]);
        let t = s[1] << 17;
        s[2] ^= s[0];
        s[3] ^= s[1];
        s[1] ^= s[2];
        s[0] ^= s[3];
        s[2] ^= t;
        s[3] = s[3].rotate_left(45);
        result
    }

    /// Uniform in `[0, 1)`, 53 bits.
    pub fn unit(&mut self) -> f64 {
        (self.next_u64() >> 11) as f64 * (1.0 / (1u64 << 53) as f64)
    }
}

/// A seed that nobody chose. The standard library's hash keys come from the operating system's random numbers.
pub fn random_seed() -> u64 {
    RandomState::new().build_hasher().finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// First outputs for seed 42, computed by a transcription of the authors' splitmix64.c and xoshiro256plusplus.c to Python.
    #[test]
    fn a_seed_means_these_numbers() {
        let mut rng = Rng::new(42);
        let first = [(); 3].map(|()| rng.next_u64());
        assert_eq!(first, [15021278609987233951, 5881210131331364753, 18149643915985481100]);
    }

    #[test]
    fn unit_stays_below_one() {
        let mut rng = Rng::new(7);
        let mean = (0..10_000)
            .map(|_| {
                let u = rng.unit();
                assert!((0.0..1.0).contains(&u));
                u
            })
            .sum::<f64>()
            / 10_000.0;
        // Standard error of the mean of 10 000 uniform numbers: 0.0029.
        assert!((mean - 0.5).abs() < 0.015, "{mean}");
    }
}
