//! The responses API: items, tools, formats, typed events.

use super::chat::tool_fixture;
use super::*;

const REPLY: &str = "<think>hm</think>So:<tool_call>\n{\"name\": \"f\", \"arguments\": {\"a\": 1}}\n</tool_call><tool_call>\n{\"name\": \"g\", \"arguments\": {}}\n</tool_call>";

fn tool(name: &str) -> Value {
    let parameters = json!({"type": "object", "properties": {"a": {"type": "integer"}}});
    json!({"type": "function", "name": name, "parameters": parameters, "strict": true})
}

fn request() -> Value {
    json!({"input": "Hi", "instructions": "S", "tools": [tool("f"), tool("g")], "metadata": {"k": "v"}})
}

/// An item without its ids, which must have their prefixes.
fn bare(item: &Value) -> Value {
    let mut item = item.clone();
    let kind = item["type"].as_str().unwrap().to_owned();
    let id = item.as_object_mut().unwrap().shift_remove("id").unwrap();
    let prefix = match kind.as_str() {
        "message" => "msg_",
        "reasoning" => "rs_",
        _ => "fc_",
    };
    assert!(id.as_str().unwrap().starts_with(prefix));
    if let Some(call_id) = item.as_object_mut().unwrap().shift_remove("call_id") {
        assert!(call_id.as_str().unwrap().starts_with("call_"));
    }
    item
}

fn events_of(answer: &Answer) -> Vec<Value> {
    let event = |(number, event): (usize, &str)| {
        let (name, data) = event.split_once('\n').unwrap();
        let data: Value = serde_json::from_str(data.strip_prefix("data: ").unwrap()).unwrap();
        assert_eq!(data["type"], name.strip_prefix("event: ").unwrap());
        assert_eq!(data["sequence_number"], number);
        data
    };
    answer.body.strip_suffix("\n\n").unwrap().split("\n\n").enumerate().map(event).collect()
}

#[tokio::test]
async fn text_can_have_log_probabilities() {
    let fixture = tool_fixture(REPLY).await;
    let text_of = |entries: &Value| -> String {
        entries.as_array().unwrap().iter().map(|entry| entry["token"].as_str().unwrap()).collect()
    };
    let mut body = request();
    body["include"] = json!(["message.output_text.logprobs", "reasoning.encrypted_content"]);
    body["top_logprobs"] = json!(2);
    let response = fixture.post("/v1/responses", &body).await.json();
    let logprobs = &response["output"][1]["content"][0]["logprobs"];
    assert_eq!(text_of(logprobs), "So:", "what is thought and called has none");
    assert_eq!((&logprobs[0]["bytes"], logprobs[0]["top_logprobs"].as_array().unwrap().len()), (&json!([83]), 2));

    body["stream"] = json!(true);
    let events = events_of(&fixture.post("/v1/responses", &body).await);
    let of = |name: &str| events.iter().filter(|event| event["type"] == name).collect::<Vec<_>>();
    let deltas: Vec<Value> =
        of("response.output_text.delta").iter().flat_map(|e| e["logprobs"].as_array().unwrap().clone()).collect();
    // The seeds of the two requests differ, and so do their log-probabilities.
    assert_eq!(text_of(&json!(deltas)), "So:");
    assert_eq!(of("response.output_text.done")[0]["logprobs"], json!(deltas));
    assert_eq!(of("response.content_part.done")[1]["part"]["logprobs"], json!(deltas));
    let output = &of("response.completed")[0]["response"]["output"];
    assert_eq!(output[1]["content"][0]["logprobs"], json!(deltas));

    let asked =
        |include: Value, top: Value| json!({"input": "Hi", "include": include, "top_logprobs": top, "temperature": 0});
    let answer = fixture.post("/v1/responses", &asked(json!(["message.output_text.logprobs"]), json!(null))).await;
    assert_eq!(answer.json()["output"][1]["content"][0]["logprobs"][0]["top_logprobs"], json!([]));
    let answer = fixture.post("/v1/responses", &asked(json!(["file_search_call.results"]), json!(0))).await;
    assert_eq!(answer.json()["output"][1]["content"][0]["logprobs"], json!([]));
    let answer = fixture.post("/v1/responses", &asked(json!(null), json!(21))).await;
    assert_eq!((answer.status.as_u16(), &answer.json()["error"]["param"]), (422, &json!("top_logprobs")));
    assert_eq!(fixture.post("/v1/responses", &asked(json!(vec!["a"; 17]), json!(0))).await.status, 422);
}

