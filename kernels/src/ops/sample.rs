//! What samplers need of a row of f32 logits: statistics, the best, the best n, the sorted head, and stateless noise.
//!
//! A row is one thread's work; samplers spread rows over threads with [`Device::for_each`]. On a GPU whole steps are sampled
//! where their logits are (`sample/device.rs`). All of it is deterministic: sums
//! have a fixed order, ties go to the lowest id, and noise is a function of (seed, position, token id).

mod device;
mod process;

use std::cmp::Ordering;

pub use self::device::{
    ContinuedRows, Draw, MAX_TOPS, NO_RESULT, PendingSamples, SampleRow, SampleRows, Sampled, Top, continue_rows,
    sample_rows,
};
pub(crate) use self::device::{PART_WORDS, SAMPLE_ROW_WORDS, SAMPLED_WORDS, TOP_ROW_WORDS, TOP_WORDS};
pub use self::process::{
    CountedTokens, NOT_COUNTED, Penalties, ProcessRows, ProcessedRows, count_earlier_tokens, count_tokens, counted_as,
    forget_slots, process_rows,
};
pub(crate) use self::process::{MAX_COUNTED_ROWS, PROCESS_ROW_WORDS, table_words};
use crate::Device;
use crate::simd::{Isa, Kernel, LANES, Lanes, Simd, exp, load_partial};

/// The softmax of a row in two numbers.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RowStats {
    /// The largest logit.
    pub max: f32,
    /// ln Σ e^logit. A logit minus this is its log-probability.
    pub log_sum_exp: f32,
}

/// A token and its score.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Scored {
    /// The token id: the index in the row.
    pub id: u32,
    /// Its logit.
    pub score: f32,
}

/// Largest logit and logarithm of the sum of exponentials. Entries of -inf count as impossible; a row of nothing else has
/// a `log_sum_exp` of -inf.
pub fn row_stats(device: &Device, row: &[f32]) -> RowStats {
    isa(device).run(Stats { row })
}

/// The id of the largest entry; of equal ones the lowest. 0 for an empty row; a NaN is never the largest.
pub fn argmax(device: &Device, row: &[f32]) -> u32 {
    let max = isa(device).run(Max { row });
    row.iter().position(|x| *x == max).unwrap_or(0) as u32
}

/// The index of the largest `scores[i] + gumbel(seed, position, ids[i])`: one draw from the softmax of the scores. `ids` are the
/// tokens that the scores belong to, ascending; `None` is the whole vocabulary. A NaN is never drawn unless there is nothing
/// else.
///
/// The noise of a token depends on (seed, position, token id) only. So a token that was removed changes nothing for the others,
/// and neither slot nor batch nor rank can be seen in the draw. Ties go to the lowest id.
///
/// # Panics
/// If there are fewer ids than scores.
///
/// Source: Gumbel-max, arXiv:1411.0030 §2.
pub fn gumbel_argmax(device: &Device, scores: &[f32], ids: Option<&[u32]>, seed: u64, position: u32) -> u32 {
    let start = argmax(device, scores);
    if scores.is_empty() {
        return start;
    }
    let id = ids.map_or(start, |ids| ids[start as usize]);
    let best = Scored { id: start, score: scores[start as usize] + gumbel(seed, position, id) };
    isa(device).run(NoisyBest { scores, ids, seed, position, best })
}

/// The noise of a token: -ln(-ln u) with u from [`philox`].
pub fn gumbel(seed: u64, position: u32, id: u32) -> f32 {
    gumbel_of(philox(seed, position, id))
}

/// Philox-4x32-10 with the seed as key: word `id % 4` of the block with the counter (id / 4, position, 0, 0).
///
/// Source: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011.
pub fn philox(seed: u64, position: u32, id: u32) -> u32 {
    philox_4x32(seed, position, id / 4)[id as usize % 4]
}

/// The `n` best entries, best first, ties by id; entries equal to the n-th best are returned too, but no more than
/// `max` altogether. Entries of -inf and NaN are left out.
pub fn top_n(row: &[f32], n: usize, max: usize, scratch: &mut Vec<Scored>, out: &mut Vec<Scored>) {
    out.clear();
    if n == 0 {
        return;
    }
    visit_descending(row, scratch, |entry| {
        let wanted = out.len() < max && (out.len() < n || out.last().is_some_and(|last| last.score == entry.score));
        if wanted {
            out.push(entry);
        }
        wanted
    });
}

