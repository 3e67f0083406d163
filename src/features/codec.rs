//! The value of a `features` record: safetensors with one tensor, `rows` `[rows, embedding_dim]`, f16 or f32. Pure.

use half::f16;
use half::slice::HalfFloatSliceExt;
use safetensors::tensor::{Dtype as TensorDtype, SafeTensors};

use super::vector::vectorized;
use crate::config::MatrixDtype;
use crate::text::shortened;

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
    format!("{:016x}", twox_hash::XxHash3_64::oneshot(value.unwrap_or_default()))
}

/// Number format of a matrix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dtype {
    F16,
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

    /// Reads little-endian numbers, at any alignment, into as many `f32`.
    pub fn read(self, bytes: &[u8], values: &mut [f32]) {
        self.each(bytes, values, |value, read| *value = read);
    }

    /// Reads as [`Dtype::read`] does, and adds.
    fn add(self, bytes: &[u8], sums: &mut [f32]) {
        self.each(bytes, sums, |sum, read| *sum += read);
    }

    /// Whether one of these little-endian numbers is a NaN or an infinity: all bits of its exponent are set.
    fn any_not_finite(self, bytes: &[u8]) -> bool {
        const F16: u16 = 0x7c00;
        const F32: u32 = 0x7f80_0000;
        vectorized(
            #[inline(always)]
            || match self {
                Self::F16 => any(bytes, |bytes| u16::from_le_bytes(bytes) & F16 == F16),
                Self::F32 => any(bytes, |bytes| u32::from_le_bytes(bytes) & F32 == F32),
            },
        )
    }

    /// Calls `f` with each value and the number that belongs to it, in vector instructions of the processor at hand.
    #[inline(always)]
    fn each(self, bytes: &[u8], values: &mut [f32], f: impl Fn(&mut f32, f32)) {
        vectorized(
            #[inline(always)]
            || match self {
                Self::F16 => each(bytes, values, |value, bytes| f(value, widened(u16::from_le_bytes(bytes)))),
                Self::F32 => each(bytes, values, |value, bytes| f(value, f32::from_le_bytes(bytes))),
            },
        );
    }
}

#[inline(always)]
fn each<const N: usize>(bytes: &[u8], values: &mut [f32], f: impl Fn(&mut f32, [u8; N])) {
    values.iter_mut().zip(bytes.as_chunks().0).for_each(|(value, &bytes)| f(value, bytes));
}

/// Without a way out of the loop, which would keep it from vector instructions.
#[inline(always)]
fn any<const N: usize>(bytes: &[u8], is: impl Fn([u8; N]) -> bool) -> bool {
    bytes.as_chunks().0.iter().fold(false, |any, &bytes| any | is(bytes))
}

/// A half as `f32`, as the processor's own instruction has it; unlike that one, this can become a part of any loop.
#[inline(always)]
fn widened(half: u16) -> f32 {
    let magnitude = u32::from(half & 0x7fff) << 13;
    // The exponents' biases are 112 apart. The product is exact, and makes normal numbers of subnormal ones.
    let number = f32::from_bits(magnitude) * f32::from_bits((127 + 112) << 23);
    let bits = match half & 0x7fff {
        0..0x7c00 => number.to_bits(),
        0x7c00 => f32::INFINITY.to_bits(),
        _ => magnitude | f32::NAN.to_bits(),
    };
    f32::from_bits(bits | u32::from(half & 0x8000) << 16)
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
    pub dtype: Dtype,
    /// At least 1.
    pub rows: usize,
    /// At least 1.
    pub dim: usize,
    /// `rows * dim * dtype.bytes()` bytes, of any alignment.
    pub data: &'a [u8],
}

impl MatrixView<'_> {
    /// Its rows as bytes, the first `rows_max` of them.
    pub fn rows(&self, rows_max: usize) -> impl Iterator<Item = &[u8]> {
        self.data.chunks_exact((self.dim * self.dtype.bytes()).max(1)).take(self.rows.min(rows_max))
    }

    /// The mean of its first `rows_max` rows, summed in row order in `f32` and divided by their count.
    pub fn mean(&self, rows_max: usize, mean: &mut [f32]) {
        for (t, bytes) in self.rows(rows_max).enumerate() {
            match t {
                0 => self.dtype.read(bytes, mean),
                _ => self.dtype.add(bytes, mean),
            }
        }
        let count = self.rows.min(rows_max) as f32;
        mean.iter_mut().for_each(|value| *value /= count);
    }

    /// The first of its first `rows_max` rows, from 0, that holds a NaN or an infinity.
    pub fn first_not_finite(&self, rows_max: usize) -> Option<usize> {
        let read = self.rows.min(rows_max) * self.dim * self.dtype.bytes();
        // At once first: it is all that sound matrices need (20 kB in under 1 µs).
        self.dtype.any_not_finite(&self.data[..read]).then_some(())?;
        self.rows(rows_max).position(|row| self.dtype.any_not_finite(row))
    }
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
    let mut encoder = Encoder::new(rows, dim, dtype);
    encoder.push(values);
    encoder.finish()
}

