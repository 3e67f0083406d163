//! A frozen range of the features topic: what it holds, and how that is recognised again. Pure.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::hash::Hasher as _;

use serde::{Deserialize, Serialize};
use twox_hash::xxhash3_64::Hasher;

use super::codec::{self, MatrixView};
use super::window::number;
use crate::coordinates::Coordinates;
use crate::text::shortened;

/// A stretch of one partition.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PartitionRange {
    pub partition: i32,
    pub start: i64,
    /// One past the last offset, transaction markers included.
    pub end: i64,
    pub records: u64,
    /// [`Digest`] over them, hexadecimal.
    pub digest: String,
}

/// A range over all partitions of a topic, captured once.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Range {
    pub topic: String,
    pub partitions: Vec<PartitionRange>,
}

impl Range {
    /// Records of all partitions.
    pub fn records(&self) -> u64 {
        self.partitions.iter().map(|partition| partition.records).sum()
    }

    /// Records of each partition, in order.
    pub fn counts(&self) -> Vec<u64> {
        self.partitions.iter().map(|partition| partition.records).collect()
    }
}

/// A running digest of a partition's records: xxh3 of each record, seeded with the digest before it.
///
/// Eight bytes can be stored and resumed anywhere. Offsets do not enter: the same features have the same digest in
/// any topic. It recognises a topic that was recreated; it is no defence against somebody who forges one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Digest(pub u64);

impl Digest {
    /// Adds a record.
    pub fn update(&mut self, key: Option<&[u8]>, label: Option<&[u8]>, value: &[u8]) {
        let mut hasher = Hasher::with_seed(self.0);
        for part in [key, label, Some(value)] {
            let length = part.map_or(u64::MAX, |part| part.len() as u64);
            hasher.write(&length.to_le_bytes());
            hasher.write(part.unwrap_or_default());
        }
        self.0 = hasher.finish();
    }

    /// As stored.
    pub fn hex(self) -> String {
        format!("{:016x}", self.0)
    }
}

/// Where a pass stands, between two windows. Survives in checkpoints.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Position {
    /// Number of the next window.
    pub window: u64,
    /// Index of the partition whose turn it is.
    pub turn: usize,
    /// Records taken of each partition.
    pub taken: Vec<u64>,
    /// Next offset to read of each partition.
    pub offsets: Vec<i64>,
    /// Digest of each partition up to here, hexadecimal.
    pub digests: Vec<String>,
}

impl Position {
    /// The beginning of a pass.
    pub fn start(range: &Range) -> Self {
        let partitions = range.partitions.len();
        Self {
            window: 0,
            turn: 0,
            taken: vec![0; partitions],
            offsets: range.partitions.iter().map(|partition| partition.start).collect(),
            digests: vec![Digest::default().hex(); partitions],
        }
    }
}

/// What decides whether a record is for validation.
#[derive(Clone, Copy, Debug)]
pub struct Identity<'a> {
    pub key: Option<&'a [u8]>,
    /// Its `source` header.
    pub source: Option<&'a [u8]>,
    pub partition: i32,
    /// Its number within the partition's range.
    pub ordinal: u64,
}

impl Identity<'_> {
    /// CRC-32 of the key, as zlib computes it; without a key the source counts, and without a source
    /// `partition/ordinal`.
    pub fn hash(&self) -> u32 {
        match self.key.or(self.source) {
            Some(bytes) => crc32fast::hash(bytes),
            None => crc32fast::hash(format!("{}/{}", self.partition, self.ordinal).as_bytes()),
        }
    }

    /// See [`is_validation`].
    pub fn is_validation(&self, one_in: u32) -> bool {
        is_validation(self.hash(), one_in)
    }
}

/// Whether a record with such an [`Identity::hash`] is for validation: one in so many is; with 0 none.
pub fn is_validation(hash: u32, one_in: u32) -> bool {
    one_in > 0 && hash.is_multiple_of(one_in)
}

