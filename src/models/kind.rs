//! Kinds of models: a name, what it learns, its hyper-parameters, and how it is built. \[pure\]

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize, Serializer};

use super::batch::{InputSpec, Layout};
use super::error::{ModelError, ELEMENTS_MAX};
use super::model::Model;
use super::parameters::{ParameterSpec, Parameters};
use super::seed::Generator;
use crate::text::{nearest, shortened};

/// Most widths in a list of them.
pub const WIDTHS_MAX: usize = 64;

/// What a model learns, and so what a label means to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Task {
    #[serde(rename = "classify")]
    /// A label is one of a few classes. Loss: cross-entropy in nats, mean over the records.
    Classification,
    #[serde(rename = "regress")]
    /// A label is a number. Loss: squared error of the output, mean over the records.
    Regression,
    #[serde(rename = "reconstruct")]
    /// Labels are nothing to it. Loss: squared error, mean over the values of the rows that exist.
    Reconstruction,
}

impl Task {
    /// Are records without a label of no use to it?
    #[must_use]
    pub fn needs_labels(self) -> bool {
        self != Self::Reconstruction
    }

    /// As in search files.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Classification => "classify",
            Self::Regression => "regress",
            Self::Reconstruction => "reconstruct",
        }
    }

    /// What its loss is, with the unit.
    #[must_use]
    pub fn loss(self) -> &'static str {
        match self {
            Self::Classification => "cross-entropy, nats",
            Self::Regression | Self::Reconstruction => "mean squared error",
        }
    }
}

/// A hyper-parameter of a kind, as a key of search files.
#[derive(Clone, Copy, Debug)]
pub struct Key {
    pub name: &'static str,
    /// What it is when nobody says; its type, too.
    pub default: Preset,
    /// What it means, for the reference.
    pub help: &'static str,
}

/// Type and default of a [`Key`].
#[derive(Clone, Copy, Debug)]
pub enum Preset {
    /// A whole number, at least 1.
    Count(usize),
    /// At least 0 and below 1.
    Share(f32),
    /// 1 to [`WIDTHS_MAX`] whole numbers, each at least 1.
    Widths(&'static [usize]),
    Flag(bool),
    /// One of these names, the first by default.
    Choice(&'static [&'static str]),
}

/// Width of what a kind computes within.
pub const HIDDEN: Key = Key { name: "hidden", default: Preset::Count(128), help: "width of its hidden layer or state" };

/// Share of activations dropped, of kinds with hidden layers.
pub const DROPOUT: Key =
    Key { name: "dropout", default: Preset::Share(0.0), help: "share of activations dropped after each hidden layer" };

/// The value of a [`Key`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Value {
    /// Of [`Preset::Flag`].
    Flag(bool),
    /// Of [`Preset::Count`].
    Count(usize),
    /// Of [`Preset::Share`].
    Share(f32),
    /// Of [`Preset::Widths`].
    Widths(Vec<usize>),
    /// Of [`Preset::Choice`].
    Choice(String),
}

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Flag(flag) => flag.fmt(f),
            Self::Choice(name) => f.write_str(name),
            Self::Count(count) => count.fmt(f),
            Self::Share(share) => share.fmt(f),
            Self::Widths(widths) => f.write_str(&widths.iter().map(usize::to_string).collect::<Vec<_>>().join("-")),
        }
    }
}

impl Value {
    /// As search files have it.
    #[must_use]
    pub fn toml(&self) -> String {
        match self {
            Self::Widths(widths) => format!("{widths:?}"),
            Self::Choice(name) => format!("{name:?}"),
            value => value.to_string(),
        }
    }
}

impl Preset {
    /// The default.
    #[must_use]
    pub fn value(self) -> Value {
        match self {
            Self::Count(count) => Value::Count(count),
            Self::Share(share) => Value::Share(share),
            Self::Widths(widths) => Value::Widths(widths.to_vec()),
            Self::Flag(flag) => Value::Flag(flag),
            Self::Choice(names) => Value::Choice(names.first().map_or_else(String::new, |name| (*name).to_owned())),
        }
    }
}

