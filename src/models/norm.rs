//! Layer norm and the mean over a record's rows; formulas in [`super::attention`]. \[pure\]

use super::tensors::add;
use crate::features::vector::vectorized;

const EPSILON: f64 = 1e-5;

/// What the norm of rows divided by, row by row.
pub struct Normed {
    inverse: Vec<f32>,
    width: usize,
}

impl Normed {
    /// Rows become (row − mean) / √(variance + 10⁻⁵).
    pub fn forward(rows: &mut [f32], width: usize) -> Self {
        let inverse = vectorized(
            #[inline(always)]
            || {
                let norm = |row: &mut [f32]| {
                    let mean = (sum(row, |value| value) / width as f64) as f32;
                    row.iter_mut().for_each(|value| *value -= mean);
                    let variance = sum(row, |value| value * value) / width as f64;
                    let inverse = (1.0 / (variance + EPSILON).sqrt()) as f32;
                    row.iter_mut().for_each(|value| *value *= inverse);
                    inverse
                };
                rows.chunks_exact_mut(width).map(norm).collect()
            },
        );
        Self { inverse, width }
    }

    /// Gradients of the rows that were normed, from those of the records' means after γ. `rows` are what they became.
    pub fn backward(&self, rows: &[f32], records: &[Vec<usize>], features: &[f32], scale: &[f32]) -> Vec<f32> {
        let width = self.width;
        let mut gradients = vec![0.0; rows.len()];
        let mut gradient = vec![0.0; width];
        vectorized(
            #[inline(always)]
            || {
                for (record, feature) in records.iter().zip(features.chunks_exact(width)) {
                    let share = 1.0 / record.len() as f32;
                    for ((gradient, feature), scale) in gradient.iter_mut().zip(feature).zip(scale) {
                        *gradient = feature * scale * share;
                    }
                    let mean = (sum(&gradient, |value| value) / width as f64) as f32;
                    for &place in record {
                        let row = &rows[place * width..][..width];
                        let along = products(&gradient, row);
                        let (along, inverse) = ((along / width as f64) as f32, self.inverse[place]);
                        let to = &mut gradients[place * width..][..width];
                        for ((to, gradient), value) in to.iter_mut().zip(&gradient).zip(row) {
                            *to = (gradient - mean - value * along) * inverse;
                        }
                    }
                }
            },
        );
        gradients
    }
}

/// Means of the records' rows.
pub fn means(rows: &[f32], records: &[Vec<usize>], width: usize, means: &mut [f32]) {
    for (record, mean) in records.iter().zip(means.chunks_exact_mut(width)) {
        record.iter().for_each(|&place| add(mean, &rows[place * width..][..width]));
        let count = record.len() as f32;
        mean.iter_mut().for_each(|sum| *sum /= count);
    }
}

/// Rows become row · γ + β.
pub fn affine(rows: &mut [f32], scale: &[f32], shift: &[f32]) {
    for row in rows.chunks_exact_mut(scale.len()) {
        row.iter_mut().zip(scale).zip(shift).for_each(|((value, scale), shift)| *value = *value * scale + shift);
    }
}

/// In 16 lanes of `f32`, which are added in `f64`: always in the same order.
#[inline(always)]
fn sum(values: &[f32], of: impl Fn(f32) -> f32) -> f64 {
    let mut lanes = [0.0_f32; 16];
    for part in values.chunks(16) {
        lanes.iter_mut().zip(part).for_each(|(lane, value)| *lane += of(*value));
    }
    lanes.iter().map(|&lane| f64::from(lane)).sum()
}

/// Sum of the products, in the same lanes.
#[inline(always)]
fn products(left: &[f32], right: &[f32]) -> f64 {
    let mut lanes = [0.0_f32; 16];
    for (left, right) in left.chunks(16).zip(right.chunks(16)) {
        lanes.iter_mut().zip(left).zip(right).for_each(|((lane, left), right)| *lane += left * right);
    }
    lanes.iter().map(|&lane| f64::from(lane)).sum()
}
