//! The weight of a linear layer, packed once at load for the processor.

use crate::memory::Memory;
use crate::ops::linear::{Format, PanelRows};
use crate::simd::LANES;
use crate::{DType, Device, Error, MatrixView, Result, WeightType};

/// One or several matrices stacked along N, ready for [`ops::linear`](crate::ops::linear()).
pub struct LinearWeight {
    /// `[ceil(N / 16)]` panels of `format`.
    panels: Memory,
    format: Format,
    n: usize,
    k: usize,
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
        LinearWeight::pack_as(device, matrices, WeightType::Float(dtype))
    }

    /// [`pack`](LinearWeight::pack), rounding or quantising every element to `weight_type`; the matrices may differ
    /// in type.
    ///
    /// # Errors
    /// As [`pack`](LinearWeight::pack), but for [`Error::DType`].
    pub fn pack_as(device: &Device, matrices: &[MatrixView<'_>], weight_type: WeightType) -> Result<LinearWeight> {
        let k = matrices.first().map_or(0, |matrix| matrix.cols);
        for matrix in matrices {
            if matrix.cols != k || !matrix.is_inside() {
                let (expected, actual) = (vec![matrix.rows, k], vec![matrix.rows, matrix.cols]);
                return Err(Error::Shape { op: "pack", arg: "matrices", expected, actual });
            }
        }
        let n = matrices.iter().map(|matrix| matrix.rows).sum::<usize>();
        let format = Format::choose(device, weight_type);
        let panel_bytes = format.panel_bytes(k);
        let mut panels = Memory::new(device, n.div_ceil(LANES) * panel_bytes, "weights")?;
        if let Device::Cpu(cpu) = device {
            cpu.for_rows(panels.as_mut_slice::<u8>(), panel_bytes, k * LANES, |first, part| {
                for (at, panel) in part.chunks_exact_mut(panel_bytes).enumerate() {
                    format.pack_panel(panel, &PanelRows { matrices, first: (first + at) * LANES });
                }
            });
        }
        Ok(LinearWeight { panels, format, n, k })
    }

    /// Outputs.
    pub fn n(&self) -> usize {
        self.n
    }

    /// Inputs.
    pub fn k(&self) -> usize {
        self.k
    }

    /// The name of the layout of its panels, with a version: bytes of another name mean something else.
    pub fn format_name(&self) -> &'static str {
        self.format.name()
    }

    /// The memory it takes, in bytes.
    pub fn bytes(&self) -> usize {
        self.panels.bytes()
    }

    /// Where it lives.
    pub fn device(&self) -> &Device {
        self.panels.device()
    }

    /// Bytes of a panel.
    pub(crate) fn panel_bytes(&self) -> usize {
        self.format.panel_bytes(self.k)
    }

    /// How it is stored, and so what computes with it.
    pub(crate) fn format(&self) -> Format {
        self.format
    }

    /// The panels as elements of a type that fits the format.
    pub(crate) fn panels<T: bytemuck::Pod>(&self) -> &[T] {
        self.panels.as_slice()
    }
}
