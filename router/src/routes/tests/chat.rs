//! Chat completions: tools, reasoning, formats, several choices, log-probabilities; and that a stream says what the
//! whole answer says.

use super::*;

/// A template of a model that calls tools and thinks. `think` makes it open the thought itself.
pub(super) const TOOL_TEMPLATE: &str = "{% for t in tools or [] %}<tool_call>{{ t.function.name }};{% endfor %}{% for m in messages %}[{{ m.role }}]{{ m.content }}{% if m.tool_calls %}{{ m.tool_calls | tojson }}{% endif %}{% endfor %}{% if add_generation_prompt %}>{% endif %}{% if think %}<think>{% endif %}{# </think> #}";

pub(super) const LONG_CONTEXT: u32 = 512;

pub(super) async fn tool_fixture(reply: &str) -> Fixture {
    Fixture::with(reply, &[], TOOL_TEMPLATE, LONG_CONTEXT).await
}

pub(super) fn tool(name: &str) -> Value {
    json!({"type": "function", "function": {"name": name, "parameters": {"type": "object", "properties": {"a": {"type": "integer"}}}}})
}

fn user() -> Value {
    json!([{"role": "user", "content": "Hi"}])
}

/// What a stream's deltas of one choice add up to, as the message of a whole answer.
fn assembled(events: &[Value], index: usize) -> Value {
    let (mut content, mut reasoning, mut finish) = (String::new(), String::new(), Value::Null);
    let (mut calls, mut function): (Vec<Value>, Option<Value>) = (Vec::new(), None);
    for event in events.iter().filter(|event| event["choices"][0]["index"] == index) {
        let choice = &event["choices"][0];
        let delta = &choice["delta"];
        assert_eq!(delta["role"], "assistant");
        content.push_str(delta["content"].as_str().unwrap_or_default());
        reasoning.push_str(delta["reasoning_content"].as_str().unwrap_or_default());
        for piece in delta["tool_calls"].as_array().unwrap_or(&Vec::new()) {
            let at = piece["index"].as_u64().unwrap() as usize;
            if at == calls.len() {
                assert!(piece["id"].as_str().unwrap().starts_with("call_"));
                assert_eq!(piece["type"], "function");
                calls.push(json!({"function": {"name": piece["function"]["name"], "arguments": ""}}));
            } else {
                assert!(piece.get("id").is_none() && piece["function"].get("name").is_none());
            }
            append(&mut calls[at]["function"]["arguments"], &piece["function"]["arguments"]);
        }
        if let Some(piece) = delta.get("function_call") {
            let function = function.get_or_insert_with(|| json!({"name": piece["name"], "arguments": ""}));
            append(&mut function["arguments"], &piece["arguments"]);
        }
        assert_eq!(finish, Value::Null, "nothing follows the finish reason");
        finish = choice["finish_reason"].clone();
    }
    json!({"content": content, "reasoning": reasoning, "calls": calls, "function": function, "finish": finish})
}

fn append(text: &mut Value, piece: &Value) {
    *text = json!(format!("{}{}", text.as_str().unwrap(), piece.as_str().unwrap()));
}

/// The same of a whole answer's choice.
fn whole(choice: &Value) -> Value {
    let message = &choice["message"];
    let call = |call: &Value| {
        assert!(call["id"].as_str().unwrap().starts_with("call_"));
        json!({"function": call["function"]})
    };
    let calls: Vec<Value> = message["tool_calls"].as_array().into_iter().flatten().map(call).collect();
    json!({"content": message["content"].as_str().unwrap_or_default(),
        "reasoning": message["reasoning_content"].as_str().unwrap_or_default(),
        "calls": calls, "function": message.get("function_call"), "finish": choice["finish_reason"]})
}

