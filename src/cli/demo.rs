//! `demo`: the whole job on real text, with a Kafka of its own.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::Context;
use clap::Args;

use super::output::{say, write_out, Progress};
use super::produce::{produce, Input};
use super::run::{runtime, signalled};
use super::search::text;
use super::{Environment, Result};
use crate::config::Settings;
use crate::kafka::local::{LocalBroker, LocalBrokerOptions};
use crate::plot::search as plot;
use crate::search::results::Leaderboard;
use crate::topology::{Topology, STAGES};
use crate::train::store::export::{export, Which};
use crate::train::store::find;
use crate::train::store::start::{start, Started};

/// Sentences produced.
const SENTENCES: usize = 4_000;
/// The search that is run; the same file is in `examples/`.
const SEARCH: &str = include_str!("../../examples/genres.toml");
/// Where the best checkpoint goes.
const FOLDER: &str = "sweepstream-demo";

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  sweepstream demo                               ends by itself
  sweepstream demo --keep                        Kafka and the stages stay up until Ctrl-C")]
pub struct Arguments {
    /// Leave everything running until interrupted
    #[arg(long)]
    keep: bool,
}

pub fn run(environment: Environment, arguments: &Arguments) -> Result {
    let Environment { mut settings, parts } = environment;
    let began = Instant::now();
    let brown = parts.brown()?;
    let jars = parts.kafka()?;
    writable(FOLDER.as_ref())?;
    let broker = LocalBroker::start(jars, &LocalBrokerOptions::default())?;
    settings.kafka.bootstrap_servers = broker.bootstrap_servers().to_owned();
    // Whatever leads to the user's own cluster (TLS, SASL) does not fit this one.
    settings.kafka.properties.clear();
    say(format_args!("Kafka runs at {} (its log: {})", broker.bootstrap_servers(), broker.log().display()));
    let topology = Topology::start(&settings, &parts, &STAGES)?;
    let worked = work(&settings, &topology, &brown, began, arguments.keep);
    // A further signal is heard until the end.
    let _runtime = match &worked {
        Ok(()) if arguments.keep => Some(keep(&broker, &topology)?),
        _ => None,
    };
    let stopped = topology.stop();
    broker.stop();
    worked?;
    Ok(stopped?)
}

/// Creates the folder for results, if that can be written: nobody should learn at the end that it cannot.
fn writable(folder: &Path) -> anyhow::Result<()> {
    let made = std::fs::create_dir_all(folder).and_then(|()| tempfile::tempfile_in(folder));
    made.map(drop).with_context(|| {
        let path = std::path::absolute(folder).unwrap_or_else(|_| folder.into());
        format!("results go to {}: run the demo in a folder that can be written", path.display())
    })
}

fn work(settings: &Settings, topology: &Topology, brown: &PathBuf, began: Instant, keep: bool) -> Result {
    let sentences = sentences(brown)?;
    let count = sentences.len() as u64;
    let mut progress = Progress::new("producing texts", "sentences", count);
    let _ = produce(settings, sentences, &mut progress)?;
    progress.finish();
    embed(topology, count)?;
    let started = start(settings, SEARCH, ".".as_ref(), |_, _| {})?;
    say(format_args!("search {} has {} trials over {count} matrices", started.id, started.trials.len()));
    train(topology, &started)?;
    let results = find::results(settings, &started.id)?;
    let figure = plot::figure(&started.id, &results);
    let board = Leaderboard::of(&started.id, results);
    write_out(&format!("\n{}", text(&board)))?;
    let best = board.trials.first().context("the search has no trials")?;
    let folder = PathBuf::from(FOLDER);
    let file = folder.join("best.safetensors");
    let exported = export(settings, &find::trial(settings, &best.trial)?, Which::Best)?;
    super::file::write(&file, &exported.bytes)?;
    let picture = folder.join("search.svg");
    super::file::write(&picture, figure.svg()?.as_bytes())?;
    write_out(&format!(
        "\n\
         Accuracy is the share of held-out sentences whose genre was found;\n\
         a logistic regression on the same mean vectors (scikit-learn) reaches about 0.76.\n\
         Autoencoders have no accuracy: they reconstruct the rows and are ranked by validation loss.\n\
         The search as a picture, for a browser: {}\n\
         The best trial's parameters: {} (plain safetensors)\n\
         The demo took {:.0} s.",
        picture.display(),
        file.display(),
        began.elapsed().as_secs_f64()
    ))?;
    let servers = &settings.kafka.bootstrap_servers;
    let how = if keep {
        "Look further, in another terminal:"
    } else {
        "This Kafka goes now. `make demo ARGS=--keep` leaves it up and prints its address; then, in another terminal:"
    };
    write_out(&format!(
        "\n\
         {how}\n\
         \x20 export SWEEPSTREAM_KAFKA__BOOTSTRAP_SERVERS={servers}\n\
         \x20 sweepstream search show {0}\n\
         \x20 sweepstream plot {0} search.png\n\
         \x20 sweepstream trials list\n\
         \x20 curl http://{1}/metrics\n\
         \x20 kcat -b {servers} -C -t output -e -f '%k %h\\n'\n\
         \x20 kafka-consumer-groups.sh --bootstrap-server {servers} --describe --all-groups",
        started.id,
        topology.http_address().map_or_else(|| "127.0.0.1:9464".into(), |address| address.to_string()),
    ))?;
    Ok(())
}

