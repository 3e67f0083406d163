//! A record of `trials`: what to train, and how it ended. Pure.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::objective::Objective;
use super::parameters::{is_default, HyperParameters};
use crate::features::range::{PartitionRange, Range};
use crate::features::window::{Labels, Reading};
use crate::learn::fit::{Fit, FitError, Recipe};
use crate::learn::optimizer::OptimizerSpec;
use crate::learn::schedule::Schedule;
use crate::models::batch::Layout;
use crate::models::kind::{Kind, ModelSpec, Task, Value};
use crate::models::registry;
use crate::output::Outcome;
use crate::text::shortened;

/// Changes whenever the same inputs would give other weights; a checkpoint of another version is refused.
pub const TRAINING_FORMAT: u32 = 1;

/// One trial.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TrialRecord {
    pub search: String,
    /// Trial id: the search id and the number.
    pub trial: String,
    /// From 0, in the order of the search file.
    pub number: u32,
    /// Trials of the search, all together.
    pub trials: u32,
    #[serde(deserialize_with = "registry::present_or_absent")]
    pub model: &'static Kind,
    pub parameters: HyperParameters,
    /// What the search tries to find.
    pub objective: Objective,
    pub seed: u64,
    pub topic: String,
    /// Partition → first offset and one past the last.
    pub range: BTreeMap<i32, (i64, i64)>,
    /// Partition → records in its range.
    pub records: BTreeMap<i32, u64>,
    /// Partition → digest over its range.
    pub digests: BTreeMap<i32, String>,
    /// Sorted by name; a label's place is its class.
    pub labels: Vec<String>,
    /// Rows read of each matrix.
    pub rows_max: usize,
    /// Numbers in a row.
    pub dim: usize,
    /// Version of the computation.
    pub training_format: u32,
    /// Records of the training split that it learns from; 0 in records of older versions.
    #[serde(default, skip_serializing_if = "is_default")]
    pub training_records: u64,
    /// Of those, how many there are of each class, where that matters.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub class_counts: Vec<u64>,
    /// Measured name → what is reached without reading a text.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub naive: BTreeMap<String, f64>,
    /// It begins with weights given with the search, in the checkpoint slot `initial`.
    #[serde(default)]
    pub initial: bool,
    /// Unix time in milliseconds at which the search started.
    pub created_ms: u64,
    /// Which run of the trial this is; `trials restart` begins another.
    #[serde(default)]
    pub attempt: u32,
    /// Somebody asked it to stop.
    #[serde(default)]
    pub stop: bool,
    /// How it ended, once it has.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub outcome: Option<Outcome>,
}

impl TrialRecord {
    /// Reads the value of a record.
    ///
    /// # Errors
    /// Says where the JSON is wrong.
    pub fn parse(value: &[u8]) -> Result<Self, String> {
        let mut record: Self = serde_json::from_slice(value).map_err(|error| shortened(&error.to_string()))?;
        if record.is_absent() {
            // JSON has no such number: the record could not be written again.
            let beyond = |value: &Value| matches!(value, Value::Share(share) if !share.is_finite());
            if let Some((key, _)) = record.parameters.own.iter().find(|(_, value)| beyond(value)) {
                return Err(format!("`{}` is beyond a 32-bit number", shortened(key)));
            }
        } else {
            record.parameters.own = record.model.settle(std::mem::take(&mut record.parameters.own))?;
        }
        let counted = record.class_counts.iter().try_fold(0_u64, |sum, count| sum.checked_add(*count));
        if counted.is_none() || ![0, record.labels.len()].contains(&record.class_counts.len()) {
            return Err("`class_counts` are not one for each of `labels`".into());
        }
        let partitions = |keys: Vec<&i32>| keys == record.range.keys().collect::<Vec<_>>();
        if !partitions(record.records.keys().collect()) || !partitions(record.digests.keys().collect()) {
            return Err("`range`, `records` and `digests` name different partitions".into());
        }
        for (partition, &(start, end)) in &record.range {
            if *partition < 0 || start < 0 || end < start {
                return Err(format!("`range` of partition {partition} is none"));
            }
        }
        if record.records.values().try_fold(0_u64, |sum, count| sum.checked_add(*count)).is_none() {
            return Err("`records` are more than can be counted".into());
        }
        if record.parameters.batch_size == 0 {
            return Err("`batch_size` is 0".into());
        }
        if record.trial.contains('/') {
            return Err("`trial` contains `/`".into());
        }
        // They become names of groups, which end at a null character.
        let names = [("trial", &record.trial), ("topic", &record.topic)];
        if let Some((key, _)) = names.iter().find(|(_, name)| name.is_empty() || name.contains(char::is_control)) {
            return Err(format!("`{key}` is empty or contains control characters"));
        }
        Ok(record)
    }

