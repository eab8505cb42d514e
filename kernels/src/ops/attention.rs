//! Causal grouped-query attention over the paged cache, prefill and decode rows mixed.
//!
//! One path per (row, head), whatever step it runs in. The positions that a row sees are cut into splits of [`KV_SPLIT`] at
//! absolute positions. Within a split: sixteen scores per vector, each a chain over d; their maximum; exponentials; their sum,
//! a chain per lane and then a tree; the weighted values, a chain over positions. Splits merge in ascending order. Rows and
//! heads that share keys are computed side by side, which changes who loads a key, not the order of any sum.

use std::cell::RefCell;

use crate::contract::{expect_f32, expect_matrix, expect_memory};
use crate::limits::{BLOCK_SIZE, KV_SPLIT};
use crate::pool::SendPtr;
use crate::simd::{Element, Kernel, LANES, Lanes, Simd, exp, load_partial, store_partial, with_element};
use crate::{Cpu, Device, Error, KvCache, Result, Tensor};

/// The rows of one step, sequence by sequence.
#[derive(Clone, Copy)]
pub struct AttentionRows<'a> {
    /// In ascending order of their rows, without overlap. Rows of no sequence are left as they are.
    pub sequences: &'a [SequenceRows<'a>],
}

/// The rows of one sequence in a step.
#[derive(Clone, Copy)]
pub struct SequenceRows<'a> {
    /// Its first row in the step's tensors.
    pub first_row: usize,
    /// How many rows it has: 1 in decode, a chunk of the prompt in prefill.
    pub num_rows: usize,
    /// The position of the first row; the others follow.
    pub start_position: usize,
    /// The blocks of positions 0.., at least up to the last row's.
    pub block_table: &'a [u32],
}

/// `out[t, h] = Σ_j softmax_j(scale · q[t, h] · k[j]) v[j]` over the positions j of the row's sequence up to its own, and
/// with a window only the last `window` of them (the row's own included).
///
/// # Shapes
/// `out`: `[T, H·D]`; `qkv`: `[T, (H + 2·K)·D]` with the rotated queries first, of which only these are read; both f32. K and D are
/// those of `kv`, which must hold the keys and values of all positions involved. H is a multiple of K.
/// # Errors
/// [`Error::Shape`], [`Error::DType`], [`Error::Index`] for a row, block or layer out of range.
///
/// Source: arXiv:1706.03762, arXiv:2305.13245 (GQA), arXiv:2309.06180 (paged), arXiv:2004.05150 (window).
pub fn attention(
    out: &mut Tensor,
    qkv: &Tensor,
    kv: &KvCache,
    layer: usize,
    rows: &AttentionRows<'_>,
    scale: f32,
    window: Option<u32>,
) -> Result<()> {
    const OP: &str = "attention";
    let (kv_heads, dim) = (kv.kv_heads(), kv.head_dim());
    expect_f32(OP, &[("out", out), ("qkv", qkv)])?;
    expect_matrix(OP, "qkv", qkv, out.rows(), out.cols() + 2 * kv_heads * dim)?;
    if !out.cols().is_multiple_of(kv_heads * dim) {
        let expected = vec![out.rows(), kv_heads * dim];
        return Err(Error::Shape { op: OP, arg: "out", expected, actual: out.shape().to_vec() });
    }
    if layer >= kv.num_layers() {
        return Err(Error::Index { op: OP, arg: "layer", index: layer, limit: kv.num_layers() });
    }
    check_rows(out.rows(), kv.num_blocks(), rows)?;
    let heads = out.cols() / dim;
    match out.device().clone() {
        Device::Cpu(cpu) => {
            expect_memory(OP, &[("qkv", qkv)])?;
            if kv.device().is_plan() {
                return Err(Error::UnsupportedDevice { op: OP, arg: "kv", device: kv.device().describe() });
            }
            with_element!(kv.dtype(), T => cpu_arm::<T>(&cpu, out, qkv, kv, layer, rows, scale, window));
        }
        Device::Plan(ledger) => {
            let seen = |position: usize| window.map_or(position + 1, |window| (position + 1).min(window as usize));
            let (mut pairs, mut read) = (0, 0);
            for sequence in rows.sequences {
                let end = sequence.start_position + sequence.num_rows;
                pairs += (sequence.start_position..end).map(seen).sum::<usize>();
                read += if sequence.num_rows == 0 { 0 } else { (seen(end - 1) + sequence.num_rows - 1).min(end) };
            }
            let kv_bytes = read * 2 * kv_heads * dim * kv.dtype().size_bytes();
            ledger.count(OP, 2 * out.bytes() + kv_bytes, 4 * pairs * heads * dim);
        }
    }
    Ok(())
}

