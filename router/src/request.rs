//! The one validated request: every protocol builds it, and nothing else may enter the queue, so limits cannot differ
//! between routes.
//!
//! Text, stop strings and API shapes end before this type; token ids begin with it.

use std::sync::Arc;

use proto::InvalidSampling;
use proto::v1::SamplingParams;

use crate::constraint::SharedConstraint;

/// What a client asked for, in token ids. Becomes a [`GenerateRequest`] by validation.
#[derive(Clone, Debug, PartialEq)]
pub struct RequestParts {
    /// The prompt, at least one token.
    pub input_ids: Arc<[u32]>,
    /// How tokens are chosen.
    pub sampling: SamplingParams,
    /// Upper bound of new tokens, at least one. It reserves no memory.
    pub max_new_tokens: u32,
    /// Whether an end-of-sequence token is a token like any other.
    pub ignore_eos: bool,
    /// Whether the prefix cache may serve this request and keep its blocks.
    pub cache_prompt: bool,
    /// Separates cached prefixes: requests with different salts never share a block, so one tenant cannot time what
    /// another has asked.
    pub salt: Option<Arc<str>>,
    /// What the reply must match: every sampled token waits for its mask.
    pub constraint: Option<SharedConstraint>,
}

/// What a request must respect; the part of the shard group's facts and the configuration that validation needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RequestLimits {
    /// Prompt tokens plus `max_new_tokens`.
    pub max_total_tokens: u32,
    /// Token ids are below it.
    pub vocab_size: u32,
    /// Largest `top_n_tokens` the shard can return.
    pub max_top_n_tokens: u32,
}

/// Why [`RequestParts`] are not a request.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum InvalidRequest {
    /// There is nothing to continue.
    #[error("`input_ids` is empty")]
    NoInput,
    /// Zero tokens were asked for.
    #[error("`max_new_tokens` is 0")]
    NoOutput,
    /// Prompt and reply cannot fit together.
    #[error("{input_tokens} input tokens + {max_new_tokens} `max_new_tokens` exceed {max_total_tokens} total tokens")]
    TooLong {
        /// Tokens of the prompt.
        input_tokens: usize,
        /// Tokens asked for.
        max_new_tokens: u32,
        /// The limit.
        max_total_tokens: u32,
    },
    /// A token id the model does not know.
    #[error("`input_ids[{index}]` is {token_id}, vocabulary size is {vocab_size}")]
    TokenId {
        /// Where it stands in the prompt.
        index: usize,
        /// The id.
        token_id: u32,
        /// Ids are below it.
        vocab_size: u32,
    },
    /// The reply must end before it may.
    #[error("`min_tokens` is {min_tokens}, `max_new_tokens` {max_new_tokens}")]
    MinTokens {
        /// Tokens before the first end of sequence.
        min_tokens: u32,
        /// Upper bound of new tokens.
        max_new_tokens: u32,
    },
    /// A sampling parameter that the shards would refuse.
    #[error(transparent)]
    Sampling(#[from] InvalidSampling),
}

/// A request that the scheduler can rely on. Made only by [`GenerateRequest::new`].
#[derive(Clone, Debug, PartialEq)]
pub struct GenerateRequest {
    parts: RequestParts,
}

