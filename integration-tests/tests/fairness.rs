//! A long prompt does not stand in the way of others: running streams go on while it is computed, and short prompts
//! that come later are answered. Asserted by order, not by time; `examples/long_prompt.rs` measures the gaps.

use integration_tests::{Setup, TinyModel};
use serde_json::{Value, json};

fn body(inputs: &str, tokens: u32) -> Value {
    json!({ "inputs": inputs, "parameters": { "max_new_tokens": tokens, "details": true } })
}

#[tokio::test]
async fn a_running_stream_goes_on_while_a_long_prompt_is_computed() {
    let model = TinyModel::default().write();
    // 4,000 tokens at 64 a step are 63 steps; each of them also computes a token of the running stream.
    let server = Setup::new().model(model.path()).args(&["--max-batch-prefill-tokens", "64"]).start();
    let mut running = server.stream("/generate_stream", &body("short", 8000)).await;
    running.next_json().await.expect("the stream runs");

    let long = server.stream("/generate_stream", &body(&"long prompt ".repeat(334), 1)).await;
    let first_token = tokio::spawn(long.collect());
    // The first counts tokens of before the long prompt, too; what remains is far below 63 if a prompt blocks the others.
    let mut meanwhile = 0;
    while !first_token.is_finished() {
        running.next_json().await.expect("the stream runs");
        meanwhile += 1;
    }
    let long = first_token.await.unwrap();
    assert_eq!(long.last().unwrap()["details"]["input_length"], 4008);
    assert!(meanwhile >= 60, "the running stream got {meanwhile} tokens in the time of a prompt of 63 steps");
}

#[tokio::test]
async fn prompts_are_answered_in_full_whatever_the_step_size() {
    let model = TinyModel::default().write();
    let prompt = "a prompt that is longer than a step ".repeat(20);
    let mut answers = Vec::new();
    for step in ["16", "100", "4096"] {
        let server = Setup::new().model(model.path()).args(&["--max-batch-prefill-tokens", step]).start();
        answers.push(server.generate(&body(&prompt, 20)).await);
    }
    assert_eq!(answers[0], answers[1], "chunking changes no token and no logprob");
    assert_eq!(answers[0], answers[2]);
}
