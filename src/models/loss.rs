//! Losses, and their gradients with regard to a model's outputs. \[pure\]

use candle_core::Tensor;

use super::batch::Batch;
use super::error::ModelError;
use super::ops::sum_of_squares;
use super::tensors::{edit, read};
use crate::features::window::Target;

/// A loss before its division: `sum / weight`, so that losses of batches add up to that of the
/// whole.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Loss {
    /// Squared error, or cross-entropy.
    pub sum: f64,
    /// Number of compared values, or of records.
    pub weight: f64,
}

impl Loss {
    /// The loss itself; NaN where nothing was compared.
    #[must_use]
    pub fn mean(&self) -> f64 {
        self.sum / self.weight
    }
}

/// Squared error of the outputs; each output becomes the gradient of the mean loss with regard to
/// itself.
///
/// # Errors
/// What the tensor library says.
pub fn reconstruction(outputs: &mut [Tensor], batch: &Batch<'_>, dim: usize) -> Result<Loss, ModelError> {
    let weight = (batch.rows * dim) as f64;
    let scale = (2.0 / weight) as f32;
    let mut sum = 0.0;
    for (output, rows) in outputs.iter().zip(&batch.levels) {
        sum += read(rows, |targets| {
            edit(output, |errors| {
                errors.iter_mut().zip(targets).for_each(|(error, target)| *error -= target);
                let squares = sum_of_squares(errors);
                errors.iter_mut().for_each(|error| *error *= scale);
                squares
            })
        })??;
    }
    Ok(Loss { sum, weight })
}

/// Cross-entropy of the logits `[B, classes]`, which become the gradient of its mean: (softmax −
/// one-hot) / B. Returns the logits as they were, too, row by row.
///
/// In `f64`, rounded once: it costs nothing here, and it keeps the last bits from depending on the
/// platform's `expf`.
///
/// # Errors
/// As [`labels`].
pub fn cross_entropy(
    outputs: &mut [Tensor],
    batch: &Batch<'_>,
    classes: usize,
) -> Result<(Loss, Vec<f32>), ModelError> {
    let labels = labels(batch, classes)?;
    let (records, mut sum) = (labels.len() as f64, 0.0);
    let mut kept = Vec::with_capacity(labels.len() * classes);
    let mut exponentials = vec![0.0; classes];
    for output in outputs.iter() {
        edit(output, |logits| {
            kept.extend_from_slice(logits);
            for (logits, &label) in logits.chunks_exact_mut(classes).zip(&labels) {
                let best = most(logits);
                let highest = f64::from(logits[best]);
                for (exponential, &logit) in exponentials.iter_mut().zip(logits.iter()) {
                    *exponential = (f64::from(logit) - highest).exp();
                }
                let total: f64 = exponentials.iter().sum();
                sum += total.ln() - (f64::from(logits[label]) - highest);
                for (class, (logit, exponential)) in logits.iter_mut().zip(&exponentials).enumerate() {
                    let target = if class == label { 1.0 } else { 0.0 };
                    *logit = ((exponential / total - target) / records) as f32;
                }
            }
        })?;
    }
    Ok((Loss { sum, weight: records }, kept))
}

/// Squared error of the outputs `[B, 1]`, which become the gradient of its mean: 2 (output − number) / B. Returns the
/// outputs as they were, too.
///
/// # Errors
/// As [`numbers`].
pub fn squared_error(outputs: &mut [Tensor], batch: &Batch<'_>) -> Result<(Loss, Vec<f32>), ModelError> {
    let numbers = numbers(batch)?;
    let (records, mut sum) = (numbers.len() as f64, 0.0);
    let mut kept = Vec::with_capacity(numbers.len());
    for output in outputs.iter() {
        edit(output, |outputs| {
            kept.extend_from_slice(outputs);
            for (output, &number) in outputs.iter_mut().zip(&numbers) {
                let error = f64::from(*output) - f64::from(number);
                sum += error * error;
                *output = (2.0 * error / records) as f32;
            }
        })?;
    }
    Ok((Loss { sum, weight: records }, kept))
}

/// The class of each record, in the order of [`Batch::order`].
///
/// # Errors
/// Names a record without a label, or whose label is no class.
pub fn labels(batch: &Batch<'_>, classes: usize) -> Result<Vec<usize>, ModelError> {
    let check = |(target, &record): (&Target, &usize)| match *target {
        Target::Class(label) if (label as usize) < classes => Ok(label as usize),
        Target::Class(label) => Err(ModelError::Label { record, label, classes }),
        Target::None => Err(ModelError::NoLabel { record }),
        Target::Number(_) => Err(ModelError::Target { record, expected: "a class" }),
    };
    batch.targets.iter().zip(batch.order).map(check).collect()
}

/// The number of each record, in the order of [`Batch::order`].
///
/// # Errors
/// Names a record without a label, or whose label is no number.
pub fn numbers(batch: &Batch<'_>) -> Result<Vec<f32>, ModelError> {
    let check = |(target, &record): (&Target, &usize)| match *target {
        Target::Number(number) => Ok(number),
        Target::None => Err(ModelError::NoLabel { record }),
        Target::Class(_) => Err(ModelError::Target { record, expected: "a number" }),
    };
    batch.targets.iter().zip(batch.order).map(check).collect()
}

/// Position of the highest value, the first of equals.
#[must_use]
pub fn most(values: &[f32]) -> usize {
    let mut best = 0;
    for (place, value) in values.iter().enumerate() {
        if *value > values[best] {
            best = place;
        }
    }
    best
}