#[tokio::test]
async fn items_come_whole_and_as_events() {
    let fixture = tool_fixture(REPLY).await;
    let answer = fixture.post("/v1/responses", &request()).await;
    assert_eq!(answer.status, 200, "{}", answer.body);
    let response = answer.json();
    assert!(response["id"].as_str().unwrap().starts_with("resp_"));
    assert_eq!((&response["object"], &response["status"]), (&json!("response"), &json!("completed")));
    assert_eq!((&response["metadata"], &response["store"]), (&json!({"k": "v"}), &json!(false)));
    assert_eq!(response["text"], json!({"format": {"type": "text"}}));
    let items: Vec<Value> = response["output"].as_array().unwrap().iter().map(bare).collect();
    let call = |name: &str| json!({"type": "function_call", "status": "completed", "name": name});
    assert_eq!(
        json!(items[..2]),
        json!([
            {"type": "reasoning", "status": "completed", "summary": [], "content": [{"type": "reasoning_text", "text": "hm"}]},
            {"type": "message", "status": "completed", "role": "assistant",
                "content": [{"type": "output_text", "text": "So:", "annotations": [], "logprobs": []}]},
        ])
    );
    for (item, name, arguments) in [(&items[2], "f", json!({"a": 1})), (&items[3], "g", json!({}))] {
        let mut item = item.clone();
        let given = item.as_object_mut().unwrap().shift_remove("arguments").unwrap();
        assert_eq!(serde_json::from_str::<Value>(given.as_str().unwrap()).unwrap(), arguments);
        assert_eq!(item, call(name));
    }
    let prompt = fixture.model.script.heard.lock().unwrap()[0].1.clone();
    assert_eq!(byte_level().decode(&prompt), "<tool_call>f;<tool_call>g;[system]S[user]Hi>");
    assert_eq!(response["usage"]["input_tokens"], prompt.len());
    assert!(response["usage"]["output_tokens_details"]["reasoning_tokens"].as_u64().unwrap() >= 2);

    let mut streamed = request();
    streamed["stream"] = json!(true);
    let events = events_of(&fixture.post("/v1/responses", &streamed).await);
    assert_eq!((&events[0]["type"], &events[1]["type"]), (&json!("response.created"), &json!("response.in_progress")));
    assert_eq!(events[0]["response"]["status"], "in_progress");
    let last = events.last().unwrap();
    assert_eq!(last["type"], "response.completed");
    let ended: Vec<Value> = last["response"]["output"].as_array().unwrap().iter().map(bare).collect();
    assert_eq!(ended, items);
    assert_eq!(last["response"]["usage"]["output_tokens"], response["usage"]["output_tokens"]);
    // Each item's deltas are its text, between its begin and its end.
    for (index, item) in last["response"]["output"].as_array().unwrap().iter().enumerate() {
        let own: Vec<&Value> = events.iter().filter(|event| event["output_index"] == index).collect();
        assert_eq!((&own[0]["type"], &own[0]["item"]["id"]), (&json!("response.output_item.added"), &item["id"]));
        assert_eq!(own[0]["item"]["status"], "in_progress");
        let end = own.last().unwrap();
        assert_eq!((&end["type"], &end["item"]), (&json!("response.output_item.done"), item));
        let joined: String = own.iter().filter_map(|event| event["delta"].as_str()).collect();
        let text = item.pointer("/content/0/text").or(item.get("arguments")).unwrap();
        assert_eq!(text, &joined);
        assert!(own[1..own.len() - 1].iter().all(|event| event["item_id"] == item["id"]));
    }
}

#[tokio::test]
async fn a_cut_response_is_incomplete() {
    let fixture = tool_fixture("abcdef").await;
    let response = fixture.post("/v1/responses", &json!({"input": "Hi", "max_output_tokens": 2})).await.json();
    assert_eq!(response["status"], "incomplete");
    assert_eq!(response["incomplete_details"], json!({"reason": "max_output_tokens"}));
    assert_eq!(response["output"][0]["status"], "incomplete");
    let body = json!({"input": "Hi", "max_output_tokens": 2, "stream": true});
    let events = events_of(&fixture.post("/v1/responses", &body).await);
    assert_eq!(events.last().unwrap()["type"], "response.incomplete");
}

#[tokio::test]
async fn items_become_the_conversation() {
    let fixture = tool_fixture("a").await;
    let input = json!([
        {"role": "user", "content": [{"type": "input_text", "text": "U"}]},
        {"type": "reasoning", "id": "rs_1", "summary": [], "content": [{"type": "reasoning_text", "text": "hm"}]},
        {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "T", "annotations": []}]},
        {"type": "function_call", "call_id": "c1", "name": "f", "arguments": "{\"a\": 1}"},
        {"type": "function_call_output", "call_id": "c1", "output": "1"},
    ]);
    fixture.post("/v1/responses", &json!({"input": input, "max_output_tokens": 1})).await;
    let prompt = fixture.model.script.heard.lock().unwrap()[0].1.clone();
    assert_eq!(
        byte_level().decode(&prompt),
        "[user]U[assistant]T[{\"id\": \"c1\", \"type\": \"function\", \"function\": {\"name\": \"f\", \"arguments\": {\"a\": 1}}}][tool]1>"
    );
}

#[tokio::test]
async fn what_needs_memory_is_refused_by_name() {
    let fixture = tool_fixture("a").await;
    for (fields, field) in [
        (json!({"store": true}), "store"),
        (json!({"previous_response_id": "resp-1"}), "previous_response_id"),
        (json!({"conversation": "c"}), "conversation"),
        (json!({"background": true}), "background"),
        (json!({"truncation": "auto"}), "truncation"),
        (json!({"text": {"verbosity": "high"}}), "text.verbosity"),
    ] {
        let mut body = json!({"input": "Hi"});
        body.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
        let answer = fixture.post("/v1/responses", &body).await;
        assert_eq!(answer.status, 422);
        let text = format!("Input validation error: `{field}` is not supported by this version");
        assert_eq!(answer.json()["error"]["message"], text);
    }
    let answer = fixture.post("/v1/responses", &json!({"input": [{"type": "item_reference", "id": "x"}]})).await;
    assert_eq!(
        answer.json()["error"]["message"],
        "Input validation error: `input[0]` of type `item_reference` is not supported by this version"
    );
}
