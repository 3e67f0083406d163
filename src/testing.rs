//! Trains models on records in memory, without Kafka: for tests of a user's own model, as Kafka Streams'
//! `TopologyTestDriver` is for topologies.
//!
//! ```text
//! use sweepstream::testing::{train, Record};
//!
//! let texts = [("good and fine", "praise"), ("bad and poor", "blame")].iter().cycle().take(40);
//! let records: Vec<Record> = texts.map(|(text, label)| Record::of_text(text, label)).collect();
//! let trained = train(&[], "name = \"t\"\nmodel = \"mlp\"\nlearning_rate = 0.01", &records).unwrap();
//! assert!(trained[0].epochs[4]["validation_accuracy"] > 0.9);
//! ```

use std::collections::BTreeMap;

use sha2::{Digest as _, Sha256};

use crate::coordinates::Coordinates;
use crate::features::codec::{self, Dtype};
use crate::features::range::{Identity, PartitionRange, Range, RawRecord, Survey};
use crate::features::window::{Example, Window};
use crate::learn::doctor::{self, Diagnosis};
use crate::learn::fit::FitError;
use crate::models::kind::Kind;
use crate::models::registry;
use crate::models::seed::{Generator, Purpose};
use crate::search::file::{reserved_keys, Search};
use crate::search::plan::trials_of;
use crate::search::record::TrialRecord;
use crate::search::section;

/// Numbers in a row of [`Record::of_text`].
pub const DIM: usize = 16;

/// A record of `features`.
#[derive(Clone, Debug, PartialEq)]
pub struct Record {
    /// Decides, by its CRC, whether the record is validation; without one, its number does.
    pub key: Option<String>,
    pub rows: Vec<Vec<f32>>,
    pub label: Option<String>,
}

impl Record {
    /// A row for each word, made of the word's digest: the same word always has the same row, and others have others.
    #[must_use]
    pub fn of_text(text: &str, label: &str) -> Self {
        let row =
            |word: &str| Sha256::digest(word).iter().take(DIM).map(|byte| f32::from(*byte) / 128.0 - 1.0).collect();
        Self { key: None, rows: text.split_whitespace().map(row).collect(), label: Some(label.to_owned()) }
    }
}

/// What a trial came to.
#[derive(Clone, Debug, PartialEq)]
pub struct Trained {
    /// Number in the search, from 0.
    pub number: u32,
    /// Measured name → value, at the end of each epoch.
    pub epochs: Vec<BTreeMap<String, f64>>,
    /// A loss or a gradient was no finite number, and the trial ended with it.
    pub diverged: bool,
    /// As `checkpoint export` writes them: safetensors.
    pub weights: Vec<u8>,
    /// Of `weights`, as in `search show --json`.
    pub weights_sha256: String,
}

