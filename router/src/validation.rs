//! From what a client asked to the one request that may enter the queue. Every protocol comes through here, so no two
//! of them can have different limits.

use std::sync::Arc;

use proto::InvalidSampling;

use crate::constraint::SharedConstraint;
use crate::error::{Error, ValidationError};
use crate::grammar::{GrammarEngine, GrammarSpec};
use crate::limits::{CHECKED_NEW_TOKENS, SHORT_TEXT_BYTES};
use crate::metrics;
use crate::params::{self, Asked, ParamLimits};
use crate::request::{GenerateRequest, InvalidRequest, RequestLimits, RequestParts};
use crate::text::{Pool, TextTokenizer};

/// Who adds the tokens a prompt begins with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SpecialTokens {
    /// The tokenizer: the prompt is plain text.
    Add,
    /// The chat template has written them.
    Present,
}

/// Checks requests against the operator's and the model's limits.
pub(crate) struct Validation {
    pub(crate) tokenizer: Arc<TextTokenizer>,
    pub(crate) pool: Pool,
    pub(crate) limits: ParamLimits,
    pub(crate) request_limits: RequestLimits,
    /// `None` if grammars are switched off, or the model has no token that ends a reply.
    pub(crate) grammars: Option<GrammarEngine>,
}

/// A request that may be queued, with what the answer needs to know about it.
#[derive(Clone, Debug)]
pub(crate) struct Validated {
    pub(crate) request: GenerateRequest,
    pub(crate) stop: Vec<String>,
    /// Generations to run; each but the first takes a new seed ([`Validated::with_new_seed`]).
    pub(crate) best_of: usize,
    /// Answers wanted ([`Validated::sibling`]).
    pub(crate) n: usize,
    /// Unicode scalar values of the prompt, before truncation; 0 if it came as token ids.
    pub(crate) characters: usize,
}

impl Validation {
    /// Checks and tokenizes.
    ///
    /// # Errors
    /// The first rule that fails, in TGI's order and words, or overload if the tokenizer threads cannot keep up.
    pub(crate) async fn validate(&self, asked: Asked, special_tokens: SpecialTokens) -> Result<Validated, Error> {
        metrics::request_arrived();
        let checked = params::check(&asked, &self.limits)?;
        let characters = asked.inputs.chars().count();
        let mut ids = self.tokenize(asked, special_tokens).await?;
        // TGI keeps the end of the prompt: what the user said last.
        if let Some(truncate) = checked.truncate {
            ids.drain(..ids.len().saturating_sub(truncate));
        }
        let max_new_tokens = self.budget(ids.len(), checked.max_new_tokens)?;
        let constraint = self.constrain(checked.grammar.as_ref(), max_new_tokens).await?;
        metrics::request_validated(ids.len(), max_new_tokens);
        let request = GenerateRequest::new(
            RequestParts {
                input_ids: ids.into(),
                sampling: checked.sampling,
                max_new_tokens,
                ignore_eos: checked.ignore_eos,
                cache_prompt: true,
                salt: None,
                constraint,
            },
            &self.request_limits,
        )
        .map_err(from_last_gate)?;
        Ok(Validated { request, stop: checked.stop, best_of: checked.best_of, n: checked.n, characters })
    }

    /// The compiled grammar, if one is asked for and `max_new_tokens` can hold the shortest reply that it allows.
    async fn constrain(
        &self,
        grammar: Option<&GrammarSpec>,
        max_new_tokens: u32,
    ) -> Result<Option<SharedConstraint>, Error> {
        let Some(spec) = grammar else { return Ok(None) };
        let grammars = self.grammars.as_ref().ok_or(ValidationError::NoGrammar)?;
        let compiled = grammars.compile(spec).await?;
        let needed = compiled.min_tokens();
        if needed > max_new_tokens {
            return Err(ValidationError::GrammarTooLong { needed, limit: max_new_tokens }.into());
        }
        Ok(Some(SharedConstraint(compiled)))
    }

