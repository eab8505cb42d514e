//! Every golden model of `goldens/` against what transformers computed from it, on one, two and four ranks.

#![allow(clippy::unwrap_used, reason = "these are tests, but Clippy only knows the functions marked so")]

mod runner;

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;

use runner::{Greedy, Runner, arg_max, goldens, unique_name, with_ranks};
use shard::comm::{Comm, Shm};

/// Largest |Δlogit| that float32 may have. Two independent code bases differ by about 2e-5 on models of this size (a sum of
/// K terms in another order differs by about √K · 2⁻²⁴ of its size, a few dozen such sums follow each other).
const F32_TOLERANCE: f32 = 2e-4;

/// Rounding keys and values to bfloat16 moves them by up to 2⁻⁹ of their size (0.2 %). Scores of size 8 then move by a
/// hundredth, the values' weighted mean by less than 2⁻⁹, and two or three such layers add up in logits of size 5.
const BF16_KV_TOLERANCE: f32 = 0.1;

#[derive(serde::Deserialize)]
struct Golden {
    dtype: String,
    /// How far transformers' logits are from those with float32 activations, at most.
    noise: f32,
    prompt_ids: Vec<u32>,
    prefill: Vec<Position>,
    greedy: GoldenSteps,
}

#[derive(serde::Deserialize)]
struct Position {
    position: usize,
    logits: Vec<f32>,
    /// With the same weights, and activations, keys and values in float32.
    exact_logits: Vec<f32>,
}

#[derive(serde::Deserialize)]
struct GoldenSteps {
    ids: Vec<u32>,
    logprobs: Vec<f32>,
    margins: Vec<f32>,
    last_logits: Vec<f32>,
}

#[track_caller]
fn check(name: &str) {
    let dir = goldens().join(name);
    let golden: Golden = serde_json::from_slice(&std::fs::read(dir.join("golden.json")).unwrap()).unwrap();
    let (tolerance, exact_tolerance) = match golden.dtype.as_str() {
        "float32" => (F32_TOLERANCE, F32_TOLERANCE),
        // transformers rounds every activation to bfloat16 and we keep float32: `noise` is that difference, measured.
        // From the logits with float32 activations we differ only by the rounding of keys and values (see above); and by the
        // rounding of what linears read, where the machine multiplies pairs of bfloat16: then we must still be nearer to them
        // than transformers.
        _ => {
            let reads = kernels::Device::cpu(1).linear_input_dtype(kernels::DType::Bf16);
            let exact =
                if reads == kernels::DType::Bf16 { golden.noise.max(BF16_KV_TOLERANCE) } else { BF16_KV_TOLERANCE };
            (golden.noise + BF16_KV_TOLERANCE, exact)
        }
    };
    for world_size in [1, 2, 4] {
        let ranks = with_ranks(world_size, |comm| {
            Runner::load(&dir, 1, comm).greedy(&golden.prompt_ids, golden.greedy.ids.len())
        });
        let (largest, exact) = (compare(&golden, &ranks[0]), compare_exact(&golden, &ranks[0]));
        println!(
            "{name}, {world_size} ranks: largest |Δlogit| {largest:.2e}, allowed {tolerance:.2e}; from float32 \
             activations {exact:.2e}, allowed {exact_tolerance:.2e}"
        );
        assert!(largest <= tolerance, "{name}, {world_size} ranks: |Δlogit| {largest:e}");
        assert!(exact <= exact_tolerance, "{name}, {world_size} ranks: |Δlogit| {exact:e} from float32 activations");
        assert!(ranks.iter().all(|rank| *rank == ranks[0]), "{name}: ranks disagree");
    }
}

/// Tokens must be equal; the largest difference of any recorded logit or logprob.
#[track_caller]
fn compare(golden: &Golden, ours: &Greedy) -> f32 {
    let steps = &golden.greedy;
    for (step, (expected, actual)) in steps.ids.iter().zip(&ours.ids).enumerate() {
        assert_eq!(actual, expected, "token {step}, where transformers' margin is {}", steps.margins[step]);
    }
    let prefill = golden.prefill.iter().map(|row| difference(&row.logits, &ours.prefill[row.position]));
    let logprobs: Vec<f32> = ours.steps.iter().zip(&ours.ids).map(|(row, id)| logprob(row, *id)).collect();
    prefill
        .chain([difference(&steps.last_logits, ours.steps.last().unwrap()), difference(&steps.logprobs, &logprobs)])
        .fold(0.0, f32::max)
}

