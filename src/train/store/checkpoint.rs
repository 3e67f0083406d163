//! A checkpoint: a blob of tensors in chunks, sealed by a manifest that says everything else. Pure.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::features::range::{Position, Range};
use crate::output::{Measurement, Slot};
use crate::search::parameters::HyperParameters;
use crate::search::record::TrialRecord;
use crate::text::shortened;

/// Bytes of a chunk: well below the 1 MB that brokers allow a batch by default.
pub const CHUNK_BYTES: usize = 900_000;
/// Most chunks of a checkpoint: 18 GB, above the largest model that can be built.
pub const CHUNKS_MAX: u32 = 20_000;

/// Why a checkpoint cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The manifest is not readable.
    #[error("the manifest is not readable: {0}")]
    Manifest(String),
    /// Chunks are missing or are others than the manifest says.
    #[error("checkpoint {number} in slot {slot} is damaged: {what}")]
    Damaged { number: u64, slot: &'static str, what: String },
    /// It belongs to a trial that would compute something else.
    #[error(
        "checkpoint {number} does not fit the trial: `{field}` was {was} and is {is}; `sweepstream trials restart` \
        starts the trial anew"
    )]
    Unfit { number: u64, field: String, was: String, is: String },
}

/// Sums over the steps since the epoch began.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct EpochSums {
    pub records: u64,
    pub steps: u64,
    /// Loss times records, each taken before its batch's update.
    pub loss: f64,
    pub gradient_norm: f64,
}

/// Where a trial stands, between two steps.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Progress {
    /// Epochs completed; the one in progress has this number, from 0.
    pub epoch: u64,
    /// Optimizer updates so far.
    pub step: u64,
    /// Training records so far, all epochs together.
    pub records: u64,
    /// Beginning of the window with the next record.
    pub position: Position,
    /// Training records of that window that are done, in shuffled order.
    pub taken: u64,
    /// Of the epoch in progress.
    pub sums: EpochSums,
    /// `checkpoint_every` asks for a measurement before the next step; the end of an epoch is measured anyway.
    #[serde(default)]
    pub due: bool,
    /// The best measurement so far.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub best: Option<Measurement>,
    /// As [`crate::output::Outcome`] has it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub confusion: Vec<Vec<u64>>,
}

impl Progress {
    /// Nothing done yet.
    pub fn beginning(range: &Range) -> Self {
        Self {
            epoch: 0,
            step: 0,
            records: 0,
            position: Position::start(range),
            taken: 0,
            sums: EpochSums::default(),
            due: false,
            best: None,
            confusion: Vec::new(),
        }
    }

    /// Are these the weights that the best measurement was taken of? Weights are a function of the steps behind them.
    pub fn is_best(&self) -> bool {
        self.best.as_ref().is_some_and(|best| best.step == self.step)
    }

    /// Why the trial is over before its last epoch, if it is: none of the last epochs, `patience` of them, was better
    /// than those before. Counted from the best measurement, so that whoever takes the trial over counts alike.
    pub fn out_of_patience(&self, parameters: &HyperParameters) -> Option<String> {
        let HyperParameters { epochs, patience, validation, .. } = *parameters;
        let best = self.best.as_ref().filter(|_| patience > 0 && self.epoch < epochs)?;
        let without = self.epoch.saturating_sub(best.epoch);
        let (what, s) = (if validation > 0 { "validation" } else { "epoch" }, if without == 1 { "" } else { "s" });
        let reason = || format!("no improvement in {without} {what}{s}; the best was epoch {}", best.epoch);
        (without >= patience).then(reason)
    }
}

/// Slots that a trial's next checkpoint leaves as they are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Kept {
    /// Of the newest checkpoint, which is gone on from when the next one turns out damaged.
    pub newest: Option<Slot>,
    /// Of the checkpoint that has the weights of the best measurement.
    pub best: Option<Slot>,
}

impl Kept {
    /// The slot for a checkpoint of a trial that stands there; it is kept from now on.
    pub fn place(&mut self, progress: &Progress) -> Slot {
        let is_free = |slot: &Slot| ![self.newest, self.best].contains(&Some(*slot));
        let slot = Slot::TURNS.into_iter().find(is_free).expect("of three slots at most two are kept");
        self.newest = Some(slot);
        if progress.is_best() {
            self.best = Some(slot);
        }
        slot
    }
}

