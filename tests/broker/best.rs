//! The best checkpoint of a trial is kept whatever comes after it, and is what is exported; `patience` ends a trial that
//! finds no better one.

use serde_json::Value;
use sweepstream::search::record::TrialRecord;
use sweepstream::train::store::checkpoint::sha256_hex;

use crate::lab::{assert_expected, contradicted, dealt, expected, points, Lab};
use crate::support::{eventually_after, Out};

/// Soon sure of what a third of the validation split contradicts: the loss there falls, and then rises for good.
const SEARCH: &str = r#"
name = "b"
seed = 11
validation = 5
window = 9
batch_size = 8
learning_rate = 3e-3
model = "mlp"
hidden = 4
"#;

fn records() -> Vec<Out> {
    dealt(contradicted(points(70), 5, 3), 2)
}

fn lab(name: &str) -> Lab {
    let mut lab = Lab::new(name, 2);
    lab.fill(&records());
    // A successor of the same name takes over at once.
    lab.settings.kafka.group_instance_id = Some("only".into());
    lab.settings.train.checkpoint_interval = std::time::Duration::from_millis(5);
    lab
}

/// Digest of what is exported, and what is said of it.
#[track_caller]
fn export(lab: &Lab, trial: &str, flags: &[&str]) -> (String, String) {
    let file = lab.file("exported.safetensors");
    let exported = lab.command(&[&["checkpoint", "export", trial, file.to_str().unwrap()], flags].concat());
    assert_eq!(exported.code, 0, "{}", exported.stderr);
    (sha256_hex(&std::fs::read(file).unwrap()), exported.stderr)
}

/// Why nothing is exported.
#[track_caller]
fn refused(lab: &Lab, trial: &str) -> String {
    let file = lab.file("refused.safetensors");
    let refused = lab.command(&["checkpoint", "export", trial, file.to_str().unwrap()]);
    assert_eq!((refused.code, file.exists()), (1, false), "{}", refused.stderr);
    refused.stderr
}

/// What a trial's weights are after so many epochs.
fn after(trial: &TrialRecord, epochs: u64) -> TrialRecord {
    let mut shorter = trial.clone();
    shorter.parameters.epochs = epochs;
    shorter
}

fn weights_after(trial: &TrialRecord, epochs: u64) -> String {
    expected(&after(trial, epochs), &records()).weights
}

fn best_epoch(outcome: &Value) -> u64 {
    outcome["best"]["epoch"].as_u64().unwrap()
}

#[test]
fn the_best_is_exported_and_the_newest_by_wish() {
    let lab = lab("best");
    let search = lab.start(&format!("{SEARCH}epochs = 40\ncheckpoint_every = 2"));
    let trial = &search.trials[0];
    let id = &trial.trial;
    assert!(refused(&lab, id).contains("has no checkpoint yet"));
    lab.train(&[&search]);
    let outcome = lab.output().outcome(id);
    let best = best_epoch(&outcome);
    assert!(1 < best && best < 39, "{outcome}");
    let shorter = lab.start(&format!("{SEARCH}epochs = {best}"));
    lab.train(&[&shorter]);

    let (digest, said) = export(&lab, id, &[]);
    assert_eq!(digest, weights_after(trial, best));
    assert_eq!(digest, lab.output().weights(&shorter.trials[0].trial), "as a trial that ends there");
    let (step, loss) = (&outcome["best"]["step"], outcome["best"]["validation_loss"].as_f64().unwrap());
    let place = format!("the best checkpoint: epoch {best}, step {step}, validation_loss {loss}");
    assert!(said.ends_with(&place), "{place} is not in {said}");
    assert_eq!(export(&lab, id, &["--best"]), (digest.clone(), said));

    // Another search can begin with it: at almost no learning rate and without decay it stays what was given.
    let still = SEARCH.replace("learning_rate = 3e-3", "learning_rate = 1e-30\nweight_decay = 0");
    let still = lab.start(&format!("{still}epochs = 1\ninitial_weights = \"exported.safetensors\""));
    lab.train(&[&still]);
    assert_eq!(lab.output().weights(&still.trials[0].trial), digest);

    let (newest, said) = export(&lab, id, &["--newest"]);
    assert_eq!(outcome["weights_sha256"], newest);
    assert_ne!(newest, digest);
    assert!(said.contains("the newest checkpoint: epoch 40, step "), "{said}");
    assert_eq!(lab.command(&["checkpoint", "export", "--best", "--newest", id, "x"]).code, 64);

    // What is exported of a later attempt is its own.
    assert_eq!(lab.command(&["trials", "restart", id]).code, 0);
    assert!(refused(&lab, id).contains("has no checkpoint yet"));
    lab.train(&[&search]);
    assert_eq!(export(&lab, id, &[]).0, digest);
}

