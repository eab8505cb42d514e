//! `POST /v2/models/{name}/infer`: tensors of texts in, tensors of texts out, in the order they came.
//!
//! A text is either an item of a list of strings, as the specification has it, or a whole list of bytes, as TGI has it; the
//! answer uses the form of its input.

use std::sync::Arc;

use axum::body::Body as HttpBody;
use axum::extract::{FromRequest, Request, State};
use axum::http::Response;
use axum::http::request::Parts;
use axum::response::IntoResponse;
use futures::future::try_join_all;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use utoipa::openapi::RefOr;
use utoipa::openapi::schema::{Array, OneOfBuilder, Schema};
use utoipa::{PartialSchema, ToSchema};

use super::ModelPath;
use crate::error::{Dialect, Error, NativeFailure, ValidationError};
use crate::limits::MAX_NAME_BYTES;
use crate::params::at_most;
use crate::routes::body::{Body, Wire};
use crate::routes::dispatch::ask;
use crate::routes::generate::{self, GenerateParameters};
use crate::routes::openapi::{array, integer, limited, limited_list, limited_string};
use crate::routes::{json, to_json};
use crate::server::Server;

#[derive(Deserialize, ToSchema)]
pub(in crate::routes) struct InferenceRequest {
    /// Echoed.
    #[schema(max_length = 256, example = "42")]
    id: Option<String>,
    /// As for `/generate`, for every text.
    #[schema(value_type = Option<GenerateParameters>)]
    parameters: Option<Value>,
    #[schema(schema_with = inputs)]
    inputs: Vec<InferenceInput>,
    #[schema(schema_with = outputs, required = false)]
    outputs: Option<Vec<InferenceOutput>>,
}

impl Wire for InferenceRequest {}

#[derive(Deserialize, ToSchema)]
pub(in crate::routes) struct InferenceInput {
    #[schema(max_length = 256, example = "text_input")]
    name: String,
    /// Not needed: `data` says it.
    #[serde(default)]
    #[schema(schema_with = shape)]
    #[allow(dead_code)]
    shape: Vec<u64>,
    /// `BYTES`; TGI's clients also write `UINT8` for a list of bytes.
    #[serde(default)]
    #[schema(max_length = 16, example = "BYTES")]
    datatype: Option<String>,
    #[schema(value_type = TensorData)]
    data: Value,
}

/// Described, not read: [`Text::of`] reads it with an error that names the tensor.
pub(in crate::routes) struct TensorData;

impl PartialSchema for TensorData {
    fn schema() -> RefOr<Schema> {
        let strings = limited(array(limited_string("payload_limit")).min_items(Some(1)), "max_concurrent_requests");
        let bytes = limited(array(integer(0..=255)).min_items(Some(1)), "payload_limit");
        let strings = strings.description(Some("One text per item"));
        let bytes = bytes.description(Some("One text in UTF-8"));
        OneOfBuilder::new().item(strings).item(bytes).into()
    }
}

impl ToSchema for TensorData {}

#[derive(Deserialize, ToSchema)]
pub(in crate::routes) struct InferenceOutput {
    #[schema(max_length = 256, example = "text_output")]
    name: String,
}

#[derive(Serialize, ToSchema)]
pub(in crate::routes) struct InferenceResponse {
    id: Option<String>,
    model_name: String,
    model_version: String,
    outputs: Vec<InferenceOutputTensor>,
}

#[derive(Serialize, ToSchema)]
struct InferenceOutputTensor {
    name: String,
    shape: Vec<usize>,
    datatype: &'static str,
    #[schema(value_type = crate::routes::openapi::OutputTensorData)]
    data: Data,
}

#[derive(Serialize)]
#[serde(untagged)]
enum Data {
    Strings(Vec<String>),
    Bytes(Vec<u8>),
}

/// The texts of one tensor, in one of the two forms.
enum Texts {
    Strings(Vec<String>),
    Bytes(String),
}

/// The route.
#[utoipa::path(
    post, path = "/v2/models/{name}/infer", operation_id = "kserve_model_infer", tag = crate::routes::openapi::TAG,
    summary = "Generate for tensors of texts (KServe v2)", params(ModelPath),
    request_body = InferenceRequest,
    responses(
        (status = 200, description = "A tensor per input", body = InferenceResponse), crate::routes::openapi::NativeErrors
    ),
)]
pub(in crate::routes) async fn handle(
    State(server): State<Arc<Server>>,
    model: ModelPath,
    request: Request,
) -> Response<HttpBody> {
    let (parts, body) = request.into_parts();
    let request = match Body::<InferenceRequest>::from_request(Request::from_parts(parts.clone(), body), &server).await
    {
        Ok(body) => body.value,
        Err(response) => return response,
    };
    match check(&request, &server) {
        Ok(texts) => infer(model, request, texts, parts, server).await.unwrap_or_else(|response| response),
        Err(error) => Dialect::Native.response(&Error::from(error)),
    }
}

