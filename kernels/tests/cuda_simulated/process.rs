//! The counts of a slot's tokens, and what penalties, biases, bans and masks make of a row of logits: bit by bit as the processor's
//! formulas (`shard/src/sampling/`), which are plain loops here.

use std::collections::{HashMap, HashSet};

use crate::element::{ELEMENTS, f32_bytes, u32_bytes};
use crate::simulator::Argument::{Buffer, U32};
use crate::simulator::{SIMULATORS, Simulator};

/// Threads of a block, as `sample.cuh` has them, and the ids that they take.
const THREADS: usize = 512;
const RANGE: usize = 4 * THREADS;

/// Rows of a block that notes tokens, and of a launch at most.
const COUNTED_THREADS: usize = 32;
const MAX_COUNTED_ROWS: usize = 0x8000;

const MAX_COUNT: u32 = 0x7fff;
const NONE: u32 = u32::MAX;

/// Words from one table to the next.
fn stride(vocab_size: usize) -> usize {
    vocab_size.next_multiple_of(4)
}

fn words(bytes: &[u8]) -> Vec<u32> {
    bytes.as_chunks::<4>().0.iter().map(|bytes| u32::from_le_bytes(*bytes)).collect()
}

/// Numbers that look drawn.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % bound
    }
}

// --- Counts ----------------------------------------------------------------------------------------------------------

fn forget_slots(simulator: &Simulator, tables: &[u32], slots: &[u32], vocab_size: usize) -> Vec<u32> {
    let (tables, list) = (u32_bytes(tables), u32_bytes(slots));
    let grid = [vocab_size.div_ceil(RANGE), slots.len(), 1];
    let arguments = [Buffer(&tables), Buffer(&list), U32(vocab_size)];
    words(&simulator.run("forget_slots", grid, THREADS, &arguments)[0])
}

/// `of_rows`: twice the slot, and one more for a token of the reply; or [`NONE`].
fn count_tokens(simulator: &Simulator, tables: &[u32], ids: &[u32], of_rows: &[u32], vocab_size: usize) -> Vec<u32> {
    let grid = [ids.len().div_ceil(COUNTED_THREADS), 1, 1];
    let [tables, id_bytes, of_rows] = [tables, ids, of_rows].map(u32_bytes);
    let arguments = [Buffer(&tables), Buffer(&id_bytes), Buffer(&of_rows), U32(ids.len()), U32(vocab_size)];
    words(&simulator.run("count_tokens", grid, COUNTED_THREADS, &arguments)[0])
}

#[test]
fn tokens_are_counted_by_slot_in_prompt_and_reply() {
    const SLOTS: usize = 5;
    for vocab_size in [1, 7, 64, 2049, 5003] {
        for simulator in &*SIMULATORS {
            let mut random = Random(vocab_size as u64);
            let mut counts: HashMap<(usize, usize, usize), u32> = HashMap::new();
            let mut tables = vec![0; SLOTS * stride(vocab_size)];
            for num_rows in [1, 31, 33, 1000] {
                let (mut ids, mut of_rows) = (Vec::new(), Vec::new());
                for _ in 0..num_rows {
                    // Half of all rows share a few tokens, neighbours among them.
                    let bound = if random.below(2) == 0 { vocab_size } else { vocab_size.min(3) };
                    let (id, slot, in_reply) = (random.below(bound), random.below(SLOTS), random.below(2));
                    let is_noted = random.below(5) > 0;
                    ids.push(id as u32);
                    of_rows.push(if is_noted { (2 * slot + in_reply) as u32 } else { NONE });
                    if is_noted {
                        *counts.entry((slot, id, in_reply)).or_insert(0) += 1;
                    }
                }
                tables = count_tokens(simulator, &tables, &ids, &of_rows, vocab_size);
            }
            for (slot, table) in tables.chunks(stride(vocab_size)).enumerate() {
                for (id, word) in table.iter().enumerate() {
                    let count = |in_reply: usize| counts.get(&(slot, id, in_reply)).copied().unwrap_or(0);
                    assert_eq!(*word, count(1) | count(0) << 16, "slot {slot}, token {id} of {vocab_size}");
                }
            }
        }
    }
}

#[test]
fn counts_end_without_a_carry() {
    // Half of the rows each, three times: 16384, 32768 and 49152 of them.
    let (ids, of_rows) = (vec![1; MAX_COUNTED_ROWS], [0, 1].repeat(MAX_COUNTED_ROWS / 2));
    let mut tables = vec![0; stride(3)];
    for (times, count) in [(1, 0x4000), (2, MAX_COUNT), (3, MAX_COUNT)] {
        tables = count_tokens(&SIMULATORS[0], &tables, &ids, &of_rows, 3);
        assert_eq!(tables, [0, count << 16 | count, 0, 0], "{times} times");
    }
}

