//! Linear layers on a GPU: `kernels/cuda/linear.cuh` says how a weight lies in memory and in which order its products are summed.
//!
//! Two kernels keep that one order, in blocks of several sizes: one for few rows, which streams the weight once, and one for many, which
//! computes tiles. So a row has the same bits in a decode step and in a prompt's chunk. A third, for many rows on Hopper, keeps it with
//! another instruction, which is trusted where it was seen to give the same bits ([`wgmma_keeps_bits`]).
//!
//! Quantised weights are the numbers that the processor has; a GPU multiplies them with inputs that are not quantised.

use super::Format;
use crate::contract::{expect_device, expect_on};
use crate::cuda::{Argument, Cuda, DeviceMemory, KernelName, PIECE_BYTES};
use crate::fp8::{Fp8Lanes, Fp8Stack};
use crate::int4::{Int4Lanes, Int4Stack};
use crate::linear_weight::PANELS_OF_TURN;
use crate::{DType, Error, ExpertWeights, LinearWeight, MatrixView, Result, SourcePages, Tensor, WeightType};

/// Inputs of two squares beside each other. A weight has a multiple of them.
const TILE_INPUTS: usize = 32;

/// Inputs of a unit of four bits a weight, which have one scale.
const GROUPED_INPUTS: usize = 64;

/// Bytes of such a unit, and of the scales in two bytes and zeros in one that sixteen outputs of 4-bit integers have of it.
const UNIT_BYTES: usize = GROUPED_INPUTS * SQUARE / 2;
const INT4_SCALES_BYTES: usize = SQUARE * 3;

/// Outputs of a square.
const SQUARE: usize = 16;

/// Rows of a block of the kernel for many, and its threads (`linear_tiles.cuh`). With scales of units, half as many.
const TILE_ROWS: usize = 128;
const GROUPED_TILE_ROWS: usize = 64;
const TILE_THREADS: usize = 256;

/// Rows and outputs of a block of the kernel for many on Hopper, and its threads (`linear_wgmma.cuh`).
const WGMMA_ROWS: usize = 128;
const WGMMA_OUTPUTS: usize = 128;
const WGMMA_THREADS: usize = 256;

/// The compute capability of GPUs that have its instruction: Hopper's, and no later one.
const WGMMA_CAPABILITY: (u32, u32) = (9, 0);

/// Inputs that a block packs of sixteen outputs, unless it needs the largest of all, and its threads (`linear_pack.cu`).
const PACK_INPUTS: usize = 1024;
const PACK_THREADS: usize = 256;

/// Bytes of sixteen outputs, with their scales.
pub(super) fn panel_bytes(weight_type: WeightType, k: usize) -> usize {
    match weight_type {
        WeightType::Float(dtype) => k * SQUARE * dtype.size_bytes(),
        WeightType::Int8 | WeightType::Fp8 => SQUARE * (k + size_of::<f32>()),
        WeightType::Nf4 => SQUARE * (k / 2 + k / GROUPED_INPUTS * DType::Bf16.size_bytes()),
        WeightType::Int4 => k / GROUPED_INPUTS * (UNIT_BYTES + INT4_SCALES_BYTES),
    }
}

/// The kernels of a type of weights: for few rows, and for many.
fn kernels(weight_type: WeightType) -> [&'static str; 2] {
    match weight_type {
        WeightType::Float(_) => ["linear_rows", "linear_tiles"],
        WeightType::Int8 => ["linear_int8_rows", "linear_int8_tiles"],
        WeightType::Fp8 => ["linear_fp8_rows", "linear_fp8_tiles"],
        WeightType::Nf4 => ["linear_nf4_rows", "linear_nf4_tiles"],
        WeightType::Int4 => ["linear_int4_rows", "linear_int4_tiles"],
    }
}

/// The kernel that packs rows of floats.
fn pack_kernel(weight_type: WeightType) -> &'static str {
    match weight_type {
        WeightType::Float(_) => "pack_linear",
        WeightType::Int8 => "pack_int8",
        WeightType::Fp8 => "pack_fp8",
        WeightType::Nf4 => "pack_nf4",
        WeightType::Int4 => unreachable!("packed from codes, not from matrices of floats"),
    }
}

/// Whether units of inputs have scales of their own.
fn is_grouped(weight_type: WeightType) -> bool {
    matches!(weight_type, WeightType::Nf4 | WeightType::Int4)
}

