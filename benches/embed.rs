//! Documents per second of the embed stage, end to end, beside raw fastembed on the same texts and threads.
//!
//! Stage and raw take turns, each in a process of its own of the same kind (this program), so that a machine whose
//! speed drifts slows both. `cargo bench --bench embed -- --rounds 3 --texts 4000`

mod support;

use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use fastembed::{InitOptionsUserDefined, TextEmbedding, TokenizerFiles, UserDefinedEmbeddingModel};
use rdkafka::producer::{BaseRecord, Producer, ThreadedProducer};
use sweepstream::config::Settings;
use sweepstream::embed::batch;
use sweepstream::kafka::client;
use sweepstream::kafka::topics::Declarations;
use sweepstream::parts::Parts;
use sweepstream::topology::{Stage, Topology};

use support::{median, own_names, peak_rss_megabytes, Bench, Figures};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() {
    // As the program does, before any thread starts.
    std::env::set_var("RAYON_NUM_THREADS", "1");
    let arguments: Vec<String> = std::env::args().collect();
    let value = |name: &str| {
        let at = arguments.iter().position(|argument| argument == name)?;
        arguments.get(at + 1)?.parse::<usize>().ok()
    };
    let (rounds, count, words) =
        (value("--rounds").unwrap_or(3), value("--texts").unwrap_or(4000), value("--words").unwrap_or(0));
    let texts = texts(count, words);
    match arguments.iter().find_map(|argument| argument.strip_prefix("--child=")) {
        Some("raw") => println!("{}", raw(&texts, value("--batch").unwrap_or(0))),
        Some("stage") => {
            let servers = std::env::var("SWEEPSTREAM_KAFKA__BOOTSTRAP_SERVERS").unwrap();
            println!("{}", stage(&texts, &servers));
            eprintln!("stage: peak memory {:.0} MB", peak_rss_megabytes());
        }
        _ => compare(rounds),
    }
}

/// Brown sentences; with `words`, several joined until they have that many.
fn texts(count: usize, words: usize) -> Vec<String> {
    if words == 0 {
        return sentences(count);
    }
    let mut pool = sentences(count * 12).into_iter().cycle();
    let mut text = || {
        let mut text = String::new();
        while text.split_whitespace().count() < words {
            text.push_str(&pool.next().unwrap());
            text.push(' ');
        }
        text
    };
    (0..count).map(|_| text()).collect()
}

fn compare(rounds: usize) {
    let mut figures = Figures::default();
    let bench = Bench::start();
    for (name, texts, words) in [("sentences", "4000", "0"), ("200 words", "600", "200")] {
        let run = |arguments: &[&str]| {
            let settings = bench.settings();
            let output = Command::new(std::env::current_exe().unwrap())
                .args(arguments)
                .args(["--texts", texts, "--words", words])
                .env("SWEEPSTREAM_KAFKA__BOOTSTRAP_SERVERS", settings.kafka.bootstrap_servers)
                .output()
                .unwrap();
            let text = String::from_utf8_lossy(&output.stdout);
            eprint!("{}", String::from_utf8_lossy(&output.stderr));
            text.lines().last().and_then(|line| line.parse::<f64>().ok()).expect("a figure")
        };
        let (mut ratios, mut stages, mut raws) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..rounds {
            let stage = run(&["--child=stage"]);
            // The better of the stage's own batches and of sixteen texts each.
            let raw = run(&["--child=raw"]).max(run(&["--child=raw", "--batch", "16"]));
            ratios.push(stage / raw);
            stages.push(stage);
            raws.push(raw);
        }
        figures.add(&format!("{name}: stage, end to end"), median(stages), "docs/s");
        figures.add(&format!("{name}: raw fastembed"), median(raws), "docs/s");
        figures.add(&format!("{name}: stage / raw"), median(ratios), "");
    }
    figures.finish("embed");
}

/// From the first record polled to the last commit.
fn stage(texts: &[String], servers: &str) -> f64 {
    let mut settings = own_names(Settings::load(None, &[]).unwrap(), &format!("child-{}", std::process::id()));
    settings.kafka.bootstrap_servers = servers.to_owned();
    let _ = Declarations::load(&settings).unwrap().ensure(&settings, None).unwrap();
    let producer: ThreadedProducer<rdkafka::producer::DefaultProducerContext> =
        client::producer(&settings).create().unwrap();
    for text in texts {
        producer.send(BaseRecord::<(), str>::to(&settings.topics.texts).payload(text)).map_err(|(e, _)| e).unwrap();
    }
    producer.flush(Duration::from_secs(60)).unwrap();
    let topology = Topology::start(&settings, &Parts::locate(), &[Stage::Embed]).unwrap();
    while topology.metrics.embed.records.get() == 0 {
        std::thread::sleep(Duration::from_micros(200));
    }
    let started = Instant::now();
    while topology.status.verdicts().0 < texts.len() as u64 {
        assert!(!topology.ended().is_cancelled(), "the stage ended");
        std::thread::sleep(Duration::from_millis(1));
    }
    let seconds = started.elapsed().as_secs_f64();
    topology.stop().unwrap();
    texts.len() as f64 / seconds
}

