//! Linear layers on a GPU: `kernels/cuda/linear.cuh` says how a weight lies in memory and in which order its products are summed.
//!
//! Two kernels keep that one order, in blocks of several sizes: one for few rows, which streams the weight once, and one for many, which
//! computes tiles. So a row has the same bits in a decode step and in a prompt's chunk.
//!
//! Quantised weights are the numbers that the processor has; a GPU multiplies them with inputs that are not quantised.

use super::Format;
use crate::contract::{expect_device, expect_on};
use crate::cuda::{Argument, Cuda, DeviceMemory, KernelName};
use crate::{DType, Error, LinearWeight, MatrixView, Result, SourcePages, Tensor, WeightType};

/// Inputs of two squares beside each other. A weight has a multiple of them.
const TILE_INPUTS: usize = 32;

/// Inputs of a unit of NF4, which have one scale.
const NF4_INPUTS: usize = 64;

/// Outputs of a square.
const SQUARE: usize = 16;

/// Rows of a block of the kernel for many, and its threads (`linear_tiles.cuh`). With NF4's scales, half as many.
const TILE_ROWS: usize = 128;
const NF4_TILE_ROWS: usize = 64;
const TILE_THREADS: usize = 256;

/// Inputs that a block packs of sixteen outputs, unless it needs the largest of all, and its threads (`linear_pack.cu`).
const PACK_INPUTS: usize = 1024;
const PACK_THREADS: usize = 256;

/// Bytes of rows that are packed at a time: enough to keep the bus busy, little enough to not count as memory.
const PACKED_BYTES: usize = 32 << 20;

/// Bytes of sixteen outputs, with their scales.
pub(super) fn panel_bytes(weight_type: WeightType, k: usize) -> usize {
    match weight_type {
        WeightType::Float(dtype) => k * SQUARE * dtype.size_bytes(),
        WeightType::Int8 | WeightType::Fp8 => SQUARE * (k + size_of::<f32>()),
        WeightType::Nf4 => SQUARE * (k / 2 + k / NF4_INPUTS * DType::Bf16.size_bytes()),
    }
}

/// The kernels of a type of weights: for few rows, for many, and for packing.
fn kernels(weight_type: WeightType) -> [&'static str; 3] {
    match weight_type {
        WeightType::Float(_) => ["linear_rows", "linear_tiles", "pack_linear"],
        WeightType::Int8 => ["linear_int8_rows", "linear_int8_tiles", "pack_int8"],
        WeightType::Fp8 => ["linear_fp8_rows", "linear_fp8_tiles", "pack_fp8"],
        WeightType::Nf4 => ["linear_nf4_rows", "linear_nf4_tiles", "pack_nf4"],
    }
}

/// A kernel, by what a block of it computes.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Kernel {
    /// That for few rows (`linear_rows.cuh`): so many tiles of eight rows, and outputs.
    Rows { tiles: usize, outputs: usize },
    /// That for many (`linear_tiles.cuh`): so many rows, and outputs.
    Tiles { rows: usize, outputs: usize },
}

impl Kernel {
    /// The kernel for m rows and n outputs. It may depend on anything: they all give the same bits.
    ///
    /// Up to 64 rows are one pass over the weight. Beyond, what a multiprocessor gets from L2 is the limit, of the weight and of x: for a
    /// product the less, the larger the blocks are. Smaller ones win only if all of them run at the same time, hence if of the larger
    /// there is one for every second multiprocessor, or fewer. Of more, some multiprocessor would compute two halves of a block,
    /// which takes longer than the whole.
    fn of(weight_type: WeightType, m: usize, n: usize, multiprocessors: usize) -> Kernel {
        let leaves_half_idle = |outputs: usize| m.div_ceil(TILE_ROWS) * n.div_ceil(outputs) <= multiprocessors / 2;
        match (m, weight_type) {
            (0..=8, _) => Kernel::Rows { tiles: 1, outputs: 16 },
            (9..=16, _) => Kernel::Rows { tiles: 2, outputs: 32 },
            (17..=32, _) => Kernel::Rows { tiles: 4, outputs: 32 },
            // The sums of units with scales of their own take registers: blocks are half as large.
            (33..=64, WeightType::Nf4) => Kernel::Rows { tiles: 8, outputs: 32 },
            (_, WeightType::Nf4) => Kernel::Tiles { rows: NF4_TILE_ROWS, outputs: 128 },
            (33..=64, _) => Kernel::Rows { tiles: 8, outputs: 64 },
            _ if !leaves_half_idle(128) => Kernel::Tiles { rows: TILE_ROWS, outputs: 128 },
            _ if !leaves_half_idle(64) => Kernel::Tiles { rows: TILE_ROWS, outputs: 64 },
            // Halves along the rows: 64 x 64.
            _ => Kernel::Rows { tiles: 8, outputs: 64 },
        }
    }
}

