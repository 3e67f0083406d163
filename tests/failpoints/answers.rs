//! A broker that answers each transactional request with each kind of error: what class results, and what can be done
//! afterwards.
//!
//! The broker is librdkafka's mock. It gives the answers it is told to, but knows no transactions: it shows what the
//! client makes of an error, not what readers see.

use std::time::{Duration, Instant};

use libtest_mimic::Trial;
use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerGroupMetadata};
use rdkafka::mocking::MockCluster;
use rdkafka::producer::DefaultProducerContext;
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use rdkafka::types::{RDKafkaApiKey as Request, RDKafkaErrorCode as Code, RDKafkaRespErr};
use rdkafka::ClientConfig;
use sweepstream::config::Settings;
use sweepstream::features::range::{PartitionRange, Position, Range};
use sweepstream::features::replay::{Next, Replay};
use sweepstream::kafka::offsets::{Extent, Watermarks};
use sweepstream::kafka::transaction::{Outgoing, TransactionalProducer};
use sweepstream::kafka::{Class, Error};

use crate::case;
use crate::support::assert_in_time;

/// What each request's errors come to; `None` when the call succeeds once the answer is another one.
type Row = (Request, &'static [(Option<Class>, &'static [Code])]);

/// Not shown: what a broker never gives as an answer to that request.
const ANSWERS: [Row; 6] = [
    (
        Request::InitProducerId,
        &[
            (None, &PASSING),
            (None, &[Code::RequestTimedOut, Code::KafkaStorageError, Code::UnknownProducerId]),
            (Some(Class::Fenced), &FENCED),
            (Some(Class::Fatal), &[Code::TransactionalIdAuthorizationFailed, Code::ClusterAuthorizationFailed]),
        ],
    ),
    (
        Request::AddPartitionsToTxn,
        &[
            (None, &PASSING),
            (None, &[Code::UnknownTopicOrPartition]),
            (Some(Class::Abort), &[Code::TopicAuthorizationFailed, Code::InvalidProducerIdMapping]),
            (Some(Class::Fenced), &FENCED),
            (Some(Class::Fatal), &FATAL),
        ],
    ),
    (
        Request::Produce,
        &[
            (None, &[Code::BrokerTransportFailure, Code::RequestTimedOut, Code::KafkaStorageError]),
            (None, &[Code::NotLeaderForPartition, Code::LeaderNotAvailable, Code::UnknownTopicOrPartition]),
            (None, &[Code::NotEnoughReplicas]),
            (Some(Class::Abort), &[Code::MessageSizeTooLarge, Code::InvalidRecord, Code::InvalidTimestamp]),
            (Some(Class::Abort), &[Code::TopicAuthorizationFailed, Code::TransactionalIdAuthorizationFailed]),
            (Some(Class::Abort), &[Code::InvalidTransactionalState, Code::UnknownProducerId]),
            (Some(Class::Fenced), &FENCED),
            (Some(Class::Fatal), &[Code::OutOfOrderSequenceNumber]),
        ],
    ),
    (
        Request::AddOffsetsToTxn,
        &[
            (None, &PASSING),
            (None, &[Code::RequestTimedOut]),
            (Some(Class::Abort), &[Code::GroupAuthorizationFailed, Code::InvalidProducerIdMapping]),
            (Some(Class::Fenced), &FENCED),
            (Some(Class::Fatal), &FATAL),
        ],
    ),
    (
        Request::TxnOffsetCommit,
        &[
            (None, &PASSING),
            (None, &[Code::RequestTimedOut]),
            (Some(Class::Abort), &[Code::GroupAuthorizationFailed, Code::TopicAuthorizationFailed]),
            (Some(Class::Stale), &[Code::IllegalGeneration, Code::UnknownMemberId, Code::RebalanceInProgress]),
            (Some(Class::Stale), &[Code::FencedInstanceId, Code::StaleMemberEpoch, Code::FencedMemberEpoch]),
            (Some(Class::Fenced), &FENCED),
            (Some(Class::Fatal), &FATAL),
            (Some(Class::Fatal), &[Code::InvalidProducerIdMapping]),
        ],
    ),
    (
        Request::EndTxn,
        &[
            (None, &PASSING),
            (Some(Class::Abort), &[Code::InvalidProducerIdMapping]),
            (Some(Class::Fenced), &FENCED),
            (Some(Class::Fatal), &FATAL),
        ],
    ),
];