/// A kernel, by what a block of it computes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Kernel {
    /// That for few rows (`linear_rows.cuh`): so many tiles of eight rows, and outputs.
    Rows { tiles: usize, outputs: usize },
    /// That for many (`linear_tiles.cuh`): so many rows, and outputs.
    Tiles { rows: usize, outputs: usize },
    /// That for many of weights as they are, on Hopper (`linear_wgmma.cuh`).
    Wgmma,
}

impl Kernel {
    /// The kernel for m rows and n outputs. It may depend on anything: they all give the same bits. `has_wgmma`: whether
    /// [`Kernel::Wgmma`] does.
    ///
    /// Up to 64 rows are one pass over the weight. Beyond, what a multiprocessor gets from L2 is the limit, of the weight and of x: for a
    /// product the less, the larger the blocks are. Smaller ones win only if all of them run at the same time, hence if of the larger
    /// there is one for every second multiprocessor, or fewer. Of more, some multiprocessor would compute two halves of a block,
    /// which takes longer than the whole. Hopper's kernel computes its one block about twice as fast as the other the same one,
    /// and so about as fast as that its half: where halves run at the same time, they stay.
    fn of(weight_type: WeightType, m: usize, n: usize, multiprocessors: usize, has_wgmma: bool) -> Kernel {
        let leaves_half_idle = |outputs: usize| m.div_ceil(TILE_ROWS) * n.div_ceil(outputs) <= multiprocessors / 2;
        match (m, weight_type) {
            (0..=8, _) => Kernel::Rows { tiles: 1, outputs: 16 },
            (9..=16, _) => Kernel::Rows { tiles: 2, outputs: 32 },
            (17..=32, _) => Kernel::Rows { tiles: 4, outputs: 32 },
            // The sums of units with scales of their own take registers: blocks are half as large.
            (33..=64, WeightType::Nf4 | WeightType::Int4) => Kernel::Rows { tiles: 8, outputs: 32 },
            (_, WeightType::Nf4 | WeightType::Int4) => Kernel::Tiles { rows: GROUPED_TILE_ROWS, outputs: 128 },
            (33..=64, _) => Kernel::Rows { tiles: 8, outputs: 64 },
            (_, WeightType::Float(_)) if has_wgmma && !leaves_half_idle(WGMMA_OUTPUTS) => Kernel::Wgmma,
            _ if !leaves_half_idle(128) => Kernel::Tiles { rows: TILE_ROWS, outputs: 128 },
            _ if !leaves_half_idle(64) => Kernel::Tiles { rows: TILE_ROWS, outputs: 64 },
            // Halves along the rows: 64 x 64.
            _ => Kernel::Rows { tiles: 8, outputs: 64 },
        }
    }

    /// The fewest rows that a block of any kernel has.
    pub(crate) const FEWEST_ROWS: usize = 8;

    /// The kernel for so many pairs of rows and experts. The host does not know how they are distributed: blocks have twice the rows that
    /// an expert has on the average, so that most experts have one block of rows and are read once. `has_wgmma` as in [`Kernel::of`].
    pub(crate) fn of_experts(pairs: usize, num_experts: usize, has_wgmma: bool) -> Kernel {
        match pairs.div_ceil(num_experts.min(pairs).max(1)) {
            0..=4 => Kernel::Rows { tiles: 1, outputs: 16 },
            5..=8 => Kernel::Rows { tiles: 2, outputs: 32 },
            9..=16 => Kernel::Rows { tiles: 4, outputs: 32 },
            17..=48 => Kernel::Rows { tiles: 8, outputs: 64 },
            _ if has_wgmma => Kernel::Wgmma,
            _ => Kernel::Tiles { rows: TILE_ROWS, outputs: 128 },
        }
    }

    /// Rows of a block.
    pub(crate) fn rows(self) -> usize {
        match self {
            Kernel::Rows { tiles, .. } => 8 * tiles,
            Kernel::Tiles { rows, .. } => rows,
            Kernel::Wgmma => WGMMA_ROWS,
        }
    }
}

