//! Request parameters: one file per parameter, one line per parameter in [`TABLE`].
//!
//! Every protocol fills an [`Asked`] and [`check`] turns it into a [`Checked`], so that no two APIs can disagree about
//! a rule. Where OpenAI's own rule differs from TGI's (`temperature: 0`, `top_p: 1`), the parameter's file says so.

pub(crate) mod best_of;
pub(crate) mod frequency_penalty;
pub(crate) mod inputs;
pub(crate) mod max_new_tokens;
pub(crate) mod repetition_penalty;
pub(crate) mod seed;
pub(crate) mod stop;
pub(crate) mod temperature;
pub(crate) mod top_k;
pub(crate) mod top_n_tokens;
pub(crate) mod top_p;
pub(crate) mod truncate;
pub(crate) mod typical_p;
pub(crate) mod unsupported;

use crate::error::ValidationError;
use crate::grammar::GrammarSpec;
use crate::request::SamplingParams;

/// What a client asked for, in TGI's terms, before any rule ran. `None` is "not given".
#[derive(Clone, Debug, Default)]
pub(crate) struct Asked {
    /// The prompt, after the chat template.
    pub(crate) inputs: String,
    /// The prompt as token ids instead; `inputs` is then empty.
    pub(crate) input_ids: Option<Vec<u32>>,
    pub(crate) best_of: Option<usize>,
    pub(crate) temperature: Option<f32>,
    pub(crate) repetition_penalty: Option<f32>,
    pub(crate) frequency_penalty: Option<f32>,
    pub(crate) top_k: Option<i32>,
    pub(crate) top_p: Option<f32>,
    pub(crate) typical_p: Option<f32>,
    pub(crate) do_sample: bool,
    pub(crate) max_new_tokens: Option<u32>,
    pub(crate) stop: Vec<String>,
    pub(crate) truncate: Option<usize>,
    pub(crate) seed: Option<u64>,
    pub(crate) top_n_tokens: Option<u32>,
    /// Log-probabilities of the prompt's tokens (`decoder_input_details`, `echo` with `logprobs`).
    pub(crate) prompt_logprobs: bool,
    pub(crate) watermark: bool,
    /// What the reply must match.
    pub(crate) grammar: Option<GrammarSpec>,
    pub(crate) adapter_id: Option<String>,
    pub(crate) min_p: Option<f32>,
    /// OpenAI's: over the reply, once per distinct token.
    pub(crate) presence_penalty: Option<f32>,
    /// OpenAI's `frequency_penalty`: over the reply, per occurrence.
    pub(crate) occurrence_penalty: Option<f32>,
    /// Token ids and what is added to their logits.
    pub(crate) logit_bias: Vec<(u32, f32)>,
    pub(crate) min_tokens: Option<u32>,
    pub(crate) ignore_eos: bool,
    /// Token sequences that the reply must not contain.
    pub(crate) bad_words: Vec<Vec<u32>>,
    /// Answers wanted, each with a seed of its own (OpenAI's `n`).
    pub(crate) n: Option<usize>,
}

/// The limits an operator set by flags, as far as parameters need them.
#[derive(Clone, Debug)]
pub struct ParamLimits {
    /// `--max-best-of`.
    pub max_best_of: usize,
    /// `--max-stop-sequences`.
    pub max_stop_sequences: usize,
    /// `--max-top-n-tokens`.
    pub max_top_n_tokens: u32,
    /// `--max-input-tokens`, or what the model and the cache allow.
    pub max_input_tokens: usize,
    /// `--max-total-tokens`, or what the model and the cache allow.
    pub max_total_tokens: usize,
}

/// Parameters that passed every rule.
#[derive(Clone, Debug)]
pub(crate) struct Checked {
    pub(crate) sampling: SamplingParams,
    /// Generations to run; the best one answers.
    pub(crate) best_of: usize,
    pub(crate) max_new_tokens: Option<u32>,
    pub(crate) stop: Vec<String>,
    pub(crate) truncate: Option<usize>,
    /// Reported to the client; `None` when greedy.
    pub(crate) seed: Option<u64>,
}

/// One parameter: its name on the native API and the one function that checks it and enters it.
pub(crate) struct Parameter {
    pub(crate) name: &'static str,
    /// What a value must satisfy, in words.
    pub(crate) range: &'static str,
    pub(crate) enter: fn(&Asked, &ParamLimits, &mut Checked) -> Result<(), ValidationError>,
}

/// All parameters in the order in which TGI checks them: a request with two faults gets TGI's error.
pub(crate) const TABLE: &[Parameter] = &[
    best_of::PARAMETER,
    temperature::PARAMETER,
    repetition_penalty::PARAMETER,
    frequency_penalty::PARAMETER,
    top_p::PARAMETER,
    typical_p::PARAMETER,
    top_k::PARAMETER,
    max_new_tokens::PARAMETER,
    stop::PARAMETER,
    seed::PARAMETER,
    top_n_tokens::PARAMETER,
    inputs::PARAMETER,
    truncate::PARAMETER,
];

impl Asked {
    /// Greedy only if nothing at all asks for sampling (TGI's rule).
    pub(crate) fn is_sampling(&self) -> bool {
        self.do_sample
            || self.temperature.is_some_and(|t| t != 1.0)
            || self.top_k.is_some_and(|k| k != 0)
            || self.top_p.is_some_and(|p| p < 1.0)
            || self.typical_p.is_some_and(|p| p < 1.0)
    }
}

