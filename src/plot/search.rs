//! A search as a picture: for each model curves, the best so far, and the result against each parameter.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use super::figure::{Figure, Panel, Section, Series, Shape, Style, HIGHLIGHTS_MAX};
use super::scale::{short, with_thousands, Scale};
use crate::output::Measurement;
use crate::search::objective::{Direction, Objective, LOSS, MEASURED, VALIDATION_LOSS};
use crate::search::record::TrialRecord;
use crate::search::results::{Measurements, Results};

/// The picture of a search.
pub fn figure(search: &str, results: &Results) -> Figure {
    let mut models: BTreeMap<&str, Vec<Trial<'_>>> = BTreeMap::new();
    for (record, measurements) in &results.trials {
        models.entry(record.model.name).or_default().push(Trial::new(record, measurements));
    }
    let first = results.trials.first().map(|(record, _)| record);
    let records = first.map_or(0, |record| record.range().records());
    let objective = first.map_or_else(Objective::loss, |record| record.objective.clone());
    let mut sections: Vec<(bool, Section)> = models
        .into_iter()
        .filter(|(_, trials)| trials.iter().any(|trial| trial.best.is_some()))
        .map(|(model, trials)| Model::new(model, &objective, trials).section())
        .collect();
    // What the search is about comes first.
    sections.sort_by_key(|(has_objective, _)| !has_objective);
    Figure {
        title: format!("search {search}"),
        subtitle: format!(
            "{} trials over {} records of topic {}, by {}",
            results.trials.len(),
            with_thousands(records as f64, 0),
            first.map_or("", |record| record.topic.as_str()),
            objective.name.replace('_', " ")
        ),
        sections: sections.into_iter().map(|(_, section)| section).collect(),
    }
}

/// A trial as it is drawn.
struct Trial<'r> {
    record: &'r TrialRecord,
    /// In the order in which they were made.
    measurements: Vec<&'r Measurement>,
    best: Option<&'r Measurement>,
    parameters: BTreeMap<String, Value>,
}

impl<'r> Trial<'r> {
    fn new(record: &'r TrialRecord, measurements: &'r Measurements) -> Self {
        let parameters = match serde_json::to_value(&record.parameters) {
            Ok(Value::Object(map)) => map.into_iter().collect(),
            _ => BTreeMap::new(),
        };
        let measurements: Vec<&Measurement> = measurements.values().collect();
        let best = measurements.iter().copied().min_by(|a, b| record.objective.compare(a, b));
        Self { record, measurements, best, parameters }
    }

    /// A value over epochs. Within an epoch a measurement stands where its records are in it.
    fn curve(&self, objective: &Objective) -> Vec<(f64, f64)> {
        let last = self.measurements.last().map_or(0, |measurement| measurement.epoch);
        let done = self.record.outcome.as_ref().map_or(last.saturating_sub(1), |outcome| outcome.epochs);
        let of_epochs = self.measurements.iter().filter(|measurement| measurement.epoch <= done);
        let records = of_epochs.map(|measurement| measurement.records as f64 / measurement.epoch as f64);
        let epoch_records = records.fold(0.0, f64::max);
        let place = |measurement: &Measurement| match epoch_records {
            0.0 => measurement.epoch as f64,
            records => measurement.records as f64 / records,
        };
        let point = |measurement: &&Measurement| Some((place(measurement), objective.value(measurement)?));
        self.measurements.iter().filter_map(point).collect()
    }
}

/// The trials of one model.
struct Model<'r> {
    name: &'r str,
    /// What they are compared by: the search's objective, if the model has it.
    objective: Objective,
    has_objective: bool,
    trials: Vec<Trial<'r>>,
    /// Names of parameters that differ.
    varied: BTreeSet<String>,
}

impl<'r> Model<'r> {
    fn new(name: &'r str, wanted: &Objective, mut trials: Vec<Trial<'r>>) -> Self {
        let has = |objective: &Objective| {
            trials.iter().filter_map(|trial| trial.best).any(|best| objective.value(best).is_some())
        };
        let objective = [wanted.clone(), Objective::default()].into_iter().find(has).unwrap_or_else(Objective::loss);
        trials.sort_by(|a, b| wanted.compare_best(a.best, b.best));
        let names: BTreeSet<&String> = trials.iter().flat_map(|trial| trial.parameters.keys()).collect();
        let differs = |name: &&&String| {
            let mut values = trials.iter().map(|trial| trial.parameters.get(**name));
            let first = values.next();
            values.any(|value| Some(value) != first)
        };
        let varied = names.iter().filter(differs).map(|name| (*name).clone()).collect();
        Self { name, has_objective: objective == *wanted, objective, trials, varied }
    }

