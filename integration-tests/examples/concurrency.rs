//! What batching is worth: 64 concurrent streams of 128 tokens against one, on the demo model, in alternating rounds.
//!
//! `just bench-concurrency`. Goal: at least 8 times the throughput of one stream.
//!
//! Every stream is exactly as long as asked for: [`endless_demo_model`].

use std::time::Instant;

use futures::future::join_all;
use integration_tests::{Server, Setup, endless_demo_model};
use serde_json::json;

const STREAMS: usize = 64;
const TOKENS: usize = 128;
const ROUNDS: usize = 5;

#[tokio::main]
async fn main() {
    let model = endless_demo_model();
    let server = Setup::new().model(model.path()).start();
    throughput(&server, STREAMS).await; // Warms up.

    let (mut alone, mut together) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        alone.push(throughput(&server, 1).await);
        together.push(throughput(&server, STREAMS).await);
    }
    let (alone, together) = (median(&mut alone), median(&mut together));
    println!(
        "tokens per second, demo model, 1 shard, {TOKENS} tokens per stream, medians of {ROUNDS} alternating rounds"
    );
    println!("   1 stream   {alone:>8.0}");
    println!("  {STREAMS} streams  {together:>8.0}   = {:.1} x   (goal: at least 8 x)", together / alone);
}

/// Tokens per second of `streams` concurrent streams, from the first request sent to the last stream ended.
async fn throughput(server: &Server, streams: usize) -> f64 {
    let start = Instant::now();
    let tokens: usize = join_all((0..streams).map(|number| async move {
        let inputs = format!("<|user|>Tell me story number {number}.<|end|><|assistant|>");
        let body = json!({ "inputs": inputs, "parameters": { "max_new_tokens": TOKENS } });
        let stream = server.stream("/generate_stream", &body).await;
        assert_eq!(stream.status(), 200);
        // Counting events instead of parsing them leaves the machine to the server.
        stream.text().await.matches("data: {\"index\"").count()
    }))
    .await
    .into_iter()
    .sum();
    let seconds = start.elapsed().as_secs_f64();
    assert_eq!(tokens, streams * TOKENS, "every stream is complete");
    tokens as f64 / seconds
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
