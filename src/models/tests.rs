//! What is true of every kind.

mod reference;

use std::collections::BTreeMap;

use candle_core::{Device, Tensor};

use self::reference::Reference;
use super::batch::samples::{records, waves, Sample};
use super::batch::{Batch, Batcher};
use super::criterion::Criterion;
use super::error::ModelError;
use super::kind::{ModelSpec, Shape, Task, Value};
use super::loss::Loss;
use super::model::Model;
use super::ops::{product, relu};
use super::parameters::{First, ParameterSpec};
use super::registry::{self, KINDS};
use super::seed::{Generator, Purpose};
use super::tensors::edit;
use crate::features::codec::Dtype;
use crate::features::window::{Example, Target};

/// A model of this kind with these of its hyper-parameters, three classes, and defaults for the rest.
pub fn spec<const N: usize>(kind: &str, values: [(&str, Value); N], rows_max: usize, dim: usize) -> ModelSpec {
    let kind = registry::find(kind).unwrap();
    let values = values.into_iter().map(|(key, value)| (key.to_owned(), value)).collect();
    ModelSpec {
        kind,
        task: kind.tasks[0],
        values: kind.settle(values).unwrap(),
        shape: Shape { rows_max, dim, classes: 3 },
    }
}

/// A small `mlp`.
pub fn mlp(dropout: f32) -> ModelSpec {
    spec("mlp", [("hidden", Value::Count(7)), ("dropout", Value::Share(dropout))], 6, 5)
}

/// A small `autoencoder`.
pub fn autoencoder(dropout: f32) -> ModelSpec {
    spec("autoencoder", [("layers", Value::Widths(vec![9, 4])), ("dropout", Value::Share(dropout))], 6, 5)
}

/// A small `linear`.
pub fn linear() -> ModelSpec {
    spec("linear", [], 6, 5)
}

/// A small model of every kind.
fn all() -> Vec<ModelSpec> {
    let mut all = dropping(0.0);
    all.push(linear());
    for kind in KINDS {
        assert!(all.iter().any(|spec| spec.kind == kind), "{kind:?}");
    }
    all
}

/// Those that can learn numbers, doing so.
fn regressing() -> Vec<ModelSpec> {
    let can = |spec: &ModelSpec| spec.kind.tasks.contains(&Task::Regression);
    all().into_iter().filter(can).map(|spec| ModelSpec { task: Task::Regression, ..spec }).collect()
}

/// Samples as a model of that task reads them: numbers stand for the classes.
fn read_as<'s>(spec: &ModelSpec, samples: &'s [Sample]) -> Vec<Example<'s>> {
    let target = |target| match target {
        Target::Class(class) if spec.task == Task::Regression => Target::Number(0.75 * class as f32 - 1.0),
        target => target,
    };
    records(samples).into_iter().map(|(matrix, of)| (matrix, target(of))).collect()
}

/// Those that drop activations, in their forms.
pub fn dropping(share: f32) -> Vec<ModelSpec> {
    let dropout = ("dropout", Value::Share(share));
    let cnn = |widths: &[usize]| {
        let values = [("channels", Value::Count(4)), ("widths", Value::Widths(widths.to_vec())), dropout.clone()];
        spec("cnn", values, 6, 5)
    };
    let recurrent = |kind, bidirectional| {
        let values = [("hidden", Value::Count(4)), ("bidirectional", Value::Flag(bidirectional)), dropout.clone()];
        spec(kind, values, 6, 5)
    };
    let attention = |heads, positions: &str| {
        let sizes = [("heads", Value::Count(heads)), ("hidden", Value::Count(6))];
        let values = [("positions", Value::Choice(positions.to_owned())), dropout.clone()];
        let mut spec = spec("attention", sizes, 6, 5);
        spec.values.extend(values.map(|(key, value)| (key.to_owned(), value)));
        spec
    };
    vec![
        autoencoder(share),
        mlp(share),
        cnn(&[3]),
        cnn(&[1, 2, 4, 6]),
        recurrent("gru", false),
        recurrent("gru", true),
        recurrent("lstm", false),
        recurrent("lstm", true),
        attention(2, "learned"),
        attention(3, "sinusoidal"),
        attention(1, "none"),
    ]
}

fn model(spec: &ModelSpec) -> Box<dyn Model> {
    spec.build(&mut Generator::new(1, 2, Purpose::Weights, 0, 0)).unwrap()
}

fn dropout() -> Option<Generator> {
    Some(Generator::new(1, 2, Purpose::Dropout, 3, 4))
}

