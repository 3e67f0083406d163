//! Exactly once, written once: how a transaction is repeated, how what a dead owner has left open is ended, and how an
//! owner makes sure that what it has committed still stands.
//!
//! ```text
//! attempt ─► committed: done
//!    ▲ └───► failed ─► next(error) ─► the group has moved on: its next assignment is awaited ─┐
//!    │                             ├► again, after a pause ───────────────────────────────────┤
//!    │                             ├► again, with a producer in the place of a dead one ──────┤
//!    │                             └► given up: whoever owns it next looks up what was done   │
//!    └── what is still ours is asked anew ◄───────────────────────────────────────────────────┘
//! ```
//!
//! *Hanging transactions.* A single broker that is its own controller, killed and started again, finds transactions
//! that are being committed, or have timed out, before its partitions have a leader again. It takes those for deleted,
//! and declares the transaction ended without having written that into them (seen with Kafka 4.3: "Couldn't find leader
//! endpoint … likely deleted already"). Read-committed readers of such a partition then wait for ever, and the next
//! commit or abort of the same producer decides about the forgotten one, too, whatever it was.
//!
//! - Whoever follows a dead owner scrubs: writes once to everything such a transaction writes to, and aborts. So no
//!   later commit makes records visible that were to be aborted.
//! - The abort may take back what had been acknowledged. Before each commit, and before a trial repeats one that was
//!   aborted, the committed offsets must be what was committed last ([`Remembered`]); where they are not, the work is
//!   done again from where they are.
//! - A broker that dies between two markers ends a transaction by halves. Where features and offset have parted, the
//!   features count; where a trial's group and its newest checkpoint are one publication apart, the checkpoint counts:
//!   it lies with its measurements in one partition, and they cannot part.
//! - The local broker looks for timed-out transactions each second only while its data is new.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use rdkafka::consumer::ConsumerGroupMetadata;
use rdkafka::error::RDKafkaErrorCode;
use rdkafka::topic_partition_list::TopicPartitionList;

use super::error::{Class, Error, Result};
use super::lease::Lease;
use super::offsets::{self, Committed, CommittedWatch};
use super::transaction::{Outgoing, TransactionalProducer};
use crate::config::Settings;
use crate::metrics::{TransactionOutcome, Transactions};

/// How long the markers of a transaction that has just ended may take.
pub const SETTLE: Duration = Duration::from_secs(1);

/// Of a pause, times the failures before it.
const PAUSE: Duration = Duration::from_millis(100);

/// How long after its session a member may hear of its group.
pub const REBALANCE: Duration = Duration::from_secs(10);

/// What follows from a transaction that failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// The group has moved on: only its next assignment tells what is still ours.
    AwaitAssignment,
    /// That assignment did not come. The same again may help, if the group had not moved on after all.
    Unassigned,
    /// The same again, after a pause.
    Again(Duration),
    /// The same again with another producer, which looks up what the dead one has done.
    Replace,
    /// No attempt of this owner can help.
    GiveUp,
}

/// What follows from this failure, the last of so many in a row.
pub fn next(error: &Error, failures: u32, failures_max: u32) -> Next {
    match error.class() {
        _ if is_of_no_topic(error) => Next::GiveUp,
        Class::Stale => Next::AwaitAssignment,
        _ if failures >= failures_max => Next::GiveUp,
        Class::Retriable | Class::Abort => Next::Again(PAUSE * failures),
        Class::Fenced | Class::Fatal => Next::Replace,
    }
}

/// The topic is gone: each further attempt would wait as long for nothing (10 s).
fn is_of_no_topic(error: &Error) -> bool {
    error.code() == Some(RDKafkaErrorCode::UnknownTopicOrPartition)
}

