//! `trials`: list, stop, restart.

use clap::{Args, Subcommand};

use super::output::{say, show, table};
use super::{connect, Environment, Result};
use crate::search::parameters::summary;
use crate::search::record::TrialRecord;
use crate::train::store::{edit, find, trials};

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
            let mut trials = trials::all(settings)?;
            trials.retain(|_, stored| search.as_ref().is_none_or(|search| stored.record.search == *search));
            let records: Vec<&TrialRecord> = trials.values().map(|stored| &stored.record).collect();
            Ok(show(json, &records, || list(&records))?)
        }
        Command::Stop { trial } => {
            let stored = find::trial(settings, &trial)?;
            if let Some(outcome) = &stored.record.outcome {
                say(format_args!("trial `{trial}` has ended already: {}", outcome.state.name()));
                return Ok(());
            }
            edit::stop(settings, &stored)?;
            say(format_args!("trial `{trial}` will stop at its next step"));
            Ok(())
        }
        Command::Restart { trial } => {
            let attempt = edit::restart(settings, &find::trial(settings, &trial)?)?;
            say(format_args!("trial `{trial}` begins anew (attempt {attempt})"));
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
            let waits = || match record.outcome.is_none() && record.is_absent() {
                true => format!("waits for a program that has the model `{}`", record.model.name),
                false => String::new(),
            };
            let reason = record.outcome.as_ref().and_then(|outcome| outcome.reason.clone()).unwrap_or_else(waits);
            vec![record.trial.clone(), record.model.name.into(), record.state().into(), parameters.join(" "), reason]
        })
        .collect();
    table(&["trial", "model", "state", "parameters", "reason"], &rows)
}