fn loss(spec: &ModelSpec, model: &dyn Model, batch: &Batch<'_>, dropout: Option<Generator>) -> Loss {
    let pass = model.forward(batch, dropout).unwrap();
    Criterion::plain(spec.task).compare(&pass.outputs, batch).unwrap().0
}

/// Full gradients by place, and how often each element was given.
fn gradients(
    spec: &ModelSpec,
    model: &dyn Model,
    batch: &Batch<'_>,
    dropout: Option<Generator>,
) -> Vec<(Vec<f32>, Vec<u32>)> {
    let criterion = Criterion::plain(spec.task);
    let specs = model.parameters().specs();
    let size = |spec: &ParameterSpec| spec.shape.iter().product::<usize>();
    let mut found: Vec<_> = specs.iter().map(|spec| (vec![0.0; size(spec)], vec![0; size(spec)])).collect();
    let pass = model.forward(batch, dropout).unwrap();
    let _ = criterion.compare(&pass.outputs, batch).unwrap();
    let mut sink = |place: usize, values: &Tensor, gradient: &Tensor| {
        assert_eq!(values.shape(), gradient.shape());
        let (gradients, times) = &mut found[place];
        let (start, stride) = (values.layout().start_offset(), values.stride()[0]);
        let columns = values.elem_count() / values.dim(0)?;
        for (i, gradient) in gradient.flatten_all()?.to_vec1::<f32>()?.into_iter().enumerate() {
            let at = start + i / columns * stride + i % columns;
            gradients[at] = gradient;
            times[at] += 1;
        }
        Ok(())
    };
    pass.backward(&mut sink).unwrap();
    found
}

#[test]
fn every_element_gets_one_gradient_and_every_parameter_learns() {
    for spec in [all(), regressing(), dropping(0.4)].concat() {
        let model = model(&spec);
        for lengths in [&[6, 2, 4, 6, 1, 3, 5, 2][..], &[2, 1, 3], &[1]] {
            let (samples, mut batcher) = (waves(Dtype::F32, lengths, 5), Batcher::new(spec.input()).unwrap());
            let batch = batcher.build(&read_as(&spec, &samples)).unwrap();
            let found = gradients(&spec, model.as_ref(), &batch, dropout());
            for (parameter, (gradient, times)) in model.parameters().specs().iter().zip(found) {
                let name = &parameter.name;
                assert!(times.iter().all(|&times| times == 1), "{spec:?}: {name}");
                assert!(lengths.len() < 8 || gradient.iter().any(|&g| g != 0.0), "{spec:?}: {name} stays as it is");
            }
        }
    }
}

/// Loss and gradients by candle-nn's layers and candle's autograd, from padded input.
fn by_autograd(spec: &ModelSpec, model: &dyn Model, samples: &[Sample]) -> (f64, Vec<Vec<f32>>) {
    use candle_nn::Module;
    let (rows_max, dim) = (spec.shape.rows_max, spec.shape.dim);
    let (mut padded, mut mask) = (Vec::new(), Vec::new());
    for sample in samples {
        let values = sample.bytes.chunks_exact(4).map(|bytes| f32::from_le_bytes(bytes.try_into().unwrap()));
        padded.extend(values.take(rows_max * dim));
        padded.resize(mask.len() * dim + rows_max * dim, 0.0);
        mask.extend((0..rows_max).map(|row| f32::from(u8::from(row < sample.rows))));
    }
    let cpu = &candle_core::Device::Cpu;
    let x = Tensor::from_vec(padded, (samples.len(), rows_max, dim), cpu).unwrap();
    let mask = Tensor::from_vec(mask, (samples.len(), rows_max, 1), cpu).unwrap();
    let value = |place: usize| candle_core::Var::from_tensor(&model.parameters().value(place)).unwrap();
    let variables: Vec<candle_core::Var> = (0..model.parameters().specs().len()).map(value).collect();
    let named = |name: &str| {
        let place = model.parameters().specs().iter().position(|spec| spec.name == name).unwrap();
        variables[place].as_tensor().clone()
    };
    let layer =
        |name: &str| candle_nn::Linear::new(named(&format!("{name}.weight")), Some(named(&format!("{name}.bias"))));
    let loss = match spec.kind.name {
        "mlp" => {
            let lengths = mask.sum(1).unwrap();
            let mean = x.sum(1).unwrap().broadcast_div(&lengths).unwrap();
            let logits = layer("l2").forward(&layer("l1").forward(&mean).unwrap().relu().unwrap()).unwrap();
            let labels: Vec<u32> = samples.iter().map(|sample| sample.label.unwrap()).collect();
            let labels = Tensor::from_vec(labels, samples.len(), cpu).unwrap();
            candle_nn::loss::cross_entropy(&logits, &labels).unwrap()
        }
        _ => {
            let last = 2 * spec.widths("layers").len() - 1;
            let mut y = x.flatten_from(1).unwrap();
            for i in 0..=last {
                y = layer(&format!("layers.{i}")).forward(&y).unwrap();
                y = if i < last { y.relu().unwrap() } else { y };
            }
            let error = (y.reshape(x.shape()).unwrap() - &x).unwrap().broadcast_mul(&mask).unwrap();
            let unmasked = mask.sum_all().unwrap().to_scalar::<f32>().unwrap() as f64;
            (error.sqr().unwrap().sum_all().unwrap() / (unmasked * dim as f64)).unwrap()
        }
    };
    let gradients = loss.backward().unwrap();
    let flat = |variable: &candle_core::Var| gradients.get(variable).unwrap().flatten_all().unwrap().to_vec1().unwrap();
    (f64::from(loss.to_scalar::<f32>().unwrap()), variables.iter().map(flat).collect())
}

