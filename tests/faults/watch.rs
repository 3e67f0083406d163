//! Follows what is committed, from the side, while faults strike.

// Shares no client code with the program it judges.
#![allow(clippy::disallowed_methods)]

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::message::Message;
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use rdkafka::ClientConfig;
use sweepstream::config::Settings;

use crate::inputs::PARTITIONS;
use crate::schedule::Target;
use crate::support::PATIENCE;

/// Unix time in milliseconds, as records carry it.
pub fn now_ms() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as i64)
}

#[derive(Default)]
struct Seen {
    /// Matrices and dead letters.
    verdicts: usize,
    /// Partition → when its newest verdict was written.
    embedded_ms: BTreeMap<i32, i64>,
    /// Trial → when its newest checkpoint was written.
    trained_ms: BTreeMap<String, i64>,
    /// Trials that have an outcome.
    outcomes: usize,
}

/// A read-committed reader of everything the program writes.
pub struct Watch {
    seen: Arc<Mutex<Seen>>,
    stopped: Arc<AtomicBool>,
    trials: usize,
    /// Trials that one process trains at once.
    parallel: usize,
}

impl Watch {
    /// Watches topics that exist already, on a thread of its own. `trials` are expected.
    pub fn start(settings: &Settings, trials: usize) -> Self {
        let (seen, stopped) = (Arc::<Mutex<Seen>>::default(), Arc::new(AtomicBool::new(false)));
        let watch = Self { seen, stopped, trials, parallel: settings.train.parallel.map_or(1, Into::into) };
        let (seen, stopped, settings) = (Arc::clone(&watch.seen), Arc::clone(&watch.stopped), settings.clone());
        let work = move || follow(&settings, &seen, &stopped);
        drop(std::thread::Builder::new().name("watch".into()).spawn(work).unwrap());
        watch
    }

    pub fn verdicts(&self) -> usize {
        self.seen.lock().unwrap().verdicts
    }

    /// Trials without an outcome.
    pub fn open_trials(&self) -> usize {
        self.trials - self.seen.lock().unwrap().outcomes
    }

    /// Has everything of a stage moved on since then: each partition, each place for a trial?
    pub fn moved(&self, target: Target, since_ms: i64) -> bool {
        let seen = self.seen.lock().unwrap();
        match target {
            Target::Embed => {
                (0..PARTITIONS).all(|partition| seen.embedded_ms.get(&partition).is_some_and(|&ms| ms > since_ms))
            }
            Target::Train => {
                let moved = seen.trained_ms.values().filter(|&&ms| ms > since_ms).count();
                moved >= self.parallel.min(self.trials - seen.outcomes)
            }
        }
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.stopped.store(true, Ordering::Release);
    }
}

fn follow(settings: &Settings, seen: &Mutex<Seen>, stopped: &AtomicBool) {
    let topics = &settings.topics;
    let consumer: BaseConsumer = ClientConfig::new()
        .set("bootstrap.servers", &settings.kafka.bootstrap_servers)
        .set("group.id", format!("{}.watch", settings.application_id))
        .set("enable.auto.commit", "false")
        .set("isolation.level", "read_committed")
        .set("auto.offset.reset", "error")
        .set("reconnect.backoff.max.ms", "200")
        .set("fetch.wait.max.ms", "50")
        .create()
        .unwrap();
    let mut list = TopicPartitionList::new();
    for topic in [&topics.features, &topics.dead_letters, &topics.output] {
        let metadata = consumer.fetch_metadata(Some(topic), PATIENCE).unwrap();
        for partition in metadata.topics()[0].partitions() {
            list.add_partition_offset(topic, partition.id(), Offset::Beginning).unwrap();
        }
    }
    consumer.assign(&list).unwrap();
    while !stopped.load(Ordering::Acquire) {
        // Errors are those of a broker that is away; the client goes on by itself.
        let Some(Ok(message)) = consumer.poll(Duration::from_millis(100)) else { continue };
        let written_ms = message.timestamp().to_millis().unwrap_or(0);
        let mut seen = seen.lock().unwrap();
        if message.topic() == topics.output {
            let key = String::from_utf8_lossy(message.key().unwrap_or_default()).into_owned();
            if let Some((trial, _)) = key.split_once("/checkpoint/").filter(|(_, rest)| rest.ends_with("/manifest")) {
                let _ = seen.trained_ms.insert(trial.to_owned(), written_ms);
            }
            seen.outcomes += usize::from(key.ends_with("/outcome"));
        } else {
            seen.verdicts += 1;
            let newest_ms = seen.embedded_ms.entry(message.partition()).or_default();
            *newest_ms = written_ms.max(*newest_ms);
        }
    }
}
