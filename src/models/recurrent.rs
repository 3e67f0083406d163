//! `gru` and `lstm`: the state after the last row → `out` → classes, or one number. \[pure\]
//!
//! ```text
//! gru:   r = σ(W_ir x + b_ir + W_hr h + b_hr)      z = σ(W_iz x + b_iz + W_hz h + b_hz)
//!        n = tanh(W_in x + b_in + r·(W_hn h + b_hn))      h ← (1 − z)·n + z·h
//! lstm:  i, f, o = σ(W x + b + W h + b) of each      g = tanh(W_ig x + b_ig + W_hg h + b_hg)
//!        c ← f·c + i·g      h ← o·tanh(c)
//! ```
//! As in PyTorch: gates are blocks of rows, r, z, n or i, f, g, o; `rnn.weight_ih_l0` `[G·H, D]`, `rnn.weight_hh_l0`
//! `[G·H, H]`, `rnn.bias_ih_l0`, `rnn.bias_hh_l0`. With `bidirectional = true` a second one of names that end in
//! `_reverse` goes from the last row to the first, and `out` reads both last states. First values: U(−1/√H, 1/√H).
//!
//! What rows give to the gates is one product over all rows of the batch; a level is one step of all records that are
//! that long. On the way back the gates' gradients of all rows are multiplied at once as well.

use candle_core::{DType, Device, Tensor};

use super::batch::{Batch, Layout};
use super::cell::{Cell, Gru, Lstm, Row};
use super::error::ModelError;
use super::kind::{Key, Kind, ModelSpec, Preset, Task, DROPOUT, HIDDEN};
use super::model::{Model, Pass};
use super::ops::{add_bias, affine, column_sums, product};
use super::parameters::{First, GradientSink, ParameterSpec, Parameters};
use super::readout::Readout;
use super::seed::Generator;
use super::tensors::{add, edit, read};
use crate::features::vector::vectorized;

static TASKS: [Task; 2] = [Task::Classification, Task::Regression];
static KEYS: [Key; 3] = [
    HIDDEN,
    Key { name: "bidirectional", default: Preset::Flag(false), help: "a second one reads the rows backwards" },
    DROPOUT,
];

/// See the module.
pub static GRU: Kind = Kind {
    name: "gru",
    tasks: &TASKS,
    layout: Layout::Packed,
    about: "from the last state of gated recurrent units to a class or a number",
    keys: &KEYS,
    parameters: |spec| parameters(spec, Gru::GATES),
    model: |spec, parameters| Ok(Box::new(Recurrent::<Gru>::new(spec, parameters)?)),
};

/// See the module.
pub static LSTM: Kind = Kind {
    name: "lstm",
    tasks: &TASKS,
    layout: Layout::Packed,
    about: "from the last state of a long short-term memory to a class or a number",
    keys: &KEYS,
    parameters: |spec| parameters(spec, Lstm::GATES),
    model: |spec, parameters| Ok(Box::new(Recurrent::<Lstm>::new(spec, parameters)?)),
};

/// Ends of the names in each direction.
fn directions(spec: &ModelSpec) -> &'static [&'static str] {
    match spec.flag("bidirectional") {
        true => &["", "_reverse"],
        false => &[""],
    }
}

fn parameters(spec: &ModelSpec, gates: usize) -> Result<Vec<ParameterSpec>, ModelError> {
    let (hidden, first) = (spec.count("hidden"), First::Uniform { fan_in: spec.count("hidden") });
    let gates = hidden.checked_mul(gates).ok_or(ModelError::Size)?;
    let (mut all, directions) = (Vec::new(), directions(spec));
    for end in directions {
        let shapes = [
            ("weight_ih", vec![gates, spec.shape.dim]),
            ("weight_hh", vec![gates, hidden]),
            ("bias_ih", vec![gates]),
            ("bias_hh", vec![gates]),
        ];
        all.extend(shapes.map(|(name, shape)| ParameterSpec { name: format!("rnn.{name}_l0{end}"), shape, first }));
    }
    all.extend(Readout::parameters(spec, hidden * directions.len()));
    Ok(all)
}

/// Places of one direction's parameters.
#[derive(Clone, Copy, Debug)]
struct Direction {
    weight_ih: usize,
    weight_hh: usize,
    bias_ih: usize,
    bias_hh: usize,
    backwards: bool,
}

/// See the module.
#[derive(Debug)]
struct Recurrent<C> {
    parameters: Parameters,
    directions: Vec<Direction>,
    readout: Readout,
    hidden: usize,
    cell: std::marker::PhantomData<C>,
}

