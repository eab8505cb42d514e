//! The one validated request: every protocol builds it, and nothing else may enter the queue, so limits cannot differ
//! between routes.
//!
//! Text, stop strings and API shapes end before this type; token ids begin with it.

use std::sync::Arc;

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

/// How a row's tokens are chosen; the zero value of a field means "off". Mirrors `SamplingParams` of `shard.proto`.
#[derive(Clone, Debug, Default, PartialEq)]
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
    /// Remove tokens below this share of the largest probability.
    pub min_p: f32,
    /// OpenAI's: subtracted once from the score of every id in the reply.
    pub presence_penalty: f32,
    /// OpenAI's `frequency_penalty`: subtracted per occurrence in the reply.
    pub occurrence_penalty: f32,
    /// Added to the scores of these ids, before anything else; ids ascend.
    pub logit_bias: Arc<[(u32, f32)]>,
    /// No end-of-sequence token before the reply has this many.
    pub min_tokens: u32,
    /// The last id of each is forbidden where the others come before it.
    pub bad_words: Arc<[Box<[u32]>]>,
    /// Mark the reply.
    pub watermark: Option<Watermark>,
    /// Also return the log-probability of every prompt token (and its `top_n_tokens`).
    pub prompt_logprobs: bool,
}

/// The green-list watermark of arXiv:2301.10226.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Watermark {
    /// Share of the vocabulary that is green, within (0, 1).
    pub gamma: f32,
    /// Added to the scores of green tokens.
    pub delta: f32,
}

impl SamplingParams {
    /// Whether the shard must know the ids of cached tokens too.
    pub fn needs_context_ids(&self) -> bool {
        (self.repetition_penalty != 0.0 && self.repetition_penalty != 1.0)
            || [self.frequency_penalty, self.presence_penalty, self.occurrence_penalty].iter().any(|p| *p != 0.0)
            || !self.bad_words.is_empty()
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
    /// A sampling parameter names a token that the model does not know.
    #[error("`{field}` names token {token_id}, vocabulary size is {vocab_size}")]
    UnknownToken {
        /// Name of the parameter.
        field: &'static str,
        /// The id.
        token_id: u32,
        /// Ids are below it.
        vocab_size: u32,
    },
    /// A list that means nothing to the sampler.
    #[error("`{field}` must be {expected}")]
    List {
        /// Name of the parameter.
        field: &'static str,
        /// The rule in words.
        expected: &'static str,
    },
    /// The reply must end before it may.
    #[error("`min_tokens` is {min_tokens}, `max_new_tokens` {max_new_tokens}")]
    MinTokens {
        /// Tokens before the first end of sequence.
        min_tokens: u32,
        /// Upper bound of new tokens.
        max_new_tokens: u32,
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
        if parts.sampling.min_tokens > parts.max_new_tokens {
            let (min_tokens, max_new_tokens) = (parts.sampling.min_tokens, parts.max_new_tokens);
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

fn check_sampling(params: &SamplingParams, limits: &RequestLimits) -> Result<(), InvalidRequest> {
    let probability = |value: f32| (0.0..=1.0).contains(&value);
    let positive_or_off = |value: f32| value >= 0.0 && value.is_finite();
    let watermark = params.watermark.unwrap_or(Watermark { gamma: 0.5, delta: 0.0 });
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
        ("min_p", params.min_p, probability(params.min_p), "within [0, 1]"),
        ("presence_penalty", params.presence_penalty, params.presence_penalty.is_finite(), "a finite number"),
        ("occurrence_penalty", params.occurrence_penalty, params.occurrence_penalty.is_finite(), "a finite number"),
        ("watermark.gamma", watermark.gamma, watermark.gamma > 0.0 && watermark.gamma < 1.0, "within (0, 1)"),
        ("watermark.delta", watermark.delta, watermark.delta.is_finite(), "a finite number"),
    ] {
        if !is_valid {
            return Err(InvalidRequest::Sampling { field, value, expected });
        }
    }
    if params.top_n_tokens > limits.max_top_n_tokens {
        return Err(InvalidRequest::TopNTokens { value: params.top_n_tokens, limit: limits.max_top_n_tokens });
    }
    let biased = params.logit_bias.iter().map(|(id, _)| *id);
    if !biased.clone().is_sorted_by(|a, b| a < b) || params.logit_bias.iter().any(|(_, bias)| bias.is_nan()) {
        return Err(InvalidRequest::List { field: "logit_bias", expected: "numbers for ascending ids" });
    }
    if params.bad_words.iter().any(|word| word.is_empty()) {
        return Err(InvalidRequest::List { field: "bad_words", expected: "lists of at least one token" });
    }
    let forbidden = params.bad_words.iter().flatten().copied();
    let named = biased.map(|id| ("logit_bias", id)).chain(forbidden.map(|id| ("bad_words", id)));
    match named.into_iter().find(|(_, id)| *id >= limits.vocab_size) {
        Some((field, token_id)) => Err(InvalidRequest::UnknownToken { field, token_id, vocab_size: limits.vocab_size }),
        None => Ok(()),
    }
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
        check(&[1], 1, with(|p| p.min_p = 1.5), expect!["`min_p` is 1.5, must be within [0, 1]"]);
        check(
            &[1],
            1,
            with(|p| p.watermark = Some(Watermark { gamma: 1.0, delta: 2.0 })),
            expect!["`watermark.gamma` is 1, must be within (0, 1)"],
        );
        check(&[1], 2, with(|p| p.min_tokens = 3), expect!["`min_tokens` is 3, `max_new_tokens` 2"]);
    }

    #[test]
    fn token_lists_name_tokens_of_the_vocabulary_in_order() {
        let bias = |list: &[(u32, f32)]| SamplingParams { logit_bias: list.into(), ..Default::default() };
        check(&[1], 1, bias(&[(3, 1.0), (99, -100.0)]), expect!["2 total"]);
        check(&[1], 1, bias(&[(3, 1.0), (3, 2.0)]), expect!["`logit_bias` must be numbers for ascending ids"]);
        check(&[1], 1, bias(&[(3, f32::NAN)]), expect!["`logit_bias` must be numbers for ascending ids"]);
        check(&[1], 1, bias(&[(100, 1.0)]), expect!["`logit_bias` names token 100, vocabulary size is 100"]);
        let words = |list: &[&[u32]]| SamplingParams {
            bad_words: list.iter().map(|word| Box::from(*word)).collect(),
            ..Default::default()
        };
        check(&[1], 1, words(&[&[1], &[2, 99]]), expect!["2 total"]);
        check(&[1], 1, words(&[&[]]), expect!["`bad_words` must be lists of at least one token"]);
        check(&[1], 1, words(&[&[2, 100]]), expect!["`bad_words` names token 100, vocabulary size is 100"]);
    }

    #[test]
    fn only_penalties_need_the_ids_of_cached_tokens() {
        assert!(!SamplingParams { repetition_penalty: 1.0, top_p: 0.5, ..Default::default() }.needs_context_ids());
        assert!(SamplingParams { repetition_penalty: 1.1, ..Default::default() }.needs_context_ids());
        assert!(SamplingParams { frequency_penalty: -0.5, ..Default::default() }.needs_context_ids());
        assert!(SamplingParams { presence_penalty: 0.5, ..Default::default() }.needs_context_ids());
        assert!(SamplingParams { occurrence_penalty: 0.5, ..Default::default() }.needs_context_ids());
        assert!(SamplingParams { bad_words: [[1].into()].into(), ..Default::default() }.needs_context_ids());
    }
}
