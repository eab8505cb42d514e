//! The body of completions.

use axum::http::StatusCode;
use serde::Deserialize;

use crate::error::{BodyError, Error, ValidationError};
use crate::params::Asked;
use crate::params::unsupported::{COMPLETIONS, Unsupported, VLLM};
use crate::routes::body::Wire;
use crate::routes::openai::StreamOptions;
use crate::routes::openai::request::{forbid_words, request_body};
use crate::routes::openapi::PromptOrPrompts;
use crate::server::Server;
use crate::validation::SpecialTokens;

request_body! {
    /// The body of `/v1/completions`.
    pub(in crate::routes) struct CompletionRequest {
        #[schema(value_type = PromptOrPrompts)]
        prompt: Prompts,
        /// Not supported: write it into the prompt.
        #[schema(extensions(("x-limit" = json!("payload_limit"))))]
        suffix: Option<String>,
        /// The answer begins with the prompt.
        echo: Option<bool>,
        /// Log-probabilities with so many alternatives per token; with `echo`, of the prompt too.
        #[schema(minimum = 0, maximum = 20)]
        logprobs: Option<u32>,
        /// So many answers are made per prompt, and the `n` of the highest mean log-probability given.
        #[schema(minimum = 0, extensions(("x-limit" = json!("max_best_of"))))]
        best_of: Option<usize>,
        /// Whether the tokenizer adds the tokens a prompt begins with; it does unless this is false.
        add_special_tokens: Option<bool>,
    }
}

impl Wire for CompletionRequest {
    const UNSUPPORTED: &'static [&'static [Unsupported]] = &[COMPLETIONS, VLLM];
}

/// `prompt`: one text, one list of token ids, or several of a kind.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
pub(crate) enum Prompts {
    Text(String),
    Texts(Vec<String>),
    Tokens(Vec<u32>),
    TokenLists(Vec<Vec<u32>>),
}

/// One prompt.
#[derive(Debug)]
pub(super) enum Prompt {
    Text(String),
    Tokens(Vec<u32>),
}

/// How the request is to be answered.
#[derive(Debug)]
pub(super) struct Plan {
    pub(super) is_stream: bool,
    pub(super) stream_options: StreamOptions,
    pub(super) echoes: bool,
    /// Alternatives per token; `None` without log-probabilities.
    pub(super) logprobs: Option<usize>,
    /// Answers per prompt.
    pub(super) n: usize,
    /// Only the prompt is wanted (`max_tokens: 0` with `echo`): the one token that had to be made is not shown.
    pub(super) is_prompt_only: bool,
    pub(super) special_tokens: SpecialTokens,
}

impl CompletionRequest {
    pub(super) fn take_model(&mut self) -> Option<String> {
        self.model.take()
    }

    /// How to answer, the prompts, and what is asked of validation for each of them.
    ///
    /// # Errors
    /// [`Error::Suffix`], [`Error::BatchSize`], and [`ValidationError`] with the field that is at fault.
    pub(super) async fn into_plan(mut self, server: &Server) -> Result<(Plan, Vec<Prompt>, Asked), Error> {
        if self.suffix.is_some() {
            return Err(Error::Suffix);
        }
        let mut asked = self.take_asked()?;
        forbid_words(&mut asked, self.bad_words.take(), server).await?;
        let n = self.n.unwrap_or(1);
        let plan = Plan {
            is_stream: self.stream.unwrap_or(false),
            stream_options: self.stream_options.unwrap_or_default(),
            echoes: self.echo.unwrap_or(false),
            logprobs: self.logprobs.map(|logprobs| logprobs as usize),
            n,
            is_prompt_only: self.echo == Some(true) && self.max_tokens == Some(0),
            special_tokens: match self.add_special_tokens {
                Some(false) => SpecialTokens::Present,
                Some(true) | None => SpecialTokens::Add,
            },
        };
        if plan.is_prompt_only {
            asked.max_new_tokens = Some(1);
        }
        // As many as wanted are no choice.
        asked.best_of = self.best_of.filter(|best_of| *best_of != n);
        if plan.is_stream && asked.best_of.is_some() {
            return Err(ValidationError::BestOfStream.into());
        }
        asked.top_logprobs = self.logprobs.map(|top| ("logprobs", top));
        asked.sampling.prompt_logprobs = plan.echoes && self.logprobs.is_some();
        let prompts = self.prompt.into_list(server.args.max_client_batch_size)?;
        Ok((plan, prompts, asked))
    }
}

