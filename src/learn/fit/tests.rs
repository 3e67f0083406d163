//! Promises of a fit.

use serde_json::Value;

mod pytorch;
mod truth;

use safetensors::tensor::{Dtype as FileDtype, TensorView};

use self::truth::{near, truth_parameters, weights_file};
use super::super::optimizer::Rule;
use super::*;
use crate::models::batch::samples::{records, waves, Sample};
use crate::models::tests::{autoencoder, dropping, mlp};

const RULES: [Rule; 4] = [Rule::ADAMW, Rule::SGD, Rule::Sgd { momentum: 0.9 }, Rule::RMSPROP];

pub fn fit(spec: ModelSpec, rule: Rule) -> Fit {
    Fit::new(spec, OptimizerSpec::new(rule, 1e-2), 7, 3).unwrap()
}

/// What [`fit`] makes, going on from a state.
fn restored(spec: ModelSpec, rule: Rule, state: &[u8]) -> Result<Fit, FitError> {
    let mut fit = fit(spec, rule);
    fit.restore(state).map(|()| fit)
}

/// Batches of different sizes and lengths; the last one is short.
fn batches() -> Vec<Vec<Sample>> {
    let lengths: [&[usize]; 6] = [&[6, 2, 4, 9], &[1, 1, 3, 2], &[5, 5, 5, 5], &[8, 1, 2, 6], &[3, 4, 1, 6], &[2]];
    lengths.iter().map(|lengths| waves(Dtype::F16, lengths, 5)).collect()
}

/// Reports and final state, with a restart before each step that `restart` names.
fn train(spec: &ModelSpec, rule: Rule, restart: &[usize]) -> (Vec<StepReport>, Vec<u8>, String) {
    let (mut fit, mut reports) = (fit(spec.clone(), rule), Vec::new());
    for (step, batch) in batches().iter().enumerate() {
        if restart.contains(&step) {
            let state = fit.state().unwrap();
            fit = restored(spec.clone(), rule, &state).unwrap();
            assert_eq!(fit.state().unwrap(), state);
        }
        reports.push(fit.step(&records(batch), 0, step as u64).unwrap());
        assert_eq!(fit.updates(), step as u64 + 1);
    }
    (reports, fit.state().unwrap(), fit.weights_sha256().unwrap())
}

#[test]
fn a_restart_at_any_step_changes_no_bit() {
    for spec in [dropping(0.0), dropping(0.3)].concat() {
        for rule in RULES {
            let through = train(&spec, rule, &[]);
            for step in 0..batches().len() {
                assert_eq!(train(&spec, rule, &[step]), through, "{spec:?} {rule:?} restarted at {step}");
            }
            assert_eq!(train(&spec, rule, &[1, 2, 5]), through);
        }
    }
}

#[test]
fn epoch_and_step_choose_what_is_dropped() {
    let weights = |epoch, step| {
        let mut fit = fit(mlp(0.5), Rule::SGD);
        let _ = fit.step(&records(&waves(Dtype::F32, &[2, 3, 1], 5)), epoch, step).unwrap();
        fit.weights_sha256().unwrap()
    };
    assert_eq!(weights(1, 2), weights(1, 2));
    assert_ne!(weights(1, 2), weights(1, 3));
    assert_ne!(weights(1, 2), weights(2, 2));
}

#[test]
fn a_fit_can_move_to_its_thread() {
    fn sendable(_: impl Send) {}
    sendable(fit(mlp(0.0), Rule::ADAMW));
}

#[test]
fn seed_and_trial_matter() {
    let weights = |seed, trial| {
        let spec = OptimizerSpec::new(Rule::ADAMW, 1e-2);
        Fit::new(mlp(0.0), spec, seed, trial).unwrap().weights_sha256().unwrap()
    };
    assert_eq!(weights(7, 3), weights(7, 3));
    assert_ne!(weights(7, 3), weights(8, 3));
    assert_ne!(weights(7, 3), weights(7, 4));
}

