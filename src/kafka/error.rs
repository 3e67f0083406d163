//! What can go wrong with Kafka, and the one place that decides what follows from it.

use std::time::Duration;

use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::types::RDKafkaRespErr;

use super::descriptors;

/// Result of anything in this module.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// A failure at or with the cluster.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Error {
    /// No broker answered within the bounded wait.
    #[error(
        "no Kafka broker answered at {servers} within {waited:?}: {cause}; is it running, and is \
        `kafka.bootstrap_servers` right?"
    )]
    Unreachable {
        servers: String,
        waited: Duration,
        /// The last thing the client said.
        cause: String,
    },
    /// Brokers answer and do not let us in, or are not who they should be.
    #[error(
        "no connection to Kafka at {servers} within {waited:?}: {cause}; `kafka.properties` must be as the cluster \
        wants them (security.protocol, sasl.*, ssl.*)"
    )]
    Refused { servers: String, waited: Duration, cause: String },
    /// A client call failed.
    #[error("{action}: {source}")]
    Call {
        /// What was being done, with topic, partition and offset where there is one.
        action: String,
        source: KafkaError,
    },
    /// Records that should be there are not.
    #[error("{topic}/{partition}: {message}")]
    Data {
        topic: String,
        partition: i32,
        /// Which offsets, and the way out.
        message: String,
    },
    /// What was committed is not there any more, nor anything after it.
    #[error(
        "{topic}/{partition}: group `{group}` stands at {held}, though {committed} had been committed: a broker \
        that was restarted has undone it, and it is done again"
    )]
    Undone {
        topic: String,
        partition: i32,
        group: String,
        held: String,
        /// What it had said it holds.
        committed: String,
    },
    /// Topics are not as the promises need them.
    #[error("{0}")]
    Topics(String),
    /// The declarations of topics cannot be used.
    #[error("topic declaration {file}: {message}")]
    Declaration { file: String, message: String },
    /// A record was refused by the broker inside a transaction.
    #[error("record for {topic}/{partition} was not delivered: {source}")]
    Delivery { topic: String, partition: i32, source: KafkaError },
    /// Something took longer than it may.
    #[error("{action} took longer than {waited:?}")]
    TimedOut { action: String, waited: Duration },
    /// A thread that speaks to Kafka did not start, or died.
    #[error("{0}")]
    Thread(String),
    /// There are too few file descriptors.
    #[error("{0}")]
    Descriptors(String),
    /// A port for the local broker is not to be had.
    #[error(
        "the local Kafka broker did not start: port {port} of 127.0.0.1 {cause}; choose another (`--port 0` takes \
        a free one)"
    )]
    Port {
        port: u16,
        /// What is the matter with it.
        cause: String,
    },
    /// The local broker did not start.
    #[error("the local Kafka broker did not start: {message}")]
    Local {
        /// Why, and where its log is.
        message: String,
    },
}

/// What librdkafka, or a broker, says.
pub type Code = RDKafkaErrorCode;

/// What follows from an error of a transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// Try the same call again.
    Retriable,
    /// Abort this transaction; the producer lives on.
    Abort,
    /// The group has moved on: abort, and go on only with what the next assignment leaves.
    Stale,
    /// A newer producer has this transactional id: confirm ownership before doing anything.
    Fenced,
    /// The producer is dead and must be built anew.
    Fatal,
}

impl Error {
    /// Wraps a client error with what was being done, and with why it may have failed where librdkafka does not know.
    pub fn call(action: impl Into<String>) -> impl FnOnce(KafkaError) -> Self {
        let action = action.into();
        move |source| {
            let source = match source {
                // A misspelt property may be a password all the same.
                KafkaError::ClientConfig(result, what, name, _) => {
                    KafkaError::ClientConfig(result, what, name, "(value not shown)".into())
                }
                source => source,
            };
            Self::Call { action: descriptors::explained(action), source }
        }
    }

    /// Partitions are held without proof of it; the group will say what follows.
    pub fn no_member(topic: &str) -> Self {
        let source = KafkaError::ConsumerCommit(RDKafkaErrorCode::UnknownMemberId);
        Self::Call { action: format!("committing for topic `{topic}`"), source }
    }

    /// The log of a partition does not hold the offset that is to be read next.
    pub fn out_of_log(topic: &str, partition: i32) -> Self {
        let source = KafkaError::MessageConsumption(RDKafkaErrorCode::AutoOffsetReset);
        Self::Call { action: format!("consuming {topic}/{partition}"), source }
    }

    /// A missing stretch of data.
    pub fn data(topic: &str, partition: i32, message: impl Into<String>) -> Self {
        Self::Data { topic: topic.to_owned(), partition, message: message.into() }
    }

