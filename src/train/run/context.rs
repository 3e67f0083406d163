//! What the pool and its trials work with.

use std::ops::Deref;
use std::sync::Arc;

use super::turns::Turns;
use crate::features::stream::Streams;
use crate::kafka;
use crate::kafka::offsets::Watermarks;
use crate::stage;

/// What the stage works with, beside what every stage does.
pub struct Context {
    stage: stage::Context,
    pub watermarks: Watermarks,
    pub streams: Arc<Streams>,
    pub turns: Turns,
}

impl Context {
    /// Trials of a pool share streams and turns.
    ///
    /// # Errors
    /// When a client cannot be created from the settings.
    pub fn new(stage: stage::Context) -> kafka::Result<Self> {
        let watermarks = Watermarks::new(&stage.settings)?;
        let streams = Streams::new(&stage.settings, &stage.metrics.train);
        let turns = Turns::new(stage.settings.train.threads());
        Ok(Self { stage, watermarks, streams, turns })
    }
}

impl Deref for Context {
    type Target = stage::Context;

    fn deref(&self) -> &stage::Context {
        &self.stage
    }
}
