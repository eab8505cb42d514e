//! Dense row-major tensors: cheap handles on device memory.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use crate::cuda::PIECE_BYTES;
use crate::limits::MAX_RANK;
use crate::memory::{Memory, Storage};
use crate::simd::Element;
use crate::{DType, Device, Error, MatrixView, Result, Values, ValuesMut};

/// A dense row-major tensor of rank 1 to 4.
///
/// A handle: [`view`](Tensor::view) and [`narrow_rows`](Tensor::narrow_rows) name the same memory. Reading and writing the
/// same allocation at once panics (see `memory.rs`), so an operation's output must not share an allocation with its
/// inputs; where that is wanted, the operation has an in-place form.
pub struct Tensor {
    storage: Arc<Storage>,
    generation: u32,
    /// Where the first element lies in the memory, in bytes.
    offset: usize,
    shape: [usize; MAX_RANK],
    rank: usize,
    dtype: DType,
}

impl Tensor {
    /// A tensor of zeros with memory of its own.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`].
    pub fn zeros(device: &Device, shape: &[usize], dtype: DType) -> Result<Tensor> {
        let bytes = shape.iter().product::<usize>() * dtype.size_bytes();
        let memory = Memory::new(device, bytes, "tensor")?;
        Ok(Tensor::on(Arc::new(Storage::new(Arc::new(memory))), 0, shape, dtype))
    }

    /// An f32 tensor with these values.
    ///
    /// # Errors
    /// [`Error::Shape`] if `values` does not hold one value per element; [`Error::OutOfMemory`].
    pub fn from_slice(device: &Device, shape: &[usize], values: &[f32]) -> Result<Tensor> {
        Tensor::from_bytes(device, shape, DType::F32, bytemuck::cast_slice(values))
    }

    /// A tensor with these little-endian elements, which need no alignment.
    ///
    /// # Errors
    /// [`Error::Shape`] if the length does not match; [`Error::OutOfMemory`].
    pub fn from_bytes(device: &Device, shape: &[usize], dtype: DType, bytes: &[u8]) -> Result<Tensor> {
        if shape.iter().product::<usize>() * dtype.size_bytes() != bytes.len() {
            let actual = vec![bytes.len() / dtype.size_bytes()];
            return Err(Error::Shape { op: "from_bytes", arg: "bytes", expected: shape.to_vec(), actual });
        }
        let mut tensor = Tensor::zeros(device, shape, dtype)?;
        match device {
            Device::Cpu(_) => tensor.as_bytes_mut().copy_from_slice(bytes),
            // SAFETY: the tensor holds as many bytes (checked above), and nobody else has a handle on it yet.
            Device::Cuda(cuda) => unsafe { cuda.context.upload(tensor.address(), bytes)? },
            Device::Plan(_) => {}
        }
        Ok(tensor)
    }

    /// A dense copy of a slice of a checkpoint matrix, converted to `dtype`: embeddings, norm weights and biases.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`].
    pub fn from_matrix(device: &Device, matrix: &MatrixView<'_>, dtype: DType) -> Result<Tensor> {
        let mut tensor = Tensor::zeros(device, &[matrix.rows, matrix.cols], dtype)?;
        let row_bytes = matrix.cols * dtype.size_bytes();
        match device {
            Device::Cpu(cpu) => {
                cpu.for_rows(&mut tensor.as_bytes_mut(), row_bytes, matrix.cols, |first, part| {
                    for (at, out) in part.chunks_exact_mut(row_bytes).enumerate() {
                        matrix.dtype.convert(matrix.row_bytes(first + at), dtype, out);
                    }
                });
            }
            // A copy is of whole words.
            Device::Cuda(cuda) if row_bytes > 0 && row_bytes.is_multiple_of(size_of::<u32>()) => {
                let turn = (PIECE_BYTES / row_bytes).max(1);
                let mut uploads = cuda.uploads();
                for first in (0..matrix.rows).step_by(turn) {
                    let len = turn.min(matrix.rows - first) * row_bytes;
                    let mut piece = uploads.next(len)?;
                    cuda.host().for_each_part(&mut piece.bytes_mut()[..len], row_bytes, |row, out| {
                        matrix.dtype.convert(matrix.row_bytes(first + row), dtype, out);
                    });
                    // SAFETY: the tensor has as many bytes of its rows from this one on, and nobody else has a handle on it yet.
                    unsafe { piece.upload(tensor.address() + (first * row_bytes) as u64, 0, len)? };
                }
            }
            Device::Cuda(cuda) => {
                let rounded = Tensor::from_matrix(cuda.host(), matrix, dtype)?;
                return Tensor::from_bytes(device, rounded.shape(), dtype, &rounded.as_bytes());
            }
            Device::Plan(_) => {}
        }
        Ok(tensor)
    }

