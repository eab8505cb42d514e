//! Log-probabilities of prompt tokens against those that transformers computed (`goldens/`), in chunks of every kind.

#![allow(clippy::unwrap_used, reason = "the exemption for tests does not reach helpers of integration tests")]

mod support;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use clap::Parser;
use proto::v1::{Chunk, NewSlot, Plan, SamplingParams};
use proto::{pack_u32, unpack_f32, unpack_u32};
use shard::Args;
use shard::comm::Single;
use shard::executor::Executor;
use shard::masks::NoMasks;
use support::{NAN_TOKEN, TinyModel};

/// As for logits (`golden_models.rs`): two code bases that add in different orders.
const TOLERANCE: f32 = 2e-4;

#[derive(serde::Deserialize)]
struct Golden {
    prompt_ids: Vec<u32>,
    prefill: Vec<Position>,
    greedy: Greedy,
}

#[derive(serde::Deserialize)]
struct Position {
    position: usize,
    logits: Vec<f32>,
}

#[derive(serde::Deserialize)]
struct Greedy {
    ids: Vec<u32>,
    logprobs: Vec<f32>,
}

#[track_caller]
fn check(name: &str) {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/goldens").join(name);
    let golden: Golden = serde_json::from_slice(&std::fs::read(dir.join("golden.json")).unwrap()).unwrap();
    let args = ["shard", "--model-dir", dir.to_str().unwrap(), "--max-batch-size", "2", "--max-step-tokens", "40"];
    let args = Args::parse_from(args.iter().chain(&["--max-batch-total-tokens", "1024", "--threads", "1"]));
    let mut executor = shard::start::start_with(&args, Arc::new(Single)).unwrap().executor;

    // The reply becomes part of the prompt: its log-probabilities are known as well.
    let ids = [&golden.prompt_ids[..], &golden.greedy.ids].concat();
    let first_reply = golden.prompt_ids.len();
    let mut expected: Vec<(usize, f32)> = (first_reply..).zip(golden.greedy.logprobs).collect();
    // The row at a position predicts the token behind it. The last one of the prompt predicts the reply.
    let prefill = golden.prefill.iter().filter(|row| row.position + 1 < first_reply);
    expected.extend(prefill.map(|row| (row.position + 1, logprob(&row.logits, ids[row.position + 1]))));

    for chunk_tokens in [1, 7, 16, 40] {
        let logprobs = score(&mut executor, &ids, chunk_tokens);
        let difference = |&(position, expected): &(usize, f32)| (logprobs[position - 1] - expected).abs();
        let largest = expected.iter().map(difference).fold(0.0, f32::max);
        println!("{name}, chunks of {chunk_tokens}: largest |Δlogprob| {largest:.2e} of {}", expected.len());
        assert!(largest <= TOLERANCE, "{name}, chunks of {chunk_tokens}: |Δlogprob| {largest:e}");
    }
}

