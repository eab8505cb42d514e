//! More requests than allowed: 429 with the time to come back, and the server goes on.

use integration_tests::{Setup, TinyModel};
use serde_json::json;

#[tokio::test]
async fn beyond_max_concurrent_requests_is_429_with_retry_after() {
    let model = TinyModel::default().write();
    let server = Setup::new().model(model.path()).args(&["--max-concurrent-requests", "2"]).start();
    let long = json!({ "inputs": "a", "parameters": { "max_new_tokens": 7000 } });
    let mut running = Vec::new();
    for _ in 0..2 {
        let mut stream = server.stream("/generate_stream", &long).await;
        stream.next_json().await.expect("the stream runs");
        running.push(stream);
    }

    let short = json!({ "inputs": "a", "parameters": { "max_new_tokens": 1 } });
    let response = server.client().post(server.url("/generate")).json(&short).send().await.unwrap();
    assert_eq!(response.status(), 429);
    let seconds: u64 = response.headers()["retry-after"].to_str().unwrap().parse().unwrap();
    assert!(seconds >= 1, "a time to come back: {seconds}");
    let body = response.text().await.unwrap();
    assert!(body.contains("Model is overloaded") && body.contains("overloaded"), "{body}");
    let events = server.stream("/generate_stream", &short).await.collect().await;
    assert_eq!(events[0]["error_type"], "overloaded", "a native stream says so within the stream: {events:?}");

    drop(running);
    server
        .metrics_until("the running requests to end", |metrics| metrics.get("tgi_batch_current_size") == Some(0.0))
        .await;
    server.generate(&short).await;
}
