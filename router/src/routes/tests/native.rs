//! TGI's native calls, whole and as streams, and where OpenAI's differ from them.

use super::*;
use proto::v1::{SamplingParams, TokenBias};

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
