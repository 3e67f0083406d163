//! `trials`: list, stop, restart.

use std::collections::BTreeMap;

use clap::{Args, Subcommand};

use super::output::{say, show, table};
use super::{connect, Environment, Failure, Result};
use crate::config::Settings;
use crate::kafka::offsets::Watermarks;
use crate::kafka::transaction::TransactionalProducer;
use crate::output::Key;
use crate::search::parameters::summary;
use crate::text::nearest;
use crate::train::record::TrialRecord;
use crate::train::store::{self, Stored, Want, Written};

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  sweepstream trials list --search genres-1a2b3c
  sweepstream trials stop genres-1a2b3c-04       checkpoints it and ends it as `stopped`
  sweepstream trials restart genres-1a2b3c-04    begins it anew, from first weights")]
pub struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// List trials with their state
    #[command(after_help = "\
Examples:
  sweepstream trials list
  sweepstream trials list --search genres-1a2b3c --json")]
    List {
        /// Only trials of this search
        #[arg(long, value_name = "ID")]
        search: Option<String>,
        /// As JSON
        #[arg(long)]
        json: bool,
    },
    /// Ask a trial to stop at its next step
    #[command(after_help = "\
Example:
  sweepstream trials stop genres-1a2b3c-04       the checkpoint stays and can be exported")]
    Stop {
        /// Trial id
        trial: String,
    },
    /// Begin a trial anew, whatever its state
    #[command(after_help = "\
Example:
  sweepstream trials restart genres-1a2b3c-04    over the same range, with the same first weights")]
    Restart {
        /// Trial id
        trial: String,
    },
}

pub fn run(environment: &Environment, arguments: Arguments) -> Result {
    connect(environment)?;
    let settings = &environment.settings;
    match arguments.command {
        Command::List { search, json } => {
            let mut trials = store::trials(settings)?;
            trials.retain(|_, stored| search.as_ref().is_none_or(|search| stored.record.search == *search));
            let records: Vec<&TrialRecord> = trials.values().map(|stored| &stored.record).collect();
            Ok(show(json, &records, || list(&records))?)
        }
        Command::Stop { trial } => {
            let mut stored = find(settings, &trial)?;
            if let Some(outcome) = &stored.record.outcome {
                say(format_args!("trial `{trial}` has ended already: {}", outcome.state.name()));
                return Ok(());
            }
            stored.record.stop = true;
            store::publish(settings, &[(stored.partition, Written::trial(&stored.record))])?;
            say(format_args!("trial `{trial}` will stop at its next step"));
            Ok(())
        }
        Command::Restart { trial } => {
            let stored = find(settings, &trial)?;
            let record =
                TrialRecord { attempt: stored.record.attempt + 1, stop: false, outcome: None, ..stored.record };
            let _ = rewrite(settings, &trial, stored.partition, |key| !key.is_initial(), &Written::trial(&record))?;
            say(format_args!("trial `{trial}` begins anew (attempt {})", record.attempt));
            Ok(())
        }
    }
}

fn list(records: &[&TrialRecord]) -> String {
    let rows: Vec<Vec<String>> = records
        .iter()
        .map(|record| {
            let parameters: Vec<String> = summary(record.model, &record.parameters)
                .into_iter()
                .filter(|(key, _)| *key != "model")
                .map(|(key, value)| format!("{key}={value}"))
                .collect();
            let reason = record.outcome.as_ref().and_then(|outcome| outcome.reason.clone()).unwrap_or_default();
            vec![record.trial.clone(), record.model.name.into(), state(record).into(), parameters.join(" "), reason]
        })
        .collect();
    table(&["trial", "model", "state", "parameters", "reason"], &rows)
}

/// What `trials` says of a trial; whether it runs just now only its process knows.
pub fn state(record: &TrialRecord) -> &'static str {
    match &record.outcome {
        Some(outcome) => outcome.state.name(),
        None if record.stop => "stopping",
        None => "open",
    }
}

/// Deletes chosen records of a trial's output and replaces its own record, in one transaction; returns how many
/// records of output went.
///
/// The trial's transactional id is taken over first: whoever runs it can publish nothing after this.
pub fn rewrite(
    settings: &Settings,
    trial: &str,
    partition: i32,
    chosen: impl Fn(&Key<'_>) -> bool,
    record: &Written<'_>,
) -> Result<usize> {
    let mut producer = TransactionalProducer::new(settings, &settings.trial_group(trial), &[])?;
    let place = BTreeMap::from([(trial.to_owned(), partition)]);
    let output = store::output(settings, &Watermarks::new(settings)?, &place, Want::Checkpoints)?
        .remove(trial)
        .unwrap_or_default();
    let keys: Vec<Key<'_>> = output.keys(trial).into_iter().filter(chosen).collect();
    let mut transaction = producer.begin()?;
    for key in &keys {
        Written::Output(key.to_string(), key.kind(), None).send(settings, &mut transaction, partition)?;
    }
    record.send(settings, &mut transaction, partition)?;
    transaction.commit()?;
    Ok(keys.len())
}

/// A trial by its id.
///
/// # Errors
/// When there is none, with the nearest id.
pub fn find(settings: &Settings, id: &str) -> Result<Stored> {
    let mut trials: BTreeMap<String, Stored> = store::trials(settings)?;
    if let Some(stored) = trials.remove(id) {
        return Ok(stored);
    }
    let ids: Vec<&str> = trials.keys().map(String::as_str).collect();
    let hint = nearest(id, &ids)
        .map_or_else(|| "`sweepstream trials list` shows them".into(), |near| format!("did you mean `{near}`?"));
    Err(Failure::usage(format!("there is no trial `{id}`; {hint}")))
}
