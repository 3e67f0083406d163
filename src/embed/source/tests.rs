//! The source, round by round, over a group and a topic that a test has made up.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;

use crossbeam_channel::{unbounded, Receiver};
use rdkafka::message::Timestamp;

use super::*;
use crate::config::Settings;
use crate::embed::embedders::tokenize::{tests::tokenizer, RowKind};
use crate::kafka::topics::{Topic, TopicSet};
use crate::metrics::Metrics;
use crate::stage;
use crate::status::Status;

/// A group of one member, whose topic gives what a test has put into it.
#[derive(Default)]
struct Fake {
    rebalances: VecDeque<Rebalance>,
    records: RefCell<BTreeMap<i32, VecDeque<OwnedMessage>>>,
    /// Given once instead of a record.
    errors: RefCell<VecDeque<(i32, kafka::Error)>>,
    owned: BTreeMap<i32, u64>,
    assignments: u64,
    released: Vec<i32>,
    polls: Cell<usize>,
}

impl GroupMember for Fake {
    fn poll_group(&mut self) -> kafka::Result<Option<Rebalance>> {
        Ok(self.rebalances.pop_front())
    }

    fn take(&mut self, positions: &Positions) -> kafka::Result<()> {
        self.assignments += 1;
        self.owned.extend(positions.keys().map(|&partition| (partition, self.assignments)));
        Ok(())
    }

    fn release(&mut self, partitions: &[i32]) -> kafka::Result<()> {
        self.owned.retain(|partition, _| !partitions.contains(partition));
        self.released.extend(partitions);
        Ok(())
    }

    fn poll_partition(&self, partition: i32) -> kafka::Result<Option<Polled<OwnedMessage>>> {
        self.polls.set(self.polls.get() + 1);
        let mut errors = self.errors.borrow_mut();
        if errors.front().is_some_and(|(of, _)| *of == partition) {
            return errors.pop_front().map_or(Ok(None), |(_, error)| Err(error));
        }
        Ok(self.records.borrow_mut().get_mut(&partition).and_then(VecDeque::pop_front).map(Polled::Record))
    }

    fn check_partitions(&self, _: i32, _: &str) -> kafka::Result<()> {
        Ok(())
    }

    fn owned(&self) -> BTreeMap<i32, u64> {
        self.owned.clone()
    }

    fn lag(&self) -> BTreeMap<i32, i64> {
        BTreeMap::new()
    }

    fn connected(&self) -> bool {
        true
    }
}

fn context(change: impl FnOnce(&mut Settings)) -> Context {
    let mut settings = Settings::default();
    settings.embed.sessions = std::num::NonZeroUsize::new(1);
    change(&mut settings);
    let topic = |name: &str| Topic { name: name.into(), partitions: 4, message_bytes_max: 1 << 20 };
    let topics = TopicSet {
        texts: topic("texts"),
        features: topic("features"),
        dead_letters: topic("dead-letters"),
        trials: topic("trials"),
        output: topic("output"),
    };
    let status = Status::default();
    let own = status.add_stage("embed");
    let (metrics, stop) = (Metrics::new().unwrap(), CancellationToken::new());
    Context::new(stage::Context { settings, topics, metrics, status, own, stop })
}

fn record(partition: i32, offset: i64) -> OwnedMessage {
    let (text, time) = (b"sea light".to_vec(), Timestamp::NotAvailable);
    OwnedMessage::new(Some(text), None, "texts".into(), time, partition, offset, None)
}

/// A source over a fake group, and what it hands over.
struct Bench<'c> {
    source: Source<'c, Fake>,
    jobs: (Sender<Job>, Receiver<Job>),
    chunks: (Sender<Chunk>, Receiver<Chunk>),
    in_flight: InFlight,
}

impl Bench<'_> {
    fn round(&mut self) -> Result<bool, Error> {
        self.source.run_once(&self.jobs.0, &self.chunks.0)
    }

    fn rounds(&mut self, count: usize) {
        for _ in 0..count {
            let _ = self.round().unwrap();
        }
    }

    fn put(&self, partition: i32, offsets: std::ops::Range<i64>) {
        let mut records = self.source.member.records.borrow_mut();
        records.entry(partition).or_default().extend(offsets.map(|offset| record(partition, offset)));
    }

    /// Partition, offset and assignment of the records of the next chunk.
    fn chunk(&self) -> Vec<(i32, i64, u64)> {
        let chunk = self.chunks.1.try_recv().unwrap();
        let origin = |record: &Record| (record.message.partition(), record.message.offset(), record.assignment);
        chunk.records.iter().map(origin).collect()
    }

    /// As inference and commit do.
    fn finish_chunk(&self) {
        while self.jobs.1.try_recv().is_ok() {}
        self.in_flight.leave();
    }
}

