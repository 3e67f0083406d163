//! The commit thread: one transaction for each chunk, with matrices, dead letters and input offsets.
//!
//! A chunk stays valid as long as the assignments under which it was read stand: after an abort it is sent again,
//! after the producer had to be rebuilt it is sent again from the committed offsets on. So nothing is ever re-read
//! or embedded twice because of a failed transaction.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crossbeam_channel::Receiver;
use rdkafka::error::RDKafkaErrorCode;
use rdkafka::message::{Headers, Message};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use tokio_util::sync::CancellationToken;

use super::stage::{Context, Error, InFlight};
use super::{recover, Chunk, Record};
use crate::features::codec::{EMBEDDER_HEADER, SOURCE_HEADER, TRUNCATED_HEADER};
use crate::input::{Invalid, LABEL_HEADER};
use crate::kafka;
use crate::kafka::consumer::{Lease, LeaseState, Wake};
use crate::kafka::topics;
use crate::kafka::transaction::{Outgoing, Transaction, TransactionalProducer};
use crate::kafka::Class;
use crate::metrics::TransactionOutcome;

/// See the module.
pub(super) struct Committer<'c> {
    context: &'c Context,
    embedder: String,
    lease: Arc<Lease>,
    transactional_id: String,
    producer: Option<TransactionalProducer>,
    features_bytes_max: usize,
    dead_letter_bytes_max: usize,
}

/// What one committed transaction held.
#[derive(Default)]
struct Tally {
    embedded: u64,
    truncated: u64,
    dead: BTreeMap<&'static str, u64>,
    timestamps_ms: Vec<i64>,
    /// Partition → offset committed.
    next: BTreeMap<i32, i64>,
}

impl<'c> Committer<'c> {
    pub fn new(context: &'c Context, embedder: String, lease: Arc<Lease>) -> Result<Self, Error> {
        let settings = &context.settings;
        let instance = settings.kafka.group_instance_id.clone().unwrap_or_else(|| uuid::Uuid::new_v4().to_string());
        let mut committer = Self {
            context,
            embedder,
            lease,
            transactional_id: format!("{}.{instance}", settings.embed_group()),
            producer: None,
            features_bytes_max: context.topics.features.message_bytes_max,
            dead_letter_bytes_max: context.topics.dead_letters.message_bytes_max,
        };
        committer.producer = Some(committer.new_producer()?);
        Ok(committer)
    }

    fn new_producer(&self) -> Result<TransactionalProducer, Error> {
        let limits_bytes = [self.features_bytes_max, self.dead_letter_bytes_max];
        Ok(TransactionalProducer::new(&self.context.settings, &self.transactional_id, &limits_bytes)?)
    }

    /// Commits chunk after chunk, in the order in which they were formed, until the group is `left`.
    pub fn run(
        mut self,
        chunks: &Receiver<Chunk>,
        in_flight: &InFlight,
        left: &CancellationToken,
        wake: &Wake,
    ) -> Result<(), Error> {
        while let Ok(chunk) = chunks.recv() {
            let mut matrices: Vec<Option<Vec<u8>>> = Vec::new();
            matrices.resize_with(chunk.records.len(), || None);
            for _ in 0..chunk.batches {
                let result = match chunk.results.recv() {
                    Ok(result) => result,
                    Err(_) if left.is_cancelled() => return Ok(()),
                    Err(_) => return Err(Error::Thread("inference")),
                };
                for (index, matrix) in result.indices.into_iter().zip(result.matrices?) {
                    matrices[index as usize] = Some(matrix);
                }
            }
            self.commit(&chunk.records, &matrices)?;
            in_flight.leave();
            wake.notify();
        }
        Ok(())
    }

