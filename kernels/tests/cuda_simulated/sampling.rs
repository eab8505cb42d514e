//! The token of a row, the best or a drawn one, and its log-probability.

use kernels::ops::sample::Scored;
use kernels::{Device, ops};

use crate::element::{ELEMENTS, f32_bytes};
use crate::simulator::Argument::{Buffer, U32};
use crate::simulator::{SIMULATORS, Simulator};

/// Threads of a part of a row, and parts of it, as `sample.cu` has them.
const THREADS: usize = 512;
const PARTS: usize = 8;

/// A row to sample from, as the kernels read it: the seed in two halves, the row, the position, whether to draw; temperature, top-k, top-p
/// and the logarithm of min-p; key and id of the last one that stays; typical-p; the normaliser, the entropy and the largest distance
/// from it; a token that is known.
type Entry = [u32; 16];

const NO_LIMIT: u32 = u32::MAX;

fn entry(row: u32, seed: u64, position: u32, draws: bool) -> Entry {
    let [one, all, any] = [1.0, f32::NEG_INFINITY, f32::INFINITY].map(f32::to_bits);
    let (seed, draws) = ([seed as u32, (seed >> 32) as u32], u32::from(draws));
    [seed[0], seed[1], row, position, draws, one, NO_LIMIT, one, all, 0, NO_LIMIT, one, 0, 0, any, u32::MAX]
}

/// What comes of it.
#[derive(Debug)]
struct Sampled {
    id: u32,
    logprob: f32,
    log_sum_exp: f32,
    unsound: u32,
}

fn sample_rows(simulator: &Simulator, rows: &[Vec<f32>], entries: &[Entry]) -> Vec<Sampled> {
    sample_rows_with_top(simulator, rows, entries, &[]).0
}

/// A row of which tokens are reported: its entry, how many, and how many with those that tie, padding.
type TopRow = [u32; 4];

/// What is sampled, and the most likely tokens of `tops`.
fn sample_rows_with_top(
    simulator: &Simulator,
    rows: &[Vec<f32>],
    entries: &[Entry],
    tops: &[TopRow],
) -> (Vec<Sampled>, Vec<Vec<(u32, f32)>>) {
    let (out, logits) = (vec![0xff; 16 * entries.len()], f32_bytes(&rows.concat()));
    let entry_bytes = bytemuck::cast_slice::<u32, u8>(entries.as_flattened());
    let arguments = [Buffer(entry_bytes), Buffer(&logits), U32(rows[0].len())];
    let entry_bytes = simulator.run("truncate_rows", [entries.len(), 1, 1], THREADS, &arguments).swap_remove(0);
    let parts = vec![0xff; 32 * PARTS * entries.len()];
    let arguments = [Buffer(&parts), Buffer(&logits), Buffer(&entry_bytes), U32(rows[0].len())];
    let parts = simulator.run("sample_parts", [PARTS, entries.len(), 1], THREADS, &arguments).swap_remove(0);
    let lists = [Buffer(&out), Buffer(&parts), Buffer(&logits), Buffer(&entry_bytes)];
    let arguments = [&lists[..], &[U32(entries.len()), U32(rows[0].len())]].concat();
    let out = simulator.run("sample_rows", [entries.len().div_ceil(32), 1, 1], 32, &arguments).swap_remove(0);
    let width = tops.iter().map(|[_, _, most, _]| *most as usize).max().unwrap_or(0);
    let room = vec![0; 8 * width * tops.len()];
    let lists = [Buffer(bytemuck::cast_slice::<u32, u8>(tops.as_flattened())), Buffer(&entry_bytes), Buffer(&out)];
    let arguments = [&[Buffer(&room)], &lists[..], &[Buffer(&logits), U32(rows[0].len()), U32(width)]].concat();
    let found = match tops.len() {
        0 => Vec::new(),
        len => simulator.run("top_rows", [len, 1, 1], THREADS, &arguments).swap_remove(0),
    };
    let token = |bytes: &[u8; 8]| {
        let [id, logprob]: [u32; 2] = bytemuck::pod_read_unaligned(bytes);
        (id, f32::from_bits(logprob))
    };
    let tokens = |of_row: &[u8]| {
        let tokens: Vec<(u32, f32)> = of_row.as_chunks().0.iter().map(token).collect();
        let len = tokens.iter().position(|(id, _)| *id == u32::MAX).unwrap_or(width);
        assert!(tokens[len..].iter().all(|token| *token == (u32::MAX, 0.0)), "nothing comes behind the last");
        tokens[..len].to_vec()
    };
    let found = found.chunks(8 * width.max(1)).map(tokens).collect();
    let words = |bytes: &[u8; 16]| {
        let [id, logprob, log_sum_exp, unsound]: [u32; 4] = bytemuck::pod_read_unaligned(bytes);
        Sampled { id, logprob: f32::from_bits(logprob), log_sum_exp: f32::from_bits(log_sum_exp), unsound }
    };
    (out.as_chunks::<16>().0.iter().map(words).collect(), found)
}

