mod support;
use rdkafka::config::FromClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use std::time::{Duration, Instant};
use support::features::*;
use support::Bench;
use sweepstream::kafka::{
    client,
    offsets::{self, Watermarks},
    transaction::TransactionalProducer,
};
fn main() {
    let bench = Bench::start();
    tracing_subscriber::fmt().with_max_level(tracing::Level::DEBUG).init();
    let mut settings = bench.settings();
    let m = matrices(400);
    fill(&settings, &m);
    let _ = mlps(&settings, 2, 1);
    for round in 0..4 {
      std::thread::scope(|sc| { for k in 0..8 { let settings = &settings; sc.spawn(move || {
        let t = Instant::now();
        let p = TransactionalProducer::new(settings, &format!("x{round}-{k}"), &[1000000]).unwrap();
        println!("producer+init {round}-{k} {:?}", t.elapsed());
        drop(p);
      }); }});
    }
}
