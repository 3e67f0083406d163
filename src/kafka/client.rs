//! The only place that builds client configurations, one function per role.
//!
//! What promises rest on is set last, so that `kafka.properties` cannot undo it (the settings refuse those keys,
//! too, and say what to set instead).

use std::time::{Duration, Instant};

use rdkafka::client::ClientContext;
use rdkafka::config::{ClientConfig, RDKafkaLogLevel};
use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerContext};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};

use super::descriptors;
use super::error::{Error, Result};
use crate::config::{GroupProtocol, Settings};

/// How long one request to a broker that is up may take.
pub const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);

/// Sends librdkafka's own log lines to `tracing`, target `rdkafka`.
#[derive(Clone, Copy, Debug, Default)]
pub struct LogContext;

impl ClientContext for LogContext {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        log(level, facility, message);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        tracing::debug!(target: "rdkafka", %error, reason, "client error");
    }
}

impl ConsumerContext for LogContext {}

/// One line of librdkafka's log.
pub(super) fn log(level: RDKafkaLogLevel, facility: &str, message: &str) {
    match level {
        RDKafkaLogLevel::Emerg | RDKafkaLogLevel::Alert | RDKafkaLogLevel::Critical | RDKafkaLogLevel::Error => {
            tracing::error!(target: "rdkafka", facility, "{message}");
        }
        RDKafkaLogLevel::Warning => tracing::warn!(target: "rdkafka", facility, "{message}"),
        RDKafkaLogLevel::Notice | RDKafkaLogLevel::Info => tracing::info!(target: "rdkafka", facility, "{message}"),
        RDKafkaLogLevel::Debug => tracing::debug!(target: "rdkafka", facility, "{message}"),
    }
}

#[allow(clippy::disallowed_methods)] // everything else goes through here
fn base(settings: &Settings) -> ClientConfig {
    let mut config = ClientConfig::new();
    // The OpenSSL that is built in knows no place of certificates; this looks where distributions have them.
    let _ = config.set("ssl.ca.location", "probe");
    for (name, value) in &settings.kafka.properties {
        let _ = config.set(name, value);
    }
    let _ = config
        .set("bootstrap.servers", &settings.kafka.bootstrap_servers)
        .set("client.id", &settings.application_id)
        // A broker that comes back is noticed within a second; the default is ten. Half of the least pause is also how
        // long a new client lets its second connection wait.
        .set("reconnect.backoff.ms", "20")
        .set("reconnect.backoff.max.ms", "1000")
        // Our own default log filter decides what is shown; librdkafka must not repeat itself meanwhile.
        .set("log.connection.close", "false");
    config
}

/// For metadata and watermarks; never creates a topic by asking for it.
pub fn probe(settings: &Settings, read_committed: bool) -> ClientConfig {
    let mut config = base(settings);
    let _ = config
        .set("allow.auto.create.topics", "false")
        .set("isolation.level", if read_committed { "read_committed" } else { "read_uncommitted" });
    config
}

/// For creating topics, reading their settings, deleting groups.
pub fn admin(settings: &Settings) -> ClientConfig {
    base(settings)
}

fn consumer(settings: &Settings) -> ClientConfig {
    let mut config = base(settings);
    let _ = config
        .set("allow.auto.create.topics", "false")
        // The start of every read is chosen explicitly; a position that is gone is an error, never a skip.
        .set("auto.offset.reset", "error")
        .set("enable.auto.commit", "false")
        .set("enable.auto.offset.store", "false")
        .set("isolation.level", "read_committed");
    config
}

/// A member of a group that shares a topic's partitions out.
pub fn group_member(settings: &Settings, group: &str) -> ClientConfig {
    let mut config = consumer(settings);
    let _ = config
        .set("group.id", group)
        .set("enable.partition.eof", "true")
        // Bounds what is prefetched per partition; texts are small and embedding is slow.
        .set("queued.max.messages.kbytes", "4096")
        // What arrives is answered at once; but a partition that is assigned later waits for the answer under way.
        .set("fetch.wait.max.ms", "50")
        // Partitions that are added are noticed so soon; the default is five minutes.
        .set("topic.metadata.refresh.interval.ms", "10000")
        .set("statistics.interval.ms", "1000");
    if let Some(instance) = &settings.kafka.group_instance_id {
        let _ = config.set("group.instance.id", instance);
    }
    let _ = match settings.kafka.group_protocol {
        GroupProtocol::Classic => config
            .set("group.protocol", "classic")
            .set("partition.assignment.strategy", "cooperative-sticky")
            .set("session.timeout.ms", settings.kafka.session_timeout.as_millis().to_string())
            .set("heartbeat.interval.ms", (settings.kafka.session_timeout.as_millis() / 6).max(100).to_string()),
        GroupProtocol::Consumer => config.set("group.protocol", "consumer"),
    };
    config
}