/// Runs `body` both ways and returns the choices of the whole answer, which the stream's deltas add up to.
async fn both(reply: &str, body: Value) -> Value {
    let fixture = tool_fixture(reply).await;
    let answer = fixture.post("/v1/chat/completions", &body).await;
    assert_eq!(answer.status, 200, "{}", answer.body);
    let answer = answer.json();
    let mut streamed = body;
    streamed["stream"] = json!(true);
    streamed["stream_options"] = json!({"include_usage": true});
    let events = fixture.post("/v1/chat/completions", &streamed).await.events();
    for (index, choice) in answer["choices"].as_array().unwrap().iter().enumerate() {
        assert_eq!(assembled(&events, index), whole(choice));
    }
    let mut usage = events[events.len() - 2]["usage"].clone();
    // The second run finds the prompt of the first in the prefix cache.
    usage["prompt_tokens_details"] = answer["usage"]["prompt_tokens_details"].clone();
    assert_eq!(usage, answer["usage"]);
    answer
}

const CALLS: &str = "<think>hm é</think>So:<tool_call>\n{\"name\": \"f\", \"arguments\": {\"a\": 1}}\n</tool_call><tool_call>\n{\"name\": \"g\", \"arguments\": {}}\n</tool_call>";

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
async fn reasoning_content_and_calls_come_apart() {
    let answer = both(CALLS, json!({"messages": user(), "tools": [tool("f"), tool("g")]})).await;
    let choice = &answer["choices"][0];
    assert_eq!((&choice["finish_reason"], &choice["message"]["content"]), (&json!("tool_calls"), &json!("So:")));
    assert_eq!(choice["message"]["reasoning_content"], "hm é");
    let calls = choice["message"]["tool_calls"].as_array().unwrap();
    assert_eq!(calls.len(), 2);
    let arguments: Value = serde_json::from_str(calls[0]["function"]["arguments"].as_str().unwrap()).unwrap();
    assert_eq!((&calls[0]["function"]["name"], arguments), (&json!("f"), json!({"a": 1})));
    assert_ne!(calls[0]["id"], calls[1]["id"]);
    let reasoning = answer["usage"]["completion_tokens_details"]["reasoning_tokens"].as_u64().unwrap();
    assert!((5..=24).contains(&reasoning), "the thought has 5 bytes and 19 around it: {reasoning}");
}

#[tokio::test]
async fn a_reply_of_calls_only_has_null_content() {
    let reply = "<tool_call>\n{\"name\": \"f\", \"arguments\": {\"a\": 1}}\n</tool_call>";
    let answer = both(reply, json!({"messages": user(), "tools": [tool("f")]})).await;
    let message = &answer["choices"][0]["message"];
    assert_eq!(message["content"], Value::Null);
    assert!(message.get("reasoning_content").is_none() && message.get("function_call").is_none());
}

#[tokio::test]
async fn without_tools_a_call_is_text() {
    let reply = "<tool_call>{}</tool_call>";
    for body in [json!({}), json!({"tools": []}), json!({"tools": [tool("f")], "tool_choice": "none"})] {
        let mut request = json!({"messages": user()});
        request.as_object_mut().unwrap().extend(body.as_object().unwrap().clone());
        let answer = both(reply, request).await;
        assert_eq!(answer["choices"][0]["message"]["content"], reply);
        assert_eq!(answer["choices"][0]["finish_reason"], "stop");
    }
}

#[tokio::test]
async fn a_cut_reply_ends_with_length() {
    let body = json!({"messages": user(), "tools": [tool("f")], "max_tokens": 60});
    let answer = both(CALLS, body).await;
    assert_eq!(answer["choices"][0]["finish_reason"], "length");
}

#[tokio::test]
async fn the_older_function_form_is_answered_in_kind() {
    let reply = "<tool_call>\n{\"name\": \"f\", \"arguments\": {\"a\": 1}}\n</tool_call>";
    let functions = json!([{"name": "f", "parameters": {"type": "object"}}]);
    let answer = both(reply, json!({"messages": user(), "functions": functions, "function_call": "auto"})).await;
    let choice = &answer["choices"][0];
    assert_eq!(choice["finish_reason"], "function_call");
    assert_eq!(choice["message"]["function_call"]["name"], "f");
    assert!(choice["message"].get("tool_calls").is_none());
}

