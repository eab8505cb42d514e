//! `/generate` and `/generate_stream`: the house example of a process test.

use integration_tests::{Setup, generated_ids};
use serde_json::json;

const PROMPT: &str = "What is two plus three?";

#[tokio::test]
async fn one_and_two_shards_answer_and_repeat_themselves() {
    for shards in ["1", "2"] {
        let server = Setup::new().args(&["--num-shard", shards]).start();
        let body = json!({ "inputs": PROMPT, "parameters": { "max_new_tokens": 24, "details": true } });
        let first = server.generate(&body).await;
        let details = &first["details"];
        assert!(!first["generated_text"].as_str().unwrap().is_empty(), "{first}");
        assert_eq!(details["tokens"].as_array().unwrap().len() as u64, details["generated_tokens"].as_u64().unwrap());
        assert_eq!(server.generate(&body).await, first, "greedy decoding repeats itself, with its logprobs");

        let seeded = json!({ "inputs": PROMPT, "parameters": {
            "max_new_tokens": 24, "do_sample": true, "temperature": 1.5, "seed": 7, "details": true } });
        assert_eq!(server.generate(&seeded).await, server.generate(&seeded).await, "a seed repeats itself");
        assert_eq!(server.stop().code, Some(0));
    }
}

#[tokio::test]
async fn keys_and_values_in_eight_bits_answer_too() {
    for dtype in ["fp8_e4m3fn", "fp8_e5m2"] {
        let server = Setup::new().env("KV_CACHE_DTYPE", dtype).start();
        assert!(server.log().contains(&format!("KV cache ({dtype}, ")), "{}", server.log());
        let body = json!({ "inputs": PROMPT, "parameters": { "max_new_tokens": 24, "details": true } });
        let first = server.generate(&body).await;
        assert!(first["generated_text"].as_str().unwrap().to_lowercase().contains("five"), "{dtype}: {first}");
        assert_eq!(server.generate(&body).await, first, "{dtype}: greedy decoding repeats itself, with its logprobs");
        assert_eq!(server.stop().code, Some(0));
    }
}

#[tokio::test]
async fn a_stream_is_the_answer_in_pieces() {
    let server = Setup::new().start();
    let body = json!({ "inputs": PROMPT, "parameters": { "max_new_tokens": 24, "details": true } });
    let whole = server.generate(&body).await;
    let stream = server.stream("/generate_stream", &body).await;
    assert_eq!(stream.header("content-type"), Some("text/event-stream"));
    assert_eq!(stream.header("x-accel-buffering"), Some("no"));
    let events = stream.collect().await;

    let (last, before) = events.split_last().expect("there is a last event");
    assert!(before.iter().all(|event| event["generated_text"].is_null() && event["details"].is_null()));
    assert_eq!(last["generated_text"], whole["generated_text"]);
    assert_eq!(last["details"]["generated_tokens"], whole["details"]["generated_tokens"]);
    assert_eq!(generated_ids(&events), generated_ids(whole["details"]["tokens"].as_array().unwrap()));
    assert!((1..).zip(&events).all(|(index, event)| event["index"] == index), "events count from one");

    let visible = events.iter().filter(|event| event["token"]["special"] == false);
    let joined: String = visible.map(|event| event["token"]["text"].as_str().unwrap()).collect();
    assert_eq!(joined, whole["generated_text"].as_str().unwrap());
}

#[tokio::test]
async fn the_compatible_route_returns_a_list_or_a_stream() {
    let server = Setup::new().start();
    let parameters = json!({ "max_new_tokens": 8 });
    let (status, list) = server.post("/", &json!({ "inputs": PROMPT, "parameters": parameters })).await;
    assert_eq!(status, 200);
    let text = list[0]["generated_text"].as_str().unwrap();
    assert!(text.starts_with(PROMPT), "`/` returns the full text by default: {text}");
    let body = json!({ "inputs": PROMPT, "parameters": parameters, "stream": true });
    let events = server.stream("/", &body).await.collect().await;
    assert_eq!(events.last().unwrap()["generated_text"], text);
}

#[tokio::test]
async fn several_prompts_together_answer_as_each_alone() {
    let server = Setup::new().start();
    let bodies: Vec<_> = (0..12)
        .map(|number| {
            let inputs = format!("What is {number} plus three?");
            json!({ "inputs": inputs, "parameters": { "max_new_tokens": 4 + number, "details": true } })
        })
        .collect();
    let together = futures::future::join_all(bodies.iter().map(|body| server.generate(body))).await;
    for (body, together) in bodies.iter().zip(together) {
        assert_eq!(server.generate(body).await, together, "{body}");
    }
}
