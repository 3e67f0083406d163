//! Optimizers whose state is plain numbers under names, so that it can be saved and taken up again.
//! \[pure\]
//!
//! Each update reads and writes parameter, gradient and state once, and sums the gradient's squares
//! on the way. `g` is the gradient, `t` the number of the update, from 1. All arithmetic on
//! parameters is `f32`; the factors that do not depend on the element are computed in `f64` and
//! rounded once.
//!
//! **AdamW** (Loshchilov and Hutter, "Decoupled Weight Decay Regularization", 2019, algorithm 2; as
//! in PyTorch), weight decay decoupled from the gradient:
//! ```text
//! p ← p·(1 − lr·wd);  m ← β₁m + (1−β₁)g;  v ← β₂v + (1−β₂)g²
//! p ← p − lr · (m / (1−β₁ᵗ)) / (√(v / (1−β₂ᵗ)) + ε)
//! ```
//! **SGD** and **RMSprop** are PyTorch's, weight decay as L2 added to the gradient, `g' = g +
//! wd·p`:
//! ```text
//! SGD:      b ← μb + g';  p ← p − lr·b                              (dampening 0, not Nesterov's)
//! RMSprop:  v ← αv + (1−α)g'²;  p ← p − lr · g' / (√v + ε)          (not centred, without momentum)
//! ```
//! State below the smallest normal `f32` (1.2e-38) becomes zero. It could not move a parameter, but
//! a moment that decays without new gradients would stay subnormal for ever, and an update of those
//! takes 8 times as long.

use std::cell::{Cell, RefCell};

use candle_core::{CpuStorage, InplaceOp2, Layout, Tensor};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::features::vector::vectorized;
use crate::models::ops::{squares_of_block, BLOCK};

/// A setting that is not usable.
#[derive(Debug, Error, PartialEq)]
#[error("{setting} must be {expected}, not {found}")]
pub struct OptimizerError {
    /// The setting's name.
    pub setting: &'static str,
    /// What it may be.
    pub expected: &'static str,
    /// What it is.
    pub found: f64,
}

/// The rule of an update; formulas in the module's documentation.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "optimizer", rename_all = "lowercase", deny_unknown_fields)]
pub enum Rule {
    /// Adam with decoupled weight decay.
    AdamW {
        /// Decay of the mean gradient.
        beta1: f64,
        /// Decay of the mean squared gradient.
        beta2: f64,
        /// Added to the root.
        epsilon: f64,
    },
    /// Stochastic gradient descent.
    Sgd {
        /// Share of the last step that is kept; 0 for none.
        momentum: f64,
    },
    /// Steps divided by the root of the mean squared gradient.
    RmsProp {
        /// Decay of the mean squared gradient.
        alpha: f64,
        /// Added to the root.
        epsilon: f64,
    },
}

impl Rule {
    /// AdamW with β₁ 0.9, β₂ 0.999, ε 1e-8.
    pub const ADAMW: Self = Self::AdamW { beta1: 0.9, beta2: 0.999, epsilon: 1e-8 };
    /// SGD without momentum.
    pub const SGD: Self = Self::Sgd { momentum: 0.0 };
    /// RMSprop with α 0.99, ε 1e-8.
    pub const RMSPROP: Self = Self::RmsProp { alpha: 0.99, epsilon: 1e-8 };

    /// The weight decay used where none is set: 1e-2 for AdamW, 0 for the others, as in PyTorch.
    #[must_use]
    pub fn default_weight_decay(&self) -> f64 {
        match self {
            Self::AdamW { .. } => 1e-2,
            Self::Sgd { .. } | Self::RmsProp { .. } => 0.0,
        }
    }

    /// Names of the tensors kept for each parameter (PyTorch's names), sorted; at most
    /// [`SLOTS_MAX`].
    #[must_use]
    pub fn slots(&self) -> &'static [&'static str] {
        match self {
            Self::AdamW { .. } => &["exp_avg", "exp_avg_sq"],
            Self::Sgd { momentum } if *momentum == 0.0 => &[],
            Self::Sgd { .. } => &["momentum_buffer"],
            Self::RmsProp { .. } => &["square_avg"],
        }
    }
}