/// Whether a weight can be multiplied with on a GPU.
pub(crate) fn expect_shape(weight_type: WeightType, k: usize) -> Result<()> {
    let unit = if is_grouped(weight_type) { GROUPED_INPUTS } else { TILE_INPUTS };
    let reason = match weight_type {
        WeightType::Float(DType::F32) => "linear layers on a GPU are bfloat16 or float16, not float32".to_owned(),
        _ if !k.is_multiple_of(unit) => {
            format!("a linear layer on a GPU has a multiple of {unit} inputs, not {k}")
        }
        _ => return Ok(()),
    };
    Err(Error::Unsupported { reason })
}

/// Whether some of the outputs of a weight are a weight too: scales lie behind all of them.
///
/// # Errors
/// [`Error::Unsupported`] if not.
pub(crate) fn expect_parts(weight_type: WeightType) -> Result<()> {
    match weight_type {
        WeightType::Float(_) => Ok(()),
        WeightType::Int8 | WeightType::Fp8 | WeightType::Nf4 | WeightType::Int4 => {
            let reason = format!(
                "{weight_type:?} experts run on CPUs only: on a GPU they are bfloat16 or float16, not quantised"
            );
            Err(Error::Unsupported { reason })
        }
    }
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
    let kernel = pack_kernel(weight_type);
    if row_bytes == 0 {
        return Ok(());
    }
    let turn = (PIECE_BYTES / row_bytes).max(1);
    let mut uploads = cuda.uploads();
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
            let mut piece = uploads.next(rows * row_bytes)?;
            let rounded = &mut piece.bytes_mut()[..rows * row_bytes];
            cuda.host().for_each_part(rounded, row_bytes, |row, out| {
                matrix.dtype.convert(matrix.row_bytes(first + row), dtype, out);
            });
            pages.end(source);
            let staged = piece.stage(rows * row_bytes)?;
            let squares = (first_output + rows).div_ceil(SQUARE) - first_output / SQUARE;
            let shares = match weight_type {
                WeightType::Float(_) | WeightType::Nf4 | WeightType::Int4 => k.div_ceil(PACK_INPUTS),
                // The scale is that of all inputs.
                WeightType::Int8 | WeightType::Fp8 => 1,
            };
            let pointers = [weight, staged].map(Argument::Pointer);
            let counts = [first_output, rows, k, n].map(Argument::count);
            // Where scales are depends on the whole weight; those of floats are nowhere.
            let counts = if matches!(weight_type, WeightType::Float(_)) { &counts[..3] } else { &counts[..] };
            let arguments = [&pointers[..], counts].concat();
            // SAFETY: linear_pack.cu, linear_quantized.cuh: `rows` rows of k elements at `staged` until the stream has passed this,
            // which is in the piece's turn; the outputs lie in the weight (the caller's obligation).
            unsafe { cuda.launch(KernelName::of(kernel, dtype), [squares, shares, 1], PACK_THREADS, &arguments)? };
            first_output += rows;
        }
    }
    Ok(())
}

/// Packs a stack of matrices of 4-bit integers into the memory at `weight`.
///
/// # Safety
/// `weight` is the address of room for all rows of the stack.
pub(crate) unsafe fn pack_int4(cuda: &Cuda, weight: u64, stack: &Int4Stack<'_>) -> Result<()> {
    let [n, k] = stack.shape();
    let groups = k / GROUPED_INPUTS;
    let sizes @ [units_bytes, scales_bytes] = [groups * UNIT_BYTES, groups * INT4_SCALES_BYTES];
    // SAFETY: the caller's obligation.
    unsafe {
        pack_on_host(cuda, weight, n.div_ceil(SQUARE), sizes, |panels, units, scales| {
            stack.for_panels(panels, |at, lanes| {
                let units = &mut units[at * units_bytes..][..units_bytes];
                pack_int4_panel(units, &mut scales[at * scales_bytes..][..scales_bytes], lanes);
            });
        })
    }
}

/// Packs a stack of matrices of FP8 numbers into the memory at `weight`.
///
/// # Safety
/// `weight` is the address of room for all rows of the stack.
pub(crate) unsafe fn pack_fp8(cuda: &Cuda, weight: u64, stack: &Fp8Stack<'_>) -> Result<()> {
    let [n, k] = stack.shape();
    let sizes @ [units_bytes, scales_bytes] = [SQUARE * k, SQUARE * size_of::<f32>()];
    // SAFETY: the caller's obligation.
    unsafe {
        pack_on_host(cuda, weight, n.div_ceil(SQUARE), sizes, |panels, units, scales| {
            stack.for_panels(panels, |at, lanes| {
                let units = &mut units[at * units_bytes..][..units_bytes];
                pack_fp8_panel(units, &mut scales[at * scales_bytes..][..scales_bytes], lanes);
            });
        })
    }
}

