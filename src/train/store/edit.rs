//! What is changed of trials from outside: stopped, begun anew, deleted.

use std::collections::BTreeMap;

use super::publish::scrub;
use super::trials::{self, Stored, Want, Written};
use crate::config::Settings;
use crate::kafka;
use crate::kafka::offsets::Watermarks;
use crate::kafka::topics::delete_groups;
use crate::kafka::transaction::TransactionalProducer;
use crate::kafka::Result;
use crate::output::Key;
use crate::search::record::TrialRecord;

/// Asks a trial to end at its next step. One that has ended meanwhile has ended: whoever takes it up finds its outcome
/// in `output`, and writes its record again.
///
/// # Errors
/// When Kafka fails.
pub fn stop(settings: &Settings, stored: &Stored) -> Result<()> {
    let record = TrialRecord { stop: true, ..stored.record.clone() };
    trials::publish(settings, &[(stored.partition, Written::trial(&record))])
}

/// Begins a trial anew, whatever its state; returns the number of the attempt.
///
/// # Errors
/// When Kafka fails; then nothing has changed.
pub fn restart(settings: &Settings, stored: &Stored) -> Result<u32> {
    let attempt = stored.record.attempt + 1;
    let record = TrialRecord { attempt, stop: false, outcome: None, ..stored.record.clone() };
    let _ = rewrite(settings, stored, |key| !key.is_initial(), &Written::trial(&record))?;
    Ok(attempt)
}

/// What was deleted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Deleted {
    pub trials: usize,
    /// Records of their output.
    pub records: usize,
}

/// Deletes trials, their output and their groups.
///
/// # Errors
/// When Kafka fails; trials that were deleted before stay so.
pub fn delete(settings: &Settings, trials: &[Stored]) -> Result<Deleted> {
    let mut deleted = Deleted::default();
    for stored in trials {
        let record = Written::Trial(stored.record.trial.clone(), None);
        deleted.records += rewrite(settings, stored, |_| true, &record)?;
        deleted.trials += 1;
    }
    let groups: Vec<String> = trials.iter().map(|stored| settings.trial_group(&stored.record.trial)).collect();
    delete_groups(settings, &groups)?;
    Ok(deleted)
}

/// Deletes chosen records of a trial's output and replaces its own record, in one transaction; returns how many
/// records of output went.
///
/// The trial's transactional id is taken over first: whoever runs it can publish nothing after this.
fn rewrite(
    settings: &Settings,
    stored: &Stored,
    chosen: impl Fn(&Key<'_>) -> bool,
    record: &Written<'_>,
) -> Result<usize> {
    let (trial, partition) = (&stored.record.trial, stored.partition);
    let mut producer = TransactionalProducer::new(settings, &settings.trial_group(trial), &[])?;
    let place = BTreeMap::from([(trial.clone(), partition)]);
    let output = trials::output(settings, &Watermarks::new(settings)?, &place, Want::Checkpoints)?
        .remove(trial)
        .unwrap_or_default();
    let keys: Vec<Key<'_>> = output.keys(trial).into_iter().filter(chosen).collect();
    // What its owner may have left open must not become visible with this commit.
    let member = kafka::offsets::group_metadata(settings, &settings.trial_group(trial))?;
    scrub(settings, &mut producer, &stored.record.range(), (partition, &member), None)?;
    let mut transaction = producer.begin()?;
    for key in &keys {
        Written::Output(key.to_string(), key.kind(), None).send(settings, &mut transaction, partition)?;
    }
    record.send(settings, &mut transaction, partition)?;
    transaction.commit()?;
    Ok(keys.len())
}
