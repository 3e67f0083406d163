//! Consecutive records of a range, held as they came: ragged, in their own number format. Pure.

use std::sync::Arc;

use super::codec::{Dtype, MatrixView};
use crate::text::shortened;

/// How records become examples.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reading {
    /// Records of a window, both splits together.
    pub window: u32,
    /// Rows read of each matrix.
    pub rows_max: usize,
    /// Numbers in a row.
    pub dim: usize,
    /// One in so many records is validation.
    pub validation: u32,
    /// What labels are to the model.
    pub labels: Labels,
    /// Records without a label are left out.
    pub labelled_only: bool,
    /// Only the mean of a matrix's rows is kept, for models that read nothing else.
    pub pooled: bool,
}

impl Reading {
    /// Whether a record that is this to the model is trained on or validated with.
    pub fn takes(&self, target: Target) -> bool {
        target != Target::None || !self.labelled_only
    }
}

/// What labels are to a model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Labels {
    Ignored,
    /// Names of classes, sorted: a label's place is its class.
    Classes(Vec<String>),
    Numbers,
}

impl Labels {
    /// What a model is to make of a record with this label.
    ///
    /// # Errors
    /// Says why the label is not one of these.
    pub fn target(&self, label: Option<&str>) -> Result<Target, String> {
        match (self, label) {
            (Self::Ignored, _) | (_, None) => Ok(Target::None),
            (Self::Classes(classes), Some(label)) => {
                let place = classes.binary_search_by(|known| known.as_str().cmp(label));
                let place = place.map_err(|_| format!("no record had the label `{}`", shortened(label)))?;
                u32::try_from(place).map(Target::Class).map_err(|error| error.to_string())
            }
            (Self::Numbers, Some(label)) => number(label).map(Target::Number),
        }
    }
}

/// The number that a label is.
///
/// # Errors
/// Shows a label that is none, or none that `f32` can hold.
pub fn number(label: &str) -> Result<f32, String> {
    let number = label.parse::<f32>().ok().filter(|number| number.is_finite());
    number.ok_or_else(|| format!("the label `{}` is no number", shortened(label)))
}

/// What a model is to make of a record.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Target {
    /// There is no label, or it means nothing to the model.
    None,
    /// Number of a class.
    Class(u32),
    Number(f32),
}

/// A matrix and what a model is to make of it.
pub type Example<'a> = (MatrixView<'a>, Target);

/// One record of a window.
#[derive(Clone, Copy, Debug)]
struct Entry {
    dtype: Dtype,
    rows: usize,
    /// Which of the lent means hold it; nothing if the window's own bytes do.
    lent: Option<u32>,
    start: usize,
    target: Target,
}

/// Records of one window of a range, in computed order. Its buffers are reused from window to window.
#[derive(Debug, Default)]
pub struct Window {
    /// Number of the window within a pass, from 0.
    pub index: u64,
    dim: usize,
    bytes: Vec<u8>,
    /// Means that others hold, too.
    lent: Vec<Arc<Vec<f32>>>,
    entries: Vec<Entry>,
    /// Which entries belong to the training split, in computed order.
    training: Vec<u32>,
    /// Which entries belong to the validation split, in computed order.
    validation: Vec<u32>,
    /// Room for a mean.
    mean: Vec<f32>,
}

impl Window {
    /// Empties the window for the next records.
    pub fn clear(&mut self, index: u64, dim: usize) {
        self.index = index;
        self.dim = dim;
        self.bytes.clear();
        self.lent.clear();
        self.entries.clear();
        self.training.clear();
        self.validation.clear();
    }

    /// Adds a record; rows beyond `rows_max` are cut.
    pub fn push(&mut self, matrix: MatrixView<'_>, rows_max: usize, target: Target, validation: bool) {
        let rows = matrix.rows.min(rows_max);
        self.enter(Entry { dtype: matrix.dtype, rows, lent: None, start: self.bytes.len(), target }, validation);
        self.bytes.extend_from_slice(&matrix.data[..rows * matrix.dim * matrix.dtype.bytes()]);
    }

    fn enter(&mut self, entry: Entry, validation: bool) {
        let place = u32::try_from(self.entries.len()).unwrap_or(u32::MAX);
        self.entries.push(entry);
        if validation { &mut self.validation } else { &mut self.training }.push(place);
    }

