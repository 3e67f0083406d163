//! `produce`: lines of a file or of standard input become records of the input topic.

use std::fs::File;
use std::io::{self, BufRead, BufReader};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context;
use clap::Args;
use rdkafka::config::FromClientConfigAndContext;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{BaseRecord, DeliveryResult, Producer, ProducerContext, ThreadedProducer};

use super::output::Progress;
use super::{connect, Environment, Result};
use crate::config::{InputFormat, Settings};
use crate::input::LABEL_HEADER;
use crate::kafka::client;
use crate::kafka::topics::Declarations;

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  sweepstream produce corpus.txt                 each line is a text, without a key
  cut -f2 mails.tsv | sweepstream produce -
  sweepstream produce --json reviews.jsonl       {\"id\": \"7\", \"text\": \"…\", \"label\": \"good\"}

With --json, `id` becomes the key and `label` the label header; the names of the fields are settings (input.*).
With `input.format = \"json\"` lines are produced as they are, and `id` becomes the key.")]
pub struct Arguments {
    /// File with a record for each line; `-` is standard input
    file: PathBuf,
    /// Lines are JSON objects
    #[arg(long)]
    json: bool,
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

pub fn run(environment: &Environment, arguments: &Arguments) -> Result {
    connect(environment)?;
    let settings = &environment.settings;
    let _ = Declarations::load(settings)?.create_missing(settings)?;
    let reader: Box<dyn BufRead> = if arguments.file.as_os_str() == "-" {
        Box::new(BufReader::new(io::stdin()))
    } else {
        let file = File::open(&arguments.file).with_context(|| format!("opening {}", arguments.file.display()))?;
        Box::new(BufReader::new(file))
    };
    let json = arguments.json || settings.input.format == InputFormat::Json;
    let name = arguments.file.display().to_string();
    let lines = reader.split(b'\n').enumerate().map(|(number, line)| {
        let mut line = line.with_context(|| format!("reading {name} line {}", number + 1))?;
        if line.last() == Some(&b'\r') {
            let _ = line.pop();
        }
        if json {
            from_json(settings, line).with_context(|| format!("{name} line {}", number + 1))
        } else {
            Ok(Input { key: None, value: line, label: None })
        }
    });
    let count = produce(settings, lines, None)?;
    eprintln!("produced {count} records to topic `{}`", settings.topics.texts);
    Ok(())
}

fn from_json(settings: &Settings, line: Vec<u8>) -> anyhow::Result<Input> {
    let input = &settings.input;
    let object: serde_json::Map<String, serde_json::Value> =
        serde_json::from_slice(&line).context("not a JSON object")?;
    let scalar = |field: &str| match object.get(field) {
        Some(serde_json::Value::String(text)) => Some(text.clone()),
        Some(serde_json::Value::Null) | None => None,
        Some(other) => Some(other.to_string()),
    };
    let key = scalar(&input.id_field).map(String::into_bytes);
    if input.format == InputFormat::Json {
        return Ok(Input { key, value: line, label: None });
    }
    let text = object.get(&input.text_field).and_then(|text| text.as_str());
    let text = text.with_context(|| format!("no text in the field `{}`", input.text_field))?;
    Ok(Input { key, value: text.as_bytes().to_vec(), label: scalar(&input.label_field) })
}

/// Produces records and waits until all have arrived; returns how many.
///
/// # Errors
/// The first record that could not be read or was refused.
pub fn produce(
    settings: &Settings,
    records: impl Iterator<Item = anyhow::Result<Input>>,
    mut progress: Option<&mut Progress>,
) -> anyhow::Result<u64> {
    let config = client::producer(settings);
    let failures = Failures::default();
    let producer: ThreadedProducer<Failures> = ThreadedProducer::from_config_and_context(&config, failures.clone())?;
    let mut count = 0;
    for record in records {
        let record = record?;
        let mut outgoing: BaseRecord<'_, [u8], [u8]> = BaseRecord::to(&settings.topics.texts).payload(&record.value);
        outgoing.key = record.key.as_deref();
        if let Some(label) = &record.label {
            let header = Header { key: LABEL_HEADER, value: Some(label) };
            outgoing.headers = Some(OwnedHeaders::new().insert(header));
        }
        loop {
            match producer.send(outgoing) {
                Ok(()) => break,
                Err((KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull), refused)) => {
                    outgoing = refused;
                    std::thread::sleep(Duration::from_millis(10));
                }
                Err((error, _)) => return Err(error).with_context(|| format!("record {}", count + 1)),
            }
        }
        failures.check()?;
        count += 1;
        if let Some(progress) = progress.as_deref_mut() {
            progress.set(count, "");
        }
    }
    // The producer's own thread serves delivery reports, so this only waits.
    while producer.in_flight_count() > 0 {
        std::thread::sleep(Duration::from_millis(2));
    }
    failures.check()?;
    Ok(count)
}

/// Keeps the first delivery that failed.
#[derive(Clone, Default)]
struct Failures(std::sync::Arc<parking_lot::Mutex<Option<KafkaError>>>);

impl Failures {
    fn check(&self) -> anyhow::Result<()> {
        match self.0.lock().take() {
            Some(error) => Err(error).context("a record was not delivered"),
            None => Ok(()),
        }
    }
}

impl rdkafka::ClientContext for Failures {
    fn log(&self, _: rdkafka::config::RDKafkaLogLevel, facility: &str, message: &str) {
        tracing::debug!(target: "rdkafka", facility, "{message}");
    }

    fn error(&self, error: KafkaError, reason: &str) {
        tracing::debug!(target: "rdkafka", %error, reason, "producer error");
    }
}

impl ProducerContext for Failures {
    type DeliveryOpaque = ();

    fn delivery(&self, result: &DeliveryResult<'_>, (): ()) {
        if let Err((error, _)) = result {
            let _ = self.0.lock().get_or_insert(error.clone());
        }
    }
}
