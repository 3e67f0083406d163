//! Typed settings: defaults < file < environment < flags, checked once.
//!
//! A key that is not a setting is refused with the nearest one that is, and so is a combination that would
//! break a promise later. What passes here needs no further checks.

mod check;
mod load;
pub mod words;

pub use load::unknown_variables;

use std::collections::BTreeMap;
use std::fmt;
use std::num::{NonZeroU32, NonZeroUsize};
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Deserializer, Serialize};

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
    /// the whole text: one row of length 1, pooled as the model was trained to be
    Text,
}

impl Rows {
    /// As in settings.
    pub fn name(self) -> &'static str {
        match self {
            Self::Word => "word",
            Self::Token => "token",
            Self::Text => "text",
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
    /// A model of the catalogue (`sweepstream models` lists them; `models fetch` gets one), or a folder below `models/`
    /// of the parts folder. Not a dynamically quantised model.
    pub model: String,
    /// A folder with `model.onnx` and the tokenizer instead; its name is what matrices say they were made by. Unset:
    /// `model` in the parts folder.
    pub model_dir: Option<PathBuf>,
    /// What a row of a matrix stands for.
    pub rows: Rows,
    /// Number format of the rows.
    pub dtype: MatrixDtype,
    /// Tokens kept of a text, `[CLS]` and `[SEP]` included; 3 up to the model's positions. The rest is cut, and the
    /// record says so in its `truncated` header.
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
    /// Bytes of means that this process keeps in memory, for all trials together whose models read nothing else of a
    /// text; 1,000 texts take 1.6 MB. A range that does not fit is replayed in each epoch; 0 keeps none.
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
            cache_bytes: 256 * 1024 * 1024,
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
