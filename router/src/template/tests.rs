use serde_json::json;

use super::facts::{ArgumentsFormat, ContentFormat, EmptyContent};
use super::*;

/// A template with `<s>` and `</s>`.
pub(crate) fn template(text: &str) -> Result<ChatTemplate, Error> {
    Ok(templates(&[("default", text)]))
}

fn templates(named: &[(&str, &str)]) -> ChatTemplate {
    let special_tokens = json!({"bos_token": "<s>", "eos_token": "</s>"});
    let special_tokens = special_tokens.as_object().unwrap().clone();
    let templates = named.iter().map(|(name, text)| ((*name).to_owned(), (*text).to_owned())).collect();
    ChatTemplate::with_clock(TemplateSource { templates, special_tokens }, dialect::tests_clock).unwrap()
}

/// A request of OpenAI's field names; `ending` apart.
fn request(body: Json, ending: Ending) -> RenderRequest {
    let list = |name: &str| body[name].as_array().cloned().unwrap_or_default();
    RenderRequest {
        messages: list("messages"),
        tools: list("tools"),
        documents: body["documents"].as_array().cloned(),
        variables: body["chat_template_kwargs"].as_object().cloned().unwrap_or_default(),
        ending,
    }
}

#[track_caller]
fn check(template: &ChatTemplate, request: &RenderRequest, expected: &str) {
    let outcome = template.render(request).map_err(Error::from);
    assert_eq!(outcome.unwrap_or_else(|error| error.to_string()), expected);
}

#[track_caller]
fn check_texts(text: &str, messages: &[(&str, &str)], expected: &str) {
    let messages = messages.iter().map(|(role, content)| json!({"role": role, "content": content})).collect();
    check(&template(text).unwrap(), &RenderRequest { messages, ..RenderRequest::default() }, expected);
}

const CHATML: &str = "{% for m in messages %}\n<|{{ m.role }}|>{{ m['content'] | trim }}\n{% endfor %}\n{% if add_generation_prompt %}<|assistant|>{% endif %}";

/// Shows text and parts, tools, calls, results and documents.
const FULL: &str = "
{%- if tools %}[TOOLS]{{ tools | tojson }}{% endif %}
{%- if documents %}[DOCS]{{ documents | map(attribute='text') | join(',') }}{% endif %}
{%- for m in messages %}
    {%- if m.tool_calls %}
        {%- for call in m.tool_calls %}[CALL {{ call.function.name }}]{{ call.function.arguments | tojson }}{% endfor %}
    {%- elif m.content is string %}[{{ m.role }}]{{ m.content }}
    {%- else %}[{{ m.role }}]{% for part in m.content %}({{ part.text }}){% endfor %}
    {%- endif %}
    {%- if m.reasoning_content %}<think>{{ m.reasoning_content }}</think>{% endif %}
{%- endfor %}
{%- if add_generation_prompt %}[assistant]{% if enable_thinking is not defined or enable_thinking %}<think>{% endif %}{% endif %}";

fn tool_conversation(arguments: Json) -> Json {
    json!({"messages": [
        {"role": "user", "content": "?"},
        {"role": "assistant", "tool_calls": [{"id": "1", "type": "function", "function": {"name": "f", "arguments": arguments}}]},
        {"role": "tool", "tool_call_id": "1", "content": "42"},
    ], "tools": [{"type": "function", "function": {"name": "f"}}]})
}

#[test]
fn a_final_assistant_message_is_continued_by_tgis_rule() {
    check_texts(CHATML, &[("user", " hi ")], "<|user|>hi\n<|assistant|>");
    check_texts(CHATML, &[("user", "hi"), ("assistant", "Well, ")], "<|user|>hi\n<|assistant|>Well,\n<|assistant|>");
    check_texts(CHATML, &[("user", "hi"), ("assistant", "Well,")], "<|user|>hi\n<|assistant|>Well,");
}

