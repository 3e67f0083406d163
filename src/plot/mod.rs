//! Pictures: what is drawn of a search, and how. \[pure\]

pub mod figure;
pub mod scale;
pub mod search;
