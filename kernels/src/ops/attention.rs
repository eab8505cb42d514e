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
use crate::simd::{Element, Kernel, LANES, Lanes, Simd, exp, load_partial, prefetch, store_partial, with_element};
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
    cpu.pool.run(tiles.len() * shape.kv_heads, |unit| {
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
        // Taken out rather than borrowed in a closure: a closure is a function without this instruction set.
        let mut scratch = SCRATCH.take();
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
            self.scores(simd, &mut scratch, first_block, last_block);
            for pair in 0..self.pairs {
                self.softmax(simd, &mut scratch, pair, first_block, last_block);
            }
            self.weighted_sum(simd, &mut scratch, first_block, last_block, end);
        }
        for pair in 0..self.pairs {
            self.write(simd, &scratch, pair);
        }
        SCRATCH.set(scratch);
    }
}

impl<T: Element> Tile<'_, T> {
    /// `scale · q · k` of every pair with every position of the blocks.
    #[inline(always)]
    fn scores<S: Simd>(&self, simd: S, scratch: &mut Scratch, first_block: usize, last_block: usize) {
        let mut pair = 0;
        if S::ACCUMULATORS >= 24 {
            while pair + 8 <= self.pairs {
                self.scores_of::<S, 8, 2>(simd, scratch, pair, first_block, last_block);
                pair += 8;
            }
        }
        while pair + 4 <= self.pairs {
            self.scores_of::<S, 4, 2>(simd, scratch, pair, first_block, last_block);
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
            if pair == 0 {
                self.fetch(block..block + B, block + B..last_block.min(block + 2 * B));
            }
            self.score_blocks::<S, P, B>(simd, scratch, pair, block);
            block += B;
        }
        while block < last_block {
            self.score_blocks::<S, P, 1>(simd, scratch, pair, block);
            block += 1;
        }
    }

    /// Prefetches the values of the blocks whose scores come now and the keys of those that come next. Blocks lie anywhere,
    /// so the machine cannot guess the next one.
    #[inline(always)]
    fn fetch(&self, now: std::ops::Range<usize>, next: std::ops::Range<usize>) {
        let (key_len, value_len) = (self.dim * BLOCK_SIZE, self.padded_dim * BLOCK_SIZE);
        for block in now {
            prefetch(&self.values[self.block_table[block] as usize * value_len..][..value_len]);
        }
        for block in next {
            prefetch(&self.keys[self.block_table[block] as usize * key_len..][..key_len]);
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
        // One length for all slices, so that the loop needs no bounds checks.
        let dim = self.dim;
        let queries: [&[f32]; P] = std::array::from_fn(|p| &self.query(pair + p)[..dim]);
        let keys: [&[[T; LANES]]; B] = std::array::from_fn(|b| {
            let id = self.block_table[block + b] as usize;
            &self.keys[id * dim * BLOCK_SIZE..].as_chunks::<LANES>().0[..dim]
        });
        let mut sums = [[simd.splat(0.0); B]; P];
        for d in 0..dim {
            let mut loaded = [simd.splat(0.0); B];
            for b in 0..B {
                loaded[b] = T::load(simd, &keys[b][d]);
            }
            for p in 0..P {
                let query = simd.splat(queries[p][d]);
                for b in 0..B {
                    sums[p][b] = simd.fma(query, loaded[b], sums[p][b]);
                }
            }
        }
        // The chains leave their registers in loops that unroll; what is indexed at run time would live in memory throughout.
        let (scale, mut done) = (simd.splat(self.scale), [[[0.0; LANES]; B]; P]);
        for p in 0..P {
            for b in 0..B {
                simd.store(simd.mul(sums[p][b], scale), &mut done[p][b]);
            }
        }
        for (p, scores) in done.iter().enumerate() {
            scratch.scores[(pair + p) * SPLIT_BLOCKS + block % SPLIT_BLOCKS..][..B].copy_from_slice(scores);
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
        state.keep = simd.to_array(exp(simd, simd.splat(state.max - merged)))[0];
        state.take = simd.to_array(exp(simd, simd.splat(max - merged)))[0];
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
                let mut values = [simd.splat(0.0); V];
                for v in 0..V {
                    values[v] = T::load(simd, &row[v]);
                }
                for p in 0..P {
                    let probability = simd.splat(probabilities[p][offset]);
                    for v in 0..V {
                        sums[p][v] = simd.fma(probability, values[v], sums[p][v]);
                    }
                }
            }
            position += in_block;
        }
        let mut done = [[[0.0; LANES]; V]; P];
        for p in 0..P {
            for v in 0..V {
                simd.store(sums[p][v], &mut done[p][v]);
            }
        }
        let vectors = self.padded_dim / LANES;
        for (p, sums) in done.iter().enumerate() {
            let (keep, take) = (simd.splat(scratch.states[pair + p].keep), simd.splat(scratch.states[pair + p].take));
            let so_far = &mut scratch.sums[(pair + p) * vectors + vector..][..V];
            for (so_far, sum) in so_far.iter_mut().zip(sums) {
                let kept = simd.mul(simd.load(so_far), keep);
                simd.store(simd.fma(simd.load(sum), take, kept), so_far);
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::DType;
    use crate::ops::testing::{assert_close, bits, cpus, random, random_tensor};
    use crate::ops::{RopeTable, rope_and_store_kv};

    /// A sequence whose first `length` positions are computed, cut into steps.
    struct Case {
        heads: usize,
        kv_heads: usize,
        dim: usize,
        dtype: DType,
        length: usize,
        window: Option<u32>,
    }

    const SCALE: f32 = 0.3;

    impl Case {
        fn cols(&self) -> usize {
            (self.heads + 2 * self.kv_heads) * self.dim
        }

        /// Every position's queries, keys and values; exact in 16 bits, so that the cache loses nothing.
        fn qkv(&self) -> Vec<f32> {
            random(9, self.length * self.cols()).iter().map(|x| (x * 128.0).round() / 128.0).collect()
        }

        /// What the op means: the whole row of scores at once, in f64.
        fn definition(&self) -> Vec<f32> {
            let (qkv, cols, dim) = (self.qkv(), self.cols(), self.dim);
            let mut out = Vec::new();
            for t in 0..self.length {
                for head in 0..self.heads {
                    let kv_head = head / (self.heads / self.kv_heads);
                    let first = self.window.map_or(0, |window| (t + 1).saturating_sub(window as usize));
                    let part = |row: usize, head: usize| &qkv[row * cols + head * dim..][..dim];
                    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| *a as f64 * *b as f64).sum::<f64>();
                    let key = |j: usize| part(j, self.heads + kv_head);
                    let value = |j: usize| part(j, self.heads + self.kv_heads + kv_head);
                    let scores: Vec<f64> = (first..=t).map(|j| dot(part(t, head), key(j)) * SCALE as f64).collect();
                    let max = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                    let total: f64 = scores.iter().map(|score| (score - max).exp()).sum();
                    for d in 0..dim {
                        let weighted = (first..=t).map(|j| (scores[j - first] - max).exp() * value(j)[d] as f64);
                        out.push((weighted.sum::<f64>() / total) as f32);
                    }
                }
            }
            out
        }

        /// The same through the cache: the sequence in steps of these sizes, beside a second, shorter one in every step,
        /// with the blocks of both interleaved. Garbage fills what no position of the sequences owns.
        fn run(&self, device: &Device, steps: &[usize]) -> Vec<f32> {
            let (cols, dim, qkv) = (self.cols(), self.dim, self.qkv());
            let blocks = self.length.div_ceil(BLOCK_SIZE).max(1);
            let mut kv = KvCache::new(device, 2, 2 * blocks + 1, self.kv_heads, dim, self.dtype).unwrap();
            with_element!(self.dtype, T => {
                let (keys, values) = kv.layer_mut::<T>(1);
                keys.fill(T::from_f32(f32::NAN));
                values.fill(T::from_f32(f32::NAN));
            });
            let table: Vec<u32> = (0..blocks as u32).map(|block| 2 * (blocks as u32 - 1 - block) + 1).collect();
            let other_table: Vec<u32> = (0..blocks as u32).map(|block| 2 * block).collect();
            // No rotation: the test is about attention.
            let rope = RopeTable::new(device, 0, self.length + 1, &[], 1.0).unwrap();
            let slot = |table: &[u32], t: usize| table[t / BLOCK_SIZE] * BLOCK_SIZE as u32 + (t % BLOCK_SIZE) as u32;
            let (mut start, mut result) = (0, Vec::new());
            for num_rows in steps {
                // The other sequence has one row per step, at the position of our first.
                let mut values = qkv[start * cols..][..cols].to_vec();
                values.extend(&qkv[start * cols..][..num_rows * cols]);
                let mut step = Tensor::from_slice(device, &[1 + num_rows, cols], &values).unwrap();
                let positions: Vec<u32> =
                    std::iter::once(start).chain(start..start + num_rows).map(|t| t as u32).collect();
                let slots: Vec<u32> = std::iter::once(slot(&other_table, start))
                    .chain((start..start + num_rows).map(|t| slot(&table, t)))
                    .collect();
                rope_and_store_kv(&mut step, self.heads, &rope, &positions, &slots, &mut kv, 1).unwrap();
                let sequences = [
                    SequenceRows { first_row: 0, num_rows: 1, start_position: start, block_table: &other_table },
                    SequenceRows { first_row: 1, num_rows: *num_rows, start_position: start, block_table: &table },
                ];
                let first = if self.other_is_complete(steps) { 0 } else { 1 };
                let rows = AttentionRows { sequences: &sequences[first..] };
                let mut out = random_tensor(device, 3, &[1 + num_rows, self.heads * dim]);
                attention(&mut out, &step, &kv, 1, &rows, SCALE, self.window).unwrap();
                result.extend_from_slice(&out.as_f32()[self.heads * dim..]);
                start += num_rows;
            }
            result
        }

        /// The other sequence receives one position per step, so it has no holes only if every step has one row.
        fn other_is_complete(&self, steps: &[usize]) -> bool {
            steps.iter().all(|rows| *rows == 1)
        }
    }

    fn cases() -> Vec<Case> {
        let case = |(heads, kv_heads, dim), dtype, length, window| Case { heads, kv_heads, dim, dtype, length, window };
        vec![
            case((1, 1, 1), DType::F32, 1, None),
            case((4, 2, 24), DType::F32, 40, None),
            case((3, 1, 64), DType::Bf16, 300, None),
            case((2, 2, 80), DType::F16, 33, Some(16)),
            case((4, 1, 128), DType::Bf16, 70, Some(7)),
            case((1, 1, 16), DType::F32, 600, Some(290)),
            case((20, 1, 8), DType::F16, 20, None),
        ]
    }

    #[test]
    fn arms_match_the_definition_and_each_other() {
        for case in cases() {
            let expected = case.definition();
            let mut first: Option<Vec<u32>> = None;
            for device in cpus() {
                let context =
                    format!("{} {}/{}x{} {}", device.describe(), case.heads, case.kv_heads, case.dim, case.dtype);
                let out = case.run(&device, &[case.length]);
                // Sums of up to 600 terms below one, in chains of at most 256, and exponentials good to 2e-7.
                assert_close(&out, &expected, 5e-6, &context);
                assert_eq!(*first.get_or_insert_with(|| bits(&out)), bits(&out), "{context}");
            }
        }
    }

    #[test]
    fn chunks_and_decode_give_the_bits_of_the_whole_prompt() {
        let devices = cpus();
        for case in cases() {
            let whole = bits(&case.run(&devices[0], &[case.length]));
            let decode = vec![1; case.length];
            let chunks: Vec<usize> = {
                let mut left = case.length;
                std::iter::from_fn(|| {
                    let take = left.min(13 + left % 50);
                    left -= take;
                    (take > 0).then_some(take)
                })
                .collect()
            };
            for device in [&devices[0], &devices[1]] {
                for steps in [&decode, &chunks] {
                    assert_eq!(bits(&case.run(device, steps)), whole, "{} heads {}", device.describe(), case.heads);
                }
            }
        }
    }

    #[test]
    fn what_is_out_of_range_is_refused() {
        let device = &cpus()[0];
        let kv = KvCache::new(device, 1, 2, 1, 4, DType::F32).unwrap();
        let (qkv, mut out) = (random_tensor(device, 1, &[2, 12]), random_tensor(device, 2, &[2, 4]));
        let mut call = |first_row, num_rows, start_position, block_table: &[u32], layer| {
            let sequences = [SequenceRows { first_row, num_rows, start_position, block_table }];
            let rows = AttentionRows { sequences: &sequences };
            attention(&mut out, &qkv, &kv, layer, &rows, 1.0, None).map_err(|error| error.to_string())
        };
        assert_eq!(call(0, 0, 0, &[], 0), Ok(()));
        assert_eq!(call(1, 2, 0, &[0], 0).unwrap_err(), "attention: `rows` holds 3, the limit is 3");
        assert_eq!(call(0, 1, 16, &[0], 0).unwrap_err(), "attention: `block_table` holds 1, the limit is 1");
        assert_eq!(call(0, 1, 0, &[2], 0).unwrap_err(), "attention: `block_table` holds 2, the limit is 2");
        assert_eq!(call(0, 1, 0, &[1], 1).unwrap_err(), "attention: `layer` holds 1, the limit is 1");
    }
}