#[test]
fn a_best_checkpoint_that_is_not_whole_is_not_exported() {
    let lab = lab("torn");
    let search = lab.start(&format!("{SEARCH}epochs = 40"));
    let id = &search.trials[0].trial;
    lab.train(&[&search]);
    let step = lab.output().outcome(id)["best"]["step"].clone();
    let kept = lab.output().manifests(id).into_iter().find(|(_, manifest)| manifest["progress"]["step"] == step);
    let slot = kept.unwrap().0;
    lab.overwrite(id, &format!("checkpoint/{slot}/0"), b"junk".as_slice());
    let said = refused(&lab, id);
    assert!(said.contains(&format!("in slot {slot} is damaged")) && said.contains("`--newest`"), "{said}");
    lab.overwrite(id, &format!("checkpoint/{slot}/manifest"), None);
    let said = refused(&lab, id);
    assert!(said.contains(&format!("step {step}, is not there")) && said.contains("`--newest`"), "{said}");
    let newest = export(&lab, id, &["--newest"]).0;
    assert_eq!(newest, lab.output().weights(id));
}

#[test]
fn the_best_of_a_trial_that_diverged_can_be_exported() {
    let lab = lab("astray");
    // One step an epoch: the second one finds what the first has done.
    let search = lab.start(
        "name = \"b\"\nmodel = \"mlp\"\nhidden = 4\nepochs = 3\nbatch_size = 1000\nvalidation = 0\n\
         optimizer = \"sgd\"\nlearning_rate = 1e30\n",
    );
    let trial = &search.trials[0];
    lab.train(&[&search]);
    let outcome = lab.output().outcome(&trial.trial);
    assert_eq!((outcome["state"].as_str(), best_epoch(&outcome)), (Some("diverged"), 1), "{outcome}");
    let (digest, said) = export(&lab, &trial.trial, &[]);
    assert_eq!(digest, weights_after(trial, 1));
    assert!(said.contains("epoch 1, step 1, loss "), "goes by what the objective falls back to: {said}");
}

#[test]
fn killed_again_and_again_it_keeps_the_same_best_and_loses_patience_at_the_same_epoch() {
    let lab = lab("impatient");
    let patient = format!("{SEARCH}epochs = 1000\npatience = 150");
    let search = lab.start(&patient);
    for more in [5, 60, 25, 100] {
        let before = lab.written();
        let mut process = lab.trainer("log");
        eventually_after("something is published", || lab.written(), || lab.written() >= before + more);
        process.signal("KILL");
        assert!(!process.wait().success());
    }
    assert!(!lab.has_ended(&search.trials[0].trial), "it was killed on its way");
    let whole = lab.start(&patient);
    lab.train(&[&search, &whole]);
    let output = lab.output();
    for trial in [&search.trials[0], &whole.trials[0]] {
        let outcome = output.outcome(&trial.trial);
        let best = best_epoch(&outcome);
        assert!(best < 100 && outcome["epochs"] == best + 150, "{outcome}");
        let reason = format!("no improvement in 150 validations; the best was epoch {best}");
        assert_eq!((&outcome["state"], &outcome["reason"]), (&"finished".into(), &reason.into()));
        assert_expected(&output, &after(trial, best + 150), &records());
        assert_eq!(export(&lab, &trial.trial, &[]).0, weights_after(trial, best));
    }
    let [killed, whole] = [&search, &whole].map(|search| &search.trials[0].trial);
    assert_eq!(output.values(killed), output.values(whole));
    assert!(lab.log("log").matches("goes on from its checkpoint").count() >= 2, "{}", lab.log("log"));
    let waited = lab.command(&["search", "wait", &search.id]);
    assert_eq!(waited.code, 0, "{}", waited.stderr);
}

#[test]
fn a_grid_spans_patience_and_each_trial_ends_by_its_own() {
    let lab = lab("grid");
    let search = lab.start(&format!("{SEARCH}epochs = 30\npatience = [0, 1, 4]"));
    lab.train(&[&search]);
    let output = lab.output();
    for (trial, patience) in search.trials.iter().zip([0, 1, 4]) {
        assert_eq!(trial.parameters.patience, patience);
        let losses = expected(&after(trial, 30), &records()).validation_losses;
        // Epochs up to which each loss but the last few was followed by a better one soon enough.
        let (mut best, mut done) = (1, 30);
        for epoch in 1..=30_usize {
            if losses[epoch - 1] < losses[best - 1] {
                best = epoch;
            }
            if patience > 0 && epoch - best >= patience as usize {
                done = epoch;
                break;
            }
        }
        let outcome = output.outcome(&trial.trial);
        assert_eq!((&outcome["epochs"], best_epoch(&outcome)), (&done.into(), best as u64), "{outcome}");
        assert_eq!(outcome.get("reason").is_some(), done < 30, "{outcome}");
        assert_eq!(output.weights(&trial.trial), weights_after(trial, done as u64));
    }
    let ended = output.outcome(&search.trials[1].trial);
    assert!(ended["epochs"].as_u64().unwrap() < 30, "{ended}");
    let listed = lab.command(&["trials", "list", "--search", &search.id]).stdout;
    assert!(listed.contains("patience=1") && listed.contains("no improvement in 1 validation; the best"), "{listed}");
}