/// Sorted by length, the stage's sessions and threads, fastembed alone.
fn raw(texts: &[String], batch_texts: usize) -> f64 {
    let settings = Settings::load(None, &[]).unwrap();
    let parts = Parts::locate();
    let (sessions, threads) = settings.embed.sessions_and_threads();
    let folder = parts.model(&settings).unwrap().folder;
    let read = |name: &str| std::fs::read(folder.join(name)).unwrap();
    let files = TokenizerFiles {
        tokenizer_file: read("tokenizer.json"),
        config_file: read("config.json"),
        special_tokens_map_file: read("special_tokens_map.json"),
        tokenizer_config_file: read("tokenizer_config.json"),
    };
    let environment = ort::init_from(parts.onnxruntime().unwrap()).unwrap().with_telemetry(false).build().unwrap();
    let definition = UserDefinedEmbeddingModel::new(read("model.onnx"), files);
    let mut models: Vec<TextEmbedding> = (0..sessions)
        .map(|_| {
            let options = InitOptionsUserDefined::new()
                .with_environment(environment.clone())
                .with_max_length(settings.embed.max_length.get())
                .with_intra_threads(threads);
            TextEmbedding::try_new_from_user_defined(definition.clone(), options).unwrap()
        })
        .collect();
    drop(definition);
    let mut tokenizer = models[0].tokenizer.clone();
    let _ = tokenizer.with_padding(None);
    let lengths: Vec<usize> = texts.iter().map(|text| tokenizer.encode(text.as_str(), true).unwrap().len()).collect();
    let batches = if batch_texts == 0 {
        batch::by_length(&lengths, settings.embed.max_batch_tokens.get())
    } else {
        let mut order: Vec<u32> = (0..texts.len() as u32).collect();
        order.sort_by_key(|&i| std::cmp::Reverse(lengths[i as usize]));
        order.chunks(batch_texts).map(<[u32]>::to_vec).collect()
    };
    let next = AtomicUsize::new(0);
    for model in &mut models {
        drop(model.transform(["warm up"], None).unwrap());
    }
    let started = Instant::now();
    std::thread::scope(|scope| {
        for model in &mut models {
            let (batches, next) = (&batches, &next);
            let _ = scope.spawn(move || {
                while let Some(batch) = batches.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let batch: Vec<&str> = batch.iter().map(|&i| texts[i as usize].as_str()).collect();
                    drop(model.transform(&batch, Some(batch.len())).unwrap());
                }
            });
        }
    });
    texts.len() as f64 / started.elapsed().as_secs_f64()
}

/// Sentences of the Brown corpus, evenly from all of it; made-up ones where the corpus was not fetched.
fn sentences(count: usize) -> Vec<String> {
    let folder = Parts::locate().brown().unwrap_or_else(|_| PathBuf::new());
    let mut names: Vec<PathBuf> =
        std::fs::read_dir(folder).into_iter().flatten().filter_map(|entry| Some(entry.ok()?.path())).collect();
    names.sort();
    let mut all: Vec<String> = names
        .iter()
        .filter_map(|path| std::fs::read_to_string(path).ok())
        .flat_map(|text| text.lines().map(untagged).collect::<Vec<_>>())
        .filter(|sentence| !sentence.trim().is_empty())
        .collect();
    if all.is_empty() {
        eprintln!("the Brown corpus is not here (`parts/fetch --corpora` fetches it); using made-up sentences");
        all = (0..count).map(|i| format!("sentence {i} {}", "has some more words in it ".repeat(i % 9))).collect();
    }
    let step = (all.len() / count).max(1);
    all.into_iter().step_by(step).take(count).collect()
}

fn untagged(line: &str) -> String {
    let words = line.split_whitespace().map(|token| token.rsplit_once('/').map_or(token, |(word, _)| word));
    words.collect::<Vec<_>>().join(" ")
}
