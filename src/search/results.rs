//! What searches came to: trials with their measurements, ranked.

use std::collections::BTreeMap;

use serde::Serialize;

use super::data::one_class;
use super::objective::Objective;
use super::parameters::summary;
use super::record::TrialRecord;
use crate::models::kind::Task;
use crate::output::Measurement;

/// Measurements by epoch and step.
pub type Measurements = BTreeMap<(u64, u64), Measurement>;

/// The trials of a search, by number, each with what it measured.
pub struct Results {
    pub trials: Vec<(TrialRecord, Measurements)>,
}

/// A search's trials, best first.
#[derive(Debug, Serialize)]
pub struct Leaderboard {
    pub search: String,
    /// What it goes by.
    pub objective: String,
    /// Records of the frozen range.
    pub records: u64,
    /// Measured name → what is reached without reading a text: the most frequent class, or the mean.
    pub naive: BTreeMap<String, f64>,
    /// What to know before believing it.
    pub warnings: Vec<String>,
    /// Best first; trials without a measurement last.
    pub trials: Vec<Entry>,
}

/// One line of a leaderboard.
#[derive(Debug, Serialize)]
pub struct Entry {
    /// From 1.
    pub rank: usize,
    pub trial: String,
    /// Number in the search.
    pub number: u32,
    pub model: &'static str,
    /// How it ended, or `open`.
    pub state: &'static str,
    /// Why it ended so.
    pub reason: Option<String>,
    pub epochs: u64,
    pub parameters: BTreeMap<&'static str, String>,
    pub best: Option<Measurement>,
    /// Of its final weights.
    pub weights_sha256: Option<String>,
}

impl Leaderboard {
    /// Ranks a search's trials.
    pub fn of(search: &str, Results { trials }: Results) -> Self {
        let objective = trials.first().map_or_else(Objective::loss, |(record, _)| record.objective.clone());
        let records = trials.first().map_or(0, |(record, _)| record.range().records());
        let naive = trials.iter().map(|(record, _)| &record.naive).find(|naive| !naive.is_empty());
        let naive = naive.cloned().unwrap_or_default();
        let classifier = trials.iter().find(|(record, _)| record.task() == Task::Classification);
        let warnings = classifier.and_then(|(record, _)| one_class(record.labels.iter())).into_iter().collect();
        let mut trials: Vec<Entry> = trials
            .into_iter()
            .map(|(record, measured)| {
                let best = match &record.outcome {
                    Some(outcome) => outcome.best.clone(),
                    None => measured.values().min_by(|a, b| objective.compare(a, b)).cloned(),
                };
                let last = measured.keys().next_back().map_or(0, |&(epoch, _)| epoch);
                Entry {
                    rank: 0,
                    number: record.number,
                    model: record.model.name,
                    state: record.state(),
                    reason: record.outcome.as_ref().and_then(|outcome| outcome.reason.clone()),
                    epochs: record.outcome.as_ref().map_or(last, |outcome| outcome.epochs),
                    parameters: summary(record.model, &record.parameters),
                    best,
                    weights_sha256: record.outcome.as_ref().and_then(|outcome| outcome.weights_sha256.clone()),
                    trial: record.trial,
                }
            })
            .collect();
        trials.sort_by(|a, b| objective.compare_best(a.best.as_ref(), b.best.as_ref()));
        for (i, trial) in trials.iter_mut().enumerate() {
            trial.rank = i + 1;
        }
        Self { search: search.to_owned(), objective: objective.name, records, naive, warnings, trials }
    }
}

/// A search in a list.
#[derive(Debug, Serialize)]
pub struct Listed {
    pub search: String,
    pub trials: usize,
    /// Of those, with an outcome.
    pub ended: usize,
    /// Unix time in milliseconds.
    pub created_ms: u64,
    /// What it goes by.
    pub objective: String,
    /// The best value of any trial.
    pub best: Option<f64>,
}

/// All searches of these trials, the oldest first.
pub fn searches<'r>(records: impl Iterator<Item = &'r TrialRecord>) -> Vec<Listed> {
    let mut by_search: BTreeMap<&str, Vec<&TrialRecord>> = BTreeMap::new();
    for record in records {
        by_search.entry(&record.search).or_default().push(record);
    }
    let listed = |(search, records): (&str, Vec<&TrialRecord>)| {
        let objective = records.first().map_or_else(Objective::loss, |record| record.objective.clone());
        let outcomes = || records.iter().filter_map(|record| record.outcome.as_ref());
        let best = outcomes().filter_map(|outcome| outcome.best.as_ref()).min_by(|a, b| objective.compare(a, b));
        Listed {
            search: search.to_owned(),
            trials: records.len(),
            ended: outcomes().count(),
            created_ms: records.iter().map(|record| record.created_ms).min().unwrap_or(0),
            best: best.and_then(|best| objective.value(best)),
            objective: objective.name,
        }
    };
    let mut searches: Vec<Listed> = by_search.into_iter().map(listed).collect();
    searches.sort_by_key(|search| search.created_ms);
    searches
}
