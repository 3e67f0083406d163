//! `mlp`: mean of the rows → `l1` (D → hidden) → ReLU → dropout → `l2` (hidden → classes, or one number). \[pure\]
//!
//! Loss: mean cross-entropy over the batch, natural logarithm; or, of numbers, mean squared error.

use super::batch::Layout;
use super::dense::Dense;
use super::kind::{Kind, Task, DROPOUT, HIDDEN};
use super::parameters::layers;

/// See the module.
pub static KIND: Kind = Kind {
    name: "mlp",
    tasks: &[Task::Classification, Task::Regression],
    layout: Layout::Pooled,
    about: "from the mean row through one hidden layer to a class or a number",
    keys: &[HIDDEN, DROPOUT],
    parameters: |spec| {
        let widths = [spec.shape.dim, spec.count("hidden"), spec.outputs()];
        Ok(layers(names(), &widths))
    },
    model: |spec, parameters| Ok(Box::new(Dense::new(spec, parameters, names())?)),
};

fn names() -> impl Iterator<Item = String> {
    ["l1", "l2"].into_iter().map(str::to_owned)
}
