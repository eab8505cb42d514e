//! The HTTP routes: one file per route with its wire types, one line per route in [`table`].

mod auth;
mod body;
mod chat;
mod chat_completions;
mod chat_tokenize;
mod compat;
mod completions;
mod deadline;
mod detokenize;
mod dispatch;
mod docs;
mod generate;
mod generate_stream;
mod grammar;
mod headers;
mod health;
mod info;
mod invocations;
mod kserve;
mod messages;
mod metrics;
mod models;
mod openai;
mod openapi;
mod responses;
#[cfg(test)]
mod scripted_model;
mod sse;
#[cfg(test)]
mod tests;
mod tokenize;
mod vertex;

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::{DefaultBodyLimit, Request};
use axum::handler::Handler;
use axum::http::{HeaderName, HeaderValue, Method, Response, StatusCode, header};
use axum::middleware::from_fn_with_state;
use axum::routing::{MethodRouter, get, post};
use tower_http::cors::{AllowHeaders, AllowOrigin, CorsLayer, ExposeHeaders};

use crate::api_key::KeyRing;
use crate::args::Args;
use crate::error::{Dialect, Error};
use crate::server::Server;

pub(crate) use chat::ChatFormat;
pub(crate) use openapi::text as openapi_text;

/// Who is answered when the server has API keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Access {
    /// Everybody.
    Open,
    /// Whoever has a key.
    Key,
}

/// One method of one path.
struct Route {
    method: Method,
    path: String,
    access: Access,
    handler: MethodRouter<Arc<Server>>,
}

impl Route {
    fn get<H: Handler<T, Arc<Server>>, T: 'static>(path: &str, access: Access, handler: H) -> Self {
        Self { method: Method::GET, path: path.to_owned(), access, handler: get(handler) }
    }

    fn post<H: Handler<T, Arc<Server>>, T: 'static>(path: &str, access: Access, handler: H) -> Self {
        Self { method: Method::POST, path: path.to_owned(), access, handler: post(handler) }
    }
}

/// Every route there is. Open are
/// - health and readiness, because load balancers, kubelets and platforms ask without a key, and learn one bit;
/// - metrics, because scrapers have no key either in deployments of TGI, and no label holds a client's text;
/// - `/info`, which TGI's clients and probes read without a key: names and limits that the answers show anyway;
/// - the document and its page, which are public in this repository.
///
/// Everything else needs a key, also `/v1/models` and `/chat_tokenize`, which TGI leaves open: OpenAI's clients test a key by
/// listing the models, and the other one works for its caller.
fn table() -> Vec<Route> {
    use Access::{Key, Open};
    vec![
        // TGI.
        Route::post("/", Key, compat::handle),
        Route::post("/generate", Key, generate::handle),
        Route::post("/generate_stream", Key, generate_stream::handle),
        Route::post("/tokenize", Key, tokenize::handle),
        Route::post("/chat_tokenize", Key, chat_tokenize::handle),
        Route::get("/info", Open, info::handle),
        // OpenAI.
        Route::post("/v1/chat/completions", Key, chat_completions::handle),
        Route::post("/v1/completions", Key, completions::handle),
        Route::get("/v1/models", Key, models::handle),
        Route::get("/v1/models/{*model}", Key, models::show),
        Route::post("/v1/responses", Key, responses::handle),
        Route::post("/detokenize", Key, detokenize::handle),
        // Anthropic.
        Route::post("/v1/messages", Key, messages::handle),
        Route::post("/v1/messages/count_tokens", Key, messages::count_tokens),
        // Platforms.
        Route::post("/invocations", Key, invocations::handle),
        Route::post("/vertex", Key, vertex::handle),
        Route::get("/v2", Key, kserve::server_metadata),
        Route::get("/v2/health/live", Open, kserve::live),
        Route::get("/v2/health/ready", Open, kserve::ready),
        Route::get("/v2/models/{name}", Key, kserve::model_metadata),
        Route::get("/v2/models/{name}/ready", Open, kserve::model_ready),
        Route::post("/v2/models/{name}/infer", Key, kserve::infer::handle),
        Route::get("/v2/models/{name}/versions/{version}", Key, kserve::model_metadata),
        Route::get("/v2/models/{name}/versions/{version}/ready", Open, kserve::model_ready),
        Route::post("/v2/models/{name}/versions/{version}/infer", Key, kserve::infer::handle),
        // Operation.
        Route::get("/", Open, health::handle),
        Route::get("/health", Open, health::handle),
        Route::get("/ping", Open, health::handle),
        Route::get("/metrics", Open, metrics::handle),
        Route::get("/api-doc/openapi.json", Open, docs::document),
        Route::get("/docs", Open, docs::redirect),
        Route::get("/docs/", Open, docs::index),
        Route::get("/docs/{*file}", Open, docs::file),
    ]
}