/// The largest difference from the prefill logits that float32 activations give.
fn compare_exact(golden: &Golden, ours: &Greedy) -> f32 {
    let rows = golden.prefill.iter().map(|row| difference(&row.exact_logits, &ours.prefill[row.position]));
    rows.fold(0.0, f32::max)
}

fn difference(a: &[f32], b: &[f32]) -> f32 {
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

fn logprob(logits: &[f32], id: u32) -> f32 {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits.iter().map(|logit| f64::from(logit - max).exp()).sum();
    logits[id as usize] - max - sum.ln() as f32
}

macro_rules! golden_tests {
    ($($test:ident => $name:literal,)*) => {
        const GOLDENS: &[&str] = &[$($name),*];
        $(#[test] fn $test() { check($name); })*
    };
}

golden_tests! {
    llama_llama3_f32 => "llama-llama3-f32",
    llama_llama3_bf16 => "llama-llama3-bf16",
    llama_bias_linear_f32 => "llama-bias-linear-f32",
    llama_bias_linear_bf16 => "llama-bias-linear-bf16",
    llama_yarn_f32 => "llama-yarn-f32",
    llama_yarn_bf16 => "llama-yarn-bf16",
    llama_dynamic_f32 => "llama-dynamic-f32",
    llama_dynamic_bf16 => "llama-dynamic-bf16",
    mistral_window_f32 => "mistral-window-f32",
    mistral_window_bf16 => "mistral-window-bf16",
    qwen2_bias_f32 => "qwen2-bias-f32",
    qwen2_bias_bf16 => "qwen2-bias-bf16",
    qwen3_qk_norm_f32 => "qwen3-qk-norm-f32",
    qwen3_qk_norm_bf16 => "qwen3-qk-norm-bf16",
    gemma_tied_f32 => "gemma-tied-f32",
    gemma_tied_bf16 => "gemma-tied-bf16",
    gemma2_softcap_f32 => "gemma2-softcap-f32",
    gemma2_softcap_bf16 => "gemma2-softcap-bf16",
    gemma3_two_ropes_f32 => "gemma3-two-ropes-f32",
    gemma3_two_ropes_bf16 => "gemma3-two-ropes-bf16",
    starcoder2_window_f32 => "starcoder2-window-f32",
    starcoder2_window_bf16 => "starcoder2-window-bf16",
    mixtral_window_f32 => "mixtral-window-f32",
    mixtral_window_bf16 => "mixtral-window-bf16",
    qwen3_moe_mixed_f32 => "qwen3-moe-mixed-f32",
    qwen3_moe_mixed_bf16 => "qwen3-moe-mixed-bf16",
}

#[test]
fn every_golden_directory_is_tested() {
    let entries = std::fs::read_dir(goldens()).unwrap().flatten().filter(|entry| entry.path().is_dir());
    let mut found: Vec<String> = entries.map(|entry| entry.file_name().into_string().unwrap()).collect();
    found.retain(|name| !GOLDENS.contains(&name.as_str()));
    assert!(found.is_empty(), "not in golden_tests!: {found:?}");
}

// --- Ranks in processes of their own ---------------------------------------------------------------------------------

const RANK: &str = "SHARD_TEST_RANK";
const SEGMENT: &str = "SHARD_TEST_SEGMENT";

/// Not a test by itself: the body of the processes that the next test starts.
#[test]
fn rank_process() {
    let (Ok(rank), Ok(segment)) = (std::env::var(RANK), std::env::var(SEGMENT)) else { return };
    let comm: Arc<dyn Comm> = Arc::new(Shm::open(&segment, rank.parse().unwrap(), 2, 1 << 16).unwrap());
    let (dir, golden) = process_model();
    let ours = Runner::load(&dir, 1, comm).greedy(&golden.prompt_ids, golden.greedy.ids.len());
    println!("largest {:e}", compare(&golden, &ours));
    println!("done {:?}", ours.ids);
}

fn process_model() -> (PathBuf, Golden) {
    let dir = goldens().join("llama-llama3-f32");
    let golden = serde_json::from_slice(&std::fs::read(dir.join("golden.json")).unwrap()).unwrap();
    (dir, golden)
}

#[test]
fn two_processes_compute_what_transformers_does() {
    let segment = unique_name();
    let start = |rank: usize| {
        Command::new(std::env::current_exe().unwrap())
            .args(["rank_process", "--exact", "--nocapture"])
            .env(RANK, rank.to_string())
            .env(SEGMENT, &segment)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap()
    };
    let ranks = [start(0), start(1)];
    let expected = format!("done {:?}", process_model().1.greedy.ids);
    for rank in ranks {
        let output = rank.wait_with_output().unwrap();
        let stdout = String::from_utf8(output.stdout).unwrap();
        assert!(output.status.success() && stdout.contains(&expected), "{stdout}");
    }
    let left_behind = Path::new("/dev/shm").join(segment.trim_start_matches('/'));
    assert!(!left_behind.exists(), "{} is left behind", left_behind.display());
}

// --- Real models, where the checkout has them beside it ----------------------------------------------------------------

#[derive(serde::Deserialize)]
struct RealGolden {
    cases: Vec<RealCase>,
}

#[derive(serde::Deserialize)]
struct RealCase {
    prompt_ids: Vec<u32>,
    prefill: RealPrefill,
    greedy: RealGreedy,
}

#[derive(serde::Deserialize)]
struct RealPrefill {
    last_logits: Vec<f32>,
}

#[derive(serde::Deserialize)]
struct RealGreedy {
    ids: Vec<u32>,
    margin: Vec<f32>,
}

#[track_caller]
fn check_real(name: &str) {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/models").join(name);
    if !dir.exists() {
        println!("skipped: {} is not there", dir.display());
        return;
    }
    let golden: RealGolden = serde_json::from_slice(&std::fs::read(dir.join("golden.json")).unwrap()).unwrap();
    for world_size in [1, 2, 4] {
        let ranks = with_ranks(world_size, |comm| {
            let mut runner = Runner::load(&dir, 1, comm);
            let run = |case: &RealCase| runner.greedy(&case.prompt_ids, case.greedy.ids.len());
            golden.cases.iter().map(run).collect::<Vec<_>>()
        });
        for (case, ours) in golden.cases.iter().zip(&ranks[0]) {
            let equal = case.greedy.ids.iter().zip(&ours.ids).take_while(|(a, b)| a == b).count();
            // Past a margin that rounding can close, either token is right and the texts part.
            let decided = case.greedy.margin.iter().take_while(|margin| **margin > F32_TOLERANCE).count();
            assert!(equal >= decided.min(case.greedy.ids.len()), "{name}: token {equal} differs");
            let last = ours.prefill.last().unwrap();
            let largest = difference(&case.prefill.last_logits, last);
            println!("{name}, {world_size} ranks: largest |Δlogit| {largest:.2e}");
            assert!(largest <= F32_TOLERANCE, "{name}: |Δlogit| {largest:e}");
            assert_eq!(arg_max(last), ours.ids[0]);
        }
    }
}

/// A case of the demo model's golden.json: transformers in float32 over the model's bfloat16 weights.
#[derive(serde::Deserialize)]
struct DemoCase {
    text: String,
    input_ids: Vec<u32>,
    top_ids: Vec<usize>,
    top_logits: Vec<f32>,
    greedy_ids: Vec<u32>,
    greedy_margins: Vec<f32>,
}

#[test]
fn the_demo_model() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../launcher/demo-model");
    let cases: Vec<DemoCase> = serde_json::from_slice(&std::fs::read(dir.join("golden.json")).unwrap()).unwrap();
    for world_size in [1, 2, 4] {
        let ranks = with_ranks(world_size, |comm| {
            let mut runner = Runner::load(&dir, 1, comm);
            let run = |case: &DemoCase| runner.greedy(&case.input_ids, case.greedy_ids.len());
            cases.iter().map(run).collect::<Vec<_>>()
        });
        let mut decided_tokens = 0;
        for (case, ours) in cases.iter().zip(&ranks[0]) {
            // Past a margin that the rounding of keys and values can close, either token is right and the texts part.
            let decided = case.greedy_margins.iter().take_while(|margin| **margin > BF16_KV_TOLERANCE).count();
            assert_eq!(ours.ids[..decided], case.greedy_ids[..decided], "{world_size} ranks, {:?}", case.text);
            decided_tokens += decided;
            let last = ours.prefill.last().unwrap();
            let ours: Vec<f32> = case.top_ids.iter().map(|id| last[*id]).collect();
            let largest = difference(&case.top_logits, &ours);
            println!("demo model, {world_size} ranks: {decided} tokens equal, largest |Δlogit| {largest:.2e}");
            assert!(largest <= BF16_KV_TOLERANCE, "{:?}: |Δlogit| {largest:e}", case.text);
        }
        // The rule above must not let every case end at its first token.
        assert!(decided_tokens > 100, "only {decided_tokens} tokens were decided clearly enough to compare");
    }
}

#[test]
fn stories260k() {
    check_real("stories260K");
}

#[test]
fn babyllama105() {
    check_real("babyllama105");
}
