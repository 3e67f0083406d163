//! The one place that wires stages together, starts them, and stops them.

use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use prometheus::IntCounter;
use tokio_util::sync::CancellationToken;

use crate::config::Settings;
use crate::embed::model::Model;
use crate::embed::stage as embed;
use crate::kafka::topics::{Declarations, TopicSet};
use crate::kafka::{client, descriptors};
use crate::metrics::{Metrics, TransactionOutcome};
use crate::parts::Parts;
use crate::status::Status;
use crate::train::pool as train;
use crate::{http, kafka};

/// A stage that has worked for this long, or committed something, starts its count of rebuilds afresh.
const HEALTHY: Duration = Duration::from_secs(600);

/// What stopping may take beyond the drain timeout before a stage is left behind.
const STOP_MARGIN: Duration = Duration::from_secs(4);

/// File descriptors that both stages take at most: 61 at rest, 300 while 16 trials begin at once, 64 connections to the
/// HTTP endpoint, and some for each further broker of a cluster.
const DESCRIPTORS: u64 = 512;

/// What a process does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stage {
    /// texts → features.
    Embed,
    /// trials → output.
    Train,
}

impl Stage {
    /// All of them, in the order in which data flows.
    pub const ALL: [Self; 2] = [Self::Embed, Self::Train];

    /// As `--stage` takes it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Embed => "embed",
            Self::Train => "train",
        }
    }
}

