//! Which groups there are, and whether anybody is in them.

use std::collections::BTreeMap;

use rdkafka::config::FromClientConfigAndContext;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::groups::GroupInfo;

use super::client::{self, LogContext, REQUEST_TIMEOUT};
use super::error::{Error, Result};
use crate::config::Settings;

/// Whether a group has members.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Membership {
    /// It has none, or there is no such group.
    Nobody,
    /// So many.
    Members(usize),
    /// It exists, and brokers do not tell this client more: librdkafka's listing knows no groups of KIP-848.
    Unseen,
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
        Ok(self.list(Some(group))?.remove(group).unwrap_or(Membership::Nobody))
    }

    /// All groups that this client may see.
    ///
    /// # Errors
    /// When brokers do not answer.
    pub fn all(&self) -> Result<BTreeMap<String, Membership>> {
        self.list(None)
    }

    fn list(&self, group: Option<&str>) -> Result<BTreeMap<String, Membership>> {
        // It asks the brokers that are known, and before any request none is.
        let listed = self.0.fetch_metadata(None, REQUEST_TIMEOUT);
        let listed = listed.and_then(|_| self.0.fetch_group_list(group, REQUEST_TIMEOUT));
        let listed = listed.map_err(Error::call("asking for consumer groups"))?;
        Ok(listed.groups().iter().map(|group| (group.name().to_owned(), Membership::of(group))).collect())
    }
}
