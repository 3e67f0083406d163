//! The computed order of a range: partitions merged round-robin by rule. Pure.
//!
//! Merging counts records, never offsets or arrival, so the same features give the same order in any topic.

use serde::{Deserialize, Serialize};

/// Where a pass over a range stands: how many records of each partition were taken, and whose turn it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Merge {
    counts: Vec<u64>,
    taken: Vec<u64>,
    turn: usize,
}

impl Merge {
    /// The beginning of a pass over partitions with these record counts.
    pub fn new(counts: Vec<u64>) -> Self {
        let taken = vec![0; counts.len()];
        Self { counts, taken, turn: 0 }
    }

    /// Goes on from where `taken` records of each partition were read and it is the turn of `turn`.
    ///
    /// `None` when that is no place in a pass over these counts.
    pub fn resume(counts: Vec<u64>, taken: Vec<u64>, turn: usize) -> Option<Self> {
        let fits = counts.len() == taken.len()
            && turn < counts.len().max(1)
            && counts.iter().zip(&taken).all(|(count, taken)| taken <= count);
        fits.then_some(Self { counts, taken, turn })
    }

    /// Records taken of each partition.
    pub fn taken(&self) -> &[u64] {
        &self.taken
    }

    /// Index of the partition whose turn it is.
    pub fn turn(&self) -> usize {
        self.turn
    }

    /// Is the pass over?
    pub fn is_done(&self) -> bool {
        self.taken == self.counts
    }
}

impl Iterator for Merge {
    type Item = usize;

    /// Index of the partition that gives the next record.
    fn next(&mut self) -> Option<usize> {
        for _ in 0..self.counts.len() {
            let partition = self.turn;
            self.turn = (self.turn + 1) % self.counts.len();
            if self.taken[partition] < self.counts[partition] {
                self.taken[partition] += 1;
                return Some(partition);
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn partitions_take_turns_until_they_are_exhausted() {
        let order: Vec<usize> = Merge::new(vec![3, 0, 1, 2]).collect();
        assert_eq!(order, [0, 2, 3, 0, 3, 0]);
        assert_eq!(Merge::new(vec![]).next(), None);
    }

    #[test]
    fn a_pass_resumes_anywhere() {
        let counts = vec![5, 1, 3];
        let whole: Vec<usize> = Merge::new(counts.clone()).collect();
        for at in 0..=whole.len() {
            let mut merge = Merge::new(counts.clone());
            let head: Vec<usize> = merge.by_ref().take(at).collect();
            let tail: Vec<usize> =
                Merge::resume(counts.clone(), merge.taken().to_vec(), merge.turn()).unwrap().collect();
            assert_eq!([head, tail].concat(), whole);
        }
        assert!(Merge::resume(counts.clone(), vec![6, 0, 0], 0).is_none());
        assert!(Merge::resume(counts, vec![0, 0], 0).is_none());
    }
}
