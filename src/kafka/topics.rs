//! Topics: declared in `topics/*.toml`, created when missing, verified when present.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use fail::fail_point;
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, ResourceSpecifier, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::config::FromClientConfig;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use serde::Deserialize;

use super::client::{self, REQUEST_TIMEOUT};
use super::error::{Error, Result};
use super::offsets::{patiently, Watermarks, PATIENCE};
use super::transaction::DEFAULT_LIMIT_BYTES;
use crate::config::{words, Settings};

/// Room that headers of a dead letter need beyond its input.
pub const DEAD_LETTER_HEADROOM_BYTES: usize = 64 * 1024;

/// The declarations compiled in: file name and content.
const COMPILED_IN: [(&str, &str); 5] = [
    ("texts.toml", include_str!("../../topics/texts.toml")),
    ("features.toml", include_str!("../../topics/features.toml")),
    ("dead-letters.toml", include_str!("../../topics/dead-letters.toml")),
    ("trials.toml", include_str!("../../topics/trials.toml")),
    ("output.toml", include_str!("../../topics/output.toml")),
];

/// What a topic should be.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Declaration {
    /// How many partitions a new topic gets.
    pub partitions: Partitions,
    /// −1 is the cluster's default.
    pub replication_factor: i32,
    /// Configuration whose difference breaks a promise: the start is refused.
    #[serde(default)]
    pub required: BTreeMap<String, Wanted>,
    /// Configuration whose difference is only logged.
    #[serde(default)]
    pub advised: BTreeMap<String, Wanted>,
}

/// A partition count, or the topic whose count is taken over.
#[derive(Clone, Debug, Deserialize)]
#[serde(
    untagged,
    expecting = "is neither a whole number nor { same_as = \"texts\" } nor { initially = \"trials\" }, say"
)]
pub enum Partitions {
    Count(i32),
    /// As many as another topic has.
    Of(PartitionsOf),
}

/// How a partition count follows another topic's.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "snake_case")]
pub enum PartitionsOf {
    /// Always: records keep their partition, so any other count is refused.
    SameAs(Leading),
    /// When the topic is created; any other count is fine, too.
    Initially(Leading),
}

/// A topic whose partition count others follow.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Leading {
    Texts,
    Trials,
}

impl Leading {
    fn name(self, settings: &Settings) -> &str {
        match self {
            Self::Texts => &settings.topics.texts,
            Self::Trials => &settings.topics.trials,
        }
    }
}

/// The value a configuration key should have.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Wanted {
    /// As Kafka writes it.
    pub value: String,
    pub why: String,
    /// A larger number is fine, too.
    #[serde(default)]
    pub at_least: bool,
    /// A smaller number is fine, too.
    #[serde(default)]
    pub at_most: bool,
}

impl Wanted {
    fn holds(&self, actual: &str) -> bool {
        let numbers = || Some((actual.parse::<f64>().ok()?, self.value.parse::<f64>().ok()?));
        actual == self.value
            || match numbers() {
                Some((actual, wanted)) if self.at_least => actual >= wanted,
                Some((actual, wanted)) if self.at_most => actual <= wanted,
                Some((actual, wanted)) => actual == wanted,
                None => false,
            }
    }
}

/// All five declarations, in the order in which data flows.
#[derive(Clone, Debug)]
pub struct Declarations(Vec<(String, Declaration)>);

/// What is known of a topic that exists.
#[derive(Clone, Debug)]
pub struct Topic {
    pub name: String,
    pub partitions: i32,
    /// `max.message.bytes`.
    pub message_bytes_max: usize,
}

/// The five topics as they are.
#[derive(Clone, Debug)]
pub struct TopicSet {
    pub texts: Topic,
    pub features: Topic,
    /// What could not be embedded.
    pub dead_letters: Topic,
    pub trials: Topic,
    pub output: Topic,
}

