//! sweepstream embeds a Kafka topic of text once, exactly once, and trains any number of models from the result.
//!
//! The embed stage turns each text into a matrix, one row for each word, and writes it to a *features* topic in the
//! same transaction that commits its input. A *search* freezes what that topic holds; each of its *trials*, one for
//! each combination of hyper-parameters, replays the frozen range as a consumer group of its own and publishes
//! measurements and checkpoints. Kafka is the only store and the only scheduler.
//!
//! ```text
//!   texts ──► embed workers ──► features ──► trials (one consumer group each) ──► output
//!  (input)    poll│infer│commit  (matrices)     replay│fit│publish               measurements, checkpoints,
//!               │                                  ▲                             outcomes
//!               └► dead-letters                    └── trials topic: what to run, and who runs it
//! ```
//!
//! Every arrow is a topic, so each stage can run in a process of its own, in as many as there is work for.
//! `ARCHITECTURE.md` states the promises that are kept, the capacity of every queue, and why things are as they are.
//!
//! The crate is a program first: its interface is the command line. The modules are public for tests and benchmarks.
//! In the order in which data flows:
//!
//! - [`cli`]: the command line, one file for each subcommand
//! - [`config`]: typed settings from defaults, file, environment and flags; their relations are checked once
//! - [`parts`]: where ONNX Runtime, models, Kafka's jars and corpora lie
//! - [`topology`]: wires the stages together, starts them, builds them anew after failures, stops them
//! - [`stage`]: what a stage is
//! - [`kafka`]: clients, members of groups, transactions, topics, offsets, and a local broker
//! - [`input`]: a record of `texts` becomes a document, or the reason why not
//! - [`embed`]: the embed stage, documents to matrices, exactly once
//! - [`features`]: how a matrix is written, and how a frozen range is replayed in the same order
//! - [`models`]: kinds of models, their parameters, losses and gradients
//! - [`learn`]: one trial's training: steps, evaluation, state
//! - [`search`]: what a search file says, what a trial is, and what searches came to
//! - [`train`]: the train stage: the pool that runs trials, and what is stored of them
//! - [`output`]: what is published, and under which keys
//! - [`plot`]: a search as a picture
//! - [`metrics`]: all Prometheus handles
//! - [`status`]: what this process is doing right now
//! - [`http`]: both of them for others to read
//! - [`coordinates`]: where records lie, and where readers stand
//! - [`sync`]: the locks that threads share things by
//! - [`testing`]: trains models on records in memory, for tests of a user's own
//! - [`text`]: words for people, at the bottom of all

// They panic where nobody can read: `cli::output` does not.
#![warn(clippy::print_stderr, clippy::print_stdout)]

// Apart by blank lines, so that rustfmt keeps the order.

pub mod cli;

pub mod config;

pub mod parts;

pub mod topology;

pub mod stage;

pub mod kafka;

pub mod coordinates;

pub mod sync;

pub mod input;

pub mod embed;

pub mod features;

pub mod models;

pub mod learn;

pub mod train;

pub mod search;

pub mod output;

pub mod plot;

pub mod metrics;

pub mod status;

pub mod http;

pub mod testing;

pub mod text;
