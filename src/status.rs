//! What a process is doing right now, for `/health`, `/api` and progress display. Written by the stages.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use serde::Serialize;

/// Shared by everything in a process.
#[derive(Clone, Default)]
pub struct Status(Arc<Inner>);

#[derive(Default)]
struct Inner {
    embed: StageStatus,
    train: StageStatus,
    embedded: AtomicU64,
    dead: AtomicU64,
    trials: Mutex<BTreeMap<String, TrialStatus>>,
}

/// A stage that has not gone round for so long is not at work, whatever it said last: it hangs in a call to Kafka, most
/// likely.
const STALLED: Duration = Duration::from_secs(15);

/// Readiness of a stage.
#[derive(Default)]
pub struct StageStatus {
    wanted: AtomicBool,
    assigned: AtomicBool,
    connected: AtomicBool,
    /// When its loop last went round.
    went_round: Mutex<Option<Instant>>,
}

impl StageStatus {
    /// The stage is part of this process.
    pub fn want(&self) {
        self.wanted.store(true, Ordering::Release);
        self.connected.store(true, Ordering::Release);
    }

    /// The group has answered with an assignment, which may be empty.
    pub fn set_assigned(&self, assigned: bool) {
        self.go_round();
        self.assigned.store(assigned, Ordering::Release);
    }

    /// The stage's loop is alive. Whoever waits in it for long says so now and then.
    pub fn go_round(&self) {
        *self.went_round.lock() = Some(Instant::now());
    }

    /// Whether a broker is connected, as the stage's loop sees it once a second; a change is logged, once.
    pub fn show_connected(&self, connected: bool, stage: &str) {
        self.go_round();
        match (self.connected.swap(connected, Ordering::AcqRel), connected) {
            (true, false) => tracing::warn!(stage, "kafka is away; waiting for it, nothing is lost"),
            (false, true) => tracing::info!(stage, "kafka is back"),
            (true, true) | (false, false) => {}
        }
    }

    /// At work, or not; `None` when the stage is not part of this process.
    pub fn ready(&self) -> Option<bool> {
        self.wanted.load(Ordering::Acquire).then(|| self.hindrance().is_none())
    }

    /// What keeps a stage of this process from its work.
    fn hindrance(&self) -> Option<&'static str> {
        let stalled = || self.went_round.lock().is_some_and(|went_round| went_round.elapsed() > STALLED);
        if !self.connected.load(Ordering::Acquire) {
            Some("waits for kafka")
        } else if !self.assigned.load(Ordering::Acquire) {
            Some("waits for an assignment")
        } else if stalled() {
            Some("has stood still for 15 s and more; a call to kafka hangs, most likely")
        } else {
            None
        }
    }
}

/// A trial as this process sees it.
#[derive(Clone, Debug, Default, Serialize)]
pub struct TrialStatus {
    /// Search it belongs to.
    pub search: String,
    /// Number within the search.
    pub number: u32,
    /// Model's name.
    pub model: String,
    /// `waiting`, `running`, or how it ended.
    pub state: String,
    /// Epoch it is in, from 0.
    pub epoch: u64,
    /// Epochs it is to do.
    pub epochs: u64,
    /// Optimizer updates so far.
    pub step: u64,
    /// Records read in this epoch.
    pub records: u64,
    /// Records of its range.
    pub records_total: u64,
    /// Loss of the last step.
    pub loss: Option<f64>,
    /// The last measurement, published or not yet.
    pub measurement: Option<serde_json::Value>,
}

impl Status {
    /// The embed stage.
    pub fn embed(&self) -> &StageStatus {
        &self.0.embed
    }

    /// The train stage.
    pub fn train(&self) -> &StageStatus {
        &self.0.train
    }

    /// Counts committed verdicts.
    pub fn add_verdicts(&self, embedded: u64, dead: u64) {
        let _ = self.0.embedded.fetch_add(embedded, Ordering::Relaxed);
        let _ = self.0.dead.fetch_add(dead, Ordering::Relaxed);
    }

    /// Matrices and dead letters committed by this process.
    pub fn verdicts(&self) -> (u64, u64) {
        (self.0.embedded.load(Ordering::Relaxed), self.0.dead.load(Ordering::Relaxed))
    }

    /// Changes what is known of a trial.
    pub fn trial(&self, id: &str, change: impl FnOnce(&mut TrialStatus)) {
        change(self.0.trials.lock().entry(id.to_owned()).or_default());
    }

    /// Forgets a trial that this process has no more to do with.
    pub fn forget_trial(&self, id: &str) {
        let _ = self.0.trials.lock().remove(id);
    }

    /// All trials, by id.
    pub fn trials(&self) -> BTreeMap<String, TrialStatus> {
        self.0.trials.lock().clone()
    }

    /// Every wanted stage is at work.
    pub fn ready(&self) -> bool {
        self.hindrances().is_empty()
    }

    /// What keeps stages of this process from their work; nothing, when it is ready.
    pub fn hindrances(&self) -> Vec<String> {
        let stages = [("embed", &self.0.embed), ("train", &self.0.train)];
        let wanted = stages.into_iter().filter(|(_, stage)| stage.wanted.load(Ordering::Acquire));
        wanted.filter_map(|(name, stage)| Some(format!("{name} {}", stage.hindrance()?))).collect()
    }
}
