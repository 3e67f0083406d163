//! Searches and trials from the command line: what is refused, and what is started, watched, stopped and deleted.

use serde_json::Value;
use sweepstream::train::store::start::Started;

use crate::lab::{assert_expected, client, dealt, is_end, is_validation, matrix, points, Lab, DIM};
use crate::support::{create_topics, eventually, eventually_after, produce, read, work, Out};

const MLP: &str = "name = \"s\"\nmodel = \"mlp\"\nhidden = 4\nepochs = 2\nbatch_size = 8\nvalidation = 5\n";
const ENDLESS: &str = "name = \"e\"\nmodel = \"mlp\"\nhidden = 4\nepochs = 1000000\nbatch_size = 8\n";

/// A search file that is refused: exit code 64, nothing on standard output, nothing written, and this reason.
#[track_caller]
fn assert_refused(lab: &Lab, search: &str, reason: &str) {
    let refused = lab.start_by_command(search);
    assert_eq!((refused.code, refused.stdout.as_str()), (64, ""), "{}", refused.stderr);
    assert!(refused.stderr.contains(reason), "{reason:?} is not in {}", refused.stderr);
}

/// No search has trials.
#[track_caller]
fn assert_nothing_started(lab: &Lab) {
    assert!(read(&lab.settings, &lab.settings.topics.trials).is_empty());
    assert!(read(&lab.settings, &lab.settings.topics.output).is_empty());
}

#[test]
fn mistakes_in_a_search_file_are_refused_with_the_way_out() {
    let lab = Lab::with_points("mistakes", 1, 10);
    for (search, reason) in [
        ("name = \"s\"\nmodel = \"mlp\"\nlearning_rat = 1", "did you mean `learning_rate`"),
        ("name = \"s\"\nmodel = \"mlp\"\nlearning_rate = 0", "must be above 0"),
        ("name = \"s\"\nmodel = \"mlp\"\nlearning_rate = nan", "learning_rate"),
        ("name = \"s\"\nmodel = \"mlp\"\nlearning_rate = [1e-3, -1]", "must be above 0"),
        ("name = \"s\"\nmodel = \"mlp\"\nlearning_rate = []", "learning_rate"),
        ("name = \"s\"\nmodel = \"mlp\"\nbatch_size = 0", "at least 1"),
        ("name = \"s\"\nmodel = \"mlp\"\ncheckpoint_every = 0", "at least 1"),
        ("name = \"s\"\nmodel = \"mlp\"\nhidden = 0", "hidden"),
        ("name = \"s\"\nmodel = \"mlp\"\noptimizer = \"adam\"", "optimizer"),
        ("name = \"s\"\nmodel = \"mlp\"\nobjective = \"accuracy\"", "objective"),
        ("name = \"s\"\nmodel = \"mlp\"\nmomentum = 0.9", "sgd"),
        ("name = \"s\"", "`model` is missing"),
        ("name = ", "not TOML"),
        ("name = \"s\"\nmodel = \"mlp\"\nvalidation = 1", "validation"),
        ("name = \"s\"\nmodel = \"mlp\"\nvalidation = 0\npatience = 3", "`patience` has nothing to go by"),
        ("name = \"s\"\nmodel = \"mlp\"\nvalidation = 1000000\npatience = 3", "lower `validation`"),
        ("name = \"s\"\nmodel = \"mlp\"\ninitial_weights = \"none.safetensors\"", "none.safetensors"),
    ] {
        assert_refused(&lab, search, reason);
    }
    assert_nothing_started(&lab);
}

#[test]
fn features_that_cannot_be_trained_on_are_refused() {
    let cases: [(&str, Vec<Out>, &str); 6] = [
        ("empty", Vec::new(), "holds no features"),
        ("unlabelled", unlabelled(points(4), |_| true), "`label`"),
        ("some", unlabelled(points(4), |i| i == 2), "1 of 4 records"),
        ("junk", vec![Out { value: Some(b"pickle".to_vec()), ..Out::default() }], "offset 0"),
        ("null", vec![Out { value: None, ..points(1).remove(0) }], "null"),
        (
            "dims",
            [points(1), vec![Out { value: Some(matrix(1, &[0.0; DIM + 1], true)), ..points(2).remove(1) }]].concat(),
            "one embedding model",
        ),
    ];
    for (name, records, reason) in cases {
        let lab = Lab::new(name, 1);
        lab.fill(&dealt(records, 1));
        let refused = lab.start_by_command(MLP);
        assert_ne!(refused.code, 0);
        assert!(refused.stdout.is_empty());
        assert!(refused.stderr.contains(reason), "{name}: {}", refused.stderr);
        assert!(refused.stderr.contains(&lab.settings.topics.features), "{name}: {}", refused.stderr);
        assert_nothing_started(&lab);
    }
}

