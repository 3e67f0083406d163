//! The command line: one file for each subcommand.

mod broker;
mod checkpoint;
mod completions;
mod config;
mod demo;
mod file;
mod health;
mod models;
mod output;
mod parts;
mod plot;
mod produce;
mod run;
mod search;
mod topics;
mod topology;
mod trial;
mod trials;

use std::io::IsTerminal;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};
use tracing_subscriber::EnvFilter;

use crate::config::Settings;
use crate::kafka;
use crate::learn::doctor;
use crate::models::kind::Kind;
use crate::models::registry;
use crate::parts::Parts;
use crate::search::file::reserved_keys;

/// Exit codes, as in `sysexits.h`.
mod code {
    pub const FAILURE: u8 = 1;
    pub const USAGE: u8 = 64;
    pub const UNAVAILABLE: u8 = 69;
    pub const SOFTWARE: u8 = 70;
    pub const CONFIG: u8 = 78;
    /// 128 and the number of SIGINT, as shells have it.
    pub const INTERRUPTED: u8 = 130;
}

/// Why the program ends otherwise than well.
#[derive(Debug)]
pub struct Failure {
    /// Exit code.
    pub code: u8,
    /// What to tell the user.
    pub error: anyhow::Error,
}

impl<E: Into<anyhow::Error>> From<E> for Failure {
    /// The error's type decides the exit code.
    fn from(error: E) -> Self {
        let error = error.into();
        let code = error.chain().find_map(code_of).unwrap_or(code::FAILURE);
        Self { code, error }
    }
}

impl Failure {
    /// The error with its causes, each said once: some errors already end in their cause's words.
    pub fn message(&self) -> String {
        let message = self.error.chain().fold(String::new(), |message, cause| match cause.to_string() {
            cause if message.is_empty() => cause,
            cause if message.contains(&cause) => message,
            cause => format!("{message}: {cause}"),
        });
        kafka::descriptors::explained(message)
    }

    fn usage(message: impl std::fmt::Display) -> Self {
        Self { code: code::USAGE, error: anyhow::anyhow!("{message}") }
    }
}

fn code_of(error: &(dyn std::error::Error + 'static)) -> Option<u8> {
    if let Some(error) = error.downcast_ref::<kafka::Error>() {
        return match error {
            kafka::Error::Unreachable { .. } => Some(code::UNAVAILABLE),
            kafka::Error::Refused { .. }
            | kafka::Error::Topics(_)
            | kafka::Error::Declaration { .. }
            | kafka::Error::Descriptors(_)
            | kafka::Error::Port { .. } => Some(code::CONFIG),
            error if error.is_configuration() => Some(code::CONFIG),
            // Brokers that went away again after the first answer, while topics were looked at, say.
            error if error.passes_by_itself() => Some(code::UNAVAILABLE),
            _ => None,
        };
    }
    if let Some(error) = error.downcast_ref::<crate::topology::Error>() {
        use crate::topology::Error as T;
        return match error {
            T::Stage { .. } | T::Panicked(_) | T::Metrics(_) | T::Thread(_) => Some(code::SOFTWARE),
            T::Load(_) | T::Http(_) => Some(code::CONFIG),
            // Transparent over Kafka's errors.
            T::Kafka(error) => code_of(error),
        };
    }
    if let Some(error) = error.downcast_ref::<crate::parts::fetch::Error>() {
        use crate::parts::fetch::Error as F;
        return match error {
            F::Revision(_) => Some(code::USAGE),
            F::File { .. } => None,
            _ => Some(code::CONFIG),
        };
    }
    let config = error.is::<crate::config::Error>()
        || error.is::<crate::parts::Error>()
        || error.is::<crate::embed::embedders::embedder::Error>()
        || error.is::<crate::http::Error>();
    if config {
        return Some(code::CONFIG);
    }
    if let Some(error) = error.downcast_ref::<crate::train::store::find::Error>() {
        use crate::train::store::find::Error as F;
        return match error {
            F::Unknown { .. } => Some(code::USAGE),
            F::Kafka(error) => code_of(error),
        };
    }
    if let Some(crate::train::store::export::Error::Kafka(error)) = error.downcast_ref() {
        return code_of(error);
    }
    if let Some(error) = error.downcast_ref::<crate::train::store::start::Error>() {
        use crate::train::store::start::Error as S;
        return match error {
            S::Search(_) | S::WeightsFile { .. } | S::Weights { .. } => Some(code::USAGE),
            S::Kafka(error) => code_of(error),
        };
    }
    None
}

type Result<T = (), E = Failure> = std::result::Result<T, E>;

/// Embed a Kafka topic of text once, exactly once, and train many trials from it.
#[derive(Debug, Parser)]
#[command(version, arg_required_else_help = true, after_help = EXAMPLES, max_term_width = 100)]
struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Command,
}