    /// The value of a record.
    pub fn to_json(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("maps of strings and numbers can be written as JSON")
    }

    /// The frozen range.
    pub fn range(&self) -> Range {
        let partitions = self
            .range
            .iter()
            .map(|(&partition, &(start, end))| PartitionRange {
                partition,
                start,
                end,
                records: self.records.get(&partition).copied().unwrap_or(0),
                digest: self.digests.get(&partition).cloned().unwrap_or_default(),
            })
            .collect();
        Range { topic: self.topic.clone(), partitions }
    }

    /// How its records are read.
    pub fn reading(&self) -> Reading {
        Reading {
            window: self.parameters.window.max(1),
            rows_max: self.rows_max,
            dim: self.dim,
            validation: self.parameters.validation,
            labels: match self.task() {
                Task::Classification => Labels::Classes(self.labels.clone()),
                Task::Regression => Labels::Numbers,
                Task::Reconstruction => Labels::Ignored,
            },
            labelled_only: self.task().needs_labels(),
            pooled: self.model.layout == Layout::Pooled,
        }
    }

    /// What it learns.
    pub fn task(&self) -> Task {
        self.parameters.task(self.model)
    }

    /// The model it trains.
    pub fn model_spec(&self) -> ModelSpec {
        self.parameters.model_spec(self.model, self.rows_max, self.dim, self.labels.len())
    }

    /// Bytes of its weights and its optimizer's state.
    pub fn state_bytes(&self) -> u64 {
        let parameters = self.model_spec().parameters().unwrap_or_default();
        let elements: usize = parameters.iter().map(|parameter| parameter.shape.iter().product::<usize>()).sum();
        let moments = self.optimizer_spec().rule.moments().len();
        (elements * (1 + moments) * size_of::<f32>()) as u64
    }

    /// Its model in training, at its beginning.
    ///
    /// # Errors
    /// Settings out of range, by the names they have in a search file.
    pub fn fit(&self) -> Result<Fit, FitError> {
        Ok(Fit::new(self.model_spec(), self.optimizer_spec(), self.seed, self.number)?.with(self.recipe()))
    }

    /// How it trains, besides.
    pub fn recipe(&self) -> Recipe {
        let HyperParameters { schedule, warm_up, clip_norm, label_smoothing, .. } = self.parameters;
        let steps = self.parameters.steps(self.training_records);
        let (classes, records) = (self.class_counts.len() as f64, self.class_counts.iter().sum::<u64>() as f64);
        // A class that training never meets weighs nothing.
        let weight = |&count: &u64| if count == 0 { 0.0 } else { records / (classes * count as f64) };
        Recipe {
            schedule: Schedule { shape: schedule, warm_up, steps },
            clip_norm,
            label_smoothing,
            class_weights: self.class_counts.iter().map(weight).collect(),
        }
    }

    /// The learning rate of the step that came after so many.
    pub fn learning_rate(&self, done: u64) -> f64 {
        self.parameters.learning_rate * self.recipe().schedule.factor(done)
    }

