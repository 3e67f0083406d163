//! `cnn`: a convolution over the rows for each of `widths`, its maximum over the rows that exist, all of them to
//! `out` → classes, or one number. \[pure\]
//!
//! ```text
//! y[t, c] = b[c] + Σₖ Σ_d W[c, d, k] · x[t + k − (w − 1)/2, d]     rows before the first and after the last are zero
//! feature[c] = max over t of ReLU(y[t, c])                          (w − 1)/2 rounded down: PyTorch's padding "same"
//! ```
//! Parameters: `conv.weight` `[channels, D, w]` and `conv.bias` if there is one width, else `conv.<w>.weight` and
//! `conv.<w>.bias` of each.
//!
//! One product of all rows with all taps of a width; neighbours are then added where they lie. On the way back only one
//! row of each record and channel has a gradient, so that it needs a hundredth of the products' arithmetic.

use candle_core::{Device, Tensor};

use super::batch::{Batch, Layout};
use super::error::ModelError;
use super::kind::{Key, Kind, Preset, Task, Value, DROPOUT};
use super::model::{Model, Pass};
use super::ops::product;
use super::parameters::{First, GradientSink, ParameterSpec, Parameters};
use super::readout::Readout;
use super::seed::Generator;
use super::tensors::{add, add_scaled, read};
use crate::features::vector::vectorized;

static WIDTHS: Key =
    Key { name: "widths", default: Preset::Widths(&[3, 4, 5]), help: "rows that its convolutions see at once" };

/// See the module.
pub static KIND: Kind = Kind {
    name: "cnn",
    tasks: &[Task::Classification, Task::Regression],
    layout: Layout::Packed,
    about: "from convolutions over the rows and their maxima to a class or a number",
    keys: &[
        Key { name: "channels", default: Preset::Count(128), help: "features of each width of its convolutions" },
        WIDTHS,
        DROPOUT,
    ],
    parameters: |spec| {
        let (dim, channels, widths) = (spec.shape.dim, spec.count("channels"), spec.widths("widths"));
        let wrong = |expected: &'static str| Err(WIDTHS.refused(expected, &Value::Widths(widths.to_vec())));
        if widths.iter().any(|&width| width > spec.shape.rows_max) {
            return wrong("at most `rows_max` each");
        }
        if (1..widths.len()).any(|place| widths[..place].contains(&widths[place])) {
            return wrong("different from each other");
        }
        let mut parameters = Vec::new();
        for (&width, name) in widths.iter().zip(names(widths)) {
            let first = First::Uniform { fan_in: dim.checked_mul(width).ok_or(ModelError::Size)? };
            parameters.push(ParameterSpec { name: format!("{name}.weight"), shape: vec![channels, dim, width], first });
            parameters.push(ParameterSpec { name: format!("{name}.bias"), shape: vec![channels], first });
        }
        let features = channels.checked_mul(widths.len()).ok_or(ModelError::Size)?;
        parameters.extend(Readout::parameters(spec, features));
        Ok(parameters)
    },
    model: |spec, parameters| {
        let widths = spec.widths("widths");
        let convolution = |(&width, name): (&usize, String)| {
            let (weight, bias) =
                (parameters.place(&format!("{name}.weight"))?, parameters.place(&format!("{name}.bias"))?);
            Ok(Convolution { width, weight, bias })
        };
        let convolutions = widths.iter().zip(names(widths)).map(convolution).collect::<candle_core::Result<_>>()?;
        let readout = Readout::new(spec, &parameters)?;
        Ok(Box::new(Cnn { parameters, convolutions, readout, channels: spec.count("channels"), dim: spec.shape.dim }))
    },
};

fn names(widths: &[usize]) -> impl Iterator<Item = String> + '_ {
    widths.iter().map(|width| if widths.len() == 1 { "conv".to_owned() } else { format!("conv.{width}") })
}

#[derive(Clone, Copy, Debug)]
struct Convolution {
    width: usize,
    weight: usize,
    bias: usize,
}

#[derive(Debug)]
struct Cnn {
    parameters: Parameters,
    convolutions: Vec<Convolution>,
    readout: Readout,
    channels: usize,
    dim: usize,
}

/// Maxima of one convolution.
struct Maxima {
    /// Record by record, one of each channel: where in the record, and how high.
    rows: Vec<u32>,
    values: Vec<f32>,
}

impl Model for Cnn {
    fn parameters(&self) -> &Parameters {
        &self.parameters
    }

