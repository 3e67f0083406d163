//! A pooled view of a range: the mean of each record, in computed order, and what cuts windows out of them. Pure.
//!
//! Trials that read nothing but means differ in how long their windows are, how they split and what a label is to them.
//! All of that is decided when a window is cut; means are lent to it, not copied.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::merge::Merge;
use super::range::{is_validation, Digest, Position, Range, Record};
use super::window::{Reading, Target, Window};

/// Records of a block: so many are read before the first of them is there for anybody.
pub(super) const BLOCK: u32 = 256;

/// What a record is beside its mean.
#[derive(Clone, Copy, Debug)]
struct Entry {
    /// Place among the block's labels.
    label: Option<u32>,
    /// Decides whether it is for validation.
    hash: u32,
}

/// Consecutive records of a range; all blocks but the last have as many.
#[derive(Debug)]
pub(super) struct Block {
    means: Vec<f32>,
    entries: Vec<Entry>,
    labels: BTreeMap<Box<str>, u32>,
    /// Of each record: index of its partition, the partition's next offset, and its digest up to here.
    passed: Vec<(usize, i64, Digest)>,
}

impl Block {
    /// Nothing yet, with room for what is still to come of a range.
    pub fn new(dim: usize, records_left: u64) -> Self {
        let records = usize::try_from(records_left.min(u64::from(BLOCK))).unwrap_or(0);
        Self {
            means: Vec::with_capacity(records * dim),
            entries: Vec::with_capacity(records),
            labels: BTreeMap::new(),
            passed: Vec::with_capacity(records),
        }
    }

    /// Adds a record, with the mean of its first `rows_max` rows.
    pub fn push(&mut self, record: &Record<'_>, rows_max: usize) {
        let start = self.means.len();
        self.means.resize(start + record.matrix.dim, 0.0);
        record.matrix.mean(rows_max, &mut self.means[start..]);
        let label = record.label.map(|label| match self.labels.get(label) {
            Some(&place) => place,
            None => {
                let place = u32::try_from(self.labels.len()).unwrap_or(u32::MAX);
                let _ = self.labels.insert(label.into(), place);
                place
            }
        });
        self.entries.push(Entry { label, hash: record.hash });
        self.passed.push((record.index, record.next_offset, record.digest));
    }

    /// Records held.
    pub fn records(&self) -> usize {
        self.entries.len()
    }

    /// Bytes that [`Pooled::bytes`] does not count, since nobody knows them before the range is read.
    pub fn label_bytes(&self) -> usize {
        self.labels.keys().map(|label| label.len() + size_of::<(Box<str>, u32)>()).sum()
    }
}

/// A block in its place.
#[derive(Debug)]
struct Placed {
    /// The merge before its first record.
    begin: Merge,
    means: Arc<Vec<f32>>,
    entries: Vec<Entry>,
    labels: Vec<Box<str>>,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Pooled {
    range: Range,
    dim: usize,
    blocks: Vec<Arc<Placed>>,
    /// Of each partition, behind each of its records: the next offset, and the digest up to there.
    passed: Vec<Vec<(i64, Digest)>>,
    /// The merge behind the last record.
    end: Merge,
}

/// What there is of a window.
#[derive(Debug)]
pub(super) enum Piece {
    Whole(Uncut),
    /// Some of it has still to be read.
    NotYet,
    /// No pass over this view comes to the position.
    Elsewhere,
}

/// Blocks that a window is to be cut out of.
#[derive(Debug)]
pub(super) struct Uncut {
    blocks: Vec<Arc<Placed>>,
    /// Records of the first block that are before the window.
    before: usize,
    records: usize,
    number: u64,
    dim: usize,
    begin: Merge,
    /// The position behind the window.
    pub after: Position,
}

impl Pooled {
    /// Bytes that a view of a range takes without its labels; nothing if that is more than can be counted.
    pub fn bytes(range: &Range, dim: usize) -> Option<usize> {
        let mean = dim.checked_mul(size_of::<f32>())?;
        let record = mean.checked_add(size_of::<Entry>() + size_of::<(i64, Digest)>())?;
        usize::try_from(range.records()).ok()?.checked_mul(record)
    }

    /// Nothing of the range yet.
    pub fn new(range: &Range, dim: usize) -> Self {
        let passed = vec![Vec::new(); range.partitions.len()];
        Self { range: range.clone(), dim, blocks: Vec::new(), passed, end: Merge::new(range.counts()) }
    }