    /// Is its model one that this program does not have? Then another one trains it.
    pub fn is_absent(&self) -> bool {
        registry::is_absent(self.model)
    }

    /// How far it is, as far as the record says; whether it runs just now only its process knows.
    pub fn state(&self) -> &'static str {
        match &self.outcome {
            Some(outcome) => outcome.state.name(),
            None if self.stop => "stopping",
            None => "open",
        }
    }

    /// The optimizer it uses.
    pub fn optimizer_spec(&self) -> OptimizerSpec {
        self.parameters.optimizer_spec()
    }

    /// Everything that decides the weights, for comparison with a checkpoint: field → value.
    pub fn identity(&self) -> BTreeMap<String, serde_json::Value> {
        let mut fields = BTreeMap::from([
            ("model".to_owned(), serde_json::json!(self.model)),
            ("seed".to_owned(), serde_json::json!(self.seed)),
            ("number".to_owned(), serde_json::json!(self.number)),
            ("records".to_owned(), serde_json::json!(self.records)),
            ("digests".to_owned(), serde_json::json!(self.digests)),
            ("labels".to_owned(), serde_json::json!(self.labels)),
            ("rows_max".to_owned(), serde_json::json!(self.rows_max)),
            ("dim".to_owned(), serde_json::json!(self.dim)),
            ("training_format".to_owned(), serde_json::json!(self.training_format)),
            ("initial".to_owned(), serde_json::json!(self.initial)),
        ]);
        if let Ok(serde_json::Value::Object(parameters)) = serde_json::to_value(&self.parameters) {
            fields.extend(parameters.into_iter().map(|(key, value)| (format!("parameters.{key}"), value)));
        }
        fields
    }
}

#[cfg(test)]
pub(crate) mod samples {
    use super::*;

    /// A small trial over two partitions.
    pub(crate) fn record(trial: &str) -> TrialRecord {
        TrialRecord::parse(json(trial).to_string().as_bytes()).unwrap()
    }

    /// How such a trial ended.
    pub(crate) fn outcome(trial: &str, attempt: u32) -> Outcome {
        Outcome {
            search: "s".into(),
            trial: trial.into(),
            number: 1,
            state: crate::output::EndState::Finished,
            reason: None,
            epochs: 2,
            records: 22,
            best: None,
            confusion: Vec::new(),
            weights_sha256: None,
            attempt,
            time_ms: 0,
        }
    }

