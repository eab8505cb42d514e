//! `POST /chat_tokenize`: what the chat template makes of messages, and its tokens.

use std::sync::Arc;

use axum::body::Body as HttpBody;
use axum::extract::State;
use axum::http::Response;
use serde::Serialize;
use utoipa::ToSchema;

use super::body::Body;
use super::chat_completions::ChatRequest;
use super::tokenize::{SimpleToken, TokenizeResponse, tokenize};
use super::{json, to_json};
use crate::error::NativeFailure;
use crate::server::Server;
use crate::validation::SpecialTokens;

/// The prompt of a chat and its tokens.
#[derive(Serialize, ToSchema)]
pub(super) struct ChatTokenizeResponse {
    #[schema(value_type = TokenizeResponse)]
    tokenize_response: Vec<SimpleToken>,
    templated_text: String,
}

/// The route.
#[utoipa::path(
    post, path = "/chat_tokenize", operation_id = "get_chat_tokenize", tag = super::openapi::TAG,
    summary = "Template and tokenize ChatRequest",
    request_body = ChatRequest,
    responses((status = 200, description = "Templated and tokenized ChatRequest", body = ChatTokenizeResponse), super::openapi::NativeErrors),
)]
pub(super) async fn handle(
    State(server): State<Arc<Server>>,
    body: Body<ChatRequest>,
) -> Result<Response<HttpBody>, NativeFailure> {
    let templated_text = body.value.into_call(&server).await?.prompt(&server).await?;
    let tokenize_response = tokenize(&server, templated_text.clone(), SpecialTokens::Present).await?;
    Ok(json(to_json(&ChatTokenizeResponse { tokenize_response, templated_text })))
}
