//! The body of the responses API, and what it is in the terms of every protocol.

use std::sync::Arc;

use serde::Deserialize;
use serde_json::{Map, Value, json};
use utoipa::ToSchema;

use super::answer::Settings;
use crate::chat::Tool;
use crate::error::ValidationError;
use crate::limits::{MAX_CALLS_PER_MESSAGE, MAX_INCLUDED, MAX_MESSAGES};
use crate::params::unsupported::{OPENAI, RESPONSES, Unsupported};
use crate::params::{Asked, at_most, temperature, top_p};
use crate::routes::body::Wire;
use crate::routes::chat::ChatCall;
use crate::routes::openai::message::{Content, arguments_object};
use crate::routes::openai::response_format::{Formats, ResponseFormat};
use crate::routes::openai::tools::{Choice, tool_choice};
use crate::routes::openapi::{IncludedOutput, JsonObject, JsonObjectOrText, describe_text_or_list};

/// The body of `/v1/responses`.
#[derive(Debug, Deserialize, ToSchema)]
pub(in crate::routes) struct ResponsesRequest {
    #[schema(max_length = 256)]
    model: Option<String>,
    input: Input,
    /// What the model is told before the conversation.
    #[schema(extensions(("x-limit" = json!("payload_limit"))))]
    instructions: Option<String>,
    #[schema(value_type = Option<Vec<JsonObject>>, max_items = 128)]
    tools: Option<Vec<Value>>,
    /// `auto`, `none`, `required`, the function to call, or the functions that may be called.
    #[schema(value_type = Option<JsonObjectOrText>)]
    tool_choice: Option<Value>,
    parallel_tool_calls: Option<bool>,
    text: Option<TextOptions>,
    reasoning: Option<ReasoningOptions>,
    #[schema(minimum = 0, maximum = 4294967295_u32)]
    max_output_tokens: Option<u32>,
    #[schema(minimum = 0)]
    temperature: Option<f32>,
    #[schema(minimum = 0, maximum = 1)]
    top_p: Option<f32>,
    stream: Option<bool>,
    /// `message.output_text.logprobs` asks for log-probabilities; other outputs there are none of.
    #[schema(value_type = Option<Vec<IncludedOutput>>, max_items = 16)]
    include: Option<Vec<String>>,
    /// Alternatives per token; more than none ask for log-probabilities, too.
    #[schema(minimum = 0, maximum = 20)]
    top_logprobs: Option<u32>,
    /// Comes back with the answer.
    #[schema(value_type = Option<JsonObject>)]
    metadata: Option<Map<String, Value>>,
}

impl Wire for ResponsesRequest {
    const UNSUPPORTED: &'static [&'static [Unsupported]] = &[RESPONSES, OPENAI];
}

/// What the user says, or the conversation so far.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Input {
    Text(String),
    Items(Vec<InputItem>),
}

describe_text_or_list!(Input as "ResponsesInput", InputItem, MAX_MESSAGES);

/// An item of the conversation: `message`, `function_call`, `function_call_output` or `reasoning`.
#[derive(Debug, Deserialize, ToSchema)]
struct InputItem {
    /// `message` if it is missing.
    #[schema(max_length = 256)]
    r#type: Option<String>,
    #[schema(extensions(("x-limit" = json!("payload_limit"))))]
    role: Option<String>,
    content: Option<Content>,
    /// Of calls and their outputs.
    #[serde(default)]
    #[schema(extensions(("x-limit" = json!("payload_limit"))))]
    call_id: String,
    #[serde(default)]
    #[schema(extensions(("x-limit" = json!("payload_limit"))))]
    name: String,
    #[serde(default)]
    #[schema(extensions(("x-limit" = json!("payload_limit"))))]
    arguments: String,
    output: Option<Content>,
    summary: Option<Content>,
}

