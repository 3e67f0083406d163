//! What every broker test uses: one real Kafka for all, names of its own for each, and a reader that shares no code
//! with the program.

// Shares no client code with the program it judges; each test binary uses what it needs.
#![allow(clippy::disallowed_methods, dead_code, unused_imports)]

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::KafkaError;
use rdkafka::message::{Header, Headers, Message, OwnedHeaders};
use rdkafka::producer::{BaseRecord, Producer, ThreadedProducer};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use rdkafka::types::RDKafkaErrorCode;
use rdkafka::ClientConfig;
use sweepstream::config::Settings;
use sweepstream::embed::stage::EMBED;
use sweepstream::kafka::local::{LocalBroker, LocalBrokerOptions};
use sweepstream::kafka::topics::Declarations;
use sweepstream::parts::Parts;
use sweepstream::stage::Spec;
use sweepstream::topology::Topology;

#[path = "log.rs"]
mod log;
#[path = "operator.rs"]
mod operator;
#[path = "process.rs"]
mod process;

pub use operator::{Operator, Transactions};
pub use process::{command, finish, get, sweepstream, try_get, Finished, Process};

/// Longest that anything in a test may take, on a machine that is busy with other things, too: what takes longer hangs.
/// What goes on meanwhile may take any time, see [`eventually_after`].
pub const PATIENCE: Duration = Duration::from_secs(150);

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
        // Lets tests take a killed process for dead sooner than Kafka's least of 6 s.
        let sessions = ("group.min.session.timeout.ms".into(), "1000".into());
        // Nobody could take its partitions over, so its own controller need not take a busy broker for dead after 9 s.
        let broker = ("broker.session.timeout.ms".into(), "60000".into());
        let properties = vec![sessions, broker];
        let options = LocalBrokerOptions { properties, ..LocalBrokerOptions::default() };
        let broker = LocalBroker::start(parts.kafka().expect("make parts"), &options).expect("the local Kafka starts");
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
    // A second session takes half a second to load and gains nothing with so few texts.
    settings.embed.sessions = std::num::NonZeroUsize::new(1);
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
        // The broker limits what arrives: a record may be far larger once it is unpacked.
        .set("compression.type", "zstd")
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
    if isolation == "read_committed" {
        await_markers(settings, &consumer, topic, &partitions);
    }
    let mut list = TopicPartitionList::new();
    for &partition in &partitions {
        list.add_partition_offset(topic, partition, Offset::Beginning).unwrap();
    }
    consumer.assign(&list).unwrap();
    // A partition that is written to meanwhile ends more than once.
    let mut open: BTreeSet<i32> = partitions.into_iter().collect();
    let mut records = Vec::new();
    let deadline = Instant::now() + PATIENCE;
    while !open.is_empty() {
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
            Some(Err(KafkaError::PartitionEOF(partition))) => {
                let _ = open.remove(&partition);
            }
            // A broker that was halted until just now; the reader connects again by itself.
            Some(Err(KafkaError::MessageConsumption(
                RDKafkaErrorCode::AllBrokersDown | RDKafkaErrorCode::BrokerTransportFailure,
            ))) => {}
            Some(Err(error)) => panic!("reading {topic}: {error}"),
            None => {}
        }
    }
    records.sort_by_key(|record| (record.partition, record.offset));
    records
}

/// A commit is answered before its markers are written, so what is committed already may not be readable yet. Waits for
/// that, but not for long: some tests leave transactions open.
fn await_markers(settings: &Settings, committed: &BaseConsumer, topic: &str, partitions: &[i32]) {
    let settle = Duration::from_secs(if is_busy() { 60 } else { 3 });
    let uncommitted: BaseConsumer = ClientConfig::new()
        .set("bootstrap.servers", &settings.kafka.bootstrap_servers)
        .set("isolation.level", "read_uncommitted")
        .create()
        .unwrap();
    // A topic that was created just now may have no leader yet.
    let end = |consumer: &BaseConsumer, partition| {
        let deadline = Instant::now() + PATIENCE;
        loop {
            match consumer.fetch_watermarks(topic, partition, PATIENCE) {
                Ok((_, end)) => return end,
                Err(error) => assert!(Instant::now() < deadline, "the end of {topic}/{partition}: {error}"),
            }
            // The client would not ask again by itself.
            drop(consumer.fetch_metadata(Some(topic), PATIENCE));
            std::thread::sleep(Duration::from_millis(50));
        }
    };
    let ends: Vec<i64> = partitions.iter().map(|&partition| end(&uncommitted, partition)).collect();
    let deadline = Instant::now() + settle;
    for (&partition, &wanted) in partitions.iter().zip(&ends) {
        while end(committed, partition) < wanted && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(5));
        }
        if Instant::now() >= deadline {
            println!("{topic}/{partition}: a transaction is still open or its marker not written after {settle:?}");
        }
    }
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
    committed_of(&consumer, &list)
        .elements()
        .iter()
        .filter_map(|element| match element.offset() {
            Offset::Offset(offset) => Some((element.partition(), offset)),
            _ => None,
        })
        .collect()
}