fn embed(topology: &Topology, count: u64) -> Result {
    let mut progress = Progress::new("embedding", "sentences", count);
    wait(topology, || {
        let (embedded, dead) = topology.status.verdicts();
        progress.set(embedded + dead, &if dead > 0 { format!("{dead} dead letters") } else { String::new() });
        embedded + dead >= count
    })?;
    progress.finish();
    Ok(())
}

fn train(topology: &Topology, started: &Started) -> Result {
    let epochs: u64 = started.trials.iter().map(|trial| trial.parameters.epochs).sum();
    let mut progress = Progress::new("training", "epochs", epochs);
    wait(topology, || {
        let trials = topology.status.trials();
        let ours: Vec<_> = started.trials.iter().filter_map(|trial| trials.get(&trial.trial)).collect();
        let ended = ours.iter().filter(|trial| !matches!(trial.state.as_str(), "waiting" | "running")).count();
        let running: Vec<String> = ours
            .iter()
            .filter(|trial| trial.state == "running")
            .map(|trial| {
                let loss = trial.loss.map_or_else(String::new, |loss| format!(" loss {loss:.3}"));
                format!("#{} {}{loss}", trial.number, trial.model)
            })
            .collect();
        progress
            .set(ours.iter().map(|trial| trial.epoch).sum(), &format!("{ended} trials ended; {}", running.join(", ")));
        ended == started.trials.len()
    })?;
    progress.finish();
    Ok(())
}

/// Waits for a condition, as long as no stage ends.
fn wait(topology: &Topology, mut done: impl FnMut() -> bool) -> Result {
    while !done() {
        if topology.ended().is_cancelled() {
            return Err(anyhow::anyhow!("a stage ended early; the log above says why").into());
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    Ok(())
}

fn keep(broker: &LocalBroker, topology: &Topology) -> Result<tokio::runtime::Runtime> {
    say(format_args!("everything is left running at {}; Ctrl-C ends it", broker.bootstrap_servers()));
    let runtime = runtime()?;
    runtime.block_on(async {
        let signalled = signalled()?;
        let ended = topology.ended();
        tokio::select! {
            () = signalled.cancelled() => {}
            () = ended.cancelled() => {}
        }
        std::io::Result::Ok(())
    })?;
    Ok(runtime)
}

/// The broad genre of a file of the corpus, by the second letter of its name.
fn genre(name: &str) -> Option<&'static str> {
    match name.as_bytes().get(1)? {
        b'a'..=b'c' => Some("press"),
        b'd' => Some("religion"),
        b'h' | b'j' => Some("learned"),
        b'k'..=b'p' => Some("fiction"),
        _ => None,
    }
}

/// Sentences of four broad genres, evenly from the whole corpus, keyed by file and line.
fn sentences(brown: &PathBuf) -> anyhow::Result<Vec<Input>> {
    let listing = std::fs::read_dir(brown).with_context(|| format!("reading {}", brown.display()))?;
    let mut names: Vec<String> =
        listing.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned())).collect::<std::io::Result<_>>()?;
    names.retain(|name| name.len() == 4 && name.starts_with('c'));
    names.sort();
    let mut all = Vec::new();
    for name in names {
        let Some(label) = genre(&name) else { continue };
        let path = brown.join(&name);
        let text = std::fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
        for (line, sentence) in text.lines().enumerate().filter(|(_, sentence)| sentence.split_whitespace().count() > 4)
        {
            let key = Some(format!("{name}-{line}").into_bytes());
            all.push(Input { key, value: untagged(sentence).into_bytes(), label: Some(label.into()) });
        }
    }
    let step = (all.len() / SENTENCES).max(1);
    Ok(all.into_iter().step_by(step).take(SENTENCES).collect())
}

/// `The/at jury/nn said/vbd ./.` → `The jury said.`
fn untagged(sentence: &str) -> String {
    let mut text = String::new();
    for token in sentence.split_whitespace() {
        let word = token.rsplit_once('/').map_or(token, |(word, _)| word);
        let sticks = matches!(word, "." | "," | ";" | ":" | "?" | "!" | "''" | ")");
        if !text.is_empty() && !sticks && !text.ends_with(['(', '`']) {
            text.push(' ');
        }
        text.push_str(word);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tags_are_taken_off() {
        assert_eq!(
            untagged("\tThe/at jury/nn said/vbd ``/`` no/rb ''/'' ,/, 1\\/2/cd ./."),
            "The jury said ``no'', 1\\/2."
        );
        assert_eq!(genre("ca01"), Some("press"));
        assert_eq!(genre("cr09"), None);
    }
}
