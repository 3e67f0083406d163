//! Publishes for one trial, as long as this process owns it; the trial goes on meanwhile.
//!
//! Each transaction also commits the trial's partition of `trials` to the group that shares trials out, with the
//! metadata of the assignment under which the trial was started: a process that lost the partition is refused by
//! Kafka, however late it wakes.

use std::collections::BTreeMap;
use std::sync::Arc;

use crossbeam_channel::{bounded, Receiver, Sender, TryRecvError};
use fail::fail_point;
use serde::{Deserialize, Serialize};

use super::checkpoint::{Manifest, Progress};
use super::trials::Written;
use crate::config::Settings;
use crate::features::range::Range;
use crate::kafka;
use crate::kafka::consumer::GroupMetadata;
use crate::kafka::exactly_once::{self, Next, Owner, Place, Remembered, Terms, REBALANCE};
use crate::kafka::lease::Lease;
use crate::kafka::offsets::{Committed, Offsets};
use crate::kafka::topics::TopicSet;
use crate::kafka::transaction::TransactionalProducer;
use crate::metrics::Train;
use crate::output::Slot;
use crate::search::record::TrialRecord;

/// How often a transaction is tried again before the trial is interrupted.
const FAILURES_MAX: u32 = 5;

/// Why a publication did not happen.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The partition belongs to somebody else now.
    #[error("the trial belongs to another process now")]
    Lost,
    /// The producer cannot be used any more; ownership must be confirmed before there is another.
    #[error("publishing failed: {0}")]
    Interrupted(#[from] kafka::Error),
    /// The publisher's thread has ended.
    #[error("the thread that publishes for the trial ended early")]
    Thread,
}

/// What the trial's group remembers beside its offsets; only a pointer, the manifest is the truth.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pointer {
    /// Run of the trial.
    pub attempt: u32,
    /// Number of the checkpoint that the offsets belong to.
    pub checkpoint: u64,
    pub epoch: u64,
    pub step: u64,
}

/// What becomes visible at once.
#[derive(Default)]
pub struct Publication {
    pub records: Vec<Written<'static>>,
    /// A checkpoint, and with it the group's offsets.
    pub checkpoint: Option<Checkpoint>,
}

/// State of a trial on its way out.
pub struct Checkpoint {
    /// Counts checkpoints of the trial, over all attempts.
    pub number: u64,
    /// Where it goes; what lies there is replaced.
    pub slot: Slot,
    /// Where the trial stands.
    pub progress: Progress,
    /// Weights and the optimizer's state.
    pub blob: Vec<u8>,
    /// Offsets for the trial's own group, in the order of the range's partitions.
    pub offsets: Vec<i64>,
}

impl Place for Pointer {
    fn is_reached(&self, held: &Committed) -> bool {
        Self::of(held).as_ref() == Some(self)
    }

    fn name(&self) -> String {
        format!("checkpoint {}", self.checkpoint)
    }

    fn name_of(held: &Committed) -> String {
        Self::of(held).map_or_else(|| "no checkpoint".into(), |pointer| pointer.name())
    }
}

impl Pointer {
    /// What stands beside a group's offset, if it is one of these.
    pub fn of(held: &Committed) -> Option<Self> {
        serde_json::from_str(&held.metadata).ok()
    }
}

impl Checkpoint {
    fn pointer(&self, attempt: u32) -> Pointer {
        let Progress { epoch, step, .. } = self.progress;
        Pointer { attempt, checkpoint: self.number, epoch, step }
    }
}

/// A [`Publisher`] on a thread of its own, with at most one publication under way.
pub struct Background {
    publications: Sender<Publication>,
    results: Receiver<Result<(), Error>>,
    under_way: bool,
}

impl Background {
    /// Hands a publication over, after the one before.
    ///
    /// # Errors
    /// What became of the one before, if it failed; then this one is not published.
    pub fn publish(&mut self, publication: Publication) -> Result<(), Error> {
        self.settle()?;
        self.publications.send(publication).map_err(|_| Error::Thread)?;
        self.under_way = true;
        Ok(())
    }

    /// Waits for the publication that is under way, if one is.
    ///
    /// # Errors
    /// When it failed: [`Error::Lost`] when the partition went to somebody else; then nothing was published.
    pub fn settle(&mut self) -> Result<(), Error> {
        if self.under_way {
            self.ended(self.results.recv().unwrap_or(Err(Error::Thread)))?;
        }
        Ok(())
    }

    /// Notices the end of the publication that is under way, without waiting for it.
    ///
    /// # Errors
    /// As [`Background::settle`].
    pub fn check(&mut self) -> Result<(), Error> {
        match self.under_way.then(|| self.results.try_recv()) {
            None | Some(Err(TryRecvError::Empty)) => Ok(()),
            Some(Err(TryRecvError::Disconnected)) => self.ended(Err(Error::Thread)),
            Some(Ok(result)) => self.ended(result),
        }
    }