/// Runs every rule of [`TABLE`].
///
/// # Errors
/// The first rule that fails, with TGI's text.
pub(crate) fn check(asked: &Asked, limits: &ParamLimits) -> Result<Checked, ValidationError> {
    let mut checked = Checked {
        sampling: SamplingParams { do_sample: asked.is_sampling(), ..SamplingParams::default() },
        best_of: 1,
        max_new_tokens: None,
        stop: Vec::new(),
        truncate: None,
        seed: None,
    };
    for parameter in TABLE {
        (parameter.enter)(asked, limits, &mut checked).inspect_err(|error| {
            tracing::debug!(parameter = parameter.name, range = parameter.range, %error, "refused");
        })?;
    }
    Ok(checked)
}

/// The value if it is a finite number: JSON's `1e39` is an infinity in f32, which no sampler survives.
fn finite(field: &'static str, value: f32) -> Result<f32, ValidationError> {
    if value.is_finite() { Ok(value) } else { Err(ValidationError::NotFinite { field }) }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn limits() -> ParamLimits {
        ParamLimits {
            max_best_of: 2,
            max_stop_sequences: 4,
            max_top_n_tokens: 5,
            max_input_tokens: 63,
            max_total_tokens: 64,
        }
    }

    fn base() -> Asked {
        Asked { inputs: "text".to_owned(), ..Asked::default() }
    }

    /// The error text for `asked`, or "ok".
    #[track_caller]
    fn text(asked: Asked) -> String {
        check(&asked, &limits()).map_or_else(|error| error.to_string(), |_| "ok".into())
    }

    #[test]
    fn every_rule_has_its_tgi_text() {
        let cases = [
            (Asked::default(), "`inputs` cannot be empty"),
            (Asked { best_of: Some(2), ..base() }, "you must use sampling when `best_of` is > 1"),
            (Asked { temperature: Some(0.0), ..base() }, "`temperature` must be strictly positive"),
            (Asked { temperature: Some(f32::INFINITY), ..base() }, "`temperature` must be a finite number"),
            (Asked { repetition_penalty: Some(-1.0), ..base() }, "`repetition_penalty` must be strictly positive"),
            (Asked { frequency_penalty: Some(2.5), ..base() }, "`frequency_penalty` must be >= -2.0 and <= 2.0"),
            (Asked { top_p: Some(1.0), ..base() }, "`top_p` must be > 0.0 and < 1.0"),
            (Asked { top_p: Some(0.0), ..base() }, "`top_p` must be > 0.0 and < 1.0"),
            (Asked { typical_p: Some(1.0), ..base() }, "`typical_p` must be > 0.0 and < 1.0"),
            (Asked { top_k: Some(0), ..base() }, "`top_k` must be strictly positive"),
            (Asked { top_k: Some(-3), ..base() }, "`top_k` must be strictly positive"),
            (Asked { max_new_tokens: Some(0), ..base() }, "`max_new_tokens` must be strictly positive"),
            (Asked { stop: vec!["x".into(); 5], ..base() }, "`stop` supports up to 4 stop sequences. Given: 5"),
            (Asked { stop: vec!["".into()], ..base() }, "`stop` must not contain an empty string"),
            (
                Asked { stop: vec!["x".repeat(2000)], ..base() },
                "`stop` strings must have at most 1024 bytes. Given: 2000",
            ),
            (
                Asked { seed: Some(1), best_of: Some(2), do_sample: true, ..base() },
                "`seed` must not be set when `best_of` > 1",
            ),
            (Asked { top_n_tokens: Some(6), ..base() }, "`top_n_tokens` must be >= 0 and <= 5. Given: 6"),
            (Asked { truncate: Some(0), ..base() }, "`truncate` must be strictly positive and less than 63. Given: 0"),
            (
                Asked { truncate: Some(64), ..base() },
                "`truncate` must be strictly positive and less than 63. Given: 64",
            ),
            (Asked { truncate: Some(63), ..base() }, "ok"),
            (Asked { top_p: Some(0.5), typical_p: Some(0.5), top_k: Some(1), seed: Some(0), ..base() }, "ok"),
        ];
        for (asked, expected) in cases {
            assert_eq!(text(asked.clone()), expected, "{asked:?}");
        }
    }

    #[test]
    fn the_first_fault_in_tgis_order_answers() {
        let asked = Asked { top_k: Some(0), temperature: Some(-1.0), max_new_tokens: Some(0), ..base() };
        assert_eq!(text(asked), "`temperature` must be strictly positive");
    }

    #[test]
    fn greedy_reports_no_seed_and_sampling_always_has_one() {
        let greedy = check(&Asked { seed: Some(7), temperature: Some(1.0), ..base() }, &limits()).unwrap();
        assert!(!greedy.sampling.do_sample);
        assert_eq!(greedy.seed, None);
        let seeded = check(&Asked { seed: Some(7), do_sample: true, ..base() }, &limits()).unwrap();
        assert_eq!((seeded.seed, seeded.sampling.seed), (Some(7), 7));
        let drawn = check(&Asked { top_p: Some(0.9), ..base() }, &limits()).unwrap();
        assert_eq!(drawn.seed, Some(drawn.sampling.seed), "any sampling parameter switches sampling on");
    }

    #[test]
    fn names_are_unique_and_ranges_are_stated() {
        let mut names: Vec<_> = TABLE.iter().map(|parameter| parameter.name).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), TABLE.len());
        assert!(TABLE.iter().all(|parameter| !parameter.range.is_empty()));
    }
}
