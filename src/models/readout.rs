//! The last layer of models that make one row of features of a record: dropout, then `out` (F → outputs). \[pure\]

use candle_core::{Device, Tensor};

use super::error::ModelError;
use super::kind::ModelSpec;
use super::ops::{self, affine, column_sums, product};
use super::parameters::{layers, GradientSink, ParameterSpec, Parameters};
use super::seed::Generator;
use super::tensors::read;

/// See the module.
#[derive(Debug)]
pub struct Readout {
    weight: usize,
    bias: usize,
    dropout: f32,
}

/// The features as they were read.
#[derive(Debug)]
pub struct Features {
    /// `[B, F]`, after dropout.
    values: Tensor,
    /// What each was multiplied with, if some were dropped.
    mask: Option<Vec<f32>>,
}

impl Readout {
    /// `out.weight` and `out.bias`, over so many features.
    #[must_use]
    pub fn parameters(spec: &ModelSpec, features: usize) -> Vec<ParameterSpec> {
        layers(["out".to_owned()].into_iter(), &[features, spec.outputs()])
    }

    /// Over a model's parameters.
    ///
    /// # Errors
    /// When one is missing.
    pub fn new(spec: &ModelSpec, parameters: &Parameters) -> candle_core::Result<Self> {
        let (weight, bias) = (parameters.place("out.weight")?, parameters.place("out.bias")?);
        Ok(Self { weight, bias, dropout: spec.share("dropout") })
    }

    /// The outputs `[B, outputs]` of features `[B, F]`, row by row.
    ///
    /// # Errors
    /// What the tensor library says.
    pub fn forward(
        &self,
        parameters: &Parameters,
        mut features: Vec<f32>,
        records: usize,
        dropout: Option<Generator>,
    ) -> Result<(Tensor, Features), ModelError> {
        let mask = dropout.filter(|_| self.dropout > 0.0);
        let mask = mask.map(|mut generator| ops::dropout(&mut generator, self.dropout, features.len()));
        if let Some(mask) = &mask {
            features.iter_mut().zip(mask).for_each(|(feature, factor)| *feature *= factor);
        }
        let width = features.len() / records;
        let values = Tensor::from_vec(features, (records, width), &Device::Cpu)?;
        let outputs = affine(&values, &parameters.value(self.weight), &parameters.value(self.bias))?;
        Ok((outputs, Features { values, mask }))
    }

    /// Gives its gradients away and returns those of the features, row by row.
    ///
    /// # Errors
    /// What the tensor library or the sink says.
    pub fn backward(
        &self,
        parameters: &Parameters,
        features: &Features,
        residual: &Tensor,
        sink: &mut GradientSink<'_>,
    ) -> Result<Vec<f32>, ModelError> {
        let weight = parameters.value(self.weight);
        let below = product(residual, &weight)?;
        sink(self.weight, &weight, &product(&residual.t()?, &features.values)?)?;
        sink(self.bias, &parameters.value(self.bias), &column_sums(residual)?)?;
        let mut below = read(&below, <[f32]>::to_vec)?;
        if let Some(mask) = &features.mask {
            below.iter_mut().zip(mask).for_each(|(gradient, factor)| *gradient *= factor);
        }
        Ok(below)
    }
}