impl Key {
    /// A value of this key's type, of one that was read without knowing it.
    fn settle(&self, value: Value) -> Result<Value, String> {
        match (self.default, value) {
            (Preset::Share(_), Value::Count(count)) => Ok(Value::Share(count as f32)),
            // JSON has no such number: a record that was read could not be written again.
            (_, Value::Share(share)) if !share.is_finite() => Err(format!("`{}` is beyond a 32-bit number", self.name)),
            (preset, value) if std::mem::discriminant(&preset.value()) == std::mem::discriminant(&value) => Ok(value),
            _ => Err(format!("`{}` is of another type", self.name)),
        }
    }

    fn check(&self, value: &Value) -> Result<(), ModelError> {
        let expected = match value {
            Value::Count(count) if *count == 0 => "at least 1".into(),
            Value::Share(share) if !(0.0..1.0).contains(share) => "at least 0 and below 1".into(),
            Value::Widths(widths) if widths.is_empty() || widths.len() > WIDTHS_MAX || widths.contains(&0) => {
                "a list of 1 to 64 widths of at least 1".into()
            }
            Value::Choice(name) => match self.default {
                Preset::Choice(names) if !names.contains(&name.as_str()) => {
                    let near = nearest(name, names).map_or_else(String::new, |near| format!(" (`{near}`?)"));
                    format!("one of `{}`{near}", names.join("`, `"))
                }
                _ => return Ok(()),
            },
            _ => return Ok(()),
        };
        Err(self.refused(expected, value))
    }

    /// A value of this key that cannot be.
    #[must_use]
    pub fn refused(&self, expected: impl Into<Cow<'static, str>>, value: &Value) -> ModelError {
        ModelError::Setting { setting: self.name, expected: expected.into(), found: shortened(&value.toml()) }
    }
}

/// The hyper-parameters of one model: key → value, none missing once they are [settled](Kind::settle).
pub type Values = BTreeMap<String, Value>;

/// What the data and the search say of a model's input and output.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// T: rows read of each matrix.
    pub rows_max: usize,
    /// D: values in a row.
    pub dim: usize,
    /// C: classes that labels name.
    pub classes: usize,
}

/// Builds a model over parameters of its names and shapes.
pub type Build = fn(&ModelSpec, Parameters) -> Result<Box<dyn Model>, ModelError>;

/// A kind of model. All of them stand in [`super::registry`].
pub struct Kind {
    /// As search files have it.
    pub name: &'static str,
    /// What it can learn; the first unless the search says otherwise.
    pub tasks: &'static [Task],
    /// How it reads its input.
    pub layout: Layout,
    /// What it does, for the reference: follows its name.
    pub about: &'static str,
    /// Its hyper-parameters, besides those that all trials have.
    pub keys: &'static [Key],
    /// Its parameters, in any order.
    pub parameters: fn(&ModelSpec) -> Result<Vec<ParameterSpec>, ModelError>,
    /// The model over parameters of these names and shapes.
    pub model: Build,
}

impl Kind {
    /// One that this process only knows by name: nothing can be built of it.
    pub(super) fn absent(name: &'static str) -> Self {
        Self {
            name,
            tasks: &[Task::Classification],
            layout: Layout::Packed,
            about: "is not in this program",
            keys: &[],
            parameters: |spec| Err(ModelError::Absent { model: spec.kind.name }),
            model: |spec, _| Err(ModelError::Absent { model: spec.kind.name }),
        }
    }

    /// Its hyper-parameter of that name.
    #[must_use]
    pub fn key(&self, name: &str) -> Option<&'static Key> {
        self.keys.iter().find(|key| key.name == name)
    }

    /// Gives values the types of their keys and adds those that are missing.
    ///
    /// # Errors
    /// Names a key that this kind does not have, or whose value is of another type.
    pub fn settle(&self, values: Values) -> Result<Values, String> {
        let mut settled: Values = self.keys.iter().map(|key| (key.name.to_owned(), key.default.value())).collect();
        for (name, value) in values {
            let Some(key) = self.key(&name) else {
                let known: Vec<&str> = self.keys.iter().map(|key| key.name).collect();
                let near = nearest(&name, &known).map_or_else(String::new, |near| format!("; did you mean `{near}`?"));
                return Err(format!("unknown field `{}` of model `{}`{near}", shortened(&name), self.name));
            };
            let value = key.settle(value)?;
            let _ = settled.insert(name, value);
        }
        Ok(settled)
    }
}

