//! Shared by the benches: a Kafka, texts, and figures as a table and as JSON. Each uses a part of it.
#![allow(dead_code)]

pub mod features;
pub mod process;

use std::collections::BTreeMap;
use std::path::PathBuf;

use sweepstream::config::Settings;
use sweepstream::kafka::local::{LocalBroker, LocalBrokerOptions};
use sweepstream::parts::Parts;

/// A Kafka of the bench's own, and settings with topics of their own for each run.
pub struct Bench {
    broker: LocalBroker,
    runs: std::cell::Cell<u32>,
}

impl Bench {
    pub fn start() -> Self {
        let parts = Parts::locate();
        let broker = LocalBroker::start(parts.kafka().expect("make parts"), &LocalBrokerOptions::default()).unwrap();
        Self { broker, runs: 0.into() }
    }

    pub fn settings(&self) -> Settings {
        self.runs.set(self.runs.get() + 1);
        own_names(self.broker.settings(), &format!("bench-{}", self.runs.get()))
    }
}

/// Gives a run topics and groups of its own, and an HTTP port.
pub fn own_names(mut settings: Settings, run: &str) -> Settings {
    settings.application_id = run.to_owned();
    settings.topics.texts = format!("{run}-texts");
    settings.topics.features = format!("{run}-features");
    settings.topics.dead_letters = format!("{run}-dead-letters");
    settings.topics.trials = format!("{run}-trials");
    settings.topics.output = format!("{run}-output");
    settings.http.address = Some("127.0.0.1:0".into());
    settings
}

/// Figures by name; printed as they come, and added at the end to the file that `SWEEPSTREAM_BENCH_JSON` names.
#[derive(Default)]
pub struct Figures(BTreeMap<String, f64>);

impl Figures {
    pub fn add(&mut self, name: &str, value: f64, unit: &str) {
        println!("{name:54} {value:>12.3} {unit}");
        let _ = self.0.insert(format!("{name} [{unit}]"), value);
    }

    pub fn finish(self, bench: &str) {
        let Some(path) = std::env::var_os("SWEEPSTREAM_BENCH_JSON").map(PathBuf::from) else { return };
        let known = std::fs::read(&path).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok());
        let mut all: serde_json::Map<String, serde_json::Value> = known.unwrap_or_default();
        let _ = all.insert("machine".into(), format!("{}, {} cores", processor(), sweepstream::config::cores()).into());
        let _ = all.insert(bench.into(), serde_json::json!(self.0));
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, serde_json::to_vec_pretty(&all).unwrap()).unwrap();
    }
}

fn processor() -> String {
    let known = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let name = known.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
    name.map_or_else(|| std::env::consts::ARCH.into(), |(_, name)| name.into())
}

pub fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// Peak resident memory of this process in megabytes.
pub fn peak_rss_megabytes() -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    line.and_then(|line| line.trim().trim_end_matches("kB").trim().parse::<f64>().ok()).unwrap_or(0.0) / 1024.0
}

/// CPU time of this process so far, all threads together.
pub fn cpu_seconds() -> f64 {
    cpu_seconds_of("self")
}

/// CPU time of a process.
pub fn cpu_seconds_of(process: &str) -> f64 {
    let stat = std::fs::read_to_string(format!("/proc/{process}/stat")).unwrap_or_default();
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or("").split_whitespace().collect();
    let ticks = |place: usize| fields.get(place).and_then(|field| field.parse::<f64>().ok()).unwrap_or(f64::NAN);
    // The kernel tells them in hundredths on every platform.
    (ticks(11) + ticks(12)) / 100.0
}

/// What has gone through the loopback interface, where the bench's Kafka is.
pub fn loopback_megabytes() -> f64 {
    let table = std::fs::read_to_string("/proc/net/dev").unwrap_or_default();
    let line = table.lines().find_map(|line| line.trim().strip_prefix("lo:"));
    line.and_then(|line| line.split_whitespace().next()?.parse::<f64>().ok()).unwrap_or(f64::NAN) / 1e6
}
