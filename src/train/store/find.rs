//! Searches and trials by their ids, with what they measured.

use crate::config::Settings;
use crate::kafka;
use crate::kafka::offsets::Watermarks;
use crate::search::results::{searches, Results};
use crate::text::nearest;

use super::trials::{self, Stored, Want};

/// Why something was not found.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is nothing of that id.
    #[error("there is no {what} `{id}`; {hint}")]
    Unknown {
        what: &'static str,
        id: String,
        /// The nearest id, or where to look.
        hint: String,
    },
    /// Kafka.
    #[error(transparent)]
    Kafka(#[from] kafka::Error),
}

impl Error {
    fn unknown<'k>(what: &'static str, id: &str, known: impl Iterator<Item = &'k str>, lists: &str) -> Self {
        let known: Vec<&str> = known.collect();
        let hint = match nearest(id, &known) {
            Some(near) => format!("did you mean `{near}`?"),
            None => format!("`{lists}` shows them"),
        };
        Self::Unknown { what, id: id.to_owned(), hint }
    }
}

/// A trial.
///
/// # Errors
/// When there is none of that id, with the nearest one.
pub fn trial(settings: &Settings, id: &str) -> Result<Stored, Error> {
    let mut trials = trials::all(settings)?;
    match trials.remove(id) {
        Some(stored) => Ok(stored),
        None => Err(Error::unknown("trial", id, trials.keys().map(String::as_str), "sweepstream trials list")),
    }
}

/// The trials of a search, by number; at least one.
///
/// # Errors
/// When there is no search of that id, with the nearest one.
pub fn search(settings: &Settings, id: &str) -> Result<Vec<Stored>, Error> {
    let all = trials::all(settings)?;
    let mut chosen: Vec<Stored> = all.values().filter(|stored| stored.record.search == id).cloned().collect();
    if chosen.is_empty() {
        let known = searches(all.values().map(|stored| &stored.record));
        let ids = known.iter().map(|search| search.search.as_str());
        return Err(Error::unknown("search", id, ids, "sweepstream search list"));
    }
    chosen.sort_by_key(|stored| stored.record.number);
    Ok(chosen)
}

/// What a search came to, running trials included.
///
/// # Errors
/// As [`search`].
pub fn results(settings: &Settings, id: &str) -> Result<Results, Error> {
    let stored = search(settings, id)?;
    let places = stored.iter().map(|stored| (stored.record.trial.clone(), stored.partition)).collect();
    let mut output = trials::output(settings, &Watermarks::new(settings)?, &places, Want::Measurements)?;
    let trials = stored.into_iter().map(|Stored { record, .. }| {
        let measurements = output.remove(&record.trial).unwrap_or_default().measurements;
        (record, measurements)
    });
    Ok(Results { trials: trials.collect() })
}
