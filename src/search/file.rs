//! A search file → the configurations of its trials. \[pure\]

use serde::{Deserialize, Serialize};

use super::objective::Objective;
use super::parameters::{ClassWeights, Configuration, HyperParameters, OptimizerName};
use super::section::{refuse_unknown, Error, Section};
use super::space::grid;
use crate::models::kind::{Kind, Preset, Task};
use crate::models::{linear, registry};

/// Most trials of one search.
pub const TRIALS_MAX: usize = 10_000;
/// Longest path of a file, as Linux has it; each trial keeps its own.
const PATH_BYTES_MAX: usize = 4096;

/// Keys that belong to the search as a whole.
const SEARCH_KEYS: [&str; 9] =
    ["name", "topic", "objective", "seed", "validation", "rows_max", "unlabelled", "window", "baseline"];
/// Keys that belong to a trial, whatever its model is; outside `[[trial]]` they are defaults of all.
const TRIAL_KEYS: [&str; 17] = [
    "model",
    "task",
    "epochs",
    "batch_size",
    "optimizer",
    "learning_rate",
    "weight_decay",
    "momentum",
    "shuffle",
    "clip_norm",
    "schedule",
    "warm_up",
    "label_smoothing",
    "class_weights",
    "initial_weights",
    "checkpoint_every",
    "patience",
];

/// Keys that search files have whatever the models are.
pub fn reserved_keys() -> Vec<&'static str> {
    SEARCH_KEYS.into_iter().chain(TRIAL_KEYS).chain(["trial"]).collect()
}

/// Those of a trial, and the models' own.
fn trial_keys() -> Vec<&'static str> {
    TRIAL_KEYS.into_iter().chain(registry::keys().iter().map(|key| key.name)).collect()
}

/// What to do with records without a label when a classifier is trained.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Unlabelled {
    /// The search does not start.
    Refuse,
    /// Classifiers leave them out.
    Skip,
}

/// A search file, read.
#[derive(Clone, Debug, PartialEq)]
pub struct Search {
    /// Its name: the beginning of its id.
    pub name: String,
    /// The features topic, unless the settings' own.
    pub topic: Option<String>,
    /// What the leaderboard is sorted by.
    pub objective: Objective,
    /// All chance comes from here and from trials' numbers.
    pub seed: u64,
    /// One in so many records is validation.
    pub validation: u32,
    /// Rows read of each matrix.
    pub rows_max: usize,
    /// What to do without labels.
    pub unlabelled: Unlabelled,
    /// Records of a shuffle window; computed from the range when absent.
    pub window: Option<u32>,
    /// The trials, by number.
    pub trials: Vec<Configuration>,
}

impl Search {
    /// Reads a search file.
    ///
    /// # Errors
    /// Names the first key that is wrong, where it stands and what would be right.
    pub fn parse(text: &str) -> Result<Self, Error> {
        let table: toml::Table = text.parse().map_err(|error: toml::de::Error| Error::Toml(error.to_string()))?;
        let known: Vec<&str> = SEARCH_KEYS.into_iter().chain(trial_keys()).chain(["trial"]).collect();
        refuse_unknown(table.keys(), &known, "the search file")?;
        let top = Section { place: "the search file".into(), table: &table };
        let name: String = top.required("name")?;
        let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        let begins = name.starts_with(|c: char| c.is_ascii_alphanumeric());
        if !begins || name.len() > 100 || !name.chars().all(allowed) {
            return Err(top.invalid(
                "name",
                "must be 1 to 100 letters, digits, `-`, `_` or `.`, the first of them a letter or digit: it becomes \
                 part of group names, and what begins with `-` is an option to every command",
            ));
        }
        let seed: i64 = top.optional("seed")?.unwrap_or(0);
        let mut search = Self {
            name,
            topic: top.optional("topic")?,
            objective: top.optional("objective")?.unwrap_or_default(),
            seed: u64::try_from(seed).map_err(|_| top.invalid("seed", "must not be negative"))?,
            validation: top.optional("validation")?.unwrap_or(10),
            rows_max: top.optional("rows_max")?.unwrap_or(64),
            unlabelled: top.optional("unlabelled")?.unwrap_or(Unlabelled::Refuse),
            window: top.optional("window")?,
            trials: Vec::new(),
        };
        if search.rows_max == 0 || search.window == Some(0) {
            let key = if search.rows_max == 0 { "rows_max" } else { "window" };
            return Err(top.invalid(key, "must be at least 1"));
        }
        let _ = top.optional::<bool>("baseline")?;
        search.trials = search.expand(&table)?;
        Ok(search)
    }

