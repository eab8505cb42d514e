//! What clients are told when something is wrong.

use super::*;

#[tokio::test]
async fn every_bad_input_has_its_status_and_text() {
    let fixture = Fixture::with_flags("a", &["--payload-limit", "2000"]).await;
    for (path, body, text) in [
        ("/generate", "{}", "missing field `inputs` at line 1 column 2"),
        ("/generate", r#"{"inputs":1}"#, "inputs: invalid type: integer `1`, expected a string at line 1 column 11"),
        (
            "/generate",
            r#"{"inputs":"a","parameters":null}"#,
            "parameters: invalid type: null, expected struct GenerateParameters at line 1 column 31",
        ),
        ("/generate", r#"{"inputs":"a","inputs":"b"}"#, "duplicate field `inputs` at line 1 column 22"),
        (
            "/generate",
            r#"{"inputs":"a","parameters":{"grammar":{"type":"regex"}}}"#,
            "parameters.grammar: missing field `value` at line 1 column 54",
        ),
        (
            "/v1/completions",
            r#"{"prompt":[]}"#,
            "prompt: Empty array detected. Do not use an empty array for the prompt.",
        ),
    ] {
        let text = format!("Failed to deserialize the JSON body into the target type: {text}");
        fixture.refuses(path, body, 422, &text).await;
    }
    let generate = |parameters: Value| ("/generate", json!({"inputs": "a", "parameters": parameters}));
    let chat = |content: Value| ("/v1/chat/completions", json!({"messages": [{"role": "user", "content": content}]}));
    let chat_with = |field: &str, value: Value| {
        let (path, mut body) = chat(json!("x"));
        body[field] = value;
        (path, body)
    };
    let long = json!({"inputs": "x".repeat(CONTEXT as usize), "parameters": {"max_new_tokens": 1}});
    for ((path, body), text) in [
        (("/generate", json!({"inputs": ""})), "`inputs` cannot be empty"),
        (generate(json!({"top_p": 1.0})), "`top_p` must be > 0.0 and < 1.0"),
        (generate(json!({"best_of": 3, "do_sample": true})), "`best_of` must be > 0 and <= 2. Given: 3"),
        (generate(json!({"grammar": {"type": "json", "value": 7}})), "grammar is not supported"),
        (
            generate(json!({"grammar": {"type": "json", "value": "{"}})),
            "grammar is not valid: EOF while parsing an object at line 1 column 1",
        ),
        (generate(json!({"adapter_id": "mine"})), "adapter `mine` is not loaded; this server has no adapters"),
        (
            ("/generate", long),
            "`inputs` tokens + `max_new_tokens` must be <= 64. Given: 65 `inputs` tokens and 1 `max_new_tokens`",
        ),
        (("/", json!({"inputs": "a", "parameters": {"temperature": 0.0}})), "`temperature` must be strictly positive"),
        (
            ("/v1/chat/completions", json!({"messages": [{"role": "user"}]})),
            "`messages[0].content` must be a string or a list of text parts",
        ),
        (
            chat(json!([{"type": "image_url", "image_url": {"url": "x"}}])),
            "`messages[0].content` of type `image_url` is not supported by this version",
        ),
        (chat_with("top_logprobs", json!(21)), "`top_logprobs` must be >= 0 and <= 20. Given: 21"),
        (chat_with("model", json!("m".repeat(300))), "`model` must have at most 256 bytes. Given: 300"),
    ] {
        fixture.refuses(path, &body.to_string(), 422, &format!("Input validation error: {text}")).await;
    }
    let too_many = json!({"prompt": vec!["a"; 5]}).to_string();
    let too_large = json!({"inputs": "x".repeat(3000)}).to_string();
    for (path, body, status, text) in [
        (
            "/generate",
            "{",
            400,
            "Failed to parse the request body as JSON: EOF while parsing an object at line 1 column 1",
        ),
        (
            "/generate",
            "",
            400,
            "Failed to parse the request body as JSON: EOF while parsing a value at line 1 column 0",
        ),
        ("/generate", &too_large, 413, "Failed to buffer the request body: length limit exceeded"),
        ("/v1/completions", &too_many, 422, "Number of prompts exceeds the maximum allowed batch size of 4"),
        (
            "/v1/completions",
            r#"{"prompt": "a", "suffix": ""}"#,
            422,
            "Suffix is not supported and can be achieved by preprocessing the prompt.",
        ),
        (
            "/v1/chat/completions",
            r#"{"messages": [{"role": "bad", "content": "x"}]}"#,
            422,
            "Template error: syntax error: no such role (in <string>:1)",
        ),
        ("/nowhere", "{}", 404, "no route `/nowhere`; GET /docs shows those there are"),
        ("/v1/nowhere", "{}", 404, "no route `/v1/nowhere`; GET /docs shows those there are"),
        ("/info", "{}", 405, "`/info` does not answer to POST"),
    ] {
        fixture.refuses(path, body, status, text).await;
    }
    let answer = Answer::of(fixture.request(Request::post("/generate").body(Body::from("{}")).unwrap()).await).await;
    assert_eq!(answer.status, 415);
    assert_eq!(fixture.post_text("/info", "{}").await.header("allow"), "GET,HEAD");
    // The server goes on.
    assert_eq!(fixture.post("/generate", &json!({"inputs": "a"})).await.status, 200);
}

impl Fixture {
    /// `body` is answered with this status and text, in the dialect of `path`.
    async fn refuses(&self, path: &str, body: &str, status: u16, text: &str) {
        let answer = self.post_text(path, body).await;
        let error = answer.json();
        let message = if path.starts_with("/v1/") { &error["error"]["message"] } else { &error["error"] };
        assert_eq!((answer.status.as_u16(), message.as_str().unwrap()), (status, text), "{path} {body}");
        assert!(error["error_type"].is_string(), "{path} {body}");
        assert_eq!(answer.header("content-type"), "application/json");
        assert_eq!(answer.header("x-compute-type"), "", "errors carry no cost");
    }
}

#[tokio::test]
async fn native_stream_errors_are_events_and_openai_ones_have_a_status() {
    let fixture = Fixture::new("a").await;
    let answer = fixture.post("/generate_stream", &json!({"inputs": "a", "parameters": {"top_p": 2.0}})).await;
    assert_eq!(answer.status, 200);
    assert_eq!(
        answer.body,
        "data: {\"error\":\"Input validation error: `top_p` must be > 0.0 and < 1.0\",\"error_type\":\"validation\"}\n\n"
    );
    let answer = fixture.post("/generate_stream", &json!({"inputs": "a", "parameters": {"best_of": 0}})).await;
    assert_eq!(
        answer.events()[0]["error"],
        "Input validation error: `best_of` != 1 is not supported when streaming tokens"
    );
    let answer = fixture.post("/v1/completions", &json!({"prompt": "", "stream": true})).await;
    assert_eq!((answer.status.as_u16(), answer.json()["error"]["param"].as_str()), (422, Some("prompt")));
}

#[tokio::test]
async fn a_path_that_is_not_utf_8_has_the_typed_error_of_its_routes() {
    let fixture = Fixture::new("a").await;
    for path in ["/v2/models/%ff", "/v2/models/m/versions/%ff/ready"] {
        let answer = fixture.get(path).await;
        let text = "Input validation error: `path` must be percent-encoded UTF-8";
        assert_eq!((answer.status.as_u16(), &answer.json()["error"]), (422, &json!(text)), "{path}");
    }
    let answer = fixture.post("/v2/models/%ff/infer", &json!({})).await;
    assert_eq!((answer.status.as_u16(), &answer.json()["error_type"]), (422, &json!("validation")));
    assert_eq!(fixture.get("/docs/%ff").await.json()["error_type"], "not_found");
    assert_eq!(fixture.get("/v1/models/%ff").await.json()["error"]["code"], "model_not_found");
}

#[tokio::test]
async fn unknown_fields_are_named_and_not_obeyed() {
    let fixture = Fixture::new("a").await;
    let answer =
        fixture.post("/v1/completions", &json!({"prompt": "x", "user": "me", "max_retries": 3, "details": true})).await;
    assert_eq!(answer.status, 200);
    assert_eq!(answer.header("x-unknown-fields"), "max_retries,details", "`user` is known and asks for nothing");
}

#[tokio::test]
async fn overload_is_429_with_a_time_to_come_back() {
    let fixture = Fixture::with_flags("abc", &["--max-concurrent-requests", "1"]).await;
    fixture.model.script.steps.forget_permits(usize::MAX >> 3);
    let body = json!({"inputs": "a"});
    let request = Request::post("/generate_stream").header("content-type", "application/json");
    let running = fixture.request(request.body(Body::from(body.to_string())).unwrap()).await;
    let answer = fixture.post("/generate", &body).await;
    assert_eq!(answer.status, 429);
    assert_eq!(answer.body, r#"{"error":"Model is overloaded","error_type":"overloaded"}"#);
    assert!(answer.header("retry-after").parse::<u64>().unwrap() >= 1);
    fixture.model.script.steps.add_permits(100);
    assert_eq!(Answer::of(running).await.events().len(), 4);
}
