//! Causal grouped-query attention over the paged cache, prefill and decode rows mixed.
//!
//! One path per (row, head), whatever step it runs in. The positions that a row sees are cut into splits of [`KV_SPLIT`] at
//! absolute positions. Within a split: sixteen scores per vector, each a chain over d; their maximum; exponentials; their sum,
//! a chain per lane and then a tree; the weighted values, a chain over positions. Splits merge in ascending order. Rows and
//! heads that share keys are computed side by side, and a few long rows by several threads along their splits: that changes who
//! loads a key, not the order of any sum.
//!
//! Two arms (`arm.rs`): where the machine has dot products of bf16 pairs and the cache is bf16 or narrower, queries and weights
//! are rounded to bf16 and a step of a chain is a pair; everywhere else all is f32, alike on every instruction set. An arm
//! belongs to a cache for good, so bits depend on the machine's type only.

mod arm;
mod cuda;
mod tile;

pub(crate) use cuda::{AttentionLists, BLOCK_PAIRS};

use std::cell::RefCell;
use std::ops::Range;

use bytemuck::Pod;

#[cfg(target_arch = "x86_64")]
use self::arm::Pairs;
use self::arm::Vectors;
use self::tile::{Task, Tile};
#[cfg(target_arch = "x86_64")]
use crate::KvDType;
use crate::contract::{expect_activations, expect_device, expect_matrix, expect_on};
use crate::kv_cache::{KvShape, with_kv_element};
use crate::limits::{BLOCK_SIZE, KV_SPLIT, PIECES_PER_THREAD};
use crate::pool::SendPtr;
#[cfg(target_arch = "x86_64")]
use crate::simd::{Avx512Bf16, E4m3, E5m2, PairElement, PairKernel};
use crate::simd::{Element, Kernel, LANES, Lanes, Simd};
use crate::{Cpu, Device, Error, KvCache, Result, Tensor};

/// The rows of one step, sequence by sequence.
pub struct AttentionRows<'a> {
    pub(crate) sequences: &'a [SequenceRows<'a>],
    /// Where a GPU has their work.
    pub(crate) lists: Option<AttentionLists>,
}

impl<'a> AttentionRows<'a> {
    /// Those of `sequences`: in ascending order of their rows, without overlap. Rows of no sequence are left as they are. For a
    /// GPU, [`StepLists::attention`](crate::StepLists::attention) makes them.
    pub fn new(sequences: &'a [SequenceRows<'a>]) -> AttentionRows<'a> {
        AttentionRows { sequences, lists: None }
    }
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

/// Which positions a row sees, and how much of each.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Scoring {
    /// Multiplies the product of a query and a key: then it is a score.
    pub scale: f32,
    /// Where scores level off: at c, by `c · tanh(score / c)`. `None`: nowhere.
    pub softcap: Option<f32>,
    /// The most recent positions, the row's own included; `None`: all.
    pub window: Option<u32>,
}

