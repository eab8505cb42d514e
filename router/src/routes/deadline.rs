//! `--request-timeout`: the longest a request may take, from its head to the last byte of its answer.
//!
//! A call that is not answered by then gets a typed 504. A stream that still runs ends with an error event, because its
//! status has been sent. Both drop the handler's work, and with it the generation.

use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::{Request, State};
use axum::http::{Response, header};
use axum::middleware::Next;
use futures::stream::{self, StreamExt};
use tokio::time::{Instant, timeout_at};

use super::sse;
use crate::error::{Dialect, Error};

/// The layer.
pub(super) async fn enforce(State(limit): State<Duration>, request: Request, next: Next) -> Response<Body> {
    let (deadline, dialect) = (Instant::now() + limit, Dialect::of(request.uri().path()));
    let error = Error::Timeout { seconds: limit.as_secs() };
    match timeout_at(deadline, next.run(request)).await {
        Err(_) => dialect.response(&error),
        Ok(response) if is_stream(&response) => response.map(|body| until(deadline, body, dialect, error)),
        Ok(response) => response,
    }
}

fn is_stream(response: &Response<Body>) -> bool {
    response.headers().get(header::CONTENT_TYPE).is_some_and(|value| value == "text/event-stream")
}

/// `body` up to `deadline`, then an event that says so.
fn until(deadline: Instant, body: Body, dialect: Dialect, error: Error) -> Body {
    let state = Some((body.into_data_stream(), error));
    Body::from_stream(stream::unfold(state, move |state| async move {
        let (mut events, error) = state?;
        match timeout_at(deadline, events.next()).await {
            Ok(event) => Some((event?, Some((events, error)))),
            Err(_) => Some((Ok(Bytes::from(last_event(dialect, &error))), None)),
        }
    }))
}

fn last_event(dialect: Dialect, error: &Error) -> Vec<u8> {
    let mut event = Vec::new();
    sse::write_raw_event(&mut event, &dialect.body(error));
    if dialect == Dialect::OpenAi {
        event.extend_from_slice(sse::DONE);
    }
    event
}
