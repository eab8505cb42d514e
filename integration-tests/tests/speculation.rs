//! `--speculate` changes when tokens come, never which: every event of every stream is that of a server without it.

#![allow(clippy::unwrap_used, reason = "every function of a test file is part of a test")]

use futures::future::join_all;
use integration_tests::{Server, Setup, TinyModel, endless_demo_model, generated_ids};
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use tempfile::TempDir;

/// A prompt that the demo model continues by repeating it.
const LIST: &str =
    "<|user|>Say it again: one two three, one two three, one two three, one two three.<|end|><|assistant|>";

fn body(inputs: &str, parameters: Value) -> Value {
    let mut all = json!({ "max_new_tokens": 200, "details": true });
    all.as_object_mut().unwrap().extend(parameters.as_object().unwrap().clone());
    json!({ "inputs": inputs, "parameters": all })
}

/// Every way in which tokens are chosen, and in which replies end.
fn bodies() -> Vec<Value> {
    vec![
        body(LIST, json!({})),
        body("Once upon a time", json!({ "max_new_tokens": 300 })),
        body("Once upon a time", json!({ "do_sample": true, "temperature": 0.9, "top_p": 0.9, "seed": 11 })),
        body(LIST, json!({ "do_sample": true, "temperature": 0.2, "seed": 12, "top_n_tokens": 3 })),
        body(LIST, json!({ "repetition_penalty": 1.1, "top_n_tokens": 2, "frequency_penalty": 0.1 })),
        body("One, two. One, two.", json!({ "stop": ["two. One", "time"], "max_new_tokens": 60 })),
        body("Once upon a time", json!({ "watermark": true, "max_new_tokens": 61 })),
        body(LIST, json!({ "max_new_tokens": 1 })),
        body(LIST, json!({ "grammar": { "type": "regex", "value": "(one two three, ){4}" } })),
    ]
}

/// The streams of all bodies, run together. `disturb` is called once each that is long enough has sent five tokens.
async fn streams(server: &Server, disturb: impl FnOnce(&Server)) -> Vec<Vec<Value>> {
    let mut running = Vec::new();
    for body in bodies() {
        let mut stream = server.stream("/generate_stream", &body).await;
        let mut events = Vec::new();
        while let Some(event) = stream.next_json().await {
            events.push(event);
            if events.len() == 5 {
                break;
            }
        }
        running.push((stream, events));
    }
    disturb(server);
    join_all(running.into_iter().map(|(stream, mut events)| async move {
        events.extend(stream.collect().await);
        events
    }))
    .await
}

/// Runs the streams on servers with and without drafts, and holds every event against the other, logprobs included. At least
/// `least` draft tokens must be right, or nothing is shown: how many are tried depends on what steps take here and now. What
/// `disturb` does must cost `recoveries` at least.
async fn check(model: Option<&TempDir>, shards: &str, (least, recoveries): (f64, f64), disturb: impl FnOnce(&Server)) {
    let setup = || {
        let setup = Setup::new().args(&["--num-shard", shards]);
        model.map_or_else(|| setup.clone(), |model| setup.clone().model(model.path()))
    };
    let plain = setup().start();
    let expected = streams(&plain, |_| {}).await;
    assert_eq!(plain.metrics().await.get("tgi_speculation_draft_tokens"), Some(0.0));
    assert_eq!(plain.stop().code, Some(0));

    let server = setup().args(&["--speculate", "8"]).start();
    let actual = streams(&server, disturb).await;
    for (index, (expected, actual)) in expected.iter().zip(&actual).enumerate() {
        assert_eq!(generated_ids(actual), generated_ids(expected), "body {index}");
        assert_eq!(actual, expected, "body {index}");
    }
    // One at a time, as a step with one row is where drafts pay most.
    for (index, body) in bodies().iter().enumerate() {
        let actual = server.stream("/generate_stream", body).await.collect().await;
        assert_eq!(actual, expected[index], "body {index} alone");
    }
    let metrics = server.metrics().await;
    let count = |name: &str| metrics.get(name).unwrap_or(0.0);
    let (drafted, accepted) = (count("tgi_speculation_draft_tokens"), count("tgi_speculation_accepted_tokens"));
    println!("{drafted} draft tokens, {accepted} of them right");
    assert!(
        drafted > 0.0 && accepted >= least,
        "{accepted} of {drafted} draft tokens were right: the test shows nothing"
    );
    assert!(count("tgi_engine_recoveries") >= recoveries, "nothing was disturbed");
    assert!(count("tgi_request_skipped_tokens_sum") >= accepted, "tokens of ended replies are in the histogram only");
    assert_eq!(server.stop().code, Some(0));
}

#[tokio::test]
async fn drafts_change_no_event_of_the_demo_model() {
    check(None, "1", (0.0, 0.0), |_| {}).await;
    check(Some(&endless_demo_model()), "1", (5.0, 0.0), |_| {}).await;
}

#[tokio::test]
async fn nor_on_two_ranks() {
    check(Some(&TinyModel::default().write()), "2", (5.0, 0.0), |_| {}).await;
}

#[tokio::test]
async fn nor_if_a_shard_is_killed_in_mid_stream() {
    let kill = |server: &Server| server.shard(0).signal(Signal::SIGKILL);
    check(Some(&endless_demo_model()), "1", (5.0, 1.0), kill).await;
}
