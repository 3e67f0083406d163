//! Judges a run from its topics alone, with a reader that shares no code with the program.

// Shares no client code with the program it judges.
#![allow(clippy::disallowed_methods)]

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::time::{Duration, Instant};

use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::ClientConfig;
use serde_json::Value;
use sha2::{Digest, Sha256};
use sweepstream::config::Settings;

use crate::inputs::{Input, PARTITIONS};
use crate::support::{self, In, PATIENCE};
use crate::world::TRANSACTION_TIMEOUT;

/// What is wrong; empty when nothing is.
pub type Complaints = Vec<String>;

/// How long an open transaction may hold the read-committed end back: until the broker has aborted it, and some.
const END_PATIENCE: Duration = TRANSACTION_TIMEOUT.saturating_add(Duration::from_secs(10 + 10));

/// Everything committed in a topic, once nothing is open in it any more.
pub fn read(settings: &Settings, topic: &str) -> Vec<In> {
    let ends = |isolation: &str| -> BTreeMap<i32, i64> {
        let consumer: BaseConsumer = ClientConfig::new()
            .set("bootstrap.servers", &settings.kafka.bootstrap_servers)
            .set("isolation.level", isolation)
            .create()
            .unwrap();
        let metadata = consumer.fetch_metadata(Some(topic), PATIENCE).unwrap();
        let partitions = metadata.topics()[0].partitions().iter().map(|partition| partition.id());
        partitions
            .map(|partition| (partition, consumer.fetch_watermarks(topic, partition, PATIENCE).unwrap().1))
            .collect()
    };
    let high = ends("read_uncommitted");
    let started = Instant::now();
    while ends("read_committed").iter().any(|(partition, &stable)| stable < high[partition]) {
        assert!(started.elapsed() < END_PATIENCE, "a transaction in {topic} stays open");
        std::thread::sleep(Duration::from_millis(100));
    }
    support::read(settings, topic)
}

/// What a topic's partition holds against what it should hold, by key and in order.
fn compare_keys(what: &str, found: &[String], wanted: &[String]) -> Complaints {
    if found == wanted {
        return Complaints::new();
    }
    let mut complaints = Complaints::new();
    let mut counts: BTreeMap<&str, i64> = BTreeMap::new();
    wanted.iter().for_each(|key| *counts.entry(key).or_default() += 1);
    found.iter().for_each(|key| *counts.entry(key).or_default() -= 1);
    let list = |chosen: &dyn Fn(i64) -> bool| {
        let keys: Vec<&str> = counts.iter().filter(|(_, count)| chosen(**count)).map(|(key, _)| *key).collect();
        (keys.len(), keys.into_iter().take(5).collect::<Vec<_>>().join(", "))
    };
    let (lost, twice) = (list(&|count| count > 0), list(&|count| count < 0));
    if lost.0 > 0 {
        complaints.push(format!("{what}: {} are missing: {}", lost.0, lost.1));
    }
    if twice.0 > 0 {
        complaints.push(format!("{what}: {} are there too often: {}", twice.0, twice.1));
    }
    if lost.0 == 0 && twice.0 == 0 {
        complaints.push(format!("{what}: not in the order of their sources"));
    }
    complaints
}

/// Each input has one verdict, in the right topic and partition, and each partition keeps the order of its source.
pub fn verdicts(inputs: &[Input], texts: &[In], features: &[In], dead: &[In]) -> Complaints {
    let mut complaints = Complaints::new();
    for partition in 0..PARTITIONS {
        let keys = |records: &[In]| -> Vec<String> {
            records.iter().filter(|record| record.partition == partition).map(In::key).collect()
        };
        let wanted = |valid: &[bool]| -> Vec<String> {
            let here = inputs.iter().filter(|input| input.out.partition == Some(partition));
            here.filter(|input| valid.contains(&input.valid)).map(Input::key).collect()
        };
        complaints.extend(compare_keys(&format!("texts/{partition}"), &keys(texts), &wanted(&[true, false])));
        complaints.extend(compare_keys(&format!("features/{partition}"), &keys(features), &wanted(&[true])));
        complaints.extend(compare_keys(&format!("dead-letters/{partition}"), &keys(dead), &wanted(&[false])));
    }
    let sources: BTreeMap<String, String> =
        texts.iter().map(|text| (text.key(), format!("{}/{}", text.partition, text.offset))).collect();
    for record in features.iter().chain(dead) {
        let source = record.header("source").unwrap_or_default();
        let place = source.split_once('/').map(|(_, place)| place);
        if place != sources.get(&record.key()).map(String::as_str) {
            complaints.push(format!("{} names {source} as its source", record.key()));
        }
    }
    complaints
}

