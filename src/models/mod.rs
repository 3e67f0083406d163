//! Models: their kinds, parameters, losses and gradients. \[pure\]
//!
//! A [`Kind`](kind::Kind) is one file and one line of the [`registry`]: a name, what it learns, its hyper-parameters,
//! its parameters (named variables, sorted by name) and the [`Model`](model::Model) that knows the formulas.
//!
//! A layer is `y = x Wᵀ + b` with `W` `[out, in]`. Dropout is inverted: with probability p an activation becomes 0,
//! else it is divided by 1 − p.
//!
//! # What bits depend on
//!
//! Results are equal bit by bit for equal input, weights and generators on machines whose matrix
//! product has the same vector instructions (all x86-64 with AVX2 and FMA; all aarch64). The
//! product sums in blocks whose size it derives from the cache sizes it finds, but never divides a
//! depth of 512 or less, so that deeper ones are cut here. Candle asks `RAYON_NUM_THREADS` at each
//! product: whoever trains sets it to 1 beforehand, since several trials would otherwise fight for
//! the processors.
//!
//! A model that records a graph leaves products to candle: its bits are equal between such machines as long as no
//! product is deeper than 512.

pub mod activation;
pub mod attention;
pub mod autoencoder;
pub mod batch;
pub mod cell;
pub mod cnn;
pub mod criterion;
pub mod dense;
pub mod error;
pub mod graph;
pub mod heads;
pub mod kind;
pub mod linear;
pub mod loss;
pub mod mlp;
pub mod model;
pub mod norm;
pub mod ops;
pub mod own;
pub mod parameters;
pub mod readout;
pub mod recurrent;
pub mod registry;
pub mod seed;
pub mod tensors;

#[cfg(test)]
pub mod tests;
