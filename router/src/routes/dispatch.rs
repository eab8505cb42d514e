//! Platform formats wrap the calls that exist: they make the inner call's body and hand it to that call's own handler, so
//! that an answer is the same whichever door it was asked at.

use std::sync::Arc;

use axum::body::{Body as HttpBody, Bytes, to_bytes};
use axum::extract::Request;
use axum::handler::Handler;
use axum::http::request::Parts;
use axum::http::{HeaderValue, Response, StatusCode, Uri, header};
use serde_json::Value;

use crate::server::Server;

/// The answer of `handler`, the handler of `path`, to `body`. `parts` are those of the outer request: what the layers
/// have written into its extensions (the body limit) holds for the inner one too.
pub(super) async fn forward<H: Handler<T, Arc<Server>>, T: 'static>(
    handler: H,
    path: &'static str,
    mut parts: Parts,
    body: Bytes,
    server: Arc<Server>,
) -> Response<HttpBody> {
    // The path decides in which dialect an unreadable body is refused.
    parts.uri = Uri::from_static(path);
    handler.call(Request::from_parts(parts, HttpBody::from(body)), server).await
}

/// As [`forward`] with a body that was made here; the answer's JSON.
///
/// # Errors
/// The handler's own answer, if it is not a success.
pub(super) async fn ask<H: Handler<T, Arc<Server>>, T: 'static>(
    handler: H,
    path: &'static str,
    mut parts: Parts,
    body: &Value,
    server: Arc<Server>,
) -> Result<Value, Response<HttpBody>> {
    parts.headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    let response = forward(handler, path, parts, body.to_string().into(), server).await;
    if response.status() != StatusCode::OK {
        return Err(response);
    }
    let (_, body) = response.into_parts();
    // Our own answer, complete in memory already: the limit is the machine's.
    let bytes = to_bytes(body, usize::MAX).await.expect("a complete body has nothing left to fail");
    Ok(serde_json::from_slice(&bytes).expect("handlers answer 200 with JSON"))
}
