//! SageMaker, Vertex AI and KServe: the same answers through other doors.

use super::*;

#[tokio::test]
async fn invocations_answer_as_the_call_that_is_meant() {
    let fixture = Fixture::new("ab").await;
    let messages = json!([{"role": "user", "content": "Hi"}]);
    let answer = fixture.post("/invocations", &json!({"inputs": "Hi", "parameters": {"max_new_tokens": 2}})).await;
    assert_eq!(answer.body, r#"[{"generated_text":"Hiab"}]"#);
    assert_eq!(answer.header("x-generated-tokens"), "2");
    let chat = fixture.post("/invocations", &json!({"messages": messages, "max_retries": 1})).await;
    assert_eq!(chat.json()["choices"][0]["message"]["content"], "ab");
    assert_eq!(chat.header("x-unknown-fields"), "max_retries");
    let completion = fixture.post("/invocations", &json!({"prompt": "Hi"})).await.json();
    assert_eq!(completion["choices"][0]["text"], "ab");
}

#[tokio::test]
async fn invocations_stream() {
    let fixture = Fixture::new("ab").await;
    for (body, pointer) in [
        (json!({"inputs": "Hi", "stream": true}), "/token/text"),
        (json!({"messages": [{"role": "user", "content": "Hi"}], "stream": true}), "/choices/0/delta/content"),
        (json!({"prompt": "Hi", "stream": true}), "/choices/0/text"),
    ] {
        let answer = fixture.post("/invocations", &body).await;
        assert_eq!(answer.header("content-type"), "text/event-stream", "{body}");
        assert!(joined(&answer.events(), pointer).starts_with("ab"), "{body}: {}", answer.body);
    }
}

#[tokio::test]
async fn bad_invocations_have_typed_errors() {
    let fixture = Fixture::with_flags("a", &["--payload-limit", "500"]).await;
    let missing = "Input validation error: one of `inputs`, `messages`, `prompt` is required";
    for (body, status, text) in [
        ("{}", 422, missing),
        (r#"{"inputs":null}"#, 422, missing),
        ("{", 400, "Failed to parse the request body as JSON: EOF while parsing an object at line 1 column 1"),
        (r#"{"inputs":"a","parameters":{"top_p":2}}"#, 422, "Input validation error: `top_p` must be > 0.0 and < 1.0"),
        (&"x".repeat(501), 413, "Failed to buffer the request body: length limit exceeded"),
    ] {
        let answer = fixture.post_text("/invocations", body).await;
        assert_eq!((answer.status.as_u16(), answer.json()["error"].as_str()), (status, Some(text)), "{body}");
    }
    let body = r#"{"messages":[{"role":"bad","content":""}]}"#;
    let answer = fixture.post_text("/invocations", body).await;
    assert_eq!(answer.json()["error"]["param"], "messages", "OpenAI's calls fail in OpenAI's words");
}

#[tokio::test]
async fn vertex_answers_in_order_and_honours_all_parameters() {
    let fixture = Fixture::new("abcd").await;
    let chat = json!({"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 3});
    let body = json!({"instances": [
        {"inputs": "x", "parameters": {"max_new_tokens": 1, "do_sample": false, "return_full_text": true}},
        chat,
        {"inputs": "y"},
    ], "parameters": {"stop": ["b"], "temperature": 0.5}});
    let answer = fixture.post("/vertex", &body).await;
    assert_eq!((answer.status.as_u16(), answer.body.as_str()), (200, r#"{"predictions":["xa","abc","ab"]}"#));
    let heard = fixture.model.script.heard.lock().unwrap();
    let of = |prompt: &str| heard.iter().find(|(_, ids)| byte_level().decode(ids) == prompt).unwrap().0.clone();
    assert!(!of("x").do_sample);
    assert_eq!((of("y").do_sample, of("y").temperature), (true, Some(0.5)));
}

#[tokio::test]
async fn bad_vertex_requests_keep_their_status_and_text() {
    let fixture = Fixture::with_flags("a", &["--max-concurrent-requests", "2"]).await;
    let validation = |text: &str| format!("Input validation error: {text}");
    for (instances, text) in [
        (json!([]), validation("`instances` must have at least one item")),
        (
            json!([{"inputs": "a"}, {}]),
            validation("one of `inputs`, `messages` in every one of `instances` is required"),
        ),
        (json!([{"inputs": "a"}, {"inputs": ""}]), validation("`inputs` cannot be empty")),
        (json!(vec![json!({"inputs": "a"}); 3]), validation("`instances` must have at most 2 instances. Given: 3")),
    ] {
        let answer = fixture.post("/vertex", &json!({"instances": instances})).await;
        assert_eq!((answer.status.as_u16(), answer.json()["error"].as_str()), (422, Some(&*text)), "{instances}");
    }
}

#[tokio::test]
async fn vertex_names_its_own_routes() {
    let flags = ["--aip-predict-route", "/v1/endpoints/7/deployedModels/8:predict", "--aip-health-route", "/alive"];
    let fixture = Fixture::with_flags("ab", &[&flags[..], &["--api-key", "k"]].concat()).await;
    assert_eq!(fixture.get("/alive").await.status, 200);
    let body = json!({"instances": [{"inputs": "x"}]});
    assert_eq!(fixture.post(flags[1], &body).await.status, 401, "TGI leaves it open");
    let request = Request::post(flags[1]).header("content-type", "application/json").header("x-api-key", "k");
    let answer = Answer::of(fixture.request(request.body(Body::from(body.to_string())).unwrap()).await).await;
    assert_eq!(answer.body, r#"{"predictions":["ab"]}"#);
    // A path that exists keeps its meaning.
    let flags = ["--aip-predict-route", "/v1/completions", "--aip-health-route", "/health"];
    let fixture = Fixture::with_flags("ab", &flags).await;
    assert_eq!(fixture.post("/v1/completions", &json!({"prompt": "x"})).await.json()["object"], "text_completion");
}

#[tokio::test]
async fn the_document_is_served_with_this_servers_limits_and_a_page() {
    let fixture = Fixture::with_flags("a", &["--max-stop-sequences", "9", "--payload-limit", "1234"]).await;
    let document = fixture.get("/api-doc/openapi.json").await.json();
    let schemas = &document["components"]["schemas"];
    assert_eq!(schemas["GenerateParameters"]["properties"]["stop"]["maxItems"], 9);
    assert_eq!(schemas["GenerateParameters"]["properties"]["truncate"]["maximum"], CONTEXT - 1);
    assert_eq!(schemas["GenerateRequest"]["properties"]["inputs"]["maxLength"], 1234);
    let redirect = fixture.get("/docs").await;
    assert_eq!((redirect.status.as_u16(), redirect.header("location")), (303, "/docs/"));
    let page = fixture.get("/docs/").await;
    assert_eq!(page.header("content-type"), "text/html");
    assert!(page.body.contains("swagger-ui-bundle.js"), "{}", page.body);
    let start = fixture.get("/docs/swagger-initializer.js").await.body;
    assert!(start.contains("/api-doc/openapi.json"), "{start}");
    assert_eq!(fixture.get("/docs/nothing.js").await.status, 404);
}

#[tokio::test]
async fn kserve_describes_itself() {
    let fixture = Fixture::new("a").await;
    assert_eq!(fixture.get("/v2").await.json()["extensions"], json!(["health", "models", "metrics"]));
    assert_eq!(fixture.get("/v2/health/live").await.json(), json!({"live": true}));
    for path in ["/v2/health/ready", "/v2/models/m/ready", "/v2/models/m/versions/3/ready"] {
        assert_eq!(fixture.get(path).await.json(), json!({"live": true, "ready": true}), "{path}");
    }
    let model = fixture.get("/v2/models/m/versions/3").await.json();
    assert_eq!((&model["name"], &model["version"], &model["versions"]), (&json!("m"), &json!("3"), &json!(["3"])));
    assert_eq!(fixture.get("/v2/models/m").await.json()["version"], "1");
    let long = fixture.get(&format!("/v2/models/{}", "m".repeat(257))).await;
    let text = "Input validation error: `name` must have at most 256 bytes. Given: 257";
    assert_eq!((long.status.as_u16(), long.json()["error"].as_str()), (422, Some(text)));
}

#[tokio::test]
async fn kserve_infers_in_order_and_in_the_form_of_the_input() {
    let fixture = Fixture::new("ab").await;
    let body = json!({"id": "7", "parameters": {"max_new_tokens": 2, "return_full_text": true}, "inputs": [
        {"name": "i0", "shape": [1, 1], "datatype": "BYTES", "data": [120]},
        {"name": "i1", "shape": [2], "datatype": "BYTES", "data": ["y", "z"]},
    ], "outputs": [{"name": "o0"}, {"name": "o1"}]});
    for path in ["/v2/models/m/infer", "/v2/models/m/versions/2/infer"] {
        let answer = fixture.post(path, &body).await;
        assert_eq!(answer.status, 200, "{}", answer.body);
        let answer = answer.json();
        assert_eq!((&answer["id"], &answer["model_name"]), (&json!("7"), &json!("m")));
        assert_eq!(
            answer["outputs"],
            json!([
                {"name": "o0", "shape": [1, 3], "datatype": "BYTES", "data": b"xab"},
                {"name": "o1", "shape": [2], "datatype": "BYTES", "data": ["yab", "zab"]},
            ])
        );
    }
}

#[tokio::test]
async fn bad_inference_requests_name_the_tensor() {
    let fixture = Fixture::with_flags("a", &["--max-concurrent-requests", "2"]).await;
    let input = |data: Value| json!({"name": "i", "shape": [1], "datatype": "BYTES", "data": data});
    let inputs = |data: Value| json!({"inputs": [input(json!(["a"])), input(data)]});
    let data = "`inputs[1].data` is not a list of strings, nor the bytes of a UTF-8 text";
    for (body, text) in [
        (json!({"inputs": []}), "`inputs` must have at least one item"),
        (
            json!({"inputs": [input(json!(["a"]))], "outputs": []}),
            "`inputs` and `outputs` must have the same length. Given: 1 and 0",
        ),
        (inputs(json!("text")), data),
        (inputs(json!([])), data),
        (inputs(json!(["a", 1])), data),
        (inputs(json!([256])), data),
        (inputs(json!([255, 254])), data),
        (inputs(json!(["a", "b"])), "`inputs` must have at most 2 texts. Given: 3"),
        (inputs(json!([""])), "`inputs` cannot be empty"),
        (
            json!({"inputs": [{"name": "i", "datatype": "FP32", "data": [1.0]}]}),
            "`inputs[0]` has datatype FP32; texts are BYTES",
        ),
    ] {
        let answer = fixture.post("/v2/models/m/infer", &body).await;
        let text = format!("Input validation error: {text}");
        assert_eq!((answer.status.as_u16(), answer.json()["error"].as_str()), (422, Some(&*text)), "{body}");
    }
}