const EXAMPLES: &str = "\
Examples:
  sweepstream demo                               everything at once, on a Kafka of its own
  sweepstream broker                             only the Kafka
  SWEEPSTREAM_KAFKA__BOOTSTRAP_SERVERS=host:9092 sweepstream run
  sweepstream produce corpus.txt                 a text for each line
  sweepstream search start genres.toml           prints the search's id
  sweepstream search show ID                     the leaderboard

Settings: defaults < --config FILE < SWEEPSTREAM_<SECTION>__<KEY> < --set;
`sweepstream config` shows what they come to.

Exit codes: 0 done, 1 failed, 64 usage, 69 no broker answers, 70 a stage failed for good,
78 settings, topics, parts, ports or limits are not as they must be, 130 interrupted: `run` by a second signal.";

#[derive(Debug, Args)]
struct Global {
    /// Settings file (TOML) [env: SWEEPSTREAM_CONFIG=]
    #[arg(long, short, global = true, value_name = "FILE")]
    config: Option<PathBuf>,
    /// One setting, e.g. `--set embed.max_length=128`; may be repeated
    #[arg(long = "set", short, global = true, value_name = "KEY=VALUE")]
    set: Vec<String>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the stages: embed texts, train trials
    Run(run::Arguments),
    /// Show everything on real text with a Kafka of its own
    Demo(demo::Arguments),
    /// Run a local Kafka until interrupted
    Broker(broker::Arguments),
    /// Produce lines of text to the input topic
    Produce(produce::Arguments),
    /// Start, watch, list and delete searches
    Search(search::Arguments),
    /// List, stop and restart trials
    Trials(trials::Arguments),
    /// Export what a trial has learnt
    Checkpoint(checkpoint::Arguments),
    /// Draw a search: curves, the best so far, results against parameters
    Plot(plot::Arguments),
    /// Show sources, processors and sinks with their topics and groups
    Topology(topology::Arguments),
    /// Create or verify the topics
    Topics(topics::Arguments),
    /// Show the effective settings, secrets redacted
    Config(config::Arguments),
    /// Show where each part was found
    Parts(parts::Arguments),
    /// List the embedding models that have names, and get one
    Models(models::Arguments),
    /// Ask a running process whether it is at work
    Health(health::Arguments),
    /// Print a completion script for a shell
    Completions(completions::Arguments),
}

/// What every subcommand gets.
struct Environment {
    settings: Settings,
    parts: Parts,
}

/// Parses the command line, does what it says, and says why that failed, with the exit code that fits.
pub fn main() -> ExitCode {
    let done = match Cli::try_parse() {
        Ok(cli) => run(cli),
        // Help and version are no failures, and go to standard output.
        Err(help) if !help.use_stderr() => output::forgiving(help.print()).map_err(Failure::from),
        Err(error) => {
            drop(error.print());
            return ExitCode::from(code::USAGE);
        }
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            output::say(format_args!("sweepstream: {}", failure.message()));
            ExitCode::from(failure.code)
        }
    }
}

