//! Whatever panics or hangs, everything else ends in order and in time.

use std::num::NonZeroUsize;
use std::time::{Duration, Instant};

use libtest_mimic::Trial;
use rdkafka::types::RDKafkaErrorCode as Code;

use crate::case;
use crate::deaths::{
    assert_embedded_by, assert_trained, assert_trained_by, lab, search, with_texts, EMBED_STAGE, TRAIN_STAGE,
};
use crate::program::{start, stop};
use crate::support::{assert_in_time, eventually, get, Process};

/// Points that only tests here use.
pub const POINTS: [&str; 1] = ["train.store.follow"];

pub fn tests() -> Vec<Trial> {
    vec![
        case("a_panic_of_the_commit_thread_ends_the_process", || {
            embed_panics("embed.commit.after_sends", "the commit thread of the embed stage ended early");
        }),
        case("a_panic_of_the_source_ends_the_process", || {
            embed_panics("embed.recover.positions", "the embed stage panicked");
        }),
        case("a_panic_of_the_pool_ends_the_process", the_pool_panics),
        case("a_panic_of_a_trials_thread_frees_its_place", a_trials_thread_panics),
        case("a_member_dropped_in_a_rebalance_does_not_hang_embed", embed_drops_its_member),
        case("a_member_dropped_in_a_rebalance_does_not_hang_train", train_drops_its_member),
        case("a_commit_that_hangs_does_not_hold_up_the_stop", a_commit_hangs),
        case("a_trial_that_hangs_does_not_hold_up_the_stop", || {
            train_hangs("train.trial.published", "left to their last checkpoints");
        }),
        case("a_pool_that_hangs_does_not_hold_up_the_stop", || {
            train_hangs("train.pool.drain", "did not stop in time");
        }),
        case("a_stage_that_stands_still_is_not_ready", a_stage_that_stands_still_is_not_ready),
        case("the_group_is_served_while_trials_yield", the_group_is_served_while_trials_yield),
        case("waiting_for_a_deleted_search_ends", waiting_for_a_deleted_search_ends),
    ]
}

/// Waits for exit code 70 with this message at the end.
#[track_caller]
fn assert_failed_for_good(mut process: Process, message: &str) {
    assert_eq!(process.wait().code(), Some(70), "{}", process.stderr());
    let log = process.stderr();
    let last = log.lines().last().unwrap();
    assert!(last.starts_with("sweepstream: ") && last.contains(message), "{last}");
}

fn embed_panics(point: &str, message: &str) {
    let settings = with_texts("panics");
    assert_failed_for_good(start(&settings, &format!("{point}=panic"), &EMBED_STAGE), message);
    assert_embedded_by(start(&settings, "", &EMBED_STAGE), &settings);
}

fn the_pool_panics() {
    let lab = lab("panics");
    let search = search(&lab);
    let process = start(&lab.settings, "train.pool.assigned=panic", &TRAIN_STAGE);
    assert_failed_for_good(process, "the train stage panicked");
    assert_trained_by(start(&lab.settings, "", &TRAIN_STAGE), &lab, &search.trials[0]);
}

fn a_trials_thread_panics() {
    let mut lab = lab("panics");
    lab.settings.train.parallel = NonZeroUsize::new(1);
    let [first, second] = [search(&lab), search(&lab)];
    let process = start(&lab.settings, "train.publish.after_init=1*panic", &TRAIN_STAGE);
    let interrupted = process.await_line("trial interrupted");
    assert!(interrupted.contains("its thread panicked"), "{interrupted}");
    for search in [&first, &second] {
        let id = &search.trials[0].trial;
        lab.await_end(id);
    }
    stop(process);
    assert_trained(&lab, &first.trials[0]);
    assert_trained(&lab, &second.trials[0]);
}

/// Has a stage fail while it owes its group an answer; the same process builds it anew.
fn fails_once(point: &str) -> String {
    format!("{point}=1*return({})", Code::OperationTimedOut as i32)
}

fn embed_drops_its_member() {
    let settings = with_texts("drops");
    let process = start(&settings, &fails_once("embed.recover.positions"), &EMBED_STAGE);
    let _ = process.await_line("building it anew");
    assert_embedded_by(process, &settings);
}

fn train_drops_its_member() {
    let lab = lab("drops");
    let search = search(&lab);
    let process = start(&lab.settings, &fails_once("train.pool.assigned"), &TRAIN_STAGE);
    let _ = process.await_line("building it anew");
    assert_trained_by(process, &lab, &search.trials[0]);
}