    /// Adds a mean that others hold, too, without a copy of it: the one at this place of `means`.
    pub fn lend(&mut self, means: &Arc<Vec<f32>>, place: usize, target: Target, validation: bool) {
        self.lend_at(means, place * self.dim * Dtype::F32.bytes(), target, validation);
    }

    fn lend_at(&mut self, means: &Arc<Vec<f32>>, start: usize, target: Target, validation: bool) {
        if !self.lent.last().is_some_and(|last| Arc::ptr_eq(last, means)) {
            self.lent.push(Arc::clone(means));
        }
        let lent = u32::try_from(self.lent.len() - 1).ok();
        self.enter(Entry { dtype: Dtype::F32, rows: 1, lent, start, target }, validation);
    }

    /// Adds a record of another window; one that was lent to that is lent to this.
    pub fn push_from(&mut self, other: &Self, place: u32, validation: bool) {
        let Entry { lent, start, target, .. } = other.entries[place as usize];
        match lent {
            Some(lent) => self.lend_at(&other.lent[lent as usize], start, target, validation),
            None => {
                let (matrix, target) = other.record(place);
                self.push(matrix, matrix.rows, target, validation);
            }
        }
    }

    /// Adds the mean of a record's first `rows_max` rows, as a matrix of one row in `f32`. What a model makes of it is
    /// the same, bit for bit; the window holds a twentieth, and the record is read once while it is in cache.
    pub fn push_mean(&mut self, matrix: MatrixView<'_>, rows_max: usize, target: Target, validation: bool) {
        let mut mean = std::mem::take(&mut self.mean);
        mean.resize(matrix.dim, 0.0);
        matrix.mean(rows_max, &mut mean);
        let data = bytemuck::cast_slice(&mean);
        self.push(MatrixView { dtype: Dtype::F32, rows: 1, dim: matrix.dim, data }, 1, target, validation);
        self.mean = mean;
    }

    /// Places of the training records, in computed order.
    pub fn training(&self) -> &[u32] {
        &self.training
    }

    /// Places of the validation records, in computed order.
    pub fn validation(&self) -> &[u32] {
        &self.validation
    }

    /// Records of both splits.
    pub fn records(&self) -> usize {
        self.entries.len()
    }

    /// Bytes of the matrices that it holds itself.
    pub fn bytes(&self) -> usize {
        self.bytes.len()
    }

    /// One that takes so many bytes.
    #[cfg(test)]
    pub(super) fn of_bytes(bytes: usize) -> Self {
        Self { bytes: vec![0; bytes], ..Self::default() }
    }

    /// Bytes of memory that a copy of it takes.
    pub fn bytes_held(&self) -> usize {
        self.bytes.len() + self.entries.len() * (size_of::<Entry>() + size_of::<u32>())
    }

    /// The record at a place.
    pub fn record(&self, place: u32) -> Example<'_> {
        let Entry { dtype, rows, lent, start, target } = self.entries[place as usize];
        let bytes = lent.map_or(self.bytes.as_slice(), |lent| bytemuck::cast_slice(&self.lent[lent as usize]));
        let end = start + rows * self.dim * dtype.bytes();
        (MatrixView { dtype, rows, dim: self.dim, data: &bytes[start..end] }, target)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_label_is_what_the_task_makes_of_it() {
        let classes = Labels::Classes(vec!["a".into(), "c".into()]);
        assert_eq!(classes.target(Some("c")), Ok(Target::Class(1)));
        assert_eq!(classes.target(Some("b")), Err("no record had the label `b`".into()));
        assert_eq!(Labels::Numbers.target(Some("-2.5e1")), Ok(Target::Number(-25.0)));
        for none in ["b", "", "1,5", "NaN", "inf", "1e39"] {
            assert_eq!(Labels::Numbers.target(Some(none)), Err(format!("the label `{none}` is no number")));
        }
        assert_eq!(Labels::Ignored.target(Some("b")), Ok(Target::None));
        assert_eq!((classes.target(None), Labels::Numbers.target(None)), (Ok(Target::None), Ok(Target::None)));
    }

