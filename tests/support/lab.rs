//! Searches over features that were written by hand, where the embedding model does not matter, and an oracle that
//! trains the same trials without Kafka.

// Shares no client code with the program it judges; each test binary uses what it needs.
#![allow(clippy::disallowed_methods, dead_code)]

use std::collections::BTreeMap;
use std::path::PathBuf;

use half::f16;
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use rdkafka::ClientConfig;
use safetensors::tensor::{Dtype, TensorView};
use serde_json::Value;
use sweepstream::config::Settings;
use sweepstream::features::codec;
use sweepstream::features::window::{Example, Target};
use sweepstream::learn::fit::{Fit, Recipe};
use sweepstream::learn::schedule::Schedule;
use sweepstream::models::seed::{Generator, Purpose};
use sweepstream::search::parameters::ClassWeights;
use sweepstream::search::record::TrialRecord;
use sweepstream::topology::Topology;
use sweepstream::train::run::pool::TRAIN;
use sweepstream::train::store::start::{self, Started};

use crate::support::{self, create_topics, read, Finished, In, Out, Process, PATIENCE};

/// Numbers in a row of what [`points`] makes.
pub const DIM: usize = 6;

/// Topics, groups and a folder of a test's own.
pub struct Lab {
    pub settings: Settings,
    pub folder: tempfile::TempDir,
}

impl Lab {
    /// A features topic with this many partitions, and a trials topic with few, so that it is there at once.
    pub fn new(name: &str, partitions: i32) -> Self {
        Self::at(support::settings(name), partitions)
    }

    /// [`Lab::new`] under these settings.
    pub fn at(mut settings: Settings, partitions: i32) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let topics = folder.path().join("topics");
        std::fs::create_dir(&topics).unwrap();
        std::fs::write(topics.join("texts.toml"), format!("partitions = {partitions}\nreplication_factor = -1\n"))
            .unwrap();
        std::fs::write(
            topics.join("trials.toml"),
            "partitions = 4\nreplication_factor = \
            -1\n[required]\n\"cleanup.policy\" = { value = \"compact\", why = \"state\" }\n",
        )
        .unwrap();
        settings.topics.dir = Some(topics);
        settings.train.parallel = std::num::NonZeroUsize::new(2);
        create_topics(&settings);
        Self { settings, folder }
    }

    /// A lab whose features are [`points`], dealt to the partitions in turn.
    pub fn with_points(name: &str, partitions: i32, count: usize) -> Self {
        let lab = Self::new(name, partitions);
        lab.fill(&dealt(points(count), partitions));
        lab
    }

    pub fn fill(&self, records: &[Out]) {
        support::produce(&self.settings, &self.settings.topics.features, records);
    }

    pub fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Starts a search from the text of its file.
    #[track_caller]
    pub fn start(&self, search: &str) -> Started {
        start::start(&self.settings, search, self.folder.path(), |_, _| {}).unwrap()
    }

    /// Starts a search as users do.
    pub fn start_by_command(&self, search: &str) -> Finished {
        let file = self.file("search.toml");
        std::fs::write(&file, search).unwrap();
        self.command(&["search", "start", file.to_str().unwrap()])
    }

    pub fn command(&self, arguments: &[&str]) -> Finished {
        support::sweepstream(&self.settings, arguments)
    }

    /// A process that trains; its log goes to a file of that name.
    pub fn trainer(&self, name: &str) -> Process {
        let Settings { kafka, train, .. } = &self.settings;
        let mut command = support::command(&self.settings, &["run", "--stage", "train"]);
        let _ = command
            .env("SWEEPSTREAM_HTTP__ADDRESS", "127.0.0.1:0")
            .env("SWEEPSTREAM_KAFKA__GROUP_PROTOCOL", format!("{:?}", kafka.group_protocol).to_lowercase())
            .env("SWEEPSTREAM_KAFKA__SESSION_TIMEOUT", format!("{}ms", kafka.session_timeout.as_millis()))
            .env("SWEEPSTREAM_TRAIN__CHECKPOINT_INTERVAL", format!("{}ms", train.checkpoint_interval.as_millis()))
            .env("SWEEPSTREAM_TRAIN__SHARED_BYTES", train.shared_bytes.to_string())
            .envs(train.parallel.map(|trials| ("SWEEPSTREAM_TRAIN__PARALLEL", trials.to_string())));
        if let Some(instance) = &kafka.group_instance_id {
            let _ = command.env("SWEEPSTREAM_KAFKA__GROUP_INSTANCE_ID", instance);
        }
        Process::logged(command, &self.file(name))
    }

    /// What a trainer has logged.
    pub fn log(&self, name: &str) -> String {
        std::fs::read_to_string(self.file(name)).unwrap()
    }

    /// The train stage in this process.
    pub fn topology(&self) -> Topology {
        Topology::start(&self.settings, &support::parts(), &[&TRAIN]).unwrap()
    }

    /// Trains in this process until all trials of these searches have ended.
    #[track_caller]
    pub fn train(&self, searches: &[&Started]) {
        let ids: Vec<&String> = searches.iter().flat_map(|started| &started.trials).map(|trial| &trial.trial).collect();
        support::run(&self.settings, &[&TRAIN], |topology| {
            let states = topology.status.trials();
            ids.iter().all(|id| states.get(*id).is_some_and(|trial| is_end(&trial.state)))
        });
    }

    /// What is in `output`.
    pub fn output(&self) -> Output {
        Output(read(&self.settings, &self.settings.topics.output))
    }

    /// Whether the newest record of a trial says so; what was committed just now may not be readable yet.
    pub fn has_ended(&self, id: &str) -> bool {
        self.trial(id).is_some_and(|trial| trial.get("outcome").is_some())
    }

    /// Waits for that.
    #[track_caller]
    pub fn await_end(&self, id: &str) {
        support::eventually_after("the trial ends", || self.written(), || self.has_ended(id));
    }

    /// Records in `output`: they tell that trials go on.
    pub fn written(&self) -> u64 {
        read(&self.settings, &self.settings.topics.output).len() as u64
    }

    /// Overwrites a record of a trial's output; without a value it is deleted.
    pub fn overwrite<'v>(&self, trial: &str, key: &str, value: impl Into<Option<&'v [u8]>>) {
        let key = format!("{trial}/{key}");
        let partition = self.output().keyed(&key)[0].partition;
        let record = Out { key: Some(key.into()), value: value.into().map(<[u8]>::to_vec), ..Out::default() };
        support::produce(&self.settings, &self.settings.topics.output, &[record.to(partition)]);
    }

    /// The newest record of a trial in `trials`.
    pub fn trial(&self, id: &str) -> Option<Value> {
        let records = read(&self.settings, &self.settings.topics.trials);
        let newest = records.iter().rfind(|record| record.key() == id)?;
        newest.value.as_ref().map(|_| newest.json())
    }
}

