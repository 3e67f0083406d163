//! A trial's parameters, for whoever wants to use them.

use std::collections::BTreeMap;

use super::trials::{self, Stored, Want};
use crate::config::Settings;
use crate::kafka;
use crate::kafka::offsets::Watermarks;
use crate::learn::fit::FitError;

/// Why there is nothing to export.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The trial has published no whole checkpoint.
    #[error("trial `{0}` has no checkpoint yet")]
    NoCheckpoint(String),
    /// The checkpoint is not of this trial's model.
    #[error(transparent)]
    Fit(#[from] FitError),
    /// Kafka.
    #[error(transparent)]
    Kafka(#[from] kafka::Error),
}

/// The parameters of a trial's newest checkpoint, as safetensors. The same weights give the same bytes.
///
/// # Errors
/// When there is no whole checkpoint.
pub fn export(settings: &Settings, stored: &Stored) -> Result<Vec<u8>, Error> {
    let record = &stored.record;
    let wanted = BTreeMap::from([(record.trial.clone(), stored.partition)]);
    let output = trials::output(settings, &Watermarks::new(settings)?, &wanted, Want::Checkpoints)?
        .remove(&record.trial)
        .unwrap_or_default();
    let (newest, damaged) = output.newest(record.attempt);
    for error in damaged {
        tracing::warn!(%error, "using the checkpoint before it");
    }
    let (_, blob) = newest.ok_or_else(|| Error::NoCheckpoint(record.trial.clone()))?;
    let mut fit = record.fit()?;
    fit.restore(&blob)?;
    Ok(fit.parameters_safetensors()?)
}
