//! Where a trial is taken over: at its newest checkpoint, or at its beginning.

use super::context::Context;
use super::turns::Turn;
use crate::features::range::Range;
use crate::kafka;
use crate::kafka::offsets::Committed;
use crate::learn::learner::{self, Learner};
use crate::search::record::{TrialRecord, TRAINING_FORMAT};
use crate::train::store::checkpoint::{self, Kept, Manifest, Progress};
use crate::train::store::publish::Pointer;
use crate::train::store::trials::{TrialOutput, Whole};

/// Why a trial cannot be taken over.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Kafka.
    #[error(transparent)]
    Kafka(#[from] kafka::Error),
    /// Its checkpoint is another trial's.
    #[error(transparent)]
    Checkpoint(#[from] checkpoint::Error),
    /// What it would train, or go on from.
    #[error(transparent)]
    Learner(#[from] learner::Error),
    /// Nobody knows what was done.
    #[error("{0}")]
    Refused(String),
}

/// A trial that can go on.
pub struct TakenOver<'c> {
    /// What it trains, where it was left.
    pub learner: Box<dyn Learner>,
    pub progress: Progress,
    /// Number of its next checkpoint.
    pub checkpoint: u64,
    /// What that one must not replace.
    pub kept: Kept,
    /// Its turn to compute.
    pub turn: Turn<'c>,
}

/// Refuses records of a version that would train to other weights.
///
/// # Errors
/// [`Error::Refused`], with the way out.
pub fn check_format(record: &TrialRecord) -> Result<(), Error> {
    if record.training_format == TRAINING_FORMAT {
        return Ok(());
    }
    Err(Error::Refused(format!(
        "the trial was made for training format {}, this is {TRAINING_FORMAT}: the same inputs would give other \
         weights; start the search again, or use the version that started it",
        record.training_format
    )))
}

/// Takes a trial over from what it has published.
///
/// # Errors
/// When its group and its output tell different stories, and what Kafka says.
pub fn take_over<'c>(context: &'c Context, record: &TrialRecord, output: &TrialOutput) -> Result<TakenOver<'c>, Error> {
    let range = record.range();
    let newest_number = output.newest_number();
    let (newest, damaged) = output.newest(record.attempt);
    for error in &damaged {
        context.metrics.train.checkpoints_damaged.inc();
        tracing::warn!(trial = %record.trial, %error, "using the checkpoint before it");
    }
    if damaged.is_empty() {
        check_group(context, record, &range, newest.as_ref().map(|whole| &whole.manifest), newest_number)?;
    }
    let turn = context.turns.take();
    let mut learner: Box<dyn Learner> = Box::new(record.fit().map_err(learner::Error::from)?);
    let kept = newest.as_ref().map(|whole| output.kept(whole)).unwrap_or_default();
    let progress = match newest {
        Some(Whole { manifest, blob, .. }) => {
            manifest.check_fits(record)?;
            tracing::info!(
                trial = %record.trial, epoch = manifest.progress.epoch, step = manifest.progress.step,
                checkpoint = manifest.checkpoint, "trial goes on from its checkpoint"
            );
            learner.restore(&blob)?;
            manifest.progress
        }
        None => {
            tracing::info!(trial = %record.trial, attempt = record.attempt, "trial begins");
            if record.initial {
                learner.restore(&output.initial()?)?;
            }
            Progress::beginning(&range)
        }
    };
    Ok(TakenOver { learner, progress, checkpoint: newest_number.map_or(0, |number| number + 1), kept, turn })
}

/// What a trial's group says beside its checkpoints.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Story {
    Same,
    /// Nothing, or something about an attempt before.
    None,
    /// One publication more or less: a broker that was restarted ended the last one by halves. Measurements lie with
    /// the checkpoint, so that it alone says what was published.
    OneApart,
    /// Something else: somebody has reset the group, or has removed output.
    Other,
}

