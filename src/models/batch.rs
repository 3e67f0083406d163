//! From matrix records to the numbers a model reads. \[pure\]
//!
//! Two layouts, both without a single padding value:
//!
//! - **Pooled**: `[B, D]`, each record the mean of its rows.
//! - **Packed**: the records sorted by length, longest first (equal lengths stay in order), and
//!   stored row by row: first everybody's row 0, then row 1 of those that have one, and so on. Row
//!   number `t` of the batch is a *level*, a contiguous `[n_t, D]` with `n_0 = B ≥ n_1 ≥ …`. A model
//!   that wants the zero-padded `[B, T·D]` multiplies level by level and skips what is zero anyway
//!   (62 % of it at a mean of 24 rows out of 64); a recurrent one takes the levels as its steps;
//!   shifted by one level they are a convolution's neighbours.
//!
//! Padding cannot leak into a result because it does not exist. Matrices longer than `rows_max` are
//! cut.

use candle_core::{DType, Device, Tensor};
use thiserror::Error;

use super::tensors::edit;
use crate::features::codec::MatrixView;
use crate::features::window::{Example, Target};

/// Why records could not become a batch. Nothing has been changed when this is returned.
#[derive(Debug, Error)]
pub enum BatchError {
    /// No records at all.
    #[error("the batch has no records")]
    Empty,
    /// A matrix without rows has no mean and nothing to learn from.
    #[error("record {record} of the batch has no rows")]
    NoRows { record: usize },
    /// Rows of another width than the model's.
    #[error("record {record} of the batch has rows of {found} values, the model reads rows of {expected}")]
    Dimension {
        record: usize,
        /// Values in a row of the model's input.
        expected: usize,
        /// Values in a row of the record.
        found: usize,
    },
    /// The bytes are not `rows · dim` values.
    #[error("record {record} of the batch has {found} bytes, its {rows} rows of {dim} values do not fit them")]
    Size {
        record: usize,
        rows: usize,
        /// Values in a row the view claims.
        dim: usize,
        found: usize,
    },
    /// The tensor library refused.
    #[error(transparent)]
    Tensor(#[from] candle_core::Error),
}

/// How a model wants its input; see the module's documentation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// The mean row of each record.
    Pooled,
    /// Rows by level, longest record first.
    Packed,
}

/// What a model reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InputSpec {
    pub layout: Layout,
    /// Rows of a matrix that are read; the rest is cut.
    pub rows_max: usize,
    /// Values in a row.
    pub dim: usize,
}

/// One batch. It borrows the [`Batcher`]'s buffers, which the next batch overwrites.
#[derive(Debug)]
pub struct Batch<'a> {
    /// Packed: level `t` as `[n_t, D]`. Pooled: one level, `[B, D]`.
    pub levels: Vec<Tensor>,
    /// All levels, one after another: `[sum of n_t, D]`.
    pub packed: Tensor,
    /// What the model is to make of each record, in the order of level 0.
    pub targets: &'a [Target],
    /// For each place in level 0 the record's position in what was given.
    pub order: &'a [usize],
    /// Rows read: the sum of the kept lengths.
    pub rows: usize,
}

impl Batch<'_> {
    /// Number of records, at least 1.
    #[must_use]
    pub fn records(&self) -> usize {
        self.order.len()
    }

    /// Where each level begins in `packed`, and how many rows it has.
    ///
    /// # Errors
    /// What the tensor library says.
    pub fn spans(&self) -> candle_core::Result<Vec<(usize, usize)>> {
        let mut end = 0;
        let span = |level: &Tensor| {
            let rows = level.dim(0)?;
            end += rows;
            Ok((end - rows, rows))
        };
        self.levels.iter().map(span).collect()
    }

    /// For each record, in the order of level 0, where its rows lie in `packed`.
    ///
    /// # Errors
    /// What the tensor library says.
    pub fn rows_of_records(&self) -> candle_core::Result<Vec<Vec<usize>>> {
        let mut rows = vec![Vec::new(); self.records()];
        for (start, count) in self.spans()? {
            rows.iter_mut().take(count).enumerate().for_each(|(place, rows)| rows.push(start + place));
        }
        Ok(rows)
    }
}

