//! Server-sent events: `data: {json}\n\n`, and a comment line when a stream is silent for long.
//!
//! Events are serialised straight into the bytes that go out. The response body owns the stream, so a client that goes
//! away drops it, and with it the generation.

use std::pin::Pin;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::http::{HeaderValue, Response, header};
use futures::Stream;
use serde::Serialize;
use tokio::time::{Instant, Sleep};

use super::headers::write_stream;
use crate::limits::SSE_KEEP_ALIVE;
use crate::server::Server;

/// The last event of OpenAI streams.
pub(super) const DONE: &[u8] = b"data: [DONE]\n\n";

/// Appends an event to `out`.
pub(super) fn write_event(out: &mut Vec<u8>, value: &impl Serialize) {
    out.extend_from_slice(b"data: ");
    serde_json::to_writer(&mut *out, value).expect("events are structs of strings and numbers, which always serialise");
    out.extend_from_slice(b"\n\n");
}

/// Appends an event with a name.
pub(super) fn write_named_event(out: &mut Vec<u8>, name: &str, value: &impl Serialize) {
    out.extend_from_slice(b"event: ");
    out.extend_from_slice(name.as_bytes());
    out.push(b'\n');
    write_event(out, value);
}

/// Appends an event that is JSON text already.
pub(super) fn write_raw_event(out: &mut Vec<u8>, json: &[u8]) {
    out.extend_from_slice(b"data: ");
    out.extend_from_slice(json);
    out.extend_from_slice(b"\n\n");
}

/// The answer whose body is `events`, made from prompts of `characters` in all.
pub(super) fn response(
    server: &Server,
    characters: usize,
    events: impl Stream<Item = Vec<u8>> + Send + 'static,
) -> Response<Body> {
    let mut response = Response::new(Body::from_stream(KeepAlive::new(events, SSE_KEEP_ALIVE)));
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    write_stream(server, characters, headers);
    response
}

/// Adds a comment line whenever `events` has been silent for `interval`.
struct KeepAlive<S> {
    events: Pin<Box<S>>,
    interval: Duration,
    timer: Pin<Box<Sleep>>,
    /// Whom the timer wakes, and when. Until then it need not be looked at: the timers of some hundred streams are memory that
    /// is in no cache when their tokens come.
    armed: Option<(Waker, Instant)>,
    /// When something was last sent. The timer is set anew only when it fires: resetting it per token would cost more
    /// than the token's text.
    last: Instant,
}

impl<S: Stream<Item = Vec<u8>>> KeepAlive<S> {
    fn new(events: S, interval: Duration) -> Self {
        let timer = Box::pin(tokio::time::sleep(interval));
        Self { events: Box::pin(events), interval, timer, armed: None, last: Instant::now() }
    }

    /// Whether the timer will wake the task of `context`.
    fn is_armed(&self, context: &Context<'_>) -> bool {
        let armed = self.armed.as_ref();
        armed.is_some_and(|(waker, at)| waker.will_wake(context.waker()) && Instant::now() < *at)
    }
}

impl<S: Stream<Item = Vec<u8>>> Stream for KeepAlive<S> {
    type Item = Result<Bytes, std::convert::Infallible>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if let Poll::Ready(event) = self.events.as_mut().poll_next(context) {
            self.last = Instant::now();
            return Poll::Ready(event.map(|bytes| Ok(Bytes::from(bytes))));
        }
        if self.is_armed(context) {
            return Poll::Pending;
        }
        while self.timer.as_mut().poll(context).is_ready() {
            let silence = self.last.elapsed();
            let is_due = silence >= self.interval;
            if is_due {
                self.last = Instant::now();
            }
            let wait = if is_due { self.interval } else { self.interval - silence };
            self.timer.as_mut().reset(Instant::now() + wait);
            if is_due {
                return Poll::Ready(Some(Ok(Bytes::from_static(b":\n\n"))));
            }
        }
        self.armed = Some((context.waker().clone(), self.timer.deadline()));
        Poll::Pending
    }
}

#[cfg(test)]
mod tests {
    use futures::StreamExt;

    use super::*;

    #[test]
    fn an_event_is_one_data_line() {
        let mut out = Vec::new();
        write_event(&mut out, &serde_json::json!({"text": "a\nb"}));
        assert_eq!(out, b"data: {\"text\":\"a\\nb\"}\n\n");
    }

    #[tokio::test]
    async fn a_silent_stream_gets_comment_lines_until_it_speaks() {
        let (speak, spoken) = tokio::sync::oneshot::channel::<()>();
        let events = futures::stream::once(async {
            spoken.await.unwrap();
            b"data: x\n\n".to_vec()
        });
        let mut body = std::pin::pin!(KeepAlive::new(events, Duration::from_millis(1)));
        for _ in 0..3 {
            assert_eq!(body.next().await.unwrap().unwrap(), &b":\n\n"[..]);
        }
        speak.send(()).unwrap();
        let mut rest = Vec::new();
        while let Some(bytes) = body.next().await {
            rest.push(bytes.unwrap());
        }
        assert_eq!(rest.last().unwrap(), &b"data: x\n\n"[..]);
    }
}