#[tokio::test]
async fn reasoning_can_be_left_out() {
    let answer = both(CALLS, json!({"messages": user(), "include_reasoning": false})).await;
    assert!(answer["choices"][0]["message"].get("reasoning_content").is_none());
    assert!(answer["usage"]["completion_tokens_details"]["reasoning_tokens"].as_u64().unwrap() > 0, "it was paid for");
    let body = json!({"messages": user(), "chat_template_kwargs": {"think": true}});
    let answer = both("thought</think>said", body).await;
    let message = &answer["choices"][0]["message"];
    assert_eq!((&message["reasoning_content"], &message["content"]), (&json!("thought"), &json!("said")));
}

/// The format of an object with one integer.
fn integer_format() -> Value {
    json!({"type": "json_schema", "json_schema": {"schema": {
        "type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"], "additionalProperties": false}}})
}

#[tokio::test]
async fn a_format_binds_the_answer_and_not_the_thought() {
    let thought = "Maybe {\"a\": \"x\"}?";
    for (reply, think) in [
        (format!("{thought}\n</think>\n\n{{\"a\": 12}}"), true),
        (format!("<think>\n{thought}</think>{{\"a\": 12}}"), false),
        // What the format refuses is not said: the mask has the last word.
        (format!("<think>{thought}</think>Yes: {{\"a\": 12}}"), false),
    ] {
        let body = json!({"messages": user(), "response_format": integer_format(),
            "chat_template_kwargs": {"think": think}, "max_tokens": 120});
        let answer = both(&reply, body).await;
        let choice = &answer["choices"][0];
        assert_eq!(choice["message"]["reasoning_content"], thought, "{reply}");
        let content: Value = serde_json::from_str(choice["message"]["content"].as_str().unwrap()).unwrap();
        assert!(content["a"].is_i64(), "{reply}: {content}");
        assert_eq!(choice["finish_reason"], "stop", "{reply}");
        assert!(answer["usage"]["completion_tokens_details"]["reasoning_tokens"].as_u64().unwrap() > 10);
    }
    // Without a thought the answer stands alone, and marks in it are text.
    let reply = "{\"a\": 12}";
    let body = json!({"messages": user(), "response_format": integer_format()});
    assert_eq!(both(reply, body).await["choices"][0]["message"]["content"], reply);
    let marks = "{\"b\": \"<think>c</think>\"}";
    let body = json!({"messages": user(), "response_format": {"type": "json_object"}});
    let answer = both(marks, body).await;
    assert_eq!(answer["choices"][0]["message"]["content"], marks);
    assert!(answer["choices"][0]["message"].get("reasoning_content").is_none());
}

#[tokio::test]
async fn a_thought_and_its_answer_must_fit() {
    let fixture = tool_fixture("").await;
    let choice = |think: bool, max_tokens: u32| {
        json!({"messages": user(), "guided_choice": ["yes"], "max_tokens": max_tokens,
            "chat_template_kwargs": {"think": think}})
    };
    assert_eq!(fixture.post("/v1/chat/completions", &choice(false, 3)).await.status, 200);
    let answer = fixture.post("/v1/chat/completions", &choice(true, 3)).await;
    assert_eq!(answer.status, 422);
    assert!(answer.body.contains('4'), "{}", answer.body);
}

#[tokio::test]
async fn thinking_that_is_off_leaves_the_format_alone() {
    let thought = "<think>no</think>{\"a\": 1}";
    let off = "{% for m in messages %}{{ m.content }}{% endfor %}{% if enable_thinking is defined and not enable_thinking %}{{ '' }}{% endif %}{# <think> #}>";
    let over = "{% for m in messages %}{{ m.content }}{% endfor %}{% if add_generation_prompt %}<think>\n\n</think>\n\n{% endif %}";
    for (template, fields) in [
        (off, json!({"reasoning_effort": "none"})),
        (off, json!({"chat_template_kwargs": {"enable_thinking": false}})),
        (over, json!({})),
        (off, json!({"messages": [{"role": "user", "content": "U"}, {"role": "assistant", "content": "A"}]})),
    ] {
        let fixture = Fixture::with(thought, &[], template, LONG_CONTEXT).await;
        let mut body = json!({"messages": user(), "guided_choice": ["ab"]});
        body.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
        let answer = fixture.post("/v1/chat/completions", &body).await.json();
        assert_eq!(answer["choices"][0]["message"]["content"], "ab", "{template} {fields}");
        assert!(answer["choices"][0]["message"].get("reasoning_content").is_none(), "{template} {fields}");
    }
    let fixture = Fixture::with(thought, &[], off, LONG_CONTEXT).await;
    let body = json!({"messages": user(), "guided_choice": ["ab"]});
    let answer = fixture.post("/v1/chat/completions", &body).await.json();
    assert_eq!(answer["choices"][0]["message"]["reasoning_content"], "no");
}

