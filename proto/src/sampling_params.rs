//! The contract of `SamplingParams`: which values there may be, written once for both sides of the step protocol.
//!
//! The router holds every request against it before it is queued, the shard every new slot: what one lets through the
//! other takes. Narrower rules for clients, in the words of their API, are the router's (`router/src/params`).

use std::fmt;

use crate::v1::{SamplingParams, Watermark};

/// Tokens that `logit_bias` may name. 1024: more than any published use (OpenAI's clients send up to 300); each costs
/// every step of the row.
pub const MAX_LOGIT_BIASES: usize = 1024;
/// Sequences in `bad_words`. 1024: a long word list in all its spellings; each is compared with the end of the text at
/// every step of the row.
pub const MAX_BAD_WORDS: usize = 1024;
/// Tokens of one of them. 32: a long phrase.
pub const MAX_BAD_WORD_TOKENS: usize = 32;

/// A range of numbers.
struct Range {
    holds: fn(f64) -> bool,
    /// The same in words: "must be ...".
    words: &'static str,
}

const FINITE: Range = Range { holds: f64::is_finite, words: "a finite number" };
const POSITIVE: Range = Range { holds: |value| value > 0.0 && value.is_finite(), words: "a finite number above 0" };
const SHARE: Range = Range { holds: |value| (0.0..=1.0).contains(&value), words: "within [0, 1]" };
const POSITIVE_SHARE: Range = Range { holds: |value| value > 0.0 && value <= 1.0, words: "within (0, 1]" };
const PROPER_SHARE: Range = Range { holds: |value| value > 0.0 && value < 1.0, words: "within (0, 1)" };
const SCORE: Range = Range { holds: |value| value < f64::INFINITY, words: "a finite number or -inf" };

impl SamplingParams {
    /// Holds every field against its range. Token ids are below `vocab_size`.
    ///
    /// # Errors
    /// [`InvalidSampling`] for the first field that breaks its rule.
    pub fn check(&self, vocab_size: u32, max_top_n_tokens: u32) -> Result<(), InvalidSampling> {
        // Every field by name: a new one does not compile before somebody has thought about its range.
        let Self {
            do_sample: _,
            temperature,
            top_k,
            top_p,
            typical_p,
            repetition_penalty,
            frequency_penalty,
            seed: _,
            top_n_tokens,
            min_p,
            presence_penalty,
            occurrence_penalty,
            logit_bias,
            // Its limit is the length of the reply, which the router knows.
            min_tokens: _,
            bad_words,
            watermark,
            prompt_logprobs: _,
        } = self;
        let Watermark { gamma, delta } = watermark.unwrap_or(Watermark { gamma: 0.5, delta: 0.0 });
        for (field, value, range) in [
            ("temperature", temperature.map(f64::from), POSITIVE),
            ("top_k", top_k.map(f64::from), Range { holds: |k| k >= 1.0, words: "at least 1" }),
            ("top_p", top_p.map(f64::from), POSITIVE_SHARE),
            ("typical_p", typical_p.map(f64::from), POSITIVE_SHARE),
            ("repetition_penalty", repetition_penalty.map(f64::from), POSITIVE),
            ("frequency_penalty", frequency_penalty.map(f64::from), FINITE),
            ("min_p", min_p.map(f64::from), SHARE),
            ("presence_penalty", presence_penalty.map(f64::from), FINITE),
            ("occurrence_penalty", occurrence_penalty.map(f64::from), FINITE),
            ("watermark.gamma", Some(gamma), PROPER_SHARE),
            ("watermark.delta", Some(delta.into()), FINITE),
        ] {
            check_range(field, value, range)?;
        }
        check_length("top_n_tokens", top_n_tokens.unwrap_or(0) as usize, max_top_n_tokens as usize)?;

        check_length("logit_bias", logit_bias.len(), MAX_LOGIT_BIASES)?;
        if let Some(pair) = logit_bias.windows(2).find(|pair| pair[0].token_id >= pair[1].token_id) {
            return Err(InvalidSampling::Order { field: "logit_bias", before: pair[0].token_id, id: pair[1].token_id });
        }
        for entry in logit_bias {
            check_range("logit_bias", Some(entry.bias.into()), SCORE)?;
            check_token("logit_bias", entry.token_id, vocab_size)?;
        }

        check_length("bad_words", bad_words.len(), MAX_BAD_WORDS)?;
        for word in bad_words {
            if word.ids.is_empty() {
                return Err(InvalidSampling::Empty { field: "bad_words[]" });
            }
            check_length("bad_words[]", word.ids.len(), MAX_BAD_WORD_TOKENS)?;
            word.ids.iter().try_for_each(|&id| check_token("bad_words", id, vocab_size))?;
        }
        Ok(())
    }