/// Most state tensors that any rule keeps for a parameter.
pub const SLOTS_MAX: usize = 2;

/// A rule and how far it goes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct OptimizerSpec {
    /// The rule and its constants.
    pub rule: Rule,
    /// Step size.
    pub learning_rate: f64,
    /// Pull towards zero.
    pub weight_decay: f64,
}

impl OptimizerSpec {
    /// A rule at a learning rate, with its default weight decay.
    #[must_use]
    pub fn new(rule: Rule, learning_rate: f64) -> Self {
        Self { rule, learning_rate, weight_decay: rule.default_weight_decay() }
    }

    /// Checks each number's range.
    ///
    /// # Errors
    /// The first setting out of range.
    pub fn check(&self) -> Result<(), OptimizerError> {
        let share = |setting, value: f64| match (0.0..1.0).contains(&value) {
            true => Ok(()),
            false => Err(OptimizerError { setting, expected: "at least 0 and below 1", found: value }),
        };
        let above_zero = |setting, value: f64| match value.is_finite() && value > 0.0 {
            true => Ok(()),
            false => Err(OptimizerError { setting, expected: "above 0", found: value }),
        };
        let not_negative = |setting, value: f64| match value.is_finite() && value >= 0.0 {
            true => Ok(()),
            false => Err(OptimizerError { setting, expected: "at least 0", found: value }),
        };
        not_negative("learning_rate", self.learning_rate)?;
        not_negative("weight_decay", self.weight_decay)?;
        match self.rule {
            Rule::AdamW { beta1, beta2, epsilon } => {
                share("beta1", beta1)?;
                share("beta2", beta2)?;
                above_zero("epsilon", epsilon)
            }
            Rule::Sgd { momentum } => share("momentum", momentum),
            Rule::RmsProp { alpha, epsilon } => {
                share("alpha", alpha)?;
                above_zero("epsilon", epsilon)
            }
        }
    }
}

/// State of one parameter: one vector per slot of the rule, as long as the parameter, and empty
/// ones after them.
type State = [Vec<f32>; SLOTS_MAX];

/// An optimizer and its state for parameters that are known by their place in a list.
#[derive(Debug)]
pub struct Optimizer {
    spec: OptimizerSpec,
    updates: u64,
    states: Vec<State>,
}

impl Optimizer {
    /// State zero for parameters of these sizes (numbers of elements).
    ///
    /// # Errors
    /// A setting out of range.
    pub fn new(spec: OptimizerSpec, sizes: &[usize]) -> Result<Self, OptimizerError> {
        spec.check()?;
        let slots = spec.rule.slots().len();
        let state = |&size: &usize| std::array::from_fn(|slot| if slot < slots { vec![0.0; size] } else { Vec::new() });
        Ok(Self { spec, updates: 0, states: sizes.iter().map(state).collect() })
    }

    /// The rule and its numbers.
    #[must_use]
    pub fn spec(&self) -> &OptimizerSpec {
        &self.spec
    }

    /// Sets the learning rate from the next update on. It is not part of the saved state.
    ///
    /// # Errors
    /// A rate that is negative or not finite; the old one is kept.
    pub fn set_learning_rate(&mut self, learning_rate: f64) -> Result<(), OptimizerError> {
        let spec = OptimizerSpec { learning_rate, ..self.spec };
        spec.check()?;
        self.spec = spec;
        Ok(())
    }

    /// Updates so far.
    #[must_use]
    pub fn updates(&self) -> u64 {
        self.updates
    }

    /// Sets the number of updates so far, when a state is loaded.
    pub fn set_updates(&mut self, updates: u64) {
        self.updates = updates;
    }

    /// One state tensor: `slot` counts in [`Rule::slots`], `parameter` in the list of parameters.
    #[must_use]
    pub fn state(&self, slot: usize, parameter: usize) -> &[f32] {
        &self.states[parameter][slot]
    }

    /// One state tensor, to be loaded.
    pub fn state_mut(&mut self, slot: usize, parameter: usize) -> &mut [f32] {
        &mut self.states[parameter][slot]
    }

