//! Replays a frozen range in computed order, window by window, epoch after epoch, through one consumer.

use std::time::{Duration, Instant};

use rdkafka::message::{BorrowedMessage, Message};

use super::codec::{self, EMBEDDER_HEADER, SOURCE_HEADER};
use super::merge::Merge;
use super::range::{class_name, is_validation, Digest, Identity, PartitionRange, Position, Range, RawRecord, Record};
use super::window::{Reading, Window};
use crate::config::Settings;
use crate::input::LABEL_HEADER;
use crate::kafka::headers::{self, NotText};
use crate::kafka::reader::{Log, Polled, Reader};
use crate::kafka::{Error, Result};

/// How long the broker may be silent before the wait is logged.
const SILENCE: Duration = Duration::from_secs(5);

/// A reader of one range.
pub struct Replay {
    reader: Reader,
    range: Range,
    dim: usize,
    merge: Merge,
    window: u64,
    offsets: Vec<i64>,
    digests: Vec<Digest>,
    stopped: Box<dyn Fn() -> bool + Send>,
}

/// What [`Replay::next_records`] found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// There were some, and all have been read.
    Records,
    /// The pass is over; counts and digests were as captured.
    End,
    /// The reader was told to stop; not all have been read.
    Stopped,
}

impl Replay {
    /// Opens a reader, of rows of `dim` numbers, at a position. `group` only shows progress; `stopped` ends waits.
    ///
    /// # Errors
    /// When the settings do not make a consumer, or the position is none of this range.
    pub fn open(
        settings: &Settings,
        group: &str,
        range: &Range,
        dim: usize,
        position: &Position,
        stopped: impl Fn() -> bool + Send + 'static,
    ) -> Result<Self> {
        let partitions = range.partitions.iter().map(|place| place.partition).collect();
        let reader = Reader::open(settings, group, &range.topic, partitions)?;
        let mut replay = Self {
            reader,
            merge: Merge::new(range.counts()),
            window: 0,
            offsets: Vec::new(),
            digests: Vec::new(),
            range: range.clone(),
            dim,
            stopped: Box::new(stopped),
        };
        replay.take_position(position)?;
        replay.reader.assign(&replay.offsets)?;
        Ok(replay)
    }

    /// Where the pass stands: at the beginning of the next window.
    pub fn position(&self) -> Position {
        Position {
            window: self.window,
            turn: self.merge.turn(),
            taken: self.merge.taken().to_vec(),
            offsets: self.offsets.clone(),
            digests: self.digests.iter().map(|digest| digest.hex()).collect(),
        }
    }

    /// Is the pass over?
    pub fn is_at_end(&self) -> bool {
        self.merge.is_done()
    }

    /// Goes to a position, backwards or forwards.
    ///
    /// # Errors
    /// When it is no position in this range, or the consumer cannot seek.
    pub fn seek(&mut self, position: &Position) -> Result<()> {
        self.take_position(position)?;
        self.reader.seek(&self.offsets)
    }

    /// Makes a position the state.
    fn take_position(&mut self, position: &Position) -> Result<()> {
        let unfit =
            || Error::Topics(format!("{position:?} is no position in the range of topic `{}`", self.range.topic));
        let merge = Merge::resume(self.range.counts(), position.taken.clone(), position.turn).ok_or_else(unfit)?;
        let digests: Option<Vec<Digest>> =
            position.digests.iter().map(|hex| u64::from_str_radix(hex, 16).ok().map(Digest)).collect();
        let digests = digests.filter(|digests| digests.len() == self.range.partitions.len()).ok_or_else(unfit)?;
        if position.offsets.len() != self.range.partitions.len() {
            return Err(unfit());
        }
        self.merge = merge;
        self.digests = digests;
        self.window = position.window;
        self.offsets.clone_from(&position.offsets);
        Ok(())
    }

