//! Trials and their output as they stand in Kafka.

use std::borrow::Cow;
use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

use fail::fail_point;
use rdkafka::message::{BorrowedMessage, Message};

use super::checkpoint::{self, Kept, Manifest};
use crate::config::Settings;
use crate::kafka::offsets::Watermarks;
use crate::kafka::scan::{self, scan};
use crate::kafka::transaction::{Outgoing, TransactionalProducer};
use crate::kafka::{Error, Result};
use crate::output::{Key, Kind, Measurement, Outcome, Slot, KIND_HEADER};
use crate::search::record::TrialRecord;
use crate::text::shortened;

/// Steps from one trial's partition to the next one's: prime to any count but its own multiples, so that the trials
/// of a search spread over all partitions, and neighbours far apart.
const PARTITION_STRIDE: u32 = 13;

/// The partition of `trials`, and of `output`, that a trial's records are in.
pub fn partition_of(search: &str, number: u32, partitions: i32) -> i32 {
    let count = u32::try_from(partitions).unwrap_or(1).max(1);
    let first = crc32fast::hash(search.as_bytes()) % count;
    let stride = if count.is_multiple_of(PARTITION_STRIDE) { 1 } else { PARTITION_STRIDE };
    i32::try_from((first + number % count * stride) % count).unwrap_or(0)
}

/// A trial, and the partition its records are in.
#[derive(Clone, Debug)]
pub struct Stored {
    pub record: TrialRecord,
    /// Of `trials` and of `output`.
    pub partition: i32,
}

/// Reads all trials, in the order of their ids.
///
/// # Errors
/// When Kafka fails. Records that are no trials are left out and logged.
pub fn all(settings: &Settings) -> Result<BTreeMap<String, Stored>> {
    let topic = &settings.topics.trials;
    let watermarks = Watermarks::new(settings)?;
    let extents = watermarks.capture(topic, 0..watermarks.partitions(topic)?)?;
    let mut trials = BTreeMap::new();
    scan(settings, topic, &extents, |message| {
        let _ = apply(&mut trials, message.partition(), message.offset(), message.key(), message.payload());
        Ok::<(), Error>(())
    })?;
    Ok(trials)
}

/// Applies one record of `trials` to what is known; returns the id it was about.
pub fn apply(
    trials: &mut BTreeMap<String, Stored>,
    partition: i32,
    offset: i64,
    key: Option<&[u8]>,
    value: Option<&[u8]>,
) -> Option<String> {
    let Ok(id) = std::str::from_utf8(key?).map(str::to_owned) else {
        tracing::warn!(partition, offset, "a record of `trials` has a key that is no text; ignored");
        return None;
    };
    let Some(value) = value else {
        let _ = trials.remove(&id);
        return Some(id);
    };
    match TrialRecord::parse(value) {
        Ok(record) if record.trial == id => {
            let _ = trials.insert(id.clone(), Stored { record, partition });
            Some(id)
        }
        Ok(record) => {
            tracing::warn!(partition, offset, key = %shortened(&id), trial = %shortened(&record.trial), "a record of \
                `trials` has another trial's key; ignored");
            None
        }
        Err(error) => {
            let key = shortened(&id);
            tracing::warn!(partition, offset, %key, %error, "a record of `trials` is unreadable; ignored");
            None
        }
    }
}

/// What `output` holds of one trial.
#[derive(Debug, Default)]
pub struct TrialOutput {
    /// By epoch and step.
    pub measurements: BTreeMap<(u64, u64), Measurement>,
    pub outcome: Option<Outcome>,
    manifests: BTreeMap<Slot, std::result::Result<Manifest, checkpoint::Error>>,
    chunks: BTreeMap<Slot, BTreeMap<u32, Vec<u8>>>,
}

/// A checkpoint that is whole.
#[derive(Debug)]
pub struct Whole {
    pub slot: Slot,
    pub manifest: Manifest,
    /// Weights and the optimizer's state.
    pub blob: Vec<u8>,
}

/// Which trials' output is read, and whether checkpoints are wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Want {
    Measurements,
    Checkpoints,
}

