//! Sampling parameters as a slot keeps them: checked once, when the slot is made.

use proto::v1;

use crate::limits::MAX_TOP_N_TOKENS;

/// How a row's tokens are chosen. Ranges are checked by [`Params::try_from`].
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
}

impl Params {
    /// Whether the sampler needs to know which tokens the sequence holds.
    pub fn needs_counts(&self) -> bool {
        self.repetition_penalty != 1.0 || self.frequency_penalty != 0.0
    }

    /// Whether the processed scores are the logits as they are.
    pub(super) fn is_plain(&self) -> bool {
        let warps = self.temperature != 1.0 || self.top_k != 0 || self.top_p < 1.0 || self.typical_p < 1.0;
        let is_warped = self.do_sample && warps;
        !self.needs_counts() && !is_warped
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

impl TryFrom<&v1::SamplingParams> for Params {
    type Error = InvalidParam;

    /// Checks the ranges and replaces the wire's zeros by the values that do nothing.
    fn try_from(wire: &v1::SamplingParams) -> Result<Params, InvalidParam> {
        let check = |field, value: f32, in_range: bool, expected| match value.is_finite() && in_range {
            true => Ok(value),
            false => Err(InvalidParam { field, value: value.into(), expected }),
        };
        let unless_zero = |value: f32, off: f32| if value == 0.0 { off } else { value };
        let probability = |field, value: f32| check(field, value, (0.0..=1.0).contains(&value), "0 (off) to 1");
        let positive = |field, value: f32| check(field, value, value >= 0.0, "0 (off) or a positive number");

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
            frequency_penalty: check("frequency_penalty", wire.frequency_penalty, true, "a finite number")?,
            seed: wire.seed,
            top_n_tokens: wire.top_n_tokens,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_zero_message_is_plain_greedy() {
        let params = Params::try_from(&v1::SamplingParams::default()).unwrap();
        assert_eq!(params, Params::default());
        assert!(params.is_plain());
    }

    #[track_caller]
    fn check_refused(change: impl FnOnce(&mut v1::SamplingParams), expected: &str) {
        let mut wire = v1::SamplingParams::default();
        change(&mut wire);
        assert_eq!(Params::try_from(&wire).unwrap_err().to_string(), expected);
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
        check_refused(
            |p| p.top_n_tokens = MAX_TOP_N_TOKENS + 1,
            &format!("`top_n_tokens` is {}, expected at most Info.max_top_n_tokens", MAX_TOP_N_TOKENS + 1),
        );
    }
}
