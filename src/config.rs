//! Typed settings: defaults < file < environment < flags, checked once.
//!
//! A key that is not a setting is refused with the nearest one that is, and so is a combination that would
//! break a promise later. What passes here needs no further checks.

pub mod words;

use std::collections::BTreeMap;
use std::fmt;
use std::num::{NonZeroU32, NonZeroUsize};
use std::path::{Path, PathBuf};
use std::time::Duration;

use figment::error::Kind;
use figment::providers::{Format, Serialized, Toml};
use figment::value::{Dict, Map, Value};
use figment::{Figment, Metadata, Profile, Provider};
use serde::{Deserialize, Deserializer, Serialize};

use crate::text::{nearest, shortened};

/// Prefix of every environment variable that is a setting: `SWEEPSTREAM_<SECTION>__<KEY>`.
pub const ENV_PREFIX: &str = "SWEEPSTREAM_";

/// Why the settings cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A key that no section knows.
    #[error("unknown setting `{key}` in {place}{hint}")]
    UnknownKey {
        /// Full path of the key.
        key: String,
        /// File, environment or `--set`.
        place: String,
        /// `; did you mean …`, or what is allowed.
        hint: String,
    },
    /// A value of the wrong type or outside its range.
    #[error("setting `{key}` in {place}: {message}")]
    Invalid {
        /// Full path of the key.
        key: String,
        /// File or environment.
        place: String,
        /// What is wrong and what would be right.
        message: String,
    },
    /// Two settings that do not go together.
    #[error("{0}")]
    Relation(String),
    /// The settings file cannot be read.
    #[error("cannot read the settings file {path}: {source}")]
    File {
        /// The file that was named.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
}

/// All settings of a process.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Settings {
    /// Prefix of group and transactional ids. Two applications on one cluster need two.
    pub application_id: String,
    /// The cluster and how clients speak to it.
    pub kafka: Kafka,
    /// Topic names, and where their declarations are.
    pub topics: Topics,
    /// What a record of `texts` looks like.
    pub input: Input,
    /// The embed stage: texts → features.
    pub embed: Embed,
    /// The train stage: features → output.
    pub train: Train,
    /// Metrics, health and the API.
    pub http: Http,
    /// Starting and stopping.
    pub run: Run,
    /// What is logged.
    pub log: Log,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            application_id: "sweepstream".into(),
            kafka: Kafka::default(),
            topics: Topics::default(),
            input: Input::default(),
            embed: Embed::default(),
            train: Train::default(),
            http: Http::default(),
            run: Run::default(),
            log: Log::default(),
        }
    }
}

/// The cluster and how clients speak to it.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Kafka {
    /// `host:port`, several separated by commas.
    pub bootstrap_servers: String,
    /// How members of a group agree on who has what.
    pub group_protocol: GroupProtocol,
    /// How long a silent member keeps its partitions. 1s to 30m; `classic` only, KIP-848 takes the broker's.
    #[serde(with = "humantime_serde")]
    pub session_timeout: Duration,
    /// How long Kafka waits for the rest of a transaction before it aborts it. 2s to 15m.
    #[serde(with = "humantime_serde")]
    pub transaction_timeout: Duration,
    /// How long a start waits for the cluster before it ends with exit code 69.
    #[serde(with = "humantime_serde")]
    pub start_timeout: Duration,
    /// A name that this instance keeps over restarts: static membership, and a transactional id that stays the same, so
    /// that a restart takes over at once. Every instance needs its own. Unset: a new identity at each start.
    pub group_instance_id: Option<String>,
    /// Any librdkafka property, such as `security.protocol`. `"<property>.file"` reads the value from a file, for
    /// secrets. Properties that promises rest on (`isolation.level`, `acks` and the like) are refused.
    #[serde(deserialize_with = "flattened_properties")]
    pub properties: BTreeMap<String, String>,
}

impl Default for Kafka {
    fn default() -> Self {
        Self {
            bootstrap_servers: "localhost:9092".into(),
            group_protocol: GroupProtocol::Classic,
            session_timeout: Duration::from_secs(6),
            transaction_timeout: Duration::from_secs(10),
            start_timeout: Duration::from_secs(15),
            group_instance_id: None,
            properties: BTreeMap::new(),
        }
    }
}