/// Takes labels away.
fn unlabelled(mut records: Vec<Out>, chosen: impl Fn(usize) -> bool) -> Vec<Out> {
    for (i, record) in records.iter_mut().enumerate() {
        if chosen(i) {
            record.headers.retain(|(key, _)| key != "label");
        }
    }
    records
}

#[test]
fn only_the_id_is_printed_and_trials_are_numbered_in_the_order_of_the_file() {
    let lab = Lab::with_points("grid", 1, 20);
    let started = lab.start_by_command(
        "name = \"g\"\nmodel = \"mlp\"\nlearning_rate = [1e-2, 1e-3]\n[[trial]]\nhidden = [4, 8]\n[[trial]]\nmodel = \
         \"autoencoder\"\nlayers = [[4], [3, 2]]",
    );
    assert_eq!(started.code, 0, "{}", started.stderr);
    let id = started.stdout.strip_suffix('\n').unwrap();
    assert!(id.starts_with("g-") && !id.contains(char::is_whitespace), "{id:?}");
    let listed = lab.command(&["trials", "list", "--search", id, "--json"]);
    let trials: Vec<Value> = serde_json::from_str(&listed.stdout).unwrap();
    let seen: Vec<String> = trials
        .iter()
        .map(|trial| {
            let p = &trial["parameters"];
            let shape = if p["hidden"].is_null() { &p["layers"] } else { &p["hidden"] };
            format!(
                "{} {} {} {shape}",
                trial["number"],
                trial["trial"].as_str().unwrap().replace(id, ""),
                p["learning_rate"]
            )
        })
        .collect();
    let wanted = [
        "0 -00 0.01 4",
        "1 -01 0.01 8",
        "2 -02 0.001 4",
        "3 -03 0.001 8",
        "4 -04 0.01 [4]",
        "5 -05 0.01 [3,2]",
        "6 -06 0.001 [4]",
        "7 -07 0.001 [3,2]",
    ];
    assert_eq!(seen, wanted);
}

#[test]
fn unlabelled_records_are_skipped_by_classifiers_when_asked_for() {
    let lab = Lab::new("skip", 2);
    let records = dealt(unlabelled(points(40), |i| i % 7 == 3), 2);
    lab.fill(&records);
    let search = lab.start(&format!("{MLP}unlabelled = \"skip\"\nwindow = 1000\nshuffle = false"));
    lab.train(&[&search]);
    let labelled: Vec<Out> =
        records.into_iter().filter(|out| out.headers.iter().any(|(key, _)| key == "label")).collect();
    let outcome = lab.output().outcome(&search.trials[0].trial);
    let training = labelled.iter().filter(|out| !is_validation(out.key.as_deref().unwrap(), 5)).count();
    assert_eq!(outcome["records"], 2 * training);
}

#[test]
fn records_that_others_wrote_with_little_more_than_a_matrix_are_trained_on() {
    let lab = Lab::new("others", 2);
    // Single precision, no sources; some without key.
    let records: Vec<Out> = points(40)
        .into_iter()
        .enumerate()
        .map(|(i, mut record)| {
            record.headers.retain(|(key, _)| key == "label");
            record.value = Some(matrix(2, &[if i % 2 == 0 { 1.25 } else { -0.5 }; 2 * DIM], false));
            record.key = record.key.filter(|_| i % 4 != 3);
            record
        })
        .collect();
    lab.fill(&dealt(records.clone(), 2));
    let search = lab.start(MLP);
    lab.train(&[&search]);
    let outcome = lab.output().outcome(&search.trials[0].trial);
    assert_eq!(outcome["state"], "finished", "{outcome}");
    let validation = |(i, record): &(usize, Out)| {
        let (partition, ordinal) = (i % 2, i / 2);
        let identity = record.key.clone().unwrap_or_else(|| format!("{partition}/{ordinal}").into_bytes());
        is_validation(&identity, 5)
    };
    let training = records.into_iter().enumerate().filter(|record| !validation(record)).count();
    assert_eq!(outcome["records"], 2 * training);
}

