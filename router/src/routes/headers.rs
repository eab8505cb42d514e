//! TGI's response headers: what a request cost.

use axum::http::{HeaderMap, HeaderName, HeaderValue};

use super::header_name;
use crate::generation::{End, Timings};
use crate::server::Server;

const COMPUTE_TYPE: HeaderName = header_name("x-compute-type");
const COMPUTE_TIME: HeaderName = header_name("x-compute-time");
const COMPUTE_CHARACTERS: HeaderName = header_name("x-compute-characters");
const TOTAL_TIME: HeaderName = header_name("x-total-time");
const VALIDATION_TIME: HeaderName = header_name("x-validation-time");
const QUEUE_TIME: HeaderName = header_name("x-queue-time");
const INFERENCE_TIME: HeaderName = header_name("x-inference-time");
const TIME_PER_TOKEN: HeaderName = header_name("x-time-per-token");
const PROMPT_TOKENS: HeaderName = header_name("x-prompt-tokens");
const GENERATED_TOKENS: HeaderName = header_name("x-generated-tokens");
const ACCEL_BUFFERING: HeaderName = header_name("x-accel-buffering");

/// What one or several generations cost together.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Cost {
    characters: usize,
    timings: Timings,
    prompt_tokens: u64,
    generated_tokens: u64,
}

impl Cost {
    /// The cost of one generation from a prompt of `characters`.
    pub(super) fn new(characters: usize, end: &End) -> Self {
        Self {
            characters,
            timings: end.timings,
            prompt_tokens: end.input_tokens.into(),
            generated_tokens: end.generated_tokens.into(),
        }
    }

    /// Adds another generation of the same request: every figure is a sum, as in TGI.
    pub(super) fn add(&mut self, other: &Cost) {
        self.characters += other.characters;
        self.timings.total += other.timings.total;
        self.timings.validation += other.timings.validation;
        self.timings.queue += other.timings.queue;
        self.timings.inference += other.timings.inference;
        self.timings.time_per_token += other.timings.time_per_token;
        self.prompt_tokens += other.prompt_tokens;
        self.generated_tokens += other.generated_tokens;
    }

    /// The headers of a complete answer.
    pub(super) fn write(&self, server: &Server, headers: &mut HeaderMap) {
        headers.insert(COMPUTE_TYPE, server.compute_type.clone());
        let seconds = self.timings.total.as_secs_f64().to_string();
        headers.insert(COMPUTE_TIME, HeaderValue::try_from(seconds).expect("a number is a legal header value"));
        headers.insert(COMPUTE_CHARACTERS, HeaderValue::from(self.characters));
        for (name, duration) in [
            (TOTAL_TIME, self.timings.total),
            (VALIDATION_TIME, self.timings.validation),
            (QUEUE_TIME, self.timings.queue),
            (INFERENCE_TIME, self.timings.inference),
            (TIME_PER_TOKEN, self.timings.time_per_token),
        ] {
            // Milliseconds of a request fit into 64 bits for longer than anybody waits.
            headers.insert(name, HeaderValue::from(duration.as_millis() as u64));
        }
        headers.insert(PROMPT_TOKENS, HeaderValue::from(self.prompt_tokens));
        headers.insert(GENERATED_TOKENS, HeaderValue::from(self.generated_tokens));
    }
}

/// The headers of a stream from prompts of `characters` in all.
pub(super) fn write_stream(server: &Server, characters: usize, headers: &mut HeaderMap) {
    headers.insert(COMPUTE_TYPE, server.compute_type.clone());
    headers.insert(COMPUTE_CHARACTERS, HeaderValue::from(characters));
    // nginx would collect the stream otherwise.
    headers.insert(ACCEL_BUFFERING, HeaderValue::from_static("no"));
}
