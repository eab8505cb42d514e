//! `POST /tokenize`: the tokens of a text with the bytes each covers.

use std::sync::Arc;

use axum::body::Body as HttpBody;
use axum::extract::State;
use axum::http::Response;
use serde::Serialize;

use super::body::Body;
use super::generate::GenerateRequest;
use super::{json, to_json};
use crate::error::{Error, NativeFailure};
use crate::server::Server;
use crate::text::Span;
use crate::validation::SpecialTokens;

/// A token of a text. Tokens that were added cover nothing.
#[derive(Serialize, utoipa::ToSchema)]
pub(super) struct SimpleToken {
    id: u32,
    text: String,
    start: usize,
    stop: usize,
}

/// The route. Only `inputs` counts; parameters are not looked at, as in TGI.
pub(super) async fn handle(
    State(server): State<Arc<Server>>,
    body: Body<GenerateRequest>,
) -> Result<Response<HttpBody>, NativeFailure> {
    let tokens = tokenize(&server, body.value.inputs, SpecialTokens::Add).await?;
    Ok(json(to_json(&tokens)))
}

/// Tokenizes on a worker.
pub(super) async fn tokenize(
    server: &Server,
    text: String,
    special_tokens: SpecialTokens,
) -> Result<Vec<SimpleToken>, Error> {
    let tokenizer = server.validation.tokenizer.clone();
    let work = move || {
        let spans = tokenizer.encode_spans(&text, special_tokens == SpecialTokens::Add)?;
        // A token may cover part of a character only; its text is then not valid by itself.
        let token = |Span { id, start, stop }| {
            let text = text.as_bytes().get(start..stop).map(String::from_utf8_lossy).unwrap_or_default().into_owned();
            SimpleToken { id, text, start, stop }
        };
        Ok::<_, Error>(spans.into_iter().map(token).collect())
    };
    server.validation.pool.run(work).await?
}
