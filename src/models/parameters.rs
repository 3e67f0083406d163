//! A model's variables. \[pure\]

use std::collections::HashMap;

use candle_core::{Device, Tensor, Var};

use super::seed::Generator;

/// Name, shape and first values of a parameter.
#[derive(Clone, Debug, PartialEq)]
pub struct ParameterSpec {
    /// Name in files and exports.
    pub name: String,
    /// `[out, in]` for weights, `[out]` for biases.
    pub shape: Vec<usize>,
    pub first: First,
}

/// First values of a parameter.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum First {
    /// U(−1/√fan_in, 1/√fan_in), most often by the input width of the layer it belongs to.
    Uniform {
        fan_in: usize,
    },
    /// Evenly from a range.
    Range {
        from: f32,
        to: f32,
    },
    Normal {
        mean: f32,
        deviation: f32,
    },
    Constant(f32),
}

/// Weights `[out, in]` and biases `[out]` of fully connected layers, by their names and the widths between them.
#[must_use]
pub fn layers(names: impl Iterator<Item = String>, widths: &[usize]) -> Vec<ParameterSpec> {
    let of_layer = |(name, ends): (String, &[usize])| {
        let (fan_in, out) = (ends[0], ends[1]);
        [
            ParameterSpec {
                name: format!("{name}.weight"),
                shape: vec![out, fan_in],
                first: First::Uniform { fan_in },
            },
            ParameterSpec { name: format!("{name}.bias"), shape: vec![out], first: First::Uniform { fan_in } },
        ]
    };
    names.zip(widths.windows(2)).flat_map(of_layer).collect()
}

/// Takes a gradient: the parameter's place, the parameter or a block narrowed out of it, and that
/// one's gradient.
///
/// The receiver may change the parameter at once. Together the blocks tile every parameter exactly.
pub type GradientSink<'a> = dyn FnMut(usize, &Tensor, &Tensor) -> candle_core::Result<()> + 'a;

/// A model's variables, sorted by name.
#[derive(Debug)]
pub struct Parameters {
    specs: Vec<ParameterSpec>,
    variables: Vec<Var>,
}

impl Parameters {
    /// Draws the first values in the order of the names, row by row.
    ///
    /// # Errors
    /// What the tensor library says.
    pub fn new(specs: Vec<ParameterSpec>, weights: &mut Generator) -> candle_core::Result<Self> {
        let variable = |spec: &ParameterSpec| {
            let elements = spec.shape.iter().product();
            let values: Vec<f32> = match spec.first {
                First::Uniform { fan_in } => {
                    let bound = (1.0 / (fan_in as f64).sqrt()) as f32;
                    (0..elements).map(|_| (2.0 * weights.uniform() - 1.0) * bound).collect()
                }
                First::Range { from, to } => (0..elements).map(|_| from + (to - from) * weights.uniform()).collect(),
                First::Normal { mean, deviation } => {
                    (0..elements).map(|_| mean + deviation * weights.normal()).collect()
                }
                First::Constant(value) => vec![value; elements],
            };
            Var::from_vec(values, spec.shape.as_slice(), &Device::Cpu)
        };
        let variables = specs.iter().map(variable).collect::<Result<_, _>>()?;
        Ok(Self { specs, variables })
    }

    /// Names, shapes and fan-ins, sorted by name. A parameter's *place* is its position here.
    #[must_use]
    pub fn specs(&self) -> &[ParameterSpec] {
        &self.specs
    }

    /// The place of a parameter.
    ///
    /// # Errors
    /// When there is none of that name.
    pub fn place(&self, name: &str) -> candle_core::Result<usize> {
        let place = self.specs.iter().position(|spec| spec.name == name);
        place.ok_or_else(|| candle_core::Error::msg(format!("the model has no parameter {name}")))
    }

    /// The parameters by name, for layers that record a graph.
    #[must_use]
    pub fn named(&self) -> HashMap<String, Tensor> {
        let named = self.specs.iter().zip(&self.variables);
        named.map(|(spec, variable)| (spec.name.clone(), variable.as_tensor().clone())).collect()
    }

    /// The parameter at a place, as a tensor that shares its memory and records no graph.
    #[must_use]
    pub fn value(&self, place: usize) -> Tensor {
        self.variables[place].as_detached_tensor()
    }

    /// The variable at a place, from which a graph is recorded.
    #[must_use]
    pub fn variable(&self, place: usize) -> &Var {
        &self.variables[place]
    }
}
