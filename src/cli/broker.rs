//! `broker`: a local Kafka in the foreground.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;

use super::output::{say, write_out};
use super::run::{runtime, signalled};
use super::{Environment, Result};
use crate::kafka::local::{LocalBroker, LocalBrokerOptions};

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  sweepstream broker                             on a free port, data gone at the end
  sweepstream broker --port 9092 --data kafka    data kept from start to start

Prints `bootstrap.servers` on standard output once it answers; Ctrl-C ends it.")]
pub struct Arguments {
    /// Client port; 0 is a free one [default: a free one]
    #[arg(long)]
    port: Option<u16>,
    /// Data folder, kept at the end [default: a temporary one]
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    /// Broker property, e.g. `log.retention.ms=60000`; may be repeated
    #[arg(long = "property", short, value_name = "NAME=VALUE")]
    properties: Vec<String>,
}

pub fn run(environment: &Environment, arguments: &Arguments) -> Result {
    let properties = arguments
        .properties
        .iter()
        .map(|property| {
            let (name, value) = property
                .split_once('=')
                .ok_or_else(|| super::Failure::usage(format!("`--property {property}`: write it as name=value")))?;
            Ok((name.to_owned(), value.to_owned()))
        })
        .collect::<Result<Vec<_>>>()?;
    let parts = environment.parts.kafka()?;
    let options = LocalBrokerOptions { data: arguments.data.clone(), port: arguments.port, properties };
    let runtime = runtime()?;
    let signalled = runtime.block_on(async { signalled() })?;
    let mut broker = LocalBroker::start(parts, &options)?;
    if !signalled.is_cancelled() {
        say(format_args!("Kafka answers; its log is {}", broker.log().display()));
        say(format_args!("export SWEEPSTREAM_KAFKA__BOOTSTRAP_SERVERS={}", broker.bootstrap_servers()));
        write_out(broker.bootstrap_servers())?;
    }
    runtime.block_on(async {
        loop {
            tokio::select! {
                () = signalled.cancelled() => return Ok(()),
                () = tokio::time::sleep(Duration::from_millis(200)) => {
                    if broker.ended()? {
                        let log = broker.log().display();
                        return Err(anyhow::anyhow!("the broker ended by itself; its log is {log}"));
                    }
                }
            }
        }
    })?;
    broker.stop();
    Ok(())
}
