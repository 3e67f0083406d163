//! A search from a process's start to its last outcome, beside the Python peers; what more trials, and embedding beside
//! them, cost; trials that share means, to bare steps; memory of sixteen trials; how long a resume takes.
//!
//! `cargo bench --bench pool -- --rounds 3`, or with `--means` what has to do with means alone; `SWEEPSTREAM_PEERS` names the folder of the peers, and
//! `SWEEPSTREAM_PEERS_PYTHON` a Python that has what they need (else `python3`).

mod support;

use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use rdkafka::config::FromClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::message::Message;
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use sweepstream::config::Settings;
use sweepstream::features::codec;
use sweepstream::features::window::{Example, Target, Window};
use sweepstream::kafka::client;
use sweepstream::kafka::topics::Declarations;
use sweepstream::output::Key;
use sweepstream::parts::Parts;
use sweepstream::search::record::TrialRecord;
use sweepstream::topology::Topology;
use sweepstream::train::run::pool::TRAIN;

use support::features::{fill, matrices, mlps, search, DIM, LABELS};
use support::process::{produce, Running};
use support::{cpu_seconds, cpu_seconds_of, median, Bench, Figures};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const RECORDS: usize = 4000;

fn main() {
    // As the program does, before any thread starts.
    std::env::set_var("RAYON_NUM_THREADS", "1");
    let arguments: Vec<String> = std::env::args().collect();
    let at = arguments.iter().position(|argument| argument == "--rounds");
    let rounds = at.and_then(|at| arguments.get(at + 1)?.parse().ok()).unwrap_or(3);
    let mut figures = Figures::default();
    let bench = Bench::start();
    let matrices = matrices(RECORDS);
    means(&bench, &matrices, rounds, &mut figures);
    if arguments.iter().any(|argument| argument == "--means") {
        return figures.finish("pool");
    }
    wall(&bench, &matrices, rounds, &mut figures);
    memory(&bench, &matrices, &mut figures);
    resume(&bench, &matrices, rounds, &mut figures);
    // So many that no epoch ends, and no checkpoint is written, while steps are counted.
    let many: Vec<Vec<u8>> = matrices.iter().cycle().take(4 * RECORDS).cloned().collect();
    scaling(&bench, &many, rounds, &mut figures);
    beside(&bench, &many, &mut figures);
    figures.finish("pool");
}

/// Topics are there and hold features, and the search has been started: eight mlp trials of five epochs.
fn wall(bench: &Bench, matrices: &[Vec<u8>], rounds: usize, figures: &mut Figures) {
    let settings = bench.settings();
    fill(&settings, matrices);
    let modes = ["workers", "processes", "optuna-all", "optuna"];
    let peers = std::env::var_os("SWEEPSTREAM_PEERS").map(|folder| PathBuf::from(folder).join("python"));
    let mut ours = Vec::new();
    let mut theirs = modes.map(|_| Vec::new());
    // A broker's first transactions wait for topics of its own.
    let _ = ours_once(&settings, usize::MAX);
    for _ in 0..rounds {
        ours.push(ours_once(&settings, ours.len()));
        for (mode, found) in modes.iter().zip(&mut theirs) {
            found.extend(peers.iter().map(|folder| peer(folder, mode, &settings)));
        }
    }
    let ours = median(ours);
    figures.add("8 mlp, 5 epochs, 4,000 texts: start to last outcome", ours, "s");
    for (mode, found) in modes.iter().zip(theirs).filter(|(_, found)| !found.is_empty()) {
        let found = median(found);
        figures.add(&format!("the same by pool.py, {mode}"), found, "s");
        figures.add(&format!("ours to pool.py, {mode}"), ours / found, "times");
    }
}

/// A process that trains a search to its end; how long until the last outcome was committed.
fn ours_once(settings: &Settings, round: usize) -> f64 {
    let mut settings = settings.clone();
    // So that no member of an earlier process is waited for.
    settings.application_id = format!("{}-{round}", settings.application_id);
    let started = mlps(&settings, 8, 5);
    let ids: Vec<String> = started.trials.iter().map(|trial| trial.trial.clone()).collect();
    let outcomes = Outcomes::follow(&settings);
    let clock = Instant::now();
    let process = Running::spawn(&settings, &["run", "--stage=train"]);
    outcomes.await_all(&ids);
    let seconds = clock.elapsed().as_secs_f64();
    drop(process);
    seconds
}

