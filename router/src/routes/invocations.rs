//! `POST /invocations`: the one route of a SageMaker container. The body says by its first field which call is meant, and
//! is handed to that call's handler as it is, streams included.

use std::sync::Arc;

use axum::body::Body as HttpBody;
use axum::extract::{Request, State};
use axum::http::Response;
use serde::Deserialize;
use serde::de::IgnoredAny;
use utoipa::ToSchema;

use super::chat_completions::ChatRequest;
use super::compat::CompatRequest;
use super::completions::CompletionRequest;
use super::dispatch::forward;
use super::{chat_completions, compat, completions};
use crate::error::{NativeFailure, ValidationError};
use crate::server::Server;

/// The fields by which the calls are told apart, in TGI's order.
#[derive(Deserialize)]
struct Marks {
    inputs: Option<IgnoredAny>,
    messages: Option<IgnoredAny>,
    prompt: Option<IgnoredAny>,
}

/// Any of the three bodies. Read by its handler; this is its description.
#[derive(ToSchema)]
#[serde(untagged)]
#[allow(dead_code, clippy::large_enum_variant, reason = "only the document speaks of it")]
pub(super) enum SagemakerRequest {
    Generate(CompatRequest),
    Chat(ChatRequest),
    Completion(CompletionRequest),
}

/// The route.
#[utoipa::path(
    post, path = "/invocations", operation_id = "sagemaker_compatibility", tag = super::openapi::TAG,
    summary = "Generate tokens from Sagemaker request",
    request_body = SagemakerRequest,
    responses((status = 200, description = "As the call that was meant", content((Value = "application/json"), (super::openapi::JsonObject = "text/event-stream"))), super::openapi::EitherErrors),
)]
pub(super) async fn handle(
    State(server): State<Arc<Server>>,
    request: Request,
) -> Result<Response<HttpBody>, NativeFailure> {
    let (parts, body) = request.into_parts();
    let bytes = super::body::bytes(Request::from_parts(parts.clone(), body), &()).await?;
    Ok(match serde_json::from_slice(&bytes) {
        Ok(Marks { inputs: Some(_), .. }) => forward(compat::handle, "/", parts, bytes, server).await,
        Ok(Marks { messages: Some(_), .. }) => {
            forward(chat_completions::handle, "/v1/chat/completions", parts, bytes, server).await
        }
        Ok(Marks { prompt: Some(_), .. }) => {
            forward(completions::handle, "/v1/completions", parts, bytes, server).await
        }
        Ok(_) => return Err(ValidationError::MissingOneOf { fields: "`inputs`, `messages`, `prompt`" }.into()),
        // No JSON object at all: the first call's reader says what is wrong with it.
        Err(_) => forward(compat::handle, "/", parts, bytes, server).await,
    })
}