/// Packs panels on the host's threads, some at a time, since what is packed is no larger than what is read: `pack(panels, units, scales)`
/// writes, over anything, the units of some panels and their scales, `[units_bytes, scales_bytes]` for each.
///
/// # Safety
/// `weight` is the address of room for the units of so many panels and, behind them all, for their scales.
unsafe fn pack_on_host(
    cuda: &Cuda,
    weight: u64,
    panels: usize,
    [units_bytes, scales_bytes]: [usize; 2],
    pack: impl Fn(std::ops::Range<usize>, &mut [u8], &mut [u8]) + Sync,
) -> Result<()> {
    if panels * units_bytes == 0 {
        return Ok(());
    }
    let turns = (PIECE_BYTES / (PANELS_OF_TURN * (units_bytes + scales_bytes))).max(1);
    let most = panels.min(turns * PANELS_OF_TURN);
    let mut uploads = cuda.uploads();
    for first in (0..panels).step_by(most) {
        let count = most.min(panels - first);
        let (units_len, scales_len) = (count * units_bytes, count * scales_bytes);
        let mut piece = uploads.next(units_len + scales_len)?;
        let (units, scales) = piece.bytes_mut()[..units_len + scales_len].split_at_mut(units_len);
        let places =
            units.chunks_mut(PANELS_OF_TURN * units_bytes).zip(scales.chunks_mut(PANELS_OF_TURN * scales_bytes));
        let mut places: Vec<(&mut [u8], &mut [u8])> = places.collect();
        cuda.host().for_each_part(&mut places, 1, |turn, places| {
            for (units, scales) in places {
                let first = first + turn * PANELS_OF_TURN;
                pack(first..first + units.len() / units_bytes, units, scales);
            }
        });
        let units_at = weight + (first * units_bytes) as u64;
        let scales_at = weight + (panels * units_bytes + first * scales_bytes) as u64;
        // SAFETY: the units of as many panels lie there (the caller's obligation).
        unsafe { piece.upload(units_at, 0, units_len)? };
        // SAFETY: their scales lie there, behind the units of all panels (the caller's obligation).
        unsafe { piece.upload(scales_at, units_len, scales_len)? };
    }
    Ok(())
}

/// Writes the units of a panel, and its scales, as `linear_fp8.cu` reads them; outputs that do not exist become zeros.
fn pack_fp8_panel(units: &mut [u8], scales: &mut [u8], lanes: &Fp8Lanes<'_>) {
    // Of eight neighbouring inputs, those of an output and of that eight further on.
    const LANE_INPUTS: usize = 8;
    units.fill(0);
    scales.fill(0);
    for (output, row) in lanes.iter().enumerate() {
        let Some(row) = row else { break };
        scales.as_chunks_mut::<4>().0[output] = row.scale.to_le_bytes();
        for (input, code) in row.codes().enumerate() {
            let (unit, in_unit) = (input / TILE_INPUTS, input % TILE_INPUTS);
            let lane = output % 8 * 4 + in_unit / LANE_INPUTS;
            let at = in_unit % LANE_INPUTS * 2 + output / 8;
            units[(unit * 32 + lane) * 16 + at] = code;
        }
    }
}

