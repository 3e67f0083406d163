//! Publishes for one trial, as long as this process owns it.
//!
//! Each transaction also commits the trial's partition of `trials` to the group that shares trials out, with the
//! metadata of the assignment under which the trial was started: a process that lost the partition is refused by
//! Kafka, however late it wakes.

use std::sync::Arc;
use std::time::Duration;

use rdkafka::consumer::ConsumerGroupMetadata;
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use serde::{Deserialize, Serialize};

use super::store::Written;
use crate::config::Settings;
use crate::features::range::Range;
use crate::kafka;
use crate::kafka::consumer::Lease;
use crate::kafka::topics::TopicSet;
use crate::kafka::transaction::TransactionalProducer;
use crate::kafka::Class;
use crate::metrics::{Train, TransactionOutcome};

/// How often a transaction is tried again before the trial is interrupted.
const ATTEMPTS_MAX: u32 = 5;

/// Why a publication did not happen.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The partition belongs to somebody else now.
    #[error("the trial belongs to another process now")]
    Lost,
    /// The producer cannot be used any more; ownership must be confirmed before there is another.
    #[error("publishing failed: {0}")]
    Interrupted(#[source] kafka::Error),
}

/// What the trial's group remembers beside its offsets; only a pointer, the manifest is the truth.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pointer {
    /// Run of the trial.
    pub attempt: u32,
    /// Number of the checkpoint that the offsets belong to.
    pub checkpoint: u64,
    /// Epochs completed.
    pub epoch: u64,
    /// Optimizer updates.
    pub step: u64,
}

/// Offsets for the trial's own group, to be committed with a publication.
#[derive(Clone, Debug)]
pub struct GroupOffsets {
    /// In the order of the range's partitions.
    pub offsets: Vec<i64>,
    /// Stored beside each.
    pub pointer: Pointer,
}

/// See the module.
pub struct Publisher {
    settings: Settings,
    producer: TransactionalProducer,
    lease: Arc<Lease>,
    partition: i32,
    /// Number of the assignment under which the trial was started.
    assignment: u64,
    metrics: Train,
}

impl Publisher {
    /// Registers the trial's transactional id, which fences whoever had it.
    ///
    /// # Errors
    /// When the partition is not ours, or Kafka fails.
    pub fn open(
        settings: &Settings,
        topics: &TopicSet,
        metrics: &Train,
        lease: Arc<Lease>,
        (partition, assignment): (i32, u64),
        trial: &str,
    ) -> Result<Self, Error> {
        if lease.hold().partitions.get(&partition) != Some(&assignment) {
            return Err(Error::Lost);
        }
        let limits_bytes = [topics.output.message_bytes_max, topics.trials.message_bytes_max];
        let producer = TransactionalProducer::new(settings, &settings.trial_group(trial), &limits_bytes)
            .map_err(Error::Interrupted)?;
        Ok(Self { settings: settings.clone(), producer, lease, partition, assignment, metrics: metrics.clone() })
    }

    /// Publishes records and the trial's offsets in one transaction; tries again after failures that pass.
    ///
    /// # Errors
    /// [`Error::Lost`] when the partition went to somebody else; then nothing was published.
    pub fn publish(
        &mut self,
        records: &[Written<'_>],
        group: Option<(&GroupOffsets, &Range, &ConsumerGroupMetadata)>,
    ) -> Result<(), Error> {
        let mut attempts = 0;
        loop {
            let (metadata, version, position) = {
                let state = self.lease.hold();
                if state.partitions.get(&self.partition) != Some(&self.assignment) {
                    return Err(Error::Lost);
                }
                let metadata = state.metadata.clone().ok_or(Error::Lost)?;
                (metadata, state.version, state.committed.get(&self.partition).copied().unwrap_or(0))
            };
            let timer = self.metrics.transaction_duration.start_timer();
            let result = self.attempt(records, group, &metadata, position);
            timer.observe_duration();
            let error = match result {
                Ok(()) => {
                    self.count(TransactionOutcome::Committed);
                    return Ok(());
                }
                Err(error) => error,
            };
            attempts += 1;
            tracing::warn!(%error, class = ?error.class(), attempts, "a transaction of a trial failed; {}", error.visibility());
            match error.class() {
                Class::Stale => {
                    self.count(TransactionOutcome::Fenced);
                    // Only the next assignment can tell whether the trial is still ours.
                    let bound = self.settings.kafka.session_timeout + Duration::from_secs(10);
                    if !self.lease.await_change(version, bound) {
                        return Err(Error::Interrupted(error));
                    }
                }
                Class::Retriable | Class::Abort if attempts < ATTEMPTS_MAX => {
                    self.count(TransactionOutcome::Aborted);
                    std::thread::sleep(Duration::from_millis(100) * attempts);
                }
                Class::Fenced => {
                    self.count(TransactionOutcome::Fenced);
                    return Err(Error::Interrupted(error));
                }
                Class::Retriable | Class::Abort | Class::Fatal => {
                    self.count(TransactionOutcome::Failed);
                    return Err(Error::Interrupted(error));
                }
            }
        }
    }

    fn attempt(
        &mut self,
        records: &[Written<'_>],
        group: Option<(&GroupOffsets, &Range, &ConsumerGroupMetadata)>,
        owner: &ConsumerGroupMetadata,
        position: i64,
    ) -> kafka::Result<()> {
        let mut transaction = self.producer.begin()?;
        for record in records {
            record.send(&self.settings, &mut transaction, self.partition)?;
        }
        if let Some((group, range, member)) = group {
            transaction.send_offsets(&group.list(range)?, member)?;
        }
        let mut list = TopicPartitionList::with_capacity(1);
        list.add_partition_offset(&self.settings.topics.trials, self.partition, Offset::Offset(position))
            .map_err(kafka::Error::call("listing offsets"))?;
        transaction.send_offsets(&list, owner)?;
        transaction.commit()
    }

    fn count(&self, outcome: TransactionOutcome) {
        self.metrics.transactions.with_label_values(&[outcome.label()]).inc();
    }
}

impl GroupOffsets {
    fn list(&self, range: &Range) -> kafka::Result<TopicPartitionList> {
        let metadata = serde_json::to_string(&self.pointer).unwrap_or_default();
        let mut list = TopicPartitionList::with_capacity(self.offsets.len());
        for (place, &offset) in range.partitions.iter().zip(&self.offsets) {
            let mut element = list.add_partition(&range.topic, place.partition);
            element.set_offset(Offset::Offset(offset)).map_err(kafka::Error::call("listing offsets"))?;
            element.set_metadata(&metadata);
        }
        Ok(list)
    }
}
