//! The routes that generate nothing.

use super::*;

#[tokio::test]
async fn tokenize_covers_bytes() {
    let fixture = Fixture::new("a").await;
    let tokens = fixture.post("/tokenize", &json!({"inputs": "aé"})).await.json();
    assert_eq!(tokens[0], json!({"id": 256, "text": "", "start": 0, "stop": 0}));
    assert_eq!((&tokens[1]["text"], &tokens[1]["stop"]), (&json!("a"), &json!(1)));
    let messages = json!([{"role": "user", "content": "x"}]);
    let chat = fixture.post("/chat_tokenize", &json!({"messages": messages})).await.json();
    assert_eq!(chat["templated_text"], "[user]x>");
    assert_eq!(chat["tokenize_response"].as_array().unwrap().len(), 8);
}

#[tokio::test]
async fn plain_routes_have_tgis_answers() {
    let fixture = Fixture::new("a").await;
    for path in ["/health", "/ping", "/"] {
        let answer = fixture.get(path).await;
        assert_eq!((answer.status.as_u16(), answer.body.as_str()), (200, ""), "{path}");
    }
    assert_eq!(fixture.get("/metrics").await.header("content-type"), "text/plain; charset=utf-8");
    let version = env!("CARGO_PKG_VERSION");
    assert_eq!(
        fixture.get("/info").await.body,
        format!(
            r#"{{"model_id":"demo","model_sha":null,"model_pipeline_tag":null,"max_concurrent_requests":128,"max_best_of":2,"max_stop_sequences":4,"max_input_tokens":63,"max_total_tokens":64,"validation_workers":2,"max_client_batch_size":4,"router":"text-generation-router","version":"{version}","sha":null,"docker_label":null}}"#
        )
    );
}

#[tokio::test]
async fn browsers_may_call() {
    let fixture = Fixture::new("a").await;
    let preflight = Request::options("/generate")
        .header("origin", "https://example.com")
        .header("access-control-request-method", "POST")
        .header("access-control-request-headers", "authorization,content-type");
    let answer = Answer::of(fixture.request(preflight.body(Body::empty()).unwrap()).await).await;
    assert_eq!(answer.status, 200);
    assert_eq!(answer.header("access-control-allow-origin"), "*");
    assert_eq!(answer.header("access-control-allow-headers"), "authorization,content-type");
    assert_eq!(answer.header("access-control-allow-methods"), "GET,POST,OPTIONS");
}