/// A record of `features` as readers need it.
#[derive(Clone, Copy, Debug)]
pub struct RawRecord<'a> {
    pub key: Option<&'a [u8]>,
    pub value: Option<&'a [u8]>,
    /// `label` header.
    pub label: Option<&'a [u8]>,
    /// `source` header.
    pub source: Option<&'a [u8]>,
    /// `embedder` header.
    pub embedder: Option<&'a [u8]>,
}

/// A record of a range, read in its turn.
#[derive(Clone, Copy, Debug)]
pub struct Record<'a> {
    pub matrix: MatrixView<'a>,
    pub label: Option<&'a str>,
    /// [`Identity::hash`].
    pub hash: u32,
    /// Index of its partition in the range.
    pub index: usize,
    /// Its partition's next offset.
    pub next_offset: i64,
    /// Of its partition up to and with this record.
    pub digest: Digest,
}

/// All labels of a range together: each trial carries them in its record, whose topic allows 1 MB by default.
pub const LABELS_BYTES_MAX: usize = 512 * 1024;
/// Several embedders are a mistake already; more than these are not remembered.
const EMBEDDERS_MAX: usize = 16;

/// How many records fall into either split.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Split {
    pub training: u64,
    pub validation: u64,
}

impl Split {
    /// Of both.
    pub fn sum(self) -> u64 {
        self.training + self.validation
    }

    fn count(&mut self, validation: bool) {
        *if validation { &mut self.validation } else { &mut self.training } += 1;
    }
}

/// Labels that are numbers.
#[derive(Clone, Debug, Default)]
pub struct Numbers {
    pub training_sum: f64,
    pub training: u64,
    /// One by one: what is said of them rests on the training split's mean.
    pub validation: Vec<f32>,
}

/// What reading a whole range once has shown.
#[derive(Clone, Debug, Default)]
pub struct Survey {
    /// Records and digest of each partition.
    pub partitions: BTreeMap<i32, (u64, Digest)>,
    /// All labels, sorted by name: their places are the classes.
    pub labels: BTreeMap<String, Split>,
    /// Labels that are numbers; only what comes before the first that is none.
    pub numbers: Numbers,
    label_bytes: usize,
    /// The first label that is one too many for all to be classes.
    pub first_beyond_classes: Option<Coordinates>,
    /// The first label that is no number, and why.
    pub first_no_number: Option<(Coordinates, String)>,
    /// Where the first record without a label is.
    pub first_unlabelled: Option<Coordinates>,
    pub rows_max: usize,
    /// Rows of all matrices, each cut at the rows that will be read.
    pub rows_read: u64,
    /// Bytes of a number, at most.
    pub number_bytes: usize,
    /// Numbers in a row; 0 as long as there is no record.
    pub dim: usize,
    /// Which models and settings made the matrices.
    pub embedders: BTreeSet<String>,
    /// All records.
    pub split: Split,
    /// Those with a label.
    pub labelled: Split,
}

impl Survey {
    /// Adds a record.
    ///
    /// # Errors
    /// Says why a trial could not read it.
    pub fn add(
        &mut self,
        at: Coordinates,
        record: RawRecord<'_>,
        rows_max: usize,
        validation: u32,
    ) -> Result<(), String> {
        let value = record.value.ok_or("the value is null")?;
        let matrix: MatrixView<'_> = codec::decode(value).map_err(|error| error.to_string())?;
        if self.dim != 0 && self.dim != matrix.dim {
            return Err(format!(
                "rows have {} numbers, those before had {}; a search needs one embedding model",
                matrix.dim, self.dim
            ));
        }
        if let Some(row) = matrix.first_not_finite(rows_max) {
            return Err(format!(
                "row {row} (from 0) holds a NaN or an infinity, and no model could learn from it; mend or leave out \
                 what wrote it, and embed it again into a new topic"
            ));
        }
        self.dim = matrix.dim;
        let (records, digest) = self.partitions.entry(at.partition).or_default();
        let identity = Identity { key: record.key, source: record.source, partition: at.partition, ordinal: *records };
        let validation = identity.is_validation(validation);
        self.split.count(validation);
        *records += 1;
        digest.update(record.key, record.label, value);
        self.rows_max = self.rows_max.max(matrix.rows);
        self.rows_read += matrix.rows.min(rows_max) as u64;
        self.number_bytes = self.number_bytes.max(matrix.dtype.bytes());
        match record.label {
            Some(label) => self.add_label(at, class_name(label)?, validation),
            None => {
                let _ = self.first_unlabelled.get_or_insert(at);
            }
        }
        if let Some(embedder) = record.embedder {
            let embedder = readable(embedder);
            if self.embedders.len() < EMBEDDERS_MAX && !self.embedders.contains(embedder.as_ref()) {
                let _ = self.embedders.insert(shortened(&embedder));
            }
        }
        Ok(())
    }

