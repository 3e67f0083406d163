//! Optimizers against formulas.

use candle_core::Device;

use super::*;
use crate::models::ops::sum_of_squares;
use crate::models::tensors::edit;

const RULES: [Rule; 4] = [Rule::ADAMW, Rule::SGD, Rule::Sgd { momentum: 0.9 }, Rule::RMSPROP];

fn tensor(values: &[f32], shape: &[usize]) -> Tensor {
    Tensor::from_slice(values, shape, &Device::Cpu).unwrap()
}

fn values(tensor: &Tensor) -> Vec<f32> {
    tensor.flatten_all().unwrap().to_vec1().unwrap()
}

/// Gradient of update `t` for element `i`: some large, some tiny, some zero.
fn gradient(t: usize, size: usize) -> Vec<f32> {
    let value = |i: usize| match i % 5 {
        4 => 0.0,
        kind => ((i * 7 + t * 3) as f32).sin() * 10_f32.powi(1 - 2 * kind as i32),
    };
    (0..size).map(value).collect()
}

/// The formulas again, element by element in `f64`: parameter, then state.
fn reference(spec: &OptimizerSpec, t: i32, g: f64, p: &mut f64, s: &mut [f64; 2]) {
    let (lr, wd) = (spec.learning_rate, spec.weight_decay);
    match spec.rule {
        Rule::AdamW { beta1, beta2, epsilon } => {
            *p *= 1.0 - lr * wd;
            s[0] = beta1 * s[0] + (1.0 - beta1) * g;
            s[1] = beta2 * s[1] + (1.0 - beta2) * g * g;
            let (m, v) = (s[0] / (1.0 - beta1.powi(t)), s[1] / (1.0 - beta2.powi(t)));
            *p -= lr * m / (v.sqrt() + epsilon);
        }
        Rule::Sgd { momentum } => {
            s[0] = momentum * s[0] + g + wd * *p;
            *p -= lr * s[0];
        }
        Rule::RmsProp { alpha, epsilon } => {
            let g = g + wd * *p;
            s[0] = alpha * s[0] + (1.0 - alpha) * g * g;
            *p -= lr * g / (s[0].sqrt() + epsilon);
        }
    }
}

#[test]
fn every_rule_follows_its_formula() {
    const SIZE: usize = 37;
    for rule in RULES {
        for weight_decay in [0.0, 0.1] {
            let spec = OptimizerSpec { rule, learning_rate: 1e-2, weight_decay };
            let mut optimizer = Optimizer::new(spec, &[SIZE]).unwrap();
            let start: Vec<f32> = (0..SIZE).map(|i| (i as f32).cos()).collect();
            let parameter = tensor(&start, &[SIZE]);
            let mut expected: Vec<(f64, [f64; 2])> = start.iter().map(|&p| (f64::from(p), [0.0; 2])).collect();
            for t in 1..=50 {
                let gradient = gradient(t, SIZE);
                let mut update = optimizer.begin();
                update.apply(0, &parameter, &tensor(&gradient, &[SIZE])).unwrap();
                let norm = update.finish();
                let squares: f64 = gradient.iter().map(|&g| f64::from(g).powi(2)).sum();
                assert!((norm / squares.sqrt() - 1.0).abs() < 1e-6, "norm {norm}");
                for ((p, state), &g) in expected.iter_mut().zip(&gradient) {
                    reference(&spec, t as i32, f64::from(g), p, state);
                }
            }
            for (found, (expected, _)) in values(&parameter).iter().zip(&expected) {
                let difference = (f64::from(*found) - expected).abs();
                assert!(difference < 2e-6 * expected.abs().max(1.0), "{rule:?}: {found} for {expected}");
            }
        }
    }
}

#[test]
fn blocks_give_the_bits_of_the_whole() {
    let (rows, columns) = (5, 3_000);
    let size = rows * columns;
    let gradient = tensor(&gradient(1, size), &[rows, columns]);
    for rule in RULES {
        let run = |cut: &dyn Fn(&Tensor) -> Vec<Tensor>| {
            let mut optimizer = Optimizer::new(OptimizerSpec::new(rule, 1e-2), &[1, size]).unwrap();
            let parameter = tensor(&vec![0.5; size], &[rows, columns]);
            for _ in 0..3 {
                let mut update = optimizer.begin();
                for (values, gradient) in cut(&parameter).iter().zip(cut(&gradient)) {
                    update.apply(1, values, &gradient.contiguous().unwrap()).unwrap();
                }
                assert!((update.finish() - values_norm(&gradient)).abs() < 1e-4);
            }
            values(&parameter)
        };
        let whole = run(&|t| vec![t.clone()]);
        let cut_rows = run(&|t| vec![t.narrow(0, 0, 2).unwrap(), t.narrow(0, 2, 3).unwrap()]);
        let cut_columns = run(&|t| (0..3).map(|i| t.narrow(1, i * 1_000, 1_000).unwrap()).collect());
        assert_eq!(whole, cut_rows);
        assert_eq!(whole, cut_columns);
    }
}

fn values_norm(tensor: &Tensor) -> f64 {
    values(tensor).iter().map(|&g| f64::from(g).powi(2)).sum::<f64>().sqrt()
}

