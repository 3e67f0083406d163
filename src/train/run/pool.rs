//! The trainer pool: Kafka shares the partitions of `trials` out; what is in ours, we train.
//!
//! ```text
//! assigned ─► read the partition from its beginning to its end ─► run its unfinished trials, so many at once
//! revoked  ─► yield them (checkpoint), then give the partition up
//! lost     ─► abandon them: somebody else has them already
//! ```
//!
//! The thread that polls never trains: each trial has a thread of its own, and computes when it has its turn.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam_channel::{unbounded, Receiver, Sender};
use fail::fail_point;
use rdkafka::message::Message;

use super::context::Context;
use super::control::{Control, End, Order};
use super::schedule::{Running, Schedule};
use super::trial;
use crate::kafka;
use crate::kafka::client;
use crate::kafka::consumer::{Member, Rebalance};
use crate::kafka::groups::{Groups, Membership};
use crate::kafka::reader::Polled;
use crate::kafka::wake::Wake;
use crate::metrics::TransactionOutcome;
use crate::stage::{BoxFailure, Failure, Loaded, Spec, Stage};
use crate::train::store::trials;

/// How long the thread sleeps when nothing happens.
const IDLE: Duration = Duration::from_millis(100);
/// How often the rate of replay is measured.
const RATE_INTERVAL: Duration = Duration::from_secs(1);
/// Trial threads recurse over computation graphs.
const STACK_BYTES: usize = 32 * 1024 * 1024;
/// Why the stage ended.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Kafka.
    #[error(transparent)]
    Kafka(#[from] kafka::Error),
    /// A thread could not be started.
    #[error("starting a trial's thread: {0}")]
    Thread(#[from] std::io::Error),
}

impl Failure for Error {
    fn kafka(&self) -> Option<&kafka::Error> {
        match self {
            Self::Kafka(error) => Some(error),
            Self::Thread(_) => None,
        }
    }

    fn passes(&self) -> bool {
        self.kafka().is_none_or(kafka::Error::passes)
    }
}

/// Of the threads of trials; a thread that is not nice gets nine tenths of a core that both want.
const NICENESS: i32 = 10;

/// Trials → output.
pub static TRAIN: Spec = Spec {
    name: "train",
    about: "trials → output",
    load: |_, _| {
        Ok(Loaded {
            matrix_bytes_max: None,
            begin: Box::new(|context| {
                tracing::info!(threads = context.settings.train.threads(), "train stage starts");
                Ok(Box::new(TrainStage { context: Arc::new(Context::new(context).map_err(Error::from)?) }))
            }),
        })
    },
};

struct TrainStage {
    context: Arc<Context>,
}

impl Stage for TrainStage {
    fn run(&mut self) -> Result<(), BoxFailure> {
        Ok(run(&self.context)?)
    }

    fn committed(&self) -> u64 {
        self.context.metrics.train.transactions.counted(TransactionOutcome::Committed)
    }
}

/// Trials that failed are no failure of the stage.
fn run(context: &Arc<Context>) -> Result<(), Error> {
    let wake = Wake::default();
    let config = client::group_member(&context.settings, &context.settings.train_group());
    let member = Member::join(&config, &context.topics.trials.name, wake.clone())?;
    let (ended, ends) = unbounded();
    let mut pool = Pool { context, member, wake, has_begun: false, schedule: Schedule::default(), ended, ends };
    let result = pool.work();
    pool.drain();
    pool.context.own.set_assigned(false);
    result
}

/// Another application that serves the same trials would run each of them, too, under transactional ids of its own:
/// neither would fence the other, and both would write the same checkpoints.
fn refuse_others(context: &Context) -> Result<(), Error> {
    let (settings, trials) = (&context.settings, &context.topics.trials);
    let own = settings.train_group();
    let partitions: Vec<i32> = (0..trials.partitions).collect();
    for (_, group, other) in Groups::new(settings)?.others(settings, &own)? {
        let serves = match other.membership {
            Membership::Unseen => {
                !kafka::offsets::committed_by_other(settings, &group, &trials.name, &partitions)?.is_empty()
            }
            // Without members there are no subscriptions.
            Membership::Nobody | Membership::Members(_) => other.topics.contains(&trials.name),
        };
        if serves {
            let (trials, membership) = (&trials.name, other.membership);
            return Err(kafka::Error::Topics(format!(
                "another application serves topic `{trials}`, too: its group `{group}` {membership}, and this is \
                 application `{}`. Each trial would be run by both, and their checkpoints would mix. To share the \
                 trials, set the same `application_id`; to train apart, set other `topics.trials` and `topics.output`; \
                 a group that has ended for good can be deleted (`kafka-consumer-groups.sh --delete --group {group}`)",
                settings.application_id
            ))
            .into());
        }
    }
    Ok(())
}

/// The thread that works on a trial.
struct Worker {
    control: Control,
    thread: JoinHandle<()>,
}

struct Pool<'c> {
    context: &'c Arc<Context>,
    member: Member,
    wake: Wake,
    /// It has had an assignment before, if only an empty one.
    has_begun: bool,
    schedule: Schedule<Worker>,
    // Unbounded, but holds at most one message for each running trial.
    ended: Sender<(String, End)>,
    ends: Receiver<(String, End)>,
}

