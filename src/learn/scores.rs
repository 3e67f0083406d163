//! Loss and scores over any number of batches, as if they had been one. \[pure\]

use crate::features::window::Target;
use crate::models::criterion::most;
use crate::models::kind::Task;
use crate::models::loss::Loss;

/// Most classes whose confusion is kept: it is stored with each checkpoint.
pub const CONFUSION_CLASSES_MAX: usize = 50;

/// Loss and scores over any number of batches, as if they had been one.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Evaluation {
    pub(super) loss: Loss,
    records: u64,
    task: Option<Task>,
    /// One for each class.
    classes: Vec<ClassCounts>,
    /// Class that was meant → class that was said → records; empty if there are too many classes.
    confusion: Vec<Vec<u64>>,
    numbers: Numbers,
}

/// How often a class was meant, said, and both.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct ClassCounts {
    labelled: u64,
    predicted: u64,
    correct: u64,
}

/// What is kept of numbers that were meant and said.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Numbers {
    count: u64,
    absolute: f64,
    mean: f64,
    /// Sum of the squared distances of what was meant from its mean, by Welford's formula.
    squares: f64,
}

impl Evaluation {
    /// An evaluation without records, of such a model.
    #[must_use]
    pub fn new(task: Task, outputs: usize) -> Self {
        let classes = if task == Task::Classification { outputs } else { 0 };
        let told_apart = if classes <= CONFUSION_CLASSES_MAX { classes } else { 0 };
        Self {
            task: Some(task),
            classes: vec![ClassCounts::default(); classes],
            confusion: vec![vec![0; told_apart]; told_apart],
            ..Self::default()
        }
    }

    /// Adds a batch: what the model said record by record, and what was meant.
    pub fn add(&mut self, loss: Loss, outputs: &[f32], targets: &[Target]) {
        self.loss.sum += loss.sum;
        self.loss.weight += loss.weight;
        if self.task == Some(Task::Regression) {
            for (output, target) in outputs.iter().zip(targets) {
                if let Target::Number(number) = *target {
                    self.number(f64::from(*output), f64::from(number));
                }
            }
        }
        self.records += targets.len() as u64;
        for (logits, target) in outputs.chunks_exact(self.classes.len().max(1)).zip(targets) {
            if let Target::Class(class) = *target {
                self.count(most(logits) as u32, class);
            }
        }
    }

    fn number(&mut self, output: f64, number: f64) {
        let Numbers { count, absolute, mean, squares } = &mut self.numbers;
        *count += 1;
        *absolute += (output - number).abs();
        let distance = number - *mean;
        *mean += distance / *count as f64;
        *squares += distance * (number - *mean);
    }

    /// Which classes were taken for which: a row for each class that was meant, a column for each that was said. Empty
    /// without records, and beyond [`CONFUSION_CLASSES_MAX`] classes.
    #[must_use]
    pub fn confusion(&self) -> &[Vec<u64>] {
        if self.records > 0 {
            &self.confusion
        } else {
            &[]
        }
    }

    /// Records evaluated.
    #[must_use]
    pub fn records(&self) -> u64 {
        self.records
    }

    /// The task's loss over all records; nothing without records.
    #[must_use]
    pub fn loss(&self) -> Option<f64> {
        (self.records > 0).then(|| self.loss.mean())
    }

    /// Share of records whose most likely class is theirs; nothing without records or for a model
    /// without classes.
    #[must_use]
    pub fn accuracy(&self) -> Option<f64> {
        let correct: u64 = self.classes.iter().map(|class| class.correct).sum();
        self.scored().then(|| correct as f64 / self.records as f64)
    }

    /// Mean over classes of F1 = 2·correct / (labelled + predicted), as scikit-learn's
    /// `f1_score(average="macro", zero_division=0)`: over the classes that occur as label or as
    /// prediction. Nothing without records or for a model without classes.
    #[must_use]
    pub fn macro_f1(&self) -> Option<f64> {
        let present = self.classes.iter().filter(|class| class.labelled + class.predicted > 0);
        let (sum, count) = present.fold((0.0, 0_u64), |(sum, count), class| {
            (sum + 2.0 * class.correct as f64 / (class.labelled + class.predicted) as f64, count + 1)
        });
        self.scored().then(|| sum / count as f64)
    }

    /// Mean of the absolute errors; nothing without numbers.
    #[must_use]
    pub fn mae(&self) -> Option<f64> {
        (self.numbers.count > 0).then(|| self.numbers.absolute / self.numbers.count as f64)
    }