impl Prompts {
    fn into_list(self, limit: usize) -> Result<Vec<Prompt>, Error> {
        let prompts: Vec<Prompt> = match self {
            Prompts::Text(text) => vec![Prompt::Text(text)],
            Prompts::Texts(texts) => texts.into_iter().map(Prompt::Text).collect(),
            Prompts::Tokens(tokens) => vec![Prompt::Tokens(tokens)],
            Prompts::TokenLists(lists) => lists.into_iter().map(Prompt::Tokens).collect(),
        };
        if prompts.is_empty() {
            // TGI finds it while reading the body and answers in its words for that.
            let text = "Failed to deserialize the JSON body into the target type: prompt: \
                        Empty array detected. Do not use an empty array for the prompt.";
            let status = StatusCode::UNPROCESSABLE_ENTITY;
            return Err(BodyError::Rejected { status, text: text.to_owned() }.into());
        }
        if prompts.len() > limit { Err(Error::BatchSize { limit }) } else { Ok(prompts) }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use proto::v1::{SamplingParams, TokenBias, TokenSequence};
    use serde_json::{Value, json};

    use super::*;
    use crate::grammar::GrammarSpec;

    fn asked(fields: Value) -> Result<Asked, String> {
        let mut body = json!({"prompt": "x"});
        body.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
        let mut request: CompletionRequest = serde_json::from_value(body).map_err(|error| error.to_string())?;
        request.take_asked().map_err(|error| error.to_string())
    }

    #[test]
    fn every_shared_field_is_asked_for() {
        let asked = asked(json!({"n": 2, "max_tokens": 3, "temperature": 0.5, "top_p": 0.9, "top_k": 7, "min_p": 0.1,
            "typical_p": 0.8, "seed": -1, "stop": "s", "presence_penalty": 0.2, "frequency_penalty": 0.3,
            "repetition_penalty": 1.1, "logit_bias": {"5": -1.5}, "min_tokens": 2, "ignore_eos": true,
            "bad_words_ids": [[1, 2]], "truncate_prompt_tokens": 9, "adapter_id": "a", "guided_json": {"type": "object"}}))
        .unwrap();
        let sampling = SamplingParams {
            do_sample: true,
            temperature: Some(0.5),
            top_p: Some(0.9),
            top_k: Some(7),
            min_p: Some(0.1),
            typical_p: Some(0.8),
            seed: Some(u64::MAX),
            presence_penalty: Some(0.2),
            occurrence_penalty: Some(0.3),
            // TGI's penalty is another one.
            frequency_penalty: None,
            repetition_penalty: Some(1.1),
            logit_bias: vec![TokenBias { token_id: 5, bias: -1.5 }],
            min_tokens: Some(2),
            bad_words: vec![TokenSequence { ids: vec![1, 2] }],
            ..Default::default()
        };
        assert_eq!(asked.sampling, sampling);
        assert_eq!((asked.n, asked.max_new_tokens, asked.stop), (Some(2), Some(3), vec!["s".to_owned()]));
        assert_eq!((asked.ignore_eos, asked.truncate), (true, Some(9)));
        assert_eq!(asked.adapter_id.as_deref(), Some("a"));
        assert_eq!(asked.grammar, Some(GrammarSpec::JsonSchema(Arc::new(json!({"type": "object"})))));
    }

    #[test]
    fn words_for_off_are_understood() {
        for off in [
            json!({"top_k": -1, "min_p": 0, "typical_p": 1, "top_p": 1, "temperature": 0}),
            json!({"top_k": 0, "top_p": null, "temperature": 0, "stop": null, "logit_bias": null, "n": null}),
        ] {
            let sampling = asked(off).unwrap().sampling;
            assert_eq!(SamplingParams { min_p: None, ..sampling }, SamplingParams::default());
        }
        let greedy = asked(json!({"temperature": 0, "top_p": 0.5, "top_k": 7})).unwrap().sampling;
        assert!(!greedy.do_sample, "nothing else switches sampling on again");
    }
}
