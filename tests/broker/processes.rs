//! The real program, stopped and killed in mid-stream, alone and beside another one.

use std::process::ExitStatus;

use sweepstream::config::Settings;

use crate::support::{
    assert_one_verdict_each, committed, create_topics, eventually, get, produce, read, settings, Out, Process, Progress,
};

/// Many small transactions, so that a signal comes in the midst of them.
fn start(settings: &Settings, more: &[&str]) -> Process {
    let mut arguments = vec!["run", "--stage", "embed", "-s", "embed.chunk_texts=8", "-s", "embed.sessions=1"];
    arguments.extend_from_slice(more);
    Process::start(settings, &arguments)
}

/// Texts that take a while.
fn texts(count: usize) -> Vec<Out> {
    (0..count)
        .map(|i| Out::text(&format!("k{i}"), &"the sailor saw the lighthouse ".repeat(1 + i % 12)).to(i as i32 % 4))
        .collect()
}

/// Sends SIGTERM and checks that the process ends in order and in time.
fn stop(mut process: Process) {
    process.signal("TERM");
    assert_eq!(process.wait().code(), Some(0), "{}", process.stderr());
}

fn kill(mut process: Process) -> ExitStatus {
    process.signal("KILL");
    process.wait()
}

/// Two processes that own two partitions each.
fn two_processes(settings: &Settings, more: &[&str]) -> [Process; 2] {
    create_topics(settings);
    let both = [start(settings, more), start(settings, more)];
    // Lag is reported for owned partitions, and for those only.
    let owned = |process: &Process| {
        let metrics = get(&process.http_address(), "/metrics").1;
        metrics.lines().filter(|line| line.starts_with("sweepstream_consumer_lag_records{")).count()
    };
    eventually("the partitions are shared", || both.iter().all(|process| owned(process) == 2));
    both
}

#[test]
fn a_process_stopped_in_mid_stream_leaves_the_rest_to_its_successor() {
    let settings = settings("term");
    create_topics(&settings);
    produce(&settings, &settings.topics.texts, &texts(300));
    let progress = Progress::of(&settings);
    let first = start(&settings, &[]);
    progress.await_done(30);
    stop(first);
    assert!(progress.done() < 300, "it was not stopped in mid-stream");
    let second = start(&settings, &[]);
    progress.await_done(300);
    stop(second);
    assert_one_verdict_each(&settings);
}

#[test]
fn a_process_killed_in_mid_stream_leaves_the_rest_to_its_successor() {
    let settings = settings("kill");
    create_topics(&settings);
    produce(&settings, &settings.topics.texts, &texts(300));
    let progress = Progress::of(&settings);
    let first = start(&settings, &[]);
    progress.await_done(30);
    let _ = kill(first);
    let before = progress.done();
    assert!(before < 300, "it was not killed in mid-stream");
    let second = start(&settings, &[]);
    progress.await_done(before + 1);
    progress.await_done(300);
    stop(second);
    assert_one_verdict_each(&settings);
}

fn one_of_two_leaves(name: &str, more: &[&str]) {
    let settings = settings(name);
    let [first, second] = two_processes(&settings, more);
    let progress = Progress::of(&settings);
    produce(&settings, &settings.topics.texts, &texts(300));
    progress.await_done(30);
    stop(first);
    progress.await_done(300);
    stop(second);
    assert_one_verdict_each(&settings);
}

fn one_of_two_is_killed(name: &str, more: &[&str]) {
    let settings = settings(name);
    let [first, second] = two_processes(&settings, more);
    let progress = Progress::of(&settings);
    produce(&settings, &settings.topics.texts, &texts(300));
    progress.await_done(30);
    let _ = kill(first);
    // Each partition flows again, those of the dead process too.
    produce(&settings, &settings.topics.texts, &texts(4));
    eventually("all partitions flow", || progress.offsets() == [76; 4]);
    stop(second);
    assert_one_verdict_each(&settings);
}

#[test]
fn two_identical_processes_share_the_partitions_and_one_may_leave() {
    one_of_two_leaves("two", &[]);
}

#[test]
fn two_identical_processes_share_the_partitions_and_one_may_die() {
    one_of_two_is_killed("two-kill", &[]);
}

#[test]
fn under_kip_848_one_of_two_processes_may_leave() {
    one_of_two_leaves("two-848", &["-s", "kafka.group_protocol=consumer"]);
}

#[test]
fn under_kip_848_one_of_two_processes_may_die() {
    one_of_two_is_killed("two-848-kill", &["-s", "kafka.group_protocol=consumer"]);
}

/// A process with more in flight than it can finish soon.
fn busy(name: &str, more: &[&str]) -> (Settings, Process) {
    let settings = settings(name);
    create_topics(&settings);
    let long: Vec<Out> = (0..400).map(|i| Out::text("k", &"harbour ".repeat(254)).to(i % 4)).collect();
    produce(&settings, &settings.topics.texts, &long);
    let mut arguments = vec!["-s", "embed.chunk_texts=1024", "-s", "embed.threads=1"];
    arguments.extend_from_slice(more);
    let process = start(&settings, &arguments);
    let address = process.http_address();
    eventually("many texts are in flight", || {
        let metrics = get(&address, "/metrics").1;
        let read = metrics.lines().find_map(|line| line.strip_prefix("sweepstream_embed_records_total "));
        read.unwrap().parse::<u32>().unwrap() >= 256
    });
    (settings, process)
}

#[test]
fn signals_that_come_together_are_one_and_what_is_in_flight_is_drained() {
    let (settings, mut process) = busy("together", &["-s", "run.drain_timeout=10m"]);
    // As GNU `timeout` sends one to the process and one to its group.
    process.signals(&["TERM", "INT"]);
    assert_eq!(process.wait().code(), Some(0), "{}", process.stderr());
    let features = read(&settings, &settings.topics.features);
    assert!(!features.is_empty(), "nothing was drained: {}", process.stderr());
    let committed = committed(&settings, &settings.embed_group(), &settings.topics.texts);
    assert_eq!(features.len() as i64, committed.values().sum::<i64>());
}

#[test]
fn a_signal_that_comes_later_ends_the_process_at_once() {
    let (_, mut process) = busy("later", &["-s", "run.drain_timeout=10m"]);
    process.signals(&["TERM", "INT"]);
    let _ = process.await_line("draining");
    eventually("one of them is late enough", || {
        process.signal("TERM");
        process.child.try_wait().unwrap().is_some()
    });
    assert_eq!(process.wait().code(), Some(130), "{}", process.stderr());
}

#[test]
fn a_drain_that_takes_too_long_gives_its_texts_up_unharmed() {
    let (settings, process) = busy("drain", &["-s", "run.drain_timeout=500ms"]);
    stop(process);
    let committed = committed(&settings, &settings.embed_group(), &settings.topics.texts);
    let features = read(&settings, &settings.topics.features);
    assert_eq!(features.len() as i64, committed.values().sum::<i64>());
}
