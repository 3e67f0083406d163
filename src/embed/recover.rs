//! Where to begin reading newly assigned partitions: finds out what [`super::beginning`] chooses by, and what its
//! choice rests on.
//!
//! Beside each offset stands the transactional id of the partition's owner. Whoever is assigned a partition on which a
//! transaction is still open takes that id over: an owner ends its transactions before it gives a partition up, so
//! this one is dead or asleep, and nobody has to wait for its timeout.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use fail::fail_point;
use rdkafka::message::{BorrowedMessage, Message};

use super::beginning::{self, Beginning, By, Found, Refusal};
use super::context::{Context, Error};
use super::writers::{self, Mark};
use crate::coordinates::{Coordinates, Positions};
use crate::features::codec::{source_digest, DIGEST_HEADER, SOURCE_HEADER};
use crate::kafka;
use crate::kafka::consumer::{GroupMetadata, Member};
use crate::kafka::exactly_once::{self, SETTLE};
use crate::kafka::headers;
use crate::kafka::offsets::{Committed, CommittedWatch, Extent, Watermarks};
use crate::kafka::scan::{scan, scan_back};
use crate::kafka::transaction::TransactionalProducer;
use crate::kafka::Class;

/// How long committed offsets may stay unknown before somebody is taken for dead in the midst of committing them.
const UNSTABLE: Duration = Duration::from_secs(5);

/// The mark of an owner of ours.
pub(super) fn mark(context: &Context, owner: &str, begins: bool) -> String {
    Mark { owner, features: Some(&context.topics.features.name), begins }.to_string()
}

/// The first offset to read of each partition, committed under our name. `begins` when this process has not embedded
/// yet: then the output is looked at for another writer's traces, too.
pub(super) fn positions(
    context: &Context,
    member: &Member,
    partitions: &[i32],
    begins: bool,
) -> Result<Positions, Error> {
    if partitions.is_empty() {
        return Ok(Positions::default());
    }
    fail_point!("embed.recover.positions", |code| Err(kafka::Error::injected(code).into()));
    let recovery = Recovery { context, watermarks: Watermarks::new(&context.settings)? };
    let mut ended = recovery.end_open_transactions(member, &recovery.open(partitions)?)?;
    let committed = match member.committed(partitions, UNSTABLE) {
        Err(error) if error.code() == Some(kafka::Code::OperationTimedOut) => {
            ended.extend(recovery.end_open_transactions(member, partitions)?);
            member.committed(partitions, context.settings.kafka.open_transaction_max())?
        }
        committed => committed?,
    };
    let undone = context.undone.load(Ordering::Acquire);
    let is_ours = |found: &Committed| Mark::parse(&found.metadata).is_some();
    let parted = |partition: &i32| undone || ended.contains(partition);
    let doubted = |partition: &i32| begins || parted(partition) || !committed.get(partition).is_some_and(is_ours);
    let mut lasts = recovery.lasts(partitions.iter().copied().filter(doubted))?;
    let (mut going_on, mut beginning, mut beyond) = (Positions::default(), Positions::default(), Positions::default());
    for &partition in partitions {
        let found = committed.get(&partition);
        let last = lasts.remove(&partition);
        if let Some(last) = last.as_ref().filter(|last| found.is_none_or(|found| last.offset >= found.offset)) {
            let _ = beyond.insert(partition, last.offset + 1);
        }
        let begins_at = recovery.begin(partition, found, last.as_ref(), parted(&partition))?;
        let positions = if begins_at.goes_on() { &mut going_on } else { &mut beginning };
        let _ = positions.insert(partition, begins_at.position());
    }
    // The partition has our name now, and an offset that vanishes means that the topic is another one.
    member.commit(&going_on, &mark(context, &context.transactional_id, false))?;
    member.commit(&beginning, &mark(context, &context.transactional_id, true))?;
    context.undone.store(false, Ordering::Release);
    if begins {
        writers::refuse_others(context, &beyond)?;
    }
    going_on.append(&mut beginning);
    Ok(going_on)
}