/// 1e-5: the sum of up to 10,000 terms in f32, and approximate exponentials.
#[track_caller]
fn assert_alike(actual: f32, expected: f32, context: &str) {
    let alike = actual == expected || (actual.is_nan() && expected.is_nan()) || (actual - expected).abs() <= 1e-5;
    assert!(alike, "{context}: {actual} instead of {expected}");
}

#[test]
fn rows_are_sampled_as_by_the_operations() {
    let device = Device::cpu(1);
    for vocab_size in [1, 3, 40, 513, 5000, 10_001] {
        // A few levels, so that there are ties; a row whose best is first, one of impossible tokens alone, one with numbers missing, one
        // of no number, one with infinities, one with a single number behind what is none.
        let mut rows: Vec<Vec<f32>> = (0..9)
            .map(|row| ELEMENTS[1].random(20 + row, vocab_size).iter().map(|x| (x * 8.0).round() / 2.0).collect())
            .collect();
        rows[3][0] = 100.0;
        rows[4].fill(f32::NEG_INFINITY);
        rows[5].iter_mut().skip(1).step_by(3).for_each(|x| *x = f32::NAN);
        rows[6].fill(f32::NAN);
        rows[7].iter_mut().skip(vocab_size / 2).step_by(5).for_each(|x| *x = f32::INFINITY);
        rows[8].fill(f32::NAN);
        rows[8][vocab_size - 1] = f32::NEG_INFINITY;
        // Every row twice, in an order that is not theirs.
        let entries: Vec<Entry> = (0..2 * rows.len() as u32)
            .map(|at| {
                let row = at * 5 % rows.len() as u32;
                entry(row, u64::from(row) * 0x1234_5678_9abc_def1, row * 1000 + 7, at % 2 == 1)
            })
            .collect();
        for simulator in &*SIMULATORS {
            let sampled = sample_rows(simulator, &rows, &entries);
            for (entry, sampled) in entries.iter().zip(&sampled) {
                let [low, high, row, position, draws, ..] = *entry;
                let context = format!("{vocab_size} logits, row {row}, draws {draws}: {sampled:?}");
                let (logits, seed) = (&rows[row as usize], u64::from(low) | u64::from(high) << 32);
                let id = match draws {
                    0 => ops::sample::argmax(&device, logits),
                    _ => ops::sample::gumbel_argmax(&device, logits, None, seed, position),
                };
                assert_eq!(sampled.id, id, "{context}");
                let stats = ops::sample::row_stats(&device, logits);
                assert_alike(sampled.log_sum_exp, stats.log_sum_exp, &context);
                assert_alike(sampled.logprob, logits[id as usize] - stats.log_sum_exp, &context);
                let unsound = logits.iter().position(|x| x.is_nan() || *x == f32::INFINITY);
                assert_eq!(sampled.unsound, unsound.map_or(u32::MAX, |id| id as u32), "{context}");
            }
        }
    }
}

#[test]
fn a_known_token_is_scored_instead() {
    let device = Device::cpu(1);
    let mut row = ELEMENTS[1].random(80, 3001);
    row[7] = f32::NEG_INFINITY;
    let known = |id: u32| {
        let mut entry = entry(0, 1, 1, false);
        entry[15] = id;
        entry
    };
    let log_sum_exp = ops::sample::row_stats(&device, &row).log_sum_exp;
    let ids = [0, 7, 1500, 3000];
    for simulator in &*SIMULATORS {
        let scored = sample_rows(simulator, std::slice::from_ref(&row), &ids.map(known));
        for (id, scored) in ids.iter().zip(&scored) {
            assert_eq!(scored.id, *id);
            assert_alike(scored.logprob, row[*id as usize] - log_sum_exp, &format!("token {id}"));
        }
    }
}

