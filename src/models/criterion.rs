//! Losses, and their gradients with regard to a model's outputs. \[pure\]

use candle_core::Tensor;

use super::batch::Batch;
use super::error::ModelError;
use super::kind::Task;
use super::loss::Loss;
use super::ops::sum_of_squares;
use super::tensors::{edit, read};
use crate::features::window::Target;

/// What outputs are compared with, and how.
#[derive(Clone, Debug, PartialEq)]
pub struct Criterion {
    /// See [`Task`].
    pub task: Task,
    /// Share of a class's target that is spread evenly over all classes, from 0 to below 1.
    pub label_smoothing: f64,
    /// What a record of each class counts; empty if all count 1.
    pub class_weights: Vec<f64>,
}

impl Criterion {
    /// The task's loss as it stands.
    #[must_use]
    pub fn plain(task: Task) -> Self {
        Self { task, label_smoothing: 0.0, class_weights: Vec::new() }
    }

    /// The loss of a model's outputs, which become the gradients of its mean with regard to themselves. Gives the
    /// outputs as they were, too, row by row; nothing of a reconstruction.
    ///
    /// # Errors
    /// Labels that are missing or are not what the task learns, and what the tensor library says.
    pub fn compare(&self, outputs: &[Tensor], batch: &Batch<'_>) -> Result<(Loss, Vec<f32>), ModelError> {
        match (self.task, outputs) {
            (Task::Reconstruction, levels) => Ok((reconstruction(levels, batch)?, Vec::new())),
            (Task::Classification, [logits]) => self.cross_entropy(logits, batch),
            (Task::Regression, [numbers]) => squared_error(numbers, batch),
            _ => Err(candle_core::Error::msg("a model of labels has one tensor of outputs").bt().into()),
        }
    }

    /// Cross-entropy, as PyTorch has it with weights w and smoothing ε: with y the record's class and W the sum of the
    /// records' weights,
    /// ```text
    /// loss = Σ ((1 − ε) w_y (−ln p_y) + ε/C Σ_c w_c (−ln p_c)) / W
    /// gradient = ((1 − ε) w_y (p − one-hot) + ε/C ((Σ_c w_c) p − w)) / W
    /// ```
    /// In `f64`, rounded once: it costs nothing here, and it keeps the last bits from resting on the platform's `expf`.
    fn cross_entropy(&self, output: &Tensor, batch: &Batch<'_>) -> Result<(Loss, Vec<f32>), ModelError> {
        let classes = output.dim(1)?;
        let labels = labels(batch, classes)?;
        let weight = |class: usize| self.class_weights.get(class).copied().unwrap_or(1.0);
        let (all, hard, spread) =
            ((0..classes).map(weight).sum::<f64>(), 1.0 - self.label_smoothing, self.label_smoothing / classes as f64);
        let (total_weight, mut sum) = (labels.iter().map(|&label| weight(label)).sum::<f64>(), 0.0);
        let mut exponentials = vec![0.0; classes];
        let kept = edit(output, |logits| {
            let kept = logits.to_vec();
            for (logits, &label) in logits.chunks_exact_mut(classes).zip(&labels) {
                let highest = f64::from(logits[most(logits)]);
                for (exponential, &logit) in exponentials.iter_mut().zip(logits.iter()) {
                    *exponential = (f64::from(logit) - highest).exp();
                }
                let total: f64 = exponentials.iter().sum();
                let cost = |logit: f32| total.ln() - (f64::from(logit) - highest);
                sum += hard * weight(label) * cost(logits[label]);
                if spread > 0.0 {
                    let costs = logits.iter().enumerate().map(|(class, &logit)| weight(class) * cost(logit));
                    sum += spread * costs.sum::<f64>();
                }
                for (class, (logit, exponential)) in logits.iter_mut().zip(&exponentials).enumerate() {
                    let (share, target) = (exponential / total, if class == label { 1.0 } else { 0.0 });
                    let mut gradient = hard * weight(label) * (share - target);
                    if spread > 0.0 {
                        gradient += spread * (all * share - weight(class));
                    }
                    *logit = (gradient / total_weight) as f32;
                }
            }
            kept
        })?;
        Ok((Loss { sum, weight: total_weight }, kept))
    }
}

/// Squared error: 2 (output − row) / (number of rows · D).
fn reconstruction(outputs: &[Tensor], batch: &Batch<'_>) -> Result<Loss, ModelError> {
    let weight = (batch.rows * batch.levels[0].dim(1)?) as f64;
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

/// Squared error: 2 (output − number) / B.
fn squared_error(output: &Tensor, batch: &Batch<'_>) -> Result<(Loss, Vec<f32>), ModelError> {
    let numbers = numbers(batch)?;
    let (records, mut sum) = (numbers.len() as f64, 0.0);
    let kept = edit(output, |outputs| {
        let kept = outputs.to_vec();
        for (output, &number) in outputs.iter_mut().zip(&numbers) {
            let error = f64::from(*output) - f64::from(number);
            sum += error * error;
            *output = (2.0 * error / records) as f32;
        }
        kept
    })?;
    Ok((Loss { sum, weight: records }, kept))
}

/// The class of each record, in the order of [`Batch::order`].
fn labels(batch: &Batch<'_>, classes: usize) -> Result<Vec<usize>, ModelError> {
    let check = |(target, &record): (&Target, &usize)| match *target {
        Target::Class(label) if (label as usize) < classes => Ok(label as usize),
        Target::Class(label) => Err(ModelError::Label { record, label, classes }),
        Target::None => Err(ModelError::NoLabel { record }),
        Target::Number(_) => Err(ModelError::Target { record, expected: "a class" }),
    };
    batch.targets.iter().zip(batch.order).map(check).collect()
}

/// The number of each record, in the order of [`Batch::order`].
fn numbers(batch: &Batch<'_>) -> Result<Vec<f32>, ModelError> {
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