    /// All trials: each `[[trial]]` over the defaults, each list spanned out, the first key varying slowest.
    fn expand(&self, table: &toml::Table) -> Result<Vec<Configuration>, Error> {
        let mut defaults = table.clone();
        for key in SEARCH_KEYS.iter().chain(&["trial"]) {
            drop(defaults.remove(*key));
        }
        let sections: Vec<(String, toml::Table)> = match table.get("trial") {
            // Then the file itself is the only one, and what it says is meant for its model.
            None => vec![("the search file".into(), defaults.clone())],
            Some(toml::Value::Array(tables)) if !tables.is_empty() => tables
                .iter()
                .enumerate()
                .map(|(i, value)| match value {
                    toml::Value::Table(table) => Ok((format!("[[trial]] number {}", i + 1), table.clone())),
                    _ => Err(self.no_tables()),
                })
                .collect::<Result<_, _>>()?,
            Some(_) => return Err(self.no_tables()),
        };
        let mut trials = Vec::new();
        for (place, own) in sections {
            refuse_unknown(own.keys(), &trial_keys(), &place)?;
            let mut merged = defaults.clone();
            merged.extend(own.clone());
            if let Some((key, _)) = merged.iter().find(|(_, value)| value.as_array().is_some_and(Vec::is_empty)) {
                return Err(Error::Invalid { key: key.clone(), place, message: "is an empty list".into() });
            }
            let model: &'static Kind = Section { place: place.clone(), table: &merged }.required("model")?;
            if !model.tasks.contains(&Task::Classification) {
                for key in ["label_smoothing", "class_weights"].into_iter().filter(|key| !own.contains_key(*key)) {
                    drop(merged.remove(key));
                }
            }
            // A default for another model's shape is not meant for this one.
            for key in registry::keys() {
                if model.key(key.name).is_none() && !own.contains_key(key.name) {
                    drop(merged.remove(key.name));
                }
            }
            for point in grid(&merged, is_list) {
                if trials.len() == TRIALS_MAX {
                    return Err(Error::Invalid {
                        key: "trial".into(),
                        place: "the search file".into(),
                        message: format!("spans more than {TRIALS_MAX} trials"),
                    });
                }
                trials.push(self.configuration(&Section { place: place.clone(), table: &point }, model)?);
            }
        }
        if table.get("baseline").and_then(toml::Value::as_bool) == Some(true) {
            trials.push(self.baseline(defaults)?);
        }
        Ok(trials)
    }

    /// A `linear` trial with the defaults of all, the first of each list.
    fn baseline(&self, mut defaults: toml::Table) -> Result<Configuration, Error> {
        let place = "the trial of `baseline = true`".to_owned();
        let _ = defaults.insert("model".into(), linear::KIND.name.into());
        for key in ["initial_weights"].into_iter().chain(registry::keys().iter().map(|key| key.name)) {
            drop(defaults.remove(key));
        }
        let table = grid(&defaults, is_list).next().unwrap_or(defaults.clone());
        self.configuration(&Section { place, table: &table }, &linear::KIND)
    }

    fn no_tables(&self) -> Error {
        Error::Invalid {
            key: "trial".into(),
            place: "the search file".into(),
            message: "must be [[trial]] tables".into(),
        }
    }