    fn ended(&mut self, result: Result<(), Error>) -> Result<(), Error> {
        self.under_way = false;
        result?;
        fail_point!("train.trial.published");
        Ok(())
    }
}

/// See the module.
pub struct Publisher {
    settings: Settings,
    record: TrialRecord,
    range: Range,
    group: String,
    /// What Kafka knows the group by: it has no members, so this never changes.
    member: GroupMetadata,
    producer: TransactionalProducer,
    lease: Arc<Lease>,
    partition: i32,
    /// Number of the assignment under which the trial was started.
    assignment: u64,
    metrics: Train,
    /// What was published last, if anything was by this publisher.
    published: Option<Pointer>,
}

impl Publisher {
    /// Registers the trial's transactional id, which fences whoever had it, and ends what may be left open of it: a
    /// coordinator that was restarted may have forgotten a transaction without ending it in every partition, and the
    /// next commit of the same id would make its records visible.
    ///
    /// # Errors
    /// When the partition is not ours, or Kafka fails.
    pub fn open(
        settings: &Settings,
        topics: &TopicSet,
        metrics: &Train,
        lease: Arc<Lease>,
        (partition, assignment): (i32, u64),
        record: &TrialRecord,
    ) -> Result<Self, Error> {
        if !lease.hold().owns(partition, assignment) {
            return Err(Error::Lost);
        }
        fail_point!("train.publish.before_init");
        let limits_bytes = [topics.output.message_bytes_max, topics.trials.message_bytes_max];
        let group = settings.trial_group(&record.trial);
        let producer = TransactionalProducer::new(settings, &group, &limits_bytes).map_err(Error::Interrupted)?;
        fail_point!("train.publish.after_init");
        let member = kafka::offsets::group_metadata(settings, &group).map_err(Error::Interrupted)?;
        let mut publisher = Self {
            settings: settings.clone(),
            record: record.clone(),
            range: record.range(),
            group,
            member,
            producer,
            lease,
            partition,
            assignment,
            metrics: metrics.clone(),
            published: None,
        };
        publisher.scrub().map_err(|error| {
            tracing::warn!(trial = %record.trial, %error, class = ?error.class(), "a trial could not be claimed");
            Error::Interrupted(error)
        })?;
        Ok(publisher)
    }

    /// Ends what an owner before may have left open in everything that a publication writes to.
    fn scrub(&mut self) -> kafka::Result<()> {
        let state = self.lease.hold();
        let Some(owner) = state.metadata.clone() else { return Ok(()) };
        let position = self.position(state.committed.get(&self.partition).copied().unwrap_or(0))?;
        drop(state);
        let own = (self.partition, &self.member);
        scrub(&self.settings, &mut self.producer, &self.range, own, Some((&position, &owner)))
    }

    /// The trial's partition of `trials`, to be committed for the group that shares trials out.
    fn position(&self, offset: i64) -> kafka::Result<Offsets> {
        kafka::offsets::list(&self.settings.topics.trials, &[(self.partition, offset)].into(), "")
    }

