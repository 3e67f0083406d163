//! `linear`: mean of the rows → `out` (D → classes). \[pure\]
//!
//! Loss: mean cross-entropy over the batch, natural logarithm. What the simplest model reaches is what any other has to
//! beat. Layers and loss are candle-nn's, and its graph goes the way back: the shortest way to write a model.

use candle_core::{DType, Device, Tensor};
use candle_nn::{Linear, Module, VarBuilder};

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
    task: Task::Classification,
    layout: Layout::Pooled,
    about: "classifies the mean row with no hidden layer",
    keys: &[],
    parameters: |spec| Some(layers(["out".to_owned()].into_iter(), &[spec.shape.dim, spec.shape.classes])),
    model: |spec, parameters| {
        let variables = VarBuilder::from_tensors(parameters.named(), DType::F32, &Device::Cpu);
        let out = candle_nn::linear(spec.shape.dim, spec.shape.classes, variables.pp("out"))?;
        Ok(Box::new(Classifier { parameters, out, classes: spec.shape.classes }))
    },
};

#[derive(Debug)]
struct Classifier {
    parameters: Parameters,
    out: Linear,
    classes: usize,
}

impl Model for Classifier {
    fn parameters(&self) -> &Parameters {
        &self.parameters
    }

    fn forward<'m>(&'m self, batch: &'m Batch<'_>, _: Option<Generator>) -> Result<Pass<'m>, ModelError> {
        let labels: Vec<u32> = loss::labels(batch, self.classes)?.into_iter().map(|class| class as u32).collect();
        let labels = Tensor::from_vec(labels, batch.records(), &Device::Cpu)?;
        let logits = self.out.forward(&batch.slots[0])?;
        let mean = candle_nn::loss::cross_entropy(&logits, &labels)?;
        let records = batch.records() as f64;
        let loss = Loss { sum: f64::from(mean.to_scalar::<f32>()?) * records, weight: records };
        Ok(Pass::new(loss, logits.flatten_all()?.to_vec1()?, move |sink| {
            Ok(self.parameters.give_gradients(&mean, sink)?)
        }))
    }
}