/// Visits entries from the largest down, ties by ascending id, until `visit` returns false. Entries of -inf and NaN are
/// left out. `scratch` is working memory that callers keep.
///
/// Sorts only what is visited: the best 64 first, then four times as many. A row of 128k logits, of which a sampler
/// wants 50, costs one selection and a sort of 64.
pub fn visit_descending(row: &[f32], scratch: &mut Vec<Scored>, mut visit: impl FnMut(Scored) -> bool) {
    scratch.clear();
    let entries = row.iter().enumerate().map(|(id, score)| Scored { id: id as u32, score: *score });
    scratch.extend(entries.filter(|entry| entry.score > f32::NEG_INFINITY));
    let (mut rest, mut batch) = (&mut scratch[..], 64);
    while !rest.is_empty() {
        if batch < rest.len() {
            rest.select_nth_unstable_by(batch, descending);
        }
        let (head, tail) = rest.split_at_mut(batch.min(rest.len()));
        head.sort_unstable_by(descending);
        if !head.iter().all(|entry| visit(*entry)) {
            return;
        }
        (rest, batch) = (tail, batch * 4);
    }
}

/// Larger scores first, then lower ids: a total order over entries that are not NaN.
fn descending(a: &Scored, b: &Scored) -> Ordering {
    b.score.partial_cmp(&a.score).unwrap_or(Ordering::Equal).then(a.id.cmp(&b.id))
}

/// u = (the upper 24 bits + 1/2) / 2^24 lies strictly between 0 and 1. In f64, where -ln u keeps its precision near u = 1.
fn gumbel_of(bits: u32) -> f32 {
    let u = ((bits >> 8) as f64 + 0.5) / (1 << 24) as f64;
    -(-u.ln()).ln() as f32
}

fn philox_4x32(seed: u64, position: u32, block: u32) -> [u32; 4] {
    philox_blocks(seed, position, [block]).map(|word| word[0])
}

/// The four words of `N` blocks. Plain loops over lanes, which the compiler turns into vectors of the caller's instruction set.
#[inline(always)]
fn philox_blocks<const N: usize>(seed: u64, position: u32, blocks: [u32; N]) -> [[u32; N]; 4] {
    let [mut c0, mut c1, mut c2, mut c3] = [blocks, [position; N], [0; N], [0; N]];
    let mut key = [seed as u32, (seed >> 32) as u32];
    for _round in 0..10 {
        for lane in 0..N {
            let a = 0xD251_1F53_u64 * u64::from(c0[lane]);
            let b = 0xCD9E_8D57_u64 * u64::from(c2[lane]);
            (c0[lane], c1[lane]) = ((b >> 32) as u32 ^ c1[lane] ^ key[0], b as u32);
            (c2[lane], c3[lane]) = ((a >> 32) as u32 ^ c3[lane] ^ key[1], a as u32);
        }
        key = [key[0].wrapping_add(0x9E37_79B9), key[1].wrapping_add(0xBB67_AE85)];
    }
    [c0, c1, c2, c3]
}

fn isa(device: &Device) -> Isa {
    match device {
        Device::Cpu(cpu) => cpu.isa,
        Device::Cuda(cuda) => isa(cuda.host()),
        Device::Plan(_) => panic!("the plan device has no logits to sample from"),
    }
}

struct Max<'a> {
    row: &'a [f32],
}

impl Kernel for Max<'_> {
    type Output = f32;

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) -> f32 {
        let mut max = simd.splat(f32::NEG_INFINITY);
        for x in self.row.chunks(LANES) {
            // A NaN operand yields the second one, the maximum so far.
            max = simd.max(load_partial(simd, x, f32::NEG_INFINITY), max);
        }
        simd.largest(max)
    }
}

struct Stats<'a> {
    row: &'a [f32],
}

impl Kernel for Stats<'_> {
    type Output = RowStats;

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) -> RowStats {
        let max = Max { row: self.row }.run(simd);
        if max == f32::NEG_INFINITY {
            return RowStats { max, log_sum_exp: max };
        }
        let (splat, mut sum) = (simd.splat(max), simd.splat(0.0));
        for x in self.row.chunks(LANES) {
            sum = simd.add(sum, exp(simd, simd.sub(load_partial(simd, x, f32::NEG_INFINITY), splat)));
        }
        RowStats { max, log_sum_exp: max + simd.sum(sum).ln() }
    }
}

/// The rest of a draw, from the noisy score of one candidate on.
///
/// A noise costs two logarithms, and nearly all candidates are hopeless. With d = best - score, a candidate wins only if its
/// noise reaches d: u >= exp(-exp(-d)) >= 1 - exp(-d), so only if 1 - u <= exp(score - best). That is a comparison of vectors,
/// with one per cent of room for all roundings; whoever passes is computed exactly. Skipping changes no draw.
struct NoisyBest<'a> {
    scores: &'a [f32],
    ids: Option<&'a [u32]>,
    seed: u64,
    position: u32,
    /// `id` is an index into `scores`.
    best: Scored,
}

