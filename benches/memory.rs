//! Resident memory of the real program over a long stream: texts of mixed length through the embed stage, and trials
//! over many epochs. `cargo bench --bench memory -- --texts 200000 --epochs 50`; features are kept for a short while
//! only, so that the stream may be longer than the disk.

mod support;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use sweepstream::kafka::topics::Declarations;

use support::process::{command, produce, Running};
use support::{Bench, Figures};

/// Texts after which memory must not grow any more.
const WARM: u64 = 20_000;

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    let value = |name: &str, default: u64| {
        let at = arguments.iter().position(|argument| argument == name);
        at.and_then(|at| arguments.get(at + 1)?.parse().ok()).unwrap_or(default)
    };
    let bench = Bench::start();
    let mut figures = Figures::default();
    let folder = tempfile::tempdir().unwrap();
    embed(&bench, folder.path(), value("--texts", 200_000), &mut figures);
    train(&bench, folder.path(), value("--epochs", 50), &mut figures);
    figures.finish("memory");
}

/// Nine texts of ten have up to 32 tokens, the tenth up to 512.
fn text(number: u64) -> String {
    const WORDS: [&str; 12] = [
        "the",
        "sailor",
        "saw",
        "a",
        "lighthouse",
        "in",
        "storm",
        "unmistakably",
        "reconstruction",
        "of",
        "Edinburgh",
        "87",
    ];
    // Any spread will do, as long as it is the same in each run.
    let mut state = number.wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ 0xD1B5_4A32_D192_ED03;
    let mut next = move |below: u64| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) % below
    };
    let words = 1 + if number % 10 == 9 { next(380) } else { next(24) };
    let words: Vec<&str> = (0..words).map(|_| WORDS[next(WORDS.len() as u64) as usize]).collect();
    words.join(" ")
}

fn embed(bench: &Bench, folder: &Path, count: u64, figures: &mut Figures) {
    let mut settings = bench.settings();
    let topics = folder.join("topics");
    fs::create_dir(&topics).unwrap();
    fs::write(
        topics.join("features.toml"),
        "partitions = { same_as = \"texts\" }\nreplication_factor = -1\n[required]\n\"max.message.bytes\" = \
         { value = \"4194304\", why = \"a matrix of 512 rows\" }\n[advised]\n\"retention.bytes\" = \
         { value = \"134217728\", why = \"the disk\" }\n\"segment.bytes\" = \
         { value = \"33554432\", why = \"the disk\" }\n",
    )
    .unwrap();
    settings.topics.dir = Some(topics);
    drop(Declarations::load(&settings).unwrap().ensure(&settings, None).unwrap());
    produce(&settings, (0..count).map(|number| (format!("k{number}"), text(number), "x")));
    let process = Running::start(&settings, &["run", "--stage=embed", "-s", "embed.max_length=512"]);
    let (started, mut shown, mut warm) = (Instant::now(), 0, None);
    println!("{:>9} {:>9} {:>9}", "texts", "seconds", "RSS MB");
    loop {
        std::thread::sleep(Duration::from_secs(1));
        let done = process.metric("sweepstream_features_records_total");
        let rss = process.rss_megabytes();
        if done >= WARM.min(count) && warm.is_none() {
            warm = Some(rss);
        }
        if done >= shown || done >= count {
            println!("{done:>9} {:>9.0} {rss:>9.1}", started.elapsed().as_secs_f64());
            shown = done + (count / 40).max(1000);
        }
        if done >= count {
            figures.add("embed stage: RSS once warm", warm.unwrap_or(rss), "MB");
            figures.add("embed stage: RSS at the end", rss, "MB");
            figures.add("embed stage: end / warm", rss / warm.unwrap_or(rss), "");
            break;
        }
    }
}

fn train(bench: &Bench, folder: &Path, epochs: u64, figures: &mut Figures) {
    let settings = bench.settings();
    drop(Declarations::load(&settings).unwrap().ensure(&settings, None).unwrap());
    let count = 4000;
    let label = |number: u64| if number % 2 == 0 { "even" } else { "odd" };
    produce(&settings, (0..count).map(|number| (format!("k{number}"), text(number * 7), label(number))));
    let embed = Running::start(&settings, &["run", "--stage=embed"]);
    while embed.metric("sweepstream_features_records_total") < count {
        std::thread::sleep(Duration::from_millis(200));
    }
    drop(embed);
    let search = folder.join("search.toml");
    fs::write(
        &search,
        format!(
            "name = \"memory\"\nepochs = {epochs}\n[[trial]]\nmodel = \"mlp\"\n[[trial]]\nmodel = \
            \"autoencoder\"\nlayers = [64, 32]\n"
        ),
    )
    .unwrap();
    let id = command(&settings, &["search", "start", search.to_str().unwrap()]).output().unwrap();
    assert!(id.status.success(), "{}", String::from_utf8_lossy(&id.stderr));
    let process = Running::start(&settings, &["run", "--stage=train"]);
    let mut by_epoch: BTreeMap<u64, f64> = BTreeMap::new();
    println!("{:>9} {:>9}", "epoch", "RSS MB");
    loop {
        std::thread::sleep(Duration::from_millis(200));
        let trials: serde_json::Value = serde_json::from_str(&process.get("/api/trials")).unwrap_or_default();
        let states: Vec<&serde_json::Value> = match &trials {
            serde_json::Value::Object(trials) => trials.values().collect(),
            serde_json::Value::Array(trials) => trials.iter().collect(),
            _ => Vec::new(),
        };
        // The slower of the two, as long as both run.
        let epoch = states.iter().filter_map(|trial| trial["epoch"].as_u64()).min().unwrap_or(0);
        let rss = process.rss_megabytes();
        if by_epoch.insert(epoch, rss).is_none() && epoch % 5 == 0 {
            println!("{epoch:>9} {rss:>9.1}");
        }
        if states.len() == 2 && states.iter().all(|trial| trial["state"] == "finished") {
            break;
        }
    }
    let at = |epoch: u64| by_epoch.range(epoch..).next().map_or(f64::NAN, |(_, &rss)| rss);
    let (warm, end) = (at(epochs / 10), by_epoch.range(..epochs).next_back().map_or(f64::NAN, |(_, &rss)| rss));
    figures.add("train stage, two trials: RSS after a tenth", warm, "MB");
    figures.add("train stage, two trials: RSS in the last epoch", end, "MB");
    figures.add("train stage: end / warm", end / warm, "");
}
