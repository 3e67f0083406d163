//! Where records lie in a topic, and where its readers stand. Pure.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::{Deref, DerefMut};

/// Where a record lies in its topic.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Coordinates {
    pub partition: i32,
    /// The record's offset in it.
    pub offset: i64,
}

impl Coordinates {
    /// Those in `topic` that a header `source` names (`topic/partition/offset`); nothing, if it names another topic.
    pub fn of_source(source: &str, topic: &str) -> Option<Self> {
        let (partition, offset) = source.strip_prefix(topic)?.strip_prefix('/')?.split_once('/')?;
        Some(Self { partition: partition.parse().ok()?, offset: offset.parse().ok()? })
    }
}

/// The next offset of partitions of one topic.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Positions(BTreeMap<i32, i64>);

impl fmt::Debug for Positions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(&self.0).finish()
    }
}

impl Deref for Positions {
    type Target = BTreeMap<i32, i64>;

    fn deref(&self) -> &Self::Target {
        &self.0
    }
}

impl DerefMut for Positions {
    fn deref_mut(&mut self) -> &mut Self::Target {
        &mut self.0
    }
}

impl FromIterator<(i32, i64)> for Positions {
    fn from_iter<I: IntoIterator<Item = (i32, i64)>>(positions: I) -> Self {
        Self(positions.into_iter().collect())
    }
}

impl<const N: usize> From<[(i32, i64); N]> for Positions {
    fn from(positions: [(i32, i64); N]) -> Self {
        Self(positions.into())
    }
}

impl<'p> IntoIterator for &'p Positions {
    type Item = (&'p i32, &'p i64);
    type IntoIter = std::collections::btree_map::Iter<'p, i32, i64>;

    fn into_iter(self) -> Self::IntoIter {
        self.0.iter()
    }
}

#[cfg(test)]
mod tests {
    use super::Coordinates;

    #[test]
    fn a_source_names_coordinates_in_its_own_topic() {
        let of = |source| Coordinates::of_source(source, "a/b");
        assert_eq!(of("a/b/3/41"), Some(Coordinates { partition: 3, offset: 41 }));
        for other in ["a/3/41", "a/bc/3/41", "a/b/3", "a/b/x/41", "a/b/3/", ""] {
            assert_eq!(of(other), None, "{other}");
        }
    }
}
