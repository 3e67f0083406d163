//! Transactions as borrowed values.
//!
//! ```text
//! producer.begin()? ─► Transaction ─ send … ─ send_offsets … ─► commit(self)
//!                          └──────────── drop or abort(self) ─► nothing was ever visible
//! ```
//!
//! All calls block and belong on a thread that may. What an error means for the producer is
//! [`Error::class`]'s to say; a fatal or fenced producer is never used again.

use std::sync::Arc;
use std::time::{Duration, Instant};

use fail::fail_point;
use parking_lot::{Condvar, Mutex};
use rdkafka::client::ClientContext;
use rdkafka::config::{FromClientConfigAndContext, RDKafkaLogLevel};
use rdkafka::consumer::ConsumerGroupMetadata;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{Header, Message, OwnedHeaders};
use rdkafka::producer::{BaseProducer, BaseRecord, DeliveryResult, Producer, ProducerContext};
use rdkafka::topic_partition_list::TopicPartitionList;

use super::client;
use super::error::{class_of, Class, Error, Result};
use super::headers;
use crate::config::Settings;

/// `max.message.bytes` of a topic for which nobody has set it.
pub const DEFAULT_LIMIT_BYTES: usize = 1_048_588;

/// How long the thread that takes delivery reports waits for one. rust-rdkafka's own is a tenth of that, and spins for
/// the last millisecond of it: a hundredth of a core, always.
const POLL: Duration = Duration::from_secs(1);

/// Records of a partition that librdkafka has under way at once.
const RECORDS_UNDER_WAY: usize = 5;

/// A producer that only writes inside transactions.
pub struct TransactionalProducer {
    producer: Arc<BaseProducer<Deliveries>>,
    deliveries: Deliveries,
    timeout: Duration,
    batch_bytes: usize,
    /// Records and bytes queued since nothing was.
    queued: (usize, usize),
}

/// A record to be sent.
#[derive(Clone, Copy, Debug)]
pub struct Outgoing<'a> {
    pub topic: &'a str,
    pub partition: i32,
    /// Key, which may be absent.
    pub key: Option<&'a [u8]>,
    /// Value; none is a tombstone.
    pub value: Option<&'a [u8]>,
    /// Headers of another record, taken over as they are, names that are no text included.
    pub inherited: Option<&'a OwnedHeaders>,
    /// Headers after them, in order.
    pub headers: &'a [(&'a str, Option<&'a [u8]>)],
}

impl Outgoing<'_> {
    /// An upper bound of the bytes this record needs in a batch of its own, as the broker counts them against
    /// `max.message.bytes`; headers whose names are no text cannot be measured and are left out.
    pub fn batch_bytes(&self) -> usize {
        let bytes = |name: &str, value: Option<&[u8]>| name.len() + value.map_or(0, <[u8]>::len) + 10;
        let inherited = self.inherited.into_iter().flat_map(headers::iter).flatten();
        let inherited: usize = inherited.map(|header| bytes(header.key, header.value)).sum();
        let headers: usize = self.headers.iter().map(|(name, value)| bytes(name, *value)).sum();
        self.key.map_or(0, <[u8]>::len) + self.value.map_or(0, <[u8]>::len) + inherited + headers + 128
    }
}

/// An open transaction. Dropping it aborts.
#[must_use = "a transaction that is not committed is aborted"]
pub struct Transaction<'p> {
    owner: &'p mut TransactionalProducer,
    open: bool,
    /// For messages: when one may not be written, the client does not say which.
    topics: Vec<String>,
}

impl TransactionalProducer {
    /// Creates the producer and fences every earlier one with the same transactional id.
    ///
    /// `limits_bytes` are `max.message.bytes` of the topics that will be written. The broker measures batches against
    /// them, and one that is too large fails every record in it: so batches of several records stay below the
    /// smallest, while a record of its own may be as large as the largest allows.
    ///
    /// # Errors
    /// When the id's coordinator cannot be reached, or the settings do not make a producer.
    pub fn new(settings: &Settings, transactional_id: &str, limits_bytes: &[usize]) -> Result<Self> {
        let (smallest, largest) = (limits_bytes.iter().min().copied(), limits_bytes.iter().max().copied());
        let (smallest, largest) = (smallest.unwrap_or(DEFAULT_LIMIT_BYTES), largest.unwrap_or(DEFAULT_LIMIT_BYTES));
        let batch_bytes = smallest.clamp(1, 1_000_000);
        let mut config = client::transactional_producer(settings, transactional_id);
        let _ = config
            .set("message.max.bytes", largest.clamp(1_000, 1_000_000_000).to_string())
            .set("batch.size", batch_bytes.to_string());
        let deliveries = Deliveries::default();
        let producer = BaseProducer::from_config_and_context(&config, deliveries.clone())
            .map(Arc::new)
            .map_err(Error::call(format!("creating the producer `{transactional_id}`")))?;
        let polled = Arc::clone(&producer);
        let poll = move || {
            while Arc::strong_count(&polled) > 1 {
                polled.poll(POLL);
            }
        };
        drop(std::thread::Builder::new().name("kafka-deliveries".into()).spawn(poll).expect("threads can be started"));
        let timeout = settings.kafka.transaction_timeout;
        // librdkafka asks for the coordinator at once if it is connected to a broker that it knows by its number, and
        // else only after half a second: metadata tells the numbers, a watermark comes from such a broker. What is
        // wrong with the cluster, the next call says.
        let (trials, patience) = (&settings.topics.trials, client::REQUEST_TIMEOUT.min(timeout));
        if producer.client().fetch_metadata(Some(trials), patience).is_ok() {
            drop(producer.client().fetch_watermarks(trials, 0, patience));
        }
        retried(Instant::now() + timeout + Duration::from_secs(20), || {
            producer
                .init_transactions(timeout)
                .map_err(Error::call(format!("registering the transactional id `{transactional_id}`")))
        })?;
        Ok(Self { producer, deliveries, timeout, batch_bytes, queued: (0, 0) })
    }

