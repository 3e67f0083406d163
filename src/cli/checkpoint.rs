//! `checkpoint export`: a trial's parameters as a file.

use std::path::PathBuf;

use clap::{Args, Subcommand};

use super::output::say;
use super::{connect, file, Environment, Result};
use crate::search::objective::Objective;
use crate::train::store::checkpoint::sha256_hex;
use crate::train::store::export::{export, Exported, Which};
use crate::train::store::find;

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
    /// Write the parameters of a trial's best checkpoint; the same weights give the same bytes
    #[command(after_help = "\
Examples:
  sweepstream checkpoint export genres-1a2b3c-04 best.safetensors
  sweepstream checkpoint export --newest genres-1a2b3c-04 last.safetensors

Standard error says which epoch and step was written, what was measured there, and the file's
sha256. That of `--newest` is a finished trial's `weights_sha256`.")]
    Export {
        /// Trial id
        trial: String,
        /// File to write (safetensors)
        file: PathBuf,
        /// The checkpoint of the trial's best measurement by the search's objective (the default)
        #[arg(long, conflicts_with = "newest")]
        best: bool,
        /// The newest checkpoint: of a finished trial, its last epoch's
        #[arg(long)]
        newest: bool,
    },
}

pub fn run(environment: &Environment, arguments: Arguments) -> Result {
    connect(environment)?;
    let Command::Export { trial, file, best, newest } = arguments.command;
    let which = if newest && !best { Which::Newest } else { Which::Best };
    let settings = &environment.settings;
    let stored = find::trial(settings, &trial)?;
    let exported = export(settings, &stored, which)?;
    let bytes = &exported.bytes;
    file::write(&file, bytes)?;
    let place = place(&exported, which, &stored.record.objective);
    say(format_args!("{}: {} bytes, sha256 {}; {place}", file.display(), bytes.len(), sha256_hex(bytes)));
    Ok(())
}

/// Which checkpoint was written.
fn place(Exported { epoch, step, measurement, .. }: &Exported, which: Which, objective: &Objective) -> String {
    let which = if which == Which::Best { "best" } else { "newest" };
    let measured = measurement.as_ref().and_then(|measurement| objective.ranked_by(measurement));
    let measured = measured.map_or_else(|| "not measured".into(), |(name, value)| format!("{name} {value}"));
    format!("the {which} checkpoint: epoch {epoch}, step {step}, {measured}")
}
