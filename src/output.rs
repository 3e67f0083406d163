//! What is published to `output`, and under which keys. Pure.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Deserializer, Serialize};

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

/// Which of a trial's checkpoints: in three they take turns, a fourth holds what the trial starts from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Slot {
    /// Weights that were given with the search.
    #[serde(rename = "initial")]
    Initial,
    #[serde(rename = "0")]
    Zero,
    #[serde(rename = "1")]
    One,
    #[serde(rename = "2")]
    Two,
}

impl Slot {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Initial, Self::Zero, Self::One, Self::Two];
    /// Those of checkpoints that training wrote.
    pub const TURNS: [Self; 3] = [Self::Zero, Self::One, Self::Two];

    /// As in keys.
    pub fn name(self) -> &'static str {
        match self {
            Self::Initial => "initial",
            Self::Zero => "0",
            Self::One => "1",
            Self::Two => "2",
        }
    }
}

/// A key of `output`. Trial ids never contain `/`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Key<'a> {
    /// `<trial>/measurement/<epoch>/<step>`
    Measurement {
        trial: &'a str,
        /// From 1.
        epoch: u64,
        /// Optimizer updates so far.
        step: u64,
    },
    /// `<trial>/outcome`
    Outcome { trial: &'a str },
    /// `<trial>/checkpoint/<slot>/<chunk>`
    Chunk {
        trial: &'a str,
        slot: Slot,
        /// From 0.
        chunk: u32,
    },
    /// `<trial>/checkpoint/<slot>/manifest`
    Manifest { trial: &'a str, slot: Slot },
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
    pub search: String,
    pub trial: String,
    /// From 1.
    pub epoch: u64,
    /// Optimizer updates so far.
    pub step: u64,
    /// Records trained on so far, all epochs together.
    pub records: u64,
    /// What was measured, by name: `loss` is the mean over the training records since the epoch began, each taken
    /// before its batch's update; what begins with `validation_` is over the validation split, and absent within an
    /// epoch and without a split. See [`crate::search::objective::MEASURED`].
    #[serde(flatten, deserialize_with = "numbers")]
    pub measured: BTreeMap<String, f64>,
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

/// The fields that are numbers: nothing else is a measured value.
fn numbers<'de, D: Deserializer<'de>>(deserializer: D) -> Result<BTreeMap<String, f64>, D::Error> {
    let fields = BTreeMap::<String, serde_json::Value>::deserialize(deserializer)?;
    Ok(fields.into_iter().filter_map(|(name, value)| Some((name, value.as_f64()?))).collect())
}

impl Measurement {
    /// A measured value.
    pub fn value(&self, name: &str) -> Option<f64> {
        self.measured.get(name).copied()
    }
}

/// How a trial ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum EndState {
    /// All epochs were done, or no better came for as long as its `patience` lasts.
    Finished,
    /// A rule of the search ended it early.
    Pruned,
    /// A loss or gradient was not a number any more.
    Diverged,
    /// It could not go on.
    Failed,
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
    pub search: String,
    pub trial: String,
    /// Number within the search.
    pub number: u32,
    pub state: EndState,
    /// Why, unless all epochs were done.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    pub epochs: u64,
    /// Records trained on, all epochs together.
    pub records: u64,
    /// The best measurement by the search's objective.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub best: Option<Measurement>,
    /// When that was measured: class that was meant → class that was said → validation records. Empty for models
    /// without classes, or with very many.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub confusion: Vec<Vec<u64>>,
    /// Of its last parameters, as `checkpoint export --newest` writes them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub weights_sha256: Option<String>,
    /// Which run of the trial this ended: `trials restart` begins another.
    #[serde(default)]
    pub attempt: u32,
    /// Unix time in milliseconds.
    pub time_ms: u64,
}

#[cfg(test)]
pub(crate) mod samples {
    use super::Measurement;

    /// A measurement after a step, with this validation loss.
    pub(crate) fn measurement(epoch: u64, step: u64, validation_loss: f64) -> Measurement {
        Measurement {
            search: "s".into(),
            trial: "t".into(),
            epoch,
            step,
            records: 4 * step,
            measured: [("loss".to_owned(), 1.0), ("validation_loss".to_owned(), validation_loss)].into(),
            learning_rate: 0.1,
            gradient_norm: None,
            records_per_second: None,
            time_ms: 0,
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
            Key::Manifest { trial: "t-1", slot: Slot::Two },
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
}
