//! Everything that speaks to Kafka: clients, topics, consumers, transactions, and a local broker.

pub mod client;
pub mod consumer;
pub mod descriptors;
pub mod error;
pub mod exactly_once;
pub mod groups;
pub mod headers;
pub mod lease;
pub mod local;
pub mod offsets;
pub mod outbox;
pub mod ports;
pub mod reader;
pub mod scan;
pub mod topics;
pub mod transaction;
pub mod wake;

pub use error::{Class, Code, Error, Result};