    fn commit(&mut self, records: &[Record], matrices: &[Option<Vec<u8>>]) -> Result<(), Error> {
        let attempts_max = self.context.settings.run.rebuilds_max.get();
        let mut attempts = 0;
        // After a producer died, what it committed last is not known: offsets below these are done.
        let mut done: BTreeMap<i32, i64> = BTreeMap::new();
        loop {
            let lease = Arc::clone(&self.lease);
            let mut state = lease.hold();
            let version = state.version;
            let started = Instant::now();
            let result = self.attempt(records, matrices, &state, &done);
            if let Ok(Some(tally)) = &result {
                state.committed.extend(&tally.next);
            }
            drop(state);
            let metrics = &self.context.metrics.embed;
            metrics.transaction_duration.observe(started.elapsed().as_secs_f64());
            let count = |outcome: TransactionOutcome| metrics.transactions.with_label_values(&[outcome.label()]).inc();
            let error = match result {
                Ok(None) => return Ok(()),
                Ok(Some(tally)) => {
                    count(TransactionOutcome::Committed);
                    self.report(&tally);
                    return Ok(());
                }
                Err(error) => error,
            };
            attempts += 1;
            tracing::warn!(%error, class = ?error.class(), attempts, "a transaction of the embed stage failed; {}", error.visibility());
            match error.class() {
                Class::Stale => {
                    count(TransactionOutcome::Fenced);
                    let bound = self.context.settings.kafka.session_timeout + Duration::from_secs(5);
                    if lease.await_change(version, bound) {
                        continue; // the group has moved on; that is no failure
                    }
                }
                Class::Retriable | Class::Abort => {
                    count(TransactionOutcome::Aborted);
                    if error.code() == Some(RDKafkaErrorCode::MessageSizeTooLarge) {
                        self.refresh_limits()?;
                    }
                    std::thread::sleep(Duration::from_millis(100) * attempts);
                }
                Class::Fenced | Class::Fatal => {
                    count(if error.class() == Class::Fenced {
                        TransactionOutcome::Fenced
                    } else {
                        TransactionOutcome::Failed
                    });
                    self.producer = None;
                }
            }
            if attempts >= attempts_max {
                return Err(error.into());
            }
            if self.producer.is_none() {
                self.producer = Some(self.new_producer()?);
                let mut partitions: Vec<i32> = records.iter().map(|record| record.message.partition()).collect();
                partitions.sort_unstable();
                partitions.dedup();
                done = recover::committed(self.context, &partitions)?;
            }
        }
    }

    /// One transaction; `None` when nothing of the chunk is ours any more.
    fn attempt(
        &mut self,
        records: &[Record],
        matrices: &[Option<Vec<u8>>],
        state: &LeaseState,
        done: &BTreeMap<i32, i64>,
    ) -> kafka::Result<Option<Tally>> {
        let ours = |record: &Record| {
            let partition = record.message.partition();
            state.partitions.get(&partition) == Some(&record.assignment)
                && done.get(&partition).is_none_or(|&offset| record.message.offset() >= offset)
        };
        let Some(metadata) = state.metadata.as_deref() else { return Ok(None) };
        let mut live = records.iter().zip(matrices).filter(|(record, _)| ours(record)).peekable();
        if live.peek().is_none() {
            return Ok(None);
        }
        let Some(mut producer) = self.producer.take() else { return Ok(None) };
        let result = (|| {
            let mut transaction = producer.begin()?;
            let mut tally = Tally::default();
            for (record, matrix) in live {
                self.send(&mut transaction, record, matrix.as_deref(), &mut tally)?;
                let _ = tally.next.insert(record.message.partition(), record.message.offset() + 1);
                tally.timestamps_ms.extend(record.message.timestamp().to_millis());
            }
            transaction.send_offsets(&self.offsets(&tally.next)?, metadata)?;
            transaction.commit()?;
            Ok(Some(tally))
        })();
        self.producer = Some(producer);
        result
    }

    fn offsets(&self, next: &BTreeMap<i32, i64>) -> kafka::Result<TopicPartitionList> {
        let mut list = TopicPartitionList::with_capacity(next.len());
        for (&partition, &offset) in next {
            list.add_partition_offset(&self.context.topics.texts.name, partition, Offset::Offset(offset))
                .map_err(kafka::Error::call("listing offsets"))?;
        }
        Ok(list)
    }

