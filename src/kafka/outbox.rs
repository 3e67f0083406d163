//! Records that are written outside transactions: each is delivered or not, and it is known which.

use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use rdkafka::client::ClientContext;
use rdkafka::config::{FromClientConfigAndContext, RDKafkaLogLevel};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{BaseRecord, DeliveryResult, Producer, ProducerContext, PurgeConfig, ThreadedProducer};
use tokio_util::sync::CancellationToken;

use super::client;
use super::error::{Error, Result};
use super::topics::describe;
use crate::config::Settings;

/// What librdkafka puts into a batch, and takes as a record, unless told otherwise.
const CLIENT_LIMIT_BYTES: usize = 1_000_000;

/// Records on their way to a topic, by numbers that whoever sends them gives.
pub struct Outbox {
    topic: String,
    /// What bounds a record, in words.
    limit: String,
    producer: ThreadedProducer<Deliveries>,
    deliveries: Deliveries,
    interrupted: CancellationToken,
}

impl Outbox {
    /// Connects. `interrupted` ends waits.
    ///
    /// # Errors
    /// When the settings do not make a producer.
    pub fn new(settings: &Settings, topic: &str, interrupted: CancellationToken) -> Result<Self> {
        let topic = topic.to_owned();
        let mut config = client::producer(settings);
        let set = |name: &str| settings.kafka.properties.get(name);
        // Who may only write is not told.
        let configs = describe(settings, std::iter::once(topic.as_str())).unwrap_or_default();
        let limit: Option<usize> = configs.get(&topic).and_then(|config| config.get("max.message.bytes")?.parse().ok());
        let mut words = format!(
            "`message.max.bytes` of this client is {}; raise it in `kafka.properties`",
            set("message.max.bytes").map_or("1000000", String::as_str)
        );
        if let Some(limit) = limit {
            // What the broker refuses is a batch: one that is over the limit must not hold other records.
            if set("batch.size").is_none() {
                let _ = config.set("batch.size", limit.clamp(1, CLIENT_LIMIT_BYTES).to_string());
            }
            if set("message.max.bytes").is_none() {
                // The broker weighs what was compressed, the client what was not.
                let compressed = set("compression.type").or(set("compression.codec")).is_some();
                let least = if compressed { CLIENT_LIMIT_BYTES } else { 1_000 };
                let _ = config.set("message.max.bytes", limit.clamp(least, 1_000_000_000).to_string());
            }
            if set("message.max.bytes").and_then(|bytes| bytes.parse().ok()).is_none_or(|bytes: usize| limit < bytes) {
                words = format!("`max.message.bytes` of topic `{topic}` is {limit}; raise it");
            }
        }
        let deliveries = Deliveries::default();
        let producer = ThreadedProducer::from_config_and_context(&config, deliveries.clone())
            .map_err(Error::call(format!("creating the producer of topic `{topic}`")))?;
        Ok(Self { topic, limit: words, producer, deliveries, interrupted })
    }

    /// Has somebody asked for its end?
    pub fn interrupted(&self) -> bool {
        self.interrupted.is_cancelled()
    }

    /// The record of the lowest number that was not delivered.
    pub fn first_failure(&self) -> Option<Undelivered> {
        self.deliveries.0.lock().failure.clone()
    }

    /// Records that were delivered so far.
    pub fn delivered(&self) -> usize {
        self.deliveries.0.lock().delivered
    }

    /// What bounds a record, in words.
    pub fn limit(&self) -> &str {
        &self.limit
    }

    /// Queues a record, however long the queue is full; false after an interrupt, or if the client refuses it.
    pub fn send(&self, number: usize, key: Option<&[u8]>, value: &[u8], header: Option<(&str, &[u8])>) -> bool {
        let mut outgoing: BaseRecord<'_, [u8], [u8], usize> =
            BaseRecord::with_opaque_to(&self.topic, number).payload(value);
        outgoing.key = key;
        if let Some((key, value)) = header {
            outgoing.headers = Some(OwnedHeaders::new().insert(Header { key, value: Some(value) }));
        }
        loop {
            match self.producer.send(outgoing) {
                Ok(()) => return true,
                Err((KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull), refused)) => {
                    outgoing = refused;
                    std::thread::sleep(Duration::from_millis(10));
                }
                Err((error, _)) => {
                    self.deliveries.failed(number, error);
                    return false;
                }
            }
            if self.interrupted() {
                return false;
            }
        }
    }

    /// Waits until each record has its verdict; after an interrupt, so long at most.
    pub fn settle(&self, after_interrupt: Duration) {
        let mut until = None;
        // The producer's own thread serves delivery reports, so this only waits.
        while self.producer.in_flight_count() > 0 {
            std::thread::sleep(Duration::from_millis(2));
            if self.interrupted() && Instant::now() > *until.get_or_insert_with(|| Instant::now() + after_interrupt) {
                self.producer.purge(PurgeConfig::default().queue().inflight());
            }
        }
    }
}

/// What became of records so far.
#[derive(Clone, Default)]
struct Deliveries(Arc<Mutex<Verdicts>>);

#[derive(Default)]
struct Verdicts {
    delivered: usize,
    failure: Option<Undelivered>,
}

/// A record that was not delivered.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{source}")]
pub struct Undelivered {
    pub number: usize,
    pub source: KafkaError,
}

impl Undelivered {
    /// Was it larger than records may be?
    pub fn is_too_large(&self) -> bool {
        self.source.rdkafka_error_code() == Some(RDKafkaErrorCode::MessageSizeTooLarge)
    }

    /// Was it taken back while it was under way?
    pub fn was_taken_back(&self) -> bool {
        use RDKafkaErrorCode as Code;
        matches!(self.source.rdkafka_error_code(), Some(Code::PurgeQueue | Code::PurgeInflight))
    }
}

impl Deliveries {
    /// Reports come by partition, so a later one may be of an earlier record.
    fn failed(&self, number: usize, source: KafkaError) {
        let failure = &mut self.0.lock().failure;
        if failure.as_ref().is_none_or(|first| number < first.number) {
            *failure = Some(Undelivered { number, source });
        }
    }
}

impl ClientContext for Deliveries {
    fn log(&self, _: RDKafkaLogLevel, facility: &str, message: &str) {
        tracing::debug!(target: "rdkafka", facility, "{message}");
    }

    fn error(&self, error: KafkaError, reason: &str) {
        tracing::debug!(target: "rdkafka", %error, reason, "producer error");
    }
}

impl ProducerContext for Deliveries {
    type DeliveryOpaque = usize;

    fn delivery(&self, result: &DeliveryResult<'_>, number: usize) {
        match result {
            Ok(_) => self.0.lock().delivered += 1,
            Err((error, _)) => self.failed(number, error.clone()),
        }
    }
}
