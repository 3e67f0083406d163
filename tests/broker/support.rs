//! What every broker test uses: one real Kafka for all, names of its own for each, and a reader that shares no code
//! with the program.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Condvar, Mutex, OnceLock};
use std::time::{Duration, Instant};

use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::KafkaError;
use rdkafka::message::{Header, Headers, Message, OwnedHeaders};
use rdkafka::producer::{BaseRecord, Producer, ThreadedProducer};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use rdkafka::ClientConfig;
use sweepstream::config::Settings;
use sweepstream::kafka::local::{LocalBroker, LocalBrokerOptions};
use sweepstream::kafka::topics::Declarations;
use sweepstream::parts::Parts;
use sweepstream::topology::{Stage, Topology};

/// Longest that anything in a test may take.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// The parts folder, in the project's root.
pub fn parts() -> Parts {
    Parts::locate()
}

/// Address of the shared Kafka. It ends with this process.
pub fn bootstrap_servers() -> &'static str {
    static BROKER: OnceLock<(String, Option<LocalBroker>)> = OnceLock::new();
    let (servers, _) = BROKER.get_or_init(|| {
        // The same environment variable leads the tests and the program to any other cluster.
        if let Ok(servers) = std::env::var("SWEEPSTREAM_KAFKA__BOOTSTRAP_SERVERS") {
            return (servers, None);
        }
        let parts = parts();
        let broker = LocalBroker::start(parts.kafka().expect("make parts"), &LocalBrokerOptions::default())
            .expect("the local Kafka starts");
        (broker.bootstrap_servers().to_owned(), Some(broker))
    });
    servers
}

/// Settings with topics and groups of their own on the shared Kafka.
pub fn settings(name: &str) -> Settings {
    let unique = format!("{name}-{}", &uuid::Uuid::new_v4().simple().to_string()[..8]);
    let mut settings = Settings::default();
    settings.kafka.bootstrap_servers = bootstrap_servers().to_owned();
    settings.topics.texts = format!("{unique}-texts");
    settings.topics.features = format!("{unique}-features");
    settings.topics.dead_letters = format!("{unique}-dead-letters");
    settings.topics.trials = format!("{unique}-trials");
    settings.topics.output = format!("{unique}-output");
    settings.application_id = unique;
    settings.http.address = Some("127.0.0.1:0".into());
    settings
}

/// Creates the topics as declared.
pub fn create_topics(settings: &Settings) {
    let _ = Declarations::load(settings).unwrap().ensure(settings, None).unwrap();
}

/// A record to produce.
#[derive(Clone, Debug, Default)]
pub struct Out {
    pub partition: Option<i32>,
    pub key: Option<Vec<u8>>,
    pub value: Option<Vec<u8>>,
    pub headers: Vec<(String, Option<Vec<u8>>)>,
}

impl Out {
    pub fn text(key: &str, text: &str) -> Self {
        Self { key: Some(key.into()), value: Some(text.into()), ..Self::default() }
    }

    pub fn labelled(key: &str, text: &str, label: &str) -> Self {
        Self { headers: vec![("label".into(), Some(label.into()))], ..Self::text(key, text) }
    }

    pub fn to(mut self, partition: i32) -> Self {
        self.partition = Some(partition);
        self
    }
}

/// Produces records in order and waits until all have arrived.
pub fn produce(settings: &Settings, topic: &str, records: &[Out]) {
    let producer: ThreadedProducer<rdkafka::producer::DefaultProducerContext> = ClientConfig::new()
        .set("bootstrap.servers", &settings.kafka.bootstrap_servers)
        .set("enable.idempotence", "true")
        .set("message.max.bytes", "10000000")
        .create()
        .unwrap();
    for record in records {
        let mut outgoing: BaseRecord<'_, [u8], [u8]> = BaseRecord::to(topic);
        outgoing.key = record.key.as_deref();
        outgoing.payload = record.value.as_deref();
        outgoing.partition = record.partition;
        outgoing.headers = Some(record.headers.iter().fold(OwnedHeaders::new(), |headers, (key, value)| {
            headers.insert(Header { key, value: value.as_deref() })
        }));
        while let Err((error, refused)) = producer.send(outgoing) {
            assert!(
                matches!(error, KafkaError::MessageProduction(rdkafka::types::RDKafkaErrorCode::QueueFull)),
                "{error}"
            );
            outgoing = refused;
            std::thread::sleep(Duration::from_millis(5));
        }
    }
    producer.flush(PATIENCE).unwrap();
}

/// A record that was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct In {
    pub partition: i32,
    pub offset: i64,
    pub key: Option<Vec<u8>>,
    pub value: Option<Vec<u8>>,
    pub headers: Vec<(String, Option<Vec<u8>>)>,
}

