//! How trials end, what is shown of them meanwhile, and that an end is an end.

use std::io::{Read, Write};

use serde_json::Value;

use crate::lab::{dealt, points, Lab};
use crate::support::{eventually, eventually_after, produce, read, work, Out};

const MLP: &str = "name = \"e\"\nmodel = \"mlp\"\nhidden = 4\nbatch_size = 8\n";

#[test]
fn separable_classes_are_told_apart_and_an_autoencoder_learns_to_rebuild() {
    let lab = Lab::with_points("learns", 2, 120);
    let search = lab.start(
        r#"
        name = "l"
        seed = 1
        epochs = 12
        batch_size = 16
        validation = 4
        rows_max = 4
        learning_rate = 1e-2
        [[trial]]
        model = "mlp"
        hidden = 8
        [[trial]]
        model = "autoencoder"
        layers = [12, 6]
        "#,
    );
    lab.train(&[&search]);
    let output = lab.output();
    let last = |number: usize, key: &str| {
        output
            .measurements(&search.trials[number].trial)
            .into_iter()
            .map(|m| m[key].as_f64().unwrap())
            .collect::<Vec<_>>()
    };
    // Half of them are of either class.
    assert!(last(0, "validation_accuracy")[11] > 0.95, "{:?}", last(0, "validation_accuracy"));
    assert!(last(0, "validation_macro_f1")[11] > 0.95);
    let rebuilt = last(1, "validation_loss");
    assert!(rebuilt[11] < 0.8 * rebuilt[0], "{rebuilt:?}");
    assert!(output.measurements(&search.trials[1].trial).iter().all(|m| m.get("validation_accuracy").is_none()));
    assert_eq!(output.outcome(&search.trials[0].trial)["epochs"], 12);
}

#[test]
fn a_diverged_trial_keeps_its_last_good_measurement_and_harms_no_other() {
    let lab = Lab::with_points("diverged", 2, 40);
    // One step an epoch: the second one finds what the first has done.
    let search = lab.start(&format!(
        "{}epochs = 3\nvalidation = 0\noptimizer = \"sgd\"\nlearning_rate = [1e30, 1e-3]",
        MLP.replace("= 8", "= 1000")
    ));
    lab.train(&[&search]);
    let output = lab.output();
    let [absurd, modest] = [0, 1].map(|number| output.outcome(&search.trials[number].trial));
    assert_eq!(absurd["state"], "diverged");
    assert!(absurd["reason"].as_str().unwrap().contains("epoch 2 step 2"), "{absurd}");
    assert_eq!((absurd["epochs"].as_u64(), absurd["best"]["epoch"].as_u64()), (Some(1), Some(1)), "{absurd}");
    assert!(absurd["best"]["loss"].as_f64().unwrap().is_finite());
    assert!(absurd.get("weights_sha256").is_none());
    assert_eq!(modest["state"], "finished");
    let waited = lab.command(&["search", "wait", &search.id]);
    assert_eq!(waited.code, 1);
    assert!(waited.stderr.contains("diverged"), "{}", waited.stderr);
}

#[test]
fn weights_that_the_last_step_spoils_are_no_success() {
    let lab = Lab::with_points("spoilt", 2, 40);
    let one_step = MLP.replace("= 8", "= 1000");
    let searches = [0, 5]
        .map(|validation| lab.start(&format!("{one_step}epochs = 1\nvalidation = {validation}\nlearning_rate = 1e39")));
    lab.train(&[&searches[0], &searches[1]]);
    let output = lab.output();
    for search in &searches {
        assert_eq!(output.outcome(&search.trials[0].trial)["state"], "diverged");
    }
}

#[test]
fn what_has_ended_is_not_run_again() {
    let lab = Lab::with_points("over", 2, 40);
    let search = lab.start(&format!("{MLP}epochs = 2"));
    lab.train(&[&search]);
    let topics = [&lab.settings.topics.trials, &lab.settings.topics.output];
    let before = topics.map(|topic| read(&lab.settings, topic));
    lab.train(&[&search]);
    assert_eq!(topics.map(|topic| read(&lab.settings, topic)), before);
}