fn check_rows(num_rows: usize, num_blocks: usize, rows: &AttentionRows<'_>) -> Result<()> {
    let index = |arg, index, limit| Err(Error::Index { op: "attention", arg, index, limit });
    let mut next_row = 0;
    for sequence in rows.sequences {
        let end = sequence.first_row + sequence.num_rows;
        if sequence.first_row < next_row || end > num_rows {
            return index("rows", end, num_rows + 1);
        }
        next_row = end;
        let needed = (sequence.start_position + sequence.num_rows).div_ceil(BLOCK_SIZE);
        if needed > sequence.block_table.len() {
            return index("block_table", needed - 1, sequence.block_table.len());
        }
        if let Some(block) = sequence.block_table[..needed].iter().find(|block| **block as usize >= num_blocks) {
            return index("block_table", *block as usize, num_blocks);
        }
    }
    Ok(())
}

/// (row, head) pairs computed side by side at most, unless one row's group alone has more. 16 pairs read a split of keys twice
/// from the second-level cache, and leave enough tiles to keep all threads busy.
const TILE_PAIRS: usize = 16;

/// Blocks of a split.
const SPLIT_BLOCKS: usize = KV_SPLIT / BLOCK_SIZE;

fn cpu_arm<T: Element>(
    cpu: &Cpu,
    out: &mut Tensor,
    qkv: &Tensor,
    kv: &KvCache,
    layer: usize,
    rows: &AttentionRows<'_>,
    scale: f32,
    window: Option<u32>,
) {
    let (shape, out_cols, qkv_cols) = (kv.shape, out.cols(), qkv.cols());
    let group = out_cols / (shape.head_dim * shape.kv_heads).max(1);
    let rows_per_tile = (TILE_PAIRS / group.max(1)).max(1);
    let qkv = qkv.as_f32();
    let (keys, values) = kv.layer::<T>(layer);
    let mut out = out.as_f32_mut();
    let out = SendPtr(out.as_mut_ptr());

    let mut tiles = TILES.take();
    tiles.clear();
    for (index, sequence) in rows.sequences.iter().enumerate() {
        tiles.extend((0..sequence.num_rows).step_by(rows_per_tile).map(|row| (index, row)));
    }
    cpu.pool.for_each(tiles.len() * shape.kv_heads, |unit| {
        // The longest rows are the last of a prompt: they come first, so that no thread ends alone with one of them.
        let (index, first_row) = tiles[tiles.len() - 1 - unit / shape.kv_heads];
        let (sequence, kv_head) = (&rows.sequences[index], unit % shape.kv_heads);
        let num_rows = rows_per_tile.min(sequence.num_rows - first_row);
        let tile = Tile {
            queries: &qkv,
            qkv_cols,
            first_row: sequence.first_row + first_row,
            first_position: sequence.start_position + first_row,
            pairs: num_rows * group,
            group,
            first_head: kv_head * group,
            dim: shape.head_dim,
            padded_dim: shape.padded_dim(),
            block_table: sequence.block_table,
            keys: &keys[kv_head * shape.key_head_len()..][..shape.key_head_len()],
            values: &values[kv_head * shape.value_head_len()..][..shape.value_head_len()],
            scale,
            window: window.map_or(usize::MAX, |window| window as usize),
            out: &out,
            out_cols,
        };
        cpu.isa.run(tile);
    });
    TILES.set(tiles);
}

