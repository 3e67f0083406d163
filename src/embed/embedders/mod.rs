//! Texts → matrices: what embeds them.
//!
//! Two engines stand behind [`embedder::Embedder`]. `session` drives ONNX Runtime itself, and gives each word, token
//! or text its row from the graph's tokens. `pooled` is fastembed, for graphs that only give a row for a whole text.
//! [`model`] chooses.

pub mod embedder;
mod files;
pub mod model;
mod pooled;
mod session;
pub mod tokenize;
