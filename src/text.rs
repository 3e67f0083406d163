//! Words for people: what was probably meant, and as much of what came from outside as fits. Pure.

use std::fmt;

use serde::de::{EnumAccess, Error as _, VariantAccess, Visitor};
use serde::Deserializer;

/// The candidate that a typing mistake most likely meant.
pub fn nearest<'a>(word: &str, candidates: &[&'a str]) -> Option<&'a str> {
    candidates
        .iter()
        .map(|candidate| (strsim::damerau_levenshtein(word, candidate), *candidate))
        .filter(|(distance, candidate)| *distance <= 3.min(candidate.len() / 2).max(1))
        .min()
        .map(|(_, candidate)| candidate)
}

/// The beginning of a message that may quote what came from outside: short enough for a log line or a header.
pub fn shortened(message: &str) -> String {
    const CHARS_MAX: usize = 200;
    match message.char_indices().nth(CHARS_MAX) {
        Some((end, _)) => format!("{}… ({} bytes)", &message[..end], message.len()),
        None => message.to_owned(),
    }
}

/// Reads one of a few names, as an enum without data is read: what else there is gets the names in its error.
///
/// # Errors
/// Names what was found instead.
pub fn one_of<'de, D: Deserializer<'de>>(deserializer: D, names: &'static [&'static str]) -> Result<String, D::Error> {
    struct Name(&'static [&'static str]);

    impl<'de> Visitor<'de> for Name {
        type Value = String;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            write!(f, "one of `{}`", self.0.join("`, `"))
        }

        fn visit_enum<A: EnumAccess<'de>>(self, data: A) -> Result<String, A::Error> {
            let (name, variant) = data.variant::<String>()?;
            variant.unit_variant()?;
            if self.0.contains(&name.as_str()) {
                Ok(name)
            } else {
                Err(A::Error::unknown_variant(&name, self.0))
            }
        }
    }

    deserializer.deserialize_enum("name", names, Name(names))
}
