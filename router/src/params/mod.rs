//! Request parameters: one file per parameter, one line per parameter in [`TABLE`].
//!
//! Every protocol fills an [`Asked`] and [`check`] turns it into a [`Checked`], so that no two APIs can disagree about
//! a rule. Where OpenAI's own rule differs from TGI's (`temperature: 0`, `top_p: 1`), the parameter's file says so.
//!
//! What the sampler reads travels in the step protocol's own message from here to the shard; the rules here are those for
//! clients, in the words of their APIs, within the ranges that the protocol sets (`proto/src/sampling_params.rs`).

pub(crate) mod adapter_id;
pub(crate) mod bad_words;
pub(crate) mod best_of;
pub(crate) mod frequency_penalty;
pub(crate) mod grammar;
pub(crate) mod ignore_eos;
pub(crate) mod inputs;
pub(crate) mod logit_bias;
pub(crate) mod max_new_tokens;
pub(crate) mod min_p;
pub(crate) mod min_tokens;
pub(crate) mod n;
pub(crate) mod occurrence_penalty;
pub(crate) mod presence_penalty;
pub(crate) mod prompt_logprobs;
pub(crate) mod repetition_penalty;
pub(crate) mod seed;
pub(crate) mod stop;
pub(crate) mod temperature;
pub(crate) mod top_k;
pub(crate) mod top_logprobs;
pub(crate) mod top_n_tokens;
pub(crate) mod top_p;
pub(crate) mod truncate;
pub(crate) mod typical_p;
pub(crate) mod unsupported;
pub(crate) mod watermark;

use proto::v1::{SamplingParams, Watermark};

use crate::error::ValidationError;
use crate::grammar::GrammarSpec;

/// What a client asked for, in TGI's terms, before any rule ran. `None` is "not given".
#[derive(Clone, Debug, Default)]
pub(crate) struct Asked {
    /// The prompt, after the chat template.
    pub(crate) inputs: String,
    /// The prompt as token ids instead; `inputs` is then empty.
    pub(crate) input_ids: Option<Vec<u32>>,
    /// What the client wants of the sampler, as it said it.
    pub(crate) sampling: SamplingParams,
    pub(crate) best_of: Option<usize>,
    pub(crate) max_new_tokens: Option<u32>,
    pub(crate) stop: Vec<String>,
    pub(crate) truncate: Option<usize>,
    /// `top_n_tokens` as OpenAI's APIs ask for it, with the field's name there and a limit of its own.
    pub(crate) top_logprobs: Option<(&'static str, u32)>,
    /// What the reply must match.
    pub(crate) grammar: Option<GrammarSpec>,
    pub(crate) adapter_id: Option<String>,
    pub(crate) ignore_eos: bool,
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
    /// OpenAI's bound of `top_logprobs`, or the shards' if that is less.
    pub max_top_logprobs: u32,
    /// `--max-input-tokens`, or what the model and the cache allow.
    pub max_input_tokens: usize,
    /// `--max-total-tokens`, or what the model and the cache allow.
    pub max_total_tokens: usize,
    /// Answers of one request: OpenAI's bound, or `--max-concurrent-requests` if that is less.
    pub max_n: usize,
    /// Not `--disable-grammar-support`.
    pub has_grammars: bool,
    /// `--watermark-gamma`, `--watermark-delta`.
    pub watermark: Watermark,
}

/// Parameters that passed every rule.
#[derive(Clone, Debug)]
pub(crate) struct Checked {
    /// What was asked of the sampler, each parameter as its rule leaves it; with a seed if it draws.
    pub(crate) sampling: SamplingParams,
    /// Generations to run; the best one answers.
    pub(crate) best_of: usize,
    pub(crate) max_new_tokens: Option<u32>,
    pub(crate) stop: Vec<String>,
    pub(crate) truncate: Option<usize>,
    pub(crate) ignore_eos: bool,
    /// What the reply must match; a schema is no longer text.
    pub(crate) grammar: Option<GrammarSpec>,
    /// Answers wanted.
    pub(crate) n: usize,
}

/// One parameter: its name on the native API and the one function that checks it and enters it.
pub(crate) struct Parameter {
    pub(crate) name: &'static str,
    /// What a value must satisfy, in words.
    pub(crate) range: &'static str,
    pub(crate) enter: fn(&Asked, &ParamLimits, &mut Checked) -> Result<(), ValidationError>,
}

/// All parameters in the order in which TGI checks them: a request with two faults gets TGI's error. Those that TGI does not
/// know come last.
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
    grammar::PARAMETER,
    adapter_id::PARAMETER,
    watermark::PARAMETER,
    prompt_logprobs::PARAMETER,
    top_logprobs::PARAMETER,
    min_p::PARAMETER,
    presence_penalty::PARAMETER,
    occurrence_penalty::PARAMETER,
    logit_bias::PARAMETER,
    min_tokens::PARAMETER,
    ignore_eos::PARAMETER,
    bad_words::PARAMETER,
    n::PARAMETER,
];

