//! Anthropic's call: blocks, tools and results, events, errors.

use super::chat::tool_fixture;
use super::*;

const REPLY: &str = "<think>hm</think>So:<tool_call>\n{\"name\": \"f\", \"arguments\": {\"a\": 1}}\n</tool_call><tool_call>\n{\"name\": \"g\", \"arguments\": {}}\n</tool_call>";

fn request() -> Value {
    let schema = json!({"type": "object", "properties": {"a": {"type": "integer"}}});
    let tool = |name: &str| json!({"name": name, "description": "d", "input_schema": schema});
    json!({"model": "m", "max_tokens": 300, "system": "S", "messages": [{"role": "user", "content": "Hi"}],
        "tools": [tool("f"), tool("g")]})
}

/// The events with their names, which are their types.
fn named(answer: &Answer) -> Vec<Value> {
    let event = |event: &str| {
        let (name, data) = event.split_once('\n').unwrap();
        let data: Value = serde_json::from_str(data.strip_prefix("data: ").unwrap()).unwrap();
        assert_eq!(data["type"], name.strip_prefix("event: ").unwrap());
        data
    };
    answer.body.strip_suffix("\n\n").unwrap().split("\n\n").map(event).collect()
}

/// The content that the events add up to; ids left out.
fn assembled(events: &[Value]) -> Vec<Value> {
    let mut blocks: Vec<Value> = Vec::new();
    let mut arguments = String::new();
    for event in events {
        let index = event["index"].as_u64().unwrap_or_default() as usize;
        match event["type"].as_str().unwrap() {
            "content_block_start" => {
                assert_eq!(index, blocks.len());
                blocks.push(event["content_block"].clone());
            }
            "content_block_delta" => {
                let delta = &event["delta"];
                let (field, piece) = match delta["type"].as_str().unwrap() {
                    "text_delta" => ("text", &delta["text"]),
                    "thinking_delta" => ("thinking", &delta["thinking"]),
                    "input_json_delta" => {
                        arguments.push_str(delta["partial_json"].as_str().unwrap());
                        continue;
                    }
                    other => panic!("{other}"),
                };
                let text = format!("{}{}", blocks[index][field].as_str().unwrap(), piece.as_str().unwrap());
                blocks[index][field] = json!(text);
            }
            "content_block_stop" if blocks[index]["type"] == "tool_use" => {
                blocks[index]["input"] = serde_json::from_str(&arguments).unwrap();
                arguments.clear();
            }
            _ => {}
        }
    }
    without_ids(blocks)
}

fn without_ids(mut blocks: Vec<Value>) -> Vec<Value> {
    for block in &mut blocks {
        if let Some(id) = block.as_object_mut().unwrap().shift_remove("id") {
            assert!(id.as_str().unwrap().starts_with("toolu_"));
        }
    }
    blocks
}

#[tokio::test]
async fn blocks_come_whole_and_as_events() {
    let fixture = tool_fixture(REPLY).await;
    let answer = fixture.post("/v1/messages", &request()).await;
    assert_eq!(answer.status, 200, "{}", answer.body);
    assert_ne!(answer.header("x-generated-tokens"), "");
    let message = answer.json();
    assert_eq!(
        (&message["type"], &message["role"], &message["model"]),
        (&json!("message"), &json!("assistant"), &json!("m"))
    );
    assert_eq!((&message["stop_reason"], &message["stop_sequence"]), (&json!("tool_use"), &Value::Null));
    let content = without_ids(message["content"].as_array().unwrap().clone());
    assert_eq!(
        json!(content),
        json!([
            {"type": "thinking", "thinking": "hm", "signature": ""},
            {"type": "text", "text": "So:"},
            {"type": "tool_use", "name": "f", "input": {"a": 1}},
            {"type": "tool_use", "name": "g", "input": {}},
        ])
    );
    let prompt = fixture.model.script.heard.lock().unwrap()[0].1.clone();
    assert_eq!(byte_level().decode(&prompt), "<tool_call>f;<tool_call>g;[system]S[user]Hi>");
    assert_eq!(message["usage"]["input_tokens"], prompt.len());

    let mut streamed = request();
    streamed["stream"] = json!(true);
    let events = named(&fixture.post("/v1/messages", &streamed).await);
    assert_eq!(assembled(&events), content);
    let types: Vec<&str> = events.iter().map(|event| event["type"].as_str().unwrap()).collect();
    assert_eq!(types[..3], ["message_start", "ping", "content_block_start"]);
    assert_eq!(types[types.len() - 3..], ["content_block_stop", "message_delta", "message_stop"]);
    assert_eq!(events[0]["message"]["usage"]["input_tokens"], prompt.len());
    assert_eq!(events[0]["message"]["content"], json!([]));
    let last = &events[events.len() - 2];
    assert_eq!(last["delta"]["stop_reason"], "tool_use");
    assert_eq!(last["usage"]["output_tokens"], message["usage"]["output_tokens"]);
}

