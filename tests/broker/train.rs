//! features → trials → output.

use sweepstream::train::run::pool::TRAIN;

use crate::support::{embed, read, run, sentences, settings, sweepstream};

const SEARCH: &str = r#"
name = "t"
objective = "validation_accuracy"
seed = 3
batch_size = 16
epochs = 3
rows_max = 16
[[trial]]
model = "mlp"
hidden = 16
learning_rate = [1e-2, 1e-3]
[[trial]]
model = "autoencoder"
layers = [16, 8]
"#;

#[test]
fn a_search_trains_every_trial_and_publishes_its_results() {
    let settings = settings("train");
    embed(&settings, &sentences(120));
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("search.toml");
    std::fs::write(&file, SEARCH).unwrap();
    let started = sweepstream(&settings, &["search", "start", file.to_str().unwrap()]);
    assert_eq!(started.code, 0, "{}", started.stderr);
    let id = started.stdout.trim().to_owned();
    run(&settings, &[&TRAIN], |topology| {
        let trials = topology.status.trials();
        trials.len() == 3 && trials.values().all(|trial| trial.state == "finished")
    });
    let output = read(&settings, &settings.topics.output);
    for number in 0..3 {
        let trial = format!("{id}-{number:02}");
        let outcome = output.iter().find(|record| record.key() == format!("{trial}/outcome")).unwrap();
        assert_eq!(outcome.json()["state"], "finished");
        let measured = output.iter().filter(|record| record.key().starts_with(&format!("{trial}/measurement/")));
        assert_eq!(measured.count(), 3);
    }
    let waited = sweepstream(&settings, &["search", "wait", &id]);
    assert_eq!(waited.code, 0, "{}", waited.stderr);
    let shown = sweepstream(&settings, &["search", "show", &id, "--json"]);
    let board: serde_json::Value = serde_json::from_str(&shown.stdout).unwrap();
    assert_eq!(board["trials"].as_array().unwrap().len(), 3);
    assert!(board["trials"][0]["best"]["validation_accuracy"].as_f64().unwrap() > 0.8, "{}", shown.stdout);
}