/// Why nothing was trained.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Register(#[from] registry::Error),
    #[error(transparent)]
    Diagnosis(#[from] Diagnosis),
    #[error(transparent)]
    Search(#[from] section::Error),
    #[error("record {number}: {why}")]
    Record { number: usize, why: String },
    #[error(transparent)]
    Fit(#[from] FitError),
}

/// Registers kinds of one's own, looks them over, and trains all trials of a search file's text on records, which are
/// to it what a topic with one partition is: the weights are those that a trial over such a topic has.
///
/// # Errors
/// Whatever `main_with` or `search start` would refuse.
pub fn train(own: &[&'static Kind], search: &str, records: &[Record]) -> Result<Vec<Trained>, Error> {
    registry::register(own, &reserved_keys())?;
    own.iter().try_for_each(|kind| doctor::examine(kind))?;
    let mut search = Search::parse(search)?;
    let values: Vec<Vec<u8>> = records.iter().map(encoded).collect();
    let mut survey = Survey::default();
    for (number, (record, value)) in records.iter().zip(&values).enumerate() {
        let at = Coordinates { partition: 0, offset: i64::try_from(number).unwrap_or(i64::MAX) };
        let added = survey.add(at, raw(record, value), search.rows_max, search.validation);
        added.map_err(|why| Error::Record { number, why })?;
    }
    let _warnings = search.fit_to("memory", &survey)?;
    let (count, digest) = survey.partitions.get(&0).copied().unwrap_or_default();
    let end = i64::try_from(count).unwrap_or(i64::MAX);
    let partition = PartitionRange { partition: 0, start: 0, end, records: count, digest: digest.hex() };
    let range = Range { topic: "memory".into(), partitions: vec![partition] };
    let trials = trials_of(&search, &search.name, &range, &survey, 0);
    trials.iter().map(|trial| run(trial, records, &values)).collect()
}

fn encoded(record: &Record) -> Vec<u8> {
    let dim = record.rows.first().map_or(0, Vec::len);
    codec::encode(record.rows.len(), dim, &record.rows.concat(), Dtype::F16)
}

fn raw<'r>(record: &'r Record, value: &'r [u8]) -> RawRecord<'r> {
    let bytes = |text: &'r Option<String>| text.as_deref().map(str::as_bytes);
    RawRecord { key: bytes(&record.key), value: Some(value), label: bytes(&record.label), source: None, embedder: None }
}

/// One trial, in the order in which the train stage goes through a partition.
fn run(trial: &TrialRecord, records: &[Record], values: &[Vec<u8>]) -> Result<Trained, Error> {
    let (reading, parameters) = (trial.reading(), &trial.parameters);
    let mut all = Window::default();
    all.clear(0, trial.dim);
    // Places of the training records, window by window.
    let mut windows = Vec::new();
    for (number, (record, value)) in records.iter().zip(values).enumerate() {
        let refused = |why: String| Error::Record { number, why };
        let matrix = codec::decode(value).map_err(|error| refused(error.to_string()))?;
        let target = reading.labels.target(record.label.as_deref()).map_err(refused)?;
        if number % reading.window as usize == 0 {
            windows.push(Vec::new());
        }
        if reading.labelled_only && record.label.is_none() {
            continue;
        }
        let key = record.key.as_deref().map(str::as_bytes);
        let identity = Identity { key, source: None, partition: 0, ordinal: number as u64 };
        let place = all.records() as u32;
        let validation = identity.is_validation(reading.validation);
        all.push(matrix, reading.rows_max, target, validation);
        if let Some(window) = windows.last_mut().filter(|_| !validation) {
            window.push(place);
        }
    }
    let mut fit = trial.fit()?;
    let (mut epochs, mut diverged, batch_size) = (Vec::new(), false, parameters.batch_size as usize);
    for epoch in 0..parameters.epochs {
        let mut order = Vec::new();
        for (index, window) in (0..).zip(&windows) {
            let mut places = window.clone();
            if parameters.shuffle {
                Generator::new(trial.seed, trial.number, Purpose::Shuffle, epoch, index).shuffle(&mut places);
            }
            order.extend(places);
        }
        let (mut sum, mut seen) = (0.0, 0);
        for places in order.chunks(batch_size) {
            let batch: Vec<Example<'_>> = places.iter().map(|&place| all.record(place)).collect();
            let report = fit.step(&batch, epoch, fit.updates())?;
            diverged |= report.diverged();
            sum += report.loss * report.records as f64;
            seen += report.records;
            if diverged {
                break;
            }
        }
        if diverged {
            break;
        }
        let mut evaluation = fit.evaluation();
        let held_out: Vec<Example<'_>> = all.validation().iter().map(|&place| all.record(place)).collect();
        held_out.chunks(batch_size).try_for_each(|batch| fit.evaluate(batch, &mut evaluation))?;
        let measured = evaluation.measured().into_iter().map(|(name, value)| (format!("validation_{name}"), value));
        epochs.push(measured.chain([("loss".to_owned(), sum / seen as f64)]).collect());
    }
    Ok(Trained {
        number: trial.number,
        epochs,
        diverged,
        weights: fit.parameters_safetensors()?,
        weights_sha256: fit.weights_sha256()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_become_trials_in_one_call() {
        let texts = [("good and fine", "praise"), ("bad and poor", "blame")].iter().cycle().take(40);
        let records: Vec<Record> = texts.map(|(text, label)| Record::of_text(text, label)).collect();
        let search = "name = \"t\"\nmodel = [\"mlp\", \"gru\"]\nlearning_rate = 0.01\nvalidation = 4";
        assert!(train(&[], search, &records).unwrap_err().to_string().contains("`model`"));
        let search = "name = \"t\"\nlearning_rate = 0.01\nvalidation = 4\n[[trial]]\nmodel = \"mlp\"\n[[trial]]\n\
            model = \"gru\"";
        let trained = train(&[], search, &records).unwrap();
        assert_eq!(trained.iter().map(|trial| trial.epochs.len()).collect::<Vec<_>>(), [5, 5]);
        for trial in &trained {
            assert!(trial.epochs[4]["loss"] < trial.epochs[0]["loss"] && !trial.diverged, "{trial:?}");
            assert!(trial.epochs[4].contains_key("validation_macro_f1"));
        }
        assert_eq!(train(&[], search, &records).unwrap(), trained);
        let refused = train(&[], search, &[Record { rows: vec![vec![f32::NAN]], ..records[0].clone() }]);
        assert!(refused.unwrap_err().to_string().starts_with("record 0: row 0"));
    }
}
