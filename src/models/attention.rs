//! `attention`: one block of multi-head self-attention over the rows, their mean → `out` → classes, or one number.
//! \[pure\]
//!
//! ```text
//! e = x W_inᵀ + b_in + position(t)                                       [L, H]
//! q, k, v = e W_qkvᵀ + b_qkv                                             heads are blocks of H / heads columns
//! a = concat over heads of softmax(q kᵀ / √(H / heads)) v  W_oᵀ + b_o    over the rows that exist
//! s = e + a      y = (s − mean) / √(variance + 10⁻⁵) · γ + β             of each row
//! feature = mean over the rows of y
//! ```
//! Vaswani et al., "Attention Is All You Need" (2017), its encoder's first half; PyTorch's `MultiheadAttention` and
//! `LayerNorm`, and their names: `in.*`, `attention.in_proj_weight` `[3H, H]`, `attention.in_proj_bias`,
//! `attention.out_proj.*`, `norm.*`. `positions`: `learned` (`positions` `[rows_max, H]`), `sinusoidal`
//! (position(t, 2i) = sin(t / 10000^(2i/H)), position(t, 2i + 1) its cosine), or `none`.
//!
//! Projections are products over all rows of the batch; [`super::heads`] has what records do by themselves.

use candle_core::{DType, Device, Tensor};

use super::batch::{Batch, Layout};
use super::error::{ModelError, ELEMENTS_MAX};
use super::heads::Heads;
use super::kind::{Key, Kind, ModelSpec, Preset, Task, Value, DROPOUT, HIDDEN};
use super::model::{Model, Pass};
use super::norm::{self, Normed};
use super::ops::{accumulate, add_bias, affine, column_sums, product};
use super::parameters::{layers, First, GradientSink, ParameterSpec, Parameters};
use super::readout::Readout;
use super::seed::Generator;
use super::tensors::{add, edit, read};

static HEADS: Key =
    Key { name: "heads", default: Preset::Count(4), help: "parts of `hidden` that attend by themselves" };

/// See the module.
pub static KIND: Kind = Kind {
    name: "attention",
    tasks: &[Task::Classification, Task::Regression],
    layout: Layout::Packed,
    about: "from one block of multi-head attention over the rows to a class or a number",
    keys: &[
        HEADS,
        HIDDEN,
        Key {
            name: "positions",
            default: Preset::Choice(&["learned", "sinusoidal", "none"]),
            help: "how it knows where a row stands",
        },
        DROPOUT,
    ],
    parameters: |spec| {
        let (hidden, heads) = (spec.count("hidden"), spec.count("heads"));
        if hidden % heads != 0 {
            return Err(HEADS.refused(format!("a divisor of `hidden` ({hidden})"), &Value::Count(heads)));
        }
        // Sinusoids are no parameters, and are held all the same.
        if spec.shape.rows_max.checked_mul(hidden).is_none_or(|positions| positions > ELEMENTS_MAX) {
            return Err(ModelError::Size);
        }
        let projections = hidden.checked_mul(3).ok_or(ModelError::Size)?;
        let named = |name: &str, shape: Vec<usize>, first| ParameterSpec { name: name.to_owned(), shape, first };
        let first = First::Uniform { fan_in: hidden };
        let mut all = layers(["in".to_owned()].into_iter(), &[spec.shape.dim, hidden]);
        all.push(named("attention.in_proj_weight", vec![projections, hidden], first));
        all.push(named("attention.in_proj_bias", vec![projections], first));
        all.extend(layers(["attention.out_proj".to_owned()].into_iter(), &[hidden, hidden]));
        all.push(named("norm.weight", vec![hidden], First::Constant(1.0)));
        all.push(named("norm.bias", vec![hidden], First::Constant(0.0)));
        if spec.choice("positions") == "learned" {
            all.push(named("positions", vec![spec.shape.rows_max, hidden], first));
        }
        all.extend(Readout::parameters(spec, hidden));
        Ok(all)
    },
    model: |spec, parameters| Ok(Box::new(Attention::new(spec, parameters)?)),
};

