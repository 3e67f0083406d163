//! What the pool and its trials work with.

use std::sync::Arc;

use tokio_util::sync::CancellationToken;

use super::turns::Turns;
use crate::config::Settings;
use crate::features::stream::Streams;
use crate::kafka;
use crate::kafka::offsets::Watermarks;
use crate::kafka::topics::TopicSet;
use crate::metrics::Metrics;
use crate::stage;
use crate::status::{StageStatus, Status};

/// What the stage works with.
pub struct Context {
    /// Settings of the process.
    pub settings: Settings,
    /// The topics as verified.
    pub topics: TopicSet,
    /// Where to count.
    pub metrics: Metrics,
    /// Where to report trials.
    pub status: Status,
    /// Where to report that the stage is at work.
    pub own: StageStatus,
    /// Where topics end.
    pub watermarks: Watermarks,
    /// What trials read.
    pub streams: Arc<Streams>,
    /// Which trials compute.
    pub turns: Turns,
    /// Cancelled to drain.
    pub stop: CancellationToken,
}

impl Context {
    /// Trials of a pool share streams and turns.
    ///
    /// # Errors
    /// When a client cannot be created from the settings.
    pub fn new(stage: stage::Context) -> kafka::Result<Self> {
        let stage::Context { settings, topics, metrics, status, own, stop } = stage;
        let watermarks = Watermarks::new(&settings)?;
        let streams = Streams::new(&settings, &metrics.train);
        let turns = Turns::new(settings.train.threads());
        Ok(Self { settings, topics, metrics, status, own, watermarks, streams, turns, stop })
    }
}
