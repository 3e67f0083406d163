//! `search`: start, wait, list, show, delete.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::Context;
use clap::{Args, Subcommand};

use super::output::{print, say, show, table, Progress};
use super::{connect, trial, Environment, Failure, Result};
use crate::config::Settings;
use crate::kafka::groups::{Groups, Membership};
use crate::output::EndState;
use crate::search::objective::{
    LOSS, VALIDATION_ACCURACY, VALIDATION_LOSS, VALIDATION_MACRO_F1, VALIDATION_MAE, VALIDATION_MSE, VALIDATION_R2,
};
use crate::search::results::{searches, Leaderboard, Listed};
use crate::train::store::start::start;
use crate::train::store::{edit, find, trials};

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  ID=$(sweepstream search start genres.toml)     freezes the range, writes one record for each trial
  sweepstream search wait $ID                    until all trials have ended
  sweepstream search show $ID                    the leaderboard
  sweepstream search delete $ID                  its trials, output and groups")]
pub struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Freeze the features as they are now and share out a search's trials; prints the search's id
    #[command(after_help = "\
Example:
  ID=$(sweepstream search start examples/genres.toml)

Only the id goes to standard output. Paths in the file are relative to the file's folder.")]
    Start {
        /// Search file (TOML)
        file: PathBuf,
    },
    /// Wait until all trials have ended; fails unless all finished or were pruned
    #[command(after_help = "\
Examples:
  sweepstream search wait genres-1a2b3c && sweepstream search show genres-1a2b3c
  sweepstream search wait --timeout 1h genres-1a2b3c

While no process serves trials, a line says so, and the wait goes on.")]
    Wait {
        /// Search id
        id: String,
        /// Fail when trials have not ended after so long, e.g. 90s or 1h; they go on [default: wait for ever]
        #[arg(long, value_parser = humantime_serde::re::humantime::parse_duration, value_name = "TIME")]
        timeout: Option<Duration>,
    },
    /// List searches
    #[command(after_help = "\
Examples:
  sweepstream search list
  sweepstream search list --json | jq -r '.[].search'")]
    List {
        /// As JSON
        #[arg(long)]
        json: bool,
    },
    /// Show a search's leaderboard, or how one of its trials tells classes apart
    #[command(after_help = "\
Examples:
  sweepstream search show genres-1a2b3c          best first, running trials included
  sweepstream search show genres-1a2b3c-04       precision and recall of each class
  sweepstream search show genres-1a2b3c --json | jq -r '.trials[0].trial'")]
    Show {
        /// Search id, or trial id
        id: String,
        /// As JSON
        #[arg(long)]
        json: bool,
    },
    /// Delete a search: its trials, their output and their groups
    #[command(after_help = "\
Example:
  sweepstream search delete genres-1a2b3c        its features stay; running trials are abandoned")]
    Delete {
        /// Search id
        id: String,
    },
}

pub fn run(environment: &Environment, arguments: Arguments) -> Result {
    connect(environment)?;
    let settings = &environment.settings;
    match arguments.command {
        Command::Start { file } => {
            let text = std::fs::read_to_string(&file).with_context(|| format!("reading {}", file.display()))?;
            let mut surveyed: Option<Progress> = None;
            let progress = |records, offsets| {
                let progress = surveyed.get_or_insert_with(|| Progress::new("surveying the range", "records", offsets));
                progress.set(records, "");
            };
            let started = start(settings, &text, file.parent().unwrap_or(Path::new(".")), progress)
                .map_err(|error| Failure::from(anyhow::Error::new(error).context(file.display().to_string())))?;
            if let Some(progress) = surveyed {
                progress.finish();
            }
            let id = &started.id;
            Ok(print(id).with_context(|| {
                format!("search `{id}` is started, but its id could not be written to standard output")
            })?)
        }
        Command::Wait { id, timeout } => wait(settings, &id, timeout),
        Command::List { json } => {
            let trials = trials::all(settings)?;
            let searches = searches(trials.values().map(|stored| &stored.record));
            Ok(show(json, &searches, || list(&searches))?)
        }
        Command::Show { id, json } => match find::results(settings, &id) {
            Ok(results) => {
                let board = Leaderboard::of(&id, results);
                Ok(show(json, &board, || text(&board))?)
            }
            Err(unknown @ find::Error::Unknown { .. }) => match find::trial(settings, &id) {
                Ok(stored) => Ok(show(json, &stored.record, || trial::text(&stored.record))?),
                Err(find::Error::Unknown { .. }) => Err(unknown.into()),
                Err(error) => Err(error.into()),
            },
            Err(error) => Err(error.into()),
        },
        Command::Delete { id } => delete(settings, &id),
    }
}

