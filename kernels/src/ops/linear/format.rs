//! How the weight of a linear layer is stored, and with it which arm computes with it.
//!
//! Every format stores panels of sixteen neighbouring outputs, one after the other, each a forward stream through memory over
//! all inputs; the outputs of the last panel that do not exist are zeros. What a panel holds is the business of its arm: one
//! file each, with the bytes of a panel, their packing and the computation. A weight keeps its format for good, so its bits
//! depend on the type of the machine only.

use super::{Outputs, vectors};
#[cfg(target_arch = "x86_64")]
use super::{pairs, tiles};
use crate::simd::LANES;
#[cfg(target_arch = "x86_64")]
use crate::simd::{Amx, Avx512Bf16};
use crate::{Cpu, DType, Device, LinearWeight, MatrixView};

/// A format, one variant per arm.
#[derive(Clone, Copy)]
pub(crate) enum Format {
    /// Lane by lane, widened to f32.
    Vectors(DType),
    /// bf16 pairs, for these dot products.
    #[cfg(target_arch = "x86_64")]
    Pairs(Avx512Bf16),
    /// bf16 pairs, for these products of tiles.
    #[cfg(target_arch = "x86_64")]
    Tiles(Amx),
}

impl Format {
    /// The format of weights of type `dtype` on `device`.
    pub(crate) fn choose(device: &Device, dtype: DType) -> Format {
        match device {
            #[cfg(target_arch = "x86_64")]
            Device::Cpu(cpu) if dtype == DType::Bf16 => match (cpu.isa.tiles(), cpu.isa.bf16_dots()) {
                (Some(amx), _) => Format::Tiles(amx),
                (None, Some(simd)) => Format::Pairs(simd),
                (None, None) => Format::Vectors(dtype),
            },
            _ => Format::Vectors(dtype),
        }
    }

    /// The type to which the arm rounds its inputs.
    pub(crate) fn input_dtype(self) -> DType {
        match self {
            Format::Vectors(_) => DType::F32,
            #[cfg(target_arch = "x86_64")]
            Format::Pairs(_) | Format::Tiles(_) => DType::Bf16,
        }
    }

    /// Bytes of the panel of sixteen outputs with `k` inputs: a multiple of the cache line.
    pub(crate) fn panel_bytes(self, k: usize) -> usize {
        match self {
            Format::Vectors(dtype) => vectors::panel_bytes(dtype, k),
            #[cfg(target_arch = "x86_64")]
            Format::Pairs(_) => pairs::panel_bytes(k),
            #[cfg(target_arch = "x86_64")]
            Format::Tiles(_) => tiles::panel_bytes(k),
        }
    }

    /// Fills a panel, which is all zeros.
    pub(crate) fn pack_panel(self, panel: &mut [u8], rows: &PanelRows<'_>) {
        match self {
            Format::Vectors(dtype) => vectors::pack_panel(panel, rows, dtype),
            #[cfg(target_arch = "x86_64")]
            Format::Pairs(_) => pairs::pack_panel(panel, rows),
            #[cfg(target_arch = "x86_64")]
            Format::Tiles(_) => tiles::pack_panel(panel, rows),
        }
    }

    /// `out = x · wᵀ (+ bias)` with a weight of this format; `x`: `[M][K]`, neither of them zero.
    pub(super) fn run(self, cpu: &Cpu, x: &[f32], w: &LinearWeight, out: Outputs<'_>) {
        match self {
            Format::Vectors(dtype) => vectors::run(cpu, x, w, dtype, out),
            #[cfg(target_arch = "x86_64")]
            Format::Pairs(simd) => pairs::run(cpu, x, w, simd, out),
            #[cfg(target_arch = "x86_64")]
            Format::Tiles(amx) => tiles::run(cpu, x, w, amx, out),
        }
    }
}

/// The rows of a stack of matrices that become one panel.
pub(crate) struct PanelRows<'a> {
    /// Stacked along their rows.
    pub(crate) matrices: &'a [MatrixView<'a>],
    /// The first row of the panel in the stack.
    pub(crate) first: usize,
}

impl<'a> PanelRows<'a> {
    /// The row that becomes output `lane`, as it lies in the checkpoint; None beyond the last.
    pub(super) fn row(&self, lane: usize) -> Option<(DType, &'a [u8])> {
        let mut n = self.first + lane;
        for matrix in self.matrices {
            if n < matrix.rows {
                return Some((matrix.dtype, matrix.row_bytes(n)));
            }
            n -= matrix.rows;
        }
        None
    }

    /// Writes every element, rounded to `dtype`, as element number `place(k, lane)` of the panel.
    pub(super) fn write(&self, panel: &mut [u8], dtype: DType, place: impl Fn(usize, usize) -> usize) {
        for lane in 0..LANES {
            let Some((source_dtype, source)) = self.row(lane) else { return };
            match (source_dtype == dtype, dtype.size_bytes()) {
                (true, 2) => copy(panel.as_chunks_mut::<2>().0, source.as_chunks::<2>().0, |k| place(k, lane)),
                (true, _) => copy(panel.as_chunks_mut::<4>().0, source.as_chunks::<4>().0, |k| place(k, lane)),
                (false, _) => {
                    for (k, element) in source.chunks_exact(source_dtype.size_bytes()).enumerate() {
                        dtype.encode_at(panel, place(k, lane), source_dtype.decode(element));
                    }
                }
            }
        }
    }
}

fn copy<const B: usize>(panel: &mut [[u8; B]], source: &[[u8; B]], place: impl Fn(usize) -> usize) {
    for (k, element) in source.iter().enumerate() {
        panel[place(k)] = *element;
    }
}