    fn section(&self) -> (bool, Section) {
        let mut panels = vec![self.curves(&Objective::loss()), self.curves(&Objective::default())];
        if ![LOSS, VALIDATION_LOSS].contains(&self.objective.name.as_str()) {
            panels.push(self.curves(&self.objective));
        }
        panels.push(self.best_so_far());
        panels.extend(self.varied.iter().map(|name| self.against(name)));
        panels.retain(|panel| panel.series.iter().any(|series| !series.points.is_empty()));
        let mut states: BTreeMap<&str, usize> = BTreeMap::new();
        for trial in &self.trials {
            *states.entry(trial.record.state()).or_default() += 1;
        }
        let states: Vec<String> = states.iter().map(|(state, count)| format!("{count} {state}")).collect();
        let highlighted = self.trials.iter().filter(|trial| trial.best.is_some()).take(HIGHLIGHTS_MAX);
        let section = Section {
            heading: format!("{}: {}", self.name, states.join(", ")),
            legend: highlighted.map(|trial| self.name_of(trial)).collect(),
            panels,
        };
        (self.has_objective, section)
    }

    /// Number, result, and what is special about it.
    fn name_of(&self, trial: &Trial<'_>) -> String {
        let best = trial.best.and_then(|best| self.objective.value(best)).map_or_else(String::new, rounded);
        let special = self.varied.iter().filter_map(|name| Some((name, trial.parameters.get(name)?)));
        let special: Vec<String> = special.map(|(name, value)| format!("{name} {}", shown(value))).collect();
        [vec![format!("#{}: {best}", trial.record.number)], special].concat().join(", ")
    }

    fn style(&self, place: usize) -> Style {
        if place < HIGHLIGHTS_MAX {
            Style::Highlight(place)
        } else {
            Style::Other(self.trials.len() - HIGHLIGHTS_MAX)
        }
    }