/// Whether a weight can be multiplied with on a GPU.
pub(crate) fn expect_shape(weight_type: WeightType, k: usize) -> Result<()> {
    let unit = if weight_type == WeightType::Nf4 { NF4_INPUTS } else { TILE_INPUTS };
    let reason = match weight_type {
        WeightType::Float(DType::F32) => "linear layers on a GPU are bfloat16 or float16, not float32".to_owned(),
        _ if !k.is_multiple_of(unit) => {
            format!("a linear layer on a GPU has a multiple of {unit} inputs, not {k}")
        }
        _ => return Ok(()),
    };
    Err(Error::Unsupported { reason })
}

/// Packs matrices, stacked along their rows, into the zeroed memory at `weight`.
///
/// # Safety
/// `weight` is the address of room for all rows of the matrices, `n` of `k` elements each.
pub(crate) unsafe fn pack(
    cuda: &Cuda,
    weight: u64,
    weight_type: WeightType,
    [n, k]: [usize; 2],
    matrices: &[MatrixView<'_>],
    pages: &dyn SourcePages,
) -> Result<()> {
    // All types that a GPU packs have two bytes.
    let row_bytes = k * DType::Bf16.size_bytes();
    let [.., kernel] = kernels(weight_type);
    let turn = (PACKED_BYTES / row_bytes.max(1)).max(1);
    let longest = matrices.iter().map(|matrix| matrix.rows.min(turn)).max().unwrap_or(0);
    if longest * row_bytes == 0 {
        return Ok(());
    }
    let staging = DeviceMemory::zeroed(&cuda.context, longest * row_bytes, "weights")?;
    let mut rounded = vec![0; longest * row_bytes];
    let mut first_output = 0;
    for matrix in matrices {
        let dtype = match (weight_type, matrix.dtype) {
            (WeightType::Float(dtype), _) => dtype,
            // Quantised from what the checkpoint has, as on the processor.
            (_, DType::F32) => DType::Bf16,
            (_, dtype) => dtype,
        };
        for first in (0..matrix.rows).step_by(turn) {
            let rows = turn.min(matrix.rows - first);
            let source = matrix.rows_bytes(first..first + rows);
            pages.begin(source);
            let rounded = &mut rounded[..rows * row_bytes];
            cuda.host().for_each_part(rounded, row_bytes, |row, out| {
                matrix.dtype.convert(matrix.row_bytes(first + row), dtype, out);
            });
            // SAFETY: `staging` holds as many bytes, and the packing of the turn before has passed: uploading waits.
            unsafe { cuda.context.upload(staging.address(), rounded)? };
            pages.end(source);
            let squares = (first_output + rows).div_ceil(SQUARE) - first_output / SQUARE;
            let shares = match weight_type {
                WeightType::Float(_) | WeightType::Nf4 => k.div_ceil(PACK_INPUTS),
                // The scale is that of all inputs.
                WeightType::Int8 | WeightType::Fp8 => 1,
            };
            let pointers = [weight, staging.address()].map(Argument::Pointer);
            let counts = [first_output, rows, k, n].map(Argument::count);
            // Where scales are depends on the whole weight; those of floats are nowhere.
            let counts = if matches!(weight_type, WeightType::Float(_)) { &counts[..3] } else { &counts[..] };
            let arguments = [&pointers[..], counts].concat();
            // SAFETY: linear_pack.cu, linear_quantized.cuh: `rows` rows of k elements at `staging`, which is freed after the stream has
            // passed (dropping waits); the outputs lie in the weight (the caller's obligation).
            unsafe { cuda.launch(KernelName::of(kernel, dtype), [squares, shares, 1], PACK_THREADS, &arguments)? };
            first_output += rows;
        }
    }
    cuda.context.synchronize()
}

/// `out = x · wᵀ (+ bias)`; shapes were checked.
pub(super) fn run(cuda: &Cuda, out: &mut Tensor, x: &Tensor, w: &LinearWeight, bias: Option<&Tensor>) -> Result<()> {
    const OP: &str = "linear";
    expect_device(OP, out.device(), &[("x", x), ("bias", bias.unwrap_or(x))])?;
    expect_on(OP, out.device(), "w", w.device())?;
    let Format::Squares(weight_type) = w.format() else {
        return Err(Error::UnsupportedDevice { op: OP, arg: "w", device: w.device().describe() });
    };
    let dtype = x.dtype();
    match weight_type {
        WeightType::Float(expected) if dtype != expected => {
            return Err(Error::DType { op: OP, arg: "x", expected, actual: dtype });
        }
        WeightType::Nf4 if out.dtype() == DType::F32 => {
            return Err(Error::DType { op: OP, arg: "out", expected: dtype, actual: DType::F32 });
        }
        _ => {}
    }
    let [rows_kernel, tiles_kernel, _] = kernels(weight_type);
    let (m, n, k) = (x.rows(), w.n(), w.k());
    let parts = parts(k);
    let bias = bias.map_or(0, Tensor::address);
    let addresses = [out.address(), x.address(), w.address(), bias].map(Argument::Pointer);
    let arguments = [&addresses[..], &[m, n, k, parts].map(Argument::count)].concat();
    match Kernel::of(weight_type, m, n, cuda.multiprocessors() as usize) {
        Kernel::Rows { tiles, outputs } => {
            let name = KernelName::numbered(rows_kernel, tiles, dtype).giving(out.dtype());
            let grid = [n.div_ceil(outputs), m.div_ceil(8 * tiles), 1];
            // SAFETY: linear_rows.cuh: x of m rows of k, out of m rows of n, a weight for n outputs of k inputs, a bias of n or none
            // (checked by `linear`); a warp per part of the sum; all live as long as their stream's work.
            unsafe { cuda.launch(name, grid, 32 * parts, &arguments[..7]) }
        }
        Kernel::Tiles { rows, outputs } => {
            let name = KernelName::numbered(tiles_kernel, outputs, dtype).giving(out.dtype());
            let grid = [m.div_ceil(rows), n.div_ceil(outputs), 1];
            // SAFETY: linear_tiles.cuh: as above.
            unsafe { cuda.launch(name, grid, TILE_THREADS, &arguments) }
        }
    }
}

/// Into how many parts the sum over k inputs is cut: a function of k alone, since it decides the order of additions. A part of 512
/// inputs is 16 KiB of weights, which a warp asks for in one go; more than eight warps of a block would only wait for each other.
fn parts(k: usize) -> usize {
    (k / 512).clamp(1, 8)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(m: usize, n: usize, expected: Kernel) {
        const H200: usize = 132;
        let weight_type = WeightType::Float(DType::Bf16);
        assert_eq!(Kernel::of(weight_type, m, n, H200), expected, "{m} rows, {n} outputs");
    }

    #[test]
    fn blocks_are_as_large_as_the_gpu_is_full() {
        let rows = |tiles, outputs| Kernel::Rows { tiles, outputs };
        let tiles = |outputs| Kernel::Tiles { rows: 128, outputs };
        check(1, 4096, rows(1, 16));
        check(64, 28672, rows(8, 64));
        // 128 blocks each.
        check(128, 4096, rows(8, 64));
        check(256, 4096, tiles(64));
        check(512, 4096, tiles(128));
        // 96, 96 and 224.
        check(128, 6144, tiles(64));
        check(256, 6144, tiles(128));
        check(65, 28672, tiles(128));
    }
}