    /// Opens a transaction.
    ///
    /// # Errors
    /// When the producer is not usable any more.
    pub fn begin(&mut self) -> Result<Transaction<'_>> {
        fail_point!("kafka.transaction.begin", |code| Err(Error::injected(code)));
        self.deliveries.reset();
        self.queued = (0, 0);
        self.producer.begin_transaction().map_err(Error::call("beginning a transaction"))?;
        Ok(Transaction { owner: self, open: true, topics: Vec::new() })
    }

    /// Waits until nothing is queued. A client that commits while something still is waits in steps of 100 ms, and one
    /// that aborts has been killed by it (INVALID_TXN_STATE).
    fn await_delivery(&self) {
        let deadline = Instant::now() + self.timeout;
        self.deliveries.await_all(deadline);
        // The client counts a record until after its report.
        while self.producer.in_flight_count() > 0 && Instant::now() < deadline {
            std::thread::sleep(Duration::from_micros(100));
        }
    }

    /// Waits until a record of so many bytes may be queued: as many as make a batch, and those that can be under way.
    ///
    /// With more, the client's thread spins until the broker has answered, and takes from inference, trials and broker
    /// what they need meanwhile.
    fn make_room(&mut self, bytes: usize, deadline: Instant) {
        let (records, queued_bytes) = self.queued;
        if records >= RECORDS_UNDER_WAY && queued_bytes + bytes > self.batch_bytes {
            self.deliveries.await_all(deadline);
            self.queued = (0, 0);
        }
        self.queued.0 += 1;
        self.queued.1 += bytes;
    }

    /// A dead producer refuses records without saying that it was fenced.
    fn cause(&self, refusal: KafkaError) -> KafkaError {
        let fatal = self.producer.client().fatal_error().map(|(code, _)| KafkaError::MessageProduction(code));
        fatal.filter(|fatal| class_of(fatal) == Class::Fenced).unwrap_or(refusal)
    }
}

