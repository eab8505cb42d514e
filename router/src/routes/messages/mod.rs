//! `POST /v1/messages` and `POST /v1/messages/count_tokens`: Anthropic's chat call, on the same path as OpenAI's.

mod answer;
mod events;
mod request;

use std::sync::Arc;

use axum::body::Body as HttpBody;
use axum::extract::State;
use axum::http::Response;
use serde::Serialize;
use utoipa::ToSchema;

pub(super) use request::MessagesRequest;

use super::body::Body;
use super::openai::Head;
use super::{json, sse, to_json};
use crate::error::{AnthropicFailure, ValidationError};
use crate::server::Server;

/// The tokens of a prompt.
#[derive(Serialize, ToSchema)]
pub(super) struct TokenCount {
    input_tokens: usize,
}

/// The route of the call.
#[utoipa::path(
    post, path = "/v1/messages", operation_id = "messages", tag = super::openapi::TAG, summary = "Generate a message",
    request_body = request::MessagesRequest,
    responses((status = 200, description = "The message, or a stream of named events", content((answer::Message = "application/json"), (events::MessageStreamEvent = "text/event-stream"))), super::openapi::AnthropicErrors),
)]
pub(super) async fn handle(
    State(server): State<Arc<Server>>,
    mut body: Body<MessagesRequest>,
) -> Result<Response<HttpBody>, AnthropicFailure> {
    let head = Head::new("msg_", body.value.take_model(), &server)?;
    if !body.value.has_max_tokens() {
        return Err(ValidationError::Malformed { field: "max_tokens", expected: "given" }.into());
    }
    let is_stream = body.value.is_stream();
    let chat = body.value.into_call()?.start(&server, body.arrived).await?;
    let response = if is_stream {
        sse::response(&server, chat.characters, events::stream(chat, head))
    } else {
        answer::respond(&server, chat, &head).await?
    };
    Ok(body.unknown.tell(response))
}

/// The route that only counts.
#[utoipa::path(
    post, path = "/v1/messages/count_tokens", operation_id = "count_tokens", tag = super::openapi::TAG, summary = "Count the tokens of a prompt",
    request_body = request::MessagesRequest,
    responses((status = 200, description = "The number of tokens", body = TokenCount), super::openapi::AnthropicErrors),
)]
pub(super) async fn count_tokens(
    State(server): State<Arc<Server>>,
    body: Body<MessagesRequest>,
) -> Result<Response<HttpBody>, AnthropicFailure> {
    let prompt = body.value.into_call()?.prompt(&server).await?;
    let tokenizer = server.validation.tokenizer.clone();
    let ids = server.validation.pool.run(move || tokenizer.encode(&prompt, false)).await??;
    Ok(body.unknown.tell(json(to_json(&TokenCount { input_tokens: ids.len() }))))
}
