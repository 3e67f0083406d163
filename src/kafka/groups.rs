//! Which groups there are, and whether anybody is in them.

use std::collections::{BTreeMap, BTreeSet};

use rdkafka::config::FromClientConfigAndContext;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::groups::GroupInfo;

use super::client::{self, LogContext, REQUEST_TIMEOUT};
use super::error::{Error, Result};
use super::offsets::{patiently, PATIENCE};
use crate::config::Settings;

/// Whether a group has members.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Membership {
    /// It has none, or there is no such group.
    Nobody,
    Members(usize),
    /// It exists, and brokers do not tell this client more: librdkafka's listing knows no groups of KIP-848.
    Unseen,
}

impl std::fmt::Display for Membership {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Nobody => f.write_str("has no member"),
            Self::Members(1) => f.write_str("has a member"),
            Self::Members(members) => write!(f, "has {members} members"),
            Self::Unseen => f.write_str("may have members (under KIP-848 that cannot be seen from here)"),
        }
    }
}

impl Membership {
    fn of(group: &GroupInfo) -> Self {
        match (group.members().len(), group.state()) {
            (0, "Empty") => Self::Nobody,
            // A group that is gone is not listed; what is listed and called dead is of another kind.
            (0, _) => Self::Unseen,
            (members, _) => Self::Members(members),
        }
    }
}

/// A group as its coordinator describes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Group {
    /// Whether it has members.
    pub membership: Membership,
    /// What they subscribe to, as far as that can be seen.
    pub topics: BTreeSet<String>,
}

/// Asks for groups.
pub struct Groups(BaseConsumer<LogContext>);

impl Groups {
    /// Connects.
    ///
    /// # Errors
    /// When a client cannot be created from the settings.
    pub fn new(settings: &Settings) -> Result<Self> {
        let consumer = BaseConsumer::from_config_and_context(&client::probe(settings, true), LogContext);
        Ok(Self(consumer.map_err(Error::call("creating a Kafka client"))?))
    }

    /// Whether a group has members.
    ///
    /// # Errors
    /// When brokers do not answer.
    pub fn membership(&self, group: &str) -> Result<Membership> {
        Ok(self.list(Some(group))?.remove(group).map_or(Membership::Nobody, |group| group.membership))
    }

    /// Groups of other applications that end like `own` after the application's id: its name, the group's, the group.
    ///
    /// Nothing but a warning when brokers do not show groups.
    ///
    /// # Errors
    /// When brokers do not answer.
    pub fn others(&self, settings: &Settings, own: &str) -> Result<Vec<(String, String, Group)>> {
        let kind = own.strip_prefix(settings.application_id.as_str()).unwrap_or(own);
        let groups = match self.list(None) {
            Err(error) if !error.passes_by_itself() => {
                tracing::warn!(%error, "whether another application is at work on the same topics cannot be seen");
                BTreeMap::new()
            }
            groups => groups?,
        };
        let others = groups.into_iter().filter(|(name, _)| name != own);
        Ok(others.filter_map(|(name, group)| Some((name.strip_suffix(kind)?.to_owned(), name, group))).collect())
    }

    fn list(&self, group: Option<&str>) -> Result<BTreeMap<String, Group>> {
        // It asks the brokers that are known, and before any request none is.
        let list = || {
            let _ = self.0.fetch_metadata(None, REQUEST_TIMEOUT)?;
            self.0.fetch_group_list(group, REQUEST_TIMEOUT)
        };
        let listed = patiently(PATIENCE, list).map_err(Error::call("asking for consumer groups"))?;
        let describe = |group: &GroupInfo| {
            let topics = group.members().iter().filter_map(|member| subscription(member.metadata()?)).flatten();
            (group.name().to_owned(), Group { membership: Membership::of(group), topics: topics.collect() })
        };
        Ok(listed.groups().iter().map(describe).collect())
    }
}

/// The topics in a member's subscription, as the classic protocol writes it: a version, and an array of strings with
/// 16 bits of length each. What follows is the assignor's.
fn subscription(metadata: &[u8]) -> Option<Vec<String>> {
    let (_version, rest) = metadata.split_first_chunk::<2>()?;
    let (&count, mut rest) = rest.split_first_chunk()?;
    let mut topics = Vec::new();
    for _ in 0..i32::from_be_bytes(count) {
        let (&length, after) = rest.split_first_chunk()?;
        let (topic, after) = after.split_at_checked(usize::from(u16::from_be_bytes(length)))?;
        topics.push(std::str::from_utf8(topic).ok()?.to_owned());
        rest = after;
    }
    Some(topics)
}

#[cfg(test)]
mod tests {
    use super::subscription;

    #[test]
    fn a_subscription_is_read_whatever_the_bytes_are() {
        let bytes = b"\0\x03\0\0\0\x02\0\x01a\0\x03b-c\0\0\0\x01x";
        assert_eq!(subscription(bytes), Some(vec!["a".to_owned(), "b-c".to_owned()]));
        for end in 0..14 {
            assert_eq!(subscription(&bytes[..end]), None, "{end} bytes");
        }
        assert_eq!(subscription(b"\0\x03\x7f\xff\xff\xff"), None);
    }
}
