//! The models: what they are called, how they start, their losses and gradients. \[pure\]
//!
//! A model is a [`ModelSpec`] (plain data), its [`Parameters`] (named variables, sorted by name)
//! and a [`Network`] that knows the formulas. Another model is another variant of the spec and
//! another implementation of [`Network`], in a file of its own.
//!
//! The fully connected models here write their backward pass out instead of recording a graph:
//! candle's would compute gradients that nobody reads (of the input), add each gradient to zeros
//! first, and keep a full copy of every weight's gradient. Here each block of a gradient goes to
//! the optimizer while it is in the cache. The tests hold it against finite differences, an `f64`
//! reference and PyTorch's numbers.
//!
//! # Definitions
//!
//! - **mlp**: mean of the rows → `l1` (D → hidden) → ReLU → dropout → `l2` (hidden → classes).
//!   Loss: mean cross-entropy over the batch, natural logarithm.
//! - **autoencoder**: the rows flattened and padded with zeros to `rows_max`, [T·D] → `layers.0` →
//!   ReLU → dropout → … → `layers.n` → [T·D], widths as in `layers`, then mirrored. Loss: squared
//!   error summed over the rows that exist / (number of those rows · D). Outputs for padding are
//!   neither computed nor compared.
//! - A layer is `y = x Wᵀ + b` with `W` `[out, in]`.
//! - **Dropout** is inverted: with probability p an activation becomes 0, else it is divided by 1 −
//!   p.
//! - **First weights and biases** are U(−1/√fan_in, 1/√fan_in), fan_in being the layer's input
//!   width, drawn in the order of the sorted names, row by row.
//!
//! # What bits depend on
//!
//! Results are equal bit by bit for equal input, weights and generators on machines whose matrix
//! product has the same vector instructions (all x86-64 with AVX2 and FMA; all aarch64). The
//! product sums in blocks whose size it derives from the cache sizes it finds, but never divides a
//! depth of 512 or less, so that deeper ones are cut here. Candle asks `RAYON_NUM_THREADS` at each
//! product: whoever trains sets it to 1 beforehand, since several trials would otherwise fight for
//! the processors.

use candle_core::{DType, Device, Tensor, Var};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::text::shortened;

use super::batch::{add, edit, read, Batch, InputSpec, Layout};
use super::optimizer::sum_of_squares;
use super::seed::Generator;

/// Most elements that all parameters of a model may have together: 4 GiB of `f32`.
pub const ELEMENTS_MAX: usize = 1 << 30;

/// Most widths of an encoder.
pub const LAYERS_MAX: usize = 64;

/// Deepest product that is not cut; see the module's documentation.
const DEPTH_MAX: usize = 512;

/// What kept a model from being built or from computing.
#[derive(Debug, Error)]
pub enum ModelError {
    /// A setting out of range.
    #[error("{setting} must be {expected}, not {found}")]
    Setting {
        /// Its name in the search file.
        setting: &'static str,
        /// What it may be.
        expected: &'static str,
        /// What it is.
        found: String,
    },
    /// More parameters than [`ELEMENTS_MAX`].
    #[error("the model would have more than {ELEMENTS_MAX} parameters: lower rows_max, layers or hidden")]
    Size,
    /// A record without a class for a model that learns classes.
    #[error("record {record} of the batch has no label")]
    NoLabel {
        /// Position in the batch.
        record: usize,
    },
    /// A class that the model does not have.
    #[error("record {record} of the batch has label {label}, the model has {classes} classes")]
    Label {
        /// Position in the batch.
        record: usize,
        /// Its class.
        label: u32,
        /// Number of classes.
        classes: usize,
    },
    /// The tensor library refused.
    #[error(transparent)]
    Tensor(#[from] candle_core::Error),
}

/// Which model, and how large.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "model", rename_all = "lowercase", deny_unknown_fields)]
pub enum ModelSpec {
    /// Reconstructs the rows through a narrow middle.
    Autoencoder {
        /// T: rows read.
        rows_max: usize,
        /// D: values in a row.
        dim: usize,
        /// Widths of the encoder, the narrowest last; the decoder mirrors them.
        layers: Vec<usize>,
        /// Share of activations dropped after each ReLU.
        #[serde(default)]
        dropout: f32,
    },
    /// Classifies the mean row with one hidden layer.
    Mlp {
        /// Rows that the mean is taken over, at most.
        rows_max: usize,
        /// D: values in a row.
        dim: usize,
        /// Width of the hidden layer.
        hidden: usize,
        /// C: number of classes.
        classes: usize,
        /// Share of activations dropped after the ReLU.
        #[serde(default)]
        dropout: f32,
    },
}

/// Name, shape and first range of a parameter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ParameterSpec {
    /// Name in files and exports.
    pub name: String,
    /// `[out, in]` for weights, `[out]` for biases.
    pub shape: Vec<usize>,
    /// Input width of the layer it belongs to.
    pub fan_in: usize,
}

