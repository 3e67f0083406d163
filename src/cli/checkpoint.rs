//! `checkpoint export`: a trial's parameters as a file.

use std::collections::BTreeMap;
use std::path::PathBuf;

use anyhow::Context;
use clap::{Args, Subcommand};

use super::output::say;
use super::{connect, file, Environment, Result};
use crate::config::Settings;
use crate::kafka::offsets::Watermarks;
use crate::learn::fit::Fit;
use crate::train::checkpoint::sha256_hex;
use crate::train::store::{self, Stored, Want};

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  sweepstream checkpoint export genres-1a2b3c-04 best.safetensors
  python3 -c 'from safetensors.numpy import load_file; print(load_file(\"best.safetensors\").keys())'")]
pub struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Write the parameters of a trial's newest checkpoint; the same weights give the same bytes
    #[command(after_help = "\
Example:
  sweepstream checkpoint export genres-1a2b3c-04 best.safetensors

Standard error says the file's sha256; of a finished trial it is the outcome's `weights_sha256`.")]
    Export {
        /// Trial id
        trial: String,
        /// File to write (safetensors)
        file: PathBuf,
    },
}

pub fn run(environment: &Environment, arguments: Arguments) -> Result {
    connect(environment)?;
    let Command::Export { trial, file } = arguments.command;
    let stored = super::trials::find(&environment.settings, &trial)?;
    let exported = export(&environment.settings, &stored)?;
    file::write(&file, &exported)?;
    say(format_args!("{}: {} bytes, sha256 {}", file.display(), exported.len(), sha256_hex(&exported)));
    Ok(())
}

/// The parameters of a trial's newest checkpoint, as safetensors.
///
/// # Errors
/// When there is no whole checkpoint.
pub fn export(settings: &Settings, stored: &Stored) -> anyhow::Result<Vec<u8>> {
    let record = &stored.record;
    let wanted = BTreeMap::from([(record.trial.clone(), stored.partition)]);
    let output = store::output(settings, &Watermarks::new(settings)?, &wanted, Want::Checkpoints)?
        .remove(&record.trial)
        .unwrap_or_default();
    let (newest, damaged) = output.newest(record.attempt);
    for error in damaged {
        tracing::warn!(%error, "using the checkpoint before it");
    }
    let (_, blob) = newest.with_context(|| format!("trial `{}` has no checkpoint yet", record.trial))?;
    let fit = Fit::restore(record.model_spec(), record.optimizer_spec(), record.seed, record.number, &blob)?;
    Ok(fit.parameters_safetensors()?)
}