    /// Whether labels are what a trial needs depends on its task.
    fn add_label(&mut self, at: Coordinates, label: &str, validation: bool) {
        self.labelled.count(validation);
        if self.first_no_number.is_none() {
            match number(label) {
                Ok(number) if validation => self.numbers.validation.push(number),
                Ok(number) => {
                    self.numbers.training_sum += f64::from(number);
                    self.numbers.training += 1;
                }
                Err(why) => {
                    self.first_no_number = Some((at, why));
                    self.numbers = Numbers::default();
                }
            }
        }
        if let Some(split) = self.labels.get_mut(label) {
            split.count(validation);
            return;
        }
        if self.label_bytes + label.len() > LABELS_BYTES_MAX {
            let _ = self.first_beyond_classes.get_or_insert(at);
            return;
        }
        self.label_bytes += label.len();
        self.labels.entry(label.to_owned()).or_default().count(validation);
    }

    /// Records of all partitions.
    pub fn records(&self) -> u64 {
        self.split.sum()
    }

    /// Records without a label.
    pub fn unlabelled(&self) -> u64 {
        self.split.sum() - self.labelled.sum()
    }
}

/// A label as the name of a class. Two labels are never made one, so nothing is guessed.
///
/// # Errors
/// When it is not UTF-8: shows its bytes.
pub fn class_name(label: &[u8]) -> Result<&str, String> {
    std::str::from_utf8(label).map_err(|error| {
        format!(
            "the `label` header \"{}\" is not valid UTF-8 at byte {}; labels are UTF-8 text, so write the record again \
             with one",
            shortened(&label.escape_ascii().to_string()),
            error.valid_up_to()
        )
    })
}