/// Of rows that are no distribution nothing is reported, of short ones what there is; more than are reported may tie.
#[test]
fn the_likeliest_tokens_are_reported() {
    let mut rows: Vec<Vec<f32>> = (0..5).map(|row| ELEMENTS[1].random(70 + row, 7000)).collect();
    rows[0].fill(1.5);
    rows[1].fill(f32::NEG_INFINITY);
    rows[1][4001] = -3.0;
    rows[1][17] = -3.0;
    rows[2].fill(f32::NEG_INFINITY);
    rows[3][5] = f32::NAN;
    let entries: Vec<Entry> = (0..5).map(|row| entry(row, 1, 1, false)).collect();
    let tops = [[0, 5, 8, 0], [1, 128, 136, 0], [2, 1, 9, 0], [3, 2, 2, 0], [4, 128, 136, 0], [0, 1, 1, 0]];
    let mut order: Vec<u32> = (0..7000).collect();
    order.sort_by(|a, b| rows[4][*b as usize].total_cmp(&rows[4][*a as usize]).then(a.cmp(b)));
    let last = rows[4][order[127] as usize];
    let len = order.iter().filter(|id| rows[4][**id as usize] >= last).count().min(136);
    let expected = [(0..8).collect(), vec![17, 4001], vec![], vec![], order[..len].to_vec(), vec![0]];
    for simulator in &*SIMULATORS {
        let (sampled, tokens) = sample_rows_with_top(simulator, &rows, &entries, &tops);
        for ((tokens, expected), top) in tokens.iter().zip(&expected).zip(&tops) {
            let ids: Vec<u32> = tokens.iter().map(|(id, _)| *id).collect();
            assert_eq!(ids, *expected, "{top:?}");
            let (row, log_sum_exp) = (&rows[top[0] as usize], sampled[top[0] as usize].log_sum_exp);
            assert!(tokens.iter().all(|(id, logprob)| *logprob == row[*id as usize] - log_sum_exp), "{top:?}");
        }
    }
}

/// Many draws of one row: the candidates that are skipped would not have won.
#[test]
fn draws_are_those_of_the_operation() {
    let device = Device::cpu(1);
    for (seed, spread) in [(1, 0.0), (2, 1.0), (3, 10.0)] {
        let rows = [ELEMENTS[1].random(seed, 203).iter().map(|x| x * spread).collect::<Vec<f32>>()];
        let entries: Vec<Entry> = (0..200).map(|position| entry(0, seed, position, true)).collect();
        let sampled = sample_rows(&SIMULATORS[0], &rows, &entries);
        for (position, sampled) in sampled.iter().enumerate() {
            let id = ops::sample::gumbel_argmax(&device, &rows[0], None, seed, position as u32);
            assert_eq!(sampled.id, id, "seed {seed}, spread {spread}, position {position}");
        }
    }
}

/// What a draw is limited to.
#[derive(Clone, Copy, Debug)]
struct Limits {
    top_k: Option<usize>,
    top_p: Option<f32>,
    min_p: Option<f32>,
    typical_p: Option<f32>,
}

/// What stays, by sorting: ids ascending.
fn kept(scores: &[f32], Limits { top_k, top_p, min_p, typical_p }: Limits) -> Vec<u32> {
    let mut order: Vec<u32> = (0..scores.len() as u32).filter(|id| scores[*id as usize] > f32::NEG_INFINITY).collect();
    order.sort_by(|a, b| scores[*b as usize].total_cmp(&scores[*a as usize]).then(a.cmp(b)));
    let score = |id: &u32| scores[*id as usize];
    let max = score(&order[0]);
    if let Some(k) = top_k.filter(|k| *k < order.len()) {
        let last = score(&order[k - 1]);
        order.retain(|id| score(id) >= last);
    }
    if let Some(p) = top_p {
        let weight = |id: &u32| f64::from(score(id) - max).exp();
        let mass = f64::from(p) * order.iter().map(weight).sum::<f64>();
        let mut sum = 0.0;
        let len = order.iter().position(|id| {
            sum += weight(id);
            sum >= mass
        });
        order.truncate(len.map_or(order.len(), |last| last + 1));
    }
    if let Some(min_p) = min_p {
        order.retain(|id| score(id) >= max + min_p.ln());
    }
    if let Some(p) = typical_p {
        let normalizer = order.iter().map(|id| f64::from(score(id)).exp()).sum::<f64>().ln();
        let probability = |id: &u32| (f64::from(score(id)) - normalizer).exp();
        let entropy: f64 = order.iter().map(|id| probability(id) * (normalizer - f64::from(score(id)))).sum();
        // As floats, so that equal scores are equally far.
        let distance = |id: &u32| ((normalizer as f32 - score(id)) - entropy as f32).abs();
        order.sort_by(|a, b| distance(a).total_cmp(&distance(b)));
        let mut sum = 0.0;
        let last = order.iter().position(|id| {
            sum += probability(id);
            sum >= f64::from(p)
        });
        if let Some(farthest) = last.map(|last| distance(&order[last])) {
            order.retain(|id| distance(id) <= farthest);
        }
    }
    order.sort_unstable();
    order
}

