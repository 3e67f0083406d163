//! The train stage: [`run`] runs trials, [`store`] keeps them; `run` knows `store`, and not the other way round.

pub mod run;
pub mod store;

use std::time::{SystemTime, UNIX_EPOCH};

/// Unix time in milliseconds.
pub fn now_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}