    /// R² = 1 − squared error / squared distances from the mean, as scikit-learn's `r2_score`; nothing without numbers
    /// that differ.
    #[must_use]
    pub fn r2(&self) -> Option<f64> {
        (self.numbers.squares > 0.0).then(|| 1.0 - self.loss.sum / self.numbers.squares)
    }

    /// All that was measured, by name; nothing without records.
    #[must_use]
    pub fn measured(&self) -> Vec<(&'static str, f64)> {
        let mse = self.loss().filter(|_| self.task == Some(Task::Regression));
        let scores =
            [("accuracy", self.accuracy()), ("macro_f1", self.macro_f1()), ("mae", self.mae()), ("r2", self.r2())];
        let all = [("loss", self.loss()), ("mse", mse)].into_iter().chain(scores);
        all.filter_map(|(name, value)| Some((name, value?))).collect()
    }

    fn count(&mut self, prediction: u32, label: u32) {
        if let Some(said) = self.confusion.get_mut(label as usize) {
            said[prediction as usize] += 1;
        }
        if let Some(class) = self.classes.get_mut(prediction as usize) {
            class.predicted += 1;
            class.correct += u64::from(label == prediction);
        }
        if let Some(class) = self.classes.get_mut(label as usize) {
            class.labelled += 1;
        }
    }

    fn scored(&self) -> bool {
        self.records > 0 && !self.classes.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scores_are_scikit_learns() {
        let scores = |pairs: &[(u32, u32)], classes| {
            let mut evaluation = Evaluation::new(Task::Classification, classes);
            for &(label, prediction) in pairs {
                evaluation.count(prediction, label);
                evaluation.records += 1;
            }
            (evaluation.accuracy().unwrap(), evaluation.macro_f1().unwrap())
        };
        // The example of scikit-learn's f1_score, with a class that never occurs added.
        let pairs = [(0, 0), (1, 2), (2, 1), (0, 0), (1, 0), (2, 1)];
        let (accuracy, f1) = scores(&pairs, 4);
        assert!((accuracy - 2.0 / 6.0).abs() < 1e-12, "accuracy {accuracy}");
        assert!((f1 - 0.8 / 3.0).abs() < 1e-12, "macro F1 {f1}");
        // Class 1 is only ever predicted: its F1 is 0, and counts.
        let (_, f1) = scores(&[(0, 0), (0, 0), (0, 1)], 2);
        assert!((f1 - 0.8 / 2.0).abs() < 1e-12, "macro F1 {f1}");
        assert_eq!(scores(&[(1, 1), (0, 0)], 2), (1.0, 1.0));
        let mut evaluation = Evaluation::new(Task::Classification, 3);
        assert!(evaluation.confusion().is_empty());
        pairs.iter().for_each(|&(label, prediction)| evaluation.count(prediction, label));
        evaluation.records = 6;
        assert_eq!(evaluation.confusion(), [[2, 0, 0], [1, 0, 1], [0, 2, 0]]);
        assert!(Evaluation::new(Task::Classification, CONFUSION_CLASSES_MAX + 1).confusion.is_empty());
    }

    #[test]
    fn numbers_are_scored_as_scikit_learn_does() {
        // The example of scikit-learn's r2_score: 0.948…; mean absolute error 0.5, mean squared error 0.375.
        let (meant, said) = ([3.0, -0.5, 2.0, 7.0].map(Target::Number), [2.5, 0.0, 2.0, 8.0]);
        let mut evaluation = Evaluation::new(Task::Regression, 1);
        for batch in 0..2 {
            let (meant, said) = (&meant[2 * batch..2 * batch + 2], &said[2 * batch..2 * batch + 2]);
            evaluation.add(Loss { sum: [0.5, 1.0][batch], weight: 2.0 }, said, meant);
        }
        let measured = evaluation.measured();
        let names: Vec<&str> = measured.iter().map(|(name, _)| *name).collect();
        assert_eq!(names, ["loss", "mse", "mae", "r2"]);
        for ((name, found), expected) in measured.into_iter().zip([0.375, 0.375, 0.5, 0.948_608_137_044_967]) {
            assert!((found - expected).abs() < 1e-12, "{name} {found}");
        }
        let mut same = Evaluation::new(Task::Regression, 1);
        same.add(Loss { sum: 0.0, weight: 2.0 }, &[1.0, 1.0], &[Target::Number(1.0); 2]);
        assert_eq!(same.r2(), None);
    }
}
