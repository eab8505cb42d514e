//! `GET /info`: what is served and within which limits.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::State;
use axum::http::Response;
use serde::Serialize;

use super::{json, to_json};
use crate::server::Server;

#[derive(Serialize)]
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
        sha: None,
        docker_label: None,
    }))
}
