//! A trial that was killed, stopped or damaged anywhere goes on as if nothing had happened.

use std::time::Duration;

use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use serde_json::Value;
use sweepstream::config::Settings;
use sweepstream::kafka::offsets::Watermarks;
use sweepstream::kafka::topics::delete_groups;
use sweepstream::train::store::start::Started;

use crate::lab::{assert_expected, client, dealt, expected, points, Lab};
use crate::support::{committed, eventually, eventually_after, produce, read, work, Out, PATIENCE};

/// Windows are smaller than batches and the last batch is short: every kind of position occurs.
const SEARCH: &str = r#"
name = "k"
seed = 11
validation = 5
window = 5
batch_size = 8
dropout = 0.2
checkpoint_every = 2
model = "mlp"
hidden = 4
"#;

const PARTITIONS: i32 = 3;

fn lab(name: &str) -> Lab {
    let mut lab = Lab::with_points(name, PARTITIONS, 70);
    // A successor of the same name takes over at once.
    lab.settings.kafka.group_instance_id = Some("only".into());
    lab.settings.train.checkpoint_interval = Duration::from_millis(5);
    lab
}

fn records() -> Vec<Out> {
    dealt(points(70), PARTITIONS)
}

/// Offsets taken in `output` so far, which grow with every transaction.
fn written(settings: &Settings) -> i64 {
    let watermarks = Watermarks::new(settings).unwrap();
    (0..4).map(|partition| watermarks.extent(&settings.topics.output, partition).unwrap().end).sum()
}

/// Waits until so many more offsets are taken in `output`, or the trial has ended.
fn await_written(settings: &Settings, more: i64) {
    let before = written(settings);
    let done = || u64::try_from(written(settings)).unwrap();
    eventually_after("something is published", done, || written(settings) >= before + more);
}

/// Trains in this process until the trial has made some steps, then drains.
fn train_a_little(lab: &Lab, search: &Started, steps: u64) {
    let id = &search.trials[0].trial;
    crate::support::run(&lab.settings, &[&sweepstream::train::run::pool::TRAIN], |topology| {
        topology.status.trials().get(id).is_some_and(|trial| trial.step >= steps)
    });
    assert!(lab.trial(id).unwrap().get("outcome").is_none(), "the trial is not over");
}

#[test]
fn killed_again_and_again_it_ends_with_the_same_weights_and_measurements() {
    let lab = lab("killed");
    let search = lab.start(&format!("{SEARCH}epochs = 60"));
    for (kill, more) in [7, 61, 23, 150].into_iter().enumerate() {
        let mut process = lab.trainer("killed.log");
        await_written(&lab.settings, more);
        // Anywhere within the next transactions.
        std::thread::sleep(Duration::from_micros(3_701 * kill as u64));
        process.signal("KILL");
        assert!(!process.wait().success());
    }
    let whole = lab.start(&format!("{SEARCH}epochs = 60"));
    lab.train(&[&search, &whole]);
    let output = lab.output();
    let (killed, whole) = (&search.trials[0], &whole.trials[0]);
    assert_expected(&output, killed, &records());
    assert_eq!(output.values(&killed.trial), output.values(&whole.trial), "no gap, no repetition, the same values");
    assert!(lab.log("killed.log").matches("goes on from its checkpoint").count() >= 3, "{}", lab.log("killed.log"));
}

#[test]
fn a_signal_checkpoints_and_ends_in_time_and_nothing_is_lost() {
    let lab = lab("drained");
    let search = lab.start(&format!("{SEARCH}epochs = 40"));
    let id = &search.trials[0].trial;
    let mut process = lab.trainer("drained.log");
    await_written(&lab.settings, 100);
    process.signal("TERM");
    assert_eq!(process.wait().code(), Some(0), "{}", lab.log("drained.log"));
    let (_, manifest) = lab.output().manifests(id).pop().unwrap();
    let before = lab.output().measurements(id).len();
    assert!(manifest["progress"]["step"].as_u64().unwrap() > 0);
    lab.train(&[&search]);
    let output = lab.output();
    assert_expected(&output, &search.trials[0], &records());
    assert!(output.measurements(id).len() > before, "it was drained before its end");
}