/// The same with models of one's own, which search files then name as they name the built-in ones. Each is looked over
/// first (see [`doctor`]). To be called before anything else, as all that `main` does.
pub fn main_with(kinds: &[&'static Kind]) -> ExitCode {
    // Before any thread: a trial computes on one thread, and matmul asks this variable each time.
    std::env::set_var("RAYON_NUM_THREADS", "1");
    let registered = registry::register(kinds, &reserved_keys()).map_err(anyhow::Error::new);
    let sound = || kinds.iter().try_for_each(|kind| doctor::examine(kind).map_err(anyhow::Error::new));
    match registered.and_then(|()| sound()) {
        Ok(()) => main(),
        Err(error) => {
            output::say(format_args!("sweepstream: {error}"));
            ExitCode::from(code::SOFTWARE)
        }
    }
}

fn run(cli: Cli) -> Result {
    // An empty variable is one that is not set, as an empty SWEEPSTREAM_PARTS is; clap would take it for a mistake.
    let named = || std::env::var_os("SWEEPSTREAM_CONFIG").filter(|file| !file.is_empty()).map(PathBuf::from);
    let file = cli.global.config.or_else(named);
    let settings = Settings::load(file.as_deref(), &flags(&cli.global.set)?)?;
    start_logging(&settings)?;
    let names = std::env::vars_os().filter_map(|(name, _)| name.into_string().ok());
    let unknown = crate::config::unknown_variables(names);
    if !unknown.is_empty() {
        tracing::warn!(
            variables = unknown.join(" "),
            "no settings have the names of these environment variables; ignored"
        );
    }
    kafka::descriptors::raise();
    let environment = Environment { settings, parts: Parts::locate() };
    match cli.command {
        Command::Run(arguments) => run::run(environment, &arguments),
        Command::Demo(arguments) => demo::run(environment, &arguments),
        Command::Broker(arguments) => broker::run(&environment, &arguments),
        Command::Produce(arguments) => produce::run(&environment, &arguments),
        Command::Search(arguments) => search::run(&environment, arguments),
        Command::Trials(arguments) => trials::run(&environment, arguments),
        Command::Checkpoint(arguments) => checkpoint::run(&environment, arguments),
        Command::Plot(arguments) => plot::run(&environment, &arguments),
        Command::Topology(arguments) => topology::run(&environment, &arguments),
        Command::Topics(arguments) => topics::run(&environment, &arguments),
        Command::Config(arguments) => config::run(&environment, &arguments),
        Command::Parts(arguments) => parts::run(&environment, &arguments),
        Command::Models(arguments) => models::run(&environment, &arguments),
        Command::Health(arguments) => health::run(&environment, &arguments),
        Command::Completions(arguments) => completions::run(&arguments),
    }
}

/// `--set section.key=value`, taken apart.
fn flags(set: &[String]) -> Result<Vec<(String, String)>> {
    set.iter()
        .map(|flag| {
            let (key, value) = flag
                .split_once('=')
                .ok_or_else(|| Failure::usage(format!("`--set {flag}`: write it as section.key=value")))?;
            Ok((key.to_owned(), value.to_owned()))
        })
        .collect()
}

/// Log lines go to standard error: standard output belongs to results.
fn start_logging(settings: &Settings) -> Result {
    // librdkafka repeats itself while brokers are away; what matters of it is logged by the stages.
    let directives = format!("rdkafka=off,librdkafka=off,{}", settings.log.level);
    let filter = EnvFilter::try_new(&directives).map_err(|error| crate::config::Error::Invalid {
        key: "log.level".into(),
        place: "the settings".into(),
        message: format!("`{}`: {error}; a level is one of error, warn, info, debug, trace, off", settings.log.level),
    })?;
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(|| output::LogWriter)
        // They would be printed in a way that panics.
        .log_internal_errors(false)
        .with_target(false)
        .with_ansi(std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|set| set.is_empty()));
    // A second subscriber can only exist in tests.
    drop(builder.try_init());
    Ok(())
}

/// Waits until the cluster answers, for subcommands that speak to it.
fn connect(environment: &Environment) -> Result {
    kafka::descriptors::ensure().map_err(kafka::Error::Descriptors)?;
    Ok(kafka::client::await_cluster(&environment.settings)?)
}

#[cfg(test)]
mod tests {
    use rdkafka::error::{KafkaError, RDKafkaErrorCode};

    use super::*;

    #[test]
    fn brokers_that_go_away_during_a_start_end_it_with_69() {
        let code = |error| {
            let error = kafka::Error::call("asking for topics")(error);
            Failure::from(crate::topology::Error::from(error)).code
        };
        assert_eq!(code(KafkaError::MetadataFetch(RDKafkaErrorCode::BrokerTransportFailure)), code::UNAVAILABLE);
        assert_eq!(code(KafkaError::AdminOp(RDKafkaErrorCode::OperationTimedOut)), code::UNAVAILABLE);
        assert_eq!(code(KafkaError::MetadataFetch(RDKafkaErrorCode::TopicAuthorizationFailed)), code::FAILURE);
    }

    #[test]
    fn what_kafka_says_decides_the_exit_code_whoever_asked() {
        use crate::train::store::{export, find, start};
        let away = || kafka::Error::call("asking")(KafkaError::Global(RDKafkaErrorCode::BrokerTransportFailure));
        let missing = || kafka::Error::Topics("there is none".into());
        for (error, wanted) in [(away as fn() -> kafka::Error, code::UNAVAILABLE), (missing, code::CONFIG)] {
            assert_eq!(Failure::from(error()).code, wanted);
            assert_eq!(Failure::from(find::Error::from(error())).code, wanted);
            assert_eq!(Failure::from(export::Error::from(error())).code, wanted);
            assert_eq!(Failure::from(start::Error::from(error())).code, wanted);
            assert_eq!(Failure::from(crate::topology::Error::from(error())).code, wanted);
        }
    }
}
