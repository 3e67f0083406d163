//! Looks a kind of model over before it trains: what candle gets wrong in silence shows on four records. \[pure\]
//!
//! For each task, on a probe of ragged records: the outputs have the right shape; every variable gets a gradient, and a
//! finite one; at the elements that move the loss most, the gradient is what a small step in either direction shows;
//! two runs give the same bits; and a state that was saved is the state that is restored.

use half::f16;

use super::fit::{Fit, FitError};
use super::optimizer::{OptimizerSpec, Rule};
use crate::features::codec::{Dtype, MatrixView};
use crate::features::window::{Example, Target};
use crate::models::batch::Batcher;
use crate::models::criterion::Criterion;
use crate::models::error::ModelError;
use crate::models::kind::{Kind, ModelSpec, Shape, Task};
use crate::models::seed::{Generator, Purpose};
use crate::models::tensors::{edit, read};

/// The probe: rows of each record. The last is longer than what is read.
const LENGTHS: [usize; 4] = [3, 8, 1, 9];
const SHAPE: Shape = Shape { rows_max: 8, dim: 16, classes: 3 };
/// Elements of each variable whose gradient is tried.
const TRIED: usize = 6;
/// How far an element is moved. A loss in `f32` shows it to about a thousandth of a gradient.
const STEP: f32 = 5e-3;

/// What is wrong with a kind of model.
#[derive(Debug, thiserror::Error)]
#[error("model `{model}`, task `{task}`: {why}")]
pub struct Diagnosis {
    pub model: &'static str,
    pub task: &'static str,
    pub why: Box<Complaint>,
}

/// See [`Diagnosis`].
#[derive(Debug, thiserror::Error)]
pub enum Complaint {
    #[error(transparent)]
    Fails(FitError),
    #[error("it has no variables, so there is nothing to learn: ask `variables` for them in `new`")]
    NoVariables,
    #[error("`forward` gives {found} values for {records} records; it has to give [{records}, {outputs}]")]
    Outputs { found: usize, records: usize, outputs: usize },
    #[error("`forward` gives a value that is no finite number")]
    NotFinite,
    #[error("the gradient of variable `{0}` is not finite")]
    Gradient(String),
    #[error(
        "the gradient of variable `{variable}` is {found} where a small step shows {expected}: an operation goes back \
         wrongly, or the variable's value was copied in `new`. Of candle's, conv1d does (0.11): write it as conv2d \
         with height 1, or as sums of shifted products"
    )]
    Wrong { variable: String, found: f32, expected: f32 },
    #[error(
        "two runs with the same seed give different weights: something draws from another generator than `mode`'s, or \
         depends on the order of a HashMap, on a clock or on threads"
    )]
    Differs,
    #[error("a state that was saved and restored is another one: the model keeps something that is no variable")]
    State,
}

impl From<FitError> for Complaint {
    fn from(error: FitError) -> Self {
        Self::Fails(error)
    }
}

impl From<ModelError> for Complaint {
    fn from(error: ModelError) -> Self {
        Self::Fails(error.into())
    }
}

impl From<candle_core::Error> for Complaint {
    fn from(error: candle_core::Error) -> Self {
        Self::Fails(error.into())
    }
}

/// Looks a kind over, for all that it can learn, with its default hyper-parameters.
///
/// # Errors
/// Says what is wrong and what to do about it.
pub fn examine(kind: &'static Kind) -> Result<(), Diagnosis> {
    kind.tasks.iter().try_for_each(|&task| {
        examine_task(kind, task).map_err(|why| Diagnosis { model: kind.name, task: task.name(), why: Box::new(why) })
    })
}

fn examine_task(kind: &'static Kind, task: Task) -> Result<(), Complaint> {
    let values = kind.keys.iter().map(|key| (key.name.to_owned(), key.default.value())).collect();
    let spec = ModelSpec { kind, task, values, shape: SHAPE };
    let records = records(task);
    let examples: Vec<Example<'_>> = records.iter().map(Record::example).collect();
    if spec.parameters()?.is_empty() {
        return Err(Complaint::NoVariables);
    }
    gradients(&spec, &examples)?;
    let train = || {
        let mut fit = Fit::new(spec.clone(), OptimizerSpec::new(Rule::ADAMW, 1e-2), 1, 2)?;
        (0..2).try_for_each(|step| fit.step(&examples, 0, step).map(drop))?;
        Ok::<_, FitError>(fit)
    };
    let (mut one, other) = (train()?, train()?);
    let state = one.state()?;
    if other.state()? != state {
        return Err(Complaint::Differs);
    }
    let mut restored = Fit::new(spec.clone(), OptimizerSpec::new(Rule::ADAMW, 1e-2), 3, 2)?;
    restored.restore(&state)?;
    let mut resumed = Fit::new(spec, OptimizerSpec::new(Rule::ADAMW, 1e-2), 1, 2)?;
    resumed.restore(&restored.state()?)?;
    for fit in [&mut one, &mut resumed] {
        let _report = fit.step(&examples, 0, 2)?;
    }
    if one.state()? != resumed.state()? {
        return Err(Complaint::State);
    }
    Ok(())
}