/// The texts of each input.
fn check(request: &InferenceRequest, server: &Server) -> Result<Vec<Texts>, ValidationError> {
    let given = request.inputs.len();
    if given == 0 {
        return Err(ValidationError::Empty { field: "inputs" });
    }
    if let Some(outputs) = request.outputs.as_ref().filter(|outputs| outputs.len() != given) {
        return Err(ValidationError::TensorCount { inputs: given, outputs: outputs.len() });
    }
    let names = request.inputs.iter().map(|input| &input.name);
    let names = names.chain(request.outputs.iter().flatten().map(|output| &output.name)).chain(&request.id);
    at_most("name", "bytes", MAX_NAME_BYTES, names.map(String::len).max().unwrap_or(0))?;
    let texts = request.inputs.iter().enumerate().map(|(index, input)| Texts::of(index, input));
    let texts = texts.collect::<Result<Vec<_>, _>>()?;
    // More could not run at one time and would be refused one by one.
    at_most("inputs", "texts", server.args.max_concurrent_requests, texts.iter().map(Texts::len).sum())?;
    Ok(texts)
}

async fn infer(
    model: ModelPath,
    request: InferenceRequest,
    texts: Vec<Texts>,
    parts: Parts,
    server: Arc<Server>,
) -> Result<Response<HttpBody>, Response<HttpBody>> {
    let InferenceRequest { id, parameters, inputs, outputs } = request;
    let generate = |text: String| generate_one(text, &parameters, &parts, &server);
    let data = try_join_all(texts.into_iter().map(async |texts| {
        Ok::<_, Response<HttpBody>>(match texts {
            Texts::Strings(texts) => Data::Strings(try_join_all(texts.into_iter().map(generate)).await?),
            Texts::Bytes(text) => Data::Bytes(generate(text).await?.into_bytes()),
        })
    }));
    let data = data.await?;
    let names: Vec<String> = match outputs {
        Some(outputs) => outputs.into_iter().map(|output| output.name).collect(),
        None => inputs.into_iter().map(|input| input.name).collect(),
    };
    let outputs = names.into_iter().zip(data).map(|(name, data)| {
        let shape = match &data {
            Data::Strings(texts) => vec![texts.len()],
            // TGI's.
            Data::Bytes(bytes) => vec![1, bytes.len()],
        };
        InferenceOutputTensor { name, shape, datatype: "BYTES", data }
    });
    let model_version = model.version.unwrap_or_else(|| "1".to_owned());
    Ok(json(to_json(&InferenceResponse { id, model_name: model.name, model_version, outputs: outputs.collect() })))
}

async fn generate_one(
    text: String,
    parameters: &Option<Value>,
    parts: &Parts,
    server: &Arc<Server>,
) -> Result<String, Response<HttpBody>> {
    let mut body = Map::from_iter([("inputs".to_owned(), Value::String(text))]);
    body.extend(parameters.clone().map(|parameters| ("parameters".to_owned(), parameters)));
    let body = Value::Object(body);
    let mut answer = ask(generate::handle, "/generate", parts.clone(), &body, server.clone()).await?;
    match answer["generated_text"].take() {
        Value::String(text) => Ok(text),
        _ => Err(NativeFailure::from(Error::Incomplete).into_response()),
    }
}

impl Texts {
    /// The texts of `input`, which is number `index`.
    ///
    /// # Errors
    /// [`ValidationError::TensorData`] or [`ValidationError::TensorType`] with the tensor's place.
    fn of(index: usize, input: &InferenceInput) -> Result<Self, ValidationError> {
        if let Some(given) = input.datatype.as_ref().filter(|datatype| !["BYTES", "UINT8"].contains(&datatype.as_str()))
        {
            let given = given.chars().take(16).collect();
            return Err(ValidationError::TensorType { field: format!("inputs[{index}]"), given });
        }
        let bad = || ValidationError::TensorData { field: format!("inputs[{index}].data") };
        let items = input.data.as_array().filter(|items| !items.is_empty()).ok_or_else(bad)?;
        if items[0].is_string() {
            let texts = items.iter().map(|item| item.as_str().map(str::to_owned));
            return texts.collect::<Option<_>>().map(Self::Strings).ok_or_else(bad);
        }
        let bytes = items.iter().map(|item| item.as_u64().and_then(|byte| u8::try_from(byte).ok()));
        let bytes = bytes.collect::<Option<Vec<u8>>>().ok_or_else(bad)?;
        String::from_utf8(bytes).map(Self::Bytes).map_err(|_| bad())
    }

    fn len(&self) -> usize {
        match self {
            Self::Strings(texts) => texts.len(),
            Self::Bytes(_) => 1,
        }
    }
}

fn inputs() -> Array {
    let text = "The prompts; all together at most `max_concurrent_requests` texts";
    limited_list("InferenceInput", "max_concurrent_requests").min_items(Some(1)).description(Some(text)).build()
}

fn outputs() -> Array {
    let text = "Names of the answers, one per input [default: the inputs' names]";
    limited_list("InferenceOutput", "max_concurrent_requests").description(Some(text)).build()
}

fn shape() -> Array {
    array(integer(0..=u64::from(u32::MAX))).max_items(Some(8)).build()
}