fn outcome(error: &Error, next: Next) -> TransactionOutcome {
    match (error.class(), next) {
        (Class::Stale | Class::Fenced, _) => TransactionOutcome::Fenced,
        (Class::Retriable | Class::Abort, Next::GiveUp) if !is_of_no_topic(error) => TransactionOutcome::Failed,
        (Class::Retriable | Class::Abort, _) => TransactionOutcome::Aborted,
        (Class::Fatal, _) => TransactionOutcome::Failed,
    }
}

/// Whoever commits in the name of an assignment.
pub trait Owner {
    /// What a transaction came to.
    type Done;
    /// Why there will be no transaction.
    type Error: From<Error>;

    /// What it is, for the log.
    const NAME: &'static str;

    /// One transaction over what is still ours; nothing, where nothing is. The inner error is the transaction's own.
    ///
    /// # Errors
    /// What no further attempt can mend.
    fn attempt(&mut self) -> Result<Result<Option<Self::Done>>, Self::Error>;

    /// Makes ready for another attempt.
    ///
    /// # Errors
    /// What no further attempt can mend.
    fn prepare(&mut self, next: Next, error: &Error) -> Result<(), Self::Error>;

    /// Waits between attempts.
    fn pause(&self, pause: Duration) {
        std::thread::sleep(pause);
    }
}

/// The conditions under which an [`Owner`] commits.
#[derive(Clone, Copy)]
pub struct Terms<'a> {
    pub lease: &'a Lease,
    /// Failures in a row after which it gives up.
    pub failures_max: u32,
    /// How long an assignment is awaited.
    pub patience: Duration,
    /// Where to count them; their time is the owner's to measure.
    pub metrics: &'a Transactions,
}

/// Repeats a transaction until it is committed, or until nothing of it is ours any more.
///
/// # Errors
/// The first failure that no further attempt can mend, or the last one.
pub fn commit<O: Owner>(owner: &mut O, terms: Terms<'_>) -> Result<Option<O::Done>, O::Error> {
    let mut failures = 0;
    loop {
        let version = terms.lease.hold().version;
        let error = match owner.attempt()? {
            Ok(done) => {
                if done.is_some() {
                    terms.metrics.count(TransactionOutcome::Committed);
                }
                return Ok(done);
            }
            // That is no transaction's end, but why there was none.
            Err(error @ (Error::Data { .. } | Error::Undone { .. })) => return Err(error.into()),
            Err(error) => error,
        };
        failures += 1;
        let mut next = next(&error, failures, terms.failures_max);
        terms.metrics.count(outcome(&error, next));
        let (class, seen) = (error.class(), error.visibility());
        tracing::warn!(%error, ?class, failures, "a transaction of {} failed; {seen}", O::NAME);
        match next {
            // That is no failure.
            Next::AwaitAssignment if terms.lease.await_change(version, terms.patience) => failures -= 1,
            Next::AwaitAssignment if failures < terms.failures_max => next = Next::Unassigned,
            Next::AwaitAssignment | Next::Unassigned | Next::GiveUp => return Err(error.into()),
            Next::Again(pause) => owner.pause(pause),
            Next::Replace => {}
        }
        owner.prepare(next, &error)?;
    }
}

/// Writes to everything that a transaction of this producer may have written to, and aborts.
///
/// A coordinator that is restarted may forget a transaction without having ended it in every partition; readers then
/// wait for ever, and the *next* commit of the same producer would make its records visible. An abort ends it for good.
///
/// # Errors
/// When the producer died over it, or the group has moved on.
pub fn scrub(
    producer: &mut TransactionalProducer,
    places: &[(&str, i32)],
    groups: &[(&TopicPartitionList, &ConsumerGroupMetadata)],
) -> Result<()> {
    let mut transaction = producer.begin()?;
    for &(topic, partition) in places {
        let key = Some(b"scrub".as_slice());
        transaction.send(&Outgoing { topic, partition, key, value: None, inherited: None, headers: &[] })?;
    }
    for (offsets, group) in groups {
        match transaction.send_offsets(offsets, group) {
            // The topic is gone, and its offsets with it; what that means is found out by reading.
            Err(error) if error.code() == Some(RDKafkaErrorCode::UnknownTopicOrPartition) => break,
            result => result?,
        }
    }
    transaction.abort()
}

