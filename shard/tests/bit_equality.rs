//! A row's logits are the same bits however the rows around it are scheduled: chunked, batched, on more threads.
//! (Design §7: recovery, preemption and the prefix cache rest on it.)

#![allow(clippy::unwrap_used, reason = "these are tests, but Clippy only knows the functions marked so")]

mod runner;

use std::sync::Arc;

use runner::{Piece, Runner, ScratchModel, Wanted, bits, goldens};
use shard::comm::Single;

/// One of every family and both element types; windows, scalings, QK-norm and soft-caps among them.
const MODELS: &[&str] = &[
    "llama-llama3-f32",
    "llama-yarn-bf16",
    "mistral-window-bf16",
    "qwen2-bias-f32",
    "qwen3-qk-norm-bf16",
    "gemma-tied-f32",
    "gemma2-softcap-bf16",
    "gemma3-two-ropes-f32",
    "starcoder2-window-bf16",
    "mixtral-window-bf16",
    "qwen3-moe-mixed-f32",
];

/// Beyond 256, where attention begins its second split; not a multiple of a block.
const TOKENS: usize = 301;

fn load(name: &str, threads: usize) -> Runner {
    Runner::load(&goldens().join(name), threads, Arc::new(Single))
}

/// Some token ids, the same on every run.
fn tokens(count: usize, seed: u32) -> Vec<u32> {
    let mut state = seed;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        state >> 24
    };
    (0..count).map(|_| next()).collect()
}

fn piece(sequence: usize, ids: &[u32], start: usize, end: usize) -> Piece<'_> {
    Piece { sequence, start, ids: &ids[start..end], logits: Wanted::All }
}

/// All logits of `ids`, computed in chunks of the given lengths, the last of which repeats.
fn chunked(runner: &mut Runner, sequence: usize, ids: &[u32], lengths: &[usize]) -> Vec<Vec<f32>> {
    let (mut rows, mut start) = (Vec::new(), 0);
    for length in lengths.iter().chain(std::iter::repeat(lengths.last().unwrap())) {
        if start == ids.len() {
            return rows;
        }
        let end = (start + length).min(ids.len());
        rows.extend(runner.step(&[piece(sequence, ids, start, end)]));
        start = end;
    }
    unreachable!("`repeat` does not end")
}

#[test]
fn whole_chunked_and_token_by_token() {
    for name in MODELS {
        let ids = tokens(TOKENS, 1);
        let whole = bits(&chunked(&mut load(name, 1), 0, &ids, &[TOKENS]));
        for lengths in [&[1_usize][..], &[16], &[7, 250, 3, 19], &[256]] {
            let other = bits(&chunked(&mut load(name, 1), 0, &ids, lengths));
            let differs = whole.iter().zip(&other).position(|(a, b)| a != b);
            assert!(whole == other, "{name}: chunks of {lengths:?} differ at position {differs:?}");
        }
    }
}

#[test]
fn alone_and_among_others() {
    for name in MODELS {
        let (ids, others) = (tokens(120, 2), [tokens(90, 3), tokens(33, 4), tokens(47, 5)]);
        let mut alone = load(name, 1);
        let expected = bits(&chunked(&mut alone, 0, &ids, &[100, 1]));

        // The same, while three sequences prefill and decode around it, in other rows of the same steps.
        let mut mixed = load(name, 1);
        let mut rows = Vec::new();
        mixed.step(&[piece(5, &others[0], 0, 40)]);
        let first = mixed.step(&[piece(5, &others[0], 40, 41), piece(2, &ids, 0, 100), piece(3, &others[1], 0, 33)]);
        rows.extend_from_slice(&first[1..101]);
        for at in 100..ids.len() {
            let before = piece(5, &others[0], at - 59, at - 58);
            let after = piece(4, &others[2], 2 * (at - 100), 2 * (at - 100) + 2);
            let step = mixed.step(&[before, piece(2, &ids, at, at + 1), after]);
            rows.push(step[1].clone());
        }
        assert!(bits(&rows) == expected, "{name}: batch mates change logits");
    }
}

#[test]
fn one_thread_and_several() {
    for name in MODELS {
        let ids = tokens(TOKENS, 6);
        let one = bits(&chunked(&mut load(name, 1), 0, &ids, &[200, 1]));
        for threads in [2, 3] {
            assert!(bits(&chunked(&mut load(name, threads), 0, &ids, &[200, 1])) == one, "{name}: {threads} threads");
        }
    }
}

/// RoPE's base must belong to a position, not to the call that computes it: transformers' does not.
#[test]
fn dynamic_rope_beyond_the_original_positions() {
    let model = ScratchModel::of("llama-dynamic-f32");
    let ids = tokens(96, 7);
    let run = |lengths: &[usize]| bits(&chunked(&mut Runner::load(&model.0, 1, Arc::new(Single)), 0, &ids, lengths));
    let whole = run(&[96]);
    assert!(whole == run(&[1]) && whole == run(&[50, 13]));
}
