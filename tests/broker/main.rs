//! Tests against a real Kafka, started once and shared. Texts are embedded with the real model.

mod dead_letters;
mod embed;
#[allow(clippy::disallowed_methods)] // as `support`
mod lab;
mod offsets;
mod outcomes;
mod ownership;
mod processes;
mod range;
mod resume;
mod search;
mod start;
#[allow(clippy::disallowed_methods)] // a reader and a writer that share no code with the program
mod support;
mod topics;
mod train;
mod weights;