/// Seals a checkpoint. With the record of the trial it says all that is needed to go on.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    pub trial: String,
    /// Which run of the trial.
    pub attempt: u32,
    /// Counts checkpoints of the trial, over all attempts.
    pub checkpoint: u64,
    pub chunks: u32,
    /// Their bytes, together.
    pub bytes: u64,
    /// Of those bytes, hexadecimal.
    pub sha256: String,
    /// Where the trial stands.
    pub progress: Progress,
    /// What decides the weights.
    pub identity: BTreeMap<String, serde_json::Value>,
}

impl Manifest {
    /// Seals `blob` as the checkpoint with this number.
    pub fn seal(record: &TrialRecord, checkpoint: u64, progress: Progress, blob: &[u8]) -> Self {
        Self {
            trial: record.trial.clone(),
            attempt: record.attempt,
            checkpoint,
            chunks: u32::try_from(blob.len().div_ceil(CHUNK_BYTES)).unwrap_or(u32::MAX),
            bytes: blob.len() as u64,
            sha256: sha256_hex(blob),
            progress,
            identity: record.identity(),
        }
    }

    /// Reads a manifest.
    ///
    /// # Errors
    /// Whatever the bytes are, an error says what is wrong.
    pub fn parse(value: &[u8]) -> Result<Self, Error> {
        let manifest: Self =
            serde_json::from_slice(value).map_err(|error| Error::Manifest(shortened(&error.to_string())))?;
        if manifest.chunks > CHUNKS_MAX || manifest.bytes.div_ceil(CHUNK_BYTES as u64) != u64::from(manifest.chunks) {
            return Err(Error::Manifest(format!("{} bytes in {} chunks cannot be", manifest.bytes, manifest.chunks)));
        }
        Ok(manifest)
    }

    /// The value of a record.
    pub fn to_json(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("maps of strings and numbers can be written as JSON")
    }

    /// Puts the chunks together and checks them against the seal.
    ///
    /// # Errors
    /// [`Error::Damaged`] when one is missing or the digest differs.
    pub fn open(&self, slot: Slot, chunks: &BTreeMap<u32, Vec<u8>>) -> Result<Vec<u8>, Error> {
        let damaged = |what: String| Error::Damaged { number: self.checkpoint, slot: slot.name(), what };
        let mut parts: Vec<&[u8]> = Vec::new();
        for chunk in 0..self.chunks {
            let bytes =
                chunks.get(&chunk).ok_or_else(|| damaged(format!("chunk {chunk} of {} is missing", self.chunks)))?;
            parts.push(bytes);
        }
        let bytes: u64 = parts.iter().map(|part| part.len() as u64).sum();
        if bytes != self.bytes {
            return Err(damaged(format!("its chunks have {bytes} bytes, the manifest says {}", self.bytes)));
        }
        let blob = parts.concat();
        if sha256_hex(&blob) != self.sha256 {
            return Err(damaged(format!("its {bytes} bytes have another digest than the manifest says")));
        }
        Ok(blob)
    }

    /// Checks that the trial would compute what this checkpoint began.
    ///
    /// # Errors
    /// [`Error::Unfit`] with the first field that differs.
    pub fn check_fits(&self, record: &TrialRecord) -> Result<(), Error> {
        let is = record.identity();
        let keys: std::collections::BTreeSet<&String> = is.keys().chain(self.identity.keys()).collect();
        let show = |value: Option<&serde_json::Value>| value.map_or_else(|| "absent".into(), ToString::to_string);
        for key in keys {
            if is.get(key) != self.identity.get(key) {
                return Err(Error::Unfit {
                    number: self.checkpoint,
                    field: key.clone(),
                    was: show(self.identity.get(key)),
                    is: show(is.get(key)),
                });
            }
        }
        Ok(())
    }
}