    /// A handle on a part of `storage`, for arenas.
    pub(crate) fn on(storage: Arc<Storage>, offset: usize, shape: &[usize], dtype: DType) -> Tensor {
        let (shape, rank) = pack_shape(shape);
        Tensor { generation: storage.generation(), storage, offset, shape, rank, dtype }
    }

    /// The extents, outermost first.
    pub fn shape(&self) -> &[usize] {
        &self.shape[..self.rank]
    }

    /// The element type.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// Where it lives.
    pub fn device(&self) -> &Device {
        self.storage.memory().device()
    }

    /// The number of elements.
    pub fn len(&self) -> usize {
        self.shape().iter().product()
    }

    /// Whether it has no elements.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The product of all extents but the last.
    pub fn rows(&self) -> usize {
        self.shape[..self.rank - 1].iter().product()
    }

    /// The last extent.
    pub fn cols(&self) -> usize {
        self.shape[self.rank - 1]
    }

    /// The memory that the elements take, in bytes.
    pub fn bytes(&self) -> usize {
        self.len() * self.dtype.size_bytes()
    }

    /// The same memory under another shape.
    ///
    /// # Errors
    /// [`Error::Shape`] if the number of elements differs.
    pub fn view(&self, shape: &[usize]) -> Result<Tensor> {
        if shape.iter().product::<usize>() != self.len() {
            let (expected, actual) = (self.shape().to_vec(), shape.to_vec());
            return Err(Error::Shape { op: "view", arg: "shape", expected, actual });
        }
        let (shape, rank) = pack_shape(shape);
        Ok(Tensor { storage: self.storage.clone(), shape, rank, ..*self })
    }

    /// Rows `start..start + len` of the outermost dimension, on the same memory.
    ///
    /// # Errors
    /// [`Error::Index`] if there are not so many.
    pub fn narrow_rows(&self, start: usize, len: usize) -> Result<Tensor> {
        if start > self.shape[0] || len > self.shape[0] - start {
            let index = start.saturating_add(len);
            return Err(Error::Index { op: "narrow_rows", arg: "start + len", index, limit: self.shape[0] + 1 });
        }
        let row_bytes = self.shape[1..self.rank].iter().product::<usize>() * self.dtype.size_bytes();
        let mut shape = self.shape;
        shape[0] = len;
        Ok(Tensor { storage: self.storage.clone(), offset: self.offset + start * row_bytes, shape, ..*self })
    }

