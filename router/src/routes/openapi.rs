//! The OpenAPI document: made from the wire types and the handlers, one line per path. Names of paths, operations and
//! schemas are TGI's where TGI has them, because code generators make identifiers of them.
//!
//! `docs/openapi.json` is its committed form; `UPDATE_EXPECT=1 cargo test -p router openapi` writes it anew.

mod bounds;
mod described;
mod errors;
#[cfg(test)]
mod tests;

use std::sync::LazyLock;

use axum::http::Method;
use serde_json::{Value, json};
use utoipa::openapi::security::{ApiKey, ApiKeyValue, HttpAuthScheme, HttpBuilder, SecurityScheme};
use utoipa::{Modify, OpenApi, ToSchema};

use super::generate_stream::StreamResponse;
use super::kserve::infer::{InferenceInput, InferenceOutput};
use super::vertex::VertexInstance;
use super::{
    Access, chat_completions, chat_tokenize, compat, completions, detokenize, generate, generate_stream, health, info,
    invocations, kserve, messages, metrics, models, responses,
};
use super::{table, tokenize, vertex};
use crate::error::{AnthropicBody, NativeBody, OpenAiBody};
use crate::server::Server;

pub(super) use bounds::{array, integer, limited, limited_list, limited_string, stop_strings};
pub(super) use described::{
    BadWordText, BadWordTokens, ChoiceText, IncludedOutput, JsonObject, JsonObjectOrText, NumberedEvent,
    OutputTensorData, PromptOrPrompts, RegexText, StopList, StopStrings, TemplateVariables, TokenId,
    describe_text_or_list, text_or_list,
};
pub(super) use errors::{
    AnthropicErrors, EitherErrors, GateErrors, HealthErrors, ModelErrors, ModelHealthErrors, NativeErrors, OpenAiErrors,
};

/// TGI's one tag.
pub(super) const TAG: &str = "Text Generation Inference";

#[derive(OpenApi)]
#[openapi(
    info(title = "Text Generation Inference", description = "Text generation over TGI's and OpenAI's HTTP routes", license(name = "Apache 2.0", identifier = "Apache-2.0")),
    tags((name = TAG, description = "TGI's API, OpenAI's API, and the formats of serving platforms")),
    paths(
        compat::handle,
        generate::handle,
        generate_stream::handle,
        tokenize::handle,
        chat_tokenize::handle,
        info::handle,
        health::handle,
        metrics::handle,
        chat_completions::handle,
        completions::handle,
        models::handle,
        models::show,
        responses::handle,
        messages::handle,
        messages::count_tokens,
        detokenize::handle,
        invocations::handle,
        vertex::handle,
        kserve::server_metadata,
        kserve::live,
        kserve::ready,
        kserve::model_metadata,
        kserve::model_ready,
        kserve::infer::handle,
    ),
    components(schemas(NativeBody, OpenAiBody, AnthropicBody, VertexInstance, InferenceInput, InferenceOutput)),
    modifiers(&Keys),
    security(("bearer" = []), ("x_api_key" = [])),
)]
struct Document;

/// How a client sends its key.
struct Keys;

impl Modify for Keys {
    fn modify(&self, document: &mut utoipa::openapi::OpenApi) {
        let components = document.components.get_or_insert_default();
        let bearer = HttpBuilder::new().scheme(HttpAuthScheme::Bearer).build();
        components.add_security_scheme("bearer", SecurityScheme::Http(bearer));
        let header = ApiKey::Header(ApiKeyValue::with_description("x-api-key", "As Anthropic's clients send it"));
        components.add_security_scheme("x_api_key", SecurityScheme::ApiKey(header));
    }
}

/// Paths that answer as another one does: (path, the other one, suffix of its operation).
const ALIASES: &[(&str, &str, &str)] = &[
    ("/", "/health", "_root"),
    ("/ping", "/health", "_ping"),
    ("/v2/models/{name}/versions/{version}", "/v2/models/{name}", "_version"),
    ("/v2/models/{name}/versions/{version}/ready", "/v2/models/{name}/ready", "_version"),
    ("/v2/models/{name}/versions/{version}/infer", "/v2/models/{name}/infer", "_version"),
];

static DOCUMENT: LazyLock<Value> = LazyLock::new(|| {
    let mut document = serde_json::to_value(Document::openapi()).expect("the document is strings and numbers");
    let paths = document["paths"].as_object_mut().expect("`paths` is an object");
    for &(path, other, suffix) in ALIASES {
        let operations = paths[other].as_object().expect("a path is an object").clone();
        for (method, mut operation) in operations {
            let id = operation["operationId"].as_str().expect("every operation has a name");
            operation["operationId"] = json!(format!("{id}{suffix}"));
            if path.contains("{version}") {
                let schema = json!({"type": "string", "maxLength": crate::limits::MAX_NAME_BYTES});
                let parameter = json!({"name": "version", "in": "path", "required": true, "schema": schema});
                operation["parameters"].as_array_mut().expect("its path has a name").push(parameter);
            }
            paths.entry(path).or_insert_with(|| json!({}))[method] = operation;
        }
    }
    paths.values_mut().for_each(wrap_events);
    for route in table().into_iter().filter(|route| route.access == Access::Open) {
        let method = if route.method == Method::GET { "get" } else { "post" };
        if let Some(operation) = paths.get_mut(&route.path).and_then(|path| path.get_mut(method)) {
            operation["security"] = json!([]);
        }
    }
    document
});

/// Handlers name the JSON of an event; what a client receives is an event whose `data` is that JSON as text. Described as in
/// OpenAPI 3.2, which is the first to have a word for it.
fn wrap_events(value: &mut Value) {
    match value {
        Value::Array(items) => items.iter_mut().for_each(wrap_events),
        Value::Object(fields) => {
            if let Some(schema) = fields.get_mut("text/event-stream").and_then(|content| content.get_mut("schema")) {
                let data =
                    json!({"type": "string", "contentMediaType": "application/json", "contentSchema": schema.take()});
                *schema = json!({"type": "object", "required": ["data"], "properties": {"data": data}});
            }
            fields.values_mut().for_each(wrap_events);
        }
        _ => {}
    }
}

/// The document as `print-schema` prints it.
pub(crate) fn text() -> String {
    serde_json::to_string_pretty(&*DOCUMENT).expect("the document is strings and numbers")
}

/// The document of a running server: bounds that its flags set are numbers, and without keys nothing asks for one.
pub(super) fn served(server: &Server) -> Value {
    let mut document = DOCUMENT.clone();
    if server.args.api_key.is_empty() {
        document["security"] = json!([]);
    }
    bounds::fill(&mut document, &|limit| bounds::value(limit, server));
    document
}

/// What an event of a native stream says.
#[derive(ToSchema)]
#[serde(untagged)]
#[allow(dead_code)]
pub(super) enum StreamEvent {
    Token(StreamResponse<'static>),
    /// The last event of a stream that failed.
    Error(NativeBody<'static>),
}

/// How a generation ended.
#[derive(ToSchema)]
#[schema(rename_all = "snake_case")]
#[allow(dead_code)]
pub(super) enum FinishReason {
    Length,
    EosToken,
    StopSequence,
}