#[test]
fn endings_are_the_two_flags_of_openai_compatible_servers() {
    let template = template(CHATML).unwrap();
    let body = json!({"messages": [{"role": "user", "content": "Well, "}, {"role": "assistant", "content": "Well, "}]});
    check(
        &template,
        &request(body.clone(), Ending::GenerationPrompt),
        "<|user|>Well,\n<|assistant|>Well,\n<|assistant|>",
    );
    check(&template, &request(body.clone(), Ending::Closed), "<|user|>Well,\n<|assistant|>Well,\n");
    // The template trims the message, and so the prompt ends without the space.
    check(&template, &request(body, Ending::ContinueFinalMessage), "<|user|>Well,\n<|assistant|>Well,");
    let untrimmed = self::template("{% for m in messages %}{{ m.content }}|{% endfor %}").unwrap();
    let body = json!({"messages": [{"role": "assistant", "content": " Well, "}]});
    check(&untrimmed, &request(body, Ending::ContinueFinalMessage), " Well, ");
    let parts = json!({"messages": [{"role": "assistant", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b "}]}]});
    check(&self::template(FULL).unwrap(), &request(parts, Ending::ContinueFinalMessage), "[assistant](a)(b ");
}

#[test]
fn what_cannot_be_continued_is_an_error() {
    let template = template("{{ messages[0].content | upper }}{{ messages | length }}").unwrap();
    let continued = |messages: Json| request(json!({"messages": messages}), Ending::ContinueFinalMessage);
    let error = |reason: &str| format!("Template error: the final message cannot be continued: {reason}");
    check(&template, &continued(json!([])), &error("`messages` is empty"));
    check(&template, &continued(json!([{"role": "assistant", "content": null}])), &error("it has no text content"));
    let shouted = continued(json!([{"role": "assistant", "content": "a"}]));
    check(&template, &shouted, &error("the chat template does not show it unchanged"));
}

#[test]
fn tools_documents_and_variables_reach_the_template() {
    let template = template(FULL).unwrap();
    check(
        &template,
        &request(
            json!({"messages": [{"role": "user", "content": "hi"}], "tools": [{"type": "function", "function": {"name": "é"}}],
                "documents": [{"title": "t", "text": "d"}], "chat_template_kwargs": {"enable_thinking": false}}),
            Ending::GenerationPrompt,
        ),
        r#"[TOOLS][{"type": "function", "function": {"name": "é"}}][DOCS]d[user]hi[assistant]"#,
    );
    let facts = template.facts(true).unwrap();
    assert!(facts.reads_tools() && facts.opens_reasoning);
    assert_eq!(facts.reasoning_switch(), Some("enable_thinking"));
    assert_eq!(facts.content, ContentFormat::Either);
    let marks = facts.reasoning.unwrap();
    assert!(marks.is_open_in("a<think>b") && !marks.is_open_in("a<think>b</think>") && !marks.is_open_in("a"));
    // An empty list of tools is none, as in transformers' callers.
    check(
        &self::template("{{ tools is none }}{{ documents is none }}").unwrap(),
        &RenderRequest::default(),
        "TrueTrue",
    );
}

#[test]
fn arguments_come_as_the_template_shows_them() {
    let expected = r#"[TOOLS][{"type": "function", "function": {"name": "f"}}][user]?[CALL f]{"b": 1, "a": [2.0]}[tool]42[assistant]<think>"#;
    let template = template(FULL).unwrap();
    for arguments in [json!("{\"b\": 1, \"a\": [2.0]}"), json!({"b": 1, "a": [2.0]})] {
        check(&template, &request(tool_conversation(arguments), Ending::GenerationPrompt), expected);
    }
    // No JSON object: it stays a text.
    let broken = request(tool_conversation(json!("{oops")), Ending::Closed);
    assert!(template.render(&broken).unwrap().contains(r#"[CALL f]"{oops"[tool]"#));
    // A template that writes the arguments as they are wants the text, and this one wants no null.
    let plain = "{% for m in messages %}{{ m.content + '.' }}{% for c in m.tool_calls %}{{ c.function.name + c.function.arguments }}{% endfor %}{% endfor %}";
    let template = self::template(plain).unwrap();
    let facts = template.facts(true).unwrap();
    assert_eq!((facts.arguments, facts.empty_content), (ArgumentsFormat::Text, EmptyContent::Text));
    check(&template, &request(tool_conversation(json!({"b": 1})), Ending::Closed), "?..f{\"b\":1}42.");
    // And this one would write `None`.
    let any = "{% for m in messages %}[{{ m.content }}]{{ (m.tool_calls or []) | tojson }}{% endfor %}";
    assert_eq!(self::template(any).unwrap().facts(true).unwrap().empty_content, EmptyContent::Text);
    // This one takes a call by its null content only.
    let null = "{% for m in messages %}{% if m.content is none %}{{ m.tool_calls[0].function | tojson }}{% else %}{{ m.content }}{% endif %}{% endfor %}";
    let template = self::template(null).unwrap();
    check(&template, &request(tool_conversation(json!("{}")), Ending::Closed), r#"?{"name": "f", "arguments": {}}42"#);
}

#[test]
fn content_comes_in_the_form_that_the_template_shows() {
    let parts = json!({"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}]});
    let text = json!({"messages": [{"role": "user", "content": "ab"}]});
    let text_only = template("{% for m in messages %}[{{ m.content | trim }}]{% endfor %}").unwrap();
    assert_eq!(text_only.facts(false).unwrap().content, ContentFormat::Text);
    check(&text_only, &request(parts.clone(), Ending::Closed), "[ab]");
    let parts_only =
        template("{% for m in messages %}{% for p in m.content %}({{ p['text'] }}){% endfor %}{% endfor %}").unwrap();
    assert_eq!(parts_only.facts(false).unwrap().content, ContentFormat::Parts);
    check(&parts_only, &request(text, Ending::Closed), "(ab)");
    check(&parts_only, &request(parts, Ending::Closed), "(a)(b)");
    let image = json!({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]});
    check(
        &text_only,
        &request(image, Ending::Closed),
        "Template error: `messages[0].content` has a part of type `image_url`, but the chat template shows text only",
    );
}

#[test]
fn reasoning_has_one_name_and_empty_calls_are_none() {
    let template = template(FULL).unwrap();
    for name in ["reasoning", "reasoning_content", "thinking"] {
        let body = json!({"messages": [{"role": "assistant", "content": "b", name: "a", "tool_calls": []}]});
        check(&template, &request(body, Ending::Closed), "[assistant]b<think>a</think>");
    }
    let calls = self::template("{{ 'tool_calls' in messages[0] }}").unwrap();
    check(
        &calls,
        &request(json!({"messages": [{"role": "assistant", "content": "b", "tool_calls": null}]}), Ending::Closed),
        "False",
    );
}

#[test]
fn the_tool_template_is_for_tools() {
    let template = templates(&[("default", "d"), ("tool_use", "t"), ("broken", "{% if %}")]);
    check(&template, &request(tool_conversation(json!("{}")), Ending::Closed), "t");
    check(&template, &RenderRequest::default(), "d");
    let nameless = templates(&[("rag", "r"), ("tool_use", "t")]);
    check(
        &nameless,
        &RenderRequest::default(),
        "Template error: the model has several chat templates and none is named `default`: rag, tool_use",
    );
}

#[test]
fn a_broken_template_is_an_error_of_the_chat_alone() {
    let template = template("a\n{% if %}").unwrap();
    let error = template.render(&RenderRequest::default()).unwrap_err().to_string();
    assert!(error.contains("syntax error") && error.contains("(in <string>:2)"), "{error}");
    assert!(template.facts(false).is_err());
}

#[test]
fn requests_cannot_replace_what_the_server_sets() {
    let template = template(FULL).unwrap();
    for name in ["messages", "tools", "chat_template", "bos_token", "raise_exception"] {
        let body = json!({"messages": [], "chat_template_kwargs": {name: "x"}});
        let expected = format!(
            "Template error: `chat_template_kwargs` must not set `{name}`: it has a field of its own or belongs to the model"
        );
        check(&template, &request(body, Ending::Closed), &expected);
    }
    let many: Map<String, Json> = (0..65).map(|number| (format!("v{number}"), Json::Null)).collect();
    let body = json!({"messages": [], "chat_template_kwargs": many});
    check(
        &template,
        &request(body, Ending::Closed),
        "Template error: `chat_template_kwargs` must have at most 64 entries. Given: 65",
    );
    let body = json!({"messages": ["hi"]});
    check(&template, &request(body, Ending::Closed), "Template error: `messages[0]` must be an object");
}

#[test]
fn faults_name_what_and_where() {
    check_texts(
        "a\n{{ raise_exception('roles must alternate') }}",
        &[],
        "Template error: syntax error: roles must alternate (in <string>:2)",
    );
    check_texts("a\n\n{{ x.y.z }}", &[], "Template error: undefined value: `x` is undefined (in <string>:3)");
    check_texts(
        "{% macro m(a) %}\n{{ a.b.c }}{% endmacro %}\n{{ m({}) }}",
        &[],
        "Template error: undefined value: `a.b` is undefined (in <string>:2)",
    );
    check_texts(
        "\n{{ none|length }}",
        &[],
        "Template error: invalid operation: object of type 'NoneType' has no len() (in <string>:2)",
    );
}

#[test]
fn endless_loops_floods_and_recursion_end() {
    check_texts(
        "{% for a in range(100000) %}{% for b in range(100000) %}{% endfor %}{% endfor %}",
        &[],
        "Template error: engine ran out of fuel (in <string>:1)",
    );
    let flood = template("{% for a in range(99999) %}{{ messages[0].content }}{% endfor %}").unwrap();
    let body = json!({"messages": [{"role": "user", "content": "x".repeat(1000)}]});
    let error = flood.render(&request(body, Ending::Closed)).unwrap_err().to_string();
    assert!(error.contains("more than 16777216 bytes"), "{error}");
    let endless = template("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}").unwrap();
    let error = endless.render(&RenderRequest::default()).unwrap_err().to_string();
    assert!(error.contains("recursion"), "{error}");
}