impl Pool<'_> {
    fn work(&mut self) -> Result<(), Error> {
        let mut measured = (Instant::now(), self.context.metrics.train.records.get());
        while !self.context.stop.is_cancelled() {
            let elapsed = measured.0.elapsed();
            if elapsed > RATE_INTERVAL {
                let train = &self.context.metrics.train;
                let records = train.records.get();
                train.records_per_second.set((records - measured.1) as f64 / elapsed.as_secs_f64());
                measured = (Instant::now(), records);
                self.check_partitions()?;
                self.context.own.show_connected(self.member.connected());
            }
            let mut busy = self.serve_group()?;
            busy |= self.take_records()?;
            busy |= self.reap();
            busy |= self.start_trials()?;
            if !busy {
                self.wake.wait(IDLE);
            }
        }
        Ok(())
    }

    /// Trials checkpoint and end; what does not within the timeout is left to its last checkpoint.
    fn drain(&mut self) {
        self.order(|_| true, Order::Yield);
        fail_point!("train.pool.drain");
        let deadline = Instant::now() + self.context.settings.run.drain_timeout;
        while !self.schedule.running.is_empty() && Instant::now() < deadline {
            // Rebalances go on meanwhile: a last checkpoint may have to wait for the next assignment.
            if let Err(error) = self.serve_group() {
                tracing::warn!(%error, "while draining");
                break;
            }
            if let Ok((id, end)) = self.ends.recv_timeout(Duration::from_millis(20)) {
                self.ended(&id, end);
            }
        }
        self.abandon(|_| true);
        for id in self.schedule.trials.keys() {
            self.context.status.forget_trial(id);
            self.context.metrics.train.forget(id);
        }
    }

    /// Whatever still runs is left to its last checkpoint.
    fn abandon(&self, chosen: impl Fn(i32) -> bool) {
        let running = self.schedule.running.iter();
        let slow: Vec<&String> = running.filter(|(_, running)| chosen(running.partition)).map(|(id, _)| id).collect();
        if !slow.is_empty() {
            tracing::warn!(trials = ?slow, "drain timeout: left to their last checkpoints");
            self.order(&chosen, Order::Abandon);
        }
    }

    fn check_partitions(&self) -> Result<(), Error> {
        let topics = &self.context.topics;
        Ok(self.member.check_partitions(topics.trials.partitions, &topics.output.name)?)
    }

    fn serve_group(&mut self) -> Result<bool, Error> {
        fail_point!("train.pool.serve_group");
        let rebalance = match self.member.poll_group() {
            Ok(None) => return Ok(false),
            Ok(Some(rebalance)) => rebalance,
            Err(error) if error.passes_by_itself() => {
                tracing::debug!(%error, "passes by itself");
                return Ok(true);
            }
            Err(error) => return Err(error.into()),
        };
        self.context.metrics.train.rebalances.inc();
        let group = self.context.settings.train_group();
        match rebalance {
            Rebalance::Assigned(partitions) => {
                fail_point!("train.pool.assigned", |code| Err(kafka::Error::injected(code).into()));
                self.check_partitions()?;
                if !std::mem::replace(&mut self.has_begun, true) {
                    refuse_others(self.context)?;
                }
                let topic = &self.context.topics.trials.name;
                let positions = partitions
                    .iter()
                    .map(|&partition| Ok((partition, self.context.watermarks.extent(topic, partition)?.start)))
                    .collect::<kafka::Result<_>>()?;
                self.member.take(&positions)?;
                let state = self.member.lease().hold();
                for (&partition, &assignment) in &state.partitions {
                    self.schedule.own(partition, assignment);
                }
                tracing::info!(%group, new = partitions.len(), owned = state.partitions.len(), "assigned");
                self.context.own.set_assigned(true);
            }
            Rebalance::Revoked(partitions) => {
                tracing::info!(%group, partitions = partitions.len(), "revoked");
                self.member.renew();
                self.end_trials(|partition| partitions.contains(&partition), Order::Yield);
                self.give_up(&partitions)?;
            }
            Rebalance::Lost(partitions) => {
                tracing::warn!(%group, partitions = partitions.len(), "lost: the group took this process for dead");
                self.order(|partition| partitions.contains(&partition), Order::Abandon);
                self.give_up(&partitions)?;
            }
        }
        Ok(true)
    }

    fn give_up(&mut self, partitions: &[i32]) -> Result<(), Error> {
        self.member.release(partitions)?;
        for id in self.schedule.give_up(partitions) {
            self.hide(&id);
        }
        self.count_states();
        Ok(())
    }

    fn forget(&mut self, id: &str) {
        self.schedule.forget(id);
        self.hide(id);
    }

    fn hide(&self, id: &str) {
        self.context.status.forget_trial(id);
        self.context.metrics.train.forget(id);
    }

    fn order(&self, chosen: impl Fn(i32) -> bool, order: Order) {
        for running in self.schedule.running.values().filter(|running| chosen(running.partition)) {
            running.worker.control.order(order);
        }
    }

    /// Orders trials to end and waits for them, bounded by the drain timeout.
    fn end_trials(&mut self, chosen: impl Fn(i32) -> bool, order: Order) {
        self.order(&chosen, order);
        let deadline = Instant::now() + self.context.settings.run.drain_timeout;
        while self.schedule.running.values().any(|running| chosen(running.partition)) {
            self.context.own.go_round();
            if Instant::now() >= deadline {
                self.abandon(&chosen);
                return;
            }
            if let Ok((id, end)) = self.ends.recv_timeout(Duration::from_millis(100)) {
                self.ended(&id, end);
            }
        }
    }

    fn take_records(&mut self) -> Result<bool, Error> {
        let mut changed = BTreeSet::new();
        let mut taken = false;
        for partition in self.schedule.partitions() {
            loop {
                let change = match self.member.poll_partition(partition) {
                    Ok(None) => break,
                    Ok(Some(Polled::Record(message))) => {
                        let (offset, key, value) = (message.offset(), message.key(), message.payload());
                        let change = trials::apply(&mut self.schedule.trials, partition, offset, key, value);
                        let _ = self.member.lease().hold().committed.insert(partition, offset + 1);
                        change
                    }
                    Ok(Some(Polled::End)) => {
                        self.schedule.caught_up(partition);
                        None
                    }
                    Ok(Some(Polled::OutOfLog)) => {
                        return Err(kafka::Error::out_of_log(&self.context.topics.trials.name, partition).into());
                    }
                    Err(error) if error.passes_by_itself() => break,
                    Err(error) => return Err(error.into()),
                };
                taken = true;
                changed.extend(change);
            }
        }
        for id in &changed {
            self.react(id);
        }
        if !changed.is_empty() {
            self.count_states();
        }
        Ok(taken)
    }

    /// Follows what the newest record of a trial asks for.
    fn react(&mut self, id: &str) {
        if let (Some(order), Some(running)) = (self.schedule.asked(id), self.schedule.running.get(id)) {
            running.worker.control.order(order);
        }
        let Some(stored) = self.schedule.trials.get(id) else {
            self.forget(id);
            return;
        };
        let (record, state) = (&stored.record, self.schedule.state(id));
        self.context.status.show_trial(id, |status| {
            status.search.clone_from(&record.search);
            status.number = record.number;
            status.model = record.model.name.into();
            status.epochs = record.parameters.epochs;
            status.state = state.into();
        });
    }

    fn reap(&mut self) -> bool {
        let mut reaped = false;
        while let Ok((id, end)) = self.ends.try_recv() {
            self.ended(&id, end);
            reaped = true;
        }
        reaped
    }

    fn ended(&mut self, id: &str, end: End) {
        let (now, session) = (Instant::now(), self.context.settings.kafka.session_timeout);
        if let Some(running) = self.schedule.ended(id, &end, now, session) {
            // The thread has sent its last word; joining only waits for its stack to go.
            drop(running.worker.thread.join());
        }
        self.context.metrics.train.forget(id);
        match end {
            End::Outcome(outcome) => {
                let best = outcome.best.as_ref().and_then(|best| {
                    let objective = &self.schedule.trials.get(id)?.record.objective;
                    Some((objective.name.clone(), objective.value(best)?))
                });
                let (state, reason, epochs) = (outcome.state.name(), &outcome.reason, outcome.epochs);
                tracing::info!(trial = %id, state, reason, epochs, ?best, "trial ended");
            }
            End::Yielded => {}
            End::Interrupted(reason) => {
                let (times, pause) = self.schedule.interrupted(id, now).unwrap_or_default();
                tracing::warn!(trial = %id, reason, times, ?pause, "trial interrupted; it goes on from its last \
                    checkpoint if it is still ours");
            }
        }
        if self.schedule.trials.contains_key(id) {
            let state = self.schedule.state(id);
            self.context.status.change_trial(id, |status| status.state = state.into());
        } else {
            self.forget(id);
        }
        self.count_states();
    }

    fn start_trials(&mut self) -> Result<bool, Error> {
        let mut started = false;
        let context = Arc::clone(self.context);
        let has_place = |running, state_bytes| context.settings.train.has_place(running, state_bytes);
        while let Some((id, assignment)) = self.schedule.next(Instant::now(), has_place) {
            self.start(&id, assignment)?;
            started = true;
        }
        if started {
            self.count_states();
        }
        Ok(started)
    }

    fn start(&mut self, id: &str, assignment: u64) -> Result<(), Error> {
        let Some(stored) = self.schedule.trials.get(id).cloned() else { return Ok(()) };
        let control = Control::default();
        if stored.record.stop {
            control.order(Order::Stop);
        }
        self.context.status.change_trial(id, |status| status.state = "running".into());
        let (context, lease) = (Arc::clone(self.context), Arc::clone(self.member.lease()));
        let (ended, wake) = (self.ended.clone(), self.wake.clone());
        let (partition, attempt) = (stored.partition, stored.record.attempt);
        let (name, own_control) = (id.to_owned(), control.clone());
        let stopped = control.clone();
        // Before it is claimed, so that those that started with it know of it.
        let replay = context.streams.follow(
            context.settings.trial_group(id),
            stored.record.range(),
            stored.record.reading(),
            move || stopped.get() != Order::Run,
        );
        let work = move || {
            // Embedding goes first where both want the same core: somebody waits for it.
            if let Err(error) = rustix::process::setpriority_process(None, NICENESS) {
                tracing::debug!(%error, "trials share cores evenly with everything else");
            }
            // A panic outside the trial's own computation must still free its place.
            let worked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                trial::run(&context, &stored, &lease, assignment, &own_control, replay)
            }));
            let end = worked.unwrap_or_else(|_| End::Interrupted("its thread panicked; the log says where".into()));
            drop(ended.send((name, end)));
            wake.notify();
        };
        let thread = std::thread::Builder::new().name(format!("trial-{id}")).stack_size(STACK_BYTES).spawn(work)?;
        let running = Running { partition, attempt, worker: Worker { control, thread } };
        let _ = self.schedule.running.insert(id.to_owned(), running);
        Ok(())
    }

    fn count_states(&self) {
        for (state, count) in self.schedule.states() {
            crate::metrics::set(&self.context.metrics.train.trials.with_label_values(&[state]), count);
        }
    }
}