#[tokio::test]
async fn tool_results_are_turns_of_their_own() {
    let fixture = tool_fixture("a").await;
    let messages = json!([
        {"role": "user", "content": [{"type": "text", "text": "U", "cache_control": {"type": "ephemeral"}}]},
        {"role": "assistant", "content": [
            {"type": "thinking", "thinking": "hm", "signature": ""},
            {"type": "text", "text": "T"},
            {"type": "tool_use", "id": "c1", "name": "f", "input": {"a": 1}}]},
        {"role": "user", "content": [
            {"type": "tool_result", "tool_use_id": "c1", "content": [{"type": "text", "text": "1"}]},
            {"type": "text", "text": "Go on"}]},
    ]);
    let body = json!({"max_tokens": 5, "messages": messages});
    fixture.post("/v1/messages", &body).await;
    let prompt = fixture.model.script.heard.lock().unwrap()[0].1.clone();
    assert_eq!(
        byte_level().decode(&prompt),
        "[user]U[assistant]T[{\"id\": \"c1\", \"type\": \"function\", \"function\": {\"name\": \"f\", \"arguments\": {\"a\": 1}}}][tool]1[user]Go on>"
    );
    let count = fixture.post("/v1/messages/count_tokens", &json!({"messages": messages})).await;
    assert_eq!(count.json(), json!({"input_tokens": prompt.len()}));
}

#[tokio::test]
async fn ends_have_anthropics_names() {
    let fixture = tool_fixture("abcdef").await;
    let with = |fields: Value| {
        let mut body = json!({"max_tokens": 100, "messages": [{"role": "user", "content": "U"}]});
        body.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
        body
    };
    for (fields, reason, sequence, text) in [
        (json!({}), "end_turn", Value::Null, "abcdef"),
        (json!({"max_tokens": 2}), "max_tokens", Value::Null, "ab"),
        (json!({"stop_sequences": ["x", "cd"]}), "stop_sequence", json!("cd"), "ab"),
    ] {
        let message = fixture.post("/v1/messages", &with(fields)).await.json();
        assert_eq!((&message["stop_reason"], &message["stop_sequence"]), (&json!(reason), &sequence));
        assert_eq!(message["content"], json!([{"type": "text", "text": text}]));
    }
}

#[tokio::test]
async fn errors_have_anthropics_shape() {
    let fixture = tool_fixture("a").await;
    for (body, text) in [
        (json!({"messages": []}), "Input validation error: `max_tokens` must be given"),
        (
            json!({"max_tokens": 1, "messages": [{"role": "user", "content": [{"type": "image", "source": {}}]}]}),
            "Input validation error: `messages[0].content` of type `image` is not supported by this version",
        ),
        (
            json!({"max_tokens": 1, "messages": [], "system": [{"type": "text", "text": "S"}, {"type": "image"}]}),
            "Input validation error: `system[1]` of type `image` is not supported by this version",
        ),
        (
            json!({"max_tokens": 1, "messages": [], "tools": [{"type": "web_search_20250305", "name": "web_search"}]}),
            "Input validation error: `tools[0]` of type `web_search_20250305` is not supported by this version",
        ),
        (
            json!({"max_tokens": 1, "messages": [], "tool_choice": {"type": "tool"}}),
            "Input validation error: `tool_choice` must be of type `auto`, `any`, `none`, or `tool` with a `name`",
        ),
        (
            json!({"max_tokens": 1, "messages": [], "mcp_servers": [{}]}),
            "Input validation error: `mcp_servers` is not supported by this version",
        ),
    ] {
        let answer = fixture.post("/v1/messages", &body).await;
        assert_eq!(answer.status, 400, "{body}");
        assert_eq!(
            answer.json(),
            json!({"type": "error", "error": {"type": "invalid_request_error", "message": text}})
        );
    }
}
