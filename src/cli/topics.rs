//! `topics`: create and verify.

use clap::{Args, Subcommand};

use super::output::{table, write_out};
use super::{connect, Environment, Result};
use crate::kafka::topics::Declarations;

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  sweepstream topics create                      creates what is missing, then verifies
  sweepstream topics verify                      ends with code 78 where a promise could not be kept")]
pub struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Create missing topics as declared, then verify
    #[command(after_help = "\
Example:
  sweepstream topics create

Declarations are compiled in; `--set topics.dir=DIR` replaces those that DIR has.")]
    Create,
    /// Compare existing topics with their declarations
    #[command(after_help = "\
Example:
  sweepstream topics verify || echo 'a promise could not be kept'")]
    Verify,
}

pub fn run(environment: &Environment, arguments: &Arguments) -> Result {
    connect(environment)?;
    let settings = &environment.settings;
    let declarations = Declarations::load(settings)?;
    let created = match arguments.command {
        Command::Create => declarations.create_missing(settings)?,
        Command::Verify => Vec::new(),
    };
    let topics = declarations.verify(settings, None)?;
    let all = [&topics.texts, &topics.features, &topics.dead_letters, &topics.trials, &topics.output];
    let rows: Vec<Vec<String>> = all
        .iter()
        .map(|topic| {
            let state = if created.contains(&topic.name) { "created" } else { "as declared" };
            vec![topic.name.clone(), topic.partitions.to_string(), topic.message_bytes_max.to_string(), state.into()]
        })
        .collect();
    Ok(write_out(&table(&["topic", "partitions", "max.message.bytes", "state"], &rows))?)
}