/// A level as one direction meets it.
#[derive(Clone, Copy)]
struct Step {
    /// Where its rows begin.
    start: usize,
    rows: usize,
    /// Rows, from the first, whose records have been met before.
    begun: usize,
    /// Rows, from the first, whose records go on, and where.
    on: usize,
    next: usize,
}

/// What a direction leaves for the way back, row by row of the batch.
struct Trace {
    /// `[rows, G·H]`
    gates: Tensor,
    /// States before, `[rows, H]`.
    before: Tensor,
    /// As [`Row`] has them.
    extra: Vec<f32>,
    extra_before: Vec<f32>,
}

impl<C: Cell> Model for Recurrent<C> {
    fn parameters(&self) -> &Parameters {
        &self.parameters
    }

    fn forward<'m>(&'m self, batch: &'m Batch<'_>, dropout: Option<Generator>) -> Result<Pass<'m>, ModelError> {
        let (records, hidden, count) = (batch.records(), self.hidden, self.directions.len());
        let (mut features, mut traces) = (vec![0.0; records * hidden * count], Vec::new());
        for (place, direction) in self.directions.iter().enumerate() {
            let (states, trace) = self.direction_forward(direction, batch)?;
            let to = features.chunks_exact_mut(hidden).skip(place).step_by(count);
            to.zip(states.chunks_exact(hidden)).for_each(|(to, from)| to.copy_from_slice(from));
            traces.push(trace);
        }
        let (outputs, features) = self.readout.forward(&self.parameters, features, records, dropout)?;
        Ok(Pass::new(vec![outputs], move |residuals, sink| {
            let gradients = self.readout.backward(&self.parameters, &features, &residuals[0], sink)?;
            for (place, (direction, trace)) in self.directions.iter().zip(traces).enumerate() {
                let own = gradients.chunks_exact(hidden).skip(place).step_by(count).flatten().copied().collect();
                self.direction_backward(direction, batch, trace, own, sink)?;
            }
            Ok(())
        }))
    }
}

impl<C: Cell> Recurrent<C> {
    fn new(spec: &ModelSpec, parameters: Parameters) -> Result<Self, ModelError> {
        let direction = |end: &&str| {
            let place = |name: &str| parameters.place(&format!("rnn.{name}_l0{end}"));
            Ok(Direction {
                weight_ih: place("weight_ih")?,
                weight_hh: place("weight_hh")?,
                bias_ih: place("bias_ih")?,
                bias_hh: place("bias_hh")?,
                backwards: !end.is_empty(),
            })
        };
        let directions = directions(spec).iter().map(direction).collect::<candle_core::Result<_>>()?;
        let readout = Readout::new(spec, &parameters)?;
        Ok(Self { parameters, directions, readout, hidden: spec.count("hidden"), cell: std::marker::PhantomData })
    }

    /// The states that records end with, and the trace.
    fn direction_forward(&self, direction: &Direction, batch: &Batch<'_>) -> Result<(Vec<f32>, Trace), ModelError> {
        let (hidden, rows, value) = (self.hidden, batch.packed.dim(0)?, |place| self.parameters.value(place));
        let gates = affine(&batch.packed, &value(direction.weight_ih), &value(direction.bias_ih))?;
        let (weight, bias) = (value(direction.weight_hh).t()?, value(direction.bias_hh));
        let before = Tensor::zeros((rows, hidden), DType::F32, &Device::Cpu)?;
        let mut extra = vec![0.0; rows * hidden];
        let mut extra_before = vec![0.0; if C::CARRIES { rows * hidden } else { 0 }];
        let (mut states, mut ended) = (vec![0.0; batch.records() * hidden], vec![0.0; batch.records() * hidden]);
        for Step { start, rows, begun, on, next } in steps(batch, direction.backwards)? {
            let level = before.narrow(0, start, rows)?;
            let recurrent = match begun {
                0 => Tensor::zeros((rows, C::GATES * hidden), DType::F32, &Device::Cpu)?,
                _ => product(&level, &weight)?,
            };
            read(&bias, |bias| edit(&recurrent, |recurrent| add_bias(recurrent, bias)))??;
            let extra = &mut extra[start * hidden..][..rows * hidden];
            edit(&gates.narrow(0, start, rows)?, |gates| {
                read(&recurrent, |recurrent| {
                    read(&level, |before| {
                        let carried = if C::CARRIES { &extra_before[start * hidden..] } else { &[][..] };
                        vectorized(
                            #[inline(always)]
                            || {
                                for row in 0..rows {
                                    let (at, gates_at) = (row * hidden, row * hidden * C::GATES);
                                    C::forward(
                                        &mut gates[gates_at..][..C::GATES * hidden],
                                        &recurrent[gates_at..][..C::GATES * hidden],
                                        &before[at..][..hidden],
                                        if C::CARRIES { &carried[at..][..hidden] } else { &[] },
                                        Row { state: &mut states[at..][..hidden], extra: &mut extra[at..][..hidden] },
                                    );
                                }
                            },
                        );
                    })
                })
            })???;
            // Where the record goes on, or as what it ended with.
            ended[on * hidden..rows * hidden].copy_from_slice(&states[on * hidden..rows * hidden]);
            if on > 0 {
                edit(&before.narrow(0, next, on)?, |before| before.copy_from_slice(&states[..on * hidden]))?;
            }
            if C::CARRIES {
                extra_before[next * hidden..][..on * hidden].copy_from_slice(&extra[..on * hidden]);
            }
        }
        Ok((ended, Trace { gates, before, extra, extra_before }))
    }