#[test]
fn lag_is_visible_while_a_trial_runs() {
    let lab = lab("lag");
    let search = lab.start(&format!("{SEARCH}epochs = 10000"));
    train_a_little(&lab, &search, 30);
    let id = &search.trials[0].trial;
    let (_, manifest) = lab.output().manifests(id).pop().unwrap();
    let group = committed(&lab.settings, &lab.settings.trial_group(id), &lab.settings.topics.features);
    let offsets: Vec<i64> = group.into_values().collect();
    assert_eq!(serde_json::json!(offsets), manifest["progress"]["position"]["offsets"]);
    assert!(offsets.iter().all(|&offset| offset <= 24));
}

#[test]
fn a_damaged_checkpoint_is_counted_and_the_one_before_is_used() {
    let lab = lab("damaged");
    let search = lab.start(&format!("{SEARCH}epochs = 40"));
    let id = &search.trials[0].trial;
    train_a_little(&lab, &search, 60);
    let found = lab.output().manifests(id);
    let (slot, newest) = found.last().unwrap();
    lab.overwrite(id, &format!("checkpoint/{slot}/0"), b"junk".as_slice());
    let topology = lab.topology();
    eventually("the trial goes on", || {
        topology.status.trials().get(id).is_some_and(|trial| trial.step > newest["progress"]["step"].as_u64().unwrap())
    });
    assert_eq!(topology.metrics.train.checkpoints_damaged.get(), 1);
    eventually_after("the trial ends", || work(&topology), || topology.status.trials()[id].state == "finished");
    topology.stop().unwrap();
    assert_eq!(lab.output().weights(id), expected(&search.trials[0], &records()).weights);
}

#[test]
fn without_any_whole_checkpoint_a_trial_begins_anew() {
    let lab = lab("both");
    let search = lab.start(&format!("{SEARCH}epochs = 40"));
    let id = &search.trials[0].trial;
    train_a_little(&lab, &search, 30);
    for (slot, _) in lab.output().manifests(id) {
        match slot.as_str() {
            "0" => lab.overwrite(id, "checkpoint/0/manifest", b"{]".as_slice()),
            slot => lab.overwrite(id, &format!("checkpoint/{slot}/0"), b"".as_slice()),
        }
    }
    lab.train(&[&search]);
    assert_eq!(lab.output().weights(id), expected(&search.trials[0], &records()).weights);
}

#[test]
fn a_group_that_was_reset_by_hand_is_refused_with_the_way_out() {
    let lab = lab("reset");
    let search = lab.start(&format!("{SEARCH}epochs = 10000"));
    let id = &search.trials[0].trial;
    train_a_little(&lab, &search, 30);
    let group = lab.settings.trial_group(id);
    let consumer: BaseConsumer = client(&lab.settings).set("group.id", &group).create().unwrap();
    let mut list = TopicPartitionList::new();
    for partition in 0..PARTITIONS {
        list.add_partition_offset(&lab.settings.topics.features, partition, Offset::Offset(1)).unwrap();
    }
    consumer.commit(&list, CommitMode::Sync).unwrap();
    lab.train(&[&search]);
    let outcome = lab.output().outcome(id);
    assert_eq!(outcome["state"], "failed");
    let reason = outcome["reason"].as_str().unwrap();
    assert!(reason.contains(&group) && reason.contains("reset") && reason.contains("trials restart"), "{reason}");
}