    fn records(&self) -> u64 {
        self.end.taken().iter().sum()
    }

    /// Adds the block that comes next.
    pub fn push(&mut self, block: Block) {
        let begin = self.end.clone();
        for (index, next_offset, digest) in block.passed {
            self.passed[index].push((next_offset, digest));
        }
        let _ = self.end.by_ref().take(block.entries.len()).count();
        let mut labels = vec![Box::default(); block.labels.len()];
        block.labels.into_iter().for_each(|(label, place)| labels[place as usize] = label);
        let means = Arc::new(block.means);
        self.blocks.push(Arc::new(Placed { begin, means, entries: block.entries, labels }));
    }

    /// What there is of the window that begins at a position.
    pub fn piece(&self, position: &Position, window: u32) -> Piece {
        let Some(first) = position.taken.iter().try_fold(0_u64, |sum, &taken| sum.checked_add(taken)) else {
            return Piece::Elsewhere;
        };
        let records = self.range.records().saturating_sub(first).min(u64::from(window));
        if records == 0 {
            return Piece::Elsewhere;
        }
        if self.records() < first + records {
            return Piece::NotYet;
        }
        let block = |record: u64| (record / u64::from(BLOCK)) as usize;
        let blocks = self.blocks[block(first)..=block(first + records - 1)].to_vec();
        let (before, records) = ((first % u64::from(BLOCK)) as usize, records as usize);
        let mut merge = blocks[0].begin.clone();
        let _ = merge.by_ref().take(before).count();
        let begin = merge.clone();
        // One of another story, as a checkpoint may have it, is found out where it leads: by reading on from it.
        if self.position(&begin, position.window) != *position {
            return Piece::Elsewhere;
        }
        let _ = merge.by_ref().take(records).count();
        let after = self.position(&merge, position.window + 1);
        Piece::Whole(Uncut { blocks, before, records, number: position.window, dim: self.dim, begin, after })
    }

    /// Where a pass stands that has come so far.
    fn position(&self, merge: &Merge, window: u64) -> Position {
        let start = self.range.partitions.iter().map(|place| (place.start, Digest::default()));
        let passed = merge.taken().iter().zip(&self.passed).zip(start).map(|((&taken, passed), start)| match taken {
            0 => start,
            taken => passed[taken as usize - 1],
        });
        let (offsets, digests): (Vec<i64>, Vec<Digest>) = passed.unzip();
        let digests = digests.into_iter().map(Digest::hex).collect();
        Position { window, turn: merge.turn(), taken: merge.taken().to_vec(), offsets, digests }
    }
}

impl Uncut {
    /// The window, as a reading has it.
    ///
    /// # Errors
    /// Index of the partition whose record has a label that is none of the reading's, and what is wrong with it.
    pub fn cut(&self, reading: &Reading) -> Result<Window, (usize, String)> {
        let mut window = Window::default();
        window.clear(self.number, self.dim);
        let (mut before, mut done) = (self.before, 0);
        for block in &self.blocks {
            // A label is looked up once for all records of the block that have it.
            let mut targets: Vec<Option<Target>> = vec![None; block.labels.len()];
            for (place, entry) in (before..).zip(&block.entries[before..]).take(self.records - done) {
                done += 1;
                let target = match entry.label.map(|label| label as usize) {
                    None => Target::None,
                    Some(label) => match targets[label] {
                        Some(target) => target,
                        None => {
                            let target = reading.labels.target(Some(&block.labels[label]));
                            *targets[label].insert(target.map_err(|what| (self.partition(done), what))?)
                        }
                    },
                };
                if reading.takes(target) {
                    let validation = is_validation(entry.hash, reading.validation);
                    window.lend(&block.means, place, target, validation);
                }
            }
            before = 0;
        }
        Ok(window)
    }