/// Sends SIGTERM and waits for an end in time: the drain timeout, four seconds, and as long again for a busy machine.
#[track_caller]
fn assert_stops_in_time(mut process: Process, drain_timeout: Duration, message: &str) {
    process.signal("TERM");
    let told = Instant::now();
    let code = process.wait().code();
    let (took, log) = (told.elapsed(), process.stderr());
    assert_eq!(code, Some(0), "{log}");
    assert!(log.contains(message), "{log}");
    assert_in_time(took, drain_timeout + Duration::from_secs(8), &log);
}

fn a_commit_hangs() {
    let mut settings = with_texts("hangs");
    settings.run.drain_timeout = Duration::from_secs(1);
    let process = start(&settings, "embed.commit.before_begin=tell;embed.commit.after_begin=pause", &EMBED_STAGE);
    let _ = process.await_line("passes embed.commit.before_begin");
    assert_stops_in_time(process, settings.run.drain_timeout, "did not stop in time");
    assert_embedded_by(start(&settings, "", &EMBED_STAGE), &settings);
}

fn train_hangs(point: &str, message: &str) {
    let mut lab = lab("hangs");
    lab.settings.run.drain_timeout = Duration::from_secs(1);
    let search = search(&lab);
    let process = start(&lab.settings, &format!("train.trial.restored=tell;{point}=pause"), &TRAIN_STAGE);
    let _ = process.await_line("passes train.trial.restored");
    assert_stops_in_time(process, lab.settings.run.drain_timeout, message);
    assert_trained_by(start(&lab.settings, "", &TRAIN_STAGE), &lab, &search.trials[0]);
}

fn a_stage_that_stands_still_is_not_ready() {
    let settings = with_texts("still");
    let folder = tempfile::tempdir().unwrap();
    let go_on = folder.path().join("go-on");
    std::fs::write(&go_on, "").unwrap();
    let process = start(&settings, &format!("embed.recover.positions=hold@{}", go_on.display()), &EMBED_STAGE);
    let address = process.http_address();
    let ready = || get(&address, "/health/ready");
    eventually("it is ready", || ready().0 == 200);
    // The partitions that come back from another process are the ones that it hangs over.
    std::fs::remove_file(&go_on).unwrap();
    let other = start(&settings, "", &EMBED_STAGE);
    let _ = other.await_line("positions=[(");
    stop(other);
    eventually("it is not ready", || {
        let (code, said) = ready();
        code == 503 && said.contains("embed has stood still")
    });
    std::fs::write(&go_on, "").unwrap();
    eventually("it is ready again", || ready().0 == 200);
    assert_embedded_by(process, &settings);
}

fn the_group_is_served_while_trials_yield() {
    let lab = lab("served");
    let search = search(&lab);
    let [go_on, yield_now] = ["go-on", "yield"].map(|name| lab.file(name));
    let plan = format!(
        "train.pool.drain=tell;train.trial.published=hold@{};train.trial.yield=hold@{}",
        go_on.display(),
        yield_now.display()
    );
    let mut first = start(&lab.settings, &plan, &TRAIN_STAGE);
    let _ = first.await_line("holds at train.trial.published");
    first.signal("TERM");
    let _ = first.await_line("passes train.pool.drain");
    std::fs::write(&go_on, "").unwrap();
    let _ = first.await_line("holds at train.trial.yield");
    let second = start(&lab.settings, "", &TRAIN_STAGE);
    // Were it not for that, the last checkpoint would be refused: the group has a new generation.
    let _ = first.await_line("revoked");
    std::fs::write(&yield_now, "").unwrap();
    assert_eq!(first.wait().code(), Some(0), "{}", first.stderr());
    let log = first.stderr();
    assert!(!log.contains("interrupted") && !log.contains("left to their last checkpoints"), "{log}");
    let _ = second.await_line("trial goes on from its checkpoint");
    assert_trained_by(second, &lab, &search.trials[0]);
}

fn waiting_for_a_deleted_search_ends() {
    let lab = lab("deleted");
    let search = search(&lab);
    let mut waiting = start(&lab.settings, "train.store.follow=tell", &["search", "wait", &search.id]);
    let _ = waiting.await_line("passes train.store.follow");
    let deleted = lab.command(&["search", "delete", &search.id]);
    assert_eq!(deleted.code, 0, "{}", deleted.stderr);
    assert_eq!(waiting.wait().code(), Some(1));
    let log = waiting.stderr();
    assert!(log.contains("1 of 1 trials of search") && log.contains("were deleted meanwhile"), "{log}");
}