// The digests hold where the matrix product has x86-64's AVX2 and FMA; elsewhere last bits may
// differ.
#[cfg(target_arch = "x86_64")]
#[test]
fn weights_after_five_steps_are_pinned() {
    if !(is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma")) {
        return;
    }
    let digest = |spec: ModelSpec, rule| {
        let mut fit = fit(spec, rule);
        for (step, batch) in batches().iter().take(5).enumerate() {
            let _ = fit.step(&records(batch), 0, step as u64).unwrap();
        }
        fit.weights_sha256().unwrap()[..16].to_owned()
    };
    let found: Vec<String> =
        [mlp(0.3), autoencoder(0.3)].iter().flat_map(|spec| RULES.map(|rule| digest(spec.clone(), rule))).collect();
    let mlp = ["0b8f83b68da7174b", "62d6d21cb330c66a", "fc745c5b56962ee2", "a629fc16dee3ab20"];
    let autoencoder = ["6ac0021619278aad", "b42d8ee4078acd0d", "55aecb597c414a5e", "b003da6de20c9b4d"];
    assert_eq!(found, [mlp, autoencoder].concat());
}

#[test]
fn batches_before_leave_nothing_behind() {
    for spec in [mlp(0.0), autoencoder(0.0)] {
        let (long, short) = (waves(Dtype::F16, &[6, 6, 6, 6, 6], 5), waves(Dtype::F32, &[1, 3], 5));
        let (mut used, mut fresh) = (fit(spec.clone(), Rule::ADAMW), fit(spec.clone(), Rule::ADAMW));
        let mut ignored = used.evaluation();
        used.evaluate(&records(&long), &mut ignored).unwrap();
        assert_eq!(used.step(&records(&short), 0, 0).unwrap(), fresh.step(&records(&short), 0, 0).unwrap());
        assert_eq!(used.state().unwrap(), fresh.state().unwrap());
    }
}

#[test]
fn the_optimizer_gets_somewhere() {
    for spec in [mlp(0.0), autoencoder(0.0)] {
        for rule in RULES {
            let mut fit = fit(spec.clone(), rule);
            let batch = waves(Dtype::F16, &[6, 2, 4, 5, 1, 3], 5);
            let losses: Vec<f64> = (0..60).map(|step| fit.step(&records(&batch), 0, step).unwrap().loss).collect();
            assert!(losses[59] < 0.99 * losses[0], "{spec:?} {rule:?}: {} to {}", losses[0], losses[59]);
        }
    }
}

#[test]
fn a_loss_that_is_no_number_updates_nothing() {
    for spec in [mlp(0.0), autoencoder(0.0)] {
        let mut fit = fit(spec.clone(), Rule::ADAMW);
        let good = waves(Dtype::F32, &[2, 3], 5);
        assert!(!fit.step(&records(&good), 0, 0).unwrap().diverged());
        let state = fit.state().unwrap();
        for bad in [f32::NAN, f32::INFINITY, 3e38] {
            let mut batch = waves(Dtype::F32, &[2, 3], 5);
            batch.push(Sample::new(Dtype::F32, 5, &[bad, -bad, bad, bad, bad], Some(0)));
            let report = fit.step(&records(&batch), 0, 1).unwrap();
            // The classes' loss stays finite at 3e38; its gradient does not.
            assert!(report.diverged(), "{spec:?} {bad}: {report:?}");
            assert_eq!(report.records, 3);
            if report.loss.is_finite() {
                fit = restored(spec.clone(), Rule::ADAMW, &state).unwrap();
            }
            assert_eq!(fit.state().unwrap(), state);
        }
    }
    // Spoilt weights are noticed too, although ReLU could hide them.
    let mut fit = fit(mlp(0.0), Rule::ADAMW);
    edit(&fit.model.parameters().value(1), |weights| weights.fill(f32::NAN)).unwrap();
    assert!(fit.step(&records(&waves(Dtype::F32, &[2], 5)), 0, 0).unwrap().loss.is_nan());
}

#[test]
fn records_that_do_not_fit_change_nothing() {
    let mut fit = fit(mlp(0.0), Rule::ADAMW);
    let state = fit.state().unwrap();
    let mut unlabelled = waves(Dtype::F32, &[2, 3], 5);
    unlabelled[1].label = None;
    let error = fit.step(&records(&unlabelled), 0, 0).unwrap_err();
    assert_eq!(error.to_string(), "record 1 of the batch has no label");
    assert!(matches!(fit.step(&[], 0, 0), Err(FitError::Batch(BatchError::Empty))));
    let mut evaluation = fit.evaluation();
    assert!(fit.evaluate(&records(&waves(Dtype::F32, &[2], 4)), &mut evaluation).is_err());
    assert_eq!(evaluation, fit.evaluation());
    assert_eq!(fit.state().unwrap(), state);
}

