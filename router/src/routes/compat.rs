//! `POST /`: the native call of the hub's clients: an array with one answer, or a stream if the body says `stream`.

use std::sync::Arc;

use axum::body::Body as HttpBody;
use axum::extract::State;
use axum::http::Response;
use serde::Deserialize;

use super::body::{Body, Wire};
use super::generate::{GenerateParameters, GenerateRequest, answer, without_parameters};
use super::generate_stream;
use crate::error::NativeFailure;
use crate::params::unsupported::{NATIVE, Unsupported};
use crate::server::Server;

#[derive(Deserialize)]
pub(super) struct CompatRequest {
    inputs: String,
    #[serde(default = "without_parameters")]
    parameters: GenerateParameters,
    #[serde(default)]
    stream: bool,
}

impl Wire for CompatRequest {
    const UNSUPPORTED: &'static [Unsupported] = NATIVE;
    const PARAMETERS: Option<&'static str> = Some("parameters");
}

/// `/` returns prompt and reply unless told otherwise: TGI does so for every model without a hub page, and ours have none.
const FULL_TEXT: bool = true;

/// The route.
pub(super) async fn handle(
    State(server): State<Arc<Server>>,
    body: Body<CompatRequest>,
) -> Result<Response<HttpBody>, NativeFailure> {
    let CompatRequest { inputs, parameters, stream } = body.value;
    let (asked, shape) = GenerateRequest { inputs, parameters }.split(FULL_TEXT);
    if stream {
        return Ok(generate_stream::stream(&server, asked, shape, body.arrived).await);
    }
    let answer = answer(&server, asked, shape, body.arrived).await?;
    Ok(answer.respond(&server, |mut object| {
        object.insert(0, b'[');
        object.push(b']');
        object
    }))
}
