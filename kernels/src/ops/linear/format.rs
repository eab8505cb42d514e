//! How the weight of a linear layer is stored, and with it which arm computes with it.
//!
//! Every format stores panels of sixteen neighbouring outputs, one after the other, each a forward stream through memory over
//! all inputs; the outputs of the last panel that do not exist are zeros. What a panel holds is the business of its arm: one
//! file each, with the bytes of a panel, their packing and the computation. A weight keeps its format for good, so its bits
//! depend on the type of the machine only.

use super::interleave::{LaneRows, interleave};
use super::{Outputs, fp8, int4, int8, nf4, squares, vectors};
#[cfg(target_arch = "x86_64")]
use super::{pairs, tiles};
use crate::simd::LANES;
#[cfg(target_arch = "x86_64")]
use crate::simd::{Amx, Avx512Bf16};
use crate::{Cpu, DType, Device, LinearWeight, MatrixView, WeightType};

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
    /// 8-bit integers, for dot products of bytes.
    Int8,
    /// FP8, widened to f32, or to bf16 pairs.
    Fp8(fp8::Order),
    /// 4-bit levels, looked up for dot products of bytes.
    Nf4,
    /// 4-bit integers with zeros, made into bytes for the same.
    Int4,
    /// On a GPU: squares of this type, as its matrix instruction takes them, or made into them when they are read.
    Squares(WeightType),
}

impl Format {
    /// The format of weights of `weight_type` on `device`.
    pub(crate) fn choose(device: &Device, weight_type: WeightType) -> Format {
        match (weight_type, device) {
            (_, Device::Cuda(_)) => Format::Squares(weight_type),
            #[cfg(target_arch = "x86_64")]
            (WeightType::Float(dtype @ DType::Bf16), Device::Cpu(cpu)) => {
                match (cpu.isa.tiles(), cpu.isa.bf16_dots()) {
                    (Some(amx), _) => Format::Tiles(amx),
                    (None, Some(simd)) => Format::Pairs(simd),
                    (None, None) => Format::Vectors(dtype),
                }
            }
            (WeightType::Float(dtype), _) => Format::Vectors(dtype),
            (WeightType::Int8, _) => Format::Int8,
            #[cfg(target_arch = "x86_64")]
            (WeightType::Fp8, Device::Cpu(cpu)) => {
                Format::Fp8(cpu.isa.bf16_dots().map_or(fp8::Order::Vectors, fp8::Order::Pairs))
            }
            (WeightType::Fp8, _) => Format::Fp8(fp8::Order::Vectors),
            (WeightType::Nf4, _) => Format::Nf4,
            (WeightType::Int4, _) => Format::Int4,
        }
    }

