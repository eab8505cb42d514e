//! The body of Anthropic's call, and what it is in the terms of every protocol.

use std::sync::Arc;

use serde::Deserialize;
use serde_json::{Value, json};
use utoipa::ToSchema;

use crate::chat::{Tool, ToolChoice};
use crate::error::ValidationError;
use crate::limits::{MAX_CONTENT_PARTS, MAX_MESSAGES};
use crate::params::unsupported::{MESSAGES, Unsupported};
use crate::params::{Asked, at_most, temperature, top_k, top_p};
use crate::routes::body::Wire;
use crate::routes::chat::ChatCall;
use crate::routes::openapi::{JsonObject, StopList, describe_text_or_list};

/// The body of `/v1/messages`.
#[derive(Debug, Deserialize, ToSchema)]
pub(in crate::routes) struct MessagesRequest {
    #[schema(max_length = 256)]
    model: Option<String>,
    #[schema(max_items = 4096)]
    messages: Vec<InputMessage>,
    /// What the model is told before the conversation.
    system: Option<Blocks>,
    /// Required, except to count tokens.
    #[schema(minimum = 0, maximum = 4294967295_u32)]
    max_tokens: Option<u32>,
    #[schema(value_type = Option<StopList>)]
    stop_sequences: Option<Vec<String>>,
    stream: Option<bool>,
    #[schema(minimum = 0)]
    temperature: Option<f32>,
    #[schema(minimum = 0, maximum = 1)]
    top_p: Option<f32>,
    #[schema(minimum = -1, maximum = 2147483647)]
    top_k: Option<i32>,
    #[schema(max_items = 128)]
    tools: Option<Vec<InputTool>>,
    tool_choice: Option<InputToolChoice>,
    thinking: Option<Thinking>,
}

impl Wire for MessagesRequest {
    const UNSUPPORTED: &'static [&'static [Unsupported]] = &[MESSAGES];
}

/// One turn.
#[derive(Debug, Deserialize, ToSchema)]
struct InputMessage {
    #[schema(extensions(("x-limit" = json!("payload_limit"))))]
    role: String,
    content: Blocks,
}

/// A text, or blocks.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Blocks {
    Text(String),
    Blocks(Vec<InputBlock>),
}

describe_text_or_list!(Blocks as "AnthropicContent", InputBlock, MAX_CONTENT_PARTS);

/// A block of a turn: `text`, `thinking`, `tool_use` or `tool_result`.
#[derive(Debug, Deserialize, ToSchema)]
struct InputBlock {
    #[schema(max_length = 256)]
    r#type: String,
    #[schema(extensions(("x-limit" = json!("payload_limit"))))]
    text: Option<String>,
    #[schema(extensions(("x-limit" = json!("payload_limit"))))]
    thinking: Option<String>,
    /// Of a `tool_use`.
    #[serde(default)]
    #[schema(extensions(("x-limit" = json!("payload_limit"))))]
    id: String,
    #[schema(extensions(("x-limit" = json!("payload_limit"))))]
    #[serde(default)]
    name: String,
    #[schema(value_type = Option<JsonObject>)]
    input: Option<Value>,
    /// Of a `tool_result`.
    #[serde(default)]
    #[schema(extensions(("x-limit" = json!("payload_limit"))))]
    tool_use_id: String,
    #[schema(no_recursion)]
    content: Option<Blocks>,
}

/// A function that the model may call.
#[derive(Debug, Deserialize, ToSchema)]
struct InputTool {
    /// `custom`. Anthropic's own tools are not served.
    #[schema(max_length = 256)]
    r#type: Option<String>,
    #[schema(max_length = 256)]
    name: String,
    #[schema(extensions(("x-limit" = json!("payload_limit"))))]
    description: Option<String>,
    #[schema(value_type = Option<JsonObject>)]
    input_schema: Option<Value>,
}

#[derive(Debug, Deserialize, ToSchema)]
struct InputToolChoice {
    /// `auto`, `any`, `tool`, `none`.
    #[schema(max_length = 256)]
    r#type: String,
    #[schema(extensions(("x-limit" = json!("payload_limit"))))]
    name: Option<String>,
    disable_parallel_tool_use: Option<bool>,
}

/// Whether the model thinks first, if its template can switch that.
#[derive(Debug, Deserialize, ToSchema)]
struct Thinking {
    #[schema(extensions(("x-limit" = json!("payload_limit"))))]
    r#type: String,
}

impl MessagesRequest {
    pub(super) fn take_model(&mut self) -> Option<String> {
        self.model.take()
    }

    pub(super) fn is_stream(&self) -> bool {
        self.stream.unwrap_or(false)
    }

    pub(super) fn has_max_tokens(&self) -> bool {
        self.max_tokens.is_some()
    }

    /// The request in the terms of every protocol.
    ///
    /// # Errors
    /// [`ValidationError`] with the field that is at fault.
    pub(super) fn into_call(self) -> Result<ChatCall, ValidationError> {
        let mut asked = Asked {
            max_new_tokens: self.max_tokens,
            stop: self.stop_sequences.unwrap_or_default(),
            ..Asked::default()
        };
        temperature::ask_openai(&mut asked.sampling, self.temperature);
        top_k::ask_openai(&mut asked.sampling, self.top_k);
        top_p::ask_openai(&mut asked.sampling, self.top_p);
        // `adaptive` leaves it to the model.
        let thinks = self.thinking.and_then(|thinking| match thinking.r#type.as_str() {
            "enabled" => Some(true),
            "disabled" => Some(false),
            _ => None,
        });
        let is_single_call =
            self.tool_choice.as_ref().is_some_and(|choice| choice.disable_parallel_tool_use == Some(true));
        Ok(ChatCall {
            messages: template_messages(self.system, self.messages)?,
            tools: tools(self.tools.unwrap_or_default())?,
            tool_choice: self.tool_choice.map_or(Ok(ToolChoice::Auto), tool_choice)?,
            is_single_call,
            thinks,
            asked,
            ..ChatCall::default()
        })
    }
}