/// `out[t, h] = Σ_j softmax_j(score(q[t, h] · k[j])) v[j]` over the positions j of the row's sequence up to its own that `scoring` lets it
/// see.
///
/// # Shapes
/// `out`: `[T, H·D]`; `qkv`: `[T, (H + 2·K)·D]` with the rotated queries first, of which only these are read. K and D are
/// those of `kv`, which must hold the keys and values of all positions involved. H is a multiple of K.
/// # Errors
/// [`Error::Shape`], [`Error::DType`], [`Error::Index`] for a row, block or layer out of range.
///
/// Source: arXiv:1706.03762, arXiv:2305.13245 (GQA), arXiv:2309.06180 (paged), arXiv:2004.05150 (window), arXiv:2408.00118 (soft-cap).
pub fn attention(
    out: &mut Tensor,
    qkv: &Tensor,
    kv: &KvCache,
    layer: usize,
    rows: &AttentionRows<'_>,
    scoring: Scoring,
) -> Result<()> {
    const OP: &str = "attention";
    let (kv_heads, dim) = (kv.kv_heads(), kv.head_dim());
    expect_activations(OP, &[("out", out), ("qkv", qkv)])?;
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
            expect_device(OP, out.device(), &[("qkv", qkv)])?;
            expect_on(OP, out.device(), "kv", kv.device())?;
            cpu_arm(&cpu, out, qkv, kv, layer, rows, scoring);
        }
        Device::Cuda(cuda) => {
            expect_device(OP, out.device(), &[("qkv", qkv)])?;
            expect_on(OP, out.device(), "kv", kv.device())?;
            cuda::run(&cuda, out, qkv, kv, layer, rows.lists.as_ref(), scoring)?;
        }
        Device::Plan(ledger) => {
            let seen =
                |position: usize| scoring.window.map_or(position + 1, |window| (position + 1).min(window as usize));
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

/// (row, head) pairs of a tile at most, unless one row's heads alone are more. Four groups of eight: a prompt's keys and values
/// come four times less often from the third-level cache, and enough tiles are left to keep all threads busy.
const TILE_PAIRS: usize = 4 * tile::GROUP_PAIRS;

fn cpu_arm(
    cpu: &Cpu,
    out: &mut Tensor,
    qkv: &Tensor,
    kv: &KvCache,
    layer: usize,
    rows: &AttentionRows<'_>,
    scoring: Scoring,
) {
    #[cfg(target_arch = "x86_64")]
    if let Some(simd) = kv.pairs() {
        return match kv.dtype() {
            KvDType::Bf16 => run(cpu, out, qkv, kv, layer, rows, scoring, |tile| {
                simd.vectorize(PairTile::<half::bf16>(tile));
            }),
            KvDType::F8E4m3 => run(cpu, out, qkv, kv, layer, rows, scoring, |tile| {
                simd.vectorize(PairTile::<E4m3>(tile));
            }),
            KvDType::F8E5m2 => run(cpu, out, qkv, kv, layer, rows, scoring, |tile| {
                simd.vectorize(PairTile::<E5m2>(tile));
            }),
            KvDType::F32 | KvDType::F16 => unreachable!("these do not widen to bf16, so the cache has no pairs"),
        };
    }
    with_kv_element!(kv.dtype(), T => run(cpu, out, qkv, kv, layer, rows, scoring, |tile| {
        cpu.isa.run(VectorTile::<T>(tile));
    }));
}

struct VectorTile<'a, T>(Tile<'a, [T; LANES]>);

impl<T: Element> Kernel for VectorTile<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        self.0.run(Vectors::<S, T>::new(simd));
    }
}

#[cfg(target_arch = "x86_64")]
struct PairTile<'a, T>(Tile<'a, [[T; 2]; LANES]>);

#[cfg(target_arch = "x86_64")]
impl<T: PairElement> PairKernel for PairTile<'_, T> {
    #[inline(always)]
    fn run(self, simd: Avx512Bf16) {
        self.0.run(Pairs::<T>::new(simd));
    }
}

/// Some rows of a sequence with one KV head, over all splits that they see or some of them.
struct Piece {
    sequence: usize,
    /// Counted from the sequence's first.
    first_row: usize,
    num_rows: usize,
    kv_head: usize,
    splits: Range<usize>,
    /// Of a piece that is computed in parts: the first of all splits, and where its results begin.
    partial: Option<(usize, usize)>,
}

/// What the calling thread keeps from call to call.
#[derive(Default)]
struct Plan {
    pieces: Vec<Piece>,
    /// Pieces whose parts are merged when all are there.
    merges: Vec<Piece>,
    /// Their results. At most what one call's sequences of few rows need: for every 256 positions and head a little more than
    /// one output row.
    partials: Vec<Lanes>,
}

thread_local! {
    static PLAN: RefCell<Plan> = RefCell::default();
}

