//! Members of groups, and what they own.
//!
//! A member polls two kinds of queue: the group's, which carries rebalances and errors, and one for each
//! partition, which carries records. So a full pipeline stops taking records without ever missing a rebalance,
//! and nothing needs pausing.

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};
use std::sync::Arc;
use std::time::{Duration, Instant};

use fail::fail_point;
use parking_lot::Mutex;
use rdkafka::client::ClientContext;
use rdkafka::config::{ClientConfig, FromClientConfigAndContext, RDKafkaLogLevel};
use rdkafka::consumer::base_consumer::PartitionQueue;
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer, ConsumerContext, ConsumerGroupMetadata};
use rdkafka::error::KafkaError;
use rdkafka::message::{BorrowedMessage, Message, OwnedMessage};
use rdkafka::statistics::{Broker, Partition, Statistics};
use rdkafka::types::RDKafkaRespErr;

use super::client;
use super::error::{Class, Error, Result};
use super::lease::Lease;
use super::offsets::{self, committed_of, Committed, Offsets};
use super::reader::Polled;
use super::wake::Wake;
use crate::coordinates::Positions;

/// What a group knows a member by.
pub type GroupMetadata = ConsumerGroupMetadata;

/// What a group wants of its member.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Rebalance {
    /// Partitions come; answered with [`Member::take`], even when the list is empty.
    Assigned(Vec<i32>),
    /// Partitions go, and are still ours until [`Member::release`].
    Revoked(Vec<i32>),
    /// Partitions have gone already: whoever owns them now may be at work. Answered with [`Member::release`].
    Lost(Vec<i32>),
}

/// A member of a group that shares the partitions of one topic out.
pub struct Member {
    // Before the consumer: a queue must not outlive it.
    queues: BTreeMap<i32, PartitionQueue<MemberContext>>,
    consumer: Arc<BaseConsumer<MemberContext>>,
    topic: String,
    lease: Arc<Lease>,
    wake: Wake,
    assignments: u64,
    /// Rebalances that wait for their answers: partitions may be lost while it is asked to give some back.
    owed: Vec<Rebalance>,
}

impl Member {
    /// Joins the group. `wake` is notified whenever there is something to poll.
    ///
    /// # Errors
    /// When the settings do not make a consumer.
    pub fn join(config: &ClientConfig, topic: &str, wake: Wake) -> Result<Self> {
        let context = MemberContext::default();
        let mut consumer = BaseConsumer::from_config_and_context(config, context)
            .map_err(Error::call(format!("creating the consumer of topic `{topic}`")))?;
        let waker = wake.clone();
        consumer.set_nonempty_callback(move || waker.notify());
        consumer.subscribe(&[topic]).map_err(Error::call(format!("subscribing to topic `{topic}`")))?;
        Ok(Self {
            queues: BTreeMap::new(),
            consumer: Arc::new(consumer),
            topic: topic.to_owned(),
            lease: Arc::default(),
            wake,
            assignments: 0,
            owed: Vec::new(),
        })
    }

    /// What this member owns.
    pub fn lease(&self) -> &Arc<Lease> {
        &self.lease
    }

    /// Serves the group's queue once; returns the oldest rebalance that waits for an answer.
    ///
    /// # Errors
    /// What librdkafka reports of the consumer as a whole; most of it passes, the caller's class decides.
    pub fn poll_group(&mut self) -> Result<Option<Rebalance>> {
        match self.consumer.poll(Duration::ZERO) {
            None => {}
            Some(Ok(message)) => {
                // Queues are split before their partition is assigned, so this cannot carry records.
                debug_assert!(false, "record {message:?} outside its partition's queue");
            }
            Some(Err(KafkaError::PartitionEOF(_))) => {}
            Some(Err(source)) => {
                return Err(Error::Call { action: format!("consuming topic `{}`", self.topic), source })
            }
        }
        let rebalance = self.consumer.context().rebalances.lock().pop_front();
        self.owed.extend(rebalance.clone());
        Ok(rebalance)
    }