/// Each key has the same bytes in both.
pub fn same_bytes(what: &str, records: &[In], undisturbed: &[In]) -> Complaints {
    // Headers that name the topic differ.
    let content = |record: &In| {
        let differs = |name: &str| matches!(name, "source" | "__streams.errors.topic");
        let headers: Vec<_> = record.headers.iter().filter(|(name, _)| !differs(name)).cloned().collect();
        (record.value.clone(), headers)
    };
    let by_key: BTreeMap<String, &In> = undisturbed.iter().map(|record| (record.key(), record)).collect();
    let mut complaints = Complaints::new();
    for record in records {
        match by_key.get(&record.key()) {
            Some(other) if content(record) == content(other) => {}
            Some(_) => complaints.push(format!("{what}: {} is another than in the undisturbed run", record.key())),
            None => complaints.push(format!("{what}: {} is not in the undisturbed run", record.key())),
        }
    }
    complaints
}

/// A group's positions are the ends of what it reads.
pub fn positions(group: &str, found: &BTreeMap<i32, i64>, wanted: &BTreeMap<i32, i64>) -> Complaints {
    if found == wanted {
        return Complaints::new();
    }
    vec![format!("group {group} stands at {found:?} instead of {wanted:?}")]
}

/// What a trial came to.
#[derive(Debug, PartialEq)]
pub struct Result {
    /// Digest of the final weights.
    weights_sha256: String,
    /// The newest checkpoint's tensors, as one digest.
    checkpoint_sha256: String,
    /// Epochs and steps of that checkpoint.
    reached: (u64, u64),
    /// The tensors of the checkpoint that has the best weights, if any were measured.
    best_sha256: Option<String>,
    /// What was measured, less what depends on time and names.
    measurements: Vec<Value>,
}

/// What is in `output`, by key.
pub struct Output<'r>(BTreeMap<String, Vec<&'r In>>);

impl<'r> Output<'r> {
    pub fn new(records: &'r [In]) -> Self {
        let mut by_key: BTreeMap<String, Vec<&In>> = BTreeMap::new();
        records.iter().for_each(|record| by_key.entry(record.key()).or_default().push(record));
        Self(by_key)
    }

    /// Reads a trial's result, and complains of whatever is there twice or not at all.
    pub fn result(&self, trial: &str) -> std::result::Result<Result, String> {
        let outcomes = self.0.get(&format!("{trial}/outcome")).map_or(&[][..], Vec::as_slice);
        let [outcome] = outcomes else { return Err(format!("trial {trial} has {} outcomes", outcomes.len())) };
        let outcome = outcome.json();
        let weights_sha256 = outcome["weights_sha256"].as_str().unwrap_or_default().to_owned();
        if outcome["state"] != "finished" || weights_sha256.is_empty() {
            return Err(format!("trial {trial} ended as {outcome}"));
        }
        let newest = |slot: &str| Some(self.0.get(&format!("{trial}/checkpoint/{slot}/manifest"))?.last()?.json());
        let mut manifests: Vec<(&str, Value)> =
            ["0", "1", "2"].into_iter().filter_map(|slot| Some((slot, newest(slot)?))).collect();
        manifests.sort_by_key(|(_, manifest)| manifest["checkpoint"].as_u64());
        let (slot, newest) = manifests.last().ok_or_else(|| format!("trial {trial} has no checkpoint"))?;
        let progress = &newest["progress"];
        let best = progress["best"]["step"].as_u64().map(|step| {
            let found = manifests.iter().rfind(|(_, manifest)| manifest["progress"]["step"] == step);
            let (slot, manifest) = found.ok_or_else(|| format!("trial {trial} lacks the weights of step {step}"))?;
            self.checkpoint(trial, slot, manifest)
        });
        Ok(Result {
            weights_sha256,
            checkpoint_sha256: self.checkpoint(trial, slot, newest)?,
            reached: (progress["epoch"].as_u64().unwrap_or(0), progress["step"].as_u64().unwrap_or(0)),
            best_sha256: best.transpose()?,
            measurements: self.measurements(trial)?,
        })
    }