/// Wall time as the peer measures it: from the start of its workers until they are done.
fn peer(folder: &std::path::Path, mode: &str, settings: &Settings) -> f64 {
    let python = std::env::var_os("SWEEPSTREAM_PEERS_PYTHON").unwrap_or_else(|| "python3".into());
    let classes: Vec<String> = (0..LABELS).map(|label| format!("label {label}")).collect();
    let output = Command::new(python)
        .arg(folder.join("pool.py"))
        .args(["--mode", mode, "--workload", "mlp8"])
        .current_dir(folder)
        .env("KAFKA_BOOTSTRAP", &settings.kafka.bootstrap_servers)
        .env("FEATURES_TOPIC", &settings.topics.features)
        .env("CLASSES", serde_json::to_string(&classes).unwrap())
        .env("OMP_NUM_THREADS", "1")
        .output()
        .expect("the peers' Python starts");
    let text = String::from_utf8_lossy(&output.stdout);
    let found: Option<serde_json::Value> = text.lines().last().and_then(|line| serde_json::from_str(line).ok());
    let wall = found.and_then(|found| found["wall_s"].as_f64());
    wall.unwrap_or_else(|| panic!("pool.py --mode {mode}: {text}{}", String::from_utf8_lossy(&output.stderr)))
}

/// Reads `output` as others would, from its end on.
struct Outcomes(BaseConsumer);

impl Outcomes {
    fn follow(settings: &Settings) -> Self {
        let config = client::replay(settings, "outcomes", 1);
        let consumer = BaseConsumer::from_config(&config).unwrap();
        let topic = &settings.topics.output;
        let metadata = consumer.fetch_metadata(Some(topic), Duration::from_secs(10)).unwrap();
        let mut list = TopicPartitionList::new();
        for partition in metadata.topics()[0].partitions() {
            let (_, end) = consumer.fetch_watermarks(topic, partition.id(), Duration::from_secs(10)).unwrap();
            list.add_partition_offset(topic, partition.id(), Offset::Offset(end)).unwrap();
        }
        consumer.assign(&list).unwrap();
        Self(consumer)
    }

    fn await_all(&self, trials: &[String]) {
        let mut open: std::collections::BTreeSet<&str> = trials.iter().map(String::as_str).collect();
        while !open.is_empty() {
            let Some(Ok(message)) = self.0.poll(Duration::from_millis(100)) else { continue };
            if let Some(key @ Key::Outcome { .. }) = message.key().and_then(Key::parse) {
                let _ = open.remove(key.trial());
            }
        }
    }
}

/// Peak memory of a process that runs sixteen classifiers at once.
fn memory(bench: &Bench, matrices: &[Vec<u8>], figures: &mut Figures) {
    let settings = bench.settings();
    fill(&settings, matrices);
    let started = mlps(&settings, 16, 20);
    let ids: Vec<String> = started.trials.iter().map(|trial| trial.trial.clone()).collect();
    let outcomes = Outcomes::follow(&settings);
    let process = Running::spawn(&settings, &["run", "--stage=train", "-s", "train.parallel=16"]);
    outcomes.await_all(&ids);
    figures.add("16 mlp trials in one process: peak memory", process.peak_rss_megabytes(), "MB");
    figures.add("16 mlp trials in one process: replayed", process.value("sweepstream_trial_records_total"), "records");
    figures.add("16 mlp trials in one process: read", process.value("sweepstream_replay_records_total"), "records");
    drop(process);
    let settings = bench.settings();
    fill(&settings, matrices);
    let text = "name = \"m\"\nmodel = \"autoencoder\"\nlayers = [256, 128]\nepochs = 2";
    let ids: Vec<String> = search(&settings, text).trials.into_iter().map(|trial| trial.trial).collect();
    let outcomes = Outcomes::follow(&settings);
    let process = Running::spawn(&settings, &["run", "--stage=train"]);
    outcomes.await_all(&ids);
    let peak = process.peak_rss_megabytes();
    // 64 rows of 384 numbers: weights and biases there and back; weights and two moments in f32; 64 padded records.
    let layers = [64 * 384, 256, 128, 256, 64 * 384];
    let parameters: usize = layers.windows(2).map(|pair| pair[0] * pair[1] + pair[1]).sum();
    let state = (3 * parameters + 64 * 64 * 384) as f64 * 4.0 / 1024.0 / 1024.0;
    figures.add("an autoencoder trial, process and all: peak memory", peak, "MB");
    figures.add("  to its parameters, moments and one batch", peak / state, "times");
}