impl ModelSpec {
    /// Checks the settings and the model's size.
    ///
    /// # Errors
    /// [`ModelError::Setting`] or [`ModelError::Size`].
    pub fn check(&self) -> Result<(), ModelError> {
        let positive = |setting, value: usize| match value {
            0 => Err(ModelError::Setting { setting, expected: "at least 1", found: value.to_string() }),
            _ => Ok(()),
        };
        let dropout = match self {
            Self::Autoencoder { rows_max, dim, layers, dropout } => {
                positive("rows_max", *rows_max)?;
                positive("dim", *dim)?;
                if layers.is_empty() || layers.len() > LAYERS_MAX || layers.contains(&0) {
                    let expected = "a list of 1 to 64 widths of at least 1";
                    let found = shortened(&format!("{layers:?}"));
                    return Err(ModelError::Setting { setting: "layers", expected, found });
                }
                *dropout
            }
            Self::Mlp { rows_max, dim, hidden, classes, dropout } => {
                positive("rows_max", *rows_max)?;
                positive("dim", *dim)?;
                positive("hidden", *hidden)?;
                positive("classes", *classes)?;
                *dropout
            }
        };
        if !(0.0..1.0).contains(&dropout) {
            let expected = "at least 0 and below 1";
            return Err(ModelError::Setting { setting: "dropout", expected, found: dropout.to_string() });
        }
        let widths = self.widths().ok_or(ModelError::Size)?;
        let elements = widths.windows(2).try_fold(0_usize, |sum, ends| {
            let inputs = ends[0].checked_add(1)?;
            sum.checked_add(inputs.checked_mul(ends[1])?)
        });
        match elements {
            Some(elements) if elements <= ELEMENTS_MAX => Ok(()),
            _ => Err(ModelError::Size),
        }
    }

    /// Input width, the hidden layers' widths, output width; nothing if the input's overflows.
    fn widths(&self) -> Option<Vec<usize>> {
        match self {
            Self::Autoencoder { rows_max, dim, layers, .. } => {
                let flat = rows_max.checked_mul(*dim)?;
                let decoder = layers.iter().rev().skip(1);
                Some([flat].iter().chain(layers).chain(decoder).chain(&[flat]).copied().collect())
            }
            Self::Mlp { dim, hidden, classes, .. } => Some(vec![*dim, *hidden, *classes]),
        }
    }

    /// What the model reads.
    #[must_use]
    pub fn input(&self) -> InputSpec {
        let (layout, rows_max, dim) = match *self {
            Self::Autoencoder { rows_max, dim, .. } => (Layout::Packed, rows_max, dim),
            Self::Mlp { rows_max, dim, .. } => (Layout::Pooled, rows_max, dim),
        };
        InputSpec { layout, rows_max, dim }
    }

    /// Number of classes; 0 for a model that learns none.
    #[must_use]
    pub fn classes(&self) -> usize {
        match self {
            Self::Autoencoder { .. } => 0,
            Self::Mlp { classes, .. } => *classes,
        }
    }

    fn layer_name(&self, layer: usize) -> String {
        match self {
            Self::Autoencoder { .. } => format!("layers.{layer}"),
            Self::Mlp { .. } => format!("l{}", layer + 1),
        }
    }

    /// All parameters, sorted by name.
    ///
    /// # Errors
    /// As [`ModelSpec::check`].
    pub fn parameters(&self) -> Result<Vec<ParameterSpec>, ModelError> {
        self.check()?;
        let widths = self.widths().ok_or(ModelError::Size)?;
        let mut parameters = Vec::new();
        for (layer, ends) in widths.windows(2).enumerate() {
            let (name, fan_in, out) = (self.layer_name(layer), ends[0], ends[1]);
            parameters.push(ParameterSpec { name: format!("{name}.weight"), shape: vec![out, fan_in], fan_in });
            parameters.push(ParameterSpec { name: format!("{name}.bias"), shape: vec![out], fan_in });
        }
        parameters.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(parameters)
    }

    fn network(&self, parameters: &Parameters) -> Result<Box<dyn Network>, ModelError> {
        Ok(Box::new(self.dense(parameters)?))
    }

    fn dense(&self, parameters: &Parameters) -> Result<Dense, ModelError> {
        let (objective, dropout) = match *self {
            Self::Autoencoder { dim, dropout, .. } => (Objective::Reconstruction { dim }, dropout),
            Self::Mlp { classes, dropout, .. } => (Objective::Classes { classes }, dropout),
        };
        let layer = |layer| {
            let name = self.layer_name(layer);
            let find = |kind: &str| {
                let name = format!("{name}.{kind}");
                let place = parameters.specs.iter().position(|spec| spec.name == name);
                place.ok_or_else(|| candle_core::Error::msg(format!("the model has no parameter {name}")))
            };
            Ok::<_, candle_core::Error>(Layer { weight: find("weight")?, bias: find("bias")? })
        };
        let layers = (0..parameters.specs.len() / 2).map(layer).collect::<Result<_, _>>()?;
        Ok(Dense { layers, objective, dropout, dim: self.input().dim })
    }
}

/// A model's variables, sorted by name.
#[derive(Debug)]
pub struct Parameters {
    specs: Vec<ParameterSpec>,
    variables: Vec<Var>,
}

impl Parameters {
    fn new(specs: Vec<ParameterSpec>, weights: &mut Generator) -> Result<Self, ModelError> {
        let variable = |spec: &ParameterSpec| {
            let bound = (1.0 / (spec.fan_in as f64).sqrt()) as f32;
            let elements = spec.shape.iter().product();
            let values: Vec<f32> = (0..elements).map(|_| (2.0 * weights.uniform() - 1.0) * bound).collect();
            Var::from_vec(values, spec.shape.as_slice(), &Device::Cpu)
        };
        let variables = specs.iter().map(variable).collect::<Result<_, _>>()?;
        Ok(Self { specs, variables })
    }

    /// Names, shapes and fan-ins, sorted by name. A parameter's *place* is its position here.
    #[must_use]
    pub fn specs(&self) -> &[ParameterSpec] {
        &self.specs
    }