pub fn is_end(state: &str) -> bool {
    !matches!(state, "waiting" | "running")
}

/// What was committed to `output`, in order.
pub struct Output(pub Vec<In>);

impl Output {
    pub fn keyed(&self, key: &str) -> Vec<&In> {
        self.0.iter().filter(|record| record.key() == key).collect()
    }

    /// Manifests of a trial's checkpoints as they stand: (slot, manifest), the newest last.
    pub fn manifests(&self, trial: &str) -> Vec<(String, Value)> {
        let newest = |slot: &str| {
            let last = self.keyed(&format!("{trial}/checkpoint/{slot}/manifest")).pop()?;
            last.value.as_ref().map(|_| last.json())
        };
        let mut found: Vec<(String, Value)> =
            ["0", "1", "2"].into_iter().filter_map(|slot| Some((slot.to_owned(), newest(slot)?))).collect();
        found.sort_by_key(|(_, manifest)| manifest["checkpoint"].as_u64());
        found
    }

    /// The only outcome of a trial.
    #[track_caller]
    pub fn outcome(&self, trial: &str) -> Value {
        let found = self.keyed(&format!("{trial}/outcome"));
        assert_eq!(found.len(), 1, "outcomes of {trial}");
        assert_eq!(found[0].header("kind").as_deref(), Some("outcome"));
        found[0].json()
    }

    /// Digest of a trial's final weights; the trial must have finished.
    #[track_caller]
    pub fn weights(&self, trial: &str) -> String {
        let outcome = self.outcome(trial);
        assert_eq!(outcome["state"], "finished", "{outcome}");
        outcome["weights_sha256"].as_str().unwrap().to_owned()
    }

    /// A trial's measurements in the order of publication; none is there twice.
    #[track_caller]
    pub fn measurements(&self, trial: &str) -> Vec<Value> {
        let prefix = format!("{trial}/measurement/");
        let found: Vec<&In> = self.0.iter().filter(|record| record.key().starts_with(&prefix)).collect();
        for record in &found {
            assert_eq!(self.keyed(&record.key()).len(), 1, "measurements under {}", record.key());
            let json = record.json();
            assert_eq!(record.key(), format!("{prefix}{}/{}", json["epoch"], json["step"]));
        }
        found.into_iter().map(In::json).collect()
    }

    /// What of a trial's measurements does not depend on time.
    #[track_caller]
    pub fn values(&self, trial: &str) -> Vec<Value> {
        let strip = |mut measurement: Value| {
            for key in ["search", "trial", "time_ms", "records_per_second"] {
                drop(measurement.as_object_mut().unwrap().remove(key));
            }
            measurement
        };
        self.measurements(trial).into_iter().map(strip).collect()
    }
}

