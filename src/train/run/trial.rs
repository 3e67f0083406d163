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

use fail::fail_point;

use super::context::Context;
use super::control::{Control, End, Order};
use super::takeover::{self, check_format, take_over};
use super::training::{ending, Error, Reached, Training};
use crate::features::stream::Follower;
use crate::kafka::lease::Lease;
use crate::output::{EndState, Outcome};
use crate::train::now_ms;
use crate::train::store::publish::{Background, Publisher};
use crate::train::store::trials::{self, Stored, Want};

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
        Ok(Err(Error::Kafka(error) | Error::TakeOver(takeover::Error::Kafka(error)))) if error.passes() => {
            return End::Interrupted(error.to_string())
        }
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
        confusion: reached.confusion.clone(),
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
    check_format(record)?;
    let wanted = BTreeMap::from([(record.trial.clone(), stored.partition)]);
    let output = trials::output(&context.settings, &context.watermarks, &wanted, Want::Checkpoints)?
        .remove(&record.trial)
        .unwrap_or_default();
    if let Some(outcome) = output.outcome.clone().filter(|outcome| outcome.attempt == record.attempt) {
        // Published in one transaction with the record of the trial, unless somebody wrote that record again since.
        publisher.publish(ending(record, &outcome))?;
        publisher.settle()?;
        return Ok(End::Outcome(Box::new(outcome)));
    }
    let taken_over = take_over(context, record, &output)?;
    // Its checkpoints are as large as the trial's state, and nobody reads them again.
    drop(output);
    let mut training = Training::new(context, record, taken_over, control, replay, reached);
    fail_point!("train.trial.restored");
    if control.get() == Order::Abandon {
        return Err(Error::Ordered);
    }
    training.run(publisher)
}

fn panic_message(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "(no message)".into())
}