    /// The panel's series, the best above the others.
    fn series(&self, shape: Shape, points: impl Fn(&Trial<'r>) -> Vec<(f64, f64)>) -> Vec<Series> {
        let all = self.trials.iter().enumerate().rev();
        all.map(|(place, trial)| Series { style: self.style(place), shape, points: points(trial) }).collect()
    }

    /// A panel of values of an objective. Losses that left the others far behind are drawn at its upper end.
    fn panel(&self, title: String, x_title: String, x: Scale, objective: &Objective, mut series: Vec<Series>) -> Panel {
        let of_trials = series.iter().filter(|series| series.style != Style::Summary);
        let finite = |series: &Series| {
            let values = series.points.iter().map(|point| point.1).filter(|value| !value.is_nan());
            values.max_by(f64::total_cmp)
        };
        let mut highest: Vec<f64> = of_trials.filter_map(finite).collect();
        highest.sort_by(f64::total_cmp);
        let limit = highest.get(highest.len() / 2).map_or(f64::MAX, |median| median * BEYOND);
        let beyond = highest.iter().filter(|value| **value > limit).count();
        let clips = objective.direction == Direction::Minimize && beyond > 0 && limit > 0.0;
        if clips {
            series.iter_mut().flat_map(|series| &mut series.points).for_each(|point| point.1 = point.1.min(limit));
        }
        let y = Scale::fitting(series.iter().flat_map(|series| &series.points).map(|point| point.1), RESULT_RATIO);
        let title = if clips { format!("{title}; {beyond} beyond {}", short(limit)) } else { title };
        Panel { title, x_title, x, x_ticks: Vec::new(), y, series }
    }

    fn curves(&self, objective: &Objective) -> Panel {
        let series = self.series(Shape::Line, |trial| trial.curve(objective));
        let last = series.iter().flat_map(|series| &series.points).map(|point| point.0.ceil() as usize).max();
        let panel = self.panel(self.title(objective), "epoch".into(), Scale::Linear, objective, series);
        // Few of them: round values would have halves.
        let x_ticks =
            last.filter(|last| *last <= TICKS_MAX).map_or_else(Vec::new, |last| (1..=last).map(|e| e as f64).collect());
        Panel { x_ticks, ..panel }
    }

    fn best_so_far(&self) -> Panel {
        let began = self.trials.iter().map(|trial| trial.record.created_ms).min().unwrap_or(0);
        let mut all: Vec<(f64, f64)> = self
            .trials
            .iter()
            .flat_map(|trial| &trial.measurements)
            .filter_map(|m| Some((m.time_ms.saturating_sub(began) as f64 / 1e3, self.objective.value(m)?)))
            .filter(|(_, value)| value.is_finite())
            .collect();
        all.sort_by(|a, b| a.0.total_cmp(&b.0));
        let last = all.last().map_or(0.0, |(seconds, _)| *seconds);
        let (unit, seconds) = match last {
            s if s < 300.0 => ("s", 1.0),
            s if s < 3.0 * 3600.0 => ("min", 60.0),
            _ => ("h", 3600.0),
        };
        let mut best: Vec<(f64, f64)> = Vec::new();
        for &(at, value) in &all {
            if best.last().is_none_or(|(_, before)| self.objective.better(value, *before)) {
                best.push((at / seconds, value));
            }
        }
        best.extend(best.last().map(|(_, value)| (last / seconds, *value)));
        let mut series = self.series(Shape::Points, |trial| {
            let point = trial.best.and_then(|best| {
                let at = best.time_ms.saturating_sub(began) as f64 / 1e3 / seconds;
                Some((at, self.objective.value(best)?))
            });
            point.into_iter().collect()
        });
        series.push(Series { style: Style::Summary, shape: Shape::Steps, points: best });
        let title = format!("best so far: {}", self.title(&self.objective));
        let x_title = format!("time since the search's start ({unit})");
        self.panel(title, x_title, Scale::Linear, &self.objective, series)
    }

    /// The result of each trial against one of its parameters.
    fn against(&self, name: &str) -> Panel {
        let values: Vec<Option<&Value>> = self.trials.iter().map(|trial| trial.parameters.get(name)).collect();
        let numbers: Vec<f64> = values.iter().filter_map(|value| value.and_then(Value::as_f64)).collect();
        let x = if numbers.len() == values.len() {
            Scale::fitting(numbers.iter().copied(), PARAMETER_RATIO)
        } else {
            let names: BTreeSet<String> = values.iter().map(|value| value.map_or_else(unset, shown)).collect();
            Scale::Categories(names.into_iter().collect())
        };
        let place = |trial: &Trial<'_>| {
            let value = trial.parameters.get(name);
            match &x {
                Scale::Categories(names) => {
                    let shown = value.map_or_else(unset, shown);
                    names.iter().position(|name| *name == shown).map(|place| place as f64)
                }
                Scale::Linear | Scale::Log => value.and_then(Value::as_f64),
            }
        };
        let point = |trial: &Trial<'r>| Some((place(trial)?, self.objective.value(trial.best?)?));
        let mut series = self.series(Shape::Points, |trial| point(trial).into_iter().collect());
        let mut columns: BTreeMap<u64, Vec<(f64, f64)>> = BTreeMap::new();
        for (x, y) in self.trials.iter().filter_map(point).filter(|(_, y)| y.is_finite()) {
            columns.entry(x.to_bits()).or_default().push((x, y));
        }
        let medians = columns.len() <= COLUMNS_MAX && columns.values().any(|column| column.len() > 2);
        if medians {
            let median = |mut column: Vec<(f64, f64)>| {
                column.sort_by(|a, b| a.1.total_cmp(&b.1));
                column[column.len() / 2]
            };
            let points = columns.into_values().filter(|column| column.len() > 2).map(median).collect();
            series.insert(0, Series { style: Style::Summary, shape: Shape::Ticks, points });
        }
        let x_title = if medians { format!("{name} (bar: median)") } else { name.to_owned() };
        let numbers: BTreeSet<u64> = numbers.iter().map(|number| number.to_bits()).collect();
        let x_ticks = match x {
            Scale::Linear | Scale::Log if numbers.len() <= TICKS_MAX => {
                numbers.into_iter().map(f64::from_bits).collect()
            }
            _ => Vec::new(),
        };
        let panel = self.panel(self.title(&self.objective), x_title, x, &self.objective, series);
        Panel { x_ticks, ..panel }
    }