fn gradients(spec: &ModelSpec, examples: &[Example<'_>]) -> Result<(), Complaint> {
    let model = spec.build(&mut Generator::new(1, 2, Purpose::Weights, 0, 0))?;
    let mut batcher = Batcher::new(spec.input()).map_err(FitError::from)?;
    let batch = batcher.build(examples).map_err(FitError::from)?;
    let criterion = Criterion::plain(spec.task);
    let pass = || model.forward(&batch, Some(Generator::new(1, 2, Purpose::Dropout, 0, 0)));
    let loss = || {
        let pass = pass()?;
        match pass.loss {
            Some(loss) => Ok::<_, ModelError>(loss.mean()),
            None => Ok(criterion.compare(&pass.outputs, &batch)?.0.mean()),
        }
    };
    if loss()?.to_bits() != loss()?.to_bits() {
        return Err(Complaint::Differs);
    }
    let first = pass()?;
    let found: usize = first.outputs.iter().map(candle_core::Tensor::elem_count).sum();
    if spec.task.needs_labels() && found != examples.len() * spec.outputs() {
        return Err(Complaint::Outputs { found, records: examples.len(), outputs: spec.outputs() });
    }
    for output in &first.outputs {
        if !read(output, |values| values.iter().all(|value| value.is_finite()))? {
            return Err(Complaint::NotFinite);
        }
    }
    if first.loss.is_none() {
        let _compared = criterion.compare(&first.outputs, &batch)?;
    }
    let specs = model.parameters().specs();
    // Blocks of a variable lie in its rows and columns: each is noted with where it begins.
    let mut given: Vec<Vec<(usize, f32)>> = vec![Vec::new(); specs.len()];
    first.backward(&mut |place, values, gradient| {
        let (start, stride) = (values.layout().start_offset(), values.stride().first().copied().unwrap_or(1));
        let columns = values.elem_count() / values.dims().first().copied().unwrap_or(1).max(1);
        read(gradient, |gradient| {
            let at = |i: usize| start + i / columns * stride + i % columns;
            given[place].extend(gradient.iter().enumerate().map(|(i, gradient)| (at(i), *gradient)));
        })
    })?;
    for (place, spec) in specs.iter().enumerate() {
        if given[place].iter().any(|(_, gradient)| !gradient.is_finite()) {
            return Err(Complaint::Gradient(spec.name.clone()));
        }
        given[place].sort_by(|a, b| b.1.abs().total_cmp(&a.1.abs()));
        let largest = given[place].first().map_or(0.0, |(_, gradient)| gradient.abs());
        let mut worst = Vec::new();
        for &(at, gradient) in given[place].iter().take(TRIED) {
            let value = model.parameters().value(place);
            let moved = |by: f32| {
                edit(&value, |values| values[at] += by)?;
                let loss = loss();
                edit(&value, |values| values[at] -= by)?;
                loss
            };
            let expected = ((moved(STEP)? - moved(-STEP)?) / (2.0 * f64::from(STEP))) as f32;
            worst.push(((gradient - expected).abs(), gradient, expected));
        }
        // A step over a corner of ReLU or of a maximum shows something else; most of them do not.
        worst.sort_by(|a, b| a.0.total_cmp(&b.0));
        if let Some(&(error, found, expected)) = worst.get(worst.len() / 2) {
            if error > 0.05 * largest + 2e-4 {
                return Err(Complaint::Wrong { variable: spec.name.clone(), found, expected });
            }
        }
    }
    Ok(())
}

/// A record of the probe.
struct Record {
    rows: usize,
    bytes: Vec<u8>,
    target: Target,
}

impl Record {
    fn example(&self) -> Example<'_> {
        (MatrixView { dtype: Dtype::F16, rows: self.rows, dim: SHAPE.dim, data: &self.bytes }, self.target)
    }
}

fn records(task: Task) -> Vec<Record> {
    let mut chance = Generator::new(5, 0, Purpose::Weights, 0, 0);
    let record = |(number, &rows): (u32, &usize)| Record {
        rows,
        bytes: (0..rows * SHAPE.dim).flat_map(|_| f16::from_f32(chance.uniform() - 0.5).to_le_bytes()).collect(),
        target: match task {
            Task::Classification => Target::Class(number % SHAPE.classes as u32),
            Task::Regression => Target::Number(number as f32 - 1.5),
            Task::Reconstruction => Target::None,
        },
    };
    (0..).zip(&LENGTHS).map(record).collect()
}

#[cfg(test)]
mod tests;
