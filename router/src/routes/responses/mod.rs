//! `POST /v1/responses`: OpenAI's newer chat call, without memory: the whole conversation comes with every request.

mod answer;
mod events;
mod request;

use std::sync::Arc;

use axum::body::Body as HttpBody;
use axum::extract::State;
use axum::http::Response as HttpResponse;

pub(super) use request::ResponsesRequest;

use self::answer::{LogprobForm, Response};
use super::body::Body;
use super::openai::Head;
use super::sse;
use crate::error::OpenAiFailure;
use crate::server::Server;

/// The route.
#[utoipa::path(
    post, path = "/v1/responses", operation_id = "responses", tag = super::openapi::TAG, summary = "Generate a response",
    request_body = request::ResponsesRequest,
    responses((status = 200, description = "The response, or a stream of typed events", content((answer::Response = "application/json"), (crate::routes::openapi::NumberedEvent = "text/event-stream"))), super::openapi::OpenAiErrors),
)]
pub(super) async fn handle(
    State(server): State<Arc<Server>>,
    mut body: Body<ResponsesRequest>,
) -> Result<HttpResponse<HttpBody>, OpenAiFailure> {
    let head = Head::new("resp_", body.value.take_model(), &server)?;
    let is_stream = body.value.is_stream();
    let response = Response::begun(head, body.value.settings());
    let chat = body.value.into_call()?.start(&server, body.arrived).await?;
    let logprobs = LogprobForm::new(&server, &chat);
    let response = if is_stream {
        sse::response(&server, chat.characters, events::stream(chat, response, logprobs))
    } else {
        answer::respond(&server, chat, response, &logprobs).await?
    };
    Ok(body.unknown.tell(response))
}
