//! A client that goes away: its work stops and its KV blocks are free again, whenever it goes.

use integration_tests::{Metrics, Setup, TinyModel};
use serde_json::json;

fn blocks_used(metrics: &Metrics) -> f64 {
    metrics.get("tgi_kv_blocks_used").unwrap_or(0.0)
}

#[tokio::test]
async fn a_dropped_stream_frees_its_blocks() {
    let model = TinyModel::default().write();
    let server = Setup::new().model(model.path()).start();
    let body = json!({ "inputs": "x".repeat(500), "parameters": { "max_new_tokens": 7000 } });
    let mut stream = server.stream("/generate_stream", &body).await;
    for _ in 0..3 {
        stream.next_json().await.expect("the stream runs");
    }
    let running = server.metrics().await;
    // 500 prompt tokens are 32 blocks of 16.
    assert!(blocks_used(&running) >= 32.0, "{running:?}");
    drop(stream);
    server.metrics_until("the blocks to be freed", |metrics| blocks_used(metrics) == 0.0).await;
    let metrics = server.metrics().await;
    assert_eq!(metrics.get("tgi_batch_current_size"), Some(0.0));
}

#[tokio::test]
async fn a_client_that_gives_up_on_an_answer_frees_its_blocks() {
    let model = TinyModel::default().write();
    let server = Setup::new().model(model.path()).start();
    // Not streamed: the server learns of it from the connection alone.
    let body = json!({ "inputs": "x".repeat(500), "parameters": { "max_new_tokens": 7000 } });
    let request = server.client().post(server.url("/generate")).json(&body).send();
    let request = tokio::spawn(request);
    server.metrics_until("the request to run", |metrics| blocks_used(metrics) >= 32.0).await;
    request.abort();
    server.metrics_until("the blocks to be freed", |metrics| blocks_used(metrics) == 0.0).await;
}