/// [`table`] with the routes that Vertex AI names in the environment.
fn routes_of(args: &Args) -> Vec<Route> {
    let mut routes = table();
    // Vertex AI may name a path that is served already (`/health`, `/v1/chat/completions`): it keeps its meaning.
    let mut add = |route: Route| {
        if !routes.iter().any(|known| known.path == route.path && known.method == route.method) {
            routes.push(route);
        }
    };
    if let Some(path) = &args.aip_predict_route {
        add(Route::post(path, Access::Key, vertex::handle));
    }
    if let Some(path) = &args.aip_health_route {
        add(Route::get(path, Access::Open, health::handle));
    }
    routes
}

/// All routes over one server.
pub(crate) fn router(server: Arc<Server>) -> Router {
    let args = &server.args;
    let routes = routes_of(args);
    let keys = KeyRing::new(&args.api_key);
    let gate = (!keys.is_empty()).then(|| auth::Gate::new(keys, &routes));
    let mut router = Router::new();
    for Route { path, handler, .. } in routes {
        router = router.route(&path, handler);
    }
    router = router.fallback(no_route).method_not_allowed_fallback(wrong_method);
    router = router.layer(DefaultBodyLimit::max(args.payload_limit));
    if let Some(seconds) = args.request_timeout {
        router = router.layer(from_fn_with_state(Duration::from_secs(seconds), deadline::enforce));
    }
    // A server without keys has no gate: it would cost every request and keep nobody out.
    if let Some(gate) = gate {
        router = router.layer(from_fn_with_state(Arc::new(gate), auth::check));
    }
    // The last layer is the first to see a request: preflights, which carry no key, end at CORS.
    router.layer(cors(&args.cors_allow_origin)).with_state(server)
}

/// Browsers may call from `origins`, or from everywhere if there are none. They may send any header and read all of an
/// answer's: TGI allows `content-type` only, with which a page can send no key and see no `x-*` header, and OpenAI's and
/// Anthropic's clients add headers of their own to every call. Nothing is given away by it, because a page has no power
/// over this server that its origin or key does not give it (cookies are not used, credentials not allowed).
fn cors(origins: &[String]) -> CorsLayer {
    let origins: Vec<HeaderValue> = origins.iter().filter_map(|origin| origin.parse().ok()).collect();
    CorsLayer::new()
        .allow_methods([Method::GET, Method::POST, Method::OPTIONS])
        .allow_headers(AllowHeaders::mirror_request())
        .expose_headers(ExposeHeaders::any())
        .allow_origin(if origins.is_empty() { AllowOrigin::any() } else { AllowOrigin::list(origins) })
}

async fn no_route(request: Request) -> Response<Body> {
    // The path is the client's own text: enough of it to recognise, and no more.
    let path: String = request.uri().path().chars().take(crate::limits::MAX_NAME_BYTES).collect();
    Dialect::of(&path).response(&Error::NoRoute { path })
}

async fn wrong_method(request: Request) -> Response<Body> {
    let path = request.uri().path().to_owned();
    Dialect::of(&path).response(&Error::Method { path, method: request.method().clone() })
}

/// A JSON answer with status 200.
fn json(body: Vec<u8>) -> Response<Body> {
    // Its type, what it cost, and what CORS and the connection add: a map that grows to them sorts itself three times.
    const HEADERS: usize = 20;
    let mut response = Response::new(Body::from(body));
    *response.status_mut() = StatusCode::OK;
    response.headers_mut().reserve(HEADERS);
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