#[test]
fn an_outcome_that_the_trials_topic_lost_is_written_again_without_training() {
    let lab = Lab::with_points("healed", 2, 40);
    let search = lab.start(&format!("{MLP}epochs = 2"));
    let id = &search.trials[0].trial;
    lab.train(&[&search]);
    let (before, trial) = (lab.output(), lab.trial(id).unwrap());
    let mut lost = trial.clone();
    drop(lost.as_object_mut().unwrap().remove("outcome"));
    write_trial(&lab, id, lost.to_string().as_bytes());
    lab.train(&[&search]);
    assert_eq!(lab.trial(id).unwrap(), trial);
    assert_eq!(lab.output().measurements(id), before.measurements(id));
    assert_eq!(
        lab.output().keyed(&format!("{id}/checkpoint/0/manifest")).len(),
        before.keyed(&format!("{id}/checkpoint/0/manifest")).len()
    );
}

/// Writes a record of `trials` as somebody else would, beside the trial's own.
fn write_trial(lab: &Lab, id: &str, value: &[u8]) {
    let records = read(&lab.settings, &lab.settings.topics.trials);
    let partition = records.iter().find(|record| record.key() == id).map_or(0, |record| record.partition);
    let record = Out { key: Some(id.into()), value: Some(value.into()), ..Out::default() };
    produce(&lab.settings, &lab.settings.topics.trials, &[record.to(partition)]);
}

#[test]
fn what_is_no_trial_is_ignored_and_what_cannot_be_trained_fails_alone() {
    let lab = Lab::with_points("hostile", 2, 40);
    let search = lab.start(&format!("{MLP}epochs = 2"));
    let good = &search.trials[0].trial;
    write_trial(&lab, good, b"junk");
    write_trial(&lab, "stranger", b"{\"trial\": 7}");
    let record = lab.trial("stranger");
    assert_eq!(record.unwrap()["trial"], 7);
    let template = serde_json::to_value(&search.trials[0]).unwrap();
    let spoilt = |name: &str, spoil: &dyn Fn(&mut Value)| {
        let mut record = template.clone();
        record["trial"] = name.into();
        spoil(&mut record);
        write_trial(&lab, name, record.to_string().as_bytes());
    };
    spoilt("newer", &|record| record["training_format"] = 99.into());
    spoilt("widthless", &|record| record["parameters"]["hidden"] = 0.into());
    spoilt("forged", &|record| record["digests"]["1"] = "00000000000000ff".into());
    spoilt("short", &|record| record["records"]["0"] = 21.into());
    spoilt("wide", &|record| record["dim"] = 7.into());
    let topology = lab.topology();
    let names = ["newer", "widthless", "forged", "short", "wide"];
    let states = || topology.status.trials();
    let state = |id: &str| states().get(id).map(|trial| trial.state.clone()).unwrap_or_default();
    let ended = || state(good) == "finished" && names.iter().all(|name| state(name) == "failed");
    eventually_after("all have ended", || work(&topology), ended);
    topology.stop().unwrap();
    let output = lab.output();
    let features = &lab.settings.topics.features;
    for (name, reason) in names.into_iter().zip([
        "format 99",
        "hidden",
        &format!("{features}/1"),
        &format!("{features}/0"),
        "rows have 6 numbers",
    ]) {
        let said = output.outcome(name)["reason"].as_str().unwrap().to_owned();
        assert!(said.contains(reason), "{name}: {said}");
    }
}

