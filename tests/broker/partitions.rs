//! Topics that get more partitions while the program runs.

use rdkafka::admin::{AdminClient, AdminOptions, NewPartitions};
use rdkafka::client::DefaultClientContext;
use sweepstream::config::Settings;

use crate::lab::{client, Lab};
use crate::support::{
    assert_one_verdict_each, create_topics, eventually, produce, sentences, settings, sweepstream, Out, Process,
    Progress, PATIENCE,
};

const EMBED: [&str; 4] = ["run", "--stage=embed", "-s", "embed.sessions=1"];

/// As `kafka-topics --alter --partitions` does it.
fn raise(settings: &Settings, topic: &str, partitions: usize) {
    let admin: AdminClient<DefaultClientContext> = client(settings).create().unwrap();
    let wanted = NewPartitions::new(topic, partitions);
    let results = futures::executor::block_on(admin.create_partitions([&wanted], &AdminOptions::new())).unwrap();
    assert!(results.iter().all(Result::is_ok), "{results:?}");
    eventually("the partitions are known", || {
        let metadata = admin.inner().fetch_metadata(Some(topic), PATIENCE).unwrap();
        metadata.topics()[0].partitions().len() == partitions
    });
}

#[test]
fn more_partitions_of_texts_are_noticed_and_said_and_work_goes_on_once_features_have_them_too() {
    let settings = settings("raised");
    create_topics(&settings);
    produce(&settings, &settings.topics.texts, &sentences(20));
    let progress = Progress::of(&settings);
    let mut process = Process::start(&settings, &EMBED);
    progress.await_done(20);
    raise(&settings, &settings.topics.texts, 6);
    let said = process.await_line("has 6 partitions now");
    for named in [&settings.topics.texts, &settings.topics.features, "--partitions 6", "ERROR"] {
        assert!(said.contains(named), "{named} is not in: {said}");
    }
    assert_eq!(process.wait().code(), Some(70));
    let refused = sweepstream(&settings, &EMBED);
    assert_eq!(refused.code, 78, "{}", refused.stderr);
    assert!(refused.stderr.contains(&format!("raise `{}` to 6", settings.topics.features)), "{}", refused.stderr);
    raise(&settings, &settings.topics.features, 6);
    let new: Vec<Out> = (0..12).map(|i| Out::text(&format!("n{i}"), "waves and storm").to(i % 6)).collect();
    produce(&settings, &settings.topics.texts, &new);
    let mut process = Process::start(&settings, &EMBED);
    Progress::of(&settings).await_done(32);
    process.signal("TERM");
    assert_eq!(process.wait().code(), Some(0));
    assert_one_verdict_each(&settings);
}

#[test]
fn more_partitions_of_trials_are_noticed_and_said() {
    let lab = Lab::new("raised-trials", 1);
    let mut trainer = lab.trainer("log");
    eventually("it has joined", || lab.log("log").contains("assigned"));
    raise(&lab.settings, &lab.settings.topics.trials, 6);
    assert_eq!(trainer.wait().code(), Some(70));
    let log = lab.log("log");
    assert!(log.contains("has 6 partitions now") && log.contains(&lab.settings.topics.output), "{log}");
}