impl Kafka {
    /// How long a dead producer's transaction may hold back readers and committed offsets: its timeout, and what the
    /// broker takes to notice and to end it.
    pub fn open_transaction_max(&self) -> Duration {
        self.transaction_timeout + Duration::from_secs(15)
    }
}

/// Which group protocol members speak.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum GroupProtocol {
    /// client-side assignment, cooperative-sticky
    Classic,
    /// KIP-848, the broker assigns
    Consumer,
}

/// Topic names.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Topics {
    /// A folder with `texts.toml`, `features.toml`, `dead-letters.toml`, `trials.toml` or `output.toml`; those that are
    /// there replace the declarations compiled in. Unset: the ones compiled in, as in `topics/`.
    pub dir: Option<PathBuf>,
    /// Input text.
    pub texts: String,
    /// Embedding matrices.
    pub features: String,
    /// Input that could not be embedded.
    pub dead_letters: String,
    /// What to train, and who trains it.
    pub trials: String,
    /// Measurements, outcomes and checkpoints.
    pub output: String,
}

impl Default for Topics {
    fn default() -> Self {
        Self {
            dir: None,
            texts: "texts".into(),
            features: "features".into(),
            dead_letters: "dead-letters".into(),
            trials: "trials".into(),
            output: "output".into(),
        }
    }
}

/// What the value of an input record is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum InputFormat {
    /// the value is UTF-8 text, the label is a header
    Plain,
    /// the value is a JSON object
    Json,
}

/// How input records are read.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Input {
    /// What the value of a record is. Never guessed.
    pub format: InputFormat,
    /// JSON only: the field with the text. `produce --json` uses the same names.
    pub text_field: String,
    /// JSON only: the field with the label; a `label` header is used where it is absent.
    pub label_field: String,
    /// JSON only: the field that becomes the key of a record without one.
    pub id_field: String,
    /// Longer texts are dead letters.
    pub text_bytes_max: NonZeroUsize,
}

impl Default for Input {
    fn default() -> Self {
        Self {
            format: InputFormat::Plain,
            text_field: "text".into(),
            label_field: "label".into(),
            id_field: "id".into(),
            text_bytes_max: nonzero(1024 * 1024),
        }
    }
}

/// What one row of a matrix stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Rows {
    /// the mean of a word's pieces
    Word,
    /// one piece of a word
    Token,
}

impl Rows {
    /// As in settings.
    pub fn name(self) -> &'static str {
        match self {
            Self::Word => "word",
            Self::Token => "token",
        }
    }
}

/// Number format of a matrix in `features`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum MatrixDtype {
    /// half precision, rounded to nearest even: half the bytes
    F16,
    /// the model's own numbers
    F32,
}

/// The embed stage.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Embed {
    /// A folder below `models/` of the parts folder.
    pub model: String,
    /// A folder with `model.onnx` and the tokenizer instead; its name is what matrices say they were made by. Not a
    /// dynamically quantised model. Unset: `model` in the parts folder.
    pub model_dir: Option<PathBuf>,
    /// What a row of a matrix stands for.
    pub rows: Rows,
    /// Number format of the rows.
    pub dtype: MatrixDtype,
    /// Tokens kept of a text, `[CLS]` and `[SEP]` included; 3 up to the model's positions. The rest is cut, and the record
    /// says so in its `truncated` header.
    pub max_length: NonZeroUsize,
    /// Tokens of one inference call, padding included; at least `max_length`.
    pub max_batch_tokens: NonZeroUsize,
    /// Texts that are sorted and committed together, at most. Three such chunks are under way at once.
    pub chunk_texts: NonZeroUsize,
    /// Tokens that are sorted and committed together, at most; at least `max_batch_tokens`.
    pub chunk_tokens: NonZeroUsize,
    /// Inference sessions side by side. Unset: one for each core, up to two.
    pub sessions: Option<NonZeroUsize>,
    /// Threads of each session. Unset: the cores, shared out.
    pub threads: Option<NonZeroUsize>,
    /// Embed from the log's start when the group's offsets are gone and cannot be recovered from the output's headers.
    /// Writes matrices a second time; better given once, as `run --from-start`.
    pub from_start: bool,
    /// Start although another application writes to the same features topic. What it has written counts as done at a
    /// start; after that each text is embedded by both. Better given once, as `run --alongside`.
    pub alongside: bool,
}