    /// What a value is, with its unit.
    fn title(&self, objective: &Objective) -> String {
        let loss_unit = self.trials.first().map_or("", |trial| trial.record.task().loss());
        let title = MEASURED.iter().find(|measured| measured.name == objective.name).map(|measured| measured.title);
        match title {
            Some(loss) if [LOSS, VALIDATION_LOSS].contains(&objective.name.as_str()) => format!("{loss} ({loss_unit})"),
            Some(title) => title.to_owned(),
            None => objective.name.replace('_', " "),
        }
    }
}

/// Losses over so wide a range are drawn by their logarithm.
const RESULT_RATIO: f64 = 30.0;
/// Parameters are mostly spread by factors.
const PARAMETER_RATIO: f64 = 7.9;

/// So many times the median of what trials reach at most is too much to be drawn.
const BEYOND: f64 = 3.0;
/// Different values of a parameter that are still marked one by one: with a median, with a tick.
const COLUMNS_MAX: usize = 12;
const TICKS_MAX: usize = 6;

fn shown(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Number(number) => number.as_f64().map_or_else(|| number.to_string(), short),
        Value::Array(values) => values.iter().map(shown).collect::<Vec<_>>().join("-"),
        other => other.to_string(),
    }
}

fn unset() -> String {
    "unset".into()
}

