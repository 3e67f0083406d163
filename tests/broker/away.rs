//! The broker goes away and comes back: what runs waits, says so, and loses nothing.

use std::process::{Command, Stdio};

use sweepstream::config::Settings;
use sweepstream::kafka::local::{LocalBroker, LocalBrokerOptions};
use sweepstream::kafka::ports;

use crate::lab::{assert_expected, dealt, points, Lab};
use crate::support::{
    self, assert_one_verdict_each, create_topics, eventually, eventually_after, get, parts, produce, read, Out,
    Process, Progress,
};

/// A broker of the test's own that keeps its data and its port.
pub struct Broker {
    folder: tempfile::TempDir,
    port: u16,
    running: Option<LocalBroker>,
}

impl Broker {
    pub fn start() -> Self {
        let [port] = ports::free().unwrap();
        let mut broker = Self { folder: tempfile::tempdir().unwrap(), port, running: None };
        broker.restart();
        broker
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    fn restart(&mut self) {
        let options = LocalBrokerOptions {
            data: Some(self.folder.path().join("data")),
            port: Some(self.port),
            properties: vec![
                ("group.min.session.timeout.ms".into(), "1000".into()),
                // Kafka 4.3 looks for timed-out transactions even before it knows its topics again, and forgets to end
                // them there: they hang.
                ("transaction.abort.timed.out.transaction.cleanup.interval.ms".into(), "1000".into()),
            ],
        };
        self.running = Some(LocalBroker::start(parts().kafka().unwrap(), &options).unwrap());
    }

    pub fn signal(&self, name: &str) {
        let shell = self.running.as_ref().unwrap().id();
        let group = format!("-{shell}");
        assert!(Command::new("kill").args([&format!("-{name}"), "--", &group]).status().unwrap().success());
    }

    fn kill(&mut self) {
        self.signal("KILL");
        drop(self.running.take());
        // Only the shell has been waited for.
        eventually("the broker has ended", || ports::bind(self.port).is_ok());
    }

    pub fn settings(&self, name: &str) -> Settings {
        let mut settings = support::settings(name);
        settings.kafka.bootstrap_servers = format!("127.0.0.1:{}", self.port);
        settings
    }
}

/// A broker as a process that cannot write a file beyond so many kibibytes, as on a disk that is full.
fn limited(broker: &Broker, file_kibibytes: u32) -> Process {
    let mut command = Command::new("bash");
    let _ = command
        .args(["-c", "ulimit -f $1; exec \"$2\" broker --port $3 --data $4", "bash", &file_kibibytes.to_string()])
        .args([env!("CARGO_BIN_EXE_sweepstream"), &broker.port.to_string()])
        .arg(broker.folder.path().join("data"))
        .stdin(Stdio::null());
    let process = Process::spawn(command);
    let address = ("127.0.0.1", broker.port);
    eventually("the broker listens", || std::net::TcpStream::connect(address).is_ok());
    process
}

fn texts(count: usize) -> Vec<Out> {
    (0..count)
        .map(|i| Out::text(&format!("k{i}"), &"the sailor saw the lighthouse ".repeat(1 + i % 12)).to(i as i32 % 4))
        .collect()
}

fn embedder(settings: &Settings) -> Process {
    let arguments = [
        "run",
        "--stage=embed",
        "-s",
        "embed.chunk_texts=8",
        "-s",
        "embed.sessions=1",
        "-s",
        "kafka.transaction_timeout=4s",
    ];
    Process::start(settings, &arguments)
}

fn ready(address: &str) -> bool {
    get(address, "/health/ready").0 == 200
}

fn stop(mut process: Process) -> String {
    process.signal("TERM");
    assert_eq!(process.wait().code(), Some(0), "{}", process.stderr());
    process.stderr()
}

/// The broker goes by `away` in mid-stream, is missed, and comes back by `back`.
fn goes_and_comes(name: &str, away: fn(&mut Broker), back: fn(&mut Broker)) -> String {
    let mut broker = Broker::start();
    let settings = broker.settings(name);
    create_topics(&settings);
    produce(&settings, &settings.topics.texts, &texts(300));
    let progress = Progress::of(&settings);
    let process = embedder(&settings);
    let address = process.http_address();
    progress.await_done(30);
    assert!(ready(&address));
    away(&mut broker);
    eventually("it is not ready", || !ready(&address));
    // The transaction that was open has failed for good, and what follows waits.
    let _ = process.await_line("a transaction of the embed stage failed");
    assert_eq!(get(&address, "/health/live").0, 200);
    let set = format!("http.address={address}");
    let health = support::sweepstream(&settings, &["-s", &set, "health"]);
    assert_eq!(health.code, 1);
    assert!(health.stderr.contains("not ready"), "{}", health.stderr);
    assert_eq!(support::sweepstream(&settings, &["-s", &set, "health", "--live"]).stdout, "live\n");
    back(&mut broker);
    eventually("it is ready again", || ready(&address));
    progress.await_done(300);
    let log = stop(process);
    assert_one_verdict_each(&settings);
    log
}

/// Lines of the program itself that say that Kafka went or came.
fn said(log: &str, what: &str) -> usize {
    log.lines().filter(|line| line.contains(what)).count()
}

#[test]
fn a_broker_that_dies_is_waited_for_and_nothing_is_lost() {
    let log = goes_and_comes("dies", Broker::kill, Broker::restart);
    assert!(said(&log, "kafka is away") + said(&log, "kafka does not answer, waiting") >= 1, "{log}");
    assert!(!log.contains("failed for good"), "{log}");
}

#[test]
fn a_broker_that_hangs_is_waited_for_and_nothing_is_lost() {
    let log = goes_and_comes("hangs", |broker| broker.signal("STOP"), |broker| broker.signal("CONT"));
    assert!(!log.contains("failed for good"), "{log}");
}

#[test]
fn a_disk_that_is_full_ends_the_broker_and_nothing_is_lost() {
    let mut broker = Broker::start();
    // Formatted by now; what follows is about a broker that exists.
    broker.kill();
    let mut full = limited(&broker, 16 * 1024);
    let settings = broker.settings("full");
    create_topics(&settings);
    // 46 kB each, in one partition.
    let long: Vec<Out> = (0..500).map(|i| Out::text(&format!("k{i}"), &"harbour ".repeat(60)).to(0)).collect();
    produce(&settings, &settings.topics.texts, &long);
    let process = embedder(&settings);
    let address = process.http_address();
    let _ = full.wait();
    eventually("it is not ready", || !ready(&address));
    broker.restart();
    let progress = Progress::of(&settings);
    assert!(progress.done() < 500);
    progress.await_done(500);
    let _ = stop(process);
    assert_one_verdict_each(&settings);
}

#[test]
fn a_stop_while_the_broker_is_away_ends_in_time() {
    let mut broker = Broker::start();
    let settings = broker.settings("stop-away");
    create_topics(&settings);
    produce(&settings, &settings.topics.texts, &texts(100));
    let progress = Progress::of(&settings);
    let process = embedder(&settings);
    let address = process.http_address();
    progress.await_done(20);
    broker.kill();
    eventually("it is not ready", || !ready(&address));
    let _ = stop(process);
    broker.restart();
    let successor = embedder(&settings);
    progress.await_done(100);
    let _ = stop(successor);
    assert_one_verdict_each(&settings);
}

#[test]
fn trials_outlive_a_broker_that_dies() {
    let mut broker = Broker::start();
    let mut lab = Lab::at(broker.settings("trials-away"), 2);
    lab.fill(&dealt(points(50), 2));
    lab.settings.kafka.session_timeout = std::time::Duration::from_secs(3);
    lab.settings.kafka.transaction_timeout = std::time::Duration::from_secs(4);
    lab.settings.train.checkpoint_interval = std::time::Duration::from_millis(20);
    let search = lab.start(
        "name = \"a\"\nvalidation = 5\nwindow = 9\nbatch_size = 8\nmodel = \"mlp\"\nhidden = [3, 4]\nepochs = 200\n",
    );
    let trainer = lab.trainer("log");
    for times in 1..=3 {
        eventually_after("both are at work", || lab.written(), || lab.written() > 40 * times);
        broker.kill();
        broker.restart();
    }
    let ended = |settings: &Settings| {
        let records = read(settings, &settings.topics.output);
        search
            .trials
            .iter()
            .all(|trial| records.iter().any(|record| record.key() == format!("{}/outcome", trial.trial)))
    };
    eventually_after("both end", || lab.written(), || ended(&lab.settings));
    drop(trainer);
    println!("{}", lab.log("log"));
    let output = lab.output();
    for trial in &search.trials {
        assert_expected(&output, trial, &dealt(points(50), 2));
    }
}
