//! `POST /v1/responses`: OpenAI's newer chat call, without memory: the whole conversation comes with every request.

mod answer;
mod events;
mod request;

use std::sync::Arc;

use axum::body::Body as HttpBody;
use axum::extract::State;
use axum::http::Response as HttpResponse;

pub(super) use request::ResponsesRequest;

use self::answer::Response;
use super::body::Body;
use super::openai::Head;
use super::{headers, sse};
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
    let response = if is_stream {
        let characters = chat.characters;
        let mut answer = sse::response(events::stream(chat, response, server.validation.tokenizer.clone()));
        headers::write_stream(&server, characters, answer.headers_mut());
        answer
    } else {
        answer::respond(&server, chat, response).await?
    };
    Ok(body.unknown.tell(response))
}
