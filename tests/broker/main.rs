//! Tests against a real Kafka, started once and shared. Texts are embedded with the real model.

mod away;
mod best;
mod dead_letters;
mod descriptors;
mod embed;
mod expired;
mod files;
mod finite;
mod foreign;
mod http;
#[path = "../support/lab.rs"]
mod lab;
mod launcher;
mod models;
mod offsets;
#[path = "../support/onnx.rs"]
mod onnx;
mod outcomes;
mod ownership;
mod partitions;
mod processes;
mod produce;
mod python;
mod range;
mod regression;
mod resume;
mod retention;
mod search;
mod security;
mod sharing;
mod start;
#[path = "../support/support.rs"]
mod support;
mod topics;
mod train;
mod unwritable;
mod weights;
#[path = "../support/wire.rs"]
mod wire;
mod writers;