    /// Gives away the gradients of one direction; `gradients` are those of the states that records end with.
    fn direction_backward(
        &self,
        direction: &Direction,
        batch: &Batch<'_>,
        trace: Trace,
        mut gradients: Vec<f32>,
        sink: &mut GradientSink<'_>,
    ) -> Result<(), ModelError> {
        let Trace { gates, before, mut extra, extra_before } = trace;
        let (hidden, value) = (self.hidden, |place| self.parameters.value(place));
        let weight = value(direction.weight_hh);
        // The gates become their gradients, with regard to what rows and what states give to them.
        let recurrent = if C::SPLITS { gates.zeros_like()? } else { gates.clone() };
        let mut carried = vec![0.0; if C::CARRIES { gradients.len() } else { 0 }];
        for Step { start, rows, begun, .. } in steps(batch, direction.backwards)?.into_iter().rev() {
            let (level, before) = (recurrent.narrow(0, start, rows)?, before.narrow(0, start, rows)?);
            let extra = &mut extra[start * hidden..][..rows * hidden];
            edit(&gates.narrow(0, start, rows)?, |gates| {
                read(&before, |before| {
                    let mut rows_backward = |recurrent: &mut [f32]| {
                        let extra_before = if C::CARRIES { &extra_before[start * hidden..] } else { &[][..] };
                        vectorized(
                            #[inline(always)]
                            || {
                                for row in 0..rows {
                                    let (at, gates_at) = (row * hidden, row * hidden * C::GATES);
                                    let recurrent_at = if C::SPLITS { gates_at } else { 0 };
                                    C::backward(
                                        &mut gates[gates_at..][..C::GATES * hidden],
                                        &mut recurrent[recurrent_at..][..if C::SPLITS { C::GATES * hidden } else { 0 }],
                                        &before[at..][..hidden],
                                        if C::CARRIES { &extra_before[at..][..hidden] } else { &[] },
                                        Row {
                                            state: &mut gradients[at..][..hidden],
                                            extra: &mut extra[at..][..hidden],
                                        },
                                        if C::CARRIES { &mut carried[at..][..hidden] } else { &mut [] },
                                    );
                                }
                            },
                        );
                    };
                    match C::SPLITS {
                        true => edit(&level, rows_backward),
                        false => {
                            rows_backward(&mut []);
                            Ok(())
                        }
                    }
                })
            })???;
            if begun > 0 {
                let below = product(&level.narrow(0, 0, begun)?, &weight)?;
                read(&below, |below| add(&mut gradients, below))?;
            }
        }
        sink(direction.weight_ih, &value(direction.weight_ih), &product(&gates.t()?, &batch.packed)?)?;
        sink(direction.weight_hh, &weight, &product(&recurrent.t()?, &before)?)?;
        sink(direction.bias_ih, &value(direction.bias_ih), &column_sums(&gates)?)?;
        sink(direction.bias_hh, &value(direction.bias_hh), &column_sums(&recurrent)?)?;
        Ok(())
    }
}

/// The levels in the order in which a direction meets them.
fn steps(batch: &Batch<'_>, backwards: bool) -> candle_core::Result<Vec<Step>> {
    let mut levels = batch.spans()?;
    if backwards {
        levels.reverse();
    }
    let step = |place: usize| {
        let (start, rows) = levels[place];
        let begun = if place == 0 { 0 } else { levels[place - 1].1.min(rows) };
        let (next, on) = levels.get(place + 1).map_or((0, 0), |&(next, on)| (next, on.min(rows)));
        Step { start, rows, begun, on, next }
    };
    Ok((0..levels.len()).map(step).collect())
}
