//! A trial in memory: windows become steps, steps become measurements and checkpoints, until it has its outcome.

use std::time::{Duration, Instant};

use fail::fail_point;

use super::context::Context;
use super::control::{Control, End, Order};
use super::takeover::{self, TakenOver};
use super::turns::Turn;
use super::validation::{empty, evaluate_all, Validation};
use crate::features::range::{Position, Range};
use crate::features::stream::{Follower, Read};
use crate::features::window::{Example, Window};
use crate::kafka;
use crate::learn::learner::{self, Learner};
use crate::learn::scores::Evaluation;
use crate::models::seed::{Generator, Purpose};
use crate::output::{EndState, Measurement, Outcome};
use crate::search::record::TrialRecord;
use crate::train::now_ms;
use crate::train::store::checkpoint::{EpochSums, Kept, Progress};
use crate::train::store::publish::{self, Background, Checkpoint, Publication};
use crate::train::store::trials::Written;

/// How often progress is shown.
const SHOW_INTERVAL: Duration = Duration::from_millis(250);

/// Why a trial cannot go on.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    #[error(transparent)]
    Publish(#[from] publish::Error),
    #[error(transparent)]
    Kafka(#[from] kafka::Error),
    #[error(transparent)]
    TakeOver(#[from] takeover::Error),
    #[error(transparent)]
    Learner(#[from] learner::Error),
    #[error("ordered to end")]
    Ordered,
    #[error("stopped on request")]
    Stopped(Box<Outcome>),
}

/// What an epoch came to.
enum Stepped {
    Done,
    Diverged(String),
}

/// How far a trial had published when it failed.
#[derive(Default)]
pub(super) struct Reached {
    pub epochs: u64,
    pub records: u64,
    pub best: Option<Measurement>,
    pub confusion: Vec<Vec<u64>>,
}

impl Reached {
    fn of(progress: &Progress) -> Self {
        Self {
            epochs: progress.epoch,
            records: progress.records,
            best: progress.best.clone(),
            confusion: progress.confusion.clone(),
        }
    }
}

/// The records that end a trial: its outcome, and its own record with that outcome.
pub(super) fn ending(record: &TrialRecord, outcome: &Outcome) -> Publication {
    let ended = TrialRecord { outcome: Some(outcome.clone()), stop: false, ..record.clone() };
    Publication { records: vec![Written::outcome(outcome), Written::trial(&ended)], checkpoint: None }
}

/// A trial in memory.
pub(super) struct Training<'c> {
    context: &'c Context,
    record: &'c TrialRecord,
    control: &'c Control,
    reached: &'c mut Reached,
    range: Range,
    replay: Follower,
    turn: Turn<'c>,
    learner: Box<dyn Learner>,
    progress: Progress,
    /// Number of the next checkpoint.
    checkpoint: u64,
    kept: Kept,
    checkpointed: Instant,
    measurements: Vec<Measurement>,
    /// Training records left over from earlier windows; fewer than a batch.
    carry: Window,
    validation: Validation,
    /// When this process began with the epoch in progress, and how many records were done then.
    epoch_began: (Instant, u64),
    shown: Instant,
    /// Of the last step.
    loss: Option<f64>,
}

impl<'c> Training<'c> {
    pub(super) fn new(
        context: &'c Context,
        record: &'c TrialRecord,
        TakenOver { learner, progress, checkpoint, kept, turn }: TakenOver<'c>,
        control: &'c Control,
        mut replay: Follower,
        reached: &'c mut Reached,
    ) -> Self {
        *reached = Reached::of(&progress);
        replay.seek(progress.position.clone());
        let begins_pass = progress.position.window == 0;
        let now = Instant::now();
        Self {
            context,
            record,
            control,
            reached,
            range: record.range(),
            replay,
            turn,
            learner,
            checkpoint,
            kept,
            checkpointed: now,
            measurements: Vec::new(),
            carry: Window::default(),
            validation: if begins_pass { Validation::filling(record.dim) } else { Validation::Incomplete },
            epoch_began: (now, progress.sums.records),
            shown: now,
            loss: None,
            progress,
        }
    }

    pub(super) fn run(&mut self, publisher: &mut Background) -> Result<End, Error> {
        self.show();
        let parameters = &self.record.parameters;
        let epochs = parameters.epochs;
        let is_over = |progress: &Progress| progress.epoch >= epochs || progress.out_of_patience(parameters).is_some();
        while !is_over(&self.progress) {
            self.replay.set_last_pass(self.progress.epoch + 1 == epochs);
            let started = Instant::now();
            let stepped = self.epoch(publisher)?;
            if let Stepped::Diverged(reason) = stepped {
                return self.diverged(publisher, reason);
            }
            let validation = self.validate()?;
            // What the last step spoilt, no further step would notice.
            let sound = validation.loss().is_none_or(f64::is_finite) && self.learner.is_finite()?;
            if !sound {
                let epoch = self.progress.epoch + 1;
                let reason = format!(
                    "weights are not finite numbers after epoch {epoch}, or their validation loss; a lower \
                     learning_rate may help"
                );
                return self.diverged(publisher, reason);
            }
            self.progress.due = false;
            self.measure(Some(&validation))?;
            self.context.metrics.train.epoch_duration.observe(started.elapsed().as_secs_f64());
            self.context.metrics.train.epochs.inc();
            let start = Position::start(&self.range);
            self.progress.epoch += 1;
            self.progress.position = start.clone();
            self.progress.taken = 0;
            self.progress.sums = EpochSums::default();
            if !is_over(&self.progress) {
                self.checkpoint(publisher)?;
                self.obey(publisher)?;
                self.replay.seek(start);
                self.epoch_began = (Instant::now(), 0);
                self.validation.begin_pass(self.record.dim);
            }
        }
        let reason = self.progress.out_of_patience(parameters);
        let outcome = self.finish(publisher, EndState::Finished, reason)?;
        Ok(End::Outcome(Box::new(outcome)))
    }

    fn diverged(&mut self, publisher: &mut Background, reason: String) -> Result<End, Error> {
        let outcome = self.finish(publisher, EndState::Diverged, Some(reason))?;
        Ok(End::Outcome(Box::new(outcome)))
    }

    /// Trains from where progress stands to the end of the pass.
    fn epoch(&mut self, publisher: &mut Background) -> Result<Stepped, Error> {
        self.carry.clear(0, self.record.dim);
        // After a resume the first window is read again, and what was done of it is left out.
        let mut done_before = usize::try_from(self.progress.taken).unwrap_or(usize::MAX);
        loop {
            let start = self.replay.position().clone();
            let window = match self.next_window()? {
                Read::Window(window) => window,
                Read::End => break,
                Read::Stopped => {
                    self.obey(publisher)?;
                    return Err(Error::Ordered);
                }
            };
            self.context.metrics.train.records.inc_by(window.records() as u64);
            let bytes_max = self.context.settings.train.validation_cache_bytes;
            self.validation.keep(&window, bytes_max);
            if let Stepped::Diverged(reason) =
                self.steps(&window, &start, std::mem::take(&mut done_before), publisher)?
            {
                return Ok(Stepped::Diverged(reason));
            }
        }
        if self.carry.records() > 0 {
            self.before_step(publisher)?;
            let carry = std::mem::take(&mut self.carry);
            let stepped = self.step(&carry, &Window::default(), &[])?;
            self.carry = carry;
            self.carry.clear(0, self.record.dim);
            return Ok(stepped);
        }
        Ok(Stepped::Done)
    }

    /// The next window; what is at hand costs no turn.
    fn next_window(&mut self) -> kafka::Result<Read> {
        match self.replay.next_at_hand()? {
            Some(read) => Ok(read),
            None => self.turn.aside(|| self.replay.next_window()),
        }
    }

    /// All whole batches that end in this window; what is left over waits for the next one.
    fn steps(
        &mut self,
        window: &Window,
        start: &Position,
        done_before: usize,
        publisher: &mut Background,
    ) -> Result<Stepped, Error> {
        let mut order = window.training().to_vec();
        if self.record.parameters.shuffle {
            Generator::new(self.record.seed, self.record.number, Purpose::Shuffle, self.progress.epoch, window.index)
                .shuffle(&mut order);
        }
        let batch_size = self.record.parameters.batch_size as usize;
        let mut taken = done_before.min(order.len());
        loop {
            let needed = batch_size - self.carry.records();
            if order.len() - taken < needed {
                order[taken..].iter().for_each(|&place| self.carry.push_from(window, place, false));
                return Ok(Stepped::Done);
            }
            self.before_step(publisher)?;
            let carry = std::mem::take(&mut self.carry);
            let stepped = self.step(&carry, window, &order[taken..taken + needed])?;
            self.carry = carry;
            self.carry.clear(0, self.record.dim);
            taken += needed;
            self.progress.position.clone_from(start);
            self.progress.taken = taken as u64;
            if let Stepped::Diverged(_) = stepped {
                return Ok(stepped);
            }
            self.after_step(publisher)?;
        }
    }

    /// One update over all of `carry` and some places of `window`.
    fn step(&mut self, carry: &Window, window: &Window, places: &[u32]) -> Result<Stepped, Error> {
        let carried = (0..carry.records()).map(|place| carry.record(u32::try_from(place).unwrap_or(u32::MAX)));
        let batch: Vec<Example<'_>> = carried.chain(places.iter().map(|&place| window.record(place))).collect();
        let report = self.learner.step(&batch, self.progress.epoch, self.progress.step)?;
        if report.diverged() {
            let what = if report.loss.is_finite() { "the gradient" } else { "the loss" };
            return Ok(Stepped::Diverged(format!(
                "{what} is not a finite number at epoch {} step {}; a lower learning_rate may help",
                self.progress.epoch + 1,
                self.progress.step + 1
            )));
        }
        let records = report.records as u64;
        self.progress.step += 1;
        self.progress.records += records;
        let sums = &mut self.progress.sums;
        sums.records += records;
        sums.steps += 1;
        sums.loss += report.loss * records as f64;
        sums.gradient_norm += report.gradient_norm;
        self.context.metrics.train.steps.inc();
        self.loss = Some(report.loss);
        if self.shown.elapsed() > SHOW_INTERVAL {
            self.show();
        }
        Ok(Stepped::Done)
    }

    /// Takes the measurement that is due: only now it is known that the step before was not the epoch's last, which
    /// is measured under the same key.
    fn before_step(&mut self, publisher: &mut Background) -> Result<(), Error> {
        if !std::mem::take(&mut self.progress.due) {
            return Ok(());
        }
        self.measure(None)?;
        self.checkpoint(publisher)
    }

    fn after_step(&mut self, publisher: &mut Background) -> Result<(), Error> {
        let every = self.record.parameters.checkpoint_every;
        self.progress.due = every.is_some_and(|every| self.progress.sums.steps.is_multiple_of(every));
        publisher.check()?;
        if self.checkpointed.elapsed() > self.context.settings.train.checkpoint_interval {
            self.checkpoint(publisher)?;
        }
        self.obey(publisher)?;
        self.turn.pass();
        Ok(())
    }

    /// Ends the trial if that was ordered.
    fn obey(&mut self, publisher: &mut Background) -> Result<(), Error> {
        match self.control.get() {
            Order::Run => Ok(()),
            Order::Yield => {
                fail_point!("train.trial.yield");
                self.checkpoint(publisher)?;
                Err(Error::Ordered)
            }
            Order::Stop => {
                if std::mem::take(&mut self.progress.due) {
                    self.measure(None)?;
                }
                let outcome = self.finish(publisher, EndState::Stopped, Some("stopped on request".into()))?;
                Err(Error::Stopped(Box::new(outcome)))
            }
            Order::Abandon => Err(Error::Ordered),
        }
    }

    /// Evaluates the whole validation split, in computed order, in batches that do not depend on how it is read.
    fn validate(&mut self) -> Result<Evaluation, Error> {
        let mut evaluation = self.learner.evaluation();
        let batch_size = self.record.parameters.batch_size as usize;
        if let Some(kept) = self.validation.complete() {
            evaluate_all(self.learner.as_mut(), kept, batch_size, &mut evaluation)?;
            return Ok(evaluation);
        }
        if self.record.parameters.validation == 0 {
            return Ok(evaluation);
        }
        self.replay.seek(Position::start(&self.range));
        let mut batch = empty(self.record.dim);
        loop {
            let window = match self.next_window()? {
                Read::Window(window) => window,
                Read::End => break,
                // Validation changes no weight: the epoch's last checkpoint stands, and its end is computed again.
                Read::Stopped => return Err(Error::Ordered),
            };
            for &place in window.validation() {
                batch.push_from(&window, place, true);
                if batch.records() == batch_size {
                    evaluate_all(self.learner.as_mut(), &batch, batch_size, &mut evaluation)?;
                    batch.clear(0, self.record.dim);
                }
            }
        }
        evaluate_all(self.learner.as_mut(), &batch, batch_size, &mut evaluation)?;
        Ok(evaluation)
    }

    fn measure(&mut self, validation: Option<&Evaluation>) -> Result<(), Error> {
        let (sums, progress) = (&self.progress.sums, &self.progress);
        let (began, done_then) = self.epoch_began;
        let per_second = (sums.records - done_then.min(sums.records)) as f64 / began.elapsed().as_secs_f64().max(1e-9);
        let loss = (sums.records > 0).then(|| ("loss".to_owned(), sums.loss / sums.records as f64));
        let validated = validation.map_or_else(Vec::new, Evaluation::measured);
        let validated = validated.into_iter().map(|(name, value)| (format!("validation_{name}"), value));
        let measured = validated.chain(loss).collect();
        let measurement = Measurement {
            search: self.record.search.clone(),
            trial: self.record.trial.clone(),
            epoch: progress.epoch + 1,
            step: progress.step,
            records: progress.records,
            measured,
            // Of the step before, which is what the loss came with.
            learning_rate: self.record.learning_rate(progress.step.saturating_sub(1)),
            gradient_norm: (sums.steps > 0).then(|| sums.gradient_norm / sums.steps as f64),
            records_per_second: Some(per_second),
            time_ms: now_ms(),
        };
        let objective = &self.record.objective;
        let is_better = self.progress.best.as_ref().is_none_or(|best| objective.compare(&measurement, best).is_lt());
        // A loss is taken before the update, which may have spoilt the weights that it would make the best.
        if is_better && self.learner.is_finite()? {
            self.progress.best = Some(measurement.clone());
            self.progress.confusion = validation.map_or_else(Vec::new, |evaluation| evaluation.confusion().to_vec());
        }
        self.context.status.change_trial(&self.record.trial, |status| {
            status.measurement = serde_json::to_value(&measurement).ok();
        });
        self.measurements.push(measurement);
        Ok(())
    }

    fn checkpoint(&mut self, publisher: &mut Background) -> Result<(), Error> {
        self.publish(publisher, true, None)
    }

    fn finish(
        &mut self,
        publisher: &mut Background,
        state: EndState,
        reason: Option<String>,
    ) -> Result<Outcome, Error> {
        fail_point!("train.trial.before_outcome");
        // Weights that are not numbers any more are no checkpoint.
        let sound = state != EndState::Diverged;
        let outcome = Outcome {
            search: self.record.search.clone(),
            trial: self.record.trial.clone(),
            number: self.record.number,
            state,
            reason,
            epochs: self.progress.epoch,
            records: self.progress.records,
            best: self.progress.best.clone(),
            confusion: self.progress.confusion.clone(),
            weights_sha256: if sound { Some(self.learner.digest()?) } else { None },
            attempt: self.record.attempt,
            time_ms: now_ms(),
        };
        self.publish(publisher, sound, Some(&outcome))?;
        fail_point!("train.trial.after_outcome");
        Ok(outcome)
    }

    /// Measurements so far, a checkpoint, an outcome and the group's offsets, all or nothing. An outcome is waited for.
    fn publish(
        &mut self,
        publisher: &mut Background,
        checkpoint: bool,
        outcome: Option<&Outcome>,
    ) -> Result<(), Error> {
        // One copy of the state at a time.
        self.turn.aside(|| publisher.settle())?;
        let mut publication = outcome.map_or_else(Publication::default, |outcome| ending(self.record, outcome));
        publication.records.extend(self.measurements.drain(..).map(|measurement| Written::measurement(&measurement)));
        if checkpoint {
            let finished = outcome.is_some_and(|outcome| outcome.state == EndState::Finished);
            let ends = || self.range.partitions.iter().map(|partition| partition.end).collect();
            let blob = self.learner.state()?;
            self.context.metrics.train.checkpoint_bytes.inc_by(blob.len() as u64);
            publication.checkpoint = Some(Checkpoint {
                number: self.checkpoint,
                slot: self.kept.place(&self.progress),
                progress: self.progress.clone(),
                blob,
                offsets: if finished { ends() } else { self.progress.position.offsets.clone() },
            });
            self.checkpoint += 1;
            self.checkpointed = Instant::now();
        }
        publisher.publish(publication)?;
        if outcome.is_some() {
            self.turn.aside(|| publisher.settle())?;
        }
        *self.reached = Reached::of(&self.progress);
        self.show();
        Ok(())
    }

    fn show(&mut self) {
        self.shown = Instant::now();
        let trial = self.record.trial.as_str();
        let total = self.range.records();
        let records = self.replay.ordinal();
        let (progress, loss) = (&self.progress, self.loss);
        self.context.status.change_trial(trial, |status| {
            status.epoch = progress.epoch;
            status.step = progress.step;
            status.records = records;
            status.records_total = total;
            status.loss = loss.or(status.loss);
        });
        let metrics = &self.context.metrics.train;
        let gauge = |value: u64| i64::try_from(value).unwrap_or(i64::MAX);
        metrics.trial_epoch.with_label_values(&[trial]).set(gauge(progress.epoch));
        metrics.trial_step.with_label_values(&[trial]).set(gauge(progress.step));
        metrics.trial_lag.with_label_values(&[trial]).set(gauge(total.saturating_sub(records)));
        if let Some(loss) = loss {
            metrics.trial_loss.with_label_values(&[trial]).set(loss);
        }
    }
}