/// From the start of a process to the first step of a trial that has a checkpoint.
fn resume(bench: &Bench, matrices: &[Vec<u8>], rounds: usize, figures: &mut Figures) {
    let settings = bench.settings();
    fill(&settings, matrices);
    let _ = mlps(&settings, 1, 1_000_000);
    let steps = |process: &Running, least: f64| {
        let clock = Instant::now();
        while process.value("sweepstream_trial_steps_total") < least {
            std::thread::sleep(Duration::from_millis(2));
        }
        clock.elapsed().as_secs_f64()
    };
    let mut seconds = Vec::new();
    for round in 0..=rounds {
        let clock = Instant::now();
        let mut process = Running::spawn(&settings, &["run", "--stage=train"]);
        let _ = steps(&process, 1.0);
        if round > 0 {
            seconds.push(clock.elapsed().as_secs_f64());
        }
        // Some epochs, so that there is a checkpoint.
        let _ = steps(&process, 500.0);
        process.stop();
    }
    figures.add("from a process's start to the first step of a resumed trial", median(seconds), "s");
}

/// Sixteen mlp trials and sixty-four over means in memory, to steps of as many threads without anything around them.
fn means(bench: &Bench, matrices: &[Vec<u8>], rounds: usize, figures: &mut Figures) {
    const BATCH: f64 = 64.0;
    let mut settings = bench.settings();
    settings.train.checkpoint_interval = Duration::from_secs(3600);
    settings.run.drain_timeout = Duration::ZERO;
    // Each epoch ends with a checkpoint: so many that this is a small part.
    let many: Vec<Vec<u8>> = matrices.iter().cycle().take(16 * RECORDS).cloned().collect();
    fill(&settings, &many);
    let trial = mlps(&settings, 1, 1).trials.remove(0);
    let mut all = Window::default();
    all.clear(0, DIM);
    for (i, matrix) in many.iter().enumerate() {
        let target = Target::Class((i % LABELS) as u32);
        all.push_mean(codec::decode(matrix).unwrap(), trial.rows_max, target, false);
    }
    drop(many);
    let mut rates: [Vec<[f64; 2]>; 4] = Default::default();
    for round in 0..rounds {
        rates[0].push(per_second(|| bare_steps(&trial, settings.train.threads(), &all)));
        let cache_bytes = settings.train.cache_bytes;
        for (place, (trials, cache_bytes)) in (1..).zip([(16, cache_bytes), (64, cache_bytes), (16, 0)]) {
            let mut settings = settings.clone();
            settings.train.cache_bytes = cache_bytes;
            settings.application_id = format!("{}-{place}-{round}", settings.application_id);
            // So that no trial of an earlier case goes on.
            settings.topics.trials = format!("{}-{place}-{round}", settings.topics.trials);
            drop(Declarations::load(&settings).unwrap().ensure(&settings, None).unwrap());
            settings.train.parallel = std::num::NonZeroUsize::new(trials);
            drop(mlps(&settings, trials, 1_000_000));
            let topology = Topology::start(&settings, &Parts::locate(), &[&TRAIN]).unwrap();
            while topology.status.trials().values().filter(|trial| trial.step > 0).count() < trials {
                std::thread::sleep(Duration::from_millis(10));
            }
            // Whatever belongs to the beginning is over.
            std::thread::sleep(Duration::from_secs(1));
            let steps = &topology.metrics.train.steps;
            rates[place].push(per_second(|| {
                let before = steps.get();
                std::thread::sleep(Duration::from_secs(5));
                steps.get() - before
            }));
            topology.stop().unwrap();
        }
    }
    // The clock's seconds count what trials wait for; where others want the cores, too, the processors' tell more.
    for (place, unit) in ["records/s", "records/s of CPU"].into_iter().enumerate() {
        let rate = |of: usize| median(rates[of].iter().map(|rates| rates[place]).collect());
        let [bare, sixteen, many, read] = [0, 1, 2, 3].map(rate);
        figures.add("bare mlp steps over means in memory, a thread a core", bare * BATCH, unit);
        figures.add("16 mlp trials together", sixteen * BATCH, unit);
        figures.add("64 mlp trials together", many * BATCH, unit);
        figures.add("16 mlp trials together, means read in each epoch", read * BATCH, unit);
        figures.add(&format!("16 mlp trials together to bare steps, {unit}"), sixteen / bare, "times");
        figures.add(&format!("64 mlp trials together to bare steps, {unit}"), many / bare, "times");
    }
}

