//! What lies in partitions: read through from the start, backwards from the end, or followed from now on.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use rdkafka::consumer::Consumer;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{BorrowedMessage, Message};

use super::client;
use super::error::{Error, Result};
use super::offsets::{self, Extent, OneOff, Watermarks};
use crate::config::Settings;
use crate::coordinates::Positions;

/// Reads partitions from their starts until every position has reached its end, read-committed.
///
/// An end is a position, not a record: the last offsets may be transaction markers. Records arrive in order within
/// a partition, and partitions interleave as it comes.
///
/// # Errors
/// When records are gone, or the broker is silent for a minute; whatever `each` returns.
pub fn scan<E: From<Error>>(
    settings: &Settings,
    topic: &str,
    extents: &BTreeMap<i32, Extent>,
    mut each: impl FnMut(&BorrowedMessage<'_>) -> Result<(), E>,
) -> Result<(), E> {
    const SILENCE: Duration = Duration::from_secs(60);
    let mut open: BTreeMap<i32, Extent> = extents.clone();
    open.retain(|_, extent| extent.start < extent.end);
    if open.is_empty() {
        return Ok(());
    }
    let group = format!("{}.scan", settings.application_id);
    let consumer = OneOff::open(&client::replay(settings, &group, 1))?;
    let starts = open.iter().map(|(&partition, extent)| (partition, extent.start)).collect();
    consumer.assign(&offsets::list(topic, &starts, "")?).map_err(Error::call(format!("reading topic `{topic}`")))?;
    let mut heard = Instant::now();
    while !open.is_empty() {
        match consumer.poll(Duration::from_millis(100)) {
            Some(Ok(message)) => {
                heard = Instant::now();
                let partition = message.partition();
                let Some(end) = open.get(&partition).map(|extent| extent.end) else { continue };
                if message.offset() < end {
                    each(&message)?;
                }
                if message.offset() + 1 >= end {
                    let _ = open.remove(&partition);
                }
            }
            Some(Err(KafkaError::PartitionEOF(_))) | None => {
                let positions = consumer.position().map(|list| offsets::positions(&list)).unwrap_or_default();
                open.retain(|partition, extent| positions.get(partition).is_none_or(|&position| position < extent.end));
                if heard.elapsed() > SILENCE {
                    return Err(Error::TimedOut { action: format!("reading topic `{topic}`"), waited: SILENCE }.into());
                }
            }
            Some(Err(KafkaError::MessageConsumption(RDKafkaErrorCode::AutoOffsetReset))) => {
                return Err(Error::Data {
                    topic: topic.to_owned(),
                    partition: *open.keys().next().unwrap_or(&-1),
                    message: format!(
                        "records of {open:?} are not in the log any more (retention, or the topic was recreated)"
                    ),
                }
                .into());
            }
            // Brokers may go and come back; silence is bounded above.
            Some(Err(source)) if heard.elapsed() > SILENCE => {
                return Err(Error::Call { action: format!("reading topic `{topic}`"), source }.into());
            }
            Some(Err(error)) => tracing::debug!(%error, topic, "while scanning"),
        }
    }
    Ok(())
}

/// The last find of each key that is sought in partitions of a topic, looking ever further back from their ends.
///
/// `sought` says in which partition a key's records are; `pick` what a record is for a key.
///
/// # Errors
/// As [`scan`].
pub fn scan_back<K: Ord + Copy, T>(
    settings: &Settings,
    watermarks: &Watermarks,
    topic: &str,
    sought: &BTreeMap<K, i32>,
    pick: impl Fn(&BorrowedMessage<'_>) -> Option<(K, T)>,
) -> Result<BTreeMap<K, T>> {
    let mut open = watermarks.capture(topic, sought.values().copied())?;
    let mut found = BTreeMap::new();
    let mut step = 16;
    while !open.is_empty() {
        let from = |extent: &Extent| extent.start.max(extent.end - step);
        let tails = open.iter().map(|(&partition, extent)| (partition, Extent { start: from(extent), ..*extent }));
        scan(settings, topic, &tails.collect(), |message| {
            found.extend(pick(message).filter(|(key, _)| sought.get(key) == Some(&message.partition())));
            Ok::<(), Error>(())
        })?;
        let missing: BTreeSet<i32> =
            sought.iter().filter(|(key, _)| !found.contains_key(key)).map(|(_, &partition)| partition).collect();
        open.retain(|partition, extent| missing.contains(partition) && from(extent) > extent.start);
        step *= 8;
    }
    Ok(found)
}

/// Follows partitions from these offsets on, as long as `each` returns true; it is called with every record, and at
/// least once a second with none.
///
/// # Errors
/// When Kafka fails for good.
pub fn follow(
    settings: &Settings,
    topic: &str,
    from: &Positions,
    mut each: impl FnMut(Option<&BorrowedMessage<'_>>) -> bool,
) -> Result<()> {
    let consumer = OneOff::open(&client::replay(settings, &format!("{}.follow", settings.application_id), 1))?;
    consumer.assign(&offsets::list(topic, from, "")?).map_err(Error::call(format!("reading topic `{topic}`")))?;
    let mut goes_on = each(None);
    while goes_on {
        goes_on = match consumer.poll(Duration::from_secs(1)) {
            Some(Ok(message)) => each(Some(&message)),
            Some(Err(KafkaError::PartitionEOF(_))) | None => each(None),
            Some(Err(source)) => {
                let error = Error::Call { action: format!("following topic `{topic}`"), source };
                if !error.passes_by_itself() {
                    return Err(error);
                }
                tracing::debug!(%error, "while following");
                each(None)
            }
        };
    }
    Ok(())
}
