//! What settings must be to go together, and what of them nobody should see.

use std::time::Duration;

use super::{Error, Settings};

impl Settings {
    pub(super) fn read_property_files(&mut self) -> Result<(), Error> {
        let files: Vec<(String, String)> = self
            .kafka
            .properties
            .iter()
            .filter_map(|(name, path)| Some((name.strip_suffix(".file")?.to_owned(), path.clone())))
            .collect();
        for (name, path) in files {
            let value = std::fs::read_to_string(&path).map_err(|error| Error::Invalid {
                key: format!("kafka.properties.{name}.file"),
                place: path.clone(),
                message: error.to_string(),
            })?;
            let _ = self.kafka.properties.remove(&format!("{name}.file"));
            let _ = self.kafka.properties.insert(name, value.trim_end_matches(['\r', '\n']).to_owned());
        }
        Ok(())
    }

    pub(super) fn check(&self) -> Result<(), Error> {
        let relation = |holds: bool, message: String| if holds { Ok(()) } else { Err(Error::Relation(message)) };
        for (key, value) in [
            ("application_id", &self.application_id),
            ("kafka.bootstrap_servers", &self.kafka.bootstrap_servers),
            ("topics.texts", &self.topics.texts),
            ("topics.features", &self.topics.features),
            ("topics.dead_letters", &self.topics.dead_letters),
            ("topics.trials", &self.topics.trials),
            ("topics.output", &self.topics.output),
            ("embed.model", &self.embed.model),
        ] {
            relation(!value.trim().is_empty(), format!("setting `{key}` is empty"))?;
        }
        let names = self.topics.names();
        for (i, (key, name)) in names.iter().enumerate() {
            if let Some((other, _)) = names[..i].iter().find(|(_, earlier)| earlier == name) {
                return Err(Error::Relation(format!(
                    "settings `topics.{other}` and `topics.{key}` both name the topic `{name}`; each needs its own"
                )));
            }
        }
        let (session, transaction) = (self.kafka.session_timeout, self.kafka.transaction_timeout);
        relation(
            (Duration::from_secs(1)..=Duration::from_secs(1800)).contains(&session),
            format!("setting `kafka.session_timeout` is {session:?}; it must lie between 1s and 30m"),
        )?;
        relation(
            (Duration::from_secs(2)..=Duration::from_secs(900)).contains(&transaction),
            format!(
                "setting `kafka.transaction_timeout` is {transaction:?}; it must lie between 2s and 15m, the \
                broker's own limit"
            ),
        )?;
        relation(
            self.train.checkpoint_interval > Duration::ZERO,
            "setting `train.checkpoint_interval` must be longer than zero".into(),
        )?;
        relation(
            self.embed.max_length.get() >= 3,
            format!(
                "setting `embed.max_length` is {}; [CLS] and [SEP] take two, so it must be at least 3",
                self.embed.max_length
            ),
        )?;
        relation(
            self.embed.max_batch_tokens >= self.embed.max_length,
            format!(
                "setting `embed.max_batch_tokens` ({}) is below `embed.max_length` ({}), so the longest text would fit \
                 in no batch; raise the first or lower the second",
                self.embed.max_batch_tokens, self.embed.max_length
            ),
        )?;
        relation(
            self.embed.chunk_tokens >= self.embed.max_batch_tokens,
            format!(
                "setting `embed.chunk_tokens` ({}) is below `embed.max_batch_tokens` ({}); raise the first or lower \
                 the second",
                self.embed.chunk_tokens, self.embed.max_batch_tokens
            ),
        )?;
        for name in self.kafka.properties.keys() {
            if let Some(instead) = reserved_property(name) {
                return Err(Error::Relation(format!(
                    "setting `kafka.properties.\"{name}\"` is not free: sweepstream's promises rest on it; {instead}"
                )));
            }
        }
        Ok(())
    }

    /// The effective settings as TOML, secrets replaced.
    pub fn redacted_toml(&self) -> String {
        let mut shown = self.clone();
        for (name, value) in &mut shown.kafka.properties {
            if is_secret(name) {
                *value = "(redacted)".into();
            }
        }
        toml::to_string(&shown).unwrap_or_else(|error| format!("# cannot be shown: {error}\n"))
    }
}

/// Is the value of this librdkafka property something nobody should read in a log?
fn is_secret(name: &str) -> bool {
    let named = ["password", "secret", "token", ".pem", "jaas", "credential", "oauthbearer.config"];
    // librdkafka refuses what is misspelt, and somebody looks for the mistake in what `config` shows.
    let nearly = |part: &str| ["password", "secret"].iter().any(|word| strsim::damerau_levenshtein(part, word) <= 2);
    named.iter().any(|part| name.contains(part)) || name.split('.').any(nearly)
}

/// Properties that promises rest on, and what to set instead.
fn reserved_property(name: &str) -> Option<&'static str> {
    Some(match name {
        "bootstrap.servers" | "metadata.broker.list" => "set `kafka.bootstrap_servers`",
        "group.id" | "transactional.id" | "client.id" => "set `application_id`",
        "group.protocol" | "partition.assignment.strategy" => "set `kafka.group_protocol`",
        "group.instance.id" => "set `kafka.group_instance_id`",
        "session.timeout.ms" => "set `kafka.session_timeout`",
        "transaction.timeout.ms" => "set `kafka.transaction_timeout`",
        "isolation.level"
        | "auto.offset.reset"
        | "enable.auto.commit"
        | "enable.auto.offset.store"
        | "enable.idempotence"
        | "enable.partition.eof"
        | "acks"
        | "request.required.acks"
        | "max.in.flight.requests.per.connection"
        | "max.in.flight" => "remove it",
        _ => return None,
    })
}
