//! One streamed request and its times.

use std::time::Instant;

use http_body_util::{BodyExt, Full, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::header::{AUTHORIZATION, CONTENT_TYPE, HeaderValue};
use hyper::{Request, Response, StatusCode, Uri};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use serde_json::{Value, json};

use super::protocol::{self, ServerError};
use crate::args::Args;
use crate::error::Error;
use crate::limits::{HANDSHAKE_TIMEOUT, MAX_ERROR_BYTES, MAX_EVENT_BYTES, MAX_TOKENIZED_BYTES, REQUEST_TIMEOUT};
use crate::report::Requests;
use crate::statistics::Distribution;

/// Calls one route of one server, over connections that are kept.
pub(super) struct Caller {
    client: Client<HttpConnector, Full<Bytes>>,
    args: Args,
    target: String,
    tokenize: String,
    authorization: Option<HeaderValue>,
}

/// When what came.
#[derive(Debug)]
pub(super) struct Answer {
    first_output: Instant,
    last_output: Instant,
    end: Instant,
    gaps: Distribution,
    prompt_tokens: u64,
    output_tokens: u64,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub(super) enum Failure {
    /// No connection, or a broken one.
    #[error("{0}")]
    Connection(std::io::ErrorKind),
    /// A connection that was ended, or an answer that is no HTTP.
    #[error("broken connection")]
    Broken,
    /// A status that is no success, with what the server said.
    #[error("HTTP {}: {text}", status.as_u16())]
    Status { status: StatusCode, text: String },
    /// An event that reports an error.
    #[error("error event: {}: {}", .0.kind, .0.message)]
    Event(ServerError),
    /// An event that is too long, or no JSON.
    #[error("malformed event: {0}")]
    Malformed(String),
    /// A stream without its last event.
    #[error("cut stream")]
    Cut,
    /// A stream without a token.
    #[error("no token")]
    Empty,
    /// It took too long.
    #[error("timeout")]
    Timeout,
    /// Too many others were in flight.
    #[error("not sent")]
    NotSent,
}

impl Failure {
    /// What failures are counted by.
    pub(super) fn kind(&self) -> String {
        match self {
            Failure::Status { status, .. } => format!("HTTP {}", status.as_u16()),
            Failure::Event(error) => format!("error event: {}", error.kind),
            Failure::Malformed(_) => "malformed event".to_owned(),
            other => other.to_string(),
        }
    }
}

impl Caller {
    /// # Errors
    /// If the address or the key cannot be used.
    pub(super) fn new(args: &Args) -> Result<Caller, Error> {
        let url = args.http.url.as_deref().unwrap_or_default();
        let invalid = |reason: &str| Error::Url { url: url.to_owned(), reason: reason.to_owned() };
        let base = url.trim_end_matches('/');
        let uri: Uri = base.parse().map_err(|_| invalid("not an address; expected http://HOST:PORT"))?;
        match uri.scheme_str() {
            Some("http") if uri.query().is_none() => {}
            Some("https") => return Err(invalid("TLS is not spoken; measure behind the proxy that ends it")),
            _ => return Err(invalid("not an address; expected http://HOST:PORT")),
        }
        let authorization = args.http.api_key.as_ref().map(|key| {
            HeaderValue::try_from(format!("Bearer {key}"))
                .map(|mut value| {
                    value.set_sensitive(true);
                    value
                })
                .map_err(|_| Error::Flags("--api-key has characters that no header can carry".to_owned()))
        });
        let mut connector = HttpConnector::new();
        connector.set_nodelay(true);
        connector.set_connect_timeout(Some(HANDSHAKE_TIMEOUT));
        Ok(Caller {
            client: Client::builder(TokioExecutor::new()).build(connector),
            target: format!("{base}{}", args.http.api.path()),
            tokenize: format!("{base}/tokenize"),
            authorization: authorization.transpose()?,
            args: args.clone(),
        })
    }

    /// The address that is called.
    pub(super) fn target(&self) -> &str {
        &self.target
    }

    /// How many tokens `text` has; `None` if the server cannot say.
    ///
    /// # Errors
    /// If it does not answer, or not to us.
    pub(super) async fn count_tokens(&self, text: &str) -> Result<Option<u64>, Failure> {
        let call = async {
            let response = match self.post(&self.tokenize, &json!({ "inputs": text })).await {
                Ok(response) => response,
                Err(Failure::Status { status, .. })
                    if !matches!(status, StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN) =>
                {
                    return Ok(None);
                }
                Err(failure) => return Err(failure),
            };
            let body = Limited::new(response.into_body(), MAX_TOKENIZED_BYTES).collect().await;
            let bytes = body.map_err(|_| Failure::Broken)?.to_bytes();
            let answer: Option<Value> = serde_json::from_slice(&bytes).ok();
            Ok(answer.and_then(|answer| Some(answer.as_array()?.len() as u64)))
        };
        tokio::time::timeout(HANDSHAKE_TIMEOUT, call).await.unwrap_or(Err(Failure::Timeout))
    }

    /// Sends a prompt and reads its stream to the end.
    pub(super) async fn call(&self, prompt: &str, number: u64) -> Result<Answer, Failure> {
        let call = async {
            let response = self.post(&self.target, &protocol::body(&self.args, prompt, number)).await?;
            self.read(response.into_body()).await
        };
        tokio::time::timeout(REQUEST_TIMEOUT, call).await.unwrap_or(Err(Failure::Timeout))
    }

    async fn post(&self, url: &str, body: &Value) -> Result<Response<Incoming>, Failure> {
        let mut request = Request::post(url)
            .header(CONTENT_TYPE, "application/json")
            .body(Full::from(body.to_string()))
            .expect("the address was parsed when the caller was made");
        if let Some(authorization) = &self.authorization {
            request.headers_mut().insert(AUTHORIZATION, authorization.clone());
        }
        let response = self.client.request(request).await.map_err(|error| connection(&error))?;
        let status = response.status();
        if status.is_success() {
            return Ok(response);
        }
        let body = Limited::new(response.into_body(), MAX_EVENT_BYTES).collect().await;
        let bytes = body.map(|body| body.to_bytes()).unwrap_or_default();
        let text = String::from_utf8_lossy(&bytes[..bytes.len().min(MAX_ERROR_BYTES)]);
        Err(Failure::Status { status, text: text.split_whitespace().collect::<Vec<_>>().join(" ") })
    }

    async fn read(&self, mut body: Incoming) -> Result<Answer, Failure> {
        let mut events = Events::default();
        let mut outputs: Option<(Instant, Instant)> = None;
        let mut gaps = Distribution::default();
        let (mut num_outputs, mut prompt_tokens, mut output_tokens, mut is_complete) = (0, None, None, false);
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|error| connection(&error))?;
            let now = Instant::now();
            events.push(frame.data_ref().map_or(&[], |data| &data[..]));
            while let Some(data) = events.next()? {
                let piece = protocol::read(self.args.http.api, &data).map_err(Failure::Malformed)?;
                if let Some(error) = piece.error {
                    return Err(Failure::Event(error));
                }
                if piece.has_output {
                    num_outputs += 1;
                    if let Some((_, last)) = outputs {
                        gaps.record((now - last).as_secs_f64());
                    }
                    outputs = Some((outputs.map_or(now, |(first, _)| first), now));
                }
                is_complete |= piece.is_last;
                prompt_tokens = piece.prompt_tokens.or(prompt_tokens);
                output_tokens = piece.output_tokens.or(output_tokens);
            }
        }
        if !is_complete {
            return Err(Failure::Cut);
        }
        let (first_output, last_output) = outputs.ok_or(Failure::Empty)?;
        Ok(Answer {
            first_output,
            last_output,
            end: Instant::now(),
            gaps,
            prompt_tokens: prompt_tokens.unwrap_or(0),
            output_tokens: output_tokens.unwrap_or(num_outputs),
        })
    }
}

