//! `POST /chat_tokenize`: what the chat template makes of messages, and its tokens.

use std::sync::Arc;

use axum::body::Body as HttpBody;
use axum::extract::State;
use axum::http::Response;
use serde::Serialize;
use utoipa::ToSchema;

use super::body::Body;
use super::chat_completions::ChatRequest;
use super::tokenize::{SimpleToken, tokenize};
use super::{json, to_json};
use crate::error::NativeFailure;
use crate::server::Server;
use crate::validation::SpecialTokens;

/// The prompt of a chat and its tokens.
#[derive(Serialize, ToSchema)]
pub(super) struct ChatTokenizeResponse {
    tokenize_response: Vec<SimpleToken>,
    templated_text: String,
}

/// The route.
pub(super) async fn handle(
    State(server): State<Arc<Server>>,
    body: Body<ChatRequest>,
) -> Result<Response<HttpBody>, NativeFailure> {
    let templated_text = body.value.into_call(&server).await?.prompt(&server).await?;
    let tokenize_response = tokenize(&server, templated_text.clone(), SpecialTokens::Present).await?;
    Ok(json(to_json(&ChatTokenizeResponse { tokenize_response, templated_text })))
}
