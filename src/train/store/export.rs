//! A trial's parameters, for whoever wants to use them.

use std::collections::BTreeMap;

use super::checkpoint;
use super::trials::{self, Stored, Want, Whole};
use crate::config::Settings;
use crate::kafka;
use crate::kafka::offsets::Watermarks;
use crate::learn::fit::FitError;
use crate::output::Measurement;

/// Which of a trial's checkpoints.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Which {
    /// That of the best measurement by the search's objective.
    Best,
    Newest,
}

/// Why there is nothing to export.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The trial has published no whole checkpoint.
    #[error("trial `{0}` has no checkpoint yet")]
    NoCheckpoint(String),
    /// Its checkpoints were written before anything was measured.
    #[error(
        "trial `{0}` has measured nothing yet, so none of its checkpoints is the best; `--newest` exports the newest"
    )]
    NotMeasured(String),
    /// What its newest checkpoint calls the best is not there.
    #[error(
        "the best checkpoint of trial `{trial}`, of epoch {epoch} and step {step}, is not there: a version trained it \
        that kept the newest alone, or it is replaced just now, and a second try finds its successor; `--newest` \
        exports the newest"
    )]
    NotKept { trial: String, epoch: u64, step: u64 },
    /// The best one is not whole.
    #[error(
        "the best checkpoint of trial `{trial}`: {source}; if it is replaced just now, a second try finds its \
        successor; `--newest` exports the newest"
    )]
    Damaged { trial: String, source: checkpoint::Error },
    /// The checkpoint is not of this trial's model.
    #[error(transparent)]
    Fit(#[from] FitError),
    /// Kafka.
    #[error(transparent)]
    Kafka(#[from] kafka::Error),
}

/// What a checkpoint holds for those who use the model.
#[derive(Debug)]
pub struct Exported {
    /// The parameters as safetensors; the same weights give the same bytes.
    pub bytes: Vec<u8>,
    /// From 1; it may be in progress.
    pub epoch: u64,
    /// Optimizer updates behind these weights.
    pub step: u64,
    /// What was measured of them, if anything was.
    pub measurement: Option<Measurement>,
}

/// The parameters of one of a trial's checkpoints. The best one is whole or not exported.
///
/// # Errors
/// When it is not there, or not whole; a damaged newest one is replaced by the one before.
pub fn export(settings: &Settings, stored: &Stored, which: Which) -> Result<Exported, Error> {
    let record = &stored.record;
    let trial = || record.trial.clone();
    let wanted = BTreeMap::from([(trial(), stored.partition)]);
    let output = trials::output(settings, &Watermarks::new(settings)?, &wanted, Want::Checkpoints)?
        .remove(&record.trial)
        .unwrap_or_default();
    let (newest, damaged) = output.newest(record.attempt);
    for error in damaged {
        tracing::warn!(%error, "using the checkpoint before it");
    }
    let newest = newest.ok_or_else(|| Error::NoCheckpoint(trial()))?;
    let Whole { manifest, blob, .. } = match which {
        Which::Newest => newest,
        Which::Best => {
            let best = newest.manifest.progress.best.as_ref().ok_or_else(|| Error::NotMeasured(trial()))?;
            let (epoch, step) = (best.epoch, best.step);
            let found = output.best(&newest).map_err(|source| Error::Damaged { trial: trial(), source })?;
            found.ok_or_else(|| Error::NotKept { trial: trial(), epoch, step })?
        }
    };
    let mut fit = record.fit()?;
    fit.restore(&blob)?;
    let step = manifest.progress.step;
    let measurement = output.measurements.values().rfind(|measurement| measurement.step == step).cloned();
    let epoch = measurement.as_ref().map_or(manifest.progress.epoch + 1, |measurement| measurement.epoch);
    Ok(Exported { bytes: fit.parameters_safetensors()?, epoch, step, measurement })
}
