//! `autoencoder`: the rows flattened and padded with zeros to `rows_max`, [T·D] → `layers.0` → ReLU → dropout → … →
//! `layers.n` → [T·D], widths as in `layers`, then mirrored. \[pure\]
//!
//! Loss: squared error summed over the rows that exist / (number of those rows · D). Outputs for padding are neither
//! computed nor compared.

use super::batch::Layout;
use super::dense::Dense;
use super::error::ModelError;
use super::kind::{Key, Kind, Preset, Task, DROPOUT};
use super::parameters::layers;

/// See the module.
pub static KIND: Kind = Kind {
    name: "autoencoder",
    tasks: &[Task::Reconstruction],
    layout: Layout::Packed,
    about: "reconstructs the rows through a narrow middle",
    keys: &[
        Key {
            name: "layers",
            default: Preset::Widths(&[256, 128]),
            help: "widths of the encoder, at most 64; the decoder mirrors them",
        },
        DROPOUT,
    ],
    parameters: |spec| {
        let flat = spec.shape.rows_max.checked_mul(spec.shape.dim).ok_or(ModelError::Size)?;
        let encoder = spec.widths("layers");
        let decoder = encoder.iter().rev().skip(1);
        let widths: Vec<usize> = [flat].iter().chain(encoder).chain(decoder).chain(&[flat]).copied().collect();
        Ok(layers(names(widths.len() - 1), &widths))
    },
    model: |spec, parameters| {
        let names = names(2 * spec.widths("layers").len());
        Ok(Box::new(Dense::new(spec, parameters, names)?))
    },
};

fn names(layers: usize) -> impl Iterator<Item = String> {
    (0..layers).map(|layer| format!("layers.{layer}"))
}