impl In {
    pub fn key(&self) -> String {
        String::from_utf8(self.key.clone().unwrap_or_default()).unwrap()
    }

    /// The last header of this name, as Kafka's own readers take it.
    pub fn header(&self, name: &str) -> Option<String> {
        let (_, value) = self.headers.iter().rev().find(|(key, _)| key == name)?;
        Some(String::from_utf8(value.clone()?).unwrap())
    }

    pub fn json(&self) -> serde_json::Value {
        serde_json::from_slice(self.value.as_deref().unwrap()).unwrap()
    }
}

/// Everything committed in a topic, in order within each partition.
pub fn read(settings: &Settings, topic: &str) -> Vec<In> {
    read_as(settings, topic, "read_committed")
}

/// Everything in a topic under an isolation level.
pub fn read_as(settings: &Settings, topic: &str, isolation: &str) -> Vec<In> {
    let consumer: BaseConsumer = ClientConfig::new()
        .set("bootstrap.servers", &settings.kafka.bootstrap_servers)
        .set("group.id", format!("{topic}.test-reader"))
        .set("enable.auto.commit", "false")
        .set("auto.offset.reset", "earliest")
        .set("enable.partition.eof", "true")
        .set("isolation.level", isolation)
        .set("fetch.wait.max.ms", "10")
        .create()
        .unwrap();
    let metadata = consumer.fetch_metadata(Some(topic), PATIENCE).unwrap();
    let partitions: Vec<i32> = metadata.topics()[0].partitions().iter().map(|partition| partition.id()).collect();
    let mut list = TopicPartitionList::new();
    for &partition in &partitions {
        list.add_partition_offset(topic, partition, Offset::Beginning).unwrap();
    }
    consumer.assign(&list).unwrap();
    let (mut records, mut open) = (Vec::new(), partitions.len());
    let deadline = Instant::now() + PATIENCE;
    while open > 0 {
        assert!(Instant::now() < deadline, "reading {topic} takes too long");
        match consumer.poll(Duration::from_millis(100)) {
            Some(Ok(message)) => records.push(In {
                partition: message.partition(),
                offset: message.offset(),
                key: message.key().map(<[u8]>::to_vec),
                value: message.payload().map(<[u8]>::to_vec),
                headers: message.headers().map_or_else(Vec::new, |headers| {
                    headers.iter().map(|header| (header.key.to_owned(), header.value.map(<[u8]>::to_vec))).collect()
                }),
            }),
            Some(Err(KafkaError::PartitionEOF(_))) => open -= 1,
            Some(Err(error)) => panic!("reading {topic}: {error}"),
            None => {}
        }
    }
    records.sort_by_key(|record| (record.partition, record.offset));
    records
}

/// Offsets committed by a group.
pub fn committed(settings: &Settings, group: &str, topic: &str) -> BTreeMap<i32, i64> {
    let consumer: BaseConsumer = ClientConfig::new()
        .set("bootstrap.servers", &settings.kafka.bootstrap_servers)
        .set("group.id", group)
        .create()
        .unwrap();
    let metadata = consumer.fetch_metadata(Some(topic), PATIENCE).unwrap();
    let mut list = TopicPartitionList::new();
    for partition in metadata.topics()[0].partitions() {
        let _ = list.add_partition(topic, partition.id());
    }
    let committed = consumer.committed_offsets(list, PATIENCE).unwrap();
    committed
        .elements()
        .iter()
        .filter_map(|element| match element.offset() {
            Offset::Offset(offset) => Some((element.partition(), offset)),
            _ => None,
        })
        .collect()
}

/// Waits for a condition.
#[track_caller]
pub fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < deadline, "{what}: not within {PATIENCE:?}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Runs stages in this process until `done`, then drains them.
pub fn run(settings: &Settings, stages: &[Stage], mut done: impl FnMut(&Topology) -> bool) {
    let topology = Topology::start(settings, &parts(), stages).unwrap();
    eventually("the stages are done", || {
        assert!(!topology.ended().is_cancelled(), "a stage ended by itself");
        done(&topology)
    });
    topology.stop().unwrap();
}

/// Produces texts and embeds them all.
pub fn embed(settings: &Settings, records: &[Out]) {
    create_topics(settings);
    produce(settings, &settings.topics.texts, records);
    let count = records.len() as u64;
    run(settings, &[Stage::Embed], |topology| {
        let (embedded, dead) = topology.status.verdicts();
        embedded + dead >= count
    });
}

/// The program as a process of its own, ended when dropped.
pub struct Process {
    pub child: Child,
    /// Lines of standard error so far, and a condition for the next one.
    log: Arc<(Mutex<Log>, Condvar)>,
}

#[derive(Default)]
struct Log {
    lines: Vec<String>,
    ended: bool,
}

