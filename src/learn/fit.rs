//! One trial's training: steps, evaluation, and state that can be saved and taken up again.
//! \[pure\]
//!
//! A [`Fit`] is a deterministic function of its spec, seed, trial number and the batches it is
//! given: no clock, no generator that has to be carried along (see [`crate::models::seed`]), no thread.
//! Stopped anywhere and restored from [`Fit::state`], it goes on bit for bit.
//!
//! **Precondition**: `RAYON_NUM_THREADS` is 1 in the process (set before any thread starts). Candle
//! asks it at each product; without it every trial would spread over all processors. See
//! [`crate::models`] for what bits depend on.

use safetensors::tensor::SafeTensors;
use sha2::{Digest as _, Sha256};
use thiserror::Error;

use super::learner::{self, Learner, StepReport};
use super::optimizer::{Optimizer, OptimizerError, OptimizerSpec};
use super::schedule::Schedule;
use super::scores::Evaluation;
use super::tensor_file::{self, FileError, TensorData, Values};
use crate::features::codec::Dtype;
use crate::features::window::Example;
use crate::models::batch::{Batch, BatchError, Batcher};
use crate::models::criterion::Criterion;
use crate::models::error::ModelError;
use crate::models::kind::ModelSpec;
use crate::models::loss::Loss;
use crate::models::model::{Model, Pass};
use crate::models::ops::sum_of_squares;
use crate::models::parameters::ParameterSpec;
use crate::models::seed::{Generator, Purpose};
use crate::models::tensors::{edit, read};

/// Name of the number of updates in a state.
const UPDATES: &str = "counter/updates";

