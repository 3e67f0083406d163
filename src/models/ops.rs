//! Products, sums and activations in a fixed order of summation. \[pure\]

use candle_core::{Device, Tensor};

use super::seed::Generator;
use super::tensors::{add, edit, read};
use crate::features::vector::vectorized;

/// Deepest product that is not cut; see [`super`].
const DEPTH_MAX: usize = 512;

/// Elements handled at once: few enough to stay in the first cache between the norm and the update.
pub const BLOCK: usize = 1024;

/// Matrix product, in the same order of summation on every machine; see the module's documentation.
pub fn product(left: &Tensor, right: &Tensor) -> candle_core::Result<Tensor> {
    let depth = left.dim(1)?;
    if depth <= DEPTH_MAX {
        return left.matmul(right);
    }
    let part = |start: usize| {
        let depth = DEPTH_MAX.min(depth - start);
        left.narrow(1, start, depth)?.matmul(&right.narrow(0, start, depth)?)
    };
    let sum = part(0)?;
    for start in (DEPTH_MAX..depth).step_by(DEPTH_MAX) {
        accumulate(&sum, &part(start)?)?;
    }
    Ok(sum)
}

/// A layer: `x Wᵀ + b`.
pub fn affine(inputs: &Tensor, weight: &Tensor, bias: &Tensor) -> candle_core::Result<Tensor> {
    let outputs = product(inputs, &weight.t()?)?;
    read(bias, |bias| edit(&outputs, |outputs| add_bias(outputs, bias)))??;
    Ok(outputs)
}

/// What values are multiplied with so that a share of them is dropped and the others make up for it.
pub fn dropout(generator: &mut Generator, share: f32, values: usize) -> Vec<f32> {
    let kept = 1.0 / (1.0 - share);
    (0..values).map(|_| if generator.uniform() < share { 0.0 } else { kept }).collect()
}

/// Adds to the first rows of `sum`.
pub fn accumulate(sum: &Tensor, values: &Tensor) -> candle_core::Result<()> {
    read(values, |values| edit(sum, |sum| add(sum, values)))?
}

/// Sums of the columns, in row order: a bias's gradient.
pub fn column_sums(rows: &Tensor) -> candle_core::Result<Tensor> {
    let width = rows.dim(1)?;
    let sums = read(rows, |rows| {
        let mut sums = vec![0.0; width];
        rows.chunks_exact(width).for_each(|row| add(&mut sums, row));
        sums
    })?;
    Tensor::from_vec(sums, width, &Device::Cpu)
}

/// Adds a bias to each row.
pub fn add_bias(rows: &mut [f32], bias: &[f32]) {
    rows.chunks_exact_mut(bias.len()).for_each(|row| add(row, bias));
}

/// ReLU, then inverted dropout with probability `share` if there is a generator.
pub fn relu(values: &mut [f32], dropout: Option<&mut Generator>, share: f32, kept_scale: f32) {
    // Not `max`, which would turn NaN into 0 and hide that the trial has diverged.
    values.iter_mut().for_each(|value| *value = if *value < 0.0 { 0.0 } else { *value });
    if let Some(generator) = dropout {
        for value in values {
            *value = if generator.uniform() < share { 0.0 } else { *value * kept_scale };
        }
    }
}

/// The gradient below ReLU and dropout: nothing passes where the activation is 0, by either.
pub fn through_relu(gradient: &Tensor, activations: &Tensor, kept_scale: f32) -> candle_core::Result<()> {
    read(activations, |activations| {
        edit(gradient, |gradient| {
            for (gradient, activation) in gradient.iter_mut().zip(activations) {
                *gradient = if *activation > 0.0 { *gradient * kept_scale } else { 0.0 };
            }
        })
    })?
}

/// Sum of squares, in `f64` over blocks summed in 16 lanes of `f32`: always in the same order.
pub fn sum_of_squares(values: &[f32]) -> f64 {
    vectorized(
        #[inline(always)]
        || values.chunks(BLOCK).map(squares_of_block).sum(),
    )
}

/// Of at most [`BLOCK`] values.
#[inline(always)]
pub fn squares_of_block(values: &[f32]) -> f64 {
    let mut lanes = [0.0_f32; 16];
    let (parts, rest) = values.as_chunks::<16>();
    for part in parts {
        for (lane, value) in lanes.iter_mut().zip(part) {
            *lane += value * value;
        }
    }
    for (lane, value) in lanes.iter_mut().zip(rest) {
        *lane += value * value;
    }
    lanes.iter().map(|&lane| f64::from(lane)).sum()
}