    /// The name of the bytes of its panels, for whoever keeps them: another layout is another name.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Format::Vectors(DType::F32) => "vectors-f32-v1",
            Format::Vectors(DType::F16) => "vectors-f16-v1",
            Format::Vectors(DType::Bf16) => "vectors-bf16-v1",
            #[cfg(target_arch = "x86_64")]
            Format::Pairs(_) => "pairs-v1",
            #[cfg(target_arch = "x86_64")]
            Format::Tiles(_) => "tiles-v1",
            Format::Int8 => "int8-v1",
            Format::Fp8(fp8::Order::Vectors) => "fp8-vectors-v1",
            #[cfg(target_arch = "x86_64")]
            Format::Fp8(fp8::Order::Pairs(_)) => "fp8-pairs-v1",
            Format::Nf4 => "nf4-v1",
            Format::Int4 => "int4-v1",
            Format::Squares(WeightType::Float(DType::F32)) => "squares-f32-v1",
            Format::Squares(WeightType::Float(DType::F16)) => "squares-f16-v1",
            Format::Squares(WeightType::Float(DType::Bf16)) => "squares-bf16-v1",
            Format::Squares(WeightType::Int8) => "squares-int8-v1",
            Format::Squares(WeightType::Fp8) => "squares-fp8-v1",
            Format::Squares(WeightType::Nf4) => "squares-nf4-v1",
            Format::Squares(WeightType::Int4) => "squares-int4-v1",
        }
    }

    /// If a panel holds its elements as they are: their type, and how many of a lane lie beside each other; a panel then
    /// begins with `[ceil(K / group)][16][group]` of them.
    pub(crate) fn elements(self) -> Option<(DType, usize)> {
        match self {
            Format::Vectors(dtype) => Some((dtype, 1)),
            #[cfg(target_arch = "x86_64")]
            Format::Pairs(_) | Format::Tiles(_) => Some((DType::Bf16, 2)),
            Format::Int8 | Format::Fp8(_) | Format::Nf4 | Format::Int4 | Format::Squares(_) => None,
        }
    }

    /// The type of its elements, if each can be read back as it was packed.
    pub(crate) fn table_dtype(self) -> Option<DType> {
        match self {
            Format::Squares(WeightType::Float(dtype)) => Some(dtype),
            _ => self.elements().map(|(dtype, _)| dtype),
        }
    }

    /// The type to which the arm of a float format rounds its inputs. A GPU multiplies quantised weights with inputs of either type.
    pub(crate) fn input_dtype(self) -> DType {
        match self {
            Format::Vectors(_) | Format::Int8 | Format::Fp8(_) | Format::Nf4 | Format::Int4 => DType::F32,
            #[cfg(target_arch = "x86_64")]
            Format::Pairs(_) | Format::Tiles(_) => DType::Bf16,
            Format::Squares(WeightType::Float(dtype)) => dtype,
            Format::Squares(WeightType::Int8 | WeightType::Fp8 | WeightType::Nf4 | WeightType::Int4) => DType::Bf16,
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
            Format::Int8 => int8::panel_bytes(k),
            Format::Fp8(_) => fp8::panel_bytes(k),
            Format::Nf4 => nf4::panel_bytes(k),
            Format::Int4 => int4::panel_bytes(k),
            Format::Squares(weight_type) => squares::panel_bytes(weight_type, k),
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
            Format::Int8 => int8::pack_panel(panel, rows),
            Format::Fp8(order) => fp8::pack_panel(panel, rows, order),
            Format::Nf4 => nf4::pack_panel(panel, rows),
            Format::Int4 => unreachable!("packed from codes, not from matrices of floats"),
            Format::Squares(_) => unreachable!("a GPU packs its weights itself"),
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
            Format::Int8 => int8::run(cpu, x, w, out),
            Format::Fp8(order) => fp8::run(cpu, x, w, order, out),
            Format::Nf4 => nf4::run(cpu, x, w, out),
            Format::Int4 => int4::run(cpu, x, w, out),
            Format::Squares(_) => unreachable!("the weight lives on a GPU, and so does the output"),
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

    /// Writes every element, rounded to `dtype`, `group` of a lane beside each other: `[ceil(K / group)][16][group]`.
    pub(super) fn write(&self, panel: &mut [u8], dtype: DType, group: usize) {
        let unit = group * dtype.size_bytes();
        let rows: [Option<(DType, &[u8])>; LANES] = std::array::from_fn(|lane| self.row(lane));
        if rows.iter().flatten().all(|(source_dtype, _)| *source_dtype == dtype) {
            return interleave_units(panel, &rows.map(|row| row.map_or(&[][..], |(_, bytes)| bytes)), unit);
        }
        // Rounded piece by piece, so that the rounded rows stay in the first-level cache.
        let mut rounded = [[0; ROUNDED_BYTES]; LANES];
        let piece_len = ROUNDED_BYTES / dtype.size_bytes();
        for (piece, panel) in panel.chunks_mut(ROUNDED_BYTES * LANES).enumerate() {
            let mut pieces: LaneRows<'_> = [&[]; LANES];
            for ((row, rounded), out) in rows.iter().zip(&mut rounded).zip(&mut pieces) {
                let Some((source_dtype, bytes)) = row else { continue };
                let size = source_dtype.size_bytes();
                let bytes = &bytes[piece * piece_len * size..];
                let bytes = &bytes[..bytes.len().min(piece_len * size)];
                let rounded = &mut rounded[..bytes.len() / size * dtype.size_bytes()];
                source_dtype.convert(bytes, dtype, rounded);
                *out = rounded;
            }
            interleave_units(panel, &pieces, unit);
        }
    }
}

/// Bytes of a row that are rounded at a time: sixteen rows of them and the part of the panel they become are 32 KiB.
const ROUNDED_BYTES: usize = 1024;

/// [`interleave`] for the units that groups of elements make.
fn interleave_units(panel: &mut [u8], rows: &LaneRows<'_>, unit: usize) {
    match unit {
        2 => interleave::<2>(panel, rows),
        4 => interleave::<4>(panel, rows),
        _ => unreachable!("formats group one element of two or four bytes, or two of two"),
    }
}