/// Reads the output of trials (id → partition).
///
/// # Errors
/// When Kafka fails.
pub fn output(
    settings: &Settings,
    watermarks: &Watermarks,
    trials: &BTreeMap<String, i32>,
    want: Want,
) -> Result<BTreeMap<String, TrialOutput>> {
    let topic = &settings.topics.output;
    let extents = watermarks.capture(topic, trials.values().copied())?;
    let mut found: BTreeMap<String, TrialOutput> =
        trials.keys().map(|id| (id.clone(), TrialOutput::default())).collect();
    scan(settings, topic, &extents, |message| {
        let key = message.key().and_then(Key::parse);
        if let Some((key, output)) = key.and_then(|key| Some((key.clone(), found.get_mut(key.trial())?))) {
            output.apply(&key, message.payload(), want);
        }
        Ok::<(), Error>(())
    })?;
    Ok(found)
}

impl TrialOutput {
    fn apply(&mut self, key: &Key<'_>, value: Option<&[u8]>, want: Want) {
        match (key, value) {
            (Key::Measurement { epoch, step, .. }, value) => {
                let parsed = value.and_then(|value| serde_json::from_slice(value).ok());
                match parsed {
                    Some(measurement) => drop(self.measurements.insert((*epoch, *step), measurement)),
                    None => drop(self.measurements.remove(&(*epoch, *step))),
                }
            }
            (Key::Outcome { .. }, value) => {
                self.outcome = value.and_then(|value| serde_json::from_slice(value).ok());
            }
            (Key::Chunk { .. } | Key::Manifest { .. }, _) if want == Want::Measurements => {}
            (Key::Chunk { slot, chunk, .. }, Some(value)) => {
                drop(self.chunks.entry(*slot).or_default().insert(*chunk, value.to_vec()));
            }
            (Key::Chunk { slot, chunk, .. }, None) => {
                drop(self.chunks.entry(*slot).or_default().remove(chunk));
            }
            (Key::Manifest { slot, .. }, Some(value)) => drop(self.manifests.insert(*slot, Manifest::parse(value))),
            (Key::Manifest { slot, .. }, None) => drop(self.manifests.remove(slot)),
        }
    }

    /// What training wrote, slot by slot.
    fn turns(&self) -> impl Iterator<Item = (Slot, &std::result::Result<Manifest, checkpoint::Error>)> {
        Slot::TURNS.into_iter().filter_map(|slot| Some((slot, self.manifests.get(&slot)?)))
    }

    /// Manifests of an attempt, the newest first.
    fn attempt(&self, attempt: u32) -> Vec<(Slot, &Manifest)> {
        let readable = self.turns().filter_map(|(slot, manifest)| Some((slot, manifest.as_ref().ok()?)));
        let mut found: Vec<_> = readable.filter(|(_, manifest)| manifest.attempt == attempt).collect();
        found.sort_by_key(|(_, manifest)| Reverse(manifest.checkpoint));
        found
    }

    /// Number of the newest checkpoint of any attempt.
    pub fn newest_number(&self) -> Option<u64> {
        self.turns().filter_map(|(_, manifest)| Some(manifest.as_ref().ok()?.checkpoint)).max()
    }

    /// The newest checkpoint of an attempt that is whole; damaged ones before which it was found are returned as
    /// errors to be counted.
    pub fn newest(&self, attempt: u32) -> (Option<Whole>, Vec<checkpoint::Error>) {
        let unreadable = self.turns().filter_map(|(_, manifest)| manifest.as_ref().err());
        let mut damaged: Vec<_> = unreadable.map(|error| checkpoint::Error::Manifest(error.to_string())).collect();
        for (slot, manifest) in self.attempt(attempt) {
            match self.open(slot, manifest) {
                Ok(whole) => return (Some(whole), damaged),
                Err(error) => damaged.push(error),
            }
        }
        (None, damaged)
    }

    /// Where the weights lie that the best measurement was taken of, as the checkpoint that is gone on from knows it.
    fn best_of(&self, newest: &Manifest) -> Option<(Slot, &Manifest)> {
        let best = newest.progress.best.as_ref()?;
        let behind = |manifest: &Manifest| manifest.checkpoint <= newest.checkpoint;
        let holds = |(_, manifest): &(Slot, &Manifest)| behind(manifest) && manifest.progress.step == best.step;
        self.attempt(newest.attempt).into_iter().find(holds)
    }

    /// What the checkpoint after this one must not replace.
    pub fn kept(&self, newest: &Whole) -> Kept {
        Kept { newest: Some(newest.slot), best: self.best_of(&newest.manifest).map(|(slot, _)| slot) }
    }

    /// The checkpoint with the best weights that the trial had when it wrote this one; none, if it is not there.
    ///
    /// # Errors
    /// When it is damaged.
    pub fn best(&self, newest: &Whole) -> std::result::Result<Option<Whole>, checkpoint::Error> {
        self.best_of(&newest.manifest).map(|(slot, manifest)| self.open(slot, manifest)).transpose()
    }

