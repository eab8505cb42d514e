//! The HTTP routes: one file per route with its wire types, one line per route in [`router`].

mod body;
mod chat;
mod chat_completions;
mod chat_tokenize;
mod compat;
mod completions;
mod detokenize;
mod generate;
mod generate_stream;
mod headers;
mod health;
mod info;
mod messages;
mod metrics;
mod models;
mod openai;
mod responses;
#[cfg(test)]
mod scripted_model;
mod sse;
#[cfg(test)]
mod tests;
mod tokenize;

use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::extract::{DefaultBodyLimit, Request};
use axum::http::{HeaderName, HeaderValue, Method, Response, StatusCode, header};
use axum::routing::{get, post};
use tower_http::cors::{AllowOrigin, CorsLayer};

pub(crate) use self::chat::ChatFormat;
use crate::error::{Dialect, Error};
use crate::server::Server;

/// What an unknown path is told.
const ROUTES: &str = "POST /generate, /generate_stream, /, /v1/chat/completions, /v1/completions, /v1/responses, /v1/messages, /v1/messages/count_tokens, /tokenize, \
     /detokenize, /chat_tokenize; GET /health, /ping, /info, /metrics, /v1/models";

/// All routes over one server.
pub(crate) fn router(server: Arc<Server>) -> Router {
    let payload_limit = server.args.payload_limit;
    let cors = cors(&server.args.cors_allow_origin);
    Router::new()
        .route("/", post(compat::handle).get(health::handle))
        .route("/generate", post(generate::handle))
        .route("/generate_stream", post(generate_stream::handle))
        .route("/v1/chat/completions", post(chat_completions::handle))
        .route("/v1/completions", post(completions::handle))
        .route("/v1/responses", post(responses::handle))
        .route("/v1/messages", post(messages::handle))
        .route("/v1/messages/count_tokens", post(messages::count_tokens))
        .route("/v1/models", get(models::handle))
        .route("/v1/models/{*model}", get(models::show))
        .route("/detokenize", post(detokenize::handle))
        .route("/tokenize", post(tokenize::handle))
        .route("/chat_tokenize", post(chat_tokenize::handle))
        .route("/info", get(info::handle))
        .route("/health", get(health::handle))
        .route("/ping", get(health::handle))
        .route("/metrics", get(metrics::handle))
        .fallback(no_route)
        .method_not_allowed_fallback(wrong_method)
        .layer(DefaultBodyLimit::max(payload_limit))
        .layer(cors)
        .with_state(server)
}

/// Browsers may call from `origins`, or from everywhere if there are none. `authorization` is allowed beyond TGI's list:
/// a browser client that sends a key could not call otherwise.
fn cors(origins: &[String]) -> CorsLayer {
    let origins: Vec<HeaderValue> = origins.iter().filter_map(|origin| origin.parse().ok()).collect();
    CorsLayer::new()
        .allow_methods([Method::GET, Method::POST])
        .allow_headers([header::CONTENT_TYPE, header::AUTHORIZATION])
        .allow_origin(if origins.is_empty() { AllowOrigin::any() } else { AllowOrigin::list(origins) })
}

async fn no_route(request: Request) -> Response<Body> {
    // The path is the client's own text: enough of it to recognise, and no more.
    let path: String = request.uri().path().chars().take(crate::limits::MAX_NAME_BYTES).collect();
    Dialect::of(&path).response(&Error::NoRoute { routes: ROUTES.to_owned(), path })
}

async fn wrong_method(request: Request) -> Response<Body> {
    let path = request.uri().path().to_owned();
    Dialect::of(&path).response(&Error::Method { path, method: request.method().clone() })
}

/// A JSON answer with status 200.
fn json(body: Vec<u8>) -> Response<Body> {
    let mut response = Response::new(Body::from(body));
    *response.status_mut() = StatusCode::OK;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

/// Serialises an answer.
fn to_json(value: &impl serde::Serialize) -> Vec<u8> {
    serde_json::to_vec(value).expect("answers are structs of strings and numbers, which always serialise")
}

const fn header_name(name: &'static str) -> HeaderName {
    HeaderName::from_static(name)
}
