//! `--request-timeout`: a call that takes too long, a stream that does.

use super::*;

/// A server that allows a second, and a model that stops after `steps` steps.
async fn stalled(steps: usize) -> Fixture {
    let fixture = Fixture::with_flags(&"a".repeat(50), &["--request-timeout", "1"]).await;
    fixture.model.script.steps.forget_permits(usize::MAX >> 3);
    fixture.model.script.steps.add_permits(steps);
    fixture
}

#[tokio::test]
async fn a_call_that_takes_too_long_is_a_504_in_the_routes_dialect() {
    let fixture = stalled(3).await;
    let text = "the request was not finished within 1 s";
    let (native, openai) = (json!({"inputs": "a"}), json!({"prompt": "a"}));
    let (native, openai) = tokio::join!(fixture.post("/generate", &native), fixture.post("/v1/completions", &openai));
    assert_eq!((native.status.as_u16(), native.json()), (504, json!({"error": text, "error_type": "timeout"})));
    assert_eq!((openai.status.as_u16(), &openai.json()["error"]["message"]), (504, &json!(text)));
    fixture.assert_freed(2).await;
}

#[tokio::test]
async fn a_stream_that_takes_too_long_ends_with_an_error_event() {
    let fixture = stalled(3).await;
    let events = fixture.post("/v1/completions", &json!({"prompt": "a", "stream": true})).await.events();
    assert_eq!(events[0]["choices"][0]["text"], "a");
    let [.., error, done] = &events[..] else { panic!("{events:?}") };
    assert_eq!((&error["error"]["code"], done), (&json!("timeout"), &json!("[DONE]")));
    fixture.assert_freed(1).await;
}

#[tokio::test]
async fn a_call_in_time_is_as_ever() {
    let fixture = Fixture::with_flags("ab", &["--request-timeout", "60"]).await;
    let events = fixture.post("/generate_stream", &json!({"inputs": "Hi"})).await.events();
    assert_eq!(events.last().unwrap()["generated_text"], "ab");
}