    /// The parameter at a place, as a tensor that shares its memory.
    #[must_use]
    pub fn value(&self, place: usize) -> Tensor {
        self.variables[place].as_detached_tensor()
    }
}

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

/// What a forward pass found, and what the backward pass needs of it.
#[derive(Debug)]
pub struct Pass {
    /// The batch's loss.
    pub loss: Loss,
    /// Most likely class of each record, in the order of [`Batch::order`]; empty if the model knows
    /// no classes.
    pub predictions: Vec<u32>,
    /// Inputs of the layers after the first.
    hidden: Vec<Tensor>,
    /// Gradients of the loss with regard to the outputs, block by block.
    residuals: Vec<Tensor>,
    /// What activations that were not dropped were multiplied with.
    kept_scale: f32,
}

/// Takes a gradient: the parameter's place, the parameter or a block narrowed out of it, and that
/// one's gradient.
///
/// The receiver may change the parameter at once. Together the blocks tile every parameter exactly.
pub type GradientSink<'a> = dyn FnMut(usize, &Tensor, &Tensor) -> candle_core::Result<()> + 'a;

/// The formulas of a model.
pub trait Network: Send + std::fmt::Debug {
    /// Loss and predictions. `dropout` is this step's generator; without one nothing is dropped
    /// (evaluation).
    ///
    /// # Errors
    /// Labels that are missing or no class of the model, and what the tensor library says.
    fn forward(
        &self,
        parameters: &Parameters,
        batch: &Batch<'_>,
        dropout: Option<Generator>,
    ) -> Result<Pass, ModelError>;

    /// Gives every gradient of the pass's mean loss to `sink`, each block after it was read for the
    /// last time.
    ///
    /// # Errors
    /// What the tensor library or the sink says. Some blocks may have been given then.
    fn backward(
        &self,
        parameters: &Parameters,
        batch: &Batch<'_>,
        pass: Pass,
        sink: &mut GradientSink<'_>,
    ) -> Result<(), ModelError>;
}

/// A model ready to compute.
#[derive(Debug)]
pub struct Model {
    spec: ModelSpec,
    parameters: Parameters,
    network: Box<dyn Network>,
}

impl Model {
    /// A model with first weights from a generator.
    ///
    /// # Errors
    /// Settings that are out of range, and what the tensor library says.
    pub fn new(spec: ModelSpec, weights: &mut Generator) -> Result<Self, ModelError> {
        let parameters = Parameters::new(spec.parameters()?, weights)?;
        let network = spec.network(&parameters)?;
        Ok(Self { spec, parameters, network })
    }

    /// Which model this is.
    #[must_use]
    pub fn spec(&self) -> &ModelSpec {
        &self.spec
    }

    /// Its variables.
    #[must_use]
    pub fn parameters(&self) -> &Parameters {
        &self.parameters
    }

    /// See [`Network::forward`].
    ///
    /// # Errors
    /// See there.
    pub fn forward(&self, batch: &Batch<'_>, dropout: Option<Generator>) -> Result<Pass, ModelError> {
        self.network.forward(&self.parameters, batch, dropout)
    }

    /// See [`Network::backward`].
    ///
    /// # Errors
    /// See there.
    pub fn backward(&self, batch: &Batch<'_>, pass: Pass, sink: &mut GradientSink<'_>) -> Result<(), ModelError> {
        self.network.backward(&self.parameters, batch, pass, sink)
    }

    /// Outputs before they become residuals, one vector for each record in the order of slot 0.
    #[cfg(test)]
    pub(super) fn outputs(&self, batch: &Batch<'_>) -> Vec<Vec<f32>> {
        let dense = self.spec.dense(&self.parameters).unwrap();
        let hidden = dense.hidden(&self.parameters, batch, None, 1.0).unwrap();
        let mut outputs = vec![Vec::new(); batch.records()];
        for block in dense.outputs(&self.parameters, batch, &hidden).unwrap() {
            for (output, values) in outputs.iter_mut().zip(block.to_vec2::<f32>().unwrap()) {
                output.extend(values);
            }
        }
        outputs
    }
}

/// Places of a layer's parameters.
#[derive(Clone, Copy, Debug)]
struct Layer {
    weight: usize,
    bias: usize,
}

#[derive(Clone, Copy, Debug)]
enum Objective {
    /// The input itself, slot by slot.
    Reconstruction { dim: usize },
    /// One of so many classes.
    Classes { classes: usize },
}

/// Fully connected layers with ReLU between them.
///
/// The first layer's weights are cut into one block of columns for each slot of the input, the last
/// layer's into blocks of rows (a slot of the output each; all classes are one block).
#[derive(Debug)]
struct Dense {
    layers: Vec<Layer>,
    objective: Objective,
    dropout: f32,
    dim: usize,
}

impl Network for Dense {
    fn forward(
        &self,
        parameters: &Parameters,
        batch: &Batch<'_>,
        dropout: Option<Generator>,
    ) -> Result<Pass, ModelError> {
        let mut dropout = dropout.filter(|_| self.dropout > 0.0);
        let kept_scale = if dropout.is_some() { 1.0 / (1.0 - self.dropout) } else { 1.0 };
        let hidden = self.hidden(parameters, batch, dropout.as_mut(), kept_scale)?;
        let mut residuals = self.outputs(parameters, batch, &hidden)?;
        let (loss, predictions) = match self.objective {
            Objective::Reconstruction { dim } => (reconstruction_loss(&mut residuals, batch, dim)?, Vec::new()),
            Objective::Classes { classes } => class_loss(&mut residuals, batch, classes)?,
        };
        Ok(Pass { loss, predictions, hidden, residuals, kept_scale })
    }

