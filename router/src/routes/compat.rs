//! `POST /`: the native call of the hub's clients: an array with one answer, or a stream if the body says `stream`.

use std::sync::Arc;

use axum::body::Body as HttpBody;
use axum::extract::State;
use axum::http::Response;
use serde::Deserialize;
use utoipa::ToSchema;

use super::body::{Body, Wire};
use super::generate::{GenerateParameters, GenerateRequest, GenerateResponse, answer, without_parameters};
use super::generate_stream;
use super::openapi::StreamEvent;
use crate::error::NativeFailure;
use crate::server::Server;

/// The body of `/`.
#[derive(Deserialize, ToSchema)]
#[schema(as = CompatGenerateRequest)]
pub(super) struct CompatRequest {
    /// The prompt.
    #[schema(example = "My name is Olivier and I", min_length = 1, extensions(("x-limit" = json!("payload_limit"))))]
    inputs: String,
    #[serde(default = "without_parameters")]
    parameters: GenerateParameters,
    /// Whether the answer is a stream of events.
    #[serde(default)]
    stream: bool,
}

impl Wire for CompatRequest {}

/// `/` returns prompt and reply unless told otherwise: TGI does so for every model without a hub page, and ours have none.
const FULL_TEXT: bool = true;

/// The route.
#[utoipa::path(
    post, path = "/", operation_id = "compat_generate", tag = super::openapi::TAG,
    summary = "Generate tokens if `stream == false` or a stream of tokens if `stream == true`",
    request_body = CompatRequest,
    responses((status = 200, description = "Generated text", content((Vec<GenerateResponse> = "application/json"), (StreamEvent = "text/event-stream"))), super::openapi::NativeErrors),
)]
pub(super) async fn handle(
    State(server): State<Arc<Server>>,
    body: Body<CompatRequest>,
) -> Result<Response<HttpBody>, NativeFailure> {
    let CompatRequest { inputs, parameters, stream } = body.value;
    let (asked, shape) = GenerateRequest { inputs, parameters }.split(FULL_TEXT);
    if stream {
        return Ok(generate_stream::stream(&server, asked, shape, body.arrived).await);
    }
    let answer = answer(&server, asked, shape, body.arrived).await?;
    Ok(answer.respond(&server, |mut object| {
        object.insert(0, b'[');
        object.push(b']');
        object
    }))
}
