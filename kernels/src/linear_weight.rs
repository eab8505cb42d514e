//! The weight of a linear layer, packed once at load for the processor.
//!
//! Column panels `[ceil(N / 16)][K][16]` in the element type of the checkpoint: a step over k reads sixteen neighbouring
//! outputs as one vector, and a panel is one forward stream through memory. The last panel is filled up with zeros.
//! Where the machine has dot products of bf16 pairs, bf16 panels are `[ceil(N / 16)][ceil(K / 2)][16][2]`.

use crate::memory::Memory;
#[cfg(target_arch = "x86_64")]
use crate::simd::{Avx512Bf16, Pair};
use crate::simd::{Element, LANES};
use crate::{DType, Device, Error, MatrixView, Result};

/// One or several matrices stacked along N, ready for [`ops::linear`](crate::ops::linear).
pub struct LinearWeight {
    panels: Memory,
    n: usize,
    k: usize,
    dtype: DType,
    /// Panels of pairs, for these dot products.
    #[cfg(target_arch = "x86_64")]
    pairs: Option<Avx512Bf16>,
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
        #[cfg(target_arch = "x86_64")]
        let pairs = match device {
            Device::Cpu(cpu) if dtype == DType::Bf16 => cpu.isa.bf16_dots(),
            _ => None,
        };
        #[cfg(target_arch = "x86_64")]
        let layout = if pairs.is_some() { Layout::Pairs } else { Layout::Vectors };
        #[cfg(not(target_arch = "x86_64"))]
        let layout = Layout::Vectors;
        let panel_bytes = layout.steps(k) * LANES * dtype.size_bytes();
        let mut panels = Memory::new(device, n.div_ceil(LANES) * panel_bytes, "weights")?;
        if let Device::Cpu(cpu) = device {
            cpu.for_rows(panels.as_mut_slice::<u8>(), panel_bytes, k * LANES, |first, part| {
                for (at, panel) in part.chunks_exact_mut(panel_bytes).enumerate() {
                    pack_panel(panel, matrices, (first + at) * LANES, dtype, layout);
                }
            });
        }
        Ok(LinearWeight {
            panels,
            n,
            k,
            dtype,
            #[cfg(target_arch = "x86_64")]
            pairs,
        })
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

    /// The panels, `[ceil(N / 16) * ceil(K / 2)]` vectors of pairs, and what computes with them, if it is packed so.
    #[cfg(target_arch = "x86_64")]
    pub(crate) fn pairs(&self) -> Option<(Avx512Bf16, &[[Pair; LANES]])> {
        self.pairs.map(|simd| (simd, self.panels.as_slice::<Pair>().as_chunks().0))
    }
}

/// How the elements of a panel follow each other.
#[derive(Clone, Copy)]
enum Layout {
    /// `[K][16]`.
    Vectors,
    /// `[ceil(K / 2)][16][2]`.
    Pairs,
}

impl Layout {
    /// Steps over k, the last of a pair included.
    fn steps(self, k: usize) -> usize {
        match self {
            Layout::Vectors => k,
            Layout::Pairs => k.next_multiple_of(2),
        }
    }

    /// Where the element of input `k` and output `lane` stands.
    #[inline(always)]
    fn place(self, k: usize, lane: usize) -> usize {
        match self {
            Layout::Vectors => k * LANES + lane,
            Layout::Pairs => (k / 2 * LANES + lane) * 2 + k % 2,
        }
    }
}

/// Fills the panel of outputs `first..first + 16`.
fn pack_panel(panel: &mut [u8], matrices: &[MatrixView<'_>], first: usize, dtype: DType, layout: Layout) {
    for lane in 0..LANES {
        let Some((matrix, row)) = find_row(matrices, first + lane) else { return };
        let source = matrix.row_bytes(row);
        match (matrix.dtype == dtype, dtype.size_bytes()) {
            (true, 2) => interleave(panel.as_chunks_mut::<2>().0, source.as_chunks::<2>().0, lane, layout),
            (true, _) => interleave(panel.as_chunks_mut::<4>().0, source.as_chunks::<4>().0, lane, layout),
            (false, _) => {
                for (k, element) in source.chunks_exact(matrix.dtype.size_bytes()).enumerate() {
                    dtype.encode_at(panel, layout.place(k, lane), matrix.dtype.decode(element));
                }
            }
        }
    }
}

fn interleave<const B: usize>(panel: &mut [[u8; B]], source: &[[u8; B]], lane: usize, layout: Layout) {
    for (k, element) in source.iter().enumerate() {
        panel[layout.place(k, lane)] = *element;
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
