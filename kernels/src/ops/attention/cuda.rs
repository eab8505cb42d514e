//! Attention on a GPU: work lists of a step and the launches (`attention_decode.cu`, `attention_prefill.cu`).
//!
//! Single rows are computed split by split and merged, rows of a chunk by tiles of rows; both keep one order of sums
//! (`attention.cuh`), so which of them a row meets cannot be seen in it.

use super::{Scoring, SequenceRows};
use crate::cuda::{Argument, Cuda, KernelName};
use crate::limits::{BLOCK_SIZE, KV_SPLIT};
use crate::simd::float8;
use crate::step_lists::CudaLists;
use crate::{DType, Error, KvCache, Result, Tensor};

/// Threads of a block of the kernel of splits. That of the merge has one for each dimension.
const SPLITS_THREADS: usize = 128;

/// Threads of a block of the kernel for chunks.
const CHUNK_THREADS: usize = 256;

/// Pairs of a row and a head that such a block computes.
pub(crate) const BLOCK_PAIRS: usize = 128;

/// Dimensions of values that it computes: all of a head, or of a wide one 64, whose queries and sums still fit into registers.
fn block_values(head_dim: usize) -> usize {
    if head_dim <= 128 { head_dim } else { 64 }
}

/// Heads that a block of the kernel of splits computes, at most: the columns of a matrix instruction. Where more share a KV head, several
/// blocks read it.
const BLOCK_HEADS: usize = 8;

/// Blocks of the kernel of splits that a multiprocessor holds at a time, about: a grid of so many takes the splits in turns.
const BLOCKS_OF_MULTIPROCESSOR: usize = 12;

/// A row without splits: one that belongs to a chunk.
const NO_SPLITS: u32 = u32::MAX;

/// Where the device has a step's work.
#[derive(Debug)]
pub(crate) struct AttentionLists {
    sums: u64,
    states: u64,
    tables: u64,
    /// Of rows up to the last single one: position, start of its table, first split.
    positions: u64,
    table_starts: u64,
    first_splits: u64,
    decode: Vec<Launch>,
    /// Whether grids do not depend on how much there is to do: a graph's are what they were when it was captured.
    is_fixed: bool,
    sequences: u64,
    tiles: u64,
    num_tiles: usize,
}

/// Single rows, as many as one launch has room for the sums of.
#[derive(Debug)]
struct Launch {
    first_row: usize,
    num_rows: usize,
    splits: u64,
    num_splits: usize,
    /// The same number on the device.
    count: u64,
}