    fn send(
        &self,
        transaction: &mut Transaction<'_>,
        record: &Record,
        matrix: Option<&[u8]>,
        tally: &mut Tally,
    ) -> kafka::Result<()> {
        let message = &record.message;
        let source = format!("{}/{}/{}", message.topic(), message.partition(), message.offset());
        let invalid = match (&record.content, matrix) {
            (Ok(text), Some(matrix)) => {
                let mut headers: Vec<(&str, Option<&[u8]>)> = Vec::with_capacity(4);
                headers.extend(text.label.as_deref().map(|label| (LABEL_HEADER, Some(label.as_bytes()))));
                headers.push((EMBEDDER_HEADER, Some(self.embedder.as_bytes())));
                headers.push((SOURCE_HEADER, Some(source.as_bytes())));
                headers.extend(text.tokenized.truncated.then_some((TRUNCATED_HEADER, Some(b"true".as_slice()))));
                let outgoing = Outgoing {
                    topic: &self.context.topics.features.name,
                    partition: message.partition(),
                    key: message.key().or(text.id.as_deref()),
                    value: Some(matrix),
                    headers: &headers,
                };
                let bytes = outgoing.batch_bytes();
                if bytes <= self.features_bytes_max {
                    tally.embedded += 1;
                    tally.truncated += u64::from(text.tokenized.truncated);
                    return transaction.send(&outgoing);
                }
                Invalid::MatrixTooLarge { bytes, max: self.features_bytes_max }
            }
            (Ok(_), None) => Invalid::NoWords,
            (Err(invalid), _) => invalid.clone(),
        };
        *tally.dead.entry(invalid.reason()).or_default() += 1;
        self.send_dead_letter(transaction, record, &invalid, &source)
    }

    /// The input's bytes and headers, untouched, and why (KIP-1034). What does not fit goes without its value.
    fn send_dead_letter(
        &self,
        transaction: &mut Transaction<'_>,
        record: &Record,
        invalid: &Invalid,
        source: &str,
    ) -> kafka::Result<()> {
        let message = &record.message;
        let (partition, offset, cause) =
            (message.partition().to_string(), message.offset().to_string(), invalid.to_string());
        let added: [(&str, Option<&[u8]>); 7] = [
            ("__streams.errors.exception", Some(invalid.reason().as_bytes())),
            ("__streams.errors.message", Some(cause.as_bytes())),
            ("__streams.errors.stacktrace", Some(b"")),
            ("__streams.errors.topic", Some(message.topic().as_bytes())),
            ("__streams.errors.partition", Some(partition.as_bytes())),
            ("__streams.errors.offset", Some(offset.as_bytes())),
            (SOURCE_HEADER, Some(source.as_bytes())),
        ];
        let mut headers: Vec<(&str, Option<&[u8]>)> = Vec::new();
        if let Some(original) = message.headers() {
            headers.extend(original.iter().map(|header| (header.key, header.value)));
        }
        headers.extend(added);
        let topic = &self.context.topics.dead_letters;
        let mut outgoing = Outgoing {
            topic: &topic.name,
            partition: message.partition() % topic.partitions,
            key: message.key(),
            value: message.payload(),
            headers: &headers,
        };
        if outgoing.batch_bytes() > self.dead_letter_bytes_max {
            outgoing = Outgoing { value: Some(b""), headers: &added, ..outgoing };
        }
        if outgoing.batch_bytes() > self.dead_letter_bytes_max {
            outgoing.key = None;
        }
        transaction.send(&outgoing)
    }

    /// Somebody lowered `max.message.bytes` while we run.
    fn refresh_limits(&mut self) -> Result<(), Error> {
        let names = [self.context.topics.features.name.as_str(), self.context.topics.dead_letters.name.as_str()];
        let configs = topics::describe(&self.context.settings, names.into_iter())?;
        let limit = |name: &str| configs.get(name).and_then(|config| config.get("max.message.bytes")?.parse().ok());
        if let Some(bytes) = limit(names[0]) {
            self.features_bytes_max = bytes;
        }
        if let Some(bytes) = limit(names[1]) {
            self.dead_letter_bytes_max = bytes;
        }
        Ok(())
    }

    fn report(&self, tally: &Tally) {
        let metrics = &self.context.metrics.embed;
        metrics.features.inc_by(tally.embedded);
        metrics.truncated.inc_by(tally.truncated);
        for (reason, count) in &tally.dead {
            metrics.dead_letters.with_label_values(&[reason]).inc_by(*count);
        }
        let now_ms = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64() * 1e3);
        for &timestamp_ms in &tally.timestamps_ms {
            metrics.latency.observe(((now_ms - timestamp_ms as f64) / 1e3).max(0.0));
        }
        self.context.status.add_verdicts(tally.embedded, tally.dead.values().sum());
    }
}
