//! `POST /vertex`, and wherever Vertex AI says with AIP_PREDICT_ROUTE: several instances in one body, a list of texts back.
//!
//! Each instance is a call of its own and has all of that call's fields; TGI reads only `max_new_tokens` and `seed`, and
//! turns every failure into a 500. Here a failure keeps the status and the text of its call.

use std::sync::Arc;

use axum::body::Body as HttpBody;
use axum::extract::{FromRequest, Request, State};
use axum::http::Response;
use axum::http::request::Parts;
use axum::response::IntoResponse;
use futures::future::try_join_all;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use utoipa::ToSchema;
use utoipa::openapi::schema::Array;

use super::body::{Body, Wire};
use super::chat_completions::{self, ChatRequest};
use super::dispatch::ask;
use super::generate::{self, GenerateParameters};
use super::openapi::limited_list;
use super::{json as answer, to_json};
use crate::error::{Dialect, Error, NativeFailure, ValidationError};
use crate::params::at_most;
use crate::server::Server;

/// A batch of calls.
#[derive(Deserialize, ToSchema)]
pub(super) struct VertexRequest {
    /// The calls.
    #[schema(schema_with = instances)]
    instances: Vec<Map<String, Value>>,
    /// Used by every instance with `inputs` that has none of its own, as Vertex AI defines it.
    #[schema(value_type = Option<GenerateParameters>)]
    parameters: Option<Value>,
}

impl Wire for VertexRequest {}

/// One call. Read by its handler; this is its description.
#[derive(ToSchema)]
#[serde(untagged)]
#[allow(dead_code, clippy::large_enum_variant, reason = "only the document speaks of it")]
pub(super) enum VertexInstance {
    Generate(GenerateVertexInstance),
    Chat(ChatRequest),
}

#[derive(ToSchema)]
#[allow(dead_code)]
pub(super) struct GenerateVertexInstance {
    /// The prompt.
    #[schema(example = "What is Deep Learning?", min_length = 1, extensions(("x-limit" = json!("payload_limit"))))]
    inputs: String,
    /// As for `/generate`, but `do_sample` is true unless it is given.
    parameters: Option<GenerateParameters>,
}

#[derive(Serialize, ToSchema)]
pub(super) struct VertexResponse {
    /// One text per instance, in their order. For a chat that calls tools: the calls as JSON text.
    predictions: Vec<String>,
}

fn instances() -> Array {
    limited_list("VertexInstance", "max_concurrent_requests").min_items(Some(1)).description(Some("The calls")).build()
}

/// The route.
#[utoipa::path(
    post, path = "/vertex", operation_id = "vertex_compatibility", tag = super::openapi::TAG,
    summary = "Generate for a batch of instances (Vertex AI)",
    request_body = VertexRequest,
    responses((status = 200, description = "One text per instance", body = VertexResponse), super::openapi::EitherErrors),
)]
pub(super) async fn handle(State(server): State<Arc<Server>>, request: Request) -> Response<HttpBody> {
    let (parts, body) = request.into_parts();
    let body = match Body::<VertexRequest>::from_request(Request::from_parts(parts.clone(), body), &server).await {
        Ok(body) => body.value,
        Err(response) => return response,
    };
    if let Err(error) = check(&body, &server) {
        return Dialect::Native.response(&Error::from(error));
    }
    let VertexRequest { instances, parameters } = body;
    let calls = instances.into_iter().map(|instance| predict(instance, &parameters, parts.clone(), server.clone()));
    match try_join_all(calls).await {
        Ok(predictions) => answer(to_json(&VertexResponse { predictions })),
        // The first failure is the answer; it drops the other calls.
        Err(response) => response,
    }
}

fn check(request: &VertexRequest, server: &Server) -> Result<(), ValidationError> {
    // More could not run at one time and would be refused one by one.
    match request.instances.len() {
        0 => Err(ValidationError::Empty { field: "instances" }),
        given => at_most("instances", "instances", server.args.max_concurrent_requests, given),
    }
}

async fn predict(
    mut instance: Map<String, Value>,
    parameters: &Option<Value>,
    parts: Parts,
    server: Arc<Server>,
) -> Result<String, Response<HttpBody>> {
    if instance.contains_key("inputs") {
        if let (None | Some(Value::Null), Some(shared)) = (instance.get("parameters"), parameters) {
            instance.insert("parameters".to_owned(), shared.clone());
        }
        let parameters = instance.entry("parameters").or_insert(Value::Null);
        if parameters.is_null() {
            *parameters = json!({});
        }
        if let Value::Object(parameters) = parameters {
            parameters.entry("do_sample").or_insert(Value::Bool(true));
        }
        let answer = ask(generate::handle, "/generate", parts, &Value::Object(instance), server).await?;
        return Ok(text_of(&answer["generated_text"]));
    }
    if instance.contains_key("messages") {
        // The texts are joined in one answer, so no instance can be a stream.
        instance.insert("stream".to_owned(), Value::Bool(false));
        let path = "/v1/chat/completions";
        let answer = ask(chat_completions::handle, path, parts, &Value::Object(instance), server).await?;
        let message = &answer["choices"][0]["message"];
        return Ok(text_of(if message["content"].is_string() { &message["content"] } else { &message["tool_calls"] }));
    }
    let error = ValidationError::MissingOneOf { fields: "`inputs`, `messages` in every one of `instances`" };
    Err(NativeFailure::from(error).into_response())
}

/// A string as it is, anything else as JSON.
fn text_of(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}