/// A group's coordinator may still be on its way, above all on a new cluster.
fn committed_of(consumer: &BaseConsumer, partitions: &TopicPartitionList) -> TopicPartitionList {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match consumer.committed_offsets(partitions.clone(), PATIENCE) {
            Ok(committed) => return committed,
            Err(error) => {
                let code = error.rdkafka_error_code();
                let waits = [RDKafkaErrorCode::NotCoordinator, RDKafkaErrorCode::CoordinatorLoadInProgress];
                assert!(code.is_some_and(|code| waits.contains(&code)) && Instant::now() < deadline, "{error}");
            }
        }
    }
}

/// Watches the position of the embed group without waiting for open transactions.
pub struct Progress {
    consumer: BaseConsumer,
    partitions: TopicPartitionList,
}

impl Progress {
    pub fn of(settings: &Settings) -> Self {
        let consumer: BaseConsumer = ClientConfig::new()
            .set("bootstrap.servers", &settings.kafka.bootstrap_servers)
            .set("group.id", settings.embed_group())
            .set("isolation.level", "read_uncommitted")
            .create()
            .unwrap();
        let texts = &settings.topics.texts;
        let metadata = consumer.fetch_metadata(Some(texts), PATIENCE).unwrap();
        let mut partitions = TopicPartitionList::new();
        for partition in metadata.topics()[0].partitions() {
            let _ = partitions.add_partition(texts, partition.id());
        }
        Self { consumer, partitions }
    }

    /// Offset committed of each partition, 0 where there is none.
    pub fn offsets(&self) -> Vec<i64> {
        let committed = committed_of(&self.consumer, &self.partitions);
        let offset = |offset: Offset| offset.to_raw().filter(|&raw| raw >= 0).unwrap_or(0);
        committed.elements().iter().map(|element| offset(element.offset())).collect()
    }

    pub fn done(&self) -> i64 {
        self.offsets().iter().sum()
    }

    /// Waits until this many texts have their verdicts.
    pub fn await_done(&self, count: i64) {
        eventually_after("texts are embedded", || self.done() as u64, || self.done() >= count);
    }
}

/// Fails when something took longer than it may.
#[track_caller]
pub fn assert_in_time(took: Duration, bound: Duration, log: &str) {
    assert_when_idle(took < bound, &format!("{took:?}, and may take {bound:?}"), log);
}

/// Fails when something does not hold that can be judged on a machine that has little else to do; on a busy one this
/// says so instead, where it is seen of tests that pass, too.
#[track_caller]
pub fn assert_when_idle(holds: bool, what: &str, log: &str) {
    if holds {
        return;
    }
    assert!(is_busy(), "{what}\n{log}");
    let caller = std::panic::Location::caller();
    let said = format!("{caller}: NOT judged on a busy machine: {what}\n");
    std::io::stderr().write_all(said.as_bytes()).unwrap();
}

/// Whether more wants to run on this machine than two for each core.
pub fn is_busy() -> bool {
    let load = std::fs::read_to_string("/proc/loadavg").unwrap();
    let load: f64 = load.split(' ').next().unwrap().parse().unwrap();
    load > 2.0 * std::thread::available_parallelism().unwrap().get() as f64
}

/// Waits for a condition.
#[track_caller]
pub fn eventually(what: &str, condition: impl FnMut() -> bool) {
    eventually_after(what, || 0, condition);
}

