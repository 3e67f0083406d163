//! Readers of chosen partitions, which no group assigns to them; and what readers of any kind are given.

use std::sync::Arc;
use std::time::Duration;

use rdkafka::config::FromClientConfigAndContext;
use rdkafka::consumer::base_consumer::PartitionQueue;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode as Code};
use rdkafka::message::BorrowedMessage;
use rdkafka::types::RDKafkaRespErr;

use super::client::{self, LogContext, REQUEST_TIMEOUT};
use super::error::{is_remembered, Error, Result};
use super::offsets::{self, Offsets};
use crate::config::Settings;

/// What a partition gave.
pub enum Polled<M> {
    Record(M),
    /// Nothing: everything up to the end of its log has been read.
    End,
    /// Nothing: its log does not hold the next offset. Retention took it, or this is another topic of that name.
    OutOfLog,
}

impl<'m> Polled<BorrowedMessage<'m>> {
    /// Tells them apart from failures.
    pub(super) fn of(polled: Result<BorrowedMessage<'m>, KafkaError>, topic: &str, partition: i32) -> Result<Self> {
        match polled {
            Ok(message) => Ok(Self::Record(message)),
            Err(KafkaError::PartitionEOF(_)) => Ok(Self::End),
            Err(KafkaError::MessageConsumption(Code::AutoOffsetReset | Code::OffsetOutOfRange)) => Ok(Self::OutOfLog),
            Err(source) => Err(Error::Call { action: format!("consuming {topic}/{partition}"), source }),
        }
    }
}

/// What the log of a partition holds, as far as anybody can tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Log {
    /// From its first offset to one past its last.
    Holds { start: i64, end: i64 },
    /// Brokers know the partition no more.
    Gone,
    /// Brokers that are away say nothing about it.
    Unknown,
}

/// A reader of some partitions of a topic, each with a queue of its own.
pub struct Reader {
    // Before the consumer: a queue must not outlive it.
    queues: Vec<PartitionQueue<LogContext>>,
    consumer: Arc<BaseConsumer<LogContext>>,
    topic: String,
    partitions: Vec<i32>,
}

impl Reader {
    /// Connects. `group` only shows who reads.
    ///
    /// # Errors
    /// When the settings do not make a consumer.
    pub fn open(settings: &Settings, group: &str, topic: &str, partitions: Vec<i32>) -> Result<Self> {
        let config = client::replay(settings, group, partitions.len());
        let consumer = BaseConsumer::from_config_and_context(&config, LogContext)
            .map_err(Error::call(format!("creating the consumer of group `{group}`")))?;
        let consumer = Arc::new(consumer);
        let queue = |&partition: &i32| {
            let queue = consumer.split_partition_queue(topic, partition);
            queue.ok_or_else(|| Error::data(topic, partition, "there is no such partition"))
        };
        let queues = partitions.iter().map(queue).collect::<Result<_>>()?;
        Ok(Self { queues, consumer, topic: topic.to_owned(), partitions })
    }

    /// Begins to read at these offsets, one for each partition.
    ///
    /// # Errors
    /// When librdkafka refuses.
    pub fn assign(&self, offsets: &[i64]) -> Result<()> {
        let list = self.list(offsets)?;
        self.consumer.assign(&list).map_err(Error::call(format!("reading topic `{}`", self.topic)))
    }

    /// Reads on at these offsets, one for each partition.
    ///
    /// # Errors
    /// When librdkafka refuses.
    pub fn seek(&self, offsets: &[i64]) -> Result<()> {
        let action = || format!("seeking in topic `{}`", self.topic);
        let sought = self.consumer.seek_partitions(self.list(offsets)?, REQUEST_TIMEOUT);
        for element in sought.map_err(Error::call(action()))?.elements() {
            let action = format!("seeking {}/{} to {:?}", self.topic, element.partition(), element.offset());
            element.error().map_err(Error::call(action))?;
        }
        Ok(())
    }

    /// Fetches nothing more.
    ///
    /// # Errors
    /// When librdkafka refuses.
    pub fn unassign(&self) -> Result<()> {
        self.consumer.unassign().map_err(Error::call(format!("leaving topic `{}`", self.topic)))
    }

    /// Serves what concerns the consumer as a whole: errors and logs. To be called now and then.
    pub fn serve(&self) {
        drop(self.consumer.poll(Duration::ZERO));
    }

    /// What the partition at this place gives within `bound`; nothing, if nothing came.
    ///
    /// # Errors
    /// What librdkafka says; most of it passes, since brokers go and come back.
    pub fn poll(&self, place: usize, bound: Duration) -> Result<Option<Polled<BorrowedMessage<'_>>>> {
        match self.queues[place].poll(bound) {
            None => Ok(None),
            Some(polled) => Polled::of(polled, &self.topic, self.partitions[place]).map(Some),
        }
    }

    /// The next offset that the partition at this place gives, if anything was read of it.
    ///
    /// # Errors
    /// When librdkafka refuses.
    pub fn position(&self, place: usize) -> Result<Option<i64>> {
        let list = self.consumer.position().map_err(Error::call("asking for a position"))?;
        Ok(offsets::positions(&list).get(&self.partitions[place]).copied())
    }

    /// Asks brokers what the log of the partition at this place holds.
    pub fn log(&self, place: usize) -> Log {
        match self.consumer.fetch_watermarks(&self.topic, self.partitions[place], REQUEST_TIMEOUT) {
            Ok((start, end)) => Log::Holds { start, end },
            Err(error) if is_remembered(&error) && self.is_gone(self.partitions[place]) => Log::Gone,
            Err(_) => Log::Unknown,
        }
    }

    fn is_gone(&self, partition: i32) -> bool {
        let Ok(metadata) = self.consumer.fetch_metadata(Some(&self.topic), REQUEST_TIMEOUT) else { return false };
        metadata.topics().iter().any(|topic| {
            let unknown = topic.error() == Some(RDKafkaRespErr::RD_KAFKA_RESP_ERR_UNKNOWN_TOPIC_OR_PART);
            let known = topic.partitions().iter().any(|known| known.id() == partition);
            unknown || (topic.error().is_none() && !known)
        })
    }

    fn list(&self, offsets: &[i64]) -> Result<Offsets> {
        let positions = self.partitions.iter().copied().zip(offsets.iter().copied()).collect();
        offsets::list(&self.topic, &positions, "")
    }
}
