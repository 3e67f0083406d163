//! Fully connected layers with ReLU between them, their backward pass written out. \[pure\]
//!
//! Candle's graph would compute gradients that nobody reads (of the input), add each gradient to zeros first, and keep
//! a full copy of every weight's gradient. Here each block of a gradient goes to the optimizer while it is in the
//! cache. The tests hold it against finite differences, an `f64` reference and PyTorch's numbers.

use candle_core::{DType, Device, Tensor};

use super::batch::Batch;
use super::error::ModelError;
use super::kind::{ModelSpec, Task};
use super::model::{Model, Pass};
use super::ops::{accumulate, add_bias, affine, column_sums, product, relu, through_relu};
use super::parameters::{GradientSink, Parameters};
use super::seed::Generator;
use super::tensors::{edit, read};

/// Places of a layer's parameters.
#[derive(Clone, Copy, Debug)]
struct Layer {
    weight: usize,
    bias: usize,
}

/// The layers of one model.
///
/// The first layer's weights are cut into one block of columns for each level of the input, the last layer's into
/// blocks of rows (a level of the output each; all classes are one block).
#[derive(Debug)]
pub struct Dense {
    parameters: Parameters,
    layers: Vec<Layer>,
    /// Values in an output block. There are as many blocks as levels: a model of classes reads a single level.
    width: usize,
    dropout: f32,
    dim: usize,
}

impl Model for Dense {
    fn parameters(&self) -> &Parameters {
        &self.parameters
    }

    fn forward<'m>(&'m self, batch: &'m Batch<'_>, dropout: Option<Generator>) -> Result<Pass<'m>, ModelError> {
        let mut dropout = dropout.filter(|_| self.dropout > 0.0);
        let kept_scale = if dropout.is_some() { 1.0 / (1.0 - self.dropout) } else { 1.0 };
        let hidden = self.hidden(batch, dropout.as_mut(), kept_scale)?;
        let outputs = self.outputs(batch, &hidden)?;
        Ok(Pass::new(outputs, move |residuals, sink| self.backward(batch, &hidden, residuals, kept_scale, sink)))
    }
}

impl Dense {
    /// Layers of these names, first to last, over `spec`'s parameters.
    ///
    /// # Errors
    /// When a parameter is missing.
    pub fn new(
        spec: &ModelSpec,
        parameters: Parameters,
        names: impl Iterator<Item = String>,
    ) -> Result<Self, ModelError> {
        let layer = |name: String| {
            let place = |kind: &str| parameters.place(&format!("{name}.{kind}"));
            Ok::<_, candle_core::Error>(Layer { weight: place("weight")?, bias: place("bias")? })
        };
        let layers = names.map(layer).collect::<Result<_, _>>()?;
        let width = match spec.task {
            Task::Reconstruction => spec.shape.dim,
            Task::Classification | Task::Regression => spec.outputs(),
        };
        Ok(Self { parameters, layers, width, dropout: spec.share("dropout"), dim: spec.shape.dim })
    }

    /// `hidden` are the inputs of the layers after the first, `residuals` the gradients of the loss with regard to the
    /// outputs, block by block; what was not dropped was multiplied with `kept_scale`.
    fn backward(
        &self,
        batch: &Batch<'_>,
        hidden: &[Tensor],
        residuals: &[Tensor],
        kept_scale: f32,
        sink: &mut GradientSink<'_>,
    ) -> Result<(), ModelError> {
        let last = self.layers.len() - 1;
        let mut gradient = self.last_backward(&hidden[last - 1], residuals, sink)?;
        through_relu(&gradient, &hidden[last - 1], kept_scale)?;
        for (layer, below) in self.layers[1..last].iter().zip(hidden).rev() {
            let weight = self.parameters.value(layer.weight);
            let next = product(&gradient, &weight)?;
            through_relu(&next, below, kept_scale)?;
            sink(layer.weight, &weight, &product(&gradient.t()?, below)?)?;
            sink(layer.bias, &self.parameters.value(layer.bias), &column_sums(&gradient)?)?;
            gradient = next;
        }
        self.first_backward(batch, &gradient, sink)
    }

