//! How long faults are felt: from SIGKILL of one of two embed processes until readers see features of its partitions
//! again, and what a restart of the broker costs. `cargo bench --bench recovery -- --rounds 5`

mod support;

use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use sweepstream::config::Settings;
use sweepstream::kafka::local::{LocalBroker, LocalBrokerOptions};
use sweepstream::kafka::offsets::Watermarks;
use sweepstream::kafka::ports;
use sweepstream::kafka::topics::Declarations;
use sweepstream::parts::Parts;

use support::process::{produce, Running};
use support::{median, own_names, Bench, Figures};

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    let at = arguments.iter().position(|argument| argument == "--rounds");
    let rounds = at.and_then(|at| arguments.get(at + 1)?.parse().ok()).unwrap_or(3);
    let mut figures = Figures::default();
    let bench = Bench::start();
    for protocol in ["classic", "consumer"] {
        let times: Vec<f64> = (0..rounds).map(|_| takeover(&bench, protocol)).collect();
        let longest = times.iter().copied().fold(0.0, f64::max);
        figures.add(&format!("takeover after SIGKILL, {protocol}: median"), median(times), "s");
        figures.add(&format!("takeover after SIGKILL, {protocol}: longest"), longest, "s");
    }
    drop(bench);
    let (undisturbed, _) = embed(false);
    let (restarted, gap) = embed(true);
    figures.add("embedding, broker undisturbed", undisturbed, "texts/s");
    figures.add("embedding, broker killed and restarted once", restarted, "texts/s");
    figures.add("longest time without a commit around that restart", gap, "s");
    figures.finish("recovery");
}

fn text(number: u64) -> String {
    const WORDS: [&str; 7] = ["the", "sailor", "saw", "a", "lighthouse", "in", "storms"];
    (0..4 + number % 15).map(|i| WORDS[((number + i * i) % 7) as usize]).collect::<Vec<_>>().join(" ")
}

/// Ends of the features partitions as read-committed readers see them.
fn visible(watermarks: &Watermarks, settings: &Settings) -> Option<Vec<i64>> {
    (0..4).map(|partition| watermarks.stable_end(&settings.topics.features, partition).ok()).collect()
}

/// Seconds from SIGKILL of one of two processes until features of all partitions are seen to grow again.
fn takeover(bench: &Bench, protocol: &str) -> f64 {
    let settings = bench.settings();
    drop(Declarations::load(&settings).unwrap().ensure(&settings, None).unwrap());
    let set = format!("kafka.group_protocol={protocol}");
    let start = || {
        Running::start(
            &settings,
            &["run", "--stage=embed", "-s", "embed.sessions=1", "-s", "embed.threads=1", "-s", &set],
        )
    };
    let watermarks = Watermarks::new(&settings).unwrap();
    let owned = |process: &Running| process.get("/metrics").matches("sweepstream_consumer_lag_records{").count();
    let (mut dying, other) = (start(), start());
    while owned(&dying) != 2 || owned(&other) != 2 {
        std::thread::sleep(Duration::from_millis(50));
    }
    let (stop, produced) = (AtomicBool::new(false), AtomicU64::new(0));
    std::thread::scope(|scope| {
        // A steady stream of about 100 texts a second.
        let _ = scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                let from = produced.fetch_add(10, Ordering::Relaxed);
                produce(&settings, (from..from + 10).map(|number| (format!("k{number}"), text(number), "x")));
                std::thread::sleep(Duration::from_millis(100));
            }
        });
        while visible(&watermarks, &settings).unwrap().iter().any(|&end| end < 20) {
            std::thread::sleep(Duration::from_millis(20));
        }
        dying.child.kill().unwrap();
        let killed = Instant::now();
        let before = visible(&watermarks, &settings).unwrap();
        while !visible(&watermarks, &settings).unwrap().iter().zip(&before).all(|(now, before)| now > before) {
            std::thread::sleep(Duration::from_millis(10));
        }
        stop.store(true, Ordering::Relaxed);
        killed.elapsed().as_secs_f64()
    })
}

/// Texts a second over a stream, and the longest time without a commit; halfway the broker may be killed.
fn embed(restart: bool) -> (f64, f64) {
    const COUNT: u64 = 8000;
    let parts = Parts::locate();
    let folder = tempfile::tempdir().unwrap();
    let [port] = ports::free().unwrap();
    let broker = || {
        let options =
            LocalBrokerOptions { data: Some(folder.path().join("data")), port: Some(port), properties: Vec::new() };
        LocalBroker::start(parts.kafka().unwrap(), &options).unwrap()
    };
    let mut running = broker();
    let settings = own_names(running.settings(), "restart");
    drop(Declarations::load(&settings).unwrap().ensure(&settings, None).unwrap());
    produce(&settings, (0..COUNT).map(|number| (format!("k{number}"), text(number), "x")));
    let process = Running::start(&settings, &["run", "--stage=embed"]);
    let started = Instant::now();
    let (mut changed, mut gap, mut before, mut killed) = (Instant::now(), 0.0_f64, 0, false);
    loop {
        let done = process.metric("sweepstream_features_records_total");
        if done != before {
            gap = gap.max(changed.elapsed().as_secs_f64());
            (before, changed) = (done, Instant::now());
        }
        if done >= COUNT {
            return (COUNT as f64 / started.elapsed().as_secs_f64(), gap);
        }
        if restart && !killed && done >= COUNT / 2 {
            killed = true;
            let group = format!("-{}", running.id());
            assert!(Command::new("kill").args(["-KILL", "--", &group]).status().unwrap().success());
            drop(running);
            running = broker();
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}
