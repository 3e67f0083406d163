//! Errors of each class at each transactional call: what follows is what the class says, and nothing is lost or
//! there twice.

use libtest_mimic::Trial;
use rdkafka::types::RDKafkaErrorCode as Code;
use sweepstream::config::Settings;

use crate::case;
use crate::deaths::{
    assert_embedded, assert_embedded_by, assert_trained, lab, search, with_texts, EMBED_STAGE, TEXTS, TRAIN_STAGE,
};
use crate::program::start;
use crate::support::{eventually, get, read_as, Process, Progress};

/// Every point that returns an error in some test here. `committed` lies behind a commit that has happened.
pub const POINTS: [&str; 6] = [
    "kafka.transaction.begin",
    "kafka.transaction.send",
    "kafka.transaction.offsets",
    "kafka.transaction.commit",
    "kafka.transaction.committed",
    "kafka.topics.create",
];

pub fn tests() -> Vec<Trial> {
    vec![
        case("embed_goes_on_after_errors_at_begin", || {
            embed_goes_on("begin", &[Code::TopicAuthorizationFailed, Code::Fatal], [1, 0, 1], "BBBBPBB");
        }),
        case("embed_goes_on_after_errors_of_records", || {
            let codes = [Code::MessageSizeTooLarge, Code::MessageTimedOut, Code::Fenced];
            embed_goes_on("send", &codes, [2, 1, 0], "B");
        }),
        case("embed_goes_on_after_stale_offsets", || {
            embed_goes_on("offsets", &[Code::IllegalGeneration], [0, 1, 0], "BBBB");
        }),
        case("embed_goes_on_after_errors_at_commit", || {
            let codes = [Code::TopicAuthorizationFailed, Code::Fenced, Code::Fatal, Code::Conflict];
            embed_goes_on("commit", &codes, [1, 1, 2], "BBBBPBBPBBPB");
        }),
        case("embed_writes_nothing_twice_after_commits_that_seemed_to_fail", || {
            // The chunk is done already when the new producer asks for the offsets.
            embed_goes_on("committed", &[Code::Fenced, Code::Fatal, Code::Conflict], [0, 1, 2], "BBPBBPBBPB");
        }),
        case("embed_gives_up_after_a_bounded_number_of_errors", embed_gives_up),
        case("topics_are_created_once_brokers_are_ready_for_them", created_when_ready),
        case("train_goes_on_after_an_error_that_needs_an_abort", || {
            // Claiming the trial has sent two records.
            train_goes_on("send", "3*off->1*return", Code::TopicAuthorizationFailed, [1, 0, 0], 0);
        }),
        case("train_is_interrupted_after_five_aborts", || {
            train_goes_on("begin", "2*off->5*return", Code::TopicAuthorizationFailed, [4, 0, 1], 1);
        }),
        case("train_is_interrupted_by_offsets_that_stay_stale", || {
            train_goes_on("offsets", "4*off->1*return", Code::UnknownMemberId, [0, 1, 0], 1);
        }),
        case("train_is_interrupted_by_being_fenced", || {
            train_goes_on("commit", "1*off->1*return", Code::Fenced, [0, 1, 0], 1);
        }),
        case("train_is_interrupted_by_a_fatal_error", || {
            train_goes_on("commit", "1*off->1*return->1*off->1*return", Code::Fatal, [0, 0, 2], 2);
        }),
        case("train_goes_on_after_a_checkpoint_that_seemed_to_fail", || {
            train_goes_on("committed", "1*off->1*return", Code::Conflict, [0, 0, 1], 1);
        }),
        case("train_goes_on_after_an_outcome_that_seemed_to_fail", || {
            train_goes_on("committed", "5*off->1*return", Code::Fatal, [0, 0, 1], 1);
        }),
    ]
}

/// As right after a start of the cluster, or when its controller has not heard of brokers for some seconds.
fn created_when_ready() {
    let settings = crate::support::settings("created");
    let plan = format!("kafka.topics.create=3*return({})", Code::BrokerNotAvailable as i32);
    let mut process = start(&settings, &plan, &["topics", "create"]);
    assert_eq!(process.wait().code(), Some(0), "{}", process.stderr());
    assert!(process.stderr().contains(&settings.topics.texts), "{}", process.stderr());
}