    /// Index of the partition of the window's record of this number, from 1.
    fn partition(&self, number: usize) -> usize {
        self.begin.clone().nth(number - 1).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::features::codec::{Dtype, MatrixView};
    use crate::features::range::PartitionRange;
    use crate::features::window::Labels;

    const DIM: usize = 2;
    const ROWS_MAX: usize = 3;
    const LABELS: [&str; 3] = ["1", "2.5", "x"];

    /// What a record of a range holds; its number says it all.
    struct Sample {
        bytes: Vec<u8>,
        number: usize,
    }

    impl Sample {
        fn new(number: usize) -> Self {
            let values = (0..(1 + number % 5) * DIM).map(|i| ((number * 31 + i * 7) % 19) as f32 / 8.0);
            Self { bytes: values.flat_map(f32::to_le_bytes).collect(), number }
        }

        fn matrix(&self) -> MatrixView<'_> {
            let rows = self.bytes.len() / DIM / Dtype::F32.bytes();
            MatrixView { dtype: Dtype::F32, rows, dim: DIM, data: &self.bytes }
        }

        fn label(&self) -> Option<&'static str> {
            // None in each fourth record, and something that is no number in the last ones.
            match self.number % 4 {
                3 => None,
                _ if self.number > 600 => Some(LABELS[2]),
                place => Some(LABELS[place % 2]),
            }
        }

        fn hash(&self) -> u32 {
            (self.number as u32).wrapping_mul(0x9E37_79B9) >> 7
        }
    }

    /// Records in computed order, each with its partition's index; markers between them take offsets, too.
    fn samples(range: &Range) -> Vec<(usize, Sample, i64, Digest)> {
        let mut taken = vec![0; range.partitions.len()];
        let place = |(number, index): (usize, usize)| {
            taken[index] += 1;
            let next_offset = range.partitions[index].start + 3 * taken[index];
            (index, Sample::new(number), next_offset, Digest(number as u64 + 1))
        };
        Merge::new(range.counts()).enumerate().map(place).collect()
    }

    fn range() -> Range {
        let place = |(partition, records): (i32, u64)| PartitionRange {
            partition,
            start: i64::from(partition) * 10,
            end: 9_999,
            records,
            digest: String::new(),
        };
        Range { topic: "f".into(), partitions: [(0, 300), (1, 0), (2, 130), (5, 201)].map(place).to_vec() }
    }

    /// The first so many records of the range.
    fn pooled(records: usize) -> Pooled {
        let range = range();
        let mut pooled = Pooled::new(&range, DIM);
        for chunk in samples(&range)[..records].chunks(BLOCK as usize) {
            let mut block = Block::new(DIM, chunk.len() as u64);
            for (index, sample, next_offset, digest) in chunk {
                let (matrix, label, hash) = (sample.matrix(), sample.label(), sample.hash());
                let (index, next_offset, digest) = (*index, *next_offset, *digest);
                block.push(&Record { matrix, label, hash, index, next_offset, digest }, ROWS_MAX);
            }
            pooled.push(block);
        }
        pooled
    }

    fn reading(window: u32, validation: u32, labels: Labels, labelled_only: bool) -> Reading {
        Reading { window, rows_max: ROWS_MAX, dim: DIM, validation, labels, labelled_only, pooled: true }
    }

    fn classes() -> Labels {
        Labels::Classes(LABELS.map(String::from).to_vec())
    }

    fn whole(pooled: &Pooled, position: &Position, window: u32) -> Uncut {
        let Piece::Whole(uncut) = pooled.piece(position, window) else { panic!("{position:?} is not there") };
        uncut
    }

    type Shown = (u64, Vec<(Vec<u8>, Target)>, Vec<u32>, Vec<u32>);

    fn shown(window: &Window) -> Shown {
        let record = |place| {
            let (matrix, target) = window.record(place);
            assert_eq!((matrix.rows, matrix.dim), (1, DIM));
            (matrix.data.to_vec(), target)
        };
        let records = (0..window.records() as u32).map(record).collect();
        (window.index, records, window.training().to_vec(), window.validation().to_vec())
    }