#[tokio::test]
async fn several_choices_share_the_prompt() {
    let answer = both("ab", json!({"messages": user(), "n": 3, "temperature": 1, "seed": 5})).await;
    let choices = answer["choices"].as_array().unwrap();
    let indices: Vec<u64> = choices.iter().map(|choice| choice["index"].as_u64().unwrap()).collect();
    assert_eq!(indices, [0, 1, 2]);
    assert_eq!(answer["usage"]["prompt_tokens"], "[user]Hi>".len());
    assert_eq!(answer["usage"]["completion_tokens"], 9);
    let fixture = tool_fixture("ab").await;
    let answer = fixture.post("/v1/chat/completions", &json!({"messages": user(), "n": 2, "seed": 5})).await;
    assert_eq!(answer.header("x-compute-characters"), "9");
    let heard = fixture.model.script.heard.lock().unwrap();
    let mut seeds: Vec<u64> = heard.iter().map(|(params, _)| params.seed()).collect();
    seeds.sort_unstable();
    assert_eq!(seeds, [5, 6], "the same request gives the same answers again");
}

#[tokio::test]
async fn tools_and_results_reach_the_template() {
    let fixture = tool_fixture("a").await;
    let messages = json!([
        {"role": "developer", "content": "D"},
        {"role": "user", "content": "U"},
        {"role": "assistant", "content": null, "tool_calls": [
            {"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{\"a\": 1}"}}]},
        {"role": "tool", "tool_call_id": "c1", "content": "1"},
    ]);
    let body = json!({"messages": messages, "tools": [tool("f"), tool("g")], "tool_choice": "auto"});
    let prompt = fixture.post("/chat_tokenize", &body).await.json()["templated_text"].take();
    assert_eq!(
        prompt,
        "<tool_call>f;<tool_call>g;[system]D[user]U[assistant][{\"id\": \"c1\", \"type\": \"function\", \"function\": {\"name\": \"f\", \"arguments\": {\"a\": 1}}}][tool]1>"
    );
    let named = json!({"messages": user(), "tools": [tool("f"), tool("g")],
        "tool_choice": {"type": "function", "function": {"name": "g"}}, "tool_prompt": "Use it."});
    let prompt = fixture.post("/chat_tokenize", &named).await.json()["templated_text"].take();
    assert_eq!(prompt, "<tool_call>g;[user]Hi\n---\nUse it.>");
    let none = json!({"messages": user(), "tools": [tool("f")], "tool_choice": "none"});
    assert_eq!(fixture.post("/chat_tokenize", &none).await.json()["templated_text"], "[user]Hi>");
}

