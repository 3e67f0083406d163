//! The hyper-parameters of a trial. \[pure\]

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::learn::optimizer::{OptimizerSpec, Rule};
use crate::learn::schedule::Shape;
use crate::models::kind::{self, Kind, ModelSpec, Task, Value, Values};

/// Which rule updates the weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OptimizerName {
    AdamW,
    /// SGD, with momentum if set.
    Sgd,
    RmsProp,
}

/// What the records of a class count in the loss.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ClassWeights {
    /// All the same.
    #[default]
    None,
    /// n / (C · n_c) with n_c of n training records in one of C classes, as scikit-learn has it.
    Balanced,
}

/// Records of older versions have no such key, and stay as they are.
pub(super) fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

/// The hyper-parameters of one trial, as they are stored with it.
///
/// Stored flat: a record has the model's own beside those of all trials, and [`Kind::settle`] tells what is neither.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct HyperParameters {
    /// Passes over the training split.
    pub epochs: u64,
    /// Records of a step.
    pub batch_size: u32,
    pub optimizer: OptimizerName,
    pub learning_rate: f64,
    /// Pull towards zero; the rule's default when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub weight_decay: Option<f64>,
    /// SGD: share of the last step that is kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub momentum: Option<f64>,
    /// Records are shuffled within windows.
    pub shuffle: bool,
    /// Ends of epochs in a row without a new best measurement after which the trial ends; 0 for none.
    #[serde(default, skip_serializing_if = "is_default")]
    pub patience: u64,
    /// Steps between checkpoints within an epoch.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub checkpoint_every: Option<u64>,
    /// One in so many records is validation; 0 for none.
    pub validation: u32,
    /// Records of a shuffle window.
    pub window: u32,
    /// Longest gradient of a step.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clip_norm: Option<f64>,
    /// How the learning rate goes on.
    #[serde(default, skip_serializing_if = "is_default")]
    pub schedule: Shape,
    /// Steps until the learning rate is reached.
    #[serde(default, skip_serializing_if = "is_default")]
    pub warm_up: u64,
    /// Share of a class's target that is spread over all.
    #[serde(default, skip_serializing_if = "is_default")]
    pub label_smoothing: f64,
    /// What records of rare classes count.
    #[serde(default, skip_serializing_if = "is_default")]
    pub class_weights: ClassWeights,
    /// What the model learns; the first of its kind's tasks when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub task: Option<Task>,
    /// The model's own.
    #[serde(flatten)]
    pub own: Values,
}

/// One trial as the search file describes it.
#[derive(Clone, Debug, PartialEq)]
pub struct Configuration {
    pub model: &'static Kind,
    pub parameters: HyperParameters,
    /// File with the weights to start from.
    pub initial_weights: Option<String>,
}

impl HyperParameters {
    /// The model that these parameters describe.
    pub fn model_spec(&self, model: &'static Kind, rows_max: usize, dim: usize, classes: usize) -> ModelSpec {
        ModelSpec {
            kind: model,
            task: self.task(model),
            values: self.own.clone(),
            shape: kind::Shape { rows_max, dim, classes },
        }
    }

    /// Updates of a whole trial that learns from so many records.
    pub fn steps(&self, training_records: u64) -> u64 {
        training_records.div_ceil(u64::from(self.batch_size).max(1)).saturating_mul(self.epochs)
    }

    /// What a model of this kind learns.
    pub fn task(&self, kind: &Kind) -> Task {
        self.task.unwrap_or(kind.tasks[0])
    }

    /// The optimizer that these parameters describe.
    pub fn optimizer_spec(&self) -> OptimizerSpec {
        let rule = match self.optimizer {
            OptimizerName::AdamW => Rule::ADAMW,
            OptimizerName::Sgd => Rule::Sgd { momentum: self.momentum.unwrap_or(0.0) },
            OptimizerName::RmsProp => Rule::RMSPROP,
        };
        let weight_decay = self.weight_decay.unwrap_or_else(|| rule.default_weight_decay());
        OptimizerSpec { rule, learning_rate: self.learning_rate, weight_decay }
    }
}

/// A number as people would write it.
fn number(value: f64) -> String {
    if (1e-4..1e4).contains(&value.abs()) {
        value.to_string()
    } else {
        format!("{value:e}")
    }
}

/// A short summary of what distinguishes a trial, for tables: sizes of the model are its `shape`.
pub fn summary(model: &'static Kind, parameters: &HyperParameters) -> BTreeMap<&'static str, String> {
    let mut summary = BTreeMap::from([
        ("model", model.name.to_owned()),
        ("learning_rate", number(parameters.learning_rate)),
        ("batch_size", parameters.batch_size.to_string()),
        ("optimizer", format!("{:?}", parameters.optimizer).to_lowercase()),
    ]);
    let mut tell = |key, value: Option<String>| {
        if let Some(value) = value {
            drop(summary.insert(key, value));
        }
    };
    tell("task", parameters.task.map(|task| task.name().to_owned()));
    tell("clip_norm", parameters.clip_norm.map(number));
    tell("warm_up", Some(parameters.warm_up).filter(|steps| *steps > 0).map(|steps| steps.to_string()));
    tell("label_smoothing", Some(parameters.label_smoothing).filter(|share| *share > 0.0).map(number));
    let name = |debugged: String| Some(debugged.to_lowercase());
    tell("schedule", name(format!("{:?}", parameters.schedule)).filter(|_| !is_default(&parameters.schedule)));
    tell("class_weights", Some("balanced".to_owned()).filter(|_| !is_default(&parameters.class_weights)));
    tell("patience", Some(parameters.patience).filter(|epochs| *epochs > 0).map(|epochs| epochs.to_string()));
    let mut sizes = Vec::new();
    for key in model.keys {
        match parameters.own.get(key.name) {
            Some(size @ (Value::Count(_) | Value::Widths(_))) => sizes.push(size.to_string()),
            Some(value) if *value != key.default.value() => drop(summary.insert(key.name, value.to_string())),
            _ => {}
        }
    }
    if !sizes.is_empty() {
        drop(summary.insert("shape", sizes.join("/")));
    }
    summary
}
