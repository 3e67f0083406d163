//! Every kind against PyTorch's numbers: `tests/truth/fixtures.py` says how they were made.

use serde_json::Value;

use super::super::super::optimizer::Rule;
use super::super::*;
use super::truth::{chirp, near, numbers, truth, truth_batches, values, weights_file, D, T};
use crate::features::window::Target;
use crate::learn::schedule::Shape;
use crate::models::batch::samples::{records, Sample};
use crate::models::kind::{self, Task};
use crate::models::registry;

fn cases() -> Value {
    let mut all: Value = serde_json::from_str(include_str!("../../../../tests/truth/pytorch.json")).unwrap();
    let own = |kind: &str, values: &str| {
        let mut own = truth()["models"][kind].clone();
        own["kind"] = kind.into();
        own["values"] = serde_json::from_str(values).unwrap();
        own
    };
    all["models"]["mlp"] = own("mlp", r#"{"hidden": 12}"#);
    all["models"]["gru"] = own("gru", r#"{"hidden": 12}"#);
    all["models"].take()
}

fn spec(case: &Value, regress: bool) -> ModelSpec {
    let kind = registry::find(case["kind"].as_str().unwrap()).unwrap();
    let values = kind.settle(serde_json::from_value(case["values"].clone()).unwrap()).unwrap();
    let task = if regress { Task::Regression } else { Task::Classification };
    ModelSpec { kind, task, values, shape: kind::Shape { rows_max: T, dim: D, classes: 3 } }
}

/// As the kind reads them: numbers stand for classes.
fn examples(samples: &[Sample], regress: bool) -> Vec<Example<'_>> {
    let target = |target| match target {
        Target::Class(class) if regress => Target::Number(0.75 * class as f32 - 1.0),
        target => target,
    };
    records(samples).into_iter().map(|(matrix, of)| (matrix, target(of))).collect()
}

#[test]
#[expect(clippy::print_stdout, reason = "how close it is, for who asks with --nocapture")]
fn every_kind_is_pytorchs() {
    let (cases, batches) = (cases(), truth_batches());
    let mut seen: Vec<&str> = cases.as_object().unwrap().values().map(|case| case["kind"].as_str().unwrap()).collect();
    seen.extend(["autoencoder"]);
    assert!(registry::names().iter().all(|name| seen.contains(name)), "{seen:?}");
    for (name, case) in cases.as_object().unwrap() {
        let regress = case["regress"].as_bool().unwrap_or(false);
        let spec = spec(case, regress);
        let list = case["parameters"].as_array().unwrap();
        let parameter = |(index, parameter): (usize, &Value)| {
            let shape: Vec<usize> = numbers(&parameter["shape"]).into_iter().map(|n| n as usize).collect();
            let values = (0..shape.iter().product()).map(|i| 0.3 * chirp(i, index as f64)).collect();
            (parameter["name"].as_str().unwrap().to_owned(), shape, values)
        };
        let parameters: Vec<_> = list.iter().enumerate().map(parameter).collect();
        let mut fit = Fit::new(spec, OptimizerSpec::new(Rule::ADAMW, 1e-2), 1, 1).unwrap();
        fit.load_parameters(&weights_file(&parameters)).unwrap();
        if let Some(recipe) = case["recipe"].as_object() {
            let number = |key: &str| recipe[key].as_f64().unwrap();
            fit = fit.with(Recipe {
                schedule: Schedule { shape: Shape::Cosine, warm_up: number("warm_up") as u64, steps: 20 },
                clip_norm: Some(number("clip_norm")),
                label_smoothing: number("label_smoothing"),
                class_weights: numbers(&recipe["class_weights"]),
            });
        }
        let mut largest = 0.0_f64;
        let mut close = |found: f64, expected: f64, tolerance: f64, what: &str| {
            largest = largest.max((found - expected).abs());
            near(found, expected, tolerance, &format!("{name}: {what}"));
        };
        let first = examples(&batches[0], regress);
        let batch = fit.batcher.build(&first).unwrap();
        let pass = fit.model.forward(&batch, None).unwrap();
        let outputs: Vec<f32> = pass.outputs[0].flatten_all().unwrap().to_vec1().unwrap();
        let (width, expected) = (outputs.len() / 4, numbers(&case["first_output"]));
        for (place, record) in batch.order.iter().enumerate() {
            for column in 0..width {
                let (found, expected) = (outputs[place * width + column], expected[record * width + column]);
                close(f64::from(found), expected, 2e-6, "first output");
            }
        }
        drop(pass);
        for (step, expected) in numbers(&case["losses"]).into_iter().enumerate() {
            let found = fit.step(&examples(&batches[step % 2], regress), 0, step as u64).unwrap().loss;
            close(found, expected, 1e-5, &format!("loss {step}"));
        }
        for (batch, expected) in batches.iter().zip(numbers(&case["losses_after_20_steps"])) {
            let mut evaluation = fit.evaluation();
            fit.evaluate(&examples(batch, regress), &mut evaluation).unwrap();
            close(evaluation.loss().unwrap(), expected, 1e-5, "loss afterwards");
        }
        println!("{name}: largest deviation of outputs and losses {largest:.1e}");
        for parameter in list {
            let name = parameter["name"].as_str().unwrap();
            // What all keys share changes no weight: the true gradient of their bias is zero, and AdamW makes whole
            // steps of what rounding leaves of it.
            if name == "attention.in_proj_bias" {
                continue;
            }
            let sum: f64 = values(&fit, name).iter().sum();
            near(sum, parameter["final_sum"].as_f64().unwrap(), 3e-4, name);
        }
    }
}