#[tokio::test]
async fn only_allowed_tools_are_called() {
    let call = |name: &str| format!("<tool_call>\n{{\"name\": \"{name}\", \"arguments\": {{\"a\": 1}}}}\n</tool_call>");
    let allowed = |mode: &str, names: &[&str]| {
        let tools: Vec<Value> =
            names.iter().map(|name| json!({"type": "function", "function": {"name": name}})).collect();
        json!({"messages": user(), "tools": [tool("ff"), tool("g")],
            "tool_choice": {"type": "allowed_tools", "allowed_tools": {"mode": mode, "tools": tools}}})
    };
    let answer = both(&call("g"), allowed("auto", &["g"])).await;
    assert_eq!(answer["choices"][0]["message"]["tool_calls"][0]["function"]["name"], "g");
    // What the model wants to call is not allowed: the mask leaves one name.
    let answer = both(&call("ff"), allowed("required", &["g"])).await;
    assert_eq!(answer["choices"][0]["message"]["tool_calls"][0]["function"]["name"], "g");
    let answer = both("No.", allowed("auto", &["g"])).await;
    assert_eq!(answer["choices"][0]["message"]["content"], "No.");
    let fixture = tool_fixture(&call("g")).await;
    let prompt = fixture.post("/chat_tokenize", &allowed("auto", &["g"])).await.json()["templated_text"].take();
    assert_eq!(prompt, "<tool_call>ff;<tool_call>g;[user]Hi>", "the model sees all");
    let answer = fixture.post("/v1/chat/completions", &allowed("auto", &["g", "h"])).await;
    assert_eq!(answer.json()["error"]["message"], "Tool error: Tool with name h not found");
    assert_eq!(fixture.post("/v1/chat/completions", &allowed("required", &[])).await.status, 422);
    let function = |name: &str| json!({"type": "function", "name": name, "parameters": {"type": "object"}});
    let body = json!({"input": "Hi", "tools": [function("ff"), function("g")],
        "tool_choice": {"type": "allowed_tools", "mode": "required", "tools": [{"type": "function", "name": "ff"}]}});
    let answer = fixture.post("/v1/responses", &body).await.json();
    assert_eq!(answer["output"][0]["name"], "ff", "{answer}");
}

#[tokio::test]
async fn usage_can_come_with_every_chunk() {
    let fixture = tool_fixture("ab").await;
    for (path, mut body) in [
        ("/v1/chat/completions", json!({"messages": user(), "n": 2})),
        ("/v1/completions", json!({"prompt": ["xy", "z"], "max_tokens": 3})),
    ] {
        body["stream"] = json!(true);
        body["stream_options"] = json!({"include_usage": true, "continuous_usage_stats": true});
        let events = fixture.post(path, &body).await.events();
        let usages: Vec<&Value> = events.iter().filter_map(|event| event.get("usage")).collect();
        assert_eq!(usages.len(), 7, "three tokens twice, and the sum: {events:?}");
        let last = usages[6];
        for (index, usage) in usages[..6].iter().enumerate() {
            assert_eq!(usage["completion_tokens"], index + 1, "{path}");
            assert_eq!(usage["prompt_tokens"], last["prompt_tokens"], "{path}");
        }
        assert_eq!(
            (usages[5]["total_tokens"].clone(), usages[5]["completion_tokens"].clone()),
            (last["total_tokens"].clone(), last["completion_tokens"].clone())
        );
        body["stream_options"] = json!({"continuous_usage_stats": true});
        let events = fixture.post(path, &body).await.events();
        assert_eq!(events.len(), 7, "no event for the sum alone");
        assert!(events[..6].iter().all(|event| event["usage"]["prompt_tokens"].is_u64()), "{path}");
    }
}

#[tokio::test]
async fn templates_without_tools_get_them_in_the_last_message() {
    let fixture = Fixture::with("a", &[], TEMPLATE, LONG_CONTEXT).await;
    let body = json!({"messages": user(), "tools": [tool("f")], "tool_prompt": "Use it."});
    let prompt = fixture.post("/chat_tokenize", &body).await.json()["templated_text"].take();
    let prompt = prompt.as_str().unwrap();
    assert!(prompt.starts_with("[user]Hi\n---\n") && prompt.ends_with("Use it.>"), "{prompt}");
    assert!(prompt.contains("\"name\":\"f\""), "{prompt}");
}

#[tokio::test]
async fn a_begun_message_is_continued_and_echoed() {
    let fixture = tool_fixture("b").await;
    let messages = json!([{"role": "user", "content": "U"}, {"role": "assistant", "content": "a"}]);
    for (fields, prompt, content) in [
        (json!({}), "[user]U[assistant]a", "b"),
        (json!({"echo": true}), "[user]U[assistant]a", "ab"),
        (json!({"continue_final_message": true, "add_generation_prompt": false}), "[user]U[assistant]a", "b"),
        (json!({"continue_final_message": false, "echo": true}), "[user]U[assistant]a>", "b"),
        (json!({"add_generation_prompt": true}), "[user]U[assistant]a>", "b"),
    ] {
        let mut body = json!({"messages": messages});
        body.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
        assert_eq!(fixture.post("/chat_tokenize", &body).await.json()["templated_text"], prompt, "{fields}");
        let answer = fixture.post("/v1/chat/completions", &body).await.json();
        assert_eq!(answer["choices"][0]["message"]["content"], content, "{fields}");
    }
}