#[test]
fn a_running_trial_is_shown_and_its_series_end_with_it() {
    let lab = Lab::with_points("shown", 2, 40);
    let search = lab.start(&format!("{MLP}epochs = 1000000"));
    let id = &search.trials[0].trial;
    let topology = lab.topology();
    let address = topology.http_address().unwrap();
    let shown = || serde_json::from_str::<Value>(&get(address, "/api/trials")).unwrap();
    let series = [
        format!("sweepstream_trial_epoch{{trial=\"{id}\"}}"),
        format!("sweepstream_trial_step{{trial=\"{id}\"}}"),
        format!("sweepstream_trial_lag_records{{trial=\"{id}\"}}"),
        format!("sweepstream_trial_loss{{trial=\"{id}\"}}"),
    ];
    eventually("it is shown", || {
        let metrics = get(address, "/metrics");
        shown()[id]["loss"].is_number() && series.iter().all(|series| metrics.contains(series.as_str()))
    });
    let trial = &shown()[id];
    assert_eq!(
        (&trial["state"], &trial["records_total"], &trial["epochs"]),
        (&"running".into(), &40.into(), &1_000_000.into())
    );
    assert!(trial["measurement"]["loss"].is_number(), "{trial}");
    assert!(get(address, "/metrics").contains("sweepstream_trials{state=\"running\"} 1"));
    assert_eq!(get(address, "/health/ready"), "ready\n");
    assert!(get(address, "/metrics").contains("sweepstream_stage_ready{stage=\"train\"} 1"));
    let set = format!("http.address={address}");
    assert_eq!(lab.command(&["-s", &set, "health"]).stdout, "ready\n");
    assert_eq!(lab.command(&["trials", "stop", id]).code, 0);
    eventually("its series have ended", || {
        let metrics = get(address, "/metrics");
        metrics.contains("sweepstream_trials{state=\"stopped\"} 1") && !metrics.contains(id.as_str())
    });
    assert_eq!(shown()[id]["state"], "stopped");
    topology.stop().unwrap();
}

#[test]
fn a_search_is_drawn_once_it_has_measurements() {
    let lab = Lab::with_points("drawn", 2, 40);
    let search =
        lab.start(&format!("{MLP}epochs = 2\nlearning_rate = [0.01, 0.002]\nobjective = \"validation_accuracy\""));
    let folder = tempfile::tempdir().unwrap();
    let plot = |name: &str| {
        let file = folder.path().join(name);
        let finished = lab.command(&["plot", &search.id, file.to_str().unwrap()]);
        (finished, std::fs::read(&file).unwrap_or_default())
    };
    let (early, _) = plot("early.svg");
    assert_eq!(early.code, 1);
    assert!(early.stderr.contains("no measurements yet"), "{}", early.stderr);
    lab.train(&[&search]);
    let (finished, svg) = plot("a.svg");
    assert_eq!(finished.code, 0, "{}", finished.stderr);
    assert!(String::from_utf8(svg).unwrap().contains("learning_rate 0.002"));
    let (finished, png) = plot("A.PNG");
    assert_eq!((finished.code, &png[..4]), (0, b"\x89PNG".as_slice()), "{}", finished.stderr);
    assert!(!finished.stderr.contains("WARN"), "{}", finished.stderr);
    let (finished, _) = plot("a.pdf");
    assert_eq!(finished.code, 64);
    assert!(finished.stderr.contains(".svg or .png"), "{}", finished.stderr);
}

/// The body of an answer.
fn get(address: std::net::SocketAddr, path: &str) -> String {
    let mut stream = std::net::TcpStream::connect(address).unwrap();
    write!(stream, "GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    let _ = stream.read_to_string(&mut answer).unwrap();
    answer.split_once("\r\n\r\n").unwrap().1.to_owned()
}

#[test]
fn parallel_trials_each_see_every_record() {
    let mut lab = Lab::new("each", 3);
    lab.settings.train.parallel = std::num::NonZeroUsize::new(5);
    lab.fill(&dealt(points(50), 3));
    let search = lab.start(&format!("{MLP}epochs = 2\nvalidation = 0\nlearning_rate = [1e-2, 3e-3, 1e-3, 3e-4, 1e-4]"));
    lab.train(&[&search]);
    let output = lab.output();
    for trial in &search.trials {
        assert_eq!(output.outcome(&trial.trial)["records"], 100);
        let group = lab.settings.trial_group(&trial.trial);
        assert_eq!(group, format!("{}.trial.{}", lab.settings.application_id, trial.trial));
        let committed = crate::support::committed(&lab.settings, &group, &lab.settings.topics.features);
        assert_eq!(committed.into_values().collect::<Vec<i64>>(), [17, 17, 16]);
    }
}
