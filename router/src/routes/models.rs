//! `GET /v1/models`: OpenAI's list, with the one model there is.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::State;
use axum::http::Response;
use serde::Serialize;
use utoipa::ToSchema;

use super::{json, to_json};
use crate::server::Server;

#[derive(Serialize, ToSchema)]
#[schema(as = ModelsInfo)]
struct Models<'a> {
    object: &'static str,
    data: [Model<'a>; 1],
}

#[derive(Serialize, ToSchema)]
#[schema(as = ModelInfo)]
struct Model<'a> {
    id: &'a str,
    object: &'static str,
    created: u64,
    owned_by: &'a str,
}

/// The route.
#[utoipa::path(
    get, path = "/v1/models", operation_id = "openai_get_model_info", tag = super::openapi::TAG,
    summary = "Get model info",
    responses((status = 200, description = "Served model info", body = Models), super::openapi::GateErrors),
)]
pub(super) async fn handle(State(server): State<Arc<Server>>) -> Response<Body> {
    let id = server.args.model_id.as_str();
    json(to_json(&Models { object: "list", data: [Model { id, object: "model", created: 0, owned_by: id }] }))
}