    /// The prompt's token ids: those that were given, or those of its text.
    async fn tokenize(&self, asked: Asked, special_tokens: SpecialTokens) -> Result<Vec<u32>, Error> {
        let Asked { inputs, input_ids, .. } = asked;
        if let Some(ids) = input_ids {
            return Ok(ids);
        }
        let is_short = inputs.len() <= SHORT_TEXT_BYTES;
        let tokenizer = self.tokenizer.clone();
        let encode = move || tokenizer.encode(&inputs, special_tokens == SpecialTokens::Add);
        Ok(if is_short { Pool::run_here(encode) } else { self.pool.run(encode).await }??)
    }

    /// The tokens a reply may have.
    ///
    /// TGI checks only the first [`CHECKED_NEW_TOKENS`] of them and goes on in pieces until the context is full. So do
    /// we, without the pieces: a larger wish that passes the check ends with `length` at the context limit.
    fn budget(&self, input: usize, max_new_tokens: Option<u32>) -> Result<u32, ValidationError> {
        let (limit, max_input) = (self.limits.max_total_tokens, self.limits.max_input_tokens);
        // Both are bounded by a context length that the shard gives as u32.
        let rest = u32::try_from(limit.saturating_sub(input)).unwrap_or(u32::MAX);
        let checked = max_new_tokens.unwrap_or(rest).min(CHECKED_NEW_TOKENS);
        if input + checked as usize > limit {
            return Err(ValidationError::TotalTokens { limit, input, new: checked });
        }
        if input > max_input {
            return Err(ValidationError::InputTokens { limit: max_input, given: input });
        }
        Ok(max_new_tokens.unwrap_or(rest).min(rest))
    }
}

impl Validated {
    /// The same request with another seed.
    pub(crate) fn with_new_seed(&self, limits: &RequestLimits) -> Self {
        self.with_seed(|_| rand::random(), limits)
    }

    /// Answer `index` of `n`: the same request with the `index`-th seed after this one's.
    pub(crate) fn sibling(&self, index: usize, limits: &RequestLimits) -> Self {
        self.with_seed(|seed| seed.wrapping_add(index as u64), limits)
    }

    /// The same request with a seed made from this one's, if it has one: greedy requests have none.
    fn with_seed(&self, change: impl FnOnce(u64) -> u64, limits: &RequestLimits) -> Self {
        let mut parts = self.request.parts().clone();
        parts.sampling.seed = parts.sampling.seed.map(change);
        let request = GenerateRequest::new(parts, limits).expect("only the seed has changed, and every seed is valid");
        Self { request, ..self.clone() }
    }
}

/// The engine's own gate found what the rules above should have: say it in their words.
fn from_last_gate(error: InvalidRequest) -> Error {
    match error {
        InvalidRequest::NoInput => ValidationError::EmptyInput,
        InvalidRequest::TokenId { token_id, vocab_size, .. } => {
            ValidationError::UnknownToken { field: "inputs", token_id, last: vocab_size.saturating_sub(1) }
        }
        InvalidRequest::Sampling(InvalidSampling::UnknownToken { field, token_id, vocab_size }) => {
            ValidationError::UnknownToken { field, token_id, last: vocab_size.saturating_sub(1) }
        }
        InvalidRequest::MinTokens { min_tokens, max_new_tokens } => {
            ValidationError::MinTokens { limit: max_new_tokens, given: min_tokens }
        }
        other => ValidationError::Tokenizer { reason: other.to_string() },
    }
    .into()
}

#[cfg(test)]
mod tests {
    use proto::v1::{SamplingParams, TokenBias, TokenSequence};

    use super::*;
    use crate::text::test_tokenizers::byte_level;

    fn validation() -> Validation {
        let tokenizer = Arc::new(byte_level());
        Validation {
            grammars: Some(GrammarEngine::new(&tokenizer, 300, &[257]).unwrap()),
            tokenizer,
            pool: Pool::new(1, 0).unwrap(),
            limits: params::tests::limits(),
            request_limits: RequestLimits { max_total_tokens: 64, vocab_size: 300, max_top_n_tokens: 5 },
        }
    }

