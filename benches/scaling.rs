//! The cost model of `docs/scaling.md`, held against several processes on little data.
//!
//! `cargo bench --bench scaling`

mod support;

use std::path::Path;
use std::time::Duration;

use sweepstream::config::Settings;
use sweepstream::kafka::local::{LocalBroker, LocalBrokerOptions};
use sweepstream::kafka::topics::Declarations;
use sweepstream::parts::Parts;

use support::features::{fill, matrices, mlps, DIM, LABELS};
use support::process::{produce, Running};
use support::{loopback_megabytes, own_names, Figures};

/// Bytes of a record of `features` beside its numbers: key, headers, framing, and the matrix's own header.
const RECORD_BYTES: f64 = 220.0;
/// Texts of a transaction under load.
const CHUNK_TEXTS: f64 = 512.0;

fn main() {
    let mut figures = Figures::default();
    let folder = tempfile::tempdir().unwrap();
    let options = LocalBrokerOptions { data: Some(folder.path().to_owned()), ..LocalBrokerOptions::default() };
    let broker = LocalBroker::start(Parts::locate().kafka().expect("make parts"), &options).unwrap();
    for (place, (texts, partitions, processes)) in [(2048, 4, 1), (2048, 12, 2), (4096, 4, 2)].into_iter().enumerate() {
        let settings = named(&broker, folder.path(), &format!("e{place}"), partitions);
        embed(&settings, folder.path(), texts, partitions, processes, &mut figures);
    }
    for (place, (records, trials, epochs, processes)) in
        [(1000, 4, 3, 1), (1000, 8, 3, 2), (2000, 8, 3, 4), (2000, 16, 6, 2)].into_iter().enumerate()
    {
        let settings = named(&broker, folder.path(), &format!("t{place}"), 4);
        train(&settings, records, trials, epochs, processes, &mut figures);
    }
    figures.finish("scaling");
}

fn named(broker: &LocalBroker, folder: &Path, run: &str, partitions: u32) -> Settings {
    let mut settings = own_names(broker.settings(), run);
    let topics = folder.join(format!("{run}.topics"));
    std::fs::create_dir(&topics).unwrap();
    let texts = format!("partitions = {partitions}\nreplication_factor = -1\n");
    std::fs::write(topics.join("texts.toml"), texts).unwrap();
    settings.topics.dir = Some(topics);
    settings
}

/// What the model says, what was found, and how far they are apart.
fn held_against(name: &str, predicted: f64, found: f64, unit: &str, figures: &mut Figures) {
    figures.add(&format!("{name}: model"), predicted, unit);
    figures.add(&format!("{name}: found"), found, unit);
    figures.add(&format!("{name}: found to model"), found / predicted, "times");
}

const ROWS: usize = 12;

fn embed(settings: &Settings, data: &Path, texts: usize, partitions: u32, processes: usize, figures: &mut Figures) {
    drop(Declarations::load(settings).unwrap().ensure(settings, None).unwrap());
    let words = ["sea", "field", "light", "rain", "sail", "rock", "storm", "road", "house", "wind", "tree", "bird"];
    let text = |i: usize| (0..ROWS).map(|k| words[(i + k * (1 + i % 5)) % 12]).collect::<Vec<_>>().join(" ");
    produce(settings, (0..texts).map(|i| (format!("key {i}"), text(i), "label")));
    let arguments = ["run", "--stage=embed", "-s", "embed.sessions=1", "-s", "embed.threads=1"];
    let running: Vec<Running> = (0..processes).map(|_| Running::spawn(settings, &arguments)).collect();
    let sum = |name: &str| running.iter().map(|process| process.value(name)).sum::<f64>();
    await_until(|| sum("sweepstream_features_records_total") >= texts as f64);
    let name = format!("{texts} texts, {partitions} partitions, {processes} embed process(es)");
    let bytes = log_bytes(data, &settings.topics.features);
    let predicted = texts as f64 * ((ROWS * DIM * 2) as f64 + RECORD_BYTES);
    held_against(&format!("{name}, storage"), predicted / 1e6, bytes / 1e6, "MB", figures);
    let transactions = sum("sweepstream_features_transaction_duration_seconds_count");
    // What is there at a start is taken in small chunks until all threads have something to do.
    let predicted = texts as f64 / CHUNK_TEXTS + 2.0 * processes as f64;
    held_against(&format!("{name}, transactions"), predicted, transactions, "", figures);
}

fn train(settings: &Settings, records: usize, trials: usize, epochs: usize, processes: usize, figures: &mut Figures) {
    let matrices = matrices(records);
    let megabytes = matrices.iter().map(Vec::len).sum::<usize>() as f64 / 1e6;
    fill(settings, &matrices);
    let arguments = ["run", "--stage=train", "-s", "train.parallel=16", "-s", "train.threads=1"];
    let running: Vec<Running> = (0..processes).map(|_| Running::start(settings, &arguments)).collect();
    let sum = |name: &str| running.iter().map(|process| process.value(name)).sum::<f64>();
    // Until the group is at rest.
    std::thread::sleep(Duration::from_secs(4));
    let before = loopback_megabytes();
    drop(mlps(settings, trials, epochs));
    let finished = "sweepstream_trials{state=\"finished\"}";
    await_until(|| sum(finished) >= trials as f64);
    let network = loopback_megabytes() - before;
    let name = format!("{records} records, {trials} trials, {epochs} epochs, {processes} train process(es)");
    // Each process that has trials reads the means once; the search's start reads the range once, too.
    let readers = processes.min(trials) as f64;
    let read = sum("sweepstream_replay_records_total");
    held_against(&format!("{name}, records read"), readers * records as f64, read, "records", figures);
    let checkpoint = 12.0 * ((DIM + 1) * 128 + (128 + 1) * LABELS) as f64 / 1e6;
    let written = sum("sweepstream_checkpoint_bytes_total") / 1e6;
    let checkpoints = (trials * epochs) as f64 * checkpoint;
    held_against(&format!("{name}, checkpoints"), checkpoints, written, "MB", figures);
    let transactions = sum("sweepstream_output_transactions_total{outcome=\"committed\"}");
    held_against(&format!("{name}, transactions"), (trials * epochs) as f64, transactions, "", figures);
    let predicted = (1.0 + readers) * megabytes + checkpoints;
    held_against(&format!("{name}, network"), predicted, network, "MB", figures);
}

fn await_until(condition: impl Fn() -> bool) {
    while !condition() {
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// What a topic takes on the broker's disk.
fn log_bytes(data: &Path, topic: &str) -> f64 {
    let mut bytes = 0;
    let mut folders = vec![data.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap().map(Result::unwrap) {
            let path = entry.path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "log") {
                let partition = path.parent().and_then(Path::file_name).unwrap().to_string_lossy().into_owned();
                let of_topic = partition.rsplit_once('-').is_some_and(|(name, _)| name == topic);
                bytes += if of_topic { entry.metadata().unwrap().len() } else { 0 };
            }
        }
    }
    bytes as f64
}