/// Writes the units of a panel, and their scales and zeros, as `linear_int4.cu` reads them; outputs that do not exist become zeros.
fn pack_int4_panel(units: &mut [u8], scales: &mut [u8], lanes: &Int4Lanes<'_>) {
    const LANE_BYTES: usize = 16;
    const GROUP_BYTES: usize = GROUPED_INPUTS / 2;
    let units = units.as_chunks_mut::<UNIT_BYTES>().0.iter_mut().zip(scales.as_chunks_mut::<INT4_SCALES_BYTES>().0);
    for (group, (unit, scales)) in units.enumerate() {
        let (scales, zeros) = scales.split_at_mut(SQUARE * 2);
        for first in 0..SQUARE / 2 {
            // An output and that eight further on, of 64 inputs.
            let pair = [lanes[first], lanes[first + SQUARE / 2]];
            for (half, row) in pair.iter().enumerate() {
                let at = first * 2 + half;
                let (scale, zero) = row.map_or(([0; 2], 0), |row| (row.scales[group].to_le_bytes(), row.zeros[group]));
                scales.as_chunks_mut::<2>().0[at] = scale;
                zeros[at] = zero;
            }
            let [low, high] = pair.map(|row| {
                let codes = row.and_then(|row| row.codes.as_chunks::<GROUP_BYTES>().0.get(group));
                codes.map_or([[0; 4]; GROUP_BYTES / 4], |codes| *bytemuck::cast_ref(codes))
            });
            // Eight inputs are two squares of a lane: four lanes of an output have 32 inputs.
            for (eight, (low, high)) in low.iter().zip(&high).enumerate() {
                let (low, high) = (u32::from_le_bytes(*low), u32::from_le_bytes(*high));
                let (tile, lane) = (eight / 4, first * 4 + eight % 4);
                let squares = &mut unit[lane * LANE_BYTES + tile * LANE_BYTES / 2..][..LANE_BYTES / 2];
                squares[..4].copy_from_slice(&(square_pairs(low) | square_pairs(high) << 4).to_le_bytes());
                squares[4..].copy_from_slice(&(square_pairs(low >> 16) | square_pairs(high >> 16) << 4).to_le_bytes());
            }
        }
    }
}

/// The lowest four of neighbouring codes as pairs of a square: the first and the second at the beginning of either half, the third and
/// the fourth eight bits above them.
fn square_pairs(codes: u32) -> u32 {
    codes & 0x0f0f | (codes & 0xf0f0) << 12
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
        _ if is_grouped(weight_type) && out.dtype() == DType::F32 => {
            return Err(Error::DType { op: OP, arg: "out", expected: dtype, actual: DType::F32 });
        }
        _ => {}
    }
    let (m, n, k) = (x.rows(), w.n(), w.k());
    let bias = bias.map_or(0, Tensor::address);
    let product = Product {
        weight_type,
        dtype,
        out_dtype: out.dtype(),
        addresses: [out.address(), x.address(), w.address(), bias],
        shape: [m, n, k],
        parts: parts(k),
    };
    let kernel = Kernel::of(weight_type, m, n, cuda.multiprocessors() as usize, cuda.has_wgmma());
    // SAFETY: x of m rows of k, out of m rows of n, a weight for n outputs of k inputs, a bias of n or none (checked by `linear`); all
    // live as long as their stream's work.
    unsafe { product.launch(cuda, kernel) }
}

/// `out = x · wᵀ`, tile by tile with the weight of its expert; shapes and devices were checked.
///
/// # Safety
/// At the address `tiles` are `count` of them when the stream comes to it, each of up to `kernel.rows()` rows of x and an expert of `w`.
pub(crate) unsafe fn run_experts(
    cuda: &Cuda,
    out: &mut Tensor,
    x: &Tensor,
    w: &ExpertWeights,
    kernel: Kernel,
    (tiles, count): (u64, usize),
) -> Result<()> {
    let dtype = x.dtype();
    match w.stack().format() {
        Format::Squares(WeightType::Float(expected)) if expected == dtype => {}
        Format::Squares(WeightType::Float(expected)) => {
            return Err(Error::DType { op: "experts_linear", arg: "x", expected, actual: dtype });
        }
        _ => unreachable!("experts of other types are refused when they are packed"),
    }
    let (n, k) = (w.n(), w.k());
    let pointers = [out.address(), x.address(), w.stack().address(), tiles].map(Argument::Pointer);
    let arguments = [&pointers[..], &[n, k, parts(k)].map(Argument::count)].concat();
    let (name, grid, threads, arguments) = match kernel {
        Kernel::Rows { tiles, outputs } => {
            let name = KernelName::numbered("linear_experts_rows", tiles, dtype);
            (name, [n.div_ceil(outputs), count, 1], 32 * parts(k), &arguments[..6])
        }
        Kernel::Tiles { outputs, .. } => {
            let name = KernelName::numbered("linear_experts_tiles", outputs, dtype);
            (name, [count, n.div_ceil(outputs), 1], TILE_THREADS, &arguments[..])
        }
        Kernel::Wgmma => {
            let name = KernelName::numbered("linear_experts_wgmma", WGMMA_OUTPUTS, dtype);
            (name, [count, n.div_ceil(WGMMA_OUTPUTS), 1], WGMMA_THREADS, &arguments[..])
        }
    };
    // SAFETY: linear_experts.cu: rows of x and out for every pair, weights of `n` outputs and `k` inputs (the shapes were checked), tiles
    // as the caller says; tensors live as long as their stream's work.
    unsafe { cuda.launch(name, grid, threads, arguments) }
}