/// Of a coordinator that moves, loads, is busy, or hangs up.
const PASSING: [Code; 5] = [
    Code::CoordinatorLoadInProgress,
    Code::CoordinatorNotAvailable,
    Code::NotCoordinator,
    Code::ConcurrentTransactions,
    Code::BrokerTransportFailure,
];
const FENCED: [Code; 2] = [Code::InvalidProducerEpoch, Code::ProducerFenced];
const FATAL: [Code; 3] =
    [Code::InvalidTransactionalState, Code::TransactionalIdAuthorizationFailed, Code::ClusterAuthorizationFailed];

pub fn tests() -> Vec<Trial> {
    let row = |(request, answers): Row| {
        case(format!("errors_in_answer_to_{request:?}"), move || {
            std::thread::scope(|scope| {
                for &(wanted, codes) in answers {
                    // In a thread of its own, so that a row takes no longer than its slowest codes.
                    let each = move || codes.iter().for_each(|&code| answered_twice(request, code, wanted));
                    drop(std::thread::Builder::new().spawn_scoped(scope, each).unwrap());
                }
            });
        })
    };
    let never = |(request, code, wanted, usable): (Request, Code, Class, bool)| {
        case(format!("{code:?}_for_ever_in_answer_to_{request:?}"), move || {
            answered_for_ever(request, code, wanted, usable);
        })
    };
    let for_ever = [
        (Request::AddPartitionsToTxn, Code::NotCoordinator, Class::Abort, true),
        // A disk that is full.
        (Request::Produce, Code::KafkaStorageError, Class::Abort, true),
        (Request::AddOffsetsToTxn, Code::NotCoordinator, Class::Retriable, true),
        (Request::TxnOffsetCommit, Code::NotCoordinator, Class::Abort, true),
        // The commit is still under way, and nobody knows how it ends.
        (Request::EndTxn, Code::NotCoordinator, Class::Retriable, false),
    ];
    let leaderless = [
        case("a_partition_that_had_no_leader_is_asked_for_again", had_no_leader),
        case("a_partition_without_a_leader_is_not_gone", has_no_leader),
    ];
    ANSWERS.map(row).into_iter().chain(for_ever.map(never)).chain(leaderless).collect()
}

/// A client that has seen a partition without its leader keeps that in mind, and asks nobody again for minutes.
fn had_no_leader() {
    let mock = Mock::new(Duration::from_secs(20));
    mock.cluster.partition_leader(TOPIC, 0, None).unwrap();
    std::thread::scope(|scope| {
        let asked = scope.spawn(|| Watermarks::new(&mock.settings).unwrap().extent(TOPIC, 0));
        // Long enough for it to have asked.
        std::thread::sleep(Duration::from_secs(1));
        mock.cluster.partition_leader(TOPIC, 0, Some(1)).unwrap();
        assert_eq!(asked.join().unwrap().unwrap(), Extent { start: 0, end: 0 });
    });
}

const TOPIC: &str = "t";

/// A cluster of one broker, with settings and a group for it.
struct Mock {
    cluster: MockCluster<'static, DefaultProducerContext>,
    settings: Settings,
    group: ConsumerGroupMetadata,
}

impl Mock {
    fn new(transaction_timeout: Duration) -> Self {
        let cluster = MockCluster::new(1).unwrap();
        cluster.create_topic(TOPIC, 1, 1).unwrap();
        let mut settings = Settings::default();
        settings.kafka.bootstrap_servers = cluster.bootstrap_servers();
        settings.kafka.transaction_timeout = transaction_timeout;
        #[allow(clippy::disallowed_methods)] // a group is needed, and nothing of it is tested
        let mut config = ClientConfig::new();
        let config = config.set("bootstrap.servers", cluster.bootstrap_servers()).set("group.id", "g");
        let consumer: BaseConsumer = config.create().unwrap();
        let group = consumer.group_metadata().unwrap();
        Self { cluster, settings, group }
    }

    /// The next so many requests of this kind are answered with this error.
    fn answer(&self, request: Request, code: Code, times: usize) {
        self.cluster.request_errors(request, &vec![RDKafkaRespErr::try_from(code as i32).unwrap(); times]);
    }