    /// The elements of an f32 tensor. Panics on another dtype, on the plan device, and while somebody writes them.
    pub fn as_f32(&self) -> Values<'_, f32> {
        assert_eq!(self.dtype, DType::F32, "as_f32 of a tensor of another dtype");
        self.storage.read(self.generation, self.offset, self.bytes())
    }

    /// The elements of an f32 tensor, writable. Panics on another dtype, on the plan device, and while somebody else
    /// borrows them.
    pub fn as_f32_mut(&mut self) -> ValuesMut<'_, f32> {
        assert_eq!(self.dtype, DType::F32, "as_f32_mut of a tensor of another dtype");
        self.storage.write(self.generation, self.offset, self.bytes())
    }

    /// Where its first element lies on its GPU.
    ///
    /// # Panics
    /// On other devices, and after its arena took the memory back.
    pub(crate) fn address(&self) -> u64 {
        self.storage.address(self.generation, self.offset, self.bytes())
    }

    /// A copy of some elements of an f32 tensor, on whatever device but `plan`. Waits for what was to write them.
    ///
    /// # Errors
    /// [`Error::DType`]; [`Error::Index`] beyond the last; [`Error::Cuda`].
    pub fn read_f32(&self, range: Range<usize>, out: &mut [f32]) -> Result<()> {
        if self.dtype != DType::F32 {
            return Err(Error::DType { op: "read_f32", arg: "self", expected: DType::F32, actual: self.dtype });
        }
        if range.end > self.len() {
            return Err(Error::Index { op: "read_f32", arg: "range", index: range.end, limit: self.len() + 1 });
        }
        match self.device() {
            Device::Cuda(cuda) => {
                let from = self.address() + (range.start * size_of::<f32>()) as u64;
                // SAFETY: the range lies inside the tensor (checked above), and `out` is as long, or the slicing panics.
                unsafe { cuda.context.download(from, bytemuck::cast_slice_mut(&mut out[..range.len()])) }
            }
            Device::Cpu(_) | Device::Plan(_) => {
                out[..range.len()].copy_from_slice(&self.as_f32()[range]);
                Ok(())
            }
        }
    }

    /// The elements, widened to f32, wherever they are.
    ///
    /// # Errors
    /// [`Error::Cuda`].
    pub fn to_vec(&self) -> Result<Vec<f32>> {
        let mut bytes = vec![0; self.bytes()];
        match self.device() {
            // SAFETY: `bytes` is as long as the tensor.
            Device::Cuda(cuda) => unsafe { cuda.context.download(self.address(), &mut bytes)? },
            Device::Cpu(_) | Device::Plan(_) => bytes.copy_from_slice(&self.as_bytes()),
        }
        let mut values = Vec::with_capacity(self.len());
        self.dtype.decode_all(&bytes, &mut values);
        Ok(values)
    }

    /// The elements as `T`, which the caller has matched with the dtype.
    pub(crate) fn as_elements<T: Element>(&self) -> Values<'_, T> {
        debug_assert_eq!(size_of::<T>(), self.dtype.size_bytes());
        self.storage.read(self.generation, self.offset, self.bytes())
    }

    /// The elements as they lie in memory (little-endian). Panics as [`as_f32`](Tensor::as_f32) does.
    pub fn as_bytes(&self) -> Values<'_, u8> {
        self.storage.read(self.generation, self.offset, self.bytes())
    }

    /// The elements as they lie in memory, writable. Panics as [`as_f32_mut`](Tensor::as_f32_mut) does.
    pub fn as_bytes_mut(&mut self) -> ValuesMut<'_, u8> {
        self.storage.write(self.generation, self.offset, self.bytes())
    }
}

impl fmt::Debug for Tensor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Tensor({:?}, {}, {})", self.shape(), self.dtype, self.device().describe())
    }
}

fn pack_shape(shape: &[usize]) -> ([usize; MAX_RANK], usize) {
    assert!((1..=MAX_RANK).contains(&shape.len()), "tensors have rank 1 to {MAX_RANK}, not {}", shape.len());
    let mut packed = [1; MAX_RANK];
    packed[..shape.len()].copy_from_slice(shape);
    (packed, shape.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn views_share_memory_and_narrow_checks_its_range() {
        let device = Device::cpu(1);
        let base = Tensor::from_slice(&device, &[3, 4], &(0..12).map(|x| x as f32).collect::<Vec<_>>()).unwrap();
        let mut row = base.narrow_rows(1, 1).unwrap().view(&[2, 2]).unwrap();
        row.as_f32_mut()[3] = -1.0;
        assert_eq!(base.as_f32()[7], -1.0);
        assert_eq!((base.rows(), base.cols(), base.narrow_rows(3, 0).unwrap().len()), (3, 4, 0));
        assert!(matches!(base.narrow_rows(2, 2), Err(Error::Index { index: 4, limit: 4, .. })));
        assert!(matches!(base.view(&[5]), Err(Error::Shape { .. })));
    }

    #[test]
    #[should_panic(expected = "borrowed elsewhere")]
    fn writing_what_is_being_read_panics() {
        let base = Tensor::zeros(&Device::cpu(1), &[4], DType::F32).unwrap();
        let mut alias = base.view(&[2, 2]).unwrap();
        let _reading = base.as_f32();
        alias.as_f32_mut()[0] = 1.0;
    }

    #[test]
    fn matrices_are_sliced_and_converted() {
        let bytes: Vec<u8> = (0..12).flat_map(|x| half::bf16::from_f32(x as f32).to_le_bytes()).collect();
        let slice = MatrixView { data: &bytes, dtype: DType::Bf16, rows: 3, cols: 2, row_stride: 4, first_col: 1 };
        let tensor = Tensor::from_matrix(&Device::cpu(1), &slice, DType::F32).unwrap();
        assert_eq!(*tensor.as_f32(), [1.0, 2.0, 5.0, 6.0, 9.0, 10.0]);
    }
}