    /// Whether the shard must know the ids of a cached prefix (`NewSlot.cached_ids`): to count them, or because a word
    /// looks further back than the one token that follows every such prefix.
    pub fn needs_cached_ids(&self) -> bool {
        let is_on = |penalty: Option<f32>, off: f32| penalty.is_some_and(|penalty| penalty != off);
        is_on(self.repetition_penalty, 1.0)
            || is_on(self.frequency_penalty, 0.0)
            || is_on(self.presence_penalty, 0.0)
            || is_on(self.occurrence_penalty, 0.0)
            || self.bad_words.iter().any(|word| word.ids.len() > 2)
    }
}

fn check_range(field: &'static str, value: Option<f64>, range: Range) -> Result<(), InvalidSampling> {
    match value.filter(|value| !(range.holds)(*value)) {
        // As a float32 again, the digits are those that were sent.
        Some(value) => Err(InvalidSampling::Range { field, value: value as f32, expected: range.words }),
        None => Ok(()),
    }
}

fn check_length(field: &'static str, given: usize, limit: usize) -> Result<(), InvalidSampling> {
    if given > limit { Err(InvalidSampling::TooMany { field, limit, given }) } else { Ok(()) }
}

fn check_token(field: &'static str, token_id: u32, vocab_size: u32) -> Result<(), InvalidSampling> {
    match token_id < vocab_size {
        true => Ok(()),
        false => Err(InvalidSampling::UnknownToken { field, token_id, vocab_size }),
    }
}

/// A sampling parameter that breaks its rule.
#[derive(Clone, Debug, PartialEq)]
pub enum InvalidSampling {
    /// A number out of its range.
    Range {
        /// The field of `SamplingParams`.
        field: &'static str,
        /// What was given.
        value: f32,
        /// The range in words.
        expected: &'static str,
    },
    /// More than can be returned, or a list that is too long.
    TooMany {
        /// The field.
        field: &'static str,
        /// The most there may be.
        limit: usize,
        /// What was given.
        given: usize,
    },
    /// A list that must have an item.
    Empty {
        /// The field.
        field: &'static str,
    },
    /// Token ids that do not ascend.
    Order {
        /// The field.
        field: &'static str,
        /// The id before.
        before: u32,
        /// The id that should be larger.
        id: u32,
    },
    /// A token that the model does not know.
    UnknownToken {
        /// The field.
        field: &'static str,
        /// The id.
        token_id: u32,
        /// Ids are below it.
        vocab_size: u32,
    },
}

impl fmt::Display for InvalidSampling {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Range { field, value, expected } => write!(f, "`{field}` is {value}, must be {expected}"),
            Self::TooMany { field, limit, given } => write!(f, "`{field}`: {given} given, limit {limit}"),
            Self::Empty { field } => write!(f, "`{field}` is empty"),
            Self::Order { field, before, id } => {
                write!(f, "`{field}` names token {id} after token {before}, ids must ascend")
            }
            Self::UnknownToken { field, token_id, vocab_size } => {
                write!(f, "`{field}` names token {token_id}, vocabulary size is {vocab_size}")
            }
        }
    }
}

