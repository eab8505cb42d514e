//! `GET /info`: what is served and within which limits.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::State;
use axum::http::Response;
use serde::Serialize;
use utoipa::ToSchema;

use super::{json, to_json};
use crate::server::Server;

#[derive(Serialize, ToSchema)]
struct Info<'a> {
    model_id: &'a str,
    model_sha: Option<&'a str>,
    model_pipeline_tag: Option<&'a str>,
    max_concurrent_requests: usize,
    max_best_of: usize,
    max_stop_sequences: usize,
    max_input_tokens: usize,
    max_total_tokens: usize,
    validation_workers: usize,
    max_client_batch_size: usize,
    router: &'static str,
    version: &'static str,
    sha: Option<&'static str>,
    docker_label: Option<&'static str>,
}

/// The route.
#[utoipa::path(
    get, path = "/info", operation_id = "get_model_info", tag = super::openapi::TAG,
    summary = "Text Generation Inference endpoint info",
    responses((status = 200, description = "Served model info", body = Info)),
)]
pub(super) async fn handle(State(server): State<Arc<Server>>) -> Response<Body> {
    let (args, limits) = (&server.args, &server.validation.limits);
    json(to_json(&Info {
        model_id: &args.model_id,
        model_sha: None,
        model_pipeline_tag: None,
        max_concurrent_requests: args.max_concurrent_requests,
        max_best_of: limits.max_best_of,
        max_stop_sequences: limits.max_stop_sequences,
        max_input_tokens: limits.max_input_tokens,
        max_total_tokens: limits.max_total_tokens,
        validation_workers: args.validation_workers,
        max_client_batch_size: args.max_client_batch_size,
        router: "text-generation-router",
        version: env!("CARGO_PKG_VERSION"),
        // Set by whoever builds a release or an image.
        sha: option_env!("GIT_SHA"),
        docker_label: option_env!("DOCKER_LABEL"),
    }))
}