/// Errors are counted here, and none may come from a machine that is too slow for a short session.
fn patient(mut settings: Settings) -> Settings {
    let Settings { kafka, .. } = Settings::default();
    settings.kafka.session_timeout = kafka.session_timeout;
    settings.kafka.transaction_timeout = kafka.transaction_timeout;
    settings
}

/// Aborted, fenced and failed transactions, as the process counts them.
fn counted(process: &Process, name: &str) -> [u64; 3] {
    let metrics = get(&process.http_address(), "/metrics").1;
    ["aborted", "fenced", "failed"].map(|outcome| {
        let series = format!("sweepstream_{name}_transactions_total{{outcome=\"{outcome}\"}} ");
        metrics.lines().find_map(|line| line.strip_prefix(&series)).unwrap().parse().unwrap()
    })
}

/// What was passed in which order: `P` for a new producer, `B` for the beginning of a transaction.
fn passed(log: &str) -> String {
    let passed = log.lines().filter_map(|line| line.strip_prefix("passes "));
    passed.map(|point| if point.ends_with("before_begin") { 'B' } else { 'P' }).collect()
}

/// One transaction that succeeds before each error.
fn embed_goes_on(call: &str, codes: &[Code], wanted: [u64; 3], order: &str) {
    let settings = patient(with_texts("errors"));
    let errors: Vec<String> = codes.iter().map(|&code| format!("1*off->1*return({})", code as i32)).collect();
    let plan = format!(
        "kafka.transaction.{call}={};embed.commit.new_producer=tell;embed.commit.before_begin=tell",
        errors.join("->")
    );
    let mut process = start(&settings, &plan, &EMBED_STAGE);
    Progress::of(&settings).await_done(4 * TEXTS);
    eventually("transactions are counted", || counted(&process, "features") == wanted);
    process.signal("TERM");
    assert_eq!(process.wait().code(), Some(0), "{}", process.stderr());
    let passed = passed(&process.stderr());
    assert!(passed.starts_with(&format!("P{order}")), "{passed}");
    assert_embedded(&settings);
}

fn embed_gives_up() {
    let mut settings = patient(with_texts("gives-up"));
    settings.run.rebuilds_max = std::num::NonZeroU32::new(2).unwrap();
    let plan = format!(
        "kafka.transaction.commit=return({});embed.commit.new_producer=tell;embed.commit.before_begin=tell",
        Code::Fatal as i32
    );
    let mut process = start(&settings, &plan, &EMBED_STAGE);
    assert_eq!(process.wait().code(), Some(70));
    let log = process.stderr();
    // The stage as it was and two rebuilds, each with two attempts at its first chunk.
    assert_eq!(passed(&log), "PBPB".repeat(3), "{log}");
    let last = log.lines().last().unwrap();
    assert!(last.starts_with("sweepstream: the embed stage failed: "), "{last}");
    assert_eq!(read_as(&settings, &settings.topics.features, "read_committed"), []);
    assert_embedded_by(start(&settings, "", &EMBED_STAGE), &settings);
}

fn train_goes_on(call: &str, action: &str, code: Code, wanted: [u64; 3], interruptions: usize) {
    let mut lab = lab("errors");
    lab.settings = patient(lab.settings);
    let search = search(&lab);
    let trial = &search.trials[0];
    let action = action.replace("return", &format!("return({})", code as i32));
    let plan = format!("kafka.transaction.{call}={action};train.publish.after_init=tell");
    let mut process = start(&lab.settings, &plan, &TRAIN_STAGE);
    lab.await_end(&trial.trial);
    eventually("transactions are counted", || counted(&process, "output") == wanted);
    process.signal("TERM");
    assert_eq!(process.wait().code(), Some(0), "{}", process.stderr());
    let log = process.stderr();
    assert_eq!(log.matches("trial interrupted").count(), interruptions, "{log}");
    // After an outcome that is there, nothing is left to be done.
    let producers = 1 + interruptions - usize::from(action.starts_with('5'));
    assert_eq!(passed(&log), "P".repeat(producers), "{log}");
    assert_trained(&lab, trial);
}
