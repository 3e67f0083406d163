//! All kinds of models: a further one is a file and a line here, or one of a user's own. \[pure\]
//!
//! Search files, their errors, the reference of their keys, tables and pictures read this list; nothing else knows a
//! kind by its name.

use std::sync::{Mutex, OnceLock, PoisonError};

use serde::de::Error as _;
use serde::{Deserialize, Deserializer};

use super::kind::{Key, Kind};
use super::{attention, autoencoder, cnn, linear, mlp, recurrent};
use crate::text::{one_of, shortened};

/// Those that are built in, in the order of the reference.
pub static KINDS: [&Kind; 7] =
    [&attention::KIND, &autoencoder::KIND, &cnn::KIND, &recurrent::GRU, &linear::KIND, &recurrent::LSTM, &mlp::KIND];

/// All that this process has.
struct Registry {
    kinds: Vec<&'static Kind>,
    names: Vec<&'static str>,
}

static REGISTRY: OnceLock<Registry> = OnceLock::new();

impl Registry {
    fn new(own: &[&'static Kind]) -> Self {
        let kinds: Vec<&'static Kind> = KINDS.iter().chain(own).copied().collect();
        Self { names: kinds.iter().map(|kind| kind.name).collect(), kinds }
    }
}

/// Why kinds of one's own cannot be taken in.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    #[error(
        "the name `{0}` of a model is not made of 1 to 40 lower-case letters, digits, `-` and `_`, a letter first"
    )]
    Name(&'static str),
    #[error("there are two models named `{0}`; give yours another name")]
    Twice(&'static str),
    #[error("model `{model}`: its key `{key}` means something else for search files; give it another name")]
    Key { model: &'static str, key: &'static str },
    #[error("models are registered before anything else is done with the library, and all at once")]
    Late,
}

/// Takes in kinds of a user's own. `reserved` are the keys that search files have already.
///
/// # Errors
/// Names the kind that cannot be; none is taken in then.
pub fn register(own: &[&'static Kind], reserved: &[&str]) -> Result<(), Error> {
    let registry = Registry::new(own);
    for (place, kind) in own.iter().enumerate() {
        if !is_name(kind.name) {
            return Err(Error::Name(kind.name));
        }
        if registry.names[..KINDS.len() + place].contains(&kind.name) {
            return Err(Error::Twice(kind.name));
        }
        for key in kind.keys {
            // One key has one type, or a default above `[[trial]]` could not be meant for several kinds.
            let differs = |known: &&Key| std::mem::discriminant(&known.default) != std::mem::discriminant(&key.default);
            let mut known = registry.kinds.iter().filter_map(|kind| kind.key(key.name));
            if reserved.contains(&key.name) || known.any(|known| differs(&known)) {
                return Err(Error::Key { model: kind.name, key: key.name });
            }
        }
    }
    let known = REGISTRY.get_or_init(|| registry);
    // Tests of a user's crate register in each test.
    let all = own.iter().all(|kind| known.names[KINDS.len()..].contains(&kind.name));
    if all {
        Ok(())
    } else {
        Err(Error::Late)
    }
}

/// The kinds that this process has.
#[must_use]
pub fn kinds() -> &'static [&'static Kind] {
    &REGISTRY.get_or_init(|| Registry::new(&[])).kinds
}

/// Their names.
#[must_use]
pub fn names() -> &'static [&'static str] {
    &REGISTRY.get_or_init(|| Registry::new(&[])).names
}

/// The kind of that name.
#[must_use]
pub fn find(name: &str) -> Option<&'static Kind> {
    kinds().iter().copied().find(|kind| kind.name == name)
}

/// Every hyper-parameter that some kind has of its own, each name once.
#[must_use]
pub fn keys() -> Vec<&'static Key> {
    let mut keys: Vec<&Key> = Vec::new();
    for key in kinds().iter().flat_map(|kind| kind.keys) {
        if !keys.iter().any(|known| known.name == key.name) {
            keys.push(key);
        }
    }
    keys
}

/// Most kinds that are only known by name; each is there for good.
const ABSENT_MAX: usize = 256;

/// Reads the kind of a trial, which may be one that this process does not have: it then stands for its name alone (see
/// [`is_absent`]).
///
/// # Errors
/// A name that no kind can have, and too many that no kind here has.
pub fn present_or_absent<'de, D: Deserializer<'de>>(deserializer: D) -> Result<&'static Kind, D::Error> {
    static ABSENT: Mutex<Vec<&'static Kind>> = Mutex::new(Vec::new());
    let name = String::deserialize(deserializer)?;
    let mut absent = ABSENT.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(kind) = find(&name).or_else(|| absent.iter().copied().find(|kind| kind.name == name)) {
        return Ok(kind);
    }
    if !is_name(&name) || absent.len() == ABSENT_MAX {
        return Err(D::Error::unknown_variant(&shortened(&name), names()));
    }
    let kind: &'static Kind = Box::leak(Box::new(Kind::absent(name.leak())));
    absent.push(kind);
    Ok(kind)
}

/// Is the kind only known by name?
#[must_use]
pub fn is_absent(kind: &Kind) -> bool {
    find(kind.name).is_none()
}

fn is_name(name: &str) -> bool {
    let fits = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '-' | '_');
    name.starts_with(|c: char| c.is_ascii_lowercase()) && name.len() <= 40 && name.chars().all(fits)
}

impl<'de> Deserialize<'de> for &'static Kind {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let name = one_of(deserializer, names())?;
        find(&name).ok_or_else(|| D::Error::unknown_variant(&name, names()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::models::kind::{Preset, HIDDEN};

    #[test]
    fn a_kind_that_is_not_here_is_known_by_name_as_long_as_it_is_one() {
        let read = |name: &str| present_or_absent(serde_json::Value::from(name));
        let absent = read("weighed").unwrap();
        assert!(is_absent(absent) && !is_absent(read("mlp").unwrap()));
        assert!(std::ptr::eq(absent, read("weighed").unwrap()));
        let shape = crate::models::kind::Shape { rows_max: 1, dim: 1, classes: 1 };
        let spec =
            crate::models::kind::ModelSpec { kind: absent, task: absent.tasks[0], values: Default::default(), shape };
        assert!(spec.check().unwrap_err().to_string().contains("`weighed`"));
        assert!(read("Weighed").is_err() && read(&"w".repeat(41)).is_err() && read("").is_err());
    }

    fn named(name: &'static str, keys: &'static [Key]) -> &'static Kind {
        Box::leak(Box::new(Kind { name, keys, ..linear::KIND }))
    }

    #[test]
    fn a_kind_that_would_be_mistaken_for_another_is_refused() {
        static WRONG: [Key; 1] = [Key { default: Preset::Flag(false), ..HIDDEN }];
        static TAKEN: [Key; 1] = [Key { name: "epochs", ..HIDDEN }];
        let refused = |own: &[&'static Kind]| register(own, &["epochs"]).unwrap_err();
        assert_eq!(refused(&[named("Mine", &[])]), Error::Name("Mine"));
        assert_eq!(refused(&[named("mlp", &[])]), Error::Twice("mlp"));
        assert_eq!(refused(&[named("mine", &[]), named("mine", &[])]), Error::Twice("mine"));
        assert_eq!(refused(&[named("mine", &WRONG)]), Error::Key { model: "mine", key: "hidden" });
        assert_eq!(refused(&[named("mine", &TAKEN)]), Error::Key { model: "mine", key: "epochs" });
        assert!(!names().contains(&"mine"));
        assert_eq!(refused(&[named("mine", &[])]), Error::Late);
        assert_eq!(register(&[], &[]), Ok(()));
    }
}
