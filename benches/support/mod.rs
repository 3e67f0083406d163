//! Shared by the benches: a Kafka, texts, and figures as a table and as JSON. Each uses a part of it.
#![allow(dead_code)]

pub mod process;

use std::collections::BTreeMap;

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

/// Figures by name; printed as they come, and as one JSON line at the end.
#[derive(Default)]
pub struct Figures(BTreeMap<String, f64>);

impl Figures {
    pub fn add(&mut self, name: &str, value: f64, unit: &str) {
        println!("{name:54} {value:>12.3} {unit}");
        let _ = self.0.insert(format!("{name} [{unit}]"), value);
    }

    pub fn finish(self, bench: &str) {
        println!("{}", serde_json::json!({ "bench": bench, "cores": sweepstream::config::cores(), "figures": self.0 }));
    }
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