    #[test]
    fn each_reading_gets_the_windows_and_positions_that_it_would_read() {
        let (range, pooled) = (range(), pooled(631));
        let samples = samples(&range);
        for (window, validation, labels, labelled_only) in [
            (1, 5, classes(), true),
            (7, 0, classes(), false),
            (256, 3, classes(), true),
            (300, 10, Labels::Ignored, false),
            (512, 2, Labels::Ignored, false),
            (9_999, 4, classes(), true),
        ] {
            let reading = reading(window, validation, labels, labelled_only);
            let (mut position, mut merge) = (Position::start(&range), Merge::new(range.counts()));
            let mut expected = Position::start(&range);
            for (number, chunk) in (0..).zip(samples.chunks(window as usize)) {
                let uncut = whole(&pooled, &position, window);
                let mut read = Window::default();
                read.clear(number, DIM);
                for (index, sample, next_offset, digest) in chunk {
                    let target = reading.labels.target(sample.label()).unwrap();
                    if target != Target::None || !labelled_only {
                        let validation = is_validation(sample.hash(), validation);
                        read.push_mean(sample.matrix(), ROWS_MAX, target, validation);
                    }
                    expected.offsets[*index] = *next_offset;
                    expected.digests[*index] = digest.hex();
                    let _ = merge.next();
                }
                assert_eq!(shown(&uncut.cut(&reading).unwrap()), shown(&read), "window {number} of {window}");
                (expected.window, expected.turn) = (number + 1, merge.turn());
                expected.taken = merge.taken().to_vec();
                assert_eq!(uncut.after, expected);
                position = uncut.after;
            }
            assert_eq!(position.taken, range.counts());
            assert!(matches!(pooled.piece(&position, window), Piece::Elsewhere), "there is nothing behind the last");
        }
    }

    #[test]
    fn a_window_is_there_once_all_of_it_was_read() {
        let pooled = pooled(512);
        let start = Position::start(&range());
        let first = whole(&pooled, &start, 300);
        assert!(matches!(pooled.piece(&first.after, 213), Piece::NotYet));
        let _ = whole(&pooled, &first.after, 212);
    }

    #[test]
    fn positions_that_no_pass_comes_to_are_found_elsewhere() {
        let pooled = pooled(631);
        let known = whole(&pooled, &Position::start(&range()), 100).after;
        let change = |change: &dyn Fn(&mut Position)| {
            let mut position = known.clone();
            change(&mut position);
            pooled.piece(&position, 7)
        };
        for piece in [
            change(&|position| position.digests[2] = Digest(7).hex()),
            change(&|position| position.offsets[0] += 1),
            change(&|position| position.turn += 1),
            change(&|position| (position.taken[0], position.taken[2]) = (position.taken[0] - 1, position.taken[2] + 1)),
            change(&|position| position.taken = vec![u64::MAX; 4]),
            change(&|position| position.taken = vec![1]),
            change(&|position| position.digests.clear()),
        ] {
            assert!(matches!(piece, Piece::Elsewhere), "{piece:?}");
        }
        assert!(matches!(change(&|_| {}), Piece::Whole(_)));
    }

    #[test]
    fn a_label_that_is_none_of_the_readings_is_said_where_the_window_has_it() {
        let (range, pooled) = (range(), pooled(631));
        let numbers = reading(100, 0, Labels::Numbers, true);
        let mut position = Position::start(&range);
        for _ in 0..6 {
            let uncut = whole(&pooled, &position, numbers.window);
            let window = uncut.cut(&numbers).unwrap();
            assert!(window.records() > 50 && matches!(window.record(0).1, Target::Number(_)));
            position = uncut.after;
        }
        let (index, what) = whole(&pooled, &position, numbers.window).cut(&numbers).unwrap_err();
        let first = samples(&range).into_iter().find(|(_, sample, ..)| sample.label() == Some("x")).unwrap();
        assert_eq!((index, what.as_str()), (first.0, "the label `x` is no number"));
    }

    #[test]
    fn what_a_view_takes_is_known_beforehand_but_for_its_labels() {
        let bytes = |records, dim| {
            let mut range = range();
            range.partitions[1].records = records;
            Pooled::bytes(&range, dim)
        };
        assert_eq!(bytes(0, 384), Some(631 * (384 * 4 + 12 + 16)));
        assert_eq!((bytes(u64::MAX / 4096, 4096), bytes(0, usize::MAX / 2)), (None, None));
        let mut block = Block::new(DIM, 9);
        for (index, sample, next_offset, digest) in &samples(&range())[..9] {
            let (matrix, label, hash) = (sample.matrix(), sample.label(), sample.hash());
            let (index, next_offset, digest) = (*index, *next_offset, *digest);
            block.push(&Record { matrix, label, hash, index, next_offset, digest }, ROWS_MAX);
        }
        let distinct = "1".len() + "2.5".len();
        assert_eq!((block.records(), block.label_bytes()), (9, distinct + 2 * size_of::<(Box<str>, u32)>()));
    }
}
