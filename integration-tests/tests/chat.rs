//! OpenAI's routes: `/v1/chat/completions`, `/v1/completions`, `/v1/models`.

use integration_tests::{Event, Setup};
use serde_json::{Value, json};

fn question() -> Value {
    json!({ "messages": [{ "role": "user", "content": "What is two plus three?" }], "max_tokens": 24, "temperature": 0 })
}

#[tokio::test]
async fn a_chat_streams_what_it_answers() {
    let server = Setup::new().start();
    let (status, whole) = server.post("/v1/chat/completions", &question()).await;
    assert_eq!(status, 200, "{whole}");
    let choice = &whole["choices"][0];
    let content = choice["message"]["content"].as_str().unwrap();
    assert!(!content.is_empty());
    assert_eq!(choice["message"]["role"], "assistant");
    assert_eq!(choice["finish_reason"], "stop", "the demo model ends its answers: {whole}");
    let usage = &whole["usage"];
    let count = |name: &str| usage[name].as_u64().unwrap();
    assert_eq!(count("total_tokens"), count("prompt_tokens") + count("completion_tokens"));
    assert!(!whole["id"].as_str().unwrap().is_empty());

    let mut body = question();
    body["stream"] = json!(true);
    body["stream_options"] = json!({ "include_usage": true });
    let mut stream = server.stream("/v1/chat/completions", &body).await;
    let (mut text, mut finish, mut streamed_usage, mut ended) = (String::new(), Value::Null, Value::Null, false);
    while let Some(event) = stream.next().await {
        assert!(!ended, "nothing follows [DONE]");
        match event {
            Event::Json(chunk) => {
                assert_eq!(chunk["object"], "chat.completion.chunk");
                if let Some(choice) = chunk["choices"].get(0) {
                    text += choice["delta"]["content"].as_str().unwrap_or_default();
                    if !choice["finish_reason"].is_null() {
                        finish = choice["finish_reason"].clone();
                    }
                }
                if !chunk["usage"].is_null() {
                    streamed_usage = chunk["usage"].clone();
                }
            }
            Event::Done => ended = true,
            Event::Comment => {}
        }
    }
    assert!(ended, "an OpenAI stream ends with [DONE]");
    assert_eq!((text.as_str(), &finish), (content, &choice["finish_reason"]));
    assert_eq!(&streamed_usage, usage);
}

#[tokio::test]
async fn quantised_models_answer() {
    for mode in ["eetq", "fp8", "bitsandbytes-nf4", "bitsandbytes"] {
        let server = Setup::new().args(&["--quantize", mode]).start();
        let (status, whole) = server.post("/v1/chat/completions", &question()).await;
        assert_eq!(status, 200, "{mode}: {whole}");
        let content = whole["choices"][0]["message"]["content"].as_str().unwrap();
        assert!(content.contains("five"), "{mode}: {content}");
    }
}

#[tokio::test]
async fn completions_take_one_prompt_or_several() {
    let server = Setup::new().start();
    let complete = |prompt: Value| json!({ "prompt": prompt, "max_tokens": 8, "temperature": 0 });
    let (status, one) = server.post("/v1/completions", &complete(json!("The colour of the sky is"))).await;
    assert_eq!(status, 200, "{one}");
    let prompts = json!(["The colour of the sky is", "A dog is"]);
    let (status, two) = server.post("/v1/completions", &complete(prompts)).await;
    assert_eq!(status, 200, "{two}");
    assert_eq!(two["choices"].as_array().unwrap().len(), 2);
    assert_eq!(two["choices"][0]["index"], 0);
    assert_eq!(two["choices"][0]["text"], one["choices"][0]["text"]);
}

#[tokio::test]
async fn the_model_has_the_name_it_was_started_with() {
    let server = Setup::new().start();
    let body = server.client().get(server.url("/v1/models")).send().await.unwrap().text().await.unwrap();
    let models: Value = serde_json::from_str(&body).unwrap();
    assert_eq!(models["data"][0]["id"], "demo");
    let body = server.client().get(server.url("/info")).send().await.unwrap().text().await.unwrap();
    let info: Value = serde_json::from_str(&body).unwrap();
    assert_eq!(info["model_id"], "demo");
    assert!(info["version"].as_str().unwrap().starts_with("4."), "llama-index refuses versions below 2.0.1: {info}");
}
