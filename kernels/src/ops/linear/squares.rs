//! Linear layers on a GPU: `kernels/cuda/linear.cuh` says how a weight lies in memory and in which order its products are summed.
//!
//! Two kernels keep that one order, in blocks of several sizes: one for few rows, which streams the weight once, and one for many, which
//! computes tiles. So a row has the same bits in a decode step and in a prompt's chunk.

use crate::contract::{expect_device, expect_on};
use crate::cuda::{Argument, Cuda, DeviceMemory, KernelName};
use crate::{DType, Error, LinearWeight, MatrixView, Result, SourcePages, Tensor};

/// Inputs of two squares beside each other. A weight has a multiple of them.
const TILE_INPUTS: usize = 32;

/// Outputs of a square.
const SQUARE: usize = 16;

/// Rows of a block of the kernel for many, and its threads (`linear_tiles.cu`).
const TILE_ROWS: usize = 128;
const TILE_THREADS: usize = 256;

/// Inputs that a block packs of sixteen outputs, and its threads (`linear_pack.cu`).
const PACK_INPUTS: usize = 1024;
const PACK_THREADS: usize = 256;

/// Bytes of rows that are packed at a time: enough to keep the bus busy, little enough to not count as memory.
const PACKED_BYTES: usize = 32 << 20;

/// Bytes of the squares of sixteen outputs.
pub(super) fn panel_bytes(dtype: DType, k: usize) -> usize {
    k * SQUARE * dtype.size_bytes()
}

/// A kernel, by what a block of it computes.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Kernel {
    /// That for few rows (`linear_rows.cu`): so many tiles of eight rows, and outputs.
    Rows { tiles: usize, outputs: usize },
    /// That for many (`linear_tiles.cu`): so many outputs of 128 rows.
    Tiles { outputs: usize },
}

impl Kernel {
    /// The kernel for m rows and n outputs. It may depend on anything: they all give the same bits.
    ///
    /// Up to 64 rows are one pass over the weight. Beyond, what a multiprocessor gets from L2 is the limit, of the weight and of x: for a
    /// product the less, the larger the blocks are. Smaller ones win only if all of them run at the same time, hence if of the larger
    /// there is one for every second multiprocessor, or fewer. Of more, some multiprocessor would compute two halves of a block,
    /// which takes longer than the whole.
    fn of(m: usize, n: usize, multiprocessors: usize) -> Kernel {
        let leaves_half_idle = |outputs: usize| m.div_ceil(TILE_ROWS) * n.div_ceil(outputs) <= multiprocessors / 2;
        match m {
            0..=8 => Kernel::Rows { tiles: 1, outputs: 16 },
            9..=16 => Kernel::Rows { tiles: 2, outputs: 32 },
            17..=32 => Kernel::Rows { tiles: 4, outputs: 32 },
            33..=64 => Kernel::Rows { tiles: 8, outputs: 64 },
            _ if !leaves_half_idle(128) => Kernel::Tiles { outputs: 128 },
            _ if !leaves_half_idle(64) => Kernel::Tiles { outputs: 64 },
            // Halves along the rows: 64 x 64.
            _ => Kernel::Rows { tiles: 8, outputs: 64 },
        }
    }
}

/// Whether a weight can be multiplied with on a GPU.
pub(crate) fn expect_shape(dtype: DType, k: usize) -> Result<()> {
    let reason = match dtype {
        DType::F32 => "linear layers on a GPU are bfloat16 or float16, not float32".to_owned(),
        _ if !k.is_multiple_of(TILE_INPUTS) => {
            format!("a linear layer on a GPU has a multiple of {TILE_INPUTS} inputs, not {k}")
        }
        _ => return Ok(()),
    };
    Err(Error::Unsupported { reason })
}

/// Packs matrices, stacked along their rows, into the zeroed memory at `weight`.
///
/// # Safety
/// `weight` is the address of squares for all rows of the matrices, each of `k` elements of `dtype`.
pub(crate) unsafe fn pack(
    cuda: &Cuda,
    weight: u64,
    dtype: DType,
    k: usize,
    matrices: &[MatrixView<'_>],
    pages: &dyn SourcePages,
) -> Result<()> {
    let row_bytes = k * dtype.size_bytes();
    let turn = (PACKED_BYTES / row_bytes.max(1)).max(1);
    let longest = matrices.iter().map(|matrix| matrix.rows.min(turn)).max().unwrap_or(0);
    if longest * row_bytes == 0 {
        return Ok(());
    }
    let staging = DeviceMemory::zeroed(&cuda.context, longest * row_bytes, "weights")?;
    let mut rounded = vec![0; longest * row_bytes];
    let mut first_output = 0;
    for matrix in matrices {
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
            let grid = [squares, k.div_ceil(PACK_INPUTS), 1];
            let arguments = [
                Argument::Pointer(weight),
                Argument::Pointer(staging.address()),
                Argument::count(first_output),
                Argument::count(rows),
                Argument::count(k),
            ];
            // SAFETY: linear_pack.cu: `rows` rows of k elements at `staging`, which is freed after the stream has passed (dropping
            // waits); the outputs lie in the weight (the caller's obligation).
            unsafe { cuda.launch(KernelName::of("pack_linear", dtype), grid, PACK_THREADS, &arguments)? };
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
    let dtype = w.format().input_dtype();
    if x.dtype() != dtype {
        return Err(Error::DType { op: OP, arg: "x", expected: dtype, actual: x.dtype() });
    }
    let (m, n, k) = (x.rows(), w.n(), w.k());
    let parts = parts(k);
    let bias = bias.map_or(0, Tensor::address);
    let addresses = [out.address(), x.address(), w.address(), bias].map(Argument::Pointer);
    let arguments = [&addresses[..], &[m, n, k, parts].map(Argument::count)].concat();
    match Kernel::of(m, n, cuda.multiprocessors() as usize) {
        Kernel::Rows { tiles, outputs } => {
            let name = KernelName::numbered("linear_rows", tiles, dtype).giving(out.dtype());
            let grid = [n.div_ceil(outputs), m.div_ceil(8 * tiles), 1];
            // SAFETY: linear_rows.cu: x of m rows of k, out of m rows of n, squares for n outputs of k inputs, a bias of n or none
            // (checked by `linear`); a warp per part of the sum; all live as long as their stream's work.
            unsafe { cuda.launch(name, grid, 32 * parts, &arguments[..7]) }
        }
        Kernel::Tiles { outputs } => {
            let name = KernelName::numbered("linear_tiles", outputs, dtype).giving(out.dtype());
            let grid = [m.div_ceil(TILE_ROWS), n.div_ceil(outputs), 1];
            // SAFETY: linear_tiles.cu: as above.
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
        assert_eq!(Kernel::of(m, n, H200), expected, "{m} rows, {n} outputs");
    }

    #[test]
    fn blocks_are_as_large_as_the_gpu_is_full() {
        let rows = |tiles, outputs| Kernel::Rows { tiles, outputs };
        let tiles = |outputs| Kernel::Tiles { outputs };
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
