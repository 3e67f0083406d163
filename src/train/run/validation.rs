//! The validation split, kept from epoch to epoch as far as it fits.

use crate::features::window::{Example, Window};
use crate::learn::learner::{self, Learner};
use crate::learn::scores::Evaluation;

/// Validation records of a range.
pub(super) enum Validation {
    /// Not all have been seen in this pass.
    Incomplete,
    /// Filling, from the beginning of a pass.
    Filling(Window),
    Complete(Window),
    /// They do not fit: they are read again each time.
    TooLarge,
}

impl Validation {
    /// At the beginning of a pass.
    pub fn filling(dim: usize) -> Self {
        Self::Filling(empty(dim))
    }

    /// What a pass that began in its midst has left out, the next one brings.
    pub fn begin_pass(&mut self, dim: usize) {
        if matches!(self, Self::Incomplete) {
            *self = Self::filling(dim);
        }
    }

    /// Keeps a window's records; those that are lent to it count for nothing.
    pub fn keep(&mut self, window: &Window, bytes_max: usize) {
        let Self::Filling(kept) = self else { return };
        for &place in window.validation() {
            kept.push_from(window, place, true);
        }
        if kept.bytes() > bytes_max {
            *self = Self::TooLarge;
        }
    }

    /// All records, at the end of a pass, if they were kept.
    pub fn complete(&mut self) -> Option<&Window> {
        if let Self::Filling(kept) = self {
            *self = Self::Complete(std::mem::take(kept));
        }
        match self {
            Self::Complete(kept) => Some(kept),
            Self::Incomplete | Self::Filling(_) | Self::TooLarge => None,
        }
    }
}

/// Evaluates records in batches.
pub(super) fn evaluate_all(
    learner: &mut dyn Learner,
    records: &Window,
    batch_size: usize,
    evaluation: &mut Evaluation,
) -> Result<(), learner::Error> {
    let all: Vec<Example<'_>> =
        (0..records.records()).map(|place| records.record(u32::try_from(place).unwrap_or(u32::MAX))).collect();
    all.chunks(batch_size).try_for_each(|batch| learner.evaluate(batch, evaluation))
}

/// A window that holds nothing yet.
pub(super) fn empty(dim: usize) -> Window {
    let mut window = Window::default();
    window.clear(0, dim);
    window
}

#[cfg(test)]
mod tests {
    use super::Validation;
    use crate::features::codec::Dtype;
    use crate::features::window::{Target, Window};
    use crate::models::batch::samples::Sample;

    /// One training and one validation record.
    fn window() -> Window {
        let mut window = super::empty(1);
        let sample = Sample::new(Dtype::F32, 1, &[0.5], None);
        for validation in [false, true] {
            window.push(sample.record().0, 9, Target::None, validation);
        }
        window
    }

    #[test]
    fn a_whole_pass_is_kept_and_half_of_one_is_not() {
        let mut validation = Validation::filling(1);
        validation.keep(&window(), 1_000);
        validation.keep(&window(), 1_000);
        assert_eq!(validation.complete().map(Window::records), Some(2));
        validation.keep(&window(), 1_000);
        assert_eq!(validation.complete().map(Window::records), Some(2), "the next pass adds nothing");
        let mut validation = Validation::Incomplete;
        validation.keep(&window(), 1_000);
        assert!(validation.complete().is_none());
        validation.begin_pass(1);
        validation.keep(&window(), 1_000);
        assert_eq!(validation.complete().map(Window::records), Some(1));
    }

    #[test]
    fn what_does_not_fit_is_let_go_for_good() {
        let mut validation = Validation::filling(1);
        validation.keep(&window(), 3);
        validation.begin_pass(1);
        validation.keep(&window(), 1_000);
        assert!(validation.complete().is_none());
    }

    #[test]
    fn what_is_lent_is_held_elsewhere() {
        let mut lent = super::empty(1);
        lent.lend(&std::sync::Arc::new(vec![0.5; 9]), 8, Target::None, true);
        let mut validation = Validation::filling(1);
        validation.keep(&lent, 0);
        assert_eq!(validation.complete().map(Window::records), Some(1));
    }
}
