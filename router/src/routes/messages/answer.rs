//! The answer in one piece.

use axum::body::Body as HttpBody;
use axum::http::Response;
use serde::Serialize;
use serde_json::Value;
use utoipa::ToSchema;

use crate::error::Error;
use crate::routes::chat::{Block, Chat, ChatEnd, ChatFinish};
use crate::routes::headers::Cost;
use crate::routes::openai::{Head, new_id};
use crate::routes::{json, to_json};
use crate::server::Server;

/// A message of the assistant.
#[derive(Serialize, ToSchema)]
#[schema(as = AnthropicMessage)]
pub(super) struct Message<'a> {
    id: &'a str,
    r#type: &'static str,
    role: &'static str,
    model: &'a str,
    content: Vec<OutputBlock>,
    stop_reason: Option<&'static str>,
    stop_sequence: Option<String>,
    usage: Usage,
}

/// A block of an answer.
#[derive(Serialize, ToSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
pub(super) enum OutputBlock {
    Text { text: String },
    Thinking { thinking: String, signature: &'static str },
    ToolUse { id: String, name: String, input: Value },
}

/// What the answer cost. Tokens of the prompt that came from the prefix cache are counted apart.
#[derive(Clone, Copy, Debug, Default, Serialize, ToSchema)]
#[schema(as = AnthropicUsage)]
pub(super) struct Usage {
    input_tokens: u32,
    cache_creation_input_tokens: u32,
    cache_read_input_tokens: u32,
    output_tokens: u32,
}

/// Runs the chat to its end.
///
/// # Errors
/// Its failure.
pub(super) async fn respond(server: &Server, chat: Chat, head: &Head) -> Result<Response<HttpBody>, Error> {
    let characters = chat.characters;
    let reply = chat.collect().await?.into_iter().next().ok_or(Error::Incomplete)?;
    let end = reply.end.ok_or(Error::Incomplete)?;
    let message = Message {
        content: reply.blocks.into_iter().map(OutputBlock::new).collect(),
        stop_reason: Some(stop_reason(&end)),
        stop_sequence: end.generation.stop.clone(),
        ..Message::begun(head, Usage::new(&end))
    };
    let mut response = json(to_json(&message));
    Cost::new(characters, &end.generation).write(server, response.headers_mut());
    Ok(response)
}

impl<'a> Message<'a> {
    /// A message without content, as a stream begins.
    pub(super) fn begun(head: &'a Head, usage: Usage) -> Self {
        Self {
            id: &head.id,
            r#type: "message",
            role: "assistant",
            model: &head.model,
            content: Vec::new(),
            stop_reason: None,
            stop_sequence: None,
            usage,
        }
    }
}

impl OutputBlock {
    /// A block with a new id where it needs one.
    pub(super) fn new(block: Block) -> Self {
        match block {
            Block::Content { text, .. } => OutputBlock::Text { text },
            // Nobody signs here; clients send the field back as it came.
            Block::Reasoning(thinking) => OutputBlock::Thinking { thinking, signature: "" },
            Block::ToolCall { name, arguments } => OutputBlock::ToolUse {
                id: new_id("toolu_"),
                name,
                // Arguments that were cut are no JSON; the stop reason says so.
                input: serde_json::from_str(&arguments).unwrap_or_else(|_| Value::Object(serde_json::Map::new())),
            },
        }
    }
}

impl Usage {
    pub(super) fn new(end: &ChatEnd) -> Self {
        let end = &end.generation;
        Self {
            input_tokens: end.input_tokens - end.cached_tokens,
            cache_creation_input_tokens: 0,
            cache_read_input_tokens: end.cached_tokens,
            output_tokens: end.generated_tokens,
        }
    }

    /// Before the first token: how much of the prompt is cached is not known yet.
    pub(super) fn of_prompt(input_tokens: u32) -> Self {
        Self { input_tokens, ..Self::default() }
    }
}

/// Why the message ended, in Anthropic's words.
pub(super) fn stop_reason(end: &ChatEnd) -> &'static str {
    match end.finish {
        ChatFinish::Stop => "end_turn",
        ChatFinish::StopSequence => "stop_sequence",
        ChatFinish::Length => "max_tokens",
        ChatFinish::ToolCalls => "tool_use",
    }
}
