//! Training steps on one thread, and the memory of a trial.
//!
//! `cargo bench --bench step`, or with a part of a step's name after `--` only those steps. With `SWEEPSTREAM_PEERS`
//! naming a folder that has `python/models.py`, PyTorch's steps beside ours, in turns (`SWEEPSTREAM_PEERS_PYTHON` is
//! its interpreter, else `python3`). PyTorch has padded batches ready beforehand, so that *batch ready* compares like
//! with like; a step as it is in a trial builds its batch from records first.

mod support;

use std::hint::black_box;
use std::io::{BufRead, BufReader, Write};
use std::path::PathBuf;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::Instant;

use sweepstream::features::codec::{self, Dtype};
use sweepstream::features::window::{Example, Target};
use sweepstream::learn::fit::Fit;
use sweepstream::learn::optimizer::{Optimizer, OptimizerSpec, Rule};
use sweepstream::models::batch::Batcher;
use sweepstream::models::criterion::Criterion;
use sweepstream::models::kind::{ModelSpec, Shape, Value};
use sweepstream::models::model::Model;
use sweepstream::models::registry;
use sweepstream::models::seed::{Generator, Purpose};

use support::{median, peak_rss_megabytes, Figures};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const LABELS: usize = 15;
/// Batches that steps go through in turn.
const BATCHES: usize = 8;
const ROUNDS: usize = 5;
/// The argument of the process whose memory is measured.
const TRIAL: &str = "trial";

fn main() {
    // As the program does, before any thread starts.
    std::env::set_var("RAYON_NUM_THREADS", "1");
    // Cargo gives `--bench` to each bench.
    let only = std::env::args().skip(1).find(|argument| argument != "--bench");
    let mut figures = Figures::default();
    let autoencoder = |dim| spec("autoencoder", dim);
    let mlp = spec("mlp", 384);
    let mut cnn = spec("cnn", 384);
    let _ = cnn.values.insert("widths".into(), Value::Widths(vec![3]));
    let models = [
        ("autoencoder 64x384-256-128", autoencoder(384), 20),
        ("autoencoder 64x100-256-128", autoencoder(100), 50),
        ("mlp 384-128-15", mlp, 200),
        ("linear 384-15", spec("linear", 384), 200),
        ("cnn 64x384, width 3, 128 channels", cnn, 20),
        ("gru 64x384-128", spec("gru", 384), 20),
        ("lstm 64x384-128", spec("lstm", 384), 20),
        ("attention 64x384-128, 4 heads", spec("attention", 384), 20),
    ];
    if only.as_deref() == Some(TRIAL) {
        return trial(&models[0].1);
    }
    for (name, spec, steps) in &models {
        for batch_size in [64, 1, 512] {
            let name = format!("{name}, batch {batch_size}");
            if only.as_ref().is_none_or(|part| name.contains(part)) {
                step(&name, spec, batch_size, if batch_size > 64 { steps / 5 } else { *steps }, &mut figures);
            }
        }
    }
    if only.is_none() {
        memory(models[0].0, &models[0].1, &mut figures);
    }
    figures.finish("step");
}

/// Rows of the records: as of sentences, mean 24, 1 to 62.
fn lengths(count: usize) -> Vec<usize> {
    let mut chance = Generator::new(1, 1, Purpose::Shuffle, 0, 0);
    let mut exponential = || -f64::from(1.0 - chance.uniform()).ln() * 12.0;
    (0..count).map(|_| ((exponential() + exponential()).round() as usize).clamp(1, 62)).collect()
}

/// Matrices of these lengths.
fn matrices(lengths: &[usize], dim: usize) -> Vec<Vec<u8>> {
    let matrix = |(i, &rows): (usize, &usize)| {
        let value =
            |j: usize| ((i % LABELS) as f32 * 0.1 + ((i * 7919 + j * 104_729) % 1000) as f32 / 1000.0 - 0.5) * 0.2;
        codec::encode(rows, dim, &(0..rows * dim).map(value).collect::<Vec<_>>(), Dtype::F16)
    };
    lengths.iter().enumerate().map(matrix).collect()
}