#[test]
fn an_evaluation_is_that_of_the_whole_set() {
    for spec in [mlp(0.3), autoencoder(0.3)] {
        let mut fit = fit(spec.clone(), Rule::ADAMW);
        let state = fit.state().unwrap();
        let set = waves(Dtype::F16, &[6, 1, 1, 4, 2, 9, 3, 3, 5, 1, 2], 5);
        let mut evaluate = |size: usize| {
            let mut evaluation = fit.evaluation();
            for batch in set.chunks(size) {
                fit.evaluate(&records(batch), &mut evaluation).unwrap();
            }
            evaluation
        };
        let whole = evaluate(set.len());
        assert_eq!(whole.records(), 11);
        for size in [1, 2, 4, 10] {
            let parts = evaluate(size);
            near(parts.loss().unwrap(), whole.loss().unwrap(), 1e-6, "loss");
            assert_eq!((parts.accuracy(), parts.macro_f1()), (whole.accuracy(), whole.macro_f1()));
            assert_eq!(parts.loss.weight, whole.loss.weight);
        }
        assert_eq!(whole.accuracy().is_some(), spec.task.needs_labels());
        assert_eq!(fit.state().unwrap(), state);
        let nothing = fit.evaluation();
        assert_eq!((nothing.loss(), nothing.accuracy(), nothing.macro_f1()), (None, None, None));
    }
}

#[test]
fn the_learning_rate_is_settable() {
    let mut fit = fit(mlp(0.0), Rule::SGD);
    let (batch, before) = (waves(Dtype::F32, &[2, 3], 5), fit.weights_sha256().unwrap());
    fit.set_learning_rate(0.0).unwrap();
    let _ = fit.step(&records(&batch), 0, 0).unwrap();
    assert_eq!(fit.weights_sha256().unwrap(), before);
    fit.set_learning_rate(0.1).unwrap();
    let _ = fit.step(&records(&batch), 0, 1).unwrap();
    assert_ne!(fit.weights_sha256().unwrap(), before);
    assert!(fit.set_learning_rate(f64::NAN).is_err());
}

// ---- Files ----

fn names(bytes: &[u8]) -> Vec<String> {
    let header = String::from_utf8_lossy(&bytes[8..]).into_owned();
    let header: serde_json::Map<String, Value> =
        serde_json::Deserializer::from_str(&header).into_iter().next().unwrap().unwrap();
    assert!(!header.contains_key("__metadata__"));
    header.keys().cloned().collect()
}

#[test]
fn files_hold_the_agreed_names() {
    let names_of = |rule| names(&fit(mlp(0.0), rule).state().unwrap());
    let parameters = ["l1.bias", "l1.weight", "l2.bias", "l2.weight"];
    let expected = |moments: &[&str]| {
        let mut names = vec![UPDATES.to_owned()];
        moments.iter().for_each(|moment| names.extend(parameters.map(|name| moment_tensor_name(moment, name))));
        names.extend(parameters.map(parameter_name));
        names
    };
    assert_eq!(names_of(Rule::ADAMW), expected(&["exp_avg", "exp_avg_sq"]));
    assert_eq!(names_of(Rule::SGD), expected(&[]));
    assert_eq!(names_of(Rule::Sgd { momentum: 0.9 }), expected(&["momentum_buffer"]));
    assert_eq!(names_of(Rule::RMSPROP), expected(&["square_avg"]));
    let fit = fit(mlp(0.0), Rule::ADAMW);
    let bytes = fit.parameters_safetensors().unwrap();
    assert_eq!(names(&bytes), parameters);
    assert_eq!(fit.weights_sha256().unwrap().len(), 64);
}

#[test]
fn files_are_those_of_the_library() {
    for spec in [mlp(0.0), autoencoder(0.0)] {
        let fit = fit(spec, Rule::ADAMW);
        for bytes in [fit.state().unwrap(), fit.parameters_safetensors().unwrap()] {
            let tensors = SafeTensors::deserialize(&bytes).unwrap().tensors();
            assert_eq!(safetensors::serialize(tensors, None).unwrap(), bytes);
        }
        let digest = Sha256::digest(fit.parameters_safetensors().unwrap());
        let digest: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(fit.weights_sha256().unwrap(), digest);
    }
}

#[test]
fn exported_parameters_can_be_initial_weights() {
    let (mut trained, batch) = (fit(autoencoder(0.0), Rule::ADAMW), waves(Dtype::F32, &[2, 3], 5));
    let _ = trained.step(&records(&batch), 0, 0).unwrap();
    let mut other = Fit::new(autoencoder(0.0), OptimizerSpec::new(Rule::SGD, 1e-3), 99, 1).unwrap();
    assert_ne!(other.weights_sha256().unwrap(), trained.weights_sha256().unwrap());
    other.load_parameters(&trained.parameters_safetensors().unwrap()).unwrap();
    assert_eq!(other.weights_sha256().unwrap(), trained.weights_sha256().unwrap());
    assert_eq!(other.parameters_safetensors().unwrap(), trained.parameters_safetensors().unwrap());
}