fn wait(settings: &Settings, id: &str, timeout: Option<Duration>) -> Result {
    let began = Instant::now();
    let known = find::search(settings, id)?;
    let total = known.len() as u64;
    let mut attendance = Attendance::new(settings)?;
    let mut is_late = false;
    let mut progress = Progress::new(format!("search {id}"), "trials ended", total);
    let mut ends: BTreeMap<String, EndState> = BTreeMap::new();
    trials::follow(settings, &known, |trials| {
        ends = trials
            .iter()
            .filter_map(|(trial, stored)| Some((trial.clone(), stored.record.outcome.as_ref()?.state)))
            .collect();
        progress.set(ends.len() as u64, "");
        // A deleted trial never ends.
        let open = ends.len() < trials.len();
        if open {
            attendance.look();
            is_late = timeout.is_some_and(|timeout| began.elapsed() >= timeout);
        }
        open && !is_late
    })?;
    progress.finish();
    if let Some(timeout) = timeout.filter(|_| is_late) {
        let (ended, timeout) = (ends.len(), humantime_serde::re::humantime::format_duration(timeout));
        return Err(anyhow::anyhow!(
            "after {timeout} {ended} of {total} trials of search `{id}` have ended; the others \
            go on, and `sweepstream search wait` waits again"
        )
        .into());
    }
    let deleted = known.len() - ends.len();
    if deleted > 0 {
        return Err(anyhow::anyhow!("{deleted} of {total} trials of search `{id}` were deleted meanwhile").into());
    }
    let bad: Vec<String> = ends
        .iter()
        .filter(|(_, state)| !matches!(state, EndState::Finished | EndState::Pruned))
        .map(|(trial, state)| format!("{trial} {}", state.name()))
        .collect();
    if bad.is_empty() {
        return Ok(());
    }
    Err(anyhow::anyhow!(
        "not all trials finished: {}; `sweepstream trials list --search {id}` says why",
        bad.join(", ")
    )
    .into())
}

/// Says when nobody is there to run trials, and when somebody is again.
struct Attendance {
    groups: Groups,
    group: String,
    looked: Instant,
    nobody: bool,
}

impl Attendance {
    /// Long enough for a process that was started at the same time to have joined.
    const INTERVAL: Duration = Duration::from_secs(2);

    fn new(settings: &Settings) -> Result<Self> {
        let (groups, group) = (Groups::new(settings)?, settings.train_group());
        Ok(Self { groups, group, looked: Instant::now(), nobody: false })
    }

    fn look(&mut self) {
        if self.looked.elapsed() < Self::INTERVAL {
            return;
        }
        let found = self.groups.membership(&self.group);
        self.looked = Instant::now();
        match found {
            Ok(Membership::Nobody) if !self.nobody => {
                self.nobody = true;
                tracing::warn!(group = %self.group, "no process serves trials: the group has no member; `sweepstream \
                    run --stage train` starts one (with the same `application_id` and topics); waiting on");
            }
            Ok(Membership::Members(members)) if self.nobody => {
                self.nobody = false;
                tracing::info!(group = %self.group, members, "trials are served");
            }
            Ok(_) => {}
            Err(error) => tracing::debug!(%error, "whether anybody serves trials is not known"),
        }
    }
}

fn list(searches: &[Listed]) -> String {
    let rows: Vec<Vec<String>> = searches
        .iter()
        .map(|search| {
            vec![
                search.search.clone(),
                search.trials.to_string(),
                search.ended.to_string(),
                search.objective.clone(),
                search.best.map_or_else(|| "-".into(), |best| format!("{best:.4}")),
            ]
        })
        .collect();
    table(&["search", "trials", "ended", "objective", "best"], &rows)
}

/// Measured names and what heads their columns; those that no trial has are left out.
const COLUMNS: [(&str, &str); 7] = [
    (VALIDATION_ACCURACY, "accuracy"),
    (VALIDATION_MACRO_F1, "macro f1"),
    (VALIDATION_MSE, "mse"),
    (VALIDATION_MAE, "mae"),
    (VALIDATION_R2, "r2"),
    (VALIDATION_LOSS, "val. loss"),
    (LOSS, "loss"),
];

/// As a table.
pub fn text(board: &Leaderboard) -> String {
    let number = |value: Option<f64>| value.map_or_else(|| "-".into(), |value| format!("{value:.4}"));
    let measured =
        |name: &str| board.trials.iter().filter_map(|entry| entry.best.as_ref()).any(|best| best.value(name).is_some());
    let columns: Vec<_> = COLUMNS.iter().filter(|(name, _)| measured(name)).collect();
    let rows: Vec<Vec<String>> = board
        .trials
        .iter()
        .map(|entry| {
            let best = entry.best.as_ref();
            let parameter = |key: &str| entry.parameters.get(key).cloned().unwrap_or_else(|| "-".into());
            let mut row = vec![
                entry.rank.to_string(),
                entry.trial.clone(),
                entry.model.to_owned(),
                parameter("shape"),
                parameter("learning_rate"),
                parameter("batch_size"),
                entry.state.to_owned(),
                entry.epochs.to_string(),
            ];
            row.extend(columns.iter().map(|(name, _)| number(best.and_then(|best| best.value(name)))));
            row
        })
        .collect();
    let mut headings = vec!["#", "trial", "model", "shape", "rate", "batch", "state", "epochs"];
    headings.extend(columns.iter().map(|(_, heading)| heading));
    let warnings: String = board.warnings.iter().map(|warning| format!("\nwarning: {warning}")).collect();
    let naive: Vec<String> = board.naive.iter().map(|(name, value)| format!("{name} {value:.4}")).collect();
    let naive = match naive.is_empty() {
        true => String::new(),
        false => {
            let what = if board.naive.contains_key(VALIDATION_MSE) { "the mean" } else { "the most frequent class" };
            format!("\nalways saying {what} would reach: {}", naive.join(", "))
        }
    };
    format!(
        "search {} over {} records, by {}\n{}{naive}{warnings}",
        board.search,
        board.records,
        board.objective,
        table(&headings, &rows)
    )
}

fn delete(settings: &Settings, id: &str) -> Result {
    let edit::Deleted { trials, records } = edit::delete(settings, &find::search(settings, id)?)?;
    say(format_args!("deleted {trials} trials of search `{id}`, {records} records of their output, and their groups"));
    Ok(())
}