/// Some rows of a sequence and the heads of one group.
struct Tile<'a, T> {
    queries: &'a [f32],
    qkv_cols: usize,
    /// Row and position of the first pair.
    first_row: usize,
    first_position: usize,
    /// Rows × heads of the group; pair p is row p / group, head p % group.
    pairs: usize,
    group: usize,
    first_head: usize,
    dim: usize,
    padded_dim: usize,
    block_table: &'a [u32],
    /// The KV head's keys, `[num_blocks][dim][16]`.
    keys: &'a [T],
    /// The KV head's values, `[num_blocks][16][padded_dim]`.
    values: &'a [T],
    scale: f32,
    window: usize,
    out: &'a SendPtr<f32>,
    out_cols: usize,
}

/// A thread's working memory, allocated at its first use.
#[derive(Default)]
struct Scratch {
    /// Scores, then probabilities, of each pair in the current split: `[pairs][SPLIT_BLOCKS]`.
    scores: Vec<Lanes>,
    /// Weighted values so far: `[pairs][padded_dim / 16]`.
    sums: Vec<Lanes>,
    states: Vec<State>,
}

/// A pair's softmax so far.
#[derive(Clone, Copy)]
struct State {
    max: f32,
    denominator: f32,
    /// How the current split joins: the sums so far and the split's own are multiplied by these.
    keep: f32,
    take: f32,
}

const EMPTY: State = State { max: f32::NEG_INFINITY, denominator: 0.0, keep: 0.0, take: 0.0 };

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
    /// (sequence, first row) of every tile of a call, kept by the calling thread.
    static TILES: RefCell<Vec<(usize, usize)>> = const { RefCell::new(Vec::new()) };
}

impl<T: Element> Kernel for Tile<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        SCRATCH.with_borrow_mut(|scratch| {
            let vectors = self.padded_dim / LANES;
            scratch.scores.resize(self.pairs * SPLIT_BLOCKS, [0.0; LANES]);
            scratch.sums.clear();
            scratch.sums.resize(self.pairs * vectors, [0.0; LANES]);
            scratch.states.clear();
            scratch.states.resize(self.pairs, EMPTY);

            // Positions that any row of the tile sees.
            let end = self.first_position + self.pairs / self.group;
            let start = (self.first_position + 1).saturating_sub(self.window);
            for split in start / KV_SPLIT..end.div_ceil(KV_SPLIT) {
                let first_block = (split * SPLIT_BLOCKS).max(start / BLOCK_SIZE);
                let last_block = ((split + 1) * SPLIT_BLOCKS).min(end.div_ceil(BLOCK_SIZE));
                self.scores(simd, scratch, first_block, last_block);
                for pair in 0..self.pairs {
                    self.softmax(simd, scratch, pair, first_block, last_block);
                }
                self.weighted_sum(simd, scratch, first_block, last_block, end);
            }
            for pair in 0..self.pairs {
                self.write(simd, scratch, pair);
            }
        });
    }
}