    /// Activations after each ReLU: the inputs of all layers but the first.
    fn hidden(
        &self,
        batch: &Batch<'_>,
        mut dropout: Option<&mut Generator>,
        kept_scale: f32,
    ) -> Result<Vec<Tensor>, ModelError> {
        let mut hidden: Vec<Tensor> = Vec::with_capacity(self.layers.len() - 1);
        for layer in &self.layers[..self.layers.len() - 1] {
            let weight = self.parameters.value(layer.weight);
            let sums = match hidden.last() {
                Some(below) => product(below, &weight.t()?)?,
                None => self.first_sums(&weight, batch)?,
            };
            let bias = self.parameters.value(layer.bias);
            read(&bias, |bias| edit(&sums, |sums| add_bias(sums, bias)))??;
            edit(&sums, |sums| relu(sums, dropout.as_deref_mut(), self.dropout, kept_scale))?;
            hidden.push(sums);
        }
        Ok(hidden)
    }

    /// `x Wᵀ` of the first layer. Level 0 has all records; a shorter level adds to the first of them.
    fn first_sums(&self, weight: &Tensor, batch: &Batch<'_>) -> Result<Tensor, ModelError> {
        let block = |level: usize| weight.narrow(1, level * self.dim, self.dim)?.t();
        let sums = product(&batch.levels[0], &block(0)?)?;
        for (level, rows) in batch.levels.iter().enumerate().skip(1) {
            accumulate(&sums, &product(rows, &block(level)?)?)?;
        }
        Ok(sums)
    }

    /// Outputs block by block: `[n_t, D]` for each level, or `[B, classes]`.
    fn outputs(&self, batch: &Batch<'_>, hidden: &[Tensor]) -> Result<Vec<Tensor>, ModelError> {
        let last = self.layers[self.layers.len() - 1];
        let (weight, bias) = (self.parameters.value(last.weight), self.parameters.value(last.bias));
        let (top, width) = (&hidden[hidden.len() - 1], self.width);
        let output = |(block, rows): (usize, &Tensor)| {
            let inputs = top.narrow(0, 0, rows.dim(0)?)?;
            let (weight, bias) = (weight.narrow(0, block * width, width)?, bias.narrow(0, block * width, width)?);
            Ok(affine(&inputs, &weight, &bias)?)
        };
        batch.levels.iter().enumerate().map(output).collect()
    }

    /// Gives away the last layer's gradients and returns that of its input.
    fn last_backward(
        &self,
        top: &Tensor,
        residuals: &[Tensor],
        sink: &mut GradientSink<'_>,
    ) -> Result<Tensor, ModelError> {
        let (layer, width) = (self.layers[self.layers.len() - 1], self.width);
        let (weight, bias) = (self.parameters.value(layer.weight), self.parameters.value(layer.bias));
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
        batch: &Batch<'_>,
        gradient: &Tensor,
        sink: &mut GradientSink<'_>,
    ) -> Result<(), ModelError> {
        let layer = self.layers[0];
        let weight = self.parameters.value(layer.weight);
        let nothing = Tensor::zeros((weight.dim(0)?, self.dim), DType::F32, &Device::Cpu)?;
        for level in 0..weight.dim(1)? / self.dim {
            let values = weight.narrow(1, level * self.dim, self.dim)?;
            match batch.levels.get(level) {
                Some(rows) => {
                    let outputs = gradient.narrow(0, 0, rows.dim(0)?)?;
                    sink(layer.weight, &values, &product(&outputs.t()?, rows)?)?;
                }
                None => sink(layer.weight, &values, &nothing)?,
            }
        }
        sink(layer.bias, &self.parameters.value(layer.bias), &column_sums(gradient)?)?;
        Ok(())
    }
}
