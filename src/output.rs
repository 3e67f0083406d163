//! What is published to `output`, and under which keys. Pure.

use std::cmp::Ordering;
use std::fmt;

use serde::{Deserialize, Serialize};

/// Header that tells records of `output` apart.
pub const KIND_HEADER: &str = "kind";

/// Values of [`KIND_HEADER`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A [`Measurement`] as JSON.
    Measurement,
    /// An [`Outcome`] as JSON.
    Outcome,
    /// A part of a checkpoint's bytes.
    CheckpointChunk,
    /// What the chunks of a checkpoint make up, as JSON.
    CheckpointManifest,
}

impl Kind {
    /// As the header has it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Measurement => "measurement",
            Self::Outcome => "outcome",
            Self::CheckpointChunk => "checkpoint-chunk",
            Self::CheckpointManifest => "checkpoint-manifest",
        }
    }
}

/// Which of a trial's checkpoints: two alternate, a third holds what the trial starts from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Slot {
    /// Weights that were given with the search.
    #[serde(rename = "initial")]
    Initial,
    /// Even checkpoints.
    #[serde(rename = "0")]
    Zero,
    /// Odd checkpoints.
    #[serde(rename = "1")]
    One,
}

impl Slot {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Initial, Self::Zero, Self::One];

    /// The slot that the checkpoint with this number (from 0) goes to.
    pub fn of(number: u64) -> Self {
        if number.is_multiple_of(2) {
            Self::Zero
        } else {
            Self::One
        }
    }

    /// As in keys.
    pub fn name(self) -> &'static str {
        match self {
            Self::Initial => "initial",
            Self::Zero => "0",
            Self::One => "1",
        }
    }
}

/// A key of `output`. Trial ids never contain `/`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Key<'a> {
    /// `<trial>/measurement/<epoch>/<step>`
    Measurement {
        /// Trial id.
        trial: &'a str,
        /// From 1.
        epoch: u64,
        /// Optimizer updates so far.
        step: u64,
    },
    /// `<trial>/outcome`
    Outcome {
        /// Trial id.
        trial: &'a str,
    },
    /// `<trial>/checkpoint/<slot>/<chunk>`
    Chunk {
        /// Trial id.
        trial: &'a str,
        /// Slot.
        slot: Slot,
        /// From 0.
        chunk: u32,
    },
    /// `<trial>/checkpoint/<slot>/manifest`
    Manifest {
        /// Trial id.
        trial: &'a str,
        /// Slot.
        slot: Slot,
    },
}

impl<'a> Key<'a> {
    /// Reads a key; `None` when it is not one of ours.
    pub fn parse(key: &'a [u8]) -> Option<Self> {
        let mut parts = std::str::from_utf8(key).ok()?.split('/');
        let (trial, kind) = (parts.next()?, parts.next()?);
        let rest = (parts.next(), parts.next(), parts.next());
        let key = match (kind, rest) {
            ("outcome", (None, None, None)) => Self::Outcome { trial },
            ("measurement", (Some(epoch), Some(step), None)) => {
                Self::Measurement { trial, epoch: epoch.parse().ok()?, step: step.parse().ok()? }
            }
            ("checkpoint", (Some(slot), Some(chunk), None)) => {
                let slot = Slot::ALL.into_iter().find(|known| known.name() == slot)?;
                match chunk {
                    "manifest" => Self::Manifest { trial, slot },
                    chunk => Self::Chunk { trial, slot, chunk: chunk.parse().ok()? },
                }
            }
            _ => return None,
        };
        Some(key)
    }

    /// What its record is.
    pub fn kind(&self) -> Kind {
        match self {
            Self::Measurement { .. } => Kind::Measurement,
            Self::Outcome { .. } => Kind::Outcome,
            Self::Chunk { .. } => Kind::CheckpointChunk,
            Self::Manifest { .. } => Kind::CheckpointManifest,
        }
    }

    /// Does it belong to the weights that the trial was given?
    pub fn is_initial(&self) -> bool {
        matches!(self, Self::Chunk { slot: Slot::Initial, .. } | Self::Manifest { slot: Slot::Initial, .. })
    }

    /// The trial it belongs to.
    pub fn trial(&self) -> &'a str {
        match self {
            Self::Measurement { trial, .. }
            | Self::Outcome { trial }
            | Self::Chunk { trial, .. }
            | Self::Manifest { trial, .. } => trial,
        }
    }
}

impl fmt::Display for Key<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Measurement { trial, epoch, step } => write!(f, "{trial}/measurement/{epoch}/{step}"),
            Self::Outcome { trial } => write!(f, "{trial}/outcome"),
            Self::Chunk { trial, slot, chunk } => write!(f, "{trial}/checkpoint/{}/{chunk}", slot.name()),
            Self::Manifest { trial, slot } => write!(f, "{trial}/checkpoint/{}/manifest", slot.name()),
        }
    }
}

/// Training values at a step. What does not apply is absent.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Measurement {
    /// Search id.
    pub search: String,
    /// Trial id.
    pub trial: String,
    /// From 1.
    pub epoch: u64,
    /// Optimizer updates so far.
    pub step: u64,
    /// Records trained on so far, all epochs together.
    pub records: u64,
    /// Mean over the training records since the epoch began, each taken before its batch's update.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub loss: Option<f64>,
    /// Over the validation split; absent within an epoch and without a split.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub validation_loss: Option<f64>,
    /// Share of validation records whose class was found.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub validation_accuracy: Option<f64>,
    /// Mean of the classes' F1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub validation_macro_f1: Option<f64>,
    /// Of the last step.
    pub learning_rate: f64,
    /// Mean over the steps since the epoch began of the gradient's L2 norm.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gradient_norm: Option<f64>,
    /// Training records per second since the epoch began (or since this process took the trial over).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub records_per_second: Option<f64>,
    /// Unix time in milliseconds.
    pub time_ms: u64,
}

