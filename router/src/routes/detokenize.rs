//! `POST /detokenize`: the text of tokens.

use std::sync::Arc;

use axum::body::Body as HttpBody;
use axum::extract::State;
use axum::http::Response;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::body::{Body, Wire};
use super::openapi::TokenId;
use super::{json, to_json};
use crate::error::NativeFailure;
use crate::limits::MAX_DETOKENIZED;
use crate::params::at_most;
use crate::server::Server;

/// Token ids.
#[derive(Deserialize, ToSchema)]
pub(super) struct DetokenizeRequest {
    /// Ids that the tokenizer does not know are skipped, special tokens have no text.
    #[schema(value_type = Vec<TokenId>, max_items = 1048576)]
    tokens: Vec<u32>,
}

impl Wire for DetokenizeRequest {}

/// Their text.
#[derive(Serialize, ToSchema)]
pub(super) struct DetokenizeResponse {
    prompt: String,
}

/// The route.
#[utoipa::path(
    post, path = "/detokenize", operation_id = "detokenize", tag = super::openapi::TAG, summary = "Turn token ids into text",
    request_body = DetokenizeRequest,
    responses((status = 200, description = "The text", body = DetokenizeResponse), super::openapi::NativeErrors),
)]
pub(super) async fn handle(
    State(server): State<Arc<Server>>,
    body: Body<DetokenizeRequest>,
) -> Result<Response<HttpBody>, NativeFailure> {
    let tokens = body.value.tokens;
    at_most("tokens", "tokens", MAX_DETOKENIZED, tokens.len())?;
    let tokenizer = server.validation.tokenizer.clone();
    let prompt = server.validation.pool.run(move || tokenizer.decode(&tokens)).await?;
    Ok(json(to_json(&DetokenizeResponse { prompt })))
}
