//! Trials at work: the pool that shares them out, and each from takeover to its end.

pub mod context;
pub mod control;
pub mod pool;
pub mod schedule;
pub mod takeover;
pub mod training;
pub mod trial;
pub mod turns;
mod validation;
