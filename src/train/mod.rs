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
pub mod takeover;
pub mod training;
pub mod trial;
pub mod turns;
mod validation;

use std::time::{SystemTime, UNIX_EPOCH};

/// Unix time in milliseconds.
pub fn now_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}
