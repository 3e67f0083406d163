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
    let settings = bench.settings();
    let m = matrices(400);
    fill(&settings, &m);
    let _ = mlps(&settings, 2, 1);
    for round in 0..4 {
        println!("-- {round}");
        let t = Instant::now();
        let mut lap = Instant::now();
        let mut show = |name: &str| {
            println!("{name:40} {:.1} ms", lap.elapsed().as_secs_f64() * 1e3);
            lap = Instant::now();
        };
        let p = TransactionalProducer::new(&settings, &format!("x{round}"), &[1000000]).unwrap();
        show("producer+init");
        let c: BaseConsumer = BaseConsumer::from_config(&client::replay(&settings, "g", 1)).unwrap();
        show("consumer create");
        let _ = offsets::metadata_of(&c).unwrap();
        show("group metadata");
        let _ = offsets::committed_of(&c, &settings.topics.features, &[0, 1, 2, 3], Duration::from_secs(5)).unwrap();
        show("committed");
        drop(c);
        show("consumer drop");
        let w = Watermarks::new(&settings).unwrap();
        show("watermarks new");
        let e = w.capture(&settings.topics.output, [3]).unwrap();
        show("capture");
        let _ = w.capture(&settings.topics.output, [4]).unwrap();
        show("capture again");
        let ft = w.capture(&settings.topics.features, [0, 1, 2, 3]).unwrap();
        show("capture features");
        drop(w);
        show("watermarks drop");
        offsets::scan::<sweepstream::kafka::Error>(&settings, &settings.topics.features, &ft, |_| Ok(())).unwrap();
        show("scan features");
        let c: BaseConsumer = BaseConsumer::from_config(&client::replay(&settings, "g", 1)).unwrap();
        let mut list = TopicPartitionList::new();
        list.add_partition_offset(&settings.topics.features, 0, Offset::Offset(0)).unwrap();
        c.assign(&list).unwrap();
        loop {
            if c.poll(Duration::from_millis(100)).is_some() {
                break;
            }
        }
        show("consumer first record, assign");
        drop(c);
        show("drop");
        let c: BaseConsumer = BaseConsumer::from_config(&client::replay(&settings, "g", 1)).unwrap();
        let _ = c.fetch_metadata(Some(&settings.topics.features), Duration::from_secs(5)).unwrap();
        c.assign(&list).unwrap();
        loop {
            if c.poll(Duration::from_millis(100)).is_some() {
                break;
            }
        }
        show("consumer first record, metadata first");
        drop(c);
        show("drop");
        drop(p);
        show("drop producer");
        println!("{:?} {:?}", t.elapsed(), e.len());
    }
}