impl Kernel for NoisyBest<'_> {
    type Output = u32;

    #[inline(always)]
    fn run<S: Simd>(mut self, simd: S) -> u32 {
        match self.ids {
            None => {
                for (group, scores) in self.scores.chunks(4 * LANES).enumerate() {
                    let first = group * LANES;
                    let blocks: [u32; LANES] = std::array::from_fn(|lane| (first + lane) as u32);
                    let words = philox_blocks(self.seed, self.position, blocks);
                    let mut noise = [0; 4 * LANES];
                    for lane in 0..LANES {
                        for word in 0..4 {
                            noise[4 * lane + word] = words[word][lane];
                        }
                    }
                    for (part, (scores, noise)) in scores.chunks(LANES).zip(noise.as_chunks::<LANES>().0).enumerate() {
                        self.visit(simd, group * 4 * LANES + part * LANES, scores, noise);
                    }
                }
            }
            Some(ids) => {
                for (group, (scores, ids)) in self.scores.chunks(LANES).zip(ids.chunks(LANES)).enumerate() {
                    let id_of = |lane: usize| ids.get(lane).copied().unwrap_or(0);
                    let blocks: [u32; LANES] = std::array::from_fn(|lane| id_of(lane) / 4);
                    let words = philox_blocks(self.seed, self.position, blocks);
                    let noise = std::array::from_fn(|lane| words[id_of(lane) as usize % 4][lane]);
                    self.visit(simd, group * LANES, scores, &noise);
                }
            }
        }
        self.best.id
    }
}

