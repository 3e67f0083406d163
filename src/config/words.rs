//! What a value is and what it should be, in the words of whoever wrote it: serde speaks of Rust's types.

use figment::error::{Actual, Kind};
use figment::value::Value;
use serde::de::value::StrDeserializer;
use serde::de::DeserializeOwned;

use crate::text::{nearest, shortened};

/// A value that does not fit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Misfit {
    /// Keys that lead to it, joined by dots.
    pub path: String,
    /// What is wrong with what stands there: `is 7, not a time such as 10s`.
    pub message: String,
}

/// Reads a value of a file.
///
/// # Errors
/// Says what is wrong, and where in the value.
pub fn read<T: DeserializeOwned>(value: &toml::Value) -> Result<T, Misfit> {
    value.clone().try_into().map_err(|error: toml::de::Error| {
        // Its errors are text alone; figment's have parts.
        let parts = match Value::serialize(value) {
            Ok(value) => value.deserialize::<T>().err(),
            Err(error) => Some(error),
        };
        match parts {
            Some(error) => misfit(&error, names::<T>),
            // figment takes a number for a name, by its place.
            None => Misfit {
                path: String::new(),
                message: match names::<T>() {
                    Some(names) => is_not(&shortened(&value.to_string()), &one_of(names)),
                    None => error.message().to_owned(),
                },
            },
        }
    })
}

/// What `error` says of a value; `names` are those that it may have, if it is one of a few.
pub fn misfit(error: &figment::Error, names: impl FnOnce() -> Option<Names>) -> Misfit {
    let message = match &error.kind {
        Kind::UnknownVariant(found, known) => {
            let near = nearest(found, known).map_or_else(String::new, |near| format!("; did you mean `{near}`?"));
            format!("{}{near}", is_not(&format!("{:?}", shortened(found)), &one_of(known)))
        }
        Kind::InvalidType(found, wanted) | Kind::InvalidValue(found, wanted) => {
            let found = found_in_words(found);
            match names() {
                Some(names) if wanted.contains("variant") || wanted.starts_with("enum ") => {
                    is_not(&found, &one_of(names))
                }
                _ => is_not(&found, &wanted_in_words(wanted)),
            }
        }
        Kind::InvalidLength(length, wanted) => is_not(&format!("a list of {length}"), &wanted_in_words(wanted)),
        Kind::UnknownField(field, known) => match nearest(field, known) {
            Some(near) => format!("has no key `{field}`; did you mean `{near}`?"),
            None => format!("has no key `{field}`; known here: {}", known.join(", ")),
        },
        Kind::MissingField(field) => format!("lacks the key `{field}`"),
        kind => kind.to_string().trim_end().to_owned(),
    };
    Misfit { path: error.path.join("."), message }
}

/// The names of which a value is one.
pub type Names = &'static [&'static str];

/// The names that a `T` may have, if it is one of a few: asked for by a name that none has.
fn names<T: DeserializeOwned>() -> Option<Names> {
    match T::deserialize(StrDeserializer::<figment::Error>::new("")) {
        Err(figment::Error { kind: Kind::UnknownVariant(_, names), .. }) => Some(names),
        _ => None,
    }
}

fn is_not(found: &str, wanted: &str) -> String {
    format!("is {found}, not {wanted}")
}

fn one_of(names: Names) -> String {
    let names: Vec<String> = names.iter().map(|name| format!("`{name}`")).collect();
    format!("one of {}", names.join(", "))
}

fn found_in_words(found: &Actual) -> String {
    match found {
        Actual::Bool(flag) => flag.to_string(),
        Actual::Unsigned(number) => number.to_string(),
        Actual::Signed(number) => number.to_string(),
        Actual::Float(number) => format!("{number:?}"),
        Actual::Char(text) => format!("{:?}", text.to_string()),
        Actual::Str(text) => format!("{:?}", shortened(text)),
        Actual::Seq => "a list".into(),
        Actual::Map => "a table".into(),
        Actual::Unit | Actual::Option => "nothing".into(),
        other => other.to_string(),
    }
}

/// What a visitor of serde, or of the crates here, says that it expects.
fn wanted_in_words(wanted: &str) -> String {
    let (least, kind) = wanted.strip_prefix("a nonzero ").map_or((0, wanted), |kind| (1, kind));
    let whole = |largest: u64| format!("a whole number from {least} to {largest}");
    match kind {
        "u8" => whole(u8::MAX.into()),
        "u16" => whole(u16::MAX.into()),
        "u32" => whole(u32::MAX.into()),
        // TOML has no larger ones.
        "u64" | "usize" => whole(i64::MAX.unsigned_abs()),
        "i8" | "i16" | "i32" | "i64" | "isize" => "a whole number".into(),
        "f32" | "f64" => "a number".into(),
        "a boolean" => "true or false".into(),
        "a string" => "text".into(),
        "path string" => "a path".into(),
        "a duration" => "a time such as `10s` or `500ms`".into(),
        "a sequence" => "a list".into(),
        "a map" => "a table".into(),
        kind if kind.starts_with("struct ") => "a table".into(),
        kind => kind.to_owned(),
    }
}
