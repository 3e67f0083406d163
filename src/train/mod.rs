//! The train stage: searches, trials, and the pool that runs them.

pub mod checkpoint;
pub mod context;
pub mod control;
pub mod edit;
pub mod export;
pub mod find;
pub mod pool;
pub mod publish;
pub mod schedule;
pub mod start;
pub mod store;
pub mod trial;
pub mod turns;