#[test]
fn state_below_the_normal_numbers_becomes_zero() {
    for rule in [Rule::ADAMW, Rule::Sgd { momentum: 0.9 }, Rule::RMSPROP] {
        let mut optimizer = Optimizer::new(OptimizerSpec::new(rule, 1e-3), &[1]).unwrap();
        let moments = rule.moments().len();
        (0..moments).for_each(|moment| optimizer.state_mut(moment, 0).fill(f32::MIN_POSITIVE));
        let parameter = tensor(&[1.0], &[1]);
        let mut update = optimizer.begin();
        // SGD adds the weight decay to the gradient; its default is none.
        update.apply(0, &parameter, &tensor(&[0.0], &[1])).unwrap();
        assert_eq!(update.finish(), 0.0);
        assert!((0..moments).all(|moment| optimizer.state(moment, 0) == [0.0]), "{rule:?}");
    }
}

#[test]
fn a_gradient_beyond_numbers_shows_in_the_norm() {
    for bad in [f32::NAN, f32::INFINITY, 1e30] {
        let mut optimizer = Optimizer::new(OptimizerSpec::new(Rule::SGD, 1e-3), &[2]).unwrap();
        let mut update = optimizer.begin();
        update.apply(0, &tensor(&[1.0, 1.0], &[2]), &tensor(&[0.0, bad], &[2])).unwrap();
        assert!(!update.finish().is_finite());
    }
}

#[test]
fn what_does_not_fit_is_refused() {
    let mut optimizer = Optimizer::new(OptimizerSpec::new(Rule::ADAMW, 1e-3), &[4]).unwrap();
    let parameter = tensor(&[1.0; 4], &[2, 2]);
    let mut update = optimizer.begin();
    assert!(update.apply(0, &parameter, &tensor(&[1.0; 4], &[4])).is_err());
    assert!(update.apply(1, &parameter, &parameter.copy().unwrap()).is_err());
    assert!(update.apply(0, &parameter.t().unwrap(), &parameter.copy().unwrap()).is_err());
    assert!(update.apply(0, &parameter, &parameter.copy().unwrap().t().unwrap()).is_err());
    assert_eq!(values(&parameter), [1.0; 4]);
    assert_eq!(update.finish(), 0.0);
}

#[test]
fn settings_out_of_range_are_named() {
    let check = |rule, learning_rate, weight_decay| {
        let checked = OptimizerSpec { rule, learning_rate, weight_decay }.check();
        checked.err().map_or("", |error| error.setting)
    };
    assert_eq!(check(Rule::ADAMW, 0.0, 0.0), "");
    assert_eq!(check(Rule::ADAMW, -1.0, 0.0), "learning_rate");
    assert_eq!(check(Rule::ADAMW, f64::NAN, 0.0), "learning_rate");
    assert_eq!(check(Rule::ADAMW, 1.0, f64::INFINITY), "weight_decay");
    assert_eq!(check(Rule::Sgd { momentum: 1.0 }, 1.0, 0.0), "momentum");
    assert_eq!(check(Rule::AdamW { beta1: 1.0, beta2: 0.9, epsilon: 1e-8 }, 1.0, 0.0), "beta1");
    assert_eq!(check(Rule::AdamW { beta1: 0.9, beta2: -0.1, epsilon: 1e-8 }, 1.0, 0.0), "beta2");
    assert_eq!(check(Rule::AdamW { beta1: 0.9, beta2: 0.9, epsilon: 0.0 }, 1.0, 0.0), "epsilon");
    assert_eq!(check(Rule::RmsProp { alpha: 1.5, epsilon: 1e-8 }, 1.0, 0.0), "alpha");
}

#[test]
fn a_learning_rate_out_of_range_is_refused() {
    let mut optimizer = Optimizer::new(OptimizerSpec::new(Rule::SGD, 1e-3), &[]).unwrap();
    let error = optimizer.set_learning_rate(f64::NAN).unwrap_err();
    assert_eq!(error.to_string(), "learning_rate must be at least 0, not NaN");
    assert_eq!(optimizer.spec().learning_rate, 1e-3);
    optimizer.set_learning_rate(0.5).unwrap();
    assert_eq!(optimizer.spec().learning_rate, 0.5);
}

#[test]
fn the_learning_rate_counts_at_once() {
    let mut optimizer = Optimizer::new(OptimizerSpec::new(Rule::SGD, 0.0), &[1]).unwrap();
    let parameter = tensor(&[1.0], &[1]);
    for (learning_rate, expected) in [(0.0, 1.0), (0.5, 0.5), (0.25, 0.25)] {
        optimizer.set_learning_rate(learning_rate).unwrap();
        let mut update = optimizer.begin();
        update.apply(0, &parameter, &tensor(&[1.0], &[1])).unwrap();
        assert_eq!(update.finish(), 1.0);
        assert_eq!(values(&parameter), [expected]);
    }
    edit(&parameter, |p| assert_eq!(p, [0.25])).unwrap();
}

#[test]
fn powers_and_sums_are_right() {
    for exponent in [0, 1, 2, 3, 10, 1_000, 123_456] {
        let (found, expected) = (power(0.999, exponent), 0.999_f64.powf(exponent as f64));
        assert!((found - expected).abs() <= 1e-10 * expected, "{exponent}: {found} for {expected}");
    }
    assert_eq!(power(0.9, u64::MAX), 0.0);
    for size in [0, 1, 15, 16, 17, 1_023, 1_024, 1_025, 5_000] {
        let values: Vec<f32> = (0..size).map(|i| (i % 3) as f32).collect();
        let expected: f64 = values.iter().map(|&v| f64::from(v * v)).sum();
        assert_eq!(sum_of_squares(&values), expected);
    }
}