/// A reader of explicitly assigned partitions. `group` only shows its progress.
pub fn replay(settings: &Settings, group: &str, partitions: usize) -> ClientConfig {
    let mut config = consumer(settings);
    // The bound holds per split partition queue, so the whole is shared out; librdkafka's least is 1.
    let kbytes = (settings.train.fetch_bytes_max.get() / 1024 / partitions.max(1)).max(64);
    let _ = config
        .set("group.id", group)
        .set("enable.partition.eof", "true")
        .set("queued.max.messages.kbytes", kbytes.to_string())
        // librdkafka's defaults stall a replay: 500 ms until the end of a partition is reported, and a second
        // whenever its queue was full.
        .set("fetch.wait.max.ms", "3")
        .set("fetch.queue.backoff.ms", "3");
    config
}

/// A producer whose records become visible all at once or not at all.
pub fn transactional_producer(settings: &Settings, transactional_id: &str) -> ClientConfig {
    let mut config = producer(settings);
    let _ = config
        .set("transactional.id", transactional_id)
        .set("transaction.timeout.ms", settings.kafka.transaction_timeout.as_millis().to_string())
        // Long enough to queue a batch. Without it the first record of each partition is a request of its own.
        .set("linger.ms", "1")
        // Messages never outlive their transaction; librdkafka refuses a longer time anyway.
        .set("message.timeout.ms", settings.kafka.transaction_timeout.as_millis().to_string());
    config
}

/// A producer without transactions, for `produce` and the like.
pub fn producer(settings: &Settings) -> ClientConfig {
    let mut config = base(settings);
    let _ = config
        .set("enable.idempotence", "true")
        // The partition a Java client would choose for the same key.
        .set("partitioner", "murmur2_random")
        // Waiting for more only costs latency.
        .set("linger.ms", "0");
    config
}

/// Waits until a broker answers.
///
/// # Errors
/// [`Error::Unreachable`] after `kafka.start_timeout`, with the last thing librdkafka said; [`Error::Refused`] if that
/// was about passwords or certificates. Those are waited for, too: they may be on their way.
pub fn await_cluster(settings: &Settings) -> Result<()> {
    let bound = settings.kafka.start_timeout;
    let started = Instant::now();
    let answered = await_answer(settings, || started.elapsed() >= bound)?;
    answered.map(|_| ()).map_err(|LastSaid { cause, refused }| {
        let (servers, waited) = (settings.kafka.bootstrap_servers.clone(), bound);
        match refused {
            true => Error::Refused { servers, waited, cause },
            false => Error::Unreachable { servers, waited, cause },
        }
    })
}

/// Waits until a broker answers or `stopped`, however long that takes; whether there was anything to wait for.
///
/// # Errors
/// When the settings do not make a client.
pub fn await_return(settings: &Settings, stopped: impl Fn() -> bool) -> Result<bool> {
    Ok(await_answer(settings, stopped)?.unwrap_or(true))
}

/// Why nobody has answered so far.
struct LastSaid {
    cause: String,
    /// It is about passwords or certificates.
    refused: bool,
}

/// Whether an answer had to be waited for, or what librdkafka said last before `given_up`.
fn await_answer(settings: &Settings, given_up: impl Fn() -> bool) -> Result<Result<bool, LastSaid>> {
    // Who speaks plain text to a TLS port is cut off, and told nothing else.
    let consumer: BaseConsumer<LastError> = probe(settings, false)
        .set("log.connection.close", "true")
        .create_with_context(LastError::default())
        .map_err(Error::call("creating a Kafka client"))?;
    let (mut waited, mut refusal) = (false, None);
    loop {
        let cause = match consumer.fetch_metadata(None, Duration::from_secs(1)) {
            Ok(_) => {
                if waited {
                    tracing::info!(servers = %settings.kafka.bootstrap_servers, "kafka answers");
                }
                return Ok(Ok(waited));
            }
            Err(error) => error.to_string(),
        };
        // Serves librdkafka's error events, which say more than the metadata request does.
        while let Some(event) = consumer.poll(Duration::from_millis(50)) {
            let code = event.err().and_then(|error| error.rdkafka_error_code());
            if matches!(code, Some(RDKafkaErrorCode::Authentication | RDKafkaErrorCode::SSL)) {
                refusal = consumer.context().0.lock().clone();
            }
        }
        let refused = refusal.is_some();
        let said = || refusal.clone().or_else(|| consumer.context().0.lock().clone());
        let cause = descriptors::shortage().or_else(said).unwrap_or(cause);
        if given_up() {
            return Ok(Err(LastSaid { cause, refused }));
        }
        if !waited {
            waited = true;
            tracing::warn!(servers = %settings.kafka.bootstrap_servers, %cause, "kafka does not answer, waiting");
        }
    }
}

#[derive(Default)]
struct LastError(parking_lot::Mutex<Option<String>>);

impl ClientContext for LastError {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        if facility == "FAIL" {
            let mut cause = message.rsplit("]: ").next().unwrap_or(message).to_owned();
            if cause.contains("in state APIVERSION_QUERY") {
                cause.push_str("; a port that wants TLS ends plain connections so, see `security.protocol`");
            }
            *self.0.lock() = Some(cause);
        }
        tracing::debug!(target: "rdkafka", ?level, facility, "{message}");
    }

    fn error(&self, _: KafkaError, _: &str) {}
}

impl ConsumerContext for LastError {}
