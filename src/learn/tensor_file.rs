//! safetensors files of a trial's tensors, written without a copy and read only if they are exactly those. \[pure\]

use std::collections::BTreeMap;

use candle_core::Tensor;
use safetensors::tensor::{Dtype, Metadata, SafeTensorError, SafeTensors, TensorInfo, TensorView};
use thiserror::Error;

use crate::models::tensors::read;

/// Why bytes are not the tensors that were expected. None of them have been taken over.
#[derive(Debug, Error)]
pub enum FileError {
    /// Not safetensors.
    #[error("the bytes are not safetensors")]
    Malformed(#[from] SafeTensorError),
    /// A tensor that is needed.
    #[error("tensor {name} is missing; expected are {expected}")]
    Missing { name: String, expected: String },
    /// A tensor that nobody needs: these are another model's.
    #[error("tensor {name} is not the model's; expected are {expected}")]
    Surplus { name: String, expected: String },
    /// Another shape.
    #[error("tensor {name} has shape {found:?}, expected is {expected:?}")]
    Shape { name: String, expected: Vec<usize>, found: Vec<usize> },
    /// Another element type.
    #[error("tensor {name} has elements of type {found}, expected is {expected}")]
    Type { name: String, expected: String, found: String },
    /// The tensor library refused.
    #[error(transparent)]
    Tensor(#[from] candle_core::Error),
}

/// A tensor as it stands in a file.
#[derive(Debug)]
pub struct TensorData<'a> {
    pub shape: Vec<usize>,
    pub values: Values<'a>,
}

/// The elements of a [`TensorData`] tensor.
#[derive(Debug)]
pub enum Values<'a> {
    /// `f32`.
    Tensor(Tensor),
    /// `f32`.
    State(&'a [f32]),
    /// One `u64`.
    Count(u64),
}

impl TensorData<'_> {
    fn dtype(&self) -> Dtype {
        match self.values {
            Values::Tensor(_) | Values::State(_) => Dtype::F32,
            Values::Count(_) => Dtype::U64,
        }
    }

    fn size(&self) -> usize {
        self.shape.iter().product::<usize>() * self.dtype().bitsize() / 8
    }
}

/// The file's bytes.
///
/// # Errors
/// What safetensors or the tensor library says.
pub fn bytes(tensors: Vec<(String, TensorData<'_>)>) -> Result<Vec<u8>, FileError> {
    let mut bytes = Vec::with_capacity(tensors.iter().map(|(name, stored)| name.len() + 100 + stored.size()).sum());
    emit(tensors, &mut |part| bytes.extend_from_slice(part))?;
    Ok(bytes)
}

/// Gives a safetensors file to `sink`, piece by piece: a state is large, and the library's own
/// function would copy each tensor once more.
///
/// # Errors
/// As [`bytes`].
pub fn emit(mut tensors: Vec<(String, TensorData<'_>)>, sink: &mut dyn FnMut(&[u8])) -> Result<(), FileError> {
    // The library's order: the widest type first, so that everything stays aligned.
    tensors.sort_by(|(name, stored), (other_name, other)| {
        other.dtype().bitsize().cmp(&stored.dtype().bitsize()).then_with(|| name.cmp(other_name))
    });
    let mut end = 0;
    let info = |(name, stored): &(String, TensorData<'_>)| {
        let start = end;
        end += stored.size();
        (name.clone(), TensorInfo { dtype: stored.dtype(), shape: stored.shape.clone(), data_offsets: (start, end) })
    };
    let infos = tensors.iter().map(info).collect();
    let header = Metadata::new(None, infos)?;
    let mut header = serde_json::to_vec(&header).map_err(SafeTensorError::from)?;
    header.resize(header.len().next_multiple_of(8), b' ');
    sink(&(header.len() as u64).to_le_bytes());
    sink(&header);
    for (_, stored) in &tensors {
        match &stored.values {
            Values::Tensor(tensor) => read(tensor, |values| emit_values(values, sink))?,
            Values::State(values) => emit_values(values, sink),
            Values::Count(count) => sink(&count.to_le_bytes()),
        }
    }
    Ok(())
}

fn emit_values(values: &[f32], sink: &mut dyn FnMut(&[u8])) {
    const CHUNK: usize = 4_096;
    let mut bytes = [0; 4 * CHUNK];
    for values in values.chunks(CHUNK) {
        let bytes = &mut bytes[..4 * values.len()];
        for (bytes, value) in bytes.chunks_exact_mut(4).zip(values) {
            bytes.copy_from_slice(&value.to_le_bytes());
        }
        sink(bytes);
    }
}

/// The file's tensors, if they are exactly those expected.
///
/// # Errors
/// Names the first tensor that differs.
pub fn check<'a>(
    file: &SafeTensors<'a>,
    expected: &[(String, TensorData<'_>)],
) -> Result<BTreeMap<String, TensorView<'a>>, FileError> {
    let found: BTreeMap<String, TensorView<'a>> = file.tensors().into_iter().collect();
    let listed = || {
        let one = |(name, stored): &(String, TensorData<'_>)| format!("{name} {:?}", stored.shape);
        expected.iter().map(one).collect::<Vec<_>>().join(", ")
    };
    for (name, stored) in expected {
        let Some(tensor) = found.get(name) else {
            return Err(FileError::Missing { name: name.clone(), expected: listed() });
        };
        if tensor.shape() != stored.shape {
            let (expected, found) = (stored.shape.clone(), tensor.shape().to_vec());
            return Err(FileError::Shape { name: name.clone(), expected, found });
        }
        if tensor.dtype() != stored.dtype() {
            let (expected, found) = (stored.dtype().to_string(), tensor.dtype().to_string());
            return Err(FileError::Type { name: name.clone(), expected, found });
        }
    }
    match found.keys().find(|&name| expected.iter().all(|(other, _)| other != name)) {
        Some(name) => Err(FileError::Surplus { name: name.clone(), expected: listed() }),
        None => Ok(found),
    }
}

/// The bytes of a tensor that [`check`] has seen.
pub fn data<'a>(found: &BTreeMap<String, TensorView<'a>>, name: &str) -> &'a [u8] {
    found.get(name).map_or(&[], TensorView::data)
}