    /// Starts an update of all parameters.
    pub fn begin(&mut self) -> Update<'_> {
        self.updates += 1;
        Update { factors: Factors::new(&self.spec, self.updates), states: &mut self.states, squares: 0.0 }
    }
}

/// One update under way. Every element of every parameter has to be given to [`Update::apply`]
/// exactly once.
#[derive(Debug)]
#[must_use = "an update is complete when it has been given all gradients and finished"]
pub struct Update<'a> {
    factors: Factors,
    states: &'a mut [State],
    squares: f64,
}

impl Update<'_> {
    /// Updates a parameter, or a block of it, in place.
    ///
    /// `values` is the parameter itself or a rectangle narrowed out of it (it must share its
    /// storage), of any shape if contiguous, else `[rows, columns]` with contiguous rows.
    /// `gradient` is contiguous and has its shape.
    ///
    /// # Errors
    /// Shapes that differ, other element types or layouts.
    pub fn apply(&mut self, parameter: usize, values: &Tensor, gradient: &Tensor) -> candle_core::Result<()> {
        if values.shape() != gradient.shape() {
            candle_core::bail!("a gradient of shape {:?} for values of {:?}", gradient.shape(), values.shape());
        }
        let Some(state) = self.states.get_mut(parameter) else {
            candle_core::bail!("a gradient for parameter {parameter}, which does not exist");
        };
        let apply = Apply { factors: self.factors, state: RefCell::new(state), squares: Cell::new(0.0) };
        values.inplace_op2(gradient, &apply)?;
        self.squares += apply.squares.get();
        Ok(())
    }

    /// Ends the update and gives the Euclidean norm of the whole gradient (without weight decay).
    #[must_use]
    pub fn finish(self) -> f64 {
        self.squares.sqrt()
    }
}

/// What an update multiplies with: the rule's constants at one `t`, rounded to `f32`.
#[derive(Clone, Copy, Debug)]
enum Factors {
    AdamW { keep: f32, beta1: f32, rest1: f32, beta2: f32, rest2: f32, step: f32, root: f32, epsilon: f32 },
    Sgd { momentum: f32, step: f32, decay: f32 },
    RmsProp { alpha: f32, rest: f32, step: f32, epsilon: f32, decay: f32 },
}

impl Factors {
    fn new(spec: &OptimizerSpec, updates: u64) -> Self {
        let (step, decay) = (spec.learning_rate as f32, spec.weight_decay as f32);
        match spec.rule {
            Rule::AdamW { beta1, beta2, epsilon } => Self::AdamW {
                keep: (1.0 - spec.learning_rate * spec.weight_decay) as f32,
                beta1: beta1 as f32,
                rest1: (1.0 - beta1) as f32,
                beta2: beta2 as f32,
                rest2: (1.0 - beta2) as f32,
                step: (spec.learning_rate / (1.0 - power(beta1, updates))) as f32,
                root: (1.0 / (1.0 - power(beta2, updates)).sqrt()) as f32,
                epsilon: epsilon as f32,
            },
            Rule::Sgd { momentum } => Self::Sgd { momentum: momentum as f32, step, decay },
            Rule::RmsProp { alpha, epsilon } => {
                Self::RmsProp { alpha: alpha as f32, rest: (1.0 - alpha) as f32, step, epsilon: epsilon as f32, decay }
            }
        }
    }

    /// Updates parallel slices of at most [`BLOCK`] elements and gives the sum of the gradient's squares.
    fn block(&self, values: &mut [f32], gradient: &[f32], first: &mut [f32], second: &mut [f32]) -> f64 {
        vectorized(
            #[inline(always)]
            || {
                self.update(values, gradient, first, second);
                squares_of_block(gradient)
            },
        )
    }

