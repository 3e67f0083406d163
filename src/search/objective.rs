//! What trials are compared by: the name of a measured value, and which values of it are better. \[pure\]

use std::cmp::Ordering;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::output::Measurement;
use crate::text::one_of;

/// Which values are the better ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    Minimize,
    Maximize,
}

/// A value that built-in models measure.
#[derive(Debug)]
pub struct Measured {
    /// As in measurements and search files.
    pub name: &'static str,
    /// Which values are the better ones.
    pub direction: Direction,
    /// For people, with the unit; a loss has the unit of its task.
    pub title: &'static str,
}

/// Mean loss over the training records.
pub const LOSS: &str = "loss";
/// Mean loss over the validation records.
pub const VALIDATION_LOSS: &str = "validation_loss";
/// Share of validation records whose class was found.
pub const VALIDATION_ACCURACY: &str = "validation_accuracy";
/// Mean of the classes' F1.
pub const VALIDATION_MACRO_F1: &str = "validation_macro_f1";

/// Mean of the squared errors, of numbers.
pub const VALIDATION_MSE: &str = "validation_mse";
/// Mean of the absolute errors, of numbers.
pub const VALIDATION_MAE: &str = "validation_mae";
/// Share of the numbers' variance that is explained.
pub const VALIDATION_R2: &str = "validation_r2";

/// All that built-in models measure.
pub static MEASURED: [Measured; 7] = [
    Measured { name: VALIDATION_ACCURACY, direction: Direction::Maximize, title: "validation accuracy (share)" },
    Measured { name: VALIDATION_MACRO_F1, direction: Direction::Maximize, title: "validation macro F1 (0 to 1)" },
    Measured { name: VALIDATION_MSE, direction: Direction::Minimize, title: "validation mean squared error" },
    Measured { name: VALIDATION_MAE, direction: Direction::Minimize, title: "validation mean absolute error" },
    Measured { name: VALIDATION_R2, direction: Direction::Maximize, title: "validation R² (share of variance)" },
    Measured { name: VALIDATION_LOSS, direction: Direction::Minimize, title: "validation loss" },
    Measured { name: LOSS, direction: Direction::Minimize, title: "training loss" },
];

/// What a search tries to find.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Objective {
    /// Name of the measured value.
    pub name: String,
    /// Which values are the better ones.
    pub direction: Direction,
}

impl Default for Objective {
    fn default() -> Self {
        Self { name: VALIDATION_LOSS.to_owned(), direction: Direction::Minimize }
    }
}

impl Objective {
    /// The objective of a built-in name.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        let measured = MEASURED.iter().find(|measured| measured.name == name)?;
        Some(Self { name: name.to_owned(), direction: measured.direction })
    }

    /// The training loss, which every trial has.
    #[must_use]
    pub fn loss() -> Self {
        Self { name: LOSS.to_owned(), direction: Direction::Minimize }
    }

    /// Its value in a measurement.
    #[must_use]
    pub fn value(&self, measurement: &Measurement) -> Option<f64> {
        measurement.value(&self.name)
    }

    /// What a measurement is ranked by, with its value: the objective, or what [`Objective::compare`] takes instead.
    #[must_use]
    pub fn ranked_by(&self, measurement: &Measurement) -> Option<(String, f64)> {
        let value = |objective: &Self| Some((objective.name.clone(), objective.value(measurement)?));
        [self, &Self::default(), &Self::loss()].into_iter().find_map(value)
    }

    /// Is the first value the better one?
    #[must_use]
    pub fn better(&self, a: f64, b: f64) -> bool {
        // A value that is no number is never the better one.
        match self.direction {
            Direction::Minimize => a < b,
            Direction::Maximize => a > b,
        }
    }

    fn order(&self, a: f64, b: f64) -> Ordering {
        match self.direction {
            Direction::Minimize => a.total_cmp(&b),
            Direction::Maximize => b.total_cmp(&a),
        }
    }

    /// `Less` when `a` is the better one. Models without the objective (an autoencoder has no accuracy) come after
    /// those with it and are compared by validation loss, then by loss.
    #[must_use]
    pub fn compare(&self, a: &Measurement, b: &Measurement) -> Ordering {
        for objective in [self, &Self::default(), &Self::loss()] {
            match (objective.value(a), objective.value(b)) {
                (Some(a), Some(b)) => return objective.order(a, b),
                (Some(_), None) => return Ordering::Less,
                (None, Some(_)) => return Ordering::Greater,
                (None, None) => {}
            }
        }
        Ordering::Equal
    }

    /// [`Objective::compare`] of what trials have reached; those without a measurement come last.
    #[must_use]
    pub fn compare_best(&self, a: Option<&Measurement>, b: Option<&Measurement>) -> Ordering {
        match (a, b) {
            (Some(a), Some(b)) => self.compare(a, b),
            (a, b) => b.is_some().cmp(&a.is_some()),
        }
    }
}

impl Serialize for Objective {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.name)
    }
}

impl<'de> Deserialize<'de> for Objective {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        static NAMES: [&str; MEASURED.len()] = {
            let mut names = [""; MEASURED.len()];
            let mut place = 0;
            while place < names.len() {
                names[place] = MEASURED[place].name;
                place += 1;
            }
            names
        };
        let name = one_of(deserializer, &NAMES)?;
        Self::named(&name).ok_or_else(|| D::Error::unknown_variant(&name, &NAMES))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_objective_ranks_what_has_it_before_what_has_not() {
        let measurement = |accuracy, validation_loss| Measurement {
            search: String::new(),
            trial: String::new(),
            epoch: 1,
            step: 1,
            records: 1,
            measured: [("loss", Some(1.0)), ("validation_loss", validation_loss), ("validation_accuracy", accuracy)]
                .into_iter()
                .filter_map(|(name, value)| Some((name.to_owned(), value?)))
                .collect(),
            learning_rate: 0.1,
            gradient_norm: None,
            records_per_second: None,
            time_ms: 0,
        };
        let objective = Objective::named("validation_accuracy").unwrap();
        let (good, bad, none) =
            (measurement(Some(0.9), None), measurement(Some(0.2), Some(0.1)), measurement(None, Some(0.01)));
        assert_eq!(objective.compare(&good, &bad), Ordering::Less);
        assert_eq!(objective.compare(&none, &bad), Ordering::Greater);
        assert_eq!(objective.compare(&none, &measurement(None, Some(0.02))), Ordering::Less);
        let ranked_by = |measurement| objective.ranked_by(measurement).unwrap();
        assert_eq!(ranked_by(&bad), ("validation_accuracy".to_owned(), 0.2));
        assert_eq!(ranked_by(&none), ("validation_loss".to_owned(), 0.01));
    }
}