    /// Digest of a checkpoint's tensors, which is the one in its manifest.
    fn checkpoint(&self, trial: &str, slot: &str, manifest: &Value) -> std::result::Result<String, String> {
        let mut digest = Sha256::new();
        for chunk in 0..manifest["chunks"].as_u64().unwrap_or(0) {
            let newest = self.0.get(&format!("{trial}/checkpoint/{slot}/{chunk}")).and_then(|records| records.last());
            let bytes = newest.and_then(|record| record.value.as_deref());
            digest.update(bytes.ok_or_else(|| format!("trial {trial} lacks chunk {chunk} of its checkpoint"))?);
        }
        let sha256 = digest.finalize().iter().fold(String::new(), |mut hex, byte| {
            write!(hex, "{byte:02x}").unwrap();
            hex
        });
        if manifest["sha256"] != sha256.as_str() {
            return Err(format!("trial {trial}: the chunks of its checkpoint are not those of the manifest"));
        }
        Ok(sha256)
    }

    fn measurements(&self, trial: &str) -> std::result::Result<Vec<Value>, String> {
        let prefix = format!("{trial}/measurement/");
        let mut found: Vec<&In> = Vec::new();
        for (key, records) in self.0.range(prefix.clone()..).take_while(|(key, _)| key.starts_with(&prefix)) {
            match records.as_slice() {
                [record] => found.push(record),
                several => return Err(format!("{} measurements under {key}", several.len())),
            }
        }
        // As they were published.
        found.sort_by_key(|record| record.offset);
        let strip = |record: &In| {
            let mut measurement = record.json();
            for name in ["search", "trial", "time_ms", "records_per_second"] {
                drop(measurement.as_object_mut().unwrap().remove(name));
            }
            measurement
        };
        Ok(found.into_iter().map(strip).collect())
    }
}

/// A trial's result against one that was not disturbed.
pub fn same_result(trial: &str, found: &Result, wanted: &Result, against: &str) -> Complaints {
    let mut complaints = Complaints::new();
    if found.weights_sha256 != wanted.weights_sha256 {
        complaints.push(format!("trial {trial} has other weights than {against}"));
    }
    if found.checkpoint_sha256 != wanted.checkpoint_sha256 || found.reached != wanted.reached {
        complaints.push(format!("trial {trial} has another last checkpoint than {against}"));
    }
    if found.best_sha256 != wanted.best_sha256 {
        complaints.push(format!("trial {trial} has another best checkpoint than {against}"));
    }
    if found.measurements != wanted.measurements {
        let at = |list: &[Value]| -> BTreeSet<(u64, u64)> {
            list.iter().map(|m| (m["epoch"].as_u64().unwrap_or(0), m["step"].as_u64().unwrap_or(0))).collect()
        };
        let (found_at, wanted_at) = (at(&found.measurements), at(&wanted.measurements));
        let missing = wanted_at.difference(&found_at).take(3).collect::<Vec<_>>();
        let more = found_at.difference(&wanted_at).take(3).collect::<Vec<_>>();
        let first = found.measurements.iter().zip(&wanted.measurements).find(|(found, wanted)| found != wanted);
        complaints.push(format!(
            "trial {trial} has other measurements than {against}: missing {missing:?}, too many {more:?}, first that \
             differs {first:?}"
        ));
    }
    complaints
}