#[tokio::test]
async fn log_probabilities_have_the_tokens_bytes() {
    let fixture = Fixture::new("é").await;
    let body = json!({"messages": user(), "logprobs": true, "top_logprobs": 1, "temperature": 0});
    let answer = fixture.post("/v1/chat/completions", &body).await.json();
    let content = answer["choices"][0]["logprobs"]["content"].as_array().unwrap();
    assert_eq!(content.len(), 3, "two bytes and the end");
    assert_eq!((&content[0]["token"], &content[0]["bytes"]), (&json!("\\xc3"), &json!([0xC3])));
    assert_eq!((&content[1]["bytes"], &content[2]["token"]), (&json!([0xA9]), &json!("</s>")));
    assert_eq!(content[0]["top_logprobs"][0]["bytes"], json!([0xC3]));
    let events = fixture
        .post("/v1/chat/completions", &json!({"messages": user(), "logprobs": true, "stream": true, "temperature": 0}))
        .await
        .events();
    let entries: Vec<&Value> =
        events.iter().filter_map(|event| event.pointer("/choices/0/logprobs/content/0")).collect();
    assert_eq!(entries.len(), 3);
    assert_eq!(entries[0]["top_logprobs"], json!([]));
}

#[tokio::test]
async fn more_alternatives_than_the_native_limit() {
    let fixture = Fixture::new("a").await;
    let chat = |top: u32| json!({"messages": user(), "logprobs": true, "top_logprobs": top, "temperature": 0});
    let answer = fixture.post("/v1/chat/completions", &chat(20)).await.json();
    assert_eq!(answer["choices"][0]["logprobs"]["content"][0]["top_logprobs"].as_array().unwrap().len(), 20);
    let answer = fixture.post("/v1/chat/completions", &chat(21)).await;
    let text = "Input validation error: `top_logprobs` must be >= 0 and <= 20. Given: 21";
    assert_eq!(answer.status, 422);
    assert_eq!(answer.json()["error"]["message"], text);
    let answer = fixture.post("/v1/completions", &json!({"prompt": "a", "logprobs": 21})).await;
    assert_eq!(answer.json()["error"]["param"], "logprobs");
    let answer = fixture.post("/generate", &json!({"inputs": "a", "parameters": {"top_n_tokens": 6}})).await;
    assert_eq!(answer.status, 422);
}

#[tokio::test]
async fn every_protocol_switches_thinking_by_the_templates_own_variable() {
    for (variable, on, off) in
        [("enable_thinking", "true", "false"), ("thinking", "true", "false"), ("thinking_budget", "-", "0")]
    {
        let template = format!("{{{{ {variable} | default('-') | tojson | replace('\"', '') }}}}>");
        let fixture = Fixture::with("a", &[], &template, LONG_CONTEXT).await;
        let requests = [
            ("/v1/chat/completions", json!({"messages": user(), "reasoning_effort": "low"}), on),
            ("/v1/chat/completions", json!({"messages": user(), "reasoning_effort": "none"}), off),
            ("/v1/chat/completions", json!({"messages": user()}), "-"),
            (
                "/v1/chat/completions",
                json!({"messages": user(), "reasoning_effort": "none", "chat_template_kwargs": {variable: 7}}),
                "7",
            ),
            ("/v1/responses", json!({"input": "Hi", "reasoning": {"effort": "none"}}), off),
            ("/v1/messages", json!({"max_tokens": 9, "messages": user(), "thinking": {"type": "disabled"}}), off),
            (
                "/v1/messages",
                json!({"max_tokens": 9, "messages": user(), "thinking": {"type": "enabled", "budget_tokens": 1024}}),
                on,
            ),
            ("/v1/messages", json!({"max_tokens": 9, "messages": user(), "thinking": {"type": "adaptive"}}), "-"),
        ];
        for (path, body, expected) in &requests {
            let answer = fixture.post(path, body).await;
            assert_eq!(answer.status, 200, "{}", answer.body);
            let prompt = fixture.model.script.heard.lock().unwrap().pop().unwrap().1;
            assert_eq!(byte_level().decode(&prompt), format!("{expected}>"), "{variable} {path} {body}");
        }
    }
}

