//! Replays a frozen range in computed order, window by window, epoch after epoch, through one consumer.

use std::time::{Duration, Instant};

use rdkafka::message::{BorrowedMessage, Message};

use super::codec::{self, EMBEDDER_HEADER, SOURCE_HEADER};
use super::merge::Merge;
use super::range::{class_name, Digest, Identity, PartitionRange, Position, Range, RawRecord};
use super::window::{Reading, Target, Window};
use crate::config::Settings;
use crate::input::LABEL_HEADER;
use crate::kafka::headers::{self, NotText};
use crate::kafka::reader::{LogEnd, Polled, Reader};
use crate::kafka::{Error, Result};

/// How long the broker may be silent before the wait is logged.
const SILENCE: Duration = Duration::from_secs(5);

/// A reader of one range.
pub struct Replay {
    reader: Reader,
    range: Range,
    reading: Reading,
    merge: Merge,
    window: u64,
    offsets: Vec<i64>,
    digests: Vec<Digest>,
    cache: Cache,
    stopped: Box<dyn Fn() -> bool + Send>,
}

/// Windows of a whole pass, kept for the passes to come if they fit.
struct Cache {
    /// Each with the position after it.
    windows: Vec<(Window, Position)>,
    bytes: usize,
    bytes_max: usize,
    complete: bool,
}

impl Cache {
    /// Keeps a window that was read; only a pass from its beginning is kept.
    fn keep(&mut self, window: &Window, after: Position) {
        if window.index == 0 {
            (self.windows, self.bytes) = (Vec::new(), 0);
        }
        if self.windows.len() as u64 != window.index {
            return;
        }
        self.bytes += window.bytes_held();
        if self.bytes > self.bytes_max {
            // Not again in the next pass.
            (self.windows, self.bytes_max) = (Vec::new(), 0);
            return;
        }
        self.windows.push((window.clone(), after));
    }
}

/// What [`Replay::next_window`] found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// The window holds records.
    Window,
    /// The pass is over; counts and digests were as captured.
    End,
    /// The reader was told to stop; the window is not complete.
    Stopped,
}

impl Replay {
    /// Opens a reader at a position. `group` only shows progress; `stopped` ends waits.
    ///
    /// # Errors
    /// When the settings do not make a consumer, or the position is none of this range.
    pub fn open(
        settings: &Settings,
        group: &str,
        range: &Range,
        reading: Reading,
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
            reading,
            cache: Cache { windows: Vec::new(), bytes: 0, bytes_max: settings.train.cache_bytes, complete: false },
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
        if self.cache.complete {
            return Ok(());
        }
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
    /// Records that are gone, were added or are others than when the range was captured; each names topic,
    /// partition and offset.
    pub fn next_window(&mut self, window: &mut Window) -> Result<Next> {
        window.clear(self.window, self.reading.dim);
        if self.merge.is_done() {
            return Ok(Next::End);
        }
        if self.cache.complete {
            return self.cached(window);
        }
        self.reader.serve();
        for _ in 0..self.reading.window {
            let Some(index) = self.merge.next() else { break };
            if !self.read(index, window)? {
                return Ok(Next::Stopped);
            }
        }
        self.window += 1;
        if self.merge.is_done() {
            self.verify()?;
        }
        if self.cache.bytes_max > 0 {
            let after = self.position();
            self.cache.keep(window, after);
            if self.merge.is_done() && self.cache.windows.len() as u64 == self.window {
                self.cache.complete = true;
                // Nothing is fetched any more; the group is committed for all the same.
                self.reader.unassign()?;
            }
        }
        Ok(Next::Window)
    }

    fn cached(&mut self, window: &mut Window) -> Result<Next> {
        let number = usize::try_from(self.window).unwrap_or(usize::MAX);
        let Some((kept, after)) = self.cache.windows.get(number) else { return Ok(Next::End) };
        window.copy_from(kept);
        let after = after.clone();
        self.take_position(&after)?;
        Ok(Next::Window)
    }

    /// Reads the next record of a partition into the window; false when told to stop.
    fn read(&mut self, index: usize, window: &mut Window) -> Result<bool> {
        // The clock is asked only where there is something to wait for: it is a twentieth of what a record costs.
        let mut waited = None;
        let message = loop {
            match self.reader.poll(index, Duration::from_millis(100)) {
                Ok(Some(Polled::Record(message))) => break message,
                Ok(None) => {}
                Ok(Some(Polled::End)) => self.check_end(index)?,
                Ok(Some(Polled::OutOfLog)) => {
                    let offset = self.offsets[index];
                    return Err(self.changed(
                        index,
                        &format!(
                            "offset {offset} is not in the log any more: retention has \
                        eaten into the range, or the topic was recreated"
                        ),
                    ));
                }
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
                self.check_log(index)?;
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
        if matrix.dim != self.reading.dim {
            return Err(unfit(&format_args!(
                "rows have {} numbers, the search was started with {}",
                matrix.dim, self.reading.dim
            )));
        }
        self.digests[index].update(record.key, record.label, value);
        self.offsets[index] = offset + 1;
        let label = record.label.map(class_name).transpose().map_err(|why| unfit(&why))?;
        let target = self.reading.labels.target(label).map_err(|what| self.changed(index, &what))?;
        if target != Target::None || !self.reading.labelled_only {
            let identity = Identity { key: record.key, source: record.source, partition: place.partition, ordinal };
            let push = if self.reading.pooled { Window::push_mean } else { Window::push };
            push(window, matrix, self.reading.rows_max, target, identity.is_validation(self.reading.validation));
        }
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

    /// After a silence: a log that ends before the range does is another one, and would be waited for in vain.
    fn check_log(&self, index: usize) -> Result<()> {
        match self.reader.log_end(index) {
            LogEnd::At(end) if end < self.range.partitions[index].end => Err(self.changed(
                index,
                &format!("its log ends at offset {end}: the topic was recreated, or records were lost"),
            )),
            LogEnd::Gone => Err(self.changed(index, "the topic was deleted")),
            LogEnd::At(_) | LogEnd::Unknown => Ok(()),
        }
    }

    fn changed(&self, index: usize, what: &str) -> Error {
        let place = &self.range.partitions[index];
        Error::data(
            &self.range.topic,
            place.partition,
            format!(
                "the range {}..{} ({} records) was frozen when the search started, and has changed: {what}; start a \
                 new search",
                place.start, place.end, place.records
            ),
        )
    }
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
