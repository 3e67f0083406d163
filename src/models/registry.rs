//! All kinds of models: a further one is a file and a line here. \[pure\]
//!
//! Search files, their errors, the reference of their keys, tables and pictures read this list; nothing else knows a
//! kind by its name.

use serde::de::Error as _;
use serde::{Deserialize, Deserializer};

use super::kind::{Key, Kind};
use super::{attention, autoencoder, cnn, linear, mlp, recurrent};
use crate::text::one_of;

/// In the order of the reference.
pub static KINDS: [&Kind; 7] =
    [&attention::KIND, &autoencoder::KIND, &cnn::KIND, &recurrent::GRU, &linear::KIND, &recurrent::LSTM, &mlp::KIND];

/// Their names.
pub static NAMES: [&str; KINDS.len()] = {
    let mut names = [""; KINDS.len()];
    let mut place = 0;
    while place < names.len() {
        names[place] = KINDS[place].name;
        place += 1;
    }
    names
};

/// The kind of that name.
#[must_use]
pub fn find(name: &str) -> Option<&'static Kind> {
    KINDS.into_iter().find(|kind| kind.name == name)
}

/// Every hyper-parameter that some kind has of its own, each name once.
#[must_use]
pub fn keys() -> Vec<&'static Key> {
    let mut keys: Vec<&Key> = Vec::new();
    for key in KINDS.iter().flat_map(|kind| kind.keys) {
        if !keys.iter().any(|known| known.name == key.name) {
            keys.push(key);
        }
    }
    keys
}

impl<'de> Deserialize<'de> for &'static Kind {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let name = one_of(deserializer, &NAMES)?;
        find(&name).ok_or_else(|| D::Error::unknown_variant(&name, &NAMES))
    }
}