    fn producer(&self) -> Result<TransactionalProducer, Error> {
        TransactionalProducer::new(&self.settings, "id", &[])
    }

    /// One transaction with a record and an offset.
    fn transact(&self, producer: &mut TransactionalProducer) -> Result<(), Error> {
        let mut transaction = producer.begin()?;
        transaction.send(&Outgoing {
            topic: TOPIC,
            partition: 0,
            key: None,
            value: Some(b"v"),
            inherited: None,
            headers: &[],
        })?;
        let mut offsets = TopicPartitionList::new();
        offsets.add_partition_offset(TOPIC, 0, Offset::Offset(1)).unwrap();
        transaction.send_offsets(&offsets, &self.group)?;
        transaction.commit()
    }
}

/// What is to be replayed is waited for, longer than a silence that makes a reader look after the log.
fn has_no_leader() {
    let mock = Mock::new(Duration::from_secs(20));
    mock.cluster.partition_leader(TOPIC, 0, None).unwrap();
    let partition = PartitionRange { partition: 0, start: 0, end: 3, records: 3, digest: format!("{:016x}", 0) };
    let range = Range { topic: TOPIC.into(), partitions: vec![partition] };
    let began = Instant::now();
    let stopped = move || began.elapsed() > Duration::from_secs(8);
    let start = Position::start(&range);
    let mut replay = Replay::open(&mock.settings, "r", &range, 1, &start, stopped).unwrap();
    assert_eq!(replay.next_records(3, |_| Ok(())).unwrap(), Next::Stopped);
}

fn answered_twice(request: Request, code: Code, wanted: Option<Class>) {
    let what = format!("{request:?} answered with {code:?}");
    // Only the answer may end the first transaction, and not a machine that is slow.
    let mock = Mock::new(Duration::from_secs(20));
    let mut producer = None;
    if request != Request::InitProducerId {
        producer = Some(mock.producer().unwrap());
    }
    mock.answer(request, code, if wanted.is_none() { 2 } else { 1 });
    let result = match &mut producer {
        Some(producer) => mock.transact(producer),
        None => mock.producer().map(|new| producer = Some(new)),
    };
    assert_eq!(result.as_ref().err().map(Error::class), wanted, "{what}: {result:?}");
    match (wanted, &mut producer) {
        (None, Some(producer)) => mock.transact(producer).unwrap_or_else(|error| panic!("{what}: then {error}")),
        // After a refused record the next one may have a number too high, which the client mends by another abort, and
        // a topic that was forbidden is not written to before the client has asked again, which it does in its own
        // time.
        (Some(Class::Abort | Class::Stale), Some(producer)) => {
            let began = Instant::now();
            while let Err(error) = mock.transact(producer) {
                let goes_on = error.class() == Class::Abort && began.elapsed() < Duration::from_secs(20);
                assert!(goes_on, "{what}: then {error}");
                std::thread::sleep(Duration::from_millis(20));
            }
        }
        (Some(Class::Fatal), Some(producer)) => assert!(producer.begin().is_err(), "{what}: it is dead"),
        (_, _) => {}
    }
    drop(producer);
    let anew = mock.producer().and_then(|mut producer| mock.transact(&mut producer));
    anew.unwrap_or_else(|error| panic!("{what}: a new producer: {error}"));
}

/// An error that would pass and does not: the call ends, and `usable` says whether the same producer goes on.
fn answered_for_ever(request: Request, code: Code, wanted: Class, usable: bool) {
    let mock = Mock::new(Duration::from_secs(2));
    let mut producer = mock.producer().unwrap();
    mock.answer(request, code, 10_000);
    let began = Instant::now();
    let error = mock.transact(&mut producer).unwrap_err();
    assert_eq!(error.class(), wanted, "{error}");
    // Each call and the abort after it have the transaction timeout and some seconds.
    assert_in_time(began.elapsed(), Duration::from_secs(30), &error.to_string());
    mock.cluster.clear_request_errors(request);
    match mock.transact(&mut producer) {
        Ok(()) => assert!(usable),
        Err(error) => assert!(!usable && error.class() == Class::Fatal, "{error}"),
    }
    drop(producer);
    mock.transact(&mut mock.producer().unwrap()).unwrap();
}
