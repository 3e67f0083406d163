//! What every model can do. \[pure\]

use super::batch::Batch;
use super::error::ModelError;
use super::loss::Loss;
use super::parameters::{GradientSink, Parameters};
use super::seed::Generator;

/// Gives every gradient of a pass's mean loss to a sink, each block after it was read for the last time.
pub type Backward<'m> = Box<dyn FnOnce(&mut GradientSink<'_>) -> Result<(), ModelError> + 'm>;

/// What a forward pass found; the backward pass goes the way back.
pub struct Pass<'m> {
    pub loss: Loss,
    /// What the model says of each record, row by row in the order of [`Batch::order`]: logits of the classes, or one
    /// number; nothing of a reconstruction.
    pub outputs: Vec<f32>,
    /// Holds what the forward pass left, be it activations or a recorded graph.
    backward: Backward<'m>,
}

impl<'m> Pass<'m> {
    /// A pass that goes back by `backward`.
    pub fn new(
        loss: Loss,
        outputs: Vec<f32>,
        backward: impl FnOnce(&mut GradientSink<'_>) -> Result<(), ModelError> + 'm,
    ) -> Self {
        Self { loss, outputs, backward: Box::new(backward) }
    }

    /// See [`Backward`].
    ///
    /// # Errors
    /// What the tensor library or the sink says. Some blocks may have been given then.
    pub fn backward(self, sink: &mut GradientSink<'_>) -> Result<(), ModelError> {
        (self.backward)(sink)
    }
}

/// Parameters and formulas.
pub trait Model: Send + std::fmt::Debug {
    /// Its variables.
    fn parameters(&self) -> &Parameters;

    /// Loss and outputs. `dropout` is this step's generator; without one nothing is dropped (evaluation).
    ///
    /// # Errors
    /// Labels that are missing or no class of the model, and what the tensor library says.
    fn forward<'m>(&'m self, batch: &'m Batch<'_>, dropout: Option<Generator>) -> Result<Pass<'m>, ModelError>;
}
