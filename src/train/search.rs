//! A search file → the configurations of its trials. Pure.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::fit::Fit;
use super::optimizer::{OptimizerSpec, Rule};
use crate::config::words::{self, Misfit};
use crate::features::range::Survey;
use crate::models::kind::{Kind, ModelSpec, Preset, Shape, Value, Values};
use crate::models::registry;
use crate::output::Objective;
use crate::text::{nearest, shortened};

/// Most trials of one search.
pub const TRIALS_MAX: usize = 10_000;
/// Records of a shuffle window, unless their matrices are large.
const WINDOW_RECORDS: u64 = 8192;
/// Bytes of matrices that a default window holds, at most.
const WINDOW_BYTES: u64 = 256 * 1024 * 1024;

/// Longest path of a file, as Linux has it; each trial keeps its own.
const PATH_BYTES_MAX: usize = 4096;

/// Keys that belong to the search as a whole.
const SEARCH_KEYS: [&str; 8] = ["name", "topic", "objective", "seed", "validation", "rows_max", "unlabelled", "window"];
/// Keys that belong to a trial, whatever its model is; outside `[[trial]]` they are defaults of all.
const TRIAL_KEYS: [&str; 10] = [
    "model",
    "epochs",
    "batch_size",
    "optimizer",
    "learning_rate",
    "weight_decay",
    "momentum",
    "shuffle",
    "initial_weights",
    "checkpoint_every",
];

/// Those, and the models' own.
fn trial_keys() -> Vec<&'static str> {
    TRIAL_KEYS.into_iter().chain(registry::keys().iter().map(|key| key.name)).collect()
}

/// Why a search file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Not TOML.
    #[error("the search file is not TOML: {0}")]
    Toml(String),
    /// A key that means nothing here.
    #[error("unknown key `{key}` in {place}{hint}")]
    UnknownKey {
        /// The key.
        key: String,
        /// Where it stands.
        place: String,
        /// What was probably meant.
        hint: String,
    },
    /// A value that cannot be.
    #[error("{place}: `{key}` {message}")]
    Invalid {
        /// The key.
        key: String,
        /// Where it stands.
        place: String,
        /// What is wrong.
        message: String,
    },
    /// The features do not fit the search.
    #[error("{0}")]
    Data(String),
}

/// Which rule updates the weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OptimizerName {
    /// AdamW.
    AdamW,
    /// SGD, with momentum if set.
    Sgd,
    /// RMSprop.
    RmsProp,
}

/// The hyper-parameters of one trial, as they are stored with it.
///
/// Stored flat: a record has the model's own beside those of all trials, and [`Kind::settle`] tells what is neither.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Parameters {
    /// Passes over the training split.
    pub epochs: u64,
    /// Records of a step.
    pub batch_size: u32,
    /// Update rule.
    pub optimizer: OptimizerName,
    /// Step size.
    pub learning_rate: f64,
    /// Pull towards zero; the rule's default when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub weight_decay: Option<f64>,
    /// SGD: share of the last step that is kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub momentum: Option<f64>,
    /// Records are shuffled within windows.
    pub shuffle: bool,
    /// Steps between checkpoints within an epoch.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub checkpoint_every: Option<u64>,
    /// One in so many records is validation; 0 for none.
    pub validation: u32,
    /// Records of a shuffle window.
    pub window: u32,
    /// The model's own.
    #[serde(flatten)]
    pub own: Values,
}