/// For clients of a test's own.
pub fn client(settings: &Settings) -> ClientConfig {
    let mut config = ClientConfig::new();
    let _ = config.set("bootstrap.servers", &settings.kafka.bootstrap_servers);
    config
}

/// The value of a features record, written without the program's codec.
pub fn matrix(rows: usize, values: &[f32], half: bool) -> Vec<u8> {
    let (dtype, bytes): (Dtype, Vec<u8>) = if half {
        (Dtype::F16, values.iter().flat_map(|&value| f16::from_f32(value).to_le_bytes()).collect())
    } else {
        (Dtype::F32, values.iter().flat_map(|value| value.to_le_bytes()).collect())
    };
    let view = TensorView::new(dtype, vec![rows, values.len() / rows], &bytes).unwrap();
    safetensors::serialize([("rows", view)], None).unwrap()
}

/// Matrices of one to four rows around two centres that can be told apart, with labels and sources.
pub fn points(count: usize) -> Vec<Out> {
    (0..count).map(point).collect()
}

fn point(number: usize) -> Out {
    let (centre, label) = if number.is_multiple_of(2) { (0.8, "sea") } else { (-0.8, "field") };
    let rows = 1 + number * 7 % 4;
    let value = |i: usize| {
        let x = (i + 31 * number) as f64;
        (centre + 0.7 * (0.7 * x + 0.01 * x * x).sin()) as f32
    };
    let values: Vec<f32> = (0..rows * DIM).map(value).collect();
    Out {
        value: Some(matrix(rows, &values, true)),
        headers: vec![
            ("label".into(), Some(label.into())),
            ("source".into(), Some(format!("texts/0/{number}").into_bytes())),
        ],
        key: Some(format!("k{number}").into_bytes()),
        partition: None,
    }
}

/// The same records, but every so many labels of the validation split are those of the other centre: what is learnt
/// from the others is wrong about them, and the more so the surer it is.
pub fn contradicted(mut records: Vec<Out>, validation: u32, one_in: usize) -> Vec<Out> {
    let held_out = records.iter_mut().filter(|out| is_validation(out.key.as_deref().unwrap(), validation));
    for (_, label) in held_out.step_by(one_in).map(|record| &mut record.headers[0]) {
        let other = if label.as_deref() == Some(b"sea") { "field" } else { "sea" };
        *label = Some(other.into());
    }
    records
}

/// Deals records to partitions in turn.
pub fn dealt(records: Vec<Out>, partitions: i32) -> Vec<Out> {
    records.into_iter().zip((0..partitions).cycle()).map(|(record, partition)| record.to(partition)).collect()
}

/// A producer that writes in transactions.
pub struct Transactions(BaseProducer);

impl Transactions {
    pub fn new(settings: &Settings) -> Self {
        let producer: BaseProducer = client(settings)
            .set("transactional.id", format!("{}.test-writer", settings.application_id))
            .create()
            .unwrap();
        producer.init_transactions(PATIENCE).unwrap();
        Self(producer)
    }

    /// Writes records in one transaction, which is left open.
    pub fn send(&self, topic: &str, records: &[Out]) {
        self.0.begin_transaction().unwrap();
        for record in records {
            let mut headers = rdkafka::message::OwnedHeaders::new();
            for (key, value) in &record.headers {
                headers = headers.insert(rdkafka::message::Header { key, value: value.as_deref() });
            }
            let mut outgoing: BaseRecord<'_, [u8], [u8]> = BaseRecord::to(topic).headers(headers);
            outgoing.key = record.key.as_deref();
            outgoing.payload = record.value.as_deref();
            outgoing.partition = record.partition;
            self.0.send(outgoing).map_err(|(error, _)| error).unwrap();
        }
        self.0.flush(PATIENCE).unwrap();
    }

    pub fn commit(&self) {
        self.0.commit_transaction(PATIENCE).unwrap();
    }

    pub fn abort(&self) {
        self.0.abort_transaction(PATIENCE).unwrap();
    }
}

/// What a trial must come to: weights, and (epoch, loss) of each.
#[derive(Debug, PartialEq)]
pub struct Expected {
    pub weights: String,
    pub losses: Vec<f64>,
    pub validation_losses: Vec<Option<f64>>,
}