    /// Reads the next window.
    ///
    /// # Errors
    /// As [`Replay::next_records`], and labels that the reading does not have.
    pub fn next_window(&mut self, reading: &Reading, window: &mut Window) -> Result<Next> {
        window.clear(self.window, self.dim);
        let push = if reading.pooled { Window::push_mean } else { Window::push };
        self.next_records(reading.window, |record| {
            let target = reading.labels.target(record.label)?;
            if reading.takes(target) {
                let validation = is_validation(record.hash, reading.validation);
                push(window, record.matrix, reading.rows_max, target, validation);
            }
            Ok(())
        })
    }

    /// Reads the next records, up to so many, one after the other into `take`, which says what is wrong with one.
    ///
    /// # Errors
    /// Records that are gone, were added or are others than when the range was captured; each names topic,
    /// partition and offset.
    pub fn next_records(&mut self, count: u32, mut take: impl FnMut(Record<'_>) -> Result<(), String>) -> Result<Next> {
        if self.merge.is_done() {
            return Ok(Next::End);
        }
        self.reader.serve();
        for _ in 0..count {
            let Some(index) = self.merge.next() else { break };
            if !self.read(index, &mut take)? {
                return Ok(Next::Stopped);
            }
        }
        self.window += 1;
        if self.merge.is_done() {
            self.verify()?;
        }
        Ok(Next::Records)
    }

    /// Fetches nothing more.
    ///
    /// # Errors
    /// When librdkafka refuses.
    pub fn rest(&self) -> Result<()> {
        self.reader.unassign()
    }

    /// Whether the log still holds the range, as far as brokers that are not away say.
    ///
    /// # Errors
    /// Records that are gone, and a log that ends before the range does.
    pub fn check(&self) -> Result<()> {
        self.reader.serve();
        let places = self.range.partitions.iter().enumerate().filter(|(_, place)| place.records > 0);
        let mut wanted = places.take_while(|_| !(self.stopped)());
        wanted.try_for_each(|(index, place)| self.check_log(index, place.start))
    }

    /// Reads the next record of a partition; false when told to stop.
    fn read(&mut self, index: usize, take: &mut impl FnMut(Record<'_>) -> Result<(), String>) -> Result<bool> {
        // The clock is asked only where there is something to wait for: it is a twentieth of what a record costs.
        let mut waited = None;
        let message = loop {
            match self.reader.poll(index, Duration::from_millis(100)) {
                Ok(Some(Polled::Record(message))) => break message,
                Ok(None) => {}
                Ok(Some(Polled::End)) => self.check_end(index)?,
                Ok(Some(Polled::OutOfLog)) => return Err(self.out_of_log(index, self.offsets[index])),
                Err(Error::Call { source, action }) if Error::is_fatal(&source) => {
                    return Err(Error::Call { action: format!("{action} at offset {}", self.offsets[index]), source });
                }
                // Brokers go and come back; the range does not change meanwhile.
                Err(error) => tracing::debug!(%error, topic = %self.range.topic, "while replaying"),
            }
            if (self.stopped)() {
                return Ok(false);
            }
            self.reader.serve();
            if waited.get_or_insert_with(Instant::now).elapsed() > SILENCE {
                waited = None;
                self.check_log(index, self.offsets[index])?;
                let PartitionRange { partition, .. } = self.range.partitions[index];
                let (topic, offset) = (&self.range.topic, self.offsets[index]);
                tracing::warn!(%topic, partition, offset, "waiting for records");
            }
        };
        let place = &self.range.partitions[index];
        let offset = message.offset();
        if offset >= place.end {
            return Err(
                self.changed(index, "it ends before all its records were read: records were deleted or compacted away")
            );
        }
        let unfit = |why: &dyn std::fmt::Display| {
            Error::data(&self.range.topic, place.partition, format!("offset {offset}: {why}"))
        };
        let record = raw(&message).map_err(|error| unfit(&error))?;
        let ordinal = self.merge.taken()[index] - 1;
        let value = record.value.ok_or_else(|| unfit(&"the value is null"))?;
        let matrix = codec::decode(value).map_err(|error| unfit(&error))?;
        if matrix.dim != self.dim {
            return Err(unfit(&format_args!(
                "rows have {} numbers, the search was started with {}",
                matrix.dim, self.dim
            )));
        }
        self.digests[index].update(record.key, record.label, value);
        self.offsets[index] = offset + 1;
        let label = record.label.map(class_name).transpose().map_err(|why| unfit(&why))?;
        let identity = Identity { key: record.key, source: record.source, partition: place.partition, ordinal };
        let (hash, next_offset, digest) = (identity.hash(), offset + 1, self.digests[index]);
        take(Record { matrix, label, hash, index, next_offset, digest }).map_err(|what| self.changed(index, &what))?;
        Ok(true)
    }

    /// At the end of a pass every partition must have been what was captured.
    fn verify(&self) -> Result<()> {
        for (index, place) in self.range.partitions.iter().enumerate() {
            if self.digests[index].hex() != place.digest {
                return Err(self.changed(
                    index,
                    "its records are not those that were captured: the topic was recreated or overwritten",
                ));
            }
        }
        Ok(())
    }

    /// The end of the log, with records still expected below the captured end.
    fn check_end(&self, index: usize) -> Result<()> {
        match self.reader.position(index)? {
            Some(position) if position >= self.range.partitions[index].end => {
                Err(self
                    .changed(index, "it ends before all its records were read: records were deleted or compacted away"))
            }
            _ => Ok(()),
        }
    }

    /// A log without what is still to be read, from `offset` on, is another one, and would be waited for in vain.
    fn check_log(&self, index: usize, offset: i64) -> Result<()> {
        match self.reader.log(index) {
            Log::Holds { end, .. } if end < self.range.partitions[index].end => Err(self.changed(
                index,
                &format!("its log ends at offset {end}: the topic was recreated, or records were lost"),
            )),
            Log::Holds { start, .. } if start > offset => Err(self.out_of_log(index, offset)),
            Log::Gone => Err(self.changed(index, "the topic was deleted")),
            Log::Holds { .. } | Log::Unknown => Ok(()),
        }
    }

    fn out_of_log(&self, index: usize, offset: i64) -> Error {
        let what = format!(
            "offset {offset} is not in the log any more: retention has eaten into the range, or the topic was \
             recreated"
        );
        self.changed(index, &what)
    }

    fn changed(&self, index: usize, what: &str) -> Error {
        changed(&self.range, index, what)
    }
}

/// Says that a partition of a range is not what it was.
pub(super) fn changed(range: &Range, index: usize, what: &str) -> Error {
    let place = &range.partitions[index];
    Error::data(
        &range.topic,
        place.partition,
        format!(
            "the range {}..{} ({} records) was frozen when the search started, and has changed: {what}; start a new \
             search",
            place.start, place.end, place.records
        ),
    )
}

/// What readers need of a record.
///
/// # Errors
/// When a header has a name that is no text.
pub fn raw<'m>(message: &'m BorrowedMessage<'_>) -> Result<RawRecord<'m>, NotText> {
    let mut record =
        RawRecord { key: message.key(), value: message.payload(), label: None, source: None, embedder: None };
    for header in headers::of(message) {
        let header = header?;
        match header.key {
            LABEL_HEADER => record.label = header.value,
            SOURCE_HEADER => record.source = header.value,
            EMBEDDER_HEADER => record.embedder = header.value,
            _ => {}
        }
    }
    Ok(record)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_position_survives_in_a_checkpoint() {
        let place = |partition, start| PartitionRange { partition, start, end: 9, records: 4, digest: String::new() };
        let range = Range { topic: "f".into(), partitions: vec![place(0, 5), place(3, 0)] };
        let mut position = Position::start(&range);
        assert_eq!((position.window, position.turn), (0, 0));
        assert_eq!((&position.offsets, &position.taken), (&vec![5, 0], &vec![0, 0]));
        position.digests[1] = Digest(u64::MAX).hex();
        position.offsets[0] = i64::MAX;
        let json = serde_json::to_string(&position).unwrap();
        assert_eq!(serde_json::from_str::<Position>(&json).unwrap(), position);
    }
}