impl AttentionLists {
    /// Adds the work of these rows to a step's lists.
    pub(crate) fn of(lists: &mut CudaLists, sequences: &[SequenceRows<'_>]) -> Result<AttentionLists> {
        let limits = lists.limits;
        let group = limits.num_heads / limits.num_kv_heads.max(1);
        let mut work = Work::of(sequences, group, limits.splits_of_launch());
        if let Some(rows) = lists.fixed_rows() {
            work.fill_up(rows)?;
        }
        let mut decode = Vec::with_capacity(work.launches.len());
        for launch in &work.launches {
            decode.push(Launch {
                first_row: launch.first_row,
                num_rows: launch.num_rows,
                splits: lists.push_with_room(launch.splits.as_flattened(), 2 * limits.splits_of_launch())?,
                num_splits: launch.splits.len(),
                count: lists.push(&[launch.splits.len() as u32])?,
            });
        }
        Ok(AttentionLists {
            sums: lists.splits[0].address(),
            states: lists.splits[1].address(),
            tables: lists.push_tables(&work.tables)?,
            positions: lists.push(&work.positions)?,
            table_starts: lists.push(&work.table_starts)?,
            first_splits: lists.push(&work.first_splits)?,
            decode,
            is_fixed: lists.fixed_rows().is_some(),
            sequences: lists.push(work.sequences.as_flattened())?,
            tiles: lists.push(work.tiles.as_flattened())?,
            num_tiles: work.tiles.len(),
        })
    }
}

/// The work of a step, before it is sent.
#[derive(Debug, Default, PartialEq)]
struct Work {
    /// Tables one after the other.
    tables: Vec<u32>,
    positions: Vec<u32>,
    table_starts: Vec<u32>,
    /// Counted from the first of the launch.
    first_splits: Vec<u32>,
    launches: Vec<LaunchWork>,
    /// First row, rows, position of the first, start of the table.
    sequences: Vec<[u32; 4]>,
    /// Sequence and tile.
    tiles: Vec<[u32; 2]>,
}

#[derive(Debug, Default, PartialEq)]
struct LaunchWork {
    first_row: usize,
    num_rows: usize,
    /// Row, counted from the step's first, and split.
    splits: Vec<[u32; 2]>,
}

impl Work {
    fn of(sequences: &[SequenceRows<'_>], group: usize, splits_of_launch: usize) -> Work {
        let mut work = Work::default();
        for sequence in sequences.iter().filter(|sequence| sequence.num_rows > 0) {
            let end = sequence.start_position + sequence.num_rows;
            let table_start = work.tables.len() as u32;
            work.tables.extend(&sequence.block_table[..end.div_ceil(BLOCK_SIZE)]);
            if sequence.num_rows == 1 {
                work.push_row(sequence.first_row, sequence.start_position, table_start, splits_of_launch);
                continue;
            }
            let index = work.sequences.len() as u32;
            let tiles = (sequence.num_rows * group).div_ceil(BLOCK_PAIRS) as u32;
            // The last tile sees the most positions: it begins first, so that none is left over for the end.
            work.tiles.extend((0..tiles).rev().map(|tile| [index, tile]));
            let [first_row, num_rows, start] =
                [sequence.first_row, sequence.num_rows, sequence.start_position].map(|x| x as u32);
            work.sequences.push([first_row, num_rows, start, table_start]);
        }
        work
    }

    /// Rows of no sequence up to `rows`, in one launch whatever there is to do.
    fn fill_up(&mut self, rows: usize) -> Result<()> {
        if self.launches.len() > 1 || !self.tiles.is_empty() || self.positions.len() > rows {
            let reason = format!("a step of single rows, {rows} at most, and one launch was asked for");
            return Err(Error::Unsupported { reason });
        }
        for list in [&mut self.positions, &mut self.table_starts] {
            list.resize(rows, 0);
        }
        self.first_splits.resize(rows, NO_SPLITS);
        if self.launches.is_empty() {
            self.launches.push(LaunchWork::default());
        }
        (self.launches[0].first_row, self.launches[0].num_rows) = (0, rows);
        Ok(())
    }

    fn push_row(&mut self, row: usize, position: usize, table_start: u32, splits_of_launch: usize) {
        let splits = (position + 1).div_ceil(KV_SPLIT);
        if self.launches.last().is_none_or(|launch| launch.splits.len() + splits > splits_of_launch) {
            self.launches.push(LaunchWork { first_row: row, ..LaunchWork::default() });
        }
        let launch = self.launches.last_mut().expect("one was pushed");
        for list in [&mut self.positions, &mut self.table_starts] {
            list.resize(row, 0);
        }
        self.first_splits.resize(row, NO_SPLITS);
        self.positions.push(position as u32);
        self.table_starts.push(table_start);
        self.first_splits.push(launch.splits.len() as u32);
        launch.splits.extend((0..splits).map(|split| [row as u32, split as u32]));
        launch.num_rows = row + 1 - launch.first_row;
    }
}

/// What kernels widen numbers of eight bits to elements of bf16 or f16 with: `Widening` of `fp8.cuh`.
fn widening(format: float8::Format, dtype: DType) -> [u32; 4] {
    let (mantissa_bits, bias) = if dtype == DType::F16 { (10, 15) } else { (7, 127) };
    let twice = |bits: u16| u32::from(bits) << 16 | u32::from(bits);
    let power_of_two = |exponent: i32| f32::from_bits(((127 + exponent) as u32) << 23);
    let shift = mantissa_bits - format.mantissa_bits;
    let multiplier = power_of_two(bias - format.bias);
    // The least power of two that elements lack, 2^(bias + 1), by the middle of the largest number and what would come next.
    let [before, largest] = [format.largest - 1, format.largest].map(|code| format.decode(code as u8));
    let to_infinity = power_of_two(bias) / ((largest + (largest - before) / 2.0) / 2.0);
    [1 << shift, twice(0x8000 | 0x7f << shift), twice(dtype.encode16(multiplier)), twice(dtype.encode16(to_infinity))]
}

/// `out` and `qkv` and the cache fit each other, and the rows the cache.
pub(super) fn run(
    cuda: &Cuda,
    out: &mut Tensor,
    qkv: &Tensor,
    kv: &KvCache,
    layer: usize,
    lists: Option<&AttentionLists>,
    scoring: Scoring,
) -> Result<()> {
    const OP: &str = "attention";
    let Some(lists) = lists else {
        return Err(Error::UnsupportedDevice { op: OP, arg: "rows", device: "cpu".to_owned() });
    };
    kv.expect_activations_of(OP, qkv.dtype())?;
    let (dtype, dim, kv_heads) = (qkv.dtype(), kv.head_dim(), kv.kv_heads());
    let heads = out.cols() / dim;
    let group = heads / kv_heads;
    let (keys, values) = kv.addresses(layer);
    let window = Argument::U32(scoring.window.unwrap_or(u32::MAX));
    let (scale, steepness) = match scoring.softcap {
        // c · tanh(product · scale / c) = c · (1 - 2 / (1 + 2^(product · steepness))).
        Some(cap) => (cap, 2.0 * std::f32::consts::LOG2_E * scoring.scale / cap),
        None => (scoring.scale, 0.0),
    };
    let mut numbers = vec![
        Argument::count(qkv.cols()),
        Argument::count(group),
        Argument::count(kv_heads),
        Argument::F32(scale),
        Argument::F32(steepness),
        window,
    ];
    numbers.extend(kv.dtype().fp8().into_iter().flat_map(|format| widening(format, dtype).map(Argument::U32)));
    let kernel = |base| KernelName::numbered(base, dim, dtype).over(kv.dtype());
    for launch in &lists.decode {
        let addresses = [
            lists.sums,
            lists.states,
            qkv.address(),
            keys,
            values,
            launch.splits,
            launch.count,
            lists.positions,
            lists.tables,
            lists.table_starts,
        ];
        let arguments = [&addresses.map(Argument::Pointer)[..], &numbers].concat();
        let blocks = cuda.multiprocessors() as usize * BLOCKS_OF_MULTIPROCESSOR;
        let parts = kv_heads * group.div_ceil(BLOCK_HEADS);
        let blocks = blocks.div_ceil(parts);
        let grid = [if lists.is_fixed { blocks } else { launch.num_splits.min(blocks) }, parts, 1];
        // SAFETY: attention_decode.cu: `count` splits of rows of qkv whose tables hold their positions' blocks, all of them blocks of
        // the cache (checked by `attention`); sums and states for as many splits; all live as long as their stream's work.
        unsafe { cuda.launch(kernel("attention_splits"), grid, SPLITS_THREADS, &arguments)? };

        let of_row = |list: u64| list + (launch.first_row * size_of::<u32>()) as u64;
        let first_out = out.address() + (launch.first_row * out.cols() * dtype.size_bytes()) as u64;
        let addresses = [first_out, lists.sums, lists.states, of_row(lists.first_splits), of_row(lists.positions)];
        let arguments = [&addresses.map(Argument::Pointer)[..], &[window]].concat();
        // SAFETY: attention_decode.cu: rows of `out` from the launch's first on, their splits as written by the launch above.
        unsafe {
            cuda.launch(KernelName::of("attention_merge", dtype), [launch.num_rows, heads, 1], dim, &arguments)?;
        };
    }
    let addresses = [out.address(), qkv.address(), keys, values, lists.tiles, lists.sequences, lists.tables];
    let arguments = [&addresses.map(Argument::Pointer)[..], &numbers].concat();
    let grid = [lists.num_tiles, kv_heads, dim / block_values(dim)];
    // SAFETY: attention_prefill.cu: tiles of sequences whose rows lie in `out` and `qkv` and whose tables hold their positions' blocks
    // (checked by `attention`); all live as long as their stream's work.
    unsafe { cuda.launch(kernel("attention_prefill"), grid, CHUNK_THREADS, &arguments) }
}

#[cfg(test)]
mod tests {
    use half::{bf16, f16};

