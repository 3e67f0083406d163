//! What a stage is. A further one is a file with a [`Spec`] and a line in [`crate::topology::STAGES`].

use tokio_util::sync::CancellationToken;

use crate::config::Settings;
use crate::kafka;
use crate::kafka::topics::TopicSet;
use crate::metrics::Metrics;
use crate::parts::Parts;
use crate::status::{StageStatus, Status};

/// What is known of a stage before it runs.
pub struct Spec {
    /// As `--stage`, logs, health and the metrics' label `stage` have it.
    pub name: &'static str,
    /// What flows through it, for help.
    pub about: &'static str,
    /// Reads what the stage needs besides Kafka, while the cluster is asked for its topics.
    pub load: fn(&Settings, &Parts) -> Result<Loaded, BoxFailure>,
}

impl std::fmt::Debug for Spec {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name)
    }
}

/// Makes a stage of what was loaded.
pub type Begin = Box<dyn FnOnce(Context) -> Result<Box<dyn Stage>, BoxFailure> + Send>;

/// A stage that has what it needs besides Kafka.
pub struct Loaded {
    /// Bytes of the largest matrix that it writes, for the topic's limit to be checked; nothing if it writes none.
    pub matrix_bytes_max: Option<usize>,
    /// Called once, when the topics are as they must be.
    pub begin: Begin,
}

/// What a stage works with.
pub struct Context {
    /// Settings of the process.
    pub settings: Settings,
    /// The topics as verified.
    pub topics: TopicSet,
    pub metrics: Metrics,
    pub status: Status,
    /// Where to report that it is at work.
    pub own: StageStatus,
    pub stop: CancellationToken,
}

/// A stage, on a thread of its own.
pub trait Stage: Send {
    /// Works until it is told to stop. Called anew after a failure that passes.
    ///
    /// # Errors
    /// The first failure that the stage could not mend by itself.
    fn run(&mut self) -> Result<(), BoxFailure>;

    /// Transactions that it has committed so far: whoever commits something is not failing for ever.
    fn committed(&self) -> u64;
}

/// Why a stage ended.
pub type BoxFailure = Box<dyn Failure>;

/// What supervision asks of a stage's error.
pub trait Failure: std::error::Error + Send + Sync + 'static {
    /// What Kafka said, if that is why.
    fn kafka(&self) -> Option<&kafka::Error> {
        None
    }

    /// Can the stage be built anew and go on?
    fn passes(&self) -> bool {
        self.kafka().is_some_and(kafka::Error::passes)
    }

    /// May Kafka just be away?
    fn is_away(&self) -> bool {
        self.kafka().is_some_and(kafka::Error::passes_by_itself)
    }
}

impl<F: Failure> From<F> for BoxFailure {
    fn from(failure: F) -> Self {
        Box::new(failure)
    }
}
