//! The commit thread: one transaction for each chunk, with matrices, dead letters and input offsets.
//!
//! A chunk stays valid as long as the assignments under which it was read stand: after an abort it is sent again,
//! after the producer had to be rebuilt it is sent again from the committed offsets on. So nothing is ever re-read
//! or embedded twice because of a failed transaction.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::Ordering;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use crossbeam_channel::Receiver;
use fail::fail_point;
use rdkafka::message::Message;
use tokio_util::sync::CancellationToken;

use super::context::{Context, Error};
use super::{recover, Chunk, InFlight, Origin, Record};
use crate::coordinates::Positions;
use crate::features::codec::{self, source_digest, DIGEST_HEADER, EMBEDDER_HEADER, SOURCE_HEADER, TRUNCATED_HEADER};
use crate::input::{Invalid, LABEL_HEADER};
use crate::kafka;
use crate::kafka::exactly_once::{self, Next, Owner, Remembered, Terms, REBALANCE};
use crate::kafka::lease::{Lease, LeaseState};
use crate::kafka::offsets::{CommittedWatch, Offsets};
use crate::kafka::topics;
use crate::kafka::transaction::{Outgoing, Transaction, TransactionalProducer};
use crate::kafka::wake::Wake;

/// See the module.
pub(super) struct Committer<'c> {
    context: &'c Context,
    embedder: String,
    lease: Arc<Lease>,
    producer: Option<TransactionalProducer>,
    watch: CommittedWatch,
    features_bytes_max: usize,
    dead_letter_bytes_max: usize,
    /// Something of this chunk was too large, and headers that nobody can measure may be it.
    refused_size: bool,
}

/// What one committed transaction held.
#[derive(Default)]
struct Tally {
    embedded: u64,
    truncated: u64,
    dead: BTreeMap<&'static str, u64>,
    timestamps_ms: Vec<i64>,
    /// Partition → offset committed.
    next: Positions,
}

impl<'c> Committer<'c> {
    pub fn new(context: &'c Context, embedder: String, lease: Arc<Lease>) -> Result<Self, Error> {
        let settings = &context.settings;
        let group = settings.embed_group();
        let mut committer = Self {
            watch: CommittedWatch::new(settings, &group, &context.topics.texts.name)?,
            context,
            embedder,
            lease,
            producer: None,
            features_bytes_max: context.topics.features.message_bytes_max,
            dead_letter_bytes_max: context.topics.dead_letters.message_bytes_max,
            refused_size: false,
        };
        committer.producer = Some(committer.new_producer()?);
        Ok(committer)
    }

    fn new_producer(&self) -> Result<TransactionalProducer, Error> {
        fail_point!("embed.commit.new_producer");
        let limits_bytes = [self.features_bytes_max, self.dead_letter_bytes_max];
        Ok(TransactionalProducer::new(&self.context.settings, &self.context.transactional_id, &limits_bytes)?)
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
        self.refused_size = false;
        let (context, lease) = (self.context, Arc::clone(&self.lease));
        let terms = Terms {
            lease: &lease,
            failures_max: context.settings.run.rebuilds_max.get(),
            patience: context.settings.kafka.session_timeout + REBALANCE,
            metrics: &context.metrics.embed.transactions,
        };
        let mut verdicts = Verdicts { committer: self, records, matrices, done: Positions::default() };
        match exactly_once::commit(&mut verdicts, terms) {
            Ok(None) => Ok(()),
            Ok(Some(tally)) => {
                self.report(&tally);
                fail_point!("embed.commit.after_report");
                Ok(())
            }
            Err(error) => {
                if matches!(error, Error::Kafka(kafka::Error::Undone { .. })) {
                    context.undone.store(true, Ordering::Release);
                }
                Err(error)
            }
        }
    }