/// Runs every rule of [`TABLE`].
///
/// # Errors
/// The first rule that fails, with TGI's text.
pub(crate) fn check(asked: &Asked, limits: &ParamLimits) -> Result<Checked, ValidationError> {
    let mut checked = Checked {
        sampling: asked.sampling.clone(),
        best_of: 1,
        max_new_tokens: None,
        stop: Vec::new(),
        truncate: None,
        ignore_eos: false,
        grammar: None,
        n: 1,
    };
    for parameter in TABLE {
        (parameter.enter)(asked, limits, &mut checked).inspect_err(|error| {
            tracing::debug!(parameter = parameter.name, range = parameter.range, %error, "refused");
        })?;
    }
    Ok(checked)
}

/// A finite number above 0: JSON's `1e39` is an infinity in f32, which no sampler survives.
fn positive(field: &'static str, value: Option<f32>) -> Result<(), ValidationError> {
    match value {
        Some(value) if !value.is_finite() => Err(ValidationError::NotFinite { field }),
        Some(value) if value <= 0.0 => Err(ValidationError::NotPositive { field }),
        Some(_) | None => Ok(()),
    }
}

/// A number between 0 and 1, without both.
fn fraction(field: &'static str, value: Option<f32>) -> Result<(), ValidationError> {
    match value.is_none_or(|value| value > 0.0 && value < 1.0) {
        true => Ok(()),
        false => Err(ValidationError::NotAFraction { field }),
    }
}

/// A number within `[least, most]`, which no NaN is.
fn within(field: &'static str, value: Option<f32>, least: f32, most: f32) -> Result<(), ValidationError> {
    match value.filter(|value| !(least..=most).contains(value)) {
        None => Ok(()),
        Some(given) => Err(ValidationError::OutOfRange { field, least, most, given }),
    }
}

/// A list that is not too long.
pub(crate) fn at_most(
    field: &'static str,
    unit: &'static str,
    limit: usize,
    given: usize,
) -> Result<(), ValidationError> {
    if given > limit { Err(ValidationError::TooMany { field, unit, limit, given }) } else { Ok(()) }
}

#[cfg(test)]
pub(crate) mod tests {
    use proto::v1::{TokenBias, TokenSequence};

    use super::*;

    pub(crate) fn limits() -> ParamLimits {
        ParamLimits {
            max_best_of: 2,
            max_stop_sequences: 4,
            max_top_n_tokens: 5,
            max_top_logprobs: 20,
            max_input_tokens: 63,
            max_total_tokens: 64,
            max_n: 8,
            has_grammars: true,
            watermark: Watermark { gamma: 0.5, delta: 2.0 },
        }
    }

    fn base() -> Asked {
        Asked { inputs: "text".to_owned(), ..Asked::default() }
    }

    /// What asks for this of the sampler and is in order otherwise.
    fn sampling(sampling: SamplingParams) -> Asked {
        Asked { sampling, ..base() }
    }

    fn off() -> SamplingParams {
        SamplingParams::default()
    }

    fn biases(entries: &[(u32, f32)]) -> Vec<TokenBias> {
        entries.iter().map(|&(token_id, bias)| TokenBias { token_id, bias }).collect()
    }

