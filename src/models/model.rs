//! What every model can do. \[pure\]

use candle_core::Tensor;

use super::batch::Batch;
use super::error::ModelError;
use super::loss::Loss;
use super::parameters::{GradientSink, Parameters};
use super::seed::Generator;

/// Goes from the outputs' gradients to those of the parameters, and gives these to a sink, each block after it was read
/// for the last time.
pub type Backward<'m> = Box<dyn FnOnce(&[Tensor], &mut GradientSink<'_>) -> Result<(), ModelError> + 'm>;

/// What a forward pass found; the backward pass goes the way back.
pub struct Pass<'m> {
    /// What the model says of the records, in the order of [`Batch::order`]: one tensor `[B, C]` of logits, or
    /// `[B, 1]`; of a reconstruction `[n_t, D]` for each level. Contiguous and nobody else's: the loss turns them into
    /// its gradients where they lie.
    pub outputs: Vec<Tensor>,
    /// Of a model with a loss of its own: the outputs then stay what they are.
    pub loss: Option<Loss>,
    /// Holds what the forward pass left, be it activations or a recorded graph.
    backward: Backward<'m>,
}

impl<'m> Pass<'m> {
    /// A pass that goes back by `backward`.
    pub fn new(
        outputs: Vec<Tensor>,
        backward: impl FnOnce(&[Tensor], &mut GradientSink<'_>) -> Result<(), ModelError> + 'm,
    ) -> Self {
        Self { outputs, loss: None, backward: Box::new(backward) }
    }

    /// Goes back, once `outputs` have become the loss's gradients with regard to themselves; see [`Backward`].
    ///
    /// # Errors
    /// What the tensor library or the sink says. Some blocks may have been given then.
    pub fn backward(self, sink: &mut GradientSink<'_>) -> Result<(), ModelError> {
        (self.backward)(&self.outputs, sink)
    }
}

/// Parameters and formulas.
pub trait Model: Send + std::fmt::Debug {
    /// Its variables.
    fn parameters(&self) -> &Parameters;

    /// The outputs. `dropout` is this step's generator; without one nothing is dropped (evaluation).
    ///
    /// # Errors
    /// What the tensor library says.
    fn forward<'m>(&'m self, batch: &'m Batch<'_>, dropout: Option<Generator>) -> Result<Pass<'m>, ModelError>;
}