    /// The state that the trial begins with, when it was given one.
    ///
    /// # Errors
    /// When it is missing or damaged.
    pub fn initial(&self) -> std::result::Result<Vec<u8>, checkpoint::Error> {
        match self.manifests.get(&Slot::Initial) {
            Some(Ok(manifest)) => Ok(self.open(Slot::Initial, manifest)?.blob),
            Some(Err(error)) => Err(checkpoint::Error::Manifest(error.to_string())),
            None => Err(checkpoint::Error::Manifest("the initial weights are missing".into())),
        }
    }

    fn open(&self, slot: Slot, manifest: &Manifest) -> std::result::Result<Whole, checkpoint::Error> {
        let empty = BTreeMap::new();
        let blob = manifest.open(slot, self.chunks.get(&slot).unwrap_or(&empty))?;
        Ok(Whole { slot, manifest: manifest.clone(), blob })
    }

    /// Keys of everything that was found, for deleting it.
    pub fn keys<'t>(&self, trial: &'t str) -> Vec<Key<'t>> {
        let measurements = self.measurements.keys().map(|&(epoch, step)| Key::Measurement { trial, epoch, step });
        let outcome = self.outcome.iter().map(|_| Key::Outcome { trial });
        let manifests = self.manifests.keys().map(|&slot| Key::Manifest { trial, slot });
        let chunks = self
            .chunks
            .iter()
            .flat_map(|(&slot, chunks)| chunks.keys().map(move |&chunk| Key::Chunk { trial, slot, chunk }));
        measurements.chain(outcome).chain(manifests).chain(chunks).collect()
    }
}

/// Follows trials as their records change, from now on, as long as `each` returns true.
///
/// `each` sees all of them, first as they stand and then after every change, at least once a second.
///
/// # Errors
/// When Kafka fails for good.
pub fn follow(
    settings: &Settings,
    known: &[Stored],
    mut each: impl FnMut(&BTreeMap<String, Stored>) -> bool,
) -> Result<()> {
    let topic = &settings.topics.trials;
    let mut trials: BTreeMap<String, Stored> =
        known.iter().map(|stored| (stored.record.trial.clone(), stored.clone())).collect();
    let ids: BTreeSet<String> = trials.keys().cloned().collect();
    let watermarks = Watermarks::new(settings)?;
    let extents = watermarks.capture(topic, known.iter().map(|stored| stored.partition))?;
    let follow = |message: &BorrowedMessage<'_>, trials: &mut BTreeMap<String, Stored>| {
        let id = message.key().and_then(|key| std::str::from_utf8(key).ok());
        if id.is_some_and(|id| ids.contains(id)) {
            let _ = apply(trials, message.partition(), message.offset(), message.key(), message.payload());
        }
    };
    // What came before is gone through unseen: a restarted trial has had an outcome that it has no more.
    scan(settings, topic, &extents, |message| {
        follow(message, &mut trials);
        Ok::<(), Error>(())
    })?;
    fail_point!("train.store.follow");
    let ends = extents.into_iter().map(|(partition, extent)| (partition, extent.end)).collect();
    scan::follow(settings, topic, &ends, |message| {
        if let Some(message) = message {
            follow(message, &mut trials);
        }
        each(&trials)
    })
}

