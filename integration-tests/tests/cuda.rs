//! The server with `--device cuda`, on the simulated GPU: it answers, repeats itself, recovers; and what keeps it from starting is one
//! sentence.

#![cfg(target_arch = "x86_64")]
#![allow(clippy::unwrap_used, reason = "every function of a test file is part of a test")]

use integration_tests::{Setup, TinyModel};
use nix::sys::signal::Signal;
use serde_json::{Value, json};

const PROMPT: &str = "What is two plus three?";

/// A server on the simulated GPU. What it computes takes a processor a while, so steps are small.
fn on_gpu() -> Setup {
    on_gpu_with_steps_of("64")
}

/// The same with steps of at most so many rows.
fn on_gpu_with_steps_of(rows: &str) -> Setup {
    let environment = cusim::Simulation::build().environment();
    let setup = environment.into_iter().fold(Setup::new(), |setup, (name, value)| setup.env(name, value));
    setup.args(&["--device", "cuda", "--max-batch-prefill-tokens", rows, "--max-batch-size", "8"]).args(&[
        "--max-total-tokens",
        "128",
        "--max-batch-total-tokens",
        "2048",
    ])
}

fn chat(max_tokens: u32) -> Value {
    json!({ "messages": [{ "role": "user", "content": PROMPT }], "max_tokens": max_tokens, "temperature": 0 })
}

#[tokio::test]
async fn it_answers_like_a_model_and_repeats_itself_in_a_batch() {
    let server = on_gpu().start();
    assert!(server.log().contains(" on cuda ("), "{}", server.log());
    assert!(server.log().contains("decode steps of [1, 2, 4, 8] rows are graphs"), "{}", server.log());
    let (status, answer) = server.post("/v1/chat/completions", &chat(16)).await;
    assert_eq!(status, 200, "{answer}");
    let text = answer["choices"][0]["message"]["content"].as_str().unwrap().to_lowercase();
    assert!(text.contains("five"), "{text}");

    // Sampled on the device, and by the processor from the device's logits: alone and beside each other.
    let plain = json!({ "max_new_tokens": 6, "details": true });
    let drawn = json!({ "max_new_tokens": 6, "details": true, "do_sample": true, "seed": 7 });
    let warped = json!({ "max_new_tokens": 6, "details": true, "do_sample": true, "seed": 7, "temperature": 0.7,
        "top_k": 20, "top_p": 0.9, "repetition_penalty": 1.1 });
    let tops = json!({ "max_new_tokens": 6, "details": true, "top_n_tokens": 3 });
    let nucleus = json!({ "max_new_tokens": 6, "details": true, "do_sample": true, "seed": 3, "temperature": 1.3,
        "top_k": 40, "top_p": 0.95 });
    let mut nucleus_with_tops = nucleus.clone();
    nucleus_with_tops["top_n_tokens"] = 3.into();
    let bodies: Vec<Value> = [plain, drawn, warped, tops, nucleus, nucleus_with_tops]
        .map(|parameters| json!({ "inputs": PROMPT, "parameters": parameters }))
        .into();
    let mut alone = Vec::new();
    for body in &bodies {
        alone.push(server.generate(body).await);
    }
    let together = futures::future::join_all(bodies.iter().map(|body| server.generate(body))).await;
    assert_eq!(together, alone, "neighbours change nothing, not even a logprob");
    let ids = |answer: &Value| integration_tests::generated_ids(answer["details"]["tokens"].as_array().unwrap());
    // The processor, which finds the likeliest tokens, picks what the device picks.
    assert_eq!(ids(&alone[3]), ids(&alone[0]));
    assert_eq!(ids(&alone[5]), ids(&alone[4]));
    assert_eq!(server.stop().code, Some(0));
}

/// A dead shard does not end a stream: on a GPU too, the client sees the bytes of an undisturbed run.
#[tokio::test]
async fn a_killed_shard_comes_back_and_the_stream_goes_on() {
    let server = on_gpu().start();
    let parameters = json!({ "max_new_tokens": 24, "details": true, "do_sample": true, "seed": 11 });
    let body = json!({ "inputs": PROMPT, "parameters": parameters });
    let undisturbed = server.stream("/generate_stream", &body).await.collect().await;

    let mut stream = server.stream("/generate_stream", &body).await;
    let mut disturbed = Vec::new();
    for _ in 0..5 {
        disturbed.push(stream.next_json().await.expect("the stream runs"));
    }
    server.shard(0).signal(Signal::SIGKILL);
    disturbed.extend(stream.collect().await);
    assert_eq!(disturbed, undisturbed);
    assert_eq!(server.stop().code, Some(0));
}

