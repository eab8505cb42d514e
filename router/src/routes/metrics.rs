//! `GET /metrics`: Prometheus' text format.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderValue, Response, header};

use crate::server::Server;

/// The route.
#[utoipa::path(
    get, path = "/metrics", operation_id = "metrics", tag = super::openapi::TAG,
    summary = "Prometheus metrics scrape endpoint",
    responses((status = 200, description = "Prometheus Metrics", content_type = "text/plain", body = String)),
)]
pub(super) async fn handle(State(server): State<Arc<Server>>) -> Response<Body> {
    let mut response = Response::new(Body::from(server.metrics.render()));
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    response
}
