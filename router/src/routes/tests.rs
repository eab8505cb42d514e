//! Every route against a scripted model: shapes byte for byte, headers, errors, streams, cancellation.

use std::time::Duration;

use axum::body::{Body, to_bytes};
use axum::http::{HeaderMap, Request, StatusCode};
use futures::StreamExt;
use metrics_exporter_prometheus::PrometheusBuilder;
use proto::v1::{SamplingParams, TokenBias};
use serde_json::{Value, json};
use tower::ServiceExt;

use super::scripted_model::{CONTEXT, EOS, ScriptedModel};
use super::*;
use crate::args::tests::args;
use crate::engine::{EngineConfig, EngineHandle};
use crate::text::test_tokenizers::byte_level;

mod chat;
mod completions;
mod messages;
mod responses;

const TEMPLATE: &str = "{% for m in messages %}{% if m.role == 'bad' %}{{ raise_exception('no such role') }}{% endif %}[{{ m.role }}]{{ m.content }}{% endfor %}{% if add_generation_prompt %}>{% endif %}";

mod auth;
mod deadlines;
mod platforms;

/// A server whose model always says `reply` (`$` at its end: then the end-of-sequence token).
struct Fixture {
    model: ScriptedModel,
    router: Router,
}

struct Answer {
    status: StatusCode,
    headers: HeaderMap,
    body: String,
}

impl Fixture {
    async fn new(reply: &str) -> Self {
        Self::with_flags(reply, &[]).await
    }

    async fn with_flags(reply: &str, flags: &[&str]) -> Self {
        Self::with(reply, flags, TEMPLATE, CONTEXT).await
    }

    async fn with(reply: &str, flags: &[&str], template: &str, context: u32) -> Self {
        let tokenizer = byte_level();
        let model = ScriptedModel::with_context(tokenizer.encode(reply, false).unwrap(), context);
        let mut args = args(flags);
        args.model_id = "demo".to_owned();
        let engine = EngineHandle::start(EngineConfig {
            shard_uds_prefix: model.prefix.clone(),
            world_size: 1,
            connect_timeout: Duration::from_secs(30),
            max_concurrent_requests: args.max_concurrent_requests,
            max_step_tokens: None,
            max_batch_size: None,
            max_batch_total_tokens: None,
        })
        .await
        .unwrap();
        let limits = args.param_limits(engine.facts()).unwrap();
        let template = crate::template::tests::template(template).unwrap();
        let metrics = PrometheusBuilder::new().build_recorder().handle();
        let server = Server::new(args, engine, tokenizer, Some(template), limits, metrics).unwrap();
        Self { model, router: router(Arc::new(server)) }
    }

    async fn request(&self, request: Request<Body>) -> Response<Body> {
        self.router.clone().oneshot(request).await.unwrap()
    }

    async fn post(&self, path: &str, body: &Value) -> Answer {
        self.post_text(path, &body.to_string()).await
    }

    async fn post_text(&self, path: &str, body: &str) -> Answer {
        let request = Request::post(path).header("content-type", "application/json").body(Body::from(body.to_owned()));
        Answer::of(self.request(request.unwrap()).await).await
    }

    async fn get(&self, path: &str) -> Answer {
        Answer::of(self.request(Request::get(path).body(Body::empty()).unwrap()).await).await
    }
}

impl Answer {
    async fn of(response: Response<Body>) -> Self {
        let (parts, body) = response.into_parts();
        let body = to_bytes(body, usize::MAX).await.unwrap();
        Self { status: parts.status, headers: parts.headers, body: String::from_utf8(body.to_vec()).unwrap() }
    }

    fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().unwrap())
    }

    fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {}", self.body))
    }

    /// The JSON of each event; "[DONE]" as a string.
    fn events(&self) -> Vec<Value> {
        let event = |event: &str| {
            let data = event.strip_prefix("data: ").unwrap_or_else(|| panic!("not an event: {event:?}"));
            serde_json::from_str(data).unwrap_or_else(|_| Value::from(data))
        };
        self.body.strip_suffix("\n\n").unwrap().split("\n\n").map(event).collect()
    }
}

/// `text` of each event of a native stream, joined.
fn joined(events: &[Value], pointer: &str) -> String {
    events.iter().filter_map(|event| event.pointer(pointer)?.as_str()).collect()
}