/// Two ranks, each with a GPU: the same invariants, and when one of them dies both are started anew.
#[tokio::test]
async fn two_gpus_serve_as_one_and_outlive_a_dead_shard() {
    let simulation = cusim::Simulation::build();
    if !simulation.is_simulated() {
        return println!(
            "skipped: whether there are two GPUs is not known here; run it with CUDA_VISIBLE_DEVICES naming two"
        );
    }
    // A step of more rows than one shot normalises, whose sums take two.
    let on_two = || on_gpu_with_steps_of("96").args(&["--num-shard", "2"]);
    let long = json!({ "inputs": PROMPT.repeat(12), "parameters": { "max_new_tokens": 4, "details": true } });
    let server = on_two().env("CUSIM_PEER_ACCESS", "0").start();
    assert!(server.log().contains("sums go over NCCL"), "{}", server.log());
    let (status, by_nccl) = server.post("/v1/chat/completions", &chat(16)).await;
    assert_eq!(status, 200, "{by_nccl}");
    let long_by_nccl = server.generate(&long).await;
    let (_, tokens) = server.post("/tokenize", &long).await;
    assert!((65..=96).contains(&tokens.as_array().unwrap().len()), "{tokens}");
    assert_eq!(server.stop().code, Some(0));

    let server = on_two().start();
    assert!(server.log().contains("sums go over each other's memory"), "{}", server.log());
    let (status, answer) = server.post("/v1/chat/completions", &chat(16)).await;
    assert_eq!(status, 200, "{answer}");
    let content = |answer: &Value| answer["choices"][0]["message"]["content"].as_str().unwrap().to_owned();
    assert!(content(&answer).to_lowercase().contains("five"), "{answer}");
    assert_eq!(content(&answer), content(&by_nccl));
    assert_eq!(server.generate(&long).await, long_by_nccl, "the same bits, whichever way sums go");

    let parameters = json!({ "max_new_tokens": 24, "details": true, "do_sample": true, "seed": 11 });
    let body = json!({ "inputs": PROMPT, "parameters": parameters });
    let undisturbed = server.stream("/generate_stream", &body).await.collect().await;
    for rank in [1, 0] {
        let mut stream = server.stream("/generate_stream", &body).await;
        let mut disturbed = Vec::new();
        for _ in 0..5 {
            disturbed.push(stream.next_json().await.expect("the stream runs"));
        }
        server.shard(rank).signal(Signal::SIGKILL);
        disturbed.extend(stream.collect().await);
        assert_eq!(disturbed, undisturbed, "rank {rank} was killed");
    }
    assert_eq!(server.stop().code, Some(0));
}

#[track_caller]
fn fails(setup: Setup, sentence: &str) {
    let exit = setup.run();
    assert_eq!(exit.code, Some(1), "{}", exit.log);
    let error = exit.log.split("Error: ").last().unwrap_or_default();
    assert!(error.contains(sentence), "the closing error says {sentence:?}:\n{}", exit.log);
    assert!(exit.leftovers.is_empty(), "{:?}", exit.leftovers);
}

#[test]
fn what_is_missing_is_one_sentence() {
    if !cusim::Simulation::build().is_simulated() {
        return println!("skipped: a real driver does not lack what the simulated one can be told to");
    }
    fails(
        Setup::new().args(&["--device", "cuda"]).env("TGI_CUDA_DRIVER", "/nowhere/libcuda.so.1"),
        "/nowhere/libcuda.so.1",
    );
    fails(on_gpu().env("CUSIM_DEVICES", "0"), "the driver sees no GPU");
    fails(on_gpu().env("CUSIM_DRIVER_VERSION", "12040"), "knows CUDA 12.4; the kernels need 13.0");
    fails(on_gpu().env("CUSIM_COMPUTE_CAPABILITY", "7.5"), "compute capability 7.5");
    fails(on_gpu().env("CUSIM_DEVICE_MEMORY", "1000000"), "out of memory");
    let odd = TinyModel::default().write();
    fails(on_gpu().model(odd.path()), "on a GPU");
}

/// Simulated GPUs too small for a model: what is found out about one comes before.
#[test]
fn an_instruction_with_other_bits_is_not_used() {
    if !cusim::Simulation::build().is_simulated() {
        return println!("skipped: a real GPU has the bits that it has");
    }
    const SENTENCE: &str = "linear layers of many rows do not use wgmma";
    let log = |setup: Setup| {
        let exit = setup.env("CUSIM_DEVICE_MEMORY", "1000000").run();
        assert!(exit.log.contains("out of memory"), "{}", exit.log);
        exit.log
    };
    for without_a_word in [on_gpu(), on_gpu().env("CUSIM_COMPUTE_CAPABILITY", "8.0")] {
        let log = log(without_a_word);
        assert!(!log.contains(SENTENCE), "{log}");
    }
    for (name, value, reason) in [
        ("CUSIM_WGMMA_DESCENDING", "1", "on this GPU its products have other bits than those of mma"),
        ("TGI_CUDA_WGMMA", "off", "TGI_CUDA_WGMMA is off"),
    ] {
        let log = log(on_gpu().env(name, value));
        assert!(log.contains(&format!("{SENTENCE}: {reason}")), "{name}: {log}");
    }
}
