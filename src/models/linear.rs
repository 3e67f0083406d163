//! `linear`: mean of the rows → `out` (D → classes, or one number). \[pure\]
//!
//! Loss: mean cross-entropy over the batch, natural logarithm; or, of numbers, mean squared error. What the simplest
//! model reaches is what any other has to beat. The layer is candle-nn's, and its graph goes the way back: the
//! shortest way to write a model.

use candle_core::{DType, Device};
use candle_nn::{Module, VarBuilder};

use super::batch::{Batch, Layout};
use super::error::ModelError;
use super::graph::recorded;
use super::kind::{Kind, Task};
use super::model::{Model, Pass};
use super::parameters::{layers, Parameters};
use super::seed::Generator;

/// See the module.
pub static KIND: Kind = Kind {
    name: "linear",
    tasks: &[Task::Classification, Task::Regression],
    layout: Layout::Pooled,
    about: "from the mean row straight to a class or a number",
    keys: &[],
    parameters: |spec| Ok(layers(["out".to_owned()].into_iter(), &[spec.shape.dim, spec.outputs()])),
    model: |spec, parameters| {
        let variables = VarBuilder::from_tensors(parameters.named(), DType::F32, &Device::Cpu);
        let out = candle_nn::linear(spec.shape.dim, spec.outputs(), variables.pp("out"))?;
        Ok(Box::new(Linear { parameters, out }))
    },
};

#[derive(Debug)]
struct Linear {
    parameters: Parameters,
    out: candle_nn::Linear,
}

impl Model for Linear {
    fn parameters(&self) -> &Parameters {
        &self.parameters
    }

    fn forward<'m>(&'m self, batch: &'m Batch<'_>, _: Option<Generator>) -> Result<Pass<'m>, ModelError> {
        let outputs = self.out.forward(&batch.levels[0])?;
        Ok(recorded(&self.parameters, outputs)?)
    }
}