impl GenerateRequest {
    /// Checks what scheduler and shard rely on. Friendly texts for clients are validation's part; this is the last gate.
    ///
    /// # Errors
    /// [`InvalidRequest`] with the field, its value and the limit.
    pub fn new(parts: RequestParts, limits: &RequestLimits) -> Result<Self, InvalidRequest> {
        let input_tokens = parts.input_ids.len();
        if input_tokens == 0 {
            return Err(InvalidRequest::NoInput);
        }
        if parts.max_new_tokens == 0 {
            return Err(InvalidRequest::NoOutput);
        }
        if input_tokens as u64 + u64::from(parts.max_new_tokens) > u64::from(limits.max_total_tokens) {
            return Err(InvalidRequest::TooLong {
                input_tokens,
                max_new_tokens: parts.max_new_tokens,
                max_total_tokens: limits.max_total_tokens,
            });
        }
        if let Some((index, &token_id)) = parts.input_ids.iter().enumerate().find(|(_, id)| **id >= limits.vocab_size) {
            return Err(InvalidRequest::TokenId { index, token_id, vocab_size: limits.vocab_size });
        }
        parts.sampling.check(limits.vocab_size, limits.max_top_n_tokens)?;
        let (min_tokens, max_new_tokens) = (parts.sampling.min_tokens(), parts.max_new_tokens);
        if min_tokens > max_new_tokens {
            return Err(InvalidRequest::MinTokens { min_tokens, max_new_tokens });
        }
        Ok(Self { parts })
    }

    /// What was asked for.
    pub fn parts(&self) -> &RequestParts {
        &self.parts
    }

    /// Tokens of the prompt.
    pub fn input_tokens(&self) -> u32 {
        // `new` checked it against a u32 limit.
        self.parts.input_ids.len() as u32
    }

    /// Tokens of the prompt plus the longest reply.
    pub fn max_total_tokens(&self) -> u32 {
        self.input_tokens() + self.parts.max_new_tokens
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::{Expect, expect};
    use proto::v1::TokenBias;

    const LIMITS: RequestLimits = RequestLimits { max_total_tokens: 8, vocab_size: 100, max_top_n_tokens: 5 };

    #[track_caller]
    fn check(input_ids: &[u32], max_new_tokens: u32, sampling: SamplingParams, expect: Expect) {
        let parts = RequestParts {
            input_ids: input_ids.into(),
            sampling,
            max_new_tokens,
            ignore_eos: false,
            cache_prompt: true,
            salt: None,
            constraint: None,
        };
        let outcome = GenerateRequest::new(parts, &LIMITS);
        expect.assert_eq(
            &outcome.map_or_else(|error| error.to_string(), |request| format!("{} total", request.max_total_tokens())),
        );
    }

    #[test]
    fn tokens_are_counted_and_bounded() {
        let greedy = SamplingParams::default;
        check(&[1, 2, 3], 5, greedy(), expect!["8 total"]);
        check(&[], 5, greedy(), expect!["`input_ids` is empty"]);
        check(&[1], 0, greedy(), expect!["`max_new_tokens` is 0"]);
        check(&[1, 2, 3], 6, greedy(), expect!["3 input tokens + 6 `max_new_tokens` exceed 8 total tokens"]);
        check(&[1], u32::MAX, greedy(), expect!["1 input tokens + 4294967295 `max_new_tokens` exceed 8 total tokens"]);
        check(&[1, 100], 1, greedy(), expect!["`input_ids[1]` is 100, vocabulary size is 100"]);
    }

    #[test]
    fn sampling_parameters_keep_the_contract_with_the_shards() {
        let cold = SamplingParams { temperature: Some(f32::NAN), ..Default::default() };
        check(&[1], 1, cold, expect!["`temperature` is NaN, must be a finite number above 0"]);
        let curious = SamplingParams { top_n_tokens: Some(6), ..Default::default() };
        check(&[1], 1, curious, expect!["`top_n_tokens`: 6 given, limit 5"]);
        let stranger = vec![TokenBias { token_id: 100, bias: 1.0 }];
        let biased = SamplingParams { logit_bias: stranger, ..Default::default() };
        check(&[1], 1, biased, expect!["`logit_bias` names token 100, vocabulary size is 100"]);
    }

    #[test]
    fn a_reply_may_be_as_long_as_it_must() {
        let long = || SamplingParams { min_tokens: Some(3), ..Default::default() };
        check(&[1], 2, long(), expect!["`min_tokens` is 3, `max_new_tokens` 2"]);
        check(&[1], 3, long(), expect!["4 total"]);
    }
}