/// Trains a trial over records in memory: merged in turn, cut into windows, shuffled, cut into batches.
pub fn expected(record: &TrialRecord, records: &[Out]) -> Expected {
    let mut partitions: BTreeMap<i32, std::collections::VecDeque<&Out>> = BTreeMap::new();
    for record in records {
        partitions.entry(record.partition.unwrap()).or_default().push_back(record);
    }
    let mut merged = Vec::new();
    while partitions.values().any(|queue| !queue.is_empty()) {
        merged.extend(partitions.values_mut().filter_map(std::collections::VecDeque::pop_front));
    }
    let parameters = &record.parameters;
    let is_validation =
        |out: &Out| parameters.validation > 0 && is_validation(out.key.as_deref().unwrap(), parameters.validation);
    let batch_size = parameters.batch_size as usize;
    let (spec, optimizer) = (record.model_spec(), record.optimizer_spec());
    let training: Vec<&&Out> = merged.iter().filter(|out| !is_validation(out)).collect();
    let steps = training.len().div_ceil(batch_size) as u64 * parameters.epochs;
    let of_class = |class: usize| {
        training.iter().filter(|out| example(record, out).1 == Target::Class(class as u32)).count() as f64
    };
    let balanced = |class| training.len() as f64 / (record.labels.len() as f64 * of_class(class));
    let recipe = Recipe {
        schedule: Schedule { shape: parameters.schedule, warm_up: parameters.warm_up, steps },
        clip_norm: parameters.clip_norm,
        label_smoothing: parameters.label_smoothing,
        class_weights: match parameters.class_weights {
            ClassWeights::None => Vec::new(),
            ClassWeights::Balanced => (0..record.labels.len()).map(balanced).collect(),
        },
    };
    let mut fit = Fit::new(spec, optimizer, record.seed, record.number).unwrap().with(recipe);
    let (mut step, mut losses, mut validation_losses) = (0, Vec::new(), Vec::new());
    for epoch in 0..parameters.epochs {
        let mut order = Vec::new();
        for (number, window) in merged.chunks(parameters.window as usize).enumerate() {
            // Both splits count for the window; places are those within it.
            let mut places: Vec<u32> =
                (0..).zip(window).filter(|(_, out)| !is_validation(out)).map(|(place, _)| place).collect();
            if parameters.shuffle {
                let (seed, trial) = (record.seed, record.number);
                Generator::new(seed, trial, Purpose::Shuffle, epoch, number as u64).shuffle(&mut places);
            }
            order.extend(places.into_iter().map(|place| window[place as usize]));
        }
        let (mut sum, mut count) = (0.0, 0);
        for batch in order.chunks(batch_size) {
            let examples: Vec<_> = batch.iter().map(|out| example(record, out)).collect();
            let report = fit.step(&examples, epoch, step).unwrap();
            step += 1;
            sum += report.loss * batch.len() as f64;
            count += batch.len();
        }
        losses.push(sum / count as f64);
        let mut evaluation = fit.evaluation();
        let validation: Vec<_> =
            merged.iter().filter(|out| is_validation(out)).map(|out| example(record, out)).collect();
        for batch in validation.chunks(batch_size) {
            fit.evaluate(batch, &mut evaluation).unwrap();
        }
        validation_losses.push(evaluation.loss());
    }
    Expected { weights: fit.weights_sha256().unwrap(), losses, validation_losses }
}

/// Whether a key falls into the validation split.
pub fn is_validation(key: &[u8], one_in: u32) -> bool {
    crc32fast::hash(key).is_multiple_of(one_in)
}

/// A record as the trial reads it.
fn example<'o>(record: &TrialRecord, out: &'o Out) -> Example<'o> {
    let mut view = codec::decode(out.value.as_deref().unwrap()).unwrap();
    view.rows = view.rows.min(record.rows_max);
    view.data = &view.data[..view.rows * view.dim * view.dtype.bytes()];
    let label = out.headers.iter().find(|(key, _)| key == "label").and_then(|(_, label)| label.as_deref());
    let label = label.map(|label| std::str::from_utf8(label).unwrap());
    (view, record.reading().labels.target(label).unwrap())
}

/// Asserts that a trial came to what the oracle says, bit for bit.
#[track_caller]
pub fn assert_expected(output: &Output, trial: &TrialRecord, records: &[Out]) {
    let expected = expected(trial, records);
    let id = &trial.trial;
    let weights = output.weights(id);
    let ends: Vec<Value> = output.measurements(id).into_iter().filter(|m| m.get("validation_loss").is_some()).collect();
    let column = |key: &str| ends.iter().map(|m| m[key].as_f64().unwrap()).collect::<Vec<f64>>();
    assert_eq!(column("loss"), expected.losses, "{id}: {:?}", trial.parameters);
    let validation: Vec<f64> = expected.validation_losses.iter().map(|loss| loss.unwrap()).collect();
    assert_eq!(column("validation_loss"), validation, "{id}");
    assert_eq!(weights, expected.weights, "{id}: {:?}", trial.parameters);
}
