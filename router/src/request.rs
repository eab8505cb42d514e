//! The one validated request: every protocol builds it, and nothing else may enter the queue, so limits cannot differ
//! between routes.
//!
//! Text, stop strings and API shapes end before this type; token ids begin with it.

use std::sync::Arc;

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
}

/// How a row's tokens are chosen; the zero value of a field means "off". Mirrors `SamplingParams` of `shard.proto`.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct SamplingParams {
    /// False: greedy (arg max, ties to the lowest id).
    pub do_sample: bool,
    /// 0 is 1.0.
    pub temperature: f32,
    /// Keep the k most likely tokens.
    pub top_k: u32,
    /// Keep the smallest set of tokens with this much probability.
    pub top_p: f32,
    /// Locally typical sampling.
    pub typical_p: f32,
    /// Multiplicative penalty on every id already in prompt or reply; 0 is 1.0.
    pub repetition_penalty: f32,
    /// Penalty in proportion to an id's share of prompt and reply.
    pub frequency_penalty: f32,
    /// Noise is Philox(seed, absolute position, token id): nothing else needs to survive a preemption.
    pub seed: u64,
    /// Also return the n most likely tokens.
    pub top_n_tokens: u32,
}

impl SamplingParams {
    /// Whether the shard must know the ids of cached tokens too.
    pub fn needs_context_ids(&self) -> bool {
        (self.repetition_penalty != 0.0 && self.repetition_penalty != 1.0) || self.frequency_penalty != 0.0
    }
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
    /// A sampling parameter out of its range.
    #[error("`{field}` is {value}, must be {expected}")]
    Sampling {
        /// Name of the parameter.
        field: &'static str,
        /// What was given.
        value: f32,
        /// The range in words.
        expected: &'static str,
    },
    /// More alternatives than the shard returns.
    #[error("`top_n_tokens` is {value}, limit {limit}")]
    TopNTokens {
        /// What was given.
        value: u32,
        /// The shard's limit.
        limit: u32,
    },
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
        check_sampling(&parts.sampling, limits)?;
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

fn check_sampling(params: &SamplingParams, limits: &RequestLimits) -> Result<(), InvalidRequest> {
    let probability = |value: f32| (0.0..=1.0).contains(&value);
    let positive_or_off = |value: f32| value >= 0.0 && value.is_finite();
    for (field, value, is_valid, expected) in [
        ("temperature", params.temperature, positive_or_off(params.temperature), "a finite number >= 0"),
        ("top_p", params.top_p, probability(params.top_p), "within [0, 1]"),
        ("typical_p", params.typical_p, probability(params.typical_p), "within [0, 1]"),
        (
            "repetition_penalty",
            params.repetition_penalty,
            positive_or_off(params.repetition_penalty),
            "a finite number >= 0",
        ),
        ("frequency_penalty", params.frequency_penalty, params.frequency_penalty.is_finite(), "a finite number"),
    ] {
        if !is_valid {
            return Err(InvalidRequest::Sampling { field, value, expected });
        }
    }
    if params.top_n_tokens > limits.max_top_n_tokens {
        return Err(InvalidRequest::TopNTokens { value: params.top_n_tokens, limit: limits.max_top_n_tokens });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::{Expect, expect};

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
        };
        let outcome = GenerateRequest::new(parts, &LIMITS);
        expect.assert_eq(
            &outcome.map_or_else(|error| error.to_string(), |request| format!("{} total", request.max_total_tokens())),
        );
    }

    #[test]
    fn tokens_are_counted_and_bounded() {
        let greedy = SamplingParams::default();
        check(&[1, 2, 3], 5, greedy, expect!["8 total"]);
        check(&[], 5, greedy, expect!["`input_ids` is empty"]);
        check(&[1], 0, greedy, expect!["`max_new_tokens` is 0"]);
        check(&[1, 2, 3], 6, greedy, expect!["3 input tokens + 6 `max_new_tokens` exceed 8 total tokens"]);
        check(&[1], u32::MAX, greedy, expect!["1 input tokens + 4294967295 `max_new_tokens` exceed 8 total tokens"]);
        check(&[1, 100], 1, greedy, expect!["`input_ids[1]` is 100, vocabulary size is 100"]);
    }

    #[test]
    fn sampling_parameters_are_finite_and_in_range() {
        let with = |change: fn(&mut SamplingParams)| {
            let mut params = SamplingParams::default();
            change(&mut params);
            params
        };
        check(
            &[1],
            1,
            with(|p| p.temperature = f32::NAN),
            expect!["`temperature` is NaN, must be a finite number >= 0"],
        );
        check(&[1], 1, with(|p| p.top_p = 1.5), expect!["`top_p` is 1.5, must be within [0, 1]"]);
        check(&[1], 1, with(|p| p.typical_p = -0.1), expect!["`typical_p` is -0.1, must be within [0, 1]"]);
        check(
            &[1],
            1,
            with(|p| p.repetition_penalty = f32::INFINITY),
            expect!["`repetition_penalty` is inf, must be a finite number >= 0"],
        );
        check(
            &[1],
            1,
            with(|p| p.frequency_penalty = f32::NAN),
            expect!["`frequency_penalty` is NaN, must be a finite number"],
        );
        check(&[1], 1, with(|p| p.top_n_tokens = 6), expect!["`top_n_tokens` is 6, limit 5"]);
    }

    #[test]
    fn only_penalties_need_the_ids_of_cached_tokens() {
        assert!(!SamplingParams { repetition_penalty: 1.0, top_p: 0.5, ..Default::default() }.needs_context_ids());
        assert!(SamplingParams { repetition_penalty: 1.1, ..Default::default() }.needs_context_ids());
        assert!(SamplingParams { frequency_penalty: -0.5, ..Default::default() }.needs_context_ids());
    }
}