#[test]
fn a_publication_that_a_broker_ended_by_halves_counts_as_far_as_its_checkpoint() {
    for (name, apart) in [("behind", -1), ("ahead", 1), ("elsewhere", 2)] {
        let lab = lab(name);
        let search = lab.start(&format!("{SEARCH}epochs = 40"));
        let id = &search.trials[0].trial;
        train_a_little(&lab, &search, 30);
        let features = &lab.settings.topics.features;
        let group = lab.settings.trial_group(id);
        let consumer: BaseConsumer = client(&lab.settings).set("group.id", &group).create().unwrap();
        let mut list = TopicPartitionList::new();
        list.add_partition_range(features, 0, PARTITIONS - 1);
        let list = consumer.committed_offsets(list, PATIENCE).unwrap();
        for partition in 0..PARTITIONS {
            let mut element = list.find_partition(features, partition).unwrap();
            let mut pointer: Value = serde_json::from_str(element.metadata()).unwrap();
            pointer["checkpoint"] = (pointer["checkpoint"].as_i64().unwrap() + apart).into();
            element.set_metadata(pointer.to_string());
            element.set_offset(Offset::Offset(1)).unwrap();
        }
        consumer.commit(&list, CommitMode::Sync).unwrap();
        lab.train(&[&search]);
        if apart == 2 {
            let outcome = lab.output().outcome(id);
            assert_eq!(outcome["state"], "failed");
            assert!(outcome["reason"].as_str().unwrap().contains("trials restart"), "{outcome}");
        } else {
            assert_expected(&lab.output(), &search.trials[0], &records());
        }
    }
}

#[test]
fn a_group_that_was_deleted_is_made_again_from_the_checkpoint() {
    let lab = lab("forgotten");
    let search = lab.start(&format!("{SEARCH}epochs = 40"));
    let id = &search.trials[0].trial;
    train_a_little(&lab, &search, 30);
    let group = lab.settings.trial_group(id);
    delete_groups(&lab.settings, std::slice::from_ref(&group)).unwrap();
    lab.train(&[&search]);
    assert_expected(&lab.output(), &search.trials[0], &records());
    let ends: Vec<i64> = committed(&lab.settings, &group, &lab.settings.topics.features).into_values().collect();
    assert_eq!(ends, [24, 23, 23]);
}

#[test]
fn measurements_within_an_epoch_are_never_published_twice() {
    // 64 records are 8 whole batches: the last of each epoch is due for a measurement by count and by epoch.
    let lab = Lab::with_points("once", PARTITIONS, 64);
    let search = lab.start(
        &SEARCH
            .replace("validation = 5", "validation = 0")
            .replace("window = 5", "window = 6")
            .replace("hidden = 4", "hidden = 4\nepochs = 3"),
    );
    lab.train(&[&search]);
    let steps: Vec<(u64, u64)> = lab
        .output()
        .measurements(&search.trials[0].trial)
        .iter()
        .map(|m| (m["epoch"].as_u64().unwrap(), m["step"].as_u64().unwrap()))
        .collect();
    let wanted: Vec<(u64, u64)> =
        (1..=3).flat_map(|epoch| (1..=4).map(move |i| (epoch, (epoch - 1) * 8 + 2 * i))).collect();
    assert_eq!(steps, wanted);
}

/// Rewrites a trial's record as somebody else might.
fn rewrite(lab: &Lab, trial: &str, change: impl FnOnce(&mut Value)) {
    let trials = &lab.settings.topics.trials;
    let partition = read(&lab.settings, trials).iter().rfind(|record| record.key() == trial).unwrap().partition;
    let mut record = lab.trial(trial).unwrap();
    change(&mut record);
    let record = Out { key: Some(trial.into()), value: Some(record.to_string().into_bytes()), ..Out::default() };
    produce(&lab.settings, trials, &[record.to(partition)]);
}