    /// Begins to read newly assigned partitions at these positions.
    ///
    /// # Errors
    /// When librdkafka refuses; the group is then left to rebalance again.
    pub fn take(&mut self, positions: &Positions) -> Result<()> {
        let list = offsets::list(&self.topic, positions, "")?;
        for &partition in positions.keys() {
            if let Some(mut queue) = self.consumer.split_partition_queue(&self.topic, partition) {
                let waker = self.wake.clone();
                queue.set_nonempty_callback(move || waker.notify());
                drop(self.queues.insert(partition, queue));
            }
        }
        fail_point!("kafka.member.take");
        // The member waits for this answer, so its generation cannot move on in between.
        let metadata = self.consumer.group_metadata().filter(|_| !self.consumer.assignment_lost()).map(Arc::new);
        self.consumer
            .incremental_assign(&list)
            .map_err(Error::call(format!("taking partitions of topic `{}`", self.topic)))?;
        self.owed.retain(|owed| !matches!(owed, Rebalance::Assigned(_)));
        self.assignments += 1;
        let number = self.assignments;
        self.lease.change(|state| {
            state.metadata = metadata;
            state.partitions.extend(positions.keys().map(|&partition| (partition, number)));
            state.committed.extend(positions);
        });
        Ok(())
    }

    /// Takes the proof of ownership anew while [`Rebalance::Revoked`] waits for its answer.
    ///
    /// The group has a new generation by then, so the old proof is refused, but gives the partitions to nobody before
    /// they are released. Last words can so be committed. Nothing happens when they are lost already.
    pub fn renew(&mut self) {
        fail_point!("kafka.member.renew");
        let metadata = self.consumer.group_metadata().map(Arc::new);
        if !self.consumer.assignment_lost() {
            self.lease.change(|state| state.metadata = metadata);
        }
    }

    /// Gives partitions back; waits for whoever holds the lease.
    ///
    /// # Errors
    /// When librdkafka refuses.
    pub fn release(&mut self, partitions: &[i32]) -> Result<()> {
        fail_point!("kafka.member.release");
        self.lease.change(|state| {
            state.partitions.retain(|partition, _| !partitions.contains(partition));
            state.committed.retain(|partition, _| !partitions.contains(partition));
        });
        for partition in partitions {
            drop(self.queues.remove(partition));
            let _ = self.consumer.context().polled.lock().remove(partition);
        }
        self.consumer
            .incremental_unassign(&self.list(partitions))
            .map_err(Error::call(format!("releasing partitions of topic `{}`", self.topic)))?;
        self.owed.retain(|owed| match owed {
            Rebalance::Assigned(_) => true,
            Rebalance::Revoked(gone) | Rebalance::Lost(gone) => !gone.iter().all(|gone| partitions.contains(gone)),
        });
        Ok(())
    }

    fn list(&self, partitions: &[i32]) -> Offsets {
        offsets::without_offsets(&self.topic, partitions)
    }

    /// What of a partition is already here; nothing, if nothing is.
    ///
    /// # Errors
    /// What librdkafka says of the partition; the caller decides by [`Error::passes_by_itself`].
    pub fn poll_partition(&self, partition: i32) -> Result<Option<Polled<BorrowedMessage<'_>>>> {
        let Some(polled) = self.queues.get(&partition).and_then(|queue| queue.poll(Duration::ZERO)) else {
            return Ok(None);
        };
        if let Ok(message) = &polled {
            let _ = self.consumer.context().polled.lock().insert(partition, message.offset() + 1);
        }
        Polled::of(polled, &self.topic, partition).map(Some)
    }

    /// Offsets committed for partitions; a partition without one is absent from the answer.
    ///
    /// # Errors
    /// When the coordinator does not answer, or a pending transaction keeps the offsets unstable for longer than
    /// `bound`.
    pub fn committed(&self, partitions: &[i32], bound: Duration) -> Result<BTreeMap<i32, Committed>> {
        committed_of(&self.consumer, &self.topic, partitions, bound)
    }

    /// Commits where partitions begin that have just been assigned.
    ///
    /// # Errors
    /// When the coordinator does not answer or refuses.
    pub fn commit(&self, positions: &Positions, metadata: &str) -> Result<()> {
        // The next generation may be under way while this one still waits for its answer.
        const PATIENCE: Duration = Duration::from_secs(1);
        if positions.is_empty() {
            return Ok(());
        }
        let list = offsets::list(&self.topic, positions, metadata)?;
        let started = Instant::now();
        loop {
            let committed = self.consumer.commit(&list, CommitMode::Sync);
            let action = format!("committing the first offsets of topic `{}`", self.topic);
            match committed.map_err(Error::call(action)) {
                Err(error) if error.class() == Class::Stale && started.elapsed() < PATIENCE => {
                    std::thread::sleep(Duration::from_millis(50));
                }
                result => return result,
            }
        }
    }

    /// Proof of being a member while a rebalance waits for its answer.
    ///
    /// # Errors
    /// When this process is no member.
    pub fn metadata(&self) -> Result<ConsumerGroupMetadata> {
        let metadata = self.consumer.group_metadata();
        metadata.ok_or_else(|| Error::no_member(&self.topic))
    }

    /// Fails once the topic has more partitions than it had when this process started: they are nobody's to read here,
    /// and what goes with them (`partner`, which must have as many) may not have them.
    ///
    /// # Errors
    /// [`Error::Topics`], with the way out.
    pub fn check_partitions(&self, expected: i32, partner: &str) -> Result<()> {
        let (topic, found) = (&self.topic, self.consumer.context().partitions.load(Ordering::Acquire));
        if found <= expected {
            return Ok(());
        }
        Err(Error::Topics(format!(
            "topic `{topic}` has {found} partitions now, and had {expected} when this process started; raise \
             `{partner}` to {found}, too (`kafka-topics.sh --alter --topic {partner} --partitions {found}`), and start \
             again: everything goes on where it is, and nothing is lost meanwhile"
        )))
    }

    /// Whether some broker is connected, as librdkafka saw it last (once a second).
    pub fn connected(&self) -> bool {
        !self.consumer.context().disconnected.load(Ordering::Acquire)
    }
}