    /// "input + new" tokens of the request, or the error's text.
    async fn outcome(asked: Asked, special_tokens: SpecialTokens) -> String {
        match validation().validate(asked, special_tokens).await {
            Ok(valid) => format!("{} + {}", valid.request.input_tokens(), valid.request.parts().max_new_tokens),
            Err(error) => error.to_string(),
        }
    }

    fn asked(bytes: usize, max_new_tokens: Option<u32>) -> Asked {
        Asked { inputs: "x".repeat(bytes), max_new_tokens, ..Asked::default() }
    }

    #[tokio::test]
    async fn the_token_budget_is_tgis() {
        use SpecialTokens::{Add, Present};
        assert_eq!(outcome(asked(10, None), Present).await, "10 + 54");
        assert_eq!(outcome(asked(10, None), Add).await, "11 + 53");
        assert_eq!(outcome(asked(10, Some(54)), Present).await, "10 + 54");
        assert_eq!(
            outcome(asked(10, Some(55)), Present).await,
            "Input validation error: `inputs` tokens + `max_new_tokens` must be <= 64. Given: 10 `inputs` tokens and 55 `max_new_tokens`"
        );
        assert_eq!(outcome(asked(63, None), Present).await, "63 + 1");
        assert_eq!(
            outcome(asked(64, None), Present).await,
            "Input validation error: `inputs` must have less than 63 tokens. Given: 64"
        );
        assert_eq!(
            outcome(asked(70, Some(1)), Present).await,
            "Input validation error: `inputs` tokens + `max_new_tokens` must be <= 64. Given: 70 `inputs` tokens and 1 `max_new_tokens`"
        );
    }

    #[test]
    fn a_wish_beyond_the_checked_piece_is_served_up_to_the_context() {
        let mut validation = validation();
        validation.limits.max_total_tokens = 4096;
        validation.limits.max_input_tokens = 4095;
        assert_eq!(validation.budget(10, Some(100_000)).unwrap(), 4086);
        assert!(validation.budget(3073, Some(100_000)).is_err(), "3073 + 1024 do not fit");
        assert_eq!(validation.budget(3072, Some(100_000)).unwrap(), 1024);
    }

    #[tokio::test]
    async fn truncate_keeps_the_end() {
        let asked = Asked { inputs: "abcdef".into(), truncate: Some(2), ..Asked::default() };
        let validation = validation();
        let valid = validation.validate(asked, SpecialTokens::Add).await.unwrap();
        assert_eq!(validation.tokenizer.decode(&valid.request.parts().input_ids), "ef");
        assert_eq!(valid.characters, 6);
    }

    #[tokio::test]
    async fn a_prompt_of_token_ids_is_taken_as_it_is() {
        let ids = |ids: Vec<u32>| Asked { input_ids: Some(ids), ..Asked::default() };
        let valid = validation().validate(ids(vec![7, 299, 7]), SpecialTokens::Add).await.unwrap();
        assert_eq!(valid.request.parts().input_ids.as_ref(), [7, 299, 7], "nothing is added");
        let cut = Asked { truncate: Some(2), ..ids(vec![7, 299, 8]) };
        let valid = validation().validate(cut, SpecialTokens::Add).await.unwrap();
        assert_eq!(valid.request.parts().input_ids.as_ref(), [299, 8]);
        assert_eq!(
            outcome(ids(vec![7, 300]), SpecialTokens::Add).await,
            "Input validation error: `inputs` names token 300; the model's tokens are 0 to 299"
        );
        assert_eq!(
            outcome(ids(vec![7; 64]), SpecialTokens::Add).await,
            "Input validation error: `inputs` must have less than 63 tokens. Given: 64"
        );
    }