#[test]
fn slots_are_forgotten_one_by_one() {
    for vocab_size in [1, 7, 64, 2049] {
        let tables: Vec<u32> = (1..).take(5 * stride(vocab_size)).collect();
        let mut expected = tables.clone();
        for slot in [3, 0, 4] {
            expected[slot * stride(vocab_size)..][..stride(vocab_size)].fill(0);
        }
        for simulator in &*SIMULATORS {
            assert_eq!(forget_slots(simulator, &tables, &[3, 0, 4], vocab_size), expected, "{vocab_size} tokens");
        }
    }
}

// --- Scores ----------------------------------------------------------------------------------------------------------

/// What a request asks for, in the order in which it is done.
struct Asked {
    row: usize,
    position: u32,
    biases: Vec<(u32, f32)>,
    /// The slot whose tokens are penalised, with the penalties for repetition, frequency, presence and occurrence.
    penalties: Option<(usize, [f32; 4])>,
    bans: Vec<u32>,
    mask: Option<Vec<u32>>,
}

/// Penalties that are off.
const NO_PENALTIES: [f32; 4] = [1.0, 0.0, 0.0, 0.0];

/// Occurrences in prompt and reply, and in the reply alone.
struct Counts {
    all: u32,
    reply: u32,
}

/// What the processors make of a row, one after the other.
fn processed(logits: &[f32], tables: &[u32], asked: &Asked) -> Vec<f32> {
    let mut scores = logits.to_vec();
    for (id, bias) in &asked.biases {
        scores[*id as usize] += bias;
    }

    if let Some((slot, [repetition, frequency, presence, occurrence])) = asked.penalties {
        let counts = tables[slot * stride(logits.len())..].iter().map(|word| {
            let [reply, prompt] = [word & 0xffff, word >> 16].map(|count| count.min(MAX_COUNT));
            Counts { all: prompt + reply, reply }
        });
        let counts: Vec<Counts> = counts.take(logits.len()).collect();
        let mut each = |count: fn(&Counts) -> u32, changed: &dyn Fn(f32, f32) -> f32| {
            for (score, counts) in scores.iter_mut().zip(&counts).filter(|(_, counts)| count(counts) > 0) {
                *score = changed(*score, count(counts) as f32);
            }
        };
        if repetition != 1.0 {
            each(|counts| counts.all, &|x, _| if x > 0.0 { x / repetition } else { x * repetition });
        }
        if frequency != 0.0 {
            each(|counts| counts.all, &|x, count| x - frequency * (count / asked.position as f32));
        }
        if presence != 0.0 {
            each(|counts| counts.reply, &|x, _| x - presence);
        }
        if occurrence != 0.0 {
            each(|counts| counts.reply, &|x, count| x - occurrence * count);
        }
    }

    let bans: HashSet<usize> = asked.bans.iter().map(|id| *id as usize).collect();
    for (id, (score, logit)) in scores.iter_mut().zip(logits).enumerate() {
        let is_masked = asked.mask.as_ref().is_some_and(|mask| mask[id / 32] >> (id % 32) & 1 == 0);
        // What is no score is found by whoever samples.
        if (is_masked || bans.contains(&id)) && *logit < f32::INFINITY {
            *score = f32::NEG_INFINITY;
        }
    }
    scores
}

/// Adds a list, as the host's lists are, which begin at multiples of four words.
fn push(lists: &mut Vec<u32>, list: &[u32]) -> u32 {
    lists.resize(lists.len().next_multiple_of(4), 0xdead_beef);
    lists.extend(list);
    (lists.len() - list.len()) as u32
}

fn process_rows(simulator: &Simulator, rows: &[Vec<f32>], tables: &[u32], entries: &[Asked]) -> Vec<f32> {
    let (mut lists, mut entry_words) = (Vec::new(), Vec::new());
    for Asked { row, position, biases, penalties, bans, mask } in entries {
        let (slot, penalties) = penalties.map_or((NONE, NO_PENALTIES), |(slot, penalties)| (slot as u32, penalties));
        let bias_words: Vec<u32> = biases.iter().flat_map(|(id, bias)| [*id, bias.to_bits()]).collect();
        let biases_at = push(&mut lists, &bias_words);
        let bans_at = push(&mut lists, bans);
        let mask_at = mask.as_ref().map_or(NONE, |mask| push(&mut lists, mask));
        entry_words.extend([*row as u32, slot, *position]);
        entry_words.extend(penalties.map(f32::to_bits));
        entry_words.extend([biases_at, biases.len() as u32, bans_at, bans.len() as u32, mask_at]);
    }
    let (vocab_size, logits) = (rows[0].len(), f32_bytes(&rows.concat()));
    let [tables, entry_bytes, lists] = [tables, &entry_words[..], &lists[..]].map(u32_bytes);
    let grid = [vocab_size.div_ceil(RANGE), entries.len(), 1];
    let arguments = [Buffer(&logits), Buffer(&tables), Buffer(&entry_bytes), Buffer(&lists), U32(vocab_size)];
    let after = simulator.run("process_rows", grid, THREADS, &arguments);
    assert!(after[1..] == [tables, entry_bytes, lists], "what is read stays as it is");
    words(&after[0]).into_iter().map(f32::from_bits).collect()
}