/// What the source of a stage asks of its [`Member`], method by method: with another in its place the source can be
/// stepped without a broker.
pub trait GroupMember {
    fn poll_group(&mut self) -> Result<Option<Rebalance>>;

    fn take(&mut self, positions: &Positions) -> Result<()>;

    fn release(&mut self, partitions: &[i32]) -> Result<()>;

    fn poll_partition(&self, partition: i32) -> Result<Option<Polled<OwnedMessage>>>;

    fn check_partitions(&self, expected: i32, partner: &str) -> Result<()>;

    /// Partitions owned, with the number of the assignment that brought each.
    fn owned(&self) -> BTreeMap<i32, u64>;

    /// Last stable offset less committed offset, of each owned partition; 0 when no record is left.
    ///
    /// librdkafka learns the first once a second; until it has, a partition is absent. All are while somebody commits:
    /// that may take long, and whoever polls the group must not wait for it.
    fn lag(&self) -> BTreeMap<i32, i64>;

    fn connected(&self) -> bool;
}

impl GroupMember for Member {
    fn poll_group(&mut self) -> Result<Option<Rebalance>> {
        Self::poll_group(self)
    }

    fn take(&mut self, positions: &Positions) -> Result<()> {
        Self::take(self, positions)
    }

    fn release(&mut self, partitions: &[i32]) -> Result<()> {
        Self::release(self, partitions)
    }

    fn poll_partition(&self, partition: i32) -> Result<Option<Polled<OwnedMessage>>> {
        Ok(Self::poll_partition(self, partition)?.map(|polled| match polled {
            Polled::Record(message) => Polled::Record(message.detach()),
            Polled::End => Polled::End,
            Polled::OutOfLog => Polled::OutOfLog,
        }))
    }

    fn check_partitions(&self, expected: i32, partner: &str) -> Result<()> {
        Self::check_partitions(self, expected, partner)
    }

    fn owned(&self) -> BTreeMap<i32, u64> {
        self.lease.hold().partitions.clone()
    }

    fn lag(&self) -> BTreeMap<i32, i64> {
        let Some(state) = self.lease.try_hold() else { return BTreeMap::new() };
        let (ends, polled) = (self.consumer.context().stable_ends.lock(), self.consumer.context().polled.lock());
        let lag = |(partition, committed): (&i32, &i64)| {
            let end = ends.get(partition)?;
            let end = if end.reached { polled.get(partition).copied().unwrap_or(0) } else { end.offset };
            Some((*partition, (end - committed).max(0)))
        };
        state.committed.iter().filter_map(lag).collect()
    }

    fn connected(&self) -> bool {
        Self::connected(self)
    }
}