/// Bytes to be shown: as text where they are, else with every other byte written out, so that different ones differ.
fn readable(bytes: &[u8]) -> Cow<'_, str> {
    std::str::from_utf8(bytes).map_or_else(|_| bytes.escape_ascii().to_string().into(), Cow::Borrowed)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(partition: i32, offset: i64) -> Coordinates {
        Coordinates { partition, offset }
    }
    use crate::features::codec::Dtype;

    #[test]
    fn validation_is_decided_by_zlibs_crc_of_the_key() {
        let split = |key: &str| {
            Identity { key: Some(key.as_bytes()), source: None, partition: 0, ordinal: 0 }.is_validation(10)
        };
        // python3 -c "import zlib; print([k for k in map(str, range(40)) if zlib.crc32(k.encode()) % 10 == 0])"
        let chosen: Vec<String> = (0..40).map(|i| i.to_string()).filter(|key| split(key)).collect();
        assert_eq!(chosen, ["6", "29", "37"]);
        let keyless = Identity { key: None, source: Some(b"29"), partition: 1, ordinal: 2 };
        assert!(keyless.is_validation(10) && !keyless.is_validation(0));
    }

    /// Positions and checkpoints hold them.
    #[test]
    fn a_digest_is_that_of_the_reference_implementation() {
        // Python's xxhash, each link seeded with the one before: h = xxh3_64(seed=h); each part after its length as 8
        // bytes, 2**64 - 1 for none.
        let expected = [
            0xe61eb0da7f049a6c,
            0x5de6f1931d50cd94,
            0x38ea12651aa09e43,
            0xeaabbd9c5aebdf3f,
            0xce2cc9e6e71dc072,
            0xba4aae60d08be8ee,
            0x60963c6828107feb,
        ];
        let mut digest = Digest::default();
        for (size, expected) in [0_usize, 1, 100, 240, 1000, 1024, 20_000].into_iter().zip(expected) {
            let value: Vec<u8> = (0..size).map(|i| (i % 251) as u8).collect();
            digest.update(Some(b"key"), None, &value);
            assert_eq!(digest, Digest(expected), "{size} bytes");
        }
    }

    #[test]
    fn a_digest_depends_on_every_part_and_on_order() {
        type Parts<'a> = (Option<&'a [u8]>, Option<&'a [u8]>, &'a [u8]);
        let digest = |records: &[Parts<'_>]| {
            let mut digest = Digest::default();
            records.iter().for_each(|(key, label, value)| digest.update(*key, *label, value));
            digest
        };
        let (a, b) = ((Some(b"k".as_slice()), None, b"v".as_slice()), (None, Some(b"k".as_slice()), b"v".as_slice()));
        assert_ne!(digest(&[a]), digest(&[b]));
        assert_ne!(digest(&[a, b]), digest(&[b, a]));
        assert_eq!(digest(&[a, b]), digest(&[a, b]));
    }

    #[test]
    fn labels_and_embedders_are_not_remembered_without_bound() {
        let mut survey = Survey::default();
        let value = codec::encode(1, 1, &[0.0], Dtype::F16);
        let long = "x".repeat(10_000);
        let mut add = |i: usize| {
            let label = format!("{long}{}", i / 2);
            let embedder = Some(label.as_bytes());
            let record = RawRecord { key: None, value: Some(&value), label: embedder, source: None, embedder };
            survey.add(at(0, i as i64), record, 1, 0)
        };
        (0..300).for_each(|i| add(i).unwrap());
        assert_eq!(survey.first_beyond_classes, Some(at(0, 104)));
        assert_eq!((survey.labels.len(), survey.labels.values().map(|split| split.sum()).sum::<u64>()), (52, 104));
        assert!(survey.embedders.iter().map(String::len).sum::<usize>() < 10_000);
    }

    #[test]
    fn a_survey_counts_labels_and_refuses_what_trials_could_not_read() {
        let mut survey = Survey::default();
        let value = codec::encode(2, 3, &[0.0; 6], Dtype::F16);
        let record = |value, label| RawRecord { key: None, value, label, source: None, embedder: None };
        survey.add(at(0, 5), record(Some(&value), Some(b"x")), 1, 0).unwrap();
        survey.add(at(1, 7), record(Some(&value), None), 1, 0).unwrap();
        assert_eq!((survey.records(), survey.rows_max, survey.rows_read, survey.dim), (2, 2, 2, 3));
        assert_eq!(survey.first_unlabelled, Some(at(1, 7)));
        assert!(survey.add(at(0, 6), record(None, None), 1, 0).is_err());
        let other = codec::encode(1, 4, &[0.0; 4], Dtype::F16);
        assert!(survey.add(at(0, 6), record(Some(&other), None), 1, 0).unwrap_err().contains("one embedding model"));
        let latin1 = survey.add(at(0, 6), record(Some(&value), Some(b"caf\xe9")), 1, 0).unwrap_err();
        assert!(latin1.contains(r#""caf\xe9" is not valid UTF-8 at byte 3"#), "{latin1}");
        let infinite = codec::encode(2, 3, &[0.0, 0.0, 0.0, f32::INFINITY, 0.0, 0.0], Dtype::F16);
        assert!(survey.add(at(0, 6), record(Some(&infinite), None), 2, 0).unwrap_err().starts_with("row 1 "));
        // Nobody will read that row.
        survey.add(at(0, 6), record(Some(&infinite), None), 1, 0).unwrap();
    }
}
