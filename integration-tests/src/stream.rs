//! Server-sent events, read as a client reads them.

use futures::StreamExt;
use reqwest::{Response, StatusCode};
use serde_json::Value;

/// One event.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// `data: {…}`
    Json(Value),
    /// `data: [DONE]`
    Done,
    /// A line that starts with a colon: keep-alive.
    Comment,
}

/// The body of a streamed answer.
pub struct Stream {
    response: Response,
    bytes: Vec<u8>,
}

impl Stream {
    /// Reads the body of `response`.
    pub fn new(response: Response) -> Stream {
        Stream { response, bytes: Vec::new() }
    }

    /// The status, which comes before the first event.
    pub fn status(&self) -> StatusCode {
        self.response.status()
    }

    /// A response header as text.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.response.headers().get(name)?.to_str().ok()
    }

    /// The next event; `None` at the end.
    ///
    /// # Panics
    /// If the connection breaks, or if what comes is no event.
    pub async fn next(&mut self) -> Option<Event> {
        loop {
            if let Some(end) = self.bytes.windows(2).position(|pair| pair == b"\n\n") {
                let event: Vec<u8> = self.bytes.drain(..end + 2).collect();
                return Some(parse(&String::from_utf8(event).expect("events are UTF-8")));
            }
            match self.response.chunk().await.expect("the stream is not cut") {
                Some(chunk) => self.bytes.extend_from_slice(&chunk),
                None if self.bytes.is_empty() => return None,
                None => panic!("the stream ends within an event: {:?}", String::from_utf8_lossy(&self.bytes)),
            }
        }
    }

    /// The next event that carries JSON; `None` at the end.
    pub async fn next_json(&mut self) -> Option<Value> {
        loop {
            match self.next().await? {
                Event::Json(value) => return Some(value),
                Event::Done | Event::Comment => {}
            }
        }
    }

    /// All further events with JSON, until the end.
    pub async fn collect(mut self) -> Vec<Value> {
        let mut events = Vec::new();
        while let Some(event) = self.next_json().await {
            events.push(event);
        }
        events
    }

    /// The body as text, for tests of the framing itself.
    pub async fn text(self) -> String {
        let mut bytes = self.bytes;
        let mut rest = self.response.bytes_stream();
        while let Some(chunk) = rest.next().await {
            bytes.extend_from_slice(&chunk.expect("the stream is not cut"));
        }
        String::from_utf8(bytes).expect("events are UTF-8")
    }
}

/// The token ids of a native stream or of `details.tokens`.
pub fn generated_ids(events: &[Value]) -> Vec<u64> {
    events.iter().filter_map(|event| event["token"]["id"].as_u64().or(event["id"].as_u64())).collect()
}

fn parse(event: &str) -> Event {
    match event.trim_end_matches('\n') {
        "data: [DONE]" => Event::Done,
        comment if comment.starts_with(':') => Event::Comment,
        data => {
            let json = data.strip_prefix("data: ").unwrap_or_else(|| panic!("an event is `data: …`, not {data:?}"));
            Event::Json(serde_json::from_str(json).unwrap_or_else(|error| panic!("{error}: {json}")))
        }
    }
}
