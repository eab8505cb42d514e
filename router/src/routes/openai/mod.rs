//! What the two OpenAI routes share: ids, usage, stop lists, log-probabilities, errors inside a stream.

use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use super::sse;
use crate::error::{Dialect, Error, ValidationError};
use crate::generation::{End, Step, Token};
use crate::limits::MAX_NAME_BYTES;
use crate::server::Server;

/// `stop`: OpenAI takes a string or a list, TGI only a list.
#[derive(Deserialize)]
#[serde(untagged)]
pub(super) enum Stop {
    One(String),
    Many(Vec<String>),
}

impl Stop {
    pub(super) fn into_list(stop: Option<Self>) -> Vec<String> {
        match stop {
            None => Vec::new(),
            Some(Stop::One(stop)) => vec![stop],
            Some(Stop::Many(stops)) => stops,
        }
    }
}

/// `stream_options`.
#[derive(Default, Deserialize)]
pub(super) struct StreamOptions {
    include_usage: Option<bool>,
}

impl StreamOptions {
    pub(super) fn includes_usage(options: Option<&Self>) -> bool {
        options.and_then(|options| options.include_usage).unwrap_or(false)
    }
}

/// What every object of one answer repeats.
pub(super) struct Head {
    pub(super) id: String,
    pub(super) created: u64,
    pub(super) model: String,
    pub(super) system_fingerprint: &'static str,
}

impl Head {
    /// A head with a new id. `model` is echoed whatever it says: clients of TGI send names like "tgi" or "dummy".
    ///
    /// # Errors
    /// [`ValidationError::TooMany`] if the name is too long to echo.
    pub(super) fn new(prefix: &str, model: Option<String>, server: &Server) -> Result<Self, Error> {
        let model = model.filter(|name| name != "tgi").unwrap_or_else(|| server.args.model_id.clone());
        if model.len() > MAX_NAME_BYTES {
            let (limit, given) = (MAX_NAME_BYTES, model.len());
            return Err(ValidationError::TooMany { field: "model", unit: "bytes", limit, given }.into());
        }
        let id = format!("{prefix}-{:032x}", rand::random::<u128>());
        let created = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        Ok(Self { id, created, model, system_fingerprint: SYSTEM_FINGERPRINT })
    }
}

const SYSTEM_FINGERPRINT: &str = concat!(env!("CARGO_PKG_VERSION"), "-native");

/// `usage`.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub(super) struct Usage {
    prompt_tokens: u32,
    completion_tokens: u32,
    total_tokens: u32,
    prompt_tokens_details: PromptTokensDetails,
}

#[derive(Clone, Copy, Debug, Default, Serialize)]
struct PromptTokensDetails {
    cached_tokens: u32,
}

impl Usage {
    pub(super) fn new(end: &End) -> Self {
        Self {
            prompt_tokens: end.input_tokens,
            completion_tokens: end.generated_tokens,
            total_tokens: end.input_tokens + end.generated_tokens,
            prompt_tokens_details: PromptTokensDetails { cached_tokens: end.cached_tokens },
        }
    }

    pub(super) fn add(&mut self, other: &Usage) {
        self.prompt_tokens += other.prompt_tokens;
        self.completion_tokens += other.completion_tokens;
        self.total_tokens += other.total_tokens;
        self.prompt_tokens_details.cached_tokens += other.prompt_tokens_details.cached_tokens;
    }
}

/// `logprobs` of a chat choice.
#[derive(Serialize)]
pub(super) struct Logprobs {
    pub(super) content: Vec<TokenLogprob>,
}

#[derive(Serialize)]
pub(super) struct TokenLogprob {
    token: String,
    logprob: f32,
    bytes: Vec<u8>,
    top_logprobs: Vec<TopLogprob>,
}

#[derive(Serialize)]
struct TopLogprob {
    token: String,
    logprob: f32,
    bytes: Vec<u8>,
}

impl TokenLogprob {
    /// The entry of one step with its `top` most likely tokens (the shard may send more on ties).
    pub(super) fn new(step: &Step, top: usize) -> Self {
        let Token { text, logprob, .. } = &step.token;
        let top_logprobs = step.top_tokens.iter().take(top).map(|token| TopLogprob {
            token: token.text.clone(),
            logprob: token.logprob,
            bytes: token.text.clone().into_bytes(),
        });
        Self {
            token: text.clone(),
            logprob: *logprob,
            bytes: text.clone().into_bytes(),
            top_logprobs: top_logprobs.collect(),
        }
    }
}

/// Appends an error inside a stream.
pub(super) fn write_error(out: &mut Vec<u8>, error: &Error) {
    sse::write_raw_event(out, &Dialect::OpenAi.body(error));
}
