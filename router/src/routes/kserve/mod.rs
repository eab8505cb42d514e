//! KServe's Open Inference Protocol v2: health, metadata and, in [`infer`], inference.
//!
//! There is one model, and it answers to every name, as in TGI: the name in the path is that of the deployment, which the
//! container does not know. Answers have TGI's fields and, beside them, those of the specification where TGI departs.
//!
//! Source: <https://kserve.github.io/website/docs/concepts/architecture/data-plane/v2-protocol>.

pub(super) mod infer;

use std::sync::Arc;

use axum::body::Body;
use axum::extract::{FromRequestParts, Path, State};
use axum::http::Response;
use axum::http::request::Parts;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::{json, to_json};
use crate::error::{Error, NativeFailure, ValidationError};
use crate::limits::MAX_NAME_BYTES;
use crate::params::at_most;
use crate::server::Server;

/// The model as the path names it.
#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Path)]
pub(super) struct ModelPath {
    /// Any name.
    #[param(max_length = 256)]
    name: String,
    #[serde(default)]
    #[param(ignore = true)]
    version: Option<String>,
}

impl<S: Send + Sync> FromRequestParts<S> for ModelPath {
    type Rejection = NativeFailure;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, NativeFailure> {
        let malformed = |_| ValidationError::Malformed { field: "path", expected: "percent-encoded UTF-8" };
        let Path(model) = Path::<Self>::from_request_parts(parts, state).await.map_err(malformed)?;
        at_most("name", "bytes", MAX_NAME_BYTES, model.name.len())?;
        at_most("version", "bytes", MAX_NAME_BYTES, model.version.as_ref().map_or(0, String::len))?;
        Ok(model)
    }
}

#[derive(Serialize, ToSchema)]
pub(super) struct ServerMetadata {
    name: &'static str,
    version: &'static str,
    extensions: [&'static str; 3],
}

#[derive(Serialize, ToSchema)]
pub(super) struct ModelMetadata {
    name: String,
    /// TGI's; the version that was asked for.
    version: String,
    versions: [String; 1],
    platform: &'static str,
    inputs: [TensorMetadata; 1],
    outputs: [TensorMetadata; 1],
    /// TGI's.
    extensions: [&'static str; 2],
}

#[derive(Serialize, ToSchema)]
pub(super) struct TensorMetadata {
    name: &'static str,
    datatype: &'static str,
    /// -1: any number of texts.
    shape: [i64; 1],
}

/// TGI says `live` to both questions; the specification has a word for each.
#[derive(Serialize, ToSchema)]
pub(super) struct ServerLive {
    live: bool,
}

#[derive(Serialize, ToSchema)]
pub(super) struct ServerReady {
    live: bool,
    ready: bool,
}

/// `GET /v2`.
#[utoipa::path(
    get, path = "/v2", operation_id = "kserve_metadata", tag = super::openapi::TAG, summary = "Server metadata (KServe v2)",
    responses((status = 200, description = "What the server is", body = ServerMetadata), super::openapi::GateErrors),
)]
pub(super) async fn server_metadata() -> Response<Body> {
    json(to_json(&ServerMetadata {
        name: "text-generation-inference",
        version: env!("CARGO_PKG_VERSION"),
        extensions: ["health", "models", "metrics"],
    }))
}

/// `GET /v2/health/live`: the process answers. It also does while the shards are being restarted, which a restart of the
/// container would only prolong.
#[utoipa::path(
    get, path = "/v2/health/live", operation_id = "kserve_health_live", tag = super::openapi::TAG,
    summary = "Liveness (KServe v2)",
    responses((status = 200, description = "The process answers", body = ServerLive)),
)]
pub(super) async fn live() -> Response<Body> {
    json(to_json(&ServerLive { live: true }))
}

/// `GET /v2/health/ready`: the shards answer.
#[utoipa::path(
    get, path = "/v2/health/ready", operation_id = "kserve_health_ready", tag = super::openapi::TAG,
    summary = "Readiness (KServe v2)",
    responses((status = 200, description = "Requests are served", body = ServerReady), super::openapi::HealthErrors),
)]
pub(super) async fn ready(State(server): State<Arc<Server>>) -> Result<Response<Body>, NativeFailure> {
    if !server.engine.health().ready {
        return Err(Error::Unhealthy.into());
    }
    Ok(json(to_json(&ServerReady { live: true, ready: true })))
}

/// `GET /v2/models/{name}/ready`, with and without version.
#[utoipa::path(
    get, path = "/v2/models/{name}/ready", operation_id = "kserve_model_ready", tag = super::openapi::TAG,
    summary = "Readiness of the model (KServe v2)", params(ModelPath),
    responses((status = 200, description = "Requests are served", body = ServerReady), super::openapi::ModelHealthErrors),
)]
pub(super) async fn model_ready(server: State<Arc<Server>>, _: ModelPath) -> Result<Response<Body>, NativeFailure> {
    ready(server).await
}

/// `GET /v2/models/{name}`, with and without version.
#[utoipa::path(
    get, path = "/v2/models/{name}", operation_id = "kserve_model_metadata", tag = super::openapi::TAG,
    summary = "Model metadata (KServe v2)", params(ModelPath),
    responses((status = 200, description = "What the model takes and gives", body = ModelMetadata), super::openapi::NativeErrors),
)]
pub(super) async fn model_metadata(model: ModelPath) -> Result<Response<Body>, NativeFailure> {
    let texts = |name| [TensorMetadata { name, datatype: "BYTES", shape: [-1] }];
    let version = model.version.unwrap_or_else(|| "1".to_owned());
    Ok(json(to_json(&ModelMetadata {
        name: model.name,
        versions: [version.clone()],
        version,
        platform: "text-generation-inference",
        inputs: texts("text_input"),
        outputs: texts("text_output"),
        extensions: ["infer", "ready"],
    })))
}
