//! `GET /api-doc/openapi.json` and `/docs`: the description of the routes, and the page (Swagger UI) that shows it. The
//! page's files are part of the executable.

use std::sync::{Arc, LazyLock};

use axum::body::Body;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, State};
use axum::http::{HeaderValue, Response, StatusCode, header};
use utoipa_swagger_ui::Config;

use super::{json, openapi, to_json};
use crate::error::{Error, NativeFailure};
use crate::server::Server;

static CONFIG: LazyLock<Arc<Config<'static>>> = LazyLock::new(|| Arc::new(Config::from("/api-doc/openapi.json")));

/// The document, with the limits of this server filled in.
pub(super) async fn document(State(server): State<Arc<Server>>) -> Response<Body> {
    json(to_json(&openapi::served(&server)))
}

/// TGI's answer to the path without slash: relative links of the page start from the one with it.
pub(super) async fn redirect() -> Response<Body> {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::SEE_OTHER;
    response.headers_mut().insert(header::LOCATION, HeaderValue::from_static("/docs/"));
    response
}

/// The page.
pub(super) async fn index() -> Result<Response<Body>, NativeFailure> {
    serve("")
}

/// A file of the page.
pub(super) async fn file(file: Result<Path<String>, PathRejection>) -> Result<Response<Body>, NativeFailure> {
    // What is not UTF-8 names no file.
    let Path(file) = file.map_err(|_| missing(""))?;
    serve(&file)
}

fn missing(file: &str) -> Error {
    Error::NoRoute { path: format!("/docs/{}", file.chars().take(64).collect::<String>()) }
}

fn serve(file: &str) -> Result<Response<Body>, NativeFailure> {
    let found = utoipa_swagger_ui::serve(file, CONFIG.clone()).ok().flatten().ok_or_else(|| missing(file))?;
    let content_type = HeaderValue::try_from(found.content_type).expect("media types are legal header values");
    let mut response = Response::new(Body::from(found.bytes.into_owned()));
    response.headers_mut().insert(header::CONTENT_TYPE, content_type);
    Ok(response)
}