/// Waits for a condition that comes after much else: as long as what is `done` changes, nothing hangs, however busy the
/// machine. (400 transactions and three restarts of a broker took ten minutes beside ten busy processes.)
#[track_caller]
pub fn eventually_after(what: &str, mut done: impl FnMut() -> u64, mut condition: impl FnMut() -> bool) {
    let (mut seen, mut changed) = (done(), Instant::now());
    while !condition() {
        if changed.elapsed() > PATIENCE {
            let now = done();
            assert!(now != seen, "{what}: nothing has been done for {PATIENCE:?}, {seen} before");
            (seen, changed) = (now, Instant::now());
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Runs stages in this process until `done`, then drains them.
pub fn run(settings: &Settings, stages: &[&'static Spec], mut done: impl FnMut(&Topology) -> bool) {
    log::keep();
    let topology = Topology::start(settings, &parts(), stages).unwrap();
    {
        let _told = Told(&topology, &settings.application_id);
        let done = || {
            assert!(!topology.ended().is_cancelled(), "a stage ended by itself");
            done(&topology)
        };
        eventually_after("the stages are done", || work(&topology), done);
    }
    topology.stop().unwrap();
}

/// Says how its stages stand when a test fails meanwhile.
struct Told<'t>(&'t Topology, &'t str);

impl Drop for Told<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let Topology { status, .. } = self.0;
            eprintln!("ready: {:?}; verdicts: {:?}; trials: {:#?}", status.ready(), status.verdicts(), status.trials());
            eprintln!("{}", log::about(self.1));
        }
    }
}

/// What its stages have done so far: verdicts and steps.
pub fn work(topology: &Topology) -> u64 {
    let (embedded, dead) = topology.status.verdicts();
    embedded + dead + topology.status.trials().values().map(|trial| trial.step).sum::<u64>()
}

/// Produces texts and embeds them all.
pub fn embed(settings: &Settings, records: &[Out]) {
    create_topics(settings);
    produce(settings, &settings.topics.texts, records);
    let count = records.len() as u64;
    run(settings, &[&EMBED], |topology| {
        let (embedded, dead) = topology.status.verdicts();
        embedded + dead >= count
    });
}

/// Runs the embed stage in this process until it has given this many verdicts.
pub fn embed_more(settings: &Settings, verdicts: usize) {
    run(settings, &[&EMBED], |topology| {
        let (embedded, dead) = topology.status.verdicts();
        embedded + dead >= verdicts as u64
    });
}

/// Texts, features and dead letters, read side by side since each new reader takes half a second to begin.
pub fn read_verdicts(settings: &Settings) -> [Vec<In>; 3] {
    let topics = &settings.topics;
    std::thread::scope(|scope| {
        [&topics.texts, &topics.features, &topics.dead_letters]
            .map(|topic| scope.spawn(move || read(settings, topic)))
            .map(|reader| reader.join().unwrap())
    })
}

/// Checks promise 1: each text has exactly one verdict, and each topic keeps the order of its texts.
#[track_caller]
pub fn assert_one_verdict_each(settings: &Settings) {
    let [texts, features, dead] = read_verdicts(settings);
    let source = |text: &In| format!("{}/{}/{}", settings.topics.texts, text.partition, text.offset);
    let is_dead: BTreeSet<String> = dead.iter().map(|letter| letter.header("source").unwrap()).collect();
    let (expected_dead, expected): (Vec<&In>, Vec<&In>) =
        texts.iter().partition(|text| is_dead.contains(&source(text)));
    // Reading sorts by partition and offset, so equal lists mean equal order.
    let seen = |records: &[In]| records.iter().map(|r| (r.partition, r.header("source").unwrap())).collect::<Vec<_>>();
    let wanted = |texts: &[&In]| texts.iter().map(|text| (text.partition, source(text))).collect::<Vec<_>>();
    assert_eq!(seen(&features), wanted(&expected));
    assert_eq!(seen(&dead), wanted(&expected_dead));
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

/// A matrix as any reader of safetensors sees it.
#[derive(Debug)]
pub struct Matrix {
    pub dtype: safetensors::Dtype,
    pub rows: Vec<Vec<f32>>,
}

impl In {
    /// The value as a matrix.
    pub fn matrix(&self) -> Matrix {
        let tensors = safetensors::SafeTensors::deserialize(self.value.as_deref().unwrap()).unwrap();
        let tensor = tensors.tensor("rows").unwrap();
        let &[rows, dim] = tensor.shape() else { panic!("shape {:?}", tensor.shape()) };
        let numbers: Vec<f32> = match tensor.dtype() {
            safetensors::Dtype::F16 => tensor
                .data()
                .chunks_exact(2)
                .map(|bytes| half::f16::from_le_bytes(bytes.try_into().unwrap()).to_f32())
                .collect(),
            safetensors::Dtype::F32 => {
                tensor.data().chunks_exact(4).map(|bytes| f32::from_le_bytes(bytes.try_into().unwrap())).collect()
            }
            other => panic!("{other:?}"),
        };
        let rows_of = numbers.chunks_exact(dim).map(<[f32]>::to_vec).collect::<Vec<_>>();
        assert_eq!(rows_of.len(), rows);
        Matrix { dtype: tensor.dtype(), rows: rows_of }
    }
}