    /// What is certain of a transaction that ended with this error.
    pub fn visibility(&self) -> &'static str {
        match self.class() {
            Class::Abort | Class::Stale => "nothing of it is visible",
            Class::Retriable | Class::Fenced | Class::Fatal => "whether it was committed is looked up before going on",
        }
    }

    /// What follows from this error; nothing else in the crate decides that.
    pub fn class(&self) -> Class {
        match self {
            Self::Call { source, .. } | Self::Delivery { source, .. } => class_of(source),
            Self::TimedOut { .. } => Class::Abort,
            Self::Unreachable { .. }
            | Self::Refused { .. }
            | Self::Undone { .. }
            | Self::Data { .. }
            | Self::Topics(_)
            | Self::Declaration { .. }
            | Self::Thread(_)
            | Self::Descriptors(_)
            | Self::Port { .. }
            | Self::Local { .. } => Class::Fatal,
        }
    }

    /// Does it end by itself when brokers, coordinators or leaders are back?
    pub fn passes_by_itself(&self) -> bool {
        use RDKafkaErrorCode as Code;
        matches!(
            self.code(),
            Some(
                Code::AllBrokersDown
                    | Code::BrokerTransportFailure
                    | Code::Resolve
                    | Code::OperationTimedOut
                    | Code::RequestTimedOut
                    | Code::NotCoordinator
                    | Code::CoordinatorNotAvailable
                    | Code::CoordinatorLoadInProgress
                    | Code::LeaderNotAvailable
                    | Code::NotLeaderForPartition
                    | Code::BrokerNotAvailable
                    | Code::RebalanceInProgress
                    | Code::PollExceeded
                    | Code::UnknownMemberId
                    | Code::IllegalGeneration
            )
        )
    }

    /// Can a stage be built anew and go on?
    pub fn passes(&self) -> bool {
        match self {
            Self::Unreachable { .. }
            | Self::Refused { .. }
            | Self::Undone { .. }
            | Self::Call { .. }
            | Self::Delivery { .. }
            | Self::Thread(_)
            | Self::Descriptors(_)
            | Self::TimedOut { .. } => true,
            Self::Data { .. } | Self::Topics(_) | Self::Declaration { .. } | Self::Port { .. } | Self::Local { .. } => {
                false
            }
        }
    }

    /// What a failpoint returns: the error that librdkafka has under this number.
    pub fn injected(number: Option<String>) -> Self {
        Self::Call { action: "injected".into(), source: KafkaError::Global(injected_code(number)) }
    }

    /// Has the client died over it?
    pub fn is_fatal(source: &KafkaError) -> bool {
        matches!(source, KafkaError::MessageConsumptionFatal(_))
    }

    /// Are there properties of which librdkafka makes no client?
    pub fn is_configuration(&self) -> bool {
        matches!(self, Self::Call { source: KafkaError::ClientConfig(..) | KafkaError::ClientCreation(_), .. })
    }

    /// librdkafka's code, where the error came from it.
    pub fn code(&self) -> Option<RDKafkaErrorCode> {
        match self {
            Self::Call { source, .. } | Self::Delivery { source, .. } => code_of(source),
            _ => None,
        }
    }
}

/// librdkafka's code of this number, for failpoints.
pub(super) fn injected_code(number: Option<String>) -> RDKafkaErrorCode {
    let known = number.and_then(|number| RDKafkaRespErr::try_from(number.parse::<i32>().ok()?).ok());
    known.map_or(RDKafkaErrorCode::Fail, RDKafkaErrorCode::from)
}

/// librdkafka's code of any client error.
pub(super) fn code_of(error: &KafkaError) -> Option<RDKafkaErrorCode> {
    match error {
        // rdkafka does not tell this one's code.
        KafkaError::AdminOp(code) => Some(*code),
        error => error.rdkafka_error_code(),
    }
}

/// Whether this may be what the client remembers of a topic, and no broker's answer: it keeps for minutes that a
/// partition had no leader, which it calls unknown, and asks nobody again before somebody fetches metadata.
pub fn is_remembered(error: &KafkaError) -> bool {
    use RDKafkaErrorCode as Code;
    matches!(
        error.rdkafka_error_code(),
        Some(Code::UnknownTopicOrPartition | Code::UnknownTopic | Code::UnknownPartition | Code::LeaderNotAvailable)
    )
}

pub(super) fn class_of(error: &KafkaError) -> Class {
    use RDKafkaErrorCode as Code;
    match error.rdkafka_error_code() {
        Some(Code::Fenced | Code::ProducerFenced | Code::InvalidProducerEpoch) => return Class::Fenced,
        Some(
            Code::IllegalGeneration
            | Code::UnknownMemberId
            | Code::RebalanceInProgress
            | Code::FencedInstanceId
            | Code::StaleMemberEpoch
            | Code::FencedMemberEpoch,
        ) => return Class::Stale,
        // An earlier call that timed out is still under way; what becomes of it only the next producer can know.
        Some(Code::Conflict) => return Class::Fatal,
        _ => {}
    }
    match error {
        KafkaError::Transaction(error) if error.is_fatal() => Class::Fatal,
        KafkaError::Transaction(error) if error.txn_requires_abort() => Class::Abort,
        KafkaError::Transaction(error) if error.is_retriable() => Class::Retriable,
        KafkaError::Transaction(_) => Class::Fatal,
        _ => match error.rdkafka_error_code() {
            Some(Code::Fatal) => Class::Fatal,
            _ => Class::Abort,
        },
    }
}