impl Declarations {
    /// The ones compiled in, replaced by files of the same name in `topics.dir`.
    ///
    /// # Errors
    /// Names the file and what is wrong with it.
    pub fn load(settings: &Settings) -> Result<Self> {
        if let Some(dir) = &settings.topics.dir {
            check_names(dir)?;
        }
        let mut declarations = Vec::new();
        for ((file, text), (_, name)) in COMPILED_IN.iter().zip(settings.topics.names()) {
            let replaced = settings.topics.dir.as_ref().map(|dir| read(&dir.join(file))).transpose()?.flatten();
            let text = replaced.as_deref().unwrap_or(text);
            let declaration =
                declaration(text).map_err(|message| Error::Declaration { file: (*file).to_owned(), message })?;
            if matches!(declaration.partitions, Partitions::Count(count) if count < 1) {
                return Err(Error::Declaration {
                    file: (*file).to_owned(),
                    message: "partitions must be at least 1".into(),
                });
            }
            declarations.push((name.to_owned(), declaration));
        }
        Ok(Self(declarations))
    }

    /// Creates what is missing, then verifies everything.
    ///
    /// `matrix_bytes_max` is the size of the largest matrix that the embed stage can produce, if it will run.
    ///
    /// # Errors
    /// [`Error::Topics`] names every difference that breaks a promise, with the key to change.
    pub fn ensure(&self, settings: &Settings, matrix_bytes_max: Option<usize>) -> Result<TopicSet> {
        let _ = self.create_missing(settings)?;
        self.verify(settings, matrix_bytes_max)
    }

    /// Creates topics that do not exist.
    ///
    /// # Errors
    /// When the cluster refuses.
    pub fn create_missing(&self, settings: &Settings) -> Result<Vec<String>> {
        let watermarks = Watermarks::new(settings)?;
        let admin = admin(settings)?;
        let mut created = Vec::new();
        for (name, declaration) in &self.0 {
            if watermarks.partitions(name).is_ok() {
                continue;
            }
            let partitions = match &declaration.partitions {
                Partitions::Count(count) => *count,
                Partitions::Of(PartitionsOf::SameAs(other) | PartitionsOf::Initially(other)) => {
                    watermarks.partitions(other.name(settings))?
                }
            };
            let mut topic = NewTopic::new(name, partitions, TopicReplication::Fixed(declaration.replication_factor));
            for (key, wanted) in declaration.required.iter().chain(&declaration.advised) {
                topic = topic.set(key, &wanted.value);
            }
            let limit;
            if *name == settings.topics.dead_letters {
                limit = dead_letter_limit(settings, declaration)?.to_string();
                topic = topic.set("max.message.bytes", &limit);
            }
            match patiently(PATIENCE, || create(&admin, name, &topic, declaration.replication_factor)) {
                Ok(true) => {
                    tracing::info!(topic = %name, partitions, "created topic");
                    created.push(name.clone());
                }
                // Another process was quicker.
                Ok(false) => {}
                Err(error) => {
                    let error = Error::call(format!("creating topic `{name}`"))(error);
                    // What does not pass is said of this topic.
                    return Err(match error.code() {
                        Some(code) if !error.passes_by_itself() => Error::Topics(format!(
                            "topic `{name}` cannot be created: {code}; create it by hand or allow this client to"
                        )),
                        _ => error,
                    });
                }
            }
            await_topic(&watermarks, name)?;
        }
        Ok(created)
    }

    /// Compares what exists with what is declared.
    ///
    /// # Errors
    /// [`Error::Topics`] names every difference that breaks a promise, with the key to change.
    pub fn verify(&self, settings: &Settings, matrix_bytes_max: Option<usize>) -> Result<TopicSet> {
        let watermarks = Watermarks::new(settings)?;
        let configs = describe(settings, self.0.iter().map(|(name, _)| name.as_str()))?;
        let mut broken = Vec::new();
        let mut topics = Vec::new();
        for (name, declaration) in &self.0 {
            let partitions = watermarks.partitions(name)?;
            let config = configs.get(name.as_str()).cloned().unwrap_or_default();
            compare(name, declaration, &config, &mut broken);
            if let Partitions::Of(PartitionsOf::SameAs(other)) = &declaration.partitions {
                let other = other.name(settings);
                let expected = watermarks.partitions(other)?;
                if partitions != expected {
                    let (fewer, more) =
                        if partitions < expected { (name.as_str(), expected) } else { (other, partitions) };
                    broken.push(format!(
                        "topic `{name}` has {partitions} partitions and `{other}` has {expected}; they must be equal, \
                         since records keep their partition; raise `{fewer}` to {more} (`kafka-topics.sh --alter \
                         --topic {fewer} --partitions {more}`)"
                    ));
                }
            }
            let message_bytes_max =
                config.get("max.message.bytes").and_then(|value| value.parse().ok()).unwrap_or(DEFAULT_LIMIT_BYTES);
            topics.push(Topic { name: name.clone(), partitions, message_bytes_max });
        }
        let [texts, features, dead_letters, trials, output]: [Topic; 5] =
            topics.try_into().map_err(|_| Error::Topics("five topics must be declared".into()))?;
        if let Some(bytes) = matrix_bytes_max.filter(|bytes| *bytes > features.message_bytes_max) {
            broken.push(format!(
                "topic `{}`: `max.message.bytes` is {}, but a matrix can take {bytes} bytes; raise it, or lower \
                 `embed.max_length`",
                features.name, features.message_bytes_max
            ));
        }
        let needed = texts.message_bytes_max + DEAD_LETTER_HEADROOM_BYTES;
        if dead_letters.message_bytes_max < needed {
            broken.push(format!(
                "topic `{}`: `max.message.bytes` is {}, but dead letters of `{}` need {needed} (its limit plus 64 \
                 KiB); raise it",
                dead_letters.name, dead_letters.message_bytes_max, texts.name
            ));
        }
        if broken.is_empty() {
            Ok(TopicSet { texts, features, dead_letters, trials, output })
        } else {
            Err(Error::Topics(broken.join("\n")))
        }
    }
}