/// The log-probabilities of `ids[1..]`.
fn score(executor: &mut Executor, ids: &[u32], chunk_tokens: usize) -> Vec<f32> {
    executor.clear();
    let params = SamplingParams {
        prompt_logprobs: true,
        top_n_tokens: Some(1),
        // What changes the reply leaves the prompt's log-probabilities alone.
        repetition_penalty: Some(3.0),
        temperature: Some(0.1),
        ..SamplingParams::default()
    };
    let blocks = ids.len().div_ceil(16) as u32;
    let mut new_slots = vec![NewSlot {
        params: Some(params),
        prompt_tokens: ids.len() as u32,
        block_table: pack_u32(0..blocks),
        ..NewSlot::default()
    }];
    let (mut logprobs, mut start) = (vec![], 0);
    for (chunk, seq) in ids.chunks(chunk_tokens).zip(1..) {
        let sample = start + chunk.len() == ids.len();
        let chunks =
            vec![Chunk { slot: 0, start_position: start as u32, ids: pack_u32(chunk.iter().copied()), sample }];
        let plan = Plan { seq, chunks, new_slots: std::mem::take(&mut new_slots), ..Plan::default() };
        let result = executor.step(1, &plan, Duration::ZERO, &mut NoMasks).unwrap();
        assert!(result.row_errors.is_empty(), "{:?}", result.row_errors);
        assert_eq!(result.samples.is_empty(), !sample);
        for scored in result.prompt_logprobs {
            assert_eq!(scored.first_token_position as usize, logprobs.len() + 1, "without gap or overlap");
            let own: Vec<f32> = unpack_f32(&scored.logprobs).unwrap().collect();
            for (top, own) in scored.top_tokens.iter().zip(&own) {
                let best = unpack_f32(&top.logprobs).unwrap().next().unwrap();
                assert!(*own <= best && unpack_u32(&top.ids).unwrap().len() >= 1);
            }
            assert_eq!(scored.top_tokens.len(), own.len());
            logprobs.extend(own);
        }
        start += chunk.len();
    }
    assert_eq!(logprobs.len() + 1, ids.len());
    logprobs
}

fn logprob(logits: &[f32], id: u32) -> f32 {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits.iter().map(|logit| f64::from(logit - max).exp()).sum();
    logits[id as usize] - max - sum.ln() as f32
}

#[test]
fn a_prompt_that_cannot_be_scored_fails_where_it_is_sampled() {
    let model = TinyModel::with_nan();
    let mut executor = shard::start::start_with(&model.args(&["--threads", "2"]), Arc::new(Single)).unwrap().executor;
    let params = SamplingParams { prompt_logprobs: true, ..SamplingParams::default() };
    // Slot 1 has the same prompt without the token that breaks it.
    let new_slots = [0, 1].map(|slot| NewSlot {
        slot,
        params: Some(params.clone()),
        prompt_tokens: 6,
        block_table: pack_u32([slot]),
        ..NewSlot::default()
    });
    let mut step = |seq: u64, new_slots: Vec<NewSlot>, ids: [[u32; 2]; 2]| {
        let start_position = 2 * (seq as u32 - 1);
        let chunk = |(slot, ids)| Chunk { slot, start_position, ids: pack_u32(ids), sample: seq == 3 };
        let plan = Plan { seq, new_slots, chunks: (0..).zip(ids).map(chunk).collect(), ..Plan::default() };
        let result = executor.step(1, &plan, Duration::ZERO, &mut NoMasks).unwrap();
        let scored = result
            .prompt_logprobs
            .iter()
            .map(|scored| (scored.slot, scored.first_token_position, unpack_f32(&scored.logprobs).unwrap().len()));
        (scored.collect::<Vec<_>>(), result.row_errors, result.samples)
    };
    let (scored, errors, _) = step(1, new_slots.into(), [[1, 2], [1, 2]]);
    assert_eq!((scored, errors), (vec![(0, 1, 1), (1, 1, 1)], vec![]));
    let (scored, errors, _) = step(2, vec![], [[NAN_TOKEN, 3], [4, 3]]);
    assert_eq!((scored, errors), (vec![(1, 2, 2)], vec![]));
    let (scored, errors, samples) = step(3, vec![], [[5, 6], [5, 6]]);
    assert_eq!(scored, [(1, 4, 2)]);
    let [error] = &errors[..] else { panic!("{errors:?}") };
    assert_eq!((error.slot, error.reason.as_str()), (0, "the logit of token 0 at position 3 is NaN"));
    let slots: Vec<u32> = proto::Sample::unpack(&samples).unwrap().map(|sample| sample.slot).collect();
    assert_eq!(slots, [1]);
}

#[test]
fn equal_those_of_transformers() {
    for name in ["llama-llama3-f32", "llama-yarn-f32", "mistral-window-f32", "qwen2-bias-f32", "qwen3-qk-norm-f32"] {
        check(name);
    }
}
