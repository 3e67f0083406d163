//! Captures a range and reads it once.

use rdkafka::message::Message;

use super::range::{Digest, PartitionRange, Range, Survey};
use super::replay::raw;
use crate::config::Settings;
use crate::coordinates::Coordinates;
use crate::kafka::offsets::Watermarks;
use crate::kafka::scan::scan;
use crate::kafka::{Error, Result};

/// Freezes a topic as it is now and surveys it.
///
/// `progress` is called with the records read so far and the offsets there are, an upper bound of them.
///
/// # Errors
/// When a record could not be read by a trial (named by partition and offset), or Kafka fails.
pub fn capture(
    settings: &Settings,
    topic: &str,
    rows_max: usize,
    validation: u32,
    mut progress: impl FnMut(u64, u64),
) -> Result<(Range, Survey)> {
    let watermarks = Watermarks::new(settings)?;
    let extents = watermarks.capture(topic, 0..watermarks.partitions(topic)?)?;
    let mut survey = Survey::default();
    let offsets: i64 = extents.values().map(|extent| extent.end - extent.start).sum();
    let offsets = u64::try_from(offsets).unwrap_or(0);
    let mut records = 0;
    scan(settings, topic, &extents, |message| {
        let at = Coordinates { partition: message.partition(), offset: message.offset() };
        raw(message)
            .map_err(|error| error.to_string())
            .and_then(|record| survey.add(at, record, rows_max, validation))
            .map_err(|why| Error::data(topic, at.partition, format!("offset {}: {why}", at.offset)))?;
        records += 1;
        progress(records, offsets);
        Ok::<(), Error>(())
    })?;
    let partitions = extents
        .iter()
        .map(|(&partition, extent)| {
            let (records, digest) = survey.partitions.get(&partition).copied().unwrap_or((0, Digest::default()));
            PartitionRange { partition, start: extent.start, end: extent.end, records, digest: digest.hex() }
        })
        .collect();
    Ok((Range { topic: topic.to_owned(), partitions }, survey))
}
