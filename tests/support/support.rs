//! What every broker test uses: one real Kafka for all, names of its own for each, and a reader that shares no code
//! with the program.

// Shares no client code with the program it judges; each test binary uses what it needs.
#![allow(clippy::disallowed_methods, dead_code)]

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use futures::executor::block_on;
use parking_lot::{Condvar, Mutex};
use rdkafka::admin::{
    AdminClient, AdminOptions, AlterConfig, ConfigSource, NewTopic, ResourceSpecifier, TopicReplication,
};
use rdkafka::client::DefaultClientContext;
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

/// Fails when something does not hold that can be judged on a machine that has little else to do; on a busy one this says
/// so instead, where it is seen of tests that pass, too.
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
    let topology = Topology::start(settings, &parts(), stages).unwrap();
    {
        let _told = Told(&topology);
        let done = || {
            assert!(!topology.ended().is_cancelled(), "a stage ended by itself");
            done(&topology)
        };
        eventually_after("the stages are done", || work(&topology), done);
    }
    topology.stop().unwrap();
}

/// Says how its stages stand when a test fails meanwhile.
struct Told<'t>(&'t Topology);

impl Drop for Told<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let Topology { status, .. } = self.0;
            eprintln!("ready: {:?}; verdicts: {:?}; trials: {:#?}", status.ready(), status.verdicts(), status.trials());
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