/// Places of a layer's parameters.
#[derive(Clone, Copy, Debug)]
struct Layer {
    weight: usize,
    bias: usize,
}

/// What rows are told of where they stand.
#[derive(Debug)]
enum Positions {
    /// Place of the parameter.
    Learned(usize),
    /// `[rows_max, H]`, row by row.
    Fixed(Vec<f32>),
    None,
}

/// See the module.
#[derive(Debug)]
struct Attention {
    parameters: Parameters,
    input: Layer,
    projections: Layer,
    output: Layer,
    norm: Layer,
    positions: Positions,
    readout: Readout,
    hidden: usize,
    heads: usize,
}

impl Model for Attention {
    fn parameters(&self) -> &Parameters {
        &self.parameters
    }

    fn forward<'m>(&'m self, batch: &'m Batch<'_>, dropout: Option<Generator>) -> Result<Pass<'m>, ModelError> {
        let (records, hidden) = (batch.records(), self.hidden);
        let rows = batch.rows_of_records()?;
        let embedded = self.layer(self.input, &batch.packed)?;
        self.add_positions(&embedded, batch)?;
        let projected = self.layer(self.projections, &embedded)?;
        let (context, heads) = read(&projected, |values| Heads::forward(values, &rows, hidden, self.heads))?;
        let context = Tensor::from_vec(context, embedded.dims(), &Device::Cpu)?;
        let sums = self.layer(self.output, &context)?;
        accumulate(&sums, &embedded)?;
        let normed = edit(&sums, |sums| Normed::forward(sums, hidden))?;
        let (scale, shift) = (self.value(self.norm.weight), self.value(self.norm.bias));
        let mut features = vec![0.0; records * hidden];
        read(&sums, |sums| norm::means(sums, &rows, hidden, &mut features))?;
        read(&scale, |scale| read(&shift, |shift| norm::affine(&mut features, scale, shift)))??;
        let (outputs, features) = self.readout.forward(&self.parameters, features, records, dropout)?;
        Ok(Pass::new(vec![outputs], move |residuals, sink| {
            let gradients = self.readout.backward(&self.parameters, &features, &residuals[0], sink)?;
            let sums = self.norm_backward(&sums, &normed, &rows, gradients, sink)?;
            let to_context = product(&sums, &self.value(self.output.weight))?;
            self.give(self.output, &sums, &context, sink)?;
            let to_projected = read(&projected, |projected| {
                read(&to_context, |to_context| heads.backward(projected, to_context, &rows, hidden, self.heads))
            })??;
            let to_projected = Tensor::from_vec(to_projected, projected.dims(), &Device::Cpu)?;
            let to_embedded = product(&to_projected, &self.value(self.projections.weight))?;
            accumulate(&to_embedded, &sums)?;
            self.give(self.projections, &to_projected, &embedded, sink)?;
            self.positions_backward(&to_embedded, batch, sink)?;
            self.give(self.input, &to_embedded, &batch.packed, sink)
        }))
    }
}

impl Attention {
    fn new(spec: &ModelSpec, parameters: Parameters) -> Result<Self, ModelError> {
        let layer = |weight: &str, bias: &str| {
            Ok::<_, candle_core::Error>(Layer { weight: parameters.place(weight)?, bias: parameters.place(bias)? })
        };
        let hidden = spec.count("hidden");
        let positions = match spec.choice("positions") {
            "learned" => Positions::Learned(parameters.place("positions")?),
            "sinusoidal" => Positions::Fixed(sinusoids(spec.shape.rows_max, hidden)),
            _ => Positions::None,
        };
        Ok(Self {
            input: layer("in.weight", "in.bias")?,
            projections: layer("attention.in_proj_weight", "attention.in_proj_bias")?,
            output: layer("attention.out_proj.weight", "attention.out_proj.bias")?,
            norm: layer("norm.weight", "norm.bias")?,
            readout: Readout::new(spec, &parameters)?,
            heads: spec.count("heads"),
            positions,
            parameters,
            hidden,
        })
    }

