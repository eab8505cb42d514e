//! Bad requests get a typed, helpful answer, and the server goes on.

use integration_tests::{Setup, TinyModel};
use reqwest::StatusCode;
use serde_json::{Value, json};

/// A request, the status it gets, and a text in the answer.
struct Case {
    path: &'static str,
    body: String,
    status: u16,
    text: &'static str,
}

fn case(path: &'static str, body: impl ToString, status: u16, text: &'static str) -> Case {
    Case { path, body: body.to_string(), status, text }
}

fn generate(parameters: Value) -> Value {
    json!({ "inputs": "hello", "parameters": parameters })
}

fn cases() -> Vec<Case> {
    let message = json!([{ "role": "user", "content": "hello" }]);
    vec![
        // Not JSON, or not of the right shape.
        case("/generate", "", 400, "JSON"),
        case("/generate", "{\"inputs\": ", 400, "JSON"),
        case("/generate", "[1, 2]", 422, "expected a string"),
        case("/generate", json!({}), 422, "inputs"),
        case("/generate", json!({ "inputs": 17 }), 422, "inputs"),
        case("/generate", generate(json!({ "max_new_tokens": "ten" })), 422, "max_new_tokens"),
        case("/generate", generate(json!({ "max_new_tokens": -1 })), 422, "max_new_tokens"),
        case("/v1/chat/completions", json!({ "messages": "hello" }), 422, "messages"),
        case("/v1/completions", json!({ "prompt": {} }), 422, "prompt"),
        // Values out of range.
        case("/generate", json!({ "inputs": "" }), 422, "`inputs` cannot be empty"),
        case("/generate", generate(json!({ "max_new_tokens": 0 })), 422, "`max_new_tokens` must be strictly positive"),
        case("/generate", generate(json!({ "temperature": 0.0 })), 422, "`temperature` must be strictly positive"),
        case("/generate", generate(json!({ "temperature": -1.0 })), 422, "`temperature` must be strictly positive"),
        case("/generate", generate(json!({ "top_p": 1.5 })), 422, "`top_p` must be > 0.0 and < 1.0"),
        case("/generate", generate(json!({ "typical_p": 0.0 })), 422, "`typical_p` must be > 0.0 and < 1.0"),
        case("/generate", generate(json!({ "top_k": 0 })), 422, "`top_k` must be strictly positive"),
        case("/generate", generate(json!({ "repetition_penalty": 0.0 })), 422, "`repetition_penalty` must be strictly"),
        case("/generate", generate(json!({ "frequency_penalty": 3.0 })), 422, "`frequency_penalty` must be >= -2.0"),
        case("/generate", generate(json!({ "best_of": 9, "do_sample": true })), 422, "`best_of` must be > 0 and <= 2"),
        case("/generate", generate(json!({ "best_of": 2 })), 422, "you must use sampling when `best_of` is > 1"),
        case("/generate", generate(json!({ "top_n_tokens": 6 })), 422, "`top_n_tokens` must be >= 0 and <= 5"),
        case("/generate", generate(json!({ "truncate": 0 })), 422, "`truncate` must be strictly positive"),
        case(
            "/generate",
            generate(json!({ "stop": ["a", "b", "c", "d", "e"] })),
            422,
            "up to 4 stop sequences. Given: 5",
        ),
        case("/generate", json!({ "inputs": "x".repeat(9000) }), 422, "tokens"),
        // Known elsewhere, not here: named, never ignored.
        case(
            "/generate",
            generate(json!({ "grammar": { "type": "regex", "value": "(" } })),
            422,
            "grammar is not valid",
        ),
        case("/generate", generate(json!({ "adapter_id": "x" })), 422, "adapter"),
        case("/v1/chat/completions", json!({ "messages": message, "tools": [{ "type": "function" }] }), 422, "tools"),
        case("/v1/chat/completions", json!({ "messages": message, "logit_bias": { "5": 101 } }), 422, "logit_bias"),
        case("/v1/chat/completions", json!({ "messages": message, "logit_bias": { "x": 1 } }), 422, "logit_bias"),
        case("/v1/chat/completions", json!({ "messages": message, "n": 0 }), 422, "`n`"),
        case("/v1/chat/completions", json!({ "messages": message, "store": true }), 422, "store"),
        case("/v1/messages", json!({ "messages": message }), 400, "max_tokens"),
        case("/v1/responses", json!({ "input": "hello", "previous_response_id": "x" }), 422, "previous_response_id"),
    ]
}