/// What is counted, by seconds and by seconds of this process's CPU time.
fn per_second(count: impl FnOnce() -> u64) -> [f64; 2] {
    let (clock, cpu) = (Instant::now(), cpu_seconds());
    let count = count() as f64;
    [count / clock.elapsed().as_secs_f64(), count / (cpu_seconds() - cpu)]
}

/// Steps of as many threads as train, all together, in some seconds.
fn bare_steps(trial: &TrialRecord, threads: usize, means: &Window) -> u64 {
    let work = || {
        // As threads of trials are, so that what else the machine does takes as much of both.
        rustix::process::setpriority_process(None, 10).unwrap();
        let mut fit = trial.fit().unwrap();
        let records: Vec<Example<'_>> = means.training().iter().map(|&place| means.record(place)).collect();
        let (clock, mut steps) = (Instant::now(), 0);
        for batch in records.chunks_exact(64).cycle() {
            if clock.elapsed() > Duration::from_secs(4) {
                break;
            }
            let _ = fit.step(batch, 0, steps).unwrap();
            steps += 1;
        }
        steps
    };
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).sum()
    })
}

/// Autoencoder steps per second, all trials together, with the first window read and the broker idle.
fn scaling(bench: &Bench, matrices: &[Vec<u8>], rounds: usize, figures: &mut Figures) {
    let mut settings = bench.settings();
    // What a checkpoint costs is not meant here.
    settings.train.checkpoint_interval = Duration::from_secs(3600);
    settings.run.drain_timeout = Duration::ZERO;
    fill(&settings, matrices);
    let mut rates: [Vec<f64>; 3] = Default::default();
    for round in 0..rounds {
        for (place, (trials, threads)) in [(1, 1), (2, 2), (8, 2)].into_iter().enumerate() {
            let mut settings = settings.clone();
            settings.application_id = format!("{}-{trials}-{round}", settings.application_id);
            // So that no trial of an earlier case goes on.
            settings.topics.trials = format!("{}-{trials}-{round}", settings.topics.trials);
            drop(Declarations::load(&settings).unwrap().ensure(&settings, None).unwrap());
            settings.train.parallel = std::num::NonZeroUsize::new(trials);
            settings.train.threads = std::num::NonZeroUsize::new(threads);
            let topology = autoencoders(&settings, trials);
            rates[place].push(steps_per_second(&topology));
            topology.stop().unwrap();
        }
    }
    let [one, two, eight] = rates.map(median);
    figures.add("autoencoder, 1 trial on 1 thread", one, "steps/s");
    figures.add("autoencoder, 2 trials on 2 threads", two, "steps/s");
    figures.add("autoencoder, 8 trials on 2 threads", eight, "steps/s");
    figures.add("2 trials on 2 threads, to twice 1", two / (2.0 * one), "times");
    figures.add("8 trials on 2 threads, to 2", eight / two, "times");
}