/// One trial as the search file describes it.
#[derive(Clone, Debug, PartialEq)]
pub struct Configuration {
    /// What it computes.
    pub model: &'static Kind,
    /// With which hyper-parameters.
    pub parameters: Parameters,
    /// File with the weights to start from.
    pub initial_weights: Option<String>,
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
                "must be 1 to 100 letters, digits, `-`, `_` or `.`, the first of them a letter or digit: it becomes part of group names, and what begins with `-` is an option to every command",
            ));
        }
        let seed: i64 = top.optional("seed")?.unwrap_or(0);
        let mut search = Self {
            name,
            topic: top.optional("topic")?,
            objective: top.optional("objective")?.unwrap_or(Objective::ValidationLoss),
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
            // A default for another model's shape is not meant for this one.
            for key in registry::keys() {
                if model.key(key.name).is_none() && !own.contains_key(key.name) {
                    drop(merged.remove(key.name));
                }
            }
            for point in grid(&merged) {
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
        Ok(trials)
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
        let parameters = Parameters {
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
            validation: self.validation,
            window: self.window.unwrap_or(0),
            own: section.own(model)?,
        };
        let _ = at_least_one("batch_size", parameters.batch_size.into())?;
        if parameters.learning_rate <= 0.0 {
            return Err(section.invalid("learning_rate", "must be above 0"));
        }
        if parameters.momentum.is_some() && optimizer != OptimizerName::Sgd {
            return Err(section.invalid("momentum", "belongs to `optimizer = \"sgd\"`"));
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
        let classifiers = self.trials.iter().any(|trial| trial.model.task.needs_labels());
        if classifiers && survey.labels.is_empty() {
            return Err(Error::Data(format!("no record of topic `{topic}` has a `label` header, so no classifier can be trained; label the texts, or train an autoencoder")));
        }
        if classifiers && survey.unlabelled > 0 && self.unlabelled == Unlabelled::Refuse {
            let (partition, offset) = survey.first_unlabelled.unwrap_or_default();
            return Err(Error::Data(format!(
                "{} of {} records of topic `{topic}` have no `label` header (the first at {topic}/{partition} offset {offset}); `unlabelled = \"skip\"` in the search file trains classifiers without them",
                survey.unlabelled, survey.records()
            )));
        }
        if let (true, Some(warning)) = (classifiers, one_class(survey.labels.keys())) {
            warnings.push(warning);
        }
        if self.validation > 0 && survey.validation == 0 {
            warnings.push(format!(
                "no record falls into the validation split (1 in {}); there will be no validation values",
                self.validation
            ));
        }
        if survey.validation == survey.records() {
            return Err(Error::Data(format!(
                "all {} records of topic `{topic}` fall into the validation split; raise `validation` or set it to 0",
                survey.records()
            )));
        }
        if self.validation == 0 && self.objective != Objective::Loss {
            warnings.push(format!(
                "there is no validation split, so the leaderboard goes by loss instead of {}",
                self.objective.name()
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
        for trial in &mut self.trials {
            trial.parameters.window = self.window.unwrap_or(window);
        }
        Ok(warnings)
    }
}

impl Parameters {
    /// The model that these parameters describe.
    pub fn model_spec(&self, kind: &'static Kind, rows_max: usize, dim: usize, classes: usize) -> ModelSpec {
        ModelSpec { kind, values: self.own.clone(), shape: Shape { rows_max, dim, classes } }
    }

    /// The optimizer that these parameters describe.
    pub fn optimizer_spec(&self) -> OptimizerSpec {
        let rule = match self.optimizer {
            OptimizerName::AdamW => Rule::ADAMW,
            OptimizerName::Sgd => Rule::Sgd { momentum: self.momentum.unwrap_or(0.0) },
            OptimizerName::RmsProp => Rule::RMSPROP,
        };
        let weight_decay = self.weight_decay.unwrap_or_else(|| rule.default_weight_decay());
        OptimizerSpec { rule, learning_rate: self.learning_rate, weight_decay }
    }
}

/// Checks a file of weights against a trial and returns a state to begin from.
///
/// # Errors
/// Names the parameter that is missing, too many, or of another shape.
pub fn initial_state(
    spec: ModelSpec,
    optimizer: OptimizerSpec,
    seed: u64,
    number: u32,
    weights: &[u8],
) -> Result<Vec<u8>, super::fit::FitError> {
    let mut fit = Fit::new(spec, optimizer, seed, number)?;
    fit.load_parameters(weights)?;
    fit.state()
}

/// A table and where it stands.
struct Section<'t> {
    place: String,
    table: &'t toml::Table,
}

impl Section<'_> {
    fn optional<T: serde::de::DeserializeOwned>(&self, key: &str) -> Result<Option<T>, Error> {
        let Some(value) = self.table.get(key) else { return Ok(None) };
        // `1` is a fine learning rate.
        let as_float = value.as_integer().map(|integer| toml::Value::Float(integer as f64));
        let parsed =
            words::read(value).or_else(|misfit| as_float.and_then(|value| words::read(&value).ok()).ok_or(misfit));
        parsed.map(Some).map_err(|Misfit { path, message }| {
            // An element of a list, say.
            let within = if path.is_empty() { String::new() } else { format!("is {value}, of which one ") };
            self.invalid(key, &shortened(&format!("{within}{message}")))
        })
    }

    /// The hyper-parameters that a model has of its own.
    fn own(&self, model: &'static Kind) -> Result<Values, Error> {
        for key in registry::keys() {
            if model.key(key.name).is_none() && self.table.contains_key(key.name) {
                let others: Vec<String> = registry::KINDS
                    .iter()
                    .filter(|kind| kind.key(key.name).is_some())
                    .map(|kind| format!("`model = \"{}\"`", kind.name))
                    .collect();
                return Err(self.invalid(key.name, &format!("belongs to {}", others.join(" or "))));
            }
        }
        let mut own = Values::new();
        for key in model.keys {
            let value = match key.default {
                Preset::Count(_) => self.optional(key.name)?.map(Value::Count),
                Preset::Share(_) => self.optional(key.name)?.map(Value::Share),
                Preset::Widths(_) => self.optional(key.name)?.map(Value::Widths),
            };
            drop(own.insert(key.name.to_owned(), value.unwrap_or_else(|| key.default.value())));
        }
        Ok(own)
    }

    fn required<T: serde::de::DeserializeOwned>(&self, key: &str) -> Result<T, Error> {
        self.optional(key)?.ok_or_else(|| self.invalid(key, "is missing"))
    }

    fn invalid(&self, key: &str, message: &str) -> Error {
        Error::Invalid { key: key.to_owned(), place: self.place.clone(), message: message.to_owned() }
    }
}

fn refuse_unknown<'k>(keys: impl Iterator<Item = &'k String>, known: &[&str], place: &str) -> Result<(), Error> {
    for key in keys {
        if !known.contains(&key.as_str()) {
            let hint = match nearest(key, known) {
                Some(near) => format!("; did you mean `{near}`?"),
                None => format!("; known here: {}", known.join(", ")),
            };
            return Err(Error::UnknownKey { key: key.clone(), place: place.to_owned(), hint });
        }
    }
    Ok(())
}

/// Every combination of the values that are lists, one after another; for list-valued keys, of lists of lists.
fn grid(table: &toml::Table) -> impl Iterator<Item = toml::Table> + '_ {
    let axes: Vec<(&String, &[toml::Value])> = table
        .iter()
        .map(|(key, value)| match value {
            toml::Value::Array(values) if !is_list(key) || values.iter().all(toml::Value::is_array) => {
                (key, values.as_slice())
            }
            value => (key, std::slice::from_ref(value)),
        })
        .collect();
    let points = axes.iter().fold(1_usize, |points, (_, values)| points.saturating_mul(values.len()));
    (0..points).map(move |mut point| {
        // The last key varies fastest.
        let chosen = axes.iter().rev().map(|(key, values)| {
            let value = &values[point % values.len()];
            point /= values.len();
            ((*key).clone(), value.clone())
        });
        chosen.collect()
    })
}

