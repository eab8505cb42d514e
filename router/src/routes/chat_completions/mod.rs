//! `POST /v1/chat/completions`: OpenAI's chat call, whole or as a stream.

mod chunks;
mod request;
mod whole;

use std::sync::Arc;

use axum::body::Body as HttpBody;
use axum::extract::State;
use axum::http::Response;
use serde::Serialize;
use utoipa::ToSchema;

pub(super) use request::ChatRequest;

use super::body::Body;
use super::openai::{Head, StreamOptions};
use super::sse;
use crate::chat::ReplyPart;
use crate::error::OpenAiFailure;
use crate::server::Server;
use crate::text::TextTokenizer;

use super::chat::ChatFinish;

/// What the answer must show.
struct Shape {
    head: Head,
    tokenizer: Arc<TextTokenizer>,
    stream_options: StreamOptions,
    calls: CallForm,
}

/// How a call looks in the answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum CallForm {
    /// `tool_calls`.
    Tools,
    /// `function_call`, for requests with `functions`.
    Function,
}

/// A call in an answer.
#[derive(Debug, Serialize, ToSchema)]
struct ToolCall {
    id: String,
    r#type: &'static str,
    function: FunctionCall,
}

/// A function with the arguments as JSON text.
#[derive(Debug, Serialize, ToSchema)]
struct FunctionCall {
    name: String,
    arguments: String,
}

/// The route.
#[utoipa::path(
    post, path = "/v1/chat/completions", operation_id = "chat_completions", tag = super::openapi::TAG, summary = "Generate a chat reply",
    request_body = ChatRequest,
    responses((status = 200, description = "The reply, or a stream of chunks", content((whole::ChatCompletion = "application/json"), (chunks::ChatStreamEvent = "text/event-stream"))), super::openapi::OpenAiErrors),
)]
pub(super) async fn handle(
    State(server): State<Arc<Server>>,
    mut body: Body<ChatRequest>,
) -> Result<Response<HttpBody>, OpenAiFailure> {
    let shape = Shape {
        head: Head::new("chatcmpl-", body.value.take_model(), &server)?,
        tokenizer: server.validation.tokenizer.clone(),
        stream_options: body.value.stream_options(),
        calls: body.value.call_form(),
    };
    let is_stream = body.value.is_stream();
    let chat = body.value.into_call(&server).await?.start(&server, body.arrived).await?;
    let response = if is_stream {
        sse::response(&server, chat.characters, chunks::stream(chat, shape))
    } else {
        whole::respond(&server, chat, &shape).await?
    };
    Ok(body.unknown.tell(response))
}

impl CallForm {
    fn finish_reason(self, finish: ChatFinish) -> &'static str {
        match (finish, self) {
            (ChatFinish::Stop | ChatFinish::StopSequence, _) => "stop",
            (ChatFinish::Length, _) => "length",
            (ChatFinish::ToolCalls, CallForm::Tools) => "tool_calls",
            (ChatFinish::ToolCalls, CallForm::Function) => "function_call",
        }
    }
}
