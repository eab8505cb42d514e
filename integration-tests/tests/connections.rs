//! TCP as clients feel it.

#![allow(clippy::unwrap_used, reason = "every function of a test file is part of a test")]

use std::time::{Duration, Instant};

use integration_tests::{Server, Setup};
use serde_json::json;

/// Milliseconds to the first token, the median of `count` requests.
async fn first_token(server: &Server, count: usize, client: impl Fn() -> reqwest::Client) -> f64 {
    let body = json!({ "inputs": "What is two plus three?", "parameters": { "max_new_tokens": 3 } });
    let mut times = Vec::new();
    for _ in 0..count {
        let client = client();
        let begun = Instant::now();
        let mut response = client.post(server.url("/generate_stream")).json(&body).send().await.unwrap();
        response.chunk().await.unwrap().expect("a first event");
        times.push(begun.elapsed());
        while response.chunk().await.unwrap().is_some() {}
    }
    times.sort();
    times[count / 2].as_secs_f64() * 1e3
}

/// Without TCP_NODELAY the first token on a connection that is used again waits for the client's delayed acknowledgement,
/// 40 ms on Linux; a new connection acknowledges at once and hides it.
#[tokio::test]
async fn the_first_token_is_not_delayed_on_a_kept_connection() {
    let server = Setup::new().start();
    let kept = server.client().clone();
    first_token(&server, 3, || kept.clone()).await;
    let again = first_token(&server, 30, || kept.clone()).await;
    let fresh = first_token(&server, 30, reqwest::Client::new).await;
    println!("first token: {again:.2} ms on a kept connection, {fresh:.2} ms on a new one");
    let delay = Duration::from_millis(40).as_secs_f64() * 1e3;
    assert!(again < fresh + delay / 2.0, "{again} ms against {fresh} ms");
}