#[tokio::test]
async fn generate_answers_byte_for_byte_as_tgi() {
    let fixture = Fixture::new("ab").await;
    let answer =
        fixture.post("/generate", &json!({"inputs": "Hi", "parameters": {"max_new_tokens": 2, "details": true}})).await;
    assert_eq!(answer.status, 200);
    let (a, b) = (byte_level().encode("a", false).unwrap()[0], byte_level().encode("b", false).unwrap()[0]);
    assert_eq!(
        answer.body,
        format!(
            r#"{{"generated_text":"ab","details":{{"finish_reason":"length","generated_tokens":2,"seed":null,"prefill":[],"tokens":[{{"id":{a},"text":"a","logprob":-0.5,"special":false}},{{"id":{b},"text":"b","logprob":-0.5,"special":false}}]}}}}"#
        )
    );
    assert_eq!(answer.header("content-type"), "application/json");
    assert_eq!(answer.header("x-compute-type"), "cpu+optimized");
    assert_eq!(answer.header("x-compute-characters"), "2");
    assert_eq!(answer.header("x-prompt-tokens"), "3", "<s> and two bytes");
    assert_eq!(answer.header("x-generated-tokens"), "2");
    answer.header("x-compute-time").parse::<f64>().unwrap();
    for name in ["x-total-time", "x-validation-time", "x-queue-time", "x-inference-time", "x-time-per-token"] {
        answer.header(name).parse::<u64>().unwrap();
    }
}