/// Builds batches into one buffer that grows to the largest batch seen and is then reused.
#[derive(Debug)]
pub struct Batcher {
    spec: InputSpec,
    buffer: Tensor,
    order: Vec<usize>,
    targets: Vec<Target>,
    offsets: Vec<usize>,
}

impl Batcher {
    /// A builder for one kind of input; it holds no buffer before the first batch.
    ///
    /// # Errors
    /// What the tensor library says.
    pub fn new(spec: InputSpec) -> Result<Self, BatchError> {
        Ok(Self {
            spec,
            buffer: Tensor::zeros((0, spec.dim), DType::F32, &Device::Cpu)?,
            order: Vec::new(),
            targets: Vec::new(),
            offsets: Vec::new(),
        })
    }

    /// Turns records into a batch.
    ///
    /// # Errors
    /// No records, a record that is no matrix of the model's width, or the tensor library.
    pub fn build(&mut self, records: &[Example<'_>]) -> Result<Batch<'_>, BatchError> {
        self.check(records)?;
        self.order.clear();
        self.order.extend(0..records.len());
        let levels = match self.spec.layout {
            Layout::Pooled => self.pool(records)?,
            Layout::Packed => self.pack(records)?,
        };
        self.targets.clear();
        self.targets.extend(self.order.iter().map(|&i| records[i].1));
        let rows = levels.iter().map(|level| level.dim(0)).sum::<candle_core::Result<usize>>()?;
        Ok(Batch {
            levels,
            packed: self.buffer.narrow(0, 0, rows)?,
            targets: &self.targets,
            order: &self.order,
            rows: records.iter().map(|(matrix, _)| self.kept(matrix)).sum(),
        })
    }

    fn kept(&self, matrix: &MatrixView<'_>) -> usize {
        matrix.rows.min(self.spec.rows_max)
    }

    fn check(&self, records: &[Example<'_>]) -> Result<(), BatchError> {
        if records.is_empty() {
            return Err(BatchError::Empty);
        }
        for (record, (matrix, _)) in records.iter().enumerate() {
            let MatrixView { dtype, rows, dim, data } = *matrix;
            if dim != self.spec.dim {
                return Err(BatchError::Dimension { record, expected: self.spec.dim, found: dim });
            }
            if self.kept(matrix) == 0 {
                return Err(BatchError::NoRows { record });
            }
            let size = rows.checked_mul(dim).and_then(|n| n.checked_mul(dtype.bytes()));
            if size != Some(data.len()) {
                return Err(BatchError::Size { record, rows, dim, found: data.len() });
            }
        }
        Ok(())
    }

    /// The means, summed in row order in `f32` and divided by the count.
    fn pool(&mut self, records: &[Example<'_>]) -> Result<Vec<Tensor>, BatchError> {
        self.reserve(records.len())?;
        let (dim, rows_max) = (self.spec.dim, self.spec.rows_max);
        edit(&self.buffer, |buffer| {
            for ((matrix, _), mean) in records.iter().zip(buffer.chunks_exact_mut(dim)) {
                matrix.mean(rows_max, mean);
            }
        })?;
        Ok(vec![self.buffer.narrow(0, 0, records.len())?])
    }

    fn pack(&mut self, records: &[Example<'_>]) -> Result<Vec<Tensor>, BatchError> {
        let (dim, rows_max) = (self.spec.dim, self.spec.rows_max);
        let kept = |i: usize| records[i].0.rows.min(rows_max);
        self.order.sort_by_key(|&i| std::cmp::Reverse(kept(i)));
        // offsets[t] is where level t starts; one more entry ends the last level.
        self.offsets.clear();
        self.offsets.push(0);
        let (mut active, mut end) = (records.len(), 0);
        for t in 0..kept(self.order[0]) {
            while kept(self.order[active - 1]) <= t {
                active -= 1;
            }
            end += active;
            self.offsets.push(end);
        }
        self.reserve(end)?;
        let (order, offsets) = (&self.order, &self.offsets);
        edit(&self.buffer, |buffer| {
            for (place, &i) in order.iter().enumerate() {
                let matrix = &records[i].0;
                for (bytes, offset) in matrix.rows(rows_max).zip(offsets) {
                    let start = (offset + place) * dim;
                    matrix.dtype.read(bytes, &mut buffer[start..start + dim]);
                }
            }
        })?;
        let levels = self.offsets.windows(2).map(|ends| self.buffer.narrow(0, ends[0], ends[1] - ends[0]));
        Ok(levels.collect::<Result<_, _>>()?)
    }

    fn reserve(&mut self, rows: usize) -> Result<(), BatchError> {
        if self.buffer.dim(0)? < rows {
            let shape = (rows.next_power_of_two(), self.spec.dim);
            self.buffer = Tensor::zeros(shape, DType::F32, &Device::Cpu)?;
        }
        Ok(())
    }
}

/// Made-up matrices for the tests of this folder.
#[cfg(test)]
pub mod samples {
    use super::*;
    use crate::features::codec::Dtype;

    /// Bytes of a matrix and what they are.
    pub(crate) struct Sample {
        pub(crate) dtype: Dtype,
        pub(crate) rows: usize,
        pub(crate) dim: usize,
        pub(crate) bytes: Vec<u8>,
        pub(crate) label: Option<u32>,
    }

    impl Sample {
        pub(crate) fn new(dtype: Dtype, dim: usize, values: &[f32], label: Option<u32>) -> Self {
            let bytes = match dtype {
                Dtype::F16 => values.iter().flat_map(|&v| half::f16::from_f32(v).to_le_bytes()).collect(),
                Dtype::F32 => values.iter().flat_map(|v| v.to_le_bytes()).collect(),
            };
            Self { dtype, rows: values.len() / dim, dim, bytes, label }
        }

        /// A matrix whose values only depend on `name`, row and column.
        pub(crate) fn wave(dtype: Dtype, rows: usize, dim: usize, name: usize) -> Self {
            let value = |i: usize| {
                let x = (i + 1_000 * name) as f64;
                (0.7 * x + 0.01 * x * x).sin() as f32
            };
            Self::new(dtype, dim, &(0..rows * dim).map(value).collect::<Vec<_>>(), Some(name as u32 % 3))
        }

        pub(crate) fn record(&self) -> Example<'_> {
            let Self { dtype, rows, dim, ref bytes, label } = *self;
            (MatrixView { dtype, rows, dim, data: bytes }, label.map_or(Target::None, Target::Class))
        }
    }

    /// Several waves of these lengths.
    pub(crate) fn waves(dtype: Dtype, lengths: &[usize], dim: usize) -> Vec<Sample> {
        lengths.iter().enumerate().map(|(name, &rows)| Sample::wave(dtype, rows, dim, name)).collect()
    }

    pub(crate) fn records(samples: &[Sample]) -> Vec<Example<'_>> {
        samples.iter().map(Sample::record).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::samples::{records, waves, Sample};
    use half::f16;

    use crate::features::codec::Dtype;

    use super::*;

    fn batcher(layout: Layout, rows_max: usize, dim: usize) -> Batcher {
        Batcher::new(InputSpec { layout, rows_max, dim }).unwrap()
    }

    /// Slots, targets, order, rows.
    type Contents = (Vec<Vec<Vec<f32>>>, Vec<Target>, Vec<usize>, usize);

    /// Everything in a batch, as plain values.
    fn contents(batch: &Batch<'_>) -> Contents {
        let levels = batch.levels.iter().map(|level| level.to_vec2().unwrap()).collect();
        (levels, batch.targets.to_vec(), batch.order.to_vec(), batch.rows)
    }

    #[test]
    fn pooled_is_the_mean_of_the_first_rows() {
        for dtype in [Dtype::F16, Dtype::F32] {
            let samples = [
                Sample::new(dtype, 2, &[1.0, 2.0, 4.0, 0.5, -2.0, 8.0, f32::NAN, f32::NAN], Some(4)),
                Sample::new(dtype, 2, &[0.25, -0.5], None),
            ];
            let mut batcher = batcher(Layout::Pooled, 3, 2);
            let batch = batcher.build(&records(&samples)).unwrap();
            let (levels, labels, order, rows) = contents(&batch);
            assert_eq!(levels, [[[1.0, 3.5], [0.25, -0.5]]]);
            assert_eq!((labels, order, rows), (vec![Target::Class(4), Target::None], vec![0, 1], 4));
        }
    }

    #[test]
    fn packed_has_the_longest_first_and_no_padding() {
        let f32s = |values: &[f32], label| Sample::new(Dtype::F32, 1, values, Some(label));
        let samples = [f32s(&[1.0], 0), f32s(&[2.0, 3.0, 4.0], 1), f32s(&[5.0], 2), f32s(&[6.0, 7.0, 8.0, 9.0], 3)];
        let mut batcher = batcher(Layout::Packed, 3, 1);
        let (levels, labels, order, rows) = contents(&batcher.build(&records(&samples)).unwrap());
        let expected = [vec![[2.0], [6.0], [1.0], [5.0]], vec![[3.0], [7.0]], vec![[4.0], [8.0]]];
        assert_eq!(levels, expected);
        assert_eq!(order, [1, 3, 0, 2]);
        assert_eq!(labels, [1, 3, 0, 2].map(Target::Class));
        assert_eq!(rows, 8);
    }

    #[test]
    fn every_value_arrives_at_any_alignment_and_width() {
        for dim in [1, 7, 384, 511, 512, 513, 1_300] {
            for dtype in [Dtype::F16, Dtype::F32] {
                let sample = Sample::wave(dtype, 3, dim, 5);
                let mut shifted = vec![0; 1];
                shifted.extend(&sample.bytes);
                let view = MatrixView { dtype, rows: 3, dim, data: &shifted[1..] };
                let mut batcher = batcher(Layout::Packed, 8, dim);
                let (aligned, ..) = contents(&batcher.build(&[sample.record()]).unwrap());
                let (unaligned, ..) = contents(&batcher.build(&[(view, Target::None)]).unwrap());
                assert_eq!(aligned, unaligned);
                let values: Vec<f32> = aligned.into_iter().flatten().flatten().collect();
                let direct: Vec<f32> = match dtype {
                    Dtype::F16 => {
                        let halves = sample.bytes.chunks_exact(2).map(|b| f16::from_le_bytes([b[0], b[1]]));
                        halves.map(f16::to_f32).collect()
                    }
                    Dtype::F32 => {
                        sample.bytes.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect()
                    }
                };
                assert_eq!(values, direct);
            }
        }
    }

    #[test]
    fn a_used_buffer_gives_what_a_fresh_one_gives_and_stays() {
        for layout in [Layout::Pooled, Layout::Packed] {
            let (large, small) = (waves(Dtype::F16, &[9, 4, 9, 7], 5), waves(Dtype::F32, &[1, 3], 5));
            let mut used = batcher(layout, 8, 5);
            let _ = used.build(&records(&large)).unwrap();
            let buffer = used.buffer.id();
            let found = contents(&used.build(&records(&small)).unwrap());
            assert_eq!(found, contents(&batcher(layout, 8, 5).build(&records(&small)).unwrap()));
            let again = contents(&used.build(&records(&large)).unwrap());
            assert_eq!(again, contents(&batcher(layout, 8, 5).build(&records(&large)).unwrap()));
            assert_eq!(used.buffer.id(), buffer, "no new buffer after the largest batch");
        }
    }

    #[test]
    fn what_is_no_batch_is_refused() {
        let mut batcher = batcher(Layout::Packed, 8, 2);
        let view = |rows, dim, data| (MatrixView { dtype: Dtype::F16, rows, dim, data }, Target::None);
        let good = view(1, 2, &[0; 4]);
        assert!(matches!(batcher.build(&[]), Err(BatchError::Empty)));
        assert!(matches!(batcher.build(&[good, view(0, 2, &[])]), Err(BatchError::NoRows { record: 1 })));
        let wide = batcher.build(&[good, good, view(1, 3, &[0; 6])]);
        assert!(matches!(wide, Err(BatchError::Dimension { record: 2, expected: 2, found: 3 })));
        for (rows, size) in [(1, 3), (1, 5), (2, 4), (usize::MAX, 4), (usize::MAX / 4, 4)] {
            let data = &[0; 8][..size];
            let found = batcher.build(&[view(rows, 2, data)]).map(|batch| batch.rows);
            assert!(matches!(found, Err(BatchError::Size { record: 0, .. })), "{rows} rows in {size} bytes: {found:?}");
        }
        assert_eq!(batcher.build(&[good]).unwrap().records(), 1);
    }
}