    fn forward<'m>(&'m self, batch: &'m Batch<'_>, dropout: Option<Generator>) -> Result<Pass<'m>, ModelError> {
        let (records, channels) = (batch.records(), self.channels);
        let rows = batch.rows_of_records()?;
        let maxima = self.convolutions.iter().map(|convolution| self.maxima(convolution, batch, &rows));
        let maxima = maxima.collect::<Result<Vec<Maxima>, ModelError>>()?;
        let mut features = Vec::with_capacity(records * channels * maxima.len());
        for record in 0..records {
            for maxima in &maxima {
                let values = &maxima.values[record * channels..][..channels];
                // Not `max`, which would hide NaN.
                features.extend(values.iter().map(|&value| if value < 0.0 { 0.0 } else { value }));
            }
        }
        let (outputs, features) = self.readout.forward(&self.parameters, features, records, dropout)?;
        Ok(Pass::new(vec![outputs], move |residuals, sink| {
            let gradients = self.readout.backward(&self.parameters, &features, &residuals[0], sink)?;
            for (place, maxima) in maxima.iter().enumerate() {
                self.backward(place, maxima, &gradients, batch, &rows, sink)?;
            }
            Ok(())
        }))
    }
}

impl Cnn {
    /// All taps as rows, tap by tap: `[w · channels, D]`.
    fn taps(&self, convolution: &Convolution) -> candle_core::Result<Tensor> {
        let weight = self.parameters.value(convolution.weight);
        weight.permute((2, 0, 1))?.contiguous()?.reshape((convolution.width * self.channels, self.dim))
    }

    fn maxima(&self, convolution: &Convolution, batch: &Batch<'_>, rows: &[Vec<usize>]) -> Result<Maxima, ModelError> {
        let (channels, width) = (self.channels, convolution.width);
        let products = product(&batch.packed, &self.taps(convolution)?.t()?)?;
        let mut maxima =
            Maxima { rows: vec![0; rows.len() * channels], values: vec![f32::NEG_INFINITY; rows.len() * channels] };
        let bias = read(&self.parameters.value(convolution.bias), <[f32]>::to_vec)?;
        let mut sums = vec![0.0; channels];
        read(&products, |products| {
            vectorized(
                #[inline(always)]
                || {
                    let best = maxima.rows.chunks_exact_mut(channels).zip(maxima.values.chunks_exact_mut(channels));
                    for (record, (places, values)) in rows.iter().zip(best) {
                        for row in 0..record.len() {
                            sums.copy_from_slice(&bias);
                            for (tap, neighbour) in neighbours(width, row, record) {
                                add(&mut sums, &products[(neighbour * width + tap) * channels..][..channels]);
                            }
                            for ((value, place), &sum) in values.iter_mut().zip(places.iter_mut()).zip(&sums) {
                                let is_no_higher = sum <= *value;
                                *value = if is_no_higher { *value } else { sum };
                                *place = if is_no_higher { *place } else { row as u32 };
                            }
                        }
                    }
                },
            );
        })?;
        Ok(maxima)
    }

    /// Gives away the gradients of one convolution; `gradients` are those of all features.
    fn backward(
        &self,
        place: usize,
        maxima: &Maxima,
        gradients: &[f32],
        batch: &Batch<'_>,
        rows: &[Vec<usize>],
        sink: &mut GradientSink<'_>,
    ) -> Result<(), ModelError> {
        let (convolution, channels, dim) = (self.convolutions[place], self.channels, self.dim);
        let (mut weights, mut bias) = (vec![0.0; convolution.width * channels * dim], vec![0.0; channels]);
        read(&batch.packed, |values| {
            vectorized(
                #[inline(always)]
                || {
                    for channel in 0..channels {
                        for (record, rows) in rows.iter().enumerate() {
                            let gradient = gradients[(record * self.convolutions.len() + place) * channels + channel];
                            let at = record * channels + channel;
                            if maxima.values[at] <= 0.0 {
                                continue;
                            }
                            bias[channel] += gradient;
                            for (tap, neighbour) in neighbours(convolution.width, maxima.rows[at] as usize, rows) {
                                let sums = &mut weights[(tap * channels + channel) * dim..][..dim];
                                add_scaled(sums, gradient, &values[neighbour * dim..][..dim]);
                            }
                        }
                    }
                },
            );
        })?;
        let weights = Tensor::from_vec(weights, (convolution.width, channels, dim), &Device::Cpu)?;
        let weights = weights.permute((1, 2, 0))?.contiguous()?;
        sink(convolution.weight, &self.parameters.value(convolution.weight), &weights)?;
        let bias = Tensor::from_vec(bias, channels, &Device::Cpu)?;
        sink(convolution.bias, &self.parameters.value(convolution.bias), &bias)?;
        Ok(())
    }
}

/// Taps of a convolution at a row of a record, and the rows of the batch that they see there.
#[inline(always)]
fn neighbours(width: usize, row: usize, record: &[usize]) -> impl Iterator<Item = (usize, usize)> + '_ {
    let before = (width - 1) / 2;
    (0..width).filter_map(move |tap| Some((tap, *record.get((row + tap).checked_sub(before)?)?)))
}