#[test]
fn a_search_can_name_another_topic() {
    let (lab, other) = (Lab::with_points("here", 1, 10), Lab::with_points("there", 2, 30));
    let search = lab.start(&format!("{MLP}topic = \"{}\"", other.settings.topics.features));
    lab.train(&[&search]);
    assert_expected(&lab.output(), &search.trials[0], &dealt(points(30), 2));
    let missing = lab.start_by_command(&format!("{MLP}topic = \"no-such-topic\""));
    assert_eq!(missing.stdout, "");
    assert!(missing.stderr.contains("no-such-topic"), "{}", missing.stderr);
    assert_eq!(missing.code, 78);
}

#[test]
fn exported_weights_are_the_outcomes_and_another_trial_can_begin_with_them() {
    let lab = Lab::with_points("export", 2, 40);
    let both = format!("{MLP}[[trial]]\n[[trial]]\nmodel = \"autoencoder\"\nlayers = [4, 3]");
    let (first, again) = (lab.start(&both), lab.start(&both));
    lab.train(&[&first, &again]);
    let export = |search: &Started, number: usize, name: &str| {
        let file = lab.file(name);
        let trial = search.trials[number].trial.as_str();
        let exported = lab.command(&["checkpoint", "export", "--newest", trial, file.to_str().unwrap()]);
        assert_eq!(exported.code, 0, "{}", exported.stderr);
        std::fs::read(file).unwrap()
    };
    let output = lab.output();
    for number in [0, 1] {
        let (one, two) = (export(&first, number, "w.safetensors"), export(&again, number, "again.safetensors"));
        assert_eq!(one, two, "the same weights give the same bytes");
        assert_eq!(
            sweepstream::train::store::checkpoint::sha256_hex(&one),
            output.weights(&first.trials[number].trial)
        );
        let tensors = safetensors::SafeTensors::deserialize(&one).unwrap();
        let mut names = tensors.names();
        names.sort_unstable();
        let wanted: Vec<String> = match number {
            0 => ["l1.bias", "l1.weight", "l2.bias", "l2.weight"].map(String::from).to_vec(),
            _ => (0..4).flat_map(|layer| [format!("layers.{layer}.bias"), format!("layers.{layer}.weight")]).collect(),
        };
        assert_eq!(names, wanted);
    }
    let _ = export(&first, 0, "w.safetensors");
    // At almost no learning rate and without decay the weights stay what was given.
    let still = lab.start(
        &format!("{MLP}epochs = 1\nlearning_rate = 1e-30\nweight_decay = 0\ninitial_weights = \"w.safetensors\"")
            .replacen("epochs = 2\n", "", 1),
    );
    std::fs::remove_file(lab.file("w.safetensors")).unwrap();
    lab.train(&[&still]);
    let output = lab.output();
    let last = |search: &Started| output.measurements(&search.trials[0].trial).pop().unwrap();
    assert_eq!(output.weights(&still.trials[0].trial), output.weights(&first.trials[0].trial));
    assert_eq!(last(&still)["validation_loss"], last(&first)["validation_loss"]);
    let _ = export(&first, 1, "other.safetensors");
    assert_refused(&lab, &format!("{MLP}initial_weights = \"other.safetensors\""), "l1.bias");
    let _ = export(&first, 0, "narrow.safetensors");
    assert_refused(
        &lab,
        &format!("{MLP}initial_weights = \"narrow.safetensors\"").replace("hidden = 4", "hidden = 5"),
        "l1.bias has shape [4]",
    );
}