    #[test]
    fn records_keep_their_order_format_label_and_split() {
        let halves: Vec<u8> = (0..12).collect();
        let singles: Vec<u8> = (100..116).collect();
        let mut window = Window::default();
        for round in 0..2 {
            window.clear(round, 2);
            window.push(MatrixView { dtype: Dtype::F16, rows: 3, dim: 2, data: &halves }, 2, Target::Class(1), false);
            window.push(MatrixView { dtype: Dtype::F32, rows: 2, dim: 2, data: &singles }, 2, Target::None, true);
            window.push(
                MatrixView { dtype: Dtype::F16, rows: 3, dim: 2, data: &halves },
                9,
                Target::Number(0.5),
                false,
            );
            assert_eq!((window.index, window.records(), window.bytes()), (round, 3, 8 + 16 + 12));
            assert_eq!((window.training(), window.validation()), ([0, 2].as_slice(), [1].as_slice()));
            let (cut, label) = window.record(0);
            assert_eq!((cut.rows, cut.dim, cut.data, label), (2, 2, &halves[..8], Target::Class(1)));
            let (single, label) = window.record(1);
            assert_eq!((single.dtype, single.data, label), (Dtype::F32, singles.as_slice(), Target::None));
            assert_eq!(window.record(2).0.data, halves);
        }
    }

    #[test]
    fn a_mean_is_kept_as_a_matrix_of_one_row() {
        let values: Vec<u8> =
            [1.0_f32, 2.0, 3.0, 5.0, 100.0, 100.0].iter().flat_map(|value| value.to_le_bytes()).collect();
        let mut window = Window::default();
        window.clear(0, 2);
        let matrix = MatrixView { dtype: Dtype::F32, rows: 3, dim: 2, data: &values };
        window.push_mean(matrix, 2, Target::Class(4), false);
        window.push(matrix, 3, Target::None, false);
        let (mean, label) = window.record(0);
        let expected: Vec<u8> = [2.0_f32, 3.5].iter().flat_map(|value| value.to_le_bytes()).collect();
        assert_eq!((mean.dtype, mean.rows, mean.data, label), (Dtype::F32, 1, expected.as_slice(), Target::Class(4)));
        assert_eq!(window.record(1).0.data, values);
    }

    #[test]
    fn what_is_lent_is_not_copied_and_can_be_lent_on() {
        let means = |first: f32| Arc::new((0..6).map(|i| first + i as f32).collect::<Vec<f32>>());
        let (lent, others) = (means(0.0), means(10.0));
        let mut window = Window::default();
        window.clear(0, 2);
        window.lend(&lent, 2, Target::Class(1), false);
        window.lend(&others, 0, Target::None, true);
        window.push(MatrixView { dtype: Dtype::F32, rows: 1, dim: 2, data: &[7; 8] }, 1, Target::None, false);
        window.lend(&others, 1, Target::Number(0.5), false);
        let mut next = Window::default();
        next.clear(0, 2);
        [3, 2, 0].into_iter().for_each(|place| next.push_from(&window, place, place == 0));
        let values = |window: &Window, place: u32| {
            let (matrix, target) = window.record(place);
            assert_eq!((matrix.dtype, matrix.rows, matrix.dim), (Dtype::F32, 1, 2));
            (matrix.data.to_vec(), target)
        };
        let bytes = |values: [f32; 2]| values.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<u8>>();
        assert_eq!(values(&window, 0), (bytes([4.0, 5.0]), Target::Class(1)));
        assert_eq!(values(&window, 1), (bytes([10.0, 11.0]), Target::None));
        assert_eq!((window.training(), window.validation()), ([0, 2, 3].as_slice(), [1].as_slice()));
        assert_eq!(values(&next, 0), (bytes([12.0, 13.0]), Target::Number(0.5)));
        assert_eq!(values(&next, 1), (vec![7; 8], Target::None));
        assert_eq!(values(&next, 2), (bytes([4.0, 5.0]), Target::Class(1)));
        assert_eq!((next.bytes(), next.validation()), (8, [2].as_slice()));
        assert_eq!(next.record(2).0.data.as_ptr(), bytemuck::cast_slice::<f32, u8>(&lent[4..]).as_ptr());
        drop(window);
        next.clear(0, 2);
        assert_eq!((Arc::strong_count(&lent), Arc::strong_count(&others)), (1, 1));
    }
}
