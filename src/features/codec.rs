//! The value of a `features` record: safetensors with one tensor, `rows` `[rows, embedding_dim]`, f16 or f32. Pure.

use half::slice::HalfFloatSliceExt;
use safetensors::tensor::{Dtype as TensorDtype, SafeTensors, TensorView};

use crate::config::{shortened, MatrixDtype};

/// Name of the tensor.
pub const TENSOR: &str = "rows";
/// Header: which model and settings made the matrix.
pub const EMBEDDER_HEADER: &str = "embedder";
/// Header: `topic/partition/offset` of the input.
pub const SOURCE_HEADER: &str = "source";
/// Header: [`source_digest`] of the input.
pub const DIGEST_HEADER: &str = "digest";
/// Header, present only when tokens were cut off.
pub const TRUNCATED_HEADER: &str = "truncated";

/// XXH3 (64 bits, hexadecimal) of an input's value; nothing counts as empty. Tells whether the record at a source's
/// offset is still the one that was embedded.
pub fn source_digest(value: Option<&[u8]>) -> String {
    format!("{:016x}", xxhash_rust::xxh3::xxh3_64(value.unwrap_or_default()))
}

/// Number format of a matrix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dtype {
    /// Half precision.
    F16,
    /// Single precision.
    F32,
}

impl Dtype {
    /// Bytes of one number.
    pub const fn bytes(self) -> usize {
        match self {
            Self::F16 => 2,
            Self::F32 => 4,
        }
    }
}

impl From<MatrixDtype> for Dtype {
    fn from(dtype: MatrixDtype) -> Self {
        match dtype {
            MatrixDtype::F16 => Self::F16,
            MatrixDtype::F32 => Self::F32,
        }
    }
}

/// A matrix inside a record: `rows × dim` numbers, row-major, little-endian.
#[derive(Clone, Copy, Debug)]
pub struct MatrixView<'a> {
    /// Number format.
    pub dtype: Dtype,
    /// At least 1.
    pub rows: usize,
    /// At least 1.
    pub dim: usize,
    /// `rows * dim * dtype.bytes()` bytes, of any alignment.
    pub data: &'a [u8],
}

/// Why a value is not a matrix.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Not safetensors, or damaged.
    #[error("the value is not safetensors: {0}")]
    Format(String),
    /// Another tensor.
    #[error("the value has no tensor `{TENSOR}`; it has: {0}")]
    NoRows(String),
    /// Another shape.
    #[error("the tensor `{TENSOR}` has shape {0}; [rows, dim] with at least one row is needed")]
    Shape(String),
    /// Another number format.
    #[error("the tensor `{TENSOR}` is {0}; F16 or F32 is needed")]
    Dtype(String),
}

/// Encodes `rows × dim` numbers. The same numbers give the same bytes.
pub fn encode(rows: usize, dim: usize, values: &[f32], dtype: Dtype) -> Vec<u8> {
    debug_assert_eq!(rows * dim, values.len());
    let halves;
    let (tensor_dtype, bytes): (TensorDtype, &[u8]) = match dtype {
        Dtype::F16 => {
            let mut converted = vec![half::f16::ZERO; values.len()];
            converted.convert_from_f32_slice(values);
            halves = converted;
            (TensorDtype::F16, bytemuck::cast_slice(&halves))
        }
        Dtype::F32 => (TensorDtype::F32, bytemuck::cast_slice(values)),
    };
    let view = TensorView::new(tensor_dtype, vec![rows, dim], bytes).expect("shape and bytes agree by construction");
    safetensors::serialize([(TENSOR, view)], None).expect("one small tensor can be serialized")
}

/// Bytes that [`encode`] gives for a matrix, at most.
pub const fn encoded_bytes_max(rows: usize, dim: usize, dtype: Dtype) -> usize {
    // 8 bytes of length, then a JSON header of under 120 bytes padded to 8.
    rows * dim * dtype.bytes() + 128
}

/// Reads a matrix without copying it.
///
/// # Errors
/// Whatever the bytes are, an error says what is wrong; nothing is allocated beyond the size of the bytes.
pub fn decode(bytes: &[u8]) -> Result<MatrixView<'_>, Error> {
    let tensors = SafeTensors::deserialize(bytes).map_err(|error| Error::Format(shortened(&error.to_string())))?;
    let tensor = tensors.tensor(TENSOR).map_err(|_| Error::NoRows(shortened(&tensors.names().join(", "))))?;
    let dtype = match tensor.dtype() {
        TensorDtype::F16 => Dtype::F16,
        TensorDtype::F32 => Dtype::F32,
        other => return Err(Error::Dtype(format!("{other:?}"))),
    };
    match *tensor.shape() {
        [rows, dim] if rows > 0 && dim > 0 => Ok(MatrixView { dtype, rows, dim, data: tensor.data() }),
        ref shape => Err(Error::Shape(shortened(&format!("{shape:?}")))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_matrix_survives_the_round_trip_in_both_formats() {
        let values: Vec<f32> = (0..12).map(|i| i as f32 / 4.0 - 1.0).collect();
        for dtype in [Dtype::F16, Dtype::F32] {
            let bytes = encode(3, 4, &values, dtype);
            assert!(bytes.len() <= encoded_bytes_max(3, 4, dtype));
            let view = decode(&bytes).unwrap();
            assert_eq!((view.rows, view.dim, view.dtype), (3, 4, dtype));
            assert_eq!(view.data.len(), 12 * dtype.bytes());
        }
    }

    #[test]
    fn what_is_not_a_matrix_is_named() {
        let view = |dtype, shape: Vec<usize>, bytes: &[u8]| {
            safetensors::serialize([("rows", TensorView::new(dtype, shape, bytes).unwrap())], None).unwrap()
        };
        assert!(matches!(decode(b"pickle"), Err(Error::Format(_))));
        assert!(matches!(decode(&view(TensorDtype::F16, vec![0, 4], &[])), Err(Error::Shape(_))));
        assert!(matches!(decode(&view(TensorDtype::F16, vec![4], &[0; 8])), Err(Error::Shape(_))));
        assert!(matches!(decode(&view(TensorDtype::I8, vec![1, 4], &[0; 4])), Err(Error::Dtype(_))));
        let other = safetensors::serialize([("x", TensorView::new(TensorDtype::U8, vec![1], &[0]).unwrap())], None);
        assert!(matches!(decode(&other.unwrap()), Err(Error::NoRows(_))));
    }
}
