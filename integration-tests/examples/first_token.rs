//! Time to the first token of a stream, on a fresh connection and on a kept one.
//!
//! `just bench-first-token`. Without TCP_NODELAY the first event of a stream on a kept connection waits for the client's
//! delayed acknowledgement, about 40 ms on Linux. Goal: a kept connection is not slower than a fresh one by a millisecond.

use std::time::{Duration, Instant};

use integration_tests::{Server, Setup};
use reqwest::Client;
use serde_json::json;

const ROUNDS: usize = 200;

#[tokio::main]
async fn main() {
    let server = Setup::new().start();
    let kept = Client::new();
    first_token(&server, &kept, 0).await; // Opens the connection that is kept.

    let (mut on_fresh, mut on_kept) = (Vec::new(), Vec::new());
    for round in 1..=ROUNDS {
        on_fresh.push(first_token(&server, &Client::new(), round).await);
        on_kept.push(first_token(&server, &kept, round).await);
    }
    let ms = |duration: Duration| duration.as_secs_f64() * 1e3;
    println!("time to the first token, demo model, {ROUNDS} alternating requests, milliseconds");
    for (name, times) in [("fresh connection", &mut on_fresh), ("kept connection", &mut on_kept)] {
        times.sort();
        println!("  {name:<18} median {:>6.2}   p99 {:>6.2}", ms(times[ROUNDS / 2]), ms(times[ROUNDS * 99 / 100]));
    }
}

/// From the request's first byte to the stream's first event; the stream is then read to its end.
async fn first_token(server: &Server, client: &Client, round: usize) -> Duration {
    let body = json!({ "inputs": format!("round {round}"), "parameters": { "max_new_tokens": 4 } });
    let start = Instant::now();
    let mut response =
        client.post(server.url("/generate_stream")).json(&body).send().await.expect("the server answers");
    assert_eq!(response.status(), 200);
    let first = response.chunk().await.expect("the stream is not cut").expect("there is a first event");
    let elapsed = start.elapsed();
    assert!(first.starts_with(b"data: "), "{first:?}");
    // Read to its end, the connection can be used again.
    while response.chunk().await.expect("the stream is not cut").is_some() {}
    elapsed
}