/// A linear layer of tensors that are on the GPU.
struct Product {
    weight_type: WeightType,
    dtype: DType,
    out_dtype: DType,
    /// Of out, x, the weight, and the bias or 0.
    addresses: [u64; 4],
    /// m, n and k.
    shape: [usize; 3],
    parts: usize,
}

impl Product {
    /// Asks for it.
    ///
    /// # Safety
    /// At the addresses are tensors of these types and of these shapes: `[m][n]`, `[m][k]`, a packed weight, and `[n]`. Nobody frees them
    /// before the stream has passed the kernel.
    unsafe fn launch(&self, cuda: &Cuda, kernel: Kernel) -> Result<()> {
        let [rows_kernel, tiles_kernel] = kernels(self.weight_type);
        let ([m, n, k], parts) = (self.shape, self.parts);
        let arguments = [&self.addresses.map(Argument::Pointer)[..], &[m, n, k, parts].map(Argument::count)].concat();
        let name = |base, number| KernelName::numbered(base, number, self.dtype).giving(self.out_dtype);
        match kernel {
            Kernel::Rows { tiles, outputs } => {
                let grid = [n.div_ceil(outputs), m.div_ceil(8 * tiles), 1];
                // SAFETY: linear_rows.cuh: the caller's obligation; a warp per part of the sum.
                unsafe { cuda.launch(name(rows_kernel, tiles), grid, 32 * parts, &arguments[..7]) }
            }
            Kernel::Tiles { rows, outputs } => {
                let grid = [m.div_ceil(rows), n.div_ceil(outputs), 1];
                // SAFETY: linear_tiles.cuh: the caller's obligation.
                unsafe { cuda.launch(name(tiles_kernel, outputs), grid, TILE_THREADS, &arguments) }
            }
            Kernel::Wgmma => {
                let grid = [m.div_ceil(WGMMA_ROWS), n.div_ceil(WGMMA_OUTPUTS), 1];
                // SAFETY: linear_wgmma.cuh: the caller's obligation.
                unsafe { cuda.launch(name("linear_wgmma", WGMMA_OUTPUTS), grid, WGMMA_THREADS, &arguments) }
            }
        }
    }
}

/// Whether the kernel of Hopper's instruction gives the bits of the others on this GPU, which NVIDIA promises nowhere: found out on
/// random products of both types, in f32, so that no rounding hides a difference. `None` on GPUs that do not have it.
///
/// # Errors
/// [`Error::Cuda`] if the GPU does not run it to its end; [`Error::Unsupported`] if its code was built without it; [`Error::OutOfMemory`].
pub(crate) fn wgmma_keeps_bits(cuda: &Cuda) -> Result<Option<bool>> {
    // Less than a block, of odd outputs; two parts that end between the kernel's rounds; four and six instructions deep.
    const SHAPE: [usize; 3] = [123, 117, 160];
    const PARTS: usize = 2;
    if cuda.context.properties.capability != WGMMA_CAPABILITY {
        return Ok(None);
    }
    let [m, n, k] = SHAPE;
    for dtype in [DType::Bf16, DType::F16] {
        let zeroed = |bytes| DeviceMemory::zeroed(&cuda.context, bytes, "a trial of linear layers");
        let sum_bytes = m * n * size_of::<f32>();
        let (x, weight) = (trial_elements(dtype, m * k, 1), trial_elements(dtype, n.next_multiple_of(SQUARE) * k, 2));
        let (on_device, sums) = ([zeroed(x.len())?, zeroed(weight.len())?], [zeroed(sum_bytes)?, zeroed(sum_bytes)?]);
        let mut results = [vec![0; sum_bytes], vec![0; sum_bytes]];
        let kernels = [Kernel::Tiles { rows: TILE_ROWS, outputs: 128 }, Kernel::Wgmma];
        // SAFETY: as many bytes were allocated, and are freed when what is asked of them is done. Any numbers are a packed weight.
        unsafe {
            cuda.context.upload(on_device[0].address(), &x)?;
            cuda.context.upload(on_device[1].address(), &weight)?;
            for ((kernel, sums), result) in kernels.into_iter().zip(&sums).zip(&mut results) {
                let product = Product {
                    weight_type: WeightType::Float(dtype),
                    dtype,
                    out_dtype: DType::F32,
                    addresses: [sums.address(), on_device[0].address(), on_device[1].address(), 0],
                    shape: SHAPE,
                    parts: PARTS,
                };
                product.launch(cuda, kernel)?;
                cuda.context.download(sums.address(), result)?;
            }
        }
        if results[0] != results[1] {
            return Ok(Some(false));
        }
    }
    Ok(Some(true))
}

