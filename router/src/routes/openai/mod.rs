//! What OpenAI's routes share: request fields, messages, tools, formats, ids, usage, log-probabilities, errors inside a
//! stream.

pub(super) mod logprobs;
pub(super) mod message;
pub(super) mod request;
pub(super) mod response_format;
pub(super) mod tools;

use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::chat::TokenCounts;
use super::sse;
use crate::error::{Dialect, Error};
use crate::limits::MAX_NAME_BYTES;
use crate::params::at_most;
use crate::server::Server;

/// `stop`: OpenAI takes a string or a list, TGI only a list.
#[derive(Debug, Deserialize)]
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
#[derive(Clone, Copy, Debug, Default, Deserialize, ToSchema)]
pub(super) struct StreamOptions {
    /// One more event at the end, with the usage of all choices.
    include_usage: Option<bool>,
    /// Every event has the usage so far (vLLM).
    continuous_usage_stats: Option<bool>,
}

impl StreamOptions {
    pub(super) fn includes_usage(self) -> bool {
        self.include_usage.unwrap_or(false)
    }

    pub(super) fn is_continuous(self) -> bool {
        self.continuous_usage_stats.unwrap_or(false)
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
    /// [`Error::Validation`] if the name is too long to echo.
    pub(super) fn new(prefix: &str, model: Option<String>, server: &Server) -> Result<Self, Error> {
        let model = model.filter(|name| name != "tgi").unwrap_or_else(|| server.args.model_id.clone());
        at_most("model", "bytes", MAX_NAME_BYTES, model.len())?;
        let id = format!("{prefix}{:032x}", rand::random::<u128>());
        let created = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        Ok(Self { id, created, model, system_fingerprint: SYSTEM_FINGERPRINT })
    }
}

/// An id for a part of an answer, such as a call.
pub(super) fn new_id(prefix: &str) -> String {
    format!("{prefix}{:024x}", rand::random::<u128>() >> 32)
}

const SYSTEM_FINGERPRINT: &str = concat!(env!("CARGO_PKG_VERSION"), "-native");

/// `usage`.
#[derive(Clone, Copy, Debug, Default, Serialize, ToSchema)]
pub(super) struct Usage {
    prompt_tokens: u32,
    completion_tokens: u32,
    total_tokens: u32,
    prompt_tokens_details: PromptTokensDetails,
    completion_tokens_details: CompletionTokensDetails,
}

#[derive(Clone, Copy, Debug, Default, Serialize, ToSchema)]
struct PromptTokensDetails {
    /// Tokens that came from the prefix cache.
    cached_tokens: u32,
}

#[derive(Clone, Copy, Debug, Default, Serialize, ToSchema)]
struct CompletionTokensDetails {
    /// Tokens of the thinking section.
    reasoning_tokens: u32,
}

impl Usage {
    /// Adds the usage of another prompt.
    pub(super) fn add(&mut self, other: &Usage) {
        self.prompt_tokens += other.prompt_tokens;
        self.completion_tokens += other.completion_tokens;
        self.total_tokens += other.total_tokens;
        self.prompt_tokens_details.cached_tokens += other.prompt_tokens_details.cached_tokens;
    }

    /// The usage while answers go on; `self` is that of those that have ended.
    pub(super) fn so_far(self, prompt_tokens: u32, completion_tokens: u32) -> Self {
        Self { prompt_tokens, completion_tokens, total_tokens: prompt_tokens + completion_tokens, ..self }
    }

    /// The usage of a further answer to a prompt that is counted already.
    pub(super) fn without_prompt(mut self) -> Self {
        self.total_tokens = self.completion_tokens;
        self.prompt_tokens = 0;
        self.prompt_tokens_details.cached_tokens = 0;
        self
    }
}

impl From<TokenCounts> for Usage {
    fn from(counts: TokenCounts) -> Self {
        Self {
            prompt_tokens: counts.input,
            completion_tokens: counts.generated,
            total_tokens: counts.input + counts.generated,
            prompt_tokens_details: PromptTokensDetails { cached_tokens: counts.cached },
            completion_tokens_details: CompletionTokensDetails { reasoning_tokens: counts.reasoning },
        }
    }
}

/// Appends an error inside a stream.
pub(super) fn write_error(out: &mut Vec<u8>, error: &Error) {
    sse::write_raw_event(out, &Dialect::OpenAi.body(error));
}