/// How a trial ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum EndState {
    /// All epochs were done.
    Finished,
    /// A rule of the search ended it early.
    Pruned,
    /// A loss or gradient was not a number any more.
    Diverged,
    /// It could not go on.
    Failed,
    /// Somebody stopped it.
    Stopped,
}

impl EndState {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::Finished, Self::Pruned, Self::Diverged, Self::Failed, Self::Stopped];

    /// As in records and metrics.
    pub fn name(self) -> &'static str {
        match self {
            Self::Finished => "finished",
            Self::Pruned => "pruned",
            Self::Diverged => "diverged",
            Self::Failed => "failed",
            Self::Stopped => "stopped",
        }
    }
}

/// The last word on a trial.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Outcome {
    /// Search id.
    pub search: String,
    /// Trial id.
    pub trial: String,
    /// Number within the search.
    pub number: u32,
    /// How it ended.
    pub state: EndState,
    /// Why, unless it finished.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Epochs completed.
    pub epochs: u64,
    /// Records trained on, all epochs together.
    pub records: u64,
    /// The best measurement by the search's objective.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub best: Option<Measurement>,
    /// Of the parameters as `checkpoint export` writes them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub weights_sha256: Option<String>,
    /// Which run of the trial this ended: `trials restart` begins another.
    #[serde(default)]
    pub attempt: u32,
    /// Unix time in milliseconds.
    pub time_ms: u64,
}

/// What a search tries to find.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Objective {
    /// As high as possible.
    ValidationAccuracy,
    /// As high as possible.
    ValidationMacroF1,
    /// As low as possible.
    ValidationLoss,
    /// As low as possible.
    Loss,
}

impl Objective {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::ValidationAccuracy, Self::ValidationMacroF1, Self::ValidationLoss, Self::Loss];

    /// As in search files.
    pub fn name(self) -> &'static str {
        match self {
            Self::ValidationAccuracy => "validation_accuracy",
            Self::ValidationMacroF1 => "validation_macro_f1",
            Self::ValidationLoss => "validation_loss",
            Self::Loss => "loss",
        }
    }

    /// Its value in a measurement.
    pub fn value(self, measurement: &Measurement) -> Option<f64> {
        match self {
            Self::ValidationAccuracy => measurement.validation_accuracy,
            Self::ValidationMacroF1 => measurement.validation_macro_f1,
            Self::ValidationLoss => measurement.validation_loss,
            Self::Loss => measurement.loss,
        }
    }

    fn higher_is_better(self) -> bool {
        matches!(self, Self::ValidationAccuracy | Self::ValidationMacroF1)
    }

    /// Is the first value the better one?
    pub fn better(self, a: f64, b: f64) -> bool {
        if self.higher_is_better() {
            a > b
        } else {
            a < b
        }
    }

    /// `Less` when `a` is the better one. Models without the objective (an autoencoder has no accuracy) come after
    /// those with it and are compared by validation loss, then by loss.
    pub fn compare(self, a: &Measurement, b: &Measurement) -> Ordering {
        for objective in [self, Self::ValidationLoss, Self::Loss] {
            let order = match (objective.value(a), objective.value(b)) {
                (Some(a), Some(b)) if objective.higher_is_better() => b.total_cmp(&a),
                (Some(a), Some(b)) => a.total_cmp(&b),
                (Some(_), None) => Ordering::Less,
                (None, Some(_)) => Ordering::Greater,
                (None, None) => continue,
            };
            return order;
        }
        Ordering::Equal
    }

    /// [`Objective::compare`] of what trials have reached; those without a measurement come last.
    pub fn compare_best(self, a: Option<&Measurement>, b: Option<&Measurement>) -> Ordering {
        match (a, b) {
            (Some(a), Some(b)) => self.compare(a, b),
            (a, b) => b.is_some().cmp(&a.is_some()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_survive_the_round_trip_and_strangers_are_refused() {
        let keys = [
            Key::Measurement { trial: "t-1", epoch: 2, step: 130 },
            Key::Outcome { trial: "t-1" },
            Key::Chunk { trial: "t-1", slot: Slot::Zero, chunk: 12 },
            Key::Manifest { trial: "t-1", slot: Slot::Initial },
        ];
        for key in keys {
            assert_eq!(Key::parse(key.to_string().as_bytes()), Some(key));
        }
        for stranger in ["", "t", "t/outcome/1", "t/measurement/1", "t/checkpoint/z/1", "t/checkpoint/a/-1", "t/x/1/2"]
        {
            assert_eq!(Key::parse(stranger.as_bytes()), None, "{stranger}");
        }
        assert_eq!(Key::parse(b"\xff"), None);
    }

    #[test]
    fn an_objective_ranks_what_has_it_before_what_has_not() {
        let measurement = |accuracy, validation_loss| Measurement {
            search: String::new(),
            trial: String::new(),
            epoch: 1,
            step: 1,
            records: 1,
            loss: Some(1.0),
            validation_loss,
            validation_accuracy: accuracy,
            validation_macro_f1: None,
            learning_rate: 0.1,
            gradient_norm: None,
            records_per_second: None,
            time_ms: 0,
        };
        let objective = Objective::ValidationAccuracy;
        let (good, bad, none) =
            (measurement(Some(0.9), None), measurement(Some(0.2), Some(0.1)), measurement(None, Some(0.01)));
        assert_eq!(objective.compare(&good, &bad), Ordering::Less);
        assert_eq!(objective.compare(&none, &bad), Ordering::Greater);
        assert_eq!(objective.compare(&none, &measurement(None, Some(0.02))), Ordering::Less);
    }
}
