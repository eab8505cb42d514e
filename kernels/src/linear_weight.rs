//! The weight of a linear layer, packed once at load for the device that computes with it.

use std::ops::Range;
use std::sync::Arc;

use crate::fp8::{Fp8Stack, Fp8View};
use crate::int4::{Int4Stack, expect_groups};
use crate::memory::Memory;
use crate::ops::linear::{Format, PanelRows, fp8, int4, squares};
use crate::simd::LANES;
use crate::{DType, Device, Error, Int4Source, MatrixView, Result, WeightType};

/// One or several matrices stacked along N, ready for [`ops::linear`](crate::ops::linear()).
pub struct LinearWeight {
    /// What holds its panels, and those of its neighbours if it is a [part](LinearWeight::part).
    memory: Arc<Memory>,
    /// Where in it: `[ceil(N / 16)]` panels of `format`.
    bytes: Range<usize>,
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
    /// As [`pack`](LinearWeight::pack), but for [`Error::DType`]; [`Error::Unsupported`] if the device has no such weights, and for
    /// [`WeightType::Int4`], which nothing is rounded to.
    pub fn pack_as(device: &Device, matrices: &[MatrixView<'_>], weight_type: WeightType) -> Result<LinearWeight> {
        LinearWeight::pack_from(device, matrices, weight_type, &AlwaysThere)
    }

    /// [`pack_as`](LinearWeight::pack_as) from `pages`, which are told what is read next and what is done with.
    ///
    /// # Errors
    /// As [`pack_as`](LinearWeight::pack_as).
    pub fn pack_from(
        device: &Device,
        matrices: &[MatrixView<'_>],
        weight_type: WeightType,
        pages: &dyn SourcePages,
    ) -> Result<LinearWeight> {
        let weight = LinearWeight::unpacked(device, matrices, weight_type)?;
        weight.pack_panels(matrices, pages)
    }

    /// The weight that packing would make, with panels that somebody kept: `fill` is told what they must be and writes them. The
    /// inner result is that of `fill`.
    ///
    /// # Errors
    /// As [`pack_as`](LinearWeight::pack_as).
    pub fn restore<E>(
        device: &Device,
        matrices: &[MatrixView<'_>],
        weight_type: WeightType,
        fill: impl FnOnce(PanelShape, &mut [u8]) -> Result<(), E>,
    ) -> Result<Result<LinearWeight, E>> {
        let mut weight = LinearWeight::unpacked(device, matrices, weight_type)?;
        let shape = weight.panel_shape();
        Ok(fill(shape, weight.panels_mut()).map(|()| weight))
    }

    /// Packs matrices of 4-bit integers, stacked along their rows (q, k, v; gate, up), in parallel. On the plan device it reads nothing.
    ///
    /// # Errors
    /// [`Error::Shape`] if their columns differ; [`Error::Unsupported`] if these are no multiple of 64; [`Error::OutOfMemory`];
    /// [`Error::Cuda`].
    pub fn pack_int4(device: &Device, matrices: &[&dyn Int4Source]) -> Result<LinearWeight> {
        let stack = Int4Stack::new(matrices)?;
        let [n, k] = stack.shape();
        let mut weight = LinearWeight::zeroed(device, n, k, WeightType::Int4)?;
        if weight.bytes() == 0 {
            return Ok(weight);
        }
        match device {
            // SAFETY: `zeroed` made room for all rows of the stack.
            Device::Cuda(cuda) => unsafe { squares::pack_int4(cuda, weight.address(), &stack)? },
            Device::Cpu(_) | Device::Plan(_) => weight.for_panels_of_turns(|panels, bytes, panel_bytes| {
                stack.for_panels(panels, |at, lanes| {
                    int4::pack_panel(&mut bytes[at * panel_bytes..][..panel_bytes], lanes);
                });
            }),
        }
        Ok(weight)
    }

    /// Packs matrices of FP8 numbers, stacked along their rows (q, k, v; gate, up), in parallel: what [`WeightType::Fp8`] is, from numbers
    /// that were rounded beforehand. On the plan device it reads nothing.
    ///
    /// # Errors
    /// [`Error::Shape`] if their columns differ, or a view reaches beyond its data; [`Error::Unsupported`] if the device has no such
    /// weights; [`Error::OutOfMemory`]; [`Error::Cuda`].
    pub fn pack_fp8(device: &Device, matrices: &[Fp8View<'_>]) -> Result<LinearWeight> {
        let stack = Fp8Stack::new(matrices)?;
        let [n, k] = stack.shape();
        let mut weight = LinearWeight::zeroed(device, n, k, WeightType::Fp8)?;
        if weight.bytes() == 0 {
            return Ok(weight);
        }
        match (device, weight.format) {
            // SAFETY: `zeroed` made room for all rows of the stack.
            (Device::Cuda(cuda), _) => unsafe { squares::pack_fp8(cuda, weight.address(), &stack)? },
            (_, Format::Fp8(order)) => weight.for_panels_of_turns(|panels, bytes, panel_bytes| {
                stack.for_panels(panels, |at, lanes| {
                    fp8::pack_codes(&mut bytes[at * panel_bytes..][..panel_bytes], lanes, order);
                });
            }),
            (_, format) => unreachable!("numbers of eight bits are not {}", format.name()),
        }
        Ok(weight)
    }

    /// Calls `pack(panels, bytes, panel_bytes)` for [`PANELS_OF_TURN`] panels at a time with their place, on all threads of the
    /// processor. On the plan device there is none.
    fn for_panels_of_turns(&mut self, pack: impl Fn(Range<usize>, &mut [u8], usize) + Sync) {
        let (device, panel_bytes) = (self.device().clone(), self.panel_bytes());
        if device.is_plan() {
            return;
        }
        let turn_bytes = PANELS_OF_TURN * panel_bytes;
        device.for_each_part(self.panels_mut(), turn_bytes, |turn, bytes| {
            let first = turn * PANELS_OF_TURN;
            pack(first..first + bytes.len() / panel_bytes, bytes, panel_bytes);
        });
    }

    /// A weight of zeros, `n` outputs of `k` inputs: what the plan device measures, for matrices that are not at hand as one piece.
    ///
    /// # Errors
    /// [`Error::Unsupported`] if the device has no such weights, or none of so many inputs; [`Error::OutOfMemory`];
    /// [`Error::Cuda`].
    pub fn zeroed(device: &Device, n: usize, k: usize, weight_type: WeightType) -> Result<LinearWeight> {
        if weight_type == WeightType::Int4 {
            expect_groups(k)?;
        }
        if let Device::Cuda(_) = device {
            squares::expect_shape(weight_type, k)?;
        }
        let format = Format::choose(device, weight_type);
        let bytes = n.div_ceil(LANES) * format.panel_bytes(k);
        Ok(LinearWeight { memory: Arc::new(Memory::new(device, bytes, "weights")?), bytes: 0..bytes, format, n, k })
    }

    /// `n` outputs from number `first` on, in the same memory.
    ///
    /// # Errors
    /// [`Error::Index`] unless `first` begins a panel of sixteen and there are so many behind it; [`Error::Unsupported`] of weights whose
    /// scales lie behind all panels.
    pub fn part(&self, first: usize, n: usize) -> Result<LinearWeight> {
        if !first.is_multiple_of(LANES) || first + n > self.n {
            return Err(Error::Index { op: "part", arg: "first + n", index: first + n, limit: self.n + 1 });
        }
        if let Format::Squares(weight_type) = self.format {
            squares::expect_parts(weight_type)?;
        }
        let panel_bytes = self.panel_bytes();
        let start = self.bytes.start + first / LANES * panel_bytes;
        let bytes = start..start + n.div_ceil(LANES) * panel_bytes;
        Ok(LinearWeight { memory: self.memory.clone(), bytes, n, ..*self })
    }

    /// Of the right size and format, with panels of zeros.
    fn unpacked(device: &Device, matrices: &[MatrixView<'_>], weight_type: WeightType) -> Result<LinearWeight> {
        let k = matrices.first().map_or(0, |matrix| matrix.cols);
        for matrix in matrices {
            if matrix.cols != k || !matrix.is_inside() {
                let (expected, actual) = (vec![matrix.rows, k], vec![matrix.rows, matrix.cols]);
                return Err(Error::Shape { op: "pack", arg: "matrices", expected, actual });
            }
        }
        if weight_type == WeightType::Int4 {
            let reason = "4-bit integers come from checkpoints that have them: nothing is rounded to them".to_owned();
            return Err(Error::Unsupported { reason });
        }
        let n = matrices.iter().map(|matrix| matrix.rows).sum::<usize>();
        LinearWeight::zeroed(device, n, k, weight_type)
    }

    fn pack_panels(mut self, matrices: &[MatrixView<'_>], pages: &dyn SourcePages) -> Result<LinearWeight> {
        let (format, panel_bytes) = (self.format, self.format.panel_bytes(self.k));
        if let (Device::Cuda(cuda), Format::Squares(weight_type)) = (self.device(), format) {
            // SAFETY: `unpacked` made room for all rows of the matrices, n of k elements each.
            unsafe { squares::pack(cuda, self.address(), weight_type, [self.n, self.k], matrices, pages)? };
        }
        let Device::Cpu(cpu) = self.device().clone() else { return Ok(self) };
        let panels_of_turn = (PACKED_BYTES_OF_TURN / panel_bytes.max(1)).max(1);
        let k = self.k;
        cpu.for_rows(self.panels_mut(), panel_bytes, k * LANES, |first, part| {
            for (turn, part) in part.chunks_mut(panel_bytes * panels_of_turn).enumerate() {
                let first_row = (first + turn * panels_of_turn) * LANES;
                let sources = rows_of(matrices, first_row..first_row + part.len() / panel_bytes * LANES);
                sources.iter().for_each(|source| pages.begin(source));
                for (at, panel) in part.chunks_exact_mut(panel_bytes).enumerate() {
                    format.pack_panel(panel, &PanelRows { matrices, first: first_row + at * LANES });
                }
                sources.iter().for_each(|source| pages.end(source));
            }
        });
        Ok(self)
    }

    /// Outputs.
    pub fn n(&self) -> usize {
        self.n
    }

    /// Inputs.
    pub fn k(&self) -> usize {
        self.k
    }

    /// Whether its rows can be read back as they were packed, so that it is an embedding table as well.
    pub fn is_table(&self) -> bool {
        self.format.table_dtype().is_some()
    }

    /// What its panels are, for whoever keeps them.
    pub fn panel_shape(&self) -> PanelShape {
        PanelShape { format: self.format.name(), n: self.n, k: self.k }
    }

    /// Its panels, to be [restored](LinearWeight::restore) later. On the processor only.
    pub fn packed_bytes(&self) -> &[u8] {
        self.panels()
    }

    /// The memory it takes, in bytes.
    pub fn bytes(&self) -> usize {
        self.bytes.len()
    }

    /// Where it lives.
    pub fn device(&self) -> &Device {
        self.memory.device()
    }

    /// Where it lies on a GPU.
    pub(crate) fn address(&self) -> u64 {
        self.memory.address(self.bytes.start, self.bytes.len())
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
        bytemuck::cast_slice(&self.memory.as_slice::<u8>()[self.bytes.clone()])
    }

    /// The bytes of a weight that is being made.
    fn panels_mut(&mut self) -> &mut [u8] {
        Arc::get_mut(&mut self.memory).expect("a weight that is being packed has no parts yet").as_mut_slice()
    }
}

/// What panels are: bytes of another shape or format mean something else.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PanelShape {
    /// The name of their layout, with a version.
    pub format: &'static str,
    /// Outputs.
    pub n: usize,
    /// Inputs.
    pub k: usize,
}

/// Bytes of panels that a thread packs between two words with [`SourcePages`]. 2 MiB: thousands of times what a word costs, and
/// little enough to not count as memory.
const PACKED_BYTES_OF_TURN: usize = 2 << 20;

/// Panels that are packed at a time from what a checkpoint has quantised: 64 rows, so that of a file in which neighbouring outputs lie
/// beside each other most of what is read is used.
pub(crate) const PANELS_OF_TURN: usize = 4;

/// Where matrices come from, if it matters when their bytes are used: the pages of a mapped file.
///
/// Called from all threads that pack, each with bytes of its own; `begin` comes before the first access, `end` after the last.
pub trait SourcePages: Sync {
    /// These bytes are read next.
    fn begin(&self, bytes: &[u8]);
    /// These bytes are not needed again.
    fn end(&self, bytes: &[u8]);
}

/// Memory that is simply there.
pub struct AlwaysThere;

impl SourcePages for AlwaysThere {
    fn begin(&self, _bytes: &[u8]) {}
    fn end(&self, _bytes: &[u8]) {}
}

/// The bytes of some rows of a stack of matrices; of a column slice, with the columns around it.
fn rows_of<'a>(matrices: &[MatrixView<'a>], rows: Range<usize>) -> Vec<&'a [u8]> {
    let mut parts = Vec::new();
    let mut first = 0;
    for matrix in matrices {
        let (start, end) = (rows.start.max(first), rows.end.min(first + matrix.rows));
        if start < end {
            parts.push(matrix.rows_bytes(start - first..end - first));
        }
        first += matrix.rows;
    }
    parts
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;
    use crate::ops::testing::{cpus_and_models, random};

    /// What [`SourcePages`] heard, as lengths.
    #[derive(Default)]
    struct Heard(Mutex<[usize; 2]>);

    impl SourcePages for Heard {
        fn begin(&self, bytes: &[u8]) {
            self.0.lock().unwrap()[0] += bytes.len();
        }

        fn end(&self, bytes: &[u8]) {
            self.0.lock().unwrap()[1] += bytes.len();
        }
    }

    #[test]
    fn panels_hold_the_rounded_elements_of_every_slice() {
        let values = random(7, 40 * 1100);
        for device in cpus_and_models() {
            for (source, dtype) in [DType::F32, DType::F16, DType::Bf16]
                .iter()
                .flat_map(|a| [DType::F32, DType::F16, DType::Bf16].map(|b| (*a, b)))
            {
                let mut bytes = vec![0; values.len() * source.size_bytes() + 1];
                DType::F32.convert(bytemuck::cast_slice(&values), source, &mut bytes[1..]);
                for (rows, cols, first_col) in
                    [(1, 1, 0), (5, 7, 3), (16, 64, 0), (17, 513, 1), (33, 1100, 0), (40, 1031, 8)]
                {
                    let slice =
                        MatrixView { data: &bytes[1..], dtype: source, rows, cols, row_stride: 1100, first_col };
                    // The second begins within a panel.
                    let stack = [slice, MatrixView { rows: rows.min(2), ..slice }];
                    let stacked = rows + rows.min(2);
                    let heard = Heard::default();
                    let weight = LinearWeight::pack_from(&device, &stack, WeightType::Float(dtype), &heard).unwrap();
                    let context = format!("{} {source} as {dtype}, {rows} x {cols}", device.describe());
                    let [begun, ended] = *heard.0.lock().unwrap();
                    assert!(begun == ended && begun >= stacked * cols * source.size_bytes(), "{context}");
                    let (elements, group) = weight.format.elements().unwrap();
                    assert_eq!(elements, dtype);
                    let (panels, size) = (weight.panels::<u8>(), dtype.size_bytes());
                    let panel_bytes = weight.format.panel_bytes(cols);
                    for n in 0..weight.bytes() / panel_bytes * LANES {
                        let mut expected = vec![0; cols * size];
                        if n < stacked {
                            let row = if n < rows { n } else { n - rows };
                            source.convert(slice.row_bytes(row), dtype, &mut expected);
                        }
                        let element = |k: usize| {
                            let at = ((k / group * LANES) + n % LANES) * group + k % group;
                            &panels[n / LANES * panel_bytes + at * size..][..size]
                        };
                        assert!((0..cols).all(|k| *element(k) == expected[k * size..][..size]), "{context}, row {n}");
                    }
                }
            }
        }
    }
}
