//! `linear`: mean of the rows → `out` (D → classes, or one number). \[pure\]
//!
//! Loss: mean cross-entropy over the batch, natural logarithm; or, of numbers, mean squared error. What the simplest
//! model reaches is what any other has to beat. Layers and loss are candle-nn's, and its graph goes the way back: the
//! shortest way to write a model.

use candle_core::{DType, Device, Tensor};
use candle_nn::{Module, VarBuilder};

use super::batch::{Batch, Layout};
use super::error::ModelError;
use super::kind::{Kind, Task};
use super::loss::{self, Loss};
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
    parameters: |spec| Some(layers(["out".to_owned()].into_iter(), &[spec.shape.dim, spec.outputs()])),
    model: |spec, parameters| {
        let variables = VarBuilder::from_tensors(parameters.named(), DType::F32, &Device::Cpu);
        let out = candle_nn::linear(spec.shape.dim, spec.outputs(), variables.pp("out"))?;
        Ok(Box::new(Linear { parameters, out, task: spec.task }))
    },
};

#[derive(Debug)]
struct Linear {
    parameters: Parameters,
    out: candle_nn::Linear,
    task: Task,
}

impl Model for Linear {
    fn parameters(&self) -> &Parameters {
        &self.parameters
    }

    fn forward<'m>(&'m self, batch: &'m Batch<'_>, _: Option<Generator>) -> Result<Pass<'m>, ModelError> {
        let outputs = self.out.forward(&batch.levels[0])?;
        let mean = if self.task == Task::Regression {
            let numbers = Tensor::from_vec(loss::numbers(batch)?, outputs.dims(), &Device::Cpu)?;
            candle_nn::loss::mse(&outputs, &numbers)?
        } else {
            let labels = loss::labels(batch, outputs.dim(1)?)?.into_iter().map(|class| class as u32).collect();
            let labels = Tensor::from_vec::<_, u32>(labels, batch.records(), &Device::Cpu)?;
            candle_nn::loss::cross_entropy(&outputs, &labels)?
        };
        let records = batch.records() as f64;
        let loss = Loss { sum: f64::from(mean.to_scalar::<f32>()?) * records, weight: records };
        Ok(Pass::new(loss, outputs.flatten_all()?.to_vec1()?, move |sink| {
            Ok(self.parameters.give_gradients(&mean, sink)?)
        }))
    }
}