#[test]
fn a_checkpoint_without_one_of_its_chunks_is_named_in_the_log() {
    let lab = lab("chunkless");
    let search = lab.start(&format!("{SEARCH}epochs = 40"));
    let id = &search.trials[0].trial;
    train_a_little(&lab, &search, 60);
    let (slot, newest) = lab.output().manifests(id).pop().unwrap();
    lab.overwrite(id, &format!("checkpoint/{slot}/0"), None);
    let _process = lab.trainer("chunkless.log");
    lab.await_end(id);
    let log = lab.log("chunkless.log");
    let line = log.lines().find(|line| line.contains("is damaged")).unwrap_or_else(|| panic!("{log}"));
    let named = format!("checkpoint {} in slot {slot} is damaged: chunk 0 of 1 is missing", newest["checkpoint"]);
    assert!(line.contains(&named) && line.contains(id.as_str()), "{line}");
    assert_eq!(lab.output().weights(id), expected(&search.trials[0], &records()).weights);
}

#[test]
fn a_checkpoint_of_other_parameters_is_refused_by_field_until_the_trial_is_restarted() {
    let lab = lab("unfit");
    let search = lab.start(&format!("{SEARCH}epochs = 40"));
    let id = &search.trials[0].trial;
    train_a_little(&lab, &search, 30);
    rewrite(&lab, id, |record| record["parameters"]["learning_rate"] = 0.01.into());
    lab.train(&[&search]);
    let outcome = lab.output().outcome(id);
    assert_eq!(outcome["state"], "failed");
    let reason = outcome["reason"].as_str().unwrap();
    assert!(reason.contains("`parameters.learning_rate` was 0.001 and is 0.01"), "{reason}");
    assert!(reason.contains("trials restart"), "{reason}");

    let restarted = lab.command(&["trials", "restart", id]);
    assert_eq!(restarted.code, 0, "{}", restarted.stderr);
    lab.train(&[&search]);
    let mut faster = search.trials[0].clone();
    faster.parameters.learning_rate = 0.01;
    let ended = lab.trial(id).unwrap();
    assert_eq!(ended["outcome"]["state"], "finished", "{ended}");
    assert_eq!(ended["outcome"]["weights_sha256"], expected(&faster, &records()).weights);
}

#[test]
fn a_trial_of_another_training_format_is_refused() {
    let lab = lab("format");
    let search = lab.start(&format!("{SEARCH}epochs = 40"));
    let id = &search.trials[0].trial;
    train_a_little(&lab, &search, 30);
    let before = lab.output().measurements(id).len();
    rewrite(&lab, id, |record| record["training_format"] = 999.into());
    lab.train(&[&search]);
    let outcome = lab.output().outcome(id);
    assert_eq!(outcome["state"], "failed");
    assert!(outcome["reason"].as_str().unwrap().contains("training format 999"), "{outcome}");
    assert_eq!(lab.output().measurements(id).len(), before);
}

#[test]
fn a_model_that_cannot_be_built_is_a_failed_trial_and_a_record_that_cannot_be_is_ignored() {
    let lab = lab("giant");
    let search = lab.start(&format!("{SEARCH}epochs = 1").replace("hidden = 4", "hidden = [4, 5, 6, 7]"));
    let ids: Vec<&str> = search.trials.iter().map(|trial| trial.trial.as_str()).collect();
    rewrite(&lab, ids[0], |record| record["parameters"]["hidden"] = u64::MAX.into());
    rewrite(&lab, ids[1], |record| record["dim"] = (1_u64 << 40).into());
    rewrite(&lab, ids[2], |record| record["range"]["0"] = serde_json::json!([-1, 24]));
    lab.train(&[&search]);
    let output = lab.output();
    for id in [ids[0], ids[1]] {
        let outcome = output.outcome(id);
        assert_eq!(outcome["state"], "failed");
        assert!(outcome["reason"].as_str().unwrap().contains("more than 1073741824 parameters"), "{outcome}");
    }
    // Its record before that stands.
    for id in [ids[2], ids[3]] {
        assert_eq!(output.outcome(id)["state"], "finished");
    }
}
