//! Chance: every random number of a trial comes from a generator named here. \[pure\]
//!
//! A generator is a function of (search seed, trial number, purpose, `a`, `b`) and of nothing else,
//! so no generator state has to be carried in a checkpoint: who resumes at step `b` of epoch `a`
//! asks for that step's generator again. What this file computes is part of the training format:
//! changing it changes the weights of every trial, so the tests pin values.
//!
//! # Derivation
//!
//! The 32-byte ChaCha8 key is
//!
//! ```text
//! SHA-256( "sweepstream seed 1" ‖ seed: u64 ‖ trial: u32 ‖ purpose: u32 ‖ a: u64 ‖ b: u64 )
//! ```
//!
//! with the text as 18 ASCII bytes and all integers little-endian. The generator is ChaCha with 8
//! rounds, that key, a 64-bit block counter from 0 and a zero nonce; its output is read as
//! little-endian `u32` words.

use rand_chacha::rand_core::{Rng as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;
use sha2::{Digest as _, Sha256};

/// Separates these keys from any other use of SHA-256, and numbers the derivation.
const DOMAIN: &[u8; 18] = b"sweepstream seed 1";

/// What a generator is for. The numbers enter the key: never renumber, only add.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u32)]
pub enum Purpose {
    /// First weights and biases. `a` = `b` = 0.
    Weights = 1,
    /// Order of the records. `a` = epoch, `b` = window.
    Shuffle = 2,
    /// Dropout masks. `a` = epoch, `b` = step.
    Dropout = 3,
}

/// A stream of random numbers that means the same on every machine and in every version.
#[derive(Clone, Debug)]
pub struct Generator(ChaCha8Rng);

impl Generator {
    /// The generator of one purpose in one trial; see the module's documentation for the formula.
    #[must_use]
    pub fn new(seed: u64, trial: u32, purpose: Purpose, a: u64, b: u64) -> Self {
        let key = Sha256::new()
            .chain_update(DOMAIN)
            .chain_update(seed.to_le_bytes())
            .chain_update(trial.to_le_bytes())
            .chain_update((purpose as u32).to_le_bytes())
            .chain_update(a.to_le_bytes())
            .chain_update(b.to_le_bytes())
            .finalize();
        Self(ChaCha8Rng::from_seed(key.into()))
    }

    /// The next 32 bits of the stream.
    pub fn bits(&mut self) -> u32 {
        self.0.next_u32()
    }

    /// Uniform in [0, 1): the upper 24 of the next 32 bits times 2⁻²⁴, so that every value is exact
    /// in `f32`.
    pub fn uniform(&mut self) -> f32 {
        const STEP: f32 = 1.0 / (1 << 24) as f32;
        (self.bits() >> 8) as f32 * STEP
    }

    /// Normal with mean 0 and deviation 1: Box and Muller, "A Note on the Generation of Random Normal Deviates" (1958),
    /// of two uniform numbers, in `f64` and rounded once.
    pub fn normal(&mut self) -> f32 {
        let (radius, turn) = (1.0 - f64::from(self.uniform()), f64::from(self.uniform()));
        ((-2.0 * radius.ln()).sqrt() * (2.0 * std::f64::consts::PI * turn).cos()) as f32
    }

    /// Uniform in `0..bound`, without bias: Lemire, "Fast Random Integer Generation in an Interval"
    /// (2019), algorithm 5. A `bound` of 0 or 1 gives 0 and takes nothing from the stream.
    pub fn below(&mut self, bound: u32) -> u32 {
        if bound <= 1 {
            return 0;
        }
        let mut product = u64::from(self.bits()) * u64::from(bound);
        // The lower half is the rest of the division by 2^32; rests below 2^32 mod bound are one
        // too many.
        if (product as u32) < bound {
            let surplus = bound.wrapping_neg() % bound;
            while (product as u32) < surplus {
                product = u64::from(self.bits()) * u64::from(bound);
            }
        }
        (product >> 32) as u32
    }

    /// Fisher and Yates' shuffle from the back: element `i` is swapped with `below(i + 1)` for i =
    /// n−1, …, 1.
    ///
    /// Orders of more than 2³² elements are out of reach of the indices that are shuffled here.
    pub fn shuffle(&mut self, items: &mut [u32]) {
        for last in (1..items.len()).rev() {
            let other = self.below(u32::try_from(last).map_or(u32::MAX, |i| i.saturating_add(1)));
            items.swap(last, other as usize);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn generator() -> Generator {
        Generator::new(7, 3, Purpose::Shuffle, 5, 11)
    }

    // These values were also computed by another implementation of ChaCha8 and of the formula (in
    // Python).
    #[test]
    fn stream_is_pinned() {
        let mut generator = generator();
        let bits: Vec<u32> = (0..4).map(|_| generator.bits()).collect();
        assert_eq!(bits, [2_172_975_726, 1_870_982_813, 1_442_900_021, 2_061_478_138]);
        let uniform: Vec<f32> = (0..3).map(|_| generator.uniform()).collect();
        assert_eq!(uniform, [0.226_602_5, 0.010_795_772, 0.730_647_8]);
        let below: Vec<u32> = (0..8).map(|_| generator.below(10)).collect();
        assert_eq!(below, [0, 7, 0, 9, 8, 3, 7, 9]);
    }

    #[test]
    fn shuffle_is_pinned() {
        let mut items: Vec<u32> = (0..12).collect();
        generator().shuffle(&mut items);
        assert_eq!(items, [2, 7, 5, 9, 11, 8, 0, 1, 10, 3, 4, 6]);
    }

    #[test]
    fn every_word_of_the_key_counts() {
        let base = || (7_u64, 3_u32, Purpose::Shuffle, 5_u64, 11_u64);
        let variants = [
            base(),
            (8, 3, Purpose::Shuffle, 5, 11),
            (7, 4, Purpose::Shuffle, 5, 11),
            (7, 3, Purpose::Dropout, 5, 11),
            (7, 3, Purpose::Weights, 5, 11),
            (7, 3, Purpose::Shuffle, 6, 11),
            (7, 3, Purpose::Shuffle, 5, 12),
            (7, 3, Purpose::Shuffle, 11, 5),
        ];
        let firsts: std::collections::BTreeSet<u32> = variants
            .into_iter()
            .map(|(seed, trial, purpose, a, b)| Generator::new(seed, trial, purpose, a, b).bits())
            .collect();
        assert_eq!(firsts.len(), variants.len());
        assert_eq!(generator().bits(), generator().bits());
    }

    #[test]
    fn uniform_stays_in_range_and_centred() {
        let mut generator = generator();
        let values: Vec<f32> = (0..10_000).map(|_| generator.uniform()).collect();
        assert!(values.iter().all(|v| (0.0..1.0).contains(v)));
        let mean = values.iter().sum::<f32>() / values.len() as f32;
        assert!((mean - 0.5).abs() < 0.02, "mean {mean}");
    }

    #[test]
    fn below_reaches_all_values_evenly() {
        let mut generator = generator();
        let mut counts = [0_u32; 7];
        for _ in 0..70_000 {
            counts[generator.below(7) as usize] += 1;
        }
        assert!(counts.iter().all(|&c| (9_500..10_500).contains(&c)), "{counts:?}");
        assert_eq!((generator.below(0), generator.below(1)), (0, 0));
        assert!((0..1_000).all(|_| generator.below(u32::MAX) < u32::MAX));
    }

    #[test]
    fn shuffle_keeps_every_element_and_takes_short_orders() {
        for n in [0_u32, 1, 2, 100] {
            let mut items: Vec<u32> = (0..n).collect();
            generator().shuffle(&mut items);
            items.sort_unstable();
            assert_eq!(items, (0..n).collect::<Vec<u32>>());
        }
    }

    #[test]
    fn shuffle_gives_each_order_its_share() {
        let mut counts = std::collections::BTreeMap::new();
        let mut generator = generator();
        for _ in 0..24_000 {
            let mut items = [0, 1, 2, 3];
            generator.shuffle(&mut items);
            *counts.entry(items).or_insert(0_u32) += 1;
        }
        assert_eq!(counts.len(), 24);
        assert!(counts.values().all(|&c| (850..1_150).contains(&c)), "{counts:?}");
    }
}