#[derive(Clone, Debug, Deserialize, ToSchema)]
struct TextOptions {
    /// What the answer must match.
    format: Option<ResponseFormat>,
    /// Only `medium`.
    #[schema(max_length = 256)]
    verbosity: Option<String>,
}

#[derive(Clone, Debug, Deserialize, ToSchema)]
struct ReasoningOptions {
    #[schema(extensions(("x-limit" = json!("payload_limit"))))]
    effort: Option<String>,
}

impl ResponsesRequest {
    pub(super) fn take_model(&mut self) -> Option<String> {
        self.model.take()
    }

    pub(super) fn is_stream(&self) -> bool {
        self.stream.unwrap_or(false)
    }

    /// What of the request comes back with the answer.
    pub(super) fn settings(&self) -> Settings {
        Settings {
            instructions: self.instructions.clone(),
            max_output_tokens: self.max_output_tokens,
            metadata: self.metadata.clone().unwrap_or_default(),
            parallel_tool_calls: self.parallel_tool_calls.unwrap_or(true),
            reasoning_effort: self.reasoning.as_ref().and_then(|reasoning| reasoning.effort.clone()),
            temperature: self.temperature.unwrap_or(1.0),
            format: self.text.as_ref().and_then(|text| text.format.clone()),
            tool_choice: self.tool_choice.clone().filter(|choice| !choice.is_null()),
            tools: self.tools.clone().unwrap_or_default(),
            top_p: self.top_p.unwrap_or(1.0),
        }
    }

    /// The request in the terms of every protocol.
    ///
    /// # Errors
    /// [`ValidationError`] with the field that is at fault.
    pub(super) fn into_call(self) -> Result<ChatCall, ValidationError> {
        let format = match self.text {
            Some(TextOptions { verbosity: Some(verbosity), .. }) if verbosity != "medium" => {
                return Err(ValidationError::Unsupported { field: "text.verbosity" });
            }
            text => text.and_then(|text| text.format),
        };
        let mut asked = Asked {
            max_new_tokens: self.max_output_tokens,
            grammar: Formats { response_format: format, ..Formats::default() }.into_grammar()?,
            ..Asked::default()
        };
        let included = self.include.unwrap_or_default();
        at_most("include", "outputs", MAX_INCLUDED, included.len())?;
        let top = self.top_logprobs.unwrap_or(0);
        let has_logprobs = top > 0 || included.iter().any(|output| output == "message.output_text.logprobs");
        asked.top_logprobs = self.top_logprobs.map(|top| ("top_logprobs", top));
        temperature::ask_openai(&mut asked.sampling, self.temperature);
        top_p::ask_openai(&mut asked.sampling, self.top_p);
        let (mut template_kwargs, mut thinks) = (Map::new(), None);
        if let Some(effort) = self.reasoning.and_then(|reasoning| reasoning.effort) {
            thinks = Some(effort != "none");
            template_kwargs.insert("reasoning_effort".to_owned(), Value::from(effort));
        }
        let Choice { choice: tool_choice, allowed: allowed_tools } = tool_choice(self.tool_choice.as_ref())?;
        Ok(ChatCall {
            messages: template_messages(self.instructions, self.input)?,
            tools: tools(self.tools.unwrap_or_default())?,
            tool_choice,
            allowed_tools,
            is_single_call: self.parallel_tool_calls == Some(false),
            template_kwargs,
            thinks,
            // The answer is a new item, whatever came last.
            add_generation_prompt: Some(true),
            logprobs: has_logprobs.then_some(top as usize),
            asked,
            ..ChatCall::default()
        })
    }
}

