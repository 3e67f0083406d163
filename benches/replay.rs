//! What a trial's reader delivers beside what bare librdkafka delivers as bytes, and sixteen readers beside one.
//!
//! `cargo bench --bench replay -- --rounds 5`

mod support;

use std::hint::black_box;
use std::time::{Duration, Instant};

use rdkafka::config::FromClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::KafkaError;
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use sweepstream::config::Settings;
use sweepstream::features::range::{Position, Range};
use sweepstream::features::stream::{Follower, Read, Streams};
use sweepstream::features::window::{Reading, Window};
use sweepstream::kafka::client;
use sweepstream::metrics::Metrics;
use sweepstream::topology::Topology;
use sweepstream::train::run::pool::TRAIN;

use support::features::{fill, matrices, mlps, search};
use support::{cpu_seconds, loopback_megabytes, median, Bench, Figures};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const RECORDS: usize = 8000;

fn main() {
    // As the program does, before any thread starts.
    std::env::set_var("RAYON_NUM_THREADS", "1");
    let arguments: Vec<String> = std::env::args().collect();
    let at = arguments.iter().position(|argument| argument == "--rounds");
    let rounds = at.and_then(|at| arguments.get(at + 1)?.parse().ok()).unwrap_or(5);
    let mut figures = Figures::default();
    let bench = Bench::start();
    let settings = bench.settings();
    let matrices = matrices(RECORDS);
    let megabytes = matrices.iter().map(Vec::len).sum::<usize>() as f64 / 1e6;
    fill(&settings, &matrices);
    let autoencoder = |window| {
        let text = format!("name = \"r\"\nmodel = \"autoencoder\"\nlayers = [8]\nepochs = 1\nwindow = {window}");
        search(&settings, &text).trials.remove(0)
    };
    let (rows, small) = (autoencoder(1024), autoencoder(64));
    let means = mlps(&settings, 1, 1).trials.remove(0);
    let range = rows.range();
    compare(&settings, &range, &[rows.reading(), means.reading()], megabytes, rounds, &mut figures);
    epochs(&settings, &range, &small.reading(), &mut figures);
    sixteen(&settings, &range, &rows.reading(), &mut figures);
    for trials in [1, 4] {
        let rates = (0..3).map(|_| train(&bench, &matrices[..RECORDS / 2], trials)).collect();
        figures.add(&format!("mlp, {trials} trial(s), records of all together"), median(rates), "records/s");
    }
    figures.finish("replay");
}

/// In turns: bytes of bare librdkafka, rows and means of a reader.
fn compare(
    settings: &Settings,
    range: &Range,
    readings: &[Reading; 2],
    megabytes: f64,
    rounds: usize,
    figures: &mut Figures,
) {
    let [rows, means] = readings;
    let count = |window: &Window| {
        let _ = black_box(window.records());
    };
    let reader = |reading: &Reading, each: fn(&Window)| {
        let mut follower = follow(&streams(settings, 64 << 20).0, range, reading.clone());
        megabytes / seconds_of_pass(|| pass(&mut follower, each))
    };
    let mut rates: [Vec<f64>; 4] = Default::default();
    for _ in 0..rounds {
        let mut bare = Bare::open(settings, range);
        let bare = megabytes / seconds_of_pass(|| bare.pass());
        let found = [bare, reader(rows, count), reader(means, count), reader(rows, padded)];
        rates.iter_mut().zip(found).for_each(|(rates, rate)| rates.push(rate));
    }
    let [bare, rows, means, padded] = rates.map(median);
    figures.add("bare librdkafka, bytes", bare, "MB/s");
    figures.add("a trial's reader, decoded ragged rows", rows, "MB/s");
    figures.add("a trial's reader, decoded means of rows", means, "MB/s");
    figures.add("a trial's reader, padded and masked f32 batches", padded, "MB/s");
    figures.add("a trial's reader, rows, to bare librdkafka", rows / bare, "times");
    figures.add("a trial's reader, means, to bare librdkafka", means / bare, "times");
}

/// Of several passes without a break, after one that connects.
fn seconds_of_pass(mut pass: impl FnMut()) -> f64 {
    const PASSES: u32 = 6;
    pass();
    let started = Instant::now();
    (0..PASSES).for_each(|_| pass());
    (started.elapsed() / PASSES).as_secs_f64()
}

/// A consumer with the settings of a replay, which looks at nothing but lengths.
struct Bare<'a> {
    consumer: BaseConsumer,
    range: &'a Range,
}

impl<'a> Bare<'a> {
    fn open(settings: &Settings, range: &'a Range) -> Self {
        let config = client::replay(settings, "bare", range.partitions.len());
        Self { consumer: BaseConsumer::from_config(&config).unwrap(), range }
    }

    fn pass(&mut self) {
        let mut list = TopicPartitionList::new();
        for place in &self.range.partitions {
            list.add_partition_offset(&self.range.topic, place.partition, Offset::Offset(place.start)).unwrap();
        }
        self.consumer.assign(&list).unwrap();
        let (mut records, mut bytes) = (self.range.counts().iter().sum::<u64>(), 0);
        while records > 0 {
            match self.consumer.poll(Duration::from_millis(100)) {
                Some(Ok(message)) => (records, bytes) = (records - 1, bytes + message.payload_len()),
                None | Some(Err(KafkaError::PartitionEOF(_))) => {}
                Some(Err(error)) => panic!("{error}"),
            }
        }
        let _ = black_box(bytes);
    }
}

