//! `checkpoint export`: a trial's parameters as a file.

use std::path::PathBuf;

use clap::{Args, Subcommand};

use super::output::say;
use super::{connect, file, Environment, Result};
use crate::train::store::checkpoint::sha256_hex;
use crate::train::store::export::export;
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
    let settings = &environment.settings;
    let exported = export(settings, &find::trial(settings, &trial)?)?;
    file::write(&file, &exported)?;
    say(format_args!("{}: {} bytes, sha256 {}", file.display(), exported.len(), sha256_hex(&exported)));
    Ok(())
}