impl NoisyBest<'_> {
    /// Up to sixteen candidates from index `first` on.
    #[inline(always)]
    fn visit<S: Simd>(&mut self, simd: S, first: usize, scores: &[f32], noise: &[u32; LANES]) {
        const ROOM: f32 = 1.01;
        let chance = exp(simd, simd.sub(load_partial(simd, scores, f32::NEG_INFINITY), simd.splat(self.best.score)));
        let chance = simd.to_array(simd.mul(chance, simd.splat(ROOM * (1 << 24) as f32)));
        // (1 - u) 2^24. A NaN fails the comparison.
        let rest: Lanes = std::array::from_fn(|lane| ((1 << 24) - (noise[lane] >> 8)) as f32 - 0.5);
        if (0..LANES).fold(false, |any, lane| any | (rest[lane] <= chance[lane])) {
            for (lane, score) in scores.iter().enumerate().filter(|(lane, _)| rest[*lane] <= chance[*lane]) {
                let candidate = Scored { id: (first + lane) as u32, score: score + gumbel_of(noise[lane]) };
                if candidate.score > self.best.score
                    || (candidate.score == self.best.score && candidate.id < self.best.id)
                {
                    self.best = candidate;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::testing::{cpus, random};

    #[test]
    fn statistics_match_f64_and_are_alike_on_every_arm() {
        for len in [1, 15, 16, 1000, 50_001] {
            let mut row: Vec<f32> = random(1, len).iter().map(|x| x * 30.0).collect();
            if len > 20 {
                row[7] = f32::NEG_INFINITY;
            }
            let max = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let exact = row.iter().map(|x| (*x as f64 - max as f64).exp()).sum::<f64>().ln() + max as f64;
            let first = row_stats(&cpus()[0], &row);
            for device in cpus() {
                let stats = row_stats(&device, &row);
                assert_eq!(stats, first, "{}", device.describe());
                assert_eq!(stats.max, max);
                // One rounding of a value below 64 and the logarithm of a sum that is good to 1e-6.
                assert!((stats.log_sum_exp as f64 - exact).abs() < 6e-6, "{} against {exact}", stats.log_sum_exp);
            }
        }
        let nothing = row_stats(&cpus()[0], &[f32::NEG_INFINITY; 3]);
        assert_eq!((nothing.max, nothing.log_sum_exp), (f32::NEG_INFINITY, f32::NEG_INFINITY));
    }

    #[test]
    fn argmax_prefers_the_lowest_id() {
        for device in cpus() {
            let mut row = vec![-1.0; 100];
            for id in [17, 40, 99] {
                row[id] = 2.5;
            }
            row[3] = f32::NAN;
            assert_eq!(argmax(&device, &row), 17, "{}", device.describe());
            assert_eq!(argmax(&device, &[f32::NEG_INFINITY; 20]), 0);
            assert_eq!(argmax(&device, &[]), 0);
        }
    }

    #[test]
    fn philox_gives_the_published_numbers() {
        // A known answer of Random123 for philox4x32-10: all zeros.
        assert_eq!(philox_4x32(0, 0, 0), [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]);
        assert_eq!(philox(0, 0, 2), 0xbc57_ac4c);
        assert_ne!(philox(0, 1, 2), philox(0, 0, 2));
        assert_ne!(philox(1 << 32, 0, 2), philox(0, 0, 2));
    }

    #[test]
    fn skipping_hopeless_tokens_changes_no_draw() {
        for (seed, spread) in [(1, 1.0), (2, 10.0), (3, 100.0), (4, 0.0)] {
            let mut row: Vec<f32> = random(seed, 3001).iter().map(|x| x * spread).collect();
            row[5] = f32::NEG_INFINITY;
            row[2] = f32::NAN;
            let ids: Vec<u32> = (0..row.len() as u32).filter(|id| id % 7 != 3 && id % 11 < 8).collect();
            let scores: Vec<f32> = ids.iter().map(|id| row[*id as usize]).collect();
            for position in 0..50 {
                let noisy = |id: u32| row[id as usize] + gumbel(seed, position, id);
                let all: Vec<f32> = (0..row.len() as u32).map(noisy).collect();
                let some: Vec<f32> = ids.iter().map(|id| noisy(*id)).collect();
                for device in cpus() {
                    let context = format!("{} seed {seed} position {position}", device.describe());
                    let drawn = gumbel_argmax(&device, &row, None, seed, position);
                    assert_eq!(drawn, argmax(&device, &all), "{context}");
                    let drawn = gumbel_argmax(&device, &scores, Some(&ids), seed, position);
                    assert_eq!(drawn, argmax(&device, &some), "{context}");
                }
            }
        }
        let nothing = [f32::NEG_INFINITY; 3];
        assert_eq!(gumbel_argmax(&cpus()[0], &nothing, None, 1, 1), 0);
        assert_eq!(gumbel_argmax(&cpus()[0], &[], None, 1, 1), 0);
    }

    #[test]
    fn draws_follow_the_softmax() {
        let device = &cpus()[0];
        let logits = [1.0f32, 0.0, 2.0, f32::NEG_INFINITY, -1.0];
        let total: f64 = logits.iter().map(|x| (*x as f64).exp()).sum();
        let draws = 40_000;
        let mut counts = [0u32; 5];
        (0..draws).for_each(|position| counts[gumbel_argmax(device, &logits, None, 42, position) as usize] += 1);
        for (count, logit) in counts.iter().zip(logits) {
            let p = (logit as f64).exp() / total;
            // Five standard deviations; the seed is fixed, so this either always passes or never.
            let tolerance = 5.0 * (draws as f64 * p * (1.0 - p)).sqrt();
            assert!((*count as f64 - draws as f64 * p).abs() <= tolerance, "{counts:?}");
        }
    }

    #[test]
    fn the_extremes_of_the_noise_are_finite() {
        assert!(gumbel_of(0).is_finite() && gumbel_of(u32::MAX).is_finite());
    }

    #[test]
    fn descending_visits_are_a_stable_sort() {
        // Few distinct values, so that ties are everywhere, over several batches.
        for len in [0, 1, 64, 65, 5000] {
            let mut row: Vec<f32> = random(4, len).iter().map(|x| (x * 20.0).round()).collect();
            if len > 10 {
                row[3] = f32::NEG_INFINITY;
            }
            let mut expected: Vec<Scored> =
                row.iter().enumerate().map(|(id, score)| Scored { id: id as u32, score: *score }).collect();
            expected.retain(|entry| entry.score > f32::NEG_INFINITY);
            expected.sort_by(|a, b| b.score.total_cmp(&a.score).then(a.id.cmp(&b.id)));
            for take in [1, 63, 64, 65, 1000, usize::MAX] {
                let (mut seen, mut scratch) = (Vec::new(), Vec::new());
                visit_descending(&row, &mut scratch, |entry| {
                    seen.push(entry);
                    seen.len() < take
                });
                // Zero may carry either sign, which the comparison of scores ignores.
                assert_eq!(seen.len(), expected.len().min(take));
                let same = |(a, b): (&Scored, &Scored)| a.score == b.score;
                assert!(seen.iter().zip(&expected).all(same), "{len} entries, {take} taken");
                assert!(seen.is_sorted_by(|a, b| descending(a, b) == Ordering::Less));
            }
        }
    }

    #[test]
    fn the_top_n_keep_their_ties_up_to_a_bound() {
        let row = [1.0, 3.0, 2.0, 2.0, f32::NEG_INFINITY, 2.0];
        let (mut scratch, mut out) = (Vec::new(), Vec::new());
        let mut ids = |n, max| {
            top_n(&row, n, max, &mut scratch, &mut out);
            out.iter().map(|entry| entry.id).collect::<Vec<_>>()
        };
        assert_eq!(ids(0, 10), []);
        assert_eq!(ids(1, 10), [1]);
        assert_eq!(ids(2, 10), [1, 2, 3, 5]);
        assert_eq!(ids(2, 3), [1, 2, 3]);
        assert_eq!(ids(9, 10), [1, 2, 3, 5, 0]);
    }
}
