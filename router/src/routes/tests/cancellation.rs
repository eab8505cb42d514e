//! Clients that go away.

use super::*;

#[tokio::test]
async fn a_dropped_body_frees_the_slot() {
    let fixture = Fixture::new(&"a".repeat(50)).await;
    fixture.model.script.steps.forget_permits(usize::MAX >> 3);
    let request = Request::post("/v1/completions").header("content-type", "application/json");
    let body = json!({"prompt": "a", "stream": true});
    let response = fixture.request(request.body(Body::from(body.to_string())).unwrap()).await;
    let mut stream = response.into_body().into_data_stream();
    fixture.model.script.steps.add_permits(3);
    let first = stream.next().await.unwrap().unwrap();
    assert!(first.starts_with(b"data: {"));
    drop(stream);
    fixture.assert_freed(1).await;
}

#[tokio::test]
async fn a_dropped_call_is_cancelled_before_its_first_token() {
    let fixture = Fixture::new(&"a".repeat(50)).await;
    fixture.model.script.steps.forget_permits(usize::MAX >> 3);
    let request = Request::post("/generate").header("content-type", "application/json");
    let call = fixture.request(request.body(Body::from(json!({"inputs": "a"}).to_string())).unwrap());
    let mut call = Box::pin(call);
    fixture.model.script.steps.add_permits(1);
    while fixture.model.script.heard.lock().unwrap().is_empty() {
        assert!(futures::poll!(&mut call).is_pending());
        tokio::task::yield_now().await;
    }
    drop(call);
    fixture.assert_freed(1).await;
}
