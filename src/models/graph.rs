//! Models whose way back is a graph that candle records. \[pure\]

use candle_core::{Result, Tensor};

use super::error::ModelError;
use super::loss::Loss;
use super::model::Pass;
use super::parameters::{GradientSink, Parameters};

/// The pass of outputs that a graph leads to from parameters; that graph is the way back.
///
/// # Errors
/// What the tensor library says. The way back says when a parameter is not reached.
pub fn recorded(parameters: &Parameters, outputs: Tensor) -> Result<Pass<'_>> {
    // The loss changes outputs where they lie, and the graph may need them as they are.
    let said = outputs.detach().copy()?;
    Ok(Pass::new(vec![said], move |residuals, sink| {
        // A sum whose gradient with regard to the outputs is what the loss says it is.
        give(parameters, &(outputs * &residuals[0])?.sum_all()?, sink)
    }))
}

/// The same with a loss that the model has of its own; `mean` is its mean over the records.
///
/// # Errors
/// As [`recorded`].
pub fn recorded_loss(parameters: &Parameters, outputs: Tensor, mean: Tensor, loss: Loss) -> Result<Pass<'_>> {
    let said = outputs.detach().copy()?;
    let mut pass = Pass::new(vec![said], move |_, sink| give(parameters, &mean, sink));
    pass.loss = Some(loss);
    Ok(pass)
}

/// Goes back from a sum and gives all gradients away.
fn give(parameters: &Parameters, sum: &Tensor, sink: &mut GradientSink<'_>) -> std::result::Result<(), ModelError> {
    let gradients = sum.backward()?;
    for (place, spec) in parameters.specs().iter().enumerate() {
        let Some(gradient) = gradients.get(parameters.variable(place)) else {
            return Err(ModelError::Unreached { variable: spec.name.clone() });
        };
        sink(place, &parameters.value(place), &gradient.contiguous()?)?;
    }
    Ok(())
}