/// Why a topology did not start, or ended.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Kafka.
    #[error(transparent)]
    Kafka(#[from] kafka::Error),
    /// The embedding model.
    #[error(transparent)]
    Model(#[from] crate::embed::model::Error),
    /// The embed stage failed for good.
    #[error("the embed stage failed: {0}")]
    Embed(#[from] embed::Error),
    /// The train stage failed for good.
    #[error("the train stage failed: {0}")]
    Train(#[from] train::Error),
    /// The HTTP endpoint.
    #[error(transparent)]
    Http(#[from] http::Error),
    /// A stage panicked.
    #[error("the {0} stage panicked; the log says where")]
    Panicked(&'static str),
    /// Metrics could not be registered.
    #[error("metrics: {0}")]
    Metrics(#[from] crate::metrics::Error),
    /// A thread could not be started.
    #[error("starting a thread: {0}")]
    Thread(std::io::Error),
}

/// What supervision asks of a stage's error.
trait Failure: std::fmt::Display + Send + 'static {
    /// Can the stage be built anew and go on?
    fn passes(&self) -> bool;
    /// May Kafka just be away?
    fn is_away(&self) -> bool;
}

impl Failure for embed::Error {
    fn passes(&self) -> bool {
        self.passes()
    }
    fn is_away(&self) -> bool {
        self.is_away()
    }
}

impl Failure for train::Error {
    fn passes(&self) -> bool {
        self.passes()
    }
    fn is_away(&self) -> bool {
        self.is_away()
    }
}

/// Stages that are running.
pub struct Topology {
    stages: Vec<Running>,
    http: Option<http::Server>,
    /// What they are doing.
    pub status: Status,
    /// What they have counted.
    pub metrics: Metrics,
    /// The topics as verified.
    pub topics: TopicSet,
    settings: Settings,
    /// Cancelled when some stage has ended.
    ended: CancellationToken,
    _descriptors: descriptors::Watch,
}

struct Running {
    stage: Stage,
    stop: CancellationToken,
    thread: JoinHandle<Result<(), Error>>,
}

impl Topology {
    /// Waits for the cluster, creates and verifies topics, loads the model, and starts the stages.
    ///
    /// # Errors
    /// The first thing that is not as it must be; nothing is left running.
    pub fn start(settings: &Settings, parts: &Parts, stages: &[Stage]) -> Result<Self, Error> {
        let metrics = Metrics::new()?;
        let status = Status::default();
        let ended = CancellationToken::new();
        if let Some(few) = descriptors::few("stages take", DESCRIPTORS) {
            tracing::warn!("{few}");
        }
        let watch = descriptors::Watch::start().map_err(Error::Thread)?;
        // The model loads while the cluster is asked: both take most of a start.
        let model = stages.contains(&Stage::Embed).then(|| {
            let (settings, parts) = (settings.clone(), parts.clone());
            let load = move || Model::load(&parts, &settings);
            std::thread::Builder::new().name("load-model".into()).spawn(load).map_err(Error::Thread)
        });
        let cluster = client::await_cluster(settings);
        let model = model.transpose()?.map(|thread| thread.join().map_err(|_| Error::Panicked("embed")));
        let model = model.transpose()?.transpose()?;
        cluster?;
        let declarations = Declarations::load(settings)?;
        let topics = declarations.ensure(settings, model.as_ref().map(|model| model.matrix_bytes_max))?;
        // Before anybody can ask: a process is not ready because none of its stages has begun.
        for stage in stages {
            match stage {
                Stage::Embed => status.embed().want(),
                Stage::Train => status.train().want(),
            }
        }
        let http = http::Server::start(settings, metrics.clone(), status.clone())?;
        let mut topology = Self {
            stages: Vec::new(),
            http: Some(http),
            status,
            metrics,
            topics,
            settings: settings.clone(),
            ended,
            _descriptors: watch,
        };
        if let Some(model) = model {
            topology.start_embed(model)?;
        }
        if stages.contains(&Stage::Train) {
            topology.start_train()?;
        }
        Ok(topology)
    }

    fn start_embed(&mut self, mut model: Model) -> Result<(), Error> {
        let stop = CancellationToken::new();
        let instance =
            self.settings.kafka.group_instance_id.clone().unwrap_or_else(|| uuid::Uuid::new_v4().to_string());
        let context = embed::Context {
            undone: false.into(),
            transactional_id: format!("{}.{instance}", self.settings.embed_group()),
            settings: self.settings.clone(),
            topics: self.topics.clone(),
            metrics: self.metrics.clone(),
            status: self.status.clone(),
            stop: stop.clone(),
        };
        tracing::info!(embedder = %model.embedder, dim = model.dim, sessions = model.sessions.len(), "embed stage starts");
        let committed = context.metrics.embed.transactions.with_label_values(&[TransactionOutcome::Committed.label()]);
        self.supervise(Stage::Embed, stop, move || embed::run(&context, &mut model), committed)
    }

    fn start_train(&mut self) -> Result<(), Error> {
        let stop = CancellationToken::new();
        let (settings, topics) = (self.settings.clone(), self.topics.clone());
        let (metrics, status) = (self.metrics.clone(), self.status.clone());
        let context = Arc::new(train::Context::new(settings, topics, metrics, status, stop.clone())?);
        tracing::info!(threads = self.settings.train.threads(), "train stage starts");
        let committed = context.metrics.train.transactions.with_label_values(&[TransactionOutcome::Committed.label()]);
        self.supervise(Stage::Train, stop, move || train::run(&context), committed)
    }

    /// Runs a stage on a thread of its own; builds it anew after failures that pass, a bounded number of times in a row.
    /// While no broker answers there is nothing to build, so that time is waited for and does not count.
    fn supervise<E>(
        &mut self,
        stage: Stage,
        stop: CancellationToken,
        mut run: impl FnMut() -> Result<(), E> + Send + 'static,
        committed: IntCounter,
    ) -> Result<(), Error>
    where
        E: Failure,
        Error: From<E>,
    {
        let (stopped, ended) = (stop.clone(), self.ended.clone());
        let settings = self.settings.clone();
        let rebuilds_max = settings.run.rebuilds_max.get();
        let counted = self.metrics.stages.rebuilds.with_label_values(&[stage.name()]);
        let work = move || {
            let _ended = ended.drop_guard();
            let mut rebuilds = 0;
            loop {
                let (started, before) = (Instant::now(), committed.get());
                let error = match run() {
                    Ok(()) => return Ok(()),
                    Err(error) => error,
                };
                if started.elapsed() > HEALTHY || committed.get() > before {
                    rebuilds = 0;
                }
                let away = error.is_away() && client::await_return(&settings, || stopped.is_cancelled())?;
                if error.passes() && stopped.is_cancelled() {
                    tracing::warn!(stage = stage.name(), %error, "stopped; what was in flight is left to its successor");
                    return Ok(());
                }
                if away {
                    counted.inc();
                    tracing::warn!(stage = stage.name(), %error, "stage failed while kafka was away; building it anew");
                    continue;
                }
                if !error.passes() || rebuilds >= rebuilds_max {
                    tracing::error!(stage = stage.name(), %error, rebuilds, "stage failed for good");
                    return Err(error.into());
                }
                rebuilds += 1;
                counted.inc();
                tracing::warn!(stage = stage.name(), %error, rebuilds, rebuilds_max, "stage failed; building it anew");
                std::thread::sleep(Duration::from_millis(200) * rebuilds);
            }
        };
        let thread = std::thread::Builder::new().name(stage.name().into()).spawn(work).map_err(Error::Thread)?;
        self.stages.push(Running { stage, stop, thread });
        Ok(())
    }

    /// Address of the HTTP endpoint.
    pub fn http_address(&self) -> Option<std::net::SocketAddr> {
        self.http.as_ref().map(http::Server::address)
    }

    /// Completes when a stage has ended by itself.
    pub fn ended(&self) -> CancellationToken {
        self.ended.clone()
    }

    /// Stops the stages side by side, each within the drain timeout, and returns the first failure.
    ///
    /// # Errors
    /// Why a stage failed, during its work or while stopping.
    pub fn stop(mut self) -> Result<(), Error> {
        let mut result = Ok(());
        // All at once: trials need not wait for texts, and each stage has a deadline of its own.
        for running in &self.stages {
            running.stop.cancel();
        }
        let deadline = Instant::now() + self.settings.run.drain_timeout + STOP_MARGIN;
        for Running { stage, thread, .. } in self.stages.drain(..) {
            while !thread.is_finished() && Instant::now() < deadline {
                std::thread::sleep(Duration::from_millis(5));
            }
            if !thread.is_finished() {
                // Waiting for a broker, most likely. What it had not committed, nobody has seen.
                tracing::warn!(
                    stage = stage.name(),
                    "did not stop in time; what was in flight is left to its successor"
                );
                continue;
            }
            let ended = thread.join().unwrap_or(Err(Error::Panicked(stage.name())));
            tracing::info!(stage = stage.name(), "stopped");
            result = result.and(ended);
        }
        if let Some(http) = self.http.take() {
            http.stop();
        }
        result
    }
}