    /// The rule over parallel slices. The zips have no bounds to check, so that they become vector
    /// instructions.
    #[inline(always)]
    fn update(&self, values: &mut [f32], gradient: &[f32], first: &mut [f32], second: &mut [f32]) {
        match *self {
            Self::AdamW { keep, beta1, rest1, beta2, rest2, step, root, epsilon } => {
                for (((p, &g), m), v) in values.iter_mut().zip(gradient).zip(first).zip(second) {
                    *m = normal(beta1 * *m + rest1 * g);
                    *v = normal(beta2 * *v + rest2 * g * g);
                    *p = keep * *p - step * *m / (v.sqrt() * root + epsilon);
                }
            }
            Self::Sgd { momentum, step, decay } if momentum != 0.0 => {
                for ((p, &g), b) in values.iter_mut().zip(gradient).zip(first) {
                    *b = normal(momentum * *b + (g + decay * *p));
                    *p -= step * *b;
                }
            }
            Self::Sgd { step, decay, .. } => {
                for (p, &g) in values.iter_mut().zip(gradient) {
                    *p -= step * (g + decay * *p);
                }
            }
            Self::RmsProp { alpha, rest, step, epsilon, decay } => {
                for ((p, &g), v) in values.iter_mut().zip(gradient).zip(first) {
                    let g = g + decay * *p;
                    *v = normal(alpha * *v + rest * g * g);
                    *p -= step * g / (v.sqrt() + epsilon);
                }
            }
        }
    }
}

#[inline(always)]
fn normal(value: f32) -> f32 {
    if value.abs() < f32::MIN_POSITIVE {
        0.0
    } else {
        value
    }
}

/// By squaring: the standard library leaves the precision of `powi` open, and a trial's weights
/// depend on it.
fn power(base: f64, mut exponent: u64) -> f64 {
    let (mut result, mut square) = (1.0, base);
    while exponent > 0 {
        if exponent & 1 == 1 {
            result *= square;
        }
        square *= square;
        exponent >>= 1;
    }
    result
}

struct Apply<'a> {
    factors: Factors,
    state: RefCell<&'a mut State>,
    squares: Cell<f64>,
}

impl InplaceOp2 for Apply<'_> {
    fn name(&self) -> &'static str {
        "optimizer-update"
    }

    fn cpu_fwd(
        &self,
        values: &mut CpuStorage,
        values_layout: &Layout,
        gradient: &CpuStorage,
        gradient_layout: &Layout,
    ) -> candle_core::Result<()> {
        let CpuStorage::F32(values) = values else {
            candle_core::bail!("a parameter is not f32");
        };
        let Some((start, end)) = gradient_layout.contiguous_offsets() else {
            candle_core::bail!("a gradient is not contiguous");
        };
        let gradient = &gradient.as_slice::<f32>()?[start..end];
        let (columns, stride) = match (values_layout.dims(), values_layout.stride()) {
            _ if values_layout.is_contiguous() => (gradient.len(), gradient.len()),
            (&[_, columns], &[stride, 1]) => (columns, stride),
            _ => candle_core::bail!("a parameter's rows are not contiguous"),
        };
        let [first, second] = &mut **self.state.borrow_mut();
        let mut squares = 0.0;
        for (row, gradient) in gradient.chunks_exact(columns.max(1)).enumerate() {
            let mut at = values_layout.start_offset() + row * stride;
            for gradient in gradient.chunks(BLOCK) {
                let range = at..at + gradient.len();
                at = range.end;
                let (first, second) = (part(first, &range), part(second, &range));
                squares += self.factors.block(&mut values[range], gradient, first, second);
            }
        }
        self.squares.set(squares);
        Ok(())
    }
}

/// The state that belongs to a range of the parameter; nothing where the rule keeps none.
fn part<'a>(state: &'a mut [f32], range: &std::ops::Range<usize>) -> &'a mut [f32] {
    if state.is_empty() {
        state
    } else {
        &mut state[range.clone()]
    }
}

#[cfg(test)]
mod tests {
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
            let slots = rule.slots().len();
            (0..slots).for_each(|slot| optimizer.state_mut(slot, 0).fill(f32::MIN_POSITIVE));
            let parameter = tensor(&[1.0], &[1]);
            let mut update = optimizer.begin();
            // SGD adds the weight decay to the gradient; its default is none.
            update.apply(0, &parameter, &tensor(&[0.0], &[1])).unwrap();
            assert_eq!(update.finish(), 0.0);
            assert!((0..slots).all(|slot| optimizer.state(slot, 0) == [0.0]), "{rule:?}");
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
}
