//! Completions: kinds of prompts, several answers, echo, log-probabilities.

use super::*;

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
async fn prompts_can_be_token_ids() {
    let fixture = Fixture::new("ab").await;
    let ids = byte_level().encode("xyz", false).unwrap();
    let answer = fixture.post("/v1/completions", &json!({"prompt": ids, "max_tokens": 2, "echo": true})).await.json();
    assert_eq!(answer["choices"][0]["text"], "xyzab");
    assert_eq!(answer["usage"]["prompt_tokens"], 3, "nothing is added to ids");
    let answer = fixture.post("/v1/completions", &json!({"prompt": [ids, [ids[0]]], "max_tokens": 1})).await.json();
    assert_eq!(answer["choices"].as_array().unwrap().len(), 2);
    assert_eq!(answer["usage"]["prompt_tokens"], 4);
    let bare = json!({"prompt": "xyz", "max_tokens": 1, "add_special_tokens": false});
    assert_eq!(fixture.post("/v1/completions", &bare).await.json()["usage"]["prompt_tokens"], 3);
}

#[tokio::test]
async fn answers_are_numbered_prompt_by_prompt() {
    let fixture = Fixture::new("ab").await;
    let body = json!({"prompt": ["x", "y"], "n": 2, "max_tokens": 2, "echo": true, "seed": 3});
    let answer = fixture.post("/v1/completions", &body).await.json();
    let texts: Vec<&Value> = answer["choices"].as_array().unwrap().iter().map(|choice| &choice["text"]).collect();
    assert_eq!(texts, ["xab", "xab", "yab", "yab"]);
    assert_eq!(answer["choices"][3]["index"], 3);
    assert_eq!((&answer["usage"]["prompt_tokens"], &answer["usage"]["completion_tokens"]), (&json!(4), &json!(8)));
    let mut streamed = body;
    streamed["stream"] = json!(true);
    streamed["stream_options"] = json!({"include_usage": true});
    let events = fixture.post("/v1/completions", &streamed).await.events();
    for (index, text) in texts.iter().enumerate() {
        let own: Vec<Value> = events.iter().filter(|event| event["choices"][0]["index"] == index).cloned().collect();
        assert_eq!(joined(&own, "/choices/0/text"), *text.as_str().unwrap());
    }
    assert_eq!(events[events.len() - 2]["usage"]["total_tokens"], answer["usage"]["total_tokens"]);
}

#[tokio::test]
async fn the_best_of_several_answers() {
    let fixture = Fixture::new("ab").await;
    let body = json!({"prompt": "x", "best_of": 2, "max_tokens": 2, "logprobs": 0});
    let answer = fixture.post("/v1/completions", &body).await.json();
    assert_eq!(answer["choices"].as_array().unwrap().len(), 1);
    let heard: Vec<u64> = fixture.model.script.heard.lock().unwrap().iter().map(|(params, _)| params.seed()).collect();
    assert_eq!(heard.len(), 2);
    // The scripted model is the surer the smaller the seed is modulo 64.
    let best = heard.iter().map(|seed| seed % 64).min().unwrap();
    let logprob = answer["choices"][0]["logprobs"]["token_logprobs"][0].as_f64().unwrap();
    assert_eq!(logprob, -1.0 - best as f64 / 64.0);
    let answer = fixture.post("/v1/completions", &json!({"prompt": "x", "best_of": 2, "stream": true})).await;
    assert_eq!(
        answer.json()["error"]["message"],
        "Input validation error: `best_of` != 1 is not supported when streaming tokens"
    );
    let same = fixture.post("/v1/completions", &json!({"prompt": "x", "best_of": 2, "n": 2, "max_tokens": 1})).await;
    assert_eq!(same.json()["choices"].as_array().unwrap().len(), 2);
}

#[tokio::test]
async fn log_probabilities_have_openais_older_shape() {
    let fixture = Fixture::new("éb").await;
    let body = json!({"prompt": "x", "logprobs": 1, "temperature": 0});
    let answer = fixture.post("/v1/completions", &body).await.json();
    let logprobs = &answer["choices"][0]["logprobs"];
    assert_eq!(logprobs["tokens"], json!(["\\xc3", "\\xa9", "b", "</s>"]));
    assert_eq!(logprobs["token_logprobs"], json!([-0.5, -0.5, -0.5, -0.5]));
    assert_eq!(logprobs["top_logprobs"][2], json!({"b": -0.5}));
    assert_eq!(logprobs["text_offset"], json!([0, 1, 1, 2]));
    let mut streamed = body;
    streamed["stream"] = json!(true);
    let events = fixture.post("/v1/completions", &streamed).await.events();
    let offsets: Vec<&Value> =
        events.iter().filter_map(|event| event.pointer("/choices/0/logprobs/text_offset/0")).collect();
    assert_eq!(offsets, [0, 1, 1, 2]);
}

#[tokio::test]
async fn the_prompt_alone_can_be_asked_for() {
    let fixture = Fixture::new("ab").await;
    let body = json!({"prompt": "xy", "echo": true, "max_tokens": 0});
    let answer = fixture.post("/v1/completions", &body).await.json();
    assert_eq!(
        (&answer["choices"][0]["text"], &answer["choices"][0]["finish_reason"]),
        (&json!("xy"), &json!("length"))
    );
    assert_eq!(answer["usage"]["completion_tokens"], 0);
    let answer = fixture.post("/v1/completions", &json!({"prompt": "xy", "max_tokens": 0})).await;
    assert_eq!(answer.json()["error"]["param"], "max_tokens");
}
