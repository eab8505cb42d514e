//! The demo model with quantised weights: it answers, and the bits of its logits depend on nothing they should not.

#![allow(clippy::unwrap_used, reason = "these are tests, but Clippy only knows the functions marked so")]

mod runner;

use std::path::PathBuf;
use std::sync::Arc;

use runner::{Piece, Runner, Wanted, goldens, with_ranks};
use shard::comm::{Comm, Single};
use shard::models::{ModelOptions, Quantization};

fn demo() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../launcher/demo-model")
}

fn options(quantization: Option<Quantization>) -> ModelOptions {
    ModelOptions { quantization, ..ModelOptions::default() }
}

fn load(quantization: Option<Quantization>, threads: usize, comm: Arc<dyn Comm>) -> Runner {
    Runner::load_with(&demo(), threads, comm, &options(quantization))
}

#[derive(serde::Deserialize)]
struct Case {
    input_ids: Vec<u32>,
    greedy_ids: Vec<u32>,
}

fn cases() -> Vec<Case> {
    serde_json::from_slice(&std::fs::read(demo().join("golden.json")).unwrap()).unwrap()
}

fn bits(rows: &[Vec<f32>]) -> Vec<Vec<u32>> {
    rows.iter().map(|row| row.iter().map(|logit| logit.to_bits()).collect()).collect()
}

/// "The capital of France is Paris."
#[test]
fn every_mode_answers_as_the_model_does() {
    let case = &cases()[0];
    for mode in Quantization::ALL {
        let greedy = load(Some(mode), 2, Arc::new(Single)).greedy(&case.input_ids, 10);
        assert_eq!(greedy.ids, case.greedy_ids[..10], "{mode:?}");
    }
}

#[test]
fn weights_take_the_memory_that_the_mode_promises() {
    let bytes = |mode| load(mode, 1, Arc::new(Single)).model.weights_bytes() as f64;
    let bf16 = bytes(None);
    // The embedding matrix, a sixth of this model, stays bf16; without quantisation the head is the same memory.
    assert!(bytes(Some(Quantization::Int8)) < 0.75 * bf16);
    assert!(bytes(Some(Quantization::Fp8)) < 0.75 * bf16);
    assert!(bytes(Some(Quantization::Nf4)) < 0.55 * bf16);
}

#[test]
fn chunks_threads_and_decode_give_the_bits_of_one_prefill() {
    let case = &cases()[0];
    let ids: Vec<u32> = case.input_ids.iter().chain(&case.greedy_ids).copied().take(40).collect();
    for mode in Quantization::ALL {
        let piece = |start: usize, end: usize| Piece { sequence: 0, start, ids: &ids[start..end], logits: Wanted::All };
        let whole = bits(&load(Some(mode), 1, Arc::new(Single)).step(&[piece(0, 40)]));
        let mut runner = load(Some(mode), 3, Arc::new(Single));
        let mut parts = runner.step(&[piece(0, 23)]);
        parts.extend(runner.step(&[piece(23, 27)]));
        (27..40).for_each(|at| parts.extend(runner.step(&[piece(at, at + 1)])));
        assert!(whole == bits(&parts), "{mode:?}");
        // Beside another sequence.
        let other = Piece { sequence: 1, start: 0, ids: &ids[3..20], logits: Wanted::All };
        let beside = load(Some(mode), 2, Arc::new(Single)).step(&[other, piece(0, 40)]);
        assert!(whole == bits(&beside[17..]), "{mode:?}");
    }
}

#[test]
fn two_ranks_agree_and_answer() {
    let case = &cases()[0];
    for mode in Quantization::ALL {
        let ranks = with_ranks(2, |comm| load(Some(mode), 1, comm).greedy(&case.input_ids, 10));
        assert_eq!(ranks[0].ids, case.greedy_ids[..10], "{mode:?}");
        assert!(ranks[0] == ranks[1], "{mode:?}: ranks disagree");
    }
}

/// Experts are of no more than a panel or two, so that their ends are seen.
#[test]
fn experts_are_quantised_one_by_one() {
    let ids: Vec<u32> = (0..30).map(|at| at * 37 % 251 + 3).collect();
    let load = |mode| Runner::load_with(&goldens().join("qwen3-moe-mixed-f32"), 1, Arc::new(Single), &options(mode));
    let piece = |start: usize, end: usize| Piece { sequence: 0, start, ids: &ids[start..end], logits: Wanted::All };
    let floats = load(None);
    for mode in Quantization::ALL {
        let mut quantized = load(Some(mode));
        assert!(quantized.model.weights_bytes() < floats.model.weights_bytes(), "{mode:?}");
        let whole = quantized.step(&[piece(0, 30)]);
        assert!(whole.iter().flatten().all(|logit| logit.is_finite()), "{mode:?}");
        let mut other = load(Some(mode));
        let mut parts = other.step(&[piece(0, 17)]);
        (17..30).for_each(|at| parts.extend(other.step(&[piece(at, at + 1)])));
        assert!(bits(&whole) == bits(&parts), "{mode:?}");
    }
}
