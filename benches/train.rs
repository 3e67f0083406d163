//! Training steps in milliseconds, and records per second of trials that replay a topic.
//!
//! `cargo bench --bench train`

mod support;

use std::time::{Duration, Instant};

use rdkafka::producer::{BaseRecord, Producer, ThreadedProducer};
use sweepstream::features::codec::{self, Dtype};
use sweepstream::kafka::client;
use sweepstream::kafka::topics::Declarations;
use sweepstream::parts::Parts;
use sweepstream::topology::{Stage, Topology};
use sweepstream::train::fit::Fit;
use sweepstream::train::model::ModelSpec;
use sweepstream::train::optimizer::{OptimizerSpec, Rule};
use sweepstream::train::start::start;

use support::{median, peak_rss_megabytes, Bench, Figures};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const RECORDS: usize = 4000;
const DIM: usize = 384;
const LABELS: usize = 15;

fn main() {
    // As the program does, before any thread starts.
    std::env::set_var("RAYON_NUM_THREADS", "1");
    let mut figures = Figures::default();
    let matrices = matrices(RECORDS);
    steps(&matrices, &mut figures);
    let bench = Bench::start();
    for trials in [1, 4] {
        let rates: Vec<f64> = (0..3).map(|_| replay(&bench, &matrices, trials)).collect();
        figures.add(&format!("mlp, {trials} trial(s), records of all together"), median(rates), "records/s");
    }
    figures.add("peak memory of this process", peak_rss_megabytes(), "MB");
    figures.finish("train");
}

/// Matrices with lengths like those of Brown sentences: mean 24 rows, 1 to 62.
fn matrices(count: usize) -> Vec<Vec<u8>> {
    (0..count)
        .map(|i| {
            let rows = 1 + (i * 31 + i / 7) % 47;
            let values: Vec<f32> = (0..rows * DIM)
                .map(|j| ((i % LABELS) as f32 * 0.1 + ((i * 7919 + j * 104_729) % 1000) as f32 / 1000.0 - 0.5) * 0.2)
                .collect();
            codec::encode(rows, DIM, &values, Dtype::F16)
        })
        .collect()
}

/// Milliseconds of a step at batch 64 and 1, batch building included, on this one thread.
fn steps(matrices: &[Vec<u8>], figures: &mut Figures) {
    let models = [
        (
            "autoencoder 64x384-256-128",
            ModelSpec::Autoencoder { rows_max: 64, dim: DIM, layers: vec![256, 128], dropout: 0.0 },
            40,
        ),
        ("mlp 384-128-15", ModelSpec::Mlp { rows_max: 64, dim: DIM, hidden: 128, classes: LABELS, dropout: 0.0 }, 400),
    ];
    for (name, spec, steps) in models {
        for batch_size in [64, 1] {
            let mut fit = Fit::new(spec.clone(), OptimizerSpec::new(Rule::ADAMW, 1e-3), 1, 0).unwrap();
            let mut times = Vec::new();
            for step in 0..steps {
                let batch: Vec<_> = (0..batch_size)
                    .map(|i| (step * batch_size + i) % matrices.len())
                    .map(|i| (codec::decode(&matrices[i]).unwrap(), Some((i % LABELS) as u32)))
                    .collect();
                let started = Instant::now();
                let _ = fit.step(&batch, 0, step as u64).unwrap();
                times.push(started.elapsed().as_secs_f64() * 1e3);
            }
            figures.add(&format!("step of {name}, batch {batch_size}"), median(times.split_off(steps / 5)), "ms");
        }
    }
}

/// Records per second of `trials` trials with 10 epochs each, from their assignment to their outcomes.
fn replay(bench: &Bench, matrices: &[Vec<u8>], trials: usize) -> f64 {
    const EPOCHS: usize = 10;
    let settings = bench.settings();
    let topics = Declarations::load(&settings).unwrap().ensure(&settings, None).unwrap();
    let producer: ThreadedProducer<rdkafka::producer::DefaultProducerContext> =
        client::producer(&settings).create().unwrap();
    for (i, matrix) in matrices.iter().enumerate() {
        let (key, label) = (i.to_string(), format!("label {}", i % LABELS));
        let header = rdkafka::message::Header { key: "label", value: Some(&label) };
        let record = BaseRecord::to(&topics.features.name)
            .partition((i % topics.features.partitions as usize) as i32)
            .key(&key)
            .payload(matrix)
            .headers(rdkafka::message::OwnedHeaders::new().insert(header));
        producer.send(record).map_err(|(error, _)| error).unwrap();
    }
    producer.flush(Duration::from_secs(60)).unwrap();
    let rates: Vec<String> = (0..trials).map(|i| format!("{}e-3", i + 1)).collect();
    let search = format!("name = \"b\"\nmodel = \"mlp\"\nepochs = {EPOCHS}\nlearning_rate = [{}]", rates.join(", "));
    let started = start(&settings, &search, ".".as_ref(), |_, _| {}).unwrap().trials.len();
    let topology = Topology::start(&settings, &Parts::locate(), &[Stage::Train]).unwrap();
    let running = || topology.status.trials().values().any(|trial| trial.step > 0);
    while !running() {
        std::thread::sleep(Duration::from_millis(1));
    }
    let clock = Instant::now();
    let ended = || {
        let trials = topology.status.trials();
        trials.values().filter(|trial| trial.state == "finished").count() == started
    };
    while !ended() {
        std::thread::sleep(Duration::from_millis(1));
    }
    let seconds = clock.elapsed().as_secs_f64();
    topology.stop().unwrap();
    (matrices.len() * EPOCHS * trials) as f64 / seconds
}
