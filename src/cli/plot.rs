//! `plot`: a search as a picture.

use std::collections::BTreeMap;
use std::path::PathBuf;

use anyhow::anyhow;
use clap::Args;

use super::output::say;
use super::{connect, Environment, Failure, Result};
use crate::plot::search::figure;
use crate::search::results::Results;
use crate::text::shortened;
use crate::train::store::find::results;

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  sweepstream plot genres-1a2b3c genres.svg      for a browser or a README; follows light and dark
  sweepstream plot genres-1a2b3c genres.png      twice the size in pixels, on white

For each model: loss and validation of each trial, the best so far, and the result against each
parameter that differs. The five best are in colour, the others grey. Running trials are included.")]
pub struct Arguments {
    /// Search id
    search: String,
    /// Where to; the ending says as what
    #[arg(value_name = "FILE.svg|png")]
    file: PathBuf,
}

pub fn run(environment: &Environment, arguments: &Arguments) -> Result {
    let file = &arguments.file;
    let ending = file.extension().map(|ending| ending.to_string_lossy().to_lowercase());
    let is_png = match ending.as_deref() {
        Some("svg") => false,
        Some("png") => true,
        _ => return Err(Failure::usage(format!("{}: the file's name must end in .svg or .png", file.display()))),
    };
    connect(environment)?;
    let search = &arguments.search;
    let results = results(&environment.settings, search)?;
    if results.trials.iter().all(|trial| trial.1.is_empty()) {
        return Err(nothing_measured(search, &results).into());
    }
    let figure = figure(search, &results);
    let bytes = if is_png { figure.png()? } else { figure.svg()?.into_bytes() };
    super::file::write(file, &bytes)?;
    say(format_args!("search {search} is drawn in {}", file.display()));
    Ok(())
}

/// Says whether measurements are still to come, and what became of trials that ended without.
fn nothing_measured(search: &str, results: &Results) -> anyhow::Error {
    let mut ended: BTreeMap<&str, (usize, Option<&str>)> = BTreeMap::new();
    for outcome in results.trials.iter().filter_map(|(record, _)| record.outcome.as_ref()) {
        let (count, reason) = ended.entry(outcome.state.name()).or_default();
        *count += 1;
        *reason = reason.or(outcome.reason.as_deref());
    }
    let count: usize = ended.values().map(|(count, _)| count).sum();
    let ended: Vec<String> = ended
        .into_iter()
        .map(|(state, (count, reason))| match reason {
            Some(reason) => format!("{count} {state} ({})", shortened(reason)),
            None => format!("{count} {state}"),
        })
        .collect();
    let ended = format!("{}; `sweepstream trials list --search {search}` says more", ended.join(", "));
    match results.trials.len() - count {
        0 => anyhow!("search `{search}` has no measurements: all its trials ended without one, {ended}"),
        _ if count == 0 => {
            anyhow!("search `{search}` has no measurements yet; the first come with the first checkpoints")
        }
        open => anyhow!(
            "search `{search}` has no measurements yet: {open} trials are still open, the others ended without one, \
             {ended}"
        ),
    }
}
