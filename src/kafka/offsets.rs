//! Where partitions start and end, as read-committed readers will come to see them.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use rdkafka::config::{ClientConfig, FromClientConfigAndContext};
use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerContext, ConsumerGroupMetadata};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList, TopicPartitionListElem};

use super::client::{self, LogContext, REQUEST_TIMEOUT};
use super::error::{code_of, is_remembered, Error, Result};
use crate::config::Settings;
use crate::coordinates::Positions;

/// A consumer for one purpose, closed by a thread of its own: rust-rdkafka does it in steps of 100 ms.
pub(super) struct OneOff(Option<BaseConsumer<LogContext>>);

impl OneOff {
    pub fn open(config: &ClientConfig) -> Result<Self> {
        let consumer = BaseConsumer::from_config_and_context(config, LogContext);
        Ok(Self(Some(consumer.map_err(Error::call("creating a Kafka client"))?)))
    }
}

impl std::ops::Deref for OneOff {
    type Target = BaseConsumer<LogContext>;

    fn deref(&self) -> &Self::Target {
        self.0.as_ref().expect("it is there until it is dropped")
    }
}

impl Drop for OneOff {
    fn drop(&mut self) {
        let consumer = self.0.take();
        // Where there is no thread to be had, it is closed here.
        drop(std::thread::Builder::new().name("close-reader".into()).spawn(move || drop(consumer)));
    }
}

/// Asks for watermarks under both isolation levels.
pub struct Watermarks {
    uncommitted: BaseConsumer<LogContext>,
    committed: BaseConsumer<LogContext>,
    open_transaction_max: Duration,
}

/// Start and end of a partition: records lie in `start..end`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// The log's first offset.
    pub start: i64,
    /// One past the last offset (markers included).
    pub end: i64,
}

impl Watermarks {
    /// Connects.
    ///
    /// # Errors
    /// When a client cannot be created from the settings.
    pub fn new(settings: &Settings) -> Result<Self> {
        let client = |read_committed| {
            BaseConsumer::from_config_and_context(&client::probe(settings, read_committed), LogContext)
                .map_err(Error::call("creating a Kafka client"))
        };
        Ok(Self {
            uncommitted: client(false)?,
            committed: client(true)?,
            open_transaction_max: settings.kafka.open_transaction_max(),
        })
    }

    /// The names of all topics that this client may see.
    ///
    /// # Errors
    /// When no broker answers.
    pub fn topics(&self) -> Result<BTreeSet<String>> {
        let ask = || self.uncommitted.fetch_metadata(None, REQUEST_TIMEOUT);
        let metadata = patiently(PATIENCE, ask).map_err(Error::call("asking for topics"))?;
        Ok(metadata.topics().iter().map(|topic| topic.name().to_owned()).collect())
    }

    /// How many partitions a topic has.
    ///
    /// # Errors
    /// When the topic does not exist or no broker answers.
    pub fn partitions(&self, topic: &str) -> Result<i32> {
        let action = || format!("asking for the partitions of topic `{topic}`");
        let ask = || self.uncommitted.fetch_metadata(Some(topic), REQUEST_TIMEOUT);
        let metadata = patiently(PATIENCE, ask).map_err(Error::call(action()))?;
        let found = metadata.topics().iter().find(|candidate| candidate.name() == topic);
        match found {
            Some(found) if found.error().is_none() && !found.partitions().is_empty() => {
                Ok(i32::try_from(found.partitions().len()).unwrap_or(i32::MAX))
            }
            _ => Err(Error::Topics(format!("topic `{topic}` does not exist; `sweepstream topics create` creates it"))),
        }
    }

    /// What is in a partition now, records of open transactions included.
    ///
    /// # Errors
    /// When no broker answers.
    pub fn extent(&self, topic: &str, partition: i32) -> Result<Extent> {
        watermarks(&self.uncommitted, topic, partition)
    }

    /// The end that read-committed readers see now.
    ///
    /// # Errors
    /// When no broker answers.
    pub fn stable_end(&self, topic: &str, partition: i32) -> Result<i64> {
        Ok(watermarks(&self.committed, topic, partition)?.end)
    }

