//! What is kept of trials: records, checkpoints, publications; starting, editing, finding and exporting them.

pub mod checkpoint;
pub mod edit;
pub mod export;
pub mod find;
pub mod publish;
pub mod start;
pub mod trials;
