//! Documents per second of the embed stage, end to end, beside fastembed and ONNX Runtime alone on the same texts and
//! threads.
//!
//! The stage and the fastest of the others take turns, each in a process of its own of the same kind (this program), so
//! that a machine whose speed drifts slows both. `cargo bench --bench embed -- --rounds 5`

mod support;

use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use fastembed::{InitOptionsUserDefined, TextEmbedding, TokenizerFiles, UserDefinedEmbeddingModel};
use rdkafka::producer::{BaseRecord, Producer, ThreadedProducer};
use sweepstream::config::Settings;
use sweepstream::embed::batch;
use sweepstream::embed::stage::EMBED;
use sweepstream::kafka::client;
use sweepstream::kafka::topics::Declarations;
use sweepstream::parts::Parts;
use sweepstream::topology::Topology;

use support::{median, own_names, Bench, Figures};

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
        Some("ort") => println!("{}", raw_ort(&texts, value("--batch").unwrap_or(0))),
        Some("stage") => {
            let servers = std::env::var("SWEEPSTREAM_KAFKA__BOOTSTRAP_SERVERS").unwrap();
            println!("{}", stage(&texts, &servers));
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

/// Who runs alone, and how many texts share a call: as many as the stage takes, or so many.
const RAW: [(&str, &str, &str); 4] = [
    ("fastembed, the stage's batches", "raw", "0"),
    ("fastembed, 16 at a time", "raw", "16"),
    ("ONNX Runtime, the stage's batches", "ort", "0"),
    ("ONNX Runtime, 16 at a time", "ort", "16"),
];

fn compare(rounds: usize) {
    let mut figures = Figures::default();
    let bench = Bench::start();
    let run = |child: &str, batch: &str, texts: &str, words: &str| {
        let settings = bench.settings();
        let output = Command::new(std::env::current_exe().unwrap())
            .args([&format!("--child={child}"), "--batch", batch, "--texts", texts, "--words", words])
            .env("SWEEPSTREAM_KAFKA__BOOTSTRAP_SERVERS", settings.kafka.bootstrap_servers)
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&output.stdout);
        let figure = text.lines().last().and_then(|line| line.parse::<f64>().ok());
        figure.unwrap_or_else(|| panic!("no figure; {}", String::from_utf8_lossy(&output.stderr)))
    };
    // The broker compiles its own code while it is new.
    let _ = run("stage", "0", "1000", "0");
    for (name, texts, words) in [("sentences", "4000", "0"), ("200 words", "600", "200")] {
        let stage = || run("stage", "0", texts, words);
        let first = stage();
        let alone = RAW.map(|(_, child, batch)| run(child, batch, texts, words));
        for ((raw, ..), docs) in RAW.iter().zip(alone) {
            figures.add(&format!("{name}: {raw}"), docs, "docs/s");
        }
        let best = (0..RAW.len()).max_by(|&a, &b| alone[a].total_cmp(&alone[b])).unwrap();
        let (mut stages, mut raws) = (vec![first], vec![alone[best]]);
        for _ in 1..rounds {
            raws.push(run(RAW[best].1, RAW[best].2, texts, words));
            stages.push(stage());
        }
        let ratios = stages.iter().zip(&raws).map(|(stage, raw)| stage / raw).collect();
        figures.add(&format!("{name}: the best of these"), median(raws), "docs/s");
        figures.add(&format!("{name}: stage, end to end"), median(stages), "docs/s");
        figures.add(&format!("{name}: stage / the best"), median(ratios), "");
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
    // Its polling costs a hundredth of a core.
    drop(producer);
    let topology = Topology::start(&settings, &Parts::locate(), &[&EMBED]).unwrap();
    while topology.metrics.embed.records.get() == 0 {
        std::thread::sleep(Duration::from_micros(200));
    }
    let started = Instant::now();
    while topology.status.verdicts().0 < texts.len() as u64 {
        assert!(!topology.ended().is_cancelled(), "the stage ended");
        std::thread::sleep(Duration::from_millis(5));
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
    let batches = batches(&tokenizer, texts, batch_texts, settings.embed.max_batch_tokens.get());
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

/// Sorted by length, the stage's sessions and threads, ONNX Runtime alone.
fn raw_ort(texts: &[String], batch_texts: usize) -> f64 {
    let settings = Settings::load(None, &[]).unwrap();
    let parts = Parts::locate();
    let (sessions, threads) = settings.embed.sessions_and_threads();
    let folder = parts.model(&settings).unwrap().folder;
    let environment = ort::init_from(parts.onnxruntime().unwrap()).unwrap().with_telemetry(false).build().unwrap();
    let mut models: Vec<ort::session::Session> = (0..sessions)
        .map(|_| {
            let builder = ort::session::Session::builder(&environment).unwrap();
            builder.with_intra_threads(threads).unwrap().commit_from_file(folder.join("model.onnx")).unwrap()
        })
        .collect();
    let mut tokenizer = tokenizers::Tokenizer::from_file(folder.join("tokenizer.json")).unwrap();
    let max_length = settings.embed.max_length.get();
    let truncation = tokenizers::TruncationParams { max_length, ..Default::default() };
    let _ = tokenizer.with_padding(None).with_truncation(Some(truncation)).unwrap();
    let batches = batches(&tokenizer, texts, batch_texts, settings.embed.max_batch_tokens.get());
    let infer = |model: &mut ort::session::Session, batch: &[u32]| {
        let encodings: Vec<_> =
            batch.iter().map(|&i| tokenizer.encode(texts[i as usize].as_str(), true).unwrap()).collect();
        let longest = encodings.iter().map(|encoding| encoding.len()).max().unwrap();
        let (mut ids, mut mask) = (Vec::new(), Vec::new());
        for (i, encoding) in (1..).zip(&encodings) {
            ids.extend(encoding.get_ids().iter().map(|&id| i64::from(id)));
            mask.resize(ids.len(), 1_i64);
            ids.resize(i * longest, 0);
            mask.resize(i * longest, 0);
        }
        let (shape, types) = ([batch.len(), longest], vec![0_i64; ids.len()]);
        let tensor = |numbers| ort::value::TensorRef::from_array_view((shape, numbers)).unwrap();
        let inputs = ort::inputs! { "input_ids" => tensor(&*ids), "attention_mask" => tensor(&*mask), "token_type_ids" => tensor(&*types) };
        drop(model.run(inputs).unwrap());
    };
    for model in &mut models {
        infer(model, &[0]);
    }
    let next = AtomicUsize::new(0);
    let started = Instant::now();
    std::thread::scope(|scope| {
        for model in &mut models {
            let (batches, next, infer) = (&batches, &next, &infer);
            let _ = scope.spawn(move || {
                while let Some(batch) = batches.get(next.fetch_add(1, Ordering::Relaxed)) {
                    infer(model, batch);
                }
            });
        }
    });
    texts.len() as f64 / started.elapsed().as_secs_f64()
}

/// The stage's own batches, or so many texts each.
fn batches(
    tokenizer: &tokenizers::Tokenizer,
    texts: &[String],
    batch_texts: usize,
    tokens_max: usize,
) -> Vec<Vec<u32>> {
    let lengths: Vec<usize> = texts.iter().map(|text| tokenizer.encode(text.as_str(), true).unwrap().len()).collect();
    if batch_texts == 0 {
        return batch::by_length(&lengths, tokens_max);
    }
    let mut order: Vec<u32> = (0..texts.len() as u32).collect();
    order.sort_by_key(|&i| std::cmp::Reverse(lengths[i as usize]));
    order.chunks(batch_texts).map(<[u32]>::to_vec).collect()
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
