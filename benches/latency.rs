//! How long a text takes from being produced until a reader of `features` has its matrix, while one comes now and then,
//! and how long a process takes from its start to its first matrix. Beside them, what memory the process needs. All
//! with the real program as a process of its own. `cargo bench --bench latency -- --texts 200 --starts 9`

mod support;

use std::time::{Duration, Instant};

use rdkafka::config::FromClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::message::Message;
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use sweepstream::config::Settings;
use sweepstream::kafka::client;
use sweepstream::kafka::topics::Declarations;

use support::process::{produce, Running};
use support::{median, Bench, Figures};

const TEXT: &str = "The keeper of the lighthouse saw a sail on the horizon an hour before the storm reached the rocks";

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    let value = |name: &str, default: usize| {
        let at = arguments.iter().position(|argument| argument == name);
        at.and_then(|at| arguments.get(at + 1)?.parse().ok()).unwrap_or(default)
    };
    let bench = Bench::start();
    let mut figures = Figures::default();
    let mut starts = Vec::new();
    for _ in 0..value("--starts", 5) {
        starts.push(start(&bench));
    }
    figures.add(
        "from a process's start to its first feature, longest",
        starts.iter().copied().fold(0.0, f64::max),
        "s",
    );
    figures.add("from a process's start to its first feature, median", median(starts), "s");
    trickle(&bench, value("--texts", 20), &mut figures);
    figures.finish("latency");
}

/// Topics and a text are there, and a reader waits.
fn start(bench: &Bench) -> f64 {
    let settings = bench.settings();
    let _ = Declarations::load(&settings).unwrap().ensure(&settings, None).unwrap();
    produce(&settings, std::iter::once(("first".into(), TEXT.into(), "x")));
    let reader = Reader::new(&settings);
    // The reader's own start is not meant.
    assert!(reader.next(Duration::from_secs(1)).is_none());
    let started = Instant::now();
    let process = Running::spawn(&settings, &["run", "--stage=embed"]);
    let _ = reader.next(Duration::from_secs(60)).expect("a feature");
    let seconds = started.elapsed().as_secs_f64();
    drop(process);
    seconds
}

/// One text a second at an idle stage.
fn trickle(bench: &Bench, texts: usize, figures: &mut Figures) {
    let settings = bench.settings();
    let _ = Declarations::load(&settings).unwrap().ensure(&settings, None).unwrap();
    let process = Running::start(&settings, &["run", "--stage=embed"]);
    let reader = Reader::new(&settings);
    let producer = support::process::Producer::new(&settings);
    // Clients connect, the JVM compiles.
    for i in 0..5 {
        producer.send(&format!("warm {i}"), TEXT);
        let _ = reader.next(Duration::from_secs(60)).expect("a feature");
    }
    let sum = |name: &str| process.value(&format!("sweepstream_{name}_seconds_sum"));
    let names = ["embed_inference_duration", "features_transaction_duration", "embed_latency"];
    let before = names.map(sum);
    let mut seconds = Vec::new();
    for i in 0..texts {
        // Not in step with whatever else happens each second.
        std::thread::sleep(Duration::from_millis(850 + 300 * (i as u64 * 7 % 11) / 11));
        let key = format!("text {i}");
        let started = Instant::now();
        producer.send(&key, TEXT);
        assert_eq!(reader.next(Duration::from_secs(60)).as_deref(), Some(key.as_bytes()));
        seconds.push(started.elapsed().as_secs_f64());
    }
    let after = names.map(sum);
    let mean_ms = |i: usize| (after[i] - before[i]) / texts as f64 * 1e3;
    let (inference, transaction, committed) = (mean_ms(0), mean_ms(1), mean_ms(2));
    let whole = seconds.iter().sum::<f64>() / texts as f64 * 1e3;
    let mut sorted = seconds.clone();
    sorted.sort_by(f64::total_cmp);
    let quantile = |q: f64| sorted[((texts as f64 * q).ceil() as usize).clamp(1, texts) - 1] * 1e3;
    figures.add("one text a second, produced to read: median", quantile(0.5), "ms");
    figures.add("one text a second, produced to read: 99 of 100", quantile(0.99), "ms");
    figures.add("  mean, of it before inference: fetch, tokens", committed - inference - transaction, "ms");
    figures.add("  mean, of it inference", inference, "ms");
    figures.add("  mean, of it the transaction", transaction, "ms");
    figures.add("  mean, of it until it was read", whole - committed, "ms");
    load(&settings, &process, &reader, figures);
}

/// Texts of all lengths, as fast as the stage embeds them, and what memory that takes.
fn load(settings: &Settings, process: &Running, reader: &Reader, figures: &mut Figures) {
    const TEXTS: usize = 1000;
    for round in 1..=2 {
        produce(settings, (0..TEXTS).map(|i| (format!("load {i}"), TEXT.repeat(1 + i % 12), "x")));
        for _ in 0..TEXTS {
            let _ = reader.next(Duration::from_secs(60)).expect("a feature");
        }
        let name = format!("resident memory after {} texts of all lengths", round * TEXTS);
        figures.add(&name, process.rss_megabytes(), "MB");
    }
}

/// A consumer as others have it: read-committed, librdkafka's defaults.
struct Reader(BaseConsumer);

impl Reader {
    fn new(settings: &Settings) -> Self {
        let mut config = client::probe(settings, true);
        let consumer = BaseConsumer::from_config(config.set("group.id", "reader")).unwrap();
        let topic = &settings.topics.features;
        let metadata = consumer.fetch_metadata(Some(topic), Duration::from_secs(10)).unwrap();
        let mut list = TopicPartitionList::new();
        for partition in metadata.topics()[0].partitions() {
            list.add_partition_offset(topic, partition.id(), Offset::Beginning).unwrap();
        }
        consumer.assign(&list).unwrap();
        Self(consumer)
    }

    /// The key of the next record.
    fn next(&self, bound: Duration) -> Option<Vec<u8>> {
        let deadline = Instant::now() + bound;
        while Instant::now() < deadline {
            if let Some(Ok(message)) = self.0.poll(Duration::from_millis(100)) {
                return Some(message.key().unwrap_or_default().to_owned());
            }
        }
        None
    }
}
