//! `mlp`: mean of the rows → `l1` (D → hidden) → ReLU → dropout → `l2` (hidden → classes). \[pure\]
//!
//! Loss: mean cross-entropy over the batch, natural logarithm.

use super::batch::Layout;
use super::dense::{Dense, Head};
use super::kind::{Key, Kind, Preset, Task, DROPOUT};
use super::parameters::layers;

/// See the module.
pub static KIND: Kind = Kind {
    name: "mlp",
    task: Task::Classification,
    layout: Layout::Pooled,
    about: "classifies the mean row with one hidden layer",
    keys: &[Key { name: "hidden", default: Preset::Count(128), help: "width of its hidden layer" }, DROPOUT],
    parameters: |spec| {
        let widths = [spec.shape.dim, spec.count("hidden"), spec.shape.classes];
        Some(layers(names(), &widths))
    },
    model: |spec, parameters| Ok(Box::new(Dense::new(spec, parameters, names(), Head::Classes)?)),
};

fn names() -> impl Iterator<Item = String> {
    ["l1", "l2"].into_iter().map(str::to_owned)
}