    /// Ends whatever the producer before has left open, so that no commit of this one can make it visible.
    fn scrub(&self, producer: &mut TransactionalProducer, partitions: &[i32]) -> kafka::Result<()> {
        let state = self.lease.hold();
        let Some(metadata) = state.metadata.as_deref() else { return Ok(()) };
        let committed = self.watch.read(partitions)?.into_iter();
        let positions: Positions = committed
            .filter(|(partition, _)| state.partitions.contains_key(partition))
            .map(|(partition, committed)| (partition, committed.offset))
            .collect();
        if positions.is_empty() {
            return Ok(());
        }
        recover::scrub(self.context, producer, &positions, &self.context.transactional_id, metadata)
    }

    /// Kafka must hold what was committed last: it removes a topic's offsets with the topic, and a consumer reads on in
    /// a new topic of the same name as if nothing had happened.
    fn confirm(&self, expected: &Positions) -> kafka::Result<()> {
        let (group, topic) = (self.context.settings.embed_group(), &self.context.topics.texts.name);
        let remembered = Remembered { group: &group, topic, expected };
        remembered.confirm(&self.context.settings, Some(&self.watch), |partition| {
            let message = format!(
                "the committed offset of group `{group}` has vanished while the stage was running: the topic was \
                 deleted and created again; what it holds now was not embedded; give it topics of its own \
                 (`topics.features`, `topics.dead_letters`), or delete those with it"
            );
            kafka::Error::data(topic, partition, message)
        })
    }