impl fmt::Debug for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name)
    }
}

impl PartialEq for Kind {
    fn eq(&self, other: &Self) -> bool {
        self.name == other.name
    }
}

impl Serialize for Kind {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name)
    }
}

/// Which model, and how large.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelSpec {
    pub kind: &'static Kind,
    /// What it learns: one of its kind's tasks.
    pub task: Task,
    pub values: Values,
    /// Its input and output.
    pub shape: Shape,
}

impl ModelSpec {
    /// A hyper-parameter that is a [`Preset::Count`].
    #[must_use]
    pub fn count(&self, key: &str) -> usize {
        match self.values.get(key) {
            Some(Value::Count(count)) => *count,
            _ => 0,
        }
    }

    /// A hyper-parameter that is a [`Preset::Share`].
    #[must_use]
    pub fn share(&self, key: &str) -> f32 {
        match self.values.get(key) {
            Some(Value::Share(share)) => *share,
            _ => 0.0,
        }
    }

    /// A hyper-parameter that is [`Preset::Widths`].
    #[must_use]
    pub fn widths(&self, key: &str) -> &[usize] {
        match self.values.get(key) {
            Some(Value::Widths(widths)) => widths,
            _ => &[],
        }
    }

    /// A hyper-parameter that is a [`Preset::Flag`].
    #[must_use]
    pub fn flag(&self, key: &str) -> bool {
        matches!(self.values.get(key), Some(Value::Flag(true)))
    }

    /// A hyper-parameter that is a [`Preset::Choice`].
    #[must_use]
    pub fn choice(&self, key: &str) -> &str {
        match self.values.get(key) {
            Some(Value::Choice(name)) => name,
            _ => "",
        }
    }

    /// What the model reads.
    #[must_use]
    pub fn input(&self) -> InputSpec {
        InputSpec { layout: self.kind.layout, rows_max: self.shape.rows_max, dim: self.shape.dim }
    }

    /// Values that it says of a record: one for each class, or one number, or none.
    #[must_use]
    pub fn outputs(&self) -> usize {
        match self.task {
            Task::Classification => self.shape.classes,
            Task::Regression => 1,
            Task::Reconstruction => 0,
        }
    }

    /// Checks the hyper-parameters and the model's size.
    ///
    /// # Errors
    /// As [`ModelSpec::parameters`].
    pub fn check(&self) -> Result<(), ModelError> {
        self.parameters().map(|_| ())
    }

    /// All parameters, sorted by name.
    ///
    /// # Errors
    /// [`ModelError::Setting`] or [`ModelError::Size`].
    pub fn parameters(&self) -> Result<Vec<ParameterSpec>, ModelError> {
        let positive = |setting, value: usize| match value {
            0 => Err(ModelError::Setting { setting, expected: "at least 1".into(), found: value.to_string() }),
            _ => Ok(()),
        };
        positive("rows_max", self.shape.rows_max)?;
        positive("dim", self.shape.dim)?;
        for key in self.kind.keys {
            if let Some(value) = self.values.get(key.name) {
                key.check(value)?;
            }
        }
        if self.task == Task::Classification {
            positive("classes", self.shape.classes)?;
        }
        let mut parameters = (self.kind.parameters)(self)?;
        let elements = parameters.iter().try_fold(0_usize, |sum, parameter| {
            sum.checked_add(parameter.shape.iter().try_fold(1_usize, |size, &width| size.checked_mul(width))?)
        });
        if elements.is_none_or(|elements| elements > ELEMENTS_MAX) {
            return Err(ModelError::Size);
        }
        parameters.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(parameters)
    }

    /// The model, with first weights from a generator.
    ///
    /// # Errors
    /// As [`ModelSpec::parameters`], and what the tensor library says.
    pub fn build(&self, weights: &mut Generator) -> Result<Box<dyn Model>, ModelError> {
        (self.kind.model)(self, Parameters::new(self.parameters()?, weights)?)
    }
}
