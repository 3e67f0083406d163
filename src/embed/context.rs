//! What the threads of the stage have in common, and why it ends.

use std::ops::Deref;
use std::sync::atomic::AtomicBool;

use super::embedders::embedder;
use crate::kafka;
use crate::stage::{self, Failure};

/// Why the stage ended.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Kafka.
    #[error(transparent)]
    Kafka(#[from] kafka::Error),
    /// The model.
    #[error(transparent)]
    Model(#[from] embedder::Error),
    /// Offsets of the group are gone and where it was cannot be known.
    #[error("{0}")]
    Position(String),
    /// Another application writes to the same topics.
    #[error("{0}")]
    SecondWriter(String),
    /// A text could not be tokenised.
    #[error("{record}: the tokenizer failed: {message}")]
    Tokenizer { record: String, message: String },
    /// A thread of the stage ended without saying why.
    #[error("the {0} thread of the embed stage ended early")]
    Thread(&'static str),
}

impl Failure for Error {
    fn kafka(&self) -> Option<&kafka::Error> {
        match self {
            Self::Kafka(error) => Some(error),
            _ => None,
        }
    }
}

/// What the stage works with, beside what every stage does.
pub struct Context {
    stage: stage::Context,
    /// Of the stage in this process, however often it is built anew: each time ends what the last one left open.
    pub transactional_id: String,
    /// Kafka has undone a commit: offsets of ours are not to be believed without looking at the output.
    pub undone: AtomicBool,
}

impl Context {
    /// Of a stage of this process.
    pub fn new(stage: stage::Context) -> Self {
        let settings = &stage.settings;
        let instance = settings.kafka.group_instance_id.clone().unwrap_or_else(|| uuid::Uuid::new_v4().to_string());
        let transactional_id = format!("{}.{instance}", settings.embed_group());
        Self { stage, transactional_id, undone: false.into() }
    }
}

impl Deref for Context {
    type Target = stage::Context;

    fn deref(&self) -> &stage::Context {
        &self.stage
    }
}
