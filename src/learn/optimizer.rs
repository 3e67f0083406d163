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
    pub setting: &'static str,
    /// What it may be.
    pub expected: &'static str,
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
    /// [`MOMENTS_MAX`].
    #[must_use]
    pub fn moments(&self) -> &'static [&'static str] {
        match self {
            Self::AdamW { .. } => &["exp_avg", "exp_avg_sq"],
            Self::Sgd { momentum } if *momentum == 0.0 => &[],
            Self::Sgd { .. } => &["momentum_buffer"],
            Self::RmsProp { .. } => &["square_avg"],
        }
    }
}

/// Most state tensors that any rule keeps for a parameter.
pub const MOMENTS_MAX: usize = 2;

/// A rule and how far it goes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct OptimizerSpec {
    /// The rule and its constants.
    pub rule: Rule,
    pub learning_rate: f64,
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

/// State of one parameter: one vector per moment of the rule, as long as the parameter, and empty
/// ones after them.
type State = [Vec<f32>; MOMENTS_MAX];

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
        let moments = spec.rule.moments().len();
        let state =
            |&size: &usize| std::array::from_fn(|moment| if moment < moments { vec![0.0; size] } else { Vec::new() });
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

    /// One state tensor: `moment` counts in [`Rule::moments`], `parameter` in the list of parameters.
    #[must_use]
    pub fn state(&self, moment: usize, parameter: usize) -> &[f32] {
        &self.states[parameter][moment]
    }

    /// One state tensor, to be loaded.
    pub fn state_mut(&mut self, moment: usize, parameter: usize) -> &mut [f32] {
        &mut self.states[parameter][moment]
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
mod tests;
