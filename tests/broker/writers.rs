//! Two applications on the same topics: the second is told who writes there, and does not start.

use sweepstream::config::Settings;

use crate::lab::{assert_expected, dealt, points, Lab};
use crate::support::{
    assert_one_verdict_each, create_topics, eventually, produce, read, sentences, settings, sweepstream, Finished,
    Process, Progress,
};

const EMBED: [&str; 4] = ["run", "--stage=embed", "-s", "embed.sessions=1"];

/// The same topics under another application's name.
fn other(settings: &Settings) -> Settings {
    Settings { application_id: format!("{}-other", settings.application_id), ..settings.clone() }
}

fn start(settings: &Settings, more: &[&str]) -> Process {
    Process::start(settings, &[&EMBED, more].concat())
}

fn stop(mut process: Process) -> String {
    process.signal("TERM");
    assert_eq!(process.wait().code(), Some(0), "{}", process.stderr());
    process.stderr()
}

#[track_caller]
fn assert_refused(refused: &Finished, first: &Settings, evidence: &str) {
    assert_eq!(refused.code, 70, "{}", refused.stderr);
    let last = refused.stderr.lines().last().unwrap();
    for named in [&first.application_id, &first.topics.features, evidence, "--alongside"] {
        assert!(last.contains(named), "{named} is not in: {last}");
    }
}

fn refused_beside_a_living_one(name: &str, more: &[&str], evidence: &str) {
    let first = settings(name);
    create_topics(&first);
    let process = start(&first, more);
    let _ = process.await_line("assigned");
    // Nothing has been written yet: only the group shows that somebody is about to.
    let refused = sweepstream(&other(&first), &[&EMBED, more].concat());
    assert_refused(&refused, &first, evidence);
    produce(&first, &first.topics.texts, &sentences(40));
    Progress::of(&first).await_done(40);
    let log = stop(process);
    // A broker that a busy machine keeps waiting, or that throws a member out which could not be heard, is no failure
    // of the writer.
    let excused = |line: &&str| line.contains("failed while kafka was away") || line.contains("UnknownMemberId");
    assert!(log.lines().filter(|line| !excused(line)).all(|line| !line.contains("failed")), "{log}");
    assert_one_verdict_each(&first);
}

#[test]
fn a_second_application_on_the_same_topics_does_not_start() {
    refused_beside_a_living_one("writers", &[], ".embed` has ");
}

#[test]
fn under_kip_848_a_second_application_on_the_same_topics_does_not_start() {
    refused_beside_a_living_one("writers-848", &["-s", "kafka.group_protocol=consumer"], "may have members");
}

#[test]
fn what_another_application_has_written_is_seen_when_it_has_gone() {
    let first = settings("writers-gone");
    let second = other(&first);
    create_topics(&first);
    produce(&first, &first.topics.texts, &sentences(30));
    let process = start(&first, &[]);
    Progress::of(&first).await_done(30);
    drop(stop(process));
    assert_refused(&sweepstream(&second, &EMBED), &first, "has done all below");
    // Taken over for good: what is done stays done.
    produce(&first, &first.topics.texts, &sentences(10));
    let process = start(&second, &["--alongside"]);
    Progress::of(&second).await_done(40);
    drop(stop(process));
    // By now it has a position of its own, and needs no consent; the first does not know of the last ten.
    let process = start(&second, &[]);
    let _ = process.await_line("assigned");
    drop(stop(process));
    assert_refused(&sweepstream(&first, &EMBED), &second, "has done all below");
    assert_one_verdict_each(&first);
}

#[test]
fn with_consent_two_applications_write_side_by_side() {
    let first = settings("writers-both");
    let second = other(&first);
    create_topics(&first);
    let alone = start(&first, &[]);
    let _ = alone.await_line("assigned");
    let beside = start(&second, &["--alongside"]);
    let _ = beside.await_line("assigned");
    produce(&first, &first.topics.texts, &sentences(20));
    Progress::of(&first).await_done(20);
    Progress::of(&second).await_done(20);
    drop([alone, beside].map(stop));
    assert_eq!(read(&first, &first.topics.features).len(), 40);
}

#[test]
fn the_same_texts_may_be_embedded_into_other_features() {
    let first = settings("writers-apart");
    let mut second = other(&first);
    second.topics.features += "-other";
    second.topics.dead_letters += "-other";
    create_topics(&first);
    create_topics(&second);
    produce(&first, &first.topics.texts, &sentences(20));
    let processes = [start(&first, &[]), start(&second, &[])];
    eventually("both have embedded", || {
        [&first, &second].iter().all(|settings| read(settings, &settings.topics.features).len() == 20)
    });
    drop(processes.map(stop));
}

fn refused_beside_a_living_trainer(name: &str, more: &[&str]) {
    let lab = Lab::with_points(name, 1, 40);
    let (first, second) = (&lab.settings, other(&lab.settings));
    let arguments = [["run", "--stage=train"].as_slice(), more].concat();
    let process = Process::start(first, &arguments);
    let _ = process.await_line("assigned");
    let search = lab.start("name = \"s\"\nmodel = \"mlp\"\nhidden = 4\nepochs = 3\nbatch_size = 8\nvalidation = 5\n");
    lab.await_end(&search.trials[0].trial);
    let refused = sweepstream(&second, &arguments);
    assert_eq!(refused.code, 70, "{}", refused.stderr);
    let last = refused.stderr.lines().last().unwrap();
    for named in [&first.train_group(), &first.topics.trials, "application_id"] {
        assert!(last.contains(named), "{named} is not in: {last}");
    }
    // A process of the same application is welcome.
    let beside = Process::start(first, &arguments);
    let _ = beside.await_line("assigned");
    drop([beside, process].map(stop));
    assert_expected(&lab.output(), &search.trials[0], &dealt(points(40), 1));
}

#[test]
fn a_second_application_does_not_run_the_same_trials() {
    refused_beside_a_living_trainer("trainers", &[]);
}

#[test]
fn under_kip_848_a_second_application_does_not_run_the_same_trials() {
    refused_beside_a_living_trainer("trainers-848", &["-s", "kafka.group_protocol=consumer"]);
}