/// What a group says that stands at these offsets, one for each partition of the range. `newest` is the newest whole
/// checkpoint of the attempt with its offsets, `newest_number` the number of the newest of any attempt.
fn story(
    attempt: u32,
    offsets: &[Option<i64>],
    pointer: Option<&Pointer>,
    newest: Option<(u64, &[i64])>,
    newest_number: Option<u64>,
) -> Story {
    if offsets.iter().all(Option::is_none) || pointer.is_some_and(|pointer| pointer.attempt < attempt) {
        return Story::None;
    }
    let same = newest.is_some_and(|(number, at)| {
        pointer.is_none_or(|pointer| pointer.checkpoint == number) && at.iter().copied().map(Some).eq(offsets.to_vec())
    });
    // Whether the group lacks the newest checkpoint, or the output the one that the group names.
    let one_apart = |named: u64| {
        newest.is_some_and(|(number, _)| number == named + 1) || named == newest_number.map_or(0, |number| number + 1)
    };
    match pointer {
        _ if same => Story::Same,
        Some(pointer) if one_apart(pointer.checkpoint) => Story::OneApart,
        _ => Story::Other,
    }
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
    let bound = context.settings.kafka.open_transaction_max();
    let committed = kafka::offsets::committed(&context.settings, &group, &range.topic, &partitions, bound)?;
    let pointer = committed.values().next().and_then(Pointer::of);
    let held = |partition: &i32| committed.get(partition).map(|Committed { offset, .. }| *offset);
    let offsets: Vec<Option<i64>> = partitions.iter().map(held).collect();
    let newest = newest.map(|manifest| (manifest.checkpoint, manifest.progress.position.offsets.as_slice()));
    match story(record.attempt, &offsets, pointer.as_ref(), newest, newest_number) {
        Story::Same | Story::None => return Ok(()),
        Story::OneApart => {
            tracing::warn!(trial = %record.trial, ?pointer, "a broker that was restarted ended a publication by \
                halves; the checkpoint counts");
            return Ok(());
        }
        Story::Other => {}
    }
    let says = newest.map_or_else(
        || "there is no checkpoint".to_owned(),
        |(number, offsets)| format!("checkpoint {number} stands at offsets {offsets:?}"),
    );
    Err(Error::Refused(format!(
        "group `{group}` stands at offsets {offsets:?} ({}), but {says}: somebody reset the group or removed output; \
         delete the group to go on from the checkpoint, or `sweepstream trials restart {}` to begin anew",
        pointer
            .map_or_else(|| "without a pointer of ours".into(), |pointer| format!("checkpoint {}", pointer.checkpoint)),
        record.trial
    )))
}

#[cfg(test)]
mod tests {
    use super::{story, Pointer, Story};

    const AT: [Option<i64>; 2] = [Some(4), Some(9)];
    const NEWEST: Option<(u64, &[i64])> = Some((5, &[4, 9]));

    fn pointer(attempt: u32, checkpoint: u64) -> Pointer {
        Pointer { attempt, checkpoint, epoch: 0, step: 0 }
    }

    #[test]
    fn a_group_that_stands_where_the_newest_checkpoint_does_tells_the_same() {
        assert_eq!(story(0, &AT, Some(&pointer(0, 5)), NEWEST, Some(5)), Story::Same);
        assert_eq!(story(0, &AT, None, NEWEST, Some(5)), Story::Same, "tools that reset a group leave the pointer out");
    }

    #[test]
    fn a_group_without_offsets_or_of_an_attempt_before_tells_nothing() {
        assert_eq!(story(0, &[None, None], None, NEWEST, Some(5)), Story::None);
        assert_eq!(story(0, &[], None, None, None), Story::None);
        assert_eq!(story(2, &AT, Some(&pointer(1, 5)), None, Some(5)), Story::None);
    }

    #[test]
    fn one_publication_that_was_ended_by_halves_is_no_contradiction() {
        // The group lacks the newest checkpoint.
        assert_eq!(story(0, &[Some(2), Some(7)], Some(&pointer(0, 4)), NEWEST, Some(5)), Story::OneApart);
        // The output lacks the one that the group names; the first one, too.
        assert_eq!(story(0, &[Some(6), Some(11)], Some(&pointer(0, 6)), NEWEST, Some(5)), Story::OneApart);
        assert_eq!(story(0, &AT, Some(&pointer(0, 0)), None, None), Story::OneApart);
        // A first checkpoint of this attempt, after five of the one before.
        assert_eq!(story(1, &AT, Some(&pointer(1, 6)), None, Some(5)), Story::OneApart);
    }

    #[test]
    fn whatever_else_it_says_contradicts() {
        assert_eq!(story(0, &[Some(0), Some(0)], None, NEWEST, Some(5)), Story::Other, "reset to the beginning");
        assert_eq!(story(0, &AT, None, None, None), Story::Other, "the output was removed");
        assert_eq!(story(0, &AT, Some(&pointer(0, 3)), NEWEST, Some(5)), Story::Other, "two behind");
        assert_eq!(story(0, &[Some(4), None], None, NEWEST, Some(5)), Story::Other, "one partition was reset");
    }
}
