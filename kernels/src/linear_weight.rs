//! The weight of a linear layer, packed once at load for the processor.
//!
//! Column panels `[ceil(N / 16)][K][16]` in the element type of the checkpoint: a step over k reads sixteen neighbouring
//! outputs as one vector, and a panel is one forward stream through memory. The last panel is filled up with zeros.

use crate::memory::Memory;
use crate::simd::{Element, LANES};
use crate::{DType, Device, Error, MatrixView, Result};

/// One or several matrices stacked along N, ready for [`ops::linear`](crate::ops::linear).
pub struct LinearWeight {
    panels: Memory,
    n: usize,
    k: usize,
    dtype: DType,
}

impl LinearWeight {
    /// Packs matrices of one element type, stacked along their rows (q, k, v; gate, up), in parallel.
    ///
    /// # Errors
    /// [`Error::Shape`] if their columns differ or a view reaches beyond its data; [`Error::DType`] if their element types
    /// differ; [`Error::OutOfMemory`].
    pub fn pack(device: &Device, matrices: &[MatrixView<'_>]) -> Result<LinearWeight> {
        let dtype = matrices.first().map_or(DType::F32, |matrix| matrix.dtype);
        if let Some(other) = matrices.iter().find(|matrix| matrix.dtype != dtype) {
            return Err(Error::DType { op: "pack", arg: "matrices", expected: dtype, actual: other.dtype });
        }
        LinearWeight::pack_as(device, matrices, dtype)
    }

    /// [`pack`](LinearWeight::pack), rounding every element to `dtype`; the matrices may differ in type.
    ///
    /// # Errors
    /// As [`pack`](LinearWeight::pack), but for [`Error::DType`].
    pub fn pack_as(device: &Device, matrices: &[MatrixView<'_>], dtype: DType) -> Result<LinearWeight> {
        let k = matrices.first().map_or(0, |matrix| matrix.cols);
        for matrix in matrices {
            if matrix.cols != k || !matrix.is_inside() {
                let (expected, actual) = (vec![matrix.rows, k], vec![matrix.rows, matrix.cols]);
                return Err(Error::Shape { op: "pack", arg: "matrices", expected, actual });
            }
        }
        let n = matrices.iter().map(|matrix| matrix.rows).sum::<usize>();
        let panel_bytes = k * LANES * dtype.size_bytes();
        let mut panels = Memory::new(device, n.div_ceil(LANES) * panel_bytes, "weights")?;
        if let Device::Cpu(cpu) = device {
            cpu.for_rows(panels.as_mut_slice::<u8>(), panel_bytes, k * LANES, |first, part| {
                for (at, panel) in part.chunks_exact_mut(panel_bytes).enumerate() {
                    pack_panel(panel, matrices, (first + at) * LANES, dtype);
                }
            });
        }
        Ok(LinearWeight { panels, n, k, dtype })
    }

    /// Outputs.
    pub fn n(&self) -> usize {
        self.n
    }

    /// Inputs.
    pub fn k(&self) -> usize {
        self.k
    }

    /// The element type.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// The memory it takes, in bytes.
    pub fn bytes(&self) -> usize {
        self.panels.bytes()
    }

    /// Where it lives.
    pub fn device(&self) -> &Device {
        self.panels.device()
    }

    /// The panels, `[ceil(N / 16) * K]` vectors of `T`, which the caller has matched with the dtype.
    pub(crate) fn vectors<T: Element>(&self) -> &[[T; LANES]] {
        debug_assert_eq!(size_of::<T>(), self.dtype.size_bytes());
        self.panels.as_slice::<T>().as_chunks().0
    }
}

/// Fills the panel of outputs `first..first + 16`.
fn pack_panel(panel: &mut [u8], matrices: &[MatrixView<'_>], first: usize, dtype: DType) {
    for lane in 0..LANES {
        let Some((matrix, row)) = find_row(matrices, first + lane) else { return };
        let source = matrix.row_bytes(row);
        match (matrix.dtype == dtype, dtype.size_bytes()) {
            (true, 2) => interleave(panel.as_chunks_mut::<2>().0, source.as_chunks::<2>().0, lane),
            (true, _) => interleave(panel.as_chunks_mut::<4>().0, source.as_chunks::<4>().0, lane),
            (false, _) => {
                for (k, element) in source.chunks_exact(matrix.dtype.size_bytes()).enumerate() {
                    dtype.encode_at(panel, k * LANES + lane, matrix.dtype.decode(element));
                }
            }
        }
    }
}

fn interleave<const B: usize>(panel: &mut [[u8; B]], source: &[[u8; B]], lane: usize) {
    for (vector, element) in panel.chunks_exact_mut(LANES).zip(source) {
        vector[lane] = *element;
    }
}

/// The matrix and the row in it of row `n` of the stack.
fn find_row<'m, 'a>(matrices: &'m [MatrixView<'a>], mut n: usize) -> Option<(&'m MatrixView<'a>, usize)> {
    for matrix in matrices {
        if n < matrix.rows {
            return Some((matrix, n));
        }
        n -= matrix.rows;
    }
    None
}
