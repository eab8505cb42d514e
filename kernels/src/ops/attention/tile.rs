//! The rows and heads that are computed side by side, because they share keys and values.
//!
//! Per split and for eight pairs of row and head at a time: scores of all positions that any of them sees; each pair's weights;
//! the weighted sums. What a row must not see has no part in any of its sums, not even as zero times something, so a value that
//! is no number harms only the rows that see it.

use std::cell::RefCell;
use std::ops::Range;

use super::Scoring;
use super::arm::Arm;
use crate::kv_cache::KvShape;
use crate::limits::{BLOCK_SIZE, KV_SPLIT};
use crate::pool::SendPtr;
use crate::simd::{LANES, Lanes, Simd, load_partial, prefetch, store_partial, tanh};

/// Pairs of row and head whose scores are in work at one time: their scores and weights of a split are 16 KiB at most, so they
/// stay in the first-level cache while keys and values stream by.
pub(super) const GROUP_PAIRS: usize = 8;

/// Blocks of a split.
const SPLIT_BLOCKS: usize = KV_SPLIT / BLOCK_SIZE;

/// Some rows of a sequence and the heads that share one KV head, over some splits.
pub(super) struct Tile<'a, T> {
    pub(super) queries: &'a [f32],
    pub(super) qkv_cols: usize,
    /// Row and position of the first pair.
    pub(super) first_row: usize,
    pub(super) first_position: usize,
    /// Rows × heads; pair p is row p / group, head p % group.
    pub(super) pairs: usize,
    pub(super) group: usize,
    pub(super) first_head: usize,
    pub(super) dim: usize,
    /// Vectors of a value.
    pub(super) vectors: usize,
    /// Vectors of a head's keys of one block.
    pub(super) key_block_len: usize,
    /// Vectors of a head's values of one block.
    pub(super) value_block_len: usize,
    pub(super) block_table: &'a [u32],
    pub(super) shape: &'a KvShape,
    pub(super) kv_head: usize,
    /// The layer's keys: [pieces](KvShape::piece) of `[steps of a key]`.
    pub(super) keys: &'a [T],
    /// The layer's values: pieces of `[steps of a block][vectors]`.
    pub(super) values: &'a [T],
    pub(super) scoring: Scoring,
    pub(super) window: usize,
    pub(super) splits: Range<usize>,
    pub(super) out: &'a SendPtr<f32>,
    pub(super) out_cols: usize,
    pub(super) task: Task,
}

/// What becomes of the splits of a tile. Partial results lie as `[splits of the tile][groups][partial_len]`.
pub(super) enum Task {
    /// Compute all splits and merge them.
    Whole,
    /// Compute these splits of more; others merge them. The partial results of the first of all splits begin at the pointer.
    Partial { first_split: usize, partials: SendPtr<Lanes> },
    /// Merge what others computed.
    Merge { partials: SendPtr<Lanes> },
}

/// A thread's working memory, allocated at its first use. Eight pairs are a group.
#[derive(Default)]
struct Scratch {
    /// `[groups][steps of a key][8]` scalars.
    queries: Vec<u32>,
    /// A query before it is interleaved with its group's.
    query: Vec<u32>,
    /// `[8]` splits of scalars.
    weights: Vec<u32>,
    /// Scores of each pair of a group in the current split.
    scores: Vec<[Lanes; SPLIT_BLOCKS]>,
    /// The result of a group in the current split, see [`partial_len`].
    partial: Vec<Lanes>,
    /// Weighted values so far: `[groups][8][vectors]`.
    sums: Vec<Lanes>,
    states: Vec<State>,
}

/// The softmax of eight pairs so far; the other lanes idle.
#[derive(Clone, Copy)]
struct State {
    max: Lanes,
    denominator: Lanes,
}

/// Nothing seen. The maximum is the least number rather than -∞, whose difference to itself would be none.
const EMPTY: State = State { max: [f32::MIN; LANES], denominator: [0.0; LANES] };

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

