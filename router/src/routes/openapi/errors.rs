//! The failures of each kind of route, as the document lists them. What makes them is `router/src/error/`.

use std::collections::BTreeMap;

use utoipa::openapi::content::ContentBuilder;
use utoipa::openapi::header::HeaderBuilder;
use utoipa::openapi::response::{Response, ResponseBuilder};
use utoipa::openapi::schema::{ObjectBuilder, OneOfBuilder, Schema, Type};
use utoipa::openapi::{Ref, RefOr};
use utoipa::{IntoResponses, ToSchema};

use crate::error::{AnthropicBody, NativeBody, OpenAiBody};

/// Status and description. TGI's own statuses mean what they mean there.
const FAILURES: &[(u16, &str)] = &[
    (400, "The body is not JSON, or broke off"),
    (401, "The API key is missing or wrong"),
    (404, "There is no such model"),
    (408, "The body did not arrive in time"),
    (413, "The body is larger than `payload_limit`"),
    (415, "The body is not `application/json`"),
    (422, "Input validation error: the text names field, limit and value"),
    (424, "The generation failed"),
    (429, "Model is overloaded"),
    (500, "Incomplete generation"),
    (503, "The model is not ready, or the server is shutting down"),
    (504, "The request was not finished within `--request-timeout`"),
];

/// Of a call on a native route.
pub(in crate::routes) struct NativeErrors;

/// Of a call below `/v1/`.
pub(in crate::routes) struct OpenAiErrors;

/// Of a call on Anthropic's routes.
pub(in crate::routes) struct AnthropicErrors;

/// Of a platform's call, which fails in the words of the call that it wraps.
pub(in crate::routes) struct EitherErrors;

/// Of a route that only needs the key.
pub(in crate::routes) struct GateErrors;

/// Of a call that names a model.
pub(in crate::routes) struct ModelErrors;

/// Of a health route.
pub(in crate::routes) struct HealthErrors;

/// Of a health route whose path has a name.
pub(in crate::routes) struct ModelHealthErrors;

type Responses = BTreeMap<String, RefOr<Response>>;

impl IntoResponses for NativeErrors {
    fn responses() -> Responses {
        responses(native(), is_of_a_call)
    }
}

impl IntoResponses for OpenAiErrors {
    fn responses() -> Responses {
        responses(openai(), is_of_a_call)
    }
}

impl IntoResponses for AnthropicErrors {
    fn responses() -> Responses {
        // Their clients know no 422: what a request says wrong is 400.
        responses(RefOr::Ref(Ref::from_schema_name(AnthropicBody::name())), |status| {
            is_of_a_call(status) && status != 422
        })
    }
}

impl IntoResponses for EitherErrors {
    fn responses() -> Responses {
        let either = OneOfBuilder::new().item(native()).item(openai());
        responses(Schema::from(either).into(), is_of_a_call)
    }
}

impl IntoResponses for GateErrors {
    fn responses() -> Responses {
        responses(native(), |status| status == 401)
    }
}

impl IntoResponses for ModelErrors {
    fn responses() -> Responses {
        responses(openai(), |status| [401, 404].contains(&status))
    }
}

impl IntoResponses for HealthErrors {
    fn responses() -> Responses {
        responses(native(), |status| status == 503)
    }
}

impl IntoResponses for ModelHealthErrors {
    fn responses() -> Responses {
        responses(native(), |status| [422, 503].contains(&status))
    }
}

/// A call does what it is asked under whatever name of a model.
fn is_of_a_call(status: u16) -> bool {
    status != 404
}

fn native() -> RefOr<Schema> {
    RefOr::Ref(Ref::from_schema_name(NativeBody::name()))
}

fn openai() -> RefOr<Schema> {
    RefOr::Ref(Ref::from_schema_name(OpenAiBody::name()))
}

fn responses(body: RefOr<Schema>, wanted: impl Fn(u16) -> bool) -> Responses {
    let wanted = FAILURES.iter().filter(|(status, _)| wanted(*status));
    wanted
        .map(|&(status, description)| (status.to_string(), response(body.clone(), status, description).into()))
        .collect()
}

fn response(body: RefOr<Schema>, status: u16, description: &str) -> Response {
    let body = ContentBuilder::new().schema(Some(body)).build();
    let response = ResponseBuilder::new().description(description).content("application/json", body);
    let text = |text: &str| {
        let string = ObjectBuilder::new().schema_type(Type::String).build();
        HeaderBuilder::new().schema(Some(Schema::Object(string))).description(Some(text)).build()
    };
    match status {
        401 => response.header("WWW-Authenticate", text("`Bearer`")),
        429 => response.header("Retry-After", text("Seconds after which a new attempt makes sense")),
        _ => response,
    }
    .build()
}
