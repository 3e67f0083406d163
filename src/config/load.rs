//! Where settings come from: defaults < file < environment < flags.

use std::path::Path;

use figment::error::Kind;
use figment::providers::{Format, Serialized, Toml};
use figment::value::{Dict, Map, Value};
use figment::{Figment, Metadata, Profile, Provider};

use super::{words, Error, Settings, ENV_PREFIX};
use crate::text::{nearest, shortened};

impl Settings {
    /// Layers defaults, the file (when given), the environment and `flags`, then checks relations.
    ///
    /// # Errors
    /// Names the first key that is unknown, has a wrong value, or does not fit another.
    pub fn load(file: Option<&Path>, flags: &[(String, String)]) -> Result<Self, Error> {
        // Of others' variables nothing is asked, not even that they are text.
        let ours = std::env::vars_os().filter(|(name, _)| name.as_encoded_bytes().starts_with(ENV_PREFIX.as_bytes()));
        let environment: Vec<(String, String)> = ours
            .map(|(name, value)| {
                let not_text = |key: String| Error::Invalid {
                    key,
                    place: "the environment".into(),
                    message: "is not valid UTF-8".into(),
                };
                let name = name.into_string().map_err(|name| not_text(name.to_string_lossy().into_owned()))?;
                let value = value.into_string().map_err(|_| not_text(name.clone()))?;
                Ok((name, value))
            })
            .collect::<Result<_, Error>>()?;
        Self::layered(file, environment, flags)
    }

    /// [`Settings::load`] over an explicit environment.
    pub fn layered(
        file: Option<&Path>,
        environment: impl IntoIterator<Item = (String, String)>,
        flags: &[(String, String)],
    ) -> Result<Self, Error> {
        let mut figment = Figment::from(Serialized::defaults(Settings::default()));
        if let Some(path) = file {
            let text =
                std::fs::read_to_string(path).map_err(|source| Error::File { path: path.to_path_buf(), source })?;
            figment = figment.merge(Named {
                name: path.display().to_string(),
                dict: Toml::string(&text)
                    .data()
                    .map_err(|error| from_figment(error, &path.display().to_string(), None))?
                    .remove(&Profile::Default)
                    .unwrap_or_default(),
            });
        }
        let dict = environment_dict(environment)?;
        figment = figment.merge(Named { name: "the environment".into(), dict });
        figment = figment.merge(Named { name: "`--set`".into(), dict: flag_dict(flags) });
        let mut settings: Settings = figment.extract().map_err(|error| {
            let names = names_at(&figment, &error.path);
            from_figment(error, "the settings", names)
        })?;
        settings.read_property_files()?;
        settings.check()?;
        Ok(settings)
    }
}

/// A provider with a name of its own, so that errors can say where a value came from.
struct Named {
    name: String,
    dict: Dict,
}

impl Provider for Named {
    fn metadata(&self) -> Metadata {
        Metadata::named(self.name.clone())
    }

    fn data(&self) -> Result<Map<Profile, Dict>, figment::Error> {
        Ok(Profile::Default.collect(self.dict.clone()))
    }
}

/// Settings outside any section: their variables have no `__` in their names.
const TOP_LEVEL: &[&str] = &["application_id"];
/// Variables of ours that are not settings.
const NOT_SETTINGS: &[&str] = &["config", "parts", "peers", "peers_python", "bench_json"];

/// More than any setting's name has; what is deeper costs more than it is worth.
const PATH_SEGMENTS_MAX: usize = 8;

/// What an environment variable with our prefix is.
#[derive(Debug, PartialEq, Eq)]
enum Variable<'n> {
    /// A setting by its path, perhaps one that there is not.
    Setting(Vec<&'n str>),
    /// Ours, and no setting.
    NoSetting,
    /// Nearly a setting: the name that was meant.
    Misspelt(String),
    /// Somebody else's: container platforms inject variables such as SWEEPSTREAM_SERVICE_HOST.
    Unknown,
}

impl<'n> Variable<'n> {
    /// By its name after the prefix, in lower case.
    fn of(key: &'n str) -> Self {
        // Whoever writes too few or too many underscores means the setting that has the same words.
        let words = |key: &str| key.split('_').filter(|word| !word.is_empty()).collect::<Vec<_>>().join("_");
        let path: Vec<&str> = key.split("__").collect();
        let names = setting_names();
        if names.iter().any(|name| name == key) || matches!(path[..], ["kafka", "properties", _]) {
            return Self::Setting(path);
        }
        if NOT_SETTINGS.contains(&key) {
            return Self::NoSetting;
        }
        let meant = words(key);
        if let Some(name) = names.iter().find(|name| words(name) == meant) {
            return Self::Misspelt(name.clone());
        }
        if let Some(property) = meant.strip_prefix("kafka_properties_") {
            return Self::Misspelt(format!("kafka__properties__{property}"));
        }
        match path[..] {
            [single] => nearest(single, TOP_LEVEL).map_or(Self::Unknown, |near| Self::Misspelt(near.to_owned())),
            _ => Self::Setting(path),
        }
    }
}

/// The name of each setting, as its variable has it after the prefix, in lower case.
fn setting_names() -> Vec<String> {
    let defaults = Value::serialize(Settings::default()).ok();
    let sections = defaults.and_then(Value::into_dict).unwrap_or_default();
    let names = sections.into_iter().flat_map(|(section, value)| match value {
        Value::Dict(_, keys) => keys.into_keys().map(|key| format!("{section}__{key}")).collect(),
        _ => vec![section],
    });
    names.collect()
}