/// What a group has committed for a topic, as whoever committed it remembers, to be held against what Kafka says.
pub struct Remembered<'a, P> {
    pub group: &'a str,
    /// The topic that was read.
    pub topic: &'a str,
    /// Partition → where the group must stand, by [`Place::is_reached`].
    pub expected: &'a BTreeMap<i32, P>,
}

/// Where a group stands in a partition.
pub trait Place {
    /// Whether what Kafka holds is this place, or, where places have an order, one beyond it.
    fn is_reached(&self, held: &Committed) -> bool;

    /// For messages.
    fn name(&self) -> String;

    /// For messages: what Kafka holds.
    fn name_of(held: &Committed) -> String;
}

/// The next record to read.
impl Place for i64 {
    fn is_reached(&self, held: &Committed) -> bool {
        held.offset >= *self
    }

    fn name(&self) -> String {
        format!("offset {self}")
    }

    fn name_of(held: &Committed) -> String {
        held.offset.name()
    }
}

/// How what was committed compares with what Kafka holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    Held,
    /// Kafka holds another place in this partition, most often less.
    Behind(i32),
    /// Kafka holds nothing in this partition: it removes a topic's offsets with the topic.
    Vanished(i32),
}

impl<P: Place> Remembered<'_, P> {
    /// Compares. What has vanished matters more than what is behind.
    pub fn standing(&self, held: &BTreeMap<i32, Committed>) -> Standing {
        let vanished = self.expected.keys().find(|partition| !held.contains_key(partition));
        let is_behind =
            |(partition, place): &(&i32, &P)| held.get(partition).is_some_and(|held| !place.is_reached(held));
        match (vanished, self.expected.iter().find(is_behind)) {
            (Some(&partition), _) => Standing::Vanished(partition),
            (None, Some((&partition, _))) => Standing::Behind(partition),
            (None, None) => Standing::Held,
        }
    }

    /// What was committed last must stand, or what follows would hide that it does not: a broker that was restarted in
    /// the midst of a commit may have forgotten it, and the next abort then takes it back, too.
    ///
    /// All partitions are looked at: one commit of the group's coordinator decides about all that is pending. With a
    /// `watch`, markers that are merely slow cost nothing but themselves.
    ///
    /// # Errors
    /// [`Error::Undone`] when Kafka holds less, `vanished` where it holds nothing, and when no coordinator answers.
    pub fn confirm(
        &self,
        settings: &Settings,
        watch: Option<&CommittedWatch>,
        vanished: impl Fn(i32) -> Error,
    ) -> Result<()> {
        let partitions: Vec<i32> = self.expected.keys().copied().collect();
        let deadline = Instant::now() + SETTLE;
        loop {
            let quick = watch.filter(|_| Instant::now() <= deadline);
            let held = match quick {
                Some(watch) => watch.read(&partitions)?,
                None => {
                    let bound = settings.kafka.open_transaction_max();
                    offsets::committed(settings, self.group, self.topic, &partitions, bound)?
                }
            };
            match self.standing(&held) {
                Standing::Held => return Ok(()),
                Standing::Vanished(partition) => return Err(vanished(partition)),
                Standing::Behind(_) if quick.is_some() => std::thread::sleep(Duration::from_millis(5)),
                Standing::Behind(partition) => return Err(self.undone(partition, held.get(&partition))),
            }
        }
    }

    /// The error that says that Kafka holds less.
    pub fn undone(&self, partition: i32, held: Option<&Committed>) -> Error {
        Error::Undone {
            topic: self.topic.to_owned(),
            partition,
            group: self.group.to_owned(),
            held: held.map_or_else(|| "no offset".into(), P::name_of),
            committed: self.expected.get(&partition).map_or_else(|| "nothing".into(), P::name),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use rdkafka::error::KafkaError;

    use super::*;
    use crate::metrics::Metrics;

    fn failed(code: RDKafkaErrorCode) -> Error {
        Error::Call { action: "committing".into(), source: KafkaError::Global(code) }
    }

    fn undone() -> Error {
        let (topic, group) = ("texts".to_owned(), "embed".to_owned());
        Error::Undone { topic, partition: 0, group, held: "offset 3".into(), committed: "offset 4".into() }
    }

    /// Fails as it is told to, one failure for each attempt, and notes what it is asked for.
    #[derive(Default)]
    struct Fake {
        failures: Vec<Error>,
        attempts: usize,
        prepared: Vec<Next>,
        pauses: RefCell<Vec<Duration>>,
        /// The group moves on when an attempt has failed.
        moves: Option<std::sync::Arc<Lease>>,
        ours: bool,
    }

    impl Fake {
        fn failing(failures: impl IntoIterator<Item = Error>) -> Self {
            let mut failures: Vec<Error> = failures.into_iter().collect();
            failures.reverse();
            Self { failures, ours: true, ..Self::default() }
        }
    }

    impl Owner for Fake {
        type Done = usize;
        type Error = Error;

        const NAME: &'static str = "a test";

        fn attempt(&mut self) -> Result<Result<Option<usize>>> {
            self.attempts += 1;
            if let Some(error) = self.failures.pop() {
                if let Some(lease) = &self.moves {
                    lease.change(|_| {});
                }
                return Ok(Err(error));
            }
            Ok(Ok(self.ours.then_some(self.attempts)))
        }

        fn prepare(&mut self, next: Next, _: &Error) -> Result<()> {
            self.prepared.push(next);
            Ok(())
        }

        fn pause(&self, pause: Duration) {
            self.pauses.borrow_mut().push(pause);
        }
    }

    fn run(fake: &mut Fake) -> (Result<Option<usize>>, [u64; 4]) {
        let metrics = Metrics::new().unwrap().embed.transactions;
        let lease = fake.moves.clone().unwrap_or_default();
        let terms = Terms { lease: &lease, failures_max: 3, patience: Duration::ZERO, metrics: &metrics };
        let done = commit(fake, terms);
        (done, TransactionOutcome::ALL.map(|outcome| metrics.counted(outcome)))
    }

    #[test]
    fn each_class_has_its_way_on() {
        use RDKafkaErrorCode as Code;
        let cases = [
            (failed(Code::RequestTimedOut), 1, Next::Again(PAUSE)),
            (failed(Code::RequestTimedOut), 2, Next::Again(PAUSE * 2)),
            (failed(Code::RequestTimedOut), 3, Next::GiveUp),
            (failed(Code::MessageSizeTooLarge), 1, Next::Again(PAUSE)),
            (failed(Code::IllegalGeneration), 1, Next::AwaitAssignment),
            (failed(Code::UnknownMemberId), 9, Next::AwaitAssignment),
            (failed(Code::Fenced), 1, Next::Replace),
            (failed(Code::Fatal), 2, Next::Replace),
            (failed(Code::Fenced), 3, Next::GiveUp),
            (failed(Code::UnknownTopicOrPartition), 1, Next::GiveUp),
        ];
        for (error, failures, expected) in cases {
            assert_eq!(next(&error, failures, 3), expected, "{error}, the {failures}th");
        }
    }

    #[test]
    fn what_passes_is_tried_again_and_pauses_grow() {
        let mut fake = Fake::failing([failed(RDKafkaErrorCode::RequestTimedOut), failed(RDKafkaErrorCode::Fenced)]);
        let (done, counted) = run(&mut fake);
        assert_eq!(done.unwrap(), Some(3));
        assert_eq!(fake.prepared, [Next::Again(PAUSE), Next::Replace]);
        assert_eq!(*fake.pauses.borrow(), [PAUSE]);
        assert_eq!(counted, [1, 1, 1, 0]);
    }

    #[test]
    fn what_was_undone_ends_it_without_being_a_transaction() {
        let mut fake = Fake::failing([undone()]);
        let (done, counted) = run(&mut fake);
        assert!(matches!(done, Err(Error::Undone { .. })));
        assert_eq!((fake.attempts, counted), (1, [0; 4]));
    }

    #[test]
    fn a_topic_that_is_gone_is_not_written_to_again() {
        let mut fake = Fake::failing([failed(RDKafkaErrorCode::UnknownTopicOrPartition)]);
        let (done, counted) = run(&mut fake);
        assert_eq!(done.unwrap_err().code(), Some(RDKafkaErrorCode::UnknownTopicOrPartition));
        assert_eq!((fake.attempts, counted), (1, [0, 1, 0, 0]));
    }

    #[test]
    fn so_many_failures_in_a_row_are_the_end() {
        let timed_out = || failed(RDKafkaErrorCode::RequestTimedOut);
        let mut fake = Fake::failing([timed_out(), timed_out(), timed_out()]);
        let (done, counted) = run(&mut fake);
        assert_eq!(done.unwrap_err().code(), Some(RDKafkaErrorCode::RequestTimedOut));
        assert_eq!((fake.attempts, counted), (3, [0, 2, 0, 1]));
    }

    #[test]
    fn an_assignment_that_moved_on_is_no_failure_however_often() {
        let stale = || failed(RDKafkaErrorCode::IllegalGeneration);
        let mut fake = Fake::failing((0..10).map(|_| stale()));
        fake.moves = Some(std::sync::Arc::default());
        let (done, counted) = run(&mut fake);
        assert_eq!((done.unwrap(), counted), (Some(11), [1, 0, 10, 0]));
        assert_eq!(fake.prepared, [Next::AwaitAssignment; 10]);
    }

    #[test]
    fn an_assignment_that_does_not_come_is_a_failure() {
        let stale = || failed(RDKafkaErrorCode::IllegalGeneration);
        let mut fake = Fake::failing([stale()]);
        assert_eq!(run(&mut fake).0.unwrap(), Some(2));
        assert_eq!(fake.prepared, [Next::Unassigned]);
        let mut fake = Fake::failing([stale(), stale(), stale()]);
        assert_eq!(run(&mut fake).0.unwrap_err().code(), Some(RDKafkaErrorCode::IllegalGeneration));
        assert_eq!((fake.attempts, fake.prepared), (3, vec![Next::Unassigned; 2]));
    }

    #[test]
    fn what_is_not_ours_any_more_is_neither_committed_nor_counted() {
        let mut fake = Fake::default();
        let (done, counted) = run(&mut fake);
        assert_eq!((done.unwrap(), counted), (None, [0; 4]));
    }

    #[test]
    fn what_vanished_matters_more_than_what_is_behind() {
        let held = |offset| Committed { offset, metadata: String::new() };
        let expected = BTreeMap::from([(0, 5), (1, 7), (2, 9)]);
        let remembered = Remembered { group: "embed", topic: "texts", expected: &expected };
        let at = |offsets: &[(i32, i64)]| {
            remembered.standing(&offsets.iter().map(|&(partition, offset)| (partition, held(offset))).collect())
        };
        assert_eq!(at(&[(0, 5), (1, 8), (2, 9), (3, 0)]), Standing::Held);
        assert_eq!(at(&[(0, 5), (1, 6), (2, 8)]), Standing::Behind(1));
        assert_eq!(at(&[(0, 4), (1, 6)]), Standing::Vanished(2));
        let error = remembered.undone(1, Some(&held(6))).to_string();
        assert!(error.contains("texts/1: group `embed` stands at offset 6, though offset 7"), "{error}");
    }
}
