//! The values of a tensor, read and changed where they lie. \[pure\]

use std::cell::RefCell;

use candle_core::{CpuStorage, InplaceOp1, Layout, Storage, Tensor};

/// `sum[i] += values[i]`
#[inline(always)]
pub fn add(sum: &mut [f32], values: &[f32]) {
    for (sum, value) in sum.iter_mut().zip(values) {
        *sum += value;
    }
}

/// `sum[i] += factor · values[i]`
#[inline(always)]
pub fn add_scaled(sum: &mut [f32], factor: f32, values: &[f32]) {
    for (sum, value) in sum.iter_mut().zip(values) {
        *sum += factor * value;
    }
}

/// Calls `f` with the values of a contiguous `f32` tensor, in row-major order.
pub fn read<R>(tensor: &Tensor, f: impl FnOnce(&[f32]) -> R) -> candle_core::Result<R> {
    let (storage, layout) = tensor.storage_and_layout();
    let Storage::Cpu(storage) = &*storage else {
        candle_core::bail!("a tensor of a trial is not in main memory");
    };
    let (start, end) = contiguous(layout)?;
    Ok(f(&storage.as_slice::<f32>()?[start..end]))
}

/// Calls `f` with the values of a contiguous `f32` tensor, to be changed in place.
///
/// `f` must not read a tensor that shares this one's storage: the storage is locked.
pub fn edit<R>(tensor: &Tensor, f: impl FnOnce(&mut [f32]) -> R) -> candle_core::Result<R> {
    let edit = Edit(RefCell::new((Some(f), None)));
    tensor.inplace_op1(&edit)?;
    edit.0.into_inner().1.ok_or_else(|| candle_core::Error::msg("an edit was not carried out"))
}

/// A function to run in place, and then its result.
struct Edit<F, R>(RefCell<(Option<F>, Option<R>)>);

impl<R, F: FnOnce(&mut [f32]) -> R> InplaceOp1 for Edit<F, R> {
    fn name(&self) -> &'static str {
        "edit"
    }

    fn cpu_fwd(&self, storage: &mut CpuStorage, layout: &Layout) -> candle_core::Result<()> {
        let (start, end) = contiguous(layout)?;
        let CpuStorage::F32(values) = storage else {
            candle_core::bail!("a tensor of a trial is not f32");
        };
        let (f, result) = &mut *self.0.borrow_mut();
        *result = f.take().map(|f| f(&mut values[start..end]));
        Ok(())
    }
}

fn contiguous(layout: &Layout) -> candle_core::Result<(usize, usize)> {
    layout.contiguous_offsets().ok_or_else(|| candle_core::Error::msg("a tensor of a trial is not contiguous"))
}
