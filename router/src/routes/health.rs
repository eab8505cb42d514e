//! `GET /health`, `/ping` and `/`: 200 with an empty body while the shards answer, 503 while they do not.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::State;
use axum::http::Response;

use crate::error::{Error, NativeFailure};
use crate::server::Server;

/// The route.
#[utoipa::path(
    get, path = "/health", operation_id = "health", tag = super::openapi::TAG,
    summary = "Health check method",
    responses((status = 200, description = "Everything is working fine"), super::openapi::HealthErrors),
)]
pub(super) async fn handle(State(server): State<Arc<Server>>) -> Result<Response<Body>, NativeFailure> {
    if server.engine.health().ready { Ok(Response::new(Body::empty())) } else { Err(Error::Unhealthy.into()) }
}