    fn offsets(&self, next: &Positions) -> kafka::Result<Offsets> {
        let metadata = recover::mark(self.context, &self.context.transactional_id, false);
        kafka::offsets::list(&self.context.topics.texts.name, next, &metadata)
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
        let digest = source_digest(message.payload());
        let not_finite = |matrix| codec::decode(matrix).ok()?.first_not_finite(usize::MAX);
        let invalid = match (&record.content, matrix.map(|matrix| (matrix, not_finite(matrix)))) {
            (Ok(_), Some((_, Some(row)))) => Invalid::NotFinite { row },
            (Ok(text), Some((matrix, None))) => {
                let mut headers: Vec<(&str, Option<&[u8]>)> = Vec::with_capacity(5);
                headers.extend(text.label.as_deref().map(|label| (LABEL_HEADER, Some(label.as_bytes()))));
                headers.push((EMBEDDER_HEADER, Some(self.embedder.as_bytes())));
                headers.push((SOURCE_HEADER, Some(source.as_bytes())));
                headers.push((DIGEST_HEADER, Some(digest.as_bytes())));
                headers.extend(text.tokenized.truncated.then_some((TRUNCATED_HEADER, Some(b"true".as_slice()))));
                let outgoing = Outgoing {
                    topic: &self.context.topics.features.name,
                    partition: message.partition(),
                    key: message.key().or(text.id.as_deref()),
                    value: Some(matrix),
                    inherited: None,
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
        self.send_dead_letter(transaction, record, &invalid, &source, &digest)
    }

    /// The input's bytes and headers, untouched, and why (KIP-1034). What does not fit goes without its value.
    fn send_dead_letter(
        &self,
        transaction: &mut Transaction<'_>,
        record: &Record,
        invalid: &Invalid,
        source: &str,
        digest: &str,
    ) -> kafka::Result<()> {
        let message = &record.message;
        let (partition, offset, cause) =
            (message.partition().to_string(), message.offset().to_string(), invalid.to_string());
        let added: [(&str, Option<&[u8]>); 8] = [
            ("__streams.errors.exception", Some(invalid.reason().as_bytes())),
            ("__streams.errors.message", Some(cause.as_bytes())),
            ("__streams.errors.stacktrace", Some(b"")),
            ("__streams.errors.topic", Some(message.topic().as_bytes())),
            ("__streams.errors.partition", Some(partition.as_bytes())),
            ("__streams.errors.offset", Some(offset.as_bytes())),
            (SOURCE_HEADER, Some(source.as_bytes())),
            (DIGEST_HEADER, Some(digest.as_bytes())),
        ];
        let topic = &self.context.topics.dead_letters;
        let mut outgoing = Outgoing {
            topic: &topic.name,
            partition: message.partition() % topic.partitions,
            key: message.key(),
            value: message.payload(),
            inherited: message.headers(),
            headers: &added,
        };
        let immeasurable = matches!(invalid, Invalid::HeaderName { .. }) && self.refused_size;
        if outgoing.batch_bytes() > self.dead_letter_bytes_max || immeasurable {
            outgoing = Outgoing { value: Some(b""), inherited: None, ..outgoing };
        }
        if outgoing.batch_bytes() > self.dead_letter_bytes_max {
            outgoing.key = None;
        }
        transaction.send(&outgoing)
    }

    /// Somebody lowered `max.message.bytes` while we run.
    fn refresh_limits(&mut self) -> Result<(), Error> {
        let before = [self.features_bytes_max, self.dead_letter_bytes_max];
        let names = [self.context.topics.features.name.as_str(), self.context.topics.dead_letters.name.as_str()];
        let configs = topics::describe(&self.context.settings, names.into_iter())?;
        let limit = |name: &str| configs.get(name).and_then(|config| config.get("max.message.bytes")?.parse().ok());
        if let Some(bytes) = limit(names[0]) {
            self.features_bytes_max = bytes;
        }
        if let Some(bytes) = limit(names[1]) {
            self.dead_letter_bytes_max = bytes;
        }
        if before != [self.features_bytes_max, self.dead_letter_bytes_max] {
            // It makes batches as large as the old limits allowed.
            self.producer = None;
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

/// The verdicts on a chunk, on their way out.
struct Verdicts<'a, 'c> {
    committer: &'a mut Committer<'c>,
    records: &'a [Record],
    matrices: &'a [Option<Vec<u8>>],
    /// After a producer died, what it committed last is not known: offsets below these are done.
    done: Positions,
}

impl Owner for Verdicts<'_, '_> {
    type Done = Tally;
    type Error = Error;

    const NAME: &'static str = "the embed stage";

    fn attempt(&mut self) -> Result<kafka::Result<Option<Tally>>, Error> {
        if self.committer.producer.is_none() {
            if let Err(error) = self.replace_producer()? {
                return Ok(Err(error));
            }
        }
        let lease = Arc::clone(&self.committer.lease);
        let mut state = lease.hold();
        let timer = self.committer.context.metrics.embed.transactions.duration.start_timer();
        let result = self.transaction(&state);
        timer.observe_duration();
        match &result {
            Ok(Some(tally)) => state.committed.extend(&tally.next),
            // All that is ours was done by the producer before.
            Ok(None) => raise(&mut state, self.records.iter().map(Record::origin), &self.done),
            Err(_) => {}
        }
        Ok(result)
    }

    fn prepare(&mut self, next: Next, error: &kafka::Error) -> Result<(), Error> {
        if error.code() == Some(kafka::Code::MessageSizeTooLarge) {
            self.committer.refused_size = true;
            self.committer.refresh_limits()?;
        }
        if next == Next::Replace {
            self.committer.producer = None;
        }
        Ok(())
    }
}

impl Verdicts<'_, '_> {
    /// A producer in the place of one that died, and what that one had done of these records.
    fn replace_producer(&mut self) -> Result<kafka::Result<()>, Error> {
        let committer = &mut *self.committer;
        let mut producer = committer.new_producer()?;
        let partitions: BTreeSet<i32> = self.records.iter().map(|record| record.message.partition()).collect();
        let partitions: Vec<i32> = partitions.into_iter().collect();
        let scrubbed = committer.scrub(&mut producer, &partitions);
        let found = scrubbed.and_then(|()| recover::committed(committer.context, &partitions));
        Ok(found.map(|found| {
            self.done = found;
            committer.producer = Some(producer);
        }))
    }

    /// One transaction; `None` when nothing of the chunk is ours any more.
    fn transaction(&mut self, state: &LeaseState) -> kafka::Result<Option<Tally>> {
        let committer = &mut *self.committer;
        let ours = |(record, _): &(&Record, _)| is_ours(state, record.origin(), &self.done);
        let mut live = self.records.iter().zip(self.matrices).filter(ours).peekable();
        if live.peek().is_none() {
            return Ok(None);
        }
        committer.confirm(&state.committed)?;
        let Some(metadata) = state.metadata.as_deref() else {
            return Err(kafka::Error::no_member(&committer.context.topics.texts.name));
        };
        let Some(mut producer) = committer.producer.take() else { return Ok(None) };
        let result = (|| {
            fail_point!("embed.commit.before_begin");
            let mut transaction = producer.begin()?;
            fail_point!("embed.commit.after_begin");
            let mut tally = Tally::default();
            for (record, matrix) in live {
                committer.send(&mut transaction, record, matrix.as_deref(), &mut tally)?;
                fail_point!("embed.commit.between_sends");
                let _ = tally.next.insert(record.message.partition(), record.message.offset() + 1);
                tally.timestamps_ms.extend(record.message.timestamp().to_millis());
            }
            fail_point!("embed.commit.after_sends");
            transaction.send_offsets(&committer.offsets(&tally.next)?, metadata)?;
            fail_point!("embed.commit.after_offsets");
            transaction.commit()?;
            fail_point!("embed.commit.after_commit");
            Ok(Some(tally))
        })();
        committer.producer = Some(producer);
        result
    }
}

/// Whether a record is still to be committed by us: its partition is held under the assignment that brought the record,
/// and a producer that died has not committed it.
fn is_ours(state: &LeaseState, origin: Origin, done: &Positions) -> bool {
    state.owns(origin.partition, origin.assignment)
        && done.get(&origin.partition).is_none_or(|&offset| origin.offset >= offset)
}

/// Notes what had been committed of these records before anybody knew.
fn raise(state: &mut LeaseState, origins: impl Iterator<Item = Origin>, done: &Positions) {
    for Origin { partition, assignment, .. } in origins {
        if state.owns(partition, assignment) {
            if let (Some(committed), Some(&done)) = (state.committed.get_mut(&partition), done.get(&partition)) {
                *committed = done.max(*committed);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn origin(partition: i32, offset: i64, assignment: u64) -> Origin {
        Origin { partition, offset, assignment }
    }

    /// Partition 0 under assignment 1, partition 1 under assignment 2.
    fn state() -> LeaseState {
        let (partitions, committed) = (BTreeMap::from([(0, 1), (1, 2)]), Positions::from([(0, 10), (1, 20)]));
        LeaseState { partitions, committed, ..LeaseState::default() }
    }

    #[test]
    fn what_a_revocation_took_is_left_out() {
        let (state, none) = (state(), Positions::default());
        assert!(is_ours(&state, origin(0, 10, 1), &none));
        assert!(!is_ours(&state, origin(2, 10, 1), &none), "it went");
        assert!(!is_ours(&state, origin(1, 20, 1), &none), "it went, and came back under another assignment");
    }

    #[test]
    fn what_a_dead_producer_has_committed_is_left_out_and_noted() {
        let (mut state, done) = (state(), Positions::from([(0, 12), (1, 25), (2, 7)]));
        let ours: Vec<i64> = (10..14).filter(|&offset| is_ours(&state, origin(0, offset, 1), &done)).collect();
        assert_eq!(ours, [12, 13]);
        raise(&mut state, [origin(0, 11, 1), origin(1, 24, 1), origin(2, 6, 1)].into_iter(), &done);
        assert_eq!(state.committed, Positions::from([(0, 12), (1, 20)]), "what is not ours is not noted");
        let earlier = Positions::from([(0, 3)]);
        raise(&mut state, [origin(0, 11, 1)].into_iter(), &earlier);
        assert_eq!(state.committed[&0], 12, "never backwards");
    }
}
