//! `models`: the embedding models that have names, and how to get one.

use clap::{Args, Subcommand};
use serde::Serialize;

use super::output::{say, show, table, write_out, Progress};
use super::{Environment, Failure, Result};
use crate::parts::catalogue::{self, Entry};
use crate::parts::fetch::{self, Hub, Receipt};
use crate::parts::{self, MODELS};

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  sweepstream models
  sweepstream models --json | jq -r '.[] | select(.dim == 384).name'
  sweepstream models fetch bge-small-en-v1.5 --revision COMMIT
  sweepstream run --set embed.model=bge-small-en-v1.5 --set topics.features=features-bge

Another model makes other features: give them a topic of their own.")]
pub struct Arguments {
    #[command(subcommand)]
    command: Option<Command>,
    /// As JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Get a model from a hub into the parts folder
    #[command(after_help = "\
Examples:
  sweepstream models fetch bge-small-en-v1.5 --revision COMMIT
  HF_ENDPOINT=https://mirror.example sweepstream models fetch bge-m3 --revision COMMIT

The hub is https://huggingface.co, or what HF_ENDPOINT names; HF_TOKEN is sent along if it is
set. Each file is held against the digest that the hub lists for it, and `fetched.json` beside
them keeps all digests. Prints the folder.")]
    Fetch(Fetch),
}

#[derive(Debug, Args)]
struct Fetch {
    /// As `sweepstream models` lists it
    name: String,
    /// The commit of the model's repository, 40 hexadecimal digits
    #[arg(long, value_name = "COMMIT")]
    revision: String,
}

/// A model in the list.
#[derive(Debug, Serialize)]
struct Listed {
    name: &'static str,
    alias: &'static str,
    about: &'static str,
    repository: &'static str,
    dim: usize,
    pooling: &'static str,
    state: State,
    #[serde(skip_serializing_if = "Option::is_none")]
    revision: Option<String>,
}

#[derive(Clone, Copy, Debug, Serialize)]
#[serde(rename_all = "lowercase")]
enum State {
    /// Its files are in the parts folder.
    Here,
    /// It can be fetched.
    Absent,
    /// It is dynamically quantised.
    Refused,
}

pub fn run(environment: &Environment, arguments: &Arguments) -> Result {
    match &arguments.command {
        None => list(environment, arguments.json),
        Some(Command::Fetch(fetch)) => run_fetch(environment, fetch),
    }
}

fn list(environment: &Environment, json: bool) -> Result {
    let models = environment.parts.folder.join(MODELS);
    let listed = |entry: &'static Entry| {
        let folder = models.join(&entry.name);
        let state = match () {
            () if entry.is_dynamically_quantised => State::Refused,
            () if folder.join("model.onnx").exists() => State::Here,
            () => State::Absent,
        };
        Listed {
            name: &entry.name,
            alias: &entry.alias,
            about: &entry.about,
            repository: &entry.repository,
            dim: entry.dim,
            pooling: catalogue::pooling_name(&entry.pooling),
            state,
            revision: Receipt::of(&folder).map(|receipt| receipt.revision),
        }
    };
    let all: Vec<Listed> = catalogue::entries().iter().map(listed).collect();
    Ok(show(json, &all, || {
        let row = |model: &Listed| {
            let state = match model.state {
                State::Here => "here",
                State::Absent => "-",
                State::Refused => "refused: dynamically quantised",
            };
            let cells = [model.name, &model.dim.to_string(), model.pooling, model.repository, state];
            cells.map(str::to_owned).to_vec()
        };
        let rows: Vec<Vec<String>> = all.iter().map(row).collect();
        table(&["name", "dim", "a text's row", "repository", "state"], &rows)
    })?)
}

fn run_fetch(environment: &Environment, arguments: &Fetch) -> Result {
    let entry = catalogue::find(&arguments.name).ok_or_else(|| {
        let near =
            catalogue::nearest(&arguments.name).map_or_else(String::new, |near| format!("; did you mean `{near}`?"));
        Failure::usage(format!("`sweepstream models` lists no `{}`{near}", arguments.name))
    })?;
    parts::refuse_quantised(entry)?;
    let hub = Hub::from_environment()?;
    let mut shown: Option<(String, Progress)> = None;
    let fetched = fetch::fetch(&environment.parts, entry, &arguments.revision, &hub, &mut |file, done, all| {
        if shown.as_ref().is_none_or(|(name, _)| name != file) {
            if let Some((_, progress)) = shown.take() {
                progress.finish();
            }
            shown = Some((file.to_owned(), Progress::new(file, "bytes", all)));
        }
        if let Some((_, progress)) = &mut shown {
            progress.set(done, "");
        }
    });
    if let Some((_, progress)) = shown {
        progress.finish();
    }
    let folder = fetched?;
    say(format_args!(
        "fetched {} at commit {}; use it with `--set embed.model={}`",
        entry.repository, arguments.revision, entry.name
    ));
    Ok(write_out(&folder.display().to_string())?)
}