/// Encodes a matrix that comes in pieces, without a copy of the whole.
pub struct Encoder {
    bytes: Vec<u8>,
    /// How many there will be.
    end: usize,
    dtype: Dtype,
}

impl Encoder {
    /// Begins a matrix of `rows × dim` numbers.
    pub fn new(rows: usize, dim: usize, dtype: Dtype) -> Self {
        let size = rows * dim * dtype.bytes();
        let name = match dtype {
            Dtype::F16 => "F16",
            Dtype::F32 => "F32",
        };
        // Byte for byte what the safetensors library writes, padding included.
        let mut header =
            format!(r#"{{"{TENSOR}":{{"dtype":"{name}","shape":[{rows},{dim}],"data_offsets":[0,{size}]}}}}"#);
        header.extend(std::iter::repeat_n(' ', header.len().next_multiple_of(8) - header.len()));
        let end = 8 + header.len() + size;
        let mut bytes = Vec::with_capacity(end);
        bytes.extend_from_slice(&(header.len() as u64).to_le_bytes());
        bytes.extend_from_slice(header.as_bytes());
        Self { bytes, end, dtype }
    }

    /// Adds the numbers that come next.
    pub fn push(&mut self, values: &[f32]) {
        match self.dtype {
            Dtype::F16 => {
                const CHUNK: usize = 512;
                let mut halves = [f16::ZERO; CHUNK];
                for values in values.chunks(CHUNK) {
                    let halves = &mut halves[..values.len()];
                    halves.convert_from_f32_slice(values);
                    self.bytes.extend_from_slice(bytemuck::cast_slice(halves));
                }
            }
            Dtype::F32 => self.bytes.extend_from_slice(bytemuck::cast_slice(values)),
        }
    }

    /// The matrix as bytes.
    pub fn finish(self) -> Vec<u8> {
        debug_assert_eq!(self.bytes.len(), self.end);
        self.bytes
    }
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
    if let Some(matrix) = decode_own(bytes) {
        return Ok(matrix);
    }
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

/// What [`encode`] has written, without a map of tensors for each record (0.1 µs, not 0.8).
fn decode_own(bytes: &[u8]) -> Option<MatrixView<'_>> {
    let (length, rest) = bytes.split_first_chunk()?;
    let (header, data) = rest.split_at_checked(usize::try_from(u64::from_le_bytes(*length)).ok()?)?;
    let header = header.strip_prefix(b"{\"rows\":{\"dtype\":\"F")?;
    let (dtype, header) = match header.split_first_chunk()? {
        (b"16", header) => (Dtype::F16, header),
        (b"32", header) => (Dtype::F32, header),
        _ => return None,
    };
    let (rows, header) = number(header.strip_prefix(b"\",\"shape\":[")?)?;
    let (dim, header) = number(header.strip_prefix(b",")?)?;
    let (end, header) = number(header.strip_prefix(b"],\"data_offsets\":[0,")?)?;
    let padding = header.strip_prefix(b"]}}")?;
    let fits = rows > 0 && dim > 0 && end == data.len() && padding.iter().all(|&byte| byte == b' ');
    let size = rows.checked_mul(dim)?.checked_mul(dtype.bytes())?;
    (fits && size == end).then_some(MatrixView { dtype, rows, dim, data })
}

/// A decimal number as JSON writes it, and what follows.
fn number(bytes: &[u8]) -> Option<(usize, &[u8])> {
    let end = bytes.iter().position(|byte| !byte.is_ascii_digit())?;
    let (digits, rest) = bytes.split_at(end);
    if digits.len() > 1 && digits[0] == b'0' {
        return None;
    }
    Some((std::str::from_utf8(digits).ok()?.parse().ok()?, rest))
}

#[cfg(test)]
mod tests {
    use safetensors::tensor::TensorView;