    fn backward(
        &self,
        parameters: &Parameters,
        batch: &Batch<'_>,
        pass: Pass,
        sink: &mut GradientSink<'_>,
    ) -> Result<(), ModelError> {
        let Pass { hidden, residuals, kept_scale, .. } = pass;
        let last = self.layers.len() - 1;
        let mut gradient = self.last_backward(parameters, &hidden[last - 1], &residuals, sink)?;
        through_relu(&gradient, &hidden[last - 1], kept_scale)?;
        for (layer, below) in self.layers[1..last].iter().zip(&hidden).rev() {
            let weight = parameters.value(layer.weight);
            let next = product(&gradient, &weight)?;
            through_relu(&next, below, kept_scale)?;
            sink(layer.weight, &weight, &product(&gradient.t()?, below)?)?;
            sink(layer.bias, &parameters.value(layer.bias), &column_sums(&gradient)?)?;
            gradient = next;
        }
        self.first_backward(parameters, batch, &gradient, sink)
    }
}

impl Dense {
    /// Activations after each ReLU: the inputs of all layers but the first.
    fn hidden(
        &self,
        parameters: &Parameters,
        batch: &Batch<'_>,
        mut dropout: Option<&mut Generator>,
        kept_scale: f32,
    ) -> Result<Vec<Tensor>, ModelError> {
        let mut hidden: Vec<Tensor> = Vec::with_capacity(self.layers.len() - 1);
        for layer in &self.layers[..self.layers.len() - 1] {
            let weight = parameters.value(layer.weight);
            let sums = match hidden.last() {
                Some(below) => product(below, &weight.t()?)?,
                None => self.first_sums(&weight, batch)?,
            };
            let bias = parameters.value(layer.bias);
            read(&bias, |bias| edit(&sums, |sums| add_bias(sums, bias)))??;
            edit(&sums, |sums| relu(sums, dropout.as_deref_mut(), self.dropout, kept_scale))?;
            hidden.push(sums);
        }
        Ok(hidden)
    }

    /// `x Wᵀ` of the first layer. Slot 0 has all records; a shorter slot adds to the first of them.
    fn first_sums(&self, weight: &Tensor, batch: &Batch<'_>) -> Result<Tensor, ModelError> {
        let block = |slot: usize| weight.narrow(1, slot * self.dim, self.dim)?.t();
        let sums = product(&batch.slots[0], &block(0)?)?;
        for (slot, rows) in batch.slots.iter().enumerate().skip(1) {
            accumulate(&sums, &product(rows, &block(slot)?)?)?;
        }
        Ok(sums)
    }

    /// Outputs block by block: `[n_t, D]` for each slot, or `[B, classes]`.
    fn outputs(
        &self,
        parameters: &Parameters,
        batch: &Batch<'_>,
        hidden: &[Tensor],
    ) -> Result<Vec<Tensor>, ModelError> {
        let last = self.layers[self.layers.len() - 1];
        let (weight, bias) = (parameters.value(last.weight), parameters.value(last.bias));
        let (top, width) = (&hidden[hidden.len() - 1], self.output_width());
        let output = |(block, rows): (usize, &Tensor)| {
            let inputs = top.narrow(0, 0, rows.dim(0)?)?;
            let output = product(&inputs, &weight.narrow(0, block * width, width)?.t()?)?;
            let bias = bias.narrow(0, block * width, width)?;
            read(&bias, |bias| edit(&output, |output| add_bias(output, bias)))??;
            Ok(output)
        };
        batch.slots.iter().enumerate().map(output).collect()
    }

    /// Width of an output block. There are as many blocks as slots: a model of classes reads a
    /// single slot.
    fn output_width(&self) -> usize {
        match self.objective {
            Objective::Reconstruction { dim } => dim,
            Objective::Classes { classes } => classes,
        }
    }

    /// Gives away the last layer's gradients and returns that of its input.
    fn last_backward(
        &self,
        parameters: &Parameters,
        top: &Tensor,
        residuals: &[Tensor],
        sink: &mut GradientSink<'_>,
    ) -> Result<Tensor, ModelError> {
        let (layer, width) = (self.layers[self.layers.len() - 1], self.output_width());
        let (weight, bias) = (parameters.value(layer.weight), parameters.value(layer.bias));
        let below = top.zeros_like()?;
        let nothing = Tensor::zeros((width, top.dim(1)?), DType::F32, &Device::Cpu)?;
        let bias_gradient = bias.zeros_like()?;
        for block in 0..weight.dim(0)? / width {
            let values = weight.narrow(0, block * width, width)?;
            let Some(residual) = residuals.get(block) else {
                sink(layer.weight, &values, &nothing)?;
                continue;
            };
            accumulate(&below, &product(residual, &values)?)?;
            let inputs = top.narrow(0, 0, residual.dim(0)?)?;
            sink(layer.weight, &values, &product(&residual.t()?, &inputs)?)?;
            accumulate(&bias_gradient.narrow(0, block * width, width)?, &column_sums(residual)?)?;
        }
        sink(layer.bias, &bias, &bias_gradient)?;
        Ok(below)
    }

