//! A search and the features that it is to learn from. \[pure\]

use super::file::{Search, Unlabelled};
use super::objective::Objective;
use super::parameters::Configuration;
use super::section::Error;
use crate::coordinates::Coordinates;
use crate::features::range::{Survey, LABELS_BYTES_MAX};
use crate::models::kind::Task;
use crate::text::shortened;

/// Records of a shuffle window, unless their matrices are large.
const WINDOW_RECORDS: u64 = 8192;
/// Bytes of matrices that a default window holds, at most.
const WINDOW_BYTES: u64 = 256 * 1024 * 1024;

impl Search {
    /// Fits the search to the data: refuses what could not be trained and fills in the window.
    ///
    /// # Errors
    /// Says what is missing in the data, and where.
    pub fn fit_to(&mut self, topic: &str, survey: &Survey) -> Result<Vec<String>, Error> {
        let mut warnings = Vec::new();
        if survey.records() == 0 {
            return Err(Error::Data(format!(
                "topic `{topic}` holds no features; embed some texts first (`sweepstream run --stage embed`)"
            )));
        }
        let learns = |task: Task| self.trials.iter().any(|trial| trial.parameters.task(trial.model) == task);
        let (classifiers, regressors) = (learns(Task::Classification), learns(Task::Regression));
        if (classifiers || regressors) && survey.unlabelled() == survey.records() {
            let what = if classifiers { "no classifier can be trained" } else { "no number can be learnt" };
            return Err(Error::Data(format!(
                "no record of topic `{topic}` has a `label` header, so {what}; label the \
                texts, or train an autoencoder"
            )));
        }
        if (classifiers || regressors) && survey.unlabelled() > 0 && self.unlabelled == Unlabelled::Refuse {
            let Coordinates { partition, offset } = survey.first_unlabelled.unwrap_or_default();
            let who = if classifiers { "classifiers" } else { "models" };
            return Err(Error::Data(format!(
                "{} of {} records of topic `{topic}` have no `label` header (the first at {topic}/{partition} offset \
                 {offset}); `unlabelled = \"skip\"` in the search file trains {who} without them",
                survey.unlabelled(),
                survey.records()
            )));
        }
        if let (true, Some(Coordinates { partition, offset })) = (classifiers, survey.first_beyond_classes) {
            return Err(Error::Data(format!(
                "{topic}/{partition} offset {offset}: with its label there are {} different ones of more than \
                 {LABELS_BYTES_MAX} bytes together; a label names a class, not a record (`task = \"regress\"` learns \
                 numbers)",
                survey.labels.len() + 1
            )));
        }
        if let (true, Some((Coordinates { partition, offset }, why))) = (regressors, &survey.first_no_number) {
            return Err(Error::Data(format!(
                "{topic}/{partition} offset {offset}: {why}, and `task = \"regress\"` learns numbers; label the texts \
                 with numbers as `3.5` or `-2e3`"
            )));
        }
        if let (true, Some(warning)) = (classifiers, one_class(survey.labels.keys())) {
            warnings.push(warning);
        }
        let by_loss = self.objective == Objective::loss();
        if survey.split.validation == 0 && !by_loss && self.trials.iter().any(|trial| trial.parameters.patience > 0) {
            return Err(Error::Data(format!(
                "no record of topic `{topic}` falls into the validation split (1 in {}), so `patience` has nothing to \
                 go by; lower `validation`, or let `objective = \"loss\"` decide",
                self.validation
            )));
        }
        if self.validation > 0 && survey.split.validation == 0 {
            warnings.push(format!(
                "no record falls into the validation split (1 in {}); there will be no validation values",
                self.validation
            ));
        }
        if survey.split.training == 0 {
            return Err(Error::Data(format!(
                "all {} records of topic `{topic}` fall into the validation split; raise `validation` or set it to 0",
                survey.records()
            )));
        }
        if self.validation == 0 && !by_loss {
            warnings.push(format!(
                "there is no validation split, so the leaderboard goes by loss instead of {}",
                self.objective.name
            ));
        }
        if survey.embedders.len() > 1 {
            warnings.push(format!(
                "topic `{topic}` mixes matrices of several embedders: {}",
                shortened(&survey.embedders.iter().cloned().collect::<Vec<_>>().join(", "))
            ));
        }
        let record_bytes = (survey.rows_read * (survey.dim * survey.number_bytes) as u64 / survey.records()).max(1);
        let window = u32::try_from((WINDOW_BYTES / record_bytes).clamp(1, WINDOW_RECORDS)).unwrap_or(1);
        for (number, trial) in self.trials.iter().enumerate() {
            let (records, parameters) = (training_records(trial, survey), &trial.parameters);
            let steps = parameters.steps(records);
            if records == 0 {
                return Err(Error::Data(format!(
                    "trial number {number} learns from labels, and no record of topic `{topic}` that has one falls \
                     into the training split; label more texts, or lower the share of `validation`"
                )));
            }
            if parameters.warm_up >= steps {
                return Err(Error::Data(format!(
                    "`warm_up` is {} steps, and trial number {number} makes {steps} in all (records: {records}, \
                     batch_size: {}, epochs: {}); a few per cent of them are usual",
                    parameters.warm_up, parameters.batch_size, parameters.epochs
                )));
            }
        }
        for trial in &mut self.trials {
            trial.parameters.window = self.window.unwrap_or(window);
        }
        Ok(warnings)
    }
}

