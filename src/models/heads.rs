//! Attention of one record's rows to each other, head by head; formulas in [`super::attention`]. \[pure\]
//!
//! Records are too short for a library's products: a head of 24 rows takes less time than a call. Rows are gathered
//! into room that is reused, and padded there to whole vectors.

use super::activation::exp;
use super::tensors::add_scaled;
use crate::features::vector::vectorized;

/// Scores are computed in so many columns at once.
const LANES: usize = 8;

/// What each row attended to, for the way back: record by record, head by head, `[L, L padded]`.
pub struct Heads {
    weights: Vec<f32>,
}

/// Room for one head of one record.
#[derive(Default)]
struct Room {
    query: Vec<f32>,
    /// `[d, L padded]`
    key: Vec<f32>,
    value: Vec<f32>,
    /// `[d, L padded]`, too, for the way back.
    value_across: Vec<f32>,
    scores: Vec<f32>,
}

impl Heads {
    /// From the projections `[rows, 3H]` to the context `[rows, H]`.
    pub fn forward(projected: &[f32], records: &[Vec<usize>], hidden: usize, heads: usize) -> (Vec<f32>, Self) {
        let width = hidden / heads;
        let scale = (1.0 / (width as f64).sqrt()) as f32;
        let mut context = vec![0.0; projected.len() / 3];
        let total: usize = records.iter().map(|rows| heads * rows.len() * padded(rows.len())).sum();
        let (mut weights, mut room, mut at) = (vec![0.0; total], Room::default(), 0);
        vectorized(
            #[inline(always)]
            || {
                for rows in records {
                    let (length, across) = (rows.len(), padded(rows.len()));
                    for head in 0..heads {
                        room.gather(projected, rows, hidden, head * width, width);
                        for (row, &place) in rows.iter().enumerate() {
                            let weights = &mut weights[at..][..across];
                            at += across;
                            for (query, keys) in
                                room.query[row * width..][..width].iter().zip(room.key.chunks_exact(across))
                            {
                                add_scaled(weights, query * scale, keys);
                            }
                            softmax(&mut weights[..length]);
                            weights[length..].fill(0.0);
                            let context = &mut context[place * hidden + head * width..][..width];
                            for (weight, value) in weights.iter().zip(room.value.chunks_exact(width)) {
                                add_scaled(context, *weight, value);
                            }
                        }
                    }
                }
            },
        );
        (context, Self { weights })
    }

    /// Gradients of the projections `[rows, 3H]`, from those of the context `[rows, H]`.
    pub fn backward(
        &self,
        projected: &[f32],
        gradients: &[f32],
        records: &[Vec<usize>],
        hidden: usize,
        heads: usize,
    ) -> Vec<f32> {
        let width = hidden / heads;
        let scale = (1.0 / (width as f64).sqrt()) as f32;
        let (mut to, mut room, mut at) = (vec![0.0; projected.len()], Room::default(), 0);
        let (mut to_key, mut to_value) = (Vec::new(), Vec::new());
        vectorized(
            #[inline(always)]
            || {
                for rows in records {
                    let (length, across) = (rows.len(), padded(rows.len()));
                    for head in 0..heads {
                        let column = head * width;
                        room.gather(projected, rows, hidden, column, width);
                        to_key.clear();
                        to_key.resize(length * width, 0.0);
                        to_value.clear();
                        to_value.resize(length * width, 0.0);
                        for (row, &place) in rows.iter().enumerate() {
                            let weights = &self.weights[at..][..across];
                            at += across;
                            let gradient = &gradients[place * hidden + column..][..width];
                            let scores = &mut room.scores[..across];
                            scores.fill(0.0);
                            for (gradient, values) in gradient.iter().zip(room.value_across.chunks_exact(across)) {
                                add_scaled(scores, *gradient, values);
                            }
                            // Through the softmax.
                            let mut mean = 0.0;
                            for (weight, score) in weights.iter().zip(scores.iter()) {
                                mean += weight * score;
                            }
                            for (score, weight) in scores.iter_mut().zip(weights) {
                                *score = weight * (*score - mean) * scale;
                            }
                            let query = &room.query[row * width..][..width];
                            for other in 0..length {
                                let span = other * width..(other + 1) * width;
                                add_scaled(&mut to_value[span.clone()], weights[other], gradient);
                                add_scaled(&mut to_key[span], scores[other], query);
                            }
                            let to_query = &mut to[place * 3 * hidden + column..][..width];
                            for (other, &score) in rows.iter().zip(scores.iter()) {
                                add_scaled(
                                    to_query,
                                    score,
                                    &projected[other * 3 * hidden + hidden + column..][..width],
                                );
                            }
                        }
                        for (row, &place) in rows.iter().enumerate() {
                            let span = row * width..(row + 1) * width;
                            let start = place * 3 * hidden + column;
                            to[start + hidden..][..width].copy_from_slice(&to_key[span.clone()]);
                            to[start + 2 * hidden..][..width].copy_from_slice(&to_value[span]);
                        }
                    }
                }
            },
        );
        to
    }
}

impl Room {
    /// Takes one head of one record.
    #[inline(always)]
    fn gather(&mut self, projected: &[f32], rows: &[usize], hidden: usize, column: usize, width: usize) {
        let across = padded(rows.len());
        self.query.clear();
        self.value.clear();
        self.scores.resize(across, 0.0);
        for room in [&mut self.key, &mut self.value_across] {
            room.clear();
            room.resize(width * across, 0.0);
        }
        for (row, place) in rows.iter().enumerate() {
            let part = |number: usize| &projected[place * 3 * hidden + number * hidden + column..][..width];
            self.query.extend_from_slice(part(0));
            self.value.extend_from_slice(part(2));
            for (i, (key, value)) in part(1).iter().zip(part(2)).enumerate() {
                (self.key[i * across + row], self.value_across[i * across + row]) = (*key, *value);
            }
        }
    }
}

#[inline(always)]
fn softmax(scores: &mut [f32]) {
    let mut highest = f32::NEG_INFINITY;
    for score in scores.iter() {
        highest = if *score > highest { *score } else { highest };
    }
    let mut total = 0.0;
    for score in scores.iter_mut() {
        *score = exp(*score - highest);
        total += *score;
    }
    let share = 1.0 / total;
    scores.iter_mut().for_each(|score| *score *= share);
}

/// Rows, filled up to whole vectors.
#[inline(always)]
fn padded(rows: usize) -> usize {
    rows.next_multiple_of(LANES)
}