impl Process {
    /// Starts `sweepstream` with the settings as environment.
    pub fn start(settings: &Settings, arguments: &[&str]) -> Self {
        Self::spawn(command(settings, arguments))
    }

    /// Starts a prepared command.
    pub fn spawn(mut command: Command) -> Self {
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let log: Arc<(Mutex<Log>, Condvar)> = Arc::default();
        let (stderr, written) = (child.stderr.take().unwrap(), Arc::clone(&log));
        // A pipe that nobody reads would stop the process.
        let _ = std::thread::Builder::new()
            .name("stderr".into())
            .spawn(move || {
                for line in BufReader::new(stderr).lines() {
                    written.0.lock().unwrap().lines.push(line.unwrap());
                    written.1.notify_all();
                }
                written.0.lock().unwrap().ended = true;
                written.1.notify_all();
            })
            .unwrap();
        Self { child, log }
    }

    /// Sends a signal by its name, e.g. `TERM`.
    pub fn signal(&self, name: &str) {
        let status = Command::new("kill").arg(format!("-{name}")).arg(self.child.id().to_string()).status().unwrap();
        assert!(status.success());
    }

    /// Waits for the end.
    #[track_caller]
    pub fn wait(&mut self) -> ExitStatus {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            assert!(Instant::now() < deadline, "the process does not end");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Waits until a line of standard error contains this text.
    #[track_caller]
    pub fn await_line(&self, text: &str) -> String {
        let deadline = Instant::now() + PATIENCE;
        let mut log = self.log.0.lock().unwrap();
        loop {
            if let Some(line) = log.lines.iter().find(|line| line.contains(text)) {
                return line.clone();
            }
            let left = deadline.saturating_duration_since(Instant::now());
            assert!(!log.ended && !left.is_zero(), "the process never wrote `{text}`:\n{}", log.lines.join("\n"));
            log = self.log.1.wait_timeout(log, left).unwrap().0;
        }
    }

    /// All of standard error, once the process has ended.
    pub fn stderr(&self) -> String {
        let log = self.log.0.lock().unwrap();
        self.log.1.wait_while(log, |log| !log.ended).unwrap().lines.join("\n")
    }

    /// Where its HTTP endpoint is.
    #[track_caller]
    pub fn http_address(&self) -> String {
        let line = self.await_line("metrics, health and API are served");
        line.split("address=").nth(1).unwrap().trim().to_owned()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// What a finished command wrote.
#[derive(Debug)]
pub struct Finished {
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
}

/// Runs `sweepstream` to its end.
pub fn sweepstream(settings: &Settings, arguments: &[&str]) -> Finished {
    finish(command(settings, arguments))
}

/// Runs a prepared command to its end.
pub fn finish(command: Command) -> Finished {
    let mut process = Process::spawn(command);
    let mut stdout = String::new();
    let _ = process.child.stdout.take().unwrap().read_to_string(&mut stdout).unwrap();
    let status = process.wait();
    Finished { code: status.code().unwrap_or(-1), stdout, stderr: process.stderr() }
}

/// `sweepstream` with the settings as environment.
pub fn command(settings: &Settings, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_sweepstream"));
    let _ = command
        .args(arguments)
        .stdin(Stdio::null())
        .env("SWEEPSTREAM_KAFKA__BOOTSTRAP_SERVERS", &settings.kafka.bootstrap_servers)
        .env("SWEEPSTREAM_APPLICATION_ID", &settings.application_id)
        .env("SWEEPSTREAM_TOPICS__TEXTS", &settings.topics.texts)
        .env("SWEEPSTREAM_TOPICS__FEATURES", &settings.topics.features)
        .env("SWEEPSTREAM_TOPICS__DEAD_LETTERS", &settings.topics.dead_letters)
        .env("SWEEPSTREAM_TOPICS__TRIALS", &settings.topics.trials)
        .env("SWEEPSTREAM_TOPICS__OUTPUT", &settings.topics.output);
    command
}

/// Sentences that differ in length and words, with two labels that can be told apart.
pub fn sentences(count: usize) -> Vec<Out> {
    const SEA: [&str; 6] = ["waves", "harbour", "sailor", "anchor", "storm", "lighthouse"];
    const FIELD: [&str; 6] = ["tractor", "barley", "meadow", "harvest", "plough", "orchard"];
    (0..count)
        .map(|i| {
            let (words, label) = if i % 2 == 0 { (SEA, "sea") } else { (FIELD, "field") };
            let text: Vec<&str> = (0..3 + i * 7 % 11).map(|j| words[(i / 2 + j * j) % 6]).collect();
            Out::labelled(&format!("k{i}"), &format!("The {} number {i}.", text.join(" ")), label)
        })
        .collect()
}
