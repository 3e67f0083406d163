//! A search and a frozen range → the records of its trials. \[pure\]

use super::data::training_records;
use super::file::Search;
use super::naive;
use super::parameters::{ClassWeights, Configuration};
use super::record::{TrialRecord, TRAINING_FORMAT};
use crate::features::range::{PartitionRange, Range, Survey};
use crate::models::kind::Task;

/// One record for each trial of a search that was fitted to the data.
#[must_use]
pub fn trials_of(search: &Search, id: &str, range: &Range, survey: &Survey, created_ms: u64) -> Vec<TrialRecord> {
    let count = search.trials.len();
    let width = (count - 1).to_string().len().max(2);
    let place = |partition: &PartitionRange| partition.partition;
    (0_u32..)
        .zip(&search.trials)
        .map(|(number, configuration)| TrialRecord {
            search: id.to_owned(),
            trial: format!("{id}-{number:0width$}"),
            number,
            trials: u32::try_from(count).unwrap_or(u32::MAX),
            model: configuration.model,
            parameters: configuration.parameters.clone(),
            objective: search.objective.clone(),
            seed: search.seed,
            topic: range.topic.clone(),
            range: range.partitions.iter().map(|p| (place(p), (p.start, p.end))).collect(),
            records: range.partitions.iter().map(|p| (place(p), p.records)).collect(),
            digests: range.partitions.iter().map(|p| (place(p), p.digest.clone())).collect(),
            labels: classes(survey, configuration),
            rows_max: search.rows_max,
            dim: survey.dim,
            training_format: TRAINING_FORMAT,
            training_records: training_records(configuration, survey),
            class_counts: match configuration.parameters.class_weights {
                ClassWeights::None => Vec::new(),
                ClassWeights::Balanced => survey.labels.values().map(|split| split.training).collect(),
            },
            naive: naive::scores(configuration.parameters.task(configuration.model), survey),
            initial: configuration.initial_weights.is_some(),
            created_ms,
            attempt: 0,
            stop: false,
            outcome: None,
        })
        .collect()
}

/// Labels that are classes. Records of trials that have none keep what labels there are, as ever: they are part of a
/// trial's identity.
fn classes(survey: &Survey, configuration: &Configuration) -> Vec<String> {
    match configuration.parameters.task(configuration.model) {
        Task::Regression => Vec::new(),
        Task::Reconstruction if survey.first_beyond_classes.is_some() => Vec::new(),
        Task::Classification | Task::Reconstruction => survey.labels.keys().cloned().collect(),
    }
}
