//! What a trial drives: a model in training, its optimizer, its scores and its files. \[pure\]

pub mod doctor;
pub mod fit;
pub mod learner;
pub mod optimizer;
pub mod schedule;
pub mod scores;
pub mod tensor_file;