fn declaration(text: &str) -> Result<Declaration, String> {
    let table: toml::Table = text.parse().map_err(|error: toml::de::Error| error.to_string())?;
    words::read(&toml::Value::Table(table)).map_err(|misfit| match misfit.path.as_str() {
        "" => format!("the file {}", misfit.message),
        path => format!("`{path}` {}", misfit.message),
    })
}

fn compare(name: &str, declaration: &Declaration, config: &HashMap<String, String>, broken: &mut Vec<String>) {
    let differing = |wanted: &BTreeMap<String, Wanted>| -> Vec<String> {
        wanted
            .iter()
            .filter_map(|(key, wanted)| {
                let actual = config.get(key)?;
                let bound = match wanted {
                    Wanted { at_least: true, .. } => "at least ",
                    Wanted { at_most: true, .. } => "at most ",
                    _ => "",
                };
                (!wanted.holds(actual)).then(|| {
                    format!("topic `{name}`: `{key}` is {actual}, must be {bound}{}: {}", wanted.value, wanted.why)
                })
            })
            .collect()
    };
    broken.extend(differing(&declaration.required));
    for difference in differing(&declaration.advised) {
        tracing::warn!("{difference}");
    }
}

/// What dead letters may weigh, given what `texts` may weigh; more where more is declared.
fn dead_letter_limit(settings: &Settings, declaration: &Declaration) -> Result<usize> {
    const KEY: &str = "max.message.bytes";
    let texts = settings.topics.texts.as_str();
    let configs = describe(settings, std::iter::once(texts))?;
    let limit = configs.get(texts).and_then(|config| config.get(KEY)?.parse().ok());
    let declared = declaration.required.get(KEY).or_else(|| declaration.advised.get(KEY));
    let declared = declared.and_then(|wanted| wanted.value.parse().ok()).unwrap_or(0);
    Ok(declared.max(limit.unwrap_or(DEFAULT_LIMIT_BYTES) + DEAD_LETTER_HEADROOM_BYTES))
}

/// A folder that is not there, or a file whose name no topic has, would quietly leave the declarations as they are.
fn check_names(dir: &Path) -> Result<()> {
    let failed = |file: &Path, message: String| Error::Declaration { file: file.display().to_string(), message };
    for entry in std::fs::read_dir(dir).map_err(|error| failed(dir, error.to_string()))? {
        let path = entry.map_err(|error| failed(dir, error.to_string()))?.path();
        let toml = path.extension().is_some_and(|extension| extension == "toml");
        if toml && !COMPILED_IN.iter().any(|(file, _)| path.ends_with(file)) {
            let known = COMPILED_IN.map(|(file, _)| file).join(", ");
            return Err(failed(&path, format!("no topic has this name; there are {known}")));
        }
    }
    Ok(())
}

fn read(path: &Path) -> Result<Option<String>> {
    match std::fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(Error::Declaration { file: path.display().to_string(), message: error.to_string() }),
    }
}