/// Trials that go on until they are told to stop, all of them at work.
fn autoencoders(settings: &Settings, trials: usize) -> Topology {
    let rates: Vec<String> = (1..=trials).map(|i| format!("{i}e-4")).collect();
    let rates = rates.join(", ");
    let text = format!(
        "name = \"a\"\nmodel = \"autoencoder\"\nlayers = [256, 128]\nvalidation = 0\nobjective = \"loss\"\nepochs = \
         100\nlearning_rate = [{rates}]"
    );
    let _ = search(settings, &text);
    let topology = Topology::start(settings, &Parts::locate(), &[&TRAIN]).unwrap();
    while topology.status.trials().values().filter(|trial| trial.step > 0).count() < trials {
        std::thread::sleep(Duration::from_millis(10));
    }
    topology
}

fn steps_per_second(topology: &Topology) -> f64 {
    let steps = &topology.metrics.train.steps;
    // Whatever belongs to the beginning is over.
    std::thread::sleep(Duration::from_secs(1));
    let (clock, before) = (Instant::now(), steps.get());
    std::thread::sleep(Duration::from_secs(5));
    (steps.get() - before) as f64 / clock.elapsed().as_secs_f64()
}

/// Embedding that is set to one core, and eight trials that are set to the other.
fn beside(bench: &Bench, matrices: &[Vec<u8>], figures: &mut Figures) {
    let mut settings = bench.settings();
    // What a checkpoint costs is not meant here.
    settings.train.checkpoint_interval = Duration::from_secs(3600);
    settings.run.drain_timeout = Duration::ZERO;
    settings.train.threads = std::num::NonZeroUsize::new(1);
    settings.train.parallel = std::num::NonZeroUsize::new(8);
    fill(&settings, matrices);
    let topology = autoencoders(&settings, 8);
    let trained_alone = steps_per_second(&topology);
    let embed = |settings: &Settings| {
        let texts = (0..20_000).map(|i| (format!("k{i}"), text(i), "x"));
        produce(settings, texts);
        Running::start(settings, &["run", "--stage=embed", "-s", "embed.sessions=1", "-s", "embed.threads=1"])
    };
    let texts = |process: &Running| {
        while process.metric("sweepstream_features_records_total") == 0 {
            std::thread::sleep(Duration::from_millis(20));
        }
        let id = process.child.id().to_string();
        let cpu = cpu_seconds_of(&id);
        let (clock, before) = (Instant::now(), process.metric("sweepstream_features_records_total"));
        std::thread::sleep(Duration::from_secs(8));
        let texts = process.metric("sweepstream_features_records_total") - before;
        let seconds = clock.elapsed().as_secs_f64();
        (texts as f64 / seconds, (cpu_seconds_of(&id) - cpu) / seconds)
    };
    let other = bench.settings();
    drop(Declarations::load(&other).unwrap().ensure(&other, None).unwrap());
    let process = embed(&other);
    let (embedded, cores) = texts(&process);
    let trained = steps_per_second(&topology);
    topology.stop().unwrap();
    let (embedded_alone, cores_alone) = texts(&process);
    drop(process);
    figures.add("embedding on one core, alone", embedded_alone, "texts/s");
    figures.add("  cores that takes, with reading and committing", cores_alone, "cores");
    figures.add("embedding on one core, 8 trials on the other", embedded, "texts/s");
    figures.add("  cores that gets", cores, "cores");
    figures.add("of what it is alone", embedded / embedded_alone, "times");
    figures.add("8 trials on one core, alone", trained_alone, "steps/s");
    figures.add("8 trials on one core, embedding on the other", trained, "steps/s");
    figures.add("of what they are alone", trained / trained_alone, "times");
}

fn text(number: usize) -> String {
    let words = ["the", "keeper", "of", "a", "lighthouse", "saw", "sails", "on", "every", "horizon", "before", "rain"];
    (0..8 + number * 7 % 24).map(|i| words[(i * 5 + number) % words.len()]).collect::<Vec<_>>().join(" ")
}
