//! Sampling parameters as a slot keeps them: checked once, when the slot is made.

use proto::v1;

use super::{Watermark, bad_words, logit_bias};
use crate::limits::MAX_TOP_N_TOKENS;

/// How a row's tokens are chosen. Ranges are checked by [`Params::parse`].
#[derive(Clone, Debug, PartialEq)]
pub struct Params {
    /// Draw from the distribution; otherwise take its mode and ignore the warpers.
    pub do_sample: bool,
    /// Greater than 0; 1 = off.
    pub temperature: f32,
    /// 0 = off.
    pub top_k: u32,
    /// In (0, 1]; 1 = off.
    pub top_p: f32,
    /// In (0, 1]; 1 = off.
    pub typical_p: f32,
    /// Greater than 0; 1 = off.
    pub repetition_penalty: f32,
    /// Any finite value; 0 = off.
    pub frequency_penalty: f32,
    /// Key of the noise.
    pub seed: u64,
    /// How many of the most likely tokens to report.
    pub top_n_tokens: u32,
    /// Tokens from this position on are the reply.
    pub prompt_tokens: u32,
    /// In [0, 1]; 0 = off.
    pub min_p: f32,
    /// Any finite value; 0 = off.
    pub presence_penalty: f32,
    /// Any finite value; 0 = off.
    pub occurrence_penalty: f32,
    /// Tokens with what is added to their logits, ascending by id.
    pub logit_bias: Vec<(u32, f32)>,
    /// Length of the reply from which on it may end.
    pub min_tokens: u32,
    /// Sequences that must not appear, none of them empty.
    pub bad_words: Vec<Vec<u32>>,
    /// Makes a part of the vocabulary more likely.
    pub watermark: Option<Watermark>,
    /// Every sampled row has a mask of the tokens that its grammar allows.
    pub masked: bool,
    /// Report the log-probabilities of the prompt's tokens too.
    pub prompt_logprobs: bool,
}

impl Params {
    /// Whether the sampler needs to know how often the sequence holds which token.
    pub(super) fn counts_all(&self) -> bool {
        self.repetition_penalty != 1.0 || self.frequency_penalty != 0.0
    }

    /// Whether it needs to know that of the reply alone.
    pub(super) fn counts_reply(&self) -> bool {
        self.presence_penalty != 0.0 || self.occurrence_penalty != 0.0
    }

    /// How many of the last tokens it needs to know.
    pub(super) fn context_tokens(&self) -> usize {
        bad_words::context_tokens(&self.bad_words).max(usize::from(self.watermark.is_some()))
    }

    /// Whether the sampler needs any token of the sequence.
    pub fn needs_history(&self) -> bool {
        self.counts_all() || self.counts_reply() || self.context_tokens() > 0
    }

    /// Whether it needs tokens of a cached prefix. At least one token follows such a prefix before anything is sampled.
    pub fn needs_cached_ids(&self) -> bool {
        self.counts_all() || self.counts_reply() || self.context_tokens() > 1
    }

    /// Tokens of the reply that come before `position`.
    pub(super) fn reply_tokens(&self, position: u32) -> u32 {
        position.saturating_sub(self.prompt_tokens)
    }

    /// Whether the processed scores at `position` are the logits as they are.
    pub(super) fn is_plain(&self, position: u32) -> bool {
        let is_forced = self.masked || self.watermark.is_some() || !self.logit_bias.is_empty();
        let is_forbidding = !self.bad_words.is_empty() || self.reply_tokens(position) < self.min_tokens;
        let warps = self.temperature != 1.0 || self.top_k != 0 || self.top_p < 1.0 || self.typical_p < 1.0;
        let is_warped = self.do_sample && (warps || self.min_p > 0.0);
        !(self.counts_all() || self.counts_reply() || is_forced || is_forbidding || is_warped)
    }
}

impl Default for Params {
    /// Greedy, nothing else.
    fn default() -> Params {
        Params {
            do_sample: false,
            temperature: 1.0,
            top_k: 0,
            top_p: 1.0,
            typical_p: 1.0,
            repetition_penalty: 1.0,
            frequency_penalty: 0.0,
            seed: 0,
            top_n_tokens: 0,
            prompt_tokens: 0,
            min_p: 0.0,
            presence_penalty: 0.0,
            occurrence_penalty: 0.0,
            logit_bias: Vec::new(),
            min_tokens: 0,
            bad_words: Vec::new(),
            watermark: None,
            masked: false,
            prompt_logprobs: false,
        }
    }
}

/// A sampling parameter out of its range.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[error("`{field}` is {value}, expected {expected}")]
pub struct InvalidParam {
    /// The field of `SamplingParams`.
    pub field: &'static str,
    /// Its value.
    pub value: f64,
    /// Its range.
    pub expected: &'static str,
}

