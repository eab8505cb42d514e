//! `POST /v1/completions`: OpenAI's text completion of one prompt or several, whole or as a stream.
//!
//! Choices are numbered prompt by prompt: answer `i` to prompt `p` is choice `p * n + i`.

mod choice;
mod chunks;
mod logprobs;
mod request;
mod whole;

use std::sync::Arc;

use axum::body::Body as HttpBody;
use axum::extract::State;
use axum::http::Response;
use futures::future::try_join_all;
use serde::Serialize;
use utoipa::ToSchema;

pub(super) use request::CompletionRequest;

use self::choice::Started;
use self::logprobs::LegacyLogprobs;
use self::request::Prompt;
use super::body::Body;
use super::openai::{Head, Usage};
use super::sse;
use crate::error::OpenAiFailure;
use crate::server::Server;

/// An answer, and each event of a streamed one.
#[derive(Serialize, ToSchema)]
pub(super) struct Completion<'a> {
    object: &'static str,
    id: &'a str,
    created: u64,
    model: &'a str,
    system_fingerprint: &'a str,
    choices: &'a [CompletionChoice],
    #[serde(skip_serializing_if = "Option::is_none")]
    usage: Option<Usage>,
}

/// An answer to a prompt, or a piece of one.
#[derive(Serialize, ToSchema)]
pub(super) struct CompletionChoice {
    index: usize,
    text: String,
    logprobs: Option<LegacyLogprobs>,
    /// Null in all but the last event of a choice.
    finish_reason: Option<&'static str>,
}

impl<'a> Completion<'a> {
    fn new(head: &'a Head, choices: &'a [CompletionChoice], usage: Option<Usage>) -> Self {
        let Head { id, created, model, system_fingerprint } = head;
        Self { object: "text_completion", id, created: *created, model, system_fingerprint, choices, usage }
    }
}

/// The route.
#[utoipa::path(
    post, path = "/v1/completions", operation_id = "completions", tag = super::openapi::TAG, summary = "Complete a text",
    request_body = CompletionRequest,
    responses((status = 200, description = "The completion, or a stream of chunks", content((Completion = "application/json"), (chunks::CompletionStreamEvent = "text/event-stream"))), super::openapi::OpenAiErrors),
)]
pub(super) async fn handle(
    State(server): State<Arc<Server>>,
    mut body: Body<CompletionRequest>,
) -> Result<Response<HttpBody>, OpenAiFailure> {
    let head = Head::new("cmpl-", body.value.take_model(), &server)?;
    let (plan, prompts, asked) = body.value.into_plan(&server).await?;
    let start = |prompt: Prompt| Started::new(&server, &plan, prompt, asked.clone(), body.arrived);
    let started = try_join_all(prompts.into_iter().map(start)).await?;
    let response = if plan.is_stream {
        let characters = started.iter().map(|started| started.characters).sum();
        sse::response(&server, characters, chunks::stream(started, plan, head))
    } else {
        whole::respond(&server, started, &plan, &head).await?
    };
    Ok(body.unknown.tell(response))
}
