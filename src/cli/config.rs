//! `config`: the effective settings.

use clap::Args;

use super::output::write_out;
use super::{Environment, Result};

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  sweepstream config                             what this process would run with
  sweepstream config > sweepstream.toml          a file to start from

Secrets are shown as `(redacted)`: put them back before such a file is used.")]
pub struct Arguments {}

pub fn run(environment: &Environment, _: &Arguments) -> Result {
    Ok(write_out(environment.settings.redacted_toml().trim_end())?)
}
