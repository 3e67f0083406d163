//! Trials that learn numbers.

use serde_json::json;

use crate::lab::{assert_expected, dealt, points, Lab};
use crate::support::{read, Out};

const SEARCH: &str =
    "name = \"numbers\"\nobjective = \"validation_r2\"\ntask = \"regress\"\nepochs = 40\nbatch_size = 8\n\
                      learning_rate = 0.02\nvalidation = 5\n[[trial]]\nmodel = \"linear\"\n[[trial]]\nmodel = \
                          \"mlp\"\nhidden = 6\n";

/// Points whose label is a number that depends on their place, and is another one for each.
fn numbered(count: usize) -> Vec<Out> {
    let number = |i: usize| format!("{:.3}", if i.is_multiple_of(2) { 2.5 } else { -1.0 } + 0.001 * i as f64);
    let labelled = |(i, mut point): (usize, Out)| {
        let label = point.headers.iter_mut().find(|(key, _)| key == "label").unwrap();
        label.1 = Some(number(i).into_bytes());
        point
    };
    points(count).into_iter().enumerate().map(labelled).collect()
}

#[test]
fn numbers_are_learnt_and_scored() {
    let lab = Lab::new("numbers", 2);
    let records = dealt(numbered(80), 2);
    lab.fill(&records);
    let search = lab.start(SEARCH);
    lab.train(&[&search]);
    let output = lab.output();
    for trial in &search.trials {
        assert_expected(&output, trial, &records);
        let best = output.outcome(&trial.trial)["best"].clone();
        assert!(best["validation_r2"].as_f64().unwrap() > 0.5, "{best}");
        assert!(best["validation_mae"].as_f64().unwrap() < 1.0, "{best}");
        assert_eq!(best["validation_mse"], best["validation_loss"], "{best}");
        assert_eq!(best.get("validation_accuracy"), None, "{best}");
    }
    let record = lab.trial(&search.trials[0].trial).unwrap();
    assert_eq!((&record["labels"], &record["parameters"]["task"]), (&json!([]), &json!("regress")));
    let shown = lab.command(&["search", "show", &search.id, "--json"]).stdout;
    let shown: serde_json::Value = serde_json::from_str(&shown).unwrap();
    let reached = |place: usize| shown["trials"][place]["best"]["validation_r2"].as_f64().unwrap();
    assert!(reached(0) >= reached(1), "{shown}");
}

#[test]
fn classes_and_numbers_can_be_learnt_from_the_same_labels() {
    let lab = Lab::new("both-ways", 2);
    let mut records = points(40);
    for (i, record) in records.iter_mut().enumerate() {
        record.headers.iter_mut().find(|(key, _)| key == "label").unwrap().1 = Some(format!("{}", i % 2).into_bytes());
    }
    let records = dealt(records, 2);
    lab.fill(&records);
    let search = lab.start(
        "name = \"b\"\nepochs = 3\nbatch_size = 8\nvalidation = 5\n[[trial]]\nmodel = \"linear\"\n\
         task = [\"classify\", \"regress\"]\n[[trial]]\nmodel = \"autoencoder\"\nlayers = [4]\n",
    );
    lab.train(&[&search]);
    let output = lab.output();
    search.trials.iter().for_each(|trial| assert_expected(&output, trial, &records));
    let labels = |place: usize| lab.trial(&search.trials[place].trial).unwrap()["labels"].clone();
    assert_eq!([labels(0), labels(1), labels(2)], [json!(["0", "1"]), json!([]), json!(["0", "1"])]);
}

#[test]
fn labels_that_are_no_numbers_and_tasks_that_a_model_cannot_learn_are_refused() {
    let lab = Lab::with_points("words", 1, 4);
    let refused = lab.start_by_command(SEARCH);
    assert_eq!((refused.code, refused.stdout.as_str()), (64, ""));
    let place = format!("{}/0 offset 0", lab.settings.topics.features);
    for named in [place.as_str(), "the label `sea` is no number", "`task = \"regress\"`"] {
        assert!(refused.stderr.contains(named), "{}", refused.stderr);
    }
    let refused = lab.start_by_command("name = \"s\"\nmodel = \"autoencoder\"\ntask = \"regress\"");
    assert_eq!(refused.code, 64);
    assert!(refused.stderr.contains("`task` of model `autoencoder` can be `reconstruct`"), "{}", refused.stderr);
    assert!(read(&lab.settings, &lab.settings.topics.trials).is_empty());
}
