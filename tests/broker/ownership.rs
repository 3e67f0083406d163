//! A trial belongs to one process at a time; who takes over goes on, and who lost it publishes nothing.

use std::time::Duration;

use sweepstream::config::GroupProtocol;
use sweepstream::train::store::start::Started;

use crate::lab::{assert_expected, dealt, expected, points, Lab};
use crate::support::{eventually, eventually_after, read, Out, Process};

const SEARCH: &str = r#"
name = "o"
seed = 4
validation = 5
window = 9
batch_size = 8
model = "mlp"
checkpoint_every = 3
hidden = [3, 4, 5, 6]
"#;

fn lab(name: &str) -> Lab {
    let mut lab = Lab::with_points(name, 2, 50);
    lab.settings.kafka.session_timeout = Duration::from_secs(3);
    lab.settings.train.checkpoint_interval = Duration::from_millis(20);
    lab.settings.train.parallel = std::num::NonZeroUsize::new(4);
    lab
}

fn records() -> Vec<Out> {
    dealt(points(50), 2)
}

/// How often a process has taken a trial up.
fn taken(lab: &Lab, log: &str) -> usize {
    lab.log(log).lines().filter(|line| line.contains("trial begins") || line.contains("trial goes on")).count()
}

fn ended(lab: &Lab, search: &Started) -> usize {
    let records = read(&lab.settings, &lab.settings.topics.output);
    search
        .trials
        .iter()
        .filter(|trial| records.iter().any(|record| record.key() == format!("{}/outcome", trial.trial)))
        .count()
}

/// Two processes that share the partitions of `trials` evenly before there is anything to train, and then a search.
fn two_at_work(lab: &Lab, epochs: u32) -> ([Process; 2], Started) {
    let names = ["one", "two"];
    let both = names.map(|name| lab.trainer(name));
    let has_half = |name| {
        lab.log(name).lines().rfind(|line| line.contains(" assigned ")).is_some_and(|line| line.ends_with("owned=2"))
    };
    eventually("both have half of the partitions", || names.into_iter().all(has_half));
    let search = lab.start(&format!("{SEARCH}epochs = {epochs}"));
    eventually("both have trials", || names.iter().all(|name| taken(lab, name) > 0));
    (both, search)
}

#[track_caller]
fn assert_whole(lab: &Lab, search: &Started) {
    let output = lab.output();
    for trial in &search.trials {
        assert_expected(&output, trial, &records());
    }
}

#[test]
fn when_one_process_is_killed_the_other_ends_its_trials_with_the_same_bits() {
    let lab = lab("takeover");
    let ([mut one, two], search) = two_at_work(&lab, 60);
    one.signal("KILL");
    let _ = one.wait();
    eventually_after("all trials end", || lab.written(), || ended(&lab, &search) == 4);
    drop(two);
    assert_whole(&lab, &search);
}

fn a_zombie(lab: &Lab) {
    // Far more than fit between the log line that is waited for and the signal, beside ten busy processes, too.
    let ([mut one, two], search) = two_at_work(lab, 300);
    one.signal("STOP");
    eventually_after("the other ends all trials", || lab.written(), || ended(lab, &search) == 4);
    let before = read(&lab.settings, &lab.settings.topics.output);
    one.signal("CONT");
    eventually("it notices", || {
        let log = lab.log("one");
        log.contains("lost") || log.contains("interrupted") || log.contains("belongs to another")
    });
    one.signal("TERM");
    assert_eq!(one.wait().code(), Some(0), "{}", lab.log("one"));
    drop(two);
    assert_eq!(read(&lab.settings, &lab.settings.topics.output), before, "{}", lab.log("one"));
    assert_whole(lab, &search);
}

#[test]
fn a_process_that_slept_too_long_publishes_nothing() {
    a_zombie(&lab("zombie"));
}

#[test]
fn a_process_that_slept_too_long_publishes_nothing_under_kip_848() {
    let mut lab = lab("zombie848");
    lab.settings.kafka.group_protocol = GroupProtocol::Consumer;
    a_zombie(&lab);
}

fn a_second_process(lab: &Lab) {
    let search = lab.start(&format!("{SEARCH}epochs = 1000000"));
    let one = lab.trainer("one");
    eventually("all trials run", || taken(lab, "one") == 4);
    let two = lab.trainer("two");
    eventually("trials move", || taken(lab, "two") > 0);
    // What moves is yielded with a checkpoint, not given up after a timeout.
    assert!(!lab.log("one").contains("interrupted"), "{}", lab.log("one"));
    assert!(lab.log("two").contains("goes on from its checkpoint"), "{}", lab.log("two"));
    for mut process in [one, two] {
        process.signal("TERM");
        assert_eq!(process.wait().code(), Some(0));
    }
    let output = lab.output();
    for trial in &search.trials {
        let measured = output.measurements(&trial.trial);
        let ends = measured.iter().filter(|measured| measured.get("validation_loss").is_some());
        let losses: Vec<f64> = ends.map(|measured| measured["loss"].as_f64().unwrap()).collect();
        let mut shorter = trial.clone();
        shorter.parameters.epochs = losses.len() as u64;
        assert_eq!(losses, expected(&shorter, &records()).losses, "no epoch is missing or there twice");
    }
}

#[test]
fn trials_move_to_a_second_process_with_their_checkpoints() {
    a_second_process(&lab("join"));
}

#[test]
fn trials_move_to_a_second_process_with_their_checkpoints_under_kip_848() {
    let mut lab = lab("join848");
    lab.settings.kafka.group_protocol = GroupProtocol::Consumer;
    a_second_process(&lab);
}

#[test]
fn processes_that_are_stopped_together_all_end_in_time_with_checkpoints() {
    let lab = lab("together");
    let (mut both, search) = two_at_work(&lab, 100);
    for process in &both {
        process.signal("TERM");
    }
    for (process, log) in both.iter_mut().zip(["one", "two"]) {
        assert_eq!(process.wait().code(), Some(0), "{}", lab.log(log));
        assert!(!lab.log(log).contains("left to their last checkpoints"), "{}", lab.log(log));
    }
    lab.train(&[&search]);
    assert_whole(&lab, &search);
}