    use super::*;

    /// `widened_pair` of fp8.cuh, half a pair.
    #[test]
    fn widening_gives_every_number() {
        for format in [float8::E4M3, float8::E5M2] {
            for dtype in [DType::Bf16, DType::F16] {
                let [shift_factor, kept, multiplier, to_infinity] = widening(format, dtype);
                let value = |bits: u32| match dtype {
                    DType::F16 => f16::from_bits(bits as u16).to_f32(),
                    _ => bf16::from_bits(bits as u16).to_f32(),
                };
                // The products of elements are exact in f32, or beyond all of them.
                let product = |a: f32, b: u32| value(u32::from(dtype.encode16(a * value(b))));
                for code in 0..=255u8 {
                    let moved = i32::from(code.cast_signed()).cast_unsigned().wrapping_mul(shift_factor) & kept;
                    let number = product(value(moved), multiplier);
                    let widened = product(number, to_infinity) * 0.0 + number;
                    let expected = format.decode(code);
                    let is_same = widened.to_bits() == expected.to_bits();
                    assert!(is_same || (widened.is_nan() && !expected.is_finite()), "{dtype} {code}: {widened}");
                }
            }
        }
    }

    #[test]
    fn what_is_filled_up_has_one_launch_over_all_rows() {
        let table = [7];
        let row = SequenceRows { first_row: 0, num_rows: 1, start_position: 3, block_table: &table };
        for sequences in [&[][..], &[row]] {
            let mut work = Work::of(sequences, 4, 4);
            work.fill_up(4).unwrap();
            assert_eq!((work.launches.len(), work.launches[0].num_rows), (1, 4));
            assert_eq!((work.positions.len(), work.table_starts.len(), work.first_splits.len()), (4, 4, 4));
            assert!(work.first_splits[sequences.len()..].iter().all(|first| *first == NO_SPLITS));
        }
        let chunk = SequenceRows { num_rows: 2, ..row };
        assert!(Work::of(&[chunk], 4, 4).fill_up(4).is_err());
    }