/// The program as a process of its own, ended when dropped.
pub struct Process {
    pub child: Child,
    /// Lines of standard error so far, and a condition for the next one.
    log: Arc<(Mutex<Log>, Condvar)>,
    /// Where it logs instead.
    file: Option<PathBuf>,
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
                    written.0.lock().lines.push(line.unwrap());
                    let _ = written.1.notify_all();
                }
                written.0.lock().ended = true;
                let _ = written.1.notify_all();
            })
            .unwrap();
        Self { child, log, file: None }
    }

    /// Starts a prepared command that logs to the end of a file.
    pub fn logged(mut command: Command, file: &Path) -> Self {
        let log = std::fs::OpenOptions::new().create(true).append(true).open(file).unwrap();
        let child = command.stdout(Stdio::null()).stderr(log).spawn().unwrap();
        Self { child, log: Arc::default(), file: Some(file.to_owned()) }
    }

    /// Sends a signal by its name, e.g. `TERM`.
    pub fn signal(&self, name: &str) {
        let status = Command::new("kill").arg(format!("-{name}")).arg(self.child.id().to_string()).status().unwrap();
        assert!(status.success());
    }

    /// Sends several signals with as little time between them as can be.
    pub fn signals(&self, names: &[&str]) {
        let id = self.child.id();
        let kills: Vec<String> = names.iter().map(|name| format!("kill -{name} {id}")).collect();
        assert!(Command::new("sh").arg("-c").arg(kills.join(" && ")).status().unwrap().success());
    }

    /// Waits for the end: as long as the process computes, it does not hang.
    #[track_caller]
    pub fn wait(&mut self) -> ExitStatus {
        let times = format!("/proc/{}/stat", self.child.id());
        // User and system time in hundredths, counted in steps that nothing but work takes within the patience.
        let worked = || {
            let times = std::fs::read_to_string(&times).unwrap_or_default();
            let after_name = times.rsplit(')').next().unwrap_or_default();
            after_name.split_whitespace().skip(11).take(2).filter_map(|time| time.parse::<u64>().ok()).sum::<u64>()
                / 300
        };
        let mut status = None;
        eventually_after("the process ends", worked, || {
            status = self.child.try_wait().unwrap();
            status.is_some()
        });
        status.unwrap()
    }

    /// Waits until a line of standard error contains this text.
    #[track_caller]
    pub fn await_line(&self, text: &str) -> String {
        let mut log = self.log.0.lock();
        let (mut deadline, mut seen) = (Instant::now() + PATIENCE, log.lines.len());
        loop {
            // Whoever says something goes on.
            if log.lines.len() > seen {
                (deadline, seen) = (Instant::now() + PATIENCE, log.lines.len());
            }
            if let Some(line) = log.lines.iter().find(|line| line.contains(text)) {
                return line.clone();
            }
            let in_time = Instant::now() < deadline;
            assert!(!log.ended && in_time, "the process never wrote `{text}`:\n{}", log.lines.join("\n"));
            let _ = self.log.1.wait_until(&mut log, deadline);
        }
    }

    /// All of standard error, once the process has ended.
    pub fn stderr(&self) -> String {
        let mut log = self.log.0.lock();
        self.log.1.wait_while(&mut log, |log| !log.ended);
        log.lines.join("\n")
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
        if std::thread::panicking() {
            let logged = self.file.as_ref().and_then(|file| std::fs::read_to_string(file).ok());
            println!("what it has logged:\n{}", logged.unwrap_or_else(|| self.log.0.lock().lines.join("\n")));
        }
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
    if let Some(folder) = &settings.topics.dir {
        let _ = command.env("SWEEPSTREAM_TOPICS__DIR", folder);
    }
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

/// Status code and body of a GET request.
pub fn get(address: &str, path: &str) -> (u16, String) {
    try_get(address, path).unwrap()
}

/// [`get`] from who may have no file descriptor left to answer with, and then ends a connection unanswered.
pub fn try_get(address: &str, path: &str) -> std::io::Result<(u16, String)> {
    let mut stream = std::net::TcpStream::connect(address)?;
    write!(stream, "GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n")?;
    let mut answer = String::new();
    let _ = stream.read_to_string(&mut answer)?;
    let (head, body) = answer.split_once("\r\n\r\n").ok_or(std::io::ErrorKind::UnexpectedEof)?;
    Ok((head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_owned()))
}

/// What an operator does to topics and groups.
pub struct Operator {
    client: AdminClient<DefaultClientContext>,
    settings: Settings,
}

impl Operator {
    pub fn new(settings: &Settings) -> Self {
        let client = ClientConfig::new().set("bootstrap.servers", &settings.kafka.bootstrap_servers).create().unwrap();
        Self { client, settings: settings.clone() }
    }

    /// Creates a topic and waits until it can be used.
    pub fn create_topic(&self, name: &str, partitions: i32, config: &[(&str, &str)]) {
        let mut topic = NewTopic::new(name, partitions, TopicReplication::Fixed(-1));
        for (key, value) in config {
            topic = topic.set(key, value);
        }
        let results = block_on(self.client.create_topics([&topic], &AdminOptions::new())).unwrap();
        assert!(results.iter().all(Result::is_ok), "{results:?}");
        let client = self.client.inner();
        eventually("the topic is known", || {
            let metadata = client.fetch_metadata(Some(name), PATIENCE).unwrap();
            metadata.topics()[0].partitions().len() == partitions as usize
        });
    }

    /// The configuration of a topic.
    pub fn config(&self, topic: &str) -> BTreeMap<String, String> {
        let described =
            block_on(self.client.describe_configs(&[ResourceSpecifier::Topic(topic)], &AdminOptions::new()));
        let entries = described.unwrap().remove(0).unwrap().entries;
        entries.into_iter().filter_map(|entry| Some((entry.name, entry.value?))).collect()
    }

    /// Sets one key of a topic and keeps all others that were set.
    pub fn alter(&self, topic: &str, key: &str, value: &str) {
        let described =
            block_on(self.client.describe_configs(&[ResourceSpecifier::Topic(topic)], &AdminOptions::new()));
        let entries = described.unwrap().remove(0).unwrap().entries;
        let mut wanted: BTreeMap<String, String> = entries
            .into_iter()
            .filter(|entry| entry.source == ConfigSource::DynamicTopic)
            .filter_map(|entry| Some((entry.name, entry.value?)))
            .collect();
        let _ = wanted.insert(key.to_owned(), value.to_owned());
        let mut altered = AlterConfig::new(ResourceSpecifier::Topic(topic));
        for (key, value) in &wanted {
            altered = altered.set(key, value);
        }
        let results = block_on(self.client.alter_configs([&altered], &AdminOptions::new())).unwrap();
        assert!(results.iter().all(Result::is_ok), "{results:?}");
        eventually("the configuration is known", || self.config(topic).get(key).is_some_and(|now| now == value));
    }

    /// Deletes a topic and waits until it is gone.
    pub fn delete_topic(&self, name: &str) {
        let deleted = block_on(self.client.delete_topics(&[name], &AdminOptions::new())).unwrap();
        assert!(deleted.iter().all(Result::is_ok), "{deleted:?}");
        eventually("the topic is gone", || {
            let metadata = self.client.inner().fetch_metadata(Some(name), PATIENCE).unwrap();
            metadata.topics()[0].partitions().is_empty()
        });
    }

    /// Deletes a topic and creates it again as declared.
    pub fn recreate_topic(&self, name: &str) {
        self.delete_topic(name);
        create_topics(&self.settings);
    }

    /// Deletes the records of a partition below an offset.
    pub fn delete_records(&self, topic: &str, partition: i32, before: i64) {
        let mut list = TopicPartitionList::new();
        list.add_partition_offset(topic, partition, Offset::Offset(before)).unwrap();
        let deleted = block_on(self.client.delete_records(&list, &AdminOptions::new())).unwrap();
        deleted.find_partition(topic, partition).unwrap().error().unwrap();
    }

    /// Forgets a group's offsets, as Kafka does by itself after a week.
    pub fn delete_group(&self, group: &str) {
        eventually("the group is deleted", || {
            let results = block_on(self.client.delete_groups(&[group], &AdminOptions::new())).unwrap();
            results.iter().all(Result::is_ok)
        });
    }

    /// Sets the position of a group that has no members.
    pub fn commit(&self, group: &str, topic: &str, partition: i32, offset: i64) {
        self.commit_with(group, topic, partition, offset, "");
    }

    /// [`Operator::commit`], with something stored beside it.
    pub fn commit_with(&self, group: &str, topic: &str, partition: i32, offset: i64, metadata: &str) {
        let consumer: BaseConsumer = ClientConfig::new()
            .set("bootstrap.servers", &self.settings.kafka.bootstrap_servers)
            .set("group.id", group)
            .create()
            .unwrap();
        let mut list = TopicPartitionList::new();
        let mut element = list.add_partition(topic, partition);
        element.set_offset(Offset::Offset(offset)).unwrap();
        element.set_metadata(metadata);
        consumer.commit(&list, rdkafka::consumer::CommitMode::Sync).unwrap();
    }
}

/// A transactional producer that is not the program's.
pub struct Transactions {
    producer: ThreadedProducer<rdkafka::producer::DefaultProducerContext>,
}

impl Transactions {
    pub fn new(settings: &Settings) -> Self {
        Self::lasting(settings, &format!("{}.other", settings.application_id))
    }

    /// Its transactions may stay open for ten minutes.
    pub fn lasting(settings: &Settings, transactional_id: &str) -> Self {
        let producer: ThreadedProducer<rdkafka::producer::DefaultProducerContext> = ClientConfig::new()
            .set("bootstrap.servers", &settings.kafka.bootstrap_servers)
            .set("transactional.id", transactional_id)
            .set("transaction.timeout.ms", "600000")
            .create()
            .unwrap();
        producer.init_transactions(PATIENCE).unwrap();
        producer.begin_transaction().unwrap();
        Self { producer }
    }

    /// Sends texts to a partition of a topic.
    pub fn send(&self, topic: &str, partition: i32, texts: &[&str]) {
        for text in texts {
            let record: BaseRecord<'_, str, str> = BaseRecord::to(topic).partition(partition).payload(*text);
            self.producer.send(record).map_err(|(error, _)| error).unwrap();
        }
        self.producer.flush(PATIENCE).unwrap();
    }

    /// Adds a group's position to the open transaction.
    pub fn send_offset(&self, settings: &Settings, group: &str, topic: &str, partition: i32, offset: i64) {
        let consumer: BaseConsumer = ClientConfig::new()
            .set("bootstrap.servers", &settings.kafka.bootstrap_servers)
            .set("group.id", group)
            .create()
            .unwrap();
        let mut list = TopicPartitionList::new();
        list.add_partition_offset(topic, partition, Offset::Offset(offset)).unwrap();
        self.producer.send_offsets_to_transaction(&list, &consumer.group_metadata().unwrap(), PATIENCE).unwrap();
    }

    /// Ends the transaction and opens the next.
    pub fn commit(&self) {
        self.producer.commit_transaction(PATIENCE).unwrap();
        self.producer.begin_transaction().unwrap();
    }

    /// Takes the transaction back and opens the next.
    pub fn abort(&self) {
        self.producer.abort_transaction(PATIENCE).unwrap();
        self.producer.begin_transaction().unwrap();
    }
}
