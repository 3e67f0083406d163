//! Searches: what a file says, what its values span, what trials are compared by. \[pure\]

pub mod data;
pub mod file;
pub mod naive;
pub mod objective;
pub mod parameters;
pub mod plan;
pub mod record;
pub mod results;
pub mod section;
pub mod space;
