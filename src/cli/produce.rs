//! `produce`: lines of a file or of standard input become records of the input topic.

use std::fs::File;
use std::io::{self, BufRead, BufReader};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{anyhow, Context};
use clap::Args;
use crossbeam_channel::{Receiver, RecvTimeoutError};
use tokio_util::sync::CancellationToken;

use super::output::{say, Progress};
use super::run::{runtime, signalled};
use super::{code, connect, Environment, Failure, Result};
use crate::config::{InputFormat, Settings};
use crate::input::{json_document, LABEL_HEADER};
use crate::kafka::outbox::{Outbox, Undelivered};
use crate::kafka::topics::Declarations;

/// Lines that are read ahead.
const LINES_AHEAD: usize = 64;
/// How often a wait looks whether it is over otherwise.
const LOOK: Duration = Duration::from_millis(50);

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  sweepstream produce corpus.txt                 each line is a text, without a key
  cut -f2 mails.tsv | sweepstream produce -
  sweepstream produce --json reviews.jsonl       {\"id\": \"7\", \"text\": \"…\", \"label\": \"good\"}
  sweepstream produce --json --skip 6 reviews.jsonl

With --json, `id` becomes the key and `label` the label header, numbers with their digits as written;
the names of the fields are settings (input.*). With `input.format = \"json\"` lines are produced as
they are, and `id` becomes the key. A byte-order mark at a file's start is skipped.

At the first line that is no record it stops, and says how many were delivered before and with
which --skip to go on. Ctrl-C stops it in the same way, with code 130.")]
pub struct Arguments {
    /// File with a record for each line; `-` is standard input
    file: PathBuf,
    /// Lines are JSON objects
    #[arg(long)]
    json: bool,
    /// Leave out the first N lines: those that an earlier call has delivered
    #[arg(long, value_name = "N", default_value_t = 0)]
    skip: usize,
}

/// A record to be produced.
pub struct Input {
    /// Key.
    pub key: Option<Vec<u8>>,
    /// Value.
    pub value: Vec<u8>,
    /// Label header.
    pub label: Option<String>,
}

impl Input {
    /// False if it could not be queued.
    fn send(&self, outgoing: &Outbox, number: usize) -> bool {
        let label = self.label.as_ref().map(|label| (LABEL_HEADER, label.as_bytes()));
        outgoing.send(number, self.key.as_deref(), &self.value, label)
    }
}

pub fn run(environment: &Environment, arguments: &Arguments) -> Result {
    connect(environment)?;
    let settings = &environment.settings;
    let _ = Declarations::load(settings)?.create_missing(settings)?;
    let standard_input = arguments.file.as_os_str() == "-";
    let (name, reader): (String, Box<dyn BufRead + Send>) = if standard_input {
        ("standard input".into(), Box::new(BufReader::new(io::stdin())))
    } else {
        let name = arguments.file.display().to_string();
        let file = File::open(&arguments.file).with_context(|| format!("opening {name}"))?;
        (name, Box::new(BufReader::new(file)))
    };
    let runtime = runtime()?;
    let interrupted = runtime.block_on(async { signalled() })?;
    let outgoing = Outbox::new(settings, &settings.topics.texts, interrupted)?;
    let lines = read_ahead(reader)?;
    let (last, stop) = feed(settings, arguments, &lines, &outgoing);
    outgoing.settle(settings.run.drain_timeout);
    match (outgoing.first_failure(), stop) {
        (Some(failure), _) => Err(report(&outgoing, &failure, &name, arguments.skip)),
        (None, Some(stop)) => Err(stop.report(&name, arguments.skip, last)),
        (None, None) => {
            say(format_args!("produced {} records to topic `{}`", last - arguments.skip, settings.topics.texts));
            Ok(())
        }
    }
}

/// Reads lines on a thread of its own: one that waits for standard input cannot be interrupted.
fn read_ahead(mut reader: Box<dyn BufRead + Send>) -> io::Result<Receiver<io::Result<Vec<u8>>>> {
    let (sender, lines) = crossbeam_channel::bounded(LINES_AHEAD);
    let read = move || loop {
        let mut line = Vec::new();
        let read = match reader.read_until(b'\n', &mut line) {
            Ok(0) => return,
            Ok(_) => Ok(line),
            Err(error) => Err(error),
        };
        let failed = read.is_err();
        // Nobody waits for more once a line is wrong.
        if sender.send(read).is_err() || failed {
            return;
        }
    };
    let _ = std::thread::Builder::new().name("lines".into()).spawn(read)?;
    Ok(lines)
}

/// Why lines were not produced to the end.
#[derive(Debug)]
enum Stop {
    /// The line after the last that was sent is no record.
    Line(String),
    /// No line is wrong: the input could not be read any further.
    Reading(io::Error),
    /// By a signal.
    Interrupted,
    /// There are fewer lines than were to be left out.
    Short,
}

/// Sends line after line, until one is wrong or a record is not delivered; the last that was sent or left out, and what
/// is wrong with the one after it.
fn feed(
    settings: &Settings,
    arguments: &Arguments,
    lines: &Receiver<io::Result<Vec<u8>>>,
    outgoing: &Outbox,
) -> (usize, Option<Stop>) {
    let json = arguments.json || settings.input.format == InputFormat::Json;
    let mut last = 0;
    loop {
        let line = match lines.recv_timeout(LOOK) {
            Err(RecvTimeoutError::Disconnected) => return (last, (last < arguments.skip).then_some(Stop::Short)),
            _ if outgoing.interrupted() => return (last, Some(Stop::Interrupted)),
            _ if outgoing.first_failure().is_some() => return (last, None),
            Err(RecvTimeoutError::Timeout) => continue,
            Ok(Err(error)) => return (last, Some(Stop::Reading(error))),
            Ok(Ok(line)) => line,
        };
        let line = match if last == 0 { unmarked(line) } else { Ok(line) } {
            Ok(line) if line.is_empty() => continue,
            Ok(line) => without_end(line),
            Err(encoding) => return (last, Some(Stop::Line(encoding))),
        };
        if last >= arguments.skip {
            let plain = |value| Ok(Input { key: None, value, label: None });
            let record = if json { from_json(settings, line) } else { plain(line) };
            match record {
                Err(invalid) => return (last, Some(Stop::Line(invalid))),
                Ok(record) if record.send(outgoing, last + 1) => {}
                Ok(_) => return (last, outgoing.interrupted().then_some(Stop::Interrupted)),
            }
        }
        last += 1;
    }
}

/// A file's first line without its byte-order mark; empty, if there was nothing else in the file.
fn unmarked(mut line: Vec<u8>) -> Result<Vec<u8>, String> {
    let encoding = match line.as_slice() {
        [0xef, 0xbb, 0xbf, ..] => {
            drop(line.drain(..3));
            return Ok(line);
        }
        [0xff, 0xfe, 0, 0, ..] | [0, 0, 0xfe, 0xff, ..] => "UTF-32",
        [0xff, 0xfe, ..] | [0xfe, 0xff, ..] => "UTF-16",
        _ => return Ok(line),
    };
    Err(format!("the file is {encoding}, by its byte-order mark; `iconv -f {encoding} -t UTF-8` makes it UTF-8"))
}

fn without_end(mut line: Vec<u8>) -> Vec<u8> {
    for end in *b"\n\r" {
        if line.last() == Some(&end) {
            let _ = line.pop();
        }
    }
    line
}

/// A line as the embed stage would read it. What only the stage can judge, such as an empty text, is left to it.
fn from_json(settings: &Settings, line: Vec<u8>) -> Result<Input, String> {
    let document = json_document(&settings.input, &line).map_err(|invalid| invalid.to_string())?;
    Ok(match settings.input.format {
        InputFormat::Json => Input { key: document.id, value: line, label: None },
        InputFormat::Plain => Input { key: document.id, value: document.text.into_bytes(), label: document.label },
    })
}

impl Stop {
    /// What to tell the user, once all lines up to `last` were delivered, but for the first `skip`.
    fn report(self, name: &str, skip: usize, last: usize) -> Failure {
        let (wrong, delivered) = (last + 1, delivered(last.saturating_sub(skip)));
        let go_on = format!("go on with `--skip {last}`");
        match self {
            Self::Line(why) => anyhow!(
                "{name} line {wrong}: {why}; {delivered} before it; mend the line and {go_on}, or leave it out with \
                 `--skip {wrong}`"
            )
            .into(),
            Self::Reading(error) => anyhow!("{name} line {wrong}: {error}; {delivered} before it; {go_on}").into(),
            Self::Interrupted => {
                let error = anyhow!("{name}: interrupted after line {last}; {delivered}; {go_on}");
                Failure { code: code::INTERRUPTED, error }
            }
            Self::Short => Failure::usage(format!("{name} has {last} lines, and `--skip {skip}` leaves out more")),
        }
    }
}

fn delivered(count: usize) -> String {
    format!("{count} {} delivered", if count == 1 { "record was" } else { "records were" })
}

/// Produces records and waits until all have arrived; returns how many.
///
/// # Errors
/// The first record that was not delivered.
pub fn produce(settings: &Settings, records: Vec<Input>, progress: &mut Progress) -> anyhow::Result<usize> {
    let outgoing = Outbox::new(settings, &settings.topics.texts, CancellationToken::new())?;
    let mut count = 0;
    for record in records {
        if !record.send(&outgoing, count + 1) || outgoing.first_failure().is_some() {
            break;
        }
        count += 1;
        progress.set(count as u64, "");
    }
    outgoing.settle(settings.run.drain_timeout);
    match outgoing.first_failure() {
        Some(undelivered) => {
            let number = undelivered.number;
            Err(undelivered).with_context(|| format!("record {number} was not delivered"))
        }
        None => Ok(count),
    }
}

/// What to tell the user, once each record has its verdict, of the first line that was not delivered.
fn report(outgoing: &Outbox, undelivered: &Undelivered, name: &str, skip: usize) -> Failure {
    let line = undelivered.number;
    let before = line - 1 - skip;
    let after = outgoing.delivered().saturating_sub(before);
    let (why, mend) = if undelivered.is_too_large() {
        (format!("it is too large: {}", outgoing.limit()), format!(", or leave it out with `--skip {line}`"))
    } else if undelivered.was_taken_back() {
        ("interrupted while it was under way".to_owned(), String::new())
    } else {
        (undelivered.to_string(), String::new())
    };
    let again = match (after, mend.is_empty()) {
        // It has its verdict, and so have those after it.
        (0, false) => String::new(),
        (after, false) => format!(" (those {after} then come twice)"),
        (after, true) => format!(" (it and later ones may have arrived all the same, {after} of them for certain)"),
    };
    let error = anyhow!(
        "{name} line {line} was not delivered: {why}; {} before it and {after} after it; go on without loss with \
         `--skip {}`{mend}{again}",
        delivered(before),
        line - 1
    );
    let code = if outgoing.interrupted() { code::INTERRUPTED } else { code::FAILURE };
    Failure { code, error }
}