impl Drop for Member {
    /// Leaves the group; what is still owned is given back without further ado.
    fn drop(&mut self) {
        self.lease.change(|state| state.partitions.clear());
        // Closing waits for an answer to the last rebalance, and nobody is left to give it but the callback.
        self.consumer.context().leaving.store(true, Ordering::Release);
        // It waits for the answers that are still owed, too, also to what was not even taken note of.
        let unseen = std::mem::take(&mut *self.consumer.context().rebalances.lock());
        for owed in std::mem::take(&mut self.owed).into_iter().chain(unseen) {
            let answered = match owed {
                Rebalance::Assigned(_) => self.consumer.incremental_assign(&self.list(&[])),
                Rebalance::Revoked(gone) | Rebalance::Lost(gone) => {
                    self.consumer.incremental_unassign(&self.list(&gone))
                }
            };
            if let Err(error) = answered {
                tracing::debug!(%error, "answering while leaving");
            }
        }
    }
}

/// Queues rebalances for the polling thread to answer.
#[derive(Default)]
struct MemberContext {
    rebalances: Mutex<VecDeque<Rebalance>>,
    leaving: AtomicBool,
    stable_ends: Mutex<BTreeMap<i32, StableEnd>>,
    /// Partition → offset after the last record that was polled.
    polled: Mutex<BTreeMap<i32, i64>>,
    disconnected: AtomicBool,
    /// Of the topic, as metadata had it last.
    partitions: AtomicI32,
}

impl ClientContext for MemberContext {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        client::log(level, facility, message);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        tracing::debug!(target: "rdkafka", %error, reason, "consumer error");
    }

    fn stats(&self, statistics: Statistics) {
        // Bootstrap entries have no id; before the first answer there are only those. The coordinator is listed twice,
        // and under that name it may take its time: a member that joins is answered when all others have joined.
        let is_broker = |broker: &&Broker| broker.nodeid >= 0 && broker.source != "logical";
        let mut brokers = statistics.brokers.values().filter(is_broker).peekable();
        let away = brokers.peek().is_some() && !brokers.any(answers);
        self.disconnected.store(away, Ordering::Release);
        let count = statistics.topics.values().map(|topic| topic.partitions.keys().filter(|&&id| id >= 0).count());
        self.partitions.store(count.max().and_then(|count| count.try_into().ok()).unwrap_or(0), Ordering::Release);
        let partitions = statistics.topics.values().flat_map(|topic| topic.partitions.values());
        let known = partitions.filter(|partition| partition.ls_offset >= 0);
        *self.stable_ends.lock() = known.map(|partition| (partition.partition, StableEnd::of(partition))).collect();
    }
}

/// Whether a broker is connected and not silent for long while it owes an answer, as one that hangs is.
fn answers(broker: &Broker) -> bool {
    // Longer than a collection of garbage; a member fetches all the time, and is answered within 50 ms.
    const SILENCE_US: i64 = 12_000_000;
    broker.state == "UP" && (broker.waitresp_cnt == 0 || broker.rxidle < SILENCE_US)
}

/// What librdkafka last knew of a partition's end.
#[derive(Clone, Copy)]
struct StableEnd {
    offset: i64,
    /// Every record before it has been polled; what may follow the last one are markers and aborted records.
    reached: bool,
}

impl StableEnd {
    fn of(partition: &Partition) -> Self {
        let reached = partition.fetchq_cnt == 0 && partition.next_offset >= partition.ls_offset;
        Self { offset: partition.ls_offset, reached }
    }
}

impl ConsumerContext for MemberContext {
    fn rebalance(&self, consumer: &BaseConsumer<Self>, code: RDKafkaRespErr, list: &mut Offsets) {
        if self.leaving.load(Ordering::Acquire) {
            // Nobody is left to answer; closing waits for this.
            if let Err(error) = consumer.incremental_unassign(list) {
                tracing::debug!(%error, "unassigning while leaving");
            }
            return;
        }
        let partitions: Vec<i32> = list.elements().iter().map(|element| element.partition()).collect();
        // A partition that is new is assigned before the next statistics come.
        let highest = partitions.iter().max().map_or(0, |highest| highest + 1);
        let _ = self.partitions.fetch_max(highest, Ordering::AcqRel);
        let event = match code {
            RDKafkaRespErr::RD_KAFKA_RESP_ERR__ASSIGN_PARTITIONS => Rebalance::Assigned(partitions),
            _ if consumer.assignment_lost() => Rebalance::Lost(partitions),
            _ => Rebalance::Revoked(partitions),
        };
        self.rebalances.lock().push_back(event);
    }
}