#[test]
fn a_search_is_listed_shown_waited_for_and_deleted() {
    let lab = Lab::with_points("life", 2, 40);
    let (search, other) =
        (lab.start(&format!("{MLP}learning_rate = [1e-2, 1e-3]\nobjective = \"validation_accuracy\"")), lab.start(MLP));
    lab.train(&[&search, &other]);
    let waited = lab.command(&["search", "wait", &search.id]);
    assert_eq!((waited.code, waited.stdout.as_str()), (0, ""), "{}", waited.stderr);
    let listed: Vec<Value> = serde_json::from_str(&lab.command(&["search", "list", "--json"]).stdout).unwrap();
    let seen: Vec<_> =
        listed.iter().map(|s| (s["search"].as_str().unwrap(), s["trials"].as_u64(), s["ended"].as_u64())).collect();
    assert_eq!(seen, [(search.id.as_str(), Some(2), Some(2)), (other.id.as_str(), Some(1), Some(1))]);
    let board: Value = serde_json::from_str(&lab.command(&["search", "show", &search.id, "--json"]).stdout).unwrap();
    let accuracy = |rank: usize| board["trials"][rank]["best"]["validation_accuracy"].as_f64().unwrap();
    assert!(accuracy(0) >= accuracy(1));
    assert!(lab.command(&["search", "show", &search.id]).stdout.contains(&search.trials[1].trial));
    let mistyped = lab.command(&["search", "wait", &search.id[..search.id.len() - 1]]);
    assert_eq!(mistyped.code, 64);
    assert!(mistyped.stderr.contains(&format!("did you mean `{}`", search.id)), "{}", mistyped.stderr);

    assert_eq!(lab.command(&["search", "delete", &search.id]).code, 0);
    for (topic, live) in [(&lab.settings.topics.trials, 1), (&lab.settings.topics.output, 5)] {
        let mut last = std::collections::BTreeMap::new();
        last.extend(
            read(&lab.settings, topic)
                .into_iter()
                .map(|record| ((record.partition, record.key()), record.value.is_some())),
        );
        let of = |id: &str| last.iter().filter(|((_, key), live)| key.starts_with(id) && **live).count();
        assert_eq!(of(&search.id), 0, "{topic}");
        assert!(of(&other.id) >= live, "{topic}: {}", of(&other.id));
    }
    let groups = groups(&lab);
    assert!(groups.contains(&lab.settings.trial_group(&other.trials[0].trial)), "{groups:?}");
    assert!(!groups.iter().any(|group| group.contains(&search.id)), "{groups:?}");
    assert_eq!(lab.command(&["search", "show", &search.id]).code, 64);
}

/// Names of the lab's groups.
fn groups(lab: &Lab) -> Vec<String> {
    use rdkafka::consumer::{BaseConsumer, Consumer};
    let consumer: BaseConsumer = client(&lab.settings).create().unwrap();
    let list = consumer.fetch_group_list(None, crate::support::PATIENCE).unwrap();
    let names = list.groups().iter().map(|group| group.name().to_owned());
    names.filter(|name| name.starts_with(&lab.settings.application_id)).collect()
}

#[test]
fn deleting_a_search_ends_its_running_trial_and_no_other() {
    let lab = Lab::with_points("delete", 2, 40);
    let (search, other) = (lab.start(ENDLESS), lab.start(ENDLESS));
    let (gone, stays) = (&search.trials[0].trial, &other.trials[0].trial);
    let topology = lab.topology();
    let step = |id: &String| topology.status.trials().get(id).map_or(0, |trial| trial.step);
    eventually("both run", || step(gone) > 0 && step(stays) > 0);
    assert_eq!(lab.command(&["search", "delete", &search.id]).code, 0);
    eventually("it is forgotten", || !topology.status.trials().contains_key(gone));
    let before = step(stays);
    eventually("the other goes on", || step(stays) > before);
    assert!(!topology.metrics.text().unwrap().contains(gone.as_str()));
    topology.stop().unwrap();
    assert!(lab.trial(gone).is_none());
    let output = lab.output();
    for key in ["outcome", "checkpoint/0/manifest", "checkpoint/1/manifest", "checkpoint/2/manifest"] {
        assert!(output.keyed(&format!("{gone}/{key}")).pop().is_none_or(|record| record.value.is_none()), "{key}");
    }
    assert!(!groups(&lab).iter().any(|group| group.contains(&search.id)));
}

#[test]
fn a_stopped_trial_keeps_its_checkpoint_and_harms_no_other() {
    let lab = Lab::with_points("stop", 2, 40);
    let search = lab.start(&ENDLESS.replace("hidden = 4", "hidden = [4, 5]"));
    let [stopped, other] = [0, 1].map(|number| search.trials[number].trial.clone());
    let topology = lab.topology();
    let states = || topology.status.trials();
    let step = |id: &String| states().get(id).map_or(0, |trial| trial.step);
    eventually("both run", || step(&stopped) > 0 && step(&other) > 0);
    assert_eq!(lab.command(&["trials", "stop", &stopped]).code, 0);
    eventually("it stops", || states()[&stopped].state == "stopped");
    let before = step(&other);
    eventually("the other goes on", || step(&other) > before);
    topology.stop().unwrap();
    let outcome = lab.output().outcome(&stopped);
    assert_eq!(outcome["state"], "stopped");
    let file = lab.file("stopped.safetensors");
    assert_eq!(lab.command(&["checkpoint", "export", "--newest", &stopped, file.to_str().unwrap()]).code, 0);
    let digest = sweepstream::train::store::checkpoint::sha256_hex(&std::fs::read(file).unwrap());
    assert_eq!(outcome["weights_sha256"], digest);
    let listed: Vec<Value> = serde_json::from_str(&lab.command(&["trials", "list", "--json"]).stdout).unwrap();
    let state = |id: &String| listed.iter().find(|trial| trial["trial"] == **id).unwrap()["outcome"]["state"].clone();
    assert_eq!((state(&stopped), state(&other)), (serde_json::json!("stopped"), Value::Null));
    let waiting = lab.command(&["trials", "stop", &other]);
    assert_eq!(waiting.code, 0);
    lab.train(&[&search]);
    let waited = lab.command(&["search", "wait", &search.id]);
    assert_eq!(waited.code, 1, "not all finished");
    assert!(waited.stderr.contains(&stopped) && waited.stderr.contains("stopped"), "{}", waited.stderr);
}