    /// Captures partitions: takes their high watermarks, then waits until every transaction below those has ended.
    ///
    /// Taking the read-committed ends alone would miss records that were committed just now.
    ///
    /// # Errors
    /// When a transaction stays open beyond its timeout, or no broker answers.
    pub fn capture(&self, topic: &str, partitions: impl IntoIterator<Item = i32>) -> Result<BTreeMap<i32, Extent>> {
        let extent = |partition| Ok((partition, self.extent(topic, partition)?));
        let partitions: BTreeSet<i32> = partitions.into_iter().collect();
        let extents: BTreeMap<i32, Extent> = partitions.into_iter().map(extent).collect::<Result<_>>()?;
        let bound = self.open_transaction_max;
        let started = Instant::now();
        for (&partition, extent) in &extents {
            while self.stable_end(topic, partition)? < extent.end {
                if started.elapsed() > bound {
                    let action = format!(
                        "waiting for a transaction below offset {} of {topic}/{partition}, which is still open \
                         (Kafka's transactions tool finds it: `find-hanging`),",
                        extent.end
                    );
                    return Err(Error::TimedOut { action, waited: bound });
                }
                std::thread::sleep(Duration::from_millis(5));
            }
        }
        Ok(extents)
    }
}

fn watermarks(consumer: &BaseConsumer<LogContext>, topic: &str, partition: i32) -> Result<Extent> {
    // What librdkafka reports meanwhile waits in the queue of a consumer, and nobody else empties it.
    while consumer.poll(Duration::ZERO).is_some() {}
    let ask = || {
        let found = consumer.fetch_watermarks(topic, partition, REQUEST_TIMEOUT);
        if found.as_ref().is_err_and(is_remembered) {
            drop(consumer.fetch_metadata(Some(topic), REQUEST_TIMEOUT));
        }
        found
    };
    let (start, end) =
        patiently(PATIENCE, ask).map_err(Error::call(format!("asking for the watermarks of {topic}/{partition}")))?;
    Ok(Extent { start, end })
}

/// How long a request is repeated: a leader that died is replaced after its session, 9 s by default, and a busy broker
/// takes longer until it serves a topic that was created just now.
pub(super) const PATIENCE: Duration = Duration::from_secs(30);

