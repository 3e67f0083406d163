//! The embed stage: texts → matrices, exactly once.
//!
//! ```text
//!  source thread                 inference threads             commit thread
//!  poll, read, tokenise ─chunks─► batches by length ─results─► transaction: matrices, dead letters, offsets
//!        ▲      [3 in flight]                                        │
//!        └────────────────────── chunk committed ────────────────────┘
//! ```
//!
//! A chunk is what has arrived by the time an inference thread runs out of work: one record when little comes, up to
//! `embed.chunk_texts` under load. It is sorted by length inside and committed as a whole, in source order, by one
//! transaction that is opened only when all its matrices are there.

pub mod batch;
mod beginning;
mod commit;
pub mod context;
pub mod embedders;
mod recover;
mod source;
pub mod stage;
mod writers;

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::Arc;

use crossbeam_channel::{Receiver, Sender};
use rdkafka::message::{Message, OwnedMessage};

use crate::input::Invalid;
use embedders::embedder;
use embedders::tokenize::Tokenized;

/// Chunks between source and commit: one being inferred, one waiting, one being committed.
const CHUNKS_IN_FLIGHT: usize = 3;

/// A record of `texts` on its way through the stage.
struct Record {
    message: OwnedMessage,
    /// Number of the assignment under which it was polled.
    assignment: u64,
    content: Result<Text, Invalid>,
}

impl Record {
    fn origin(&self) -> Origin {
        let (partition, offset) = (self.message.partition(), self.message.offset());
        Origin { partition, offset, assignment: self.assignment }
    }
}

/// Where a record was polled, and under which assignment.
#[derive(Clone, Copy)]
struct Origin {
    partition: i32,
    offset: i64,
    assignment: u64,
}

/// A record that can be embedded.
struct Text {
    /// Empty unless the embedder wants it.
    text: String,
    label: Option<String>,
    id: Option<Vec<u8>>,
    tokenized: Tokenized,
}

/// Records that are committed together.
struct Chunk {
    /// In source order within each partition.
    records: Arc<Vec<Record>>,
    /// How many results will come.
    batches: usize,
    results: Receiver<BatchResult>,
}

/// Matrices of one inference call, and which records of the chunk they belong to.
struct BatchResult {
    indices: Vec<u32>,
    matrices: Result<Vec<Vec<u8>>, embedder::Error>,
}

/// A batch on its way to an inference thread.
struct Job {
    pub records: Arc<Vec<Record>>,
    pub indices: Vec<u32>,
    pub results: Sender<BatchResult>,
}

/// Chunks between source and commit.
#[derive(Clone, Default)]
struct InFlight(Arc<AtomicUsize>);

impl InFlight {
    pub fn enter(&self) {
        let _ = self.0.fetch_add(1, Ordering::AcqRel);
    }
    pub fn leave(&self) {
        let _ = self.0.fetch_sub(1, Ordering::AcqRel);
    }
    pub fn count(&self) -> usize {
        self.0.load(Ordering::Acquire)
    }
}