/// Begins with an assignment of these partitions.
fn with(context: &Context, partitions: &[i32], test: impl FnOnce(Bench<'_>)) {
    let tokenizer = tokenizer(RowKind::Word, 16);
    let recover =
        |_: &Fake, partitions: &[i32], _: bool| Ok(partitions.iter().map(|&partition| (partition, 0)).collect());
    let member = Fake { rebalances: [Rebalance::Assigned(partitions.to_vec())].into(), ..Fake::default() };
    let (in_flight, wake, failed) = (InFlight::default(), Wake::default(), CancellationToken::new());
    let source = Source::new(context, member, &recover, (&tokenizer, false), in_flight.clone(), wake, failed);
    test(Bench { source, jobs: unbounded(), chunks: unbounded(), in_flight });
}

#[test]
fn what_little_comes_is_handed_over_at_once() {
    let context = context(|_| {});
    with(&context, &[0], |mut bench| {
        assert!(bench.round().unwrap(), "an assignment is something to do");
        assert!(!bench.round().unwrap());
        bench.put(0, 0..1);
        assert!(bench.round().unwrap());
        assert_eq!(bench.chunk(), [(0, 0, 1)]);
        assert_eq!((bench.jobs.1.len(), bench.in_flight.count()), (1, 1));
    });
}

#[test]
fn under_load_records_gather_until_a_chunk_is_full_and_then_nothing_is_polled() {
    let context = context(|settings| settings.embed.chunk_texts = std::num::NonZeroUsize::new(50).unwrap());
    with(&context, &[0, 1], |mut bench| {
        bench.put(0, 0..400);
        // One chunk for each that may be under way. None of them is inferred.
        bench.rounds(40);
        assert_eq!(bench.in_flight.count(), CHUNKS_IN_FLIGHT);
        assert_eq!(bench.chunk().len(), TURN_RECORDS, "there was nothing to do");
        assert_eq!((bench.chunk().len(), bench.chunk().len()), (50, 50));
        assert_eq!(bench.source.pending.len(), 50);
        let polls = bench.source.member.polls.get();
        (0..40).for_each(|_| assert!(!bench.round().unwrap()));
        assert_eq!(bench.source.member.polls.get(), polls);
        bench.finish_chunk();
        bench.rounds(40);
        let next = bench.chunk();
        assert_eq!((next.len(), next[0]), (50, (0, 132, 1)), "in order, nothing left out");
    });
}

#[test]
fn partitions_take_turns() {
    let context = context(|_| {});
    with(&context, &[0, 1, 2], |mut bench| {
        // Without a room for a chunk everything stays where it can be seen.
        (0..CHUNKS_IN_FLIGHT).for_each(|_| bench.in_flight.enter());
        for partition in 0..3 {
            bench.put(partition, 0..100);
        }
        bench.rounds(4);
        let partitions: Vec<i32> = bench.source.pending.iter().map(|record| record.message.partition()).collect();
        let turns: Vec<i32> = partitions.chunks(TURN_RECORDS).map(|turn| turn[0]).collect();
        assert_eq!(turns, [0, 1, 2, 0]);
        assert!(partitions.chunks(TURN_RECORDS).all(|turn| turn.iter().all(|partition| *partition == turn[0])));
    });
}

#[test]
fn what_was_only_read_of_a_revoked_partition_is_left_to_its_next_owner() {
    let context = context(|_| {});
    for rebalance in [Rebalance::Revoked(vec![1]), Rebalance::Lost(vec![1])] {
        with(&context, &[0, 1], |mut bench| {
            (0..CHUNKS_IN_FLIGHT).for_each(|_| bench.in_flight.enter());
            bench.put(0, 0..5);
            bench.put(1, 0..7);
            bench.rounds(3);
            assert_eq!(bench.source.pending.len(), 12);
            bench.source.member.rebalances.push_back(rebalance);
            let _ = bench.round().unwrap();
            assert_eq!(bench.source.member.released, [1]);
            assert_eq!((bench.source.pending.len(), bench.source.pending_tokens), (5, 5 * 4));
            // It comes back, under another assignment.
            bench.source.member.rebalances.push_back(Rebalance::Assigned(vec![1]));
            bench.put(1, 0..2);
            bench.rounds(2);
            bench.in_flight.leave();
            let _ = bench.round().unwrap();
            let assignments: BTreeMap<i32, u64> =
                bench.chunk().into_iter().map(|(partition, _, assignment)| (partition, assignment)).collect();
            assert_eq!(assignments, BTreeMap::from([(0, 1), (1, 2)]));
        });
    }
}

#[test]
fn errors_that_pass_cost_a_round_and_others_end_the_source() {
    let context = context(|_| {});
    with(&context, &[0, 1], |mut bench| {
        bench.put(0, 0..1);
        bench.put(1, 0..1);
        let away = || kafka::Error::injected(Some("-195".into()));
        bench.source.member.errors.borrow_mut().push_back((0, away()));
        bench.rounds(2);
        assert_eq!(bench.chunk(), [(1, 0, 1)], "the other partition goes on");
        bench.finish_chunk();
        bench.rounds(2);
        assert_eq!(bench.chunk(), [(0, 0, 1)], "and nothing is lost");
        bench.source.member.errors.borrow_mut().push_back((0, kafka::Error::injected(Some("-150".into()))));
        assert!((0..3).any(|_| bench.round().is_err()), "a fatal error ends it");
    });
}
