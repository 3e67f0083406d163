//! One trial, from taking it over to its outcome.
//!
//! ```text
//! claim ─► restore or begin ─► epoch: window ─► steps ─► … ─► validate ─► measure ─► checkpoint ─┐
//!   │                            ▲                                                               │
//!   └─ ended already: done       └───────────────────────── next epoch ◄─────────────────────────┤
//!                                                                          outcome ◄─────────────┘
//! ```

use std::collections::BTreeMap;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use fail::fail_point;

use super::checkpoint::{EpochSums, Manifest, Progress};
use super::context::Context;
use super::control::{Control, End, Order};
use super::publish::{self, Background, Checkpoint, Pointer, Publication, Publisher};
use crate::learn::fit::{Fit, FitError};
use crate::learn::scores::Evaluation;
use crate::search::record::{TrialRecord, TRAINING_FORMAT};

use super::store::{self, Stored, TrialOutput, Want, Written};
use super::turns::Turn;
use crate::features::range::{Position, Range};
use crate::features::stream::{Follower, Read};
use crate::features::window::{Record, Window};
use crate::kafka;
use crate::kafka::consumer::Lease;
use crate::models::seed::{Generator, Purpose};
use crate::output::{EndState, Measurement, Outcome};

/// How often progress is shown.
const SHOW_INTERVAL: Duration = Duration::from_millis(250);

