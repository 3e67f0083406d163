//! A table of a search file: its keys, their types, and what is wrong with them. \[pure\]

use crate::config::words::{self, Misfit};
use crate::models::kind::{Kind, Preset, Task, Value, Values};
use crate::models::registry;
use crate::text::{nearest, shortened};

/// Why a search file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Not TOML.
    #[error("the search file is not TOML: {0}")]
    Toml(String),
    /// A key that means nothing here.
    #[error("unknown key `{key}` in {place}{hint}")]
    UnknownKey { key: String, place: String, hint: String },
    /// A value that cannot be.
    #[error("{place}: `{key}` {message}")]
    Invalid { key: String, place: String, message: String },
    /// The features do not fit the search.
    #[error("{0}")]
    Data(String),
}

/// A table and where it stands.
pub struct Section<'t> {
    /// As errors call it.
    pub place: String,
    pub table: &'t toml::Table,
}

impl Section<'_> {
    /// A value, if the key is there.
    ///
    /// # Errors
    /// Says what the value should be.
    pub fn optional<T: serde::de::DeserializeOwned>(&self, key: &str) -> Result<Option<T>, Error> {
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

    /// What a model is to learn, unless that is what it learns anyway.
    ///
    /// # Errors
    /// Names what the model can learn.
    pub fn task(&self, model: &'static Kind) -> Result<Option<Task>, Error> {
        let Some(task) = self.optional::<Task>("task")? else { return Ok(None) };
        if !model.tasks.contains(&task) {
            let known: Vec<String> = model.tasks.iter().map(|task| format!("`{}`", task.name())).collect();
            return Err(self.invalid("task", &format!("of model `{}` can be {}", model.name, known.join(" or "))));
        }
        Ok(Some(task).filter(|task| *task != model.tasks[0]))
    }

    /// The hyper-parameters that a model has of its own.
    ///
    /// # Errors
    /// Names a key of another model, and a value of another type.
    pub fn own(&self, model: &'static Kind) -> Result<Values, Error> {
        for key in registry::keys() {
            if model.key(key.name).is_none() && self.table.contains_key(key.name) {
                let others: Vec<String> = registry::kinds()
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
                Preset::Flag(_) => self.optional(key.name)?.map(Value::Flag),
                Preset::Choice(_) => self.optional(key.name)?.map(Value::Choice),
            };
            drop(own.insert(key.name.to_owned(), value.unwrap_or_else(|| key.default.value())));
        }
        Ok(own)
    }

    /// A value that must be there.
    ///
    /// # Errors
    /// As [`Section::optional`], and when it is missing.
    pub fn required<T: serde::de::DeserializeOwned>(&self, key: &str) -> Result<T, Error> {
        self.optional(key)?.ok_or_else(|| self.invalid(key, "is missing"))
    }

    /// An error about a key.
    pub fn invalid(&self, key: &str, message: &str) -> Error {
        Error::Invalid { key: key.to_owned(), place: self.place.clone(), message: message.to_owned() }
    }
}

/// Makes sure that only known keys are there.
///
/// # Errors
/// Names the first other key, and the nearest that is known.
pub fn refuse_unknown<'k>(keys: impl Iterator<Item = &'k String>, known: &[&str], place: &str) -> Result<(), Error> {
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