    use super::*;

    #[test]
    fn a_matrix_is_written_as_the_library_writes_it() {
        for (rows, dim) in [(1, 1), (3, 4), (10, 384), (123, 7), (1000, 2)] {
            let values: Vec<f32> = (0..rows * dim).map(|i| i as f32 * 0.37 - 5.0).collect();
            let halves: Vec<f16> = values.iter().map(|&value| f16::from_f32(value)).collect();
            let library = |dtype, bytes| {
                let view = TensorView::new(dtype, vec![rows, dim], bytes).unwrap();
                safetensors::serialize([(TENSOR, view)], None).unwrap()
            };
            let f16 = library(TensorDtype::F16, bytemuck::cast_slice(&halves));
            assert_eq!(encode(rows, dim, &values, Dtype::F16), f16);
            assert_eq!(
                encode(rows, dim, &values, Dtype::F32),
                library(TensorDtype::F32, bytemuck::cast_slice(&values))
            );
            let mut pieces = Encoder::new(rows, dim, Dtype::F16);
            values.chunks(dim).for_each(|row| pieces.push(row));
            assert_eq!(pieces.finish(), f16);
        }
    }

    #[test]
    fn a_matrix_survives_the_round_trip_in_both_formats() {
        let values: Vec<f32> = (0..12).map(|i| i as f32 / 4.0 - 1.0).collect();
        for dtype in [Dtype::F16, Dtype::F32] {
            let bytes = encode(3, 4, &values, dtype);
            assert!(bytes.len() <= encoded_bytes_max(3, 4, dtype));
            let view = decode(&bytes).unwrap();
            assert_eq!((view.rows, view.dim, view.dtype), (3, 4, dtype));
            assert_eq!(view.data.len(), 12 * dtype.bytes());
            assert_eq!(decode_own(&bytes).unwrap().data, view.data);
        }
    }

    #[test]
    fn every_half_is_widened_as_by_the_library() {
        let halves: Vec<u8> = (0..=u16::MAX).flat_map(u16::to_le_bytes).collect();
        // Also beside a vector's bounds.
        for skipped in [0, 1, 5] {
            let halves = &halves[2 * skipped..];
            let mut values = vec![0.0; halves.len() / 2];
            Dtype::F16.read(halves, &mut values);
            for (bytes, value) in halves.as_chunks().0.iter().zip(values) {
                assert_eq!(value.to_bits(), f16::from_le_bytes(*bytes).to_f32().to_bits(), "{bytes:?}");
            }
        }
    }

    #[test]
    fn a_row_that_is_not_finite_is_found() {
        for dtype in [Dtype::F16, Dtype::F32] {
            for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
                let mut values = vec![65_504.0; 7 * 37];
                values[5 * 37 + 36] = bad;
                let bytes = encode(7, 37, &values, dtype);
                let view = decode(&bytes).unwrap();
                assert_eq!((view.first_not_finite(7), view.first_not_finite(5)), (Some(5), None), "{dtype:?} {bad}");
            }
            let bytes = encode(1, 3, &[f32::MIN_POSITIVE, -65_504.0, 0.0], dtype);
            assert_eq!(decode(&bytes).unwrap().first_not_finite(9), None);
        }
        // Too large for a half.
        assert_eq!(decode(&encode(1, 1, &[70_000.0], Dtype::F16)).unwrap().first_not_finite(1), Some(0));
    }

    #[test]
    fn what_is_read_quickly_is_what_the_library_reads() {
        let mut bytes = encode(3, 4, &[0.5; 12], Dtype::F16);
        for place in 0..bytes.len() - 24 {
            let kept = bytes[place];
            for other in [b'0', b'1', b'9', b' ', b'"', b'{', 0] {
                bytes[place] = other;
                let Some(own) = decode_own(&bytes) else { continue };
                let tensors = SafeTensors::deserialize(&bytes).unwrap();
                let tensor = tensors.tensor(TENSOR).unwrap();
                assert_eq!((tensor.shape(), tensor.data()), ([own.rows, own.dim].as_slice(), own.data));
                assert_eq!(tensor.dtype() == TensorDtype::F16, own.dtype == Dtype::F16);
            }
            bytes[place] = kept;
        }
        assert!(decode_own(&bytes[..bytes.len() - 1]).is_none());
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