fn run<V: Pod + Sync>(
    cpu: &Cpu,
    out: &mut Tensor,
    qkv: &Tensor,
    kv: &KvCache,
    layer: usize,
    rows: &AttentionRows<'_>,
    scoring: Scoring,
    arm: impl Fn(Tile<'_, V>) + Sync,
) {
    let (shape, out_cols, qkv_cols) = (kv.shape, out.cols(), qkv.cols());
    let group = out_cols / (shape.head_dim * shape.kv_heads).max(1);
    let window = scoring.window.map_or(usize::MAX, |window| window as usize);
    let mut plan = PLAN.take();
    plan.make(cpu.pool.threads(), &shape, group, rows, window);

    let qkv = qkv.as_f32();
    let (keys, values) = kv.layer::<V>(layer);
    let mut out = out.as_f32_mut();
    let (out, partials) = (SendPtr(out.as_mut_ptr()), SendPtr(plan.partials.as_mut_ptr()));
    let per_vector = LANES * shape.step;
    let [key_block_len, value_block_len] = [shape.key_block_len(), shape.value_block_len()].map(|len| len / per_vector);
    let tile = |piece: &Piece, task| {
        let sequence = &rows.sequences[piece.sequence];
        arm(Tile {
            queries: &qkv,
            qkv_cols,
            first_row: sequence.first_row + piece.first_row,
            first_position: sequence.start_position + piece.first_row,
            pairs: piece.num_rows * group,
            group,
            first_head: piece.kv_head * group,
            dim: shape.head_dim,
            vectors: shape.padded_dim() / LANES,
            key_block_len,
            value_block_len,
            block_table: sequence.block_table,
            shape: &shape,
            kv_head: piece.kv_head,
            keys,
            values,
            scoring,
            window,
            splits: piece.splits.clone(),
            out: &out,
            out_cols,
            task,
        });
    };
    let place = |start| SendPtr(partials.get().wrapping_add(start));
    cpu.pool.run(plan.pieces.len(), |at| {
        let piece = &plan.pieces[at];
        match piece.partial {
            None => tile(piece, Task::Whole),
            Some((first_split, start)) => tile(piece, Task::Partial { first_split, partials: place(start) }),
        }
    });
    cpu.pool.run(plan.merges.len(), |at| {
        let piece = &plan.merges[at];
        let (_, start) = piece.partial.expect("merges are of parts");
        tile(piece, Task::Merge { partials: place(start) });
    });
    PLAN.set(plan);
}

impl Plan {
    /// Cuts the rows into pieces; those over so many splits that threads would wait for them also along the splits.
    fn make(&mut self, threads: usize, shape: &KvShape, group: usize, rows: &AttentionRows<'_>, window: usize) {
        self.pieces.clear();
        self.merges.clear();
        let rows_per_tile = (TILE_PAIRS / group.max(1)).max(1);
        let tiles = || {
            let of = |(index, sequence): (usize, &SequenceRows<'_>)| {
                let (start, num_rows) = (sequence.start_position, sequence.num_rows);
                // The longest rows are the last of a prompt: they come first, so that no thread ends alone with one of them.
                (0..num_rows.div_ceil(rows_per_tile)).rev().map(move |tile| {
                    let first_row = tile * rows_per_tile;
                    let num_rows = rows_per_tile.min(num_rows - first_row);
                    let (first, end) = (start + first_row, start + first_row + num_rows);
                    let splits = (first + 1).saturating_sub(window) / KV_SPLIT..end.div_ceil(KV_SPLIT);
                    (index, first_row, num_rows, splits)
                })
            };
            rows.sequences.iter().enumerate().rev().flat_map(of)
        };
        let all: usize = tiles().map(|(.., splits)| splits.len()).sum::<usize>() * shape.kv_heads;
        let most = match threads {
            1 => usize::MAX,
            _ => (all / (threads * PIECES_PER_THREAD)).max(1),
        };
        let mut partial_vectors = 0;
        for (sequence, first_row, num_rows, splits) in tiles() {
            for kv_head in 0..shape.kv_heads {
                let piece = |splits, partial| Piece { sequence, first_row, num_rows, kv_head, splits, partial };
                if splits.len() / 2 <= most {
                    self.pieces.push(piece(splits.clone(), None));
                    continue;
                }
                let partial = Some((splits.start, partial_vectors));
                for first in splits.clone().step_by(most) {
                    self.pieces.push(piece(first..splits.end.min(first + most), partial));
                }
                self.merges.push(piece(splits.clone(), partial));
                let groups = (num_rows * group).div_ceil(tile::GROUP_PAIRS);
                partial_vectors += splits.len() * groups * tile::partial_len(shape.padded_dim() / LANES);
            }
        }
        self.partials.resize(partial_vectors.max(self.partials.len()), [0.0; LANES]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::KvDType;
    use crate::ops::testing::{assert_close, bits, cpus, random, random_tensor};
    use crate::ops::{RopeTable, rope_and_store_kv};

    /// A sequence whose first `length` positions are computed, cut into steps.
    struct Case {
        heads: usize,
        kv_heads: usize,
        dim: usize,
        dtype: KvDType,
        length: usize,
        softcap: Option<f32>,
        window: Option<u32>,
    }

    const SCALE: f32 = 0.3;

    impl Case {
        fn scoring(&self) -> Scoring {
            Scoring { scale: SCALE, softcap: self.softcap, window: self.window }
        }

        fn cols(&self) -> usize {
            (self.heads + 2 * self.kv_heads) * self.dim
        }

        /// Every position's queries, keys and values.
        fn qkv(&self) -> Vec<f32> {
            random(9, self.length * self.cols())
        }

        /// Whether queries and weights are rounded to bf16 on this device.
        fn in_pairs(&self, device: &Device) -> bool {
            KvCache::new(device, 0, 0, 1, 1, self.dtype).unwrap().shape.step == 2
        }

        /// What the op means: the whole row of scores at once, in f64, from keys and values as the cache rounds them and
        /// queries as they are multiplied.
        fn definition(&self, in_pairs: bool) -> Vec<f32> {
            let (qkv, cols, dim) = (self.qkv(), self.cols(), self.dim);
            let part = |row: usize, head: usize| &qkv[row * cols + head * dim..][..dim];
            let stored =
                |row: usize, head: usize| part(row, head).iter().map(|x| rounded(self.dtype, *x)).collect::<Vec<_>>();
            let mut out = Vec::new();
            for t in 0..self.length {
                for head in 0..self.heads {
                    let kv_head = head / (self.heads / self.kv_heads);
                    let first = self.window.map_or(0, |window| (t + 1).saturating_sub(window as usize));
                    let query: Vec<f32> =
                        part(t, head).iter().map(|x| if in_pairs { rounded(KvDType::Bf16, *x) } else { *x }).collect();
                    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| *a as f64 * *b as f64).sum::<f64>();
                    let key = |j: usize| stored(j, self.heads + kv_head);
                    let value = |j: usize| stored(j, self.heads + self.kv_heads + kv_head);
                    let cap =
                        |score: f64| self.softcap.map_or(score, |cap| f64::from(cap) * (score / f64::from(cap)).tanh());
                    let scores: Vec<f64> = (first..=t).map(|j| cap(dot(&query, &key(j)) * SCALE as f64)).collect();
                    let max = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                    let total: f64 = scores.iter().map(|score| (score - max).exp()).sum();
                    let mut sums = vec![0.0; dim];
                    for j in first..=t {
                        let weight = (scores[j - first] - max).exp() / total;
                        sums.iter_mut().zip(value(j)).for_each(|(sum, value)| *sum += weight * value as f64);
                    }
                    out.extend(sums.into_iter().map(|sum| sum as f32));
                }
            }
            out
        }

        /// The same through the cache: the sequence in steps of these sizes, beside a second, shorter one in every step,
        /// with the blocks of both interleaved. Garbage fills what no position of the sequences owns.
        fn run(&self, device: &Device, steps: &[usize]) -> Vec<f32> {
            self.run_with(device, steps, &self.qkv())
        }

        fn run_with(&self, device: &Device, steps: &[usize], qkv: &[f32]) -> Vec<f32> {
            let (cols, dim) = (self.cols(), self.dim);
            let blocks = self.length.div_ceil(BLOCK_SIZE).max(1);
            let mut kv = KvCache::new(device, 2, 2 * blocks + 1, self.kv_heads, dim, self.dtype).unwrap();
            with_kv_element!(self.dtype, T => {
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
                let rows = AttentionRows::new(&sequences[first..]);
                let mut out = random_tensor(device, 3, &[1 + num_rows, self.heads * dim]);
                attention(&mut out, &step, &kv, 1, &rows, self.scoring()).unwrap();
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

    /// As the cache rounds it.
    fn rounded(dtype: KvDType, x: f32) -> f32 {
        with_kv_element!(dtype, T => T::from_f32(x).to_f32())
    }

    fn cases() -> Vec<Case> {
        let case = |(heads, kv_heads, dim), dtype, length, window| {
            // Of every other case scores level off, where many of them are.
            let softcap = (length % 20 == 0).then_some(0.7);
            Case { heads, kv_heads, dim, dtype, length, softcap, window }
        };
        vec![
            case((1, 1, 1), KvDType::F32, 1, None),
            case((1, 1, 1), KvDType::Bf16, 3, None),
            case((4, 2, 24), KvDType::F32, 40, None),
            case((3, 1, 64), KvDType::Bf16, 300, None),
            case((2, 2, 80), KvDType::F16, 33, Some(16)),
            case((4, 1, 128), KvDType::Bf16, 70, Some(7)),
            case((1, 1, 16), KvDType::F32, 600, Some(290)),
            case((2, 2, 17), KvDType::Bf16, 540, Some(261)),
            case((20, 1, 8), KvDType::F16, 20, None),
            case((14, 2, 32), KvDType::F8E4m3, 90, None),
            case((6, 2, 64), KvDType::F8E5m2, 270, Some(33)),
        ]
    }

    #[test]
    fn arms_match_the_definition_and_each_other() {
        for case in cases() {
            // By arm: whether it multiplies pairs, then the definition and the bits of the first device.
            let mut arms: [Option<(Vec<f32>, Vec<u32>)>; 2] = [None, None];
            for device in cpus() {
                let context =
                    format!("{} {}/{}x{} {}", device.describe(), case.heads, case.kv_heads, case.dim, case.dtype);
                let out = case.run(&device, &[case.length]);
                let in_pairs = case.in_pairs(&device);
                let (expected, first) =
                    arms[usize::from(in_pairs)].get_or_insert_with(|| (case.definition(in_pairs), bits(&out)));
                // Sums of up to 600 terms below one, in chains of at most 256, and exponentials good to 2e-7. Rounding
                // weights to 8 bits moves each by up to 2^-9 of itself, and values lie between -1 and 1.
                let tolerance = if in_pairs { 1.0 / 512.0 } else { 5e-6 };
                assert_close(&out, expected, tolerance, &context);
                assert_eq!(*first, bits(&out), "{context}");
            }
        }
    }

    /// One device of every instruction set, with two threads.
    fn devices_of_two_threads() -> Vec<Device> {
        cpus().into_iter().skip(1).step_by(3).collect()
    }

    #[test]
    fn chunks_and_decode_give_the_bits_of_the_whole_prompt() {
        for case in cases() {
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
            for device in devices_of_two_threads() {
                let whole = bits(&case.run(&device, &[case.length]));
                for steps in [&decode, &chunks] {
                    assert_eq!(bits(&case.run(&device, steps)), whole, "{} heads {}", device.describe(), case.heads);
                }
            }
        }
    }

    #[test]
    fn a_few_long_rows_are_shared_by_the_threads() {
        for (dtype, window) in [(KvDType::Bf16, None), (KvDType::F32, Some(1100))] {
            let case = Case { heads: 3, kv_heads: 1, dim: 16, dtype, length: 1500, softcap: Some(0.5), window };
            let steps = [1490, 1, 3, 1, 5];
            for devices in cpus().chunks(3) {
                let [one, others @ ..] = devices else { unreachable!("there are three of each") };
                let whole = bits(&case.run(one, &[case.length]));
                for device in others {
                    assert_eq!(bits(&case.run(device, &steps)), whole, "{} {dtype}", device.describe());
                }
            }
        }
        let shape = KvShape { num_blocks: 256, kv_heads: 1, head_dim: 64, step: 1 };
        let sequence = SequenceRows { first_row: 0, num_rows: 1, start_position: 2047, block_table: &[] };
        let mut plan = Plan::default();
        for (threads, pieces, merges) in [(1, 1, 0), (2, 8, 1), (4, 8, 1)] {
            plan.make(threads, &shape, 4, &AttentionRows::new(&[sequence]), usize::MAX);
            assert_eq!((plan.pieces.len(), plan.merges.len()), (pieces, merges), "{threads} threads");
        }
    }

    #[test]
    fn what_is_no_number_harms_only_the_rows_that_see_it() {
        const BAD: usize = 37;
        for dtype in [KvDType::F32, KvDType::Bf16, KvDType::F8E4m3] {
            for window in [None, Some(9)] {
                let case = Case { heads: 3, kv_heads: 1, dim: 24, dtype, length: 70, softcap: Some(0.5), window };
                let mut qkv = case.qkv();
                qkv[BAD * case.cols() + case.heads * case.dim..][..2 * case.dim].fill(f32::NAN);
                let row = case.heads * case.dim;
                for device in devices_of_two_threads() {
                    let clean = case.run(&device, &[case.length]);
                    let harmed = case.run_with(&device, &[case.length], &qkv);
                    for t in 0..case.length {
                        let [clean, harmed] = [&clean, &harmed].map(|out| &out[t * row..][..row]);
                        let sees = t >= BAD && window.is_none_or(|window| t - BAD < window as usize);
                        let context = format!("{} {dtype} {window:?}: position {t}", device.describe());
                        match sees {
                            true => assert!(harmed.iter().all(|x| x.is_nan()), "{context}"),
                            false => assert_eq!(bits(harmed), bits(clean), "{context}"),
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn what_is_out_of_range_is_refused() {
        let device = &cpus()[0];
        let kv = KvCache::new(device, 1, 2, 1, 4, KvDType::F32).unwrap();
        let (qkv, mut out) = (random_tensor(device, 1, &[2, 12]), random_tensor(device, 2, &[2, 4]));
        let mut call = |first_row, num_rows, start_position, block_table: &[u32], layer| {
            let sequences = [SequenceRows { first_row, num_rows, start_position, block_table }];
            let rows = AttentionRows::new(&sequences);
            let scoring = Scoring { scale: 1.0, softcap: None, window: None };
            attention(&mut out, &qkv, &kv, layer, &rows, scoring).map_err(|error| error.to_string())
        };
        assert_eq!(call(0, 0, 0, &[], 0), Ok(()));
        assert_eq!(call(1, 2, 0, &[0], 0).unwrap_err(), "attention: `rows` holds 3, the limit is 3");
        assert_eq!(call(0, 1, 16, &[0], 0).unwrap_err(), "attention: `block_table` holds 1, the limit is 1");
        assert_eq!(call(0, 1, 0, &[2], 0).unwrap_err(), "attention: `block_table` holds 2, the limit is 2");
        assert_eq!(call(0, 1, 0, &[1], 1).unwrap_err(), "attention: `layer` holds 1, the limit is 1");
    }
}
