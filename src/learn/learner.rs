//! What a trial drives: something that learns from batches, and whose state can be saved and taken up again.

use super::scores::Evaluation;
use crate::features::window::Example;

/// Why a learner cannot go on; a trial's reason to fail.
pub type Error = Box<dyn std::error::Error + Send + Sync>;

/// What a step did.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct StepReport {
    /// The batch's mean loss before the update.
    pub loss: f64,
    /// Euclidean norm of the whole gradient, without weight decay; NaN if the loss is not finite.
    pub gradient_norm: f64,
    /// Records in the batch.
    pub records: usize,
}

impl StepReport {
    /// Whether the trial has left the numbers. After a loss that is not finite nothing was updated;
    /// after a gradient that is not finite the parameters are spoilt.
    #[must_use]
    pub fn diverged(&self) -> bool {
        !self.loss.is_finite() || !self.gradient_norm.is_finite()
    }
}

/// Something in training, most often a model.
///
/// Its state after a batch is a function of how it was made, of the batches before, and of nothing else: neither a
/// clock nor other trials. Restored from [`Learner::state`], it goes on bit for bit.
pub trait Learner: Send {
    /// Learns from a batch, which is not empty. `epoch` and `step`, within the trial, are what chance is drawn from.
    ///
    /// # Errors
    /// Records that are no batch for it, and failures of the computation. It must not be used afterwards.
    fn step(&mut self, batch: &[Example<'_>], epoch: u64, step: u64) -> Result<StepReport, Error>;

    /// An evaluation without records, for what it computes.
    fn evaluation(&self) -> Evaluation;

    /// Adds records to an evaluation; changes nothing else.
    ///
    /// # Errors
    /// As [`Learner::step`].
    fn evaluate(&mut self, batch: &[Example<'_>], evaluation: &mut Evaluation) -> Result<(), Error>;

    /// Whether what it has learned is still made of finite numbers.
    ///
    /// # Errors
    /// Failures of the computation.
    fn is_finite(&self) -> Result<bool, Error>;

    /// All that [`Learner::restore`] needs. Equal states give equal bytes.
    ///
    /// # Errors
    /// Failures of the computation.
    fn state(&self) -> Result<Vec<u8>, Error>;

    /// Goes on from a state of a learner that was made alike.
    ///
    /// # Errors
    /// Bytes that are no such state; nothing has changed then.
    fn restore(&mut self, state: &[u8]) -> Result<(), Error>;

    /// SHA-256 of what it has learned, in lower-case hexadecimal digits.
    ///
    /// # Errors
    /// Failures of the computation.
    fn digest(&self) -> Result<String, Error>;
}
