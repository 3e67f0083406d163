//! Where to begin reading newly assigned partitions.
//!
//! A group that never committed starts at the log's start. One whose offsets Kafka has forgotten must not embed
//! everything again: what it did is written in the `source` headers of its own output.

use std::collections::BTreeMap;
use std::time::Duration;

use rdkafka::message::{Headers, Message};

use super::stage::{Context, Error};
use crate::features::codec::SOURCE_HEADER;
use crate::kafka;
use crate::kafka::consumer::Member;
use crate::kafka::offsets::{scan_back, Watermarks};

/// How long committed offsets may stay unknown: a dead predecessor's transaction holds them back.
fn patience(context: &Context) -> Duration {
    context.settings.kafka.transaction_timeout + Duration::from_secs(15)
}

/// The first offset to read of each partition.
pub(super) fn positions(context: &Context, member: &Member, partitions: &[i32]) -> Result<Vec<(i32, i64)>, Error> {
    if partitions.is_empty() {
        return Ok(Vec::new());
    }
    let topic = &context.topics.texts.name;
    let watermarks = Watermarks::new(&context.settings)?;
    let committed = member.committed(partitions, patience(context))?;
    partitions
        .iter()
        .map(|&partition| {
            let extent = watermarks.extent(topic, partition)?;
            let position = match committed.get(&partition) {
                Some(&offset) if (extent.start..=extent.end).contains(&offset) => offset,
                Some(&offset) => {
                    return Err(kafka::Error::data(
                        topic,
                        partition,
                        format!(
                            "group `{}` committed offset {offset}, but the log holds {}..{}: records were deleted before they were embedded, or the topic was recreated; reset the group's offsets to what should be read next",
                            context.settings.embed_group(), extent.start, extent.end
                        ),
                    )
                    .into())
                }
                None => forgotten(context, &watermarks, partition, extent.start)?,
            };
            Ok((partition, position))
        })
        .collect()
}

/// A partition without a committed offset: new, or forgotten.
fn forgotten(context: &Context, watermarks: &Watermarks, partition: i32, start: i64) -> Result<i64, Error> {
    match last_source(context, watermarks, partition)? {
        Some(offset) => {
            tracing::warn!(
                topic = %context.topics.texts.name, partition, position = offset + 1,
                "the group's offset is gone; going on after the last `source` header in its output"
            );
            Ok(offset + 1)
        }
        None if context.settings.embed.from_start => Ok(start),
        None if watermarks.capture(&context.topics.features.name, partition)?.end == 0 => Ok(start),
        None => Err(Error::Position(format!(
            "{}/{partition}: group `{}` has no committed offset, but {}/{partition} is not empty and its records name no source: embedding from the start could write everything twice; if that is wanted, start once with `--from-start`",
            context.topics.texts.name,
            context.settings.embed_group(),
            context.topics.features.name
        ))),
    }
}

/// The highest input offset that any output of this partition names.
fn last_source(context: &Context, watermarks: &Watermarks, partition: i32) -> Result<Option<i64>, Error> {
    let texts = &context.topics.texts.name;
    let source = |message: &rdkafka::message::BorrowedMessage<'_>| {
        let headers = message.headers()?;
        // A dead letter keeps the headers of its input, which may have a `source` of its own; ours comes after it.
        let value = headers.iter().filter(|header| header.key == SOURCE_HEADER).last()?.value?;
        parse_source(std::str::from_utf8(value).ok()?, texts, partition)
    };
    let feature = scan_back(&context.settings, watermarks, &context.topics.features.name, partition, source)?;
    let dead = &context.topics.dead_letters;
    let dead = scan_back(&context.settings, watermarks, &dead.name, partition % dead.partitions, source)?;
    Ok(feature.into_iter().chain(dead).max())
}

/// The offset of `topic/partition/offset`, if topic and partition are these.
fn parse_source(source: &str, topic: &str, partition: i32) -> Option<i64> {
    let (rest, offset) = source.rsplit_once('/')?;
    let (source_topic, source_partition) = rest.rsplit_once('/')?;
    (source_topic == topic && source_partition.parse() == Ok(partition)).then(|| offset.parse().ok())?
}

/// Offsets that are committed, asked for by a client that is no member.
pub(super) fn committed(context: &Context, partitions: &[i32]) -> Result<BTreeMap<i32, i64>, Error> {
    Ok(kafka::offsets::committed(
        &context.settings,
        &context.settings.embed_group(),
        &context.topics.texts.name,
        partitions,
        patience(context),
    )?)
}

#[cfg(test)]
mod tests {
    use super::parse_source;

    #[test]
    fn sources_of_other_partitions_and_topics_are_not_ours() {
        assert_eq!(parse_source("texts/3/17", "texts", 3), Some(17));
        assert_eq!(parse_source("a/b/3/17", "a/b", 3), Some(17));
        assert_eq!(parse_source("texts/2/17", "texts", 3), None);
        assert_eq!(parse_source("other/3/17", "texts", 3), None);
        assert_eq!(parse_source("texts/3/", "texts", 3), None);
        assert_eq!(parse_source("17", "texts", 3), None);
    }
}
