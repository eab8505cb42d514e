//! `GET /v1/models` and `GET /v1/models/{id}`: OpenAI's list, with the one model there is.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, State};
use axum::http::Response;
use serde::Serialize;
use utoipa::ToSchema;

use super::{json, to_json};
use crate::error::{Error, OpenAiFailure};
use crate::limits::MAX_NAME_BYTES;
use crate::server::Server;

/// The served models.
#[derive(Serialize, ToSchema)]
#[schema(as = ModelsInfo)]
pub(super) struct Models<'a> {
    object: &'static str,
    data: [Model<'a>; 1],
}

/// A served model.
#[derive(Serialize, ToSchema)]
#[schema(as = ModelInfo)]
pub(super) struct Model<'a> {
    id: &'a str,
    object: &'static str,
    /// When the server started, in seconds of the Unix epoch.
    created: u64,
    owned_by: &'a str,
    /// Tokens of prompt and reply together.
    max_model_len: usize,
}

/// The list.
#[utoipa::path(
    get, path = "/v1/models", operation_id = "openai_get_model_info", tag = super::openapi::TAG,
    summary = "Get model info",
    responses((status = 200, description = "Served model info", body = Models), super::openapi::GateErrors),
)]
pub(super) async fn handle(State(server): State<Arc<Server>>) -> Response<Body> {
    json(to_json(&Models { object: "list", data: [model(&server)] }))
}

/// One model.
#[utoipa::path(
    get, path = "/v1/models/{model}", operation_id = "openai_get_model", tag = super::openapi::TAG, summary = "Get one model",
    params(("model" = String, Path, description = "Name of the model", max_length = 256)),
    responses((status = 200, description = "The model", body = Model), super::openapi::ModelErrors),
)]
pub(super) async fn show(
    State(server): State<Arc<Server>>,
    name: Result<Path<String>, PathRejection>,
) -> Result<Response<Body>, OpenAiFailure> {
    // What is not UTF-8 names no model.
    let name = name.map_or_else(|_| String::new(), |Path(name)| name);
    if name == server.args.model_id {
        return Ok(json(to_json(&model(&server))));
    }
    // The name is the client's text: enough of it to recognise, and no more.
    Err(Error::NoModel { model: name.chars().take(MAX_NAME_BYTES).collect() }.into())
}

fn model(server: &Server) -> Model<'_> {
    let id = server.args.model_id.as_str();
    let max_model_len = server.validation.limits.max_total_tokens;
    Model { id, object: "model", created: server.started, owned_by: id, max_model_len }
}
