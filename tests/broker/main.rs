//! Tests against a real Kafka, started once and shared. Texts are embedded with the real model.

mod embed;
#[allow(clippy::disallowed_methods)] // as `support`
mod lab;
mod outcomes;
mod ownership;
mod range;
mod resume;
mod search;
#[allow(clippy::disallowed_methods)] // a reader and a writer that share no code with the program
mod support;
mod train;
mod weights;
