//! Server-sent events: `data: {json}\n\n`, and a comment line when a stream is silent for long.
//!
//! Events are serialised straight into the bytes that go out. The response body owns the stream, so a client that goes
//! away drops it, and with it the generation.

use std::pin::Pin;
use std::task::{Context, Poll};

use axum::body::{Body, Bytes};
use axum::http::{HeaderValue, Response, header};
use futures::Stream;
use serde::Serialize;
use tokio::time::{Instant, Sleep};

use crate::limits::SSE_KEEP_ALIVE;

/// The last event of OpenAI streams.
pub(super) const DONE: &[u8] = b"data: [DONE]\n\n";

/// Appends an event to `out`.
pub(super) fn write_event(out: &mut Vec<u8>, value: &impl Serialize) {
    out.extend_from_slice(b"data: ");
    serde_json::to_writer(&mut *out, value).expect("events are structs of strings and numbers, which always serialise");
    out.extend_from_slice(b"\n\n");
}

/// Appends an event that is JSON text already.
pub(super) fn write_raw_event(out: &mut Vec<u8>, json: &[u8]) {
    out.extend_from_slice(b"data: ");
    out.extend_from_slice(json);
    out.extend_from_slice(b"\n\n");
}

/// The answer whose body is `events`.
pub(super) fn response(events: impl Stream<Item = Vec<u8>> + Send + 'static) -> Response<Body> {
    let body = KeepAlive {
        events: Box::pin(events),
        timer: Box::pin(tokio::time::sleep(SSE_KEEP_ALIVE)),
        last: Instant::now(),
    };
    let mut response = Response::new(Body::from_stream(body));
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    response
}

/// Adds a comment line whenever `events` has been silent for [`SSE_KEEP_ALIVE`].
struct KeepAlive<S> {
    events: Pin<Box<S>>,
    timer: Pin<Box<Sleep>>,
    /// When something was last sent. The timer is set anew only when it fires: resetting it per token would cost more
    /// than the token's text.
    last: Instant,
}

impl<S: Stream<Item = Vec<u8>>> Stream for KeepAlive<S> {
    type Item = Result<Bytes, std::convert::Infallible>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if let Poll::Ready(event) = self.events.as_mut().poll_next(context) {
            self.last = Instant::now();
            return Poll::Ready(event.map(|bytes| Ok(Bytes::from(bytes))));
        }
        while self.timer.as_mut().poll(context).is_ready() {
            let silence = self.last.elapsed();
            let is_due = silence >= SSE_KEEP_ALIVE;
            if is_due {
                self.last = Instant::now();
            }
            let wait = if is_due { SSE_KEEP_ALIVE } else { SSE_KEEP_ALIVE - silence };
            self.timer.as_mut().reset(Instant::now() + wait);
            if is_due {
                return Poll::Ready(Some(Ok(Bytes::from_static(b":\n\n"))));
            }
        }
        Poll::Pending
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_is_one_data_line() {
        let mut out = Vec::new();
        write_event(&mut out, &serde_json::json!({"text": "a\nb"}));
        assert_eq!(out, b"data: {\"text\":\"a\\nb\"}\n\n");
    }

    #[tokio::test(start_paused = true)]
    async fn a_silent_stream_gets_a_comment_line() {
        let events = futures::stream::once(async {
            tokio::time::sleep(SSE_KEEP_ALIVE * 5 / 2).await;
            b"data: x\n\n".to_vec()
        });
        let body = response(events).into_body();
        let bytes = axum::body::to_bytes(body, usize::MAX).await.unwrap();
        assert_eq!(bytes, &b":\n\n:\n\ndata: x\n\n"[..]);
    }
}
