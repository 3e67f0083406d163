//! Starts the threads of the embed stage and ends them in data order.

use std::sync::Arc;
use std::time::Instant;

use crossbeam_channel::{bounded, Receiver};
use tokio_util::sync::CancellationToken;

use super::commit::Committer;
use super::context::{Context, Error};
use super::embedders::embedder::{self, Embedder, Item};
use super::embedders::model::Model;
use super::source::Source;
use super::{recover, BatchResult, Chunk, InFlight, Job, CHUNKS_IN_FLIGHT};
use crate::config::Settings;
use crate::input::Invalid;
use crate::kafka::client;
use crate::kafka::consumer::Member;
use crate::kafka::wake::Wake;
use crate::metrics::TransactionOutcome;
use crate::parts::Parts;
use crate::stage::{BoxFailure, Failure, Loaded, Spec, Stage};

/// Texts → features.
pub static EMBED: Spec = Spec { name: "embed", about: "texts → features", load };

fn load(settings: &Settings, parts: &Parts) -> Result<Loaded, BoxFailure> {
    let model = Model::load(parts, settings)?;
    Ok(Loaded {
        matrix_bytes_max: Some(model.matrix_bytes_max),
        begin: Box::new(|context| {
            let (embedder, dim, sessions) = (&model.embedder, model.dim, model.sessions.len());
            tracing::info!(%embedder, dim, sessions, "embed stage starts");
            Ok(Box::new(Embedding { context: Context::new(context), model }))
        }),
    })
}

impl Failure for embedder::Error {}

struct Embedding {
    context: Context,
    model: Model,
}

impl Stage for Embedding {
    fn run(&mut self) -> Result<(), BoxFailure> {
        Ok(run(&self.context, &mut self.model)?)
    }

    fn committed(&self) -> u64 {
        self.context.metrics.embed.transactions.counted(TransactionOutcome::Committed)
    }
}

fn run(context: &Context, model: &mut Model) -> Result<(), Error> {
    let Model { sessions, tokenizer, embedder, .. } = model;
    let wants_text = sessions.iter().any(|session| session.wants_text());
    for reason in Invalid::REASONS {
        // Every series exists from the start, so that a first dead letter is an increase.
        context.metrics.embed.dead_letters.with_label_values(&[reason]).inc_by(0);
    }
    let wake = Wake::default();
    let in_flight = InFlight::default();
    let failed = CancellationToken::new();
    let left = CancellationToken::new();
    let config = client::group_member(&context.settings, &context.settings.embed_group());
    let member = Member::join(&config, &context.topics.texts.name, wake.clone())?;
    let lease = Arc::clone(member.lease());
    let committer = Committer::new(context, embedder.clone(), lease)?;

    // Room for the batches of all chunks in flight: a batch holds at least one text.
    let (jobs, job_queue) = bounded::<Job>(context.settings.embed.chunk_texts.get() * CHUNKS_IN_FLIGHT);
    let (chunks, chunk_queue) = bounded::<Chunk>(CHUNKS_IN_FLIGHT);

    std::thread::scope(|scope| {
        let spawn_failed = |_| Error::Thread("new");
        let mut workers = Vec::new();
        for (i, session) in sessions.iter_mut().enumerate() {
            let queue = job_queue.clone();
            let metrics = context.metrics.embed.clone();
            let (left, wake) = (left.clone(), wake.clone());
            let worker = std::thread::Builder::new()
                .name(format!("embed-infer-{i}"))
                .spawn_scoped(scope, move || infer(session.as_mut(), &queue, &left, &wake, &metrics))
                .map_err(spawn_failed)?;
            workers.push(worker);
        }
        drop(job_queue);
        let commit = {
            let (in_flight, wake, failed, left) = (in_flight.clone(), wake.clone(), failed.clone(), left.clone());
            std::thread::Builder::new()
                .name("embed-commit".into())
                .spawn_scoped(scope, move || {
                    // A panic, too, must end the source, which would otherwise wait for room for ever.
                    let _failed = failed.drop_guard();
                    let result = committer.run(&chunk_queue, &in_flight, &left, &wake);
                    wake.notify();
                    result
                })
                .map_err(spawn_failed)?
        };
        let recover =
            |member: &Member, partitions: &[i32], begins| recover::positions(context, member, partitions, begins);
        let source = Source::new(context, member, &recover, (tokenizer, wants_text), in_flight, wake, failed);
        let sourced = source.run(&jobs, &chunks);
        // The group has been left: what is still in flight can not be committed any more, so nobody infers it.
        left.cancel();
        drop(jobs);
        drop(chunks);
        let committed = commit.join().unwrap_or(Err(Error::Thread("commit")));
        for worker in workers {
            worker.join().map_err(|_| Error::Thread("inference"))?;
        }
        // The commit thread knows best why the pipeline stopped.
        committed.and(sourced)
    })
}

fn infer(
    session: &mut dyn Embedder,
    queue: &Receiver<Job>,
    left: &CancellationToken,
    wake: &Wake,
    metrics: &crate::metrics::Embed,
) {
    while let Ok(job) = queue.recv() {
        if left.is_cancelled() {
            continue;
        }
        // The source may be holding texts back for a larger chunk.
        wake.notify();
        let items: Vec<Item<'_>> = job
            .indices
            .iter()
            .filter_map(|&i| job.records[i as usize].content.as_ref().ok())
            .map(|text| Item { text: &text.text, ids: &text.tokenized.ids, rows: &text.tokenized.rows })
            .collect();
        let longest = items.iter().map(|item| item.ids.len()).max().unwrap_or(0);
        metrics.batch_tokens.observe((longest * items.len()) as f64);
        let started = Instant::now();
        let matrices = session.embed(&items);
        metrics.inference_duration.observe(started.elapsed().as_secs_f64());
        // A stage that is ending may have dropped the chunk.
        drop(job.results.send(BatchResult { indices: job.indices, matrices }));
    }
}