#[test]
fn scores_have_the_bits_of_the_processors() {
    const SLOTS: usize = 3;
    // Each alone, to either side; all together.
    let penalties = [
        [1.3, 0.0, 0.0, 0.0],
        [0.7, 0.0, 0.0, 0.0],
        [1.0, 1.7, 0.0, 0.0],
        [1.0, 0.0, -0.6, 0.0],
        [1.0, 0.0, 0.0, 0.3],
        [1.1, -0.9, 0.4, -0.07],
    ];
    for vocab_size in [1, 3, 31, 64, 2047, 2048, 2049, 4100, 6001] {
        let mut random = Random(vocab_size as u64);
        // Some tokens in the prompt, in the reply, in both; in the first slot all of them, in the last hardly any.
        let mut tables = vec![0; SLOTS * stride(vocab_size)];
        for (at, word) in tables.iter_mut().enumerate() {
            let (slot, id) = (at / stride(vocab_size), at % stride(vocab_size));
            if id < vocab_size && random.below([1, 3, 40][slot]) == 0 {
                let [reply, prompt] = [random.below(4), random.below(2) * random.below(3000)];
                *word = (reply | prompt << 16) as u32;
            }
        }
        // As many as a launch can leave.
        tables[0] = 0xfffe_8000;

        let mut entries = Vec::new();
        for parts in 0..16 {
            let [with_biases, with_penalties, with_bans, with_mask] = [1, 2, 4, 8].map(|part| parts & part > 0);
            for (at, penalties) in penalties.iter().enumerate().take(if with_penalties { penalties.len() } else { 1 }) {
                let mut biases = HashMap::new();
                let num_biases = if with_biases { 700 } else { 0 };
                for _ in 0..num_biases {
                    let bias = random.below(999) as f32 / 77.0 - 6.0;
                    let bias = if random.below(9) == 0 { f32::NEG_INFINITY } else { bias };
                    biases.insert(random.below(vocab_size) as u32, bias);
                }
                let mut biases: Vec<(u32, f32)> = biases.into_iter().collect();
                biases.sort_unstable_by_key(|(id, _)| *id);
                // Some twice, some behind the vocabulary: in no block's range, and in the last one's.
                let num_bans = if with_bans { random.below(900) } else { 0 };
                let mut bans = if with_bans { vec![3_000_000] } else { Vec::new() };
                bans.extend((0..num_bans).map(|_| random.below(vocab_size + 3) as u32));
                let mask_word = |_| random.below(1 << 31) as u32 | (random.below(2) << 31) as u32;
                let mask = with_mask.then(|| (0..vocab_size.div_ceil(32)).map(mask_word).collect());
                entries.push(Asked {
                    row: entries.len(),
                    position: 1 + (parts * 977 + at as u32 * 31),
                    biases,
                    penalties: with_penalties.then_some((at % SLOTS, *penalties)),
                    bans,
                    mask,
                });
            }
        }
        // Behind the rows that are asked for, one that stays.
        let mut rows: Vec<Vec<f32>> = (0..=entries.len() as u64)
            .map(|row| ELEMENTS[1].random(60 + row, vocab_size).iter().map(|x| x * 7.3).collect())
            .collect();
        for (at, row) in rows.iter_mut().enumerate() {
            for (id, logit) in row.iter_mut().enumerate() {
                match (id + at) % 29 {
                    3 => *logit = 0.0,
                    4 => *logit = -0.0,
                    5 => *logit = f32::NEG_INFINITY,
                    6 if at % 5 == 4 => *logit = f32::NAN,
                    7 if at % 5 == 4 => *logit = f32::INFINITY,
                    _ => {}
                }
            }
        }
        // In an order that is not theirs.
        let last = entries.len() - 1;
        entries.iter_mut().for_each(|asked| asked.row = last - asked.row);

        let mut expected = rows.clone();
        for asked in &entries {
            expected[asked.row] = processed(&rows[asked.row], &tables, asked);
        }
        let expected = expected.concat();
        for simulator in &*SIMULATORS {
            let actual = process_rows(simulator, &rows, &tables, &entries);
            for (at, (actual, expected)) in actual.iter().zip(&expected).enumerate() {
                let (row, id) = (at / vocab_size, at % vocab_size);
                let alike = actual.to_bits() == expected.to_bits() || (actual.is_nan() && expected.is_nan());
                assert!(alike, "row {row}, token {id} of {vocab_size}: {actual} instead of {expected}");
            }
        }
    }
}
