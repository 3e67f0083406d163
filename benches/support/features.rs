//! A features topic with made-up matrices, and searches over it.

use std::time::Duration;

use rdkafka::producer::{BaseRecord, DefaultProducerContext, Producer, ThreadedProducer};
use sweepstream::config::Settings;
use sweepstream::features::codec::{self, Dtype};
use sweepstream::kafka::client;
use sweepstream::kafka::topics::Declarations;
use sweepstream::train::store::start::{start, Started};

pub const DIM: usize = 384;
pub const LABELS: usize = 15;

/// Matrices with lengths like those of Brown sentences: mean 24 rows, 1 to 47.
pub fn matrices(count: usize) -> Vec<Vec<u8>> {
    let matrix = |i: usize| {
        let rows = 1 + (i * 31 + i / 7) % 47;
        let value =
            |j: usize| ((i % LABELS) as f32 * 0.1 + ((i * 7919 + j * 104_729) % 1000) as f32 / 1000.0 - 0.5) * 0.2;
        codec::encode(rows, DIM, &(0..rows * DIM).map(value).collect::<Vec<f32>>(), Dtype::F16)
    };
    (0..count).map(matrix).collect()
}

/// Topics of these settings, with the matrices dealt to the partitions of the features topic.
pub fn fill(settings: &Settings, matrices: &[Vec<u8>]) {
    let topics = Declarations::load(settings).unwrap().ensure(settings, None).unwrap();
    let producer: ThreadedProducer<DefaultProducerContext> = client::producer(settings).create().unwrap();
    for (i, matrix) in matrices.iter().enumerate() {
        let (key, label) = (i.to_string(), format!("label {}", i % LABELS));
        let header = rdkafka::message::Header { key: "label", value: Some(&label) };
        let headers = rdkafka::message::OwnedHeaders::new().insert(header);
        let partition = (i % topics.features.partitions as usize) as i32;
        let mut record =
            BaseRecord::to(&topics.features.name).partition(partition).key(&key).payload(matrix).headers(headers);
        while let Err((_, refused)) = producer.send(record) {
            record = refused;
            std::thread::sleep(Duration::from_millis(10));
        }
    }
    producer.flush(Duration::from_secs(60)).unwrap();
}

/// Starts a search from the text of its file.
pub fn search(settings: &Settings, text: &str) -> Started {
    start(settings, text, ".".as_ref(), |_, _| {}).unwrap()
}

/// A search of so many mlp trials with other learning rates.
pub fn mlps(settings: &Settings, trials: usize, epochs: usize) -> Started {
    let rates: Vec<String> = (1..=trials).map(|i| format!("{i}e-4")).collect();
    let rates = rates.join(", ");
    search(
        settings,
        &format!("name = \"b\"\nmodel = \"mlp\"\nepochs = {epochs}\nwindow = 1024\nlearning_rate = [{rates}]"),
    )
}