impl Params {
    /// Checks the ranges and replaces the wire's zeros by the values that do nothing. Token ids are below `vocab_size`.
    ///
    /// # Errors
    /// [`InvalidParam`] for the first field that is out of range.
    pub fn parse(wire: &v1::SamplingParams, vocab_size: usize) -> Result<Params, InvalidParam> {
        let check = |field, value: f32, in_range: bool, expected| match value.is_finite() && in_range {
            true => Ok(value),
            false => Err(InvalidParam { field, value: value.into(), expected }),
        };
        let unless_zero = |value: f32, off: f32| if value == 0.0 { off } else { value };
        let probability = |field, value: f32| check(field, value, (0.0..=1.0).contains(&value), "0 (off) to 1");
        let positive = |field, value: f32| check(field, value, value >= 0.0, "0 (off) or a positive number");
        let finite = |field, value: f32| check(field, value, true, "a finite number");

        if wire.top_n_tokens > MAX_TOP_N_TOKENS {
            let (field, value) = ("top_n_tokens", f64::from(wire.top_n_tokens));
            return Err(InvalidParam { field, value, expected: "at most Info.max_top_n_tokens" });
        }
        Ok(Params {
            do_sample: wire.do_sample,
            temperature: unless_zero(positive("temperature", wire.temperature)?, 1.0),
            top_k: wire.top_k,
            top_p: unless_zero(probability("top_p", wire.top_p)?, 1.0),
            typical_p: unless_zero(probability("typical_p", wire.typical_p)?, 1.0),
            repetition_penalty: unless_zero(positive("repetition_penalty", wire.repetition_penalty)?, 1.0),
            frequency_penalty: finite("frequency_penalty", wire.frequency_penalty)?,
            seed: wire.seed,
            top_n_tokens: wire.top_n_tokens,
            prompt_tokens: wire.prompt_tokens,
            min_p: probability("min_p", wire.min_p)?,
            presence_penalty: finite("presence_penalty", wire.presence_penalty)?,
            occurrence_penalty: finite("occurrence_penalty", wire.occurrence_penalty)?,
            logit_bias: logit_bias::parse(wire, vocab_size)?,
            min_tokens: wire.min_tokens,
            bad_words: bad_words::parse(wire, vocab_size)?,
            watermark: wire.watermark.as_ref().map(Watermark::parse).transpose()?,
            masked: wire.masked,
            prompt_logprobs: wire.prompt_logprobs,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_zero_message_is_plain_greedy() {
        let params = Params::parse(&v1::SamplingParams::default(), 10).unwrap();
        assert_eq!(params, Params::default());
        assert!(params.is_plain(0) && !params.needs_history());
    }

    #[test]
    fn only_what_changes_scores_leaves_the_fast_path() {
        let plain = |change: fn(&mut Params)| {
            let mut params = Params { do_sample: true, prompt_tokens: 4, ..Params::default() };
            change(&mut params);
            params.is_plain(6)
        };
        assert!(plain(|p| p.seed = 7) && plain(|p| p.top_n_tokens = 5) && plain(|p| p.prompt_logprobs = true));
        assert!(plain(|p| p.min_tokens = 2), "the reply is long enough");
        let changes: &[fn(&mut Params)] = &[
            |p| p.min_tokens = 3,
            |p| p.min_p = 0.1,
            |p| p.presence_penalty = 0.1,
            |p| p.occurrence_penalty = -0.1,
            |p| p.logit_bias = vec![(1, 0.5)],
            |p| p.bad_words = vec![vec![1]],
            |p| p.watermark = Some(Watermark { gamma: 0.5, delta: 2.0 }),
            |p| p.masked = true,
        ];
        for (index, change) in changes.iter().enumerate() {
            assert!(!plain(*change), "change {index}");
        }
        assert!(Params { min_p: 0.5, ..Params::default() }.is_plain(0), "greedy rows have no warpers");
    }

    #[track_caller]
    fn check_refused(change: impl FnOnce(&mut v1::SamplingParams), expected: &str) {
        let mut wire = v1::SamplingParams::default();
        change(&mut wire);
        assert_eq!(Params::parse(&wire, 10).unwrap_err().to_string(), expected);
    }

    #[test]
    fn values_out_of_range_are_named() {
        check_refused(|p| p.temperature = -1.0, "`temperature` is -1, expected 0 (off) or a positive number");
        check_refused(|p| p.top_p = 1.5, "`top_p` is 1.5, expected 0 (off) to 1");
        check_refused(|p| p.typical_p = f32::NAN, "`typical_p` is NaN, expected 0 (off) to 1");
        check_refused(
            |p| p.repetition_penalty = f32::INFINITY,
            "`repetition_penalty` is inf, expected 0 (off) or a positive number",
        );
        check_refused(
            |p| p.frequency_penalty = f32::NEG_INFINITY,
            "`frequency_penalty` is -inf, expected a finite number",
        );
        check_refused(|p| p.min_p = -0.5, "`min_p` is -0.5, expected 0 (off) to 1");
        check_refused(|p| p.presence_penalty = f32::NAN, "`presence_penalty` is NaN, expected a finite number");
        check_refused(
            |p| p.occurrence_penalty = f32::INFINITY,
            "`occurrence_penalty` is inf, expected a finite number",
        );
        let watermark = |gamma, delta| Some(v1::Watermark { gamma, delta });
        let share = "expected a number above 0 and below 1";
        check_refused(|p| p.watermark = watermark(0.0, 2.0), &format!("`watermark.gamma` is 0, {share}"));
        check_refused(|p| p.watermark = watermark(1.0, 2.0), &format!("`watermark.gamma` is 1, {share}"));
        check_refused(|p| p.watermark = watermark(0.5, f32::NAN), "`watermark.delta` is NaN, expected a finite number");
        check_refused(
            |p| p.top_n_tokens = MAX_TOP_N_TOKENS + 1,
            &format!("`top_n_tokens` is {}, expected at most Info.max_top_n_tokens", MAX_TOP_N_TOKENS + 1),
        );
    }
}