    fn configuration(&self, section: &Section<'_>, model: &'static Kind) -> Result<Configuration, Error> {
        let at_least_one = |key: &str, value: u64| match value {
            0 => Err(section.invalid(key, "must be at least 1")),
            value => Ok(value),
        };
        let optimizer: OptimizerName = section.optional("optimizer")?.unwrap_or(OptimizerName::AdamW);
        let parameters = HyperParameters {
            epochs: at_least_one("epochs", section.optional("epochs")?.unwrap_or(5))?,
            batch_size: section.optional("batch_size")?.unwrap_or(64),
            optimizer,
            learning_rate: section.optional("learning_rate")?.unwrap_or(1e-3),
            weight_decay: section.optional("weight_decay")?,
            momentum: section.optional("momentum")?,
            shuffle: section.optional("shuffle")?.unwrap_or(true),
            checkpoint_every: section
                .optional("checkpoint_every")?
                .map(|n| at_least_one("checkpoint_every", n))
                .transpose()?,
            patience: section.optional("patience")?.unwrap_or(0),
            validation: self.validation,
            window: self.window.unwrap_or(0),
            clip_norm: section.optional("clip_norm")?,
            schedule: section.optional("schedule")?.unwrap_or_default(),
            warm_up: section.optional("warm_up")?.unwrap_or(0),
            label_smoothing: section.optional("label_smoothing")?.unwrap_or(0.0),
            class_weights: section.optional("class_weights")?.unwrap_or_default(),
            task: section.task(model)?,
            own: section.own(model)?,
        };
        let _ = at_least_one("batch_size", parameters.batch_size.into())?;
        if parameters.learning_rate <= 0.0 {
            return Err(section.invalid("learning_rate", "must be above 0"));
        }
        if parameters.momentum.is_some() && optimizer != OptimizerName::Sgd {
            return Err(section.invalid("momentum", "belongs to `optimizer = \"sgd\"`"));
        }
        if parameters.clip_norm.is_some_and(|norm| !(norm.is_finite() && norm > 0.0)) {
            return Err(section.invalid("clip_norm", "must be above 0; without the key nothing is shortened"));
        }
        if !(0.0..1.0).contains(&parameters.label_smoothing) {
            return Err(section.invalid("label_smoothing", "must be at least 0 and below 1"));
        }
        if parameters.task(model) != Task::Classification {
            let smoothed = parameters.label_smoothing > 0.0;
            let weighted = parameters.class_weights != ClassWeights::None;
            if let Some((key, _)) =
                [("label_smoothing", smoothed), ("class_weights", weighted)].iter().find(|(_, set)| *set)
            {
                return Err(section.invalid(key, "belongs to `task = \"classify\"`"));
            }
        }
        if parameters.patience > 0 && self.validation == 0 && self.objective != Objective::loss() {
            let message = format!(
                "has nothing to go by: `validation` is 0, and `{}` is measured on the validation split; give \
                 `validation` a number, or let `objective = \"loss\"` decide",
                self.objective.name
            );
            return Err(section.invalid("patience", &message));
        }
        let initial_weights: Option<String> = section.optional("initial_weights")?;
        if initial_weights.as_ref().is_some_and(|path| path.len() > PATH_BYTES_MAX) {
            return Err(section.invalid("initial_weights", &format!("is longer than {PATH_BYTES_MAX} bytes")));
        }
        let configuration = Configuration { model, parameters, initial_weights };
        // Ranges of the rest are the model's and the optimizer's own to know; any data will do for asking them.
        let spec = configuration.parameters.model_spec(model, self.rows_max, 1, 2);
        let checked = spec.check().map_err(|error| error.to_string());
        let checked =
            checked.and_then(|()| configuration.parameters.optimizer_spec().check().map_err(|error| error.to_string()));
        checked.map_err(|message| Error::Invalid {
            key: "settings".into(),
            place: section.place.clone(),
            message: format!("of the trial: {message}"),
        })?;
        Ok(configuration)
    }
}

