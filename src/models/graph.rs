//! Models whose way back is a graph that candle records. \[pure\]

use candle_core::Tensor;

use super::model::Pass;
use super::parameters::Parameters;

/// The pass of outputs that a graph leads to from parameters; that graph is the way back.
///
/// # Errors
/// What the tensor library says. The way back says when a parameter is not reached.
pub fn recorded(parameters: &Parameters, outputs: Tensor) -> candle_core::Result<Pass<'_>> {
    // The loss changes outputs where they lie, and the graph may need them as they are.
    let said = outputs.detach().copy()?;
    Ok(Pass::new(vec![said], move |residuals, sink| {
        // A sum whose gradient with regard to the outputs is what the loss says it is.
        let gradients = (outputs * &residuals[0])?.sum_all()?.backward()?;
        for (place, spec) in parameters.specs().iter().enumerate() {
            let gradient = gradients.get(parameters.variable(place)).ok_or_else(|| {
                candle_core::Error::msg(format!("the outputs do not depend on parameter {}", spec.name))
            })?;
            sink(place, &parameters.value(place), &gradient.contiguous()?)?;
        }
        Ok(())
    }))
}
