//! `run`: the stages of this process, until a signal or a failure ends them.

use std::time::Duration;

use clap::builder::{PossibleValue, PossibleValuesParser};
use clap::Args;
use futures::FutureExt;
use tokio::signal::unix::{signal, Signal, SignalKind};
use tokio_util::sync::CancellationToken;

use super::{Environment, Result};
use crate::stage::Spec;
use crate::topology::{Topology, STAGES};

/// Signals that are so close to each other count as one.
const TOGETHER: Duration = Duration::from_secs(1);

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  sweepstream run                                all stages
  sweepstream run --stage embed                  only embed, in as many processes as you like
  sweepstream run --stage train --set train.parallel=8")]
pub struct Arguments {
    /// Run only this stage; may be repeated [default: all]
    #[arg(long, value_parser = stages())]
    stage: Vec<String>,
    /// Embed from the log's start when the group's offsets are gone and cannot be recovered
    #[arg(long)]
    from_start: bool,
    /// Embed although another application writes to the same features topic
    #[arg(long)]
    alongside: bool,
}

fn stages() -> PossibleValuesParser {
    PossibleValuesParser::new(STAGES.map(|stage| PossibleValue::new(stage.name).help(stage.about)))
}

pub fn run(mut environment: Environment, arguments: &Arguments) -> Result {
    environment.settings.embed.from_start |= arguments.from_start;
    environment.settings.embed.alongside |= arguments.alongside;
    let is_wanted = |stage: &&Spec| arguments.stage.is_empty() || arguments.stage.iter().any(|name| name == stage.name);
    let stages = STAGES.into_iter().filter(is_wanted).collect();
    let runtime = runtime()?;
    let signalled = runtime.block_on(async { signalled() })?;
    let topology = runtime.block_on(start(&environment, stages, &signalled))?;
    runtime.block_on(async {
        let ended = topology.ended();
        tokio::select! {
            () = signalled.cancelled() => {
                tracing::info!(timeout = ?environment.settings.run.drain_timeout, "draining");
            }
            () = ended.cancelled() => {}
        }
    });
    let result = topology.stop();
    runtime.shutdown_timeout(Duration::from_millis(100));
    Ok(result?)
}

/// Starts the stages. A signal that comes before they run ends the process at once: there is nothing to drain, and
/// the cluster may be waited for at length.
async fn start(
    environment: &Environment,
    stages: Vec<&'static Spec>,
    signalled: &CancellationToken,
) -> Result<Topology> {
    let (settings, parts) = (environment.settings.clone(), environment.parts.clone());
    let starting = tokio::task::spawn_blocking(move || Topology::start(&settings, &parts, &stages));
    tokio::select! {
        started = starting => Ok(started??),
        () = signalled.cancelled() => {
            tracing::info!("ending before the stages have started");
            std::process::exit(0);
        }
    }
}

/// A runtime for waiting only: stages have threads of their own.
pub fn runtime() -> std::io::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()
}

/// Cancelled by the first signal that ends a process in order. A later one ends it at once, whatever it is doing, as
/// long as the runtime lives that this is called in.
///
/// What comes within a second belongs to the first: GNU `timeout` sends one signal to the process and one to its group.
pub fn signalled() -> std::io::Result<CancellationToken> {
    let mut signals =
        Signals { interrupt: signal(SignalKind::interrupt())?, terminate: signal(SignalKind::terminate())? };
    let first = CancellationToken::new();
    let token = first.clone();
    drop(tokio::spawn(async move {
        let name = signals.next().await;
        tracing::info!(signal = name, "ending; another signal, a second later or more, ends at once");
        first.cancel();
        tokio::time::sleep(TOGETHER).await;
        while signals.next().now_or_never().is_some() {}
        let name = signals.next().await;
        tracing::warn!(signal = name, "another signal, ending at once");
        std::process::exit(super::code::INTERRUPTED.into());
    }));
    Ok(token)
}

struct Signals {
    interrupt: Signal,
    terminate: Signal,
}

impl Signals {
    /// The next one's name.
    async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.interrupt.recv() => "SIGINT",
            _ = self.terminate.recv() => "SIGTERM",
        }
    }
}