fn batches(matrices: &[Vec<u8>], size: usize) -> Vec<Vec<Example<'_>>> {
    let labels = (0..LABELS as u32).cycle().map(Target::Class);
    let records: Vec<_> = matrices.iter().map(|bytes| codec::decode(bytes).unwrap()).zip(labels).collect();
    records.chunks(size).map(<[_]>::to_vec).collect()
}

/// A kind of model as it comes: 256-128 or 128 hidden.
fn spec(kind: &str, dim: usize) -> ModelSpec {
    let kind = registry::find(kind).unwrap();
    let values = kind.settle(Default::default()).unwrap();
    ModelSpec { kind, task: kind.tasks[0], values, shape: Shape { rows_max: 64, dim, classes: LABELS } }
}

/// Steps in turns: with batches built from ragged `f16`, with batches that are ready, and PyTorch's, if asked for.
fn step(name: &str, spec: &ModelSpec, batch_size: usize, steps: usize, figures: &mut Figures) {
    let lengths = lengths(BATCHES * batch_size);
    let matrices = matrices(&lengths, spec.input().dim);
    let batches = batches(&matrices, batch_size);
    let mut built = Built::new(spec, &batches);
    let mut ready = Ready::new(spec, &batches);
    let mut peer = Peer::start(spec, &lengths.chunks(batch_size).collect::<Vec<_>>(), steps);
    let mut times: [Vec<f64>; 4] = Default::default();
    for round in 0..=ROUNDS {
        let peers = peer.as_mut().map_or((0.0, 0.0), Peer::round);
        let found = [built.round(steps), ready.round(steps), peers.0, peers.1];
        // The first round warms up.
        if round > 0 {
            times.iter_mut().zip(found).for_each(|(times, time)| times.push(time));
        }
    }
    let with_peer = peer.is_some();
    let [built, ready, eager, fused] = times.map(median);
    figures.add(&format!("step of {name}"), built, "ms");
    figures.add(&format!("step of {name}, batch ready"), ready, "ms");
    if with_peer {
        figures.add(&format!("step of {name}, PyTorch"), eager, "ms");
        figures.add(&format!("step of {name}, PyTorch, fused AdamW"), fused, "ms");
        figures.add(&format!("step of {name} / PyTorch, fused AdamW"), built / fused, "");
        figures.add(&format!("step of {name}, batch ready / PyTorch, fused AdamW"), ready / fused, "");
    }
}

fn milliseconds(steps: usize, mut step: impl FnMut()) -> f64 {
    let time = |_| {
        let started = Instant::now();
        step();
        started.elapsed().as_secs_f64() * 1e3
    };
    median((0..steps).map(time).collect())
}

/// A trial's steps as they are, from records.
struct Built<'a> {
    fit: Fit,
    batches: &'a [Vec<Example<'a>>],
    steps: usize,
}

impl<'a> Built<'a> {
    fn new(spec: &ModelSpec, batches: &'a [Vec<Example<'a>>]) -> Self {
        let fit = Fit::new(spec.clone(), OptimizerSpec::new(Rule::ADAMW, 1e-3), 1, 0).unwrap();
        Self { fit, batches, steps: 0 }
    }

    fn round(&mut self, steps: usize) -> f64 {
        milliseconds(steps, || {
            let batch = &self.batches[self.steps % self.batches.len()];
            let _ = self.fit.step(batch, 0, self.steps as u64).unwrap();
            self.steps += 1;
        })
    }
}

/// The same without building batches: each has its own batcher.
struct Ready<'a> {
    model: Box<dyn Model>,
    criterion: Criterion,
    optimizer: Optimizer,
    batchers: Vec<(Batcher, &'a [Example<'a>])>,
    steps: usize,
}