/// Vectors that hold the result of eight pairs in a split: their maxima, the sums of their weights, and `[8][vectors]` of
/// weighted values.
pub(super) fn partial_len(vectors: usize) -> usize {
    2 + GROUP_PAIRS * vectors
}

/// What the pairs of a group see of a split, as positions.
struct Visible {
    ranges: [Range<usize>; GROUP_PAIRS],
    /// From the first position that any pair sees to the last.
    union: Range<usize>,
}

impl<T: Sync> Tile<'_, T> {
    #[inline(always)]
    pub(super) fn run<A: Arm<Vector = T>>(self, arm: A) {
        // Taken out rather than borrowed in a closure: a closure is a function without this instruction set.
        let mut scratch = SCRATCH.take();
        let groups = self.pairs.div_ceil(GROUP_PAIRS);
        let partial_len = partial_len(self.vectors);
        scratch.states.clear();
        scratch.states.resize(groups, EMPTY);
        scratch.sums.clear();
        scratch.sums.resize(groups * GROUP_PAIRS * self.vectors, [0.0; LANES]);
        scratch.scores.resize(GROUP_PAIRS, [[0.0; LANES]; SPLIT_BLOCKS]);
        scratch.weights.resize(GROUP_PAIRS * size_of::<A::Weights>() / 4, 0);
        scratch.partial.resize(partial_len, [0.0; LANES]);
        if !matches!(self.task, Task::Merge { .. }) {
            self.pack_queries(arm, &mut scratch, groups);
        }
        for split in self.splits.clone() {
            for group in 0..groups {
                let visible = self.visible(group, split);
                if visible.union.is_empty() {
                    continue;
                }
                if !matches!(self.task, Task::Merge { .. }) {
                    self.compute(arm, &mut scratch, group, &visible);
                }
                let Scratch { states, sums, partial, .. } = &mut scratch;
                let partial: &[Lanes] = match &self.task {
                    Task::Whole => partial,
                    Task::Partial { first_split, partials } => {
                        let at = ((split - first_split) * groups + group) * partial_len;
                        // SAFETY: the driver allocated `partial_len` vectors for each group of each split from `first_split` on,
                        // and a split of a tile belongs to one task, so nobody else writes or reads this part now.
                        let out = unsafe { std::slice::from_raw_parts_mut(partials.get().add(at), partial_len) };
                        out.copy_from_slice(partial);
                        continue;
                    }
                    Task::Merge { partials } => {
                        let at = ((split - self.splits.start) * groups + group) * partial_len;
                        // SAFETY: as above; the tasks that wrote ended before this one began, and none writes now. They wrote
                        // every group that sees anything of the split, which this one does.
                        unsafe { std::slice::from_raw_parts(partials.get().add(at), partial_len) }
                    }
                };
                self.merge(arm, &mut states[group], group, sums, partial, &visible);
            }
        }
        if !matches!(self.task, Task::Partial { .. }) {
            for pair in 0..self.pairs {
                self.write(arm.simd(), &scratch, pair);
            }
        }
        SCRATCH.set(scratch);
    }

    /// Pairs of a group.
    fn pairs_of(&self, group: usize) -> usize {
        GROUP_PAIRS.min(self.pairs - group * GROUP_PAIRS)
    }

    /// Pairs that a group has not are said to see what the first one sees.
    #[inline(always)]
    fn visible(&self, group: usize, split: usize) -> Visible {
        let pairs = self.pairs_of(group);
        let ranges: [_; GROUP_PAIRS] = std::array::from_fn(|at| {
            let pair = group * GROUP_PAIRS + if at < pairs { at } else { 0 };
            let end = self.first_position + pair / self.group + 1;
            end.saturating_sub(self.window).max(split * KV_SPLIT)..end.min((split + 1) * KV_SPLIT)
        });
        // Windows move with their rows: the first pair sees farthest back, the last one farthest on.
        let union = ranges[0].start..ranges[pairs - 1].end;
        Visible { ranges, union }
    }

    #[inline(always)]
    fn pack_queries<A: Arm<Vector = T>>(&self, arm: A, scratch: &mut Scratch, groups: usize) {
        let steps = self.dim.div_ceil(A::STEP);
        scratch.queries.resize(groups * steps * GROUP_PAIRS, 0);
        scratch.query.resize(steps, 0);
        for pair in 0..self.pairs {
            let row = self.first_row + pair / self.group;
            let head = self.first_head + pair % self.group;
            let query = &self.queries[row * self.qkv_cols + head * self.dim..][..self.dim];
            arm.pack(query, bytemuck::cast_slice_mut(&mut scratch.query));
            let group = &mut scratch.queries[pair / GROUP_PAIRS * steps * GROUP_PAIRS..][..steps * GROUP_PAIRS];
            for (group, step) in group.as_chunks_mut::<GROUP_PAIRS>().0.iter_mut().zip(&scratch.query) {
                group[pair % GROUP_PAIRS] = *step;
            }
        }
    }

    /// A group's result of one split, into `scratch.partial`.
    #[inline(always)]
    fn compute<A: Arm<Vector = T>>(&self, arm: A, scratch: &mut Scratch, group: usize, visible: &Visible) {
        self.scores(arm, scratch, group, visible);
        let (mut maxima, mut sums) = ([f32::NEG_INFINITY; LANES], [0.0; LANES]);
        let all = bytemuck::cast_slice_mut::<u32, A::Weights>(&mut scratch.weights);
        for pair in 0..self.pairs_of(group) {
            if !visible.ranges[pair].is_empty() {
                let weights = all[pair].as_mut();
                (maxima[pair], sums[pair]) =
                    self.weights(arm, &mut scratch.scores[pair], weights, &visible.ranges[pair]);
            }
        }
        let (state, values) = scratch.partial.split_at_mut(2);
        state.copy_from_slice(&[maxima, sums]);
        self.weighted_sums(arm, bytemuck::cast_slice(&scratch.weights), values, self.pairs_of(group), visible);
    }

    // --- Scores ------------------------------------------------------------------------------------------------------

    /// The scores of a group's pairs with every position of the blocks that any of them sees.
    #[inline(always)]
    fn scores<A: Arm<Vector = T>>(&self, arm: A, scratch: &mut Scratch, group: usize, visible: &Visible) {
        let blocks = visible.union.start / BLOCK_SIZE..visible.union.end.div_ceil(BLOCK_SIZE);
        let len = self.dim.div_ceil(A::STEP) * GROUP_PAIRS;
        let queries = bytemuck::cast_slice::<u32, A::Scalar>(&scratch.queries[group * len..][..len]);
        let queries = queries.as_chunks::<GROUP_PAIRS>().0;
        let (pairs, scores) = (self.pairs_of(group), &mut scratch.scores);
        let mut pair = 0;
        if A::Simd::ACCUMULATORS >= 24 {
            if pairs == 8 {
                return self.scores_of::<A, 8, 2, 2>(arm, queries, scores, 0, &blocks);
            }
            while pair + 4 <= pairs {
                self.scores_of::<A, 4, 4, 2>(arm, queries, scores, pair, &blocks);
                pair += 4;
            }
            if pair + 3 <= pairs {
                self.scores_of::<A, 3, 4, 2>(arm, queries, scores, pair, &blocks);
                pair += 3;
            }
        } else {
            // As many chains as two by two, with half as many keys to load and widen.
            while pair + 4 <= pairs {
                self.scores_of::<A, 4, 1, 1>(arm, queries, scores, pair, &blocks);
                pair += 4;
            }
        }
        while pair + 2 <= pairs {
            self.scores_of::<A, 2, 2, 2>(arm, queries, scores, pair, &blocks);
            pair += 2;
        }
        if pair < pairs {
            self.scores_of::<A, 1, 4, 2>(arm, queries, scores, pair, &blocks);
        }
    }

    /// The scores of `P` pairs, `B` blocks at a time: `P · B` chains hide the latency of each other. The last blocks come `R` at
    /// a time; of a block that is missing, another one is computed twice.
    #[inline(always)]
    fn scores_of<A: Arm<Vector = T>, const P: usize, const B: usize, const R: usize>(
        &self,
        arm: A,
        queries: &[[A::Scalar; GROUP_PAIRS]],
        scores: &mut [[Lanes; SPLIT_BLOCKS]],
        pair: usize,
        blocks: &Range<usize>,
    ) {
        let mut block = blocks.start;
        while block < blocks.end {
            let left = blocks.end - block;
            if pair == 0 {
                self.fetch(block..block + left.min(B), block + left.min(B)..block + left.min(2 * B));
            }
            if B == R || left >= B {
                self.score_blocks::<A, P, B>(arm, queries, scores, pair, block, blocks.end - 1);
                block += B;
            } else {
                self.score_blocks::<A, P, R>(arm, queries, scores, pair, block, blocks.end - 1);
                block += R;
            }
        }
    }

    /// Prefetches the values of the blocks whose scores come now and the keys of those that come next. Blocks lie anywhere,
    /// so the machine cannot guess the next one.
    #[inline(always)]
    fn fetch(&self, now: Range<usize>, next: Range<usize>) {
        for block in now {
            prefetch(self.value_block(block));
        }
        for block in next {
            prefetch(self.key_block(block));
        }
    }

    #[inline(always)]
    fn score_blocks<A: Arm<Vector = T>, const P: usize, const B: usize>(
        &self,
        arm: A,
        queries: &[[A::Scalar; GROUP_PAIRS]],
        scores: &mut [[Lanes; SPLIT_BLOCKS]],
        pair: usize,
        block: usize,
        last: usize,
    ) {
        let simd = arm.simd();
        assert!(pair + P <= GROUP_PAIRS, "a group is no larger");
        let blocks: [usize; B] = std::array::from_fn(|b| (block + b).min(last));
        // One length for all slices, so that the loop needs no bounds checks.
        let steps = queries.len();
        let keys: [&[T]; B] = std::array::from_fn(|b| &self.key_block(blocks[b])[..steps]);
        let mut sums = [[simd.splat(0.0); B]; P];
        for step in 0..steps {
            // Not `from_fn`: its closure is a function without the instruction set.
            let mut loaded = [arm.load(&keys[0][step]); B];
            for b in 1..B {
                loaded[b] = arm.load(&keys[b][step]);
            }
            for p in 0..P {
                let query = arm.splat(queries[step][pair + p]);
                for b in 0..B {
                    sums[p][b] = arm.multiply_add(query, loaded[b], sums[p][b]);
                }
            }
        }
        let scale = simd.splat(self.scoring.scale * A::LOG_BASE_OF_E);
        let scores: &mut [_; P] = (&mut scores[pair..][..P]).try_into().expect("the slice has this length");
        for p in 0..P {
            for b in 0..B {
                simd.store(simd.mul(sums[p][b], scale), &mut scores[p][blocks[b] % SPLIT_BLOCKS]);
            }
        }
    }

    // --- Weights -----------------------------------------------------------------------------------------------------

    /// A pair's weights of the positions that it sees; zero for the others in their blocks. Returns the largest score and the
    /// sum of the weights.
    #[inline(always)]
    fn weights<A: Arm<Vector = T>>(
        &self,
        arm: A,
        scores: &mut [Lanes; SPLIT_BLOCKS],
        weights: &mut [A::Scalar],
        visible: &Range<usize>,
    ) -> (f32, f32) {
        let simd = arm.simd();
        let in_split = visible.start % KV_SPLIT..visible.start % KV_SPLIT + visible.len();
        let first = in_split.start / BLOCK_SIZE / A::STEP * A::STEP;
        let last = in_split.end.div_ceil(BLOCK_SIZE).next_multiple_of(A::STEP);
        if let Some(cap) = self.scoring.softcap {
            let cap = cap * A::LOG_BASE_OF_E;
            for scores in &mut scores[first..last] {
                let levelled = tanh(simd, simd.mul(simd.load(scores), simd.splat(1.0 / cap)));
                simd.store(simd.mul(levelled, simd.splat(cap)), scores);
            }
        }
        let all = scores.as_flattened_mut();
        all[first * LANES..in_split.start].fill(f32::NEG_INFINITY);
        all[in_split.end..last * LANES].fill(f32::NEG_INFINITY);
        let scores = &scores[first..last];
        let mut max = simd.splat(f32::NEG_INFINITY);
        for scores in scores {
            max = simd.max(simd.load(scores), max);
        }
        let max = simd.largest(max);
        let sum = arm.weights(scores, max, &mut weights[first * BLOCK_SIZE / A::STEP..last * BLOCK_SIZE / A::STEP]);
        (max, sum)
    }

    // --- Weighted sums -----------------------------------------------------------------------------------------------

    /// Every pair's weighted values: each a chain over its own positions. Those that all pairs see come together.
    #[inline(always)]
    fn weighted_sums<A: Arm<Vector = T>>(
        &self,
        arm: A,
        weights: &[A::Weights],
        sums: &mut [Lanes],
        pairs: usize,
        visible: &Visible,
    ) {
        sums.fill([0.0; LANES]);
        // Ranges of later pairs neither begin nor end earlier, so the common part is that of the first and the last one.
        let (first, last) = (&visible.ranges[0], &visible.ranges[pairs - 1]);
        let common = last.start.next_multiple_of(A::STEP)..first.end / A::STEP * A::STEP;
        // Without one, all lies before it.
        let common = if common.is_empty() { usize::MAX..usize::MAX } else { common };
        // Before it each pair alone, then all together, then each alone. One call, because it is a lot of code.
        for turn in 0..2 * pairs + 1 {
            let (of, range) = if turn < pairs {
                let own = &visible.ranges[turn];
                (turn..turn + 1, own.start..own.end.min(common.start))
            } else if turn == pairs {
                (0..pairs, common.clone())
            } else {
                let pair = turn - pairs - 1;
                (pair..pair + 1, common.end..visible.ranges[pair].end)
            };
            if !range.is_empty() {
                self.sum_range(arm, weights, sums, of, range);
            }
        }
    }

    /// Some pairs' weighted values of some positions. Where these begin or end within a step, the rest of that is hidden.
    #[inline(always)]
    fn sum_range<A: Arm<Vector = T>>(
        &self,
        arm: A,
        weights: &[A::Weights],
        sums: &mut [Lanes],
        pairs: Range<usize>,
        range: Range<usize>,
    ) {
        let whole = range.start.div_ceil(A::STEP)..range.end / A::STEP;
        if !range.start.is_multiple_of(A::STEP) {
            self.sum_part(arm, weights, sums, pairs.start, range.start / A::STEP, A::load_second);
        }
        if !whole.is_empty() {
            self.sum_steps(arm, weights, sums, pairs.clone(), &whole);
        }
        if !range.end.is_multiple_of(A::STEP) {
            self.sum_part(arm, weights, sums, pairs.start, range.end / A::STEP, A::load_first);
        }
    }

    /// One pair's, of the part of a step that `load` leaves.
    #[inline(always)]
    fn sum_part<A: Arm<Vector = T>>(
        &self,
        arm: A,
        weights: &[A::Weights],
        sums: &mut [Lanes],
        pair: usize,
        step: usize,
        load: impl Fn(A, &T) -> A::Operand,
    ) {
        let simd = arm.simd();
        let (block_steps, split_steps) = (BLOCK_SIZE / A::STEP, KV_SPLIT / A::STEP);
        let weight = arm.splat(weights[pair].as_ref()[step % split_steps]);
        let row = &self.value_block(step / block_steps)[step % block_steps * self.vectors..][..self.vectors];
        for (sum, value) in sums[pair * self.vectors..].iter_mut().zip(row) {
            let next = arm.multiply_add(weight, load(arm, value), simd.load(sum));
            simd.store(next, sum);
        }
    }

    #[inline(always)]
    fn sum_steps<A: Arm<Vector = T>>(
        &self,
        arm: A,
        weights: &[A::Weights],
        sums: &mut [Lanes],
        pairs: Range<usize>,
        steps: &Range<usize>,
    ) {
        let mut pair = pairs.start;
        if A::Simd::ACCUMULATORS >= 24 {
            if pairs.len() == 8 {
                return self.sum_vectors::<A, 8, 2>(arm, weights, sums, pair, steps);
            }
            while pair + 4 <= pairs.end {
                self.sum_vectors::<A, 4, 4>(arm, weights, sums, pair, steps);
                pair += 4;
            }
            if pair + 3 <= pairs.end {
                self.sum_vectors::<A, 3, 4>(arm, weights, sums, pair, steps);
                pair += 3;
            }
        } else {
            // As for scores.
            while pair + 4 <= pairs.end {
                self.sum_vectors::<A, 4, 1>(arm, weights, sums, pair, steps);
                pair += 4;
            }
        }
        while pair + 2 <= pairs.end {
            self.sum_vectors::<A, 2, 2>(arm, weights, sums, pair, steps);
            pair += 2;
        }
        if pair < pairs.end {
            self.sum_vectors::<A, 1, 4>(arm, weights, sums, pair, steps);
        }
    }

    /// The sums of `P` pairs, `N` vectors of dimensions at a time.
    #[inline(always)]
    fn sum_vectors<A: Arm<Vector = T>, const P: usize, const N: usize>(
        &self,
        arm: A,
        weights: &[A::Weights],
        sums: &mut [Lanes],
        pair: usize,
        steps: &Range<usize>,
    ) {
        let mut vector = 0;
        while vector + N <= self.vectors {
            self.sum_tile::<A, P, N>(arm, weights, sums, pair, vector, steps);
            vector += N;
        }
        while vector < self.vectors {
            self.sum_tile::<A, P, 1>(arm, weights, sums, pair, vector, steps);
            vector += 1;
        }
    }

    #[inline(always)]
    fn sum_tile<A: Arm<Vector = T>, const P: usize, const N: usize>(
        &self,
        arm: A,
        weights: &[A::Weights],
        sums: &mut [Lanes],
        pair: usize,
        vector: usize,
        steps: &Range<usize>,
    ) {
        let simd = arm.simd();
        let (block_steps, split_steps) = (BLOCK_SIZE / A::STEP, KV_SPLIT / A::STEP);
        let weights: &[A::Weights; P] = weights[pair..][..P].try_into().expect("the slice has this length");
        // Registers move through `done`, with loops so plain that they unroll: an array of registers that some loop indexes
        // at run time would live in memory, and every step would store it.
        let mut done = [[[0.0; LANES]; N]; P];
        for (p, done) in done.iter_mut().enumerate() {
            done.copy_from_slice(&sums[(pair + p) * self.vectors + vector..][..N]);
        }
        let mut chains = [[simd.splat(0.0); N]; P];
        for p in 0..P {
            for n in 0..N {
                chains[p][n] = simd.load(&done[p][n]);
            }
        }
        let mut step = steps.start;
        while step < steps.end {
            let first = step % block_steps;
            let in_block = first..block_steps.min(first + steps.end - step);
            let block = self.value_block(step / block_steps);
            let before = step - first;
            for at in in_block.clone() {
                let row: &[T; N] =
                    block[at * self.vectors + vector..][..N].try_into().expect("the slice has this length");
                let mut values = [arm.load(&row[0]); N];
                for n in 1..N {
                    values[n] = arm.load(&row[n]);
                }
                // The remainder tells the compiler that the index is in bounds.
                let in_split = (before + at) % split_steps;
                for p in 0..P {
                    let weight = arm.splat(weights[p].as_ref()[in_split]);
                    for n in 0..N {
                        chains[p][n] = arm.multiply_add(weight, values[n], chains[p][n]);
                    }
                }
            }
            step += in_block.len();
        }
        for p in 0..P {
            for n in 0..N {
                simd.store(chains[p][n], &mut done[p][n]);
            }
        }
        for (p, done) in done.iter().enumerate() {
            sums[(pair + p) * self.vectors + vector..][..N].copy_from_slice(done);
        }
    }

    // --- Results -----------------------------------------------------------------------------------------------------

    /// Joins a group's result of a split to what came before it.
    #[inline(always)]
    fn merge<A: Arm<Vector = T>>(
        &self,
        arm: A,
        state: &mut State,
        group: usize,
        sums: &mut [Lanes],
        partial: &[Lanes],
        visible: &Visible,
    ) {
        let simd = arm.simd();
        let (max, so_far) = (simd.load(&partial[0]), simd.load(&state.max));
        let merged = simd.max(max, so_far);
        let keep = arm.exp(simd.sub(so_far, merged));
        let take = arm.exp(simd.sub(max, merged));
        let kept = simd.mul(simd.load(&state.denominator), keep);
        simd.store(simd.fma(simd.load(&partial[1]), take, kept), &mut state.denominator);
        simd.store(merged, &mut state.max);
        let (keep, take) = (simd.to_array(keep), simd.to_array(take));
        for pair in 0..self.pairs_of(group) {
            // Adding nothing could still turn -0 into +0.
            if visible.ranges[pair].is_empty() {
                continue;
            }
            let (keep, take) = (simd.splat(keep[pair]), simd.splat(take[pair]));
            let so_far = &mut sums[(group * GROUP_PAIRS + pair) * self.vectors..][..self.vectors];
            for (so_far, sum) in so_far.iter_mut().zip(&partial[2 + pair * self.vectors..]) {
                let kept = simd.mul(simd.load(so_far), keep);
                simd.store(simd.fma(simd.load(sum), take, kept), so_far);
            }
        }
    }

    /// Divides a pair's sums by its denominator and writes them.
    #[inline(always)]
    fn write<S: Simd>(&self, simd: S, scratch: &Scratch, pair: usize) {
        let denominator = simd.splat(scratch.states[pair / GROUP_PAIRS].denominator[pair % GROUP_PAIRS]);
        let row = self.first_row + pair / self.group;
        let head = self.first_head + pair % self.group;
        // SAFETY: row < T and head < H (checked by `attention` and the division into tiles), so the D elements lie inside `out`;
        // (row, head) belongs to exactly one tile, because sequences do not overlap, and to one task of it that writes.
        let out = unsafe {
            std::slice::from_raw_parts_mut(self.out.get().add(row * self.out_cols + head * self.dim), self.dim)
        };
        for (out, sum) in out.chunks_mut(LANES).zip(&scratch.sums[pair * self.vectors..]) {
            store_partial(simd, simd.div(load_partial(simd, sum, 0.0), denominator), out);
        }
    }

    // --- The cache ---------------------------------------------------------------------------------------------------

    /// The head's keys of block number `block` of the sequence.
    #[inline(always)]
    fn key_block(&self, block: usize) -> &[T] {
        let piece = self.shape.piece(self.kv_head, self.block_table[block] as usize);
        &self.keys[piece * self.key_block_len..][..self.key_block_len]
    }

    /// The head's values of block number `block` of the sequence.
    #[inline(always)]
    fn value_block(&self, block: usize) -> &[T] {
        let piece = self.shape.piece(self.kv_head, self.block_table[block] as usize);
        &self.values[piece * self.value_block_len..][..self.value_block_len]
    }
}
