//! The source thread: answers the group, takes records, reads and tokenises them, and forms chunks.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::{bounded, Sender};
use fail::fail_point;
use rdkafka::message::{Message, OwnedMessage};
use tokio_util::sync::CancellationToken;

use super::context::{Context, Error};
use super::embedders::tokenize::TextTokenizer;
use super::{batch, Chunk, InFlight, Job, Record, Text, CHUNKS_IN_FLIGHT};
use crate::coordinates::Positions;
use crate::input::{self, Invalid, LABEL_HEADER};
use crate::kafka;
use crate::kafka::consumer::{GroupMember, Rebalance};
use crate::kafka::headers;
use crate::kafka::reader::Polled;
use crate::kafka::wake::Wake;

/// Records taken from one partition before the next has its turn, and before an idle inference thread gets what there
/// is.
const TURN_RECORDS: usize = 32;
/// Bytes of input in a chunk, at most (one record may go beyond).
const PENDING_BYTES: usize = 16 * 1024 * 1024;
/// How long the thread sleeps when nothing happens.
const IDLE: Duration = Duration::from_millis(100);
/// How often lag is measured.
const LAG_INTERVAL: Duration = Duration::from_secs(1);

/// Finds out where newly assigned partitions begin; true with those that this process is given first.
pub(super) type Recover<'c, M> = &'c dyn Fn(&M, &[i32], bool) -> Result<Positions, Error>;

/// See the module.
pub(super) struct Source<'c, M> {
    context: &'c Context,
    member: M,
    recover: Recover<'c, M>,
    tokenizer: &'c TextTokenizer,
    wants_text: bool,
    in_flight: InFlight,
    wake: Wake,
    failed: CancellationToken,
    pending: Vec<Record>,
    pending_tokens: usize,
    pending_bytes: usize,
    /// Partitions owned, with the number of the assignment that brought each.
    owned: BTreeMap<i32, u64>,
    /// It has owned partitions before.
    has_begun: bool,
    /// Partition that had its turn last.
    turn: i32,
    sessions: usize,
    lag_measured: Instant,
}

