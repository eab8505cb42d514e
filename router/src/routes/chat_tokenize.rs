//! `POST /chat_tokenize`: what the chat template makes of messages, and its tokens.

use std::sync::Arc;

use axum::body::Body as HttpBody;
use axum::extract::State;
use axum::http::Response;
use serde::Serialize;

use super::body::Body;
use super::chat_completions::ChatRequest;
use super::tokenize::{SimpleToken, tokenize};
use super::{json, to_json};
use crate::error::NativeFailure;
use crate::server::Server;
use crate::validation::SpecialTokens;

#[derive(Serialize)]
struct ChatTokenizeResponse {
    tokenize_response: Vec<SimpleToken>,
    templated_text: String,
}

/// The route.
pub(super) async fn handle(
    State(server): State<Arc<Server>>,
    mut body: Body<ChatRequest>,
) -> Result<Response<HttpBody>, NativeFailure> {
    let messages = body.value.template_messages()?;
    let templated_text = server.render_chat(messages).await?;
    let tokenize_response = tokenize(&server, templated_text.clone(), SpecialTokens::Present).await?;
    Ok(json(to_json(&ChatTokenizeResponse { tokenize_response, templated_text })))
}