/// Writes to `trials` and `output` from outside the pool, in one transaction.
///
/// # Errors
/// When Kafka refuses; nothing is visible then.
pub fn publish(settings: &Settings, records: &[(i32, Written<'_>)]) -> Result<()> {
    let id = format!("{}.cli.{}", settings.application_id, uuid::Uuid::new_v4());
    let mut producer = TransactionalProducer::new(settings, &id, &[])?;
    let mut transaction = producer.begin()?;
    for (partition, record) in records {
        record.send(settings, &mut transaction, *partition)?;
    }
    transaction.commit()
}

/// A record of `trials` or `output`.
#[derive(Clone, Debug)]
pub enum Written<'b> {
    /// The state of a trial; none deletes it.
    Trial(String, Option<Vec<u8>>),
    /// A record of output; none deletes it.
    Output(String, Kind, Option<Cow<'b, [u8]>>),
}

impl<'b> Written<'b> {
    /// A trial as it stands.
    pub fn trial(record: &TrialRecord) -> Self {
        Self::Trial(record.trial.clone(), Some(record.to_json()))
    }

    pub fn measurement(measurement: &Measurement) -> Self {
        let Measurement { trial, epoch, step, .. } = measurement;
        let key = Key::Measurement { trial, epoch: *epoch, step: *step };
        Self::Output(key.to_string(), Kind::Measurement, serde_json::to_vec(measurement).ok().map(Cow::Owned))
    }

    pub fn outcome(outcome: &Outcome) -> Self {
        let key = Key::Outcome { trial: &outcome.trial }.to_string();
        Self::Output(key, Kind::Outcome, serde_json::to_vec(outcome).ok().map(Cow::Owned))
    }

    /// The chunks and the manifest of a checkpoint.
    pub fn checkpoint(manifest: &Manifest, slot: Slot, blob: &'b [u8]) -> Vec<Self> {
        let trial = manifest.trial.as_str();
        let chunks = (0_u32..).zip(blob.chunks(checkpoint::CHUNK_BYTES)).map(|(chunk, bytes)| {
            Self::Output(
                Key::Chunk { trial, slot, chunk }.to_string(),
                Kind::CheckpointChunk,
                Some(Cow::Borrowed(bytes)),
            )
        });
        let seal = Self::Output(
            Key::Manifest { trial, slot }.to_string(),
            Kind::CheckpointManifest,
            Some(Cow::Owned(manifest.to_json())),
        );
        chunks.chain([seal]).collect()
    }

    /// Sends it inside a transaction.
    ///
    /// # Errors
    /// When the client refuses it.
    pub fn send(
        &self,
        settings: &Settings,
        transaction: &mut crate::kafka::transaction::Transaction<'_>,
        partition: i32,
    ) -> Result<()> {
        match self {
            Self::Trial(key, value) => transaction.send(&Outgoing {
                topic: &settings.topics.trials,
                partition,
                key: Some(key.as_bytes()),
                value: value.as_deref(),
                inherited: None,
                headers: &[],
            }),
            Self::Output(key, kind, value) => transaction.send(&Outgoing {
                topic: &settings.topics.output,
                partition,
                key: Some(key.as_bytes()),
                value: value.as_deref(),
                inherited: None,
                headers: &[(KIND_HEADER, Some(kind.name().as_bytes()))],
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::checkpoint::Progress;
    use super::*;
    use crate::search::record::samples;

    #[test]
    fn trials_of_a_search_spread_over_all_partitions() {
        let mut counts = [0; 32];
        for number in 0..64 {
            counts[partition_of("genres-1", number, 32) as usize] += 1;
        }
        assert_eq!(counts, [2; 32]);
        for count in [7, 13, 26] {
            let used: std::collections::BTreeSet<i32> =
                (0..100).map(|number| partition_of("x", number, count)).collect();
            assert_eq!(used, (0..count).collect());
        }
    }
    #[test]
    fn the_newest_readable_record_of_a_trial_counts() {
        let mut trials = BTreeMap::new();
        let mut apply = |key: Option<&str>, value: Option<&[u8]>| {
            let id = super::apply(&mut trials, 3, 0, key.map(str::as_bytes), value);
            (id, trials.get("t").map(|stored: &Stored| (stored.partition, stored.record.attempt)))
        };
        let (first, second) = (samples::record("t"), TrialRecord { attempt: 1, ..samples::record("t") });
        let t = || Some("t".to_owned());
        assert_eq!(apply(Some("t"), Some(&first.to_json())), (t(), Some((3, 0))));
        assert_eq!(apply(Some("t"), Some(b"junk")), (None, Some((3, 0))));
        assert_eq!(apply(Some("t"), Some(&samples::record("u").to_json())), (None, Some((3, 0))), "another's record");
        assert_eq!(apply(None, Some(&second.to_json())), (None, Some((3, 0))));
        assert_eq!(apply(Some("t"), Some(&second.to_json())), (t(), Some((3, 1))));
        assert_eq!(apply(Some("t"), None), (t(), None));
        assert_eq!(apply(Some("t"), None), (t(), None));
    }

    fn output(records: &[(Key<'_>, Option<Vec<u8>>)]) -> TrialOutput {
        let mut output = TrialOutput::default();
        records.iter().for_each(|(key, value)| output.apply(key, value.as_deref(), Want::Checkpoints));
        output
    }

    /// A checkpoint after as many steps as its number, of which the best was `best`.
    fn seal(
        (attempt, number): (u32, u64),
        slot: Slot,
        best: Option<u64>,
        blob: &[u8],
    ) -> Vec<(Key<'static>, Option<Vec<u8>>)> {
        let record = TrialRecord { attempt, ..samples::record("t") };
        let best = best.map(|step| crate::output::samples::measurement(1, step, 0.5));
        let progress = Progress { step: number, best, ..Progress::beginning(&record.range()) };
        let manifest = Manifest::seal(&record, number, progress, blob);
        vec![
            (Key::Chunk { trial: "t", slot, chunk: 0 }, Some(blob.to_vec())),
            (Key::Manifest { trial: "t", slot }, Some(manifest.to_json())),
        ]
    }

    fn checkpoint(attempt: u32, number: u64, blob: &[u8]) -> Vec<(Key<'static>, Option<Vec<u8>>)> {
        seal((attempt, number), if number.is_multiple_of(2) { Slot::Zero } else { Slot::One }, None, blob)
    }

    #[test]
    fn the_best_checkpoint_of_the_attempt_is_found_and_kept() {
        let found = |records: &[(Key<'_>, Option<Vec<u8>>)], attempt| {
            let output = output(records);
            let newest = output.newest(attempt).0.unwrap();
            let best = output.best(&newest).map(|best| best.map(|whole| whole.blob));
            (best.map_err(|error| error.to_string()), output.kept(&newest))
        };
        let kept = |newest, best| Kept { newest: Some(newest), best };
        let mut records = [
            seal((0, 3), Slot::Two, Some(3), b"three"),
            seal((0, 6), Slot::One, Some(3), b"six"),
            seal((0, 7), Slot::Zero, Some(3), b"seven"),
        ]
        .concat();
        assert_eq!(found(&records, 0), (Ok(Some(b"three".to_vec())), kept(Slot::Zero, Some(Slot::Two))));
        records[0].1 = Some(b"other".to_vec());
        let (best, still) = found(&records, 0);
        assert!(best.unwrap_err().contains("checkpoint 3 in slot 2 is damaged"));
        assert_eq!(still, kept(Slot::Zero, Some(Slot::Two)));
        records.extend(seal((0, 8), Slot::One, Some(8), b"eight"));
        assert_eq!(found(&records, 0), (Ok(Some(b"eight".to_vec())), kept(Slot::One, Some(Slot::One))));
        // Of an attempt before, or replaced by a version that kept the newest alone.
        records.extend(seal((1, 9), Slot::Two, Some(8), b"nine"));
        assert_eq!(found(&records, 1), (Ok(None), kept(Slot::Two, None)));
        assert_eq!(found(&checkpoint(0, 4, b"four"), 0), (Ok(None), kept(Slot::Zero, None)), "nothing is measured");
    }

    #[test]
    fn the_newest_whole_checkpoint_of_the_attempt_is_found() {
        let number = |output: &TrialOutput, attempt| {
            let (found, damaged) = output.newest(attempt);
            (found.map(|whole| (whole.manifest.checkpoint, whole.blob)), damaged.len())
        };
        let two = output(&[checkpoint(0, 4, b"four"), checkpoint(0, 5, b"five")].concat());
        assert_eq!(number(&two, 0), (Some((5, b"five".to_vec())), 0));
        assert_eq!(number(&two, 1), (None, 0), "of another attempt");
        assert_eq!(two.newest_number(), Some(5));
        let mut records = [checkpoint(0, 4, b"four"), checkpoint(0, 5, b"five")].concat();
        records[2].1 = Some(b"junk".to_vec());
        assert_eq!(number(&output(&records), 0), (Some((4, b"four".to_vec())), 1));
        records[1].1 = Some(b"{".to_vec());
        assert_eq!(number(&output(&records), 0), (None, 2));
        records.extend([(Key::Manifest { trial: "t", slot: Slot::Zero }, None), (records[2].0.clone(), None)]);
        assert_eq!(number(&output(&records), 0), (None, 1), "deleted is not damaged");
        assert!(output(&records).initial().is_err());
    }

    #[test]
    fn everything_that_was_found_can_be_deleted() {
        let found = output(&checkpoint(0, 4, b"four"));
        let deleted: Vec<String> = found.keys("t").iter().map(ToString::to_string).collect();
        assert_eq!(deleted, ["t/checkpoint/0/manifest", "t/checkpoint/0/0"]);
        let mut records = checkpoint(0, 4, b"four");
        records.extend(found.keys("t").into_iter().map(|key| (key, None)));
        assert!(output(&records).keys("t").is_empty());
    }
}