impl Default for Embed {
    fn default() -> Self {
        Self {
            model: "all-minilm-l6-v2".into(),
            model_dir: None,
            rows: Rows::Word,
            dtype: MatrixDtype::F16,
            max_length: nonzero(256),
            max_batch_tokens: nonzero(512),
            chunk_texts: nonzero(512),
            chunk_tokens: nonzero(16 * 1024),
            sessions: None,
            threads: None,
            from_start: false,
            alongside: false,
        }
    }
}

impl Embed {
    /// Inference sessions and threads of each. By default they take the cores together, and no more.
    pub fn sessions_and_threads(&self) -> (usize, usize) {
        let cores = cores();
        let sessions = self.sessions.map_or(cores.min(2), NonZeroUsize::get);
        let threads = self.threads.map_or((cores / sessions).max(1), NonZeroUsize::get);
        (sessions, threads)
    }
}

/// The train stage.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Train {
    /// Threads that compute, each for one trial. Unset: one for each core.
    pub threads: Option<NonZeroUsize>,
    /// Trials at once in this process; they take turns on the threads, and share what they read. Unset: one for each
    /// thread, and up to 16 while weights and optimizer state of all of them stay below 1 GiB.
    pub parallel: Option<NonZeroUsize>,
    /// Bytes of records that the trials of one range hold together, for those that are behind; 0 lets each trial read
    /// for itself.
    pub shared_bytes: usize,
    /// A trial is checkpointed at least this often, and at the end of each epoch.
    #[serde(with = "humantime_serde")]
    pub checkpoint_interval: Duration,
    /// Bytes of validation records that a trial keeps in memory between epochs; if there are more, they are read again
    /// each time.
    pub validation_cache_bytes: usize,
    /// Bytes of records that a trial keeps in memory between epochs instead of replaying them; 0 keeps none, and a
    /// range that does not fit is replayed each time. For models that read the mean of a text, 1,000 texts take 1.6 MB.
    pub cache_bytes: usize,
    /// Bytes that a trial's reader may hold ready, all partitions together.
    pub fetch_bytes_max: NonZeroUsize,
}

impl Default for Train {
    fn default() -> Self {
        Self {
            threads: None,
            parallel: None,
            shared_bytes: 64 * 1024 * 1024,
            checkpoint_interval: Duration::from_secs(10),
            validation_cache_bytes: 64 * 1024 * 1024,
            cache_bytes: 0,
            fetch_bytes_max: nonzero(16 * 1024 * 1024),
        }
    }
}

impl Train {
    /// Trials at once by default, if they are small.
    const SMALL_TRIALS: usize = 16;
    /// Weights and optimizer state of small trials together.
    const SMALL_BYTES: u64 = 1 << 30;

    /// Threads that compute, after the default.
    pub fn threads(&self) -> usize {
        self.threads.map_or_else(cores, NonZeroUsize::get)
    }

    /// Whether another trial may be taken up beside so many, when the weights and the optimizer state of all of them
    /// would take so many bytes.
    pub fn has_place(&self, running: usize, state_bytes: u64) -> bool {
        match self.parallel {
            Some(parallel) => running < parallel.get(),
            None => running < self.threads() || (running < Self::SMALL_TRIALS && state_bytes <= Self::SMALL_BYTES),
        }
    }
}

/// The HTTP endpoint.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Http {
    /// `host:port` of /metrics, /health and /api, which have neither TLS nor authentication. Unset: 127.0.0.1:9464, or
    /// the next free port.
    pub address: Option<String>,
}

/// Stopping.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Run {
    /// How long a stop may take to finish what is in flight.
    #[serde(with = "humantime_serde")]
    pub drain_timeout: Duration,
    /// How often a stage that failed is built anew before the process ends with exit code 70; also the attempts that a
    /// chunk's transaction gets. Ten minutes without failure start the count afresh.
    pub rebuilds_max: NonZeroU32,
}

impl Default for Run {
    fn default() -> Self {
        Self { drain_timeout: Duration::from_secs(15), rebuilds_max: NonZeroU32::new(5).expect("five is not zero") }
    }
}

/// Logging.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Log {
    /// A level (error, warn, info, debug, trace, off), or directives such as `info,rdkafka=debug`.
    pub level: String,
}

impl Default for Log {
    fn default() -> Self {
        Self { level: "info".into() }
    }
}

