//! Who writes into a features topic: one application alone, or every text would be in it twice.
//!
//! Processes of one application share a group, and Kafka shares the partitions out. Two applications know nothing of
//! each other, so each looks for the other before it begins: beside the offsets that a stage commits stands what it
//! writes to.

use super::context::{Context, Error};
use crate::config::Settings;
use crate::coordinates::Positions;
use crate::kafka;
use crate::kafka::groups::{Groups, Membership};
use crate::kafka::offsets::Committed;

/// What the stage stores beside each offset that it commits; tools that reset a group leave it out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Mark<'m> {
    /// The transactional id of the partition's owner.
    pub owner: &'m str,
    /// The topic that the matrices go to; earlier versions did not say.
    pub features: Option<&'m str>,
    /// The partition has no output yet.
    pub begins: bool,
}

impl<'m> Mark<'m> {
    const BEGINS: &'static str = " begins";
    const INTO: &'static str = " into ";
    const PREFIX: &'static str = "sweepstream ";

    /// Reads it; `None` for whatever else stands beside an offset.
    pub fn parse(metadata: &'m str) -> Option<Self> {
        let unfinished = metadata.strip_suffix(Self::BEGINS);
        let rest = unfinished.unwrap_or(metadata).strip_prefix(Self::PREFIX)?;
        let (owner, features) = match rest.rsplit_once(Self::INTO) {
            Some((owner, features)) => (owner, Some(features)),
            None => (rest, None),
        };
        Some(Self { owner, features, begins: unfinished.is_some() })
    }
}

impl std::fmt::Display for Mark<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}{}", Self::PREFIX, self.owner)?;
        if let Some(features) = self.features {
            write!(f, "{}{features}", Self::INTO)?;
        }
        f.write_str(if self.begins { Self::BEGINS } else { "" })
    }
}

/// Looks for other applications that embed the same texts into the same topic, or have done what this one has not:
/// `beyond` has, for each partition whose output goes beyond what this application has committed, the text after it.
///
/// Called after this process has committed its own mark: of two that start at the same moment, at least one sees the
/// other.
///
/// # Errors
/// Names the application and its group, and the ways out.
pub(super) fn refuse_others(context: &Context, beyond: &Positions) -> Result<(), Error> {
    let (settings, topics) = (&context.settings, &context.topics);
    if settings.embed.alongside {
        return Ok(());
    }
    let own = settings.embed_group();
    let partitions: Vec<i32> = (0..topics.texts.partitions).collect();
    for (application, group, other) in Groups::new(settings)?.others(settings, &own)? {
        let committed = kafka::offsets::committed_by_other(settings, &group, &topics.texts.name, &partitions)?;
        let writes_here = |committed: &Committed| {
            Mark::parse(&committed.metadata).is_some_and(|mark| mark.features == Some(&topics.features.name))
        };
        let has_done = |(partition, next): (&i32, &i64)| {
            let theirs = committed.get(partition).filter(|theirs| writes_here(theirs) && theirs.offset >= *next)?;
            Some((*partition, theirs.offset))
        };
        let evidence = if let Some((partition, offset)) = beyond.iter().find_map(has_done) {
            format!("its group `{group}` has done all below offset {offset} of {}/{partition}", topics.texts.name)
        } else if other.membership != Membership::Nobody && committed.values().any(writes_here) {
            format!("its group `{group}` {}", other.membership)
        } else {
            continue;
        };
        return Err(second(settings, &application, &evidence));
    }
    Ok(())
}

/// The refusal to write beside another application.
fn second(settings: &Settings, application: &str, evidence: &str) -> Error {
    let (texts, features) = (&settings.topics.texts, &settings.topics.features);
    Error::SecondWriter(format!(
        "application `{application}` embeds `{texts}` into `{features}`, too: {evidence}, and this is application \
         `{}`. Each text would be in `{features}` twice. To share the work, set the same `application_id`; to embed \
         apart, set other `topics.features` and `topics.dead_letters`; to take over from an application that has ended \
         for good, start once with `--alongside`: then what it has written counts as done",
        settings.application_id
    ))
}

#[cfg(test)]
mod tests {
    use super::Mark;

    #[test]
    fn a_mark_survives_and_those_of_before_are_read() {
        for mark in [
            Mark { owner: "my app.embed.1 into x", features: Some("features"), begins: false },
            Mark { owner: "a.embed.1", features: Some("f.e-a_t"), begins: true },
        ] {
            assert_eq!(Mark::parse(&mark.to_string()), Some(mark));
        }
        let old = Mark { owner: "a.embed.1", features: None, begins: true };
        assert_eq!(Mark::parse("sweepstream a.embed.1 begins"), Some(old));
        assert_eq!(Mark::parse("sweepstream a.embed.1"), Some(Mark { begins: false, ..old }));
        assert_eq!(Mark::parse(""), None);
        assert_eq!(Mark::parse("{\"checkpoint\":1}"), None);
    }
}
