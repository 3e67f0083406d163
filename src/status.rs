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
    /// In the order in which data flows.
    stages: Mutex<Vec<(&'static str, StageStatus)>>,
    embedded: AtomicU64,
    dead: AtomicU64,
    trials: Mutex<BTreeMap<String, TrialStatus>>,
}

/// A stage that has not gone round for so long is not at work, whatever it said last: it hangs in a call to Kafka, most
/// likely.
const STALLED: Duration = Duration::from_secs(15);

/// Readiness of a stage of this process.
#[derive(Clone)]
pub struct StageStatus(Arc<Readiness>);

struct Readiness {
    stage: &'static str,
    assigned: AtomicBool,
    connected: AtomicBool,
    /// When its loop last went round.
    went_round: Mutex<Option<Instant>>,
}

impl StageStatus {
    /// The group has answered with an assignment, which may be empty.
    pub fn set_assigned(&self, assigned: bool) {
        self.go_round();
        self.0.assigned.store(assigned, Ordering::Release);
    }

    /// The stage's loop is alive. Whoever waits in it for long says so now and then.
    pub fn go_round(&self) {
        *self.0.went_round.lock() = Some(Instant::now());
    }

    /// Whether a broker is connected, as the stage's loop sees it once a second; a change is logged, once.
    pub fn show_connected(&self, connected: bool) {
        self.go_round();
        let stage = self.0.stage;
        match (self.0.connected.swap(connected, Ordering::AcqRel), connected) {
            (true, false) => tracing::warn!(stage, "kafka is away; waiting for it, nothing is lost"),
            (false, true) => tracing::info!(stage, "kafka is back"),
            (true, true) | (false, false) => {}
        }
    }

    /// Is it at work?
    pub fn ready(&self) -> bool {
        self.hindrance().is_none()
    }

    /// What keeps the stage from its work.
    fn hindrance(&self) -> Option<&'static str> {
        let stalled = || self.0.went_round.lock().is_some_and(|went_round| went_round.elapsed() > STALLED);
        if !self.0.connected.load(Ordering::Acquire) {
            Some("waits for kafka")
        } else if !self.0.assigned.load(Ordering::Acquire) {
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
    pub model: String,
    /// `waiting`, `running`, or how it ended.
    pub state: String,
    /// Epoch it is in, from 0.
    pub epoch: u64,
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
    /// Makes a stage part of this process: the process is not ready before the stage is.
    pub fn add_stage(&self, stage: &'static str) -> StageStatus {
        let (assigned, connected) = (AtomicBool::new(false), AtomicBool::new(true));
        let status = StageStatus(Arc::new(Readiness { stage, assigned, connected, went_round: Mutex::new(None) }));
        self.0.stages.lock().push((stage, status.clone()));
        status
    }

    /// The stages of this process, in the order in which data flows.
    pub fn stages(&self) -> Vec<(&'static str, StageStatus)> {
        self.0.stages.lock().clone()
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

    /// Shows a trial, or what has become of it.
    pub fn show_trial(&self, id: &str, change: impl FnOnce(&mut TrialStatus)) {
        change(self.0.trials.lock().entry(id.to_owned()).or_default());
    }

    /// Changes what is shown of a trial. One that was forgotten stays so: its thread may outlive that for a while.
    pub fn change_trial(&self, id: &str, change: impl FnOnce(&mut TrialStatus)) {
        if let Some(trial) = self.0.trials.lock().get_mut(id) {
            change(trial);
        }
    }

    /// Forgets a trial that this process has no more to do with.
    pub fn forget_trial(&self, id: &str) {
        let _ = self.0.trials.lock().remove(id);
    }

    /// All trials, by id.
    pub fn trials(&self) -> BTreeMap<String, TrialStatus> {
        self.0.trials.lock().clone()
    }

    /// Every stage is at work.
    pub fn ready(&self) -> bool {
        self.hindrances().is_empty()
    }

    /// What keeps stages of this process from their work; nothing, when it is ready.
    pub fn hindrances(&self) -> Vec<String> {
        let stages = self.stages().into_iter();
        stages.filter_map(|(name, stage)| Some(format!("{name} {}", stage.hindrance()?))).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trial_that_was_forgotten_does_not_come_back_by_what_its_thread_says() {
        let status = Status::default();
        status.show_trial("t", |trial| trial.state = "running".into());
        status.change_trial("t", |trial| trial.step = 3);
        assert_eq!(status.trials()["t"].step, 3);
        status.forget_trial("t");
        status.change_trial("t", |trial| trial.step = 4);
        assert!(status.trials().is_empty());
    }
}