impl Settings {
    /// Layers defaults, the file (when given), the environment and `flags`, then checks relations.
    ///
    /// # Errors
    /// Names the first key that is unknown, has a wrong value, or does not fit another.
    pub fn load(file: Option<&Path>, flags: &[(String, String)]) -> Result<Self, Error> {
        // Of others' variables nothing is asked, not even that they are text.
        let ours = std::env::vars_os().filter(|(name, _)| name.as_encoded_bytes().starts_with(ENV_PREFIX.as_bytes()));
        let environment: Vec<(String, String)> = ours
            .map(|(name, value)| {
                let not_text = |key: String| Error::Invalid {
                    key,
                    place: "the environment".into(),
                    message: "is not valid UTF-8".into(),
                };
                let name = name.into_string().map_err(|name| not_text(name.to_string_lossy().into_owned()))?;
                let value = value.into_string().map_err(|_| not_text(name.clone()))?;
                Ok((name, value))
            })
            .collect::<Result<_, Error>>()?;
        Self::layered(file, environment, flags)
    }

    /// [`Settings::load`] over an explicit environment.
    pub fn layered(
        file: Option<&Path>,
        environment: impl IntoIterator<Item = (String, String)>,
        flags: &[(String, String)],
    ) -> Result<Self, Error> {
        let mut figment = Figment::from(Serialized::defaults(Settings::default()));
        if let Some(path) = file {
            let text =
                std::fs::read_to_string(path).map_err(|source| Error::File { path: path.to_path_buf(), source })?;
            figment = figment.merge(Named {
                name: path.display().to_string(),
                dict: Toml::string(&text)
                    .data()
                    .map_err(|error| from_figment(error, &path.display().to_string(), None))?
                    .remove(&Profile::Default)
                    .unwrap_or_default(),
            });
        }
        let dict = environment_dict(environment)?;
        figment = figment.merge(Named { name: "the environment".into(), dict });
        figment = figment.merge(Named { name: "`--set`".into(), dict: flag_dict(flags) });
        let mut settings: Settings = figment.extract().map_err(|error| {
            let names = names_at(&figment, &error.path);
            from_figment(error, "the settings", names)
        })?;
        settings.read_property_files()?;
        settings.check()?;
        Ok(settings)
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

    /// Group of the embed stage.
    pub fn embed_group(&self) -> String {
        format!("{}.embed", self.application_id)
    }

    /// Group that shares trials out.
    pub fn train_group(&self) -> String {
        format!("{}.train", self.application_id)
    }

    /// Group of one trial; its transactional id has the same name.
    pub fn trial_group(&self, trial: &str) -> String {
        format!("{}.trial.{trial}", self.application_id)
    }

    fn read_property_files(&mut self) -> Result<(), Error> {
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

    fn check(&self) -> Result<(), Error> {
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
            format!("setting `kafka.transaction_timeout` is {transaction:?}; it must lie between 2s and 15m, the broker's own limit"),
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
                "setting `embed.max_batch_tokens` ({}) is below `embed.max_length` ({}), so the longest text would fit in no batch; raise the first or lower the second",
                self.embed.max_batch_tokens, self.embed.max_length
            ),
        )?;
        relation(
            self.embed.chunk_tokens >= self.embed.max_batch_tokens,
            format!(
                "setting `embed.chunk_tokens` ({}) is below `embed.max_batch_tokens` ({}); raise the first or lower the second",
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
}

impl Topics {
    /// `(key, name)` of each topic, in the order in which data flows.
    pub fn names(&self) -> [(&'static str, &str); 5] {
        [
            ("texts", &self.texts),
            ("features", &self.features),
            ("dead_letters", &self.dead_letters),
            ("trials", &self.trials),
            ("output", &self.output),
        ]
    }
}

/// Cores this process may use.
pub fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, NonZeroUsize::get)
}

fn nonzero(value: usize) -> NonZeroUsize {
    NonZeroUsize::new(value).expect("defaults are not zero")
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

/// A provider with a name of its own, so that errors can say where a value came from.
struct Named {
    name: String,
    dict: Dict,
}

impl Provider for Named {
    fn metadata(&self) -> Metadata {
        Metadata::named(self.name.clone())
    }

    fn data(&self) -> Result<Map<Profile, Dict>, figment::Error> {
        Ok(Profile::Default.collect(self.dict.clone()))
    }
}

/// Settings outside any section: their variables have no `__` in their names.
const TOP_LEVEL: &[&str] = &["application_id"];
/// Variables of ours that are not settings.
const NOT_SETTINGS: &[&str] = &["config", "parts", "peers", "peers_python", "bench_json"];

/// More than any setting's name has; what is deeper costs more than it is worth.
const PATH_SEGMENTS_MAX: usize = 8;

/// What an environment variable with our prefix is.
#[derive(Debug, PartialEq, Eq)]
enum Variable<'n> {
    /// A setting by its path, perhaps one that there is not.
    Setting(Vec<&'n str>),
    /// Ours, and no setting.
    NoSetting,
    /// Nearly a setting: the name that was meant.
    Misspelt(String),
    /// Somebody else's: container platforms inject variables such as SWEEPSTREAM_SERVICE_HOST.
    Unknown,
}

impl<'n> Variable<'n> {
    /// By its name after the prefix, in lower case.
    fn of(key: &'n str) -> Self {
        // Whoever writes too few or too many underscores means the setting that has the same words.
        let words = |key: &str| key.split('_').filter(|word| !word.is_empty()).collect::<Vec<_>>().join("_");
        let path: Vec<&str> = key.split("__").collect();
        let names = setting_names();
        if names.iter().any(|name| name == key) || matches!(path[..], ["kafka", "properties", _]) {
            return Self::Setting(path);
        }
        if NOT_SETTINGS.contains(&key) {
            return Self::NoSetting;
        }
        let meant = words(key);
        if let Some(name) = names.iter().find(|name| words(name) == meant) {
            return Self::Misspelt(name.clone());
        }
        if let Some(property) = meant.strip_prefix("kafka_properties_") {
            return Self::Misspelt(format!("kafka__properties__{property}"));
        }
        match path[..] {
            [single] => nearest(single, TOP_LEVEL).map_or(Self::Unknown, |near| Self::Misspelt(near.to_owned())),
            _ => Self::Setting(path),
        }
    }
}

/// The name of each setting, as its variable has it after the prefix, in lower case.
fn setting_names() -> Vec<String> {
    let defaults = Value::serialize(Settings::default()).ok();
    let sections = defaults.and_then(Value::into_dict).unwrap_or_default();
    let names = sections.into_iter().flat_map(|(section, value)| match value {
        Value::Dict(_, keys) => keys.into_keys().map(|key| format!("{section}__{key}")).collect(),
        _ => vec![section],
    });
    names.collect()
}

/// Of these names of environment variables, those that have our prefix and mean nothing to us.
pub fn unknown_variables(names: impl IntoIterator<Item = String>) -> Vec<String> {
    let unknown = |name: &String| {
        let key = name.strip_prefix(ENV_PREFIX).map(str::to_ascii_lowercase);
        key.is_some_and(|key| Variable::of(&key) == Variable::Unknown)
    };
    names.into_iter().filter(unknown).collect()
}

fn environment_dict(environment: impl IntoIterator<Item = (String, String)>) -> Result<Dict, Error> {
    let mut dict = Dict::new();
    let refused =
        |name: &str, hint: String| Error::UnknownKey { key: shortened(name), place: "the environment".into(), hint };
    for (name, value) in environment {
        let Some(key) = name.strip_prefix(ENV_PREFIX) else { continue };
        let key = key.to_ascii_lowercase();
        let path = match Variable::of(&key) {
            Variable::Setting(path) => path,
            Variable::NoSetting | Variable::Unknown => continue,
            Variable::Misspelt(meant) => {
                let meant = meant.to_ascii_uppercase();
                return Err(refused(&name, format!("; did you mean `{ENV_PREFIX}{meant}`?")));
            }
        };
        match path.as_slice() {
            [single] => insert(&mut dict, &[single], Value::from(value)),
            ["kafka", "properties", property] => {
                let path = ["kafka", "properties", &property.replace('_', ".")];
                insert(&mut dict, &path, typed(&path, &value));
            }
            path if path.len() > PATH_SEGMENTS_MAX => {
                return Err(refused(&name, format!("; names are {ENV_PREFIX}<SECTION>__<KEY>")));
            }
            _ => insert(&mut dict, &path, typed(&path, &value)),
        }
    }
    Ok(dict)
}

/// `section.key` → text, as a dictionary.
fn flag_dict(flags: &[(String, String)]) -> Dict {
    let mut dict = Dict::new();
    for (key, value) in flags {
        // A librdkafka property has dots of its own.
        let path: Vec<&str> = key.splitn(3, '.').collect();
        insert(&mut dict, &path, typed(&path, value));
    }
    dict
}

/// Settings that are text, and absent by default.
const OPTIONAL_TEXT: [[&str; 2]; 4] =
    [["kafka", "group_instance_id"], ["topics", "dir"], ["embed", "model_dir"], ["http", "address"]];

/// What a text from outside is as the value of a setting: text stays as it is ("007" is no 7), the rest is parsed.
fn typed(path: &[&str], value: &str) -> Value {
    let is_text = || {
        let defaults = Value::serialize(Settings::default()).ok();
        let default = defaults.and_then(|defaults| defaults.find(&path.join(".")));
        default.is_some_and(|default| default.as_str().is_some())
    };
    if path.starts_with(&["kafka", "properties"]) || OPTIONAL_TEXT.iter().any(|text| text == path) || is_text() {
        Value::from(value)
    } else {
        // figment's own parser stumbles over some escapes.
        match value.trim().parse::<toml::Value>() {
            Ok(toml::Value::Datetime(_)) | Err(_) => Value::from(value),
            Ok(parsed) => Value::serialize(parsed).unwrap_or_else(|_| Value::from(value)),
        }
    }
}

fn insert(dict: &mut Dict, path: &[&str], value: Value) {
    match path {
        [] => {}
        [last] => {
            let _ = dict.insert((*last).to_owned(), value);
        }
        [first, rest @ ..] => {
            let entry = dict.entry((*first).to_owned()).or_insert_with(|| Value::from(Dict::new()));
            if let Value::Dict(_, inner) = entry {
                insert(inner, rest, value);
            }
        }
    }
}

/// The names of which the setting at a path is one: asked for by a name that none has.
fn names_at(figment: &Figment, path: &[String]) -> Option<words::Names> {
    let (mut dict, path) = (Dict::new(), path.iter().map(String::as_str).collect::<Vec<_>>());
    insert(&mut dict, &path, Value::from(""));
    match figment.clone().merge(Named { name: String::new(), dict }).extract::<Settings>() {
        Err(figment::Error { kind: Kind::UnknownVariant(_, names), .. }) => Some(names),
        _ => None,
    }
}

fn from_figment(error: figment::Error, fallback: &str, names: Option<words::Names>) -> Error {
    let place = error.metadata.as_ref().map_or_else(|| fallback.to_owned(), |metadata| metadata.name.to_string());
    let path = error.path.join(".");
    match &error.kind {
        Kind::UnknownField(field, known) => {
            let section = path.strip_suffix(field.as_str()).unwrap_or(&path).trim_end_matches('.');
            let dot = if section.is_empty() { "" } else { "." };
            let hint = match nearest(field, known) {
                Some(near) => format!("; did you mean `{section}{dot}{near}`?"),
                None => format!("; known here: {}", known.join(", ")),
            };
            Error::UnknownKey { key: format!("{section}{dot}{field}"), place, hint }
        }
        _ => Error::Invalid {
            key: if path.is_empty() { "(file)".into() } else { path },
            place,
            message: words::misfit(&error, || names).message,
        },
    }
}

/// Accepts `"sasl.password" = "x"` and `sasl.password = "x"` alike; numbers and booleans become text.
fn flattened_properties<'de, D: Deserializer<'de>>(deserializer: D) -> Result<BTreeMap<String, String>, D::Error> {
    fn flatten(prefix: &str, value: serde_json::Value, into: &mut BTreeMap<String, String>) -> Result<(), String> {
        let text = match value {
            serde_json::Value::Object(map) => {
                for (key, value) in map {
                    let path = if prefix.is_empty() { key } else { format!("{prefix}.{key}") };
                    flatten(&path, value, into)?;
                }
                return Ok(());
            }
            serde_json::Value::String(text) => text,
            serde_json::Value::Number(number) => number.to_string(),
            serde_json::Value::Bool(flag) => flag.to_string(),
            other => {
                return Err(format!("property `{prefix}` has the value {other}; text, a number or a boolean is needed"))
            }
        };
        let _ = into.insert(prefix.to_owned(), text);
        Ok(())
    }
    let value = serde_json::Value::deserialize(deserializer)?;
    let mut properties = BTreeMap::new();
    flatten("", value, &mut properties).map_err(serde::de::Error::custom)?;
    Ok(properties)
}

impl fmt::Display for GroupProtocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            GroupProtocol::Classic => "classic",
            GroupProtocol::Consumer => "consumer",
        })
    }
}