impl<T: Element> Tile<'_, T> {
    /// `scale · q · k` of every pair with every position of the blocks.
    #[inline(always)]
    fn scores<S: Simd>(&self, simd: S, scratch: &mut Scratch, first_block: usize, last_block: usize) {
        let mut pair = 0;
        if S::ACCUMULATORS >= 24 {
            while pair + 8 <= self.pairs {
                self.scores_of::<S, 8, 1>(simd, scratch, pair, first_block, last_block);
                pair += 8;
            }
        }
        while pair + 4 <= self.pairs {
            self.scores_of::<S, 4, 1>(simd, scratch, pair, first_block, last_block);
            pair += 4;
        }
        if pair + 2 <= self.pairs {
            self.scores_of::<S, 2, 2>(simd, scratch, pair, first_block, last_block);
            pair += 2;
        }
        if pair < self.pairs {
            self.scores_of::<S, 1, 4>(simd, scratch, pair, first_block, last_block);
        }
    }

    /// The scores of `P` pairs, `B` blocks at a time: `P · B` chains hide the latency of each other.
    #[inline(always)]
    fn scores_of<S: Simd, const P: usize, const B: usize>(
        &self,
        simd: S,
        scratch: &mut Scratch,
        pair: usize,
        first_block: usize,
        last_block: usize,
    ) {
        let mut block = first_block;
        while block + B <= last_block {
            self.score_blocks::<S, P, B>(simd, scratch, pair, block);
            block += B;
        }
        while block < last_block {
            self.score_blocks::<S, P, 1>(simd, scratch, pair, block);
            block += 1;
        }
    }

    #[inline(always)]
    fn score_blocks<S: Simd, const P: usize, const B: usize>(
        &self,
        simd: S,
        scratch: &mut Scratch,
        pair: usize,
        block: usize,
    ) {
        let queries: [&[f32]; P] = std::array::from_fn(|p| self.query(pair + p));
        let keys: [&[[T; LANES]]; B] = std::array::from_fn(|b| {
            let id = self.block_table[block + b] as usize;
            self.keys[id * self.dim * BLOCK_SIZE..][..self.dim * BLOCK_SIZE].as_chunks::<LANES>().0
        });
        let mut sums = [[simd.splat(0.0); B]; P];
        for d in 0..self.dim {
            let keys: [S::V; B] = std::array::from_fn(|b| T::load(simd, &keys[b][d]));
            for p in 0..P {
                let query = simd.splat(queries[p][d]);
                for b in 0..B {
                    sums[p][b] = simd.fma(query, keys[b], sums[p][b]);
                }
            }
        }
        let scale = simd.splat(self.scale);
        for p in 0..P {
            for b in 0..B {
                let out = &mut scratch.scores[(pair + p) * SPLIT_BLOCKS + (block + b) % SPLIT_BLOCKS];
                simd.store(simd.mul(sums[p][b], scale), out);
            }
        }
    }

    /// Turns a pair's scores into exponentials and updates its state; hidden positions get zero.
    #[inline(always)]
    fn softmax<S: Simd>(&self, simd: S, scratch: &mut Scratch, pair: usize, first_block: usize, last_block: usize) {
        let position = self.first_position + pair / self.group;
        let visible = (position + 1).saturating_sub(self.window)..position + 1;
        let state = &mut scratch.states[pair];
        let scores = &mut scratch.scores[pair * SPLIT_BLOCKS..][..SPLIT_BLOCKS];
        let mut max = simd.splat(f32::NEG_INFINITY);
        for block in first_block..last_block {
            let scores = &mut scores[block % SPLIT_BLOCKS];
            let first = block * BLOCK_SIZE;
            if first < visible.start || first + BLOCK_SIZE > visible.end {
                for (lane, score) in scores.iter_mut().enumerate() {
                    if !visible.contains(&(first + lane)) {
                        *score = f32::NEG_INFINITY;
                    }
                }
            }
            max = simd.max(simd.load(scores), max);
        }
        let max = simd.largest(max);
        if max == f32::NEG_INFINITY && !overlaps(&visible, first_block, last_block) {
            // The row sees nothing of this split: it belongs to a neighbour in the tile.
            scores[..].fill([0.0; LANES]);
            (state.keep, state.take) = (1.0, 0.0);
            return;
        }
        let (splat, mut sum) = (simd.splat(max), simd.splat(0.0));
        for block in first_block..last_block {
            let scores = &mut scores[block % SPLIT_BLOCKS];
            let probability = exp(simd, simd.sub(simd.load(scores), splat));
            sum = simd.add(sum, probability);
            simd.store(probability, scores);
        }
        let sum = simd.sum(sum);
        let merged = if max > state.max { max } else { state.max };
        let factor = |from: f32| simd.to_array(exp(simd, simd.splat(from - merged)))[0];
        (state.keep, state.take) = (factor(state.max), factor(max));
        state.denominator = state.denominator * state.keep + sum * state.take;
        state.max = merged;
    }

    /// Adds every pair's weighted values of the blocks to its sums.
    #[inline(always)]
    fn weighted_sum<S: Simd>(&self, simd: S, scratch: &mut Scratch, first_block: usize, last_block: usize, end: usize) {
        let positions = first_block * BLOCK_SIZE..(last_block * BLOCK_SIZE).min(end);
        let mut pair = 0;
        if S::ACCUMULATORS >= 24 {
            while pair + 4 <= self.pairs {
                self.sum_vectors::<S, 4, 4>(simd, scratch, pair, &positions);
                pair += 4;
            }
        }
        while pair + 2 <= self.pairs {
            self.sum_vectors::<S, 2, 2>(simd, scratch, pair, &positions);
            pair += 2;
        }
        if pair < self.pairs {
            self.sum_vectors::<S, 1, 4>(simd, scratch, pair, &positions);
        }
    }

    /// The sums of `P` pairs, `V` vectors of dimensions at a time.
    #[inline(always)]
    fn sum_vectors<S: Simd, const P: usize, const V: usize>(
        &self,
        simd: S,
        scratch: &mut Scratch,
        pair: usize,
        positions: &std::ops::Range<usize>,
    ) {
        let vectors = self.padded_dim / LANES;
        let mut vector = 0;
        while vector + V <= vectors {
            self.sum_tile::<S, P, V>(simd, scratch, pair, vector, positions);
            vector += V;
        }
        while vector < vectors {
            self.sum_tile::<S, P, 1>(simd, scratch, pair, vector, positions);
            vector += 1;
        }
    }

    #[inline(always)]
    fn sum_tile<S: Simd, const P: usize, const V: usize>(
        &self,
        simd: S,
        scratch: &mut Scratch,
        pair: usize,
        vector: usize,
        positions: &std::ops::Range<usize>,
    ) {
        let mut sums = [[simd.splat(0.0); V]; P];
        let mut position = positions.start;
        while position < positions.end {
            let block = position / BLOCK_SIZE;
            let id = self.block_table[block] as usize;
            let rows = &self.values[id * BLOCK_SIZE * self.padded_dim..][..BLOCK_SIZE * self.padded_dim];
            let probabilities: [&Lanes; P] =
                std::array::from_fn(|p| &scratch.scores[(pair + p) * SPLIT_BLOCKS + block % SPLIT_BLOCKS]);
            let in_block = BLOCK_SIZE.min(positions.end - position);
            for offset in 0..in_block {
                let row = &rows[offset * self.padded_dim + vector * LANES..][..V * LANES];
                let row = row.as_chunks::<LANES>().0;
                let values: [S::V; V] = std::array::from_fn(|v| T::load(simd, &row[v]));
                for p in 0..P {
                    let probability = simd.splat(probabilities[p][offset]);
                    for v in 0..V {
                        sums[p][v] = simd.fma(probability, values[v], sums[p][v]);
                    }
                }
            }
            position += in_block;
        }
        let vectors = self.padded_dim / LANES;
        for p in 0..P {
            let state = scratch.states[pair + p];
            for v in 0..V {
                let so_far = &mut scratch.sums[(pair + p) * vectors + vector + v];
                let kept = simd.mul(simd.load(so_far), simd.splat(state.keep));
                simd.store(simd.fma(sums[p][v], simd.splat(state.take), kept), so_far);
            }
        }
    }

    /// Divides a pair's sums by its denominator and writes them.
    #[inline(always)]
    fn write<S: Simd>(&self, simd: S, scratch: &Scratch, pair: usize) {
        let vectors = self.padded_dim / LANES;
        let denominator = simd.splat(scratch.states[pair].denominator);
        let row = self.first_row + pair / self.group;
        let head = self.first_head + pair % self.group;
        // SAFETY: row < T and head < H (checked by `attention` and the division into tiles), so the D elements lie inside `out`;
        // (row, head) belongs to exactly one tile, because sequences do not overlap.
        let out = unsafe {
            std::slice::from_raw_parts_mut(self.out.get().add(row * self.out_cols + head * self.dim), self.dim)
        };
        for (out, sum) in out.chunks_mut(LANES).zip(&scratch.sums[pair * vectors..]) {
            store_partial(simd, simd.div(load_partial(simd, sum, 0.0), denominator), out);
        }
    }

    #[inline(always)]
    fn query(&self, pair: usize) -> &[f32] {
        let row = self.first_row + pair / self.group;
        let head = self.first_head + pair % self.group;
        &self.queries[row * self.qkv_cols + head * self.dim..][..self.dim]
    }
}

/// Whether any visible position lies in the blocks.
fn overlaps(visible: &std::ops::Range<usize>, first_block: usize, last_block: usize) -> bool {
    visible.start < last_block * BLOCK_SIZE && first_block * BLOCK_SIZE < visible.end
}