/// SHA-256 as lower-case hexadecimal digits.
pub fn sha256_hex(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::output::samples::measurement;
    use crate::search::record::samples;

    fn sealed(blob: &[u8]) -> (TrialRecord, Manifest) {
        let record = samples::record("t");
        let manifest = Manifest::seal(&record, 4, Progress::beginning(&record.range()), blob);
        (record, manifest)
    }

    type Chunks = BTreeMap<u32, Vec<u8>>;

    fn chunks(blob: &[u8]) -> Chunks {
        (0..).zip(blob.chunks(CHUNK_BYTES).map(<[u8]>::to_vec)).collect()
    }

    #[test]
    fn a_checkpoint_survives_chunks_and_manifest() {
        for size in [0, 1, CHUNK_BYTES, CHUNK_BYTES + 1, 2 * CHUNK_BYTES] {
            let blob: Vec<u8> = (0..size).map(|i| (i % 251) as u8).collect();
            let (record, manifest) = sealed(&blob);
            let manifest = Manifest::parse(&manifest.to_json()).unwrap();
            assert_eq!(manifest.open(Slot::Zero, &chunks(&blob)).unwrap(), blob);
            manifest.check_fits(&record).unwrap();
        }
    }

    #[test]
    fn sums_come_back_bit_for_bit() {
        let (record, mut manifest) = sealed(b"x");
        manifest.progress.sums =
            EpochSums { records: 7, steps: 2, loss: 0.1 + 0.2, gradient_norm: f64::MIN_POSITIVE / 3.0 };
        manifest.progress.position.digests[0] = "ffffffffffffffff".into();
        assert_eq!(Manifest::parse(&manifest.to_json()).unwrap(), manifest);
        assert_eq!(record.range().partitions.len(), manifest.progress.position.offsets.len());
    }

    #[test]
    fn damage_is_found_and_named() {
        let blob = vec![7; CHUNK_BYTES + 10];
        let (_, manifest) = sealed(&blob);
        let damaged = |change: &dyn Fn(&mut Chunks)| {
            let mut chunks = chunks(&blob);
            change(&mut chunks);
            manifest.open(Slot::One, &chunks).unwrap_err().to_string()
        };
        assert!(damaged(&|chunks| drop(chunks.remove(&1))).contains("chunk 1 of 2 is missing"));
        assert!(damaged(&|chunks| chunks.get_mut(&0).unwrap()[5] = 8).contains("checkpoint 4 in slot 1"));
        assert!(damaged(&|chunks| chunks.get_mut(&1).unwrap().truncate(3)).contains("bytes, the manifest says"));
        assert!(damaged(&|chunks| chunks.get_mut(&1).unwrap()[0] = 8).contains("digest"));
        // Left over from a larger checkpoint that had the slot before.
        let mut more = chunks(&blob);
        drop(more.insert(2, b"old".to_vec()));
        assert_eq!(manifest.open(Slot::One, &more).unwrap(), blob);
    }

    #[test]
    fn neither_the_newest_checkpoint_nor_the_best_is_replaced() {
        let range = samples::record("t").range();
        let at =
            |step, best: u64| Progress { step, best: Some(measurement(1, best, 0.5)), ..Progress::beginning(&range) };
        let mut kept = Kept::default();
        // What lies where after each checkpoint: its step, and that of the best.
        let mut slots = BTreeMap::new();
        for (step, best) in [(1, 0), (2, 2), (3, 2), (3, 2), (4, 2), (5, 2), (6, 6), (7, 7), (7, 7), (8, 7), (9, 7)] {
            let before: Vec<u64> = [kept.newest, kept.best].iter().flatten().map(|slot| slots[slot]).collect();
            let slot = kept.place(&at(step, best));
            let replaced = slots.insert(slot, step);
            let others: Vec<u64> = slots.iter().filter(|(other, _)| **other != slot).map(|(_, step)| *step).collect();
            assert!(before.iter().all(|step| others.contains(step)), "{step}: {replaced:?} was kept");
            assert_eq!(kept.newest, Some(slot));
            assert_eq!(kept.best.map(|best| slots[&best]), (best > 0).then_some(best));
        }
        assert!(slots.len() <= 3);
    }

    #[test]
    fn patience_ends_a_trial_that_finds_no_better_epoch() {
        let record = samples::record("t");
        let parameters = HyperParameters { epochs: 9, patience: 2, ..record.parameters.clone() };
        let over = |parameters: &HyperParameters, epoch, best| {
            let best = Some(measurement(best, 10 * best, 0.5));
            Progress { epoch, best, ..Progress::beginning(&record.range()) }.out_of_patience(parameters)
        };
        for (epoch, best) in [(1, 1), (2, 1), (3, 2), (4, 4)] {
            assert_eq!(over(&parameters, epoch, best), None, "{epoch} {best}");
        }
        let reason = over(&parameters, 4, 2);
        assert_eq!(reason.as_deref(), Some("no improvement in 2 validations; the best was epoch 2"));
        assert_eq!(over(&parameters, 9, 7), None, "all epochs are done anyway");
        assert_eq!(over(&HyperParameters { patience: 0, ..parameters.clone() }, 8, 1), None);
        let reason = over(&HyperParameters { patience: 1, validation: 0, ..parameters.clone() }, 2, 1);
        assert_eq!(reason.as_deref(), Some("no improvement in 1 epoch; the best was epoch 1"));
        assert_eq!(Progress::beginning(&record.range()).out_of_patience(&parameters), None);
    }

    #[test]
    fn an_unfit_checkpoint_names_what_differs() {
        let (record, manifest) = sealed(b"x");
        let other = TrialRecord { seed: 4, ..record.clone() };
        let error = manifest.check_fits(&other).unwrap_err().to_string();
        assert!(error.contains("`seed` was 3 and is 4"), "{error}");
        let mut slower = record.clone();
        slower.parameters.learning_rate = 0.5;
        assert!(manifest.check_fits(&slower).unwrap_err().to_string().contains("`parameters.learning_rate`"));
        let mut decayed = record;
        decayed.parameters.weight_decay = Some(0.1);
        assert!(manifest.check_fits(&decayed).unwrap_err().to_string().contains("was absent and is 0.1"));
    }

    #[test]
    fn sizes_that_cannot_be_are_refused_before_anything_is_read() {
        let (_, manifest) = sealed(b"x");
        let refused = |key: &str, value: u64| {
            let mut json = serde_json::to_value(&manifest).unwrap();
            json[key] = value.into();
            Manifest::parse(json.to_string().as_bytes()).unwrap_err().to_string()
        };
        assert!(refused("chunks", 2).contains("cannot be"));
        assert!(refused("chunks", u64::from(u32::MAX)).contains("cannot be"));
        assert!(refused("bytes", u64::MAX).contains("cannot be"));
        assert!(matches!(Manifest::parse(b"{"), Err(Error::Manifest(_))));
    }

    /// What version 0.1 wrote for two small trials, before models had a registry.
    #[test]
    fn what_was_stored_before_is_read_on() {
        let kept = include_str!("../../../tests/kept/0.1.json");
        let kept: Vec<serde_json::Value> = serde_json::from_str(kept).unwrap();
        assert_eq!(kept.len(), 2);
        for kept in kept {
            let written = |value: &serde_json::Value| value.to_string().into_bytes();
            for state in ["started", "ended"] {
                let record = TrialRecord::parse(&written(&kept[state])).unwrap();
                let again: serde_json::Value = serde_json::from_slice(&record.to_json()).unwrap();
                assert_eq!(again, kept[state], "written as it was");
            }
            let record = TrialRecord::parse(&written(&kept["ended"])).unwrap();
            let measurement: Measurement = serde_json::from_value(kept["measurement"].clone()).unwrap();
            assert_eq!(serde_json::to_value(&measurement).unwrap(), kept["measurement"]);
            let manifest = Manifest::parse(&written(&kept["manifest"])).unwrap();
            manifest.check_fits(&record).unwrap();
            let hex = kept["chunk"].as_str().unwrap();
            let chunk = (0..hex.len()).step_by(2).map(|at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap()).collect();
            let blob = manifest.open(Slot::Zero, &[(0, chunk)].into()).unwrap();
            let mut fit = record.fit().unwrap();
            fit.restore(&blob).unwrap();
            assert_eq!(Some(fit.weights_sha256().unwrap()), record.outcome.unwrap().weights_sha256);
        }
    }
}
