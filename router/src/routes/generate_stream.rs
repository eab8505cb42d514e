//! `POST /generate_stream`: TGI's native stream, one event per token.
//!
//! Once the body is read, the status is 200 whatever happens: an error is an event, as clients of TGI expect.

use std::sync::Arc;
use std::time::Instant;

use axum::body::Body as HttpBody;
use axum::extract::State;
use axum::http::Response;
use futures::stream;
use serde::Serialize;
use utoipa::ToSchema;

use super::body::Body;
use super::generate::{AnswerShape, GenerateRequest, NativeToken};
use super::sse;
use crate::error::{Dialect, Error};
use crate::generation::{Generation, Step};
use crate::params::{Asked, best_of, prompt_logprobs};
use crate::server::Server;
use crate::text::StopText;
use crate::validation::SpecialTokens;

#[derive(Serialize, ToSchema)]
pub(super) struct StreamResponse<'a> {
    index: u32,
    token: NativeToken,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    top_tokens: Vec<NativeToken>,
    generated_text: Option<&'a str>,
    details: Option<StreamDetails>,
}

#[derive(Serialize, ToSchema)]
struct StreamDetails {
    #[schema(value_type = super::openapi::FinishReason)]
    finish_reason: &'static str,
    generated_tokens: u32,
    seed: Option<u64>,
    input_length: u32,
}

/// The route.
#[utoipa::path(
    post, path = "/generate_stream", operation_id = "generate_stream", tag = super::openapi::TAG,
    summary = "Generate a stream of token using Server-Sent Events",
    request_body = GenerateRequest,
    responses((status = 200, description = "One event per token; a failure is an event too", content_type = "text/event-stream", body = super::openapi::StreamEvent), super::openapi::NativeErrors),
)]
pub(super) async fn handle(State(server): State<Arc<Server>>, body: Body<GenerateRequest>) -> Response<HttpBody> {
    let (asked, shape) = body.value.split(false);
    stream(&server, asked, shape, body.arrived).await
}

/// Runs the request as a stream.
pub(super) async fn stream(server: &Server, asked: Asked, shape: AnswerShape, arrived: Instant) -> Response<HttpBody> {
    let characters = asked.inputs.chars().count();
    match start(server, asked, arrived).await {
        Ok(generation) => sse::response(server, characters, events(generation, shape)),
        Err(error) => {
            let mut event = Vec::new();
            sse::write_raw_event(&mut event, &Dialect::Native.body(&error));
            sse::response(server, characters, stream::iter([event]))
        }
    }
}

async fn start(server: &Server, asked: Asked, arrived: Instant) -> Result<Generation, Error> {
    best_of::check_stream(asked.best_of)?;
    prompt_logprobs::check_stream(asked.sampling.prompt_logprobs)?;
    let valid = server.validation.validate(asked, SpecialTokens::Add).await?;
    server.submit(&valid, StopText::Keep, arrived)
}

fn events(generation: Generation, shape: AnswerShape) -> impl stream::Stream<Item = Vec<u8>> + Send {
    stream::unfold((generation, shape, 0), |(mut generation, shape, index)| async move {
        let step = generation.next().await?;
        let mut event = Vec::with_capacity(256);
        match step {
            Ok(step) => write_step(&mut event, step, index + 1, &shape),
            Err(error) => sse::write_raw_event(&mut event, &Dialect::Native.body(&error)),
        }
        Some((event, (generation, shape, index + 1)))
    })
}

fn write_step(event: &mut Vec<u8>, step: Step, index: u32, shape: &AnswerShape) {
    let full_text = step.end.as_ref().map(|end| format!("{}{}", shape.prefix, end.generated_text));
    let details = step.end.as_ref().filter(|_| shape.details).map(|end| StreamDetails {
        finish_reason: end.finish.native(),
        generated_tokens: end.generated_tokens,
        seed: end.seed,
        input_length: end.input_tokens,
    });
    let response = StreamResponse {
        index,
        token: step.token.into(),
        top_tokens: step.top_tokens.into_iter().map(NativeToken::from).collect(),
        generated_text: full_text.as_deref(),
        details,
    };
    sse::write_event(event, &response);
}
