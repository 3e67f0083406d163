//! The features topic: how a matrix is written, and how a frozen range is read again in the same order.

pub mod codec;
pub mod merge;
mod pooled;
pub mod range;
pub mod replay;
mod sharing;
pub mod stream;
pub mod survey;
pub mod vector;
mod view;
pub mod window;