#[test]
fn a_restarted_trial_begins_anew_and_comes_to_the_same() {
    let lab = Lab::with_points("restart", 2, 40);
    let search = lab.start(MLP);
    let id = &search.trials[0].trial;
    lab.train(&[&search]);
    let first = lab.output().weights(id);
    assert_eq!(lab.command(&["trials", "restart", id]).code, 0);
    // What was is over, so there is something to wait for.
    let mut waiting = crate::support::Process::start(&lab.settings, &["search", "wait", &search.id]);
    let topology = lab.topology();
    assert!(waiting.wait().success());
    topology.stop().unwrap();
    // What the first attempt had published is deleted before the second begins.
    let output = lab.output();
    let published = |key: &str| -> Vec<Option<Value>> {
        let records = output.keyed(&format!("{id}/{key}"));
        records.into_iter().map(|record| record.value.as_ref().map(|_| record.json())).collect()
    };
    let attempts: Vec<Option<u64>> = published("outcome").iter().map(|o| o.as_ref()?["attempt"].as_u64()).collect();
    assert_eq!(attempts, [Some(0), None, Some(1)]);
    assert_eq!(published("outcome")[2].as_ref().unwrap()["weights_sha256"], first.as_str());
    let losses: Vec<Option<f64>> = published("measurement/1/4").iter().map(|m| m.as_ref()?["loss"].as_f64()).collect();
    assert_eq!((losses.len(), losses[1]), (3, None));
    assert_eq!(losses[0], losses[2]);
}

#[test]
fn waiting_for_a_restarted_trial_does_not_end_with_its_first_attempt() {
    let lab = Lab::with_points("wait", 2, 20);
    let search = lab.start(MLP);
    let id = &search.trials[0].trial;
    lab.train(&[&search]);
    assert_eq!(lab.command(&["trials", "restart", id]).code, 0);
    let settings = &lab.settings;
    let known: Vec<_> = sweepstream::train::store::trials::all(settings).unwrap().into_values().collect();
    let (mut calls, mut ended) = (0, false);
    sweepstream::train::store::trials::follow(settings, &known, |trials| {
        calls += 1;
        ended |= trials.values().any(|stored| stored.record.outcome.is_some());
        // Begun, ended, begun anew: by now it would have been shown.
        calls < 3
    })
    .unwrap();
    assert!(!ended, "it was shown in a state that it had left");
}

#[test]
fn a_running_trial_can_be_restarted() {
    let lab = Lab::with_points("rerun", 2, 40);
    let search = lab.start(&ENDLESS.replace("1000000", "400"));
    let id = &search.trials[0].trial;
    let topology = lab.topology();
    eventually("it runs", || topology.status.trials().get(id).is_some_and(|trial| trial.epoch > 3));
    assert_eq!(lab.command(&["trials", "restart", id]).code, 0);
    let ended = || topology.status.trials().get(id).is_some_and(|trial| is_end(&trial.state));
    eventually_after("it ends", || work(&topology), ended);
    topology.stop().unwrap();
    let outcome = lab.output().outcome(id);
    assert_eq!((outcome["state"].as_str(), outcome["attempt"].as_u64()), (Some("finished"), Some(1)), "{outcome}");
    let wanted = crate::lab::expected(&search.trials[0], &dealt(points(40), 2));
    assert_eq!(outcome["weights_sha256"], wanted.weights);
}

#[test]
fn a_search_starts_before_anything_was_embedded_only_with_features() {
    let lab = Lab::new("before", 1);
    create_topics(&lab.settings);
    assert_refused(&lab, MLP, "sweepstream run --stage embed");
    produce(&lab.settings, &lab.settings.topics.features, &points(4));
    assert_eq!(lab.start_by_command(MLP).code, 0);
}