/// Is the value of this key a list itself?
fn is_list(key: &str) -> bool {
    registry::keys().iter().any(|known| known.name == key && matches!(known.default, Preset::Widths(_)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::models::kind::Value;

    const EXAMPLE: &str = r#"
        name = "genres"
        topic = "features"
        objective = "validation_accuracy"
        seed = 7
        validation = 10
        epochs = 5
        batch_size = 64
        optimizer = "adamw"
        learning_rate = [1e-3, 1e-2]
        rows_max = 64

        [[trial]]
        model = "mlp"
        hidden = [64, 128]

        [[trial]]
        model = "autoencoder"
        layers = [256, 128]
        epochs = 2
    "#;

    #[test]
    fn lists_span_a_grid_in_the_order_of_the_file() {
        let search = Search::parse(EXAMPLE).unwrap();
        let seen: Vec<_> = search
            .trials
            .iter()
            .map(|t| (t.model.name, t.parameters.learning_rate, t.parameters.own.get("hidden"), t.parameters.epochs))
            .collect();
        assert_eq!(
            seen,
            [
                ("mlp", 1e-3, Some(&Value::Count(64)), 5),
                ("mlp", 1e-3, Some(&Value::Count(128)), 5),
                ("mlp", 1e-2, Some(&Value::Count(64)), 5),
                ("mlp", 1e-2, Some(&Value::Count(128)), 5),
                ("autoencoder", 1e-3, None, 2),
                ("autoencoder", 1e-2, None, 2),
            ]
        );
        assert_eq!(search.trials[4].parameters.own["layers"], Value::Widths(vec![256, 128]));
    }

    #[test]
    fn list_valued_keys_span_lists_of_lists() {
        let text = "name = \"a\"\nmodel = \"autoencoder\"\nlayers = [[256, 128], [64]]";
        let search = Search::parse(text).unwrap();
        assert_eq!(search.trials.len(), 2);
        assert_eq!(search.trials[1].parameters.own["layers"], Value::Widths(vec![64]));
    }

    #[test]
    fn mistakes_are_named_with_the_way_out() {
        let error = |text: &str| Search::parse(text).unwrap_err().to_string();
        assert!(error("nam = \"x\"").contains("did you mean `name`"));
        assert!(error("name = \"x\"").contains("`model` is missing"));
        assert!(error("name = \"x\"\nmodel = \"mlp\"\nlayers = [1]").contains("belongs to `model = \"autoencoder\"`"));
        assert!(error("name = \"-x\"\nmodel = \"mlp\"").contains("the first of them a letter or digit"));
        assert!(error("name = \"\"\nmodel = \"mlp\"").contains("`name`"));
        assert!(error("name = \"x/y\"\nmodel = \"mlp\"").contains("`name`"));
        assert!(error("name = \"x\"\nmodel = \"mpl\"").contains("model"));
        assert!(error("name = \"x\"\nmodel = \"mlp\"\nlearning_rate = \"fast\"").contains("learning_rate"));
        assert!(error("name = \"x\"\nmodel = \"mlp\"\nepochs = 0").contains("at least 1"));
        assert!(error("name = \"x\"\nmodel = \"mlp\"\ndropout = 1.5").contains("dropout"));
        assert!(error("name = \"x\"\nmodel = \"mlp\"\n[[trial]]\nhiden = 3").contains("did you mean `hidden`"));
        assert!(error("name = \"x\"\nmodel = \"mlp\"\nseed = -1").contains("seed"));
        assert!(error("name = \"x\"\nmodel = \"mlp\"\nlearning_rate = []").contains(
            "`learning_rate` is an empty \
            list"
        ));
        assert!(error("name = \"x\"\nmodel = \"autoencoder\"\nlayers = []").contains("`layers` is an empty list"));
        assert!(error("name = [").contains("not TOML"));
    }

    #[test]
    fn patience_needs_something_to_go_by() {
        let patience = |text: &str| {
            let search = Search::parse(&format!("name = \"x\"\nmodel = \"mlp\"\n{text}"));
            let trials = search.map_err(|error| error.to_string())?.trials;
            Ok::<_, String>(trials.iter().map(|trial| trial.parameters.patience).collect::<Vec<u64>>())
        };
        assert_eq!(patience(""), Ok(vec![0]));
        assert_eq!(patience("patience = [0, 3]"), Ok(vec![0, 3]));
        assert_eq!(patience("patience = 3\nvalidation = 0\nobjective = \"loss\""), Ok(vec![3]));
        assert_eq!(patience("patience = 0\nvalidation = 0"), Ok(vec![0]));
        let refused = patience("patience = [0, 3]\nvalidation = 0").unwrap_err();
        for wanted in ["the search file: `patience`", "`validation_loss`", "give `validation` a number", "= \"loss\""] {
            assert!(refused.contains(wanted), "{refused}");
        }
        assert!(patience("patience = -1").unwrap_err().contains("`patience`"));
    }
}