    /// Publishes on a thread of `scope` until the returned handle is dropped.
    ///
    /// # Errors
    /// When there can be no more threads.
    pub fn spawn<'s>(mut self, scope: &'s std::thread::Scope<'s, '_>) -> std::io::Result<Background> {
        let (publications, queue) = bounded::<Publication>(1);
        let (ended, results) = bounded(1);
        let publish = move || {
            // A panic is told by the results, which end with it.
            let work = || queue.iter().try_for_each(|publication| ended.send(self.publish(&publication)));
            drop(std::panic::catch_unwind(std::panic::AssertUnwindSafe(work)));
        };
        let _ = std::thread::Builder::new().name("train-publish".into()).spawn_scoped(scope, publish)?;
        Ok(Background { publications, results, under_way: false })
    }

    /// Publishes in one transaction; tries again after failures that pass.
    fn publish(&mut self, publication: &Publication) -> Result<(), Error> {
        // Digests are taken here and not on the trial's own time.
        let sealed = publication.checkpoint.as_ref().map(|checkpoint| {
            let Checkpoint { number, progress, blob, .. } = checkpoint;
            (checkpoint, Manifest::seal(&self.record, *number, progress.clone(), blob))
        });
        let mut records: Vec<&Written<'_>> = publication.records.iter().collect();
        let state = sealed.as_ref().map_or_else(Vec::new, |(checkpoint, manifest)| {
            Written::checkpoint(manifest, checkpoint.slot, &checkpoint.blob)
        });
        records.extend(&state);
        let checkpoint = publication.checkpoint.as_ref();
        let (lease, metrics) = (Arc::clone(&self.lease), self.metrics.transactions.clone());
        let patience = self.settings.kafka.session_timeout + REBALANCE;
        let terms = Terms { lease: &lease, failures_max: FAILURES_MAX, patience, metrics: &metrics };
        let published = exactly_once::commit(&mut Attempts { publisher: self, records: &records, checkpoint }, terms)?;
        if let (Some(()), Some(checkpoint)) = (published, checkpoint) {
            self.published = Some(checkpoint.pointer(self.record.attempt));
        }
        Ok(())
    }

    /// After an abort: Kafka must still hold what was published before.
    fn confirm(&self) -> kafka::Result<()> {
        let range = &self.range;
        let (Some(published), Some(first)) = (&self.published, range.partitions.first()) else { return Ok(()) };
        let expected = BTreeMap::from([(first.partition, published.clone())]);
        let remembered = Remembered { group: &self.group, topic: &range.topic, expected: &expected };
        remembered.confirm(&self.settings, None, |partition| remembered.undone(partition, None))
    }

    fn transaction(
        &mut self,
        records: &[&Written<'_>],
        checkpoint: Option<&Checkpoint>,
        owner: &GroupMetadata,
        position: i64,
    ) -> kafka::Result<()> {
        fail_point!("train.publish.before_begin");
        let list = self.position(position)?;
        let offsets = checkpoint.map(|checkpoint| self.offsets(checkpoint)).transpose()?;
        let mut transaction = self.producer.begin()?;
        for record in records {
            fail_point!("train.publish.before_record");
            record.send(&self.settings, &mut transaction, self.partition)?;
        }
        if let Some(offsets) = offsets {
            fail_point!("train.publish.after_records");
            transaction.send_offsets(&offsets, &self.member)?;
            fail_point!("train.publish.after_group_offsets");
        }
        transaction.send_offsets(&list, owner)?;
        fail_point!("train.publish.after_owner_offsets");
        transaction.commit()?;
        fail_point!("train.publish.after_commit");
        Ok(())
    }

    fn offsets(&self, checkpoint: &Checkpoint) -> kafka::Result<Offsets> {
        let metadata = serde_json::to_string(&checkpoint.pointer(self.record.attempt)).unwrap_or_default();
        let places = self.range.partitions.iter().map(|place| place.partition);
        let offsets = places.zip(checkpoint.offsets.iter().copied()).collect();
        kafka::offsets::list(&self.range.topic, &offsets, &metadata)
    }
}

/// Ends what may be left open of a trial in everything that is written under its id: its partition, the offsets of its
/// own group (whose member stands beside the partition), and those of whoever owns it.
pub(super) fn scrub(
    settings: &Settings,
    producer: &mut TransactionalProducer,
    range: &Range,
    (partition, member): (i32, &GroupMetadata),
    owner: Option<(&Offsets, &GroupMetadata)>,
) -> kafka::Result<()> {
    let places = [&settings.topics.output, &settings.topics.trials].map(|topic| (topic.as_str(), partition));
    let starts = range.partitions.iter().map(|place| (place.partition, place.start)).collect();
    let starts = kafka::offsets::list(&range.topic, &starts, "")?;
    let groups: Vec<(&Offsets, &GroupMetadata)> = std::iter::once((&starts, member)).chain(owner).collect();
    exactly_once::scrub(producer, &places, &groups)
}

/// A publication on its way out.
struct Attempts<'a> {
    publisher: &'a mut Publisher,
    records: &'a [&'a Written<'a>],
    checkpoint: Option<&'a Checkpoint>,
}

impl Owner for Attempts<'_> {
    type Done = ();
    type Error = Error;

    const NAME: &'static str = "a trial";

    fn attempt(&mut self) -> Result<kafka::Result<Option<()>>, Error> {
        let Publisher { lease, partition, assignment, .. } = &*self.publisher;
        let (metadata, position) = {
            let state = lease.hold();
            if !state.owns(*partition, *assignment) {
                return Err(Error::Lost);
            }
            let metadata = state.metadata.clone().ok_or(Error::Lost)?;
            (metadata, state.committed.get(partition).copied().unwrap_or(0))
        };
        let timer = self.publisher.metrics.transactions.duration.start_timer();
        let result = self.publisher.transaction(self.records, self.checkpoint, &metadata, position);
        timer.observe_duration();
        Ok(result.map(Some))
    }

    fn prepare(&mut self, next: Next, error: &kafka::Error) -> Result<(), Error> {
        if matches!(next, Next::Replace | Next::Unassigned) {
            // Whoever takes the trial over next looks up what was done.
            return Err(Error::Interrupted(error.clone()));
        }
        match self.checkpoint {
            Some(_) => Ok(self.publisher.confirm()?),
            None => Ok(()),
        }
    }
}