/// Tokens that are reported, and beyond them those that tie.
const TOP_N: usize = 6;
const TOP_TIES: usize = 3;

/// Draws from what top-k, top-p, min-p and typical-p leave, at some temperature: the token and its log-probability among them.
#[test]
fn draws_are_from_those_that_stay() {
    let device = Device::cpu(1);
    // Levels give ties, which top-k keeps and top-p tells apart; the second has none, the third impossible tokens.
    let mut rows: Vec<Vec<f32>> = (0..3).map(|row| ELEMENTS[1].random(40 + row, 1030)).collect();
    rows[0].iter_mut().for_each(|x| *x = (*x * 4.0).round());
    rows[1].iter_mut().for_each(|x| *x *= 6.0);
    rows[2].iter_mut().enumerate().for_each(|(id, x)| *x = if id % 3 == 0 { *x * 3.0 } else { f32::NEG_INFINITY });
    let none = Limits { top_k: None, top_p: None, min_p: None, typical_p: None };
    let limits = [
        none,
        Limits { top_k: Some(1), ..none },
        Limits { top_k: Some(7), ..none },
        Limits { top_k: Some(5000), top_p: Some(0.3), ..none },
        Limits { top_p: Some(0.9), ..none },
        Limits { top_p: Some(0.013), ..none },
        Limits { top_k: Some(40), top_p: Some(0.777), min_p: Some(0.05), ..none },
        Limits { min_p: Some(1.0), ..none },
        Limits { typical_p: Some(0.2), ..none },
        Limits { typical_p: Some(0.95), ..none },
        Limits { top_k: Some(300), top_p: Some(0.97), typical_p: Some(0.6), ..none },
    ];
    let (mut entries, mut wanted, mut tops, mut wanted_tops) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for (row, logits) in rows.iter().enumerate() {
        for (temperature, limits) in [1.0, 0.7].iter().flat_map(|t| limits.map(|limits| (*t, limits))) {
            let scores: Vec<f32> = logits.iter().map(|x| x / temperature).collect();
            let ids = kept(&scores, limits);
            let scores: Vec<f32> = ids.iter().map(|id| scores[*id as usize]).collect();
            for position in 0..4 {
                let mut entry = entry(row as u32, 11, position, true);
                entry[5] = f32::to_bits(temperature);
                entry[6] = limits.top_k.map_or(NO_LIMIT, |k| k as u32);
                entry[7] = limits.top_p.unwrap_or(1.0).to_bits();
                entry[8] = limits.min_p.map_or(f32::NEG_INFINITY, f32::ln).to_bits();
                entry[11] = limits.typical_p.unwrap_or(1.0).to_bits();
                entries.push(entry);
                let index = ops::sample::gumbel_argmax(&device, &scores, Some(&ids), 11, position) as usize;
                let stats = ops::sample::row_stats(&device, &scores);
                wanted.push((ids[index], scores[index] - stats.log_sum_exp, (row, temperature, limits)));
                let most = TOP_N + TOP_TIES;
                let (mut scratch, mut best) = (Vec::new(), Vec::new());
                ops::sample::top_n(&scores, TOP_N, most, &mut scratch, &mut best);
                tops.push([tops.len() as u32, TOP_N as u32, most as u32, 0]);
                let token = |best: &Scored| (ids[best.id as usize], best.score - stats.log_sum_exp);
                wanted_tops.push(best.iter().map(token).collect::<Vec<_>>());
            }
        }
    }
    for simulator in &*SIMULATORS {
        let (sampled, top_tokens) = sample_rows_with_top(simulator, &rows, &entries, &tops);
        for (sampled, (id, logprob, context)) in sampled.iter().zip(&wanted) {
            assert_eq!(sampled.id, *id, "{context:?}: {sampled:?}");
            assert_alike(sampled.logprob, *logprob, &format!("{context:?}"));
        }
        for ((tokens, expected), (.., context)) in top_tokens.iter().zip(&wanted_tops).zip(&wanted) {
            let ids = |tokens: &[(u32, f32)]| tokens.iter().map(|(id, _)| *id).collect::<Vec<_>>();
            assert_eq!(ids(tokens), ids(expected), "{context:?}");
            for ((_, logprob), (_, expected)) in tokens.iter().zip(expected) {
                assert_alike(*logprob, *expected, &format!("{context:?}"));
            }
        }
    }
}
