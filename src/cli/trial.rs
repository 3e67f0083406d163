//! One trial for people: what it reached, and how it tells classes apart.

use super::output::table;
use crate::search::record::TrialRecord;

/// Classes whose confusion is shown as a table; more are wider than a terminal.
const SHOWN_MAX: usize = 12;

/// Its best measurement, the scores of each class, and which were taken for which.
pub fn text(record: &TrialRecord) -> String {
    let Some(outcome) = &record.outcome else {
        return format!("trial {} of model {} has not ended: {}", record.trial, record.model.name, record.state());
    };
    let mut text = format!("trial {}: {}, {}", record.trial, record.model.name, outcome.state.name());
    if let Some(reason) = &outcome.reason {
        text += &format!(", {reason}");
    }
    if let Some(best) = &outcome.best {
        let measured: Vec<String> = best.measured.iter().map(|(name, value)| format!("{name} {value:.4}")).collect();
        text += &format!("\nbest at epoch {}: {}", best.epoch, measured.join(", "));
    }
    let confusion = &outcome.confusion;
    if confusion.is_empty() || confusion.len() != record.labels.len() {
        return text;
    }
    text += &format!("\n\n{}", table(&["class", "records", "precision", "recall", "f1"], &scores(record, confusion)));
    if confusion.len() > SHOWN_MAX {
        return text + "\nwhich class was taken for which: `confusion` in --json";
    }
    let headings: Vec<&str> = ["label"].into_iter().chain(record.labels.iter().map(String::as_str)).collect();
    let row = |(label, said): (&String, &Vec<u64>)| {
        [label.clone()].into_iter().chain(said.iter().map(u64::to_string)).collect::<Vec<_>>()
    };
    let rows: Vec<Vec<String>> = record.labels.iter().zip(confusion).map(row).collect();
    text + &format!("\n\nrecords of each label, by what the model said:\n{}", table(&headings, &rows))
}

/// Records of others may hold any numbers.
fn total<'c>(counts: impl Iterator<Item = &'c u64>) -> u64 {
    counts.fold(0, |sum, count| sum.saturating_add(*count))
}

/// As scikit-learn's `classification_report`; a share of nothing is shown as none.
fn scores(record: &TrialRecord, confusion: &[Vec<u64>]) -> Vec<Vec<String>> {
    let share = |part: u64, whole: u64| match whole {
        0 => "-".to_owned(),
        whole => format!("{:.4}", part as f64 / whole as f64),
    };
    let row = |(class, label): (usize, &String)| {
        let correct = confusion[class].get(class).copied().unwrap_or(0);
        let (meant, said) = (total(confusion[class].iter()), total(confusion.iter().filter_map(|row| row.get(class))));
        vec![
            label.clone(),
            u64::to_string(&meant),
            share(correct, said),
            share(correct, meant),
            share(correct.saturating_mul(2), meant.saturating_add(said)),
        ]
    };
    record.labels.iter().enumerate().map(row).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::search::record::samples;

    #[test]
    fn each_class_has_its_scores_and_what_it_was_taken_for() {
        let mut record = samples::record("t");
        assert!(text(&record).ends_with("has not ended: open"));
        record.outcome =
            Some(crate::output::Outcome { confusion: vec![vec![3, 1], vec![0, 0]], ..samples::outcome("t", 0) });
        let shown = text(&record);
        let words: Vec<&str> = shown.split_whitespace().collect();
        assert!(words.windows(5).any(|row| row == ["a", "4", "1.0000", "0.7500", "0.8571"]), "{shown}");
        assert!(words.windows(5).any(|row| row == ["b", "0", "0.0000", "-", "0.0000"]), "{shown}");
        assert!(shown.contains("records of each label"), "{shown}");
    }
}