/// Four digits that count.
fn rounded(value: f64) -> String {
    if value == 0.0 || (1e-3..1e4).contains(&value.abs()) {
        format!("{value:.4}")
    } else {
        format!("{value:.3e}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::output::{EndState, Outcome};
    use crate::search::file::Search;
    use crate::search::objective::VALIDATION_ACCURACY;
    use crate::search::parameters::Configuration;

    /// A search that was run: grids of both models, one trial that diverged, one that still runs.
    fn search(trials: usize) -> Results {
        let rates: Vec<String> =
            (1..=trials / 4).map(|i| format!("{:e}", 1e-4 * 1.02_f64.powi(i as i32 * 9))).collect();
        let text = format!(
            "name = \"s\"\nobjective = \"validation_accuracy\"\nepochs = 8\nlearning_rate = [{}]\n\
             [[trial]]\nmodel = \"mlp\"\nhidden = [32, 64, 256]\noptimizer = [\"adamw\", \"sgd\"]\n\
             [[trial]]\nmodel = \"autoencoder\"\nlayers = [[64, 32], [128]]\nshuffle = [true, false]",
            rates.join(", ")
        );
        let configurations = Search::parse(&text).unwrap().trials;
        let record = |(number, configuration): (usize, Configuration)| {
            let trial = format!("s-{number:03}");
            let classifier = configuration.parameters.task(configuration.model).needs_labels();
            let rate = configuration.parameters.learning_rate;
            let wave = ((number * 37) % 101) as f64 / 101.0;
            let measurement = |epoch: u64| {
                let progress = 1.0 - (-(epoch as f64) * (0.2 + wave * rate.sqrt() * 9.0)).exp();
                let diverged = number == 5 && epoch > 3;
                Measurement {
                    search: "s".into(),
                    trial: trial.clone(),
                    epoch,
                    step: epoch * 57,
                    records: epoch * 3600,
                    measured: [
                        (LOSS, Some(if diverged { 1e12 } else { 1.4 - 1.2 * progress + 0.1 * wave })),
                        (VALIDATION_LOSS, Some(1.4 - (0.7 + 0.2 * wave) * progress)),
                        (VALIDATION_ACCURACY, classifier.then_some(0.4 + (0.3 + 0.1 * wave) * progress)),
                    ]
                    .into_iter()
                    .filter_map(|(name, value)| Some((name.to_owned(), value?)))
                    .collect(),
                    learning_rate: rate,
                    gradient_norm: None,
                    records_per_second: None,
                    time_ms: 1_000_000 + number as u64 * 2_000 + epoch * 9_000,
                }
            };
            let epochs = if number == 7 { 4 } else { 8 };
            let measurements = (1..=epochs).map(|epoch| ((epoch, epoch * 57), measurement(epoch))).collect();
            let outcome = (number != 7).then(|| Outcome {
                search: "s".into(),
                trial: trial.clone(),
                number: number as u32,
                state: if number == 5 { EndState::Diverged } else { EndState::Finished },
                reason: None,
                epochs,
                records: epochs * 3600,
                best: None,
                confusion: Vec::new(),
                weights_sha256: None,
                attempt: 0,
                time_ms: 0,
            });
            let record = TrialRecord {
                search: "s".into(),
                trial: trial.clone(),
                number: number as u32,
                trials: trials as u32,
                model: configuration.model,
                parameters: configuration.parameters,
                objective: Objective::named(VALIDATION_ACCURACY).unwrap(),
                seed: 0,
                topic: "features".into(),
                range: BTreeMap::from([(0, (0, 4000))]),
                records: BTreeMap::from([(0, 4000)]),
                digests: BTreeMap::from([(0, String::new())]),
                labels: vec!["a".into(), "b".into()],
                rows_max: 64,
                dim: 384,
                training_format: 1,
                training_records: 0,
                class_counts: Vec::new(),
                naive: BTreeMap::new(),
                initial: false,
                created_ms: 1_000_000,
                attempt: 0,
                stop: false,
                outcome,
            };
            (record, measurements)
        };
        Results { trials: configurations.into_iter().enumerate().map(record).collect() }
    }

    #[test]
    fn a_search_has_a_section_for_each_model_with_its_best_in_colour() {
        let results = search(8);
        let figure = figure("s-1a2b3c", &results);
        assert_eq!(figure.subtitle, "20 trials over 4,000 records of topic features, by validation accuracy");
        // The model that has the objective is first.
        let [mlp, autoencoder] = figure.sections.as_slice() else { panic!("{}", figure.sections.len()) };
        assert_eq!(mlp.heading, "mlp: 1 diverged, 10 finished, 1 open");
        assert_eq!(autoencoder.heading, "autoencoder: 8 finished");
        assert_eq!(mlp.legend.len(), HIGHLIGHTS_MAX);
        assert_eq!(mlp.legend[0], "#8: 0.7574, hidden 64, learning_rate 1.428e-4, optimizer adamw");
        let panels = |section: &Section| -> Vec<String> {
            section.panels.iter().map(|panel| format!("{} / {}", panel.title, panel.x_title)).collect()
        };
        assert_eq!(
            panels(mlp),
            [
                "training loss (cross-entropy, nats); 1 beyond 3.547 / epoch",
                "validation loss (cross-entropy, nats) / epoch",
                "validation accuracy (share) / epoch",
                "best so far: validation accuracy (share) / time since the search's start (s)",
                "validation accuracy (share) / hidden (bar: median)",
                "validation accuracy (share) / learning_rate (bar: median)",
                "validation accuracy (share) / optimizer (bar: median)",
            ]
        );
        assert_eq!(
            panels(autoencoder)[2],
            "best so far: validation loss (mean squared error) / time since the search's start (s)"
        );
        // One that still runs has as many points as it has measurements, at its epochs.
        let accuracy = &mlp.panels[2];
        let lines: Vec<usize> = accuracy.series.iter().map(|series| series.points.len()).collect();
        assert_eq!(lines.iter().filter(|points| **points == 4).count(), 1, "{lines:?}");
        assert!(accuracy
            .series
            .iter()
            .all(|series| series.points.last().is_some_and(|p| p.0 == series.points.len() as f64)));
        // The best is drawn last, so above the others.
        assert_eq!(accuracy.series.last().map(|series| series.style), Some(Style::Highlight(0)));
        // What is best so far never becomes worse.
        let steps = mlp.panels[3].series.iter().find(|series| series.shape == Shape::Steps).unwrap();
        assert!(steps.points.windows(2).all(|pair| pair[0].1 <= pair[1].1 && pair[0].0 <= pair[1].0));
    }

    #[test]
    fn a_thousand_trials_are_still_a_small_picture() {
        let results = search(400);
        let figure = figure("s-1a2b3c", &results);
        assert_eq!(results.trials.len(), 1000);
        assert!(figure.sections.iter().all(|section| section.legend.len() == HIGHLIGHTS_MAX));
        let svg = figure.svg().unwrap();
        assert!(svg.len() < 2_000_000, "{} bytes", svg.len());
        assert!(svg.contains("prefers-color-scheme: dark"));
    }

    #[test]
    fn a_search_without_variation_or_with_one_measurement_is_drawn() {
        let mut results = search(8);
        results.trials.truncate(1);
        results.trials[0].1.retain(|place, _| place.0 == 1);
        let figure = figure("s", &results);
        assert_eq!(figure.sections[0].panels.len(), 4, "no parameter differs");
        let _ = figure.svg().unwrap();
    }
}