/// Repeats a request that failed for a reason that passes, such as an election or a metadata refresh.
pub(super) fn patiently<T>(
    bound: Duration,
    mut request: impl FnMut() -> Result<T, KafkaError>,
) -> Result<T, KafkaError> {
    use RDKafkaErrorCode as Code;
    let started = Instant::now();
    loop {
        let error = match request() {
            Ok(value) => return Ok(value),
            Err(error) => error,
        };
        let passing = matches!(
            code_of(&error),
            Some(
                Code::AllBrokersDown
                    | Code::BrokerNotAvailable
                    | Code::LeaderNotAvailable
                    | Code::NotLeaderForPartition
                    | Code::UnknownPartition
                    | Code::UnknownTopicOrPartition
                    | Code::RequestTimedOut
                    | Code::OperationTimedOut
                    | Code::BrokerTransportFailure
                    | Code::CoordinatorLoadInProgress
                    | Code::CoordinatorNotAvailable
                    | Code::NotCoordinator
                    | Code::UnstableOffsetCommit
                    | Code::WaitingForCoordinator
            )
        );
        if !passing || started.elapsed() > bound {
            return Err(error);
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// A committed offset and what was stored beside it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Committed {
    /// The next offset to read.
    pub offset: i64,
    /// Up to 4 kB of text.
    pub metadata: String,
}

/// Offsets committed by a group, asked for from outside; a partition without one is absent.
///
/// # Errors
/// When the coordinator does not answer, or a pending transaction keeps them unstable for longer than `bound`.
pub fn committed(
    settings: &Settings,
    group: &str,
    topic: &str,
    partitions: &[i32],
    bound: Duration,
) -> Result<BTreeMap<i32, Committed>> {
    committed_of(&*OneOff::open(&client::replay(settings, group, 1))?, topic, partitions, bound)
}

/// [`committed`] of a group that may be none of our business: nothing, where we may not see it.
///
/// # Errors
/// When the coordinator does not answer.
pub fn committed_by_other(
    settings: &Settings,
    group: &str,
    topic: &str,
    partitions: &[i32],
) -> Result<BTreeMap<i32, Committed>> {
    match CommittedWatch::new(settings, group, topic)?.read(partitions) {
        Err(error) if error.code() == Some(RDKafkaErrorCode::GroupAuthorizationFailed) => Ok(BTreeMap::new()),
        committed => committed,
    }
}

/// [`committed`] through a consumer of that group.
///
/// # Errors
/// As [`committed`].
pub fn committed_of<C: ConsumerContext>(
    consumer: &BaseConsumer<C>,
    topic: &str,
    partitions: &[i32],
    bound: Duration,
) -> Result<BTreeMap<i32, Committed>> {
    let list = without_offsets(topic, partitions);
    // A request that was under way when a coordinator died is waited for in vain.
    let one_request = bound.min(Duration::from_secs(2));
    let list = patiently(bound, || consumer.committed_offsets(list.clone(), one_request))
        .map_err(Error::call(format!("asking for the committed offsets of topic `{topic}`")))?;
    let mut known = BTreeMap::new();
    for element in list.elements() {
        let partition = element.partition();
        let action = || format!("asking for the committed offset of {topic}/{partition}");
        element.error().map_err(Error::call(action()))?;
        if let Offset::Offset(offset) = element.offset() {
            let _ = known.insert(partition, Committed { offset, metadata: element.metadata().to_owned() });
        }
    }
    Ok(known)
}

/// What a transaction needs to commit offsets for a group without members.
///
/// # Errors
/// When a client cannot be created from the settings.
pub fn group_metadata(settings: &Settings, group: &str) -> Result<ConsumerGroupMetadata> {
    metadata_of(&*OneOff::open(&client::replay(settings, group, 1))?)
}

/// [`group_metadata`] of a consumer without assignment by the group.
///
/// # Errors
/// When the client does not know its group.
pub fn metadata_of<C: ConsumerContext>(consumer: &BaseConsumer<C>) -> Result<ConsumerGroupMetadata> {
    consumer.group_metadata().ok_or_else(|| Error::Topics("the client does not know its group".into()))
}

pub type Offsets = TopicPartitionList;

/// Positions as librdkafka takes them, to be read from or committed, with something stored beside each.
///
/// # Errors
/// When an offset cannot be one.
pub fn list(topic: &str, positions: &Positions, metadata: &str) -> Result<Offsets> {
    let mut list = Offsets::with_capacity(positions.len());
    for (&partition, &offset) in positions {
        let mut element = list.add_partition(topic, partition);
        let listed = element.set_offset(Offset::Offset(offset));
        listed.map_err(Error::call(format!("going to {topic}/{partition} offset {offset}")))?;
        element.set_metadata(metadata);
    }
    Ok(list)
}

/// Partitions as librdkafka takes them where their offsets do not matter.
pub(super) fn without_offsets(topic: &str, partitions: &[i32]) -> Offsets {
    let mut list = Offsets::with_capacity(partitions.len());
    for &partition in partitions {
        let _ = list.add_partition(topic, partition);
    }
    list
}

/// The positions in such a list; a partition without one is absent.
pub(super) fn positions(list: &Offsets) -> Positions {
    let position = |element: &TopicPartitionListElem<'_>| match element.offset() {
        Offset::Offset(offset) => Some((element.partition(), offset)),
        _ => None,
    };
    list.elements().iter().filter_map(position).collect()
}

/// Asks again and again which partitions a group has committed offsets for, without waiting for transactions that are
/// just ending.
pub struct CommittedWatch {
    consumer: BaseConsumer<LogContext>,
    topic: String,
}

impl CommittedWatch {
    /// Connects.
    ///
    /// # Errors
    /// When a client cannot be created from the settings.
    pub fn new(settings: &Settings, group: &str, topic: &str) -> Result<Self> {
        let mut config = client::probe(settings, false);
        let consumer = BaseConsumer::from_config_and_context(config.set("group.id", group), LogContext)
            .map_err(Error::call("creating a Kafka client"))?;
        Ok(Self { consumer, topic: topic.to_owned() })
    }

    /// Offsets as they stand; a partition without one is absent.
    ///
    /// # Errors
    /// When the coordinator does not answer.
    pub fn read(&self, partitions: &[i32]) -> Result<BTreeMap<i32, Committed>> {
        // What librdkafka reports meanwhile waits in the queue of a consumer, and nobody else empties it.
        while self.consumer.poll(Duration::ZERO).is_some() {}
        committed_of(&self.consumer, &self.topic, partitions, REQUEST_TIMEOUT)
    }
}
