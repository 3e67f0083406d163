//! The one place that wires stages together, starts them, and stops them.

use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;

use crate::config::Settings;
use crate::kafka::topics::{Declarations, TopicSet};
use crate::kafka::{client, descriptors};
use crate::metrics::Metrics;
use crate::parts::Parts;
use crate::stage::{self, BoxFailure, Loaded, Spec, Stage};
use crate::status::{StageStatus, Status};
use crate::{embed, http, kafka, train};

/// A stage that has worked for this long, or committed something, starts its count of rebuilds afresh.
const HEALTHY: Duration = Duration::from_secs(600);

/// What stopping may take beyond the drain timeout before a stage is left behind.
const STOP_MARGIN: Duration = Duration::from_secs(4);

/// File descriptors that both stages take at most: 61 at rest, 300 while 16 trials begin at once, 64 connections to the
/// HTTP endpoint, and some for each further broker of a cluster.
const DESCRIPTORS: u64 = 512;

/// All stages, in the order in which data flows.
pub static STAGES: [&Spec; 2] = [&embed::stage::EMBED, &train::run::pool::TRAIN];

/// Why a topology did not start, or ended.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Kafka.
    #[error(transparent)]
    Kafka(#[from] kafka::Error),
    /// What a stage needs besides Kafka.
    #[error("{0}")]
    Load(BoxFailure),
    /// A stage failed for good.
    #[error("the {stage} stage failed: {cause}")]
    Stage { stage: &'static str, cause: BoxFailure },
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

/// Stages that are running.
pub struct Topology {
    stages: Vec<StageThread>,
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

struct StageThread {
    name: &'static str,
    stop: CancellationToken,
    thread: JoinHandle<Result<(), Error>>,
}

impl Topology {
    /// Waits for the cluster, creates and verifies topics, loads the model, and starts the stages.
    ///
    /// # Errors
    /// The first thing that is not as it must be; nothing is left running.
    pub fn start(settings: &Settings, parts: &Parts, stages: &[&'static Spec]) -> Result<Self, Error> {
        let metrics = Metrics::new()?;
        let status = Status::default();
        let ended = CancellationToken::new();
        if let Some(few) = descriptors::few("stages take", DESCRIPTORS) {
            tracing::warn!("{few}");
        }
        let watch = descriptors::Watch::start().map_err(Error::Thread)?;
        // Models load while the cluster is asked: both take most of a start.
        let load = |spec: &&'static Spec| {
            let (spec, settings, parts) = (*spec, settings.clone(), parts.clone());
            let load = move || (spec.load)(&settings, &parts);
            let thread = std::thread::Builder::new().name(format!("load-{}", spec.name)).spawn(load);
            Ok((spec.name, thread.map_err(Error::Thread)?))
        };
        let loading: Vec<_> = STAGES
            .iter()
            .filter(|spec| stages.iter().any(|wanted| wanted.name == spec.name))
            .map(load)
            .collect::<Result<_, Error>>()?;
        let cluster = client::await_cluster(settings);
        let mut loaded = Vec::new();
        for (name, thread) in loading {
            loaded.push((name, thread.join().map_err(|_| Error::Panicked(name))?.map_err(Error::Load)?));
        }
        cluster?;
        let declarations = Declarations::load(settings)?;
        let matrix_bytes_max = loaded.iter().filter_map(|(_, loaded)| loaded.matrix_bytes_max).max();
        let topics = declarations.ensure(settings, matrix_bytes_max)?;
        // Before anybody can ask: a process is not ready because none of its stages has begun.
        let owns: Vec<StageStatus> = loaded.iter().map(|(name, _)| status.add_stage(name)).collect();
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
        for ((name, loaded), own) in loaded.into_iter().zip(owns) {
            topology.begin(name, loaded, own)?;
        }
        Ok(topology)
    }

    fn begin(&mut self, name: &'static str, loaded: Loaded, own: StageStatus) -> Result<(), Error> {
        let stop = CancellationToken::new();
        let context = stage::Context {
            settings: self.settings.clone(),
            topics: self.topics.clone(),
            metrics: self.metrics.clone(),
            status: self.status.clone(),
            own,
            stop: stop.clone(),
        };
        let stage = (loaded.begin)(context).map_err(|cause| Error::Stage { stage: name, cause })?;
        self.supervise(name, stop, stage)
    }

    /// Runs a stage on a thread of its own; builds it anew after failures that pass, a bounded number of times in a
    /// row. While no broker answers there is nothing to build, so that time is waited for and does not count.
    fn supervise(
        &mut self,
        name: &'static str,
        stop: CancellationToken,
        mut stage: Box<dyn Stage>,
    ) -> Result<(), Error> {
        let (stopped, ended) = (stop.clone(), self.ended.clone());
        let settings = self.settings.clone();
        let rebuilds_max = settings.run.rebuilds_max.get();
        let counted = self.metrics.stages.rebuilds.with_label_values(&[name]);
        let work = move || {
            let _ended = ended.drop_guard();
            let mut rebuilds = 0;
            loop {
                let (started, before) = (Instant::now(), stage.committed());
                let error = match stage.run() {
                    Ok(()) => return Ok(()),
                    Err(error) => error,
                };
                if started.elapsed() > HEALTHY || stage.committed() > before {
                    rebuilds = 0;
                }
                let away = error.is_away() && client::await_return(&settings, || stopped.is_cancelled())?;
                if error.passes() && stopped.is_cancelled() {
                    tracing::warn!(stage = name, %error, "stopped; what was in flight is left to its successor");
                    return Ok(());
                }
                if away {
                    counted.inc();
                    tracing::warn!(stage = name, %error, "stage failed while kafka was away; building it anew");
                    continue;
                }
                if !error.passes() || rebuilds >= rebuilds_max {
                    tracing::error!(stage = name, %error, rebuilds, "stage failed for good");
                    return Err(Error::Stage { stage: name, cause: error });
                }
                rebuilds += 1;
                counted.inc();
                tracing::warn!(stage = name, %error, rebuilds, rebuilds_max, "stage failed; building it anew");
                std::thread::sleep(Duration::from_millis(200) * rebuilds);
            }
        };
        let thread = std::thread::Builder::new().name(name.into()).spawn(work).map_err(Error::Thread)?;
        self.stages.push(StageThread { name, stop, thread });
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
        for StageThread { name, thread, .. } in self.stages.drain(..) {
            while !thread.is_finished() && Instant::now() < deadline {
                std::thread::sleep(Duration::from_millis(5));
            }
            if !thread.is_finished() {
                // Waiting for a broker, most likely. What it had not committed, nobody has seen.
                tracing::warn!(stage = name, "did not stop in time; what was in flight is left to its successor");
                continue;
            }
            let ended = thread.join().unwrap_or(Err(Error::Panicked(name)));
            tracing::info!(stage = name, "stopped");
            result = result.and(ended);
        }
        if let Some(http) = self.http.take() {
            http.stop();
        }
        result
    }
}
