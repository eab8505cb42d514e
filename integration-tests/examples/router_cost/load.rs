//! The clients: many connections on one thread, which read events and do as little as possible beside it.

use std::time::{Duration, Instant};

use futures::future::join_all;
use integration_tests::age_of_stamp;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// What is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Route {
    GenerateStream,
    Chat,
    Generate,
}

impl Route {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Route::GenerateStream => "generate_stream",
            Route::Chat => "chat",
            Route::Generate => "generate",
        }
    }

    /// A request for `tokens` tokens whose prompt nobody else has.
    fn request(self, number: usize, tokens: usize) -> Vec<u8> {
        let question = format!(
            "Number {number} asks: what does a server do while it waits for the next token, and how many of them can \
             it wait for at once?"
        );
        let (path, body) = match self {
            Route::GenerateStream => {
                ("/generate_stream", json!({ "inputs": question, "parameters": { "max_new_tokens": tokens } }))
            }
            Route::Generate => ("/generate", json!({ "inputs": question, "parameters": { "max_new_tokens": tokens } })),
            Route::Chat => {
                let messages = json!([
                    { "role": "system", "content": "You are a server that answers questions about itself." },
                    { "role": "user", "content": question },
                ]);
                let body = json!({ "model": "tgi", "messages": messages, "max_tokens": tokens, "stream": true });
                ("/v1/chat/completions", body)
            }
        };
        let body = body.to_string();
        format!(
            "POST {path} HTTP/1.1\r\nhost: bench\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        )
        .into_bytes()
    }
}

/// Kept connections to one router.
pub(crate) struct Clients {
    connections: Vec<TcpStream>,
    requests: usize,
}

/// What the streams of one round saw.
#[derive(Default)]
pub(crate) struct Seen {
    pub(crate) events: usize,
    /// Between neighbouring events of a stream; those that come together are no time apart.
    pub(crate) gaps: Vec<Duration>,
    /// From the shard's answer to the event.
    pub(crate) ages: Vec<Duration>,
}

impl Clients {
    pub(crate) async fn connect(port: u16, count: usize) -> Clients {
        let mut connections = Vec::with_capacity(count);
        for _ in 0..count {
            let stream = TcpStream::connect(("127.0.0.1", port)).await.expect("the router takes connections");
            stream.set_nodelay(true).expect("it is a TCP socket");
            connections.push(stream);
        }
        Clients { connections, requests: 0 }
    }

    /// One stream of `tokens` tokens on every connection. `stamped` events tell their age.
    pub(crate) async fn stream(&mut self, route: Route, tokens: usize, stamped: bool) -> Seen {
        let first = self.requests;
        self.requests += self.connections.len();
        let streams = self.connections.iter_mut().enumerate().map(|(at, connection)| {
            let request = route.request(first + at, tokens);
            async move { read_stream(connection, &request, stamped).await }
        });
        let mut seen = Seen::default();
        for stream in join_all(streams).await {
            assert_eq!(stream.events, tokens + usize::from(route == Route::Chat), "a stream is complete");
            seen.events += stream.events;
            seen.gaps.extend(stream.gaps);
            seen.ages.extend(stream.ages);
        }
        seen
    }

    /// `each` requests on every connection, one after the other.
    pub(crate) async fn answers(&mut self, route: Route, tokens: usize, each: usize) {
        let first = self.requests;
        self.requests += self.connections.len() * each;
        let clients = self.connections.iter_mut().enumerate().map(|(at, connection)| async move {
            for round in 0..each {
                read_answer(connection, &route.request(first + at * each + round, tokens)).await;
            }
        });
        join_all(clients).await;
    }
}

const LAST_CHUNK: &[u8] = b"\r\n0\r\n\r\n";

async fn read_stream(connection: &mut TcpStream, request: &[u8], stamped: bool) -> Seen {
    connection.write_all(request).await.expect("the router reads");
    let mut seen = Seen::default();
    let (mut bytes, mut read_to) = (Vec::with_capacity(16 << 10), 0);
    let mut last = None;
    while !bytes.ends_with(LAST_CHUNK) {
        let length = connection.read_buf(&mut bytes).await.expect("the connection holds");
        assert!(length > 0, "the router closes: {}", String::from_utf8_lossy(&bytes));
        let now = Instant::now();
        // An event ends with an empty line, of which JSON has none inside.
        while let Some(end) = find(&bytes[read_to..], b"\n\n") {
            let event = &bytes[read_to..read_to + end];
            assert!(find(event, b"\"error\"").is_none(), "{}", String::from_utf8_lossy(event));
            if find(event, b"data:").is_some() {
                seen.events += 1;
                seen.gaps.extend(last.replace(now).map(|last| now - last));
                seen.ages.extend(stamped.then(|| logprob(event)).flatten().map(age_of_stamp));
            }
            read_to += end + 2;
        }
        if read_to > 8 << 10 {
            bytes.drain(..read_to);
            read_to = 0;
        }
    }
    seen
}

fn logprob(event: &[u8]) -> Option<f64> {
    let name = b"\"logprob\":";
    let value = &event[find(event, name)? + name.len()..];
    let end = value.iter().position(|byte| matches!(byte, b',' | b'}'))?;
    std::str::from_utf8(&value[..end]).ok()?.parse().ok()
}

async fn read_answer(connection: &mut TcpStream, request: &[u8]) {
    connection.write_all(request).await.expect("the router reads");
    let mut bytes = Vec::with_capacity(1024);
    loop {
        let length = connection.read_buf(&mut bytes).await.expect("the connection holds");
        assert!(length > 0, "the router closes: {}", String::from_utf8_lossy(&bytes));
        let Some(head) = find(&bytes, b"\r\n\r\n") else { continue };
        assert!(bytes.starts_with(b"HTTP/1.1 200"), "{}", String::from_utf8_lossy(&bytes));
        let text = std::str::from_utf8(&bytes[..head]).expect("a head is ASCII");
        let value = text.lines().find_map(|line| line.strip_prefix("content-length: "));
        let content: usize = value.and_then(|value| value.parse().ok()).expect("an answer has a length");
        if bytes.len() == head + 4 + content {
            return;
        }
    }
}

fn find(bytes: &[u8], pattern: &[u8]) -> Option<usize> {
    bytes.windows(pattern.len()).position(|window| window == pattern)
}