impl std::error::Error for InvalidSampling {}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::v1::{TokenBias, TokenSequence};

    /// The outcome for a vocabulary of 100 tokens and at most 5 alternatives: "ok", or the error's text.
    #[track_caller]
    fn check(change: impl FnOnce(&mut SamplingParams), expected: &str) {
        let mut params = SamplingParams::default();
        change(&mut params);
        let outcome = params.check(100, 5).map_or_else(|error| error.to_string(), |()| "ok".to_owned());
        assert_eq!(outcome, expected, "{params:?}");
    }

    #[test]
    fn numbers_are_in_range() {
        check(|_| (), "ok");
        check(|p| p.temperature = Some(0.0), "`temperature` is 0, must be a finite number above 0");
        check(|p| p.temperature = Some(f32::NAN), "`temperature` is NaN, must be a finite number above 0");
        check(|p| p.temperature = Some(1e-3), "ok");
        check(|p| p.top_k = Some(0), "`top_k` is 0, must be at least 1");
        check(|p| p.top_k = Some(-3), "`top_k` is -3, must be at least 1");
        check(|p| p.top_k = Some(i32::MAX), "ok");
        check(|p| p.top_p = Some(1.5), "`top_p` is 1.5, must be within (0, 1]");
        check(|p| p.top_p = Some(1.0), "ok");
        check(|p| p.typical_p = Some(-0.1), "`typical_p` is -0.1, must be within (0, 1]");
        check(
            |p| p.repetition_penalty = Some(f32::INFINITY),
            "`repetition_penalty` is inf, must be a finite number above 0",
        );
        check(|p| p.frequency_penalty = Some(f32::NAN), "`frequency_penalty` is NaN, must be a finite number");
        check(|p| p.frequency_penalty = Some(-7.0), "ok");
        check(|p| p.min_p = Some(-0.5), "`min_p` is -0.5, must be within [0, 1]");
        check(|p| p.min_p = Some(0.0), "ok");
        check(|p| p.presence_penalty = Some(f32::NAN), "`presence_penalty` is NaN, must be a finite number");
        check(|p| p.occurrence_penalty = Some(f32::INFINITY), "`occurrence_penalty` is inf, must be a finite number");
        check(|p| p.top_n_tokens = Some(6), "`top_n_tokens`: 6 given, limit 5");
        let watermark = |gamma, delta| Some(Watermark { gamma, delta });
        check(|p| p.watermark = watermark(0.0, 2.0), "`watermark.gamma` is 0, must be within (0, 1)");
        check(|p| p.watermark = watermark(1.0, 2.0), "`watermark.gamma` is 1, must be within (0, 1)");
        check(|p| p.watermark = watermark(0.5, f32::NAN), "`watermark.delta` is NaN, must be a finite number");
        check(|p| p.watermark = watermark(0.25, -1.0), "ok");
    }

    #[test]
    fn biases_are_scores_of_tokens_in_order() {
        let check = |pairs: &[(u32, f32)], expected: &str| {
            let pairs = pairs.iter().map(|&(token_id, bias)| TokenBias { token_id, bias });
            check(|p| p.logit_bias = pairs.collect(), expected);
        };
        check(&[(3, 1.0), (99, f32::NEG_INFINITY)], "ok");
        check(&[(3, 1.0), (3, 2.0)], "`logit_bias` names token 3 after token 3, ids must ascend");
        check(&[(3, f32::NAN)], "`logit_bias` is NaN, must be a finite number or -inf");
        check(&[(3, f32::INFINITY)], "`logit_bias` is inf, must be a finite number or -inf");
        check(&[(100, 1.0)], "`logit_bias` names token 100, vocabulary size is 100");
        check(&vec![(1, 1.0); MAX_LOGIT_BIASES + 1], "`logit_bias`: 1025 given, limit 1024");
    }

    fn words(words: &[&[u32]]) -> Vec<TokenSequence> {
        words.iter().map(|word| TokenSequence { ids: word.to_vec() }).collect()
    }

    #[test]
    fn bad_words_are_sequences_of_tokens() {
        check(|p| p.bad_words = words(&[&[1], &[2, 99]]), "ok");
        check(|p| p.bad_words = words(&[&[1], &[]]), "`bad_words[]` is empty");
        check(|p| p.bad_words = words(&[&[2, 100]]), "`bad_words` names token 100, vocabulary size is 100");
        check(|p| p.bad_words = words(&[&[1; MAX_BAD_WORD_TOKENS + 1]]), "`bad_words[]`: 33 given, limit 32");
        check(|p| p.bad_words = words(&vec![&[1][..]; MAX_BAD_WORDS + 1]), "`bad_words`: 1025 given, limit 1024");
    }
}