impl Answer {
    /// Adds the times since `began`.
    pub(super) fn record(&self, began: Instant, results: &mut Requests) {
        let since = |at: Instant| at.saturating_duration_since(began).as_secs_f64();
        results.time_to_first_token.record(since(self.first_output));
        results.inter_token.merge(&self.gaps);
        if self.output_tokens > 1 {
            let rest = (self.last_output - self.first_output).as_secs_f64();
            results.time_per_output_token.record(rest / (self.output_tokens - 1) as f64);
        }
        results.end_to_end.record(since(self.end));
        results.completed += 1;
        results.prompt_tokens += self.prompt_tokens;
        results.output_tokens += self.output_tokens;
    }
}

/// The system's reason in the chain of causes, if there is one.
fn connection(error: &(dyn std::error::Error + 'static)) -> Failure {
    let mut cause = Some(error);
    while let Some(error) = cause {
        if let Some(error) = error.downcast_ref::<std::io::Error>() {
            return Failure::Connection(error.kind());
        }
        cause = error.source();
    }
    Failure::Broken
}

/// Server-sent events out of pieces of bytes.
#[derive(Default)]
struct Events {
    bytes: Vec<u8>,
    /// Bytes before this were read.
    start: usize,
    data: Vec<u8>,
}

impl Events {
    fn push(&mut self, bytes: &[u8]) {
        self.bytes.drain(..std::mem::take(&mut self.start));
        self.bytes.extend_from_slice(bytes);
    }

    /// The data of the next complete event. Comments, names and ids say nothing here.
    ///
    /// # Errors
    /// If an event is longer than [`MAX_EVENT_BYTES`].
    fn next(&mut self) -> Result<Option<Vec<u8>>, Failure> {
        while let Some(length) = self.bytes[self.start..].iter().position(|&byte| byte == b'\n') {
            let line = &self.bytes[self.start..self.start + length];
            self.start += length + 1;
            let line = line.strip_suffix(b"\r").unwrap_or(line);
            if line.is_empty() && !self.data.is_empty() {
                return Ok(Some(std::mem::take(&mut self.data)));
            }
            if let Some(data) = line.strip_prefix(b"data:") {
                if !self.data.is_empty() {
                    self.data.push(b'\n');
                }
                self.data.extend_from_slice(data.strip_prefix(b" ").unwrap_or(data));
            }
        }
        match self.bytes.len() - self.start + self.data.len() > MAX_EVENT_BYTES {
            true => Err(Failure::Malformed(format!("longer than {MAX_EVENT_BYTES} bytes"))),
            false => Ok(None),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use clap::Parser;

    use super::*;

    /// All events of `text`, pushed in pieces of `size` bytes.
    fn events(text: &str, size: usize) -> Vec<String> {
        let mut events = Events::default();
        let mut all = Vec::new();
        for piece in text.as_bytes().chunks(size) {
            events.push(piece);
            while let Some(data) = events.next().unwrap() {
                all.push(String::from_utf8(data).unwrap());
            }
        }
        all
    }

    #[test]
    fn events_survive_any_cut() {
        let text = ": hello\n\ndata: {\"a\":1}\n\nevent: x\ndata:{\"b\":2}\r\n\r\ndata: one\ndata: two\n\ndata: [DONE]\n\ndata: cut";
        for size in 1..text.len() {
            assert_eq!(events(text, size), ["{\"a\":1}", "{\"b\":2}", "one\ntwo", "[DONE]"], "pieces of {size}");
        }
    }

    #[test]
    fn an_event_without_end_is_refused() {
        let mut events = Events::default();
        events.push(&vec![b'x'; MAX_EVENT_BYTES + 1]);
        assert_eq!(events.next().unwrap_err().kind(), "malformed event");
    }

    #[test]
    fn addresses_are_checked() {
        let target = |url: &str| {
            let args = Args::parse_from(["benchmark", "--url", url, "--api", "chat"]);
            Caller::new(&args).map(|caller| caller.target).map_err(|error| error.to_string())
        };
        assert_eq!(target("http://localhost:3000/").unwrap(), "http://localhost:3000/v1/chat/completions");
        assert_eq!(target("http://h/under").unwrap(), "http://h/under/v1/chat/completions");
        let wrong = "--url localhost:3000: not an address; expected http://HOST:PORT";
        assert_eq!(target("localhost:3000").unwrap_err(), wrong);
        assert!(target("https://h").unwrap_err().contains("TLS is not spoken"));
    }

    #[test]
    fn times_count_from_where_they_should() {
        let began = Instant::now();
        let at = |ms: u64| began + Duration::from_millis(ms);
        let mut gaps = Distribution::default();
        gaps.record(0.010);
        let answer = Answer {
            first_output: at(100),
            last_output: at(110),
            end: at(120),
            gaps,
            prompt_tokens: 7,
            output_tokens: 3,
        };
        let mut results = Requests::default();
        answer.record(began, &mut results);
        let value = |distribution: &Distribution| distribution.summary().unwrap().average;
        assert_eq!(value(&results.time_to_first_token), 0.100);
        assert_eq!(value(&results.time_per_output_token), 0.005);
        assert_eq!(value(&results.end_to_end), 0.120);
        assert_eq!((results.completed, results.prompt_tokens, results.output_tokens), (1, 7, 3));
    }
}