#[test]
fn loss_and_gradients_are_those_of_candles_own_layers_and_autograd() {
    for spec in [mlp(0.0), autoencoder(0.0)] {
        let (samples, mut batcher) =
            (waves(Dtype::F32, &[6, 2, 4, 6, 1, 3, 5, 2], 5), Batcher::new(spec.input()).unwrap());
        let batch = batcher.build(&records(&samples)).unwrap();
        let model = model(&spec);
        let (loss, expected) = by_autograd(&spec, model.as_ref(), &samples);
        assert!((self::loss(&spec, model.as_ref(), &batch, None).mean() - loss).abs() < 1e-6);
        for ((found, _), expected) in gradients(&spec, model.as_ref(), &batch, None).iter().zip(&expected) {
            let largest = found.iter().zip(expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            assert!(largest < 1e-6, "{largest}");
        }
    }
}

#[test]
fn losses_and_gradients_are_those_of_the_formulas_in_f64() {
    const STEP: f64 = 1e-6;
    for spec in [all(), regressing()].concat() {
        let (samples, mut batcher) =
            (waves(Dtype::F32, &[6, 2, 4, 6, 1, 3, 5, 2], 5), Batcher::new(spec.input()).unwrap());
        let examples = read_as(&spec, &samples);
        let batch = batcher.build(&examples).unwrap();
        let model = model(&spec);
        let rows = |sample: &Sample| {
            let value = |bytes: &[u8]| f64::from(f32::from_le_bytes(bytes.try_into().unwrap()));
            sample.bytes.chunks(4 * 5).map(|row| row.chunks(4).map(value).collect()).collect::<Vec<Vec<f64>>>()
        };
        let plain: Vec<_> =
            samples.iter().zip(&examples).map(|(sample, (_, target))| (rows(sample), *target)).collect();
        let values = |(place, parameter): (usize, &ParameterSpec)| {
            let values: Vec<f32> = model.parameters().value(place).flatten_all().unwrap().to_vec1().unwrap();
            (parameter.name.clone(), values.into_iter().map(f64::from).collect())
        };
        let mut parameters: BTreeMap<String, Vec<f64>> =
            model.parameters().specs().iter().enumerate().map(values).collect();
        let at = |parameters: &BTreeMap<String, Vec<f64>>| Reference { spec: &spec, parameters }.loss(&plain);
        let (found, expected) = (loss(&spec, model.as_ref(), &batch, None).mean(), at(&parameters));
        assert!((found - expected).abs() < 2e-6, "{spec:?}: loss {found} for {expected}");
        let names: Vec<String> = parameters.keys().cloned().collect();
        for (name, (gradient, _)) in names.iter().zip(gradients(&spec, model.as_ref(), &batch, None)) {
            for (i, found) in gradient.into_iter().enumerate() {
                let mut moved = |by: f64| {
                    parameters.get_mut(name).unwrap()[i] += by;
                    let loss = at(&parameters);
                    parameters.get_mut(name).unwrap()[i] -= by;
                    loss
                };
                let expected = (moved(STEP) - moved(-STEP)) / (2.0 * STEP);
                assert!((f64::from(found) - expected).abs() < 3e-6, "{spec:?} {name}[{i}]: {found} for {expected}");
            }
        }
    }
}

#[test]
fn gradients_are_those_of_the_loss() {
    const STEP: f32 = 2e-3;
    for spec in [all(), regressing(), dropping(0.4)].concat() {
        let (samples, mut batcher) = (waves(Dtype::F32, &[4, 2, 3, 1, 4, 3], 5), Batcher::new(spec.input()).unwrap());
        let batch = batcher.build(&read_as(&spec, &samples)).unwrap();
        let model = model(&spec);
        for (place, (gradient, _)) in gradients(&spec, model.as_ref(), &batch, dropout()).iter().enumerate() {
            let value = model.parameters().value(place);
            let nudge = |at: usize, by: f32| edit(&value, |values| values[at] += by).unwrap();
            let mut differences: Vec<f64> = Vec::new();
            for (at, &gradient) in gradient.iter().enumerate() {
                nudge(at, STEP);
                let above = loss(&spec, model.as_ref(), &batch, dropout()).mean();
                nudge(at, -2.0 * STEP);
                let below = loss(&spec, model.as_ref(), &batch, dropout()).mean();
                nudge(at, STEP);
                differences.push(((above - below) / (2.0 * f64::from(STEP)) - f64::from(gradient)).abs());
            }
            // A step over a ReLU's corner is off by more; that may happen to a few of them. Nobody has
            // rows 4 and 5, whose third of the outer weights must show no gradient.
            differences.sort_by(f64::total_cmp);
            let typical = differences[differences.len() * 9 / 10];
            let largest = gradient.iter().fold(0.0_f32, |most, g| most.max(g.abs()));
            assert!(largest > 1e-3, "{spec:?}: gradient {place} is too small to be compared");
            assert!(typical < 5e-3 * f64::from(largest), "{spec:?} {place}: {typical} of {largest}");
        }
    }
}

#[test]
fn cut_rows_and_neighbours_do_not_matter() {
    for spec in [all(), regressing()].concat() {
        let model = model(&spec);
        let loss = |samples: &[Sample]| {
            let mut batcher = Batcher::new(spec.input()).unwrap();
            let batch = batcher.build(&read_as(&spec, samples)).unwrap();
            self::loss(&spec, model.as_ref(), &batch, None)
        };
        let (long, short) = (Sample::wave(Dtype::F32, 9, 5, 1), Sample::wave(Dtype::F32, 6, 5, 1));
        assert_eq!(loss(&[long]), loss(&[short]), "rows beyond rows_max are not read");
        let all = waves(Dtype::F16, &[4, 6, 1, 2], 5);
        let together = loss(&all);
        let mut apart = Loss::default();
        for one in all.chunks(1) {
            let Loss { sum, weight } = loss(one);
            apart = Loss { sum: apart.sum + sum, weight: apart.weight + weight };
        }
        assert_eq!(together.weight, apart.weight);
        assert!((together.sum / apart.sum - 1.0).abs() < 1e-6, "{together:?} {apart:?}");
    }
}

#[test]
fn dropout_follows_its_generator() {
    let (share, scale) = (0.25, 1.0 / 0.75);
    let mut values = vec![1.0; 40_000];
    relu(&mut values, Some(&mut Generator::new(1, 2, Purpose::Dropout, 0, 0)), share, scale);
    let dropped = values.iter().filter(|&&value| value == 0.0).count() as f32 / values.len() as f32;
    assert!((dropped - share).abs() < 0.01, "{dropped}");
    assert!(values.iter().all(|&value| value == 0.0 || value == scale));

    let (samples, model) = (waves(Dtype::F32, &[3, 2, 6], 5), model(&autoencoder(0.5)));
    let mut batcher = Batcher::new(autoencoder(0.5).input()).unwrap();
    let batch = batcher.build(&records(&samples)).unwrap();
    let loss = |dropout| loss(&autoencoder(0.5), model.as_ref(), &batch, dropout).sum;
    let step = |step| Some(Generator::new(1, 2, Purpose::Dropout, 0, step));
    assert_eq!(loss(step(1)), loss(step(1)));
    assert_ne!(loss(step(1)), loss(step(2)));
    assert_ne!(loss(step(1)), loss(None));
}

#[test]
fn not_a_number_passes_the_relu() {
    let mut values = [f32::NAN, -1.0, 2.0];
    relu(&mut values, None, 0.0, 1.0);
    assert!(values[0].is_nan());
    assert_eq!(values[1..], [0.0, 2.0]);
}

#[test]
fn deep_products_are_right() {
    for depth in [1, 512, 513, 1_500] {
        let value = |i: usize| ((i * 7 + depth) as f32).sin();
        let left = Tensor::from_vec((0..3 * depth).map(value).collect::<Vec<_>>(), (3, depth), &Device::Cpu);
        let right = Tensor::from_vec((0..2 * depth).map(value).collect::<Vec<_>>(), (2, depth), &Device::Cpu);
        let (left, right) = (left.unwrap(), right.unwrap());
        let found = product(&left, &right.t().unwrap()).unwrap().to_vec2::<f32>().unwrap();
        let (left, right) = (left.to_vec2::<f32>().unwrap(), right.to_vec2::<f32>().unwrap());
        for (row, left) in left.iter().enumerate() {
            for (column, right) in right.iter().enumerate() {
                let sum: f64 = left.iter().zip(right).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum();
                assert!((f64::from(found[row][column]) - sum).abs() < 1e-4, "{depth}");
            }
        }
    }
}

#[test]
fn labels_have_to_be_classes() {
    let (model, mut samples) = (model(&mlp(0.0)), waves(Dtype::F32, &[1, 2, 3], 5));
    let mut batcher = Batcher::new(mlp(0.0).input()).unwrap();
    samples[1].label = None;
    let mut refused = |samples: &[Sample]| {
        let batch = batcher.build(&records(samples)).unwrap();
        let pass = model.forward(&batch, None).unwrap();
        Criterion::plain(Task::Classification).compare(&pass.outputs, &batch).unwrap_err()
    };
    assert!(matches!(refused(&samples), ModelError::NoLabel { record: 1 }));
    samples[1].label = Some(3);
    assert!(matches!(refused(&samples), ModelError::Label { record: 1, label: 3, classes: 3 }));
}

#[test]
fn labels_have_to_be_numbers_where_numbers_are_learnt() {
    for spec in regressing() {
        let (model, mut samples) = (model(&spec), waves(Dtype::F32, &[1, 2, 3], 5));
        let mut batcher = Batcher::new(spec.input()).unwrap();
        let mut refused = |examples: &[Example<'_>]| {
            let batch = batcher.build(examples).unwrap();
            let pass = model.forward(&batch, None).unwrap();
            Criterion::plain(Task::Regression).compare(&pass.outputs, &batch).unwrap_err()
        };
        let message = refused(&records(&samples[..1])).to_string();
        assert_eq!(message, "record 0 of the batch is labelled with something else than a number");
        samples[1].label = None;
        assert!(matches!(refused(&read_as(&spec, &samples)), ModelError::NoLabel { record: 1 }));
    }
}

#[test]
fn a_squared_error_is_the_mean_over_the_records() {
    for spec in regressing() {
        let (model, samples) = (model(&spec), waves(Dtype::F32, &[1, 2, 3, 6], 5));
        let mut batcher = Batcher::new(spec.input()).unwrap();
        let read = read_as(&spec, &samples);
        let batch = batcher.build(&read).unwrap();
        let pass = model.forward(&batch, None).unwrap();
        let (loss, outputs) = Criterion::plain(Task::Regression).compare(&pass.outputs, &batch).unwrap();
        assert_eq!(outputs.len(), 4);
        let error = |(&output, target): (&f32, &Target)| match *target {
            Target::Number(number) => (f64::from(output) - f64::from(number)).powi(2),
            other => panic!("{other:?}"),
        };
        let sum: f64 = outputs.iter().zip(batch.targets).map(error).sum();
        assert!((loss.mean() - sum / 4.0).abs() < 1e-6, "{spec:?}");
    }
}

/// 0 where the first values are no range.
fn fan_in(spec: &ParameterSpec) -> usize {
    match spec.first {
        First::Uniform { fan_in } => fan_in,
        _ => 0,
    }
}

#[test]
fn names_shapes_and_first_ranges() {
    let listed = |spec: &ModelSpec| {
        let specs = spec.parameters().unwrap();
        specs.iter().map(|spec| format!("{} {:?} {}", spec.name, spec.shape, fan_in(spec))).collect::<Vec<_>>()
    };
    assert_eq!(listed(&mlp(0.0)), ["l1.bias [7] 5", "l1.weight [7, 5] 5", "l2.bias [3] 7", "l2.weight [3, 7] 7"]);
    let expected = [
        "layers.0.bias [9] 30",
        "layers.0.weight [9, 30] 30",
        "layers.1.bias [4] 9",
        "layers.1.weight [4, 9] 9",
        "layers.2.bias [9] 4",
        "layers.2.weight [9, 4] 4",
        "layers.3.bias [30] 9",
        "layers.3.weight [30, 9] 9",
    ];
    assert_eq!(listed(&autoencoder(0.0)), expected);
    let model = model(&autoencoder(0.0));
    for (place, spec) in model.parameters().specs().iter().enumerate() {
        let bound = 1.0 / (fan_in(spec) as f32).sqrt();
        let values: Vec<f32> = model.parameters().value(place).flatten_all().unwrap().to_vec1().unwrap();
        assert!(values.iter().all(|value| value.abs() <= bound));
        let spread = values.iter().fold(0.0_f32, |most, value| most.max(value.abs()));
        assert!(spread > 0.6 * bound, "{}: {spread} of {bound}", spec.name);
    }
}

#[test]
fn settings_out_of_range_are_named() {
    let autoencoder = |rows_max, dim, layers: &[usize], dropout| {
        let values = [("layers", Value::Widths(layers.to_vec())), ("dropout", Value::Share(dropout))];
        spec("autoencoder", values, rows_max, dim).check()
    };
    let mlp = |rows_max, dim, hidden, classes, dropout| {
        let values = [("hidden", Value::Count(hidden)), ("dropout", Value::Share(dropout))];
        let mut spec = spec("mlp", values, rows_max, dim);
        spec.shape.classes = classes;
        spec.check()
    };
    let cases = [
        (autoencoder(0, 4, &[2], 0.0), "rows_max"),
        (autoencoder(4, 0, &[2], 0.0), "dim"),
        (autoencoder(4, 4, &[], 0.0), "layers"),
        (autoencoder(4, 4, &[2, 0], 0.0), "layers"),
        (autoencoder(4, 4, &[2], 1.0), "dropout"),
        (mlp(0, 4, 2, 3, 0.0), "rows_max"),
        (mlp(4, 0, 2, 3, 0.0), "dim"),
        (mlp(4, 4, 0, 3, 0.0), "hidden"),
        (mlp(4, 4, 2, 0, 0.0), "classes"),
        (mlp(4, 4, 2, 3, -0.1), "dropout"),
    ];
    for (checked, name) in cases {
        let error = checked.unwrap_err();
        assert!(matches!(error, ModelError::Setting { setting, .. } if setting == name), "{name}: {error}");
    }
    for (rows_max, dim, layer) in [(usize::MAX, 2, 2), (usize::MAX, 1, 1), (1 << 20, 384, 4), (1, 1, usize::MAX)] {
        assert!(matches!(autoencoder(rows_max, dim, &[layer], 0.0), Err(ModelError::Size)), "{rows_max} {dim}");
    }
    assert!(autoencoder(64, 384, &[256, 128], 0.0).is_ok());
}

#[test]
fn values_take_the_types_of_their_keys_and_defaults_fill_gaps() {
    let kind = registry::find("mlp").unwrap();
    let read = |json: &str| kind.settle(serde_json::from_str(json).unwrap());
    let found = read(r#"{"hidden": 7, "dropout": 0}"#).unwrap();
    assert_eq!(found["dropout"], Value::Share(0.0));
    assert_eq!(read("{}").unwrap()["hidden"], Value::Count(128));
    assert_eq!(
        serde_json::to_string(&read(r#"{"dropout": 0.3}"#).unwrap()).unwrap(),
        r#"{"dropout":0.3,"hidden":128}"#
    );
    assert_eq!(read(r#"{"hiden": 7}"#).unwrap_err(), "unknown field `hiden` of model `mlp`; did you mean `hidden`?");
    assert_eq!(read(r#"{"hidden": 0.5}"#).unwrap_err(), "`hidden` is of another type");
    assert_eq!(read(r#"{"dropout": 1e300}"#).unwrap_err(), "`dropout` is beyond a 32-bit number");
}

#[test]
fn defaults_are_within_their_own_bounds_and_no_key_is_there_twice() {
    for kind in KINDS {
        assert!(spec(kind.name, [], 6, 5).check().is_ok(), "{kind:?}");
        for key in registry::keys() {
            let own = kind.keys.iter().filter(|own| own.name == key.name);
            let types = own.map(|own| std::mem::discriminant(&own.default)).collect::<Vec<_>>();
            // One name means one thing, or a default above `[[trial]]` could not be meant for several kinds.
            assert!(types.is_empty() || types == [std::mem::discriminant(&key.default)], "{kind:?} {}", key.name);
        }
    }
}