impl Transaction<'_> {
    /// Queues a record when there is room.
    ///
    /// # Errors
    /// When the client refuses the record.
    pub fn send(&mut self, record: &Outgoing<'_>) -> Result<()> {
        fail_point!("kafka.transaction.send", |code| Err(Error::injected(code)));
        let own = || OwnedHeaders::new_with_capacity(record.headers.len());
        let mut headers = record.inherited.cloned().unwrap_or_else(own);
        for (key, value) in record.headers {
            headers = headers.insert(Header { key, value: *value });
        }
        let mut outgoing: BaseRecord<'_, [u8], [u8]> =
            BaseRecord::to(record.topic).partition(record.partition).headers(headers);
        outgoing.key = record.key;
        outgoing.payload = record.value;
        let deadline = Instant::now() + self.owner.timeout;
        self.owner.make_room(record.batch_bytes(), deadline);
        loop {
            match self.owner.producer.send(outgoing) {
                Ok(()) => {
                    if !self.topics.iter().any(|topic| topic == record.topic) {
                        self.topics.push(record.topic.to_owned());
                    }
                    self.owner.deliveries.sent();
                    return Ok(());
                }
                Err((KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull), refused))
                    if Instant::now() < deadline =>
                {
                    outgoing = refused;
                    self.owner.deliveries.await_some(Duration::from_millis(50));
                }
                Err((source, _)) => {
                    return Err(Error::Delivery {
                        topic: record.topic.to_owned(),
                        partition: record.partition,
                        source: self.owner.cause(source),
                    });
                }
            }
        }
    }

    /// Adds consumer offsets (the next to read), for the group that `metadata` belongs to.
    ///
    /// # Errors
    /// [`Class::Stale`] when the member that `metadata` speaks for does not own the partitions any more.
    pub fn send_offsets(&mut self, offsets: &TopicPartitionList, metadata: &ConsumerGroupMetadata) -> Result<()> {
        fail_point!("kafka.transaction.offsets", |code| Err(Error::injected(code)));
        let timeout = self.owner.timeout;
        let action = format!("adding consumer offsets to a transaction over {}", self.topics.join(", "));
        let send = || {
            retried(Instant::now() + timeout, || {
                let sent = self.owner.producer.send_offsets_to_transaction(offsets, metadata, timeout);
                sent.map_err(Error::call(action.as_str()))
            })
        };
        match send() {
            // A record failed meanwhile, so that there is no transaction to add to; the next call is told why.
            Err(error) if error.code() == Some(RDKafkaErrorCode::State) => send(),
            result => result,
        }
    }

    /// Makes everything visible.
    ///
    /// # Errors
    /// A record that was refused is named with its topic and partition. After an error of class
    /// [`Class::Abort`] or [`Class::Stale`] the transaction has been aborted.
    pub fn commit(mut self) -> Result<()> {
        fail_point!("kafka.transaction.commit", |code| Err(Error::injected(code)));
        let timeout = self.owner.timeout;
        self.owner.await_delivery();
        fail_point!("kafka.transaction.delivered");
        let action = format!("committing a transaction over {}", self.topics.join(", "));
        let result = retried(Instant::now() + timeout + Duration::from_secs(5), || {
            self.owner.producer.commit_transaction(timeout).map_err(Error::call(action.as_str()))
        });
        match result {
            Ok(()) => {
                self.open = false;
                fail_point!("kafka.transaction.committed", |code| Err(Error::injected(code)));
                Ok(())
            }
            // librdkafka only says that some message failed; the delivery report says which and why.
            Err(error) if error.class() == Class::Abort => Err(self.owner.deliveries.failure().unwrap_or(error)),
            // A producer that died over it says both itself.
            Err(error) => Err(error),
        }
    }

    /// Takes everything back.
    ///
    /// # Errors
    /// When the producer died over it, or a record had not arrived; nothing is visible all the same.
    pub fn abort(mut self) -> Result<()> {
        self.take_back()?;
        self.owner.deliveries.failure().map_or(Ok(()), Err)
    }

    fn take_back(&mut self) -> Result<()> {
        self.open = false;
        self.owner.await_delivery();
        let timeout = self.owner.timeout;
        retried(Instant::now() + timeout, || {
            self.owner.producer.abort_transaction(timeout).map_err(Error::call("aborting a transaction"))
        })
    }
}

impl Drop for Transaction<'_> {
    fn drop(&mut self) {
        if self.open {
            if let Err(error) = self.take_back() {
                tracing::debug!(%error, "transaction could not be aborted in order; the broker will time it out");
            }
        }
    }
}

/// Repeats a transactional call as long as its error says that this is right.
fn retried(deadline: Instant, mut call: impl FnMut() -> Result<()>) -> Result<()> {
    let mut pause = Duration::from_millis(5);
    loop {
        match call() {
            Err(error) if error.class() == Class::Retriable && Instant::now() < deadline => {
                tracing::debug!(%error, "retrying");
                std::thread::sleep(pause);
                pause = (pause * 2).min(Duration::from_millis(500));
            }
            result => return result,
        }
    }
}

/// Counts delivery reports and keeps the first failure.
#[derive(Clone, Default)]
pub struct Deliveries(Arc<(Mutex<Counts>, Condvar)>);

#[derive(Default)]
struct Counts {
    in_flight: i64,
    failure: Option<(String, i32, KafkaError)>,
}

impl Deliveries {
    fn reset(&self) {
        self.0 .0.lock().failure = None;
    }

    fn sent(&self) {
        self.0 .0.lock().in_flight += 1;
    }

    fn await_some(&self, bound: Duration) {
        let mut counts = self.0 .0.lock();
        let _ = self.0 .1.wait_for(&mut counts, bound);
    }

    fn await_all(&self, deadline: Instant) {
        let mut counts = self.0 .0.lock();
        while counts.in_flight > 0 {
            if self.0 .1.wait_until(&mut counts, deadline).timed_out() {
                return;
            }
        }
    }

    fn failure(&self) -> Option<Error> {
        let (topic, partition, source) = self.0 .0.lock().failure.take()?;
        Some(Error::Delivery { topic, partition, source })
    }
}

impl ClientContext for Deliveries {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        client::log(level, facility, message);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        tracing::debug!(target: "rdkafka", %error, reason, "producer error");
    }
}

impl ProducerContext for Deliveries {
    type DeliveryOpaque = ();

    fn delivery(&self, result: &DeliveryResult<'_>, (): ()) {
        let mut counts = self.0 .0.lock();
        // A report can overtake the count of its own send; the sum is right once both have happened.
        counts.in_flight -= 1;
        if let Err((error, message)) = result {
            // Messages purged by an abort fail as a consequence, not as a cause.
            let purged = matches!(
                error.rdkafka_error_code(),
                Some(RDKafkaErrorCode::PurgeQueue | RDKafkaErrorCode::PurgeInflight)
            );
            if !purged && counts.failure.is_none() {
                counts.failure = Some((message.topic().to_owned(), message.partition(), error.clone()));
            }
        }
        let _ = self.0 .1.notify_all();
    }
}