/// Configuration of topics as the cluster has it.
///
/// # Errors
/// When it does not answer.
pub fn describe<'a>(
    settings: &Settings,
    names: impl Iterator<Item = &'a str>,
) -> Result<HashMap<String, HashMap<String, String>>> {
    let admin = admin(settings)?;
    let specifiers: Vec<ResourceSpecifier<'a>> = names.map(ResourceSpecifier::Topic).collect();
    // As when topics are created: a cluster that is busy, or was just restarted, answers late.
    let ask = || futures::executor::block_on(admin.describe_configs(&specifiers, &options()));
    let resources = patiently(PATIENCE, ask).map_err(Error::call("asking for the configuration of topics"))?;
    let mut all = HashMap::new();
    for (specifier, resource) in specifiers.iter().zip(resources) {
        let ResourceSpecifier::Topic(name) = specifier else { continue };
        let resource = resource
            .map_err(|code| Error::Topics(format!("the configuration of topic `{name}` cannot be read: {code}")))?;
        let config = resource.entries.into_iter().filter_map(|entry| Some((entry.name, entry.value?))).collect();
        let _ = all.insert((*name).to_owned(), config);
    }
    Ok(all)
}

/// Deletes consumer groups; groups that do not exist are fine.
///
/// # Errors
/// Names the group that cannot be deleted, and why.
pub fn delete_groups(settings: &Settings, groups: &[String]) -> Result<()> {
    if groups.is_empty() {
        return Ok(());
    }
    let admin = admin(settings)?;
    let names: Vec<&str> = groups.iter().map(String::as_str).collect();
    let delete = || futures::executor::block_on(admin.delete_groups(&names, &options()));
    let results = patiently(PATIENCE, delete).map_err(Error::call("deleting consumer groups"))?;
    for result in results {
        match result {
            Ok(_) | Err((_, RDKafkaErrorCode::GroupIdNotFound)) => {}
            Err((group, code)) => {
                return Err(Error::Topics(format!("consumer group `{group}` cannot be deleted: {code}")));
            }
        }
    }
    Ok(())
}

fn admin(settings: &Settings) -> Result<AdminClient<DefaultClientContext>> {
    AdminClient::from_config(&client::admin(settings)).map_err(Error::call("creating a Kafka admin client"))
}

/// Creates a topic; false if it is there already.
fn create(
    admin: &AdminClient<DefaultClientContext>,
    name: &str,
    topic: &NewTopic<'_>,
    replicas: i32,
) -> Result<bool, KafkaError> {
    fail_point!("kafka.topics.create", |number| Err(KafkaError::AdminOp(super::error::injected_code(number))));
    let results = futures::executor::block_on(admin.create_topics([topic], &options()))?;
    match results.into_iter().next() {
        None | Some(Ok(_)) => Ok(true),
        Some(Err((_, RDKafkaErrorCode::TopicAlreadyExists))) => Ok(false),
        Some(Err((_, RDKafkaErrorCode::InvalidReplicationFactor))) if has_brokers(admin, replicas) => {
            tracing::debug!(topic = %name, "brokers are not ready to hold a new topic");
            Err(KafkaError::AdminOp(RDKafkaErrorCode::BrokerNotAvailable))
        }
        Some(Err((_, code))) => Err(KafkaError::AdminOp(code)),
    }
}

/// Whether a cluster has brokers for so many replicas: one that has just started, or did not answer for some seconds,
/// holds no new topic before its controller has heard of it again.
fn has_brokers(admin: &AdminClient<DefaultClientContext>, replicas: i32) -> bool {
    let known = admin.inner().fetch_metadata(None, REQUEST_TIMEOUT).map_or(0, |metadata| metadata.brokers().len());
    known == 0 || i32::try_from(known).is_ok_and(|known| replicas <= known)
}

fn options() -> AdminOptions {
    AdminOptions::new().operation_timeout(Some(REQUEST_TIMEOUT)).request_timeout(Some(REQUEST_TIMEOUT))
}

/// A created topic reaches the metadata of brokers a moment later, or many seconds on a busy machine.
fn await_topic(watermarks: &Watermarks, name: &str) -> Result<()> {
    const BOUND: std::time::Duration = std::time::Duration::from_secs(60);
    let started = std::time::Instant::now();
    loop {
        match watermarks.partitions(name) {
            Ok(_) => return Ok(()),
            Err(error) if started.elapsed() > BOUND => return Err(error),
            Err(_) => std::thread::sleep(std::time::Duration::from_millis(20)),
        }
    }
}
