//! Models of one's own, in candle's idiom: layers over named variables, and a graph that is the way back. \[pure\]
//!
//! A user's crate implements [`OwnModel`] and gives [`kind`] of it to `sweepstream::cli::main_with`. What candle leaves
//! to chance is taken care of: variables are known by name and sorted by it, their first values come from the trial's
//! own generator, and so does dropout, through [`Mode`].

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fmt::Debug;
use std::sync::Mutex;

use candle_core::{DType, Device, Result, Shape, Tensor};
use candle_nn::var_builder::SimpleBackend;
use candle_nn::{Init, VarBuilder};

use super::batch::{Batch, Layout};
use super::error::{ModelError, ELEMENTS_MAX};
use super::graph::{recorded, recorded_loss};
use super::kind::{Key, Kind, ModelSpec, Task};
use super::loss::Loss;
use super::model::{Model, Pass};
use super::ops;
use super::parameters::{First, ParameterSpec, Parameters};
use super::seed::Generator;
use super::tensors::read;
use crate::features::window::Target;

/// A model of one's own.
pub trait OwnModel: Sized + Send + Debug + 'static {
    /// As search files name it: `model = "…"`.
    const NAME: &'static str;
    /// What it does, for lists; follows its name.
    const ABOUT: &'static str = "a model of one's own";
    /// Its hyper-parameters, which become keys of search files.
    const KEYS: &'static [Key] = &[];
    /// What it can learn, the first unless the search says otherwise: classes, numbers, or both.
    const TASKS: &'static [Task] = &[Task::Classification, Task::Regression];

    /// Asks `variables` for all of its variables, by the same names each time. `spec` has the values of its keys
    /// (`spec.count("width")`), the shape of the data, and how many outputs are wanted (`spec.outputs()`).
    ///
    /// # Errors
    /// Whatever the layers say.
    fn new(spec: &ModelSpec, variables: VarBuilder<'_>) -> Result<Self>;

    /// The outputs `[B, spec.outputs()]`: logits of the classes, or one number.
    ///
    /// # Errors
    /// Whatever the layers say.
    fn forward(&self, batch: &Padded, mode: &Mode) -> Result<Tensor>;

    /// A loss of its own, as the mean over the records; without one, the task's: cross-entropy or squared error.
    fn loss(&self, _outputs: &Tensor, _batch: &Padded) -> Option<Result<Tensor>> {
        None
    }
}

/// A kind of model that is one's own. It is there for good: to be made once.
#[must_use]
pub fn kind<M: OwnModel>() -> &'static Kind {
    Box::leak(Box::new(Kind {
        name: M::NAME,
        tasks: M::TASKS,
        layout: Layout::Packed,
        about: M::ABOUT,
        keys: M::KEYS,
        parameters: parameters::<M>,
        model: |spec, parameters| {
            let named = parameters.named().into_iter().collect();
            let variables = VarBuilder::from_backend(Box::new(Given(named)), DType::F32, Device::Cpu);
            let layers = M::new(spec, variables)?;
            Ok(Box::new(Own { parameters, layers, rows_max: spec.shape.rows_max }))
        },
    }))
}

/// Training, or evaluation.
#[derive(Debug)]
pub struct Mode(Option<RefCell<Generator>>);

impl Mode {
    /// Is what this pass finds learnt from?
    #[must_use]
    pub fn is_training(&self) -> bool {
        self.0.is_some()
    }

    /// In training, sets a share of the values to zero and divides the others by what is left; else nothing. Which ones
    /// is decided by the search's seed, the trial's number and the step.
    ///
    /// # Errors
    /// What the tensor library says.
    pub fn dropout(&self, values: &Tensor, share: f32) -> Result<Tensor> {
        let Some(generator) = self.0.as_ref().filter(|_| share > 0.0) else { return Ok(values.clone()) };
        let mask = ops::dropout(&mut generator.borrow_mut(), share, values.elem_count());
        values * Tensor::from_vec(mask, values.shape(), &Device::Cpu)?
    }
}

/// A batch whose matrices are filled up with rows of zeros.
#[derive(Debug)]
pub struct Padded {
    /// `[B, rows_max, D]`
    pub rows: Tensor,
    /// `[B, rows_max]`: 1 where there is a row, 0 where there is padding.
    pub mask: Tensor,
    /// `[B, 1]`: rows of each record.
    pub lengths: Tensor,
    /// What each record is to become.
    pub targets: Vec<Target>,
}

impl Padded {
    /// The mean of each record's rows, `[B, D]`.
    ///
    /// # Errors
    /// What the tensor library says.
    pub fn mean(&self) -> Result<Tensor> {
        self.rows.sum(1)?.broadcast_div(&self.lengths)
    }

    fn new(batch: &Batch<'_>, rows_max: usize) -> Result<Self> {
        let (records, dim) = (batch.rows_of_records()?, batch.packed.dim(1)?);
        let (mut values, mut mask) = (vec![0.0; records.len() * rows_max * dim], vec![0.0; records.len() * rows_max]);
        read(&batch.packed, |packed| {
            for (record, places) in records.iter().enumerate() {
                for (row, place) in places.iter().enumerate() {
                    let at = record * rows_max + row;
                    values[at * dim..][..dim].copy_from_slice(&packed[place * dim..][..dim]);
                    mask[at] = 1.0;
                }
            }
        })?;
        let lengths: Vec<f32> = records.iter().map(|places| places.len() as f32).collect();
        let tensor = |values, shape: &[usize]| Tensor::from_vec(values, shape, &Device::Cpu);
        Ok(Self {
            rows: tensor(values, &[records.len(), rows_max, dim])?,
            mask: tensor(mask, &[records.len(), rows_max])?,
            lengths: tensor(lengths, &[records.len(), 1])?,
            targets: batch.targets.to_vec(),
        })
    }
}

