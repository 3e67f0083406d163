//! A search is over a frozen range: nothing that happens to the topic later is trained on, or overlooked.

use std::time::Duration;

use sweepstream::features::survey;
use sweepstream::train::store::start::Started;

use crate::lab::{assert_expected, dealt, points, Lab, Transactions};
use crate::support::{committed, eventually, Operator, Out};

const SEARCH: &str = r#"
name = "r"
model = "mlp"
hidden = 4
epochs = 2
batch_size = 8
validation = 5
"#;

/// Deletes the features topic.
fn delete(lab: &Lab) {
    Operator::new(&lab.settings).delete_topic(&lab.settings.topics.features);
}

/// Deletes the features topic, creates it again and fills it with other records.
fn recreate(lab: &Lab, records: &[Out]) {
    Operator::new(&lab.settings).recreate_topic(&lab.settings.topics.features);
    lab.fill(records);
}

/// Trains, and returns why the only trial failed.
#[track_caller]
fn reason(lab: &Lab, search: &Started) -> String {
    lab.train(&[search]);
    let outcome = lab.output().outcome(&search.trials[0].trial);
    assert_eq!(outcome["state"], "failed", "{outcome}");
    assert!(outcome.get("weights_sha256").is_none());
    outcome["reason"].as_str().unwrap().to_owned()
}

#[test]
fn records_appended_after_the_start_are_not_seen() {
    let lab = Lab::with_points("appended", 3, 40);
    let search = lab.start(SEARCH);
    lab.fill(&dealt(points(90)[40..].to_vec(), 3));
    lab.train(&[&search]);
    let trial = &search.trials[0];
    assert_expected(&lab.output(), trial, &dealt(points(40), 3));
    assert_eq!(trial.records.values().sum::<u64>(), 40);
    let group = lab.settings.trial_group(&trial.trial);
    let ends = trial.range.iter().map(|(&partition, &(_, end))| (partition, end)).collect();
    assert_eq!(
        committed(&lab.settings, &group, &lab.settings.topics.features),
        ends,
        "the group ends at the range's end"
    );
}

#[test]
fn the_record_of_a_trial_tells_its_range_with_counts_and_digests() {
    let lab = Lab::new("told", 2);
    let writer = Transactions::new(&lab.settings);
    writer.send(&lab.settings.topics.features, &dealt(points(5), 1));
    writer.commit();
    let search = lab.start(SEARCH);
    let record = lab.trial(&search.trials[0].trial).unwrap();
    assert_eq!(record["range"], serde_json::json!({"0": [0, 6], "1": [0, 0]}), "the marker takes an offset, too");
    assert_eq!(record["records"], serde_json::json!({"0": 5, "1": 0}));
    assert_eq!(record["digests"]["1"], "0000000000000000");
    assert_ne!(record["digests"]["0"], "0000000000000000");
    assert_eq!(record["labels"], serde_json::json!(["field", "sea"]));
}

#[test]
fn a_capture_right_after_a_commit_misses_nothing() {
    let lab = Lab::new("capture", 2);
    let writer = Transactions::new(&lab.settings);
    let topic = lab.settings.topics.features.as_str();
    let records = dealt(points(4), 2);
    for round in 1..=12 {
        writer.send(topic, &records);
        writer.commit();
        let (range, _) = survey::capture(&lab.settings, topic, 4, 0, |_, _| {}).unwrap();
        assert_eq!(range.records(), 4 * round);
    }
}

#[test]
fn a_capture_waits_for_transactions_that_are_open() {
    let lab = Lab::new("open", 2);
    let writer = Transactions::new(&lab.settings);
    let topic = lab.settings.topics.features.as_str();
    writer.send(topic, &dealt(points(6), 2));
    let captured = std::thread::scope(|scope| {
        let capture = scope.spawn(|| survey::capture(&lab.settings, topic, 4, 0, |_, _| {}).unwrap());
        // However long the capture has been waiting by now.
        std::thread::sleep(Duration::from_millis(300));
        writer.commit();
        capture.join().unwrap()
    });
    assert_eq!(captured.0.records(), 6);
}

#[test]
fn a_recreated_topic_with_other_records_fails_the_trial() {
    let lab = Lab::with_points("recreated", 2, 40);
    let search = lab.start(SEARCH);
    let mut others = points(41);
    drop(others.remove(0));
    recreate(&lab, &dealt(others, 2));
    let reason = reason(&lab, &search);
    assert!(reason.contains(&format!("{}/", lab.settings.topics.features)), "{reason}");
    assert!(reason.contains("recreated"), "{reason}");
}

#[test]
fn a_recreated_topic_with_fewer_records_fails_the_trial() {
    let lab = Lab::with_points("fewer", 2, 40);
    let search = lab.start(SEARCH);
    recreate(&lab, &dealt(points(30), 2));
    let reason = reason(&lab, &search);
    assert!(reason.contains(&format!("{}/", lab.settings.topics.features)), "{reason}");
    assert!(reason.contains("has changed"), "{reason}");
}

#[test]
fn a_deleted_topic_fails_the_trial() {
    let lab = Lab::with_points("gone", 2, 40);
    let search = lab.start(SEARCH);
    delete(&lab);
    let reason = reason(&lab, &search);
    assert!(reason.contains(&lab.settings.topics.features), "{reason}");
}

#[test]
fn a_topic_that_is_deleted_under_a_running_trial_fails_it() {
    let lab = Lab::with_points("under", 2, 40);
    let search = lab.start(&SEARCH.replace("epochs = 2", "epochs = 1000000"));
    let id = &search.trials[0].trial;
    let topology = lab.topology();
    let state = || topology.status.trials().get(id).cloned().unwrap_or_default();
    eventually("it runs", || state().epoch > 2);
    delete(&lab);
    eventually("it fails", || state().state == "failed");
    topology.stop().unwrap();
    let reason = lab.output().outcome(id)["reason"].to_string();
    assert!(reason.contains(&format!("{}/", lab.settings.topics.features)), "{reason}");
}

#[test]
fn a_recreated_topic_with_the_same_records_gives_the_same_weights() {
    let lab = Lab::with_points("refilled", 2, 40);
    let search = lab.start(SEARCH);
    recreate(&lab, &dealt(points(40), 2));
    lab.train(&[&search]);
    assert_expected(&lab.output(), &search.trials[0], &dealt(points(40), 2));
}

#[test]
fn records_deleted_from_the_start_of_the_range_fail_the_trial() {
    let lab = Lab::with_points("retention", 2, 40);
    let search = lab.start(SEARCH);
    Operator::new(&lab.settings).delete_records(&lab.settings.topics.features, 1, 3);
    let reason = reason(&lab, &search);
    assert!(reason.contains(&format!("{}/1", lab.settings.topics.features)), "{reason}");
    assert!(reason.contains("offset 0"), "{reason}");
}

#[test]
fn a_range_that_begins_after_deleted_records_is_trained_on() {
    let lab = Lab::with_points("begins", 2, 40);
    Operator::new(&lab.settings).delete_records(&lab.settings.topics.features, 1, 3);
    let search = lab.start(SEARCH);
    assert_eq!(search.trials[0].range[&1], (3, 20));
    lab.train(&[&search]);
    let mut records = dealt(points(40), 2);
    for _ in 0..3 {
        drop(records.remove(records.iter().position(|record| record.partition == Some(1)).unwrap()));
    }
    assert_expected(&lab.output(), &search.trials[0], &records);
}