#[tokio::test]
async fn contradictions_are_named() {
    let fixture = tool_fixture("a").await;
    for (fields, text, param) in [
        (json!({"tools": [tool("f")], "tool_choice": "g"}), "Tool error: Tool with name g not found", "tools"),
        (
            json!({"tool_choice": "required"}),
            "Tool error: `tool_choice` asks for a call and there are no tools",
            "tools",
        ),
        (
            json!({"tools": [tool("f")], "response_format": {"type": "json_object"}}),
            "Tool error: Grammar and tools are mutually exclusive",
            "tools",
        ),
        (
            json!({"response_format": {"type": "json_object"}, "guided_regex": "a"}),
            "Input validation error: `guided_*` cannot be combined with `response_format`",
            "guided_*",
        ),
        (
            json!({"continue_final_message": true, "add_generation_prompt": true}),
            "Input validation error: `continue_final_message` cannot be combined with `add_generation_prompt`",
            "continue_final_message",
        ),
        (
            json!({"tools": [{"type": "web_search"}]}),
            "Input validation error: `tools[0]` of type `web_search` is not supported by this version",
            "tools",
        ),
        (
            json!({"tools": vec![tool("f"); 129]}),
            "Input validation error: `tools` must have at most 128 tools. Given: 129",
            "tools",
        ),
        (
            json!({"stop_token_ids": [7]}),
            "Input validation error: `stop_token_ids` is not supported by this version",
            "stop_token_ids",
        ),
        (
            json!({"bad_words": vec!["a"; 257]}),
            "Input validation error: `bad_words` must have at most 256 strings. Given: 257",
            "bad_words",
        ),
    ] {
        let mut body = json!({"messages": user()});
        body.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
        let answer = fixture.post("/v1/chat/completions", &body).await;
        assert_eq!(answer.status, 422, "{fields}");
        let error = answer.json()["error"].take();
        assert_eq!((error["message"].as_str(), error["param"].as_str()), (Some(text), Some(param)));
    }
}

#[tokio::test]
async fn a_model_is_found_by_its_name() {
    let fixture = Fixture::new("a").await;
    let list = fixture.get("/v1/models").await.json();
    assert_eq!((&list["object"], &list["data"][0]["id"]), (&json!("list"), &json!("demo")));
    assert!(list["data"][0]["created"].as_u64().unwrap() > 1_600_000_000);
    assert_eq!(list["data"][0]["max_model_len"], CONTEXT);
    assert_eq!(fixture.get("/v1/models/demo").await.json(), list["data"][0]);
    let answer = fixture.get("/v1/models/org/other").await;
    assert_eq!(answer.status, 404);
    let error = answer.json()["error"].take();
    assert_eq!(error["message"], "The model `org/other` does not exist");
    assert_eq!((&error["code"], &error["param"]), (&json!("model_not_found"), &json!("model")));
}

#[tokio::test]
async fn tokens_become_text_again() {
    let fixture = Fixture::new("a").await;
    let tokens = fixture.post("/tokenize", &json!({"inputs": "aé"})).await.json();
    let ids: Vec<&Value> = tokens.as_array().unwrap().iter().map(|token| &token["id"]).collect();
    assert_eq!(fixture.post("/detokenize", &json!({"tokens": ids})).await.body, r#"{"prompt":"aé"}"#);
    assert_eq!(fixture.post("/detokenize", &json!({"tokens": [4_000_000_000u32]})).await.body, r#"{"prompt":""}"#);
}
