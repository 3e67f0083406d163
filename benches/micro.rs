//! What is done once for each record, step or text, in nanoseconds: decoding, means, digests, encoding, metrics.
//!
//! `cargo bench --bench micro`

mod support;

use std::hint::black_box;
use std::path::Path;
use std::time::Duration;

use criterion::{BatchSize, Criterion};
use sweepstream::features::codec::{self, Dtype};
use sweepstream::features::range::Digest;
use sweepstream::features::window::{Target, Window};
use sweepstream::metrics::Metrics;

use support::features::{matrices, DIM};
use support::Figures;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// As many as the caches do not hold.
const RECORDS: usize = 2000;

fn main() {
    let folder = tempfile::tempdir().unwrap();
    let mut criterion = Criterion::default()
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_secs(1))
        .sample_size(20)
        .output_directory(folder.path())
        .configure_from_args();
    records(&mut criterion);
    encoding(&mut criterion);
    metrics(&mut criterion);
    criterion.final_summary();
    let mut figures = Figures::default();
    for name in ["decode", "decode and push", "decode and mean", "digest", "decode, digest and mean"] {
        figures.add(&format!("{name} of a record"), median(folder.path(), name) / RECORDS as f64, "ns");
    }
    figures.add("encode a matrix of 24 rows", median(folder.path(), "encode"), "ns");
    figures.add("metrics of a training step", median(folder.path(), "metrics of a step"), "ns");
    figures.add("metrics of an embedded text", median(folder.path(), "metrics of a text"), "ns");
    // A step takes 0.02 ms at the least (mlp, one record), an embedded text 1 ms.
    figures.add("metrics of the shortest step", median(folder.path(), "metrics of a step") / 20_000.0 * 100.0, "%");
    figures.add("metrics of a short text", median(folder.path(), "metrics of a text") / 1e6 * 100.0, "%");
    figures.finish("micro");
}

/// What criterion found, in nanoseconds.
fn median(folder: &Path, name: &str) -> f64 {
    let path = folder.join(name).join("new/estimates.json");
    let estimates: Option<serde_json::Value> =
        std::fs::read(path).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok());
    estimates.and_then(|estimates| estimates["median"]["point_estimate"].as_f64()).unwrap_or(f64::NAN)
}

/// What a replay does with each record; a pass over all of them at a time.
fn records(criterion: &mut Criterion) {
    let matrices = matrices(RECORDS);
    let mut window = Window::default();
    let mut each = |name: &str, record: &mut dyn FnMut(&mut Window, &[u8])| {
        let _ = criterion.bench_function(name, |bencher| {
            bencher.iter(|| {
                window.clear(0, DIM);
                matrices.iter().for_each(|bytes| record(&mut window, black_box(bytes)));
            });
        });
    };
    each("decode", &mut |_, bytes| {
        let _ = black_box(codec::decode(bytes).unwrap());
    });
    each("decode and push", &mut |window, bytes| window.push(codec::decode(bytes).unwrap(), 64, Target::None, false));
    each("decode and mean", &mut |window, bytes| {
        window.push_mean(codec::decode(bytes).unwrap(), 64, Target::None, false)
    });
    let mut digest = Digest::default();
    each("digest", &mut |_, bytes| digest.update(Some(b"12345"), Some(b"press"), bytes));
    each("decode, digest and mean", &mut |window, bytes| {
        let matrix = codec::decode(bytes).unwrap();
        digest.update(Some(b"12345"), Some(b"press"), bytes);
        window.push_mean(matrix, 64, Target::None, false);
    });
    let _ = black_box(digest);
}

fn encoding(criterion: &mut Criterion) {
    let values: Vec<f32> = (0..24 * DIM).map(|i| (i as f32).sin()).collect();
    let _ = criterion.bench_function("encode", |bencher| {
        bencher.iter_batched(|| (), |()| codec::encode(24, DIM, black_box(&values), Dtype::F16), BatchSize::SmallInput);
    });
}

/// What is counted, and the clock that is asked for it.
fn metrics(criterion: &mut Criterion) {
    let metrics = Metrics::new().unwrap();
    let _ = criterion.bench_function("metrics of a step", |bencher| bencher.iter(|| metrics.train.steps.inc()));
    let embed = &metrics.embed;
    let _ = criterion.bench_function("metrics of a text", |bencher| {
        bencher.iter(|| {
            embed.records.inc();
            embed.latency.observe(black_box(0.02));
            // Of a whole batch or chunk, so this is more than there is.
            let started = std::time::Instant::now();
            embed.batch_tokens.observe(black_box(500.0));
            embed.inference_duration.observe(started.elapsed().as_secs_f64());
            embed.features.inc_by(1);
        });
    });
}