    /// Gives away the first layer's gradients.
    fn first_backward(
        &self,
        parameters: &Parameters,
        batch: &Batch<'_>,
        gradient: &Tensor,
        sink: &mut GradientSink<'_>,
    ) -> Result<(), ModelError> {
        let layer = self.layers[0];
        let weight = parameters.value(layer.weight);
        let nothing = Tensor::zeros((weight.dim(0)?, self.dim), DType::F32, &Device::Cpu)?;
        for slot in 0..weight.dim(1)? / self.dim {
            let values = weight.narrow(1, slot * self.dim, self.dim)?;
            match batch.slots.get(slot) {
                Some(rows) => {
                    let outputs = gradient.narrow(0, 0, rows.dim(0)?)?;
                    sink(layer.weight, &values, &product(&outputs.t()?, rows)?)?;
                }
                None => sink(layer.weight, &values, &nothing)?,
            }
        }
        sink(layer.bias, &parameters.value(layer.bias), &column_sums(gradient)?)?;
        Ok(())
    }
}

/// Squared error of the outputs; each output becomes the gradient of the mean loss with regard to
/// itself.
fn reconstruction_loss(outputs: &mut [Tensor], batch: &Batch<'_>, dim: usize) -> Result<Loss, ModelError> {
    let weight = (batch.rows * dim) as f64;
    let scale = (2.0 / weight) as f32;
    let mut sum = 0.0;
    for (output, rows) in outputs.iter().zip(&batch.slots) {
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
/// one-hot) / B.
///
/// In `f64`, rounded once: it costs nothing here, and it keeps the last bits from depending on the
/// platform's `expf`.
fn class_loss(outputs: &mut [Tensor], batch: &Batch<'_>, classes: usize) -> Result<(Loss, Vec<u32>), ModelError> {
    let labels = labels(batch, classes)?;
    let (records, mut sum) = (labels.len() as f64, 0.0);
    let mut predictions = Vec::with_capacity(labels.len());
    let mut exponentials = vec![0.0; classes];
    for output in outputs.iter() {
        edit(output, |logits| {
            for (logits, &label) in logits.chunks_exact_mut(classes).zip(&labels) {
                let best = most(logits);
                predictions.push(best as u32);
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
    Ok((Loss { sum, weight: records }, predictions))
}

fn labels(batch: &Batch<'_>, classes: usize) -> Result<Vec<usize>, ModelError> {
    let check = |(&label, &record): (&Option<u32>, &usize)| {
        let label = label.ok_or(ModelError::NoLabel { record })?;
        match usize::try_from(label) {
            Ok(class) if class < classes => Ok(class),
            _ => Err(ModelError::Label { record, label, classes }),
        }
    };
    batch.labels.iter().zip(batch.order).map(check).collect()
}

/// Position of the highest value, the first of equals.
fn most(values: &[f32]) -> usize {
    let mut best = 0;
    for (place, value) in values.iter().enumerate() {
        if *value > values[best] {
            best = place;
        }
    }
    best
}

/// Matrix product, in the same order of summation on every machine; see the module's documentation.
fn product(left: &Tensor, right: &Tensor) -> candle_core::Result<Tensor> {
    let depth = left.dim(1)?;
    if depth <= DEPTH_MAX {
        return left.matmul(right);
    }
    let part = |start: usize| {
        let depth = DEPTH_MAX.min(depth - start);
        left.narrow(1, start, depth)?.matmul(&right.narrow(0, start, depth)?)
    };
    let sum = part(0)?;
    for start in (DEPTH_MAX..depth).step_by(DEPTH_MAX) {
        accumulate(&sum, &part(start)?)?;
    }
    Ok(sum)
}

/// Adds to the first rows of `sum`.
fn accumulate(sum: &Tensor, values: &Tensor) -> candle_core::Result<()> {
    read(values, |values| edit(sum, |sum| add(sum, values)))?
}

/// Sums of the columns, in row order: a bias's gradient.
fn column_sums(rows: &Tensor) -> candle_core::Result<Tensor> {
    let width = rows.dim(1)?;
    let sums = read(rows, |rows| {
        let mut sums = vec![0.0; width];
        rows.chunks_exact(width).for_each(|row| add(&mut sums, row));
        sums
    })?;
    Tensor::from_vec(sums, width, &Device::Cpu)
}

fn add_bias(rows: &mut [f32], bias: &[f32]) {
    rows.chunks_exact_mut(bias.len()).for_each(|row| add(row, bias));
}

/// ReLU, then inverted dropout with probability `share` if there is a generator.
fn relu(values: &mut [f32], dropout: Option<&mut Generator>, share: f32, kept_scale: f32) {
    // Not `max`, which would turn NaN into 0 and hide that the trial has diverged.
    values.iter_mut().for_each(|value| *value = if *value < 0.0 { 0.0 } else { *value });
    if let Some(generator) = dropout {
        for value in values {
            *value = if generator.uniform() < share { 0.0 } else { *value * kept_scale };
        }
    }
}

/// The gradient below ReLU and dropout: nothing passes where the activation is 0, by either.
fn through_relu(gradient: &Tensor, activations: &Tensor, kept_scale: f32) -> candle_core::Result<()> {
    read(activations, |activations| {
        edit(gradient, |gradient| {
            for (gradient, activation) in gradient.iter_mut().zip(activations) {
                *gradient = if *activation > 0.0 { *gradient * kept_scale } else { 0.0 };
            }
        })
    })?
}

#[cfg(test)]
mod tests {
    use super::super::batch::samples::{records, waves, Sample};
    use super::super::batch::Batcher;
    use super::super::seed::Purpose;
    use super::*;
    use crate::features::codec::Dtype;

    fn mlp(dropout: f32) -> ModelSpec {
        ModelSpec::Mlp { rows_max: 6, dim: 5, hidden: 7, classes: 3, dropout }
    }

    fn autoencoder(dropout: f32) -> ModelSpec {
        ModelSpec::Autoencoder { rows_max: 6, dim: 5, layers: vec![9, 4], dropout }
    }

    fn model(spec: ModelSpec) -> Model {
        Model::new(spec, &mut Generator::new(1, 2, Purpose::Weights, 0, 0)).unwrap()
    }

    fn dropout() -> Option<Generator> {
        Some(Generator::new(1, 2, Purpose::Dropout, 3, 4))
    }

    fn loss(model: &Model, batch: &Batch<'_>) -> f64 {
        model.forward(batch, dropout()).unwrap().loss.mean()
    }

    /// Full gradients by place, and how often each element was given.
    fn gradients(model: &Model, batch: &Batch<'_>) -> Vec<(Vec<f32>, Vec<u32>)> {
        let specs = model.parameters().specs();
        let size = |spec: &ParameterSpec| spec.shape.iter().product::<usize>();
        let mut found: Vec<_> = specs.iter().map(|spec| (vec![0.0; size(spec)], vec![0; size(spec)])).collect();
        let pass = model.forward(batch, dropout()).unwrap();
        let mut sink = |place: usize, values: &Tensor, gradient: &Tensor| {
            assert_eq!(values.shape(), gradient.shape());
            let (gradients, times) = &mut found[place];
            let (start, stride) = (values.layout().start_offset(), values.stride()[0]);
            let columns = values.elem_count() / values.dim(0)?;
            for (i, gradient) in gradient.flatten_all()?.to_vec1::<f32>()?.into_iter().enumerate() {
                let at = start + i / columns * stride + i % columns;
                gradients[at] = gradient;
                times[at] += 1;
            }
            Ok(())
        };
        model.backward(batch, pass, &mut sink).unwrap();
        found
    }

    #[test]
    fn every_element_gets_one_gradient_and_every_parameter_learns() {
        for spec in [mlp(0.0), autoencoder(0.0), mlp(0.3), autoencoder(0.3)] {
            let model = model(spec.clone());
            for lengths in [&[6, 2, 4, 6, 1, 3, 5, 2][..], &[2, 1, 3], &[1]] {
                let (samples, mut batcher) = (waves(Dtype::F32, lengths, 5), Batcher::new(spec.input()).unwrap());
                let batch = batcher.build(&records(&samples)).unwrap();
                for (spec, (gradient, times)) in model.parameters().specs().iter().zip(gradients(&model, &batch)) {
                    assert!(times.iter().all(|&times| times == 1), "{}", spec.name);
                    assert!(lengths.len() < 8 || gradient.iter().any(|&g| g != 0.0), "{} stays as it is", spec.name);
                }
            }
        }
    }

    /// Loss and gradients by candle-nn's layers and candle's autograd, from padded input.
    fn by_autograd(model: &Model, samples: &[Sample]) -> (f64, Vec<Vec<f32>>) {
        use candle_nn::Module;
        let (rows_max, dim) = (model.spec().input().rows_max, model.spec().input().dim);
        let (mut padded, mut mask) = (Vec::new(), Vec::new());
        for sample in samples {
            let values = sample.bytes.chunks_exact(4).map(|bytes| f32::from_le_bytes(bytes.try_into().unwrap()));
            padded.extend(values.take(rows_max * dim));
            padded.resize(mask.len() * dim + rows_max * dim, 0.0);
            mask.extend((0..rows_max).map(|row| f32::from(u8::from(row < sample.rows))));
        }
        let cpu = &candle_core::Device::Cpu;
        let x = Tensor::from_vec(padded, (samples.len(), rows_max, dim), cpu).unwrap();
        let mask = Tensor::from_vec(mask, (samples.len(), rows_max, 1), cpu).unwrap();
        let value = |place: usize| candle_core::Var::from_tensor(&model.parameters().value(place)).unwrap();
        let variables: Vec<candle_core::Var> = (0..model.parameters().specs().len()).map(value).collect();
        let named = |name: &str| {
            let place = model.parameters().specs().iter().position(|spec| spec.name == name).unwrap();
            variables[place].as_tensor().clone()
        };
        let layer =
            |name: &str| candle_nn::Linear::new(named(&format!("{name}.weight")), Some(named(&format!("{name}.bias"))));
        let loss = match model.spec() {
            ModelSpec::Mlp { .. } => {
                let lengths = mask.sum(1).unwrap();
                let mean = x.sum(1).unwrap().broadcast_div(&lengths).unwrap();
                let logits = layer("l2").forward(&layer("l1").forward(&mean).unwrap().relu().unwrap()).unwrap();
                let labels: Vec<u32> = samples.iter().map(|sample| sample.label.unwrap()).collect();
                let labels = Tensor::from_vec(labels, samples.len(), cpu).unwrap();
                candle_nn::loss::cross_entropy(&logits, &labels).unwrap()
            }
            ModelSpec::Autoencoder { layers, .. } => {
                let last = 2 * layers.len() - 1;
                let mut y = x.flatten_from(1).unwrap();
                for i in 0..=last {
                    y = layer(&format!("layers.{i}")).forward(&y).unwrap();
                    y = if i < last { y.relu().unwrap() } else { y };
                }
                let error = (y.reshape(x.shape()).unwrap() - &x).unwrap().broadcast_mul(&mask).unwrap();
                let unmasked = mask.sum_all().unwrap().to_scalar::<f32>().unwrap() as f64;
                (error.sqr().unwrap().sum_all().unwrap() / (unmasked * dim as f64)).unwrap()
            }
        };
        let gradients = loss.backward().unwrap();
        let flat =
            |variable: &candle_core::Var| gradients.get(variable).unwrap().flatten_all().unwrap().to_vec1().unwrap();
        (f64::from(loss.to_scalar::<f32>().unwrap()), variables.iter().map(flat).collect())
    }

    #[test]
    fn loss_and_gradients_are_those_of_candles_own_layers_and_autograd() {
        for spec in [mlp(0.0), autoencoder(0.0)] {
            let (samples, mut batcher) =
                (waves(Dtype::F32, &[6, 2, 4, 6, 1, 3, 5, 2], 5), Batcher::new(spec.input()).unwrap());
            let batch = batcher.build(&records(&samples)).unwrap();
            let model = model(spec);
            let (loss, expected) = by_autograd(&model, &samples);
            assert!((model.forward(&batch, None).unwrap().loss.mean() - loss).abs() < 1e-6);
            for ((found, _), expected) in gradients(&model, &batch).iter().zip(&expected) {
                let largest = found.iter().zip(expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
                assert!(largest < 1e-6, "{largest}");
            }
        }
    }

    #[test]
    fn gradients_are_those_of_the_loss() {
        const STEP: f32 = 2e-3;
        for spec in [mlp(0.0), autoencoder(0.0), mlp(0.4), autoencoder(0.4)] {
            let (samples, mut batcher) =
                (waves(Dtype::F32, &[4, 2, 3, 1, 4, 3], 5), Batcher::new(spec.input()).unwrap());
            let batch = batcher.build(&records(&samples)).unwrap();
            let model = model(spec.clone());
            for (place, (gradient, _)) in gradients(&model, &batch).iter().enumerate() {
                let value = model.parameters().value(place);
                let nudge = |at: usize, by: f32| edit(&value, |values| values[at] += by).unwrap();
                let mut differences: Vec<f64> = Vec::new();
                for (at, &gradient) in gradient.iter().enumerate() {
                    nudge(at, STEP);
                    let above = loss(&model, &batch);
                    nudge(at, -2.0 * STEP);
                    let below = loss(&model, &batch);
                    nudge(at, STEP);
                    differences.push(((above - below) / (2.0 * f64::from(STEP)) - f64::from(gradient)).abs());
                }
                // A step over a ReLU's corner is off by more; that may happen to a few of them. Nobody has
                // rows 4 and 5, whose third of the outer weights must show no gradient.
                differences.sort_by(f64::total_cmp);
                let typical = differences[differences.len() * 9 / 10];
                let largest = gradient.iter().fold(0.0_f32, |most, g| most.max(g.abs()));
                assert!(largest > 1e-3, "{spec:?}: gradient {place} is too small to be compared");
                assert!(typical < 5e-3 * f64::from(largest), "{spec:?} {place}: {typical} of {largest}");
            }
        }
    }

    #[test]
    fn cut_rows_and_neighbours_do_not_matter() {
        for spec in [mlp(0.0), autoencoder(0.0)] {
            let model = model(spec.clone());
            let loss = |samples: &[Sample]| {
                let mut batcher = Batcher::new(spec.input()).unwrap();
                model.forward(&batcher.build(&records(samples)).unwrap(), None).unwrap().loss
            };
            let (long, short) = (Sample::wave(Dtype::F32, 9, 5, 1), Sample::wave(Dtype::F32, 6, 5, 1));
            assert_eq!(loss(&[long]), loss(&[short]), "rows beyond rows_max are not read");
            let all = waves(Dtype::F16, &[4, 6, 1, 2], 5);
            let together = loss(&all);
            let mut apart = Loss::default();
            for one in all.chunks(1) {
                let Loss { sum, weight } = loss(one);
                apart = Loss { sum: apart.sum + sum, weight: apart.weight + weight };
            }
            assert_eq!(together.weight, apart.weight);
            assert!((together.sum / apart.sum - 1.0).abs() < 1e-6, "{together:?} {apart:?}");
        }
    }

    #[test]
    fn dropout_follows_its_generator() {
        let (share, scale) = (0.25, 1.0 / 0.75);
        let mut values = vec![1.0; 40_000];
        relu(&mut values, Some(&mut Generator::new(1, 2, Purpose::Dropout, 0, 0)), share, scale);
        let dropped = values.iter().filter(|&&value| value == 0.0).count() as f32 / values.len() as f32;
        assert!((dropped - share).abs() < 0.01, "{dropped}");
        assert!(values.iter().all(|&value| value == 0.0 || value == scale));

        let (samples, model) = (waves(Dtype::F32, &[3, 2, 6], 5), model(autoencoder(0.5)));
        let mut batcher = Batcher::new(model.spec().input()).unwrap();
        let batch = batcher.build(&records(&samples)).unwrap();
        let loss = |dropout| model.forward(&batch, dropout).unwrap().loss.sum;
        let step = |step| Some(Generator::new(1, 2, Purpose::Dropout, 0, step));
        assert_eq!(loss(step(1)), loss(step(1)));
        assert_ne!(loss(step(1)), loss(step(2)));
        assert_ne!(loss(step(1)), loss(None));
    }

    #[test]
    fn not_a_number_passes_the_relu() {
        let mut values = [f32::NAN, -1.0, 2.0];
        relu(&mut values, None, 0.0, 1.0);
        assert!(values[0].is_nan());
        assert_eq!(values[1..], [0.0, 2.0]);
    }

    #[test]
    fn deep_products_are_right() {
        for depth in [1, 512, 513, 1_500] {
            let value = |i: usize| ((i * 7 + depth) as f32).sin();
            let left = Tensor::from_vec((0..3 * depth).map(value).collect::<Vec<_>>(), (3, depth), &Device::Cpu);
            let right = Tensor::from_vec((0..2 * depth).map(value).collect::<Vec<_>>(), (2, depth), &Device::Cpu);
            let (left, right) = (left.unwrap(), right.unwrap());
            let found = product(&left, &right.t().unwrap()).unwrap().to_vec2::<f32>().unwrap();
            let (left, right) = (left.to_vec2::<f32>().unwrap(), right.to_vec2::<f32>().unwrap());
            for (row, left) in left.iter().enumerate() {
                for (column, right) in right.iter().enumerate() {
                    let sum: f64 = left.iter().zip(right).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum();
                    assert!((f64::from(found[row][column]) - sum).abs() < 1e-4, "{depth}");
                }
            }
        }
    }

    #[test]
    fn labels_have_to_be_classes() {
        let (model, mut samples) = (model(mlp(0.0)), waves(Dtype::F32, &[1, 2, 3], 5));
        let mut batcher = Batcher::new(model.spec().input()).unwrap();
        samples[1].label = None;
        let result = model.forward(&batcher.build(&records(&samples)).unwrap(), None);
        assert!(matches!(result, Err(ModelError::NoLabel { record: 1 })));
        samples[1].label = Some(3);
        let result = model.forward(&batcher.build(&records(&samples)).unwrap(), None);
        assert!(matches!(result, Err(ModelError::Label { record: 1, label: 3, classes: 3 })));
    }

    #[test]
    fn names_shapes_and_first_ranges() {
        let listed = |spec: &ModelSpec| {
            let specs = spec.parameters().unwrap();
            specs.iter().map(|spec| format!("{} {:?} {}", spec.name, spec.shape, spec.fan_in)).collect::<Vec<_>>()
        };
        assert_eq!(listed(&mlp(0.0)), ["l1.bias [7] 5", "l1.weight [7, 5] 5", "l2.bias [3] 7", "l2.weight [3, 7] 7"]);
        let expected = [
            "layers.0.bias [9] 30",
            "layers.0.weight [9, 30] 30",
            "layers.1.bias [4] 9",
            "layers.1.weight [4, 9] 9",
            "layers.2.bias [9] 4",
            "layers.2.weight [9, 4] 4",
            "layers.3.bias [30] 9",
            "layers.3.weight [30, 9] 9",
        ];
        assert_eq!(listed(&autoencoder(0.0)), expected);
        let model = model(autoencoder(0.0));
        for (place, spec) in model.parameters().specs().iter().enumerate() {
            let bound = 1.0 / (spec.fan_in as f32).sqrt();
            let values: Vec<f32> = model.parameters().value(place).flatten_all().unwrap().to_vec1().unwrap();
            assert!(values.iter().all(|value| value.abs() <= bound));
            let spread = values.iter().fold(0.0_f32, |most, value| most.max(value.abs()));
            assert!(spread > 0.6 * bound, "{}: {spread} of {bound}", spec.name);
        }
    }

    #[test]
    fn settings_out_of_range_are_named() {
        let autoencoder = |rows_max, dim, layers: &[usize], dropout| {
            ModelSpec::Autoencoder { rows_max, dim, layers: layers.to_vec(), dropout }.check()
        };
        let mlp = |rows_max, dim, hidden, classes, dropout| {
            ModelSpec::Mlp { rows_max, dim, hidden, classes, dropout }.check()
        };
        let cases = [
            (autoencoder(0, 4, &[2], 0.0), "rows_max"),
            (autoencoder(4, 0, &[2], 0.0), "dim"),
            (autoencoder(4, 4, &[], 0.0), "layers"),
            (autoencoder(4, 4, &[2, 0], 0.0), "layers"),
            (autoencoder(4, 4, &[2], 1.0), "dropout"),
            (autoencoder(4, 4, &[2], f32::NAN), "dropout"),
            (mlp(0, 4, 2, 3, 0.0), "rows_max"),
            (mlp(4, 0, 2, 3, 0.0), "dim"),
            (mlp(4, 4, 0, 3, 0.0), "hidden"),
            (mlp(4, 4, 2, 0, 0.0), "classes"),
            (mlp(4, 4, 2, 3, -0.1), "dropout"),
        ];
        for (checked, name) in cases {
            let error = checked.unwrap_err();
            assert!(matches!(error, ModelError::Setting { setting, .. } if setting == name), "{name}: {error}");
        }
        for (rows_max, dim, layer) in [(usize::MAX, 2, 2), (usize::MAX, 1, 1), (1 << 20, 384, 4), (1, 1, usize::MAX)] {
            assert!(matches!(autoencoder(rows_max, dim, &[layer], 0.0), Err(ModelError::Size)), "{rows_max} {dim}");
        }
        assert!(autoencoder(64, 384, &[256, 128], 0.0).is_ok());
    }

    #[test]
    fn specs_are_plain_data() {
        let text = r#"{"model":"mlp","rows_max":6,"dim":5,"hidden":7,"classes":3}"#;
        assert_eq!(serde_json::from_str::<ModelSpec>(text).unwrap(), mlp(0.0));
        let spec = autoencoder(0.5);
        let text = serde_json::to_string(&spec).unwrap();
        assert_eq!(text, r#"{"model":"autoencoder","rows_max":6,"dim":5,"layers":[9,4],"dropout":0.5}"#);
        assert_eq!(serde_json::from_str::<ModelSpec>(&text).unwrap(), spec);
        assert!(serde_json::from_str::<ModelSpec>(r#"{"model":"mlp","dim":5,"hiden":7}"#).is_err());
    }
}