#[tokio::test]
async fn every_bad_request_is_answered_and_the_server_goes_on() {
    let model = TinyModel::default().write();
    // A template, so that chat requests come as far as their own mistakes.
    let config = json!({ "chat_template": "{{ messages[0].content }}", "eos_token": "<|end|>" });
    std::fs::write(model.path().join("tokenizer_config.json"), config.to_string()).unwrap();
    let server = Setup::new().model(model.path()).start();
    let good = generate(json!({ "max_new_tokens": 4 }));
    let expected = server.generate(&good).await;

    for case in cases() {
        let request = server.client().post(server.url(case.path)).header("content-type", "application/json");
        let response = request.body(case.body.clone()).send().await.expect("the server answers");
        let status = response.status();
        let content_type = response.headers()["content-type"].to_str().unwrap().to_owned();
        let answer = response.text().await.unwrap();
        let shown = &case.body[..case.body.len().min(100)];
        assert_eq!(status.as_u16(), case.status, "{} {shown}: {answer}", case.path);
        assert!(answer.contains(case.text), "{} {shown}: {answer}", case.path);
        assert!(content_type.starts_with("application/json"), "{} {shown}: {content_type}", case.path);
        let answer: Value = serde_json::from_str(&answer).expect("an error is JSON");
        assert!(!answer["error"].is_null(), "{answer}");
    }
    assert_eq!(server.generate(&good).await, expected, "the server goes on as before");
    assert_eq!(server.children().len(), 2, "and no process has died");
    assert_eq!(server.stop().code, Some(0));
}

#[tokio::test]
async fn a_body_over_the_limit_is_refused() {
    let server = Setup::new().args(&["--payload-limit", "1000"]).start();
    let (status, answer) = server.post("/generate", &json!({ "inputs": "x".repeat(2000) })).await;
    assert_eq!(status, StatusCode::PAYLOAD_TOO_LARGE);
    assert!(answer.to_string().contains("length limit exceeded"), "{answer}");
    server.generate(&json!({ "inputs": "x", "parameters": { "max_new_tokens": 1 } })).await;
}

#[tokio::test]
async fn unknown_routes_wrong_methods_and_wrong_types_of_content() {
    let server = Setup::new().start();
    let client = server.client();
    assert_eq!(client.post(server.url("/no/such/route")).send().await.unwrap().status(), StatusCode::NOT_FOUND);
    assert_eq!(client.get(server.url("/generate")).send().await.unwrap().status(), StatusCode::METHOD_NOT_ALLOWED);
    let plain = client.post(server.url("/generate")).body("{\"inputs\": \"x\"}").send().await.unwrap();
    assert_eq!(plain.status(), StatusCode::UNSUPPORTED_MEDIA_TYPE);
    assert_eq!(client.get(server.url("/health")).send().await.unwrap().status(), StatusCode::OK);
}

#[tokio::test]
async fn a_stream_with_bad_parameters_says_so_in_the_stream() {
    let server = Setup::new().start();
    let stream = server.stream("/generate_stream", &generate(json!({ "temperature": 0.0 }))).await;
    assert_eq!(stream.status(), StatusCode::OK, "TGI's native streams are 200 once the JSON parsed");
    let events = stream.collect().await;
    assert_eq!(events[0]["error_type"], "validation", "{events:?}");
}