/// Ends what `owner` has left open in everything that a transaction over these positions writes to.
pub(super) fn scrub(
    context: &Context,
    producer: &mut TransactionalProducer,
    positions: &Positions,
    owner: &str,
    metadata: &GroupMetadata,
) -> kafka::Result<()> {
    let (features, dead) = (&context.topics.features, &context.topics.dead_letters);
    let places =
        |&partition: &i32| [(features.name.as_str(), partition), (dead.name.as_str(), partition % dead.partitions)];
    let places: Vec<(&str, i32)> = positions.keys().flat_map(places).collect();
    let offsets = kafka::offsets::list(&context.topics.texts.name, positions, &mark(context, owner, false))?;
    exactly_once::scrub(producer, &places, &[(&offsets, metadata)])
}

/// The newest trace of an input in the stage's output.
struct Trace {
    offset: i64,
    /// Absent in records that were written without it.
    digest: Option<String>,
}

struct Recovery<'c> {
    context: &'c Context,
    watermarks: Watermarks,
}

impl Recovery<'_> {
    /// Ends what former owners of these partitions have left open; returns those partitions.
    fn end_open_transactions(&self, member: &Member, open: &[i32]) -> Result<BTreeSet<i32>, Error> {
        if open.is_empty() {
            return Ok(BTreeSet::new());
        }
        let settings = &self.context.settings;
        let texts = &self.context.topics.texts.name;
        let named = CommittedWatch::new(settings, &self.group(), texts)?.read(open)?;
        let mut owners: BTreeMap<&str, Positions> = BTreeMap::new();
        for (&partition, committed) in &named {
            let ours = |mark: &Mark<'_>| mark.owner.starts_with(&format!("{}.", self.group()));
            if let Some(mark) = Mark::parse(&committed.metadata).filter(ours) {
                let _ = owners.entry(mark.owner).or_default().insert(partition, committed.offset);
            }
        }
        let mut ended = BTreeSet::new();
        for (owner, positions) in owners {
            tracing::info!(
                transactional_id = owner,
                ?positions,
                "ending the transaction that a former owner left open"
            );
            self.end_transaction_of(owner, &positions, member)?;
            ended.extend(positions.keys().copied());
        }
        Ok(ended)
    }

    /// Others who were given partitions of the same owner do the same, and each fences the one before.
    fn end_transaction_of(&self, owner: &str, positions: &Positions, member: &Member) -> Result<(), Error> {
        const ATTEMPTS: u32 = 5;
        for attempt in 0..ATTEMPTS {
            let ended = TransactionalProducer::new(&self.context.settings, owner, &[])
                .and_then(|mut producer| scrub(self.context, &mut producer, positions, owner, &member.metadata()?));
            match ended {
                Err(error) if error.class() == Class::Fenced => {
                    tracing::debug!(%error, "somebody else ends it, too");
                    std::thread::sleep(Duration::from_millis(u64::from(50 + std::process::id() % 100)) * (attempt + 1));
                }
                ended => return Ok(ended?),
            }
        }
        Ok(())
    }

    /// Partitions on which a transaction stays open for longer than one that has just ended.
    fn open(&self, partitions: &[i32]) -> Result<Vec<i32>, Error> {
        let topics = &self.context.topics;
        let dead = &topics.dead_letters;
        let is_open = |topic: &str, partition: i32| -> kafka::Result<bool> {
            let end = self.watermarks.extent(topic, partition)?.end;
            Ok(self.watermarks.stable_end(topic, partition)? < end)
        };
        let deadline = Instant::now() + SETTLE;
        let mut open = partitions.to_vec();
        loop {
            let mut still = Vec::new();
            for partition in open {
                // A partition of dead letters that others write to, too, tells nothing.
                let own = dead.partitions >= topics.texts.partitions;
                if is_open(&topics.features.name, partition)? || (own && is_open(&dead.name, partition)?) {
                    still.push(partition);
                }
            }
            if still.is_empty() || Instant::now() > deadline {
                return Ok(still);
            }
            open = still;
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn error(&self, partition: i32, message: String) -> Error {
        kafka::Error::data(&self.context.topics.texts.name, partition, message).into()
    }

    fn group(&self) -> String {
        self.context.settings.embed_group()
    }

    /// Where a partition is gone on with; `parted` when its offset and its output may say different things.
    fn begin(
        &self,
        partition: i32,
        found: Option<&Committed>,
        last: Option<&Trace>,
        parted: bool,
    ) -> Result<Beginning, Error> {
        let texts = self.watermarks.extent(&self.context.topics.texts.name, partition)?;
        let by = |mark: Option<Mark<'_>>| match mark {
            Some(mark) if mark.begins => By::Beginner,
            Some(_) => By::Stage,
            None => By::Somebody,
        };
        let committed = found.map(|found| Found { offset: found.offset, by: by(Mark::parse(&found.metadata)) });
        let log = texts.start..texts.end;
        let beginning = beginning::choose(committed, last.map(|last| last.offset), parted, &log)
            .map_err(|refusal| self.refused(partition, &refusal, last, texts))?;
        match (beginning, last) {
            (Beginning::Committed(offset), _) => self.check_output_exists(partition, offset, texts)?,
            (Beginning::Forgotten(position), Some(last)) => {
                self.check_same(partition, last, texts)?;
                tracing::warn!(
                    topic = %self.context.topics.texts.name, partition, position,
                    "the group's offset is gone; going on after the last `source` header in its output"
                );
            }
            (Beginning::New(_), _) => self.check_never_held(partition)?,
            (Beginning::Parted(position), _) if found.is_some_and(|found| found.offset != position) => {
                let offset = found.map(|found| found.offset);
                tracing::warn!(
                    partition,
                    offset,
                    position,
                    "the committed offset and the output had parted; the output counts"
                );
            }
            (Beginning::Parted(_) | Beginning::Begun(_) | Beginning::Set(_) | Beginning::Forgotten(_), _) => {}
        }
        Ok(beginning)
    }

    fn refused(&self, partition: i32, refusal: &Refusal, last: Option<&Trace>, texts: Extent) -> Error {
        let (group, Extent { start, end }) = (self.group(), texts);
        let last = last.map_or(-1, |last| last.offset);
        let set = |range: &std::ops::Range<i64>, offset, verb, next, way| {
            format!(
                "group `{group}` was set to offset {offset}, but its output ends with the text at offset {last}: \
                 {range:?} would be {verb}; delete the group, and the stage goes on at {next}{way}"
            )
        };
        let message = match refusal {
            Refusal::OutsideLog(offset) => format!(
                "group `{group}` committed offset {offset}, but the log holds {start}..{end}: records were deleted \
                 before they were embedded, or the topic was recreated; reset the group's offsets to what should be \
                 read next"
            ),
            Refusal::Repeats(range) => set(range, range.start, "embedded twice", range.end, ""),
            Refusal::LeavesOut(range) => set(
                range,
                range.end,
                "left out",
                range.start,
                " (texts that are not wanted can be deleted from the topic)",
            ),
            Refusal::NextDeleted => format!(
                "the output of group `{group}` ends with the text at offset {last}, but the log holds {start}..{end}: \
                 records were deleted before they were embedded; commit offset {start} for the group to go on without \
                 them"
            ),
            Refusal::OutputBeyondLog => self.recreated(last, &format!("but the log holds {start}..{end}")),
        };
        self.error(partition, message)
    }

    fn recreated(&self, last: i64, what: &str) -> String {
        format!(
            "the output of group `{}` ends with the text at offset {last}, {what}: the topic was recreated; give it \
             topics of its own (`topics.features`, `topics.dead_letters`), or delete those with it",
            self.group()
        )
    }

    /// What was committed must have left something, or somebody has removed it.
    fn check_output_exists(&self, partition: i32, offset: i64, texts: Extent) -> Result<(), Error> {
        let (features, dead) = (&self.context.topics.features, &self.context.topics.dead_letters);
        if offset == texts.start
            || self.watermarks.extent(&features.name, partition)?.end > 0
            || self.watermarks.extent(&dead.name, partition % dead.partitions)?.end > 0
        {
            return Ok(());
        }
        Err(self.error(
            partition,
            format!(
                "group `{}` has done everything below offset {offset}, but {}/{partition} has never held a record: the \
                 topic was recreated; delete the group to embed everything again",
                self.group(), features.name
            ),
        ))
    }

    /// Where nothing tells what has been embedded, there must be nothing: neither offset nor source.
    fn check_never_held(&self, partition: i32) -> Result<(), Error> {
        if self.context.settings.embed.from_start || self.never_held(partition)? {
            return Ok(());
        }
        let features = &self.context.topics.features.name;
        Err(Error::Position(format!(
            "{}/{partition}: group `{}` has no committed offset, but {features}/{partition} is not empty and its \
             records name no source: embedding from the start could write everything twice; if that is wanted, start \
             once with `--from-start`",
            self.context.topics.texts.name,
            self.group(),
        )))
    }

    /// Whether nothing was ever committed to the features partition; transactions that were aborted take offsets, too.
    fn never_held(&self, partition: i32) -> Result<bool, Error> {
        let features = &self.context.topics.features.name;
        let sought = BTreeMap::from([((), partition)]);
        let any = |_: &BorrowedMessage<'_>| Some(((), ()));
        Ok(self.watermarks.extent(features, partition)?.start == 0
            && scan_back(&self.context.settings, &self.watermarks, features, &sought, any)?.is_empty())
    }

    /// Kafka forgets offsets with their topic, so what follows the last text may belong to another topic of that name.
    fn check_same(&self, partition: i32, last: &Trace, texts: Extent) -> Result<(), Error> {
        let Some(digest) = &last.digest else { return Ok(()) };
        let mut found = None;
        let extents =
            BTreeMap::from([(partition, Extent { start: last.offset.max(texts.start), end: last.offset + 1 })]);
        scan(&self.context.settings, &self.context.topics.texts.name, &extents, |message| {
            found = Some(source_digest(message.payload()));
            Ok::<(), Error>(())
        })?;
        match found {
            Some(found) if found != *digest => {
                Err(self.error(partition, self.recreated(last.offset, "and another one is there now")))
            }
            // Deleted since, or compacted away.
            Some(_) | None => Ok(()),
        }
    }

    /// The input that the newest output of each partition came from.
    fn lasts(&self, partitions: impl Iterator<Item = i32>) -> Result<BTreeMap<i32, Trace>, Error> {
        let settings = &self.context.settings;
        let (features, dead) = (&self.context.topics.features, &self.context.topics.dead_letters);
        let texts = &self.context.topics.texts.name;
        let trace = |message: &BorrowedMessage<'_>| {
            // A dead letter keeps the headers of its input, which may have some of these names; ours come after them.
            let header = |name| {
                let value = headers::of(message).rev().flatten().find(|header| header.key == name)?.value?;
                std::str::from_utf8(value).ok()
            };
            let Coordinates { partition, offset } = Coordinates::of_source(header(SOURCE_HEADER)?, texts)?;
            Some((partition, Trace { offset, digest: header(DIGEST_HEADER).map(str::to_owned) }))
        };
        let in_features: BTreeMap<i32, i32> = partitions.map(|partition| (partition, partition)).collect();
        let in_dead = in_features.keys().map(|&partition| (partition, partition % dead.partitions)).collect();
        // Side by side: each new reader takes a tenth of a second to begin.
        let (in_features, in_dead) = std::thread::scope(|scope| {
            let dead = scope.spawn(|| scan_back(settings, &self.watermarks, &dead.name, &in_dead, trace));
            let features = scan_back(settings, &self.watermarks, &features.name, &in_features, trace);
            (features, dead.join())
        });
        let mut lasts = in_features?;
        let in_dead = in_dead.map_err(|_| Error::Thread("recovering"))??;
        for (partition, trace) in in_dead {
            let newer = lasts.get(&partition).is_none_or(|last| last.offset < trace.offset);
            if newer {
                let _ = lasts.insert(partition, trace);
            }
        }
        Ok(lasts)
    }
}

/// Offsets that are committed, asked for by a client that is no member.
pub(super) fn committed(context: &Context, partitions: &[i32]) -> kafka::Result<Positions> {
    let (group, topic) = (context.settings.embed_group(), &context.topics.texts.name);
    let bound = context.settings.kafka.open_transaction_max();
    let committed = kafka::offsets::committed(&context.settings, &group, topic, partitions, bound)?;
    Ok(committed.into_iter().map(|(partition, committed)| (partition, committed.offset)).collect())
}