/// Functions, whose fields stand beside their type here.
fn tools(tools: Vec<Value>) -> Result<Vec<Tool>, ValidationError> {
    let tool = |(index, value): (usize, Value)| {
        let invalid = |reason: &str| ValidationError::Item { field: "tools", index, reason: reason.to_owned() };
        let Value::Object(mut fields) = value else { return Err(invalid("not an object")) };
        match fields.shift_remove("type") {
            Some(Value::String(kind)) if kind == "function" => {}
            Some(Value::String(kind)) => return Err(ValidationError::ToolType { field: "tools", index, kind }),
            _ => return Err(invalid("missing field `type`")),
        }
        let name =
            fields.get("name").and_then(Value::as_str).ok_or_else(|| invalid("missing field `name`"))?.to_owned();
        let description = fields.get("description").and_then(Value::as_str).map(str::to_owned);
        let parameters = fields.entry("parameters").or_insert(Value::Null);
        if parameters.is_null() {
            *parameters = json!({"type": "object", "properties": {}});
        }
        let parameters = Arc::new(parameters.clone());
        let original = Arc::new(json!({"type": "function", "function": fields}));
        Ok(Tool { name, description, parameters, original })
    };
    tools.into_iter().enumerate().map(tool).collect()
}

/// The conversation as templates read it. What the assistant thought, said and called between two turns of others is
/// one message there.
fn template_messages(instructions: Option<String>, input: Input) -> Result<Vec<Value>, ValidationError> {
    let mut out = Vec::new();
    if let Some(instructions) = instructions {
        out.push(json!({"role": "system", "content": instructions}));
    }
    let items = match input {
        Input::Text(text) => {
            out.push(json!({"role": "user", "content": text}));
            return Ok(out);
        }
        Input::Items(items) => items,
    };
    at_most("input", "items", MAX_MESSAGES, items.len())?;
    for (index, item) in items.into_iter().enumerate() {
        push_item(item, index, &mut out)?;
    }
    Ok(out)
}

/// Types of parts that are text.
const TEXT_PARTS: &[&str] = &["input_text", "output_text", "text", "refusal", "reasoning_text", "summary_text"];

fn push_item(item: InputItem, index: usize, out: &mut Vec<Value>) -> Result<(), ValidationError> {
    let text = |content: Option<Content>| {
        let refuse = |kind| ValidationError::ToolType { field: "input", index, kind };
        content.map_or(Ok(String::new()), |content| content.into_text("input[].content", TEXT_PARTS, refuse))
    };
    match item.r#type.as_deref().unwrap_or("message") {
        "message" => {
            let role = item.role.ok_or(ValidationError::Item {
                field: "input",
                index,
                reason: "missing field `role`".to_owned(),
            })?;
            let content = text(item.content)?;
            match out.last_mut().filter(|last| role == "assistant" && is_wordless(last)) {
                Some(begun) => begun["content"] = Value::from(content),
                None => out.push(json!({"role": role, "content": content})),
            }
        }
        "reasoning" => {
            let reasoning = text(item.content.or(item.summary))?;
            out.push(json!({"role": "assistant", "content": "", "reasoning_content": reasoning}));
        }
        "function_call" => {
            let call = json!({"id": item.call_id, "type": "function",
                "function": {"name": item.name, "arguments": arguments_object(Value::from(item.arguments))}});
            if out.last().is_none_or(|last| last["role"] != "assistant") {
                out.push(json!({"role": "assistant", "content": ""}));
            }
            let last = out.last_mut().expect("a message of the assistant is the last now");
            if !last["tool_calls"].is_array() {
                last["tool_calls"] = json!([]);
            }
            let calls = last["tool_calls"].as_array_mut().expect("it was made a list");
            calls.push(call);
            at_most("input", "calls in a row", MAX_CALLS_PER_MESSAGE, calls.len())?;
        }
        "function_call_output" => {
            let content = text(item.output)?;
            out.push(json!({"role": "tool", "tool_call_id": item.call_id, "content": content}));
        }
        kind => return Err(ValidationError::ToolType { field: "input", index, kind: kind.to_owned() }),
    }
    Ok(())
}

/// A message of the assistant that has only its reasoning yet.
fn is_wordless(message: &Value) -> bool {
    message["role"] == "assistant" && message["content"] == "" && message.get("tool_calls").is_none()
}