#[test]
fn wrong_tensors_are_named() {
    let good = truth_parameters(&["l1", "l2"], &[5, 7, 3]);
    let mut fit = fit(mlp(0.0), Rule::ADAMW);
    let before = fit.weights_sha256().unwrap();
    let mut refused = |bytes: &[u8]| match fit.load_parameters(bytes) {
        Err(FitError::File(error)) => error.to_string(),
        other => panic!("{other:?}"),
    };
    let all = "l1.bias [7], l1.weight [7, 5], l2.bias [3], l2.weight [3, 7]";
    let mut missing = good.clone();
    let _ = missing.remove(1);
    assert_eq!(refused(&weights_file(&missing)), format!("tensor l1.bias is missing; expected are {all}"));
    let mut surplus = good.clone();
    surplus.push(("l3.bias".into(), vec![1], vec![0.0]));
    assert_eq!(refused(&weights_file(&surplus)), format!("tensor l3.bias is not the model's; expected are {all}"));
    let mut shape = good.clone();
    shape[0].1 = vec![5, 7];
    assert_eq!(refused(&weights_file(&shape)), "tensor l1.weight has shape [5, 7], expected is [7, 5]");
    let halves = [0; 70];
    let mut views: Vec<_> = Vec::new();
    let bytes = [0; 7 * 5 * 4];
    for (name, shape, values) in &good {
        let half = name == "l1.weight";
        let dtype = if half { FileDtype::F16 } else { FileDtype::F32 };
        let bytes = if half { &halves[..] } else { &bytes[..values.len() * 4] };
        views.push((name.clone(), TensorView::new(dtype, shape.clone(), bytes).unwrap()));
    }
    let bytes = safetensors::serialize(views, None).unwrap();
    assert_eq!(refused(&bytes), "tensor l1.weight has elements of type F16, expected is F32");
    assert_eq!(refused(b"pickle"), "the bytes are not safetensors");
    assert_eq!(fit.weights_sha256().unwrap(), before, "nothing was taken over");
    fit.load_parameters(&weights_file(&good)).unwrap();
    assert_ne!(fit.weights_sha256().unwrap(), before);
}

#[test]
fn metadata_of_others_is_accepted() {
    let metadata = [("format".to_owned(), "pt".to_owned())].into_iter().collect();
    let mut fit = fit(mlp(0.0), Rule::ADAMW);
    let bytes = fit.parameters_safetensors().unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap().tensors();
    fit.load_parameters(&safetensors::serialize(tensors, Some(metadata)).unwrap()).unwrap();
}

#[test]
fn a_state_of_another_model_or_optimizer_is_refused() {
    let state = fit(mlp(0.0), Rule::ADAMW).state().unwrap();
    let restore = |spec, rule| restored(spec, rule, &state).err().map(|error| error.to_string()).unwrap_or_default();
    assert_eq!(restore(mlp(0.0), Rule::ADAMW), "");
    assert!(restore(mlp(0.0), Rule::SGD).starts_with("tensor optimizer/exp_avg/l1.bias is not the model's"));
    assert!(restore(mlp(0.0), Rule::RMSPROP).starts_with("tensor optimizer/square_avg/l1.bias is missing"));
    assert!(restore(autoencoder(0.0), Rule::ADAMW).contains("is missing"));
}

#[test]
fn damaged_bytes_never_panic() {
    let state = fit(mlp(0.0), Rule::ADAMW).state().unwrap();
    let restore = |bytes: &[u8]| restored(mlp(0.0), Rule::ADAMW, bytes);
    for length in 0..state.len() {
        assert!(restore(&state[..length]).is_err(), "cut at {length}");
    }
    let mut chance = Generator::new(1, 1, Purpose::Shuffle, 0, 0);
    let header = 8 + u64::from_le_bytes(state[..8].try_into().unwrap()) as u32;
    for _ in 0..3_000 {
        let mut damaged = state.clone();
        for _ in 0..=chance.below(3) {
            damaged[chance.below(header) as usize] = chance.bits() as u8;
        }
        // Damaged or, by luck, not: what counts is that there is an answer.
        drop(restore(&damaged));
    }
}