/// Random elements between 2^-12 and 2, of either sign: what is added differs by many orders of magnitude, and much of it cancels.
fn trial_elements(dtype: DType, count: usize, seed: u64) -> Vec<u8> {
    const EXPONENTS: u16 = 13;
    let (mantissa_bits, bias) = if dtype == DType::F16 { (10, 15) } else { (7, 127) };
    let mut state = seed;
    let mut next = || {
        // Knuth's generator of MMIX, of which the upper bits are random.
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 48) as u16
    };
    let element = |_| {
        let (sign, exponent, mantissa) = (next() >> 15, bias - next() % EXPONENTS, next() >> (16 - mantissa_bits));
        (sign << 15 | exponent << mantissa_bits | mantissa).to_le_bytes()
    };
    (0..count).flat_map(element).collect()
}

/// Into how many parts the sum over k inputs is cut: a function of k alone, since it decides the order of additions. A part of 512
/// inputs is 16 KiB of weights, which a warp asks for in one go; more than eight warps of a block would only wait for each other.
fn parts(k: usize) -> usize {
    (k / 512).clamp(1, 8)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::int4::testing::Matrix;
    use crate::{Fp8View, Int4Source, e4m3_to_f32};

    /// What is chosen on an H200, without Hopper's instruction and with it.
    #[track_caller]
    fn check(weight_type: WeightType, m: usize, n: usize, expected: [Kernel; 2]) {
        const H200: usize = 132;
        let chosen = [false, true].map(|has_wgmma| Kernel::of(weight_type, m, n, H200, has_wgmma));
        assert_eq!(chosen, expected, "{m} rows, {n} outputs");
    }

    #[test]
    fn blocks_are_as_large_as_the_gpu_is_full() {
        let rows = |tiles, outputs| Kernel::Rows { tiles, outputs };
        let tiles = |outputs| Kernel::Tiles { rows: 128, outputs };
        let same = |m, n, expected| check(WeightType::Float(DType::Bf16), m, n, [expected, expected]);
        let hopper = |m, n, otherwise| check(WeightType::Float(DType::F16), m, n, [otherwise, Kernel::Wgmma]);
        same(1, 4096, rows(1, 16));
        same(64, 28672, rows(8, 64));
        // 128 blocks each.
        same(128, 4096, rows(8, 64));
        same(256, 4096, tiles(64));
        hopper(512, 4096, tiles(128));
        // 96, 96 and 224.
        same(128, 6144, tiles(64));
        hopper(256, 6144, tiles(128));
        hopper(65, 28672, tiles(128));
        // It takes weights as they are.
        check(WeightType::Int8, 512, 4096, [tiles(128); 2]);
        check(WeightType::Nf4, 512, 4096, [Kernel::Tiles { rows: 64, outputs: 128 }; 2]);
    }

    #[test]
    fn elements_of_a_trial_are_numbers_of_many_magnitudes() {
        for dtype in [DType::Bf16, DType::F16] {
            let bytes = trial_elements(dtype, 4096, 1);
            let value = |bytes: &[u8; 2]| match dtype {
                DType::F16 => half::f16::from_le_bytes(*bytes).to_f32(),
                _ => half::bf16::from_le_bytes(*bytes).to_f32(),
            };
            let values: Vec<f32> = bytes.as_chunks::<2>().0.iter().map(value).collect();
            assert_eq!(values.len(), 4096);
            assert!(values.iter().all(|x| (2f32.powi(-12)..2.0).contains(&x.abs())), "{dtype:?}");
            let share = |of: &dyn Fn(f32) -> bool| values.iter().filter(|x| of(**x)).count() as f64 / 4096.0;
            assert!((0.45..0.55).contains(&share(&|x| x < 0.0)), "{dtype:?}");
            assert!((0.05..0.11).contains(&share(&|x| x.abs() >= 1.0)), "{dtype:?}");
        }
    }

    /// Where `linear_int4.cu` finds a code: the byte of the panel's units, and how far up in it. Lane 4 r + c has of the outputs r and
    /// r + 8 the eight inputs from 8 c on of a tile of 32, of a square four of them; by ascending bits the first of both outputs, the
    /// third, the second and the fourth.
    fn place(output: usize, input: usize) -> (usize, usize) {
        let (unit, tile, lane) = (input / 64, input % 64 / 32, output % 8 * 4 + input % 32 / 8);
        let (square, of_square) = (input % 8 / 4, input % 4);
        let code = [0, 4, 2, 6][of_square] + output / 8;
        (unit * 512 + lane * 16 + (tile * 2 + square) * 4 + code / 2, code % 2 * 4)
    }

    #[test]
    fn codes_scales_and_zeros_are_where_kernels_read_them() {
        const K: usize = 192;
        // The second panel has 5 rows.
        let matrix = Matrix::random(3, 21, K);
        let sources = [&matrix as &dyn Int4Source];
        let stack = Int4Stack::new(&sources).unwrap();
        let (units_bytes, scales_bytes) = (K / 64 * 512, K / 64 * 48);
        assert_eq!(panel_bytes(WeightType::Int4, K), units_bytes + scales_bytes);
        let mut panels = 0;
        stack.for_panels(0..4, |panel, lanes| {
            let (mut units, mut scales) = (vec![0xff; units_bytes], vec![0xff; scales_bytes]);
            pack_int4_panel(&mut units, &mut scales, lanes);
            for output in 0..SQUARE {
                let row = panel * SQUARE + output;
                for input in 0..K {
                    let (byte, shift) = place(output, input);
                    let expected = if row < 21 { matrix.codes[row * K + input] } else { 0 };
                    assert_eq!(units[byte] >> shift & 15, expected, "output {row}, input {input}");
                }
                for group in 0..K / 64 {
                    let (scales, zeros) = scales[group * 48..][..48].split_at(32);
                    let at = output % 8 * 2 + output / 8;
                    let exists = row < 21;
                    let scale = if exists { matrix.scales[row * K / 64 + group].to_bits() } else { 0 };
                    let zero = if exists { matrix.zeros[row * K / 64 + group] } else { 0 };
                    assert_eq!(
                        (&scales[at * 2..][..2], zeros[at]),
                        (&scale.to_le_bytes()[..], zero),
                        "output {row}, group {group}"
                    );
                }
            }
            panels += 1;
        });
        assert_eq!(panels, 2);
    }

    /// As `pack_bytes` of `linear_quantized.cuh` lays them out: a lane has eight neighbouring inputs of an output and of that eight further
    /// on, by turns.
    #[test]
    fn numbers_of_eight_bits_are_packed_as_the_kernels_read_them() {
        const K: usize = 96;
        let codes: Vec<u8> = (0..21 * K).map(|at| 8 + (at * 7 % 112) as u8).collect();
        let scales: Vec<f32> = (0..21).map(|row| 1.0 + row as f32).collect();
        let matrix = Fp8View { codes: &codes, rows: 21, cols: K, row_stride: K, first_col: 0, scales: &scales };
        let stack = [matrix];
        let stack = Fp8Stack::new(&stack).unwrap();
        assert_eq!(panel_bytes(WeightType::Fp8, K), SQUARE * (K + 4));
        let mut panels = 0;
        stack.for_panels(0..4, |panel, lanes| {
            let (mut units, mut scales) = (vec![0xff; SQUARE * K], vec![0xff; SQUARE * 4]);
            pack_fp8_panel(&mut units, &mut scales, lanes);
            for output in 0..SQUARE {
                let row = panel * SQUARE + output;
                let scale = f32::from_le_bytes(scales.as_chunks().0[output]);
                for input in 0..K {
                    let lane = output % 8 * 4 + input % 32 / 8;
                    let code = units[input / 32 * 512 + lane * 16 + input % 8 * 2 + output / 8];
                    // Rows may be raised by powers of two.
                    let expected = codes.get(row * K + input).map_or(0.0, |code| e4m3_to_f32(*code) * (1 + row) as f32);
                    assert_eq!(e4m3_to_f32(code) * scale, expected, "output {row}, input {input}");
                }
            }
            panels += 1;
        });
        assert_eq!(panels, 2);
    }
}
