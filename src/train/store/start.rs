//! Starts a search: freezes the range, checks the search against it, and writes one record for each trial.

use std::path::{Path, PathBuf};

use super::checkpoint::{Manifest, Progress};
use super::trials::{self, Written};
use crate::config::Settings;
use crate::features::range::Survey;
use crate::features::survey;
use crate::kafka;
use crate::kafka::offsets::Watermarks;
use crate::kafka::topics::Declarations;
use crate::learn::fit::FitError;
use crate::output::Slot;
use crate::search::file::Search;
use crate::search::plan::trials_of;
use crate::search::record::TrialRecord;
use crate::search::section;
use crate::text::{nearest, shortened};
use crate::train::now_ms;

/// Why a search did not start; nothing was written.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file, or what it asks of the features.
    #[error(transparent)]
    Search(#[from] section::Error),
    /// Kafka.
    #[error(transparent)]
    Kafka(#[from] kafka::Error),
    /// The file with a trial's first weights is unreadable.
    #[error("initial_weights {file} of trial number {number}: {source}")]
    WeightsFile { file: PathBuf, number: u32, source: std::io::Error },
    /// The file with a trial's first weights holds others than its model has.
    #[error("initial_weights {file} of trial number {number}: {source}")]
    Weights { file: PathBuf, number: u32, source: FitError },
}

/// A search that was started.
pub struct Started {
    pub id: String,
    pub trials: Vec<TrialRecord>,
    /// What the range holds.
    pub survey: Survey,
}

/// Starts a search from the text of its file; paths in it are relative to `folder`. `progress` is called while the
/// range is surveyed, with the records read and the offsets there are.
///
/// # Errors
/// Whatever is wrong with the file or with the features, before anything is written.
pub fn start(settings: &Settings, text: &str, folder: &Path, progress: impl FnMut(u64, u64)) -> Result<Started, Error> {
    let mut search = Search::parse(text)?;
    let _ = Declarations::load(settings)?.create_missing(settings)?;
    let topic = topic(settings, &search)?;
    let (range, survey) = survey::capture(settings, &topic, search.rows_max, search.validation, progress)?;
    for warning in search.fit_to(&topic, &survey)? {
        tracing::warn!("{warning}");
    }
    let suffix = uuid::Uuid::new_v4().simple().to_string();
    let id = format!("{}-{}", search.name, &suffix[..6]);
    let trials = trials_of(&search, &id, &range, &survey, now_ms());
    let partitions = Watermarks::new(settings)?.partitions(&settings.topics.trials)?;
    let states = trials
        .iter()
        .zip(&search.trials)
        .map(|(record, configuration)| match &configuration.initial_weights {
            None => Ok(None),
            Some(file) => initial(record, &folder.join(file)).map(Some),
        })
        .collect::<Result<Vec<Option<Vec<u8>>>, Error>>()?;
    let mut written = Vec::new();
    for (record, state) in trials.iter().zip(&states) {
        let partition = trials::partition_of(&id, record.number, partitions);
        if let Some(state) = state {
            let manifest = Manifest::seal(record, 0, Progress::beginning(&range), state);
            written.extend(Written::checkpoint(&manifest, Slot::Initial, state).into_iter().map(|w| (partition, w)));
        }
        written.push((partition, Written::trial(record)));
    }
    trials::publish(settings, &written)?;
    let (records, labels, dim) = (range.records(), survey.labels.len(), survey.dim);
    tracing::info!(search = %id, trials = trials.len(), records, labels, dim, "search started");
    Ok(Started { id, trials, survey })
}

/// The topic that the search file names, which nobody creates, or the settings' own.
fn topic(settings: &Settings, search: &Search) -> Result<String, Error> {
    let Some(topic) = &search.topic else { return Ok(settings.topics.features.clone()) };
    let existing = Watermarks::new(settings)?.topics()?;
    if existing.contains(topic) {
        return Ok(topic.clone());
    }
    let existing: Vec<&str> = existing.iter().map(String::as_str).collect();
    let hint = match nearest(topic, &existing) {
        Some(near) => format!("did you mean `{near}`?"),
        None => format!("without that key the search is over `{}`", settings.topics.features),
    };
    let message = format!("`topic` in the search file: there is no topic `{}`; {hint}", shortened(topic));
    Err(kafka::Error::Topics(message).into())
}

fn initial(record: &TrialRecord, file: &Path) -> Result<Vec<u8>, Error> {
    let (file, number) = (file.to_path_buf(), record.number);
    let weights = match std::fs::read(&file) {
        Ok(weights) => weights,
        Err(source) => return Err(Error::WeightsFile { file, number, source }),
    };
    let state = || {
        let mut fit = record.fit()?;
        fit.load_parameters(&weights)?;
        fit.state()
    };
    state().map_err(|source| Error::Weights { file, number, source })
}