fn tools(tools: Vec<InputTool>) -> Result<Vec<Tool>, ValidationError> {
    let tool = |(index, tool): (usize, InputTool)| {
        if let Some(kind) = tool.r#type.filter(|kind| kind != "custom") {
            return Err(ValidationError::ToolType { field: "tools", index, kind });
        }
        let parameters = tool.input_schema.unwrap_or_else(|| json!({"type": "object", "properties": {}}));
        let mut function = json!({"name": tool.name});
        if let Some(description) = &tool.description {
            function["description"] = Value::from(description.as_str());
        }
        function["parameters"] = parameters.clone();
        Ok(Tool {
            name: tool.name,
            description: tool.description,
            parameters: Arc::new(parameters),
            original: Arc::new(json!({"type": "function", "function": function})),
        })
    };
    tools.into_iter().enumerate().map(tool).collect()
}

fn tool_choice(choice: InputToolChoice) -> Result<ToolChoice, ValidationError> {
    match (choice.r#type.as_str(), choice.name) {
        ("auto", _) => Ok(ToolChoice::Auto),
        ("any", _) => Ok(ToolChoice::Required),
        ("none", _) => Ok(ToolChoice::None),
        ("tool", Some(name)) => Ok(ToolChoice::Named(name)),
        _ => Err(ValidationError::Malformed {
            field: "tool_choice",
            expected: "of type `auto`, `any`, `none`, or `tool` with a `name`",
        }),
    }
}

/// The conversation as templates read it: results of tools are turns of their own there.
fn template_messages(system: Option<Blocks>, messages: Vec<InputMessage>) -> Result<Vec<Value>, ValidationError> {
    at_most("messages", "messages", MAX_MESSAGES, messages.len())?;
    let mut out = Vec::with_capacity(messages.len() + 1);
    if let Some(system) = system {
        let refuse = |index, kind| ValidationError::ToolType { field: "system", index, kind };
        out.push(json!({"role": "system", "content": system.into_text("system", refuse)?}));
    }
    for (index, InputMessage { role, content }) in messages.into_iter().enumerate() {
        let mut turn = Turn { role, content: None, reasoning: String::new(), calls: Vec::new() };
        match content {
            Blocks::Text(text) => turn.content = Some(text),
            Blocks::Blocks(blocks) => {
                at_most("messages[].content", "blocks", MAX_CONTENT_PARTS, blocks.len())?;
                for block in blocks {
                    turn.push(block, index, &mut out)?;
                }
            }
        }
        turn.flush(&mut out);
    }
    Ok(out)
}

/// A turn that is being put together.
struct Turn {
    role: String,
    content: Option<String>,
    reasoning: String,
    calls: Vec<Value>,
}

impl Turn {
    fn push(&mut self, block: InputBlock, index: usize, out: &mut Vec<Value>) -> Result<(), ValidationError> {
        match (block.r#type.as_str(), block.text, block.thinking) {
            ("text", Some(text), _) => self.content.get_or_insert_default().push_str(&text),
            ("thinking", _, Some(thinking)) => self.reasoning.push_str(&thinking),
            // Its text is encrypted: nobody here can read it.
            ("redacted_thinking", ..) => {}
            ("tool_use", ..) => {
                let arguments = block.input.unwrap_or_else(|| json!({}));
                self.calls.push(json!({"id": block.id, "type": "function",
                    "function": {"name": block.name, "arguments": arguments}}));
            }
            ("tool_result", ..) => {
                self.flush(out);
                let refuse = |_, kind| ValidationError::ContentPart { index, kind };
                let text = |content: Blocks| content.into_text("messages[].content", refuse);
                let content = block.content.map_or(Ok(String::new()), text)?;
                out.push(json!({"role": "tool", "tool_call_id": block.tool_use_id, "content": content}));
            }
            _ => return Err(ValidationError::ContentPart { index, kind: block.r#type }),
        }
        Ok(())
    }

    fn flush(&mut self, out: &mut Vec<Value>) {
        if self.content.is_none() && self.reasoning.is_empty() && self.calls.is_empty() {
            return;
        }
        let mut message = json!({"role": self.role, "content": self.content.take().unwrap_or_default()});
        if !self.reasoning.is_empty() {
            message["reasoning_content"] = Value::from(std::mem::take(&mut self.reasoning));
        }
        if !self.calls.is_empty() {
            message["tool_calls"] = Value::from(std::mem::take(&mut self.calls));
        }
        out.push(message);
    }
}

impl Blocks {
    /// Text blocks joined; `refuse` makes the error of another one from its index and type.
    fn into_text(
        self,
        field: &'static str,
        refuse: impl Fn(usize, String) -> ValidationError,
    ) -> Result<String, ValidationError> {
        let blocks = match self {
            Blocks::Text(text) => return Ok(text),
            Blocks::Blocks(blocks) => blocks,
        };
        at_most(field, "blocks", MAX_CONTENT_PARTS, blocks.len())?;
        let text = |(index, block): (usize, InputBlock)| match block.text {
            Some(text) if block.r#type == "text" => Ok(text),
            _ => Err(refuse(index, block.r#type)),
        };
        blocks.into_iter().enumerate().map(text).collect()
    }
}