#[tokio::test]
async fn the_root_route_wraps_an_array_and_returns_the_full_text() {
    let fixture = Fixture::new("ab").await;
    let body = json!({"inputs": "Hi", "parameters": {"max_new_tokens": 2}});
    assert_eq!(fixture.post("/", &body).await.body, r#"[{"generated_text":"Hiab"}]"#);
    assert_eq!(fixture.post("/generate", &body).await.body, r#"{"generated_text":"ab"}"#);
    let body = json!({"inputs": "Hi", "parameters": {"max_new_tokens": 2, "return_full_text": false}});
    assert_eq!(fixture.post("/", &body).await.body, r#"[{"generated_text":"ab"}]"#);
    let body = json!({"inputs": "Hi", "parameters": {"max_new_tokens": 2, "return_full_text": true}, "stream": true});
    let answer = fixture.post("/", &body).await;
    assert_eq!(answer.header("content-type"), "text/event-stream");
    assert_eq!(answer.events()[1]["generated_text"], "Hiab");
}

#[tokio::test]
async fn the_native_stream_is_byte_for_byte_tgis() {
    let fixture = Fixture::new("ab").await;
    let answer = fixture.post("/generate_stream", &json!({"inputs": "Hi", "parameters": {"max_new_tokens": 2}})).await;
    let (a, b) = (byte_level().encode("a", false).unwrap()[0], byte_level().encode("b", false).unwrap()[0]);
    assert_eq!(
        answer.body,
        format!(
            "data: {{\"index\":1,\"token\":{{\"id\":{a},\"text\":\"a\",\"logprob\":-0.5,\"special\":false}},\"generated_text\":null,\"details\":null}}\n\n\
             data: {{\"index\":2,\"token\":{{\"id\":{b},\"text\":\"b\",\"logprob\":-0.5,\"special\":false}},\"generated_text\":\"ab\",\"details\":null}}\n\n"
        )
    );
    assert_eq!(answer.header("content-type"), "text/event-stream");
    assert_eq!(answer.header("cache-control"), "no-cache");
    assert_eq!(answer.header("x-accel-buffering"), "no");
    assert_eq!(answer.header("x-compute-characters"), "2");
}

#[tokio::test]
async fn native_ends_and_details() {
    let fixture = Fixture::new("ab").await;
    let parameters = json!({"details": true, "top_n_tokens": 2, "seed": 7, "do_sample": true});
    let events = fixture.post("/generate_stream", &json!({"inputs": "Hi", "parameters": parameters})).await.events();
    assert_eq!(events.len(), 3);
    assert_eq!(events[0]["top_tokens"].as_array().unwrap().len(), 2);
    assert_eq!(events[2]["token"], json!({"id": EOS, "text": "</s>", "logprob": -1.109375, "special": true}));
    assert_eq!(events[2]["generated_text"], "ab", "special tokens are no text");
    assert_eq!(
        events[2]["details"],
        json!({"finish_reason": "eos_token", "generated_tokens": 3, "seed": 7, "input_length": 3})
    );
    let answer = fixture.post("/generate", &json!({"inputs": "Hi", "parameters": parameters})).await.json();
    assert_eq!(answer["details"]["top_tokens"].as_array().unwrap().len(), 3);
}

#[tokio::test]
async fn without_parameters_a_request_samples_and_with_empty_ones_not() {
    let fixture = Fixture::new("a").await;
    fixture.post("/generate", &json!({"inputs": "Hi"})).await;
    fixture.post("/generate", &json!({"inputs": "Hi", "parameters": {}})).await;
    fixture.post("/v1/completions", &json!({"prompt": "Hi"})).await;
    fixture.post("/v1/completions", &json!({"prompt": "Hi", "temperature": 0, "top_p": 1})).await;
    let heard = fixture.model.script.heard.lock().unwrap();
    let sampled: Vec<bool> = heard.iter().map(|(params, _)| params.do_sample).collect();
    assert_eq!(sampled, [true, false, true, false]);
}

#[tokio::test]
async fn best_of_answers_with_the_best_mean_logprob() {
    let fixture = Fixture::new("ab").await;
    let parameters = json!({"best_of": 2, "do_sample": true, "details": true, "max_new_tokens": 2});
    let details =
        fixture.post("/generate", &json!({"inputs": "Hi", "parameters": parameters})).await.json()["details"].take();
    let losers = details["best_of_sequences"].as_array().unwrap();
    assert_eq!(losers.len(), 1);
    let logprob = |sequence: &Value| sequence["tokens"][0]["logprob"].as_f64().unwrap();
    assert!(logprob(&details) >= logprob(&losers[0]));
    assert_ne!(details["seed"], losers[0]["seed"]);
    assert_eq!(losers[0]["generated_text"], "ab");
}

#[tokio::test]
async fn decoder_input_details_show_the_prompt_and_imply_details() {
    let fixture = Fixture::new("ab").await;
    // Longer than what one step computes, so that its log-probabilities come in pieces.
    let parameters = json!({"decoder_input_details": true, "max_new_tokens": 1});
    let body = json!({"inputs": "x".repeat(40), "parameters": parameters});
    let details = fixture.post("/generate", &body).await.json()["details"].take();
    let prefill = details["prefill"].as_array().unwrap();
    assert_eq!(prefill.len(), 41);
    assert_eq!(prefill[0], json!({"id": 256, "text": "<s>", "logprob": null}));
    for (position, token) in prefill.iter().enumerate().skip(1) {
        assert_eq!((&token["text"], &token["logprob"]), (&json!("x"), &json!(position as f32 / -2.0)));
    }
    let plain = json!({"inputs": "Hi", "parameters": {"details": true, "max_new_tokens": 1}});
    assert_eq!(fixture.post("/generate", &plain).await.json()["details"]["prefill"], json!([]));

    let events = fixture.post("/generate_stream", &body).await.events();
    let text = "Input validation error: `decoder_input_details` == true is not supported when streaming tokens";
    assert_eq!(events, [json!({"error": text, "error_type": "validation"})]);
}

#[tokio::test]
async fn native_sampling_parameters_reach_the_shard() {
    let fixture = Fixture::with_flags("ab", &["--watermark-gamma", "0.25", "--watermark-delta", "3"]).await;
    let parameters = json!({"watermark": true, "adapter_id": null, "grammar": null, "max_new_tokens": 1});
    fixture.post("/generate", &json!({"inputs": "Hi", "parameters": parameters})).await;
    fixture.post("/generate", &json!({"inputs": "Hi", "parameters": {"max_new_tokens": 1}})).await;
    let heard = fixture.model.script.heard.lock().unwrap();
    assert_eq!(heard[0].0.watermark, Some(proto::v1::Watermark { gamma: 0.25, delta: 3.0 }));
    assert_eq!(heard[1].0.watermark, None);
}

#[tokio::test]
async fn the_parameters_of_the_peers_are_served_natively_too() {
    let fixture = Fixture::new("ab").await;
    let post = async |parameters| fixture.post("/generate", &json!({"inputs": "Hi", "parameters": parameters})).await;
    let parameters = json!({"min_p": 0.25, "presence_penalty": 0.5, "min_tokens": 1, "logit_bias": {"65": -1.5},
        "seed": 7, "ignore_eos": true, "max_new_tokens": 4, "details": true});
    let answer = post(parameters).await.json();
    assert_eq!(answer["details"]["generated_tokens"], 4, "the model ended after two");
    let refused = post(json!({"min_p": 2, "max_new_tokens": 1})).await;
    let text = "Input validation error: `min_p` must be >= 0.0 and <= 1.0. Given: 2.0";
    assert_eq!((refused.status, &refused.json()["error"]), (StatusCode::UNPROCESSABLE_ENTITY, &json!(text)));

    let heard = fixture.model.script.heard.lock().unwrap();
    let expected = SamplingParams {
        do_sample: true,
        seed: Some(7),
        min_p: Some(0.25),
        presence_penalty: Some(0.5),
        logit_bias: vec![TokenBias { token_id: 65, bias: -1.5 }],
        min_tokens: Some(1),
        ..SamplingParams::default()
    };
    assert_eq!((heard.len(), &heard[0].0), (1, &expected));
}

#[tokio::test]
async fn a_reply_obeys_its_grammar_and_ends_with_it() {
    let fixture = Fixture::new("xxxxxxxx").await;
    let grammar = json!({"type": "regex", "value": "(yes|no) x"});
    let parameters = json!({"grammar": grammar, "max_new_tokens": 20, "details": true});
    let answer = fixture.post("/generate", &json!({"inputs": "Hi", "parameters": parameters})).await.json();
    // The model wants an x at every place, and otherwise the first token that is allowed.
    assert_eq!(answer["generated_text"], "no x");
    assert_eq!(answer["details"]["finish_reason"], "eos_token");

    let fixture = Fixture::new("{\"a\": 1}and more").await;
    let schema = json!({"type": "object", "properties": {"a": {"type": "integer"}}, "additionalProperties": false});
    let parameters = json!({"grammar": {"type": "json", "value": schema.to_string()}, "max_new_tokens": 20});
    let answer = fixture.post("/generate", &json!({"inputs": "Hi", "parameters": parameters})).await.json();
    assert_eq!(answer["generated_text"], r#"{"a": 1}"#);
}

#[tokio::test]
async fn grammars_can_be_switched_off() {
    let fixture = Fixture::with_flags("ab", &["--disable-grammar-support"]).await;
    let parameters = json!({"grammar": {"type": "regex", "value": "a"}});
    let answer = fixture.post("/generate", &json!({"inputs": "Hi", "parameters": parameters})).await;
    assert_eq!(
        answer.json(),
        json!({"error": "Input validation error: grammar is not supported", "error_type": "validation"})
    );
}

#[tokio::test]
async fn stop_strings_stay_natively_and_go_on_openai_routes() {
    let fixture = Fixture::new("abcdef").await;
    let parameters = json!({"stop": ["cd"], "details": true});
    let answer = fixture.post("/generate", &json!({"inputs": "Hi", "parameters": parameters})).await.json();
    assert_eq!(answer["generated_text"], "abcd");
    assert_eq!(answer["details"]["finish_reason"], "stop_sequence");
    assert_eq!(answer["details"]["generated_tokens"], 4);
    let events = fixture.post("/generate_stream", &json!({"inputs": "Hi", "parameters": parameters})).await.events();
    assert_eq!(joined(&events, "/token/text"), "abcd");

    let answer = fixture.post("/v1/completions", &json!({"prompt": "Hi", "stop": "cd"})).await.json();
    assert_eq!((&answer["choices"][0]["text"], &answer["choices"][0]["finish_reason"]), (&json!("ab"), &json!("stop")));
    let messages = json!([{"role": "user", "content": "Hi"}]);
    let body = json!({"messages": messages, "stop": ["zz", "cx", "ef"], "stream": true});
    let events = fixture.post("/v1/chat/completions", &body).await.events();
    assert_eq!(joined(&events, "/choices/0/delta/content"), "abcd");
}

#[tokio::test]
async fn truncate_keeps_the_end_of_the_prompt() {
    let fixture = Fixture::new("a").await;
    let answer = fixture.post("/generate", &json!({"inputs": "xyz", "parameters": {"truncate": 2}})).await;
    assert_eq!(answer.header("x-prompt-tokens"), "2");
    assert_eq!(answer.header("x-compute-characters"), "3");
    let heard = fixture.model.script.heard.lock().unwrap();
    assert_eq!(byte_level().decode(&heard[0].1), "yz");
}

#[tokio::test]
async fn characters_cut_by_tokens_arrive_whole() {
    let fixture = Fixture::new("é👍x").await;
    let messages = json!([{"role": "user", "content": "Hi"}]);
    let events = fixture.post("/v1/chat/completions", &json!({"messages": messages, "stream": true})).await.events();
    let pieces: Vec<&str> =
        events.iter().filter_map(|event| event.pointer("/choices/0/delta/content")?.as_str()).collect();
    assert_eq!(pieces, ["", "é", "", "", "", "👍", "x", ""]);
}

#[tokio::test]
async fn chat_has_openais_shape() {
    let fixture = Fixture::new("ab").await;
    let body = json!({"model": "dummy", "messages": [{"role": "user", "content": [{"type": "text", "text": "H"}, {"type": "text", "text": "i"}]}],
        "logprobs": true, "top_logprobs": 2});
    let answer = fixture.post("/v1/chat/completions", &body).await;
    let chat = answer.json();
    let keys: Vec<&String> = chat.as_object().unwrap().keys().collect();
    assert_eq!(keys, ["object", "id", "created", "model", "system_fingerprint", "choices", "usage"]);
    assert_eq!(chat["object"], "chat.completion");
    assert!(chat["id"].as_str().unwrap().starts_with("chatcmpl-"));
    assert_eq!(chat["model"], "dummy");
    assert_eq!(chat["choices"][0]["message"], json!({"role": "assistant", "content": "ab"}));
    assert_eq!(chat["choices"][0]["finish_reason"], "stop");
    let logprobs = chat["choices"][0]["logprobs"]["content"].as_array().unwrap();
    assert_eq!(logprobs.len(), 3);
    assert_eq!(logprobs[0]["bytes"], json!([97]));
    assert_eq!(logprobs[0]["top_logprobs"].as_array().unwrap().len(), 2);
    let prompt_tokens = "[user]Hi>".len();
    assert_eq!(chat["usage"]["prompt_tokens"], prompt_tokens);
    assert_eq!(chat["usage"]["total_tokens"], prompt_tokens + 3);
    assert_eq!(answer.header("x-prompt-tokens"), prompt_tokens.to_string());
    assert_eq!(byte_level().decode(&fixture.model.script.heard.lock().unwrap()[0].1), "[user]Hi>");
}

#[tokio::test]
async fn chat_streams_openais_chunks() {
    let fixture = Fixture::new("ab").await;
    let body = json!({"messages": [{"role": "user", "content": "Hi"}], "stream": true, "stream_options": {"include_usage": true}});
    let events = fixture.post("/v1/chat/completions", &body).await.events();
    assert_eq!(events.len(), 5, "a, b, </s>, usage, [DONE]");
    assert_eq!(events[4], "[DONE]");
    for event in &events[..4] {
        assert_eq!((&event["id"], &event["created"]), (&events[0]["id"], &events[0]["created"]));
        assert_eq!((&event["object"], &event["model"]), (&json!("chat.completion.chunk"), &json!("demo")));
    }
    let choice = |content: &str, reason: Value| json!([{"index": 0, "delta": {"role": "assistant", "content": content}, "logprobs": null, "finish_reason": reason}]);
    assert_eq!(events[0]["choices"], choice("a", Value::Null));
    assert_eq!(events[2]["choices"], choice("", json!("stop")));
    assert_eq!(events[0]["usage"], Value::Null);
    assert_eq!(events[3]["choices"], json!([]));
    assert_eq!(events[3]["usage"]["completion_tokens"], 3);
    let body = json!({"messages": [{"role": "user", "content": "Hi"}], "stream": true, "stream_options": null, "max_completion_tokens": 1, "max_tokens": 2});
    let events = fixture.post("/v1/chat/completions", &body).await.events();
    assert_eq!(events.len(), 2);
    assert_eq!(events[0]["choices"], choice("a", json!("length")));
}

#[tokio::test]
async fn completions_take_several_prompts() {
    let fixture = Fixture::new("ab").await;
    let answer = fixture.post("/v1/completions", &json!({"prompt": ["x", "yz"], "max_tokens": 2})).await;
    let completion = answer.json();
    assert!(completion["id"].as_str().unwrap().starts_with("cmpl-"));
    let choice = |index: u32| json!({"index": index, "text": "ab", "logprobs": null, "finish_reason": "length"});
    assert_eq!(completion["choices"], json!([choice(0), choice(1)]));
    assert_eq!(completion["usage"]["prompt_tokens"], 2 + 3, "each with <s>");
    assert_eq!(answer.header("x-generated-tokens"), "4");

    let events = fixture
        .post("/v1/completions", &json!({"prompt": ["x", "yz"], "max_tokens": 2, "stream": true}))
        .await
        .events();
    assert_eq!(events.len(), 5);
    assert_eq!(events[4], "[DONE]");
    for index in 0..2 {
        let own: Vec<&Value> = events.iter().filter(|event| event["choices"][0]["index"] == index).collect();
        assert_eq!(own.len(), 2);
        assert_eq!(own[0]["choices"][0]["finish_reason"], Value::Null);
        assert!(own[0].get("usage").is_none());
        assert_eq!(own[1]["choices"][0]["finish_reason"], "length");
        assert_eq!(own[1]["usage"]["completion_tokens"], 2);
    }
    let body = json!({"prompt": "x", "max_tokens": 1, "stream": true, "stream_options": {"include_usage": true}});
    let events = fixture.post("/v1/completions", &body).await.events();
    assert_eq!(events[1]["usage"]["total_tokens"], 3);
    assert_eq!(events[1]["choices"], json!([]));
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
async fn every_bad_input_has_its_status_and_text() {
    let fixture = Fixture::with_flags("a", &["--payload-limit", "2000"]).await;
    let long = "x".repeat(CONTEXT as usize);
    let validation = |text: &str| format!("Input validation error: {text}");
    let shape = "Failed to deserialize the JSON body into the target type: ";
    let cases: Vec<(&str, String, u16, String)> = vec![
        (
            "/generate",
            "{".into(),
            400,
            "Failed to parse the request body as JSON: EOF while parsing an object at line 1 column 1".into(),
        ),
        (
            "/generate",
            String::new(),
            400,
            "Failed to parse the request body as JSON: EOF while parsing a value at line 1 column 0".into(),
        ),
        ("/generate", "{}".into(), 422, format!("{shape}missing field `inputs` at line 1 column 2")),
        (
            "/generate",
            r#"{"inputs":1}"#.into(),
            422,
            format!("{shape}inputs: invalid type: integer `1`, expected a string at line 1 column 11"),
        ),
        (
            "/generate",
            r#"{"inputs":"a","parameters":null}"#.into(),
            422,
            format!("{shape}parameters: invalid type: null, expected struct GenerateParameters at line 1 column 31"),
        ),
        (
            "/generate",
            r#"{"inputs":"a","inputs":"b"}"#.into(),
            422,
            format!("{shape}duplicate field `inputs` at line 1 column 22"),
        ),
        (
            "/generate",
            json!({"inputs": "x".repeat(3000)}).to_string(),
            413,
            "Failed to buffer the request body: length limit exceeded".into(),
        ),
        ("/generate", json!({"inputs": ""}).to_string(), 422, validation("`inputs` cannot be empty")),
        (
            "/generate",
            json!({"inputs": "a", "parameters": {"top_p": 1.0}}).to_string(),
            422,
            validation("`top_p` must be > 0.0 and < 1.0"),
        ),
        (
            "/generate",
            json!({"inputs": "a", "parameters": {"best_of": 3, "do_sample": true}}).to_string(),
            422,
            validation("`best_of` must be > 0 and <= 2. Given: 3"),
        ),
        (
            "/generate",
            json!({"inputs": "a", "parameters": {"grammar": {"type": "json", "value": 7}}}).to_string(),
            422,
            validation("grammar is not supported"),
        ),
        (
            "/generate",
            json!({"inputs": "a", "parameters": {"grammar": {"type": "json", "value": "{"}}}).to_string(),
            422,
            validation("grammar is not valid: EOF while parsing an object at line 1 column 1"),
        ),
        (
            "/generate",
            json!({"inputs": "a", "parameters": {"grammar": {"type": "regex"}}}).to_string(),
            422,
            format!("{shape}parameters.grammar: missing field `value` at line 1 column 54"),
        ),
        (
            "/generate",
            json!({"inputs": "a", "parameters": {"adapter_id": "mine"}}).to_string(),
            422,
            validation("adapter `mine` is not loaded; this server has no adapters"),
        ),
        (
            "/generate",
            json!({"inputs": long, "parameters": {"max_new_tokens": 1}}).to_string(),
            422,
            validation(
                "`inputs` tokens + `max_new_tokens` must be <= 64. Given: 65 `inputs` tokens and 1 `max_new_tokens`",
            ),
        ),
        (
            "/",
            json!({"inputs": "a", "parameters": {"temperature": 0.0}}).to_string(),
            422,
            validation("`temperature` must be strictly positive"),
        ),
        (
            "/v1/completions",
            json!({"prompt": []}).to_string(),
            422,
            format!("{shape}prompt: Empty array detected. Do not use an empty array for the prompt."),
        ),
        (
            "/v1/completions",
            json!({"prompt": vec!["a"; 5]}).to_string(),
            422,
            "Number of prompts exceeds the maximum allowed batch size of 4".into(),
        ),
        (
            "/v1/completions",
            json!({"prompt": "a", "suffix": ""}).to_string(),
            422,
            "Suffix is not supported and can be achieved by preprocessing the prompt.".into(),
        ),
        (
            "/v1/chat/completions",
            json!({"messages": [{"role": "user"}]}).to_string(),
            422,
            validation("`messages[0].content` must be a string or a list of text parts"),
        ),
        (
            "/v1/chat/completions",
            json!({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]})
                .to_string(),
            422,
            validation("`messages[0].content` of type `image_url` is not supported by this version"),
        ),
        (
            "/v1/chat/completions",
            json!({"messages": [{"role": "bad", "content": "x"}]}).to_string(),
            422,
            "Template error: syntax error: no such role (in <string>:1)".into(),
        ),
        (
            "/v1/chat/completions",
            json!({"messages": [{"role": "user", "content": "x"}], "top_logprobs": 21}).to_string(),
            422,
            validation("`top_logprobs` must be >= 0 and <= 20. Given: 21"),
        ),
        (
            "/v1/chat/completions",
            json!({"messages": [{"role": "user", "content": "x"}], "model": "m".repeat(300)}).to_string(),
            422,
            validation("`model` must have at most 256 bytes. Given: 300"),
        ),
        ("/nowhere", "{}".into(), 404, "no route `/nowhere`; GET /docs shows those there are".into()),
        ("/v1/nowhere", "{}".into(), 404, "no route `/v1/nowhere`; GET /docs shows those there are".into()),
        ("/info", "{}".into(), 405, "`/info` does not answer to POST".into()),
    ];
    for (path, body, status, text) in cases {
        let answer = fixture.post_text(path, &body).await;
        let error = answer.json();
        let message = if path.starts_with("/v1/") { &error["error"]["message"] } else { &error["error"] };
        assert_eq!((answer.status.as_u16(), message.as_str().unwrap()), (status, text.as_str()), "{path} {body}");
        assert!(error["error_type"].is_string(), "{path} {body}");
        assert_eq!(answer.header("content-type"), "application/json");
        assert_eq!(answer.header("x-compute-type"), "", "errors carry no cost");
    }
    let answer = Answer::of(fixture.request(Request::post("/generate").body(Body::from("{}")).unwrap()).await).await;
    assert_eq!(answer.status, 415);
    assert_eq!(fixture.post_text("/info", "{}").await.header("allow"), "GET,HEAD");
    // The server goes on.
    assert_eq!(fixture.post("/generate", &json!({"inputs": "a"})).await.status, 200);
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

/// The replies have 50 tokens and the model may take far fewer steps: a slot is freed only because its client is gone.
/// The shard hears of it with the next plan, so there must be another request.
async fn assert_freed(fixture: &Fixture) {
    fixture.model.script.steps.add_permits(20);
    let answer = fixture.post("/generate", &json!({"inputs": "b", "parameters": {"max_new_tokens": 1}})).await;
    assert_eq!(answer.status, 200);
    assert_eq!(*fixture.model.script.freed.lock().unwrap(), 1);
}

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
    assert_freed(&fixture).await;
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
    assert_freed(&fixture).await;
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