    #[test]
    fn rows_that_are_alone_have_splits_and_chunks_have_tiles() {
        let table: Vec<u32> = (100..140).collect();
        let rows = |first_row, num_rows, start_position| SequenceRows {
            first_row,
            num_rows,
            start_position,
            block_table: &table,
        };
        // A row with two splits, a chunk between, two rows of which the second does not fit into the launch.
        let work = Work::of(&[rows(0, 1, 256), rows(1, 40, 5), rows(41, 1, 0), rows(42, 1, 300)], 4, 4);
        let launch =
            |first_row, num_rows, splits: &[[u32; 2]]| LaunchWork { first_row, num_rows, splits: splits.to_vec() };
        assert_eq!(work.launches, [launch(0, 42, &[[0, 0], [0, 1], [41, 0]]), launch(42, 1, &[[42, 0], [42, 1]])]);
        assert_eq!((work.first_splits[0], work.first_splits[41], work.first_splits[42]), (0, 2, 0));
        assert!(work.first_splits[1..41].iter().all(|first| *first == NO_SPLITS));
        assert_eq!((work.positions[0], work.positions[41], work.positions[42]), (256, 0, 300));
        // 17 blocks of the first, 3 of the chunk, 1, 19.
        assert_eq!((work.table_starts[0], work.table_starts[41], work.table_starts[42]), (0, 20, 21));
        assert_eq!(work.tables.len(), 40);
        assert_eq!(work.sequences, [[1, 40, 5, 17]]);
        assert_eq!(work.tiles, [[0, 1], [0, 0]]);
    }
}
