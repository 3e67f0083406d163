//! Tests against a real Kafka, started once and shared. Texts are embedded with the real model.

mod embed;
mod support;
mod train;