fn streams(settings: &Settings, shared_bytes: usize) -> (std::sync::Arc<Streams>, Metrics) {
    let mut settings = settings.clone();
    settings.train.shared_bytes = shared_bytes;
    // What is in memory is not read.
    settings.train.cache_bytes = 0;
    let metrics = Metrics::new().unwrap();
    (Streams::new(&settings, &metrics.train), metrics)
}

fn follow(streams: &std::sync::Arc<Streams>, range: &Range, reading: Reading) -> Follower {
    streams.follow("bench".into(), range.clone(), reading, || false)
}

/// Goes through the range once, and back to its beginning.
fn pass(follower: &mut Follower, mut each: impl FnMut(&Window)) {
    while let Read::Window(window) = follower.next_window().unwrap() {
        each(&window);
    }
    let start = Position::start(follower.range());
    follower.seek(start);
}

/// What a model that wants padded tensors would be given: 64 records at a time, zeros behind the rows, and a mask.
fn padded(window: &Window) {
    const ROWS: usize = 64;
    let places: Vec<u32> = (0..window.records() as u32).collect();
    let (mut batch, mut mask) = (Vec::new(), Vec::new());
    for places in places.chunks(64) {
        batch.clear();
        mask.clear();
        for (i, &place) in (1..).zip(places) {
            let (matrix, _) = window.record(place);
            let rows = matrix.rows.min(ROWS);
            let begin = batch.len();
            batch.resize(begin + rows * matrix.dim, 0.0_f32);
            matrix.dtype.read(&matrix.data[..rows * matrix.dim * matrix.dtype.bytes()], &mut batch[begin..]);
            batch.resize(i * ROWS * matrix.dim, 0.0);
            mask.resize(mask.len() + rows, 1.0_f32);
            mask.resize(i * ROWS, 0.0);
        }
        let _ = black_box((&batch, &mask));
    }
}

/// From the end of a pass to the first window of the next one.
fn epochs(settings: &Settings, range: &Range, reading: &Reading, figures: &mut Figures) {
    let mut follower = follow(&streams(settings, 0).0, range, reading.clone());
    let mut times = Vec::new();
    for _ in 0..20 {
        pass(&mut follower, |_| {});
        let started = Instant::now();
        let _ = follower.next_window().unwrap();
        times.push(started.elapsed().as_secs_f64() * 1e3);
    }
    figures.add(
        "a new epoch, until its first 64 records: longest of 20",
        times.iter().copied().fold(0.0, f64::max),
        "ms",
    );
    figures.add("a new epoch, until its first 64 records: median", median(times), "ms");
}

/// One reader, sixteen of one stream, sixteen for themselves: so many passes each, nothing else done with the records.
fn sixteen(settings: &Settings, range: &Range, reading: &Reading, figures: &mut Figures) {
    const EPOCHS: usize = 6;
    let mut costs = Vec::new();
    for (name, readers, shared_bytes) in
        [("one reader", 1, 64 << 20), ("16 readers, shared", 16, 64 << 20), ("16 readers, each for itself", 16, 0)]
    {
        let (streams, metrics) = streams(settings, shared_bytes);
        let (cpu, network) = (cpu_seconds(), loopback_megabytes());
        let started = Instant::now();
        let followers: Vec<Follower> = (0..readers).map(|_| follow(&streams, range, reading.clone())).collect();
        std::thread::scope(|scope| {
            for mut follower in followers {
                let _ = scope.spawn(move || {
                    for epoch in 1..=EPOCHS {
                        follower.set_last_pass(epoch == EPOCHS);
                        pass(&mut follower, |window| {
                            let _ = black_box(window.records());
                        });
                    }
                });
            }
        });
        let cost = [
            loopback_megabytes() - network,
            cpu_seconds() - cpu,
            started.elapsed().as_secs_f64(),
            metrics.train.records_read.get() as f64,
        ];
        for (unit, cost) in ["MB from the broker", "s of CPU", "s", "records read"].into_iter().zip(cost) {
            figures.add(&format!("{name}, {EPOCHS} epochs"), cost, unit);
        }
        costs.push(cost);
    }
    figures.add("16 readers, shared, to one: bytes from the broker", costs[1][0] / costs[0][0], "times");
    figures.add("16 readers, shared, to one: CPU of reading", costs[1][1] / costs[0][1], "times");
    figures.add("16 readers, each for itself, to one: bytes", costs[2][0] / costs[0][0], "times");
    figures.add("16 readers, each for itself, to one: CPU", costs[2][1] / costs[0][1], "times");
}

/// Records per second of so many trials with ten epochs each, from the first step to the last outcome.
fn train(bench: &Bench, matrices: &[Vec<u8>], trials: usize) -> f64 {
    const EPOCHS: usize = 10;
    let settings = bench.settings();
    fill(&settings, matrices);
    let started = mlps(&settings, trials, EPOCHS).trials.len();
    let topology = Topology::start(&settings, &sweepstream::parts::Parts::locate(), &[&TRAIN]).unwrap();
    let await_trials =
        |done: &dyn Fn(&std::collections::BTreeMap<String, sweepstream::status::TrialStatus>) -> bool| {
            while !done(&topology.status.trials()) {
                std::thread::sleep(Duration::from_millis(1));
            }
        };
    await_trials(&|trials| trials.values().any(|trial| trial.step > 0));
    let clock = Instant::now();
    await_trials(&|trials| trials.values().filter(|trial| trial.state == "finished").count() == started);
    let seconds = clock.elapsed().as_secs_f64();
    topology.stop().unwrap();
    (matrices.len() * EPOCHS * trials) as f64 / seconds
}