    fn words(words: &[&[u32]]) -> Vec<TokenSequence> {
        words.iter().map(|word| TokenSequence { ids: word.to_vec() }).collect()
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
            (sampling(SamplingParams { temperature: Some(0.0), ..off() }), "`temperature` must be strictly positive"),
            (
                sampling(SamplingParams { temperature: Some(f32::INFINITY), ..off() }),
                "`temperature` must be a finite number",
            ),
            (
                sampling(SamplingParams { repetition_penalty: Some(-1.0), ..off() }),
                "`repetition_penalty` must be strictly positive",
            ),
            (
                sampling(SamplingParams { frequency_penalty: Some(2.5), ..off() }),
                "`frequency_penalty` must be >= -2.0 and <= 2.0",
            ),
            (sampling(SamplingParams { top_p: Some(1.0), ..off() }), "`top_p` must be > 0.0 and < 1.0"),
            (sampling(SamplingParams { top_p: Some(0.0), ..off() }), "`top_p` must be > 0.0 and < 1.0"),
            (sampling(SamplingParams { typical_p: Some(1.0), ..off() }), "`typical_p` must be > 0.0 and < 1.0"),
            (sampling(SamplingParams { top_k: Some(0), ..off() }), "`top_k` must be strictly positive"),
            (sampling(SamplingParams { top_k: Some(-3), ..off() }), "`top_k` must be strictly positive"),
            (Asked { max_new_tokens: Some(0), ..base() }, "`max_new_tokens` must be strictly positive"),
            (Asked { stop: vec!["x".into(); 5], ..base() }, "`stop` supports up to 4 stop sequences. Given: 5"),
            (Asked { stop: vec!["".into()], ..base() }, "`stop` must not contain an empty string"),
            (
                Asked { stop: vec!["x".repeat(2000)], ..base() },
                "`stop` strings must have at most 1024 bytes. Given: 2000",
            ),
            (
                Asked {
                    sampling: SamplingParams { seed: Some(1), do_sample: true, ..off() },
                    best_of: Some(2),
                    ..base()
                },
                "`seed` must not be set when `best_of` > 1",
            ),
            (
                sampling(SamplingParams { top_n_tokens: Some(6), ..off() }),
                "`top_n_tokens` must be >= 0 and <= 5. Given: 6",
            ),
            (Asked { truncate: Some(0), ..base() }, "`truncate` must be strictly positive and less than 63. Given: 0"),
            (
                Asked { truncate: Some(64), ..base() },
                "`truncate` must be strictly positive and less than 63. Given: 64",
            ),
            (Asked { truncate: Some(63), ..base() }, "ok"),
            (
                sampling(SamplingParams {
                    top_p: Some(0.5),
                    typical_p: Some(0.5),
                    top_k: Some(1),
                    seed: Some(0),
                    ..off()
                }),
                "ok",
            ),
        ];
        for (asked, expected) in cases {
            assert_eq!(text(asked.clone()), expected, "{asked:?}");
        }
    }

    #[test]
    fn rules_of_our_own_name_field_limit_and_value() {
        let schema = |value| Some(GrammarSpec::JsonSchema(std::sync::Arc::new(value)));
        let cases = [
            (Asked { top_logprobs: Some(("logprobs", 20)), ..base() }, "ok"),
            (Asked { top_logprobs: Some(("logprobs", 21)), ..base() }, "`logprobs` must be >= 0 and <= 20. Given: 21"),
            (sampling(SamplingParams { min_p: Some(-0.5), ..off() }), "`min_p` must be >= 0.0 and <= 1.0. Given: -0.5"),
            (
                sampling(SamplingParams { min_p: Some(f32::NAN), ..off() }),
                "`min_p` must be >= 0.0 and <= 1.0. Given: NaN",
            ),
            (
                sampling(SamplingParams { presence_penalty: Some(2.5), ..off() }),
                "`presence_penalty` must be >= -2.0 and <= 2.0. Given: 2.5",
            ),
            (
                sampling(SamplingParams { occurrence_penalty: Some(-3.0), ..off() }),
                "`frequency_penalty` must be >= -2.0 and <= 2.0",
            ),
            (
                sampling(SamplingParams { logit_bias: biases(&[(1, 101.0)]), ..off() }),
                "`logit_bias` must be >= -100.0 and <= 100.0. Given: 101.0",
            ),
            (
                sampling(SamplingParams { logit_bias: biases(&[(1, 1.0), (1, 2.0)]), ..off() }),
                "`logit_bias` names token 1 twice",
            ),
            (
                sampling(SamplingParams { logit_bias: biases(&[(1, 1.0); 1025]), ..off() }),
                "`logit_bias` must have at most 1024 tokens. Given: 1025",
            ),
            (
                sampling(SamplingParams { bad_words: words(&[&[]]), ..off() }),
                "`bad_words` must not contain an empty list",
            ),
            (
                sampling(SamplingParams { bad_words: words(&[&[1][..]; 1025]), ..off() }),
                "`bad_words` must have at most 1024 lists. Given: 1025",
            ),
            (
                sampling(SamplingParams { bad_words: words(&[&[1; 33]]), ..off() }),
                "`bad_words[]` must have at most 32 tokens. Given: 33",
            ),
            (Asked { n: Some(0), ..base() }, "`n` must be >= 1 and <= 8. Given: 0"),
            (Asked { n: Some(9), ..base() }, "`n` must be >= 1 and <= 8. Given: 9"),
            (
                Asked { sampling: SamplingParams { do_sample: true, ..off() }, n: Some(3), best_of: Some(2), ..base() },
                "`n` must be <= `best_of`. Given: 3 and 2",
            ),
            (
                Asked { adapter_id: Some("mine".into()), ..base() },
                "adapter `mine` is not loaded; this server has no adapters",
            ),
            (Asked { input_ids: Some(vec![]), ..base() }, "`inputs` cannot be empty"),
            (Asked { grammar: schema(serde_json::json!(7)), ..base() }, "grammar is not supported"),
            (
                Asked { grammar: schema(serde_json::json!("{")), ..base() },
                "grammar is not valid: EOF while parsing an object at line 1 column 1",
            ),
            (
                Asked { grammar: schema(serde_json::json!("[]")), ..base() },
                "grammar is not valid: a JSON schema is an object or a boolean",
            ),
            (Asked { input_ids: Some(vec![1]), adapter_id: Some(String::new()), ..Asked::default() }, "ok"),
            (
                Asked {
                    sampling: SamplingParams { min_p: Some(1.0), presence_penalty: Some(-2.0), ..off() },
                    n: Some(8),
                    ..base()
                },
                "ok",
            ),
        ];
        for (asked, expected) in cases {
            assert_eq!(text(asked.clone()), expected, "{asked:?}");
        }
    }

    #[test]
    fn grammars_are_read_and_can_be_switched_off() {
        let schema = |value| Some(GrammarSpec::JsonSchema(std::sync::Arc::new(value)));
        let asked = Asked { grammar: schema(serde_json::json!(r#"{"type": "object"}"#)), ignore_eos: true, ..base() };
        let checked = check(&asked, &limits()).unwrap();
        assert_eq!(checked.grammar, schema(serde_json::json!({"type": "object"})), "the text of a schema is read");
        assert!(!checked.ignore_eos, "nothing follows the end of a grammar");
        let error = check(&asked, &ParamLimits { has_grammars: false, ..limits() }).unwrap_err();
        assert_eq!(error.to_string(), "grammar is not supported");
    }

    #[test]
    fn what_is_asked_reaches_the_sampler() {
        let asked = SamplingParams {
            min_p: Some(0.1),
            presence_penalty: Some(0.2),
            occurrence_penalty: Some(0.3),
            logit_bias: biases(&[(9, -100.0), (2, 5.0)]),
            min_tokens: Some(4),
            bad_words: words(&[&[7, 8]]),
            watermark: watermark::ask(true),
            prompt_logprobs: true,
            ..off()
        };
        let checked = check(&Asked { ignore_eos: true, ..sampling(asked.clone()) }, &limits()).unwrap();
        let expected = SamplingParams {
            logit_bias: biases(&[(2, 5.0), (9, -100.0)]),
            watermark: Some(Watermark { gamma: 0.5, delta: 2.0 }),
            ..asked
        };
        assert_eq!(checked.sampling, expected);
        assert!(checked.ignore_eos);
    }

    #[test]
    fn the_contract_with_the_shards_takes_what_these_rules_take() {
        // The ends of every range.
        for asked in [
            SamplingParams { temperature: Some(1e-30), repetition_penalty: Some(f32::MAX), ..off() },
            SamplingParams { top_k: Some(1), top_p: Some(1e-30), typical_p: Some(0.999_999), ..off() },
            SamplingParams { top_k: Some(i32::MAX), min_p: Some(0.0), top_n_tokens: Some(5), ..off() },
            SamplingParams { min_p: Some(1.0), presence_penalty: Some(-2.0), occurrence_penalty: Some(2.0), ..off() },
            SamplingParams { frequency_penalty: Some(2.0), watermark: watermark::ask(true), ..off() },
            SamplingParams {
                logit_bias: biases(&[(7, -100.0), (0, 100.0)]),
                bad_words: words(&[&[1; 32][..]; 1024]),
                ..off()
            },
        ] {
            let checked = check(&sampling(asked), &limits()).unwrap();
            assert_eq!(checked.sampling.check(8, limits().max_top_n_tokens), Ok(()));
        }
    }

    #[test]
    fn the_first_fault_in_tgis_order_answers() {
        let asked = Asked {
            sampling: SamplingParams { top_k: Some(0), temperature: Some(-1.0), ..off() },
            max_new_tokens: Some(0),
            ..base()
        };
        assert_eq!(text(asked), "`temperature` must be strictly positive");
    }

    #[test]
    fn greedy_reports_no_seed_and_sampling_always_has_one() {
        let seed = |do_sample, seed| {
            check(&sampling(SamplingParams { do_sample, seed, ..off() }), &limits()).unwrap().sampling.seed
        };
        assert_eq!(seed(false, Some(7)), None);
        assert_eq!(seed(true, Some(7)), Some(7));
        assert!(seed(true, None).is_some());
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