/// Why a trial cannot go on.
#[derive(Debug, thiserror::Error)]
enum Error {
    #[error(transparent)]
    Publish(#[from] publish::Error),
    #[error(transparent)]
    Kafka(#[from] kafka::Error),
    #[error(transparent)]
    Checkpoint(#[from] super::checkpoint::Error),
    #[error(transparent)]
    Fit(#[from] FitError),
    #[error("{0}")]
    Refused(String),
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

/// Takes a trial over and trains it until it ends, is ordered to, or belongs to somebody else. Blocks.
pub fn run(
    context: &Context,
    stored: &Stored,
    lease: &Arc<Lease>,
    assignment: u64,
    control: &Control,
    replay: Follower,
) -> End {
    let record = &stored.record;
    let place = (stored.partition, assignment);
    let opened =
        Publisher::open(&context.settings, &context.topics, &context.metrics.train, Arc::clone(lease), place, record);
    let mut reached = Reached::default();
    let publisher = match opened {
        Ok(publisher) => publisher,
        Err(error) => return End::Interrupted(error.to_string()),
    };
    std::thread::scope(|scope| match publisher.spawn(scope) {
        Ok(mut publisher) => end(context, stored, &mut publisher, control, replay, &mut reached),
        Err(error) => End::Interrupted(error.to_string()),
    })
}

fn end(
    context: &Context,
    stored: &Stored,
    publisher: &mut Background,
    control: &Control,
    replay: Follower,
    reached: &mut Reached,
) -> End {
    let record = &stored.record;
    // Whatever the model does, it is this trial's outcome and nobody else's.
    let worked =
        std::panic::catch_unwind(AssertUnwindSafe(|| work(context, stored, publisher, control, replay, reached)));
    if let Err(error) = publisher.settle() {
        return End::Interrupted(error.to_string());
    }
    let reason = match worked {
        Ok(Ok(end)) => return end,
        Ok(Err(Error::Ordered)) => return End::Yielded,
        Ok(Err(Error::Stopped(outcome))) => return End::Outcome(outcome),
        Ok(Err(Error::Publish(error))) => return End::Interrupted(error.to_string()),
        Ok(Err(Error::Kafka(error))) if error.passes() => return End::Interrupted(error.to_string()),
        Ok(Err(error)) => error.to_string(),
        Err(panic) => format!("panicked: {}", panic_message(panic.as_ref())),
    };
    let outcome = Outcome {
        search: record.search.clone(),
        trial: record.trial.clone(),
        number: record.number,
        state: EndState::Failed,
        reason: Some(reason),
        epochs: reached.epochs,
        records: reached.records,
        best: reached.best.clone(),
        weights_sha256: None,
        attempt: record.attempt,
        time_ms: now_ms(),
    };
    match publisher.publish(ending(record, &outcome)).and_then(|()| publisher.settle()) {
        Ok(()) => End::Outcome(Box::new(outcome)),
        Err(error) => End::Interrupted(error.to_string()),
    }
}

fn work(
    context: &Context,
    stored: &Stored,
    publisher: &mut Background,
    control: &Control,
    replay: Follower,
    reached: &mut Reached,
) -> Result<End, Error> {
    let record = &stored.record;
    if record.training_format != TRAINING_FORMAT {
        return Err(Error::Refused(format!(
            "the trial was made for training format {}, this is {TRAINING_FORMAT}: the same inputs would give other weights; start the search again, or use the version that started it",
            record.training_format
        )));
    }
    let wanted = BTreeMap::from([(record.trial.clone(), stored.partition)]);
    let output = store::output(&context.settings, &context.watermarks, &wanted, Want::Checkpoints)?
        .remove(&record.trial)
        .unwrap_or_default();
    if let Some(outcome) = output.outcome.clone().filter(|outcome| outcome.attempt == record.attempt) {
        // Published in one transaction with the record of the trial, unless somebody wrote that record again since.
        publisher.publish(ending(record, &outcome))?;
        publisher.settle()?;
        return Ok(End::Outcome(Box::new(outcome)));
    }
    let mut training = Training::take_over(context, record, output, control, replay, reached)?;
    fail_point!("train.trial.restored");
    if control.get() == Order::Abandon {
        return Err(Error::Ordered);
    }
    training.run(publisher)
}

/// The records that end a trial: its outcome, and its own record with that outcome.
fn ending(record: &TrialRecord, outcome: &Outcome) -> Publication {
    let ended = TrialRecord { outcome: Some(outcome.clone()), stop: false, ..record.clone() };
    Publication { records: vec![Written::outcome(outcome), Written::trial(&ended)], checkpoint: None }
}

fn panic_message(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "(no message)".into())
}

/// How far a trial had published when it failed.
#[derive(Default)]
struct Reached {
    epochs: u64,
    records: u64,
    best: Option<Measurement>,
}

impl Reached {
    fn of(progress: &Progress) -> Self {
        Self { epochs: progress.epoch, records: progress.records, best: progress.best.clone() }
    }
}

/// A trial in memory.
struct Training<'c> {
    context: &'c Context,
    record: &'c TrialRecord,
    control: &'c Control,
    reached: &'c mut Reached,
    range: Range,
    replay: Follower,
    turn: Turn<'c>,
    fit: Fit,
    progress: Progress,
    /// Number of the next checkpoint.
    checkpoint: u64,
    checkpointed: Instant,
    measurements: Vec<Measurement>,
    /// Training records left over from earlier windows; fewer than a batch.
    carry: Window,
    validation: ValidationCache,
    /// When this process began with the epoch in progress, and how many records were done then.
    epoch_began: (Instant, u64),
    shown: Instant,
    /// Of the last step.
    loss: Option<f64>,
}

/// Validation records kept from epoch to epoch, as far as they fit.
enum ValidationCache {
    /// Not all have been seen in this pass.
    Incomplete,
    /// Filling, from the beginning of a pass.
    Filling(Window),
    /// All of them.
    Complete(Window),
    /// They do not fit: they are read again each time.
    TooLarge,
}

impl<'c> Training<'c> {
    fn take_over(
        context: &'c Context,
        record: &'c TrialRecord,
        output: TrialOutput,
        control: &'c Control,
        mut replay: Follower,
        reached: &'c mut Reached,
    ) -> Result<Self, Error> {
        let range = record.range();
        let newest_number = output.newest_number();
        let (newest, damaged) = output.newest(record.attempt);
        for error in &damaged {
            context.metrics.train.checkpoints_damaged.inc();
            tracing::warn!(trial = %record.trial, %error, "using the checkpoint before it");
        }
        if damaged.is_empty() {
            let newest = newest.as_ref().map(|(manifest, _)| manifest);
            check_group(context, record, &range, newest, newest_number)?;
        }
        let turn = context.turns.take();
        let (spec, optimizer) = (record.model_spec(), record.optimizer_spec());
        let restore = |blob: &[u8]| Fit::restore(spec.clone(), optimizer, record.seed, record.number, blob);
        let (fit, progress) = match newest {
            Some((manifest, blob)) => {
                manifest.check_fits(record)?;
                tracing::info!(
                    trial = %record.trial, epoch = manifest.progress.epoch, step = manifest.progress.step,
                    checkpoint = manifest.checkpoint, "trial goes on from its checkpoint"
                );
                (restore(&blob)?, manifest.progress)
            }
            None => {
                tracing::info!(trial = %record.trial, attempt = record.attempt, "trial begins");
                let fit = if record.initial {
                    restore(&output.initial()?)?
                } else {
                    Fit::new(spec.clone(), optimizer, record.seed, record.number)?
                };
                (fit, Progress::beginning(&range))
            }
        };
        *reached = Reached::of(&progress);
        replay.seek(progress.position.clone());
        let begins_pass = progress.position.window == 0;
        let now = Instant::now();
        Ok(Self {
            context,
            record,
            control,
            reached,
            replay,
            turn,
            fit,
            checkpoint: newest_number.map_or(0, |number| number + 1),
            checkpointed: now,
            measurements: Vec::new(),
            carry: Window::default(),
            validation: if begins_pass {
                ValidationCache::Filling(empty(record.dim))
            } else {
                ValidationCache::Incomplete
            },
            epoch_began: (now, progress.sums.records),
            shown: now,
            loss: None,
            progress,
            range,
        })
    }

    fn run(&mut self, publisher: &mut Background) -> Result<End, Error> {
        self.show();
        let epochs = self.record.parameters.epochs;
        while self.progress.epoch < epochs {
            self.replay.set_last_pass(self.progress.epoch + 1 == epochs);
            let started = Instant::now();
            let stepped = self.epoch(publisher)?;
            if let Stepped::Diverged(reason) = stepped {
                return self.diverged(publisher, reason);
            }
            let validation = self.validate()?;
            // What the last step spoilt, no further step would notice.
            let sound = validation.loss().is_none_or(f64::is_finite) && self.fit.is_finite()?;
            if !sound {
                let epoch = self.progress.epoch + 1;
                let reason = format!(
                    "weights are not finite numbers after epoch {epoch}, or their validation loss; a lower learning_rate may help"
                );
                return self.diverged(publisher, reason);
            }
            self.progress.due = false;
            self.measure(Some(&validation));
            self.context.metrics.train.epoch_duration.observe(started.elapsed().as_secs_f64());
            self.context.metrics.train.epochs.inc();
            let start = Position::start(&self.range);
            self.progress.epoch += 1;
            self.progress.position = start.clone();
            self.progress.taken = 0;
            self.progress.sums = EpochSums::default();
            if self.progress.epoch < epochs {
                self.checkpoint(publisher)?;
                self.obey(publisher)?;
                self.replay.seek(start);
                self.epoch_began = (Instant::now(), 0);
                if matches!(self.validation, ValidationCache::Incomplete) {
                    self.validation = ValidationCache::Filling(empty(self.record.dim));
                }
            }
        }
        let outcome = self.finish(publisher, EndState::Finished, None)?;
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
            let window = match self.turn.aside(|| self.replay.next_window())? {
                Read::Window(window) => window,
                Read::End => break,
                Read::Stopped => {
                    self.obey(publisher)?;
                    return Err(Error::Ordered);
                }
            };
            self.context.metrics.train.records.inc_by(window.records() as u64);
            self.keep_validation(&window);
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
                for &place in &order[taken..] {
                    let (matrix, label) = window.record(place);
                    self.carry.push(matrix, self.record.rows_max, label, false);
                }
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
        let batch: Vec<Record<'_>> = carried.chain(places.iter().map(|&place| window.record(place))).collect();
        let report = self.fit.step(&batch, self.progress.epoch, self.progress.step)?;
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
        self.measure(None);
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
                    self.measure(None);
                }
                let outcome = self.finish(publisher, EndState::Stopped, Some("stopped on request".into()))?;
                Err(Error::Stopped(Box::new(outcome)))
            }
            Order::Abandon => Err(Error::Ordered),
        }
    }