/// Is the value of this key a list itself?
fn is_list(key: &str) -> bool {
    registry::keys().iter().any(|known| known.name == key && matches!(known.default, Preset::Widths(_)))
}

/// What to tell of a search for classes that has only one.
pub fn one_class<'l>(mut labels: impl ExactSizeIterator<Item = &'l String>) -> Option<String> {
    let label = labels.next().filter(|_| labels.len() == 0)?;
    Some(format!(
        "all labels are `{}`: with one class every classifier has an accuracy of 1.0, whatever it learns; give the texts the labels they should be told apart by",
        shortened(label)
    ))
}

/// A number as people would write it.
fn number(value: f64) -> String {
    if (1e-4..1e4).contains(&value.abs()) {
        value.to_string()
    } else {
        format!("{value:e}")
    }
}

/// A short summary of what distinguishes a trial, for tables: sizes of the model are its `shape`.
pub fn summary(model: &'static Kind, parameters: &Parameters) -> BTreeMap<&'static str, String> {
    let mut summary = BTreeMap::from([
        ("model", model.name.to_owned()),
        ("learning_rate", number(parameters.learning_rate)),
        ("batch_size", parameters.batch_size.to_string()),
        ("optimizer", format!("{:?}", parameters.optimizer).to_lowercase()),
    ]);
    let mut sizes = Vec::new();
    for key in model.keys {
        match parameters.own.get(key.name) {
            Some(size @ (Value::Count(_) | Value::Widths(_))) => sizes.push(size.to_string()),
            Some(value) if *value != key.default.value() => drop(summary.insert(key.name, value.to_string())),
            _ => {}
        }
    }
    if !sizes.is_empty() {
        drop(summary.insert("shape", sizes.join("/")));
    }
    summary
}

#[cfg(test)]
mod tests {
    use super::*;

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
        assert!(error("name = \"x\"\nmodel = \"mlp\"\nlearning_rate = []").contains("`learning_rate` is an empty list"));
        assert!(error("name = \"x\"\nmodel = \"autoencoder\"\nlayers = []").contains("`layers` is an empty list"));
        assert!(error("name = [").contains("not TOML"));
    }
}