    pub(crate) fn json(trial: &str) -> serde_json::Value {
        serde_json::json!({
            "search": "s", "trial": trial, "number": 1, "trials": 2, "model": "mlp", "objective": "loss", "seed": 3,
            "parameters": {
                "epochs": 2, "batch_size": 4, "optimizer": "adamw", "learning_rate": 0.001, "shuffle": true,
                "hidden": 5, "validation": 10, "window": 7,
            },
            "topic": "f", "range": {"0": [0, 6], "2": [3, 9]}, "records": {"0": 5, "2": 6},
            "digests": {"0": "00000000000000aa", "2": "00000000000000bb"}, "labels": ["a", "b"], "rows_max": 3,
            "dim": 4, "training_format": TRAINING_FORMAT, "created_ms": 1,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_record_survives_the_round_trip() {
        let record = samples::record("t");
        assert_eq!(TrialRecord::parse(&record.to_json()).unwrap(), record);
        assert_eq!((record.range().records(), record.range().counts()), (11, vec![5, 6]));
        assert_eq!((record.attempt, record.stop, record.initial, &record.outcome), (0, false, false, &None));
    }

    #[test]
    fn a_record_without_patience_is_written_as_it_was() {
        let without = samples::record("t");
        assert_eq!(without.parameters.patience, 0);
        assert!(!String::from_utf8(without.to_json()).unwrap().contains("patience"));
        let mut json = samples::json("t");
        json["parameters"]["patience"] = 3.into();
        let with = TrialRecord::parse(json.to_string().as_bytes()).unwrap();
        assert_eq!(with.parameters.patience, 3);
        assert_eq!(TrialRecord::parse(&with.to_json()).unwrap(), with);
    }

    #[test]
    fn a_trial_of_a_model_that_is_not_here_is_kept_as_it_is() {
        let mut json = samples::json("t");
        json["model"] = "transformer".into();
        json["parameters"]["blocks"] = 3.into();
        let record = TrialRecord::parse(json.to_string().as_bytes()).unwrap();
        assert!(record.fit().unwrap_err().to_string().contains("model `transformer` is not in this program"));
        let written: serde_json::Value = serde_json::from_slice(&record.to_json()).unwrap();
        assert_eq!((&written["model"], &written["parameters"]), (&json["model"], &json["parameters"]));
    }

    #[test]
    fn what_contradicts_itself_is_refused() {
        let refused = |key: &str, value: serde_json::Value| {
            let mut json = samples::json("t");
            json[key] = value;
            TrialRecord::parse(json.to_string().as_bytes()).unwrap_err()
        };
        assert!(refused("records", serde_json::json!({"0": 5})).contains("different partitions"));
        assert!(refused("digests", serde_json::json!({"0": "aa", "1": "bb"})).contains("different partitions"));
        assert!(refused("trial", "a/b".into()).contains('/'));
        assert!(refused("trial", "a\0".into()).contains("control characters"));
        assert!(refused("topic", "".into()).contains("`topic`"));
        for range in [[6, 0], [-1, 6], [i64::MIN, i64::MAX]] {
            assert!(refused("range", serde_json::json!({"0": range, "2": [3, 9]})).contains("partition 0"));
        }
        let many = serde_json::json!({"0": u64::MAX, "2": 1});
        assert!(refused("records", many).contains("`records`"));
        let mut json = samples::json("t");
        json["parameters"]["batch_size"] = 0.into();
        assert!(TrialRecord::parse(json.to_string().as_bytes()).unwrap_err().contains("`batch_size`"));
        assert!(refused("seed", (-1).into()).contains("-1"));
        assert!(refused("model", "Transformer".into()).contains("Transformer"));
        assert!(refused("class_counts", serde_json::json!([1])).contains("`class_counts`"));
        assert!(refused("class_counts", serde_json::json!([1, u64::MAX])).contains("`class_counts`"));
        let mut json = samples::json("t");
        (json["model"], json["parameters"]["width"]) = ("transformer".into(), 1e300.into());
        assert!(TrialRecord::parse(json.to_string().as_bytes()).unwrap_err().contains("`width`"));
    }

    #[test]
    fn everything_that_decides_the_weights_is_in_the_identity() {
        let identity = samples::record("t").identity();
        // What only says where and when is left out: the same features in another topic give the same weights.
        for (key, value) in [
            ("search", "other".into()),
            ("topic", "other".into()),
            ("created_ms", 9.into()),
            ("attempt", 7.into()),
            ("range", serde_json::json!({"0": [10, 16], "2": [0, 6]})),
        ] {
            let mut json = samples::json("u");
            json[key] = value;
            assert_eq!(TrialRecord::parse(json.to_string().as_bytes()).unwrap().identity(), identity, "{key}");
        }
        for (key, value) in [("seed", 4.into()), ("number", 2.into()), ("rows_max", 2.into())] {
            let mut json = samples::json("t");
            json[key] = value;
            assert_ne!(TrialRecord::parse(json.to_string().as_bytes()).unwrap().identity(), identity, "{key}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_a_record_or_an_error(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            prop_assert!(TrialRecord::parse(&bytes).is_err());
        }

        #[test]
        fn a_damaged_record_is_a_record_or_an_error(place in 0_usize..400, byte in any::<u8>()) {
            let mut bytes = samples::record("t").to_json();
            let place = place % bytes.len();
            bytes[place] = byte;
            drop(TrialRecord::parse(&bytes));
            drop(TrialRecord::parse(&bytes[..place]));
        }
    }
}