    fn keep_validation(&mut self, window: &Window) {
        let ValidationCache::Filling(kept) = &mut self.validation else { return };
        for &place in window.validation() {
            let (matrix, label) = window.record(place);
            kept.push(matrix, self.record.rows_max, label, true);
        }
        if kept.bytes() > self.context.settings.train.validation_cache_bytes {
            self.validation = ValidationCache::TooLarge;
        }
    }

    /// Evaluates the whole validation split, in computed order, in batches that do not depend on how it is read.
    fn validate(&mut self) -> Result<Evaluation, Error> {
        let mut evaluation = self.fit.evaluation();
        if let ValidationCache::Filling(kept) = &mut self.validation {
            self.validation = ValidationCache::Complete(std::mem::take(kept));
        }
        let batch_size = self.record.parameters.batch_size as usize;
        if let ValidationCache::Complete(kept) = &self.validation {
            evaluate_all(&mut self.fit, kept, batch_size, &mut evaluation)?;
            return Ok(evaluation);
        }
        if self.record.parameters.validation == 0 {
            return Ok(evaluation);
        }
        self.replay.seek(Position::start(&self.range));
        let mut batch = empty(self.record.dim);
        loop {
            let window = match self.turn.aside(|| self.replay.next_window())? {
                Read::Window(window) => window,
                Read::End => break,
                // Validation changes no weight: the epoch's last checkpoint stands, and its end is computed again.
                Read::Stopped => return Err(Error::Ordered),
            };
            for &place in window.validation() {
                let (matrix, label) = window.record(place);
                batch.push(matrix, self.record.rows_max, label, true);
                if batch.records() == batch_size {
                    evaluate_all(&mut self.fit, &batch, batch_size, &mut evaluation)?;
                    batch.clear(0, self.record.dim);
                }
            }
        }
        evaluate_all(&mut self.fit, &batch, batch_size, &mut evaluation)?;
        Ok(evaluation)
    }

