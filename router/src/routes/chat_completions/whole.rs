//! The answer in one piece.

use axum::body::Body as HttpBody;
use axum::http::Response;
use serde::Serialize;
use utoipa::ToSchema;

use super::{CallForm, FunctionCall, Shape, ToolCall};
use crate::error::Error;
use crate::routes::chat::{Block, Chat, ChatReply, TokenCounts};
use crate::routes::headers::Cost;
use crate::routes::openai::logprobs::{Logprobs, TokenLogprob};
use crate::routes::openai::{Head, Usage, new_id};
use crate::routes::{json, to_json};
use crate::server::Server;

/// An answer of the chat route.
#[derive(Serialize, ToSchema)]
pub(super) struct ChatCompletion<'a> {
    object: &'static str,
    id: &'a str,
    created: u64,
    model: &'a str,
    system_fingerprint: &'a str,
    choices: Vec<ChatChoice>,
    usage: Usage,
}

#[derive(Serialize, ToSchema)]
struct ChatChoice {
    index: usize,
    message: ReplyMessage,
    logprobs: Option<Logprobs>,
    finish_reason: &'static str,
}

#[derive(Serialize, ToSchema)]
struct ReplyMessage {
    role: &'static str,
    /// Null if the reply is calls only.
    content: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reasoning_content: Option<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    tool_calls: Vec<ToolCall>,
    #[serde(skip_serializing_if = "Option::is_none")]
    function_call: Option<FunctionCall>,
}

/// Runs the chat to its end.
///
/// # Errors
/// The first failure of any choice.
pub(super) async fn respond(server: &Server, chat: Chat, shape: &Shape) -> Result<Response<HttpBody>, Error> {
    let (mut characters, logprobs) = (chat.characters, chat.logprobs);
    let replies = chat.collect().await?;
    let (mut counts, mut cost, mut choices) = (TokenCounts::default(), Cost::default(), Vec::new());
    for (index, reply) in replies.into_iter().enumerate() {
        let end = reply.end.clone().ok_or(Error::Incomplete)?;
        counts.add(&end);
        // The choices share the prompt: its characters count once.
        cost.add(&Cost::new(std::mem::take(&mut characters), &end.generation));
        let entries = |top| Logprobs { content: TokenLogprob::list(&shape.tokenizer, &reply.tokens, top) };
        choices.push(ChatChoice {
            index,
            logprobs: logprobs.map(entries),
            finish_reason: shape.calls.finish_reason(end.finish),
            message: message(reply, shape.calls),
        });
    }
    let Head { id, created, model, system_fingerprint } = &shape.head;
    let mut response = json(to_json(&ChatCompletion {
        object: "chat.completion",
        id,
        created: *created,
        model,
        system_fingerprint,
        choices,
        usage: Usage::from(counts),
    }));
    cost.write(server, response.headers_mut());
    Ok(response)
}

fn message(reply: ChatReply, form: CallForm) -> ReplyMessage {
    let (content, reasoning) = reply.texts();
    let mut calls = reply.blocks.into_iter().filter_map(|block| match block {
        Block::ToolCall { name, arguments } => Some(FunctionCall { name, arguments }),
        Block::Content { .. } | Block::Reasoning(_) => None,
    });
    let function_call = if form == CallForm::Function { calls.next() } else { None };
    let tool_calls: Vec<ToolCall> =
        calls.map(|function| ToolCall { id: new_id("call_"), r#type: "function", function }).collect();
    let is_call = function_call.is_some() || !tool_calls.is_empty();
    ReplyMessage {
        role: "assistant",
        content: (!is_call || !content.is_empty()).then_some(content),
        reasoning_content: (!reasoning.is_empty()).then_some(reasoning),
        tool_calls,
        function_call,
    }
}