    fn value(&self, place: usize) -> Tensor {
        self.parameters.value(place)
    }

    /// `x Wᵀ + b`
    fn layer(&self, layer: Layer, inputs: &Tensor) -> Result<Tensor, ModelError> {
        Ok(affine(inputs, &self.value(layer.weight), &self.value(layer.bias))?)
    }

    /// Gives away the gradients of a layer, from those of its outputs.
    fn give(
        &self,
        layer: Layer,
        gradient: &Tensor,
        inputs: &Tensor,
        sink: &mut GradientSink<'_>,
    ) -> Result<(), ModelError> {
        sink(layer.weight, &self.value(layer.weight), &product(&gradient.t()?, inputs)?)?;
        sink(layer.bias, &self.value(layer.bias), &column_sums(gradient)?)?;
        Ok(())
    }

    fn add_positions(&self, embedded: &Tensor, batch: &Batch<'_>) -> Result<(), ModelError> {
        let add_to_levels = |positions: &[f32]| {
            for ((start, rows), position) in batch.spans()?.into_iter().zip(positions.chunks_exact(self.hidden)) {
                edit(&embedded.narrow(0, start, rows)?, |rows| add_bias(rows, position))?;
            }
            Ok(())
        };
        match &self.positions {
            Positions::Learned(place) => read(&self.value(*place), add_to_levels)?,
            Positions::Fixed(positions) => add_to_levels(positions),
            Positions::None => Ok(()),
        }
    }

    fn positions_backward(
        &self,
        gradient: &Tensor,
        batch: &Batch<'_>,
        sink: &mut GradientSink<'_>,
    ) -> Result<(), ModelError> {
        let Positions::Learned(place) = self.positions else { return Ok(()) };
        let values = self.value(place);
        let gradients = Tensor::zeros(values.shape(), DType::F32, &Device::Cpu)?;
        for (position, (start, rows)) in batch.spans()?.into_iter().enumerate() {
            let sums = column_sums(&gradient.narrow(0, start, rows)?)?;
            accumulate(&gradients.narrow(0, position, 1)?, &sums)?;
        }
        Ok(sink(place, &values, &gradients)?)
    }

    /// The gradient of the sums that were normed, from that of the features; `normed` are the rows before γ and β.
    fn norm_backward(
        &self,
        rows: &Tensor,
        normed: &Normed,
        records: &[Vec<usize>],
        features: Vec<f32>,
        sink: &mut GradientSink<'_>,
    ) -> Result<Tensor, ModelError> {
        let hidden = self.hidden;
        let (scale, shift) = (self.value(self.norm.weight), self.value(self.norm.bias));
        let mut means = vec![0.0; features.len()];
        read(rows, |rows| norm::means(rows, records, hidden, &mut means))?;
        let (mut to_scale, mut to_shift) = (vec![0.0; hidden], vec![0.0; hidden]);
        for (mean, gradient) in means.chunks_exact(hidden).zip(features.chunks_exact(hidden)) {
            to_scale.iter_mut().zip(mean).zip(gradient).for_each(|((sum, mean), gradient)| *sum += mean * gradient);
            add(&mut to_shift, gradient);
        }
        let to_rows = read(&scale, |scale| read(rows, |rows| normed.backward(rows, records, &features, scale)))??;
        sink(self.norm.weight, &scale, &Tensor::from_vec(to_scale, hidden, &Device::Cpu)?)?;
        sink(self.norm.bias, &shift, &Tensor::from_vec(to_shift, hidden, &Device::Cpu)?)?;
        Ok(Tensor::from_vec(to_rows, rows.dims(), &Device::Cpu)?)
    }
}

/// See the module.
fn sinusoids(rows: usize, hidden: usize) -> Vec<f32> {
    let value = |at: usize| {
        let (row, column) = (at / hidden, at % hidden);
        let angle = row as f64 / 10_000_f64.powf((column - column % 2) as f64 / hidden as f64);
        (if column % 2 == 0 { angle.sin() } else { angle.cos() }) as f32
    };
    (0..rows * hidden).map(value).collect()
}