    fn measure(&mut self, validation: Option<&Evaluation>) {
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
            learning_rate: self.record.parameters.learning_rate,
            gradient_norm: (sums.steps > 0).then(|| sums.gradient_norm / sums.steps as f64),
            records_per_second: Some(per_second),
            time_ms: now_ms(),
        };
        let objective = &self.record.objective;
        if self.progress.best.as_ref().is_none_or(|best| objective.compare(&measurement, best).is_lt()) {
            self.progress.best = Some(measurement.clone());
        }
        self.context.status.change_trial(&self.record.trial, |status| {
            status.measurement = serde_json::to_value(&measurement).ok();
        });
        self.measurements.push(measurement);
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
            weights_sha256: if sound { Some(self.fit.weights_sha256()?) } else { None },
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
            let blob = self.fit.state()?;
            self.context.metrics.train.checkpoint_bytes.inc_by(blob.len() as u64);
            publication.checkpoint = Some(Checkpoint {
                number: self.checkpoint,
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

fn evaluate_all(
    fit: &mut Fit,
    records: &Window,
    batch_size: usize,
    evaluation: &mut Evaluation,
) -> Result<(), FitError> {
    let all: Vec<Record<'_>> =
        (0..records.records()).map(|place| records.record(u32::try_from(place).unwrap_or(u32::MAX))).collect();
    all.chunks(batch_size).try_for_each(|batch| fit.evaluate(batch, evaluation))
}

fn empty(dim: usize) -> Window {
    let mut window = Window::default();
    window.clear(0, dim);
    window
}

/// The group must tell the same story as the newest checkpoint, or nobody knows what was done.
fn check_group(
    context: &Context,
    record: &TrialRecord,
    range: &Range,
    newest: Option<&Manifest>,
    newest_number: Option<u64>,
) -> Result<(), Error> {
    let group = context.settings.trial_group(&record.trial);
    let partitions: Vec<i32> = range.partitions.iter().map(|partition| partition.partition).collect();
    let committed = kafka::offsets::committed(
        &context.settings,
        &group,
        &range.topic,
        &partitions,
        context.settings.kafka.open_transaction_max(),
    )?;
    let Some(first) = committed.values().next() else { return Ok(()) };
    let pointer = Pointer::of(first);
    if pointer.as_ref().is_some_and(|pointer| pointer.attempt < record.attempt) {
        return Ok(()); // left over from before `trials restart`
    }
    let offsets: Vec<Option<i64>> = partitions.iter().map(|partition| Some(committed.get(partition)?.offset)).collect();
    let agrees = newest.is_some_and(|manifest| {
        pointer.as_ref().is_none_or(|pointer| pointer.checkpoint == manifest.checkpoint)
            && manifest.progress.position.offsets.iter().copied().map(Some).eq(offsets.iter().copied())
    });
    if agrees {
        return Ok(());
    }
    // Measurements lie with the checkpoint, so it alone says what was published.
    if pointer.as_ref().is_some_and(|pointer| is_one_apart(pointer.checkpoint, newest, newest_number)) {
        tracing::warn!(trial = %record.trial, ?pointer, "a broker that was restarted ended a publication by halves; the checkpoint counts");
        return Ok(());
    }
    let says = newest.map_or_else(
        || "there is no checkpoint".to_owned(),
        |manifest| {
            format!("checkpoint {} stands at offsets {:?}", manifest.checkpoint, manifest.progress.position.offsets)
        },
    );
    Err(Error::Refused(format!(
        "group `{group}` stands at offsets {offsets:?} ({}), but {says}: somebody reset the group or removed output; delete the group to go on from the checkpoint, or `sweepstream trials restart {}` to begin anew",
        pointer.map_or_else(|| "without a pointer of ours".into(), |pointer| format!("checkpoint {}", pointer.checkpoint)),
        record.trial
    )))
}

/// Whether the group lacks the newest checkpoint, or the output the one that the group names.
fn is_one_apart(named: u64, newest: Option<&Manifest>, newest_number: Option<u64>) -> bool {
    let lacks = newest.is_some_and(|manifest| manifest.checkpoint == named + 1);
    lacks || named == newest_number.map_or(0, |number| number + 1)
}

/// Unix time in milliseconds.
pub fn now_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}