/// What kept a trial from being set up, or from a step.
#[derive(Debug, Error)]
pub enum FitError {
    /// Records that are no batch for this model. Nothing has changed.
    #[error(transparent)]
    Batch(#[from] BatchError),
    /// Settings, labels, or the computation.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// Settings of the optimizer.
    #[error(transparent)]
    Optimizer(#[from] OptimizerError),
    /// Tensors that are not this trial's. Nothing has changed.
    #[error(transparent)]
    File(#[from] FileError),
    /// The tensor library refused.
    #[error(transparent)]
    Tensor(#[from] candle_core::Error),
}

/// How a trial trains, besides its model and its optimizer. By default: plainly.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Recipe {
    pub schedule: Schedule,
    /// Longest gradient: longer ones are shortened to this Euclidean norm, as PyTorch's `clip_grad_norm_` does.
    pub clip_norm: Option<f64>,
    /// Share of a class's target that is spread over all classes.
    pub label_smoothing: f64,
    /// What a record of each class counts; empty if all count 1.
    pub class_weights: Vec<f64>,
}

/// A model in training.
#[derive(Debug)]
pub struct Fit {
    model: Box<dyn Model>,
    criterion: Criterion,
    outputs: usize,
    optimizer: Optimizer,
    /// As it was given; the schedule changes the optimizer's.
    learning_rate: f64,
    schedule: Schedule,
    clip_norm: Option<f64>,
    batcher: Batcher,
    seed: u64,
    trial: u32,
}

impl Fit {
    /// A trial at its beginning: first weights from (`seed`, `trial`), no updates.
    ///
    /// # Errors
    /// Settings out of range, by the names they have in a search file.
    pub fn new(spec: ModelSpec, optimizer: OptimizerSpec, seed: u64, trial: u32) -> Result<Self, FitError> {
        let (input, outputs) = (spec.input(), spec.outputs());
        let criterion = Criterion::plain(spec.task);
        let model = spec.build(&mut Generator::new(seed, trial, Purpose::Weights, 0, 0))?;
        let sizes: Vec<usize> =
            model.parameters().specs().iter().map(|parameter| parameter.shape.iter().product()).collect();
        let (learning_rate, optimizer) = (optimizer.learning_rate, Optimizer::new(optimizer, &sizes)?);
        let (batcher, schedule) = (Batcher::new(input)?, Schedule::default());
        Ok(Self {
            model,
            criterion,
            outputs,
            optimizer,
            learning_rate,
            schedule,
            clip_norm: None,
            batcher,
            seed,
            trial,
        })
    }

    /// The same, training by a recipe.
    #[must_use]
    pub fn with(mut self, recipe: Recipe) -> Self {
        let Recipe { schedule, clip_norm, label_smoothing, class_weights } = recipe;
        self.criterion = Criterion { label_smoothing, class_weights, ..self.criterion };
        (self.schedule, self.clip_norm) = (schedule, clip_norm);
        self
    }

    /// Goes on where [`Fit::state`] left a fit of the same spec, optimizer, seed and trial number.
    ///
    /// # Errors
    /// [`FileError`] for bytes that are not the state of this spec and optimizer; nothing has changed then.
    pub fn restore(&mut self, state: &[u8]) -> Result<(), FitError> {
        let file = SafeTensors::deserialize(state).map_err(FileError::from)?;
        let found = tensor_file::check(&file, &self.state_tensors())?;
        let rule = self.optimizer.spec().rule;
        for (place, parameter) in self.model.parameters().specs().iter().enumerate() {
            let bytes = tensor_file::data(&found, &parameter_name(&parameter.name));
            edit(&self.model.parameters().value(place), |values| Dtype::F32.read(bytes, values))?;
            for (moment, moment_name) in rule.moments().iter().enumerate() {
                let bytes = tensor_file::data(&found, &moment_tensor_name(moment_name, &parameter.name));
                Dtype::F32.read(bytes, self.optimizer.state_mut(moment, place));
            }
        }
        let updates = tensor_file::data(&found, UPDATES).iter().rev().fold(0, |sum, &byte| sum << 8 | u64::from(byte));
        self.optimizer.set_updates(updates);
        Ok(())
    }

    /// Starts from other weights (`initial_weights`): parameters under their plain names, `f32`. To
    /// be called before the first step; the optimizer's state is not touched.
    ///
    /// # Errors
    /// [`FileError`], with the names and shapes that are expected; the weights are then unchanged.
    pub fn load_parameters(&mut self, bytes: &[u8]) -> Result<(), FitError> {
        let file = SafeTensors::deserialize(bytes).map_err(FileError::from)?;
        let found = tensor_file::check(&file, &self.parameter_tensors())?;
        for (place, parameter) in self.model.parameters().specs().iter().enumerate() {
            let bytes = tensor_file::data(&found, &parameter.name);
            edit(&self.model.parameters().value(place), |values| Dtype::F32.read(bytes, values))?;
        }
        Ok(())
    }

    /// Learns from a batch. `epoch` and `step` (within the trial) choose the dropout masks.
    ///
    /// A loss that is not finite is reported and nothing is updated. After an error of the tensor
    /// library the parameters may be half updated: drop the fit. After any other error nothing has
    /// changed.
    ///
    /// # Errors
    /// Records that are no batch, labels that are missing or unknown, and what the tensor library
    /// says.
    pub fn step(&mut self, records: &[Example<'_>], epoch: u64, step: u64) -> Result<StepReport, FitError> {
        let batch = self.batcher.build(records)?;
        let dropout = Generator::new(self.seed, self.trial, Purpose::Dropout, epoch, step);
        let pass = self.model.forward(&batch, Some(dropout))?;
        let (loss, records) = (compare(&self.criterion, &pass, &batch)?.0.mean(), batch.records());
        if !loss.is_finite() {
            return Ok(StepReport { loss, gradient_norm: f64::NAN, records });
        }
        self.optimizer.set_learning_rate(self.learning_rate * self.schedule.factor(self.optimizer.updates()))?;
        let gradient_norm = match self.clip_norm {
            None => {
                let mut update = self.optimizer.begin();
                pass.backward(&mut |place, values, gradient| update.apply(place, values, gradient))?;
                update.finish()
            }
            Some(longest) => clipped(pass, &mut self.optimizer, longest)?,
        };
        Ok(StepReport { loss, gradient_norm, records })
    }

    /// An evaluation without records, for this model.
    #[must_use]
    pub fn evaluation(&self) -> Evaluation {
        Evaluation::new(self.criterion.task, self.outputs)
    }

    /// Adds records to an evaluation that [`Fit::evaluation`] began; changes nothing else.
    ///
    /// # Errors
    /// As [`Fit::step`].
    pub fn evaluate(&mut self, records: &[Example<'_>], evaluation: &mut Evaluation) -> Result<(), FitError> {
        let batch = self.batcher.build(records)?;
        let pass = self.model.forward(&batch, None)?;
        // What only helps to learn is no measure.
        let (loss, outputs) = compare(&Criterion::plain(self.criterion.task), &pass, &batch)?;
        evaluation.add(loss, &outputs, batch.targets);
        Ok(())
    }

    /// The model.
    #[must_use]
    pub fn model(&self) -> &dyn Model {
        self.model.as_ref()
    }

    /// Updates so far.
    #[must_use]
    pub fn updates(&self) -> u64 {
        self.optimizer.updates()
    }

    /// Sets the learning rate from the next step on. It is not part of [`Fit::state`].
    ///
    /// # Errors
    /// A rate that is negative or not finite; the old one is kept.
    pub fn set_learning_rate(&mut self, learning_rate: f64) -> Result<(), FitError> {
        self.optimizer.set_learning_rate(learning_rate)?;
        self.learning_rate = learning_rate;
        Ok(())
    }

    /// All that [`Fit::restore`] needs, as safetensors: `parameter/<name>`,
    /// `optimizer/<moment>/<name>` (moments: [`super::optimizer::Rule::moments`]) and `counter/updates`
    /// (`u64`, shape `[1]`).
    ///
    /// Equal states give equal bytes: the file has no `__metadata__`; the counter comes first
    /// (safetensors puts wider types first), the rest is sorted by name.
    ///
    /// # Errors
    /// What safetensors or the tensor library says.
    pub fn state(&self) -> Result<Vec<u8>, FitError> {
        Ok(tensor_file::bytes(self.state_tensors())?)
    }

    /// The parameters alone, as safetensors under their plain names. The same weights give the same
    /// bytes.
    ///
    /// # Errors
    /// As [`Fit::state`].
    pub fn parameters_safetensors(&self) -> Result<Vec<u8>, FitError> {
        Ok(tensor_file::bytes(self.parameter_tensors())?)
    }

    /// Whether every parameter is a finite number.
    ///
    /// # Errors
    /// What the tensor library says.
    pub fn is_finite(&self) -> Result<bool, FitError> {
        let parameters = self.model.parameters();
        for place in 0..parameters.specs().len() {
            if !read(&parameters.value(place), |values| values.iter().all(|value| value.is_finite()))? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// SHA-256 of [`Fit::parameters_safetensors`], in lower-case hexadecimal digits.
    ///
    /// # Errors
    /// As [`Fit::state`].
    pub fn weights_sha256(&self) -> Result<String, FitError> {
        let mut digest = Sha256::new();
        tensor_file::emit(self.parameter_tensors(), &mut |bytes| digest.update(bytes))?;
        Ok(digest.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
    }

    fn parameter_tensors(&self) -> Vec<(String, TensorData<'_>)> {
        let parameters = self.model.parameters();
        let stored = |(place, spec): (usize, &'_ ParameterSpec)| {
            (
                spec.name.clone(),
                TensorData { shape: spec.shape.clone(), values: Values::Tensor(parameters.value(place)) },
            )
        };
        parameters.specs().iter().enumerate().map(stored).collect()
    }

    fn state_tensors(&self) -> Vec<(String, TensorData<'_>)> {
        let mut tensors = vec![(UPDATES.into(), TensorData { shape: vec![1], values: Values::Count(self.updates()) })];
        for (place, (name, stored)) in self.parameter_tensors().into_iter().enumerate() {
            for (moment, moment_name) in self.optimizer.spec().rule.moments().iter().enumerate() {
                let values = Values::State(self.optimizer.state(moment, place));
                tensors
                    .push((moment_tensor_name(moment_name, &name), TensorData { shape: stored.shape.clone(), values }));
            }
            tensors.push((parameter_name(&name), stored));
        }
        tensors
    }
}

impl Learner for Fit {
    fn step(&mut self, batch: &[Example<'_>], epoch: u64, step: u64) -> Result<StepReport, learner::Error> {
        Ok(Self::step(self, batch, epoch, step)?)
    }

    fn evaluation(&self) -> Evaluation {
        Self::evaluation(self)
    }

    fn evaluate(&mut self, batch: &[Example<'_>], evaluation: &mut Evaluation) -> Result<(), learner::Error> {
        Ok(Self::evaluate(self, batch, evaluation)?)
    }

    fn is_finite(&self) -> Result<bool, learner::Error> {
        Ok(Self::is_finite(self)?)
    }

    fn state(&self) -> Result<Vec<u8>, learner::Error> {
        Ok(Self::state(self)?)
    }

    fn restore(&mut self, state: &[u8]) -> Result<(), learner::Error> {
        Ok(Self::restore(self, state)?)
    }

    fn digest(&self) -> Result<String, learner::Error> {
        Ok(self.weights_sha256()?)
    }
}

/// The loss of a pass, and its outputs row by row. They become the loss's gradients, unless the model has its own.
fn compare(criterion: &Criterion, pass: &Pass<'_>, batch: &Batch<'_>) -> Result<(Loss, Vec<f32>), ModelError> {
    match (pass.loss, pass.outputs.as_slice()) {
        (Some(loss), [outputs]) => Ok((loss, read(outputs, <[f32]>::to_vec)?)),
        (_, outputs) => criterion.compare(outputs, batch),
    }
}

/// Updates once all gradients are known, shortened if they are too long; gives their norm before that.
fn clipped(pass: Pass<'_>, optimizer: &mut Optimizer, longest: f64) -> Result<f64, FitError> {
    let (mut gradients, mut squares) = (Vec::new(), 0.0);
    pass.backward(&mut |place, values, gradient| {
        squares += read(gradient, sum_of_squares)?;
        gradients.push((place, values.clone(), gradient.clone()));
        Ok(())
    })?;
    let norm = squares.sqrt();
    let factor = longest / (norm + 1e-6);
    let mut update = optimizer.begin();
    for (place, values, gradient) in gradients {
        let gradient = if factor < 1.0 { (gradient * factor)? } else { gradient };
        update.apply(place, &values, &gradient)?;
    }
    let _shortened: f64 = update.finish();
    Ok(norm)
}

fn parameter_name(name: &str) -> String {
    format!("parameter/{name}")
}

fn moment_tensor_name(moment: &str, name: &str) -> String {
    format!("optimizer/{moment}/{name}")
}

#[cfg(test)]
mod tests;
