//! A dead shard does not end a stream: the group restarts, and the client sees the bytes of an undisturbed run.

#![allow(clippy::unwrap_used, reason = "every function of a test file is part of a test")]

use integration_tests::{Server, Setup, TinyModel, generated_ids};
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use tempfile::TempDir;

const TOKENS: u64 = 400;

/// Requests with and without sampling, penalties and details.
fn bodies() -> Vec<Value> {
    let body = |extra: Value| {
        let mut parameters = json!({ "max_new_tokens": TOKENS, "details": true });
        parameters.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        json!({ "inputs": "Once upon a time", "parameters": parameters })
    };
    vec![
        body(json!({})),
        body(json!({ "do_sample": true, "temperature": 0.9, "top_p": 0.9, "seed": 11 })),
        body(json!({ "do_sample": true, "seed": 12, "repetition_penalty": 1.2, "top_n_tokens": 3 })),
    ]
}

fn model() -> TempDir {
    TinyModel::default().write()
}

fn start(model: &TempDir, shards: &str) -> Server {
    Setup::new().model(model.path()).args(&["--num-shard", shards]).start()
}

/// The streams of all bodies, run together. `disturb` is called once each of them has sent five tokens.
async fn streams(server: &Server, disturb: impl FnOnce(&Server)) -> Vec<Vec<Value>> {
    let mut running = Vec::new();
    for body in bodies() {
        let mut stream = server.stream("/generate_stream", &body).await;
        let mut events = Vec::new();
        for _ in 0..5 {
            events.push(stream.next_json().await.expect("the stream runs"));
        }
        running.push((stream, events));
    }
    disturb(server);
    let mut finished = Vec::new();
    for (stream, mut events) in running {
        events.extend(stream.collect().await);
        finished.push(events);
    }
    finished
}

/// Runs the streams undisturbed and disturbed; every event must be the same, with its logprobs.
async fn survives(shards: &str, disturb: impl FnOnce(&Server)) {
    let model = model();
    let server = start(&model, shards);
    let undisturbed = streams(&server, |_| {}).await;
    let disturbed = streams(&server, disturb).await;
    for (expected, actual) in undisturbed.iter().zip(&disturbed) {
        assert_eq!(generated_ids(actual), generated_ids(expected));
        assert_eq!(actual, expected);
    }
    assert!(server.log().contains("The shards are back"), "the disturbance was real: {}", server.log());
    let recoveries = server.metrics().await.get("tgi_engine_recoveries");
    assert!(recoveries >= Some(1.0), "the router counted it: {recoveries:?}");
    assert_eq!(server.stop().code, Some(0));
}

#[tokio::test]
async fn a_single_shard_killed_in_mid_stream() {
    survives("1", |server| server.shard(0).signal(Signal::SIGKILL)).await;
}

#[tokio::test]
async fn rank_0_of_two_killed_in_mid_stream() {
    survives("2", |server| server.shard(0).signal(Signal::SIGKILL)).await;
}

#[tokio::test]
async fn rank_1_of_two_killed_in_mid_stream() {
    survives("2", |server| server.shard(1).signal(Signal::SIGKILL)).await;
}

#[tokio::test]
async fn a_rank_that_hangs_is_replaced() {
    // It neither dies nor answers; found by the launcher's probe of every shard.
    survives("2", |server| server.shard(1).signal(Signal::SIGSTOP)).await;
}

#[tokio::test]
async fn a_shard_that_cannot_be_restarted_ends_the_launcher() {
    let model = model();
    let server = start(&model, "1");
    // What was mapped at start goes on to work; what a restart needs is gone.
    std::fs::remove_file(model.path().join("model.safetensors")).unwrap();
    server.shard(0).signal(Signal::SIGKILL);
    let exit = server.wait();
    assert_eq!(exit.code, Some(1), "{}", exit.log);
    assert!(exit.log.contains("the shards failed 5 times within 300 s"), "{}", exit.log);
    assert!(exit.leftovers.is_empty(), "{:?}", exit.leftovers);
}
