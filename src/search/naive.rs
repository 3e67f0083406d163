//! What is reached without reading a text: by always saying the most frequent class, or the mean. \[pure\]
//!
//! As scikit-learn's `DummyClassifier(strategy="most_frequent")` and `DummyRegressor()`: learnt from the training
//! split, measured on the validation split, under the names that trials measure.

use std::collections::BTreeMap;

use super::objective::{VALIDATION_ACCURACY, VALIDATION_MACRO_F1, VALIDATION_MAE, VALIDATION_MSE, VALIDATION_R2};
use crate::features::range::{Numbers, Survey};
use crate::models::kind::Task;

/// Measured name → value; nothing for a task without labels, or without a validation split.
#[must_use]
pub fn scores(task: Task, survey: &Survey) -> BTreeMap<String, f64> {
    let scores = match task {
        Task::Classification => classes(survey),
        Task::Regression => numbers(&survey.numbers),
        Task::Reconstruction => Vec::new(),
    };
    scores.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
}

fn classes(survey: &Survey) -> Vec<(&'static str, f64)> {
    let records = survey.labelled.validation;
    // The first of equals, by name.
    let said = survey.labels.iter().rev().max_by_key(|(_, split)| split.training);
    let Some((said, split)) = said.filter(|_| records > 0) else { return Vec::new() };
    let correct = split.validation as f64;
    // Every other class that occurs has an F1 of 0; the one that is said occurs as a prediction.
    let others = survey.labels.iter().filter(|(name, split)| split.validation > 0 && *name != said).count();
    let f1 = 2.0 * correct / (split.validation + records) as f64;
    vec![(VALIDATION_ACCURACY, correct / records as f64), (VALIDATION_MACRO_F1, f1 / (others + 1) as f64)]
}

fn numbers(numbers: &Numbers) -> Vec<(&'static str, f64)> {
    let count = numbers.validation.len() as f64;
    if numbers.training == 0 || numbers.validation.is_empty() {
        return Vec::new();
    }
    let said = numbers.training_sum / numbers.training as f64;
    let all = || numbers.validation.iter().map(|&number| f64::from(number));
    let errors = |from: f64| all().map(|number| (number - from).powi(2)).sum::<f64>();
    let absolute = all().map(|number| (number - said).abs()).sum::<f64>() / count;
    let spread = errors(all().sum::<f64>() / count);
    let mut scores = vec![(VALIDATION_MSE, errors(said) / count), (VALIDATION_MAE, absolute)];
    scores.extend((spread > 0.0).then(|| (VALIDATION_R2, 1.0 - errors(said) / spread)));
    scores
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::features::range::Split;

    fn close(found: &BTreeMap<String, f64>, expected: &[(&str, f64)]) {
        assert_eq!(found.len(), expected.len(), "{found:?}");
        for (name, value) in expected {
            assert!((found[*name] - value).abs() < 1e-12, "{name}: {found:?}");
        }
    }

    // from sklearn.dummy import DummyClassifier; from sklearn.metrics import f1_score
    #[test]
    fn the_most_frequent_class_of_training_is_said_of_validation() {
        let mut survey = Survey::default();
        for (label, training, validation) in [("a", 5, 2), ("b", 7, 3), ("c", 5, 2), ("d", 1, 0)] {
            let _ = survey.labels.insert(label.into(), Split { training, validation });
        }
        survey.labelled = Split { training: 18, validation: 7 };
        let expected = [(VALIDATION_ACCURACY, 3.0 / 7.0), (VALIDATION_MACRO_F1, 0.6 / 3.0)];
        close(&scores(Task::Classification, &survey), &expected);
        assert!(scores(Task::Reconstruction, &survey).is_empty());
        survey.labelled.validation = 0;
        assert!(scores(Task::Classification, &survey).is_empty());
    }

    #[test]
    fn the_mean_of_training_is_said_of_validation() {
        let numbers = Numbers { training_sum: 6.0, training: 3, validation: vec![1.0, 2.0, 6.0] };
        let mut survey = Survey::default();
        survey.numbers = numbers;
        let expected = [(VALIDATION_MSE, 17.0 / 3.0), (VALIDATION_MAE, 5.0 / 3.0), (VALIDATION_R2, 1.0 - 17.0 / 14.0)];
        close(&scores(Task::Regression, &survey), &expected);
    }
}