impl<'c, M: GroupMember> Source<'c, M> {
    pub fn new(
        context: &'c Context,
        member: M,
        recover: Recover<'c, M>,
        (tokenizer, wants_text): (&'c TextTokenizer, bool),
        in_flight: InFlight,
        wake: Wake,
        failed: CancellationToken,
    ) -> Self {
        Self {
            context,
            member,
            recover,
            tokenizer,
            wants_text,
            in_flight,
            wake,
            failed,
            pending: Vec::new(),
            pending_tokens: 0,
            pending_bytes: 0,
            owned: BTreeMap::new(),
            has_begun: false,
            turn: -1,
            sessions: context.settings.embed.sessions_and_threads().0,
            lag_measured: Instant::now(),
        }
    }

    /// Works until told to stop or the pipeline fails, then waits for what is in flight and leaves the group.
    pub fn run(mut self, jobs: &Sender<Job>, chunks: &Sender<Chunk>) -> Result<(), Error> {
        let result = self.work(jobs, chunks);
        if result.is_ok() && !self.failed.is_cancelled() {
            self.drain();
        }
        self.context.own.set_assigned(false);
        result
    }

    fn work(&mut self, jobs: &Sender<Job>, chunks: &Sender<Chunk>) -> Result<(), Error> {
        while !self.context.stop.is_cancelled() && !self.failed.is_cancelled() {
            if !self.run_once(jobs, chunks)? {
                self.wake.wait(IDLE);
            }
        }
        Ok(())
    }

    /// One round; whether there was anything to do.
    fn run_once(&mut self, jobs: &Sender<Job>, chunks: &Sender<Chunk>) -> Result<bool, Error> {
        let mut busy = self.serve_group()?;
        busy |= self.take_records()?;
        busy |= self.submit(jobs, chunks)?;
        if self.lag_measured.elapsed() > LAG_INTERVAL {
            self.lag_measured = Instant::now();
            self.check_partitions()?;
            self.measure_lag();
            self.context.own.show_connected(self.member.connected());
        }
        Ok(busy)
    }

    /// In-flight chunks are finished; what was only read is left to the next owner.
    fn drain(&mut self) {
        fail_point!("embed.source.drain");
        let deadline = Instant::now() + self.context.settings.run.drain_timeout;
        while self.in_flight.count() > 0 && !self.failed.is_cancelled() {
            if Instant::now() >= deadline {
                tracing::warn!(
                    chunks = self.in_flight.count(),
                    "drain timeout: chunks in flight are left to the next owner"
                );
                return;
            }
            // Rebalances go on meanwhile, or the group would wait for this member.
            if let Err(error) = self.serve_group() {
                tracing::warn!(%error, "while draining");
                return;
            }
            self.wake.wait(Duration::from_millis(20));
        }
    }

    fn serve_group(&mut self) -> Result<bool, Error> {
        let rebalance = match self.member.poll_group() {
            Ok(None) => return Ok(false),
            Ok(Some(rebalance)) => rebalance,
            Err(error) => return self.passing(error).map(|()| true),
        };
        self.context.metrics.embed.rebalances.inc();
        match rebalance {
            Rebalance::Assigned(partitions) => {
                self.check_partitions()?;
                let positions = (self.recover)(&self.member, &partitions, !self.has_begun)?;
                self.member.take(&positions)?;
                let owned = self.member.owned();
                let group = self.context.settings.embed_group();
                tracing::info!(%group, ?positions, owned = owned.len(), "assigned");
                self.owned = owned;
                self.has_begun |= !partitions.is_empty();
                self.context.own.set_assigned(true);
            }
            Rebalance::Revoked(partitions) | Rebalance::Lost(partitions) => {
                tracing::info!(group = %self.context.settings.embed_group(), ?partitions, "revoked");
                self.pending.retain(|record| !partitions.contains(&record.message.partition()));
                self.pending_tokens = self.pending.iter().map(tokens).sum();
                self.pending_bytes = self.pending.iter().map(bytes).sum();
                self.member.release(&partitions)?;
                self.owned.retain(|partition, _| !partitions.contains(partition));
                for partition in &partitions {
                    // The series may not exist yet.
                    drop(
                        self.context
                            .metrics
                            .embed
                            .lag
                            .remove_label_values(&[&self.context.topics.texts.name, &partition.to_string()]),
                    );
                }
            }
        }
        Ok(true)
    }

    fn check_partitions(&self) -> Result<(), Error> {
        let topics = &self.context.topics;
        Ok(self.member.check_partitions(topics.texts.partitions, &topics.features.name)?)
    }

    /// Most of what a consumer reports passes by itself.
    fn passing(&self, error: kafka::Error) -> Result<(), Error> {
        if error.passes_by_itself() {
            tracing::debug!(%error, "passes by itself");
            return Ok(());
        }
        Err(error.into())
    }

    fn has_room(&self) -> bool {
        let embed = &self.context.settings.embed;
        self.pending.len() < embed.chunk_texts.get()
            && self.pending_tokens < embed.chunk_tokens.get()
            && self.pending_bytes < PENDING_BYTES
    }

    /// A turn of the next partition that has records.
    fn take_records(&mut self) -> Result<bool, Error> {
        let after = (Bound::Excluded(self.turn), Bound::Unbounded);
        let (others, again) = (self.owned.range(after), self.owned.range(..=self.turn));
        let owned: Vec<(i32, u64)> = others.chain(again).map(|(&partition, &number)| (partition, number)).collect();
        for (partition, assignment) in owned {
            let mut taken = 0;
            while taken < TURN_RECORDS && self.has_room() {
                let record = match self.member.poll_partition(partition) {
                    Ok(Some(Polled::Record(message))) => self.read(message, assignment)?,
                    Ok(None | Some(Polled::End)) => break,
                    Ok(Some(Polled::OutOfLog)) => return Err(self.out_of_log(partition)),
                    Err(error) => {
                        self.passing(error)?;
                        break;
                    }
                };
                self.pending_tokens += tokens(&record);
                self.pending_bytes += bytes(&record);
                self.pending.push(record);
                taken += 1;
            }
            if taken > 0 {
                self.turn = partition;
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn out_of_log(&self, partition: i32) -> Error {
        let message = format!(
            "the next offset of group `{}` is not in the log any more: records were deleted before they were embedded, \
             or the topic was recreated; reset the group's offsets to what should be read next",
            self.context.settings.embed_group()
        );
        kafka::Error::data(&self.context.topics.texts.name, partition, message).into()
    }

    fn read(&self, message: OwnedMessage, assignment: u64) -> Result<Record, Error> {
        self.context.metrics.embed.records.inc();
        let document =
            label(&message).and_then(|label| input::document(&self.context.settings.input, message.payload(), label));
        let content = match document {
            Err(invalid) => Err(invalid),
            Ok(document) => {
                let tokenized = self.tokenizer.tokenize(&document.text).map_err(|cause| Error::Tokenizer {
                    record: format!("{}/{} offset {}", message.topic(), message.partition(), message.offset()),
                    message: cause,
                })?;
                if tokenized.rows.is_empty() {
                    Err(Invalid::NoWords)
                } else {
                    let text = if self.wants_text { document.text } else { String::new() };
                    Ok(Text { text, label: document.label, id: document.id, tokenized })
                }
            }
        };
        Ok(Record { message, assignment, content })
    }

    /// Hands over what has come as soon as an inference thread would soon have nothing to do, or there is enough for
    /// a chunk: the one rule that serves latency and load.
    fn submit(&mut self, jobs: &Sender<Job>, chunks: &Sender<Chunk>) -> Result<bool, Error> {
        let hungry = jobs.len() < self.sessions;
        let due = hungry || !self.has_room();
        if self.pending.is_empty() || !due || self.in_flight.count() >= CHUNKS_IN_FLIGHT {
            return Ok(false);
        }
        let records = Arc::new(std::mem::take(&mut self.pending));
        (self.pending_tokens, self.pending_bytes) = (0, 0);
        let embeddable: Vec<(u32, usize)> = (0_u32..)
            .zip(records.iter())
            .filter_map(|(i, record)| Some((i, record.content.as_ref().ok()?.tokenized.ids.len())))
            .collect();
        let lengths: Vec<usize> = embeddable.iter().map(|&(_, tokens)| tokens).collect();
        let batches = batch::by_length(&lengths, self.context.settings.embed.max_batch_tokens.get());
        self.observe_padding(&lengths, &batches);
        let (results, result_queue) = bounded(batches.len().max(1));
        self.in_flight.enter();
        let chunk = Chunk { records: Arc::clone(&records), batches: batches.len(), results: result_queue };
        chunks.send(chunk).map_err(|_| Error::Thread("commit"))?;
        for batch in batches {
            let indices = batch.into_iter().map(|i| embeddable[i as usize].0).collect();
            let job = Job { records: Arc::clone(&records), indices, results: results.clone() };
            jobs.send(job).map_err(|_| Error::Thread("inference"))?;
        }
        Ok(true)
    }

    fn observe_padding(&self, lengths: &[usize], batches: &[Vec<u32>]) {
        let real: usize = lengths.iter().sum();
        let padded: usize = batches
            .iter()
            .map(|batch| batch.len() * batch.iter().map(|&i| lengths[i as usize]).max().unwrap_or(0))
            .sum();
        if padded > 0 {
            self.context.metrics.embed.padding_ratio.set(1.0 - real as f64 / padded as f64);
        }
    }

    fn measure_lag(&self) {
        let topic = &self.context.topics.texts.name;
        for (partition, lag) in self.member.lag() {
            self.context.metrics.embed.lag.with_label_values(&[topic.as_str(), &partition.to_string()]).set(lag);
        }
    }
}

/// The last of its labels.
fn label(message: &OwnedMessage) -> Result<Option<&[u8]>, Invalid> {
    headers::of(message).try_fold(None, |label, header| match header {
        Ok(header) if header.key == LABEL_HEADER => Ok(header.value),
        Ok(_) => Ok(label),
        Err(headers::NotText { number }) => Err(Invalid::HeaderName { number }),
    })
}

fn tokens(record: &Record) -> usize {
    record.content.as_ref().map_or(0, |text| text.tokenized.ids.len())
}

fn bytes(record: &Record) -> usize {
    record.message.payload().map_or(0, <[u8]>::len)
}

#[cfg(test)]
mod tests;