/// Of these names of environment variables, those that have our prefix and mean nothing to us.
pub fn unknown_variables(names: impl IntoIterator<Item = String>) -> Vec<String> {
    let unknown = |name: &String| {
        let key = name.strip_prefix(ENV_PREFIX).map(str::to_ascii_lowercase);
        key.is_some_and(|key| Variable::of(&key) == Variable::Unknown)
    };
    names.into_iter().filter(unknown).collect()
}

fn environment_dict(environment: impl IntoIterator<Item = (String, String)>) -> Result<Dict, Error> {
    let mut dict = Dict::new();
    let refused =
        |name: &str, hint: String| Error::UnknownKey { key: shortened(name), place: "the environment".into(), hint };
    for (name, value) in environment {
        let Some(key) = name.strip_prefix(ENV_PREFIX) else { continue };
        let key = key.to_ascii_lowercase();
        let path = match Variable::of(&key) {
            Variable::Setting(path) => path,
            Variable::NoSetting | Variable::Unknown => continue,
            Variable::Misspelt(meant) => {
                let meant = meant.to_ascii_uppercase();
                return Err(refused(&name, format!("; did you mean `{ENV_PREFIX}{meant}`?")));
            }
        };
        match path.as_slice() {
            [single] => insert(&mut dict, &[single], Value::from(value)),
            ["kafka", "properties", property] => {
                let path = ["kafka", "properties", &property.replace('_', ".")];
                insert(&mut dict, &path, typed(&path, &value));
            }
            path if path.len() > PATH_SEGMENTS_MAX => {
                return Err(refused(&name, format!("; names are {ENV_PREFIX}<SECTION>__<KEY>")));
            }
            _ => insert(&mut dict, &path, typed(&path, &value)),
        }
    }
    Ok(dict)
}

/// `section.key` → text, as a dictionary.
fn flag_dict(flags: &[(String, String)]) -> Dict {
    let mut dict = Dict::new();
    for (key, value) in flags {
        // A librdkafka property has dots of its own.
        let path: Vec<&str> = key.splitn(3, '.').collect();
        insert(&mut dict, &path, typed(&path, value));
    }
    dict
}

/// Settings that are text, and absent by default.
const OPTIONAL_TEXT: [[&str; 2]; 4] =
    [["kafka", "group_instance_id"], ["topics", "dir"], ["embed", "model_dir"], ["http", "address"]];

/// What a text from outside is as the value of a setting: text stays as it is ("007" is no 7), the rest is parsed.
fn typed(path: &[&str], value: &str) -> Value {
    let is_text = || {
        let defaults = Value::serialize(Settings::default()).ok();
        let default = defaults.and_then(|defaults| defaults.find(&path.join(".")));
        default.is_some_and(|default| default.as_str().is_some())
    };
    if path.starts_with(&["kafka", "properties"]) || OPTIONAL_TEXT.iter().any(|text| text == path) || is_text() {
        Value::from(value)
    } else {
        // figment's own parser stumbles over some escapes.
        match value.trim().parse::<toml::Value>() {
            Ok(toml::Value::Datetime(_)) | Err(_) => Value::from(value),
            Ok(parsed) => Value::serialize(parsed).unwrap_or_else(|_| Value::from(value)),
        }
    }
}

fn insert(dict: &mut Dict, path: &[&str], value: Value) {
    match path {
        [] => {}
        [last] => {
            let _ = dict.insert((*last).to_owned(), value);
        }
        [first, rest @ ..] => {
            let entry = dict.entry((*first).to_owned()).or_insert_with(|| Value::from(Dict::new()));
            if let Value::Dict(_, inner) = entry {
                insert(inner, rest, value);
            }
        }
    }
}

/// The names of which the setting at a path is one: asked for by a name that none has.
fn names_at(figment: &Figment, path: &[String]) -> Option<words::Names> {
    let (mut dict, path) = (Dict::new(), path.iter().map(String::as_str).collect::<Vec<_>>());
    insert(&mut dict, &path, Value::from(""));
    match figment.clone().merge(Named { name: String::new(), dict }).extract::<Settings>() {
        Err(figment::Error { kind: Kind::UnknownVariant(_, names), .. }) => Some(names),
        _ => None,
    }
}

fn from_figment(error: figment::Error, fallback: &str, names: Option<words::Names>) -> Error {
    let place = error.metadata.as_ref().map_or_else(|| fallback.to_owned(), |metadata| metadata.name.to_string());
    let path = error.path.join(".");
    match &error.kind {
        Kind::UnknownField(field, known) => {
            let section = path.strip_suffix(field.as_str()).unwrap_or(&path).trim_end_matches('.');
            let dot = if section.is_empty() { "" } else { "." };
            let hint = match nearest(field, known) {
                Some(near) => format!("; did you mean `{section}{dot}{near}`?"),
                None => format!("; known here: {}", known.join(", ")),
            };
            Error::UnknownKey { key: format!("{section}{dot}{field}"), place, hint }
        }
        _ => Error::Invalid {
            key: if path.is_empty() { "(file)".into() } else { path },
            place,
            message: words::misfit(&error, || names).message,
        },
    }
}