/// Records of the training split that a trial learns from.
pub fn training_records(trial: &Configuration, survey: &Survey) -> u64 {
    match trial.parameters.task(trial.model).needs_labels() {
        true => survey.labelled.training,
        false => survey.split.training,
    }
}

/// What to tell of a search for classes that has only one.
pub fn one_class<'l>(mut labels: impl ExactSizeIterator<Item = &'l String>) -> Option<String> {
    let label = labels.next().filter(|_| labels.len() == 0)?;
    Some(format!(
        "all labels are `{}`: with one class every classifier has an accuracy of 1.0, whatever it learns; give the \
         texts the labels they should be told apart by",
        shortened(label)
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::features::codec::{self, Dtype};
    use crate::features::range::RawRecord;

    /// Two records with these labels.
    fn survey(labels: [&str; 2]) -> Survey {
        let mut survey = Survey::default();
        let value = codec::encode(1, 1, &[0.0], Dtype::F16);
        for (i, label) in labels.iter().enumerate() {
            let label = Some(label.as_bytes());
            let record = RawRecord { key: None, value: Some(&value), label, source: None, embedder: None };
            survey.add(Coordinates { partition: 3, offset: i as i64 }, record, 1, 0).unwrap();
        }
        survey
    }

    fn fit(search: &str, survey: &Survey) -> String {
        let validation = if search.contains("validation =") { "" } else { "validation = 0" };
        let mut search = Search::parse(&format!("name = \"s\"\n{validation}\n{search}")).unwrap();
        search.fit_to("f", survey).map_or_else(|error| error.to_string(), |warnings| warnings.join("; "))
    }

    #[test]
    fn labels_must_be_what_the_task_learns() {
        let [words, numbers] = [survey(["sea", "1"]), survey(["0.5", "-2e3"])];
        assert!(fit("model = \"mlp\"\nobjective = \"loss\"", &words).is_empty());
        let refused = fit("model = \"mlp\"\ntask = \"regress\"", &words);
        assert!(refused.starts_with("f/3 offset 0: the label `sea` is no number"), "{refused}");
        assert!(fit("model = \"mlp\"\ntask = \"regress\"\nobjective = \"loss\"", &numbers).is_empty());
    }

    #[test]
    fn patience_wants_validation_records_to_be_there() {
        let survey = survey(["sea", "field"]);
        let refused = fit("model = \"mlp\"\npatience = 2\nvalidation = 1000", &survey);
        assert!(refused.contains("`patience` has nothing to go by; lower `validation`"), "{refused}");
        assert!(fit("model = \"mlp\"\nvalidation = 1000", &survey).contains("no validation values"));
        assert!(fit("model = \"mlp\"\npatience = 2\nobjective = \"loss\"", &survey).is_empty());
    }

    #[test]
    fn labels_without_bound_are_no_classes_and_nothing_to_who_does_not_read_them() {
        let long = "x".repeat(LABELS_BYTES_MAX);
        let survey = survey(["a", &long]);
        let refused = fit("model = \"mlp\"", &survey);
        assert!(refused.contains("f/3 offset 1") && refused.contains("there are 2 different ones"), "{refused}");
        assert!(refused.len() < 300, "{refused}");
        assert!(fit("model = \"autoencoder\"\nobjective = \"loss\"", &survey).is_empty());
    }
}
