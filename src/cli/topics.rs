//! `topics`: create and verify.

use clap::{Args, Subcommand};
use serde::Serialize;

use super::output::{show, table};
use super::{connect, Environment, Result};
use crate::kafka::topics::Declarations;

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  sweepstream topics create                      creates what is missing, then verifies
  sweepstream topics verify                      ends with code 78 where a promise could not be kept
  sweepstream topics verify --json | jq '.[].partitions'")]
pub struct Arguments {
    #[command(subcommand)]
    command: Command,
    /// As JSON
    #[arg(long, global = true)]
    json: bool,
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
    let shown: Vec<Shown<'_>> = all
        .iter()
        .map(|topic| Shown {
            topic: &topic.name,
            partitions: topic.partitions,
            message_bytes_max: topic.message_bytes_max,
            state: if created.contains(&topic.name) { "created" } else { "as declared" },
        })
        .collect();
    let row = |topic: &Shown<'_>| {
        let (partitions, bytes) = (topic.partitions.to_string(), topic.message_bytes_max.to_string());
        vec![topic.topic.into(), partitions, bytes, topic.state.into()]
    };
    Ok(show(arguments.json, &shown, || {
        let rows: Vec<Vec<String>> = shown.iter().map(row).collect();
        table(&["topic", "partitions", "max.message.bytes", "state"], &rows)
    })?)
}

/// A topic as it stands now.
#[derive(Debug, Serialize)]
struct Shown<'t> {
    topic: &'t str,
    partitions: i32,
    message_bytes_max: usize,
    state: &'static str,
}
