//! The real program as processes beside a bench.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rdkafka::producer::{BaseRecord, Producer as _, ThreadedProducer};
use sweepstream::config::Settings;
use sweepstream::kafka::client;

/// Produces keys, texts and labels.
pub fn produce(settings: &Settings, records: impl Iterator<Item = (String, String, &'static str)>) {
    let producer = Producer::of(client::producer(settings).set("linger.ms", "20"), settings);
    for (key, text, label) in records {
        producer.queue(&key, &text, label);
    }
    producer.producer.flush(Duration::from_secs(60)).unwrap();
}

/// Produces one text after another.
pub struct Producer {
    producer: ThreadedProducer<rdkafka::producer::DefaultProducerContext>,
    topic: String,
}

impl Producer {
    pub fn new(settings: &Settings) -> Self {
        Self::of(&mut client::producer(settings), settings)
    }

    fn of(config: &mut rdkafka::ClientConfig, settings: &Settings) -> Self {
        Self { producer: config.create().unwrap(), topic: settings.topics.texts.clone() }
    }

    /// At once, by the producer's own thread.
    pub fn send(&self, key: &str, text: &str) {
        self.queue(key, text, "x");
    }

    fn queue(&self, key: &str, text: &str, label: &str) {
        let headers =
            rdkafka::message::OwnedHeaders::new().insert(rdkafka::message::Header { key: "label", value: Some(label) });
        let mut record = BaseRecord::to(&self.topic).key(key).payload(text).headers(headers);
        while let Err((_, refused)) = self.producer.send(record) {
            record = refused;
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

/// The program with these settings.
pub fn command(settings: &Settings, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_sweepstream"));
    let topics = &settings.topics;
    let _ = command
        .args(arguments)
        .env("SWEEPSTREAM_KAFKA__BOOTSTRAP_SERVERS", &settings.kafka.bootstrap_servers)
        .env("SWEEPSTREAM_APPLICATION_ID", &settings.application_id)
        .env("SWEEPSTREAM_HTTP__ADDRESS", settings.http.address.as_deref().unwrap_or("127.0.0.1:0"));
    for (key, name) in topics.names() {
        let _ = command.env(format!("SWEEPSTREAM_TOPICS__{}", key.to_uppercase()), name);
    }
    if let Some(folder) = &topics.dir {
        let _ = command.env("SWEEPSTREAM_TOPICS__DIR", folder);
    }
    command
}

/// The program as a process of its own, ended when dropped.
pub struct Running {
    pub child: Child,
    address: String,
}

impl Running {
    /// Starts it and waits until it is ready.
    pub fn start(settings: &Settings, arguments: &[&str]) -> Self {
        let running = Self::spawn(settings, arguments);
        while running.try_get("/health/ready").is_none() {
            std::thread::sleep(Duration::from_millis(50));
        }
        running
    }

    /// Starts it.
    pub fn spawn(settings: &Settings, arguments: &[&str]) -> Self {
        let mut settings = settings.clone();
        let [port] = sweepstream::kafka::ports::free().unwrap();
        let address = format!("127.0.0.1:{port}");
        settings.http.address = Some(address.clone());
        let child = command(&settings, arguments).stdout(Stdio::null()).stderr(Stdio::inherit()).spawn().unwrap();
        Self { child, address }
    }

    fn try_get(&self, path: &str) -> Option<String> {
        let mut stream = TcpStream::connect(&self.address).ok()?;
        write!(stream, "GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").ok()?;
        let mut answer = String::new();
        let _ = stream.read_to_string(&mut answer).ok()?;
        Some(answer.split_once("\r\n\r\n")?.1.to_owned())
    }

    pub fn get(&self, path: &str) -> String {
        self.try_get(path).unwrap_or_default()
    }

    pub fn metric(&self, name: &str) -> u64 {
        self.value(name) as u64
    }

    pub fn value(&self, name: &str) -> f64 {
        let metrics = self.get("/metrics");
        let value = metrics.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.parse::<f64>().ok());
        value.unwrap_or(0.0)
    }

    pub fn rss_megabytes(&self) -> f64 {
        self.status_megabytes("VmRSS:")
    }

    fn status_megabytes(&self, name: &str) -> f64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap_or_default();
        let line = status.lines().find_map(|line| line.strip_prefix(name));
        line.and_then(|line| line.trim().trim_end_matches("kB").trim().parse::<f64>().ok()).unwrap_or(f64::NAN) / 1024.0
    }
}

impl Running {
    /// Peak resident memory so far.
    pub fn peak_rss_megabytes(&self) -> f64 {
        self.status_megabytes("VmHWM:")
    }

    /// Asks it to end in order, and waits until it has.
    pub fn stop(&mut self) {
        let id = self.child.id().to_string();
        let _ = Command::new("kill").args(["-TERM", &id]).status().unwrap();
        let _ = self.child.wait().unwrap();
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}