/// Layers of one's own over parameters that are the house's.
#[derive(Debug)]
struct Own<M> {
    parameters: Parameters,
    layers: M,
    rows_max: usize,
}

impl<M: OwnModel> Model for Own<M> {
    fn parameters(&self) -> &Parameters {
        &self.parameters
    }

    fn forward<'m>(
        &'m self,
        batch: &'m Batch<'_>,
        dropout: Option<Generator>,
    ) -> std::result::Result<Pass<'m>, ModelError> {
        let padded = Padded::new(batch, self.rows_max)?;
        let outputs = self.layers.forward(&padded, &Mode(dropout.map(RefCell::new)))?;
        let Some(mean) = self.layers.loss(&outputs, &padded) else { return Ok(recorded(&self.parameters, outputs)?) };
        let (mean, weight) = (mean?, batch.records() as f64);
        let loss = Loss { sum: f64::from(mean.to_scalar::<f32>()?) * weight, weight };
        Ok(recorded_loss(&self.parameters, outputs, mean, loss)?)
    }
}

/// Names, shapes and first values, as a model asks for them.
fn parameters<M: OwnModel>(spec: &ModelSpec) -> std::result::Result<Vec<ParameterSpec>, ModelError> {
    // What a padded record takes.
    if spec.shape.rows_max.checked_mul(spec.shape.dim).is_none_or(|values| values > ELEMENTS_MAX) {
        return Err(ModelError::Size);
    }
    let asked = std::sync::Arc::new(Mutex::new(Vec::new()));
    let recorder = Box::new(Recorder(std::sync::Arc::clone(&asked)));
    let made = M::new(spec, VarBuilder::from_backend(recorder, DType::F32, Device::Cpu));
    let mut asked = asked.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let elements = asked.iter().map(|parameter: &ParameterSpec| parameter.shape.iter().product::<usize>());
    if elements.fold(0_usize, usize::saturating_add) > ELEMENTS_MAX {
        return Err(ModelError::Size);
    }
    drop(made?);
    Ok(std::mem::take(&mut *asked))
}

/// Notes what is asked for, and gives zeros.
struct Recorder(std::sync::Arc<Mutex<Vec<ParameterSpec>>>);

impl SimpleBackend for Recorder {
    fn get(&self, shape: Shape, name: &str, init: Init, dtype: DType, device: &Device) -> Result<Tensor> {
        if dtype != DType::F32 {
            candle_core::bail!("variable `{name}` is asked for as {dtype:?}; variables of trials are F32");
        }
        let mut asked = self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let dims = shape.dims().to_vec();
        match asked.iter().find(|parameter| parameter.name == name) {
            Some(known) if known.shape != dims => {
                candle_core::bail!("variable `{name}` is asked for as {:?} and as {dims:?}", known.shape)
            }
            Some(_) => {}
            None => asked.push(ParameterSpec { name: name.to_owned(), first: first(init, &dims), shape: dims }),
        }
        let elements = shape.dims().iter().try_fold(1_usize, |size, &width| size.checked_mul(width));
        if elements.is_none_or(|elements| elements > ELEMENTS_MAX) {
            candle_core::bail!("variable `{name}` would have more than {ELEMENTS_MAX} elements");
        }
        Tensor::zeros(shape, dtype, device)
    }

    fn get_unchecked(&self, name: &str, _: DType, _: &Device) -> Result<Tensor> {
        candle_core::bail!("variable `{name}` is asked for without a shape; `get` has one")
    }

    fn contains_tensor(&self, _: &str) -> bool {
        true
    }
}

/// A trial's variables, by name.
struct Given(BTreeMap<String, Tensor>);

impl SimpleBackend for Given {
    fn get(&self, shape: Shape, name: &str, _: Init, _: DType, _: &Device) -> Result<Tensor> {
        match self.0.get(name) {
            Some(tensor) if *tensor.shape() == shape => Ok(tensor.clone()),
            Some(tensor) => {
                candle_core::bail!("variable `{name}` was {:?} before and is {shape:?} now", tensor.shape())
            }
            None => candle_core::bail!("variable `{name}` was not asked for before: names must be the same each time"),
        }
    }

    fn get_unchecked(&self, name: &str, _: DType, _: &Device) -> Result<Tensor> {
        candle_core::bail!("variable `{name}` is asked for without a shape; `get` has one")
    }

    fn contains_tensor(&self, name: &str) -> bool {
        self.0.contains_key(name)
    }
}

/// What candle's layers wish for their variables; where they wish for Kaiming's, what PyTorch draws.
fn first(init: Init, shape: &[usize]) -> First {
    match init {
        Init::Const(value) => First::Constant(value as f32),
        Init::Uniform { lo, up } => First::Range { from: lo as f32, to: up as f32 },
        Init::Randn { mean, stdev } => First::Normal { mean: mean as f32, deviation: stdev as f32 },
        Init::Kaiming { .. } => First::Uniform { fan_in: shape.iter().skip(1).product::<usize>().max(1) },
    }
}