    #[tokio::test]
    async fn what_needs_the_prompt_or_the_vocabulary_is_checked_at_the_last_gate() {
        use SpecialTokens::Present;
        let base = || asked(10, Some(5));
        let sampling = |sampling| Asked { sampling, ..base() };
        let longer = |min_tokens| sampling(SamplingParams { min_tokens: Some(min_tokens), ..Default::default() });
        let stranger = vec![TokenBias { token_id: 300, bias: 1.0 }];
        let word = vec![TokenSequence { ids: vec![1, 300] }];
        assert_eq!(
            outcome(longer(6), Present).await,
            "Input validation error: `min_tokens` must be <= 5, the most tokens that this reply may have. Given: 6"
        );
        assert_eq!(outcome(longer(5), Present).await, "10 + 5");
        assert_eq!(
            outcome(sampling(SamplingParams { logit_bias: stranger, ..Default::default() }), Present).await,
            "Input validation error: `logit_bias` names token 300; the model's tokens are 0 to 299"
        );
        assert_eq!(
            outcome(sampling(SamplingParams { bad_words: word, ..Default::default() }), Present).await,
            "Input validation error: `bad_words` names token 300; the model's tokens are 0 to 299"
        );
        let valid = validation().validate(Asked { ignore_eos: true, ..base() }, Present).await.unwrap();
        assert!(valid.request.parts().ignore_eos);
    }

    #[tokio::test]
    async fn a_grammar_is_compiled_and_must_fit_the_reply() {
        use SpecialTokens::Present;
        let regex = |text: &str| Some(GrammarSpec::Regex(text.into()));
        let base = |max_new_tokens| asked(10, Some(max_new_tokens));
        let valid = validation().validate(Asked { grammar: regex("abc"), ..base(5) }, Present).await.unwrap();
        assert!(valid.request.parts().constraint.is_some());
        assert_eq!(
            outcome(Asked { grammar: regex("a{20}"), ..base(5) }, Present).await,
            "Input validation error: the shortest reply that `grammar` allows has 20 tokens. This reply may have 5"
        );
        let invalid = outcome(Asked { grammar: regex("("), ..base(5) }, Present).await;
        assert!(invalid.starts_with("Input validation error: grammar is not valid: regex: "), "{invalid}");
        let switched_off = Validation { grammars: None, ..validation() };
        let error = switched_off.validate(Asked { grammar: regex("a"), ..base(5) }, Present).await.unwrap_err();
        assert_eq!(error.to_string(), "Input validation error: grammar is not supported");
    }

    #[tokio::test]
    async fn siblings_have_the_seeds_that_follow() {
        let validation = validation();
        let sampling = SamplingParams { do_sample: true, seed: Some(u64::MAX), ..Default::default() };
        let asked = Asked { inputs: "abc".into(), sampling, n: Some(3), ..Asked::default() };
        let first = validation.validate(asked, SpecialTokens::Add).await.unwrap();
        assert_eq!(first.n, 3);
        let seed =
            |first: &Validated, index| first.sibling(index, &validation.request_limits).request.parts().sampling.seed;
        assert_eq!([0, 1, 2].map(|index| seed(&first, index)), [Some(u64::MAX), Some(0), Some(1)]);
        let greedy = Asked { inputs: "abc".into(), n: Some(2), ..Asked::default() };
        let first = validation.validate(greedy, SpecialTokens::Add).await.unwrap();
        assert_eq!(seed(&first, 1), None, "greedy answers report no seed");
    }

    #[tokio::test]
    async fn a_new_seed_changes_nothing_else() {
        let validation = validation();
        let sampling = SamplingParams { do_sample: true, ..Default::default() };
        let asked = Asked { inputs: "abc".into(), sampling, ..Asked::default() };
        let first = validation.validate(asked, SpecialTokens::Add).await.unwrap();
        let second = first.with_new_seed(&validation.request_limits);
        let mut parts = second.request.parts().clone();
        assert_ne!(first.request.parts().sampling.seed, parts.sampling.seed);
        parts.sampling.seed = first.request.parts().sampling.seed;
        assert_eq!(&parts, first.request.parts());
    }
}