impl<'a> Ready<'a> {
    fn new(spec: &ModelSpec, batches: &'a [Vec<Example<'a>>]) -> Self {
        let model = spec.build(&mut Generator::new(1, 0, Purpose::Weights, 0, 0)).unwrap();
        let sizes: Vec<usize> = model.parameters().specs().iter().map(|spec| spec.shape.iter().product()).collect();
        let optimizer = Optimizer::new(OptimizerSpec::new(Rule::ADAMW, 1e-3), &sizes).unwrap();
        let batcher = |batch: &'a Vec<Example<'a>>| (Batcher::new(spec.input()).unwrap(), batch.as_slice());
        let criterion = Criterion::plain(spec.task);
        Self { model, criterion, optimizer, batchers: batches.iter().map(batcher).collect(), steps: 0 }
    }

    fn round(&mut self, steps: usize) -> f64 {
        let count = self.batchers.len();
        let ready: Vec<_> = self.batchers.iter_mut().map(|(batcher, batch)| batcher.build(batch).unwrap()).collect();
        milliseconds(steps, || {
            let batch = &ready[self.steps % count];
            let pass = self.model.forward(batch, None).unwrap();
            let _ = black_box(self.criterion.compare(&pass.outputs, batch).unwrap());
            let mut update = self.optimizer.begin();
            let mut sink = |place, values: &_, gradient: &_| update.apply(place, values, gradient);
            pass.backward(&mut sink).unwrap();
            let _ = black_box(update.finish());
            self.steps += 1;
        })
    }
}

/// PyTorch, in a process that waits for its turns.
struct Peer {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Peer {
    fn start(spec: &ModelSpec, lengths: &[&[usize]], steps: usize) -> Option<Self> {
        let peers = PathBuf::from(std::env::var_os("SWEEPSTREAM_PEERS")?).join("python");
        let python = std::env::var_os("SWEEPSTREAM_PEERS_PYTHON").unwrap_or_else(|| "python3".into());
        let script = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("benches/peers/step.py");
        let (model, input) = (spec.kind.name, spec.input());
        let numbers = [input.rows_max, input.dim, steps].map(|number| number.to_string());
        let mut command = Command::new(python);
        let _ = command.arg(script).arg(peers).arg(model).args(numbers).arg(serde_json::to_string(lengths).unwrap());
        let _ = command.env("OMP_NUM_THREADS", "1").stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().expect("the peers' Python starts");
        let (input, output) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
        Some(Self { child, input, output: BufReader::new(output) })
    }

    /// Milliseconds of a step with AdamW as it comes, and with the fused one.
    fn round(&mut self) -> (f64, f64) {
        self.input.write_all(b"\n").unwrap();
        let mut line = String::new();
        let _ = self.output.read_line(&mut line).unwrap();
        let found: serde_json::Value = serde_json::from_str(&line).expect("the peer answers with JSON");
        (found["eager"].as_f64().unwrap(), found["fused"].as_f64().unwrap())
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// Peak memory of a trial in a process of its own, to its parameters, moments and largest batch.
fn memory(name: &str, spec: &ModelSpec, figures: &mut Figures) {
    let executable = std::env::current_exe().unwrap();
    let output = Command::new(executable).arg(TRIAL).output().unwrap();
    let megabytes: f64 = String::from_utf8(output.stdout).unwrap().trim().parse().expect("the trial says its memory");
    let parameters: usize = spec.parameters().unwrap().iter().map(|spec| spec.shape.iter().product::<usize>()).sum();
    let rows = lengths(BATCHES * 64).chunks(64).map(|lengths| lengths.iter().sum::<usize>()).max().unwrap();
    let least = (3 * parameters + rows * spec.input().dim) as f64 * 4.0 / f64::from(1 << 20);
    figures.add(&format!("peak memory of {name}"), megabytes, "MB");
    figures.add(&format!("peak memory of {name} / parameters, moments, batch"), megabytes / least, "");
}

/// A trial with all that it holds at once: it goes on while a checkpoint is published, and is taken up again from one.
/// Prints the megabytes.
fn trial(spec: &ModelSpec) {
    let matrices = matrices(&lengths(BATCHES * 64), spec.input().dim);
    let batches = batches(&matrices, 64);
    let before = peak_rss_megabytes();
    let mut trial = Built::new(spec, &batches);
    for _ in 0..2 {
        let _ = trial.round(BATCHES);
        let state = trial.fit.state().unwrap();
        let _ = trial.round(BATCHES);
        drop(trial);
        let optimizer = OptimizerSpec::new(Rule::ADAMW, 1e-3);
        let mut fit = Fit::new(spec.clone(), optimizer, 1, 0).unwrap();
        fit.restore(&state).unwrap();
        trial = Built { fit, batches: &batches, steps: 0 };
    }
    println!("{}", peak_rss_megabytes() - before);
}
